/** One switch under strace: by `program.ts`, or by the command. */
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import type { RootMethod } from "../../switchroot.ts";
import { run } from "../compiled.ts";
import type { Report, Request } from "./program.ts";
import { contentsOf, isAt, type Kind, mountTable, type Place, rootOf, type State, stateOf, tidy } from "./roots.ts";
import { type Call, type Fault, ownCalls, parseTrace, Traced } from "./strace.ts";

/** Compiles `program.ts`: from its source, Bun would have threads of its own. */
export async function compileProgram(directory: string): Promise<string> {
  const file = join(mkdtempSync(join(directory, "program-")), "program");
  const flags = ["--compile", "--bytecode", "--format=esm", `--outfile=${file}`];
  const built = await run([process.execPath, "build", ...flags, join(import.meta.dir, "program.ts")], { cwd: directory });
  if (built.status !== 0) throw new Error(`the build ended with ${built.status}: ${built.stderr}`);
  return file;
}

/** What is outside of whoever switches. */
export interface Outside {
  /** The mount table there. */
  host: string;
  /** What is in the root. */
  contents: string[];
}

export function outsideOf(place: Place, kind: Kind): Outside {
  return { host: mountTable(), contents: contentsOf(rootOf(place, kind)) };
}

/** Calls that strace need not know: who makes them sees to it that they fail. */
function isNewerThanStrace({ call }: Fault): boolean {
  return call === "statmount" || call === "listmount";
}

/** From the first mount that is detached on, there is no way back. */
export function isFinal(call: Call, calls: readonly Call[]): boolean {
  return calls.slice(0, calls.indexOf(call)).some((each) => each.name === "umount2" && each.text.includes("MNT_DETACH"));
}

// --- The program

export interface ProgramCase {
  program: string;
  /** With which propagation it has a mount namespace of its own; if none is given, it has none. */
  propagation?: string;
  kind: Kind;
  options: Request["options"];
}

/**
 * Commands that start it in a mount namespace of its own, in which nobody else lives. In its PID namespace there is, besides it, the
 * shell that waits for it, which lives elsewhere.
 */
function inNamespace(propagation: string): string[] {
  const script = 'unshare --mount --propagation "$0" --mount-proc "$@"; exit $?';
  return ["unshare", "--pid", "--fork", "sh", "-c", script, propagation];
}

export function startProgram(place: Place, { program, propagation, kind, options }: ProgramCase, fault?: Fault): Traced {
  const ownFault = fault !== undefined && isNewerThanStrace(fault);
  const request: Request = {
    path: rootOf(place, kind),
    options,
    apart: propagation !== undefined,
    ...(ownFault && { fault }),
  };
  const command = [...(propagation === undefined ? [] : inNamespace(propagation)), program, JSON.stringify(request)];
  const at = { log: place.log, cwd: `${place.path}/away` };
  return new Traced(command, ownFault ? { ...at, trace: "access" } : { ...at, fault });
}

/** A program that was looked at before it switched and afterwards, from outside, and that then switched once more. */
export interface Switched {
  before: State & Outside;
  start: Report;
  report: Report;
  after: State & Outside;
  /** Whether the root is its "/" then, and its working directory. */
  arrived: { root: boolean; cwd: boolean };
  again: Report;
  /** Of its main thread. */
  calls: Call[];
}

export async function switchIn(place: Place, given: ProgramCase, fault?: Fault): Promise<Switched> {
  tidy(rootOf(place, given.kind));
  const traced = startProgram(place, given, fault);
  const start = await reportOf(traced);
  const pid = mainThread(traced.log());
  const look = (): State & Outside => ({ ...stateOf(pid), ...outsideOf(place, given.kind) });
  const before = look();
  traced.send("s");
  const report = await reportOf(traced);
  const after = look();
  const root = rootOf(place, given.kind);
  const arrived = { root: isAt(pid, "root", root), cwd: isAt(pid, "cwd", root) };
  traced.send("s");
  const again = await reportOf(traced);
  traced.send("q");
  const { log } = await traced.finish();
  return { before, start, report, after, arrived, again, calls: parseTrace(log, pid) };
}

async function reportOf(traced: Traced): Promise<Report> {
  const line = await traced.line();
  if (line !== undefined) return JSON.parse(line);
  const { status, stderr, log } = await traced.finish();
  throw new Error(`the program ended with ${status}: ${stderr}\n${log.split("\n").slice(-5).join("\n")}`);
}

