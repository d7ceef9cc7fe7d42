/**
 * The system calls that mounttree stands on, each as one small function named
 * as the kernel names it, and the constants and structs that go with them.
 *
 * This is the only file that uses `bun:ffi`. A call that fails throws a
 * {@link SyscallError} (but for {@link syscall}, which makes any, and returns
 * `-errno`); a call that the running kernel does not know fails with
 * `ENOSYS`, like every other failure. Nothing is loaded before the first call,
 * so importing works on every platform.
 *
 * Symbols are looked up in `libc.so.6` and nowhere else: for a library that the
 * loader does not find, Bun tries the name in the current directory, and musl's
 * loader answers to the glibc name as well. System calls are made by their
 * numbers, and not by libc, see {@link machineCode}; but for execvp(3).
 */
import type { FFIFunction, Library, Pointer } from "bun:ffi";
import type { Reason } from "./reasons.ts";

/** A path: a string, the bytes of one (need not be UTF-8, no closing NUL), or a `file:` URL. */
export type PathLike = string | Uint8Array | URL;

// Not `process.arch`: `bun build --compile` puts there what it runs on itself, also where --compile-executable-path is of another architecture.
const { arch } = process;
const arm = arch === "arm64";

// --- Constants (include/uapi/linux/*.h); the same on x86-64 and arm64 unless said.

/** mount(2) flags. */
export const MS = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  SYNCHRONOUS: 16,
  REMOUNT: 32,
  MANDLOCK: 64,
  DIRSYNC: 128,
  NOSYMFOLLOW: 256,
  NOATIME: 1024,
  NODIRATIME: 2048,
  BIND: 4096,
  MOVE: 8192,
  REC: 16384,
  SILENT: 32768,
  UNBINDABLE: 0x20000,
  PRIVATE: 0x40000,
  SLAVE: 0x80000,
  SHARED: 0x100000,
  RELATIME: 0x200000,
  I_VERSION: 0x800000,
  STRICTATIME: 0x1000000,
  LAZYTIME: 0x2000000,
} as const;

/** umount2(2) flags. */
export const MNT = { FORCE: 1, DETACH: 2, EXPIRE: 4 } as const;
export const UMOUNT = { NOFOLLOW: 8 } as const;

/** Namespace flags of unshare(2) and setns(2). */
export const CLONE = { FS: 0x200, NEWNS: 0x20000, NEWUSER: 0x10000000 } as const;

/** Flags of the calls whose names end in "at". */
export const AT = {
  FDCWD: -100,
  SYMLINK_NOFOLLOW: 0x100,
  REMOVEDIR: 0x200,
  NO_AUTOMOUNT: 0x800,
  EMPTY_PATH: 0x1000,
  STATX_DONT_SYNC: 0x4000,
  RECURSIVE: 0x8000,
} as const;

/** open(2) flags. O_DIRECTORY and O_NOFOLLOW have other numbers on arm64. */
export const O: Readonly<
  Record<"RDONLY" | "WRONLY" | "CREAT" | "EXCL" | "NONBLOCK" | "DIRECTORY" | "NOFOLLOW" | "CLOEXEC" | "PATH", number>
> = {
  RDONLY: 0,
  WRONLY: 1,
  CREAT: 0o100,
  EXCL: 0o200,
  NONBLOCK: 0o4000,
  DIRECTORY: arm ? 0o40000 : 0o200000,
  NOFOLLOW: arm ? 0o100000 : 0o400000,
  CLOEXEC: 0o2000000,
  PATH: 0o10000000,
};

/** openat2(2) resolve flags. */
export const RESOLVE = { NO_XDEV: 1, NO_MAGICLINKS: 2, NO_SYMLINKS: 4, BENEATH: 8, IN_ROOT: 16 } as const;

/** statx(2) masks and attributes. */
export const STATX = { BASIC_STATS: 0x7ff, MNT_ID: 0x1000, MNT_ID_UNIQUE: 0x4000 } as const;
export const STATX_ATTR = { MOUNT_ROOT: 0x2000 } as const;

/** statmount(2) masks. */
export const STATMOUNT = { MNT_BASIC: 2n } as const;
/** Stands for the process's root in listmount(2). */
export const LSMT_ROOT = 0xffff_ffff_ffff_ffffn;

export const OPEN_TREE = { CLONE: 1, CLOEXEC: 0o2000000 } as const;
export const MOVE_MOUNT = { F_EMPTY_PATH: 4, T_EMPTY_PATH: 0x40 } as const;
export const FSOPEN = { CLOEXEC: 1 } as const;
export const FSCONFIG = { SET_FLAG: 0, SET_STRING: 1, CMD_CREATE: 6 } as const;
export const FSMOUNT = { CLOEXEC: 1 } as const;

/** Attributes of fsmount(2) and mount_setattr(2). */
export const MOUNT_ATTR = { RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8 } as const;

export const KCMP = { FS: 3 } as const;
export const CAP = { SYS_CHROOT: 18, SYS_ADMIN: 21, SETFCAP: 31 } as const;
export const F = { GETFD: 1, SETFD: 2, GETFL: 3, SETFL: 4, DUPFD_CLOEXEC: 1030 } as const;
export const FD_CLOEXEC = 1;
export const CLOSE_RANGE = { CLOEXEC: 4 } as const;
export const PROC_SUPER_MAGIC = 0x9fa0;

// --- Errors

/**
 * A system call that failed. It looks like the system errors of `node:fs`.
 *
 * `message` is, for example, `EPERM: operation not permitted, pivot_root '/new' -> '/new/.old'`.
 */
export class SyscallError extends Error {
  override readonly name = "SyscallError";
  /** The error's name, `"EPERM"`. */
  readonly code: string;
  /** The error's number, negative as in Node. */
  readonly errno: number;
  /** The call's name, `"pivot_root"`. */
  readonly syscall: string;
  /** The path that the call was given, if any. */
  declare readonly path?: string;
  /** The second path, if any. */
  declare readonly dest?: string;
  /** Why the kernel refused, where that was looked for: `"unknown"` if it was not found. The message ends with it as a sentence. */
  declare readonly reason?: Reason;

  /**
   * @param syscall The call's name.
   * @param errno The error's number as in errno(3), positive.
   * @param path What the call was done to, for the message.
   * @param dest Its second path.
   * @param cause What was found out about it.
   */
  constructor(syscall: string, errno: number, path?: string, dest?: string, cause?: { reason: Reason; message: string }) {
    const [code, description] = nameOf(errno);
    const where = path === undefined ? "" : ` '${path}'${dest === undefined ? "" : ` -> '${dest}'`}`;
    super(`${code}: ${description}, ${syscall}${where}${cause === undefined ? "" : `: ${cause.message}`}`);
    this.code = code;
    this.errno = -errno;
    this.syscall = syscall;
    if (path !== undefined) this.path = path;
    if (dest !== undefined) this.dest = dest;
    if (cause !== undefined) this.reason = cause.reason;
  }
}

/** Whether an error is a system call's, with one of these codes. */
export function isRefusal(error: unknown, ...codes: readonly string[]): error is SyscallError {
  return error instanceof SyscallError && codes.includes(error.code);
}

