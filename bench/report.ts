/**
 * The table: what was measured and what it was measured beside, the ratio with its spread, who is ahead, and whether a limit held. It is
 * printed as it comes, and kept for RESULTS.md.
 */
import { type Measured, type Ratio, ratioOf } from "./peers.ts";

/**
 * What a number must not exceed: so many times the one beside it, or so many microseconds. Those were set on a machine on which
 * statx(2) took 0.75 µs in C. Where it takes longer, `statx` says how long it took in the same run, and the limit grows with it.
 */
export type Limit = { times: number } | { microseconds: number; statx: Measured };

const statxThere = 750;

export interface Row {
  what: string;
  /** The mounts in the namespace that it happens in, where they are what is varied. */
  mounts?: number;
  /** In nanoseconds or bytes; less is better. */
  measured: Measured;
  beside?: Beside;
  limit?: Limit;
}

/** What a number is compared with: another program, the bare system calls in C, or another number of mounttree's own. */
export interface Beside {
  what: string;
  measured: Measured;
  is: "peer" | "floor" | "self";
}

export interface Section {
  readonly title: string;
  readonly notes: readonly string[];
  readonly unit: "time" | "memory";
  /** The plot has a panel for it: its rows by the number of mounts. */
  readonly drawn: boolean;
  readonly rows: Row[];
  readonly verdicts: string[];
}

const headings = ["what", "mounts", "median", "beside", "median", "ratio", "quartiles", "rounds", "ahead", "limit"] as const;

/** The columns of numbers. */
const rightAligned: ReadonlySet<number> = new Set([1, 2, 4, 5, 6, 7]);

export class Report {
  readonly sections: Section[] = [];
  /** The limits that did not hold. */
  readonly missed: string[] = [];

  /** Begins a part of the table. */
  section(title: string, notes: readonly string[], how: { unit?: Section["unit"]; drawn?: boolean } = {}): void {
    const { unit = "time", drawn = false } = how;
    this.sections.push({ title, notes, unit, drawn, rows: [], verdicts: [] });
    console.log(`\n${title}`);
    for (const note of notes) console.log(`  ${note}`);
  }

  rows(...rows: readonly Row[]): void {
    const section = this.#current();
    section.rows.push(...rows);
    const cells = rows.map((row) => cellsOf(row, section.unit));
    const widths = cells.reduce<number[]>((most, row) => row.map((cell, at) => Math.max(most[at] ?? 0, cell.length)), []);
    for (const row of cells) {
      const line = row.map((cell, at) => (rightAligned.has(at) ? cell.padStart(widths[at] ?? 0) : cell.padEnd(widths[at] ?? 0)));
      console.log(`  ${line.join("  ").trimEnd()}`);
    }
    for (const row of rows) {
      const { value, most, text } = limitOf(row) ?? {};
      if (value === undefined || most === undefined || value <= most) continue;
      const { what, mounts, beside } = row;
      const where = `${what}${mounts === undefined ? "" : `, ${mounts} mounts`}${beside ? `, beside ${beside.what}` : ""}`;
      this.missed.push(`${where}: ${value.toFixed(2)}, the limit is ${text}`);
    }
  }

  /** For what is neither a time nor memory. */
  verdict(what: string, held: boolean): void {
    const text = `${what}: ${held ? "held" : "MISSED"}`;
    console.log(`  ${text}`);
    this.#current().verdicts.push(text);
    if (!held) this.missed.push(what);
  }

