/** The printed table: what was measured, what it was measured beside, the ratio, and whether a limit held. */

/**
 * What a number must not exceed: so many times the one beside it, or so many microseconds. Those were set on a machine on which
 * statx(2) took 0.75 µs in C. Where it takes longer, `statx` says how long it took in the same run, in nanoseconds, and the limit
 * grows with it.
 */
export type Limit = { times: number } | { microseconds: number; statx: number | undefined };

const statxThere = 750;

export interface Row {
  what: string;
  /** The median, in nanoseconds; undefined if it could not be measured. */
  nanoseconds: number | undefined;
  /** What it is compared with. */
  beside?: { what: string; nanoseconds: number | undefined };
  limit?: Limit;
}

const missed: string[] = [];

/** The limits that did not hold so far. */
export function missedLimits(): readonly string[] {
  return missed;
}

/** For what is not a time: prints it, and counts it as missed if it did not hold. */
export function verdict(what: string, held: boolean): void {
  console.log(`  ${what}: ${held ? "held" : "MISSED"}`);
  if (!held) missed.push(what);
}

export function section(title: string, ...notes: readonly string[]): void {
  console.log(`\n${title}`);
  for (const note of notes) console.log(`  ${note}`);
}

export function print(rows: readonly Row[]): void {
  const cells = rows.map(cellsOf);
  const widths = cells.reduce<number[]>((most, row) => row.map((cell, at) => Math.max(most[at] ?? 0, cell.length)), []);
  for (const row of cells) {
    const line = row.map((cell, at) => (isNumber(at) ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0)));
    console.log(`  ${line.join("  ").trimEnd()}`);
  }
}

/** The columns of times and ratios. */
function isNumber(column: number): boolean {
  return column === 1 || column === 3 || column === 4;
}

function cellsOf({ what, nanoseconds, beside, limit }: Row): string[] {
  const ratio = nanoseconds && beside?.nanoseconds ? nanoseconds / beside.nanoseconds : undefined;
  const cells = [what, duration(nanoseconds)];
  if (beside === undefined) cells.push("", "", "");
  else cells.push(`: ${beside.what}`, duration(beside.nanoseconds), ratio === undefined ? "" : `= ${ratio.toFixed(2)}`);
  if (limit === undefined) return [...cells, ""];

  const [value, most, text] = "times" in limit ? [ratio, limit.times, String(limit.times)] : microseconds(nanoseconds, limit);
  if (value === undefined) return [...cells, `limit ${text}: not measured`];
  const held = value <= most;
  if (!held) missed.push(`${what}${beside ? `, beside ${beside.what}` : ""}: ${value.toFixed(2)}, the limit is ${text}`);
  return [...cells, `limit ${text}: ${held ? "held" : "MISSED"}`];
}

function microseconds(
  nanoseconds: number | undefined,
  limit: { microseconds: number; statx: number | undefined },
): [value: number | undefined, most: number, text: string] {
  const pace = Math.max(1, (limit.statx ?? statxThere) / statxThere);
  const text = `${limit.microseconds} µs${pace > 1 ? ` x ${pace.toFixed(2)}` : ""}`;
  return [nanoseconds && nanoseconds / 1000, limit.microseconds * pace, text];
}

function duration(nanoseconds: number | undefined): string {
  if (nanoseconds === undefined) return "-";
  if (nanoseconds < 1000) return `${nanoseconds.toFixed(0)} ns`;
  if (nanoseconds < 1_000_000) return `${(nanoseconds / 1000).toFixed(nanoseconds < 10_000 ? 2 : 1)} µs`;
  return `${(nanoseconds / 1_000_000).toFixed(2)} ms`;
}
