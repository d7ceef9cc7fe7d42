/**
 * Why the kernel refused a call: its answer is one number, which has up to nine causes. They are looked for one after the other,
 * after the failure and nowhere else; what cannot be told is called unknown, never guessed.
 */
import { describe, namespaceRoot, notOwned, openProc, ownsNamespace } from "./checks.ts";
import { getMounts, isBelow, type MountInfo, mountIdOf, parseMountInfo } from "./mountinfo.ts";
import type { Reason } from "./reasons.ts";
import {
  AT,
  CAP,
  CLONE,
  chroot,
  close,
  fsconfig,
  fsmount,
  fsopen,
  hasCapability,
  kernel,
  MS,
  mount,
  mount_setattr,
  move_mount,
  O,
  OPEN_TREE,
  open,
  open_tree,
  type PathLike,
  pathText,
  pivot_root,
  readFile,
  readlinkat,
  STATX,
  SyscallError,
  statmount,
  statx,
  tryExpire,
  UMOUNT,
  umount2,
  unshare,
} from "./syscalls.ts";

/** A path, or a descriptor. */
export type Place = PathLike | number;

/** What the call was given, as far as its error does not say. Default: the error's `path` and `dest`. */
export interface Call {
  /** What is mounted, moved, copied, or to become "/". */
  source?: Place | null;
  /** Where it goes: the mount point, or where pivot_root(2) puts the old root. */
  target?: Place;
  fsType?: string | null;
  /** Those of mount(2), open_tree(2) or unshare(2). */
  flags?: number;
}

/** A place that can be reached. */
export interface Placed {
  /** Its path from this process's root. */
  readonly path: string;
  /** The mount that it lies on, as the mount table counts. */
  readonly mountId: number;
  readonly mountRoot: boolean;
  readonly directory: boolean;
}

/** What the causes are found by. A test has recorded files in its place. */
export interface Evidence {
  /** A file of /proc or /sys. Undefined: there is none, or it may not be read. */
  file(path: string): string | undefined;
  /** Whether this process has a capability over its own user namespace. */
  capable(capability: number): boolean;
  /** The code of what the kernel answers to a call that it can only refuse; a filter answers before it looks at the arguments. */
  probe(syscall: string): string | undefined;
  place(place: Place): Placed | undefined;
  /** Whether a namespace of this process belongs to its own user namespace. Undefined: not to be seen. */
  owns(namespace: "mnt" | "net" | "pid"): boolean | undefined;
  /**
   * Whether a mount came from a more privileged mount namespace, so that it may not be moved or unmounted.
   *
   * @param mountId Which mount is meant, as the mount table counts. By its path another one may be found, or none, that hides it.
   */
  locked(place: Place, mountId?: number): boolean | undefined;
  /** Whether a place lies on a mount of this mount namespace, below this process's root or not. */
  inNamespace(place: Place): boolean | undefined;
  /** Whether the mount that "/" is mounted on is shared, which the mount table does not show. */
  parentOfRootShared(): boolean | undefined;
  chrooted(): boolean | undefined;
}

/** Why a call was refused: for programs, and for people. */
export interface Cause {
  readonly reason: Reason;
  readonly message: string;
}

/** A cause that cannot be seen itself: it is the one if all others are ruled out, and may not be told if one of them cannot be seen. */
interface LastCause extends Cause {
  readonly otherwiseUnseen: string;
}

/**
 * The same error with its cause: `reason` is set, and the message ends with it.
 *
 * @param error What was thrown. What is no refusal of a call that is known here, or says it all by its code, is given back as it is.
 * @param call What the call was given.
 */
export function explained(error: unknown, call: Call = {}): unknown {
  if (!(error instanceof SyscallError) || error.reason !== undefined || causesOf(error, call).length === 0) return error;
  const { syscall, errno, path, dest } = error;
  const held: number[] = [];
  try {
    const found = diagnose(error, call, evidenceOf(held));
    return found === undefined ? error : new SyscallError(syscall, -errno, path, dest, found);
  } catch (failure) {
    // What was refused is of more interest than that the cause could not be looked for.
    if (failure instanceof Error) return error;
    throw failure;
  } finally {
    for (const fd of held) close(fd);
  }
}

/** The cause of a refusal; undefined where the code of the error leaves nothing to be found. */
export function diagnose(error: SyscallError, call: Call, evidence: Evidence): Cause | undefined {
  const causes = causesOf(error, call);
  if (causes.length === 0) return undefined;
  // A mount(2) without a source has its target as the path.
  const targetIsPath = error.dest === undefined && error.syscall !== "pivot_root" && error.syscall !== "open_tree";
  const source = call.source === undefined ? (targetIsPath ? null : (error.path ?? null)) : call.source;
  const target = call.target ?? error.dest ?? error.path ?? "/";
  const table = evidence.file("/proc/self/mountinfo");
  const scene: Scene = {
    evidence,
    syscall: error.syscall,
    code: error.code,
    flags: call.flags ?? 0,
    fsType: call.fsType ?? null,
    source: source === null ? undefined : evidence.place(source),
    sourcePlace: source,
    target: evidence.place(target),
    targetPlace: target,
    root: evidence.place("/"),
    table: table === undefined ? undefined : parseMountInfo(table),
  };
  const ruledOut: string[] = [];
  const unseen: string[] = [];
  for (const cause of causes) {
    const verdict = cause(scene);
    if ("otherwiseUnseen" in verdict) {
      if (unseen.length === 0) return { reason: verdict.reason, message: verdict.message };
      unseen.push(verdict.otherwiseUnseen);
      continue;
    }
    if ("reason" in verdict) return verdict;
    if ("not" in verdict) ruledOut.push(verdict.not);
    else unseen.push(verdict.unseen);
  }
  const known = [
    ...(ruledOut.length > 0 ? [` (ruled out: ${ruledOut.join(", ")})`] : []),
    ...(unseen.length > 0 ? [` (not to be seen: ${unseen.join(", ")})`] : []),
  ];
  return { reason: "unknown", message: `the cause is not known${known.join("")}` };
}

/** What was asked of the kernel, and how things stand. */
interface Scene {
  readonly evidence: Evidence;
  readonly syscall: string;
  readonly code: string;
  readonly flags: number;
  readonly fsType: string | null;
  readonly source: Placed | undefined;
  readonly sourcePlace: Place | null;
  readonly target: Placed | undefined;
  readonly targetPlace: Place;
  readonly root: Placed | undefined;
  readonly table: readonly MountInfo[] | undefined;
}

