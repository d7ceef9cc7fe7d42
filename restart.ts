/**
 * Executing this program once more, from the beginning, in the same process.
 *
 * What the second run has to know goes over in a file in memory, the marker, whose descriptor survives execve(2): an environment
 * variable could not be taken back from Bun's children and Workers.
 */
import {
  AT,
  close,
  dup3,
  execve,
  F,
  FD_CLOEXEC,
  faultsOfChildren,
  fcntl,
  fstatfs,
  isOpen,
  isRefusal,
  memfd_create,
  O,
  open,
  PROC_SUPER_MAGIC,
  pathText,
  readDirectory,
  readFile,
  readlinkat,
  STATX,
  SyscallError,
  setEnvironment,
  setThreadName,
  statx,
  threadName,
  write,
} from "./syscalls.ts";

/** Why a namespace could not be entered, for programs. */
export type NamespaceReason =
  /** The kernel refused a system call, which is the error's `cause`. */
  | "refused"
  /** /proc is not mounted. */
  | "no-proc"
  /** The process was chrooted to a plain directory, whose propagation cannot be set. */
  | "chrooted"
  /** The program cannot be started once more: it is run by `bun test`. */
  | "bun-test"
  /** ... it was read from standard input. */
  | "program-from-stdin"
  /** ... it was started with a `--cwd` that is relative. */
  | "relative-cwd"
  /** ... its working directory is not the one that it was started in. */
  | "working-directory"
  /** What was written to `process.stdout` or `process.stderr` has not arrived. */
  | "output-pending"
  /** There were other threads outside after a restart. */
  | "threads";

/** A namespace was not entered. */
export class NamespaceError extends Error {
  override readonly name = "NamespaceError";
  readonly reason: NamespaceReason;
  /** The code of the cause, if it has one: `"EPERM"`. */
  declare readonly code?: string;
  /**
   * Whether some or all threads of this process are in a new namespace nevertheless, so that it should exit. False: nothing has
   * changed.
   */
  readonly entered: boolean;

  constructor(reason: NamespaceReason, message: string, details: { cause?: SyscallError; entered?: boolean } = {}) {
    super(message, details.cause === undefined ? {} : { cause: details.cause });
    this.reason = reason;
    this.entered = details.entered ?? false;
    if (details.cause !== undefined) this.code = details.cause.code;
  }
}

/** What a program knows that was started once more. */
export interface Marker {
  /** The process, which stays the same over execve(2): a child does not take its parent's marker for its own. */
  pid: number;
  /** The process's name, which execve(2) changes. */
  comm: string;
  /** The link `ns/mnt` of the namespace that was entered, if any. */
  namespace?: string;
  /** Whether there are ambient capabilities to be given up. */
  ambient?: boolean;
  /** What {@link faultsOfChildren} was then. */
  faults: number;
  /** What has been refused so far. A program that is started once more asks for the same again. */
  refusals: readonly Refusal[];
  /** The entries of the environment that {@link restartAlone} replaced. */
  replaced?: readonly string[];
}

export interface Refusal {
  readonly syscall: string;
  readonly errno: number;
  /** Of a file of /proc, without blanks. */
  readonly path?: string;
  readonly entered: boolean;
  /** For which options. */
  readonly request: string;
}

// --- One thread

/** With these, Bun has one thread at the first line of a program, as long as that does nothing that needs another. */
export const oneThread: readonly string[] = [
  "BUN_JSC_useConcurrentJIT=0",
  "BUN_JSC_useConcurrentGC=0",
  "BUN_JSC_numberOfGCMarkers=1",
  "BUN_JSC_useWarmUpMarkedBlocks=0",
  "BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER=1",
  "MIMALLOC_SCAVENGER=0",
];

/**
 * Sees to it that this process has one thread, as unshare(2) with CLONE_NEWUSER wants it.
 *
 * With more than one, the program is executed once more (as by {@link enterMountNamespace}, with what that says of descriptors and
 * output) with environment variables that make Bun start without the others, and this function returns in that second run. The
 * variables are taken away again before it returns: a command that is executed by execvp(3) gets the environment that the process was started
 * with the first time. Bun itself, `process.env`, what Bun starts as a child, and Workers still have them: this is for a program that goes on
 * to execute another one.
 *
 * To be called first of all, and what follows must be synchronous: no asynchronous file operation, no Worker, no `import()`.
 *
 * @throws {@link NamespaceError} as {@link enterMountNamespace}; with the reason `"threads"` if there is more than one thread also in
 *   the second run, or in the first, if the variables were in the environment already.
 */