function nameOf(errno: number): readonly [code: string, description: string] {
  // What the calls here return and libuv, whose table Node and Bun have, has no name for; and what is met most often.
  const names: Readonly<Record<number, readonly [code: string, description: string]>> = {
    1: ["EPERM", "operation not permitted"],
    2: ["ENOENT", "no such file or directory"],
    15: ["ENOTBLK", "block device required"],
    16: ["EBUSY", "resource busy or locked"],
    22: ["EINVAL", "invalid argument"],
    35: ["EDEADLK", "resource deadlock avoided"],
    37: ["ENOLCK", "no locks available"],
    61: ["ENODATA", "no data available"],
    76: ["ENOTUNIQ", "name not unique on network"],
    80: ["ELIBBAD", "accessing a corrupted shared library"],
    87: ["EUSERS", "too many users"],
    116: ["ESTALE", "stale file handle"],
    117: ["EUCLEAN", "structure needs cleaning"],
    122: ["EDQUOT", "disk quota exceeded"],
    123: ["ENOMEDIUM", "no medium found"],
    124: ["EMEDIUMTYPE", "wrong medium type"],
  };
  // The whole table is loaded only when it is needed: that would cost a start of the command half of its time.
  const find = () => process.getBuiltinModule("node:util").getSystemErrorMap().get(-errno);
  return names[errno] ?? find() ?? [`E${errno}`, `unknown error ${errno}`];
}

type ArgumentErrorCode =
  | "ERR_INVALID_ARG_TYPE"
  | "ERR_INVALID_ARG_VALUE"
  | "ERR_OUT_OF_RANGE"
  | "ERR_WORKER_UNSUPPORTED_OPERATION";

/** A `TypeError` that carries one of Node's `ERR_*` codes. */
export function argumentError(code: ArgumentErrorCode, message: string): TypeError & { code: string } {
  return Object.assign(new TypeError(message), { code });
}

/** Checks a string that is no path. Throws as {@link toPath}. */
function toText(text: string, name: string): string {
  if (typeof text !== "string") throw argumentError("ERR_INVALID_ARG_TYPE", `${name} must be a string`);
  return text.includes("\0") || !text.isWellFormed() ? refuseText(text, name) : text;
}

function refuseText(text: string, name: string): never {
  const reason = text.includes("\0") ? "must not hold a NUL" : "is not well-formed UTF-16";
  throw argumentError("ERR_INVALID_ARG_VALUE", `${name} ${reason}`);
}

/**
 * Checks an object of options.
 *
 * @param known The names of all options there are. Another one is a mistake that would otherwise go unnoticed.
 * @throws TypeError `ERR_INVALID_ARG_TYPE` if it is no object, `ERR_INVALID_ARG_VALUE` for an option that is not known.
 */
export function checkOptions(options: object, known: readonly string[]): void {
  if (typeof options !== "object" || options === null || Array.isArray(options)) {
    throw argumentError("ERR_INVALID_ARG_TYPE", "options must be an object");
  }
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) {
      throw argumentError("ERR_INVALID_ARG_VALUE", `there is no option '${name}'; there are ${known.join(", ")}`);
    }
  }
}

/**
 * Checks a path and gives it the form in which it goes to the kernel.
 *
 * @param path The path; an empty one is left for the kernel to refuse.
 * @param name What the error calls it. Default `"path"`.
 * @returns A string without NUL, or bytes with one NUL at their end.
 * @throws TypeError `ERR_INVALID_ARG_TYPE`, `ERR_INVALID_ARG_VALUE` (a NUL inside, or half of a
 *   surrogate pair, which no file name can hold), `ERR_INVALID_URL_SCHEME`.
 */
export function toPath(path: PathLike, name = "path"): string | Uint8Array {
  if (typeof path !== "string") return toBytes(path, name);
  return path.includes("\0") || !path.isWellFormed() ? refuseText(path, name) : path;
}

// What is seldom needed has a function of its own here and below, in files that the command starts with: a function that is called
// for the first time looks up the globals it names, and one like URL, Math or TextDecoder takes up to 0.1 ms to come into being.

function toBytes(path: Uint8Array | URL, name: string): string | Uint8Array {
  if (path instanceof URL) return toPath(Bun.fileURLToPath(path), name);
  if (path instanceof Uint8Array) {
    if (path.includes(0)) throw argumentError("ERR_INVALID_ARG_VALUE", `${name} must not hold a NUL`);
    const terminated = new Uint8Array(path.length + 1);
    terminated.set(path);
    return terminated;
  }
  throw argumentError("ERR_INVALID_ARG_TYPE", `${name} must be a string, a Uint8Array or a file: URL`);
}

/** The path as text, for messages; bytes that are not UTF-8 become U+FFFD. */
export function pathText(path: PathLike): string {
  return typeof path === "string" ? path : bytesText(path);
}

function bytesText(path: Uint8Array | URL): string {
  return path instanceof URL ? Bun.fileURLToPath(path) : decode(path);
}

/** UTF-8 as text. Most of it is short and ASCII, which takes no decoder. */
function decode(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at++) {
    const byte = bytes[at] ?? 0;
    if (byte > 0x7e) return decodeAny(bytes);
    text += String.fromCharCode(byte);
  }
  return text;
}

function decodeAny(bytes: Uint8Array): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

// --- Binding

// System calls are called by their numbers, which stand where they are used; from 424 on they are the same everywhere.

/**
 * Two functions in machine code, for what `bun:ffi` does not have: errno(3). By the time that it is read, by a second call, the engine may
 * have made calls of its own, and what failed of these stands there. Where there is no /proc that is ENOENT, as soon as the engine asks
 * /proc/self/statm how much memory it has.
 *
 * - `syscall(number, ...)` makes a system call with up to five arguments, and returns what the kernel returns: if it fails, `-errno`.
 * - `errnoOf(function, __errno_location, ...)` calls a function of libc that fails, with two arguments, and returns `-errno`.
 *
 *     x86-64                                                 arm64
 *     syscall:  mov rax, rdi    mov rdi, rsi  mov rsi, rdx   syscall:  mov x8, x0   mov x0, x1  mov x1, x2  mov x2, x3
 *               mov rdx, rcx    mov r10, r8   mov r8, r9               mov x3, x4   mov x4, x5  mov x5, xzr
 *               xor r9d, r9d    syscall       ret                      svc #0       ret
 *     errnoOf:  push rbx        mov rbx, rsi  mov rax, rdi   errnoOf:  stp x29, x30, [sp, #-32]!  str x19, [sp, #16]
 *               mov rdi, rdx    mov rsi, rcx                           mov x19, x1  mov x9, x0  mov x0, x2  mov x1, x3
 *               call rax        call rbx                               blr x9       blr x19
 *               mov eax, [rax]  neg eax                                ldr w0, [x0] neg w0, w0
 *               pop rbx         ret                                    ldr x19, [sp, #16]  ldp x29, x30, [sp], #32  ret
 */