/** Whether a cause applies. What does not, and what cannot be seen, is named for the message. */
type Verdict = Cause | LastCause | { readonly not: string } | { readonly unseen: string };
type Look = (scene: Scene) => Verdict;

/** What each refusal can come from, in the order in which it is looked for: first what is certain if it is found. */
function causesOf({ syscall, code, path }: SyscallError, { flags = 0, fsType = null }: Call): readonly Look[] {
  // Ubuntu lets a program make a user namespace, and then refuses it this.
  if (/^(open|write) (EPERM|EACCES)$/.test(`${syscall} ${code}`) && /^\/proc\/self\/(setgroups|[ug]id_map)$/.test(path ?? "")) {
    return [restrictedUserNamespace];
  }
  const user = syscall === "unshare" && (flags & CLONE.NEWUSER) !== 0;
  switch (`${syscall} ${code}`) {
    case "pivot_root EINVAL":
      return [
        rootNotMountPoint,
        rootDetached,
        sourceUnreachable,
        putOldOnShared,
        parentOfNewRootShared,
        parentOfRootShared,
        lockedSource,
        absoluteRoot,
        newRootNotMountPoint,
        putOldNotBelow,
      ];
    case "pivot_root EBUSY":
      return [newRootOnRootMount, putOldOnRootMount];
    case "mount EINVAL":
      return causesOfMountEinval(flags);
    case "mount ENODEV":
      return [unknownType];
    case "mount EBUSY":
      return [alreadyMounted];
    case "open_tree EINVAL":
      return [copyOfDetached, unbindableSource, sourceUnreachable, ...(flags & AT.RECURSIVE ? [] : [lockedBelow])];
    case "open_tree EPERM":
      return [missingSysAdmin, foreignMountNamespace, filtered, unbindableAndLocked, restrictedUserNamespace, securityModule];
    case "move_mount EINVAL":
      return [notSameKind, targetDetached];
    case "umount2 EINVAL":
      return [targetNotMountPoint, targetUnreachable, lockedTarget];
    case "mount_setattr EINVAL":
      return [targetNotMountPoint, targetUnreachable];
    case "chroot EPERM":
      return [missingSysChroot, filtered, restrictedUserNamespace, securityModule];
    case "unshare EPERM":
      return user
        ? [filtered, userNamespacesOff, unmappedUser, inChroot, restrictedUserNamespace, securityModule]
        : [missingSysAdmin, filtered, restrictedUserNamespace, securityModule];
    case "unshare EINVAL":
      return user ? [noUserNamespaces, severalThreads] : [];
    case "unshare ENOSPC":
      return user ? [tooManyUserNamespaces, ...(flags & CLONE.NEWNS ? [tooManyMountNamespaces] : [])] : [tooManyMountNamespaces];
    default:
  }
  const isMountCall = /^(pivot_root|mount|umount2|open_tree|move_mount|mount_setattr|fsopen|fsconfig|fsmount)$/.test(syscall);
  if (!isMountCall && !/^(chroot|unshare)$/.test(syscall)) return [];
  if (code === "ENOSYS") return [olderKernel, filtered];
  if (code === "EPERM") return [missingSysAdmin, foreignMountNamespace, filtered, ...causesOfMountEperm(syscall, flags, fsType)];
  // Where a path may not be looked up, too: the code alone says which of the two it is only where there is no such module.
  if (code === "EACCES") return [filtered, restrictedUserNamespace, securityModule];
  if (code === "ENOSPC") return [tooManyMounts];
  return [];
}

function causesOfMountEinval(flags: number): readonly Look[] {
  const propagation = MS.SHARED | MS.SLAVE | MS.PRIVATE | MS.UNBINDABLE;
  if (flags & MS.REMOUNT) return [targetNotMountPoint, targetUnreachable];
  if (flags & MS.BIND) {
    return [unbindableSource, rootDetached, sourceUnreachable, targetUnreachable, ...(flags & MS.REC ? [] : [lockedBelow])];
  }
  if (flags & propagation) return [targetNotMountPoint, rootDetached, targetUnreachable];
  if (flags & MS.MOVE) {
    const common = [sourceNotMountPoint, rootDetached, sourceUnreachable, targetUnreachable];
    return [...common, lockedSource, parentOfSourceShared, unbindableOntoShared, notSameKind];
  }
  return [rootDetached, targetUnreachable, ownOptions];
}

function causesOfMountEperm(syscall: string, flags: number, fsType: string | null): readonly Look[] {
  const isNew = syscall.startsWith("fs") || (syscall === "mount" && fsType !== null && (flags & (MS.BIND | MS.REMOUNT)) === 0);
  if (isNew)
    return [restrictedUserNamespace, foreignPidNamespace, foreignNetNamespace, coveredProc, privilegedFileSystem, securityModule];
  if (flags & MS.REMOUNT) return [lockedOptions, restrictedUserNamespace, securityModule];
  return [restrictedUserNamespace, securityModule];
}

// --- Privileges

const privilegeAdvice =
  "run it as root, or in a user namespace of its own: enterMountNamespace({ user: true }) in a program, --user for 'mounttree run'; in a container, start that with the capability";

function missingSysAdmin({ evidence }: Scene): Verdict {
  if (evidence.capable(CAP.SYS_ADMIN)) return { not: "a missing CAP_SYS_ADMIN" };
  const message = `this process does not have CAP_SYS_ADMIN in its user namespace (${privilegeAdvice})`;
  return { reason: "no-cap-sys-admin", message };
}

function missingSysChroot({ evidence }: Scene): Verdict {
  if (evidence.capable(CAP.SYS_CHROOT)) return { not: "a missing CAP_SYS_CHROOT" };
  const message = `this process does not have CAP_SYS_CHROOT in its user namespace (${privilegeAdvice})`;
  return { reason: "no-cap-sys-chroot", message };
}

/** Mounts are the business of the user namespace in which the mount namespace was made (user_namespaces(7)). */
function foreignMountNamespace({ evidence }: Scene): Verdict {
  const owns = evidence.owns("mnt");
  if (owns === undefined) return { unseen: "which user namespace the mount namespace belongs to" };
  if (owns) return { not: "a mount namespace of another user namespace" };
  return { reason: "namespace-not-owned", message: notOwned };
}