  #current(): Section {
    const section = this.sections.at(-1);
    if (section === undefined) throw new Error("no section has begun");
    return section;
  }

  /** @param facts What it was measured on, and with. */
  markdown(facts: Readonly<Record<string, string>>): string {
    return `${[
      "# What mounttree costs, beside C and other programs",
      "All of this file is written by `bun run bench`.",
      table(["", ""], Object.entries(facts)),
      'Each row compares two medians, of processes that took turns, round by round: `ratio` is the one divided by the other, and half of the ratios of single rounds lie between the `quartiles`. Less is better. `ahead` is who needs less, in bold if that is not mounttree; "alike" if the quartiles lie on both sides of 1. C makes the same system calls, checks nothing and undoes nothing ([floor.c](floor.c)): a floor, and no program that one could use instead.',
      "![Cost by the number of mounts](RESULTS.svg)",
      ...this.sections.flatMap((section) => [
        `## ${section.title}`,
        ...(section.notes.length > 0 ? [section.notes.join("\n")] : []),
        ...(section.rows.length > 0
          ? [
              table(
                headings,
                section.rows.map((row) => emphasized(row, section.unit)),
              ),
            ]
          : []),
        ...(section.verdicts.length > 0 ? [section.verdicts.map((verdict) => `- ${verdict}`).join("\n")] : []),
      ]),
      "## Limits that were missed",
      this.missed.length === 0 ? "None." : this.missed.map((limit) => `- ${limit}`).join("\n"),
    ].join("\n\n")}\n`;
  }
}

function emphasized(row: Row, unit: Section["unit"]): string[] {
  const isBehind = row.beside !== undefined && ahead(row.beside, ratioIn(row)) === row.beside.what;
  return cellsOf(row, unit).map((cell, at) => (headings[at] === "ahead" && isBehind ? `**${cell}**` : cell));
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  const rule = head.map((_, at) => (head === headings && rightAligned.has(at) ? "---:" : "---"));
  return [line(head), line(rule), ...rows.map(line)].join("\n");
}

function ratioIn({ measured, beside }: Row): Ratio | undefined {
  const ratio = beside && ratioOf(measured, beside.measured);
  // Nothing beside nothing is no ratio.
  return ratio === undefined || Number.isNaN(ratio.value) ? undefined : ratio;
}

function cellsOf(row: Row, unit: Section["unit"]): string[] {
  const { what, mounts, measured, beside } = row;
  const ratio = ratioIn(row);
  const limit = limitOf(row);
  return [
    what,
    mounts?.toLocaleString("en") ?? "",
    quantity(measured, unit),
    beside?.what ?? "",
    beside === undefined ? "" : quantity(beside.measured, unit),
    ratio === undefined ? "" : digits(ratio.value),
    ratio === undefined ? "" : `${digits(ratio.low)} to ${digits(ratio.high)}`,
    typeof measured === "string" ? "" : String(measured.rounds.length),
    beside === undefined ? "" : ahead(beside, ratio),
    limit === undefined ? "" : `${limit.text}: ${verdictOf(limit)}`,
  ];
}

function ahead({ what, is }: Beside, ratio: Ratio | undefined): string {
  if (is === "self" || ratio === undefined) return "";
  if (ratio.high < 1) return "mounttree";
  return ratio.low > 1 ? what : "alike";
}

function digits(ratio: number): string {
  return ratio.toFixed(ratio < 0.1 ? 3 : ratio < 10 ? 2 : ratio < 100 ? 1 : 0);
}

function limitOf(row: Row): { value: number | undefined; most: number; text: string } | undefined {
  const { limit, measured } = row;
  if (limit === undefined) return undefined;
  if ("times" in limit) return { value: ratioIn(row)?.value, most: limit.times, text: String(limit.times) };
  const pace = Math.max(1, (typeof limit.statx === "string" ? statxThere : limit.statx.median) / statxThere);
  const text = `${limit.microseconds} µs${pace > 1 ? ` x ${pace.toFixed(2)}` : ""}`;
  return { value: typeof measured === "string" ? undefined : measured.median / 1000, most: limit.microseconds * pace, text };
}

function verdictOf({ value, most }: { value: number | undefined; most: number }): string {
  if (value === undefined) return "not measured";
  return value <= most ? "held" : "MISSED";
}

function quantity(measured: Measured, unit: Section["unit"]): string {
  if (typeof measured === "string") return measured;
  return unit === "time" ? duration(measured.median) : size(measured.median);
}

export function duration(nanoseconds: number): string {
  if (nanoseconds < 1000) return `${nanoseconds.toFixed(0)} ns`;
  if (nanoseconds < 1e6) return `${(nanoseconds / 1e3).toFixed(nanoseconds < 1e4 ? 2 : 1)} µs`;
  if (nanoseconds < 1e9) return `${(nanoseconds / 1e6).toFixed(2)} ms`;
  return `${(nanoseconds / 1e9).toFixed(2)} s`;
}

export function size(bytes: number): string {
  return bytes === 0 ? "nothing" : `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
