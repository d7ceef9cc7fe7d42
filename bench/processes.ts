/** What is measured of whole programs: how long they take from start to end in a root of their own, and the memory they need. */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { asking, type Bench, counts, few, many, newDirectory, warmUp } from "./measurements.ts";
import { combine, type Measured, Peer, type Task, takeTurns } from "./peers.ts";
import type { Row } from "./report.ts";

// --- The programs

const name = "mounttree run";
const peers = ["bwrap", "runc", "unshare -m --root"] as const;

type Peers = (typeof peers)[number];
/** A command, or why there is none. */
type Command = readonly string[] | string;

/** Commands that run a program in a root with /proc and /dev; but for unshare, which knows of neither. */
function commands(bench: Bench, root: string, program: string): Record<Peers | "mounttree", Command> {
  const installed = (peer: string, ...args: string[]): Command => (Bun.which(peer) === null ? "not installed" : [peer, ...args]);
  const [state, bundle] = [newDirectory(bench, "runc"), makeBundle(bench, root, program)];
  return {
    mounttree: [bench.mounttree, "run", "--proc", "/proc", "--dev", "/dev", root, "--", program],
    bwrap: installed("bwrap", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev", program),
    runc: installed("runc", "--root", state, "run", "--bundle", bundle, `mounttree-bench-${process.pid}`),
    "unshare -m --root": ["unshare", "-m", "--root", root, program],
  };
}

/** For runc: a mount namespace and no other, as the others make it, and what it would otherwise do besides left out. */
function makeBundle(bench: Bench, root: string, program: string): string {
  const bundle = newDirectory(bench, `bundle${program.replaceAll("/", "-")}`);
  const config = {
    ociVersion: "1.0.2",
    process: { user: { uid: 0, gid: 0 }, args: [program], env: ["PATH=/bin"], cwd: "/" },
    root: { path: root },
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/dev", type: "tmpfs", source: "tmpfs", options: ["nosuid", "mode=755"] },
    ],
    linux: { namespaces: [{ type: "mount" }] },
  };
  writeFileSync(`${bundle}/config.json`, JSON.stringify(config));
  return bundle;
}

function makeRoot(bench: Bench): string {
  const root = newDirectory(bench, "root");
  for (const directory of ["proc", "dev"]) mkdirSync(`${root}/${directory}`, { recursive: true });
  for (const program of ["/bin/true", "/bin/cat"]) copyWithLibraries(program, root);
  return root;
}

/** Copies a program to where it is, below another root, with the libraries that ldd(1) lists. */
function copyWithLibraries(program: string, root: string): void {
  const listed = Bun.spawnSync(["ldd", program]).stdout.toString();
  for (const file of [program, ...(listed.match(/\/\S+/g) ?? [])]) {
    mkdirSync(`${root}${dirname(file)}`, { recursive: true });
    copyFileSync(realpathSync(file), `${root}${file}`);
  }
}

/** A process in a namespace of so many mounts, from which programs are started. */
function startWith(bench: Bench, mounts: number): Peer {
  return new Peer({ mounts, below: newDirectory(bench, "mounts"), floor: bench.floor ?? "" });
}

/** What is to be done with the commands that there are. */
function withEach<Name extends string>(
  all: Readonly<Record<Name, Command>>,
  how: (command: readonly string[]) => Task | string,
): Record<Name, Task | string> {
  const tasks: Record<string, Task | string> = {};
  for (const [what, command] of Object.entries<Command>(all)) tasks[what] = typeof command === "string" ? command : how(command);
  return tasks;
}

function besidePeers(measured: Readonly<Record<Peers | "mounttree", Measured>>, mounts: number): Row[] {
  return peers.map((peer) => toPeer(peer, mounts, measured.mounttree, measured[peer]));
}

function toPeer(peer: string, mounts: number, measured: Measured, its: Measured, what = name): Row {
  return { what, mounts, measured, beside: { what: peer, measured: its, is: "peer" } };
}

// --- Time

