/**
 * A mount namespace of one's own, for every thread of the process, with or without a user namespace.
 *
 * unshare(2) moves the thread that calls it and no other, and Bun has several. So the program is executed once more from inside:
 * all its threads then start there. What is known about it goes over in a file in memory, the marker, whose descriptor survives
 * execve(2): an environment variable could not be taken back from Bun's children and Workers.
 */
import { describe, rememberOwn } from "./checks.ts";
import { type PropagationMode, propagationTypes } from "./mountoptions.ts";
import {
  AT,
  argumentError,
  CAP,
  CLONE,
  checkOptions,
  close,
  dropInheritableCapabilities,
  execve,
  F,
  FD_CLOEXEC,
  faultsOfChildren,
  fcntl,
  fstatfs,
  hasCapability,
  hasChildren,
  isRefusal,
  kernel,
  memfd_create,
  mount,
  O,
  open,
  PROC_SUPER_MAGIC,
  pathText,
  programOfUserNamespace,
  readDirectory,
  readFile,
  readlinkat,
  STATX,
  SyscallError,
  setEnvironment,
  statx,
  type UserNamespacePlan,
  unshare,
  write,
} from "./syscalls.ts";

export interface EnterMountNamespaceOptions {
  /** Whether to take a user namespace as well, in which this process has all capabilities. That takes no privileges. Default false. */
  user?: boolean;
  /**
   * What the caller's user and group are in the user namespace: 0, or what they are outside. Children have no capabilities with
   * `"same"`. Default `"root"`.
   */
  map?: "root" | "same";
  /** The propagation of "/" in the new namespace, with an `r` of all mounts below as well. Default `"rslave"`: none of them shows outside. */
  propagation?: PropagationMode;
}

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
  /** ... it was started by a relative path, and the working directory is another one now. */
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

/** What a program knows that was started once more. It is read from the marker; every field is checked there. */
interface Marker {
  /** The process, which stays the same over execve(2): a child does not take its parent's marker for its own. */
  readonly pid: number;
  /** The process's name, which execve(2) changes. */
  readonly comm: string;
  /** The link `ns/mnt` of the namespace that was entered, if any. */
  readonly namespace: string | undefined;
  /** Whether there are ambient capabilities to be given up. */
  readonly ambient: boolean;
  /** What has been refused so far. A program that is started once more asks for the same again. */
  readonly refusals: readonly Refusal[];
  /** What {@link faultsOfChildren} was then. */
  readonly faults: number;
  /** The environment variables that {@link restartAlone} replaced: names, and what they were. */
  readonly replaced: readonly string[] | undefined;
}

interface Refusal {
  /** For which options. */
  readonly request: string;
  readonly syscall: string;
  readonly errno: number;
  readonly entered: boolean;
}

/** What is known in this process. */
interface State {
  entered: boolean;
  refusals: readonly Refusal[];
}

interface Request {
  readonly user: boolean;
  readonly map: "root" | "same";
  /** Flags of mount(2). */
  readonly propagation: number;
  /** All of it as text. */
  readonly text: string;
}

/**
 * Puts the whole process in a mount namespace of its own: what it mounts is seen nowhere else, and {@link switchRoot} can pivot.
 *
 * To be called first of all. A process with more than one thread, as almost all of Bun's are, is executed once more (execve(2)), with
 * the same arguments, environment, working directory, umask, standard streams and process number, and this function returns in
 * the second run. So everything before the call happens twice. What was written to `process.stdout` and `process.stderr` is written out first;
 * what was read from standard input is lost, what was not read is not. Descriptors that were opened by the program are closed, those
 * that it was started with stay open as far as they follow upon 2 without a gap; so does the channel to a parent that it has by IPC.
 *
 * Afterwards every thread is in the new namespace, and so is all that is started later. A second call returns at once, whatever its options.
 *
 * @param options See {@link EnterMountNamespaceOptions}.
 * @throws {@link NamespaceError}, whose message says what to do: if the kernel refuses, or if the program cannot be executed once more: under `bun test`,
 *   read from standard input (`bun -`), with a relative `--cwd`, or after `process.chdir` if it was started by a relative path.
 *   `TypeError` with `ERR_INVALID_ARG_TYPE` or `ERR_INVALID_ARG_VALUE` for a wrong argument, with `ERR_WORKER_UNSUPPORTED_OPERATION` in a
 *   Worker. `Error` with `ERR_UNSUPPORTED_PLATFORM` where there is no Linux on x86-64 or arm64.
 * @see mount_namespaces(7), user_namespaces(7), docs/threads.md.
 */