function machineCode(): { words: readonly number[]; littleEndian: boolean; errnoOf: number } {
  if (arm) {
    const call = [0xaa0003e8, 0xaa0103e0, 0xaa0203e1, 0xaa0303e2, 0xaa0403e3, 0xaa0503e4, 0xaa1f03e5, 0xd4000001, 0xd65f03c0];
    const save = [0xa9be7bfd, 0xf9000bf3, 0xaa0103f3, 0xaa0003e9, 0xaa0203e0, 0xaa0303e1];
    const ask = [0xd63f0120, 0xd63f0260, 0xb9400000, 0x4b0003e0, 0xf9400bf3, 0xa8c27bfd, 0xd65f03c0];
    return { words: [...call, ...save, ...ask], littleEndian: true, errnoOf: 36 };
  }
  const call = [0x4889f848, 0x89f74889, 0xd64889ca, 0x4d89c24d, 0x89c84531, 0xc90f05c3];
  const ask = [0x534889f3, 0x4889f848, 0x89d74889, 0xceffd0ff, 0xd38b00f7, 0xd85bc390];
  return { words: [...call, ...ask], littleEndian: false, errnoOf: 24 };
}

/** What {@link toPath} gives, as `bun:ffi` wants it. */
type CString = string | Uint8Array<ArrayBuffer>;

/**
 * A system call by its number, with up to five arguments: returns what the kernel returns, `-errno` if it fails. Of what it returns these are
 * the lower 32 bits: no address and no large offset. Numbers go over as they are, a string as a pointer to its UTF-8 with a NUL behind it,
 * an array as a pointer to its bytes; what is left out is 0.
 */
export type Syscall = (number: number, ...args: readonly (number | string | Uint8Array | null)[]) => number;

/** All that is called. */
interface Native {
  readonly syscall: Syscall;
  /** Returns `-errno`. */
  execvp(file: CString, argv: Uint8Array): number;
  strdup(string: CString): Pointer | null;
}
let native: Native | undefined;

/**
 * What `bun:ffi` is made of, as long as Bun shows it; otherwise `bun:ffi`, which wraps it in a module of JavaScript. To evaluate that takes
 * every program that imports it 0.2 to 0.4 ms, a start of the command a twentieth of its time.
 */
type Ffi = Pick<typeof import("bun:ffi"), "dlopen" | "linkSymbols" | "toArrayBuffer">;

function loadFfi(): Ffi {
  const { FFI } = Bun as { FFI?: Ffi };
  return FFI?.dlopen === undefined ? require("bun:ffi") : FFI;
}

/** A function for each of these symbols. The wrapped ones return what the module would throw. */
function symbolsOf<Functions extends Record<string, FFIFunction>>(
  library: Library<Functions> | Error,
): Library<Functions>["symbols"] {
  if (library instanceof Error) throw library;
  return library.symbols;
}

const ENOMEM = 12;
const EINVAL = 22;

/** What it binds, every libc has. All at once: it is the first dlopen(3) that takes time, and each further one half of that. */
function bind(): Native {
  if (process.platform !== "linux" || (arch !== "x64" && !arm)) {
    const message = `mounttree needs Linux on x86-64 or arm64; this is ${process.platform} on ${arch}`;
    throw Object.assign(new Error(message), { code: "ERR_UNSUPPORTED_PLATFORM" });
  }
  const ffi = loadFfi();
  const libc = symbolsOf(
    ffi.dlopen("libc.so.6", {
      mmap: { args: ["ptr", "i64", "i32", "i32", "i32", "i64"], returns: "ptr" },
      mprotect: { args: ["ptr", "i64", "i32"], returns: "i32" },
      strdup: { args: ["cstring"], returns: "ptr" },
      // Not called from here: these two are for their addresses.
      execvp: { args: [], returns: "i32" },
      __errno_location: { args: [], returns: "ptr" },
    }),
  );
  const [PROT_READ, PROT_WRITE, PROT_EXEC] = [1, 2, 4];
  const MAP_PRIVATE_ANONYMOUS = 0x22;
  const { words, littleEndian, errnoOf } = machineCode();
  const length = 4 * words.length;
  const page = libc.mmap(null, length, PROT_READ | PROT_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0) as Pointer;
  // MAP_FAILED is -1, the largest of all.
  if (page > Number.MAX_SAFE_INTEGER) throw new Error("the kernel gives no memory");
  const view = new DataView(ffi.toArrayBuffer(page, 0, length));
  let at = 0;
  for (const word of words) {
    view.setUint32(at, word, littleEndian);
    at += 4;
  }
  // Where memory may not become executable, there is no `bun:ffi` either. On arm64 it is here that the kernel sees to the instruction cache.
  if (libc.mprotect(page, length, PROT_READ | PROT_EXEC) !== 0) throw new Error("the kernel allows no new executable memory");
  // "cstring" takes numbers and arrays, as "ptr" does, and strings besides.
  const own = symbolsOf(
    ffi.linkSymbols({
      syscall: { ptr: page, args: ["i64", "cstring", "cstring", "cstring", "cstring", "cstring"], returns: "i32" },
      errnoOf: { ptr: (page + errnoOf) as Pointer, args: ["ptr", "ptr", "cstring", "ptr"], returns: "i32" },
    }),
  );
  const addressOf = (symbol: unknown) => (symbol as { readonly ptr: Pointer }).ptr;
  return {
    syscall: own.syscall as unknown as Syscall,
    execvp: (file, argv) => own.errnoOf(addressOf(libc.execvp), addressOf(libc.__errno_location), file as never, argv),
    strdup: libc.strdup as unknown as Native["strdup"],
  };
}

/**
 * {@link Syscall}, for calls that have no function here. Binds itself at the first call, in place: a function in between would be called
 * often enough to be compiled.
 */
export let syscall: Syscall = (number, ...args) => {
  native ??= bind();
  syscall = native.syscall;
  return syscall(number, ...args);
};

/** @param result What the call returned: `-errno`. */
function fail(result: number, syscall: string, path?: PathLike | null, dest?: PathLike | null): never {
  throw new SyscallError(syscall, -result, path == null ? undefined : pathText(path), dest == null ? undefined : pathText(dest));
}

// --- Structs: written and read here and nowhere else, little-endian.

interface Scratch {
  /** What goes to the kernel, or comes from it. */
  readonly bytes: Uint8Array;
  /** What comes from it when something went to it as well: the half of the buffer from `ANSWER` on. */
  readonly answer: Uint8Array;
  readonly view: DataView;
}

const ANSWER = 8192;

/** One buffer for all: calls do not overlap. It is long enough that Bun never moves it. */
let memory: Scratch | undefined;
function allocate(): Scratch {
  const buffer = new ArrayBuffer(2 * ANSWER);
  memory = { bytes: new Uint8Array(buffer), answer: new Uint8Array(buffer, ANSWER), view: new DataView(buffer) };
  return memory;
}

// --- Files and directories

/** open(2), by way of openat(2). Returns the descriptor. */
export function open(path: PathLike, flags: number, mode = 0): number {
  const fd = syscall(arm ? 56 : 257, AT.FDCWD, toPath(path), flags, mode);
  return fd < 0 ? fail(fd, "open", path) : fd;
}