export function restartAlone(): void {
  requireProc();
  const marker = takeMarker();
  if (marker !== undefined) {
    setThreadName(marker.comm);
    for (const entry of oneThread) setEnvironment(nameOf(entry));
    for (const entry of marker.replaced ?? []) setEnvironment(nameOf(entry), entry.slice(nameOf(entry).length + 1));
  }
  const threads = countThreads();
  if (threads === 1) return;
  if (marker !== undefined) {
    const message = `this process has ${threads} threads, and should have one, after it was started once more for that purpose`;
    throw new NamespaceError("threads", message);
  }
  const argv = strings("/proc/self/cmdline");
  refuseWhatCannotRestart(argv);
  const environment = strings("/proc/self/environ");
  const isOurs = (entry: Uint8Array): boolean => oneThread.some((each) => isNamed(entry, nameOf(each)));
  const restarted: Marker = {
    pid: process.pid,
    comm: threadName(),
    faults: 0,
    refusals: [],
    replaced: environment.filter(isOurs).map(pathText),
  };
  const keep = inherited(environment);
  flush();
  const others = environment.filter((entry) => !isOurs(entry));
  executeAgain(restarted, argv, [...others, ...oneThread], keep);
}

function nameOf(entry: string): string {
  return entry.slice(0, entry.indexOf("="));
}

// --- Whether the program can be executed once more

/**
 * In another one Bun would obey what lies there, a compiled program's Bun as well: a bunfig.toml, which names code to run, may be somebody
 * else's. Bun takes note of the directory when it is asked first, so that is here, before the program's own code.
 */
const firstDirectory = String(Reflect.get(Bun, "cwd") ?? ".");

export function refuseWhatCannotRestart(argv: readonly Uint8Array[]): void {
  const restarted = "cannot enter a mount namespace, for which this program has to be started once more";
  const flags = process.execArgv;
  if (Bun.main.endsWith("/[stdin]")) {
    const message = `${restarted}: it was read from standard input, which is empty now; put it in a file, or use bun -e`;
    throw new NamespaceError("program-from-stdin", message);
  }
  const moved = `${restarted}: its working directory is not the one that it was started in; call enterMountNamespace() before process.chdir()`;
  if (!isSameFile(firstDirectory, ".")) throw new NamespaceError("working-directory", moved);
  // A compiled program takes its arguments for its own.
  if (Bun.main.startsWith("/$bunfs/")) return;
  const rest = argumentsOfBun(argv);
  if (rest[0] === "test") {
    const message = `${restarted}: bun test would run its files twice; call enterMountNamespace() in a program that the test starts as a child process`;
    throw new NamespaceError("bun-test", message);
  }
  const directory = directoryIn(flags);
  if (directory !== undefined && !directory.startsWith("/")) {
    const message = `${restarted}: its option --cwd=${directory} is relative, and would be applied twice; make it an absolute path`;
    throw new NamespaceError("relative-cwd", message);
  }
  if (!isInFirstDirectory(rest)) throw new NamespaceError("working-directory", moved);
}

// All of this is called once, and a closure that is called once costs more than a loop.

/** The command line without the program's name, without Bun's options, and without the arguments that are for the script. */
function argumentsOfBun(argv: readonly Uint8Array[]): string[] {
  const scripts = process.argv.length - (Bun.main.endsWith("/[eval]") ? 1 : 2);
  // What BUN_OPTIONS says comes first in it, and is not on the command line.
  const flags = process.execArgv;
  const rest: string[] = [];
  for (let at = 1; at < argv.length - scripts; at++) {
    const argument = pathText(argv[at] ?? "");
    if (!flags.includes(argument)) rest.push(argument);
  }
  return rest;
}

/** The value of --cwd. */
function directoryIn(flags: readonly string[]): string | undefined {
  for (let at = 0; at < flags.length; at++) {
    if (flags[at] === "--cwd") return flags[at + 1];
    if (flags[at]?.startsWith("--cwd=")) return flags[at]?.slice("--cwd=".length);
  }
  return undefined;
}

/** The same by the script's name, for a program that imports this after process.chdir(): whether it would be found again. */
function isInFirstDirectory(rest: readonly string[]): boolean {
  if (Bun.main.endsWith("/[eval]")) return Bun.main === `${process.cwd().replace(/\/$/, "")}/[eval]`;
  let script: string | undefined;
  for (const argument of rest) if (!argument.startsWith("-") && argument !== "run") script = argument;
  if (script === undefined || script.startsWith("/")) return true;
  return isSameFile(script, Bun.main) || isSameFile(`${script}${/\.\w+$/.exec(Bun.main)?.[0] ?? ""}`, Bun.main);
}

function isSameFile(one: string, other: string): boolean {
  try {
    const [{ ino, devMajor, devMinor }, found] = [
      statx(AT.FDCWD, one, 0, STATX.BASIC_STATS),
      statx(AT.FDCWD, other, 0, STATX.BASIC_STATS),
    ];
    return ino === found.ino && devMajor === found.devMajor && devMinor === found.devMinor;
  } catch (error) {
    if (error instanceof SyscallError) return false;
    throw error;
  }
}

