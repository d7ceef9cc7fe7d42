/**
 * Changing what a whole process sees as "/".
 *
 * Four methods, from the strongest to the weakest. Each is a list of checks, which look at whether it can be tried without
 * harm, and a list of steps, each with its undo. A method that fails is undone completely before the next one is tried.
 */
import {
  attachedRoot,
  type Check,
  closeQuietly,
  type Directory,
  describe,
  descriptorOfOwn,
  forgetOwn,
  isMountRoot,
  isSame,
  isStillOpen,
  leadsTo,
  mountTable,
  namespaceRoot,
  openProc,
  ownNamespace,
  pathOf,
  pivotableRoot,
  rememberOwn,
  type Situation,
  strayThread,
  sysAdmin,
  sysChroot,
  unsharedMounts,
} from "./checks.ts";
import { isInside, type Leak, openDirectories } from "./descriptors.ts";
import { type Call, explained } from "./diagnose.ts";
import { type MountInfo, mountIdOf } from "./mountinfo.ts";
import type { Reason } from "./reasons.ts";
import {
  AT,
  argumentError,
  chdir,
  checkOptions,
  isRefusal,
  type Kernel,
  kernel as linux,
  MNT,
  MOVE_MOUNT,
  MS,
  O,
  OPEN_TREE,
  type PathLike,
  pathText,
  RESOLVE,
  STATX,
  type Statx,
  SyscallError,
  toPath,
  UMOUNT,
} from "./syscalls.ts";

/** How a root can be changed, from the strongest method to the weakest. */
export type RootMethod = "pivot" | "move" | "detached" | "chroot";

/** Where pivot_root(2) puts the old root. */
export type PutOld = "stacked" | "directory";

export interface SwitchRootOptions {
  /** The methods that may be used. They are tried in this order, and the first that works is it. Default: all, the strongest first. */
  methods?: readonly RootMethod[];
  /**
   * Where pivot_root(2) puts the old root until it is unmounted: on the new root itself, or in a directory `.pivot_root*` that is
   * made in it and removed again; a process that is killed in between leaves it there, empty, and `checkRoot` names it. Default
   * `"stacked"`, which writes nothing.
   */
  putOld?: PutOld;
  /** Whether to pivot or move also in a mount namespace that other processes live in, whose root then changes as well. Default false. */
  sharedNamespace?: boolean;
  /**
   * What to do about open directories that lead out of the new root: `"keep"` them, `"report"` them in the result as well, or
   * `"refuse"` to switch. Default `"keep"`. A directory below `path` leads out, too, if the method enters a copy of the tree: `detached`
   * does, and `pivot` and `move` do unless `path` is a mount point.
   */
  descriptors?: "keep" | "report" | "refuse";
}

/**
 * Why a method was not used: what was found before it was tried; or why the kernel refused one of its steps, `"refused"` if nothing
 * more exact is known; or `"not-verified"` if "/" was not what it should have been afterwards. See docs/errors.md.
 */
export type RejectionReason = Exclude<Reason, "unknown">;

/** A method that was not used. */
export interface RejectedMethod {
  method: RootMethod;
  /** Why, for programs. */
  reason: RejectionReason;
  /** Why, for people. */
  message: string;
  /** What the kernel answered, if it was asked. */
  error?: SyscallError;
}

export interface SwitchRootResult {
  /** The method that was used. */
  method: RootMethod;
  /** The path that became "/", resolved, as it was called before. */
  root: string;
  /** Whether it had to be bind-mounted onto itself first. */
  bound: boolean;
  /** The methods that were ruled out or tried before. */
  rejected: RejectedMethod[];
  /** The open directories that lead out of the new root; there only with `descriptors: "report"`. */
  leaks?: Leak[];
}

/** The root was not changed; or it was, and then something failed that could not be undone. */
export class SwitchRootError extends Error {
  override readonly name = "SwitchRootError";
  /**
   * On which side the process is. False: the mount table, the working directory and what is in the path are as they were, but for
   * the modification time of the path with `putOld: "directory"`; and mounts below the old root that were shared are so no more if it
   * was the last of all, `"detach"`, that failed. True: undoing failed as well, or came too late, as it does if somebody removes the
   * new root meanwhile; the process should exit.
   */
  readonly switched: boolean;
  /** The step that failed. `"arguments"`, `"threads"`, `"checks"` and `"descriptors"` come before the steps of a method. */
  readonly phase: string;
  /** The code of the cause, if it has one: `"ENOENT"`. */
  declare readonly code?: string;
  /** Why: that of the method whose step failed or, if none was tried, of the first that was ruled out. */
  declare readonly reason?: RejectionReason;
  /** The method whose step failed. */
  declare readonly method?: RootMethod;
  /** What went wrong while undoing. */
  readonly suppressed: readonly unknown[];
  /** Every method that was ruled out or tried, the last one included. */
  readonly rejected: readonly RejectedMethod[];

