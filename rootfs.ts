/**
 * Mounting things inside a root that is not "/" yet.
 *
 * A destination is looked up inside the root, so that no symlink and no ".." in it leads out, and what is mounted there is
 * attached by descriptor with its attributes already set. To mount first and remount through /proc/self/fd would change the mount
 * that lies under it.
 */
import { isSame } from "./checks.ts";
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
 * @throws SyscallError, with nothing mounted.
 */
export function openBound(path: PathLike): number {
  const place = openDirectory(path);
  try {
    const tree = copyTree(place, "", AT.EMPTY_PATH, 0);
    return closedOnFailure(tree, () => move_mount(tree, "", place, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH));
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
  const tree = copyTree(AT.FDCWD, source, 0, set);
  attachInside(root, tree, destination);
}

/** Mounts an empty tmpfs of mode 0755. Parameters as in {@link bindInside}. */
export function tmpfsInside(root: number, destination: PathLike): void {
  const made = newMount("tmpfs", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV, { mode: "0755" });
  attachInside(root, made, destination);
}

/** Mounts the procfs of this process's PID namespace. Parameters as in {@link bindInside}. */
export function procInside(root: number, destination: PathLike): void {
  const made = newMount("proc", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV | MOUNT_ATTR.NOEXEC, {});
  attachInside(root, made, destination);
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
  const dev = newMount("tmpfs", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC, { mode: "0755" });
  // It is new and empty: nothing in it has to be looked for.
  attachInside(root, dev, destination, (mounted) => {
    for (const device of devices) {
      // Bound, not made with mknod(2): that takes a privilege, and such a node works nowhere in a user namespace.
      const tree = copyTree(AT.FDCWD, `/dev/${device}`, 0, MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC);
      attach(tree, () => makeFile(mounted, device));
    }
    for (const [name, target] of links) symlinkat(target, mounted, name);
    mkdirat(mounted, "shm", 0o1777);
    mkdirat(mounted, "pts", 0o755);
    const pts = newMount("devpts", MOUNT_ATTR.NOSUID | MOUNT_ATTR.NOEXEC, { mode: "0620", ptmxmode: "0666" });
    attach(pts, () => openat(mounted, "pts", O.PATH | O.DIRECTORY | O.CLOEXEC));
  });
}

/** Attaches a tree at the place that is opened for it, and closes both descriptors. */
function attach(tree: number, open: () => number): void {
  try {
    const place = open();
    try {
      move_mount(tree, "", place, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH);
    } finally {
      close(place);
    }
  } finally {
    close(tree);
  }
}

/** Makes an empty file, and opens it. */
function makeFile(directory: number, name: PathLike): number {
  return openat(directory, name, O.WRONLY | O.CREAT | O.EXCL | O.NOFOLLOW | O.CLOEXEC, 0o644);
}

/** A private copy of what a path leads to, with everything mounted below, attached nowhere. */
function copyTree(directory: number, path: PathLike, flags: number, attributes: number): number {
  const tree = open_tree(directory, path, OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | flags);
  return closedOnFailure(tree, () => {
    mount_setattr(tree, "", AT.EMPTY_PATH | AT.RECURSIVE, { set: attributes, propagation: MS.PRIVATE });
  });
}

function newMount(fsType: string, attributes: number, options: Readonly<Record<string, string>>): number {
  const context = fsopen(fsType, FSOPEN.CLOEXEC);
  try {
    // What the mount table calls it; it would be "none".
    fsconfig(context, FSCONFIG.SET_STRING, "source", fsType);
    for (const [key, value] of Object.entries(options)) fsconfig(context, FSCONFIG.SET_STRING, key, value);
    fsconfig(context, FSCONFIG.CMD_CREATE, null, null);
    return fsmount(context, FSMOUNT.CLOEXEC, attributes);
  } finally {
    close(context);
  }
}

/**
 * Attaches a tree, and closes its descriptor; `fill` is called in between.
 *
 * @throws SyscallError, or Error for a destination that leads to the root itself, or to a directory where the tree is none, or
 *   the other way round.
 */
function attachInside(root: number, tree: number, destination: PathLike, fill?: (tree: number) => void): void {
  try {
    const asDirectory = isDirectory(identityOf(tree));
    const place = openInside(root, destination, asDirectory);
    try {
      refuse(identityOf(place), identityOf(root), asDirectory, pathText(destination));
      move_mount(tree, "", place, "", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH);
    } finally {
      close(place);
    }
    fill?.(tree);
  } finally {
    close(tree);
  }
}

function refuse(place: Statx, root: Statx, asDirectory: boolean, destination: string): void {
  // It would cover the root, and yet not be what the command sees.
  if (isSame(place, root)) throw new Error(`'${destination}' leads to ROOT itself`);
  if (isDirectory(place) === asDirectory) return;
  // The kernel would say EINVAL.
  const reason = asDirectory
    ? "is no directory, as what is to be mounted there is"
    : "is a directory, and what is to be mounted there is none";
  throw new Error(`'${destination}' ${reason}`);
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
  const look = (name: PathLike): number => {
    for (let attempt = 1; ; attempt++) {
      try {
        return openat2(root, name, { flags: O.PATH | O.CLOEXEC, resolve: RESOLVE.IN_ROOT });
      } catch (error) {
        // Somewhere on the machine something was mounted or renamed meanwhile, and the kernel cannot tell where a ".." led.
        if (!isRefusal(error, "EAGAIN") || attempt === 1000) throw error;
      }
    }
  };
  try {
    return look(path);
  } catch (error) {
    if (!isRefusal(error, "ENOENT")) throw error;
  }
  // In bytes, which need not be UTF-8: each becomes one character.
  const whole = Buffer.from(path instanceof Uint8Array ? path : pathText(path));
  const names = [...whole.toString("latin1").matchAll(/[^/]+/g)];
  let above = look("/");
  for (const found of names) {
    const end = found.index + found[0].length;
    const [resolved, name] = [whole.subarray(0, end), whole.subarray(found.index, end)];
    const parent = above;
    try {
      try {
        above = look(resolved);
      } catch (error) {
        if (!isRefusal(error, "ENOENT")) throw error;
        if (isLink(parent, name)) throw new Error(`'${pathText(resolved)}' is a symlink that leads nowhere`);
        if (found !== names.at(-1) || asDirectory) mkdirat(parent, name, 0o755);
        else close(makeFile(parent, name));
        above = look(resolved);
      }
    } finally {
      close(parent);
    }
  }
  return above;
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

function closedOnFailure(fd: number, use: () => void): number {
  try {
    use();
    return fd;
  } catch (error) {
    close(fd);
    throw error;
  }
}
