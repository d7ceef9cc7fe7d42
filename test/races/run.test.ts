/**
 * Somebody changes what ROOT, or a destination inside of it, leads to, as fast as he can, while `mounttree run` mounts there. The command
 * finds everything inside, or there is an error; outside nothing is mounted, and nothing made.
 */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { type MountInfo, parseMountInfo } from "../../mountinfo.ts";
import { compile, run, scratchDirectory } from "../compiled.ts";
import { amount, hard } from "../hard.ts";
import { mountsOf } from "../observe.ts";
import { base, destinationKinds, pathKinds, places, type Race } from "./board.ts";
import { bystanders, identity, methods, Outcomes, race, roots, setStage, startInside, tableOf } from "./stage.ts";

const { path, outside, source } = places;
const mounttree = await compile(scratchDirectory());
setStage();

/** The mounts of a whole namespace, of which the root of a process in it can hide some. */
async function namespaceMounts(pid: number): Promise<MountInfo[]> {
  const { stdout } = await run(["nsenter", `--mount=/proc/${pid}/ns/mnt`, "cat", "/proc/self/mountinfo"]);
  return parseMountInfo(stdout);
}

interface Contest {
  name: Race;
  /** Options of `mounttree run`, other ones each time. */
  options(id: string): string[];
  /** Whether it can be seen that the source, mounted there, is inside of the root. */
  isInside(pid: number, mountPoint: string): boolean;
}

async function runWhile({ name, options, isInside }: Contest): Promise<void> {
  const table = tableOf("self");
  const others = bystanders(mountsOf("self"));
  const legitimate = new Map([...roots].map(([marker, place]) => [identity(place), marker]));

  /** In which root the command runs, and where it has the source. */
  const look = async (pid: number, method: string): Promise<[string, string[]]> => {
    const wrong: string[] = [];
    const marker = legitimate.get(identity(`/proc/${pid}/root`));
    if (marker === undefined) wrong.push("it is none of the roots");
    // Pivoted and moved, what is in the root is all that there is; otherwise the old root is there, too.
    const isAlone = method === "pivot" || method === "move";
    const mounts = isAlone ? mountsOf(pid) : await namespaceMounts(pid);
    const sources = mounts.filter(({ root }) => root === source.slice(base.length));
    if (sources.length !== 1) wrong.push(`the source has been mounted ${sources.length} times`);
    for (const { mountPoint, mountOptions } of sources) {
      if (!isInside(pid, isAlone ? `${path}${mountPoint}` : mountPoint)) wrong.push(`the source is mounted on ${mountPoint}`);
      if (!mountOptions.startsWith("ro,")) wrong.push("it is writable");
    }
    const made = mounts.filter(({ mountPoint, fsType }) => mountPoint.endsWith("/new") && fsType === "tmpfs");
    if (made.length !== (name.startsWith("destination") ? 1 : 0)) wrong.push(`the tmpfs has been mounted ${made.length} times`);
    for (const { mountPoint } of made) {
      if (!isAlone && !mountPoint.startsWith(`${path}/`)) wrong.push(`the tmpfs is mounted on ${mountPoint}`);
    }
    return [`${method}: ${marker}`, wrong];
  };

  const outcomes = new Outcomes();
  let hit = 0;
  const { changes, lost } = await race(name, async (board) => {
    const enough = (round: number): boolean =>
      round >= amount(50, 2) && board.changes >= amount(10_000, 300) && (outcomes.without(methods).length === 0 || round >= 50);
    for (let round = 0; !enough(round); round++) {
      for (const method of methods) {
        const before = board.changes;
        const { pid, error, end } = await startInside(mounttree, ["--method", method, ...options(`${method}${round}`)]);
        if (board.changes > before) hit++;
        if (error === undefined) outcomes.add(...(await look(pid, method)));
        else outcomes.add(`error: ${error.replace(/\d+/g, "N").trim()}`, []);
        await end();
        expect(bystanders(mountsOf("self"))).toBe(others);
        expect(fs.readdirSync(outside)).toEqual(["destination"]);
        expect(fs.readdirSync(`${outside}/destination`)).toEqual([]);
      }
    }
  });
  if (hard) console.log(`${changes} changes, ${hit} runs hit:`, outcomes.all);
  expect(outcomes.wrong).toEqual([]);
  expect(outcomes.without(methods)).toEqual([]);
  expect(hit).toBeGreaterThan(0);
  expect(lost).toBe(0);
  expect(tableOf("self")).toBe(table);
}

for (const kind of destinationKinds) {
  test(
    `what is mounted on a destination is inside, or there is an error, while somebody ${kind}`,
    () =>
      runWhile({
        name: `destination: ${kind}`,
        // The second destination is missing.
        options: (id) => ["--ro-bind", source, "/above/destination", "--tmpfs", `/above/${id}/new`],
        isInside: (_, mountPoint) => mountPoint.startsWith(`${path}/`),
      }),
    200_000,
  );
}

for (const kind of pathKinds) {
  // What is made in a new directory would be in the way of somebody who removes it.
  if (kind === "removes it and makes it again") continue;
  test(
    `the command runs in a right root, or there is an error, while somebody ${kind}`,
    () =>
      runWhile({
        name: `path: ${kind}`,
        options: () => ["--ro-bind", source, "/source"],
        // Where the root is by now has changed; but what is in it has not.
        isInside: (pid) => identity(`/proc/${pid}/root/source`) === identity(source),
      }),
    200_000,
  );
}