  constructor(message: string, details: SwitchRootErrorDetails) {
    super(message, details.cause === undefined ? {} : { cause: details.cause });
    this.switched = details.switched ?? false;
    this.phase = details.phase;
    this.suppressed = details.suppressed ?? [];
    this.rejected = details.rejected ?? [];
    if (details.method !== undefined) this.method = details.method;
    if (details.cause instanceof SyscallError) this.code = details.cause.code;
    if (details.reason !== undefined) this.reason = details.reason;
  }
}

interface SwitchRootErrorDetails {
  phase: string;
  cause?: unknown;
  switched?: boolean;
  method?: RootMethod;
  reason?: RejectionReason | undefined;
  suppressed?: readonly unknown[];
  rejected?: readonly RejectedMethod[];
}

/** A switch on its way. */
export interface Switch extends Situation {
  /** The copy of the tree at `path` that is entered instead of it; -1 if there is none. */
  tree: number;
  copy: Directory | undefined;
  /** Whether that copy is, or will be, mounted on `path`. */
  bound: boolean;
  /** Whether the kernel has no open_tree(2), so that the path is bound by its name. */
  byName: boolean;
  /** Whether it has no mount_setattr(2), so that the copy is made private with mount(2), once it is entered. */
  privateLater: boolean;
  /** The directory that receives the old root. */
  putOld: string;
  /** The mounts that `move` leaves behind, those that may cover others first. */
  others: readonly MountInfo[];
  /** Whether something is done that cannot be undone. */
  final: boolean;
}

export interface Step {
  /** The `phase` of the error if this fails. */
  readonly phase: string;
  /** Whether it is needed at all. Default: yes. */
  when?(on: Switch): boolean;
  run(on: Switch): void;
  /** Puts back what `run` did. */
  undo?(on: Switch): void;
  /** What its system call is given, for who asks why it was refused. Default: the paths in the error. */
  call?(on: Switch): Call;
}

/** Steps that are needed together, or not at all. */
export interface Group {
  when(on: Switch): boolean;
  readonly steps: readonly Step[];
}

export interface Method {
  readonly checks: readonly Check[];
  readonly steps: readonly (Step | Group)[];
}

// --- The steps

/** The root that is entered: the copy, or what was at the path all along. */
function top(on: Switch): Directory {
  if (on.tree === -1) return on.root;
  return (on.copy ??= describe(on.kernel, on.tree));
}

const enterPath: Step = {
  phase: "enter",
  run: (on) => on.kernel.fchdir(on.root.fd),
  undo: (on) => on.kernel.fchdir(on.cwd),
};

/**
 * A locked mount (it came with a less privileged mount namespace) cannot be pivoted or moved, but a copy of it can. To expire a
 * mount that is in use, as this one is by now, never succeeds, but answers EINVAL if it is locked, and EBUSY if not.
 */
const probeLock: Step = {
  phase: "probe",
  when: (on) => !on.madeForThis,
  run: (on) => {
    on.bound = !isMountRoot(on.root);
    if (on.bound) return;
    // umount2(2) takes the topmost mount also of ".": one that somebody else has put there is not in use.
    if (!leadsTo(on.kernel, on.path, on.root)) throw new NotVerified(`'${pathText(on.path)}' has been mounted over`);
    const errno = on.kernel.tryExpire(".");
    if (errno === EINVAL) on.bound = true;
    else if (errno !== EBUSY) throw new SyscallError("umount2", errno, ".");
  },
};

/** Recursive, also because a part of a locked tree cannot be copied without what is mounted on it. */
const copyTree: Step = {
  phase: "open_tree",
  run: (on) => {
    on.tree = on.kernel.open_tree(on.root.fd, "", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | AT.EMPTY_PATH);
  },
  undo: closeTree,
  call: (on) => ({ source: on.root.fd, flags: AT.RECURSIVE }),
};

function closeTree(on: Switch): void {
  on.kernel.close(on.tree);
  on.tree = -1;
  on.copy = undefined;
}

/** The copy of a shared mount is its peer: mounts inside would appear on the host, and unmounts on the host inside. */
const makePrivate: Step = {
  phase: "mount_setattr",
  run: (on) => {
    try {
      on.kernel.mount_setattr(on.tree, "", AT.EMPTY_PATH | AT.RECURSIVE, { propagation: MS.PRIVATE });
    } catch (error) {
      if (!isRefusal(error, "ENOSYS")) throw error;
      on.privateLater = true;
    }
  },
  call: (on) => ({ target: on.tree }),
};

const enterTree: Step = {
  phase: "enter",
  run: (on) => on.kernel.fchdir(on.tree),
  undo: (on) => on.kernel.fchdir(on.cwd),
};

/** The copy is recursive also with what somebody has mounted on the path itself since it was opened: "/.." would lead there. */
const refuseCovered: Step = {
  phase: "covered",
  run: (on) => {
    if (!leadsTo(on.kernel, "..", top(on))) throw new NotVerified(`'${pathText(on.path)}' has been mounted over`);
  },
};

/** Linux before 5.12. */
const makePrivateLater: Step = {
  phase: "private",
  when: (on) => on.privateLater,
  run: (on) => on.kernel.mount(null, ".", null, MS.PRIVATE | MS.REC, null),
  call: () => ({ flags: MS.PRIVATE | MS.REC }),
};

