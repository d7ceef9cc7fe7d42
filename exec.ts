/**
 * Replacing this process by a command that then has what it would have had if Bun had not been in between.
 */
import {
  CLOSE_RANGE,
  close,
  close_range,
  execvp,
  F,
  FD_CLOEXEC,
  fcntl,
  isRefusal,
  limitOfFiles,
  O,
  open,
  openat,
  type PathLike,
  pathText,
  readDirectory,
  readFile,
  readlinkat,
  resetSignal,
  SyscallError,
} from "./syscalls.ts";

/**
 * Undoes what Bun did to this process at its start, and sees to it which descriptors the command gets. To be called while /proc
 * is still the one that this process was started with.
 *
 * @param keepDescriptors Whether the command gets the descriptors above 2 that this process was given.
 * @returns What {@link exec} still has to do.
 */
export function prepareExec(keepDescriptors: boolean): Prepared {
  // The only two that Bun ignores. Others that are ignored were so before, for example by nohup(1).
  const [SIGPIPE, SIGXFSZ] = [13, 25];
  resetSignal(SIGPIPE);
  resetSignal(SIGXFSZ);

  // Bun raises the soft limit to the hard one. What it was before, only the parent still knows.
  const limit = softLimitOfFiles(process.ppid);

  for (const stream of [0, 1, 2]) {
    try {
      const flags = fcntl(stream, F.GETFL);
      if (flags & O.NONBLOCK) fcntl(stream, F.SETFL, flags & ~O.NONBLOCK);
    } catch (error) {
      if (!isRefusal(error, "EBADF")) throw error;
    }
  }
  if (keepDescriptors) keepInherited();
  return { closeOthers: keepDescriptors ? undefined : closeOnExec(), limit };
}

/** What is left for the moment before execve(2). */
export interface Prepared {
  /** Marks the descriptors above 2 close-on-exec; undefined if the command gets them. */
  readonly closeOthers: (() => void) | undefined;
  /** The soft limit of open files that the command gets. Until then Bun's higher one may be needed. */
  readonly limit: number | undefined;
}

/** The soft limit of open files of a process; undefined if it has none, or may not be seen. */
function softLimitOfFiles(pid: number): number | undefined {
  try {
    return limitOfFiles(pid).soft;
  } catch (error) {
    // It is another user's: not to be asked with prlimit(2), but to be read. Or it is in another PID namespace, as process 0.
    return isRefusal(error, "EPERM") ? readSoftLimitOfFiles(pid) : undefined;
  }
}

function readSoftLimitOfFiles(pid: number): number | undefined {
  try {
    const limits = new TextDecoder().decode(readFile(`/proc/${pid}/limits`));
    const soft = /^Max open files\s+(\d+)/m.exec(limits)?.[1];
    return soft === undefined ? undefined : Number(soft);
  } catch (error) {
    if (error instanceof SyscallError) return undefined;
    throw error;
  }
}

/** Marks the descriptors above 2 close-on-exec, and returns how that is done again where there may be no /proc. */
function closeOnExec(): () => void {
  const close = () => close_range(3, 0xffff_ffff, CLOSE_RANGE.CLOEXEC);
  try {
    close();
    return close;
  } catch (error) {
    // Linux before 5.11, or a seccomp filter.
    if (!isRefusal(error, "ENOSYS", "EINVAL", "EPERM")) throw error;
  }
  const listing = openDescriptors();
  const closeEach = () => {
    for (const fd of descriptors(listing)) unlessClosed(() => fcntl(fd, F.SETFD, FD_CLOEXEC));
  };
  closeEach();
  return closeEach;
}

/** Bun marks what it inherits close-on-exec. Its own descriptors are an epoll instance and an eventfd: those stay marked. */
function keepInherited(): void {
  const listing = openDescriptors();
  try {
    for (const fd of descriptors(listing)) {
      unlessClosed(() => {
        const target = pathText(readlinkat(listing, `${fd}`));
        if (!/^anon_inode:\[event(poll|fd)\]$/.test(target)) fcntl(fd, F.SETFD, 0);
      });
    }
  } finally {
    close(listing);
  }
}

/** Another thread may have closed the descriptor since it was listed. */
function unlessClosed(action: () => void): void {
  try {
    action();
  } catch (error) {
    if (!isRefusal(error, "EBADF", "ENOENT")) throw error;
  }
}

/** The listing of the open descriptors. It stays what it is when the root changes. */
function openDescriptors(): number {
  return open("/proc/self/fd", O.RDONLY | O.DIRECTORY | O.CLOEXEC);
}

/** The open descriptors above 2, but for the listing itself. */
function descriptors(listing: number): number[] {
  // A new look, which begins at the first.
  const look = openat(listing, ".", O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  try {
    const all = readDirectory(look).map(Number);
    return all.filter((fd) => fd > 2 && fd !== listing && fd !== look);
  } finally {
    close(look);
  }
}

/** Why a command did not start, with the exit status that says so: 127 if it is not found, 126 if it cannot be executed. */
export class ExecError extends Error {
  override readonly name = "ExecError";
  readonly status: 126 | 127;

  constructor(message: string, status: 126 | 127, cause: SyscallError) {
    super(message, { cause });
    this.status = status;
  }
}

/**
 * Replaces this process by a command, see {@link execvp}.
 *
 * @param prepared What {@link prepareExec} returned.
 * @throws ExecError if there is no such command, or it cannot be executed.
 */
export function exec(command: readonly [PathLike, ...PathLike[]], { closeOthers, limit }: Prepared): never {
  // Once more: what other threads of Bun have opened in between need not be close-on-exec.
  closeOthers?.();
  if (limit !== undefined && limit < limitOfFiles(0).soft) limitOfFiles(0, limit);
  try {
    return execvp(command);
  } catch (error) {
    if (!(error instanceof SyscallError)) throw error;
    const name = pathText(command[0]);
    if (error.code !== "ENOENT") throw new ExecError(`cannot execute '${name}': ${error.message}`, 126, error);
    const missing = exists(command[0])
      ? `cannot execute '${name}': it is there, but the interpreter or loader that it names is not`
      : `'${name}' is not found in the new root`;
    throw new ExecError(missing, 127, error);
  }
}

function exists(path: PathLike): boolean {
  if (!pathText(path).includes("/")) return false;
  try {
    close(open(path, O.PATH | O.CLOEXEC));
    return true;
  } catch (error) {
    if (error instanceof SyscallError) return false;
    throw error;
  }
}
