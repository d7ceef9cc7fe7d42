/**
 * With which errors each call can fail: what its man page (6.16) lists, and for what is newer than Linux 5.0, or may be forbidden by a
 * seccomp filter, ENOSYS and EPERM as well.
 */

const lookUp = ["EACCES", "ELOOP", "ENAMETOOLONG", "ENOENT", "ENOTDIR"];
const kernelMemory = ["EFAULT", "EINVAL", "ENOMEM"];
const descriptors = ["EMFILE", "ENFILE"];
const full = ["EDQUOT", "ENOSPC", "EROFS"];
const open = [
  ...[
    ...lookUp,
    ...kernelMemory,
    ...descriptors,
    ...full,
    "EBADF",
    "EBUSY",
    "EEXIST",
    "EFBIG",
    "EINTR",
    "EISDIR",
    "ENODEV",
    "ENXIO",
  ],
  ...["EOPNOTSUPP", "EOVERFLOW", "EPERM", "ETXTBSY", "EAGAIN"],
];
const missing = ["ENOSYS", "EPERM"];

const errnos: Readonly<Record<string, readonly string[]>> = {
  capget: ["EFAULT", "EINVAL", "EPERM", "ESRCH"],
  chdir: [...lookUp, "EFAULT", "EIO", "ENOMEM"],
  chroot: [...lookUp, "EFAULT", "EIO", "ENOMEM", "EPERM"],
  close: ["EBADF", "EDQUOT", "EINTR", "EIO", "ENOSPC"],
  close_range: ["EINVAL", "EMFILE", "ENOMEM", ...missing],
  execve: [
    ...[...lookUp, ...descriptors, ...kernelMemory, "E2BIG", "EAGAIN", "EIO", "EISDIR", "ELIBBAD", "ENOEXEC", "EPERM", "ETXTBSY"],
  ],
  fchdir: ["EACCES", "EBADF", "EIO", "ENOTDIR"],
  fcntl: ["EACCES", "EAGAIN", "EBADF", "EBUSY", "EDEADLK", "EFAULT", "EINTR", "EINVAL", "EMFILE", "ENOLCK", "EPERM"],
  fsconfig: [
    ...["EACCES", "EBADF", "EBUSY", "EFAULT", "EINVAL", "ELOOP", "ENOENT", "ENOTBLK", "ENOTDIR", "EOPNOTSUPP", "ENXIO", "ENOMEM"],
    ...missing,
  ],
  fsmount: [...descriptors, "EBADF", "EBUSY", "EINVAL", "ENOMEM", ...missing],
  fsopen: [...descriptors, "EFAULT", "EINVAL", "ENODEV", "ENOMEM", ...missing],
  fstatfs: ["EBADF", "EFAULT", "EINTR", "EIO", "ENOMEM", "ENOSYS", "EOVERFLOW"],
  getegid: [],
  geteuid: [],
  getppid: [],
  getcwd: [...lookUp, ...kernelMemory, "ERANGE"],
  getdents64: ["EBADF", "EFAULT", "EINVAL", "ENOENT", "ENOTDIR"],
  getrusage: ["EFAULT", "EINVAL"],
  kcmp: ["EBADF", "EFAULT", "EINVAL", "ENOENT", "ESRCH", ...missing],
  listmount: ["E2BIG", "EFAULT", "EINVAL", "ENOENT", ...missing],
  mkdirat: [...lookUp, ...full, "EBADF", "EEXIST", "EFAULT", "EINVAL", "EMLINK", "ENOMEM", "EPERM"],
  mount: [...lookUp, ...kernelMemory, "EBUSY", "EMFILE", "ENODEV", "ENOSPC", "ENOTBLK", "ENXIO", "EPERM", "EROFS"],
  mount_setattr: ["EBADF", "EBUSY", "EINVAL", "ENOENT", "ENOMEM", "ENOSPC", ...missing],
  move_mount: [...lookUp, "EBADF", "EBUSY", "EFAULT", "EINVAL", "ENOMEM", "ENOSPC", ...missing],
  open_tree: [...lookUp, ...kernelMemory, ...descriptors, "EBADF", "ENOSPC", ...missing],
  openat: open,
  openat2: [...open, "E2BIG", "EXDEV", "ENOSYS"],
  pivot_root: ["EBUSY", "EINVAL", "ENOTDIR", "EPERM"],
  prlimit64: ["EFAULT", "EINVAL", "EPERM", "ESRCH"],
  read: ["EAGAIN", "EBADF", "EFAULT", "EINTR", "EINVAL", "EIO", "EISDIR"],
  readlinkat: [...lookUp, "EBADF", "EFAULT", "EINVAL", "EIO", "ENOMEM"],
  rt_sigaction: ["EFAULT", "EINVAL"],
  statmount: ["E2BIG", "EFAULT", "EINVAL", "ENOENT", "EOVERFLOW", ...missing],
  statx: [...lookUp, "EBADF", "EFAULT", "EINVAL", "ENOMEM", ...missing],
  symlinkat: [...lookUp, ...full, "EBADF", "EEXIST", "EFAULT", "EIO", "ENOMEM", "EPERM"],
  umask: [],
  umount2: ["EAGAIN", "EBUSY", "EFAULT", "EINVAL", "ENAMETOOLONG", "ENOENT", "ENOMEM", "EPERM"],
  unlinkat: [...lookUp, "EBADF", "EBUSY", "EFAULT", "EINVAL", "EIO", "ENOMEM", "ENOTEMPTY", "EPERM", "EROFS"],
  unshare: ["EINVAL", "ENOMEM", "ENOSPC", "EPERM", "EUSERS"],
  waitid: ["EAGAIN", "ECHILD", "EINTR", "EINVAL", "ESRCH"],
  write: ["EAGAIN", "EBADF", "EDESTADDRREQ", "EDQUOT", "EFAULT", "EFBIG", "EINTR", "EINVAL", "EIO", "ENOSPC", "EPERM", "EPIPE"],
};

export function errnosOf(call: string): readonly string[] {
  const known = errnos[call];
  if (known === undefined) throw new Error(`the switch makes a call that the table of errors does not have: ${call}`);
  return [...new Set(known)];
}