/** seccomp(2). A filter sees only numbers, so it refuses also what the kernel would refuse for its arguments, and with its own code. */
function filtered({ evidence, syscall, code }: Scene): Verdict {
  const mode = field(evidence.file("/proc/self/status"), "Seccomp");
  if (mode === "0") return { not: "a seccomp filter" };
  const answer = evidence.probe(syscall);
  if (answer !== undefined && answer !== code) {
    const not = "a seccomp filter for the whole call";
    // A filter's usual answer, which could also be one to these arguments alone; EACCES is not.
    return code === "EPERM" ? { unseen: "whether a seccomp filter refuses these arguments" } : { not };
  }
  if (mode === undefined || answer === undefined) return { unseen: "whether there is a seccomp filter" };
  // Several calls ask for CAP_SYS_ADMIN first, which a security module can refuse to who has it; a filter that lists all of them is rarer.
  const asking = ["pivot_root", "open_tree", "move_mount", "mount_setattr", "fsopen"];
  if (
    code === "EPERM" &&
    asking.includes(syscall) &&
    isEnforced(evidence) &&
    asking.every((each) => evidence.probe(each) === code)
  ) {
    return { unseen: "whether a seccomp filter or the security module refuses it" };
  }
  const message = `a seccomp filter forbids ${syscall}(2) (in a container the engine installed it: give it a profile that allows the call, for Docker and Podman '--security-opt seccomp=PROFILE.json', or 'unconfined')`;
  return { reason: "seccomp", message };
}

/** Ubuntu: a user namespace is made, but without capabilities in it, by way of a profile of this name. */
function restrictedUserNamespace({ evidence, syscall }: Scene): Verdict {
  const not = "kernel.apparmor_restrict_unprivileged_userns";
  if (evidence.file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")?.trim() !== "1") return { not };
  const { profile } = labelOf(evidence);
  const applies = syscall === "unshare" ? !evidence.capable(CAP.SYS_ADMIN) : profile === "unprivileged_userns";
  if (!applies) return { not };
  const message =
    "AppArmor gives no rights in user namespaces to programs without a profile that allows them: kernel.apparmor_restrict_unprivileged_userns is 1 (add a profile with 'userns,' for this program, or set the sysctl to 0)";
  return { reason: "apparmor-restrict-userns", message };
}

function labelOf(evidence: Evidence): { module: "apparmor" | "selinux" | undefined; profile: string; mode: string } {
  const label = evidence.file("/proc/self/attr/apparmor/current") ?? evidence.file("/proc/self/attr/current") ?? "";
  const text = label.replace(/[\0\n]+$/, "");
  const [, profile, mode] = /^(.+) \((\w+)\)$/.exec(text) ?? [];
  if (profile !== undefined && mode !== undefined) return { module: "apparmor", profile, mode };
  if (/^[^:]+:[^:]+:[^:]+/.test(text)) {
    const enforced = evidence.file("/sys/fs/selinux/enforce")?.trim();
    return { module: "selinux", profile: text, mode: enforced === "0" ? "permissive" : enforced === "1" ? "enforce" : "" };
  }
  return { module: undefined, profile: text, mode: "" };
}

function isEnforced(evidence: Evidence): boolean {
  return /^(enforce|kill|mixed)$/.test(labelOf(evidence).mode);
}

/** Last, by exclusion: neither AppArmor nor SELinux can be asked what it would say. */
function securityModule({ evidence, code, source, sourcePlace, fsType, flags }: Scene): Verdict {
  const { module, profile, mode } = labelOf(evidence);
  if (module === undefined) {
    const modules = evidence.file("/sys/kernel/security/lsm")?.trim();
    if (profile !== "" && profile !== "unconfined" && profile !== "_")
      return { unseen: `what the security module says of '${profile}'` };
    const others = modules?.split(",").filter((name) => /^(tomoyo|landlock|bpf|smack)$/.test(name)) ?? [];
    if (others.length > 0) return { unseen: `what these security modules say: ${others.join(", ")}` };
    return { not: "AppArmor and SELinux" };
  }
  if (!isEnforced(evidence)) {
    if (mode === "") return { unseen: "whether SELinux is enforced" };
    return { not: module === "apparmor" ? `AppArmor (profile '${profile}', ${mode})` : "SELinux (permissive)" };
  }
  const name = module === "apparmor" ? "AppArmor" : "SELinux";
  const subject = module === "apparmor" ? `profile '${profile}'` : `context '${profile}'`;
  // EACCES is also what a path that may not be searched gives, and a device that may not be opened so.
  const isLookUp = code === "EACCES" && sourcePlace !== null && source === undefined;
  const isDevice =
    code === "EACCES" && fsType !== null && (flags & (MS.BIND | MS.MOVE | MS.REMOUNT)) === 0 && sourcePlace !== null;
  if (isLookUp || (isDevice && typeof sourcePlace === "string" && sourcePlace.startsWith("/"))) {
    return { unseen: `whether ${name} refuses it (${subject})` };
  }
  const advice =
    module === "apparmor"
      ? "allow it in that profile, for Docker with '--security-opt apparmor=unconfined'"
      : "allow it in the policy, for Docker and Podman with '--security-opt label=disable'";
  return {
    reason: module,
    message: `${name} refuses it: ${subject} is enforced, and all else was ruled out (${advice})`,
    otherwiseUnseen: `whether ${name} refuses it (${subject})`,
  };
}

// --- User namespaces

/** Debian asks for CAP_SYS_ADMIN over the whole machine: over a user namespace is not enough. */
function userNamespacesOff({ evidence }: Scene): Verdict {
  const off = evidence.file("/proc/sys/kernel/unprivileged_userns_clone")?.trim() === "0";
  if (!off || (evidence.capable(CAP.SYS_ADMIN) && isInitialUserNamespace(evidence) !== false))
    return { not: "kernel.unprivileged_userns_clone" };
  const message =
    "user namespaces are for root only: kernel.unprivileged_userns_clone is 0 (set it: 'sysctl kernel.unprivileged_userns_clone=1')";
  return { reason: "userns-clone-disabled", message };
}

/** An ID that is not mapped here reads as the overflow ID, which may be mapped as well: then it cannot be told. */
function unmappedUser({ evidence }: Scene): Verdict {
  const status = evidence.file("/proc/self/status");
  for (const [name, key] of [
    ["uid", "Uid"],
    ["gid", "Gid"],
  ] as const) {
    const effective = Number(field(status, key)?.split(/\s+/)[1]);
    const map = evidence.file(`/proc/self/${name}_map`);
    if (map === undefined || Number.isNaN(effective)) return { unseen: `whether its ${name} is mapped` };
    const mapped = map
      .trim()
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.trim().split(/\s+/).map(Number))
      .some(([first = 0, , count = 0]) => effective >= first && effective < first + count);
    if (mapped) continue;
    const message = `this process's ${name} is not mapped in its user namespace (write /proc/<pid>/${name}_map from outside first)`;
    return { reason: "userns-unmapped", message };
  }
  return { not: "a user or group that is not mapped" };
}

