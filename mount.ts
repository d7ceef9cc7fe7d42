/**
 * Changing the mount table: mounting and unmounting, propagation, read-only trees.
 *
 * A second call on a new mount goes through a descriptor that was opened after it was mounted: by name it could reach
 * a mount that someone else has put there since.
 */
import { type Call, explained } from "./diagnose.ts";
import {
  findMount,
  getMounts,
  isBelow,
  type MountInfo,
  mounted,
  mountedByOpenat2,
  mountedByTable,
  mountIdOf,
  mountOf,
  mountOfDescriptor,
  withDescriptor,
} from "./mountinfo.ts";
import {
  accessTimes,
  flagOptions,
  type ParsedMountOptions,
  type PropagationMode,
  parseMountOptions,
  perFileSystem,
  perMount,
  propagationTypes,
} from "./mountoptions.ts";
import {
  AT,
  argumentError,
  checkOptions,
  close,
  fstatfs,
  isRefusal,
  MNT,
  MOUNT_ATTR,
  MOVE_MOUNT,
  MS,
  mount_setattr,
  mount as mountSyscall,
  move_mount,
  O,
  OPEN_TREE,
  open,
  open_tree,
  type PathLike,
  PROC_SUPER_MAGIC,
  pathText,
  readlinkat,
  SyscallError,
  statx,
  UMOUNT,
  umount2,
} from "./syscalls.ts";

export { mergeTmpfsOptions, type ParsedMountOptions, type PropagationMode, parseMountOptions } from "./mountoptions.ts";

// --- Mounting

/**
 * Mounts as `mount -t fsType -o options source target` does.
 *
 * What takes several calls of mount(2): a bind with options of its own, such as `bind,ro` (the kernel ignores them in the
 * first call, so the new mount is writable for a moment; {@link setReadOnly} with `recursive` for what `rbind` brings along);
 * propagation, in the order given; both need /proc. If a later one fails, what was mounted is unmounted again. A bind
 * keeps the options that its source's mount has, unless one is taken away by name (`bind,suid`), and ignores those that
 * belong to a file system (`sync`, `size=`).
 *
 * `remount` keeps the options it does not name; with `bind` it changes the mount alone, without it also the file system,
 * wherever else that is mounted. Options of the file system are passed on as given. Only propagation, and neither a source
 * nor a type (null or `"none"`): an existing mount is changed. In both cases nothing is undone.
 *
 * @param source What is mounted: a device, a directory or file to bind, or what the file system makes of it. Null: nothing.
 * @param target Where. Symlinks are followed.
 * @param fsType The file system's type, `"fuse.sshfs"` with its subtype; ignored for a bind. Null: none, for a bind and a change only.
 * @param options As {@link parseMountOptions} reads them. Default: none.
 * @throws SyscallError as mount(2); then nothing is mounted. `ENOENT` before anything is mounted if more than one call is needed and
 *   /proc is not mounted. `SuppressedError` if undoing failed as well: `error` says why, `suppressed` is the first failure.
 *   TypeError as {@link parseMountOptions}, before anything is mounted; and for a bind with options for the file system, which mount(8) and
 *   the kernel ignore, for a bind without a source, and where a type is needed and there is none.
 * @see mount(2), mount(8).
 */
export function mount(source: PathLike | null, target: PathLike, fsType: string | null, options = ""): void {
  const parsed = parseMountOptions(options);
  const { flags, clear, propagation, data } = parsed;
  if (flags & MS.REMOUNT) {
    remount(target, parsed);
    return;
  }
  if (flags & MS.BIND && data !== "") {
    throw argumentError(
      "ERR_INVALID_ARG_VALUE",
      `'${data}' is nothing that a bind mount can be given, and would be ignored (read-only is "ro")`,
    );
  }
  if (flags & MS.BIND && source === null) throw argumentError("ERR_INVALID_ARG_VALUE", "a source is needed, to be bound");
  const unnamed = (source === null || source === "none") && (fsType === null || fsType === "none");
  if (propagation.length > 0 && unnamed && (flags & ~MS.SILENT) === 0 && data === "") {
    for (const type of propagation) mountOrExplain(null, target, null, type, null);
    return;
  }
  if (fsType === null && (flags & MS.BIND) === 0) {
    throw argumentError("ERR_INVALID_ARG_VALUE", 'a type is needed, or an option such as "bind"');
  }
  const attributes = (flags & MS.BIND) !== 0 && ((flags | clear) & perMount) !== 0;
  const several = attributes || propagation.length > 0;
  if (several) requireProc();
  mountOrExplain(source, target, fsType, flags, data === "" ? null : data);
  if (!several) return;

  const fd = attempt(
    () => open(target, O.PATH | O.CLOEXEC),
    // Nothing but the name is left. Without MNT_DETACH this takes no more than one mount.
    () => umount2(target, 0),
  );
  try {
    attempt(
      () => {
        if (attributes) alter(fd, target, MS.REMOUNT | MS.BIND | changed(attributesOf(fd), flags & perMount, clear));
        for (const type of propagation) alter(fd, target, type);
      },
      () => unmountDescriptor(fd, target),
    );
  } finally {
    close(fd);
  }
}

