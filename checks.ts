/**
 * What can be known about a switch before anything is changed: who lives in this mount namespace, whether the process
 * was chrooted before, which mounts propagate, which thread would stay behind. Nothing here changes anything.
 */
import { findMount, type MountInfo, mountedByTable, mountIdOf, parseMountInfo, readMountInfo } from "./mountinfo.ts";
import {
  AT,
  CAP,
  CLONE,
  close,
  FSCONFIG,
  FSMOUNT,
  FSOPEN,
  faultsOfChildren,
  fsconfig,
  fsmount,
  fsopen,
  fstatfs,
  hasCapability,
  hasChildren,
  isRefusal,
  type Kernel,
  kernel,
  LSMT_ROOT,
  MOUNT_ATTR,
  MS,
  O,
  open,
  openat,
  owningUserNamespace,
  type PathLike,
  PROC_SUPER_MAGIC,
  readDirectory,
  readFile,
  readlinkat,
  STATX,
  type Statx,
  SyscallError,
  setns,
  statmount,
  statNamespaceRoot,
  statx,
  unshare,
} from "./syscalls.ts";

/** A directory's descriptor, and what statx(2) says of it. */
export interface Directory {
  readonly fd: number;
  readonly stat: Statx;
}

/** What the checks look at. */
export interface Situation {
  readonly kernel: Kernel;
  /** What is to become "/". */
  readonly root: Directory;
  /** Whether that is a mount which was made for the switch: it is not locked, and nobody else has stacked anything on it. */
  readonly madeForThis: boolean;
  /** Where it is, from what is "/" now. */
  readonly path: string | Uint8Array;
  /** What is "/" now. */
  readonly oldRoot: Directory;
  /** The working directory. */
  readonly cwd: number;
  /** A procfs that knows this process. */
  readonly proc: number;
  /** Whether the mount namespace may be changed whoever else lives in it. */
  readonly sharedNamespace: boolean;
  /** Whether this thread has just taken the mount namespace, and made "/" and all mounts below it slaves. */
  readonly newNamespace: boolean;
  /** What was found out about mounts. */
  readonly mounts: MountFacts[];
}

/** Why a method is ruled out, for programs. */
export type CheckReason =
  | "no-cap-sys-admin"
  | "no-cap-sys-chroot"
  | "root-detached"
  | "namespace-shared"
  | "chrooted"
  | "initramfs"
  | "namespace-not-owned"
  | "shared-mount";

/** One requirement of a method. */
export interface Check {
  readonly reason: CheckReason;
  /** Whether it is met by a thread that has just taken a mount namespace, and made "/" and all mounts below it slaves. */
  readonly metWhenNew?: boolean;
  /** Why it is, as a sentence, or with another reason that was met; undefined if the requirement is met. */
  rulesOut(situation: Situation): string | Ruling | undefined;
}

export interface Ruling {
  readonly reason: CheckReason;
  readonly message: string;
}

// --- Directories

const identity = STATX.BASIC_STATS | STATX.MNT_ID | STATX.MNT_ID_UNIQUE;

/** statx(2) of a descriptor, with the mount's ID also where the kernel is too old to give it (before 5.8). */
export function describe(kernel: Kernel, fd: number): Directory {
  const stat = kernel.statx(fd, "", AT.EMPTY_PATH, identity);
  return { fd, stat: stat.mask & (STATX.MNT_ID | STATX.MNT_ID_UNIQUE) ? stat : withMountId(fd, stat) };
}

function withMountId(fd: number, stat: Statx): Statx {
  return { ...stat, mountId: BigInt(mountIdOf(fd)) };
}

/**
 * Whether a path leads to this directory on this mount. Device and inode alone do not tell a read-only bind mount from its
 * writable source.
 */
export function leadsTo(kernel: Kernel, path: PathLike, { stat }: Directory): boolean {
  let found = kernel.statx(AT.FDCWD, path, 0, identity);
  if ((found.mask & (STATX.MNT_ID | STATX.MNT_ID_UNIQUE)) === 0) {
    const fd = kernel.open(path, O.PATH | O.CLOEXEC);
    found = describe(kernel, fd).stat;
    kernel.close(fd);
  }
  return isSame(found, stat);
}