function inChroot({ evidence }: Scene): Verdict {
  const chrooted = evidence.chrooted();
  if (chrooted === undefined) return { unseen: "whether this process was chrooted" };
  if (!chrooted) return { not: "a chroot" };
  const message =
    "this process was chrooted, or lives in a detached tree: no user namespace can be made there (make it before, or use pivot)";
  return { reason: "userns-in-chroot", message };
}

function noUserNamespaces({ evidence }: Scene): Verdict {
  if (evidence.file("/proc/self/uid_map") !== undefined) return { not: "a kernel without user namespaces" };
  // Without /proc, nothing of the kind can be read.
  if (evidence.file("/proc/self/status") === undefined) return { unseen: "whether the kernel has user namespaces" };
  return { reason: "no-user-namespaces", message: "this kernel was built without user namespaces (CONFIG_USER_NS)" };
}

function severalThreads({ evidence }: Scene): Verdict {
  const threads = Number(field(evidence.file("/proc/self/status"), "Threads"));
  if (Number.isNaN(threads)) return { unseen: "how many threads there are" };
  if (threads === 1) return { not: "several threads" };
  const message = `this process has ${threads} threads, and only one with a single thread can take a user namespace (start it in one: 'unshare --user --map-root-user --mount')`;
  return { reason: "userns-threads", message };
}

function tooManyUserNamespaces({ evidence, flags }: Scene): Verdict {
  const limit = evidence.file("/proc/sys/user/max_user_namespaces")?.trim();
  // With a mount namespace it could be that one's limit, but nothing is needed to tell where none is allowed at all.
  if ((flags & CLONE.NEWNS) !== 0 && limit !== "0") return { unseen: "how many user namespaces there are" };
  return {
    reason: "max-user-namespaces",
    message: `no more user namespaces are allowed: user.max_user_namespaces is ${limit ?? "not to be read"} here, an outer user namespace may allow fewer, and none can be more than 32 deep (raise it: 'sysctl user.max_user_namespaces=N')`,
  };
}

/** For a mount namespace alone nothing else is ENOSPC. */
function tooManyMountNamespaces({ evidence, flags }: Scene): Verdict {
  const limit = evidence.file("/proc/sys/user/max_mnt_namespaces")?.trim();
  if ((flags & CLONE.NEWUSER) !== 0 && limit !== "0") return { unseen: "how many mount namespaces there are" };
  return {
    reason: "max-mnt-namespaces",
    message: `no more mount namespaces are allowed: user.max_mnt_namespaces is ${limit ?? "not to be read"} here, and an outer user namespace may allow fewer (raise it: 'sysctl user.max_mnt_namespaces=N')`,
  };
}

// --- The kernel's version, and limits

function olderKernel({ evidence, syscall }: Scene): Verdict {
  const needs: Readonly<Record<string, string>> = {
    open_tree: "5.2",
    move_mount: "5.2",
    fsopen: "5.2",
    fsconfig: "5.2",
    fsmount: "5.2",
    mount_setattr: "5.12",
  };
  const needed = needs[syscall];
  const release = evidence.file("/proc/sys/kernel/osrelease")?.trim();
  if (release === undefined) return { unseen: "the kernel's version" };
  if (needed === undefined || !isOlder(release, needed)) return { not: `the kernel's version (${release})` };
  return { reason: "kernel-too-old", message: `${syscall}(2) needs Linux ${needed}, and this is ${release}` };
}

/** Whether a kernel, by the `osrelease` of proc_sys_kernel(5), came before a version. */
export function isOlder(release: string, needed: string): boolean {
  const [major = 0, minor = 0] = release.split(/[.-]/).map(Number);
  const [neededMajor = 0, neededMinor = 0] = needed.split(".").map(Number);
  return major < neededMajor || (major === neededMajor && minor < neededMinor);
}

function tooManyMounts({ evidence, table, source, syscall, flags, root }: Scene): Verdict {
  const limit = Number(evidence.file("/proc/sys/fs/mount-max")?.trim() ?? Number.NaN);
  if (table === undefined || Number.isNaN(limit)) return { unseen: "how many mounts there are, and may be (fs.mount-max)" };
  const isTree = syscall !== "mount" || (flags & MS.REC) !== 0;
  const copied = isTree && source !== undefined ? mountsBelow(table, source).filter((each) => !each.propagation.unbindable) : [];
  const more = copied.length + 1;
  // The one that "/" is mounted on is counted, and not listed.
  const top = table.find(({ id }) => id === root?.mountId);
  const hidden = top === undefined || table.some(({ id }) => id === top.parentId) ? 0 : 1;
  const count = table.length + hidden;
  if (count + more <= limit) return { not: `fs.mount-max (${count} mounts and ${more} more, of ${limit})` };
  const message = `there would be too many mounts in this namespace: ${count}, ${more} more, and fs.mount-max is ${limit} (unmount some, or raise it: 'sysctl fs.mount-max=N')`;
  return { reason: "mount-max", message };
}

// --- Where mounts are

function mountOf({ table }: Scene, placed: Placed | undefined): MountInfo | undefined {
  return placed && table?.find(({ id }) => id === placed.mountId);
}

function parentOf({ table }: Scene, mount: MountInfo | undefined): MountInfo | undefined {
  return mount && table?.find(({ id }) => id === mount.parentId);
}

