/** What is measured: each function prepares its peers, lets them take turns, and prints a part of the table. */
import { copyFileSync, mkdirSync, realpathSync } from "node:fs";
import { dirname } from "node:path";
import { mountOf } from "../mountinfo.ts";
import { medians, Peer, type PeerOptions, type Task } from "./peers.ts";
import { print, type Row, section, verdict } from "./report.ts";

/** What was found, and made, for the measurements. */
export interface Bench {
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

const few = 20;
const many = 5000;

function newDirectory(bench: Bench, name: string): string {
  const path = `${bench.directory}/${name}`;
  mkdirSync(path, { recursive: true });
  return path;
}

/** A Bun process, and a C process beside it if there is a compiler, each in a namespace that was prepared in the same way. */
function pair(bench: Bench, options: PeerOptions, using: AsyncDisposableStack): { bun: Peer; c: Peer | undefined } {
  const bun = using.use(new Peer(options));
  return { bun, c: bench.floor === undefined ? undefined : using.use(new Peer({ ...options, floor: bench.floor })) };
}

/** How fast the machine is at the moment: see Limit in report.ts. */
function statxOf(c: Peer | undefined): Task | undefined {
  return c && (() => c.ask("mounted", 1, "/proc"));
}

function difference(one: number | undefined, other: number | undefined): number | undefined {
  return one === undefined || other === undefined ? undefined : one - other;
}

// --- Switches in one namespace

const switches = 1000;
const block = 50;

export async function pivotAgainAndAgain(bench: Bench, type: "bind" | "tmpfs"): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const root = newDirectory(bench, `pivot-${type}`);
  const { bun, c } = pair(bench, { root, type, enter: true, mounts: few, below: `${root}/mounts` }, peers);
  const fsType = type === "bind" ? mountOf(bench.directory).fsType : "tmpfs";
  section(
    `pivot, ${switches} times in one namespace of ${few} mounts, root on ${type === "bind" ? `disk (${fsType})` : fsType}`,
    "Timed: switchRoot() with every check. Not timed: mount --rbind / /self before each.",
    'C makes the bare calls: of putOld "stacked", or those of the Go original (directory, detach, remove).',
    "The five calls: pivot_root, mount, open_tree, move_mount, umount2. The last waits for the kernel's readers.",
  );
  for (const putOld of ["stacked", "directory"]) {
    // The first hundreds are for the compiler that makes hot functions fast, and leaves its code in memory.
    await bun.ask("pivot", 500, putOld);
    await bun.ask("pivot-outside", 500, putOld);
  }
  for (const putOld of ["stacked", "directory"]) {
    const before = await bun.ask("state", 1);
    const time = await medians(switches / block, {
      whole: () => bun.ask("pivot", block, putOld),
      outside: () => bun.ask("pivot-outside", block, putOld),
      original: c && (() => c.ask("pivot", block, "directory")),
      stacked: c && (() => c.ask("pivot", block, "stacked")),
      statx: statxOf(c),
    });
    const after = await bun.ask("state", 1);
    const original = { what: "C, the Go original's calls", nanoseconds: time.original };
    const stacked = { what: 'C, the calls of "stacked"', nanoseconds: time.stacked };
    const outside: Row = { what: `${fsType}, ${putOld}: outside the five calls`, nanoseconds: time.outside };
    if (putOld === "stacked") outside.limit = { microseconds: 45, statx: time.statx };
    print([
      {
        what: `${fsType}, ${putOld}`,
        nanoseconds: time.whole,
        beside: original,
        // On tmpfs a directory costs C next to nothing, and what umount2 waits for is most of both: nothing to hold a limit against.
        ...(type === "bind" && { limit: { times: putOld === "stacked" ? 1.4 : 2.2 } }),
      },
      { what: `${fsType}, ${putOld}`, nanoseconds: time.whole, beside: stacked },
      outside,
      { what: `${fsType}, ${putOld}: inside them`, nanoseconds: difference(time.whole, time.outside) },
    ]);
    leaks(`${fsType}, ${putOld}, ${2 * switches} times`, before, after);
  }
}