export async function processes(bench: Bench): Promise<void> {
  const root = makeRoot(bench);
  bench.report.section(
    "a process from start to end: a root with /proc and /dev, and /bin/true in it, by the number of mounts",
    [
      "bwrap and runc make the same root, with a mount namespace and no other; runc makes a cgroup besides.",
      `unshare -m --root, and "${name}, bare", have neither /proc nor /dev in it.`,
      bench.floor === undefined ? "Started by Bun.spawnSync." : "Started by posix_spawn from C.",
    ],
    { drawn: true },
  );
  for (const mounts of counts) {
    await using starter = startWith(bench, mounts);
    const tasks = withEach(
      {
        ...commands(bench, root, "/bin/true"),
        bare: [bench.mounttree, "run", root, "--", "/bin/true"],
        empty: [bench.empty],
        emptyAlike: [bench.emptyAlike],
        true: ["/bin/true"],
      },
      (command) => asking(starter, "spawn", 1, ...command),
    );
    await takeTurns(warmUp, tasks);
    const time = await takeTurns({ most: mounts === few ? 80 : 30, seconds: 20 }, tasks);
    const [toBwrap, ...others] = besidePeers(time, mounts);
    if (toBwrap !== undefined) bench.report.rows({ ...toBwrap, ...(mounts === many && { limit: { times: 0.5 } }) }, ...others);
    bench.report.rows(toPeer("unshare -m --root", mounts, time.bare, time["unshare -m --root"], `${name}, bare`));
    if (mounts !== few && mounts !== many) continue;

    const withUnshare = (empty: Measured): Measured => combine(empty, time["unshare -m --root"], (one, other) => one + other);
    const toSelf = (what: string, measured: Measured): Row => ({
      what: name,
      mounts,
      measured: time.mounttree,
      beside: { what, measured, is: "self" },
    });
    bench.report.rows(
      {
        ...toSelf("an empty compiled program + unshare -m --root", withUnshare(time.empty)),
        // With many mounts the kernel's copying of the mount table is most of it.
        ...(mounts === few && { limit: { times: 1.15 } }),
      },
      toSelf("one with the command's build options + unshare -m --root", withUnshare(time.emptyAlike)),
      toSelf("an empty compiled program", time.empty),
      toSelf("/bin/true, no root", time.true),
    );
  }
}

const row = 200;
const block = 20;

export async function inARow(bench: Bench): Promise<void> {
  const root = makeRoot(bench);
  bench.report.section(
    `that process ${row} times in a row, before it is the next one's turn`,
    [`Rounds: means of ${block} in a row, the first ${block} of one beside the first ${block} of the other, and so on.`],
    { drawn: true },
  );
  for (const mounts of [few, many]) {
    await using starter = startWith(bench, mounts);
    const tasks = withEach(commands(bench, root, "/bin/true"), (command) => async () => {
      const times = await starter.ask("spawn", row, ...command);
      return Array.from({ length: row / block }, (_, at) => mean(times.slice(at * block, (at + 1) * block)));
    });
    bench.report.rows(...besidePeers(await takeTurns({ most: 4, least: 2, seconds: 40, each: true }, tasks), mounts));
  }
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

// --- Memory

export async function memory(bench: Bench): Promise<void> {
  const root = makeRoot(bench);
  bench.report.section(
    "memory for that process, by the number of mounts",
    ["The most that one of its processes had resident, up to the end of /bin/true."],
    { unit: "memory", drawn: true },
  );
  for (const mounts of counts) {
    await using starter = startWith(bench, mounts);
    const peak = (command: readonly string[]): Task | string =>
      bench.floor === undefined ? "no C compiler" : asking(starter, "peak", 1, ...command);
    const tasks = withEach(commands(bench, root, "/bin/true"), peak);
    bench.report.rows(...besidePeers(await takeTurns({ most: 10, seconds: 5 }, tasks), mounts));
  }
  bench.report.section(
    "memory that stays beside a command for as long as it runs",
    ["Resident, of all processes but the command itself."],
    { unit: "memory" },
  );
  const tasks = withEach(commands(bench, root, "/bin/cat"), (command) => async () => [await residentBeside(command, "cat")]);
  const stays = await takeTurns({ most: 5, seconds: 5 }, tasks);
  for (const peer of peers) {
    const beside = { what: peer, measured: stays[peer], is: "peer" as const };
    bench.report.rows({ what: name, measured: stays.mounttree, beside });
  }
}

/** What a command that has started cat(1), and what it started on the way to it, have resident. */
async function residentBeside(command: readonly string[], program: string): Promise<number> {
  const started = Bun.spawn([...command], { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
  started.stdin.write("\n");
  await started.stdin.flush();
  // Its echo: now it runs.
  const reader = started.stdout.getReader();
  await reader.read();
  let bytes = 0;
  for (const pid of withDescendants(started.pid)) {
    const status = readFileSync(`/proc/${pid}/status`, "utf8");
    if (/^Name:\t(.*)$/m.exec(status)?.[1] !== program) bytes += 1024 * Number(/^VmRSS:\s*(\d+)/m.exec(status)?.[1]);
  }
  await started.stdin.end();
  if ((await started.exited) !== 0) throw new Error(`${command.join(" ")} ended with ${started.exitCode}`);
  return bytes;
}

function withDescendants(pid: number): number[] {
  const children = readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number),
  );
  return [pid, ...children.flatMap(withDescendants)];
}