/** The mounts below a place, what is stacked on its own mount excepted. */
export function mountsBelow(table: readonly MountInfo[], { path, mountId }: Placed): MountInfo[] {
  const inside = new Set([mountId]);
  // A mount can stand before the one that it is mounted on.
  for (let before = 0; before < inside.size; ) {
    before = inside.size;
    for (const { id, parentId, mountPoint } of table) {
      if (inside.has(parentId) && mountPoint !== path && isBelow(mountPoint, path)) inside.add(id);
    }
  }
  return table.filter(({ id }) => id !== mountId && inside.has(id));
}

function called(placed: Placed | undefined, place: Place | null): string {
  return `'${placed?.path ?? (typeof place === "number" || place === null ? place : pathText(place))}'`;
}

const noTable = { unseen: "the mount table" };
const notThere = { unseen: "the path, which cannot be opened" };

function rootNotMountPoint({ root }: Scene): Verdict {
  if (root === undefined) return notThere;
  if (root.mountRoot) return { not: '"/" being no mount' };
  const message =
    'this process\'s root is a plain directory: it was chrooted, and "/" has to be a mount (start it outside of the chroot, or use the method "detached")';
  return { reason: "root-not-mount-point", message };
}

function rootDetached(scene: Scene): Verdict {
  const { table, root } = scene;
  if (table === undefined) return noTable;
  if (root === undefined || mountOf(scene, root) !== undefined || !root.mountRoot) return { not: "a detached root" };
  const message =
    "this process's root is a detached tree, which is in no mount namespace (mount before it is entered, or attach to it with move_mount(2))";
  return { reason: "root-detached", message };
}

function sourceUnreachable(scene: Scene): Verdict {
  return unreachable(scene, scene.source, scene.sourcePlace, "source-unreachable");
}

function targetUnreachable(scene: Scene): Verdict {
  return unreachable(scene, scene.target, scene.targetPlace, "target-unreachable");
}

function unreachable(scene: Scene, placed: Placed | undefined, place: Place | null, reason: Reason): Verdict {
  if (scene.table === undefined) return noTable;
  if (placed === undefined || place === null) return notThere;
  if (mountOf(scene, placed) !== undefined) return { not: "a mount of another namespace" };
  // Not listed is also what is not below this process's root: that can be no new root, but mounted all the same.
  const isIn = scene.evidence.inNamespace(place);
  if (isIn === false) {
    const message = `${called(placed, place)} lies on a mount that is not in this mount namespace (use a path in it)`;
    return { reason, message };
  }
  if (scene.syscall === "pivot_root" && scene.root?.mountId !== placed.mountId) {
    return { reason, message: `${called(placed, place)} is not below this process's root, or not in this mount namespace` };
  }
  return isIn ? { not: "a mount of another namespace" } : { unseen: "whether its mount is in this namespace" };
}

/** Since Linux 6.15 a tree that is in no namespace can be copied. */
function copyOfDetached(scene: Scene): Verdict {
  const verdict = rootDetached(scene);
  const release = scene.evidence.file("/proc/sys/kernel/osrelease")?.trim();
  if (!("reason" in verdict) || release === undefined) return verdict;
  if (!isOlder(release, "6.15")) return { not: "a detached root" };
  const message = `this process's root is a detached tree, which can be copied since Linux 6.15 only, and this is ${release} (use the method "chroot")`;
  return { reason: "root-detached", message };
}

/** Since Linux 6.15 a tree can be attached to one that is in no namespace itself. */
function targetDetached(scene: Scene): Verdict {
  const release = scene.evidence.file("/proc/sys/kernel/osrelease")?.trim();
  if (release !== undefined && isOlder(release, "6.15")) return targetUnreachable(scene);
  return { unseen: "whether a tree may be attached there" };
}

const unshareAdvice = "make it private first, in a mount namespace of its own: 'mount --make-private'";

function putOldOnShared(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.target);
  if (mount === undefined) return { unseen: "whether the mount for the old root is shared" };
  if (mount.propagation.shared === undefined) return { not: "a shared mount for the old root" };
  const message = `the mount '${mount.mountPoint}', on which the old root would be put, is shared (${unshareAdvice})`;
  return { reason: "shared-mount", message };
}

function parentOfNewRootShared(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.source);
  const parent = parentOf(scene, mount);
  if (parent === undefined) return { unseen: "whether the mount below the new root is shared" };
  if (parent.propagation.shared === undefined) return { not: "a shared mount below the new root" };
  const message = `the mount '${parent.mountPoint}', on which the new root is mounted, is shared (${unshareAdvice})`;
  return { reason: "shared-mount", message };
}

function parentOfRootShared({ evidence }: Scene): Verdict {
  const shared = evidence.parentOfRootShared();
  if (shared === undefined) return { unseen: 'whether the mount that "/" is mounted on is shared' };
  if (!shared) return { not: 'a shared mount below "/"' };
  return {
    reason: "shared-mount",
    message: `the mount that "/" is mounted on is shared (${unshareAdvice}, outside of the chroot)`,
  };
}

const lockedAdvice =
  "it came along from a more privileged mount namespace: bind it over itself with 'mount --rbind', and use the copy";

function locked({ evidence }: Scene, placed: Placed | undefined, place: Place | null): Verdict {
  if (placed === undefined || place === null) return notThere;
  if (!placed.mountRoot) return { not: "a locked mount" };
  const isLocked = evidence.locked(place);
  if (isLocked === undefined) return { unseen: "whether the mount is locked" };
  if (!isLocked) return { not: "a locked mount" };
  return { reason: "mount-locked", message: `the mount ${called(placed, place)} is locked here (${lockedAdvice})` };
}

function lockedSource(scene: Scene): Verdict {
  return locked(scene, scene.source, scene.sourcePlace);
}

function lockedTarget(scene: Scene): Verdict {
  const verdict = locked(scene, scene.target, scene.targetPlace);
  if (!("message" in verdict)) return verdict;
  const message = `the mount ${called(scene.target, scene.targetPlace)} is locked here: it came along from a more privileged mount namespace, and cannot be unmounted (to change the root, use the method "pivot" or "detached", which need not unmount it)`;
  return { reason: "mount-locked", message };
}

function absoluteRoot(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.root);
  if (mount === undefined) return { unseen: 'what "/" is mounted on' };
  if (mount.id !== mount.parentId) return { not: "an initramfs" };
  const message = `this process's root is the absolute root of its mount namespace (${mount.fsType}, an initramfs), which cannot be pivoted (use the method "move")`;
  return { reason: "initramfs", message };
}

