/**
 * What `switchRoot` would do, without doing it: the same checks, and then for each step of a method whether the kernel would let it.
 */
import { type Check, closeQuietly, isMountRoot, leadsTo, mountTable, type Situation } from "./checks.ts";
import { type Call, diagnose, type Evidence, evidenceOf, mountsBelow } from "./diagnose.ts";
import { type MountInfo, mountIdOf } from "./mountinfo.ts";
import {
  checkArguments,
  findStrayThread,
  firstReason,
  type Group,
  isTemporaryName,
  knownReason,
  look,
  messageOf,
  methods,
  NotVerified,
  newSwitch,
  othersOf,
  type RejectionReason,
  type RootMethod,
  type Step,
  type Switch,
} from "./switchroot.ts";
import {
  AT,
  close,
  isRefusal,
  kernel,
  MS,
  O,
  OPEN_TREE,
  open_tree,
  openat,
  type PathLike,
  pathText,
  readDirectory,
  SyscallError,
} from "./syscalls.ts";

/** Whether a method would work. */
export interface MethodCheck {
  method: RootMethod;
  works: boolean;
  /** Why it would not, for programs; as in `rejected` of {@link SwitchRootResult}. */
  reason?: RejectionReason;
  /** Why it would not, for people. */
  message?: string;
  /** The mounts below that would not be there afterwards, because they are unbindable, or below one that is. */
  lost: string[];
}

export interface RootCheck {
  /** The path, resolved. */
  root: string;
  /** All methods, the strongest first. `switchRoot` uses the first that works. */
  methods: MethodCheck[];
  /**
   * The names of directories `.pivot_root*` in it: what a switch with `putOld: "directory"` leaves there if it is killed half-way (or has
   * made, if one is on its way just now). rmdir(1) removes them. Empty also if this process may not list the directory.
   */
  leftBehind: string[];
}

/**
 * Says what `switchRoot` would do with a path, for this process as it is now.
 *
 * It changes nothing. System calls are asked with arguments that no kernel accepts, which shows whether they are there, and whether a
 * seccomp filter or a missing right forbids them; a filter that kills instead of refusing kills here as it would there. What a
 * security module (AppArmor, SELinux) would say of the real arguments is not to be known before.
 *
 * @param path The directory that would become "/". Symlinks are followed.
 * @param options `sharedNamespace` as for `switchRoot`.
 * @throws SwitchRootError if `path` cannot be a root, TypeError for a wrong argument or in a Worker: as `switchRoot`.
 */
export function checkRoot(path: PathLike, options: { sharedNamespace?: boolean } = {}): RootCheck {
  const { order, sharedNamespace } = checkArguments(path, options);
  const held: number[] = [];
  try {
    const situation = look(kernel, path, undefined, sharedNamespace, held);
    const view: View = { evidence: evidenceOf(held), table: mountTable(situation.proc), answers: new Map() };
    const stray = findStrayThread(situation);
    const answers = order.map((method): MethodCheck => {
      if (stray !== undefined) return { method, works: false, reason: "stray-thread", message: stray.message, lost: [] };
      return checkMethod(method, situation, view);
    });
    return { root: pathText(situation.path), methods: answers, leftBehind: leftBehind(situation.root.fd) };
  } finally {
    for (const fd of held) closeQuietly(kernel, fd);
  }
}