/** `path` becomes a mount point, and its mount's root the working directory. */
const makeMountPoint: Group = {
  when: (on) => on.bound,
  steps: [
    {
      phase: "open_tree",
      run: (on) => {
        try {
          copyTree.run(on);
        } catch (error) {
          if (!isRefusal(error, "ENOSYS")) throw error;
          on.byName = true;
        }
      },
      undo: (on) => {
        if (!on.byName) closeTree(on);
      },
      call: (on) => ({ source: on.root.fd, flags: AT.RECURSIVE }),
    },
    { ...makePrivate, when: (on) => !on.byName },
    // The tree is mounted nowhere yet: nothing is above its root.
    { ...enterTree, when: (on) => !on.byName },
    { ...refuseCovered, when: (on) => !on.byName },
    {
      phase: "move_mount",
      when: (on) => !on.byName,
      run: (on) => on.kernel.move_mount(on.tree, "", on.root.fd, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH),
      // Not by its path, where by now somebody else's mount may lie.
      undo: detachTree,
      call: (on) => ({ source: on.root.fd, target: on.root.fd }),
    },
    {
      phase: "bind",
      when: (on) => on.byName,
      run: (on) => on.kernel.mount(on.path, on.path, null, MS.BIND | MS.REC, null),
      undo: (on) => {
        if (on.tree === -1) {
          // Nothing but the name is left, and that may be somebody else's by now.
          refuseElsewhere(on, on.kernel.statx(AT.FDCWD, on.path, 0, STATX.BASIC_STATS));
          on.kernel.umount2(on.path, MNT.DETACH);
          return;
        }
        detachTree(on);
        closeTree(on);
      },
      call: (on) => ({ source: on.root.fd, target: on.root.fd, flags: MS.BIND | MS.REC }),
    },
    {
      phase: "open",
      when: (on) => on.byName,
      run: (on) => {
        const fd = on.kernel.open(on.path, O.PATH | O.DIRECTORY | O.CLOEXEC);
        try {
          refuseElsewhere(on, describe(on.kernel, fd).stat);
        } catch (error) {
          on.kernel.close(fd);
          throw error;
        }
        on.tree = fd;
        on.privateLater = true;
      },
    },
    { ...enterTree, when: (on) => on.byName },
    makePrivateLater,
  ],
};

/** The bind mount of a directory is the same directory. */
function refuseElsewhere({ path, root }: Switch, { ino, devMajor, devMinor }: Statx): void {
  if (ino === root.stat.ino && devMajor === root.stat.devMajor && devMinor === root.stat.devMinor) return;
  throw new NotVerified(`'${pathText(path)}' leads elsewhere by now`);
}

function detachTree(on: Switch): void {
  // umount2(2) takes the topmost mount also of ".": one that somebody else has put on ours in the meantime.
  const id = mountIdOf(on.tree);
  const foreign = mountTable(on.proc).find(
    (mount, _, all) => mount.parentId === id && all.find((ours) => ours.id === id)?.mountPoint === mount.mountPoint,
  );
  if (foreign !== undefined) throw new Error(`'${foreign.mountPoint}' is mounted over; the bind mount below it was left there`);
  on.kernel.fchdir(on.tree);
  try {
    on.kernel.umount2(".", MNT.DETACH);
  } catch (error) {
    // Somebody has unmounted it already, with what it lay on.
    const isGone = isRefusal(error, "EINVAL") && mountTable(on.proc).every((mount) => mount.id !== id);
    if (!isGone) throw error;
  }
}

const makePutOld: Step = {
  phase: "mkdir",
  when: (on) => on.putOld !== ".",
  run: (on) => on.kernel.mkdirat(top(on).fd, on.putOld, 0o700),
  undo: (on) => on.kernel.unlinkat(top(on).fd, on.putOld, AT.REMOVEDIR),
};

/** The kernel gives every thread whose root or working directory was the old root the new one. */
const pivotRoot: Step = {
  phase: "pivot_root",
  run: (on) => on.kernel.pivot_root(".", on.putOld),
  // The exact inverse: each of the two mounts goes back to where it was.
  undo: (on) => {
    on.kernel.fchdir(on.oldRoot.fd);
    on.kernel.pivot_root(".", on.path.slice(1));
  },
};

const verify: Step = {
  phase: "verify",
  run: (on) => {
    if (!leadsTo(on.kernel, "/", top(on))) throw new NotVerified('"/" is not the directory that was entered');
  },
};

export class NotVerified extends Error {
  override readonly name = "NotVerified";
}

/** After `pivot_root(".", ".")`, "." is the new root on some kernels: what follows must not hit that one. */
const enterOldRoot: Step = {
  phase: "enter-old-root",
  run: (on) => on.kernel.fchdir(on.oldRoot.fd),
};

/**
 * Otherwise the host loses what is detached here. It cannot be undone: mounts that were shared below the old root stay slaves
 * (or private) if detaching, which cannot fail on a mount that is not locked, fails all the same.
 */