export function enterMountNamespace(options: EnterMountNamespaceOptions = {}): void {
  const request = checkArguments(options);
  const state = knownState();
  const refusal = state.refusals.find((each) => each.request === request.text);
  if (refusal !== undefined) throw refused(request, new SyscallError(refusal.syscall, refusal.errno), refusal.entered);
  if (state.entered) return;
  requireProc();
  if (statx(AT.FDCWD, "/", 0, 0).mountRoot === false) {
    throw new NamespaceError(
      "chrooted",
      'cannot enter a mount namespace: this process was chrooted, and its "/" is no mount, so that its propagation cannot be set; enter the namespace before the chroot(2)',
    );
  }
  if (countThreads() === 1) enterInPlace(request);
  else restart(request, state);
  state.entered = true;
}

// --- Arguments

function checkArguments(options: EnterMountNamespaceOptions): Request {
  if (!Bun.isMainThread) {
    throw argumentError(
      "ERR_WORKER_UNSUPPORTED_OPERATION",
      "enterMountNamespace() starts the whole process once more, and cannot be called in a Worker; call it in the main thread, before the Worker is started",
    );
  }
  checkOptions(options, ["user", "map", "propagation"]);
  const { user = false, map = "root", propagation = "rslave" } = options;
  if (typeof user !== "boolean") throw argumentError("ERR_INVALID_ARG_TYPE", "user must be a boolean");
  if (map !== "root" && map !== "same") {
    throw argumentError("ERR_INVALID_ARG_VALUE", `map must be "root" or "same", not '${map}'`);
  }
  if (options.map !== undefined && !user) throw argumentError("ERR_INVALID_ARG_VALUE", "map goes with user: true only");
  const type = propagationTypes.get(propagation);
  if (type === undefined) throw argumentError("ERR_INVALID_ARG_VALUE", `'${propagation}' is not a propagation type`);
  return { user, map, propagation: type, text: `${user ? `user ${map} ` : ""}${propagation}` };
}

function requireProc(): void {
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

function refused({ user }: Request, cause: SyscallError, entered = false): NamespaceError {
  const rest = entered ? "; this process is in a new namespace in part, and should exit" : "";
  return new NamespaceError("refused", `cannot enter a mount namespace: ${cause.message}${advice(user, cause)}${rest}`, {
    cause,
    entered,
  });
}

function advice(user: boolean, { code, syscall }: SyscallError): string {
  if (syscall !== "unshare") return "";
  if (code === "ENOSPC") {
    return ` (a limit of namespaces is reached: ${user ? "user.max_user_namespaces or " : ""}user.max_mnt_namespaces, see sysctl(8))`;
  }
  if (code !== "EPERM") return "";
  if (user) {
    return " (user namespaces are forbidden here: by a seccomp filter, such as a container's, by a sysctl, such as kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns, or because this process was chrooted)";
  }
  return hasCapability(CAP.SYS_ADMIN)
    ? " (this process has CAP_SYS_ADMIN, so a seccomp filter or a security module forbids it; in a container: start that with more privileges)"
    : " (this process does not have CAP_SYS_ADMIN; run it as root, or use { user: true }, which takes no privileges)";
}

// --- One thread

function enterInPlace({ user, map, propagation, ...request }: Request): void {
  let entered = false;
  try {
    // Outside, as long as they are known.
    const files = user ? mapsOf(map) : [];
    unshare(user ? CLONE.NEWUSER | CLONE.NEWNS : CLONE.NEWNS);
    entered = true;
    for (const [path, text] of files) writeFile(path, text);
    mount(null, "/", null, propagation, null);
  } catch (error) {
    throw error instanceof SyscallError ? refused({ user, map, propagation, ...request }, error, entered) : error;
  }
  rememberNamespace();
}

/** What is written to which file in a new user namespace, user_namespaces(7). */
function mapsOf(map: "root" | "same"): [path: string, text: string][] {
  const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0];
  return [
    // Without privileges the group can be mapped only after this.
    ["/proc/self/setgroups", "deny"],
    ["/proc/self/uid_map", `${map === "root" ? 0 : uid} ${uid} 1`],
    ["/proc/self/gid_map", `${map === "root" ? 0 : gid} ${gid} 1`],
  ];
}

function writeFile(path: string, text: string): void {
  const fd = open(path, O.WRONLY | O.CLOEXEC);
  try {
    write(fd, new TextEncoder().encode(text));
  } finally {
    close(fd);
  }
}