function newRootNotMountPoint({ source, sourcePlace }: Scene): Verdict {
  if (source === undefined) return notThere;
  if (source.mountRoot) return { not: "a new root that is no mount" };
  const message = `${called(source, sourcePlace)} is not a mount point (bind it over itself: 'mount --bind DIR DIR')`;
  return { reason: "new-root-not-mount-point", message };
}

function putOldNotBelow({ source, target, targetPlace }: Scene): Verdict {
  if (source === undefined || target === undefined) return notThere;
  if (isBelow(target.path, source.path)) return { not: "a place for the old root outside of the new one" };
  const message = `${called(target, targetPlace)}, where the old root is to be put, is not below the new root '${source.path}'`;
  return { reason: "put-old-not-below", message };
}

function newRootOnRootMount({ source, sourcePlace, root }: Scene): Verdict {
  if (source === undefined || root === undefined) return notThere;
  if (source.mountId !== root.mountId) return { not: 'a new root on the mount of "/"' };
  const message = `${called(source, sourcePlace)} lies on the same mount as "/" (bind it over itself: 'mount --bind DIR DIR')`;
  return { reason: "new-root-on-root-mount", message };
}

function putOldOnRootMount({ target, targetPlace, root }: Scene): Verdict {
  if (target === undefined || root === undefined) return notThere;
  if (target.mountId !== root.mountId) return { not: 'a place for the old root on the mount of "/"' };
  const message = `${called(target, targetPlace)}, where the old root is to be put, lies on the mount of "/" (choose a directory below the new root)`;
  return { reason: "put-old-on-root-mount", message };
}

function unbindableSource(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.source);
  if (mount === undefined) return { unseen: "whether its mount is unbindable" };
  if (!mount.propagation.unbindable) return { not: "an unbindable mount" };
  const message = `the mount '${mount.mountPoint}' is unbindable, so it cannot be copied ('mount --make-private' allows it)`;
  return { reason: "unbindable", message };
}

/** An unbindable mount is left out of a copy, but a locked one may not be. */
function unbindableAndLocked({ table, source, evidence }: Scene): Verdict {
  if (table === undefined) return noTable;
  if (source === undefined) return notThere;
  const below = mountsBelow(table, source).filter(({ propagation }) => propagation.unbindable);
  const found = below.find(({ id, mountPoint, mountPointBytes }) => evidence.locked(mountPointBytes ?? mountPoint, id) === true);
  if (found === undefined) return { not: "an unbindable mount that is locked" };
  const message = `the mount '${found.mountPoint}' below it is unbindable, so it cannot be copied, and locked here, so it cannot be left out`;
  return { reason: "unbindable", message };
}

/** A part of a locked tree cannot be copied without what covers it: that could show what was hidden. */
function lockedBelow(scene: Scene): Verdict {
  const { table, source, evidence } = scene;
  if (table === undefined) return noTable;
  if (source === undefined) return notThere;
  const below = mountsBelow(table, source);
  const found = below.find(({ id, mountPoint, mountPointBytes }) => evidence.locked(mountPointBytes ?? mountPoint, id) === true);
  if (found === undefined) return { not: "locked mounts below" };
  const message = `the mount '${found.mountPoint}' below it is locked here, and must be copied along (use a recursive bind: "rbind")`;
  return { reason: "locked-below", message };
}

function sourceNotMountPoint({ source, sourcePlace }: Scene): Verdict {
  if (source === undefined) return notThere;
  if (source.mountRoot) return { not: "a source that is no mount point" };
  return { reason: "not-mount-point", message: `${called(source, sourcePlace)} is not a mount point` };
}

function targetNotMountPoint({ target, targetPlace, syscall }: Scene): Verdict {
  if (target === undefined) return notThere;
  if (target.mountRoot) return { not: "a target that is no mount point" };
  if (target.path === "/") {
    const message =
      "this process's root is a plain directory: it was chrooted (start it outside of the chroot, or bind that directory over itself before the chroot)";
    return { reason: "not-mount-point", message };
  }
  if (syscall === "umount2")
    return { reason: "not-mount-point", message: `nothing is mounted on ${called(target, targetPlace)}` };
  return {
    reason: "not-mount-point",
    message: `${called(target, targetPlace)} is not a mount point (bind it over itself first)`,
  };
}

function parentOfSourceShared(scene: Scene): Verdict {
  const parent = parentOf(scene, mountOf(scene, scene.source));
  if (parent === undefined) return { unseen: "whether it is mounted on a shared mount" };
  if (parent.propagation.shared === undefined) return { not: "a mount on a shared one" };
  return {
    reason: "shared-mount",
    message: `what is mounted on a shared mount cannot be moved, and '${parent.mountPoint}' is one (${unshareAdvice})`,
  };
}

function unbindableOntoShared(scene: Scene): Verdict {
  const onto = mountOf(scene, scene.target);
  const { table, source } = scene;
  if (onto === undefined || table === undefined || source === undefined) return { unseen: "whether the target is shared" };
  const below = [mountOf(scene, source), ...mountsBelow(table, source)];
  const unbindable = below.find((mount) => mount?.propagation.unbindable);
  if (onto.propagation.shared === undefined || unbindable === undefined) return { not: "an unbindable mount on a shared one" };
  const message = `the mount '${unbindable.mountPoint}' is unbindable, and cannot be moved onto a shared mount, '${onto.mountPoint}'`;
  return { reason: "unbindable", message };
}

function notSameKind({ source, target, targetPlace }: Scene): Verdict {
  if (source === undefined || target === undefined) return notThere;
  if (source.directory === target.directory) return { not: "a directory on a file, or a file on a directory" };
  const kind = target.directory
    ? "a directory, and what is to be mounted there is none"
    : "no directory, as what is to be mounted there is";
  return { reason: "not-same-kind", message: `${called(target, targetPlace)} is ${kind}` };
}

/** Only the kernel's log says more, and not to everybody. */
function ownOptions(): Verdict {
  return { unseen: "whether the file system refused its options or its source (the kernel's log, dmesg(1), may say)" };
}