const stopPropagation: Step = {
  phase: "propagation",
  run: (on) => on.kernel.mount(null, ".", null, (on.putOld === "." ? MS.SLAVE : MS.PRIVATE) | MS.REC, null),
  call: () => ({ flags: MS.SLAVE | MS.REC }),
};

const detachOldRoot: Step = {
  phase: "detach",
  run: (on) => {
    on.kernel.umount2(".", MNT.DETACH);
    on.final = true;
  },
};

const removePutOld: Step = {
  phase: "rmdir",
  when: (on) => on.putOld !== ".",
  run: (on) => on.kernel.unlinkat(top(on).fd, on.putOld, AT.REMOVEDIR),
};

/** By Bun's own call in the end, so that `process.cwd()` knows. It could not be put back; where Bun will not be asked any more, it need not know. */
const arrive: Step = {
  phase: "chdir",
  run: (on) => {
    chdir("/");
    if (!leadsTo(on.kernel, ".", top(on))) throw new NotVerified("the working directory is not the new root");
    if (!on.newNamespace) on.kernel.chdir("/");
  },
};

const listOthers: Step = {
  phase: "list",
  run: (on) => {
    const table = mountTable(on.proc);
    const oldRoot = mountIdOf(on.oldRoot.fd);
    const newRoot = mountIdOf(top(on).fd);
    // It would have to be moved onto itself.
    const isThere = table.some(({ id, parentId, mountPoint }) => id === newRoot && parentId === oldRoot && mountPoint === "/");
    if (isThere) throw new NotVerified('the new root is mounted over "/" already');
    on.others = othersOf(table, oldRoot, newRoot);
    // A locked one would have to stay, and by then others are gone: better to find it now.
    for (const mount of on.others) refuseLocked(on.kernel, mount);
  },
};

/** The mounts that `move` would leave behind, those that may cover others first. */
export function othersOf(table: readonly MountInfo[], oldRoot: number, newRoot: number): MountInfo[] {
  const mounts = table.filter((mount) => mount.id !== newRoot && mount.id !== oldRoot);
  const points = new Map(mounts.map((mount) => [mount.id, mount.mountPoint]));
  const stacked = Map.groupBy(
    mounts.filter((mount) => points.get(mount.parentId) === mount.mountPoint),
    (mount) => mount.parentId,
  );
  // Only those that are mounted on the old root itself, with what is stacked on them: what lies below goes along.
  const stackOn = (mount: MountInfo): MountInfo[] => [mount, ...(stacked.get(mount.id) ?? []).flatMap(stackOn)];
  if (mounts.some((mount) => mount.parentId === oldRoot && mount.mountPoint === "/")) {
    // The new root would be mounted on that, and go when it goes.
    throw new NotVerified('something is mounted over "/"');
  }
  return mounts
    .filter((mount) => mount.parentId === oldRoot)
    .sort((one, other) => one.mountPoint.length - other.mountPoint.length)
    .flatMap(stackOn);
}

/** As {@link probeLock}, for a mount that can be seen: one that another covers is for {@link detachOthers} to meet. */
function refuseLocked(kernel: Kernel, { id, mountPoint, mountPointBytes }: MountInfo): void {
  const path = mountPointBytes ?? mountPoint;
  const isThere = (): boolean => {
    try {
      const { mask, mountId } = kernel.statx(AT.FDCWD, path, AT.SYMLINK_NOFOLLOW | AT.NO_AUTOMOUNT, STATX.MNT_ID);
      return (mask & STATX.MNT_ID) !== 0 && mountId === BigInt(id);
    } catch (error) {
      if (error instanceof SyscallError) return false;
      throw error;
    }
  };
  if (!isThere()) return;
  const errno = kernel.tryExpire(path, UMOUNT.NOFOLLOW);
  // Or somebody has unmounted it.
  if (errno !== 0 && errno !== EAGAIN && errno !== EBUSY && isThere()) throw new SyscallError("umount2", errno, pathText(path));
  // EAGAIN has marked the mount, to be unmounted the next time; that it is looked up takes the mark away.
  isThere();
}

const moveOntoRoot: Step = {
  phase: "move",
  run: (on) => on.kernel.mount(".", "/", null, MS.MOVE, null),
  undo: (on) => {
    on.kernel.fchdir(top(on).fd);
    on.kernel.mount(".", on.path, null, MS.MOVE, null);
  },
  call: () => ({ flags: MS.MOVE }),
};

const changeRoot: Step = {
  phase: "chroot",
  run: (on) => on.kernel.chroot("."),
  undo: (on) => {
    on.kernel.fchdir(on.oldRoot.fd);
    on.kernel.chroot(".");
  },
};

/** The old root lies below the new one for good, but what was mounted on it need not stay. Last, because it cannot be undone. */
const detachOthers: Step = {
  phase: "detach",
  run: (on) => {
    for (let { others } = on, attempt = 1; others.length > 0; attempt++) {
      const [first] = others;
      if (attempt > 100)
        throw new NotVerified(`'${first?.mountPoint}' is still mounted on the old root: it is renamed all the time`);
      // By descriptors, whose names are there.
      on.kernel.fchdir(on.proc);
      const found = others.map(({ mountPoint, mountPointBytes }) => detachFromOldRoot(on, mountPointBytes ?? mountPoint));
      others = found.every(Boolean) ? [] : leftOnOldRoot(on);
    }
  },
};

