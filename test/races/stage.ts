/** The directories among which the races are run, who runs them, and what a test looks at from outside. */

import { afterEach, beforeEach, expect } from "bun:test";
import * as fs from "node:fs";
import { dirname, join } from "node:path";
import type { Subprocess } from "bun";
import type { MountInfo } from "../../mountinfo.ts";
import { oneThread } from "../../restart.ts";
import { MNT, MS, mount, umount2 } from "../../syscalls.ts";
import { mountsOf } from "../observe.ts";
import { type Board, base, links, makeBoard, openBoard, places, type Race, removeBoard } from "./board.ts";
import type { Plan, Reply } from "./switcher.ts";

const { path, spare, spareParent, cover, coverParent, destination, spareDestinationParent, outside, source, holder, beside } =
  places;

/** Where the path can lead, and what is in the file `marker` there. */
export const roots: ReadonlyMap<string, string> = new Map([
  ["one", path],
  ["two", spare],
  ["below another parent", `${spareParent}/root`],
  ["what was mounted", cover],
  ["below what was mounted", `${coverParent}/root`],
]);

export function identity(of: string): string {
  const { dev, ino } = fs.statSync(of);
  return `${dev}:${ino}`;
}

export function tableOf(pid: number | "self"): string {
  return fs.readFileSync(`/proc/${pid}/mountinfo`, "utf8");
}

/** All mounts but the racer's, which come and go; without their places, which it renames. */
export function bystanders(mounts: readonly MountInfo[]): string {
  const ofRacer = [cover, coverParent].map((each) => each.slice(base.length));
  return mounts
    .filter(({ root }) => !ofRacer.includes(root))
    .map(({ id, root, mountSource, optionalFields }) => `${id} ${root} ${mountSource} ${optionalFields}`)
    .join("\n");
}

/** Gives each test of a file the directories, and sees to it that nothing is left mounted. */
export function setStage(): void {
  let before = "";
  beforeEach(() => {
    // It may have been a slave; what it was shared with cannot be had back.
    mount(null, "/", null, MS.PRIVATE, null);
    before = tableOf("self");
    makeBoard();
    fs.mkdirSync(base);
    mount("base", base, "tmpfs", 0, null);
    // What is mounted in these two appears in the namespaces that are taken from this one.
    for (const place of ["/", base]) mount(null, place, null, MS.SHARED, null);
    for (const [marker, place] of roots) {
      // Commands run in each, once the machine's /usr is mounted there.
      for (const name of ["inner", "usr", "source"]) fs.mkdirSync(`${place}/${name}`, { recursive: true });
      for (const name of ["bin", "lib", "lib64"]) fs.symlinkSync(`usr/${name}`, `${place}/${name}`);
      fs.writeFileSync(`${place}/marker`, marker);
      mount("bystander", `${place}/inner`, "tmpfs", 0, null);
    }
    for (const place of [destination, `${spareDestinationParent}/destination`, `${outside}/destination`]) {
      fs.mkdirSync(place, { recursive: true });
    }
    for (const place of [source, `${holder}/inner`, beside]) fs.mkdirSync(place, { recursive: true });
    mount("bystander", `${holder}/inner`, "tmpfs", 0, null);
    const all = new Map(Object.values(links).flatMap((each) => Object.entries(each)));
    for (const [link, target] of all) {
      fs.mkdirSync(dirname(link), { recursive: true });
      fs.symlinkSync(target, link);
    }
  });
  afterEach(() => {
    umount2(`${holder}/inner`, 0);
    umount2(base, MNT.DETACH);
    mount(null, "/", null, MS.PRIVATE, null);
    fs.rmSync(dirname(holder), { recursive: true });
    fs.rmdirSync(base);
    removeBoard();
    expect(tableOf("self")).toBe(before);
  });
}

type Started = Subprocess<"pipe", "pipe", "inherit">;

/** One of the programs of this directory. */
export function start(program: string, parameters: readonly string[], environment: readonly string[] = []): Started {
  const command = ["env", ...environment, process.execPath, join(import.meta.dir, program), ...parameters];
  return Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
}

/** Runs a race as long as something else happens, and says how it went. */
export async function race(name: Race, during: (board: Board) => Promise<void>): Promise<Board> {
  const board = openBoard();
  const racer = start("racer.ts", [name]);
  while (board.changes === 0 && racer.exitCode === null) await Bun.sleep(1);
  try {
    await during(board);
  } finally {
    board.stop = true;
    await racer.exited;
  }
  expect(racer.exitCode).toBe(0);
  return board;
}

/** What came of it, and how often; with what is wrong with it, if anything is. Each begins with the method that worked, or with "error". */
export class Outcomes {
  private readonly counts = new Map<string, number>();

  add(outcome: string, wrong: readonly string[]): void {
    const key = [outcome, ...wrong].join(", but ");
    this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
  }

  get all(): Record<string, number> {
    return Object.fromEntries([...this.counts].sort());
  }