/** The namespace is this process's own, which {@link switchRoot} need not find out. Its root may be elsewhere: it may have been chrooted. */
function rememberNamespace(): void {
  const fd = open("/", O.PATH | O.CLOEXEC);
  try {
    rememberOwn(describe(kernel, fd), false);
  } finally {
    close(fd);
  }
}

// --- More than one

/** Does not return, but in another run of the program. */
function restart(request: Request, { refusals }: State): void {
  refuseWhatCannotRestart();
  const [argv, environment] = [strings("/proc/self/cmdline"), strings("/proc/self/environ")];
  const keep = inherited(environment);
  const marker: Omit<Marker, "namespace" | "replaced"> = {
    pid: process.pid,
    comm: ownName(),
    ambient: false,
    refusals,
    faults: faultsOfChildren(),
  };
  flush();
  let entered = false;
  try {
    if (request.user) {
      restartInUserNamespace(request, marker, argv, environment, keep);
    } else {
      unshare(CLONE.NEWNS);
      entered = true;
      mount(null, "/", null, request.propagation, null);
      executeAgain({ ...marker, namespace: namespaceOf("self"), replaced: undefined }, argv, environment, keep);
    }
  } catch (error) {
    throw error instanceof SyscallError ? refused(request, error, entered) : error;
  }
}

/** unshare(2) with CLONE_NEWUSER needs a process of one thread. A program of ours is one, and executes the caller's again. */
function restartInUserNamespace(
  { map, propagation, text }: Request,
  marker: Omit<Marker, "namespace" | "replaced">,
  argv: readonly Uint8Array[],
  environment: readonly Uint8Array[],
  keep: readonly number[],
): never {
  // The program's own directory is none of ours: Bun would read its configuration.
  const cwd = open(".", O.PATH | O.CLOEXEC);
  const root = open("/", O.PATH | O.CLOEXEC);
  const plan: UserNamespacePlan & Omit<Marker, "namespace" | "replaced"> & { request: string } = {
    ...marker,
    request: text,
    cwd,
    keep,
    files: mapsOf(map),
    propagation,
    ambient: map === "same" && process.geteuid?.() !== 0,
    argv: argv.map(latin1),
    environment: environment.map(latin1),
  };
  const bytes = Buffer.from(JSON.stringify(plan));
  const fd = writeMarker(bytes);
  const program = programOfUserNamespace(fd, bytes.length);
  const options = ["--no-env-file", "--config=/dev/null", "--tsconfig-override=/dev/null"];
  const loader = environment.filter((entry) => pathText(entry).startsWith("LD_"));
  try {
    kernel.fchdir(root);
    for (const each of [fd, cwd, ...keep]) fcntl(each, F.SETFD, 0);
    execve("/proc/self/exe", ["bun", ...options, "-e", program], [...loader, "BUN_BE_BUN=1", ...oneThread]);
  } catch (error) {
    kernel.fchdir(cwd);
    for (const each of keep) fcntl(each, F.SETFD, FD_CLOEXEC);
    for (const each of [fd, cwd, root]) close(each);
    throw error;
  }
}

/** With these, Bun has one thread at the first line of a program, as long as that does nothing that needs another. */
const oneThread: readonly string[] = [
  "BUN_JSC_useConcurrentJIT=0",
  "BUN_JSC_useConcurrentGC=0",
  "BUN_JSC_numberOfGCMarkers=1",
  "BUN_JSC_useWarmUpMarkedBlocks=0",
  "BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER=1",
  "MIMALLOC_SCAVENGER=0",
];

// --- Whether the program can be executed once more

function refuseWhatCannotRestart(): void {
  const restarted = "cannot enter a mount namespace, for which this program has to be started once more";
  const flags = process.execArgv;
  if (Bun.main.endsWith("/[stdin]")) {
    const message = `${restarted}: it was read from standard input, which is empty now; put it in a file, or use bun -e`;
    throw new NamespaceError("program-from-stdin", message);
  }
  // A compiled program takes its arguments for its own.
  if (Bun.main.startsWith("/$bunfs/")) return;
  const own = argumentsOfBun();
  // What BUN_OPTIONS says comes first in execArgv, and is not on the command line.
  const rest = own.filter((argument) => !flags.includes(argument));
  if (rest[0] === "test") {
    const message = `${restarted}: bun test would run its files twice; call enterMountNamespace() in a program that the test starts as a child process`;
    throw new NamespaceError("bun-test", message);
  }
  const at = flags.findIndex((flag) => flag === "--cwd" || flag.startsWith("--cwd="));
  const directory = flags[at] === "--cwd" ? flags[at + 1] : flags[at]?.slice("--cwd=".length);
  if (directory !== undefined && !directory.startsWith("/")) {
    const message = `${restarted}: its option --cwd=${directory} is relative, and would be applied twice; make it an absolute path`;
    throw new NamespaceError("relative-cwd", message);
  }
  if (!isInFirstDirectory(rest)) {
    const message = `${restarted}: it was started by a relative path, and the working directory is another one now; call enterMountNamespace() before process.chdir(), or start it by an absolute path`;
    throw new NamespaceError("working-directory", message);
  }
}