/**
 * What `process.stdout` and `process.stderr` have taken, and a full pipe has not. `console.log` and the like write at once, and so
 * do these as long as there is room.
 */
export function flush(): void {
  for (const fd of [1, 2]) {
    try {
      // Bun makes a pipe so when it makes the stream, which is not worth making to ask it: that takes longer than a restart.
      if ((fcntl(fd, F.GETFL) & O.NONBLOCK) === 0) continue;
    } catch (error) {
      if (isRefusal(error, "EBADF")) continue;
      throw error;
    }
    const stream = fd === 1 ? process.stdout : process.stderr;
    const key = Object.getOwnPropertySymbols(stream).find((symbol) => symbol.description === "kWriteStreamFastPath");
    const sink: unknown = key && Reflect.get(stream, key);
    if (!isSink(sink)) continue;
    const pending = sink.flush();
    if (!(pending instanceof Promise)) continue;
    try {
      // Nothing else in Bun waits for a promise without returning to its caller. Other events are handled meanwhile.
      const matchers: unknown = process.getBuiltinModule("bun:test");
      if (hasExpect(matchers)) matchers.expect(pending).resolves.toBeNumber();
    } catch (cause) {
      const name = fd === 1 ? "process.stdout" : "process.stderr";
      const message = `cannot enter a mount namespace, for which this program has to be started once more: what was written to ${name} has not been read yet; call enterMountNamespace() before writing so much, or write with fs.writeSync()`;
      throw Object.assign(new NamespaceError("output-pending", message), { cause });
    }
  }
}

function hasExpect(value: unknown): value is { expect(promise: Promise<unknown>): { resolves: { toBeNumber(): void } } } {
  return typeof value === "object" && value !== null && "expect" in value;
}

function isSink(value: unknown): value is { flush(): unknown } {
  return typeof value === "object" && value !== null && "flush" in value && typeof value.flush === "function";
}

/** The strings of a file in which each ends with a NUL. */
export function strings(path: string): Uint8Array[] {
  const bytes = readFile(path);
  const found: Uint8Array[] = [];
  let start = 0;
  for (let end = bytes.indexOf(0); end !== -1; end = bytes.indexOf(0, start)) {
    found.push(bytes.subarray(start, end));
    start = end + 1;
  }
  if (start < bytes.length) found.push(bytes.subarray(start));
  return found;
}

/** Whether an entry of the environment is this variable's. */
function isNamed(entry: Uint8Array, name: string): boolean {
  return entry[name.length] === 0x3d && entry[0] === name.charCodeAt(0) && pathText(entry).startsWith(`${name}=`);
}

export function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}

/**
 * The descriptors that this process was started with, as far as can be told: those before the first of Bun's own, an epoll
 * instance. And the channel to a parent, by IPC.
 */
export function inherited(environment: readonly Uint8Array[]): number[] {
  const found: number[] = [];
  for (let fd = 3; fd < placeOfMarker && isOpen(fd) && linkOf(`/proc/self/fd/${fd}`) !== "anon_inode:[eventpoll]"; fd++)
    found.push(fd);
  for (let at = 0; at < environment.length; at++) {
    const entry = environment[at];
    // Few are looked at: what is called for each of them is compiled, see pointersTo().
    if (entry?.[0] !== 0x4e || !isNamed(entry, "NODE_CHANNEL_FD")) continue;
    const channel = Number(pathText(entry).slice("NODE_CHANNEL_FD=".length));
    if (isOpen(channel) && !found.includes(channel)) found.push(channel);
  }
  return found;
}

// --- The marker

const nameOfMarker = "mounttree";

/**
 * The marker's descriptor, or the next one if this is the channel to a parent. It is a fixed one because looking through all of them
 * takes a tenth of a start. Bun has none so high when it starts.
 */
const placeOfMarker = 200;

/** Where a marker is, and how it is taken away again. */
export interface Place {
  readonly fd: number;
  remove(): void;
}

/** Puts a marker where the second run looks for it. What has that descriptor now gets it back in the end. */
export function placeMarker(text: string, keep: readonly number[]): Place {
  const bytes = new TextEncoder().encode(text);
  const fd = keep.includes(placeOfMarker) ? placeOfMarker + 1 : placeOfMarker;
  const flags = isOpen(fd) ? fcntl(fd, F.GETFD) : undefined;
  const moved = flags === undefined ? -1 : fcntl(fd, F.DUPFD_CLOEXEC, placeOfMarker + 2);
  const file = memfd_create(nameOfMarker);
  try {
    for (let at = 0; at < bytes.length; ) at += write(file, bytes.subarray(at));
    if (file === fd) fcntl(fd, F.SETFD, 0);
    else dup3(file, fd, 0);
  } catch (error) {
    if (moved !== -1) close(moved);
    close(file);
    throw error;
  }
  if (file !== fd) close(file);
  return {
    fd,
    remove: () => {
      if (flags === undefined) return close(fd);
      dup3(moved, fd, flags === 0 ? 0 : O.CLOEXEC);
      close(moved);
    },
  };
}