/** Whether two answers of statx(2) are about one directory on one mount. */
export function isSame(one: Statx, other: Statx): boolean {
  return (
    one.mountId === other.mountId && one.ino === other.ino && one.devMinor === other.devMinor && one.devMajor === other.devMajor
  );
}

/** Whether a directory is the root of a mount. */
export function isMountRoot({ fd, stat }: Directory): boolean {
  return stat.mountRoot ?? mountedByTable(fd);
}

// --- What /proc says

/**
 * A procfs that knows this process: the one on /proc, or where there is none (Bun goes on without) one that is mounted nowhere.
 * What merely looks like one is not believed: the root may be somebody else's.
 *
 * @throws SyscallError if there is neither.
 */
export function openProc(): number {
  const fd = openProcDirectory();
  if (fd !== undefined) return fd;
  const context = fsopen("proc", FSOPEN.CLOEXEC);
  try {
    fsconfig(context, FSCONFIG.CMD_CREATE, null, null);
    return fsmount(context, FSMOUNT.CLOEXEC, MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV | MOUNT_ATTR.NOEXEC);
  } finally {
    close(context);
  }
}

function openProcDirectory(): number | undefined {
  let fd: number;
  try {
    fd = open("/proc", O.PATH | O.DIRECTORY | O.CLOEXEC);
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ENOTDIR")) return undefined;
    throw error;
  }
  let isProc = false;
  try {
    isProc = fstatfs(fd).type === PROC_SUPER_MAGIC;
  } finally {
    if (!isProc) close(fd);
  }
  return isProc ? fd : undefined;
}

/** This process's mount table, from a procfs that is one, whatever lies on /proc. */
export function mountTable(proc: number): MountInfo[] {
  return parseMountInfo(readMountInfo("self/mountinfo", proc));
}

/** The path of a descriptor, from this process's root, in bytes. */
export function pathOf(proc: number, fd: number): Uint8Array {
  return readlinkat(proc, `self/fd/${fd}`);
}