/** What a collection leaves differs by a few percent from one to the next; 10 % of it would be less than 3 kB a switch. */
const growthLimit = 10;

function leaks(what: string, before: readonly number[], after: readonly number[]): void {
  const [mounts = 0, descriptors = 0, threads = 0, memory = 0, all = 0] = before;
  const [mountsAfter = 0, descriptorsAfter = 0, threadsAfter = 0, memoryAfter = 0] = after;
  const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
  const growth = 100 * (memoryAfter / memory - 1);
  verdict(
    `${what}: mounts ${mounts} -> ${mountsAfter}, descriptors ${descriptors} -> ${descriptorsAfter}, threads ${threads} -> ${threadsAfter} (and JSC's own: ${all - threads}), ` +
      `memory ${mebibytes(memory)} -> ${mebibytes(memoryAfter)} MiB (${growth.toFixed(1)} %, limit ${growthLimit} %)`,
    mountsAfter <= mounts && descriptorsAfter <= descriptors && threadsAfter <= threads && growth <= growthLimit,
  );
}

export async function detached(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const root = newDirectory(bench, "detached");
  const at = (mounts: number) => pair(bench, { root, type: "bind", mounts, below: newDirectory(bench, "mounts") }, peers);
  const [here, there] = [at(few), at(many)];
  section(
    "detached: the entry",
    "Timed: switchRoot() with every check. Not timed: the return (fchdir to the old root, chroot).",
    '"with close": closing the tree that was entered before, as a second switch does, which waits for the kernel\'s readers.',
  );
  for (const { bun } of [here, there]) for (const how of ["detached", "detached-close"]) await bun.ask(how, 500, root);
  const ask = (peer: Peer | undefined, how: string) => peer && (() => peer.ask(how, block, root));
  const time = await medians(switches / block, {
    few: ask(here.bun, "detached"),
    many: ask(there.bun, "detached"),
    fewC: ask(here.c, "detached"),
    manyC: ask(there.c, "detached"),
    fewClose: ask(here.bun, "detached-close"),
    manyClose: ask(there.bun, "detached-close"),
    fewCloseC: ask(here.c, "detached-close"),
    manyCloseC: ask(there.c, "detached-close"),
    statx: statxOf(here.c),
  });
  const [name, named] = [`${few} mounts`, `${many} mounts`];
  print([
    {
      what: name,
      nanoseconds: time.few,
      beside: { what: "C", nanoseconds: time.fewC },
      limit: { microseconds: 40, statx: time.statx },
    },
    { what: named, nanoseconds: time.many, beside: { what: "C", nanoseconds: time.manyC } },
    { what: named, nanoseconds: time.many, beside: { what: name, nanoseconds: time.few }, limit: { times: 1.2 } },
    { what: `${name}, with close`, nanoseconds: time.fewClose, beside: { what: "C, with close", nanoseconds: time.fewCloseC } },
    {
      what: `${named}, with close`,
      nanoseconds: time.manyClose,
      beside: { what: "C, with close", nanoseconds: time.manyCloseC },
    },
  ]);
}

// --- Namespaces

export async function newNamespaces(bench: Bench): Promise<void> {
  section(
    'a mount namespace for each switch: unshare, "/" made a slave, pivot, and back',
    "By the main thread alone, as the command does.",
  );
  for (const [mounts, rounds] of [
    [few, 40],
    [many, 20],
  ] as const) {
    await using peers = new AsyncDisposableStack();
    const root = newDirectory(bench, "namespace");
    const { bun, c } = pair(bench, { root, type: "bind", mounts, below: newDirectory(bench, "mounts") }, peers);
    const times = mounts === few ? 10 : 1;
    const ask = (peer: Peer | undefined, putOld: string) => peer && (() => peer.ask("namespace", times, root, putOld));
    await bun.ask("namespace", mounts === few ? 300 : 3, root, "stacked");
    const time = await medians(rounds, {
      none: ask(c, "none"),
      stacked: ask(bun, "stacked"),
      stackedC: ask(c, "stacked"),
      directory: ask(bun, "directory"),
      directoryC: ask(c, "directory"),
    });
    print([
      { what: `${mounts} mounts, stacked`, nanoseconds: time.stacked, beside: { what: "C", nanoseconds: time.stackedC } },
      { what: `${mounts} mounts, directory`, nanoseconds: time.directory, beside: { what: "C", nanoseconds: time.directoryC } },
      { what: `${mounts} mounts, C, no switch`, nanoseconds: time.none },
    ]);
  }
}

