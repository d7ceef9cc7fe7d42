/**
 * Mounting things inside a root that is not "/" yet.
 *
 * A destination is looked up inside the root, so that no symlink and no ".." in it leads out, and what is mounted there is
 * attached by descriptor with its attributes already set. To mount first and remount through /proc/self/fd would change the mount
 * that lies under it.
 */
import { isOnSharedMount, isSame } from "./checks.ts";
import {
  AT,
  close,
  FSCONFIG,
  FSMOUNT,
  FSOPEN,
  fsconfig,
  fsmount,
  fsopen,
  isRefusal,
  MOUNT_ATTR,
  MOVE_MOUNT,
  MS,
  mkdirat,
  mount_setattr,
  move_mount,
  O,
  OPEN_TREE,
  open,
  open_tree,
  openat,
  openat2,
  type PathLike,
  pathText,
  RESOLVE,
  readFile,
  STATX,
  type Statx,
  statx,
  symlinkat,
} from "./syscalls.ts";

/** Opens a directory that is to become "/". */
export function openDirectory(path: PathLike): number {
  return open(path, O.PATH | O.DIRECTORY | O.CLOEXEC);
}

/**
 * Opens a directory that is to become "/", bound over itself: what is then mounted in it is mounted there only, and not once more
 * in a copy that is made for the switch. The new mounts are private.
 *
 * @returns A descriptor of the new mount's root.
 * @throws SyscallError, or Error if the mount that it lies on is shared; nothing is mounted then.
 */
export function openBound(path: PathLike): number {
  const place = openDirectory(path);
  let tree = -1;
  try {
    // All mounts below "/" are slaves. One that is outside, where a process that was chrooted can still be, need not be.
    if (isOnSharedMount(place)) throw new Error("what is mounted there would appear in other mount namespaces");
    tree = copyTree(place, "", AT.EMPTY_PATH, 0);
    moveTo(tree, place);
    return tree;
  } catch (error) {
    if (tree !== -1) close(tree);
    throw error;
  } finally {
    close(place);
  }
}

/**
 * Binds `source` and everything mounted below it.
 *
 * As bubblewrap does, without set-user-ID programs and devices; with `readOnly` down to the last mount.
 *
 * @param root A descriptor of the root.
 * @param source What to bind, looked up from this process's own root and working directory.
 * @param destination Where, inside the root. It is made if it is missing.
 * @throws SyscallError, or Error if the destination is not fit for the source; nothing is mounted then.
 */
export function bindInside(root: number, source: PathLike, destination: PathLike, options: { readOnly?: boolean } = {}): void {
  const set = MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV | (options.readOnly ? MOUNT_ATTR.RDONLY : 0);
  close(attachInside(root, copyTree(AT.FDCWD, source, 0, set), destination));
}

/** Mounts an empty tmpfs of mode 0755. Parameters as in {@link bindInside}. */
export function tmpfsInside(root: number, destination: PathLike): void {
  close(attachInside(root, newMount("tmpfs", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV, "mode", "0755"), destination));
}

const procAttributes = MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV | MOUNT_ATTR.NOEXEC;

/**
 * Mounts the procfs of this process's PID namespace. To mount a new one takes rights over that; without them the one on /proc is bound, with
 * all that is mounted on it, if it shows the same PID namespace. Parameters as in {@link bindInside}.
 */
export function procInside(root: number, destination: PathLike): void {
  close(attachInside(root, newProc(), destination));
}

function newProc(): number {
  try {
    return newMount("proc", procAttributes);
  } catch (error) {
    if (!isRefusal(error, "EPERM") || !isOwnProc()) throw error;
    return copyTree(AT.FDCWD, "/proc", 0, procAttributes);
  }
}

/** Whether /proc shows this process's PID namespace and no outer one: then a process has one number in it, and not several. */
function isOwnProc(): boolean {
  return /^NSpid:\s*\d+$/m.test(pathText(readFile("/proc/self/status")));
}

const devices = ["null", "zero", "full", "random", "urandom", "tty"];

const links = [
  ["fd", "/proc/self/fd"],
  ["stdin", "/proc/self/fd/0"],
  ["stdout", "/proc/self/fd/1"],
  ["stderr", "/proc/self/fd/2"],
  ["core", "/proc/kcore"],
  ["ptmx", "pts/ptmx"],
] as const;

/**
 * Mounts a small /dev: a tmpfs with the host's `null`, `zero`, `full`, `random`, `urandom` and `tty`, a devpts of its own, `shm`, and
 * the usual links. Parameters as in {@link bindInside}.
 */
export function devInside(root: number, destination: PathLike): void {
  const dev = attachInside(root, newMount("tmpfs", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC, "mode", "0755"), destination);
  try {
    // It is new and empty: nothing in it has to be looked for.
    for (const device of devices) {
      // Bound, not made with mknod(2): that takes a privilege, and such a node works nowhere in a user namespace.
      const tree = copyTree(AT.FDCWD, `/dev/${device}`, 0, MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC);
      attach(tree, dev, device, O.WRONLY | O.CREAT | O.EXCL | O.NOFOLLOW);
    }
    for (const [name, target] of links) symlinkat(target, dev, name);
    mkdirat(dev, "shm", 0o1777);
    mkdirat(dev, "pts", 0o755);
    const pts = newMount("devpts", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC, "mode", "0620", "ptmxmode", "0666");
    attach(pts, dev, "pts", O.PATH | O.DIRECTORY);
  } finally {
    close(dev);
  }
}

/** Attaches a tree to what a name in a directory leads to, opened with these flags, and closes its descriptor. */
function attach(tree: number, directory: number, name: string, flags: number): void {
  try {
    const place = openat(directory, name, flags | O.CLOEXEC, 0o644);
    try {
      moveTo(tree, place);
    } finally {
      close(place);
    }
  } finally {
    close(tree);
  }
}