/** mount(2); if it is refused, the error says why. */
function mountOrExplain(...[source, target, fsType, flags, data]: Parameters<typeof mountSyscall>): void {
  orExplain(
    () => mountSyscall(source, target, fsType, flags, data),
    () => ({ source, target, fsType, flags }),
  );
}

function orExplain(action: () => void, call: () => Call): void {
  try {
    action();
  } catch (error) {
    throw explained(error, call());
  }
}

function remount(target: PathLike, { flags, clear, propagation, data }: ParsedMountOptions): void {
  requireProc();
  withDescriptor(target, (fd) => {
    const kept = flags & MS.BIND ? attributesOf(fd) : attributesOf(fd) | fileSystemFlagsOf(fd);
    alter(fd, target, changed(kept, flags, clear), data === "" ? null : data);
    for (const type of propagation) alter(fd, target, type);
  });
}

/** The flags after a change, access times always among them: without one of those the kernel would keep what was. */
function changed(kept: number, set: number, clear: number): number {
  const flags = (kept & ~clear) | set;
  return flags & accessTimes ? flags : flags | MS.RELATIME;
}

/** mount(2) on exactly the mount that the descriptor is on, whatever is mounted over it. */
function alter(fd: number, target: PathLike, flags: number, data: string | null = null): void {
  try {
    mountSyscall(null, descriptorPath(fd), null, flags, data);
  } catch (error) {
    throw explained(withPath(error, target), { source: null, target: fd, flags });
  }
}

/** The same error about the path that the caller knows, who knows nothing of the descriptor. */
function withPath(error: unknown, path: PathLike): unknown {
  return error instanceof SyscallError ? new SyscallError(error.syscall, -error.errno, pathText(path)) : error;
}

/** The mount's own flags, as mount(2) has them. */
function attributesOf(fd: number): number {
  const { flags, attributes } = writableAttributesOf(fd);
  // statfs(2) says so too when only the file system is; made the mount's own, it would outlast that.
  return flags & MS.RDONLY && isReadOnly(mountOfDescriptor(fd)?.mountOptions ?? "ro") ? attributes | MS.RDONLY : attributes;
}

/** What fstatfs(2) says, and what of it are the mount's own flags, `MS.RDONLY` left out. */
function writableAttributesOf(fd: number): { flags: number; attributes: number } {
  // Numbers that statfs(2) has otherwise.
  const ST_RELATIME = 0x1000;
  const ST_NOSYMFOLLOW = 0x2000;
  const { flags } = fstatfs(fd);
  let attributes = flags & (MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.NOATIME | MS.NODIRATIME);
  if (flags & ST_NOSYMFOLLOW) attributes |= MS.NOSYMFOLLOW;
  if (flags & ST_RELATIME) attributes |= MS.RELATIME;
  else if ((flags & MS.NOATIME) === 0) attributes |= MS.STRICTATIME;
  return { flags, attributes };
}

function fileSystemFlagsOf(fd: number): number {
  let flags = 0;
  // Only the words are looked at: the rest is the file system's, and can be longer than what may be passed.
  for (const option of mountOfDescriptor(fd)?.superOptions.split(",") ?? []) flags |= flagOptions.get(option)?.[0] ?? 0;
  return flags & perFileSystem;
}

function isReadOnly(options: string): boolean {
  return options === "ro" || options.startsWith("ro,");
}

/** Unmounts what was mounted a moment ago, and nothing else. */
function unmountDescriptor(fd: number, target: PathLike): void {
  const mount = mountOfDescriptor(fd);
  // From the descriptor's mount, umount2(2) goes on to the topmost that is stacked over it; so it does from ".".
  const stacked = (other: MountInfo): boolean => other.parentId === mount?.id && other.mountPoint === mount.mountPoint;
  if (findMount(stacked) !== undefined) throw new SyscallError("umount2", EBUSY, pathText(target));
  // Private first: what a recursive bind brought along is of one peer group with the originals, and those would go as well.
  alter(fd, target, MS.PRIVATE | MS.REC);
  // The descriptor itself keeps the mount busy.
  umount2(descriptorPath(fd), MNT.DETACH);
}