/** A type that the kernel has is listed, also if its module was loaded by this very call. */
function unknownType({ evidence, fsType }: Scene): Verdict {
  const known = evidence.file("/proc/filesystems")?.split(/\s/);
  if (fsType === null || known === undefined) return { unseen: "which file system types the kernel knows" };
  const [type = ""] = /^fuse(blk)?(?=\.)/.exec(fsType) ?? [fsType];
  if (known.includes(type)) return { not: "a file system type that the kernel does not know" };
  const message = `the kernel knows no file system type '${fsType}' (it is not in /proc/filesystems, and no module of that name could be loaded)`;
  return { reason: "fs-unknown", message };
}

function alreadyMounted(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.target);
  const source = scene.sourcePlace;
  if (mount === undefined || typeof source !== "string") return { unseen: "what is mounted there" };
  const same = scene.target?.mountRoot === true && mount.mountSource === source && mount.fsType === scene.fsType;
  if (!same || scene.flags & (MS.REMOUNT | MS.BIND | MS.MOVE)) return { not: "the same file system there already" };
  return { reason: "already-mounted", message: `'${source}' is mounted on ${called(scene.target, scene.targetPlace)} already` };
}

// --- File systems in a user namespace

function isInitialUserNamespace(evidence: Evidence): boolean | undefined {
  const map = evidence.file("/proc/self/uid_map");
  return map === undefined ? undefined : /^\s*0\s+0\s+4294967295\s*$/.test(map);
}

function foreignPidNamespace({ evidence, fsType }: Scene): Verdict {
  const not = "a PID namespace of another user namespace";
  if (fsType !== "proc") return { not };
  const owns = evidence.owns("pid");
  if (owns === undefined) return { unseen: "which user namespace the PID namespace belongs to" };
  if (owns) return { not };
  const message =
    "a procfs can be mounted only by who owns the PID namespace, and this one belongs to another user namespace (take both together: 'unshare --user --map-root-user --pid --fork', or bind the /proc that is there, whatever it shows)";
  return { reason: "pid-namespace-not-owned", message };
}

function foreignNetNamespace({ evidence, fsType }: Scene): Verdict {
  const not = "a network namespace of another user namespace";
  if (fsType !== "sysfs") return { not };
  const owns = evidence.owns("net");
  if (owns === undefined) return { unseen: "which user namespace the network namespace belongs to" };
  if (owns) return { not };
  const message =
    "a sysfs can be mounted only by who owns the network namespace, and this one belongs to another user namespace (take one as well: 'unshare --net', or bind the /sys that is there)";
  return { reason: "net-namespace-not-owned", message };
}

/** A new instance would show what is hidden under mounts on the one that is visible (`mount_too_revealing` in the kernel). */
function coveredProc({ evidence, fsType, table }: Scene): Verdict {
  if (fsType !== "proc" && fsType !== "sysfs") return { not: "a covered /proc" };
  const initial = isInitialUserNamespace(evidence);
  if (table === undefined || initial === undefined) return noTable;
  if (initial) return { not: "a covered /proc" };
  const instances = table.filter((mount) => mount.fsType === fsType && mount.root === "/");
  const isCovered = ({ id }: MountInfo): boolean => table.some((mount) => mount.parentId === id && mount.id !== id);
  const isReadOnly = ({ mountOptions }: MountInfo): boolean => /^ro(,|$)/.test(mountOptions);
  if (instances.some((mount) => !isCovered(mount) && !isReadOnly(mount))) return { not: `a covered ${fsType}` };
  const message = `in a user namespace a ${fsType} can be mounted only where a complete one is visible, and here parts of it are covered, as in a container, or it is read-only (bind the one that is there, or start the container with '--security-opt systempaths=unconfined')`;
  return { reason: "proc-covered", message };
}

function privilegedFileSystem({ evidence, fsType }: Scene): Verdict {
  const initial = isInitialUserNamespace(evidence);
  if (fsType === null || initial === undefined) return { unseen: "whether a user namespace may mount it" };
  if (initial) return { not: "a file system that no user namespace may mount" };
  const known = evidence.file("/proc/filesystems")?.split("\n");
  const type = fsType.replace(/\..*/s, "");
  // What needs a block device is for the real root alone, fuseblk excepted.
  if (known?.includes(`\t${type}`) && type !== "fuseblk") {
    const message = `a user namespace may not mount ${type} (mount it as the machine's root, and bind it)`;
    return { reason: "fs-not-in-userns", message };
  }
  if (/^(proc|sysfs|tmpfs|ramfs|devpts|mqueue|cgroup2?|fuse|overlay|bpf|binfmt_misc)$/.test(type)) {
    return { not: "a file system that no user namespace may mount" };
  }
  return { unseen: `whether a user namespace may mount ${type}` };
}

/**
 * Options of a mount that came from a more privileged namespace stay (mount_namespaces(7)). Those that were set here cannot be told
 * from them, but are no reason to refuse.
 */
function lockedOptions(scene: Scene): Verdict {
  const mount = mountOf(scene, scene.target);
  const initial = isInitialUserNamespace(scene.evidence);
  if (mount === undefined || initial === undefined) return { unseen: "whether its options are locked" };
  if (!initial && (scene.flags & MS.BIND) === 0) {
    return { unseen: "whether the file system itself may be changed from here (with 'bind' a remount changes this mount alone)" };
  }
  const flags = [
    ["ro", MS.RDONLY],
    ["nosuid", MS.NOSUID],
    ["nodev", MS.NODEV],
    ["noexec", MS.NOEXEC],
  ] as const;
  const options = mount.mountOptions.split(",");
  const dropped = flags.filter(([name, flag]) => options.includes(name) && (scene.flags & flag) === 0).map(([name]) => name);
  const changed = [...dropped, ...changedAccessTimes(options, scene.flags)];
  if (initial || changed.length === 0) return { not: "locked options" };
  const which = changed.length === 1 ? `the option ${changed[0]}` : `one or more of the options ${changed.join(", ")}`;
  const message = `${which} of this mount came along from a more privileged mount namespace, and cannot be changed (name them: 'remount,bind,${changed.join(",")}')`;
  return { reason: "locked-options", message };
}

/** How access times are kept now, where a remount would change that: without one of these flags it does not (mount(2)). */
function changedAccessTimes(options: readonly string[], flags: number): string[] {
  if ((flags & (MS.NOATIME | MS.NODIRATIME | MS.RELATIME | MS.STRICTATIME)) === 0) return [];
  const [now = "strictatime"] = options.filter((option) => option === "noatime" || option === "relatime");
  const then = flags & MS.STRICTATIME ? "strictatime" : flags & MS.NOATIME ? "noatime" : "relatime";
  const directories = options.includes("nodiratime");
  const changesDirectories = directories !== ((flags & MS.NODIRATIME) !== 0);
  return [...(now === then ? [] : [now]), ...(changesDirectories ? [directories ? "nodiratime" : "diratime"] : [])];
}