/** What is mounted on the old root by now: the table has it for who has that for "/", which lasts no longer than the look. */
function leftOnOldRoot(on: Switch): MountInfo[] {
  const newRoot = top(on);
  on.kernel.fchdir(on.oldRoot.fd);
  on.kernel.chroot(".");
  try {
    return othersOf(mountTable(on.proc), mountIdOf(on.oldRoot.fd), mountIdOf(newRoot.fd));
  } finally {
    on.kernel.fchdir(newRoot.fd);
    on.kernel.chroot(".");
  }
}

/** Whether it was there. Somebody can have unmounted it since it was listed, or renamed a directory above it. */
function detachFromOldRoot(on: Switch, mountPoint: string | Uint8Array): boolean {
  const mounted = openOnOldRoot(on, mountPoint);
  if (mounted === undefined) return false;
  try {
    const name = `self/fd/${mounted.fd}`;
    on.kernel.mount(null, name, null, MS.SLAVE | MS.REC, null);
    on.kernel.umount2(name, MNT.DETACH);
    on.final = true;
    return true;
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    const still = openOnOldRoot(on, mountPoint);
    if (still !== undefined) on.kernel.close(still.fd);
    const isGone = error.code === "EINVAL" && (still === undefined || !isSame(still.stat, mounted.stat));
    if (!isGone) throw new SyscallError(error.syscall, -error.errno, pathText(mountPoint));
    return false;
  } finally {
    on.kernel.close(mounted.fd);
  }
}

/** The root of what is mounted there, if anything is. */
function openOnOldRoot({ kernel, oldRoot, proc }: Switch, mountPoint: string | Uint8Array): Directory | undefined {
  const relative = typeof mountPoint === "string" ? mountPoint.slice(1) : mountPoint.subarray(1);
  const flags = O.PATH | O.NOFOLLOW | O.CLOEXEC;
  let fd: number;
  try {
    // A symlink could lead to what is mounted in the new root.
    fd = kernel.openat2(oldRoot.fd, relative, { flags, resolve: RESOLVE.NO_SYMLINKS });
  } catch (error) {
    if (isRefusal(error, "ENOENT", "ENOTDIR", "ELOOP")) return undefined;
    // Linux before 5.6, or a seccomp filter.
    if (!isRefusal(error, "ENOSYS", "EPERM")) throw error;
    kernel.fchdir(oldRoot.fd);
    fd = kernel.open(relative, flags);
    kernel.fchdir(proc);
  }
  let isMounted = false;
  try {
    const found = describe(kernel, fd);
    isMounted = found.stat.mountId !== oldRoot.stat.mountId && found.stat.mountRoot !== false;
    return isMounted ? found : undefined;
  } finally {
    if (!isMounted) kernel.close(fd);
  }
}

// --- The methods

export const methods: Readonly<Record<RootMethod, Method>> = {
  pivot: {
    checks: [sysAdmin, attachedRoot, ownNamespace, namespaceRoot, pivotableRoot, unsharedMounts],
    steps: [
      enterPath,
      probeLock,
      makeMountPoint,
      makePutOld,
      pivotRoot,
      verify,
      enterOldRoot,
      stopPropagation,
      detachOldRoot,
      arrive,
      removePutOld,
    ],
  },
  move: {
    checks: [sysAdmin, sysChroot, attachedRoot, ownNamespace, namespaceRoot, unsharedMounts],
    steps: [enterPath, probeLock, makeMountPoint, listOthers, moveOntoRoot, changeRoot, verify, detachOthers, arrive],
  },
  detached: {
    checks: [sysAdmin, sysChroot],
    steps: [copyTree, makePrivate, enterTree, refuseCovered, makePrivateLater, changeRoot, verify, arrive],
  },
  chroot: {
    checks: [sysChroot],
    steps: [enterPath, changeRoot, verify, arrive],
  },
};

// --- The switch

/** The detached tree that this process lives in. Closing it would end copies of what is in it; the next switch does. */
let livedIn: Directory | undefined;

/**
 * Changes what this process sees as "/", for every one of its threads.
 *
 * Afterwards "/" is `path`, the working directory is "/" (for `process.cwd()` as well), and no path that starts at either leads to
 * the old root. What was opened before stays open, and can lead out.
 *
 * Synchronous. Only the main thread can call it. Start the program with `unshare --mount` for the strongest method; without a mount
 * namespace of its own the process gets `detached`, and the host stays as it was.
 *
 * @param path The directory that becomes "/". Symlinks are followed.
 * @param options See {@link SwitchRootOptions}.
 * @returns Which method was used, and why the ones before it were not.
 * @throws {@link SwitchRootError} if no method works, if a thread would stay behind (it is named), or if `path` cannot be a root
 *   (`code` is then `ENOENT`, `ENOTDIR`, `EACCES`, or `EBUSY` for what is the root already). `TypeError` with
 *   `ERR_INVALID_ARG_TYPE` or `ERR_INVALID_ARG_VALUE` for a wrong argument, with `ERR_WORKER_UNSUPPORTED_OPERATION` in a Worker.
 *   `Error` with `ERR_UNSUPPORTED_PLATFORM` where there is no Linux on x86-64 or arm64.
 * @see pivot_root(2), chroot(2), open_tree(2), mount(2); Linux 5.2, for what older ones lack see the README.
 */
