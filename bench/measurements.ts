/** What is measured inside of processes: each function prepares its peers, lets them take turns, and reports a part of the table. */
import { mkdirSync } from "node:fs";
import { mountOf } from "../mountinfo.ts";
import { combine, type Measured, median, Peer, type PeerOptions, type Task, takeTurns } from "./peers.ts";
import type { Beside, Report, Row } from "./report.ts";

/** What was found, and made, for the measurements. */
export interface Bench {
  readonly report: Report;
  /** A new, empty directory on a disk. */
  directory: string;
  /** floor.c, compiled; undefined without a C compiler. */
  floor: string | undefined;
  /** `dist/mounttree`; an empty program compiled by `bun build --compile`; and one that is compiled with the options of the first. */
  mounttree: string;
  empty: string;
  emptyAlike: string;
  /** enter.ts, and the same compiled. */
  enter: string;
  enterCompiled: string;
}

export const few = 20;
export const many = 5000;
/** What the costs are drawn by. */
export const counts: readonly number[] = [few, 100, 1000, many, 20_000];

export function newDirectory(bench: Bench, name: string): string {
  const path = `${bench.directory}/${name}`;
  mkdirSync(path, { recursive: true });
  return path;
}

/** A Bun process, and a C process beside it if there is a compiler, each in a namespace that was prepared in the same way. */
interface Pair {
  bun: Peer;
  c: Peer | undefined;
}

function pair(bench: Bench, options: PeerOptions, using: AsyncDisposableStack): Pair {
  const bun = using.use(new Peer(options));
  return { bun, c: bench.floor === undefined ? undefined : using.use(new Peer({ ...options, floor: bench.floor })) };
}

/** A task for a process, if there is one. */
export function asking(peer: Peer | undefined, command: string, times: number, ...args: string[]): Task | string {
  return peer === undefined ? "no C compiler" : () => peer.ask(command, times, ...args);
}

/** How fast the machine is at the moment: see Limit in report.ts. */
function statxOf(c: Peer | undefined): Task | string {
  return asking(c, "mounted", 1, "/proc");
}

/** What is compared with the bare calls in C. */
function toC(what: string, measured: Measured, c: Measured, floor = "C"): Row & { beside: Beside } {
  return { what, measured, beside: { what: floor, measured: c, is: "floor" } };
}

function minus(one: number, other: number): number {
  return one - other;
}

// --- Switches in one namespace

const switches = 1000;
const block = 50;
const inBlocks = { most: switches / block, least: switches / block, seconds: 0 };

export async function pivotAgainAndAgain(bench: Bench, type: "bind" | "tmpfs"): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const { report } = bench;
  const root = newDirectory(bench, `pivot-${type}`);
  const { bun, c } = pair(bench, { root, type, enter: true, mounts: few, below: `${root}/mounts` }, peers);
  const fsType = type === "bind" ? mountOf(bench.directory).fsType : "tmpfs";
  report.section(
    `pivot, ${switches} times in one namespace of ${few} mounts, root on ${type === "bind" ? `disk (${fsType})` : fsType}`,
    [
      "Timed: switchRoot() with every check. Not timed: mount --rbind / /self before each.",
      'C makes the bare calls: of putOld "stacked", or those of the Go original (directory, detach, remove).',
      "The five calls: pivot_root, mount, open_tree, move_mount, umount2. The last waits for the kernel's readers.",
    ],
  );
  for (const putOld of ["stacked", "directory"]) {
    // The first hundreds are for the compiler that makes hot functions fast, and leaves its code in memory.
    await bun.ask("pivot", 500, putOld);
    await bun.ask("pivot-outside", 500, putOld);
  }
  for (const putOld of ["stacked", "directory"]) {
    const before = await bun.ask("state", 1);
    const time = await takeTurns(inBlocks, {
      whole: asking(bun, "pivot", block, putOld),
      outside: asking(bun, "pivot-outside", block, putOld),
      original: asking(c, "pivot", block, "directory"),
      stacked: asking(c, "pivot", block, "stacked"),
      statx: statxOf(c),
    });
    const after = await bun.ask("state", 1);
    const what = `${fsType}, ${putOld}`;
    const outside: Row = { what: `${what}: outside the five calls`, measured: time.outside };
    if (putOld === "stacked") outside.limit = { microseconds: 45, statx: time.statx };
    report.rows(
      {
        ...toC(what, time.whole, time.original, "C, the Go original's calls"),
        // On tmpfs a directory costs C next to nothing, and what umount2 waits for is most of both: nothing to hold a limit against.
        ...(type === "bind" && { limit: { times: putOld === "stacked" ? 1.4 : 2.2 } }),
      },
      toC(what, time.whole, time.stacked, 'C, the calls of "stacked"'),
      outside,
      { what: `${what}: inside them`, measured: combine(time.whole, time.outside, minus) },
    );
    leaks(report, `${what}, ${2 * switches} times`, before, after);
  }
}