/** Does a thing, or undoes what was before it. */
function attempt<T>(action: () => T, undo: () => void): T {
  try {
    return action();
  } catch (error) {
    try {
      undo();
    } catch (undoError) {
      throw new SuppressedError(undoError, error);
    }
    throw error;
  }
}

const ENOENT = 2;
const EBUSY = 16;

/** Names in /proc/self/fd are believed only if they are the kernel's: a foreign root could have files of these names. */
function requireProc(): void {
  const directory = "/proc/self/fd";
  const isProc = withDescriptor(directory, (fd) => fstatfs(fd).type === PROC_SUPER_MAGIC);
  if (!isProc) throw new SyscallError("mount", ENOENT, directory);
}

function descriptorPath(fd: number): string {
  return `/proc/self/fd/${fd}`;
}

/**
 * Makes a directory or a file a mount point by binding it over itself, with what is mounted below it; the new mounts are private.
 *
 * Prepared as a detached tree and attached by descriptor, so that nothing has to be undone by name. On kernels without
 * these calls (before Linux 5.12), and there only, it needs /proc.
 *
 * @param path The directory or file. Symlinks are followed.
 * @returns True if it was bound, false if it was a mount point already.
 * @throws SyscallError if there is no such path, or as open_tree(2), move_mount(2) and mount(2); then nothing is mounted.
 * @see open_tree(2), mount_setattr(2), move_mount(2).
 */
export function makeMountPoint(path: PathLike): boolean {
  return withDescriptor(path, (fd) => {
    const { mountRoot } = statx(fd, "", AT.EMPTY_PATH, 0);
    if (mountRoot ?? mountedByOpenat2(fd) ?? mountedByTable(fd)) return false;
    try {
      bindByDescriptor(fd, path);
    } catch (error) {
      if (!isRefusal(error, "ENOSYS")) throw error;
      bindByName(fd, path);
    }
    return true;
  });
}

function bindByDescriptor(fd: number, path: PathLike): void {
  let tree = -1;
  try {
    tree = open_tree(fd, "", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | AT.EMPTY_PATH);
    mount_setattr(tree, "", AT.EMPTY_PATH | AT.RECURSIVE, { propagation: MS.PRIVATE });
    move_mount(tree, "", fd, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH);
  } catch (error) {
    const call = { source: fd, target: fd, flags: AT.RECURSIVE };
    // Without these calls there is another way; only if that fails, too, is there something to explain.
    throw isRefusal(error, "ENOSYS") ? error : explained(withPath(error, path), call);
  } finally {
    if (tree !== -1) close(tree);
  }
}

function bindByName(fd: number, path: PathLike): void {
  requireProc();
  const self = descriptorPath(fd);
  // `path` itself may lead elsewhere by now; this is where the descriptor is.
  const place = readlinkat(AT.FDCWD, self);
  mountOrExplain(self, self, null, MS.BIND | MS.REC, null);
  withDescriptor(
    place,
    (bound) =>
      attempt(
        () => alter(bound, path, MS.PRIVATE | MS.REC),
        () => unmountDescriptor(bound, path),
      ),
    O.NOFOLLOW,
  );
}

// --- Unmounting

/**
 * Unmounts what is mounted on a path.
 *
 * @param target The mount point. Symlinks are followed.
 * @param options `lazy` (MNT_DETACH), default false: take it out of the tree now, with everything mounted below it, and finish
 *   when it is no longer busy. `force` (MNT_FORCE), default false: for a server that does not answer.
 * @throws SyscallError as umount2(2): `EINVAL` if nothing is mounted there, or in a less privileged namespace if it is locked;
 *   `EBUSY` if it is in use, and for the process's own root, of which umount2(2), neither lazy nor forced, would make the
 *   file system read-only instead.
 * @see umount2(2), umount(8).
 */
export function unmount(target: PathLike, options: { lazy?: boolean; force?: boolean } = {}): void {
  checkOptions(options, ["lazy", "force"]);
  const { lazy = false, force = false } = options;
  // Neither before a forced one nor to explain it: the look-up could wait for the server.
  if (!lazy && !force && isOwnRoot(target)) throw new SyscallError("umount2", EBUSY, pathText(target));
  const flags = (lazy ? MNT.DETACH : 0) | (force ? MNT.FORCE : 0);
  if (force) umount2(target, flags);
  else
    orExplain(
      () => umount2(target, flags),
      () => ({ target }),
    );
}

