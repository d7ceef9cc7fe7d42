/**
 * Every system call of syscalls.ts, once, with arguments that tell it from all others. As a program it prints what each gives, or with
 * which code it fails. strace(1) knows numbers, flags and structs of each architecture from the kernel's own headers: `traced` is what
 * has to be in the line that it writes.
 */
import * as syscalls from "../../syscalls.ts";

const { AT, CAP, CLONE, CLOSE_RANGE, F, FSCONFIG, FSMOUNT, FSOPEN, MNT, MOUNT_ATTR, MOVE_MOUNT, MS, O, OPEN_TREE, RESOLVE } =
  syscalls;
const { STATX, UMOUNT } = syscalls;

/** A descriptor that there is not. */
const none = 990;

export interface Traced {
  /** Gives what JSON can carry. */
  run(): unknown;
  /** Of the line; it begins with the call's name. */
  traced(value: unknown): string[];
}

function fields(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}

export const calls: Readonly<Record<string, Traced>> = {
  // It returns -errno. There is no such process.
  syscall: {
    run: () => syscalls.syscall(434, 0x7fffffff, 0),
    traced: (value) => ["pidfd_open(2147483647, 0) ", value === undefined || value === -3 ? "-1 ESRCH" : `it returned ${value}`],
  },
  open: {
    run: () => syscalls.open("/@open", O.PATH | O.DIRECTORY | O.NOFOLLOW | O.CLOEXEC),
    traced: () => ['openat(AT_FDCWD, "/@open", ', "O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "ENOENT"],
  },
  openat: {
    run: () => syscalls.openat(none, "@openat", O.WRONLY | O.CREAT | O.EXCL | O.NONBLOCK, 0o640),
    traced: () => [`openat(${none}, "@openat", `, "O_WRONLY|O_CREAT|O_EXCL|O_NONBLOCK, 0640) ", "EBADF"],
  },
  openat2: {
    run: () => syscalls.openat2(none, "@openat2", { flags: O.PATH | O.DIRECTORY, resolve: RESOLVE.NO_XDEV | RESOLVE.IN_ROOT }),
    traced: () => [
      `openat2(${none}, "@openat2", {flags=`,
      "O_PATH",
      "O_DIRECTORY",
      "resolve=RESOLVE_NO_XDEV|RESOLVE_IN_ROOT}, 24) ",
      "EBADF",
    ],
  },
  close: { run: () => syscalls.close(none), traced: () => [`close(${none}) `, "EBADF"] },
  read: { run: () => syscalls.read(none, new Uint8Array(17)), traced: () => [`read(${none}, `, ", 17) ", "EBADF"] },
  write: { run: () => syscalls.write(none, Buffer.from("@write")), traced: () => [`write(${none}, "@write", 6) `, "EBADF"] },
  readFile: {
    run: () => new TextDecoder().decode(syscalls.readFile("/proc/sys/kernel/ostype")),
    traced: () => ['openat(AT_FDCWD, "/proc/sys/kernel/ostype", O_RDONLY|O_CLOEXEC) = '],
  },
  memfd_create: {
    run: () => {
      const fd = syscalls.memfd_create("@memfd");
      const link = new TextDecoder().decode(syscalls.readlinkat(AT.FDCWD, `/proc/self/fd/${fd}`));
      syscalls.close(fd);
      return link;
    },
    traced: () => ['memfd_create("@memfd", MFD_CLOEXEC) = '],
  },
  readlinkat: {
    run: () => new TextDecoder().decode(syscalls.readlinkat(AT.FDCWD, "/proc/self/cwd")),
    traced: (value) => [`readlinkat(AT_FDCWD, "/proc/self/cwd", "${value}", 8192) = `],
  },
  mkdirat: {
    run: () => syscalls.mkdirat(none, "@mkdirat", 0o751),
    traced: () => [`mkdirat(${none}, "@mkdirat", 0751) `, "EBADF"],
  },
  symlinkat: {
    run: () => syscalls.symlinkat("@target", none, "@symlinkat"),
    traced: () => [`symlinkat("@target", ${none}, "@symlinkat") `, "EBADF"],
  },
  unlinkat: {
    run: () => syscalls.unlinkat(none, "@unlinkat", AT.REMOVEDIR),
    traced: () => [`unlinkat(${none}, "@unlinkat", AT_REMOVEDIR) `, "EBADF"],
  },
  readDirectory: {
    run: () => {
      const fd = syscalls.open("/proc/sys/kernel/random", O.RDONLY | O.DIRECTORY);
      const names = syscalls.readDirectory(fd).sort();
      syscalls.close(fd);
      return names;
    },
    traced: (value) => ["getdents64(", ...(Array.isArray(value) ? value : []).map((name) => `d_name="${name}"`)],
  },
  statx: {
    run: () => {
      const { mode, ino, devMajor, devMinor, mountRoot } = syscalls.statx(AT.FDCWD, "/etc/group", 0, STATX.BASIC_STATS);
      return { mode, ino: String(ino), devMajor, devMinor, mountRoot };
    },
    traced: (value) => {
      const { mode, ino, devMajor, devMinor } = fields(value);
      const type = `S_IFREG|0${(Number(mode) & 0o7777).toString(8)}`;
      const device = [`stx_dev_major=${devMajor}, `, `stx_dev_minor=${devMinor}, `];
      return ['statx(AT_FDCWD, "/etc/group", ', "STATX_BASIC_STATS", `stx_mode=${type}`, `stx_ino=${ino}`, ...device];
    },
  },
  "statx, a mount's root": {
    run: () =>
      syscalls.statx(AT.FDCWD, "/proc", AT.SYMLINK_NOFOLLOW | AT.NO_AUTOMOUNT | AT.STATX_DONT_SYNC, STATX.MNT_ID).mountRoot,
    traced: () => [
      'statx(AT_FDCWD, "/proc", ',
      "AT_STATX_DONT_SYNC|AT_SYMLINK_NOFOLLOW|AT_NO_AUTOMOUNT, STATX_MNT_ID, ",
      "STATX_ATTR_MOUNT_ROOT",
    ],
  },
  "statx, the mount's ID": {
    run: () => Number(syscalls.statx(AT.FDCWD, "/.", 0, STATX.MNT_ID).mountId),
    traced: (value) => ['statx(AT_FDCWD, "/.", ', `stx_mnt_id=0x${Number(value).toString(16)}}) `],
  },
  fstatfs: {
    run: () => {
      const fd = syscalls.open("/proc", O.RDONLY | O.DIRECTORY);
      const { type, flags } = syscalls.fstatfs(fd);
      syscalls.close(fd);
      const { RDONLY, NOSUID, NODEV, NOEXEC } = MS;
      return { isProc: type === syscalls.PROC_SUPER_MAGIC, flags: flags & (RDONLY | NOSUID | NODEV | NOEXEC) };
    },
    traced: () => ["fstatfs(", "f_type=PROC_SUPER_MAGIC", "f_flags=ST_VALID"],
  },
  mount: {
    run: () => {
      const times = MS.NOATIME | MS.NODIRATIME | MS.RELATIME | MS.STRICTATIME | MS.LAZYTIME;
      const flags = MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.SYNCHRONOUS | MS.DIRSYNC | MS.SILENT | times;
      syscalls.mount("@source", "/@mount", "@type", flags, "@data");
    },
    traced: () => [
      'mount("@source", "/@mount", "@type", MS_RDONLY|MS_NOSUID|MS_NODEV|MS_NOEXEC|MS_SYNCHRONOUS|MS_DIRSYNC|',
      "MS_NOATIME|MS_NODIRATIME|MS_SILENT|MS_RELATIME|MS_STRICTATIME|MS_LAZYTIME",
      ', "@data") ',
      "ENOENT",
    ],
  },
  "mount, of what is there": {
    run: () => syscalls.mount(null, "/@bind", null, MS.BIND | MS.REC | MS.MOVE | MS.REMOUNT, null),
    traced: () => ['mount(NULL, "/@bind", NULL, MS_REMOUNT|MS_BIND|MS_MOVE|MS_REC, NULL) ', "ENOENT"],
  },
  "mount, propagation": {
    run: () => syscalls.mount(null, "/@types", null, MS.UNBINDABLE | MS.PRIVATE | MS.SLAVE | MS.SHARED, null),
    traced: () => ['mount(NULL, "/@types", NULL, MS_UNBINDABLE|MS_PRIVATE|MS_SLAVE|MS_SHARED, NULL) ', "ENOENT"],
  },
  umount2: {
    run: () => syscalls.umount2("/@umount2", MNT.FORCE | MNT.DETACH | UMOUNT.NOFOLLOW),
    traced: () => ['umount2("/@umount2", MNT_FORCE|MNT_DETACH|UMOUNT_NOFOLLOW) ', "ENOENT"],
  },
  tryExpire: { run: () => syscalls.tryExpire("/@expire"), traced: () => ['umount2("/@expire", MNT_EXPIRE) ', "ENOENT"] },
  pivot_root: { run: () => syscalls.pivot_root("/@new", "/@old"), traced: () => ['pivot_root("/@new", "/@old") ', "ENOENT"] },
  open_tree: {
    run: () => syscalls.open_tree(none, "@tree", OPEN_TREE.CLONE | OPEN_TREE.CLOEXEC | AT.RECURSIVE | AT.EMPTY_PATH),
    traced: () => [
      `open_tree(${none}, "@tree", `,
      "OPEN_TREE_CLONE",
      "OPEN_TREE_CLOEXEC",
      "AT_RECURSIVE",
      "AT_EMPTY_PATH",
      "EBADF",
    ],
  },
  move_mount: {
    run: () => syscalls.move_mount(none, "@from", none, "@to", MOVE_MOUNT.F_EMPTY_PATH | MOVE_MOUNT.T_EMPTY_PATH),
    traced: () => [`move_mount(${none}, "@from", ${none}, "@to", MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH) `, "EBADF"],
  },
  mount_setattr: {
    run: () => {
      const { RDONLY, NOSUID, NODEV, NOEXEC } = MOUNT_ATTR;
      syscalls.mount_setattr(none, "@attributes", AT.RECURSIVE, {
        set: RDONLY | NOSUID,
        clear: NODEV | NOEXEC,
        propagation: MS.SLAVE,
      });
    },
    traced: () => [
      `mount_setattr(${none}, "@attributes", AT_RECURSIVE, {attr_set=MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOSUID, `,
      "attr_clr=MOUNT_ATTR_NODEV|MOUNT_ATTR_NOEXEC, propagation=MS_SLAVE, userns_fd=0}, 32) ",
      "EBADF",
    ],
  },
  fsopen: { run: () => syscalls.fsopen("@type", FSOPEN.CLOEXEC), traced: () => ['fsopen("@type", FSOPEN_CLOEXEC) ', "ENODEV"] },
  fsconfig: {
    run: () => syscalls.fsconfig(none, FSCONFIG.SET_STRING, "@key", "@value"),
    traced: () => [`fsconfig(${none}, FSCONFIG_SET_STRING, "@key", "@value", 0) `, "EBADF"],
  },
  "fsconfig, the others": {
    run: () => {
      const [flag, create] = [FSCONFIG.SET_FLAG, FSCONFIG.CMD_CREATE].map(
        (command) => () => syscalls.fsconfig(none, command, null, null),
      );
      return [flag, create].map((call) => attempt(() => call?.()));
    },
    traced: () => [`fsconfig(${none}, FSCONFIG_CMD_CREATE, NULL, NULL, 0) `, "EBADF"],
  },
  fsmount: {
    run: () => syscalls.fsmount(none, FSMOUNT.CLOEXEC, MOUNT_ATTR.NOSUID | MOUNT_ATTR.NODEV),
    traced: () => [`fsmount(${none}, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID|MOUNT_ATTR_NODEV) `, "EBADF"],
  },
  chdir: { run: () => syscalls.chdir("/@chdir"), traced: () => ['chdir("/@chdir") ', "ENOENT"] },
  fchdir: { run: () => syscalls.fchdir(none), traced: () => [`fchdir(${none}) `, "EBADF"] },
  chroot: { run: () => syscalls.chroot("/@chroot"), traced: () => ['chroot("/@chroot") ', "ENOENT"] },
  unshare: { run: () => syscalls.unshare(CLONE.FS), traced: () => ["unshare(CLONE_FS) ", "= 0"] },
  setns: {
    run: () => syscalls.setns(none, CLONE.NEWNS | CLONE.NEWUSER),
    traced: () => [`setns(${none}, CLONE_NEWNS|CLONE_NEWUSER) `, "EBADF"],
  },
  owningUserNamespace: {
    run: () => syscalls.owningUserNamespace(none),
    traced: () => [`ioctl(${none}, NS_GET_USERNS) `, "EBADF"],
  },
  sharesFs: {
    run: () => syscalls.sharesFs(process.pid, process.pid),
    traced: () => ["kcmp(", "KCMP_FS", "= 0"],
  },
  hasCapability: {
    run: () => [CAP.SYS_CHROOT, CAP.SYS_ADMIN, 63].map(syscalls.hasCapability),
    traced: () => ["capget({version=_LINUX_CAPABILITY_VERSION_3, pid=0}, {effective=", "1<<CAP_SYS_CHROOT", "1<<CAP_SYS_ADMIN"],
  },
  dropInheritableCapabilities: {
    run: () => syscalls.dropInheritableCapabilities(),
    traced: () => ["capset({version=_LINUX_CAPABILITY_VERSION_3, pid=0}, {effective=", "inheritable=0}) ", "= 0"],
  },
  faultsOfChildren: {
    run: () => syscalls.faultsOfChildren(),
    traced: (value) => ["getrusage(RUSAGE_CHILDREN, {", `ru_minflt=${value}, `, "= 0"],
  },
  setThreadName: {
    run: () => syscalls.setThreadName("@name"),
    traced: () => ['prctl(PR_SET_NAME, "@name") ', "= 0"],
  },
  // What the call before it has set.
  threadName: { run: () => syscalls.threadName(), traced: () => ['prctl(PR_GET_NAME, "@name") ', "= 0"] },
  isOpen: { run: () => [0, none].map(syscalls.isOpen), traced: () => [`fcntl(${none}, F_GETFD) `, "EBADF"] },
  dup3: {
    run: () => syscalls.dup3(none, none + 1, O.CLOEXEC),
    traced: () => [`dup3(${none}, ${none + 1}, O_CLOEXEC) `, "EBADF"],
  },
  columnsOf: { run: () => syscalls.columnsOf(none) ?? null, traced: () => [`ioctl(${none}, TIOCGWINSZ, `, "EBADF"] },
  fcntl: { run: () => syscalls.fcntl(none, F.SETFD, 1), traced: () => [`fcntl(${none}, F_SETFD, FD_CLOEXEC) `, "EBADF"] },
  "fcntl, flags": {
    run: () => [F.GETFD, F.GETFL].map((command) => attempt(() => syscalls.fcntl(none, command))),
    traced: () => [`fcntl(${none}, F_GETFL) `, "EBADF"],
  },
  close_range: {
    run: () => syscalls.close_range(none, none + 1, CLOSE_RANGE.CLOEXEC),
    traced: () => [`close_range(${none}, ${none + 1}, CLOSE_RANGE_CLOEXEC) `, "= 0"],
  },
  resetSignal: {
    run: () => syscalls.resetSignal(13),
    traced: () => ["rt_sigaction(SIGPIPE, {sa_handler=SIG_DFL, sa_mask=[], sa_flags=0}, NULL, 8) ", "= 0"],
  },
  limitOfFiles: {
    run: () => syscalls.limitOfFiles(0),
    traced: (value) => {
      const { soft, hard } = fields(value);
      const limit = (count: unknown): string => (Number(count) % 1024 === 0 ? `${Number(count) / 1024}*1024` : `${count}`);
      return [`prlimit64(0, RLIMIT_NOFILE, NULL, {rlim_cur=${limit(soft)}, rlim_max=${limit(hard)}}) `, "= 0"];
    },
  },
  execvp: {
    run: () => syscalls.execvp(["/@execvp", "@argument"]),
    traced: () => ['execve("/@execvp", ["/@execvp", "@argument"], ', "ENOENT"],
  },
  execve: {
    run: () => syscalls.execve("/@execve", ["@name", "@argument"], ["NAME=@value"]),
    traced: () => ['execve("/@execve", ["@name", "@argument"], ["NAME=@value"]) ', "ENOENT"],
  },
  hasChildren: {
    run: () => syscalls.hasChildren(),
    traced: () => ["waitid(P_ALL, 0, ", "WNOHANG|WEXITED|WNOWAIT|__WALL", "ECHILD"],
  },
};

/** What is no system call of its own, or starts other programs, or is not known to strace(1) yet: other tests are about these. */
export const others: readonly string[] = [
  ...["isRefusal", "argumentError", "checkOptions", "toPath", "pathText", "setEnvironment", "programOfUserNamespace"],
  ...["statNamespaceRoot", "statmount", "countMounts"],
];

function attempt(call: () => unknown): unknown {
  try {
    return call() ?? null;
  } catch (error) {
    if (error instanceof syscalls.SyscallError) return error.code;
    throw error;
  }
}

if (import.meta.main) {
  const values = Object.entries(calls).map(([name, { run }]) => [name, attempt(run)]);
  syscalls.write(1, Buffer.from(JSON.stringify(Object.fromEntries(values))));
}
