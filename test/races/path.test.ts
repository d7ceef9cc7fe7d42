/**
 * Somebody changes what the path leads to, as fast as he can, while the root is switched to it. Each switch ends in a directory that the
 * path led to, or in an error that leaves everything as it was; one that comes too late for that says so. Nothing of anybody else's is
 * unmounted.
 */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { parseMountInfo } from "../../mountinfo.ts";
import { amount, hard } from "../hard.ts";
import { mountsOf } from "../observe.ts";
import { base, pathKinds } from "./board.ts";
import {
  type Answer,
  bystanders,
  identity,
  methods,
  Outcomes,
  plans,
  race,
  rootOf,
  roots,
  Switcher,
  setStage,
  tableOf,
} from "./stage.ts";

setStage();

/** Why there was no switch, and what is not as it was before. */
function errorOf({ pid, table, error }: Answer): [why: string, wrong: string[]] {
  const wrong: string[] = [];
  const root = fs.statSync(`/proc/${pid}/root`);
  if (error?.switched && root.nlink === 0) {
    // It is there, and has found, too late, that somebody has removed what it has entered: that has no name any more (getcwd(2)), and with
    // a directory the kernel takes away what is mounted on it, which was the old root.
    if (root.dev !== fs.statSync(base).dev) wrong.push("it is none of the roots");
    return ["error: the new root has been removed", wrong];
  }
  if (error?.switched !== false || error.suppressed.length > 0) wrong.push(`it says it has switched: ${JSON.stringify(error)}`);
  if (identity(`/proc/${pid}/root`) !== identity("/")) wrong.push("the root is another one");
  if (identity(`/proc/${pid}/cwd`) !== identity(base)) wrong.push("the working directory is another one");
  if (bystanders(mountsOf(pid)) !== bystanders(parseMountInfo(table))) wrong.push("the mount table is another one");
  const why = error?.rejected.map(({ method, reason }) => `${method} ${reason}`).join() || `${error?.phase} ${error?.code}`;
  return [`error: ${why}`, wrong];
}

for (const kind of pathKinds) {
  test(`the root is a right one, or as before, while somebody ${kind}`, async () => {
    const table = tableOf("self");
    const outside = bystanders(mountsOf("self"));
    const contents = [...roots.values()].map((place) => fs.readdirSync(place).sort());
    const legitimate = new Map([...roots].map(([marker, place]) => [identity(place), marker]));
    const outcomes = new Outcomes();
    const comesAndGoes = kind === "mounts on the old root and unmounts";
    let hit = 0;
    const { changes, lost } = await race(`path: ${kind}`, async (board) => {
      const switcher = new Switcher();
      const enough = (round: number): boolean =>
        round >= amount(100, 5) &&
        board.changes >= amount(10_000, 300) &&
        (outcomes.without(methods).length === 0 || round >= 200);
      for (let round = 0; !enough(round); round++) {
        for (const plan of plans) {
          const answer = await switcher.ask(plan);
          outcomes.add(...(answer.method === undefined ? errorOf(answer) : rootOf(answer, legitimate, comesAndGoes)));
          expect(bystanders(mountsOf("self"))).toBe(outside);
          if (answer.changes > 0) hit++;
          if (answer.threads > 1) await switcher.end();
        }
      }
      await switcher.end();
    });
    if (hard) console.log(`${changes} changes, ${hit} switches hit:`, outcomes.all);
    expect(outcomes.wrong).toEqual([]);
    expect(outcomes.without(methods)).toEqual([]);
    expect(hit).toBeGreaterThan(0);
    expect(lost).toBe(0);
    expect(tableOf("self")).toBe(table);
    expect([...roots.values()].map((place) => fs.readdirSync(place).sort())).toEqual(contents);
  }, 200_000);
}