/** What a collection leaves differs by a few percent from one to the next; 10 % of it would be less than 3 kB a switch. */
const growthLimit = 10;

function leaks(report: Report, what: string, before: readonly number[], after: readonly number[]): void {
  const [mounts = 0, descriptors = 0, threads = 0, memory = 0, all = 0] = before;
  const [mountsAfter = 0, descriptorsAfter = 0, threadsAfter = 0, memoryAfter = 0] = after;
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
  const growth = 100 * (memoryAfter / memory - 1);
  report.verdict(
    `${what}: mounts ${mounts} -> ${mountsAfter}, descriptors ${descriptors} -> ${descriptorsAfter}, threads ${threads} -> ${threadsAfter} (and JSC's own: ${all - threads}), ` +
      `memory ${mebibytes(memory)} -> ${mebibytes(memoryAfter)} MiB (${growth.toFixed(1)} %, limit ${growthLimit} %)`,
    mountsAfter <= mounts && descriptorsAfter <= descriptors && threadsAfter <= threads && growth <= growthLimit,
  );
}

/** What a program gets that switches once: nothing is compiled yet. */
export async function firstSwitch(bench: Bench): Promise<void> {
  const root = newDirectory(bench, "first");
  bench.report.section(`pivot, the first of a process, ${few} mounts, root on tmpfs`, [
    "Timed: switchRoot() in a program that runs from its source and has imported mounttree, and the next one, to a bind mount of that root.",
  ]);
  const first: number[] = [];
  const second: number[] = [];
  for (let round = 0; round < 20; round++) {
    await using peer = new Peer({ root, type: "tmpfs" });
    first.push(...(await peer.ask("first", 1, root)));
    second.push(...(await peer.ask("pivot", 1, "stacked")));
  }
  const sample = (rounds: number[]): Measured => ({ median: median(rounds), rounds });
  const beside: Beside = { what: "the second", measured: sample(second), is: "self" };
  bench.report.rows({ what: "the first pivot", measured: sample(first), beside });
}

export async function detached(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const root = newDirectory(bench, "detached");
  const { bun, c } = pair(bench, { root, type: "bind", mounts: few, below: newDirectory(bench, "mounts") }, peers);
  bench.report.section(`detached: the entry, ${few} mounts`, [
    "Timed: switchRoot() with every check. Not timed: the return (fchdir to the old root, chroot).",
    '"with close": closing the tree that was entered before, as a second switch does, which waits for the kernel\'s readers.',
  ]);
  for (const how of ["detached", "detached-close"]) await bun.ask(how, 500, root);
  const time = await takeTurns(inBlocks, {
    entry: asking(bun, "detached", block, root),
    entryC: asking(c, "detached", block, root),
    close: asking(bun, "detached-close", block, root),
    closeC: asking(c, "detached-close", block, root),
    statx: statxOf(c),
  });
  bench.report.rows(
    { ...toC("detached", time.entry, time.entryC), limit: { microseconds: 40, statx: time.statx } },
    toC("detached, with close", time.close, time.closeC, "C, with close"),
  );
}

// --- Namespaces

