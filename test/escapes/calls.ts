/** What the package has no use for, and who wants to get out of a root has. */
import { dlopen, ptr, read } from "bun:ffi";
import { SyscallError } from "../../syscalls.ts";

const libc = dlopen("libc.so.6", {
  __errno_location: { args: [], returns: "ptr" },
  accept: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  connect: { args: ["i32", "ptr", "u32"], returns: "i32" },
  listen: { args: ["i32", "i32"], returns: "i32" },
  mknod: { args: ["ptr", "u32", "u64"], returns: "i32" },
  open_by_handle_at: { args: ["i32", "ptr", "i32"], returns: "i32" },
  prctl: { args: ["i32", "i64"], returns: "i32" },
  ptrace: { args: ["i32", "i32", "u64", "u64"], returns: "i64" },
  recvmsg: { args: ["i32", "ptr", "i32"], returns: "i64" },
  sendmsg: { args: ["i32", "ptr", "i32"], returns: "i64" },
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  syscall: { args: ["i64", "i64", "i64"], returns: "i32" },
  waitpid: { args: ["i32", "ptr", "i32"], returns: "i32" },
}).symbols;

/** What a call returned; if it failed, its errno is thrown, which nothing has changed yet. */
function succeeded(syscall: string, result: number | bigint): number {
  if (Number(result) !== -1) return Number(result);
  const errno = libc.__errno_location();
  throw new SyscallError(syscall, errno === null ? 0 : read.i32(errno, 0));
}

/** mknod(2) of a block device. */
export function makeBlockDevice(path: string, device: number): void {
  const S_IFBLK = 0o060000;
  succeeded("mknod", libc.mknod(Buffer.from(`${path}\0`), S_IFBLK | 0o600, device));
}

/** pidfd_open(2). */
export function pidfd_open(pid: number): number {
  return succeeded("pidfd_open", libc.syscall(434, pid, 0));
}

/** open_by_handle_at(2) of the root of an ext4 file system, which has the inode number 2 and the generation 0. */
export function openRootOfExt4(anyOfIt: number): number {
  const FILEID_INO32_GEN = 1;
  const handle = new Uint32Array([8, FILEID_INO32_GEN, 2, 0]);
  return succeeded("open_by_handle_at", libc.open_by_handle_at(anyOfIt, handle, 0));
}

/** prctl(2): where Yama is, which lets only a parent trace a process, every process of the same user may trace this one all the same. */
export function allowTracing(): void {
  const [PR_SET_PTRACER, PR_SET_PTRACER_ANY] = [0x59616d61, -1];
  // Where it is not, this is EINVAL.
  libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
}

/** ptrace(2): stops a process, copies a part of its memory, and lets it go on. */
export function memoryOf(pid: number, start: number, end: number): Buffer {
  const [PTRACE_PEEKDATA, PTRACE_ATTACH, PTRACE_DETACH] = [2, 16, 17];
  const __WALL = 0x40000000;
  succeeded("ptrace", libc.ptrace(PTRACE_ATTACH, pid, 0, 0));
  succeeded("waitpid", libc.waitpid(pid, null, __WALL));
  const memory = new BigInt64Array((end - start) / 8);
  for (let at = 0; at < memory.length; at++) memory[at] = libc.ptrace(PTRACE_PEEKDATA, pid, start + at * 8, 0);
  succeeded("ptrace", libc.ptrace(PTRACE_DETACH, pid, 0, 0));
  return Buffer.from(memory.buffer);
}

// --- Unix sockets, unix(7)

const [AF_UNIX, SOCK_STREAM] = [1, 1];

/** struct sockaddr_un. An address that begins with "@" is an abstract one. */
function socketAddress(address: string): Uint8Array {
  return Buffer.from(`${String.fromCharCode(AF_UNIX)}\0${address.replace(/^@/, "\0")}`);
}

/** A socket that waits at an address for those who connect. */
export function listenAt(address: string): number {
  const socket = succeeded("socket", libc.socket(AF_UNIX, SOCK_STREAM, 0));
  const name = socketAddress(address);
  succeeded("bind", libc.bind(socket, name, name.length));
  succeeded("listen", libc.listen(socket, 100));
  return socket;
}

export function accept(socket: number): number {
  return succeeded("accept", libc.accept(socket, null, null));
}

export function connectTo(address: string): number {
  const socket = succeeded("socket", libc.socket(AF_UNIX, SOCK_STREAM, 0));
  const name = socketAddress(address);
  succeeded("connect", libc.connect(socket, name, name.length));
  return socket;
}

/** A struct msghdr, and behind it the byte and the descriptor that it is about. From 1000 bytes on, Bun does not move a buffer. */
const bytes = new Uint8Array(new ArrayBuffer(1024));
const message = new DataView(bytes.buffer);
const [IOVEC, BYTE, CONTROL, DESCRIPTOR] = [64, 128, 256, 272];

function clearMessage(): void {
  const start = BigInt(ptr(bytes));
  bytes.fill(0);
  message.setBigUint64(16, start + BigInt(IOVEC), true);
  message.setBigUint64(24, 1n, true);
  message.setBigUint64(IOVEC, start + BigInt(BYTE), true);
  message.setBigUint64(IOVEC + 8, 1n, true);
  message.setBigUint64(32, start + BigInt(CONTROL), true);
  message.setBigUint64(40, 24n, true);
}

/** sendmsg(2) with SCM_RIGHTS. */
export function sendDescriptor(socket: number, fd: number): void {
  const [SOL_SOCKET, SCM_RIGHTS] = [1, 1];
  clearMessage();
  message.setBigUint64(CONTROL, 20n, true);
  message.setInt32(CONTROL + 8, SOL_SOCKET, true);
  message.setInt32(CONTROL + 12, SCM_RIGHTS, true);
  message.setInt32(DESCRIPTOR, fd, true);
  succeeded("sendmsg", libc.sendmsg(socket, bytes, 0));
}

/** recvmsg(2) of what {@link sendDescriptor} sends: the descriptor. */
export function receiveDescriptor(socket: number): number {
  clearMessage();
  succeeded("recvmsg", libc.recvmsg(socket, bytes, 0));
  return message.getInt32(DESCRIPTOR, true);
}
