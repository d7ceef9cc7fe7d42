/** The arithmetic of the bench: what stands in its table is what was measured. */
import { beforeAll, describe, expect, spyOn, test } from "bun:test";
import { type Measured, median, quantile, ratioOf, takeTurns } from "../bench/peers.ts";
import { plot } from "../bench/plot.ts";
import { Report, type Row } from "../bench/report.ts";

const sample = (...rounds: number[]): Measured => ({ median: median(rounds), rounds });
const row = (ours: Measured, theirs: Measured, more: Partial<Row> = {}): Row => ({
  what: "ours",
  measured: ours,
  beside: { what: "theirs", measured: theirs, is: "peer" },
  ...more,
});

test("quantiles lie between values in proportion", () => {
  expect([0, 0.25, 0.5, 0.75, 1].map((part) => quantile([40, 10, 20, 30], part))).toEqual([10, 17.5, 25, 32.5, 40]);
  expect(median([3])).toBe(3);
  expect(() => median([])).toThrow("of nothing");
});

test("the spread of a ratio is that of the ratios of the rounds, which what slows all of a round down does not widen", () => {
  expect(ratioOf(sample(1, 2, 3, 4, 100), sample(2, 4, 6, 8, 200))).toEqual({ value: 0.5, low: 0.5, high: 0.5 });
  expect(ratioOf(sample(1, 2, 3, 4, 5), sample(1, 1, 1, 1, 1))).toEqual({ value: 3, low: 2, high: 4 });
  expect(ratioOf(sample(1), "not installed")).toBeUndefined();
  expect(() => ratioOf(sample(1, 2), sample(1))).toThrow("did not take turns");
});

describe("taking turns", () => {
  test("every round has each task once, in another order, and what is missing keeps its reason", async () => {
    const order: string[] = [];
    const task =
      (name: string, ...times: number[]) =>
      async () => {
        order.push(name);
        return times;
      };
    const time = await takeTurns({ most: 3, seconds: 60 }, { a: task("a", 1, 2, 9), b: task("b", 5), c: "not installed" });
    expect(order.join("")).toBe("abbaab");
    expect(time).toEqual({ a: sample(2, 2, 2), b: sample(5, 5, 5), c: "not installed" });
  });

  test("it ends when the time is over, but not before there are quartiles", async () => {
    const slow = async () => {
      await Bun.sleep(5);
      return [1];
    };
    const { slow: few } = await takeTurns({ most: 100, seconds: 0 }, { slow });
    expect(few).toEqual(sample(1, 1, 1, 1, 1));
    const { slow: some } = await takeTurns({ most: 1000, seconds: 0.1, least: 1 }, { slow });
    const rounds = typeof some === "string" ? 0 : some.rounds.length;
    expect(rounds).toBeGreaterThan(0);
    expect(rounds).toBeLessThan(21);
  });
});

describe("the table", () => {
  const report = new Report();
  let lines: string[] = [];

  beforeAll(() => {
    const log = spyOn(console, "log").mockImplementation(() => {});
    report.section("times", ["A note."], { drawn: true });
    report.rows(
      row(sample(1000, 1100, 1200), sample(2000, 2200, 2400), { mounts: 20, limit: { times: 0.4 } }),
      row(sample(3000, 3000, 3000), sample(1000, 1000, 1000), { mounts: 20_000, limit: { times: 3 } }),
      row(sample(900, 960, 1300), sample(1000, 1000, 1000)),
      row(sample(2000, 2000, 2000), "not installed", { limit: { times: 1 } }),
      row(sample(60_000), sample(1), { limit: { microseconds: 40, statx: sample(1500) } }),
    );
    report.verdict("nothing leaks", false);
    report.section("memory", [], { unit: "memory" });
    report.rows(row(sample(0, 0, 0), sample(2 ** 20, 2 ** 20, 2 ** 20)), row(sample(0, 0, 0), sample(0, 0, 0)));
    log.mockRestore();
    lines = report.markdown({ kernel: "Linux" }).split("\n");
  });

  test("says who is ahead, a peer in bold, and nobody where the quartiles lie on both sides of 1", () => {
    const rows = lines.filter((line) => line.startsWith("| ours"));
    expect(rows).toEqual([
      "| ours | 20 | 1.10 µs | theirs | 2.20 µs | 0.50 | 0.50 to 0.50 | 3 | mounttree | 0.4: MISSED |",
      "| ours | 20,000 | 3.00 µs | theirs | 1.00 µs | 3.00 | 3.00 to 3.00 | 3 | **theirs** | 3: held |",
      "| ours |  | 960 ns | theirs | 1.00 µs | 0.96 | 0.93 to 1.13 | 3 | alike |  |",
      "| ours |  | 2.00 µs | theirs | not installed |  |  | 3 |  | 1: not measured |",
      "| ours |  | 60.0 µs | theirs | 1 ns | 60000 | 60000 to 60000 | 1 | **theirs** | 40 µs x 2.00: held |",
      "| ours |  | nothing | theirs | 1.0 MiB | 0.000 | 0.000 to 0.000 | 3 | mounttree |  |",
      "| ours |  | nothing | theirs | nothing |  |  | 3 |  |  |",
    ]);
  });

  test("ends with the limits that were missed", () => {
    expect(report.missed).toEqual(["ours, 20 mounts, beside theirs: 0.50, the limit is 0.4", "nothing leaks"]);
    expect(lines.slice(-4)).toEqual(["", ...report.missed.map((limit) => `- ${limit}`), ""]);
    expect(lines).toContain("- nothing leaks: MISSED");
    expect(lines).toContain("| kernel | Linux |");
  });

  test("is drawn where it goes by the number of mounts", () => {
    const drawn = plot(report.sections);
    // One panel: two lines, with a mark for each number.
    expect(drawn.match(/<path /g)).toHaveLength(2);
    expect(drawn.match(/<circle /g)).toHaveLength(4);
    const [ours = "", theirs = ""] = drawn.match(/<path d="[^"]*"/g) ?? [];
    const heights = (path: string): number[] => [...path.matchAll(/[ML]\S+ ([\d.]+)/g)].map(([, y]) => Number(y));
    // Down is more: ours costs more at 20,000 than at 20, theirs less.
    expect(Math.sign((heights(ours)[0] ?? 0) - (heights(ours)[1] ?? 0))).toBe(1);
    expect(Math.sign((heights(theirs)[0] ?? 0) - (heights(theirs)[1] ?? 0))).toBe(-1);
    expect(drawn).not.toContain("NaN");
    expect(drawn).toContain(">20,000</text>");
  });
});