  /** Which of the methods have not worked yet. */
  without(methods: readonly string[]): string[] {
    const outcomes = [...this.counts.keys()];
    return methods.filter((method) => !outcomes.some((outcome) => outcome.startsWith(method)));
  }

  get wrong(): string[] {
    return [...this.counts.keys()].filter((key) => key.includes(", but "));
  }
}

export const methods = ["pivot", "move", "detached", "chroot"] as const;

/** How it is switched. */
export const plans: readonly Plan[] = [
  { methods: ["pivot"], putOld: "stacked" },
  { methods: ["pivot"], putOld: "directory" },
  { methods: ["move"], putOld: "stacked" },
  { methods: ["detached"], putOld: "stacked" },
  { methods: ["chroot"], putOld: "stacked" },
  { methods: ["pivot", "move", "detached", "chroot"], putOld: "stacked" },
];

/** What it says, and who says it. */
export type Answer = Reply & { pid: number };

/** The process that switches; another one after it has got more than one thread. */
export class Switcher {
  private process: ReturnType<typeof start> | undefined;

  async ask(plan: Plan): Promise<Answer> {
    this.process ??= start("switcher.ts", [], oneThread);
    const { stdin, stdout, pid } = this.process;
    stdin.write(JSON.stringify(plan));
    await stdin.flush();
    const reader = stdout.getReader();
    let text = "";
    while (!text.endsWith("\n")) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the process that switches has ended");
      text += Buffer.from(value).toString();
    }
    reader.releaseLock();
    return { pid, ...JSON.parse(text) };
  }

  async end(): Promise<void> {
    const ended = this.process;
    this.process = undefined;
    if (ended === undefined) return;
    await ended.stdin.end();
    expect(await ended.exited).toBe(0);
  }
}

/** Which root the process has now, seen from outside. */
export function rootOf(
  { pid, method, closed, left }: Answer,
  legitimate: ReadonlyMap<string, string>,
  comesAndGoes = false,
): [root: string, wrong: string[]] {
  const root = `/proc/${pid}/root`;
  const wrong: string[] = [];
  if (identity(`/proc/${pid}/cwd`) !== identity(root)) wrong.push("the working directory is elsewhere");
  // The kernel lists nothing in a detached root. In the others there is nothing of the old root.
  const mounts = method === "chroot" ? [] : mountsOf(pid);
  const elsewhere = mounts.map(({ mountPoint }) => mountPoint).filter((place) => place !== "/" && place !== "/inner");
  if (elsewhere.length > 0) wrong.push(`there are mounts on ${elsewhere}`);
  // On the old root itself, which is still there then, the racer goes on; and nobody else.
  if (left > 0 && !comesAndGoes) wrong.push(`${left} mounts are left on the old root`);
  // What is mounted over the path afterwards appears where the root is the path itself, and not a copy of it.
  const isCopy = method !== "chroot" && mounts.every(({ propagation }) => propagation.master === undefined);
  if (isCopy && !closed) wrong.push('"/.." leads elsewhere');
  const marker = legitimate.get(identity(root));
  if (marker === undefined) {
    if (!isEmpty(root) || fs.statSync(root).dev !== fs.statSync(base).dev) wrong.push("it is none of the roots");
    return [`${method} one that was made meanwhile`, wrong];
  }
  const temporary = fs.readdirSync(root).filter((name) => name.startsWith(".pivot_root"));
  if (temporary.length > 0) wrong.push(`there are ${temporary}`);
  if (fs.readFileSync(`${root}/marker`, "utf8") !== marker) wrong.push("the marker is another one");
  const isCover = marker.endsWith("what was mounted");
  if (!isCover && fs.statSync(`${root}/inner`).dev === fs.statSync(root).dev)
    wrong.push("what is mounted below has not come along");
  return [`${method} ${marker}`, wrong];
}

/** Also of a directory that is removed by now. */
function isEmpty(directory: string): boolean {
  try {
    return fs.readdirSync(directory).length === 0;
  } catch (error) {
    if (fs.statSync(directory).nlink === 0) return true;
    throw error;
  }
}

/** A command that waits inside. */
export interface Inside {
  pid: number;
  /** What mounttree said instead of starting it, if it did. */
  error: string | undefined;
  end(): Promise<void>;
}

/** `mounttree run`, waited for until the command waits, or does not. */
export async function startInside(mounttree: string, options: readonly string[]): Promise<Inside> {
  const command = [mounttree, "run", "--ro-bind", "/usr", "/usr", ...options, path, "sh", "-c", "echo ready; read line"];
  const started = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  const { value } = await started.stdout.getReader().read();
  const isReady = Buffer.from(value ?? []).toString() === "ready\n";
  const error = isReady ? undefined : await started.stderr.text();
  const end = async (): Promise<void> => {
    await started.stdin.end();
    expect(await started.exited).toBe(isReady ? 1 : 125);
  };
  return { pid: started.pid, error, end };
}