function isOwnRoot(target: PathLike): boolean {
  const id = withDescriptor("/", mountIdOf);
  try {
    if (withDescriptor(target, mountIdOf) !== id || !mounted(target)) return false;
  } catch {
    // What cannot even be looked at, a dead FUSE mount for example, is for umount2(2) to judge.
    return false;
  }
  // "/" leads to the process's root even where something is mounted over it; umount2(2) does see that.
  const covers = (mount: MountInfo): boolean => mount.parentId === id && mount.id !== id && mount.mountPoint === "/";
  try {
    return findMount(covers) === undefined;
  } catch {
    return true;
  }
}

/**
 * Unmounts everything that is mounted on a path or below it, as the path leads there now.
 *
 * The order is that of the tree of mounts, so it is right also where mounts are stacked or cover one another. What is hidden
 * under a mount that lies above `target` is another tree, and left alone. The process's own root is, too.
 *
 * @param target A mount point or not. Symlinks are followed.
 * @param options `lazy` (MNT_DETACH), default false: take each out of the tree now, and finish when it is no longer busy.
 * @returns The number of mounts that are gone; 0 if nothing is mounted there.
 * @throws SyscallError if there is no such path; as umount2(2) for the first mount that cannot be unmounted: those before it are gone,
 *   it and the rest are still mounted. An `Error` with code `ERR_MOUNT_NOT_LISTED`, as {@link mountOf}.
 */
export function unmountAll(target: PathLike, options: { lazy?: boolean } = {}): number {
  checkOptions(options, ["lazy"]);
  const flags = UMOUNT.NOFOLLOW | (options.lazy ? MNT.DETACH : 0);
  let count = 0;
  for (const mount of mountsAt(target)) {
    try {
      umount2(mount.mountPointBytes ?? mount.mountPoint, flags);
    } catch (error) {
      // Unmounting one of two peers unmounts what is on the other: then this one went with an earlier one.
      const gone = isRefusal(error, "EINVAL", "ENOENT") && findMount(({ id }) => id === mount.id) === undefined;
      if (!gone) throw explained(error, { target: mount.mountPointBytes ?? mount.mountPoint });
    }
    count++;
  }
  return count;
}

/** The mounts on a path and below it, in an order in which they can be unmounted. */
function mountsAt(target: PathLike): MountInfo[] {
  // The descriptor keeps the mount, and so its ID, until the table is read. It has to be closed before anything is unmounted.
  return withDescriptor(target, (fd) => {
    const id = mountIdOf(fd);
    const path = Buffer.from(readlinkat(AT.FDCWD, descriptorPath(fd))).toString("latin1");
    const mounts = getMounts();
    const children = childrenOf(mounts);
    const byId = new Map(mounts.map((mount) => [mount.id, mount]));
    // Not listed: mountOf says so in its error.
    let base = byId.get(id) ?? mountOf(target);
    // Down a stack to the mount that `target` is an ordinary file or directory of.
    for (let parent = byId.get(base.parentId); parent && parent !== base && placeOf(base) === path; ) {
      base = parent;
      parent = byId.get(base.parentId);
    }
    const order: MountInfo[] = [];
    const add = (mount: MountInfo): void => {
      for (const child of children.get(mount.id) ?? []) add(child);
      order.push(mount);
    };
    for (const child of children.get(base.id) ?? []) {
      // On "/" there can only be what covers the root, and no path leads to that.
      if (isBelow(placeOf(child), path) && child.mountPoint !== "/") add(child);
    }
    return order;
  });
}

/** Each mount's children, by its ID. The shorter mount point comes first: of two children, it may cover the other. */
function childrenOf(mounts: readonly MountInfo[]): Map<number, MountInfo[]> {
  const children = new Map<number, MountInfo[]>();
  for (const mount of mounts) {
    // The absolute root of a namespace is its own parent.
    if (mount.parentId === mount.id) continue;
    const siblings = children.get(mount.parentId);
    if (siblings === undefined) children.set(mount.parentId, [mount]);
    else siblings.push(mount);
  }
  for (const siblings of children.values()) siblings.sort((a, b) => placeOf(a).length - placeOf(b).length);
  return children;
}