/** The command line without the program's name, and without the arguments that are for the script. */
function argumentsOfBun(): string[] {
  const all = strings("/proc/self/cmdline").slice(1).map(pathText);
  const evaluated = Bun.main.endsWith("/[eval]");
  const scripts = process.argv.length - (evaluated ? 1 : 2);
  return all.slice(0, Math.max(0, all.length - scripts));
}

/** Whether the script would be found again, as far as can be told: where it was started by an absolute path, the directory does not matter. */
function isInFirstDirectory(rest: readonly string[]): boolean {
  if (Bun.main.endsWith("/[eval]")) return Bun.main === `${process.cwd().replace(/\/$/, "")}/[eval]`;
  const script = rest.findLast((argument) => !argument.startsWith("-") && argument !== "run");
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
function flush(): void {
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
function strings(path: string): Uint8Array[] {
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

function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("latin1");
}

/**
 * The descriptors that this process was started with, as far as can be told: those before the first of Bun's own, an epoll
 * instance. And the channel to a parent, by IPC.
 */
function inherited(environment: readonly Uint8Array[]): number[] {
  const found: number[] = [];
  for (let fd = 3; ; fd++) {
    const link = linkOf(`/proc/self/fd/${fd}`);
    if (link === undefined || link === "anon_inode:[eventpoll]") break;
    found.push(fd);
  }
  const entry = environment.find((each) => isNamed(each, "NODE_CHANNEL_FD"));
  const channel = entry === undefined ? -1 : Number(pathText(entry).slice("NODE_CHANNEL_FD=".length));
  if (linkOf(`/proc/self/fd/${channel}`) !== undefined && !found.includes(channel)) found.push(channel);
  return found;
}

// --- The marker

const nameOfMarker = "mounttree";

/** Returns its descriptor. */
function writeMarker(bytes: Uint8Array): number {
  const fd = memfd_create(nameOfMarker);
  try {
    for (let at = 0; at < bytes.length; ) at += write(fd, bytes.subarray(at));
  } catch (error) {
    close(fd);
    throw error;
  }
  return fd;
}

/** Executes this process's program again, which finds the marker. */
function executeAgain(
  marker: Marker,
  argv: readonly Uint8Array[],
  environment: readonly (string | Uint8Array)[],
  keep: readonly number[],
): never {
  const fd = writeMarker(Buffer.from(JSON.stringify(marker)));
  try {
    for (const each of [fd, ...keep]) fcntl(each, F.SETFD, 0);
    execve("/proc/self/exe", argv, environment);
  } catch (error) {
    for (const each of keep) fcntl(each, F.SETFD, FD_CLOEXEC);
    close(fd);
    throw error;
  }
}

/** The marker that this process left for itself before it was executed again. It is there once only. */
function takeMarker(): Marker | undefined {
  for (const fd of numbersIn("/proc/self/fd")) {
    if (linkOf(`/proc/self/fd/${fd}`) !== `/memfd:${nameOfMarker} (deleted)`) continue;
    const marker = parseMarker(new TextDecoder().decode(readFile(`/proc/self/fd/${fd}`)));
    if (marker?.pid !== process.pid) continue;
    close(fd);
    return marker;
  }
  return undefined;
}

function parseMarker(text: string): Marker | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const get = (name: string): unknown => Reflect.get(value, name);
  const [pid, comm, namespace, faults, replaced, refusals] = [
    get("pid"),
    get("comm"),
    get("namespace"),
    get("faults"),
    get("replaced"),
    get("refusals"),
  ];
  if (typeof pid !== "number" || typeof comm !== "string" || typeof faults !== "number" || !Array.isArray(refusals))
    return undefined;
  const latest: unknown = get("refusal");
  const added = typeof latest === "object" && latest !== null ? [{ ...latest, request: get("request") }] : [];
  return {
    pid,
    comm,
    namespace: typeof namespace === "string" ? namespace : undefined,
    ambient: get("ambient") === true,
    refusals: [...refusals, ...added].filter(isRefusalRecord),
    faults,
    replaced: Array.isArray(replaced) ? replaced.filter((each) => typeof each === "string") : undefined,
  };
}

function isRefusalRecord(value: unknown): value is Refusal {
  return (
    typeof value === "object" &&
    value !== null &&
    "request" in value &&
    typeof value.request === "string" &&
    "syscall" in value &&
    typeof value.syscall === "string" &&
    "errno" in value &&
    typeof value.errno === "number" &&
    "entered" in value &&
    typeof value.entered === "boolean"
  );
}

// --- What is known

/** It belongs to the process, and not to this module, of which a program can have two, or get a new one while it runs (`--hot`). */
const key = Symbol.for("mounttree.namespace");

function isState(value: unknown): value is State {
  return typeof value === "object" && value !== null && "entered" in value && "refusals" in value;
}

function knownState(): State {
  const known: unknown = Reflect.get(globalThis, key);
  if (isState(known)) return known;
  const state: State = { entered: false, refusals: [] };
  const marker = isThere("/proc/self/fd") ? takeMarker() : undefined;
  if (marker !== undefined) {
    arrive(marker);
    state.entered = marker.namespace !== undefined;
    state.refusals = marker.refusals;
  }
  Reflect.set(globalThis, key, state);
  return state;
}

/** The second run: what has to be true is looked at, and what execve(2) changed is put right. */
function arrive({ namespace, comm, ambient, faults }: Marker): void {
  rename(comm);
  if (namespace === undefined) return;
  for (const thread of numbersIn("/proc/self/task")) {
    const link = linkOf(`/proc/self/task/${thread}/ns/mnt`);
    if (link === undefined || link === namespace) continue;
    throw new NamespaceError(
      "threads",
      `cannot enter a mount namespace: thread ${thread} is in ${link}, and not in ${namespace}, after this program was started once more; this process should exit`,
      { entered: true },
    );
  }
  if (ambient) dropInheritableCapabilities();
  // Children that were started in between, by the program before its call, live in the namespace.
  if (!hasChildren() && faultsOfChildren() === faults) rememberNamespace();
}

function ownName(): string {
  return pathText(readFile("/proc/self/comm")).trimEnd();
}

/** execve(2) calls the process after the file, which is "exe". */
function rename(comm: string): void {
  try {
    writeFile("/proc/self/comm", comm);
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
  }
}

function namespaceOf(thread: string): string | undefined {
  return linkOf(`/proc/${thread}/ns/mnt`);
}

/** What a link of /proc says; undefined if it is gone. */
function linkOf(path: string): string | undefined {
  try {
    return pathText(readlinkat(AT.FDCWD, path));
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return undefined;
    throw error;
  }
}

function isThere(path: string): boolean {
  try {
    close(open(path, O.PATH | O.CLOEXEC));
    return true;
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ENOTDIR")) return false;
    throw error;
  }
}

/** The numbers that are names in a directory of /proc. */
function numbersIn(path: string): number[] {
  const directory = open(path, O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  try {
    return readDirectory(directory).map(Number);
  } finally {
    close(directory);
  }
}

function countThreads(): number {
  return numbersIn("/proc/self/task").length;
}

// --- For the command

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
    rename(marker.comm);
    for (const entry of oneThread) setEnvironment(nameOf(entry));
    for (const entry of marker.replaced ?? []) setEnvironment(nameOf(entry), entry.slice(nameOf(entry).length + 1));
  }
  const threads = countThreads();
  if (threads === 1) return;
  if (marker !== undefined) {
    const message = `this process has ${threads} threads, and should have one, after it was started once more for that purpose`;
    throw new NamespaceError("threads", message);
  }
  refuseWhatCannotRestart();
  const environment = strings("/proc/self/environ");
  const isOurs = (entry: Uint8Array): boolean => oneThread.some((each) => isNamed(entry, nameOf(each)));
  const restarted: Marker = {
    pid: process.pid,
    comm: ownName(),
    namespace: undefined,
    ambient: false,
    refusals: [],
    faults: 0,
    replaced: environment.filter(isOurs).map(pathText),
  };
  const keep = inherited(environment);
  flush();
  const others = environment.filter((entry) => !isOurs(entry));
  executeAgain(restarted, strings("/proc/self/cmdline"), [...others, ...oneThread], keep);
}

function nameOf(entry: string): string {
  return entry.slice(0, entry.indexOf("="));
}