/** openat(2). Returns the descriptor. */
export function openat(dirfd: number, path: PathLike, flags: number, mode = 0): number {
  const fd = syscall(arm ? 56 : 257, dirfd, toPath(path), flags, mode);
  return fd < 0 ? fail(fd, "openat", path) : fd;
}

/** openat2(2), Linux 5.6. Returns the descriptor. */
export function openat2(dirfd: number, path: PathLike, how: { flags: number; mode?: number; resolve: number }): number {
  const name = toPath(path);
  const { bytes, view } = memory ?? allocate();
  // u64 all of them, of which the lower half is enough.
  bytes.fill(0, 0, 24);
  view.setUint32(0, how.flags, true);
  view.setUint32(8, how.mode ?? 0, true);
  view.setUint32(16, how.resolve, true);
  const fd = syscall(437, dirfd, name, bytes, 24);
  return fd < 0 ? fail(fd, "openat2", path) : fd;
}

/** close(2). The descriptor is gone even when this throws. */
export function close(fd: number): void {
  const result = syscall(arm ? 57 : 3, fd);
  if (result < 0) fail(result, "close");
}

/** read(2) into `into`. Returns the number of bytes, 0 at the end. */
export function read(fd: number, into: Uint8Array): number {
  const count = syscall(arm ? 63 : 0, fd, into, into.length);
  return count < 0 ? fail(count, "read") : count;
}

/** write(2). Returns the number of bytes that were taken. */
export function write(fd: number, bytes: Uint8Array): number {
  const count = syscall(arm ? 64 : 1, fd, bytes, bytes.length);
  return count < 0 ? fail(count, "write") : count;
}

/** Reads a whole file, of a size not known before (as everything in proc(5)). */
export function readFile(path: PathLike, dirfd: number = AT.FDCWD): Uint8Array {
  const fd = openat(dirfd, path, O.RDONLY | O.CLOEXEC);
  try {
    // Most files are short enough for the memory that is there. New memory costs a page fault for every 4 kB.
    let { bytes } = memory ?? allocate();
    let length = 0;
    for (;;) {
      const count = read(fd, length === 0 ? bytes : bytes.subarray(length));
      if (count === 0) return bytes.slice(0, length);
      length += count;
      if (length === bytes.length) {
        const larger = new Uint8Array(length * 4);
        larger.set(bytes);
        bytes = larger;
      }
    }
  } finally {
    close(fd);
  }
}

/** memfd_create(2): the descriptor of a new file in memory, close-on-exec. It is to be seen as `/memfd:NAME (deleted)`. */
export function memfd_create(name: string): number {
  const MFD_CLOEXEC = 1;
  const fd = syscall(arm ? 279 : 319, toText(name, "name"), MFD_CLOEXEC);
  return fd < 0 ? fail(fd, "memfd_create", name) : fd;
}

/** readlinkat(2): the link's bytes. */
export function readlinkat(dirfd: number, path: PathLike): Uint8Array {
  const name = toPath(path);
  const { bytes } = memory ?? allocate();
  const length = syscall(arm ? 78 : 267, dirfd, name, bytes, 8192);
  return length < 0 ? fail(length, "readlinkat", path) : bytes.slice(0, length);
}

/** mkdirat(2). */
export function mkdirat(dirfd: number, path: PathLike, mode: number): void {
  const result = syscall(arm ? 34 : 258, dirfd, toPath(path), mode);
  if (result < 0) fail(result, "mkdirat", path);
}

/** symlinkat(2). Names that are not UTF-8 are not for this one. */
export function symlinkat(target: string, dirfd: number, path: string): void {
  const result = syscall(arm ? 36 : 266, toText(target, "target"), dirfd, toText(path, "path"));
  if (result < 0) fail(result, "symlinkat", target, path);
}

/** unlinkat(2); `AT.REMOVEDIR` makes it rmdir(2). */
export function unlinkat(dirfd: number, path: PathLike, flags: number): void {
  const result = syscall(arm ? 35 : 263, dirfd, toPath(path), flags);
  if (result < 0) fail(result, "unlinkat", path);
}

/** getdents64(2) until the end: the names in a directory, `.` and `..` left out. The descriptor must be at its start. */
export function readDirectory(fd: number): string[] {
  const { bytes, view } = memory ?? allocate();
  const names: string[] = [];
  for (;;) {
    const length = syscall(arm ? 61 : 217, fd, bytes, bytes.length);
    if (length < 0) fail(length, "getdents64");
    if (length === 0) return names;
    for (let at = 0; at < length; at += view.getUint16(at + 16, true)) {
      const name = decode(bytes.subarray(at + 19, bytes.indexOf(0, at + 19)));
      if (name !== "." && name !== "..") names.push(name);
    }
  }
}

/** What {@link statx} reads. */
export interface Statx {
  /** The fields that the kernel filled in. */
  mask: number;
  /** File type and permissions, as in inode(7). */
  mode: number;
  nlink: number;
  ino: bigint;
  devMajor: number;
  devMinor: number;
  /** The mount's ID: unique over time if `mask` has `STATX.MNT_ID_UNIQUE` (Linux 6.8), reused at once if `STATX.MNT_ID` (5.8), 0 if neither. */
  mountId: bigint;
  /** Whether the file is the root of a mount; undefined where the kernel does not say (before 5.8). */
  mountRoot: boolean | undefined;
}

/** statx(2), Linux 4.11. */
export function statx(dirfd: number, path: PathLike, flags: number, mask: number): Statx {
  const name = path === "" ? path : toPath(path);
  const { bytes, view } = memory ?? allocate();
  const result = syscall(arm ? 291 : 332, dirfd, name, flags, mask, bytes);
  if (result < 0) fail(result, "statx", path);
  return statxFrom(view);
}

function statxFrom(view: DataView): Statx {
  const attributes = view.getUint32(8, true);
  const known = view.getUint32(56, true);
  return {
    mask: view.getUint32(0, true),
    mode: view.getUint16(28, true),
    nlink: view.getUint32(16, true),
    ino: view.getBigUint64(32, true),
    devMajor: view.getUint32(136, true),
    devMinor: view.getUint32(140, true),
    mountId: view.getBigUint64(144, true),
    mountRoot: known & STATX_ATTR.MOUNT_ROOT ? (attributes & STATX_ATTR.MOUNT_ROOT) !== 0 : undefined,
  };
}

/** fstatfs(2): the file system's magic number and its mount's flags, which have the values of {@link MS} (but relatime 0x1000, nosymfollow 0x2000). */
export function fstatfs(fd: number): { type: number; flags: number } {
  const { bytes, view } = memory ?? allocate();
  const result = syscall(arm ? 44 : 138, fd, bytes);
  if (result < 0) fail(result, "fstatfs");
  return { type: view.getUint32(0, true), flags: view.getUint32(80, true) };
}

// --- Mounts