export async function newNamespaces(bench: Bench): Promise<void> {
  bench.report.section('a mount namespace for each switch: unshare, "/" made a slave, pivot, and back', [
    "By the main thread alone, as the command does.",
  ]);
  for (const [mounts, rounds] of [
    [few, 40],
    [many, 20],
  ] as const) {
    await using peers = new AsyncDisposableStack();
    const root = newDirectory(bench, "namespace");
    const { bun, c } = pair(bench, { root, type: "bind", mounts, below: newDirectory(bench, "mounts") }, peers);
    const times = mounts === few ? 10 : 1;
    await bun.ask("namespace", mounts === few ? 300 : 3, root, "stacked");
    const time = await takeTurns(
      { most: rounds, seconds: 20 },
      {
        none: asking(c, "namespace", times, root, "none"),
        stacked: asking(bun, "namespace", times, root, "stacked"),
        stackedC: asking(c, "namespace", times, root, "stacked"),
        directory: asking(bun, "namespace", times, root, "directory"),
        directoryC: asking(c, "namespace", times, root, "directory"),
      },
    );
    bench.report.rows(
      { ...toC("stacked", time.stacked, time.stackedC), mounts },
      { ...toC("directory", time.directory, time.directoryC), mounts },
      { what: "C, no switch", mounts, measured: time.none },
    );
  }
}

/** The first starts of a program are slower. */
export const warmUp = { most: 3, least: 3, seconds: 0 };

export async function enteringNamespaces(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const starter = peers.use(new Peer({ floor: bench.floor ?? "" }));
  bench.report.section(
    "enterMountNamespace, first of all in a program that then ends: what it adds to the start of that program",
    [
      "It starts the program once more, with user: true two times; a compiled program that has one thread yet, it does not.",
      "execve(2) alone: the program executes itself once more, and that is all.",
      '"after a read": asynchronous I/O comes first, and so do its threads.',
    ],
  );
  for (const [name, command, ...first] of [
    ["bun x.ts", [process.execPath, bench.enter]],
    ["bun x.ts, after a read", [process.execPath, bench.enter], "pool"],
    ["compiled", [bench.enterCompiled]],
    ["compiled, after a read", [bench.enterCompiled], "pool"],
  ] as const) {
    const start = (how: string) => asking(starter, "spawn", 1, ...command, how, ...first);
    const tasks = { none: start("none"), exec: start("exec"), mount: start("mount"), user: start("user") };
    await takeTurns(warmUp, tasks);
    const time = await takeTurns({ most: 40, seconds: 15 }, tasks);
    const beside: Beside = { what: "the program without it", measured: time.none, is: "self" };
    bench.report.rows(
      { what: `${name}: execve(2) alone`, measured: combine(time.exec, time.none, minus), beside },
      { what: name, measured: combine(time.mount, time.none, minus), beside, limit: { times: 1.4 } },
      { what: `${name}, user: true`, measured: combine(time.user, time.none, minus), beside, limit: { times: 2.8 } },
    );
  }
}

// --- By the number of mounts

/** How often a thing is done in one turn, where it takes longer the more mounts there are. */
function inOneTurn(mounts: number): number {
  return mounts <= 100 ? 10 : mounts <= 1000 ? 4 : 1;
}

/**
 * What is the same thing however many mounts there are takes its turns with itself at every number of them. With `microseconds`, the most
 * that it may take, C makes the bare statx(2).
 */
async function flat(
  bench: Bench,
  pairs: ReadonlyMap<number, Pair>,
  what: string,
  times: { bun: number; c: number },
  command: string,
  argument: string,
  microseconds?: number,
): Promise<void> {
  const tasks: Record<string, Task | string> = {};
  for (const [mounts, { bun, c }] of pairs) {
    tasks[`bun ${mounts}`] = asking(bun, command, times.bun, argument);
    tasks[`c ${mounts}`] = asking(c, command, times.c, argument);
  }
  const time = await takeTurns({ most: 30, least: 10, seconds: 15 }, tasks);
  const at = (mounts: number): Measured => time[`bun ${mounts}`] ?? "";
  for (const mounts of pairs.keys()) {
    const bare = time[`c ${mounts}`] ?? "";
    const limit = microseconds === undefined ? {} : { limit: { microseconds, statx: bare } };
    bench.report.rows({ ...toC(what, at(mounts), bare), mounts, ...limit });
  }
  for (const mounts of [...pairs.keys()].slice(1)) {
    const beside: Beside = { what: `the same, ${few} mounts`, measured: at(few), is: "self" };
    bench.report.rows({ what, mounts, measured: at(mounts), beside, limit: { times: 1.2 } });
  }
}