// --- The mount table

export async function mountTable(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const at = (mounts: number) => pair(bench, { mounts, below: newDirectory(bench, "mounts") }, peers);
  const [here, there] = [at(few), at(many)];
  section("the mount table", "C makes the bare statx(2); its mount table is read, and not parsed.");
  // Not the last of the mounts: it is there in both.
  const answers = await medians(10, {
    few: () => here.bun.ask("mounted", 1, "/proc"),
    many: () => there.bun.ask("mounted", 1, "/proc"),
    fewC: here.c && (() => here.c?.ask("mounted", 10, "/proc") ?? Promise.resolve([])),
    manyC: there.c && (() => there.c?.ask("mounted", 10, "/proc") ?? Promise.resolve([])),
  });
  const file = "/proc/self/mountinfo";
  const findmnt = Bun.which("findmnt");
  await there.bun.ask("table", 20);
  const checked = newDirectory(bench, "checked");
  await here.bun.ask("check", 20, checked);
  await there.bun.ask("check", 20, checked);
  await there.bun.ask("read", 20, file);
  const time = await medians(20, {
    table: () => there.bun.ask("table", 2),
    check: () => there.bun.ask("check", 2, checked),
    checkFew: () => here.bun.ask("check", 2, checked),
    read: () => there.bun.ask("read", 2, file),
    readC: there.c && (() => there.c?.ask("read", 2, file) ?? Promise.resolve([])),
  });
  const program = await medians(3, {
    findmnt: findmnt === null ? undefined : () => (there.c ?? there.bun).ask("spawn", 1, findmnt),
  });
  const [name, named] = [`mounted("/proc"), ${few} mounts`, `mounted("/proc"), ${many} mounts`];
  const table = `getMounts(), ${many} mounts`;
  const check = `checkRoot(), ${many} mounts`;
  print([
    {
      what: name,
      nanoseconds: answers.few,
      beside: { what: "C, statx", nanoseconds: answers.fewC },
      limit: { microseconds: 1.5, statx: answers.fewC },
    },
    {
      what: named,
      nanoseconds: answers.many,
      beside: { what: "C, statx", nanoseconds: answers.manyC },
      limit: { microseconds: 1.5, statx: answers.manyC },
    },
    { what: named, nanoseconds: answers.many, beside: { what: name, nanoseconds: answers.few }, limit: { times: 1.2 } },
    { what: table, nanoseconds: time.table, beside: { what: "reading the file", nanoseconds: time.read }, limit: { times: 1.2 } },
    { what: table, nanoseconds: time.table, beside: { what: "C, reading the file", nanoseconds: time.readC } },
    { what: table, nanoseconds: time.table, beside: { what: "findmnt", nanoseconds: program.findmnt } },
    { what: check, nanoseconds: time.check, beside: { what: "getMounts()", nanoseconds: time.table } },
    { what: check, nanoseconds: time.check, beside: { what: `${few} mounts`, nanoseconds: time.checkFew } },
  ]);
}

// --- Processes

