/** Many processes switch to one root at once. Each ends there, by the method that it asked for, and nothing is left. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { compile, scratchDirectory } from "../compiled.ts";
import { hard } from "../hard.ts";
import { mountsOf, processes } from "../observe.ts";
import { places } from "./board.ts";
import { identity, Outcomes, plans, rootOf, Switcher, setStage, startInside, tableOf } from "./stage.ts";

const { path, source } = places;
const mounttree = await compile(scratchDirectory());
setStage();

test("64 processes switch to the same root at once, by each method", async () => {
  const table = tableOf("self");
  const before = processes();
  const contents = fs.readdirSync(path).sort();
  const legitimate = new Map([[identity(path), "one"]]);
  const switchers = Array.from({ length: 64 }, () => new Switcher());
  // So that all of them have started.
  await Promise.all(switchers.map((switcher) => switcher.ask({ methods: ["chroot"], putOld: "stacked" })));
  // Each by another method; and all by the same.
  for (const turn of [plans, ...(hard ? plans.map((plan) => [plan]) : [])]) {
    const outcomes = new Outcomes();
    const wanted = new Outcomes();
    const answers = switchers.flatMap((switcher, index) => {
      const plan = turn[index % turn.length];
      if (plan === undefined) return [];
      wanted.add(`${plan.methods[0]} one`, []);
      return switcher.ask(plan);
    });
    for (const answer of await Promise.all(answers)) outcomes.add(...rootOf(answer, legitimate));
    expect(outcomes.all).toEqual(wanted.all);
    expect(tableOf("self")).toBe(table);
    expect(fs.readdirSync(path).sort()).toEqual(contents);
  }
  await Promise.all(switchers.map((switcher) => switcher.end()));
  expect(tableOf("self")).toBe(table);
  expect(processes()).toEqual(before);
}, 200_000);

test("64 times mounttree run at once in the same root, which lacks what is to be mounted on", async () => {
  fs.writeFileSync(`${source}/file`, "of the source");
  const table = tableOf("self");
  const before = processes();
  const options = ["--tmpfs", "/made/for/all", "--ro-bind", `${source}/file`, "/made/for/a/file"];
  const started = await Promise.all(Array.from({ length: 64 }, () => startInside(mounttree, options)));
  expect(started.map(({ error }) => error).filter((error) => error !== undefined)).toEqual([]);
  for (const { pid } of started) {
    const root = `/proc/${pid}/root`;
    expect(identity(root)).toBe(identity(path));
    expect(fs.readFileSync(`${root}/made/for/a/file`, "utf8")).toBe("of the source");
    // In a container something may be mounted in /usr.
    expect(mountsOf(pid).flatMap(({ mountPoint }) => (mountPoint.startsWith("/usr/") ? [] : [mountPoint]))).toEqual([
      "/",
      "/inner",
      "/usr",
      "/made/for/all",
      "/made/for/a/file",
    ]);
  }
  await Promise.all(started.map(({ end }) => end()));
  expect(tableOf("self")).toBe(table);
  expect(processes()).toEqual(before);
}, 200_000);