/** The thread that makes the marks. */
export function mainThread(log: string): number {
  return Number(/^(\d+) +access\("\/mark\//m.exec(log)?.[1]);
}

/** The calls of the first switch. Those by which open directories are looked up have a section of their own, `"descriptors"`. */
export function callsOfSwitch(calls: readonly Call[]): Call[] {
  const first = calls.findIndex(({ section }) => section === "begin");
  const last = calls.findIndex(({ section }) => section === "end");
  const listed = calls.findIndex(({ section, text }, at) => at > first && section === "begin" && text.includes('"self/fd"'));
  return ownCalls(
    calls
      .slice(first, last)
      .map((call, at) =>
        listed !== -1 && first + at >= listed && call.section === "begin" ? { ...call, section: "descriptors" } : call,
      ),
  );
}

// --- The command

export interface CommandCase {
  mounttree: string;
  /** The compiled program, which starts the command with a filter, or with few mounts. */
  program: string;
  kind: Kind;
  /** Whether there is not much mounted where it starts. */
  few?: boolean;
  /** Options of `mounttree run`; `PLACE` is the place's path. */
  options: readonly string[];
}

export interface Ran {
  status: number | string;
  stdout: string[];
  stderr: string;
  before: Outside;
  after: Outside;
  calls: Call[];
}

/** Starts `hello` of the root. */
export function startCommand(place: Place, given: CommandCase, fault?: Fault): Traced {
  const { mounttree, program, kind, few = false } = given;
  const options = given.options.map((option) => option.replace("PLACE", place.path));
  const command: [string, ...string[]] = [mounttree, "run", ...options, rootOf(place, kind), "/hello", "to", "you"];
  const at = { log: place.log, cwd: `${place.path}/away` };
  const ownFault = fault !== undefined && isNewerThanStrace(fault);
  const request: Request = { path: "", options: {}, apart: few, ...(ownFault && { fault }), command };
  const started = ownFault || few ? [program, JSON.stringify(request)] : command;
  return new Traced(started, ownFault ? { ...at, trace: "access" } : { ...at, fault });
}

export async function runIn(place: Place, given: CommandCase, fault?: Fault): Promise<Ran> {
  tidy(rootOf(place, given.kind));
  const before = outsideOf(place, given.kind);
  const traced = startCommand(place, given, fault);
  const stdout: string[] = [];
  for (let line = await traced.line(); line !== undefined; line = await traced.line()) stdout.push(line);
  const { status, stderr, log } = await traced.finish();
  const calls = parseTrace(log, Number(/^\d+/.exec(log)?.[0]));
  return { status, stdout, stderr, before, after: outsideOf(place, given.kind), calls };
}

/** The calls of the command, from its own first one to the execve(2) of what it runs. */
export function callsOfRun(calls: readonly Call[]): Call[] {
  const first = calls.findIndex(({ name, text }) => name === "rt_sigaction" && text.startsWith("(SIGPIPE, {sa_handler=SIG_DFL"));
  const last = calls.findIndex(({ name, text }) => name === "execve" && text.startsWith('("/hello"'));
  return ownCalls(calls.slice(first, last + 1));
}

// --- What is tested

/** A switch at whose calls something happens to who switches. */
export interface SwitchTest {
  methods: readonly [RootMethod, ...RootMethod[]];
  putOld?: "stacked" | "directory";
  kind: Kind;
  descriptors?: "keep" | "report";
  /** Sections and names of the calls that no test before has. */
  tested: RegExp;
}

const all = /./;
const steps = /^(after )?step /;
export const switches: readonly SwitchTest[] = [
  { methods: ["pivot", "move", "detached", "chroot"], kind: "directory", tested: all },
  { methods: ["pivot", "move"], kind: "mount point", putOld: "directory", tested: steps },
  { methods: ["move", "detached", "chroot"], kind: "directory", tested: /step |no-cap-sys-chroot/ },
  { methods: ["move", "detached"], kind: "mount point", tested: /step probe|step list|step move|step chroot/ },
  { methods: ["detached", "chroot"], kind: "directory", tested: steps },
  { methods: ["chroot"], kind: "mount point", tested: steps },
  // Which directories are open is looked up before the first check, where they lead at the end.
  { methods: ["detached", "chroot"], kind: "directory", descriptors: "report", tested: /^descriptors|^after step chdir/ },
];

/** The same for the command. */
export interface RunTest {
  method: RootMethod | "pivot,move";
  options?: readonly string[];
  kind: Kind;
  few?: boolean;
  /** Whether all calls are tested, or those of the switch alone, which the other tests do not have. */
  whole?: boolean;
}

const mounts = [
  ...["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"],
  ...["--tmpfs", "/new/directory", "--bind", "PLACE/away/file", "/new/file"],
];
export const runs: readonly RunTest[] = [
  { method: "pivot", options: mounts, kind: "directory", whole: true },
  { method: "pivot,move", kind: "directory" },
  { method: "pivot", options: ["--user", "--map-root", "--keep-fds", "--chdir", "/sub"], kind: "directory", whole: true },
  { method: "pivot", options: ["--put-old", "directory"], kind: "mount point" },
  { method: "move", kind: "directory", few: true },
  { method: "detached", kind: "directory" },
  { method: "chroot", kind: "mount point" },
];