/** The mount point with one character for each byte: two names that are not UTF-8 can read alike as text. */
function placeOf({ mountPoint, mountPointBytes }: MountInfo): string {
  return (mountPointBytes === undefined ? Buffer.from(mountPoint) : Buffer.from(mountPointBytes)).toString("latin1");
}

// --- Changing mounts

/**
 * Changes the propagation of a mount, or of it and all mounts below.
 *
 * @param target The mount point. Symlinks are followed.
 * @param propagation The type; `"rslave"` and its like are recursive.
 * @throws SyscallError as mount(2): `EINVAL` if `target` is not a mount point. TypeError `ERR_INVALID_ARG_VALUE` for another word.
 * @see mount_namespaces(7).
 */
export function setPropagation(target: PathLike, propagation: PropagationMode): void {
  const type = propagationTypes.get(propagation);
  if (type === undefined) throw argumentError("ERR_INVALID_ARG_VALUE", `'${propagation}' is not a propagation type`);
  mountOrExplain(null, target, null, type, null);
}

/**
 * Makes a mount read-only, or it and all mounts below, and leaves its other options and the file system itself as they are.
 *
 * All or nothing with mount_setattr(2), Linux 5.12; before that as {@link setReadOnlyByRemount}.
 *
 * @param target The mount point. Symlinks are followed.
 * @param options `recursive`, default false: all mounts below as well.
 * @throws SyscallError as mount_setattr(2): `EINVAL` if `target` is not a mount point, `EBUSY` if a file on it is open for
 *   writing. Then nothing has changed.
 */
export function setReadOnly(target: PathLike, options: { recursive?: boolean } = {}): void {
  checkOptions(options, ["recursive"]);
  try {
    mount_setattr(AT.FDCWD, target, options.recursive ? AT.RECURSIVE : 0, { set: MOUNT_ATTR.RDONLY });
  } catch (error) {
    if (!isRefusal(error, "ENOSYS")) throw explained(error, { target });
    setReadOnlyByRemount(target, options);
  }
}

/**
 * What {@link setReadOnly} does on kernels without mount_setattr(2): one `remount,bind,ro` for each mount, those before it
 * undone if one fails. Needs /proc.
 *
 * @param target The mount point. Symlinks are followed.
 * @param options `recursive`, default false: all mounts below as well.
 * @throws SyscallError as mount(2): `EINVAL` if `target` is not a mount point, `EBUSY` if a file on it is open for writing. An `Error` with
 *   code `ERR_MOUNT_COVERED` if one of the mounts is hidden under another, where no path leads to it. Then nothing has
 *   changed. `SuppressedError` if undoing failed as well: `error` says why, `suppressed` is the first failure.
 */
export function setReadOnlyByRemount(target: PathLike, options: { recursive?: boolean } = {}): void {
  requireProc();
  using descriptors = new DisposableStack();
  const opened = (path: PathLike, flags = 0): number =>
    descriptors.adopt(open(path, O.PATH | O.CLOEXEC | flags), (fd) => close(fd));
  const top = opened(target);
  // All are opened before the first is changed: what cannot be reached is found while nothing has to be undone.
  const mounts: [fd: number, path: PathLike, before: number][] = [[top, target, attributesOf(top)]];
  for (const mount of options.recursive ? mountsBelow(mountIdOf(top)) : []) {
    if (isReadOnly(mount.mountOptions)) continue;
    const path = mount.mountPointBytes ?? mount.mountPoint;
    const fd = opened(path, O.NOFOLLOW);
    if (mountIdOf(fd) !== mount.id) {
      const message = `the mount ${mount.id} on '${mount.mountPoint}' is covered by another and cannot be made read-only`;
      throw Object.assign(new Error(message), { code: "ERR_MOUNT_COVERED" });
    }
    mounts.push([fd, path, writableAttributesOf(fd).attributes]);
  }
  const undo = new DisposableStack();
  attempt(
    () => {
      for (const [fd, path, before] of mounts) {
        alter(fd, path, MS.REMOUNT | MS.BIND | MS.RDONLY | before);
        undo.defer(() => alter(fd, path, MS.REMOUNT | MS.BIND | before));
      }
    },
    () => undo.dispose(),
  );
}

function mountsBelow(id: number): MountInfo[] {
  const children = childrenOf(getMounts());
  const below = [...(children.get(id) ?? [])];
  // Grows while it is walked: the children of children follow.
  for (const mount of below) below.push(...(children.get(mount.id) ?? []));
  return below;
}