/** mount(2). */
export function mount(
  source: PathLike | null,
  target: PathLike,
  fsType: string | null,
  flags: number,
  data: string | null,
): void {
  const from = source === null ? null : toPath(source, "source");
  const type = fsType === null ? null : toText(fsType, "fsType");
  const options = data === null ? null : toText(data, "data");
  const result = syscall(arm ? 40 : 165, from, toPath(target, "target"), type, flags, options);
  if (result < 0) fail(result, "mount", source ?? target, source === null ? null : target);
}

/** umount2(2). */
export function umount2(target: PathLike, flags: number): void {
  const result = syscall(arm ? 39 : 166, toPath(target, "target"), flags);
  if (result < 0) fail(result, "umount2", target);
}

/**
 * umount2(2) with `MNT.EXPIRE`, of what is not to be unmounted: a mount that is in use, or that was not marked before.
 *
 * @returns The error's number, or 0. EBUSY: it is in use. EAGAIN: it was marked. EINVAL: it is locked, or no mount at all.
 */
export function tryExpire(target: PathLike, flags = 0): number {
  return 0 - syscall(arm ? 39 : 166, toPath(target, "target"), MNT.EXPIRE | flags);
}

/** pivot_root(2). */
export function pivot_root(newRoot: PathLike, putOld: PathLike): void {
  const result = syscall(arm ? 41 : 155, toPath(newRoot, "newRoot"), toPath(putOld, "putOld"));
  if (result < 0) fail(result, "pivot_root", newRoot, putOld);
}

/** open_tree(2), Linux 5.2. Returns the tree's descriptor. */
export function open_tree(dirfd: number, path: PathLike, flags: number): number {
  const fd = syscall(428, dirfd, path === "" ? path : toPath(path), flags);
  return fd < 0 ? fail(fd, "open_tree", path) : fd;
}

/** move_mount(2), Linux 5.2. */
export function move_mount(fromFd: number, from: PathLike, toFd: number, to: PathLike, flags: number): void {
  const result = syscall(429, fromFd, from === "" ? from : toPath(from, "from"), toFd, to === "" ? to : toPath(to, "to"), flags);
  if (result < 0) fail(result, "move_mount", from, to);
}

/** mount_setattr(2), Linux 5.12. `propagation` is one of the propagation types of {@link MS}. */
export function mount_setattr(
  dirfd: number,
  path: PathLike,
  flags: number,
  attributes: { set?: number; clear?: number; propagation?: number },
): void {
  const name = path === "" ? path : toPath(path);
  const { bytes, view } = memory ?? allocate();
  // u64 all of them, of which the lower half is enough.
  bytes.fill(0, 0, 32);
  view.setUint32(0, attributes.set ?? 0, true);
  view.setUint32(8, attributes.clear ?? 0, true);
  view.setUint32(16, attributes.propagation ?? 0, true);
  const result = syscall(442, dirfd, name, flags, bytes, 32);
  if (result < 0) fail(result, "mount_setattr", path);
}

/** fsopen(2), Linux 5.2. Returns the file system context's descriptor. */
export function fsopen(fsType: string, flags: number): number {
  const fd = syscall(430, toText(fsType, "fsType"), flags);
  return fd < 0 ? fail(fd, "fsopen", fsType) : fd;
}

/** fsconfig(2), Linux 5.2. */
export function fsconfig(fd: number, command: number, key: string | null, value: string | null): void {
  const result = syscall(431, fd, command, key, value, 0);
  if (result < 0) fail(result, "fsconfig", key, value);
}

/** fsmount(2), Linux 5.2. Returns the mount's descriptor; it is attached nowhere. */
export function fsmount(fd: number, flags: number, attributes: number): number {
  const mountFd = syscall(432, fd, flags, attributes);
  return mountFd < 0 ? fail(mountFd, "fsmount") : mountFd;
}

/** What {@link statmount} reads. IDs are unique over time, as in STATX_MNT_ID_UNIQUE. */
export interface Statmount {
  id: bigint;
  /** A mount that is its own parent is the absolute root of its namespace. */
  parentId: bigint;
  /** The propagation type, one of {@link MS}. */
  propagation: number;
}

/** statmount(2), Linux 6.8. ENOENT: no such mount in this process's mount namespace. */
export function statmount(id: bigint): Statmount {
  const { bytes, view, answer } = memory ?? allocate();
  mountIdRequest(view, id, STATMOUNT.MNT_BASIC);
  const result = syscall(457, bytes, answer, answer.length, 0);
  if (result < 0) fail(result, "statmount");
  return {
    id: view.getBigUint64(ANSWER + 40, true),
    parentId: view.getBigUint64(ANSWER + 48, true),
    propagation: view.getUint32(ANSWER + 72, true),
  };
}

/** listmount(2), Linux 6.8: how many mounts there are below a mount; from `LSMT_ROOT` on, the root itself is counted as well. */
export function countMounts(id: bigint): number {
  const { bytes, view, answer } = memory ?? allocate();
  const most = answer.length / 8;
  let total = 0;
  let last = 0n;
  for (;;) {
    mountIdRequest(view, id, last);
    const count = syscall(458, bytes, answer, most, 0);
    if (count < 0) fail(count, "listmount");
    total += count;
    if (count < most) return total;
    last = view.getBigUint64(ANSWER + (count - 1) * 8, true);
  }
}

/** struct mnt_id_req. */
function mountIdRequest(view: DataView, id: bigint, parameter: bigint): void {
  view.setUint32(0, 24, true);
  view.setUint32(4, 0, true);
  view.setBigUint64(8, id, true);
  view.setBigUint64(16, parameter, true);
}

// --- Processes

/** chdir(2). `process.cwd()` does not notice; use `process.chdir` where it should. */
export function chdir(path: PathLike): void {
  const result = syscall(arm ? 49 : 80, toPath(path));
  if (result < 0) fail(result, "chdir", path);
}

/** chdir(2) and getcwd(2), by which `process.cwd()` notices. */
function chdirOfBun(path: string): void {
  try {
    process.chdir(path);
  } catch (error) {
    throw error instanceof Error && "errno" in error && "syscall" in error
      ? new SyscallError(String(error.syscall), -Number(error.errno), path)
      : error;
  }
}

/** fchdir(2). */
export function fchdir(fd: number): void {
  const result = syscall(arm ? 50 : 81, fd);
  if (result < 0) fail(result, "fchdir");
}

/** chroot(2). */
export function chroot(path: PathLike): void {
  const result = syscall(arm ? 51 : 161, toPath(path));
  if (result < 0) fail(result, "chroot", path);
}

/** unshare(2). It moves the calling thread and no other. */
export function unshare(flags: number): void {
  const result = syscall(arm ? 97 : 272, flags);
  if (result < 0) fail(result, "unshare");
}

/** setns(2). */
export function setns(fd: number, type: number): void {
  const result = syscall(arm ? 268 : 308, fd, type);
  if (result < 0) fail(result, "setns");
}

/** ioctl_nsfs(2), NS_GET_USERNS: a descriptor of the user namespace that owns a namespace. EPERM: it is an outer one. */
export function owningUserNamespace(fd: number): number {
  const NS_GET_USERNS = 0xb701;
  const owner = syscall(arm ? 29 : 16, fd, NS_GET_USERNS);
  return owner < 0 ? fail(owner, "ioctl") : owner;
}

