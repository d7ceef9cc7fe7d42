/**
 * Open directories that lead out of a root: whoever can fchdir(2) to one, or open(2) from it, is not held by any method.
 */
import { closeQuietly, type Directory, describe, isSame } from "./checks.ts";
import {
  AT,
  close,
  isRefusal,
  type Kernel,
  O,
  openat,
  pathText,
  readDirectory,
  readlinkat,
  STATX,
  SyscallError,
  statx,
} from "./syscalls.ts";

/** An open directory of this process that leads out of the new root. */
export interface Leak {
  readonly fd: number;
  /** What it was called before the switch. */
  readonly path: string;
}

/**
 * The directories that this process has open.
 *
 * @param proc A procfs's descriptor.
 * @param except Descriptors that do not count.
 */
export function openDirectories(proc: number, except: readonly number[]): Leak[] {
  const listing = openat(proc, "self/fd", O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  const found: Leak[] = [];
  try {
    for (const name of readDirectory(listing)) {
      const fd = Number(name);
      if (fd === listing || except.includes(fd)) continue;
      try {
        if (isDirectory(fd)) found.push({ fd, path: pathText(readlinkat(proc, `self/fd/${name}`)) });
      } catch (error) {
        // Another thread has closed it meanwhile.
        if (!isRefusal(error, "EBADF", "ENOENT")) throw error;
      }
    }
  } finally {
    close(listing);
  }
  return found;
}

function isDirectory(fd: number): boolean {
  const S_IFMT = 0o170000;
  const S_IFDIR = 0o040000;
  return (statx(fd, "", AT.EMPTY_PATH, STATX.BASIC_STATS).mode & S_IFMT) === S_IFDIR;
}

/**
 * Whether ".." leads from a directory to the new root before it leads anywhere else where it would stop: then there is no way out.
 *
 * From the old root ".." can lead to the new one, which `move` mounts on it; all the same it is outside.
 */
export function isInside(kernel: Kernel, fd: number, root: Directory, oldRoot: Directory): boolean {
  let at = -1;
  try {
    at = openat(fd, ".", O.PATH | O.DIRECTORY | O.CLOEXEC);
    for (;;) {
      const here = describe(kernel, at).stat;
      if (isSame(here, root.stat)) return true;
      if (isSame(here, oldRoot.stat)) return false;
      const above = openat(at, "..", O.PATH | O.DIRECTORY | O.CLOEXEC);
      closeQuietly(kernel, at);
      at = above;
      // In a "/", and at the top of a tree that is mounted nowhere, ".." is the directory itself.
      if (isSame(describe(kernel, at).stat, here)) return false;
    }
  } catch (error) {
    // Closed meanwhile, by another thread.
    if (isRefusal(error, "EBADF")) return true;
    // What this process may not enter now (EACCES), it may once it has other rights. And what cannot be asked at all, as the
    // directory of a process that has ended, is not known to be inside.
    if (error instanceof SyscallError) return false;
    throw error;
  } finally {
    if (at !== -1) closeQuietly(kernel, at);
  }
}