export async function switchesByMounts(bench: Bench): Promise<void> {
  bench.report.section(
    "the switch, by the number of mounts",
    [
      "Timed: switchRoot() with every check, and the same calls in C. Not timed: what makes the new root, and the return from detached and chroot.",
      "pivot and move leave behind, and so unmount, as many mounts as there are: pivot all at once, move one by one those that are mounted on the old root itself. Here that is every one.",
    ],
    { drawn: true },
  );
  for (const method of ["pivot", "move"]) {
    for (const mounts of counts) {
      await using peers = new AsyncDisposableStack();
      const root = newDirectory(bench, "switch");
      const { bun, c } = pair(bench, { root, type: "tmpfs", enter: true, mounts, below: `${root}/mounts` }, peers);
      const args = method === "pivot" ? ["stacked"] : [];
      const times = inOneTurn(mounts);
      await bun.ask(method, mounts <= 100 ? 300 : 2 * times, ...args);
      const time = await takeTurns(
        { most: 20, seconds: 6 },
        { bun: asking(bun, method, times, ...args), c: asking(c, method, times, ...args) },
      );
      bench.report.rows({ ...toC(method, time.bun, time.c), mounts });
    }
  }
  await using peers = new AsyncDisposableStack();
  const root = newDirectory(bench, "detached");
  const pairs = await pairsByMounts(bench, { root, type: "bind" }, peers);
  for (const method of ["detached", "chroot"]) {
    for (const { bun } of pairs.values()) await bun.ask(method, 500, root);
    await flat(bench, pairs, method, { bun: block, c: block }, method, root);
  }
  await memoryOf(bench, pairs, `memory of a program that has switched ${switches} times and more, by the number of mounts`);
}

/** A pair for each number of mounts. */
async function pairsByMounts(bench: Bench, options: PeerOptions, using: AsyncDisposableStack): Promise<Map<number, Pair>> {
  const pairs = new Map<number, Pair>();
  for (const mounts of counts) {
    const { bun, c } = pair(bench, { ...options, mounts, below: newDirectory(bench, "mounts") }, using);
    // One after the other: they make their mounts before they answer.
    await bun.ask("resident", 1);
    await c?.ask("resident", 1);
    pairs.set(mounts, { bun, c });
  }
  return pairs;
}

async function memoryOf(bench: Bench, pairs: ReadonlyMap<number, Pair>, title: string): Promise<void> {
  bench.report.section(title, ["Resident, after a collection. A Bun program that does nothing at all has most of it."], {
    unit: "memory",
    drawn: true,
  });
  for (const [mounts, { bun, c }] of pairs) {
    const memory = await takeTurns({ most: 5, seconds: 5 }, { bun: asking(bun, "resident", 1), c: asking(c, "resident", 1) });
    bench.report.rows({ ...toC("a Bun program", memory.bun, memory.c), mounts });
  }
}