export async function processes(bench: Bench): Promise<void> {
  const root = newDirectory(bench, "processes");
  for (const name of ["proc", "dev"]) mkdirSync(`${root}/${name}`, { recursive: true });
  copyWithLibraries("/bin/true", root);
  const bwrap = Bun.which("bwrap");
  section(
    "processes, from start to end: a root with /proc and /dev, and /bin/true in it",
    bwrap === null ? "bwrap is not installed." : "bwrap makes the same root; unshare -m --root has neither /proc nor /dev in it.",
    bench.floor === undefined ? "Started by Bun.spawnSync." : "Started by posix_spawn from C.",
  );
  for (const [mounts, rounds] of [
    [few, 80],
    [many, 30],
  ] as const) {
    await using peers = new AsyncDisposableStack();
    const starter = peers.use(new Peer({ mounts, below: newDirectory(bench, "mounts"), floor: bench.floor ?? "" }));
    const start =
      (...command: string[]) =>
      () =>
        starter.ask("spawn", 1, ...command);
    const tasks = {
      mounttree: start(bench.mounttree, "run", "--proc", "/proc", "--dev", "/dev", root, "--", "/bin/true"),
      empty: start(bench.empty),
      emptyAlike: start(bench.emptyAlike),
      unshare: start("unshare", "-m", "--root", root, "/bin/true"),
      bwrap: bwrap === null ? undefined : start(bwrap, "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"),
      true: start("/bin/true"),
    };
    await medians(3, tasks);
    const time = await medians(rounds, tasks);
    const sum = (empty: number | undefined) => empty && time.unshare && empty + time.unshare;
    const what = `${mounts} mounts, mounttree run`;
    const beside = (name: string, nanoseconds: number | undefined) => ({
      what,
      nanoseconds: time.mounttree,
      beside: { what: name, nanoseconds },
    });
    const toBwrap = beside("bwrap", time.bwrap);
    print([
      // With many mounts the kernel's copying of the mount table is most of it.
      {
        ...beside("an empty compiled program + unshare -m --root", sum(time.empty)),
        ...(mounts === few && { limit: { times: 1.15 } }),
      },
      beside("one with the command's build options + unshare -m --root", sum(time.emptyAlike)),
      { ...toBwrap, ...(mounts === many && { limit: { times: 0.5 } }) },
      beside("unshare -m --root", time.unshare),
      beside("an empty compiled program", time.empty),
      beside("/bin/true, no root", time.true),
    ]);
  }
}

export async function enteringNamespaces(bench: Bench): Promise<void> {
  await using peers = new AsyncDisposableStack();
  const starter = peers.use(new Peer({ floor: bench.floor ?? "" }));
  section(
    "enterMountNamespace, first of all in a program that then ends: what it adds to the start of that program",
    "It starts the program once more, with user: true two times; a compiled program that has one thread yet, it does not.",
    '"after a read": asynchronous I/O comes first, and so do its threads.',
  );
  for (const [name, command, ...first] of [
    ["bun x.ts", [process.execPath, bench.enter]],
    ["bun x.ts, after a read", [process.execPath, bench.enter], "pool"],
    ["compiled", [bench.enterCompiled]],
    ["compiled, after a read", [bench.enterCompiled], "pool"],
  ] as const) {
    const start = (how: string) => () => starter.ask("spawn", 1, ...command, how, ...first);
    const tasks = { none: start("none"), mount: start("mount"), user: start("user") };
    await medians(3, tasks);
    const time = await medians(40, tasks);
    const beside = { what: "the program without it", nanoseconds: time.none };
    print([
      { what: name, nanoseconds: difference(time.mount, time.none), beside, limit: { times: 1.4 } },
      { what: `${name}, user: true`, nanoseconds: difference(time.user, time.none), beside, limit: { times: 2.8 } },
    ]);
  }
}

/** Copies a program to where it is, below another root, with the libraries that ldd(1) lists. */
function copyWithLibraries(program: string, root: string): void {
  const listed = Bun.spawnSync(["ldd", program]).stdout.toString();
  for (const file of [program, ...(listed.match(/\/\S+/g) ?? [])]) {
    mkdirSync(`${root}${dirname(file)}`, { recursive: true });
    copyFileSync(realpathSync(file), `${root}${file}`);
  }
}