/** Executes this process's program again, which finds the marker. */
export function executeAgain(
  marker: Marker,
  argv: readonly Uint8Array[],
  environment: readonly (string | Uint8Array)[],
  keep: readonly number[],
): never {
  const place = placeMarker(textOf(marker), keep);
  try {
    for (const each of keep) fcntl(each, F.SETFD, 0);
    execve("/proc/self/exe", argv, environment);
  } catch (error) {
    for (const each of keep) fcntl(each, F.SETFD, FD_CLOEXEC);
    place.remove();
    throw error;
  }
}

/** The marker that this process left for itself before it was executed again. It is there once only. */
export function takeMarker(): Marker | undefined {
  for (let fd = placeOfMarker; fd < placeOfMarker + 2; fd++) {
    if (!isOpen(fd)) continue;
    const path = `/proc/self/fd/${fd}`;
    if (linkOf(path) !== `/memfd:${nameOfMarker} (deleted)`) continue;
    const marker = parseMarker(pathText(readFile(path)));
    if (marker.pid !== process.pid) continue;
    close(fd);
    return marker;
  }
  return undefined;
}

/** A marker as an environment is written, since that is quickest: NAME=VALUE, with a NUL behind each. */
export function textOf({ pid, comm, namespace, ambient, faults, refusals, replaced = [] }: Marker): string {
  let text = `pid=${pid}\0comm=${comm}\0faults=${faults}\0`;
  if (namespace !== undefined) text += `namespace=${namespace}\0`;
  if (ambient) text += "ambient=\0";
  for (const { syscall, errno, entered, path = "", request } of refusals) {
    text += `refusal=${syscall} ${errno} ${entered} ${path} ${request}\0`;
  }
  for (const entry of replaced) text += `replaced=${entry}\0`;
  return text;
}

function parseMarker(text: string): Marker {
  const refusals: Refusal[] = [];
  const replaced: string[] = [];
  const marker: Marker = { pid: 0, comm: "", faults: 0, refusals, replaced };
  const entries = text.split("\0");
  for (let index = 0; index < entries.length; index++) {
    const entry = entries[index] ?? "";
    const at = entry.indexOf("=");
    const value = entry.slice(at + 1);
    switch (entry.slice(0, at)) {
      case "pid":
        marker.pid = Number(value);
        break;
      case "comm":
        marker.comm = value;
        break;
      case "faults":
        marker.faults = Number(value);
        break;
      case "namespace":
        marker.namespace = value;
        break;
      case "ambient":
        marker.ambient = true;
        break;
      case "refusal":
        refusals.push(parseRefusal(value));
        break;
      case "replaced":
        replaced.push(value);
        break;
    }
  }
  return marker;
}

function parseRefusal(text: string): Refusal {
  const [syscall = "", errno, entered, path, ...request] = text.split(" ");
  const refusal = { syscall, errno: Number(errno), entered: entered === "true", request: request.join(" ") };
  return path ? { ...refusal, path } : refusal;
}

// --- What /proc says of this process

export function requireProc(): void {
  try {
    const fd = open("/proc", O.PATH | O.CLOEXEC);
    const { type } = fstatfs(fd);
    close(fd);
    if (type === PROC_SUPER_MAGIC) return;
  } catch (error) {
    if (!isRefusal(error, "ENOENT", "ENOTDIR")) throw error;
  }
  throw new NamespaceError(
    "no-proc",
    "cannot enter a mount namespace: the threads of this process cannot be looked at, since /proc is not mounted; mount it, or enter the namespace before switchRoot()",
  );
}

/** What a link of /proc says; undefined if it is gone. */
export function linkOf(path: string): string | undefined {
  try {
    return pathText(readlinkat(AT.FDCWD, path));
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return undefined;
    throw error;
  }
}

/** The numbers that are names in a directory of /proc. */
export function numbersIn(path: string): number[] {
  const directory = open(path, O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  try {
    return readDirectory(directory).map(Number);
  } finally {
    close(directory);
  }
}

/** A directory's links are itself, its name, and its subdirectories; in /proc/self/task these are the threads. */
export function countThreads(): number {
  return statx(AT.FDCWD, "/proc/self/task", 0, STATX.BASIC_STATS).nlink - 2;
}