function field(status: string | undefined, name: string): string | undefined {
  return status === undefined ? undefined : new RegExp(`^${name}:\\s*(.*)$`, "m").exec(status)?.[1];
}

// --- What can be seen

/**
 * This machine, as it is now.
 *
 * @param held Gets the descriptors that the caller has to close afterwards.
 */
export function evidenceOf(held: number[]): Evidence {
  const proc = quietly(openProc);
  if (proc !== undefined) held.push(proc);
  const procFile = (path: string): string | undefined =>
    proc === undefined ? undefined : quietly(() => new TextDecoder().decode(readFile(path, proc)));
  return {
    file: (path) =>
      path.startsWith("/proc/") ? procFile(path.slice(6)) : quietly(() => new TextDecoder().decode(readFile(path))),
    capable: hasCapability,
    probe,
    place: (place) => {
      const fd = opened(place, held);
      if (fd === undefined || proc === undefined) return undefined;
      const { mode, mountRoot } = statx(fd, "", AT.EMPTY_PATH, STATX.BASIC_STATS);
      const path = pathText(readlinkat(proc, `self/fd/${fd}`));
      const mountId = mountIdOf(fd);
      const isThere = (): boolean => getMounts((mount) => mount.id === mountId && mount.mountPoint === path).length > 0;
      return { path, mountId, mountRoot: mountRoot ?? isThere(), directory: (mode & 0o170000) === 0o040000 };
    },
    owns: (namespace) => (proc === undefined ? undefined : ownsNamespace(proc, namespace)),
    locked: isLocked,
    inNamespace: (place) => {
      const fd = opened(place, held);
      if (fd === undefined) return undefined;
      const { mask, mountId } = statx(fd, "", AT.EMPTY_PATH, STATX.MNT_ID_UNIQUE);
      if ((mask & STATX.MNT_ID_UNIQUE) === 0) return undefined;
      const code = codeOf(() => statmount(mountId));
      return code === undefined ? true : code === "ENOENT" ? false : undefined;
    },
    parentOfRootShared: () => {
      const { mask, mountId } = statx(AT.FDCWD, "/", 0, STATX.MNT_ID_UNIQUE);
      if ((mask & STATX.MNT_ID_UNIQUE) === 0) return undefined;
      return quietly(() => (statmount(statmount(mountId).parentId).propagation & MS.SHARED) !== 0);
    },
    chrooted: () => {
      const fd = opened("/", held);
      if (fd === undefined || proc === undefined) return undefined;
      const oldRoot = describe(kernel, fd);
      const situation = { kernel, root: oldRoot, oldRoot, madeForThis: false, path: "/", cwd: fd, proc, mounts: [] };
      const found = namespaceRoot.rulesOut({ ...situation, sharedNamespace: false, newNamespace: false });
      if (found === undefined) return false;
      return typeof found === "string" && found.startsWith("this process was chrooted") ? true : undefined;
    },
  };
}

/** Undefined instead of a refusal: what cannot be seen is no evidence. */
function quietly<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (error instanceof SyscallError) return undefined;
    throw error;
  }
}

function opened(place: Place, held: number[]): number | undefined {
  if (typeof place === "number") return place;
  const fd = quietly(() => open(place, O.PATH | O.CLOEXEC | O.NONBLOCK));
  if (fd !== undefined) held.push(fd);
  return fd;
}

/**
 * To expire a mount that is in use never succeeds, but answers EINVAL if it is locked, and EBUSY if not. A descriptor is use enough.
 */
function isLocked(place: Place, mountId?: number): boolean | undefined {
  const held: number[] = [];
  const fd = opened(place, held);
  if (fd === undefined) return undefined;
  try {
    if (mountId !== undefined && mountIdOf(fd) !== mountId) return undefined;
    // umount2(2) takes the topmost mount, which is not in use. A path that was just looked up leads there; "." and descriptors need not.
    const covered = (): boolean => {
      const id = mountIdOf(fd);
      const mounts = getMounts((mount) => mount.id === id || mount.parentId === id);
      const point = mounts.find((mount) => mount.id === id)?.mountPoint;
      return point === undefined || mounts.some((mount) => mount.id !== id && mount.mountPoint === point);
    };
    if ((typeof place === "number" || place === ".") && quietly(covered) !== false) return undefined;
    const path = typeof place === "number" ? `/proc/self/fd/${place}` : place;
    const errno = tryExpire(path, typeof place === "number" ? 0 : UMOUNT.NOFOLLOW);
    const [EAGAIN, EBUSY, EINVAL] = [11, 16, 22];
    return errno === EINVAL ? true : errno === EBUSY || errno === EAGAIN ? false : undefined;
  } finally {
    for (const each of held) close(each);
  }
}

/** The code with which a call fails. */
function codeOf(call: () => void): string | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    if (error instanceof SyscallError) return error.code;
    throw error;
  }
}

/** Makes a call with arguments that no kernel accepts: an empty path, a descriptor of -1, a flag that there is not. */
function probe(syscall: string): string | undefined {
  const noFlag = 1;
  switch (syscall) {
    case "pivot_root":
      return codeOf(() => pivot_root("", ""));
    case "mount":
      return codeOf(() => mount(null, "", null, 0, null));
    case "umount2":
      return codeOf(() => umount2("", 0));
    case "open_tree":
      return codeOf(() => close(open_tree(-1, "", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.EMPTY_PATH)));
    case "move_mount":
      return codeOf(() => move_mount(-1, "", -1, "", 0));
    case "mount_setattr":
      return codeOf(() => mount_setattr(-1, "", AT.EMPTY_PATH, { propagation: MS.PRIVATE }));
    case "fsopen":
      return codeOf(() => close(fsopen("", 0)));
    case "fsconfig":
      return codeOf(() => fsconfig(-1, 0, null, null));
    case "fsmount":
      return codeOf(() => close(fsmount(-1, 0, 0)));
    case "chroot":
      return codeOf(() => chroot(""));
    case "unshare":
      return codeOf(() => unshare(noFlag));
    default:
      return undefined;
  }
}
