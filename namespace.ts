/**
 * A mount namespace of one's own, for every thread of the process, with or without a user namespace.
 *
 * unshare(2) moves the thread that calls it and no other, and Bun has several. So the program is executed once more from inside:
 * all its threads then start there.
 */
import { describe, rememberOwn } from "./checks.ts";
import { explained } from "./diagnose.ts";
import { type PropagationMode, propagationTypes } from "./mountoptions.ts";
import {
  countThreads,
  executeAgain,
  flush,
  inherited,
  latin1,
  linkOf,
  type Marker,
  NamespaceError,
  numbersIn,
  oneThread,
  placeMarker,
  type Refusal,
  refuseWhatCannotRestart,
  requireProc,
  strings,
  takeMarker,
  textOf,
} from "./restart.ts";
import {
  AT,
  argumentError,
  CLONE,
  checkOptions,
  close,
  dropInheritableCapabilities,
  execve,
  F,
  FD_CLOEXEC,
  faultsOfChildren,
  fcntl,
  hasChildren,
  kernel,
  mount,
  O,
  open,
  pathText,
  programOfUserNamespace,
  SyscallError,
  setThreadName,
  statx,
  threadName,
  type UserNamespacePlan,
  unshare,
} from "./syscalls.ts";
import { enterUserNamespace, userNamespaceMaps } from "./usernamespace.ts";

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

/** What is known in this process. */
interface State {
  entered: boolean;
  refusals: readonly Refusal[];
  /** What was wrong in the second run. There is no third. */
  failure: NamespaceError | undefined;
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
 * that it was started with stay open as far as they follow upon 2 without a gap, up to 199; so does the channel to a parent that it has by IPC.
 *
 * Afterwards every thread is in the new namespace, and so is all that is started later. A second call returns at once, whatever its options.
 *
 * @param options See {@link EnterMountNamespaceOptions}.
 * @throws {@link NamespaceError}, whose message says what to do: if the kernel refuses, or if the program cannot be executed once more: under `bun test`,
 *   read from standard input (`bun -`), with a relative `--cwd`, or after `process.chdir`.
 *   `TypeError` with `ERR_INVALID_ARG_TYPE` or `ERR_INVALID_ARG_VALUE` for a wrong argument, with `ERR_WORKER_UNSUPPORTED_OPERATION` in a
 *   Worker. `Error` with `ERR_UNSUPPORTED_PLATFORM` where there is no Linux on x86-64 or arm64.
 * @see mount_namespaces(7), user_namespaces(7), docs/threads.md.
 */
export function enterMountNamespace(options: EnterMountNamespaceOptions = {}): void {
  const request = checkArguments(options);
  const state = knownState();
  if (state.failure !== undefined) throw state.failure;
  const refusal = state.refusals.find((each) => each.request === request.text);
  if (refusal !== undefined)
    throw refused(request, new SyscallError(refusal.syscall, refusal.errno, refusal.path), refusal.entered);
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

function refused({ user }: Request, error: SyscallError, entered = false): NamespaceError {
  const explanation = explained(error, { flags: user ? CLONE.NEWUSER | CLONE.NEWNS : CLONE.NEWNS });
  const cause = explanation instanceof SyscallError ? explanation : error;
  const rest = entered ? "; this process is in a new namespace in part, and should exit" : "";
  return new NamespaceError("refused", `cannot enter a mount namespace: ${cause.message}${rest}`, { cause, entered });
}

// --- One thread

function enterInPlace(request: Request): void {
  const before = linkOf("/proc/self/ns/mnt");
  try {
    if (request.user) enterUserNamespace(request.map === "root");
    else unshare(CLONE.NEWNS);
    mount(null, "/", null, request.propagation, null);
  } catch (error) {
    // What follows upon the unshare(2) can fail as well, and by then something has changed.
    throw error instanceof SyscallError ? refused(request, error, linkOf("/proc/self/ns/mnt") !== before) : error;
  }
  rememberNamespace();
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
  const argv = strings("/proc/self/cmdline");
  refuseWhatCannotRestart(argv);
  const environment = strings("/proc/self/environ");
  const keep = inherited(environment);
  const marker: Marker = { pid: process.pid, comm: threadName(), faults: faultsOfChildren(), refusals };
  flush();
  let entered = false;
  try {
    if (request.user) {
      restartInUserNamespace(request, marker, argv, environment, keep);
    } else {
      unshare(CLONE.NEWNS);
      entered = true;
      mount(null, "/", null, request.propagation, null);
      const namespace = linkOf("/proc/self/ns/mnt");
      if (namespace !== undefined) marker.namespace = namespace;
      executeAgain(marker, argv, environment, keep);
    }
  } catch (error) {
    throw error instanceof SyscallError ? refused(request, error, entered) : error;
  }
}

/** unshare(2) with CLONE_NEWUSER needs a process of one thread. A program of ours is one, and executes the caller's again. */
function restartInUserNamespace(
  { map, propagation, text }: Request,
  marker: Marker,
  argv: readonly Uint8Array[],
  environment: readonly Uint8Array[],
  keep: readonly number[],
): never {
  // The program's own directory is none of ours: Bun would read its configuration.
  const cwd = open(".", O.PATH | O.CLOEXEC);
  const root = open("/", O.PATH | O.CLOEXEC);
  marker.ambient = map === "same" && process.geteuid?.() !== 0;
  const plan: UserNamespacePlan = {
    cwd,
    keep,
    files: userNamespaceMaps(map === "root"),
    propagation,
    ambient: marker.ambient,
    argv: argv.map(latin1),
    environment: environment.map(latin1),
    marker: textOf(marker),
    request: text,
  };
  const json = JSON.stringify(plan);
  const place = placeMarker(json, keep);
  const program = programOfUserNamespace(place.fd, Buffer.byteLength(json));
  const options = ["--no-env-file", "--config=/dev/null", "--tsconfig-override=/dev/null"];
  const loader = environment.filter((entry) => pathText(entry).startsWith("LD_"));
  try {
    kernel.fchdir(root);
    for (const each of [cwd, ...keep]) fcntl(each, F.SETFD, 0);
    execve("/proc/self/exe", ["bun", ...options, "-e", program], [...loader, "BUN_BE_BUN=1", ...oneThread]);
  } catch (error) {
    kernel.fchdir(cwd);
    for (const each of keep) fcntl(each, F.SETFD, FD_CLOEXEC);
    for (const each of [cwd, root]) close(each);
    place.remove();
    throw error;
  }
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
  const state: State = { entered: false, refusals: [], failure: undefined };
  const marker = takeMarker();
  if (marker !== undefined) {
    state.failure = arrive(marker);
    state.entered = marker.namespace !== undefined;
    state.refusals = marker.refusals;
  }
  Reflect.set(globalThis, key, state);
  return state;
}

/** The second run: what has to be true is looked at, and what execve(2) changed is put right. */
function arrive({ namespace, comm, ambient, faults }: Marker): NamespaceError | undefined {
  setThreadName(comm);
  if (namespace === undefined) return undefined;
  for (const thread of numbersIn("/proc/self/task")) {
    const link = linkOf(`/proc/self/task/${thread}/ns/mnt`);
    if (link === undefined || link === namespace) continue;
    return new NamespaceError(
      "threads",
      `cannot enter a mount namespace: thread ${thread} is in ${link}, and not in ${namespace}, after this program was started once more; this process should exit`,
      { entered: true },
    );
  }
  if (ambient) dropInheritableCapabilities();
  // Children that were started in between, by the program before its call, live in the namespace.
  if (!hasChildren() && faultsOfChildren() === faults) rememberNamespace();
  return undefined;
}