/** ioctl_tty(2), TIOCGWINSZ: how many columns a terminal has; undefined if it does not say so, or is no terminal. */
export function columnsOf(fd: number): number | undefined {
  const TIOCGWINSZ = 0x5413;
  const { bytes, view } = memory ?? allocate();
  if (syscall(arm ? 29 : 16, fd, TIOCGWINSZ, bytes) < 0) return undefined;
  return view.getUint16(2, true) || undefined;
}

/** kcmp(2) with KCMP_FS: whether two tasks share root, working directory and umask. Numbers are those of this process's PID namespace. */
export function sharesFs(pid1: number, pid2: number): boolean {
  const result = syscall(arm ? 272 : 312, pid1, pid2, KCMP.FS, 0, 0);
  return result < 0 ? fail(result, "kcmp") : result === 0;
}

/** capget(2): whether a capability is among the effective ones of this thread. */
export function hasCapability(capability: number): boolean {
  const { view } = capabilitySets();
  const word = view.getUint32(ANSWER + (capability < 32 ? 0 : 12), true);
  return ((word >>> (capability % 32)) & 1) === 1;
}

/** prctl(2): the option, and its commands. */
const PR_CAP_AMBIENT = { OPTION: 47, IS_SET: 1, RAISE: 2, LOWER: 3, CLEAR_ALL: 4 } as const;

/** prctl(2) with PR_CAP_AMBIENT. Returns what it returns. */
function ambient(command: number, capability: number): number {
  return syscall(arm ? 167 : 157, PR_CAP_AMBIENT.OPTION, command, capability, 0, 0);
}

/** capset(2) and prctl(2): this thread's inheritable and ambient capabilities, which a program that it executes would get, are none. */
export function dropInheritableCapabilities(): void {
  const cleared = ambient(PR_CAP_AMBIENT.CLEAR_ALL, 0);
  if (cleared < 0) fail(cleared, "prctl");
  const { bytes, view, answer } = capabilitySets();
  // Two times effective, permitted, inheritable.
  view.setUint32(ANSWER + 8, 0, true);
  view.setUint32(ANSWER + 20, 0, true);
  const result = syscall(arm ? 91 : 126, bytes, answer);
  if (result < 0) fail(result, "capset");
}

/** capget(2) of this thread, into the answer; the header stays, for capset(2). */
function capabilitySets(): Scratch {
  const scratch = memory ?? allocate();
  const { bytes, view, answer } = scratch;
  view.setUint32(0, 0x20080522, true); // _LINUX_CAPABILITY_VERSION_3
  view.setInt32(4, 0, true);
  const result = syscall(arm ? 90 : 125, bytes, answer);
  if (result < 0) fail(result, "capget");
  return scratch;
}

/**
 * Lets the children that an action starts have capabilities that this thread has: they lose them at their execve(2) where it is not
 * root in its user namespace, unless they are ambient ones. Afterwards this thread's are what they were.
 *
 * @param lent The capabilities, none above 31. One that it does not have, or may not hand on, they do not get.
 */
function lendToChildren<T>(lent: readonly number[], action: () => T): T {
  const { bytes, view, answer } = capabilitySets();
  const before = answer.slice(0, 24);
  const wasAmbient = lent.map((each) => ambient(PR_CAP_AMBIENT.IS_SET, each) === 1);
  const wanted = lent.reduce((set, each) => set | (1 << each), 0);
  view.setUint32(ANSWER + 8, (view.getUint32(ANSWER + 8, true) | (wanted & view.getUint32(ANSWER + 4, true))) >>> 0, true);
  syscall(arm ? 91 : 126, bytes, answer);
  for (const each of lent) ambient(PR_CAP_AMBIENT.RAISE, each);
  try {
    return action();
  } finally {
    for (const [index, each] of lent.entries()) {
      if (!wasAmbient[index]) ambient(PR_CAP_AMBIENT.LOWER, each);
    }
    capabilitySets();
    answer.set(before);
    const result = syscall(arm ? 91 : 126, bytes, answer);
    if (result < 0) fail(result, "capset");
  }
}

/**
 * getrusage(2) with RUSAGE_CHILDREN: the page faults of all children that have ended and were waited for, and of theirs. It grows
 * with each of them.
 */
export function faultsOfChildren(): number {
  const RUSAGE_CHILDREN = -1;
  const { bytes, view } = memory ?? allocate();
  const result = syscall(arm ? 165 : 98, RUSAGE_CHILDREN, bytes);
  if (result < 0) fail(result, "getrusage");
  return Number(view.getBigUint64(64, true));
}

/** prctl(2) with PR_GET_NAME: this thread's name. The main thread's is the process's, `/proc/self/comm`. */
export function threadName(): string {
  const PR_GET_NAME = 16;
  const { bytes } = memory ?? allocate();
  const result = syscall(arm ? 167 : 157, PR_GET_NAME, bytes);
  if (result < 0) fail(result, "prctl");
  return decode(bytes.subarray(0, bytes.indexOf(0)));
}

/** prctl(2) with PR_SET_NAME: 15 bytes of the name are taken. */
export function setThreadName(name: string): void {
  const PR_SET_NAME = 15;
  const result = syscall(arm ? 167 : 157, PR_SET_NAME, toText(name, "name"));
  if (result < 0) fail(result, "prctl");
}

/** fcntl(2) with a command that takes a number: `F.GETFD`, `F.SETFD`, `F.GETFL`, `F.SETFL`, `F.DUPFD_CLOEXEC`. Returns what the command does. */
export function fcntl(fd: number, command: number, argument = 0): number {
  const result = syscall(arm ? 25 : 72, fd, command, argument);
  return result < 0 ? fail(result, "fcntl") : result;
}

/** Whether a descriptor is open. */
export function isOpen(fd: number): boolean {
  return syscall(arm ? 25 : 72, fd, F.GETFD) >= 0;
}

/** dup3(2): `to` becomes another descriptor of what `from` is one of; what it was before is closed. */
export function dup3(from: number, to: number, flags: number): void {
  const result = syscall(arm ? 24 : 292, from, to, flags);
  if (result < 0) fail(result, "dup3");
}

/** close_range(2), Linux 5.9, with `CLOSE_RANGE.CLOEXEC` 5.11. */
export function close_range(first: number, last: number, flags: number): void {
  const result = syscall(436, first, last, flags);
  if (result < 0) fail(result, "close_range");
}

/** rt_sigaction(2): a signal's disposition becomes the default one. */
export function resetSignal(signal: number): void {
  const { bytes } = memory ?? allocate();
  // struct sigaction: SIG_DFL is 0.
  bytes.fill(0, 0, 32);
  const result = syscall(arm ? 134 : 13, signal, bytes, null, 8);
  if (result < 0) fail(result, "rt_sigaction");
}

/**
 * prlimit(2) with RLIMIT_NOFILE: the limits of open files of a process.
 *
 * @param pid The process; 0 is this one.
 * @param soft A new soft limit; the hard one stays. Default: none.
 */