function moveTo(tree: number, place: number): void {
  move_mount(tree, "", place, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH);
}

/** A private copy of what a path leads to, with everything mounted below, attached nowhere. */
function copyTree(directory: number, path: PathLike, flags: number, attributes: number): number {
  const tree = open_tree(directory, path, OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | flags);
  try {
    mount_setattr(tree, "", AT.EMPTY_PATH | AT.RECURSIVE, { set: attributes, propagation: MS.PRIVATE });
    return tree;
  } catch (error) {
    close(tree);
    throw error;
  }
}

/** A new file system, attached nowhere; its options are pairs of a key and a value. */
function newMount(fsType: string, attributes: number, ...options: readonly string[]): number {
  const context = fsopen(fsType, FSOPEN.CLOEXEC);
  try {
    // What the mount table calls it; it would be "none".
    fsconfig(context, FSCONFIG.SET_STRING, "source", fsType);
    for (let at = 0; at < options.length; at += 2) {
      fsconfig(context, FSCONFIG.SET_STRING, options[at] ?? "", options[at + 1] ?? "");
    }
    fsconfig(context, FSCONFIG.CMD_CREATE, null, null);
    return fsmount(context, FSMOUNT.CLOEXEC, attributes);
  } finally {
    close(context);
  }
}

/**
 * Attaches a tree, at a directory or at a file.
 *
 * @returns The tree's descriptor; it is closed if this throws.
 * @throws SyscallError, or Error for a destination that leads to the root itself, or to a directory where the tree is none, or
 *   the other way round.
 */
function attachInside(root: number, tree: number, destination: PathLike): number {
  try {
    const asDirectory = isDirectory(identityOf(tree));
    const place = openInside(root, destination, asDirectory);
    try {
      refuse(identityOf(place), identityOf(root), asDirectory, destination);
      moveTo(tree, place);
      return tree;
    } finally {
      close(place);
    }
  } catch (error) {
    close(tree);
    throw error;
  }
}

function refuse(place: Statx, root: Statx, asDirectory: boolean, destination: PathLike): void {
  // It would cover the root, and yet not be what the command sees.
  if (isSame(place, root)) throw new Error(`'${pathText(destination)}' leads to ROOT itself`);
  if (isDirectory(place) === asDirectory) return;
  // The kernel would say EINVAL.
  const reason = asDirectory
    ? "is no directory, as what is to be mounted there is"
    : "is a directory, and what is to be mounted there is none";
  throw new Error(`'${pathText(destination)}' ${reason}`);
}

function identityOf(fd: number): Statx {
  return statx(fd, "", AT.EMPTY_PATH, STATX.BASIC_STATS | STATX.MNT_ID);
}

function isDirectory({ mode }: Statx): boolean {
  const S_IFMT = 0o170000;
  const S_IFDIR = 0o040000;
  return (mode & S_IFMT) === S_IFDIR;
}

/** Opens a path inside the root; what is missing of it is made, the last part as a directory or as an empty file. */
function openInside(root: number, path: PathLike, asDirectory: boolean): number {
  try {
    return lookInside(root, path);
  } catch (error) {
    if (!isRefusal(error, "ENOENT")) throw error;
    return makeInside(root, path, asDirectory);
  }
}

function lookInside(root: number, path: PathLike): number {
  for (let attempt = 1; ; attempt++) {
    try {
      return openat2(root, path, { flags: O.PATH | O.CLOEXEC, resolve: RESOLVE.IN_ROOT });
    } catch (error) {
      // Somewhere on the machine something was mounted or renamed meanwhile, and the kernel cannot tell where a ".." led.
      if (!isRefusal(error, "EAGAIN") || attempt === 1000) throw error;
    }
  }
}

function makeInside(root: number, path: PathLike, asDirectory: boolean): number {
  // In bytes, which need not be UTF-8: each becomes one character.
  const whole = Buffer.from(path instanceof Uint8Array ? path : pathText(path));
  const names = [...whole.toString("latin1").matchAll(/[^/]+/g)];
  let above = lookInside(root, "/");
  for (const found of names) {
    const end = found.index + found[0].length;
    const [resolved, name] = [whole.subarray(0, end), whole.subarray(found.index, end)];
    const parent = above;
    try {
      try {
        above = lookInside(root, resolved);
      } catch (error) {
        if (!isRefusal(error, "ENOENT")) throw error;
        if (isLink(parent, name)) throw new Error(`'${pathText(resolved)}' is a symlink that leads nowhere`);
        make(parent, name, found !== names.at(-1) || asDirectory);
        above = lookInside(root, resolved);
      }
    } finally {
      close(parent);
    }
  }
  return above;
}

/** Makes a directory or an empty file. Somebody else, such as another command with this root, may have been quicker. */
function make(parent: number, name: PathLike, asDirectory: boolean): void {
  try {
    if (asDirectory) mkdirat(parent, name, 0o755);
    else close(openat(parent, name, O.WRONLY | O.CREAT | O.EXCL | O.NOFOLLOW | O.CLOEXEC, 0o644));
  } catch (error) {
    if (!isRefusal(error, "EEXIST")) throw error;
  }
}

function isLink(directory: number, name: PathLike): boolean {
  const S_IFMT = 0o170000;
  const S_IFLNK = 0o120000;
  try {
    return (statx(directory, name, AT.SYMLINK_NOFOLLOW, STATX.BASIC_STATS).mode & S_IFMT) === S_IFLNK;
  } catch (error) {
    if (isRefusal(error, "ENOENT")) return false;
    throw error;
  }
}