export function switchRoot(path: PathLike, options: SwitchRootOptions = {}): SwitchRootResult {
  return switchRootOn(linux, path, options);
}

/** {@link switchRoot}, on a kernel of the caller's choice. */
export function switchRootOn(kernel: Kernel, path: PathLike, options: SwitchRootOptions): SwitchRootResult {
  const { order, putOld, sharedNamespace, descriptors } = checkArguments(path, options);
  // No DisposableStack: to make the first one of a process takes longer than a switch.
  const held: number[] = [];
  try {
    const situation = look(kernel, path, undefined, sharedNamespace, held);
    refuseStrayThread(situation, path);
    const open = descriptors === "keep" ? [] : lookForDirectories(situation, path, held);
    // The tree that the process lives in stays open only after a chroot, see settle().
    const openAfter = (chosen: RootMethod) => open.filter(({ fd }) => chosen === "chroot" || fd !== livedIn?.fd);
    const { method, on, rejected } = useFirst(order, putOld, situation, path, (chosen) => {
      if (descriptors === "refuse") refuseLeaks(openAfter(chosen), chosen, situation, path);
    });
    const leaks = openAfter(method).filter(({ fd }) => !isInside(kernel, fd, top(on), situation.oldRoot));
    settle(method, on);
    const result = { method, root: pathText(on.path), bound: on.bound, rejected };
    return descriptors === "report" ? { ...result, leaks } : result;
  } finally {
    for (const fd of held) closeQuietly(kernel, fd);
  }
}

/** The directory that is to become "/" of one thread, see {@link switchRootOfThread}. */
export interface ThreadRoot {
  /** Its descriptor, opened in the thread's mount namespace; it stays open. */
  readonly fd: number;
  /** What to call it in messages. */
  readonly path: PathLike;
  /** Whether it is a mount that was made for this, and is not bound once more. */
  readonly madeForThis: boolean;
}

/**
 * {@link switchRoot} for a program that has put its main thread, and no other, into a mount namespace of its own, and will replace
 * itself with execve(2), at which the other threads end: they are left where they are. The working directory is not put back if
 * it fails.
 *
 * @returns The descriptors that are left open for the execve(2) to close.
 */
export function switchRootOfThread(root: ThreadRoot, methods: readonly RootMethod[], putOld: PutOld): number[] {
  const held: number[] = [];
  const { on } = useFirst(methods, putOld, look(linux, root.path, root, false, held), root.path);
  if (on.tree !== -1) held.push(on.tree);
  return held;
}

function lookForDirectories({ proc }: Situation, path: PathLike, held: readonly number[]): Leak[] {
  try {
    return openDirectories(proc, [...held, descriptorOfOwn()]);
  } catch (cause) {
    throw cannotLook(path, "descriptors", cause);
  }
}

function refuseLeaks(open: readonly Leak[], method: RootMethod, situation: Situation, path: PathLike): void {
  const { kernel, root, oldRoot } = situation;
  // A locked mount is bound over itself, see probeLock.
  const isBound = !isMountRoot(root) || kernel.tryExpire(situation.path) === EINVAL;
  const entersCopy = method === "detached" || (method !== "chroot" && isBound);
  const leaks = open.filter(({ fd }) => entersCopy || !isInside(kernel, fd, root, oldRoot));
  if (leaks.length === 0) return;
  const list = leaks.map((leak) => `${leak.fd} ('${leak.path}')`).join(", ");
  const message = `cannot switch the root to '${pathText(path)}': open directories would lead out of it: ${list}`;
  throw new SwitchRootError(message, { phase: "descriptors", method, reason: "open-descriptors" });
}

/** A method that worked. */
interface Used {
  method: RootMethod;
  on: Switch;
  rejected: RejectedMethod[];
}

/** Uses the first method that works. */
function useFirst(
  order: readonly RootMethod[],
  putOld: PutOld,
  situation: Situation,
  path: PathLike,
  beforeSteps?: (method: RootMethod) => void,
): Used {
  const rejected: RejectedMethod[] = [];
  let failure: Failure | undefined;
  for (const method of order) {
    const { checks, steps } = methods[method];
    const ruledOut = firstReason(checks, situation);
    if (ruledOut !== undefined) {
      rejected.push({ method, ...ruledOut });
      continue;
    }
    const on = newSwitch(situation, putOld);
    beforeSteps?.(method);
    const failed = take(steps, on);
    if (failed === undefined) return { method, on, rejected };
    failure = { ...failed, method };
    rejected.push(rejection(failure));
    if (on.final || failure.suppressed.length > 0) throw halfWay(path, failure, rejected);
  }
  throw noneLeft(path, failure, rejected);
}