export async function mountTable(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const pairs = await pairsByMounts(bench, {}, peers);
  const { report } = bench;
  report.section(
    "the mount table, by the number of mounts",
    [
      "C makes the bare statx(2); its mount table is read, and not parsed. findmnt and mounttree ls are programs, from start to end.",
      "getMounts() again and again, and now and then: once in a turn, between those programs.",
    ],
    { drawn: true },
  );
  // Not the last of the mounts: it is there in all of them.
  await flat(bench, pairs, 'mounted("/proc")', { bun: 1, c: 10 }, "mounted", "/proc", 1.5);
  const file = "/proc/self/mountinfo";
  const findmnt = Bun.which("findmnt");
  const checked = newDirectory(bench, "checked");
  for (const [mounts, { bun, c }] of pairs) {
    const times = 5 * inOneTurn(mounts);
    for (const [command, argument] of [["table"], ["read", file], ["check", checked]] as const) {
      await bun.ask(command, mounts <= many ? 20 : 5, ...(argument === undefined ? [] : [argument]));
    }
    await c?.ask("read", 3, file);
    const again = await takeTurns(
      { most: 20, seconds: 6 },
      { table: asking(bun, "table", times), read: asking(bun, "read", times, file), readC: asking(c, "read", times, file) },
    );
    const reading: Beside = { what: "reading the file", measured: again.read, is: "self" };
    report.rows(
      { ...toC("getMounts()", again.table, again.readC, "C, reading the file"), mounts },
      { what: "getMounts()", mounts, measured: again.table, beside: reading, ...(mounts === many && { limit: { times: 1.2 } }) },
    );
    const starter = c ?? bun;
    const table = asking(bun, "table", 1);
    // As a rule a program has its turn between the two: the second is faster right after the first.
    const once = await takeTurns(
      { most: 20, seconds: 10 },
      {
        table,
        findmnt: findmnt === null ? "not installed" : asking(starter, "spawn", 1, findmnt),
        read: asking(bun, "read", 1, file),
        ls: asking(starter, "spawn", 1, bench.mounttree, "ls"),
      },
    );
    const checks = await takeTurns({ most: 20, seconds: 4 }, { check: asking(bun, "check", 1, checked), table });
    const one = "getMounts(), now and then";
    const row = (what: string, measured: Measured, beside: Beside): Row => ({ what, mounts, measured, beside });
    report.rows(
      row(one, once.table, { what: "reading the file, now and then", measured: once.read, is: "self" }),
      row(one, once.table, { what: "findmnt", measured: once.findmnt, is: "peer" }),
      row("mounttree ls", once.ls, { what: "findmnt", measured: once.findmnt, is: "peer" }),
      row("checkRoot()", checks.check, { what: "getMounts()", measured: checks.table, is: "self" }),
    );
  }
  await memoryOf(bench, pairs, "memory of a program that has read the mount table again and again, by the number of mounts");
}

/** For more than these, umount -R would take minutes. */
const mostForUmount = 1000;

export async function unmounting(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const { bun, c } = pair(bench, {}, peers);
  const directory = newDirectory(bench, "unmount");
  const umount = Bun.which("umount");
  bench.report.section(
    "unmountAll, by the number of mounts that it unmounts",
    [
      "A tmpfs, and the others in it; the rest of the namespace has some twenty.",
      `umount -R is a program, from start to end. It reads the mount table again for each mount, and is not run for more than ${mostForUmount.toLocaleString("en")}.`,
    ],
    { drawn: true },
  );
  for (const mounts of counts) {
    const number = String(mounts);
    const after = (peer: Peer | undefined, command: string, ...args: string[]): Task | string => {
      if (peer === undefined) return "no C compiler";
      return async () => {
        await peer.ask("mounts", 1, directory, number);
        return peer.ask(command, 1, ...args);
      };
    };
    const byUmount = (): Task | string => {
      if (umount === null) return "not installed";
      if (mounts > mostForUmount) return "not run";
      return after(c ?? bun, "spawn", umount, "-R", directory);
    };
    const tasks = { all: after(bun, "unmount", directory), allC: after(c, "unmount", directory), umount: byUmount() };
    if (mounts <= 100) await takeTurns({ most: 20, least: 20, seconds: 0 }, tasks);
    const time = await takeTurns({ most: mounts <= 100 ? 30 : 10, seconds: 10 }, tasks);
    bench.report.rows(
      { ...toC("unmountAll()", time.all, time.allC), mounts },
      {
        what: "unmountAll()",
        mounts,
        measured: time.all,
        beside: { what: "umount -R", measured: time.umount, is: "peer" },
      },
    );
  }
}