export function limitOfFiles(pid: number, soft?: number): { soft: number; hard: number } {
  const RLIMIT_NOFILE = 7;
  const { bytes, view } = memory ?? allocate();
  const got = syscall(arm ? 261 : 302, pid, RLIMIT_NOFILE, null, bytes);
  if (got < 0) fail(got, "prlimit");
  // RLIM_INFINITY becomes a number that is large enough.
  const limits = {
    soft: view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32,
    hard: view.getUint32(8, true) + view.getUint32(12, true) * 2 ** 32,
  };
  if (soft === undefined) return limits;
  view.setUint32(0, soft, true);
  view.setUint32(4, soft / 2 ** 32, true);
  const set = syscall(arm ? 261 : 302, pid, RLIMIT_NOFILE, bytes, null);
  if (set < 0) fail(set, "prlimit");
  return { soft, hard: limits.hard };
}

/**
 * execvp(3): replaces this process by a command, which is looked up in PATH unless there is a slash in its name. The environment is
 * the one that this process was started with, byte for byte. Returns only by throwing.
 *
 * @param argv The command and its arguments.
 */
export function execvp(argv: readonly [PathLike, ...PathLike[]]): never {
  native ??= bind();
  return fail(native.execvp(toPath(argv[0], "the command") as CString, pointersTo(argv)), "execvp", argv[0]);
}

/**
 * execve(2): replaces this process by the program in a file. The other threads of this process end. Returns only by throwing.
 *
 * @param environment All of it, each entry as `NAME=value`.
 */
export function execve(path: PathLike, argv: readonly PathLike[], environment: readonly PathLike[]): never {
  return fail(syscall(arm ? 221 : 59, toPath(path), pointersTo(argv), pointersTo(environment)), "execve", path);
}

/** An array of pointers to strings, closed by a NULL. */
function pointersTo(strings: readonly PathLike[]): Uint8Array<ArrayBuffer> {
  native ??= bind();
  // From 1000 bytes on Bun does not move it.
  const pointers = new DataView(new ArrayBuffer(1024 + 8 * strings.length));
  let at = 0;
  for (const each of strings) {
    // An environment is bytes, and long: what is called for each of them is compiled, in a thread of its own, for which execve(2) then waits.
    let terminated: string | Uint8Array;
    if (each instanceof Uint8Array && !each.includes(0)) {
      terminated = new Uint8Array(each.length + 1);
      terminated.set(each);
    } else terminated = toPath(each, "an argument");
    // Copied by libc: a string has no address of its own. If execve(2) fails, the copies stay.
    const string = native.strdup(terminated as CString);
    if (string === null) throw new SyscallError("strdup", ENOMEM);
    pointers.setUint32(at, string, true);
    pointers.setUint32(at + 4, string / 2 ** 32, true);
    at += 8;
  }
  return new Uint8Array(pointers.buffer);
}

/** waitid(2), nothing waited for: whether this process has children, zombies included. */
export function hasChildren(): boolean {
  const WNOHANG = 1;
  const WEXITED = 4;
  const WNOWAIT = 0x1000000;
  const __WALL = 0x40000000;
  const result = syscall(arm ? 95 : 247, 0, 0, (memory ?? allocate()).bytes, WEXITED | WNOHANG | WNOWAIT | __WALL);
  if (result >= 0) return true;
  const ECHILD = 10;
  return result === -ECHILD ? false : fail(result, "waitid");
}

/**
 * statx(2) of the root of this process's mount namespace, whatever this process's own root is.
 *
 * setns(2) goes there, but refuses in a process whose threads share their root, as Bun's do. So a child does it: this same
 * program, as the bun command, which reads no configuration.
 */
export function statNamespaceRoot(): Statx {
  // What is executed, as root, has to be this program: not something that a foreign root has under this name.
  const proc = open("/proc", O.PATH | O.DIRECTORY | O.CLOEXEC);
  const isProc = fstatfs(proc).type === PROC_SUPER_MAGIC;
  close(proc);
  if (!isProc) throw new Error("/proc is not mounted");
  const program = `
    import { dlopen } from "bun:ffi";
    const { open, unshare, setns, syscall } = dlopen("libc.so.6", {
      open: { args: ["cstring", "i32"], returns: "i32" },
      unshare: { args: ["i32"], returns: "i32" },
      setns: { args: ["i32", "i32"], returns: "i32" },
      syscall: { args: ["i64", "i32", "cstring", "i32", "u32", "ptr"], returns: "i32" },
    }).symbols;
    const answer = new Uint8Array(256);
    const failed = unshare(${CLONE.FS}) || setns(open("/proc/self/ns/mnt", 0), ${CLONE.NEWNS})
      || syscall(${arm ? 291 : 332}, ${AT.FDCWD}, "/", 0, ${STATX.BASIC_STATS | STATX.MNT_ID | STATX.MNT_ID_UNIQUE}, answer);
    if (failed) throw new Error("setns(2) refused");
    process.stdout.write(answer);
  `;
  const { exitCode, stdout, stderr } = lendToChildren([CAP.SYS_CHROOT, CAP.SYS_ADMIN], () =>
    Bun.spawnSync(
      ["/proc/self/exe", "--no-env-file", "--config=/dev/null", "--tsconfig-override=/dev/null", "-e", program],
      // Not "ignore" for standard input: it would need a /dev/null.
      { cwd: "/", env: { BUN_BE_BUN: "1" }, stdin: "inherit", stdout: "pipe", stderr: "pipe" },
    ),
  );
  if (exitCode !== 0) {
    const said = stderr.toString().trim();
    throw new Error(`the child that looks for the namespace's root failed: ${/^error: (.*)$/m.exec(said)?.[1] ?? said}`);
  }
  return statxFrom(new DataView(stdout.buffer, stdout.byteOffset, 256));
}

/** What {@link programOfUserNamespace} reads from its descriptor. Arguments and environment have a character for each byte. */
export interface UserNamespacePlan {
  /** The working directory's descriptor. */
  readonly cwd: number;
  /** The descriptors that the program gets; the one that this was read from, too. */
  readonly keep: readonly number[];
  /** What is written to these files, once the namespaces are there. */
  readonly files: readonly (readonly [path: string, text: string])[];
  /** The propagation of "/" there, as flags of mount(2). */
  readonly propagation: number;
  /** Whether the capabilities have to survive the execve(2) as ambient ones, since the program does not run as user 0. */
  readonly ambient: boolean;
  readonly argv: readonly string[];
  readonly environment: readonly string[];
  /**
   * What it writes to its descriptor in the end, as entries that end with a NUL each, with one more: `namespace=`, the link `ns/mnt` of
   * the new namespace, or `refusal=`, the call, its errno, whether this process is in a new namespace nevertheless, and {@link request}.
   */
  readonly marker: string;
  readonly request: string;
}

/**
 * A program for `bun -e`, which takes a user namespace and a mount namespace, for which it must have one thread only, and executes
 * /proc/self/exe again. It stands for itself: a compiled program that is started as the bun command has no files.
 *
 * @param fd The descriptor of an {@link UserNamespacePlan}, as JSON, of so many bytes.
 */