/** A switch of which nothing is done yet. */
export function newSwitch(situation: Situation, putOld: PutOld): Switch {
  return {
    ...situation,
    tree: -1,
    copy: undefined,
    bound: false,
    byName: false,
    privateLater: false,
    putOld: putOld === "stacked" ? "." : temporaryName(),
    others: [],
    final: false,
  };
}

/** A step that failed, and what failed when the ones before it were taken back. */
interface Failure {
  method: RootMethod;
  phase: string;
  cause: unknown;
  suppressed: readonly unknown[];
}

function rejection({ method, phase, cause }: Failure): RejectedMethod {
  const reason = cause instanceof NotVerified ? "not-verified" : knownReason(cause);
  return { method, reason, message: `${phase}: ${messageOf(cause)}`, ...(cause instanceof SyscallError && { error: cause }) };
}

export function knownReason(cause: unknown): RejectionReason {
  const reason = cause instanceof SyscallError ? cause.reason : undefined;
  return reason === undefined || reason === "unknown" ? "refused" : reason;
}

function halfWay(path: PathLike, failure: Failure, rejected: readonly RejectedMethod[]): SwitchRootError {
  const { method, phase, cause } = failure;
  return new SwitchRootError(
    `switching the root to '${pathText(path)}' (${method}) failed half-way, and could not be undone; this process should exit: ${phase}: ${messageOf(cause)}`,
    { ...failure, switched: true, reason: rejected.at(-1)?.reason, rejected },
  );
}

function noneLeft(path: PathLike, failure: Failure | undefined, rejected: readonly RejectedMethod[]): SwitchRootError {
  // What rules out several methods is said once.
  const byMessage = [...Map.groupBy(rejected, ({ message }) => message)];
  const reasons = byMessage
    .map(([message, those]) => `${those.map(({ method }) => method).join(" and ")}: ${message}`)
    .join("; ");
  const main = rejected.find(({ method }) => method === failure?.method) ?? rejected[0];
  return new SwitchRootError(`cannot switch the root to '${pathText(path)}': ${reasons}`, {
    ...(failure ?? { phase: "checks", cause: main?.error }),
    reason: main?.reason,
    rejected,
  });
}

const temporary = ".pivot_root";

function temporaryName(): string {
  return `${temporary}${crypto.randomUUID().slice(0, 8)}`;
}

/** Whether a name is one for the directory that receives the old root, by this or by the Go original. */
export function isTemporaryName(name: string): boolean {
  return name.startsWith(temporary);
}

export function checkArguments(
  path: PathLike,
  options: SwitchRootOptions,
): Required<Omit<SwitchRootOptions, "methods">> & { order: readonly RootMethod[] } {
  toPath(path);
  if (!Bun.isMainThread) {
    throw argumentError(
      "ERR_WORKER_UNSUPPORTED_OPERATION",
      "switchRoot() changes the root of the whole process, and cannot be called in a Worker",
    );
  }
  checkOptions(options, ["methods", "putOld", "sharedNamespace", "descriptors"]);
  const { methods: order = ["pivot", "move", "detached", "chroot"], putOld = "stacked", sharedNamespace = false } = options;
  const { descriptors = "keep" } = options;
  if (!Array.isArray(order) || order.length === 0) {
    throw argumentError("ERR_INVALID_ARG_VALUE", "methods must be an array of at least one method");
  }
  if (typeof sharedNamespace !== "boolean") throw argumentError("ERR_INVALID_ARG_TYPE", "sharedNamespace must be a boolean");
  for (const method of order) {
    if (!Object.hasOwn(methods, method)) {
      throw argumentError("ERR_INVALID_ARG_VALUE", `'${method}' is no method; there are ${Object.keys(methods).join(", ")}`);
    }
  }
  if (putOld !== "stacked" && putOld !== "directory") {
    throw argumentError("ERR_INVALID_ARG_VALUE", `putOld must be "stacked" or "directory", not '${putOld}'`);
  }
  if (descriptors !== "keep" && descriptors !== "report" && descriptors !== "refuse") {
    throw argumentError("ERR_INVALID_ARG_VALUE", `descriptors must be "keep", "report" or "refuse", not '${descriptors}'`);
  }
  return { order, putOld, sharedNamespace, descriptors };
}

/** Opens everything once, before anything is changed; from here on only what is undone by name is looked up again. */
export function look(
  kernel: Kernel,
  path: PathLike,
  thread: ThreadRoot | undefined,
  sharedNamespace: boolean,
  held: number[],
): Situation {
  const flags = O.PATH | O.DIRECTORY | O.CLOEXEC;
  let phase = "threads";
  try {
    const proc = openProc();
    held.push(proc);
    phase = "arguments";
    const opened: ReturnType<typeof openRoot> = thread ?? openRoot(kernel, path, flags);
    if (thread === undefined) held.push(opened.fd);
    const root = describe(kernel, opened.fd);
    const oldRootFd = kernel.open("/", flags);
    held.push(oldRootFd);
    const oldRoot = describe(kernel, oldRootFd);
    if (isSame(root.stat, oldRoot.stat)) throw new SyscallError("switchRoot", EBUSY, pathText(path));
    let cwd = oldRootFd;
    if (thread === undefined) {
      cwd = kernel.open(".", flags);
      held.push(cwd);
    }
    return {
      kernel,
      root,
      madeForThis: thread?.madeForThis === true,
      path: opened.resolved ?? pathOf(proc, root.fd),
      oldRoot,
      cwd,
      proc,
      sharedNamespace,
      newNamespace: thread !== undefined,
      mounts: [],
    };
  } catch (cause) {
    throw cannotLook(path, phase, cause);
  }
}