function leftBehind(root: number): string[] {
  let listing: number;
  try {
    listing = openat(root, ".", O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  } catch (error) {
    if (isRefusal(error, "EACCES")) return [];
    throw error;
  }
  try {
    return readDirectory(listing).filter(isTemporaryName).sort();
  } finally {
    closeQuietly(kernel, listing);
  }
}

/** What the steps are foreseen by. */
interface View {
  readonly evidence: Evidence;
  readonly table: readonly MountInfo[];
  /** What was found by the checks, which several methods have in common. */
  readonly answers: Map<Check, ReturnType<Check["rulesOut"]>>;
}

/** A check that is made once. */
function once(check: Check, { answers }: View): Check {
  return {
    ...check,
    rulesOut: (situation) => {
      if (!answers.has(check)) answers.set(check, check.rulesOut(situation));
      return answers.get(check);
    },
  };
}

interface Refusal {
  reason: RejectionReason;
  message: string;
}

function checkMethod(method: RootMethod, situation: Situation, view: View): MethodCheck {
  const { checks, steps }: { checks: readonly Check[]; steps: readonly (Step | Group)[] } = methods[method];
  const ruledOut = firstReason(
    checks.map((check) => once(check, view)),
    situation,
  );
  if (ruledOut !== undefined) return { method, works: false, reason: ruledOut.reason, message: ruledOut.message, lost: [] };
  const on = newSwitch(situation, "stacked");
  const refusal = firstRefusal(steps, on, view, method === "detached");
  if (refusal !== undefined) return { method, works: false, ...refusal, lost: [] };
  return { method, works: true, lost: on.bound || method === "detached" ? unbindableBelow(on, view.table) : [] };
}

/** Goes through the steps as `switchRoot` does, with a look ahead in the place of each. */
function firstRefusal(steps: readonly (Step | Group)[], on: Switch, view: View, detached: boolean): Refusal | undefined {
  for (const step of steps) {
    if (step.when?.(on) === false) continue;
    const refusal = "steps" in step ? firstRefusal(step.steps, on, view, detached) : foresee(step, on, view, detached);
    if (refusal !== undefined) return refusal;
  }
  return undefined;
}

function foresee({ phase, call }: Step, on: Switch, view: View, detached: boolean): Refusal | undefined {
  const asked = (syscall: string): Refusal | undefined => {
    const errno = answer(syscall, view.evidence);
    return errno === undefined ? undefined : refusalOf(phase, new SyscallError(syscall, errno), call?.(on) ?? {}, view);
  };
  switch (phase) {
    case "enter":
      return foreseeEnter(phase, on, view);
    case "probe":
      return foreseeLock(on, view) ?? asked("umount2");
    case "open_tree":
      if (!detached && answer("open_tree", view.evidence) === ENOSYS) {
        on.byName = true;
        return undefined;
      }
      return asked("open_tree") ?? foreseeUnbindable(phase, on, view) ?? foreseeForeign(phase, on, view);
    case "mount_setattr":
      if (answer("mount_setattr", view.evidence) !== ENOSYS) return asked("mount_setattr");
      on.privateLater = true;
      return undefined;
    case "move_mount":
      return asked("move_mount") ?? foreseeLimit(phase, "move_mount", on, view);
    case "bind":
      return asked("mount") ?? foreseeUnbindable(phase, on, view) ?? foreseeLimit(phase, "mount", on, view);
    case "pivot_root":
      return asked("pivot_root");
    case "chroot":
      return asked("chroot");
    case "private":
    case "propagation":
    case "move":
      return asked("mount");
    case "list":
      return foreseeOthers(on, view);
    case "detach":
      return asked("umount2");
    default:
      // What cannot be refused where the steps before it were not: open(2), the looks at what was done.
      return undefined;
  }
}

const EPERM = 1;
const EACCES = 13;
const EINVAL = 22;
const ENOSPC = 28;
const ENOSYS = 38;

/** With which error a call would be refused whatever its arguments; undefined if it would not. */
function answer(syscall: string, evidence: Evidence): number | undefined {
  const code = evidence.probe(syscall);
  if (code === "EPERM") return EPERM;
  if (code === "EACCES") return EACCES;
  if (code === "ENOSYS") return ENOSYS;
  // These two look at the path first, and only then at who asks.
  return /^(mount|umount2)$/.test(syscall) && evidence.owns("mnt") === false ? EPERM : undefined;
}

function refusalOf(phase: string, error: SyscallError, call: Call, { evidence }: View): Refusal {
  const cause = diagnose(error, call, evidence);
  const explained = new SyscallError(error.syscall, -error.errno, error.path, error.dest, cause);
  return { reason: knownReason(explained), message: `${phase}: ${explained.message}` };
}

/** To look up "." takes the right that fchdir(2) and chroot(2) take as well. */
function foreseeEnter(phase: string, on: Switch, view: View): Refusal | undefined {
  try {
    close(openat(on.root.fd, ".", O.PATH | O.DIRECTORY | O.CLOEXEC));
    return undefined;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    return refusalOf(phase, new SyscallError("fchdir", -error.errno), {}, view);
  }
}

/**
 * What lies in another mount namespace cannot be copied; what lies in a detached tree can, since Linux 6.15. Where it may be the one
 * or the other, a copy is made, which is gone when it is closed.
 */
function foreseeForeign(phase: string, on: Switch, view: View): Refusal | undefined {
  if (view.evidence.inNamespace(on.root.fd) === true) return undefined;
  try {
    close(open_tree(on.root.fd, "", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | AT.EMPTY_PATH));
    return undefined;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    return refusalOf(phase, error, { source: on.root.fd, flags: AT.RECURSIVE }, view);
  }
}

/** Sees whether the root has to be bound over itself, as the step does. */
function foreseeLock(on: Switch, { evidence }: View): Refusal | undefined {
  on.bound = !isMountRoot(on.root);
  if (on.bound) return undefined;
  if (!leadsTo(on.kernel, on.path, on.root)) {
    return { reason: "not-verified", message: `probe: '${pathText(on.path)}' has been mounted over` };
  }
  on.bound = evidence.locked(on.path) === true;
  return undefined;
}

function foreseeUnbindable(phase: string, on: Switch, view: View): Refusal | undefined {
  const id = mountIdOf(on.root.fd);
  const mount = view.table.find((each) => each.id === id);
  const call = { source: on.root.fd, target: on.root.fd, flags: phase === "bind" ? MS.BIND | MS.REC : AT.RECURSIVE };
  const syscall = phase === "bind" ? "mount" : "open_tree";
  if (mount?.propagation.unbindable) return refusalOf(phase, new SyscallError(syscall, EINVAL, pathText(on.path)), call, view);
  const unbindable = mountsBelow(view.table, placeOf(on)).filter(({ propagation }) => propagation.unbindable);
  // One that is locked may not be left out either.
  const locked = unbindable.some(({ id: other, mountPoint, mountPointBytes }) =>
    view.evidence.locked(mountPointBytes ?? mountPoint, other),
  );
  return locked ? refusalOf(phase, new SyscallError(syscall, EPERM, pathText(on.path)), call, view) : undefined;
}

function placeOf(on: Switch) {
  return { path: pathText(on.path), mountId: mountIdOf(on.root.fd), mountRoot: isMountRoot(on.root), directory: true };
}

function foreseeLimit(phase: string, syscall: string, on: Switch, view: View): Refusal | undefined {
  const limit = Number(view.evidence.file("/proc/sys/fs/mount-max"));
  // Most of the time it is far away, and nothing has to be counted.
  if (Number.isNaN(limit) || 2 * view.table.length + 2 < limit) return undefined;
  const error = new SyscallError(syscall, ENOSPC, pathText(on.path));
  const refusal = refusalOf(phase, error, { source: on.root.fd, flags: MS.BIND | MS.REC }, view);
  return refusal.reason === "mount-max" ? refusal : undefined;
}

/** As `move` does before it moves: a locked mount could not be left behind. */
function foreseeOthers(on: Switch, view: View): Refusal | undefined {
  try {
    // The copy that is made of a root which has to be bound is not there yet; the original is one of those that are left.
    const others = othersOf(view.table, mountIdOf(on.oldRoot.fd), on.bound ? -1 : mountIdOf(on.root.fd));
    const locked = others.find(({ id, mountPoint, mountPointBytes }) => view.evidence.locked(mountPointBytes ?? mountPoint, id));
    return locked && refusalOf("list", new SyscallError("umount2", EINVAL, locked.mountPoint), {}, view);
  } catch (error) {
    if (!(error instanceof NotVerified)) throw error;
    return { reason: "not-verified", message: `list: ${messageOf(error)}` };
  }
}

/** What a copy leaves out: unbindable mounts, and what is mounted below them. */
function unbindableBelow(on: Switch, table: readonly MountInfo[]): string[] {
  const below = mountsBelow(table, placeOf(on));
  const lost = new Set<number>();
  for (let before = -1; before < lost.size; ) {
    before = lost.size;
    for (const { id, parentId, propagation } of below) if (propagation.unbindable || lost.has(parentId)) lost.add(id);
  }
  return below.filter(({ id }) => lost.has(id)).map(({ mountPoint }) => mountPoint);
}
