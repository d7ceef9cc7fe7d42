/**
 * One side of a comparison: a process in a mount namespace of its own (`unshare -m` starts it) that prepares the namespace, and then
 * either becomes floor.c or answers to the same commands with mounttree's functions: a line each, its fields separated by tabs, a
 * name, how many times, arguments. The answer is a line of so many times in nanoseconds.
 */
import { mkdirSync, readdirSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { measure } from "mitata";
import { checkRoot } from "../checkroot.ts";
import { unmountAll } from "../mount.ts";
import { getMounts, isBelow, mounted } from "../mountinfo.ts";
import { type PutOld, type SwitchRootOptions, switchRoot, switchRootOfThread, switchRootOn } from "../switchroot.ts";
import {
  AT,
  CLONE,
  chroot,
  close,
  execvp,
  fchdir,
  type Kernel,
  kernel,
  MS,
  mount,
  O,
  open,
  openat,
  read,
  setns,
  unshare,
  write,
} from "../syscalls.ts";

const { values: options } = parseArgs({
  options: {
    /** Becomes a mount of this type, or of its own file system ("bind"), with /proc and an empty /self. */
    root: { type: "string", default: "" },
    type: { type: "string", default: "bind" },
    /** With so many mounts in the namespace, or below the root if it is entered. */
    mounts: { type: "string", default: "0" },
    /** The directory below which those that are missing are made. */
    below: { type: "string", default: "" },
    /** Makes it "/" before the first command. */
    enter: { type: "boolean", default: false },
    /** All of that is done: what it took is not to be seen in the memory of the process that is measured. */
    prepared: { type: "boolean", default: false },
    /** The program to become. */
    floor: { type: "string", default: "" },
  },
});

function prepare(): void {
  const { root, type, below, enter } = options;
  if (root !== "") {
    if (type === "bind") mount(root, root, null, MS.BIND | MS.REC, null);
    else mount(type, root, type, 0, null);
    for (const name of ["self", "proc"]) mkdirSync(`${root}/${name}`, { recursive: true });
    mount("/proc", `${root}/proc`, null, MS.BIND, null);
  }
  let count = getMounts((entry) => !enter || isBelow(entry.mountPoint, root)).length;
  for (; count < Number(options.mounts); count++) {
    mkdirSync(`${below}/${count}`, { recursive: true });
    mount("tmpfs", `${below}/${count}`, "tmpfs", 0, null);
  }
}

/** Mounts a tmpfs there, and so many in it. */
function makeMounts(directory: string, count: number): void {
  mount("tmpfs", directory, "tmpfs", 0, null);
  for (let at = 1; at < count; at++) {
    mkdirSync(`${directory}/${at}`);
    mount("tmpfs", `${directory}/${at}`, "tmpfs", 0, null);
  }
}

// --- The commands

type Command = (...args: string[]) => number;

function textOf(argument: string | undefined): string {
  if (argument === undefined) throw new Error("an argument is missing");
  return argument;
}

function toPutOld(name: string | undefined): PutOld {
  if (name === "stacked" || name === "directory") return name;
  throw new Error(`no such putOld: ${name}`);
}

function timed(action: () => void): number {
  const start = Bun.nanoseconds();
  action();
  return Bun.nanoseconds() - start;
}

/** The bind mount that makes a new root of the old one is not timed. */
function again(on: Kernel, how: SwitchRootOptions): number {
  mount("/", "/self", null, MS.BIND | MS.REC, null);
  return timed(() => switchRootOn(on, "/self", how));
}

/** Of a process that has done nothing yet. */
function first(root: string): number {
  return timed(() => switchRoot(root, { methods: ["pivot"] }));
}

function pivot(on: Kernel, putOld: string | undefined): number {
  return again(on, { methods: ["pivot"], putOld: toPutOld(putOld) });
}

/** The time that was spent inside five of the kernel's calls. */
let inside = 0;

function clocked<Arguments extends unknown[], Result>(call: (...args: Arguments) => Result): (...args: Arguments) => Result {
  return (...args) => {
    const start = Bun.nanoseconds();
    const result = call(...args);
    inside += Bun.nanoseconds() - start;
    return result;
  };
}

const clockedKernel: Kernel = {
  ...kernel,
  mount: clocked(kernel.mount),
  move_mount: clocked(kernel.move_mount),
  open_tree: clocked(kernel.open_tree),
  pivot_root: clocked(kernel.pivot_root),
  umount2: clocked(kernel.umount2),
};

/** The tree that the process entered last; a switch to the next one closes it, or, with `waitingKernel`, leaves that for later. */
let tree = -1;
const left: number[] = [];

const waitingKernel: Kernel = {
  ...kernel,
  open_tree: (...args) => (tree = kernel.open_tree(...args)),
  close: (fd) => {
    if (fd === treeBefore) left.push(fd);
    else kernel.close(fd);
  },
};
let treeBefore = -1;

/** Enters a root, and returns from it; the return is not timed. */
function enter(on: Kernel, method: "detached" | "chroot", root: string): number {
  const oldRoot = open("/", O.PATH | O.DIRECTORY | O.CLOEXEC);
  treeBefore = tree;
  const spent = timed(() => switchRootOn(on, root, { methods: [method] }));
  fchdir(oldRoot);
  chroot(".");
  close(oldRoot);
  for (const fd of left.splice(0)) close(fd);
  return spent;
}

/** A mount namespace of this thread's own, as the command takes one; from the first on, this thread has a root of its own. */
function inNamespace(path: string, putOld: string): number {
  const home = open("/proc/self/ns/mnt", O.RDONLY | O.CLOEXEC);
  const where = toPutOld(putOld);
  const spent = timed(() => {
    unshare(CLONE.NEWNS);
    mount(null, "/", null, MS.SLAVE | MS.REC, null);
    const fd = open(path, O.PATH | O.DIRECTORY | O.CLOEXEC);
    for (const held of switchRootOfThread({ fd, path, madeForThis: false }, ["pivot"], where)) close(held);
    close(fd);
    // A thread that JSC started meanwhile has this thread's root too, and then setns(2) refuses.
    unshare(CLONE.FS);
    setns(home, CLONE.NEWNS);
  });
  close(home);
  return spent;
}

const table = new Uint8Array(8 << 20);

/** One loop of read(2) into one buffer. */
function readWhole(path: string): void {
  const fd = openat(AT.FDCWD, path, O.RDONLY | O.CLOEXEC);
  for (let length = 0; ; ) {
    const count = read(fd, table.subarray(length));
    if (count === 0) break;
    length += count;
  }
  close(fd);
}

function spawn(...command: string[]): number {
  return timed(() => {
    const { exitCode } = Bun.spawnSync(command, { stdin: "ignore", stdout: "ignore", stderr: "inherit" });
    if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}`);
  });
}

const commands: Readonly<Record<string, Command>> = {
  first: (root) => first(textOf(root)),
  pivot: (putOld) => pivot(kernel, putOld),
  "pivot-outside": (putOld) => {
    inside = 0;
    return pivot(clockedKernel, putOld) - inside;
  },
  move: () => again(kernel, { methods: ["move"] }),
  chroot: (root) => enter(kernel, "chroot", textOf(root)),
  detached: (root) => enter(waitingKernel, "detached", textOf(root)),
  "detached-close": (root) => enter(kernel, "detached", textOf(root)),
  namespace: (root, putOld) => inNamespace(textOf(root), textOf(putOld)),
  table: () => timed(() => getMounts()),
  check: (path) => timed(() => checkRoot(textOf(path))),
  read: (path) => timed(() => readWhole(textOf(path))),
  mounts: (directory, count) => {
    makeMounts(textOf(directory), Number(count));
    return 0;
  },
  unmount: (directory) => timed(() => unmountAll(textOf(directory))),
  resident: () => {
    Bun.gc(true);
    return process.memoryUsage.rss();
  },
  spawn,
};

/** What a leak would show in: mounts, descriptors, threads, and the memory after a collection. */
function state(): number[] {
  Bun.gc(true);
  const threads = readdirSync("/proc/self/task").map((thread) => readFileSync(`/proc/self/task/${thread}/comm`, "utf8").trim());
  return [
    getMounts().length,
    readdirSync("/proc/self/fd").length,
    // JSC starts and ends those that compile and collect as it needs them ("ollector Thread": names are cut in front).
    threads.filter((name) => !/^(HeapHelper|JITWorker|JSCWarmUp|.*ollector Thread)$/.test(name)).length,
    process.memoryUsage.rss(),
    threads.length,
  ];
}

async function answer(name: string, times: number, args: string[]): Promise<number[]> {
  if (name === "state") return state();
  if (name === "mounted") {
    const path = textOf(args[0]);
    const { p50 } = await measure(() => mounted(path), { min_cpu_time: 20e6 });
    return Array.from({ length: times }, () => p50);
  }
  const command = commands[name];
  if (command === undefined) throw new Error(`no such command: ${name}`);
  return Array.from({ length: times }, () => command(...args));
}

// --- The conversation

const line = new Uint8Array(65536);

/** One line of standard input; undefined at its end. */
function nextLine(): string | undefined {
  for (let length = 0; ; ) {
    const count = read(0, line.subarray(length));
    if (count === 0) return undefined;
    length += count;
    if (line[length - 1] === 0x0a) return new TextDecoder().decode(line.subarray(0, length - 1));
  }
}

if (!options.prepared) {
  prepare();
  if (options.floor !== "") execvp(options.enter ? [options.floor, options.root] : [options.floor]);
  execvp([process.execPath, ...process.argv.slice(1), "--prepared"]);
}
// An asynchronous read starts Bun's pool: the process has its usual threads.
await Bun.file("/proc/self/status").text();
if (options.enter) switchRoot(options.root, { methods: ["pivot"] });
for (let request = nextLine(); request !== undefined; request = nextLine()) {
  const [name = "", times = "0", ...args] = request.split("\t");
  const bytes = new TextEncoder().encode(`${(await answer(name, Number(times), args)).join(" ")}\n`);
  for (let at = 0; at < bytes.length; ) at += write(1, bytes.subarray(at));
}