export function programOfUserNamespace(fd: number, bytes: number): string {
  return `
    import { dlopen, linkSymbols, ptr, toArrayBuffer } from "bun:ffi";
    const { mmap, mprotect } = dlopen("libc.so.6", {
      mmap: { args: ["ptr", "i64", "i32", "i32", "i32", "i64"], returns: "ptr" },
      mprotect: { args: ["ptr", "i64", "i32"], returns: "i32" },
    }).symbols;
    const { words, littleEndian } = ${JSON.stringify(machineCode())};
    const page = mmap(null, 4096, 3, 0x22, -1, 0);
    if (page > Number.MAX_SAFE_INTEGER) throw new Error("the kernel gives no memory");
    const code = new DataView(toArrayBuffer(page, 0, 4096));
    words.forEach((word, index) => code.setUint32(4 * index, word, littleEndian));
    if (mprotect(page, 4096, 5) !== 0) throw new Error("the kernel allows no new executable memory");
    const { syscall } = linkSymbols({
      syscall: { ptr: page, args: ["i64", "cstring", "cstring", "cstring", "cstring", "cstring"], returns: "i32" },
    }).symbols;
    let entered = false;
    let path = "";
    const call = (name, number, ...args) => {
      const result = syscall(number, ...args);
      if (result >= 0) return result;
      const errno = -result;
      throw Object.assign(new Error(name + " failed with errno " + errno), { refusal: [name, errno, entered, path] });
    };

    const plan = new Uint8Array(${Math.max(bytes, 1024)});
    call("pread", ${arm ? 67 : 17}, ${fd}, plan, ${bytes}, 0);
    const { cwd, keep, files, propagation, ambient, argv, environment, marker, request } = JSON.parse(Buffer.from(plan.subarray(0, ${bytes})).toString());
    let answer;
    // Before: unshare(2) takes the working directory along into the new namespace, and leaves descriptors outside.
    call("fchdir", ${arm ? 50 : 81}, cwd);
    call("close", ${arm ? 57 : 3}, cwd);
    try {
      call("unshare", ${arm ? 97 : 272}, ${CLONE.NEWUSER | CLONE.NEWNS});
      entered = true;
      for (const [name, text] of files) {
        path = name;
        const file = call("open", ${arm ? 56 : 257}, ${AT.FDCWD}, path, ${O.WRONLY | O.CLOEXEC}, 0);
        const bytes = Buffer.from(text);
        call("write", ${arm ? 64 : 1}, file, bytes, bytes.length);
        call("close", ${arm ? 57 : 3}, file);
      }
      path = "";
      call("mount", ${arm ? 40 : 165}, null, "/", null, propagation, null);
      if (ambient) {
        const header = new Uint32Array([0x20080522, 0]);
        const sets = new Uint32Array(6);
        call("capget", ${arm ? 90 : 125}, header, sets);
        sets[2] = sets[1];
        sets[5] = sets[4];
        call("capset", ${arm ? 91 : 126}, header, sets);
        for (let capability = 0; capability < 64; capability++) {
          const has = (sets[capability < 32 ? 1 : 4] >>> (capability % 32)) & 1;
          if (has) call("prctl", ${arm ? 167 : 157}, ${PR_CAP_AMBIENT.OPTION}, ${PR_CAP_AMBIENT.RAISE}, capability, 0, 0);
        }
      }
      const link = new Uint8Array(1024);
      const length = call("readlink", ${arm ? 78 : 267}, ${AT.FDCWD}, "/proc/self/ns/mnt", link, 1024);
      answer = "namespace=" + Buffer.from(link.subarray(0, length)).toString();
    } catch (error) {
      if (!error.refusal) throw error;
      answer = "refusal=" + [...error.refusal, request].join(" ");
    }
    const text = Buffer.from(marker + answer + "\\0");
    call("ftruncate", ${arm ? 46 : 77}, ${fd}, 0);
    call("pwrite", ${arm ? 68 : 18}, ${fd}, text, text.length, 0);
    for (const kept of [${fd}, ...keep]) call("fcntl", ${arm ? 25 : 72}, kept, ${F.SETFD}, 0);
    // What is pointed to must not move: it is one buffer each, and long.
    const vector = (strings) => {
      const bytes = Buffer.from(strings.map((each) => each + "\\0").join("") + "\\0".repeat(1024), "latin1");
      const memory = new Uint8Array(new ArrayBuffer(bytes.length));
      memory.set(bytes);
      const pointers = new BigUint64Array(new ArrayBuffer(1024 + 8 * strings.length));
      let at = 0;
      strings.forEach((each, index) => {
        pointers[index] = BigInt(ptr(memory) + at);
        at += each.length + 1;
      });
      return { memory, pointers };
    };
    const [one, other] = [vector(argv), vector(environment)];
    globalThis.kept = [one, other];
    call("execve", ${arm ? 221 : 59}, "/proc/self/exe", one.pointers, other.pointers);
  `;
}

/** setenv(3), or unsetenv(3) without a value: what a program gets that is executed by {@link execvp}. `process.env` stays as it is. */
export function setEnvironment(name: string, value?: string): void {
  // Bound only here: the command does without, and has no time to lose.
  const { setenv, unsetenv } = symbolsOf(
    loadFfi().dlopen("libc.so.6", {
      setenv: { args: ["cstring", "cstring", "i32"], returns: "i32" },
      unsetenv: { args: ["cstring"], returns: "i32" },
    }),
  );
  const text = toText(name, "name") as unknown as CString;
  const result = value === undefined ? unsetenv(text) : setenv(text, toText(value, "value"), 1);
  // The two that setenv(3) knows. It is not read, see machineCode().
  const errno = name === "" || name.includes("=") ? EINVAL : ENOMEM;
  if (result !== 0) throw new SyscallError(value === undefined ? "unsetenv" : "setenv", errno);
}

/** The calls by which `switchRoot` looks and acts. A test puts a kernel of its own in their place, to make them fail. */
export interface Kernel {
  chdir(path: string): void;
  chroot: typeof chroot;
  close: typeof close;
  countMounts: typeof countMounts;
  fchdir: typeof fchdir;
  mkdirat: typeof mkdirat;
  mount: typeof mount;
  mount_setattr: typeof mount_setattr;
  move_mount: typeof move_mount;
  open: typeof open;
  openat2: typeof openat2;
  open_tree: typeof open_tree;
  pivot_root: typeof pivot_root;
  sharesFs: typeof sharesFs;
  statmount: typeof statmount;
  statx: typeof statx;
  tryExpire: typeof tryExpire;
  umount2: typeof umount2;
  unlinkat: typeof unlinkat;
}

/** The kernel that this process runs on. `chdir` is Bun's, which then knows its working directory. */
export const kernel: Kernel = {
  chdir: chdirOfBun,
  chroot,
  close,
  countMounts,
  fchdir,
  mkdirat,
  mount,
  mount_setattr,
  move_mount,
  open,
  openat2,
  open_tree,
  pivot_root,
  sharesFs,
  statmount,
  statx,
  tryExpire,
  umount2,
  unlinkat,
};