function cannotLook(path: PathLike, phase: string, cause: unknown): unknown {
  if (!(cause instanceof SyscallError)) return cause;
  const why = phase === "threads" ? "the threads of this process cannot be looked at, since /proc is not mounted: " : "";
  // It is not the kernel that says so, see look().
  const what = cause.syscall === "switchRoot" ? "it is the root already" : cause.message;
  return new SwitchRootError(`cannot switch the root to '${pathText(path)}': ${why}${what}`, { phase, cause });
}

/** Whether a path is written as the kernel would write it, if there are no symlinks in it. */
function isResolved(path: PathLike): path is string {
  return typeof path === "string" && /^(\/(?!\.{0,2}(\/|$))[^/]+)+$/.test(path);
}

/** Opens the path. Where there is no symlink in it, it need not be asked where it led, which takes longer than to open it. */
function openRoot(kernel: Kernel, path: PathLike, flags: number): { fd: number; resolved?: string } {
  if (isResolved(path)) {
    try {
      return { fd: kernel.openat2(AT.FDCWD, path, { flags, resolve: RESOLVE.NO_SYMLINKS }), resolved: path };
    } catch (error) {
      // ELOOP is a symlink. The others are Linux before 5.6, or a seccomp filter.
      if (!isRefusal(error, "ELOOP", "ENOSYS", "EPERM")) throw error;
    }
  }
  return { fd: kernel.open(path, flags) };
}

const EAGAIN = 11;
const EBUSY = 16;
const EINVAL = 22;

function refuseStrayThread(situation: Situation, path: PathLike): void {
  const stray = findStrayThread(situation);
  if (stray === undefined) return;
  const { message, cause } = stray;
  const details = { phase: "threads", reason: "stray-thread", cause } as const;
  throw new SwitchRootError(`cannot switch the root to '${pathText(path)}': ${message}`, details);
}

/** A thread that would stay behind, or that might: what cannot be seen is not taken for granted. */
export function findStrayThread(situation: Situation): { message: string; cause?: unknown } | undefined {
  try {
    const message = strayThread(situation);
    return message === undefined ? undefined : { message };
  } catch (cause) {
    return { message: `whether all threads share this one's root cannot be seen: ${messageOf(cause)}`, cause };
  }
}

export function firstReason(checks: readonly Check[], situation: Situation): Omit<RejectedMethod, "method"> | undefined {
  for (const check of checks) {
    if (situation.newNamespace && check.metWhenNew) continue;
    try {
      const found = check.rulesOut(situation);
      if (found !== undefined) return typeof found === "string" ? { reason: check.reason, message: found } : found;
    } catch (error) {
      // What cannot be seen is not taken for granted.
      const message = `whether it would be safe cannot be seen: ${messageOf(error)}`;
      return { reason: check.reason, message, ...(error instanceof SyscallError && { error }) };
    }
  }
  return undefined;
}

/** Takes the steps; if one fails, takes all before it back. Undefined if none failed. */
function take(steps: readonly (Step | Group)[], on: Switch, taken: Step[] = []): Omit<Failure, "method"> | undefined {
  for (const step of steps) {
    if (step.when?.(on) === false) continue;
    if ("steps" in step) {
      const failed = take(step.steps, on, taken);
      if (failed !== undefined) return failed;
      continue;
    }
    try {
      step.run(on);
      taken.push(step);
    } catch (error) {
      // Before anything is taken back: what is looked for is how things are now.
      const cause = explained(error, step.call?.(on));
      return { phase: step.phase, cause, suppressed: on.final ? [] : undo(taken, on) };
    }
  }
  return undefined;
}

/**
 * Stops at the first failure, which a DisposableStack would not: after a pivot that could not be taken back, the undo of the bind
 * mount would unmount the new root.
 */
function undo(taken: readonly Step[], on: Switch): unknown[] {
  for (const step of taken.toReversed()) {
    try {
      step.undo?.(on);
    } catch (error) {
      return [error];
    }
  }
  return [];
}

function settle(method: RootMethod, on: Switch): void {
  // The descriptors that are kept lead out of the new root.
  forgetOwn();
  if (method === "pivot" || method === "move") {
    if (!on.sharedNamespace) rememberOwn(top(on));
    if (on.tree !== -1) closeQuietly(on.kernel, on.tree);
  }
  // A chroot may well be inside the tree that the process lives in.
  if (method === "chroot") return;
  if (livedIn !== undefined && isStillOpen(on.kernel, livedIn)) closeQuietly(on.kernel, livedIn.fd);
  livedIn = method === "detached" ? top(on) : undefined;
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