function list(proc: number, path: string): string[] {
  const fd = openat(proc, path, O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  try {
    return readDirectory(fd);
  } finally {
    close(fd);
  }
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}

// --- Capabilities

export const sysAdmin: Check = {
  reason: "no-cap-sys-admin",
  metWhenNew: true,
  rulesOut: () =>
    hasCapability(CAP.SYS_ADMIN) ? undefined : `this process does not have CAP_SYS_ADMIN (${adviceFor("SYS_ADMIN")})`,
};

export const sysChroot: Check = {
  reason: "no-cap-sys-chroot",
  rulesOut: () =>
    hasCapability(CAP.SYS_CHROOT) ? undefined : `this process does not have CAP_SYS_CHROOT (${adviceFor("SYS_CHROOT")})`,
};

/** Who is root and does not have a capability is in a container, as a rule. */
function adviceFor(capability: "SYS_ADMIN" | "SYS_CHROOT"): string {
  const first = process.geteuid?.() === 0 ? `in a container: '--cap-add ${capability}'` : "be root";
  return `${first}, or take a user namespace: enterMountNamespace({ user: true }) in a program, 'mounttree run --user' as a command`;
}

// --- Whose namespace

export const notOwned =
  "this mount namespace belongs to another user namespace, in which this process has no capabilities (take a mount namespace together with the user namespace: 'unshare --user --map-root-user --mount')";

/** Whether a namespace of this process belongs to its own user namespace; undefined if that cannot be seen. */
export function ownsNamespace(proc: number, namespace: "mnt" | "net" | "pid"): boolean | undefined {
  let file = -1;
  let owner = -1;
  try {
    file = openat(proc, `self/ns/${namespace}`, O.RDONLY | O.CLOEXEC);
    owner = owningUserNamespace(file);
    const [theirs, ours] = [statx(owner, "", AT.EMPTY_PATH, 0), statx(proc, "self/ns/user", 0, 0)];
    return theirs.ino === ours.ino && theirs.devMinor === ours.devMinor;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    // An outer user namespace is not shown.
    return error.syscall === "ioctl" && error.code === "EPERM" ? false : undefined;
  } finally {
    for (const fd of [file, owner]) if (fd !== -1) close(fd);
  }
}

/**
 * A mount that was "/" in a mount namespace in which no other process lived then. Its unique ID is never used
 * again, and a mount never changes its namespace, so the ID stands for the namespace as well.
 */
let own: (Directory & { faultsOfChildren: number; root: boolean }) | undefined;

/**
 * Remembers that the mount which is "/" now is in a namespace of this process's own.
 *
 * Before Linux 6.8 an ID is used again as soon as its mount is gone. There a descriptor of "/" is kept, and with it the mount.
 *
 * @param root Whether it is the root of that namespace. Default: yes.
 */
export function rememberOwn({ stat }: Directory, root = true): void {
  forgetOwn();
  try {
    const fd = stat.mask & STATX.MNT_ID_UNIQUE ? -1 : open("/", O.PATH | O.CLOEXEC);
    own = { fd, stat, faultsOfChildren: faultsOfChildren(), root };
  } catch (error) {
    // No descriptor is free. Then it has to be found out again.
    if (!(error instanceof SyscallError)) throw error;
    own = undefined;
  }
}

/** What was remembered, if it takes a descriptor: after a switch that would lead out. */
export function forgetOwn(): void {
  if (own === undefined || own.fd === -1) return;
  if (isStillOpen(kernel, own)) closeQuietly(kernel, own.fd);
  own = undefined;
}

/** The descriptor that {@link rememberOwn} keeps; -1 if there is none. */
export function descriptorOfOwn(): number {
  return own?.fd ?? -1;
}

function isRememberedOwn({ stat }: Directory): boolean {
  return own !== undefined && own.stat.mountId === stat.mountId && (own.fd === -1 || isStillOpen(kernel, own));
}

/** Whether a descriptor is what it was: the program may have closed it, and its number may be another file's by now. */
export function isStillOpen(on: Kernel, { fd, stat }: Directory): boolean {
  try {
    return isSame(describe(on, fd).stat, stat);
  } catch (error) {
    if (error instanceof SyscallError) return false;
    throw error;
  }
}

/** What is done is done: a descriptor that cannot be closed is no reason to say that it failed. */
export function closeQuietly(on: Kernel, fd: number): void {
  try {
    on.close(fd);
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
  }
}

const ownNamespaceAdvice =
  "for one of its own call enterMountNamespace() first of all in the program, or start it by 'unshare --mount' directly in front of it: a launcher in between, such as npx or 'bun run', shares it";

export const ownNamespace: Check = {
  reason: "namespace-shared",
  metWhenNew: true,
  rulesOut(situation) {
    if (situation.sharedNamespace) return undefined;
    // From within, a namespace gets new inhabitants by fork(2) alone. Then we have children now, or had some that have ended.
    if (isRememberedOwn(situation.oldRoot) && !hasChildren() && own?.faultsOfChildren === faultsOfChildren()) return undefined;
    const inhabitant = otherInhabitant(situation.proc);
    return inhabitant && `the mount namespace is shared: ${inhabitant} (${ownNamespaceAdvice})`;
  },
};

/** Another process of this mount namespace, or one that might be in it, as a clause. */
function otherInhabitant(proc: number): string | undefined {
  const status = text(readFile("self/status", proc));
  // /proc may belong to another PID namespace than getpid(2): its own numbers are the ones that can be looked up in it.
  const self = /^Pid:\s*(\d+)/m.exec(status)?.[1] ?? "";
  const parent = /^PPid:\s*(\d+)/m.exec(status)?.[1] ?? "";
  const here: Inhabited = { proc, namespace: text(readlinkat(proc, "self/ns/mnt")), ids: undefined };
  // The likely ones first. Being process 1 oneself proves nothing: a PID namespace can be made without a mount namespace.
  const likely = [parent, "1"].filter((pid) => pid !== "0" && pid !== self);
  for (const pid of new Set([...likely, ...list(proc, ".").filter((name) => /^\d+$/.test(name) && name !== self)])) {
    const state = livesHere(here, pid);
    if (state === "yes") return `process ${pid} (${nameOf(proc, pid)}) lives in it too`;
    if (state === "unknown") return `whether process ${pid} lives in it cannot be seen`;
  }
  return undefined;
}

function nameOf(proc: number, pid: string): string {
  try {
    return text(readFile(`${pid}/comm`, proc)).trim();
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return "which has ended";
    throw error;
  }
}

interface Inhabited {
  readonly proc: number;
  readonly namespace: string;
  /** The IDs of this process's mounts, read when they are needed. */
  ids: Set<number> | undefined;
}

/** A process lives where any of its threads does: the first one may have left, or have ended before the others. */
function livesHere(here: Inhabited, pid: string): "yes" | "no" | "unknown" {
  let threads: string[];
  try {
    threads = list(here.proc, `${pid}/task`);
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return "no";
    throw error;
  }
  let answer: "no" | "unknown" = "no";
  for (const thread of threads) {
    const state = threadLivesHere(here, `${pid}/task/${thread}`);
    if (state === "yes") return "yes";
    if (state === "unknown") answer = "unknown";
  }
  return answer;
}

function threadLivesHere(here: Inhabited, task: string): "yes" | "no" | "unknown" {
  const { proc } = here;
  try {
    return text(readlinkat(proc, `${task}/ns/mnt`)) === here.namespace ? "yes" : "no";
  } catch (error) {
    // It has ended, or is a zombie and has no namespace any more.
    if (isRefusal(error, "ENOENT", "ESRCH")) return "no";
    if (!isRefusal(error, "EACCES", "EPERM")) throw error;
  }
  // Looking at the namespace takes the right to trace the process (ptrace(2)); reading its mount table does not.
  // A mount is in one namespace only, so one ID in common is enough.
  here.ids ??= new Set(mountTable(proc).map((mount) => mount.id));
  try {
    const mounts = parseMountInfo(readFile(`${task}/mountinfo`, proc));
    if (mounts.length === 0) return "unknown";
    return mounts.some((mount) => here.ids?.has(mount.id)) ? "yes" : "no";
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return "no";
    if (!(error instanceof SyscallError)) throw error;
    return isZombie(proc, task) ? "no" : "unknown";
  }
}

function isZombie(proc: number, task: string): boolean {
  try {
    return /^State:\s*[ZX]/m.test(text(readFile(`${task}/status`, proc)));
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return true;
    throw error;
  }
}

// --- Whose root

/** What the mount table and statmount(2) both tell of a mount. IDs of the two are not comparable. */
interface MountFacts {
  readonly id: bigint;
  readonly parentId: bigint;
  readonly shared: boolean;
}

interface Position {
  readonly mount: MountFacts;
  /** What it is mounted on; the mount itself for the absolute root; undefined where it is not to be seen. */
  readonly parent: MountFacts | undefined;
  /** Whether statmount(2) said so. */
  readonly exact: boolean;
}

/** Where the mount that a directory lies on hangs; undefined if it is not in this mount namespace. */
function positionOf(situation: Situation, { fd, stat }: Directory): Position | undefined {
  if ((stat.mask & STATX.MNT_ID_UNIQUE) === 0) return positionInTable(situation.proc, fd);
  let mount: MountFacts;
  try {
    mount = factsOf(situation, stat.mountId);
  } catch (error) {
    if (isRefusal(error, "ENOENT")) return undefined;
    // Docker's seccomp profile forbids statmount(2).
    if (isRefusal(error, "ENOSYS", "EPERM")) return positionInTable(situation.proc, fd);
    throw error;
  }
  try {
    return { mount, parent: factsOf(situation, mount.parentId), exact: true };
  } catch (error) {
    // What is not below this process's root is shown to the privileged only.
    if (isRefusal(error, "EPERM")) return { mount, parent: undefined, exact: true };
    throw error;
  }
}

/** What statmount(2) says of a mount, asked once for each. */
function factsOf({ kernel, mounts }: Situation, id: bigint): MountFacts {
  for (const known of mounts) if (known.id === id) return known;
  const { parentId, propagation } = kernel.statmount(id);
  const found = { id, parentId, shared: (propagation & MS.SHARED) !== 0 };
  mounts.push(found);
  return found;
}

function positionInTable(proc: number, fd: number): Position | undefined {
  const table = new Map(mountTable(proc).map((mount) => [mount.id, mount]));
  const mount = table.get(mountIdOf(fd));
  const parent = mount && table.get(mount.parentId);
  return mount && { mount: tableFacts(mount), parent: parent && tableFacts(parent), exact: false };
}

function tableFacts({ id, parentId, propagation }: MountInfo): MountFacts {
  return { id: BigInt(id), parentId: BigInt(parentId), shared: propagation.shared !== undefined };
}

export const attachedRoot: Check = {
  reason: "root-detached",
  metWhenNew: true,
  rulesOut: (situation) =>
    isMountRoot(situation.oldRoot) && positionOf(situation, situation.oldRoot) === undefined
      ? "this process's root is a detached tree, which is in no mount namespace"
      : undefined,
};

export const namespaceRoot: Check = {
  reason: "chrooted",
  rulesOut(situation) {
    const { oldRoot } = situation;
    if (!isMountRoot(oldRoot)) return "this process was chrooted: its root is a plain directory";
    if ((own?.root && isRememberedOwn(oldRoot)) || coversAbsoluteRoot(situation)) return undefined;
    // Exact, but it takes the start of a process, or a thread that has its root for itself.
    try {
      const isRoot = isSame(situation.newNamespace ? namespaceRootOf(situation) : statNamespaceRoot(), oldRoot.stat);
      return isRoot ? undefined : "this process was chrooted: its root is not the root of its mount namespace";
    } catch (error) {
      // Then nothing can be mounted either, which is the better answer.
      if (ownsNamespace(situation.proc, "mnt") === false) return { reason: "namespace-not-owned", message: notOwned };
      return `whether this process was chrooted cannot be seen: ${error instanceof Error ? error.message : error}`;
    }
  },
};

/**
 * statx(2) of the root of the mount namespace that this thread has just taken: setns(2) goes there, also if it is the namespace
 * that the thread is in; then it goes back. The thread must not share its root, which those that it started since then do.
 */
function namespaceRootOf({ kernel, proc, oldRoot, cwd }: Situation): Statx {
  const namespace = openat(proc, "thread-self/ns/mnt", O.RDONLY | O.CLOEXEC);
  try {
    unshare(CLONE.FS);
    setns(namespace, CLONE.NEWNS);
  } finally {
    close(namespace);
  }
  const found = kernel.statx(AT.FDCWD, "/", 0, identity);
  kernel.fchdir(oldRoot.fd);
  kernel.chroot(".");
  kernel.fchdir(cwd);
  return found;
}

/**
 * Whether the process's root mount is the absolute root of the namespace, or hangs on it with every other mount below: what a
 * namespace looks like after boot, after pivot_root(2), and as a copy of such a one. False also where that cannot be told.
 */
function coversAbsoluteRoot(situation: Situation): boolean {
  const { kernel, oldRoot } = situation;
  const position = positionOf(situation, oldRoot);
  // That a mount is its own parent, the table shows as well.
  if (position !== undefined && position.mount.id === position.mount.parentId) return true;
  if (position?.exact !== true || position.parent === undefined) return false;
  const { parent } = position;
  if (parent.parentId !== parent.id) return false;
  return kernel.countMounts(parent.id) === kernel.countMounts(LSMT_ROOT);
}

export const pivotableRoot: Check = {
  reason: "initramfs",
  rulesOut(situation) {
    const mount = positionOf(situation, situation.oldRoot)?.mount;
    return mount !== undefined && mount.id === mount.parentId
      ? "this process's root is the absolute root of its mount namespace (an initramfs), which cannot be pivoted"
      : undefined;
  },
};

// --- Shared mounts

const privateAdvice =
  "in a mount namespace of its own, which enterMountNamespace() and 'unshare --mount' make: 'mount --make-rprivate /'";

export const unsharedMounts: Check = {
  reason: "shared-mount",
  rulesOut(situation) {
    const { root, oldRoot, newNamespace } = situation;
    const from = positionOf(situation, oldRoot);
    // What is mounted on a shared mount appears on its peers, in other namespaces; undoing that takes more away than was added.
    if (from?.mount.shared) return `the mount at "/" is shared (${privateAdvice})`;
    if (from?.parent?.shared) {
      return 'the mount that "/" is mounted on is shared, and no path leads there (use the method "detached")';
    }
    // What lies below "/" is a slave then; and that the new root does, since "/" is the namespace's root, was checked before.
    if (newNamespace) return undefined;
    const to = positionOf(situation, root);
    if (to?.mount.shared) return `the mount that the new root lies on is shared (${privateAdvice})`;
    if (isMountRoot(root) && to?.parent?.shared) return `the mount that the new root is mounted on is shared (${privateAdvice})`;
    return undefined;
  },
};

/**
 * Whether what is mounted on a directory would appear in other namespaces. So it is, too, where that cannot be seen: the directory is
 * outside of this process's root.
 */
export function isOnSharedMount(fd: number): boolean {
  const { mask, mountId } = statx(fd, "", AT.EMPTY_PATH, identity);
  try {
    if (mask & STATX.MNT_ID_UNIQUE) return (statmount(mountId).propagation & MS.SHARED) !== 0;
  } catch (error) {
    if (!isRefusal(error, "ENOSYS", "EPERM")) throw error;
  }
  const id = mountIdOf(fd);
  const mount = findMount((listed) => listed.id === id);
  return mount === undefined || mount.propagation.shared !== undefined;
}

// --- Threads

/**
 * A thread whose root would not change with this thread's, as a clause; undefined if there is none.
 *
 * @throws SyscallError if it cannot be told.
 */
export function strayThread({ kernel, proc, root, oldRoot, cwd }: Situation): string | undefined {
  const self = String(process.pid);
  const threads = list(proc, "self/task");
  try {
    // Where /proc counts in another PID namespace than kcmp(2), its numbers mean nothing to it.
    if (threads.includes(self)) {
      return describeThread(
        proc,
        threads.find((thread) => thread !== self && !sharesFs(kernel, proc, Number(self), thread)),
      );
    }
  } catch (error) {
    // A seccomp filter (Docker's), or a kernel without kcmp(2).
    if (!isRefusal(error, "EPERM", "ENOSYS")) throw error;
  }
  // A thread that shares this one's working directory in two places shares its fs_struct, and so its root.
  try {
    for (const place of [oldRoot, root]) {
      kernel.fchdir(place.fd);
      const stray = threads.find((thread) => !isAt(kernel, proc, thread, place));
      if (stray !== undefined) return describeThread(proc, stray);
    }
    return undefined;
  } finally {
    kernel.fchdir(cwd);
  }
}

function sharesFs(kernel: Kernel, proc: number, self: number, thread: string): boolean {
  try {
    return kernel.sharesFs(self, Number(thread));
  } catch (error) {
    if (isRefusal(error, "ESRCH") && !exists(proc, `self/task/${thread}`)) return true;
    throw error;
  }
}

function isAt(kernel: Kernel, proc: number, thread: string, place: Directory): boolean {
  try {
    return isSame(kernel.statx(proc, `self/task/${thread}/cwd`, 0, identity), place.stat);
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return !exists(proc, `self/task/${thread}`);
    throw error;
  }
}

function exists(proc: number, path: string): boolean {
  try {
    close(openat(proc, path, O.PATH | O.CLOEXEC));
    return true;
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ESRCH")) return false;
    throw error;
  }
}

function describeThread(proc: number, thread: string | undefined): string | undefined {
  if (thread === undefined) return undefined;
  const name = text(readFile(`self/task/${thread}/comm`, proc)).trim();
  return `thread ${thread} (${name}) does not share this thread's root`;
}
