/** What the package has no use for, and who wants to get out of a root has. */
import { ptr } from "bun:ffi";
import { AT, isRefusal, SyscallError, syscall } from "../../syscalls.ts";

/** By their numbers, on x86-64 and on arm64. */
const numbers = {
  ...{ accept: [43, 202], bind: [49, 200], connect: [42, 203], listen: [50, 201], socket: [41, 198] },
  ...{ recvmsg: [47, 212], sendmsg: [46, 211], mknodat: [259, 33], open_by_handle_at: [304, 265] },
  ...{ prctl: [157, 167], ptrace: [101, 117], wait4: [61, 260], pidfd_open: [434, 434] },
} as const satisfies Record<string, readonly [number, number]>;

type Name = keyof typeof numbers;
type Arguments = Parameters<typeof syscall> extends [number, ...infer Rest] ? Rest : never;

function call(name: Name, ...args: Arguments): number {
  const result = syscall(numbers[name][process.arch === "arm64" ? 1 : 0], ...args);
  if (result < 0) throw new SyscallError(name, -result);
  return result;
}

/** mknod(2) of a block device. */
export function makeBlockDevice(path: string, device: number): void {
  const S_IFBLK = 0o060000;
  call("mknodat", AT.FDCWD, path, S_IFBLK | 0o600, device);
}

/** pidfd_open(2). */
export function pidfd_open(pid: number): number {
  return call("pidfd_open", pid, 0);
}

/** open_by_handle_at(2) of the root of an ext4 file system, which has the inode number 2 and the generation 0. */
export function openRootOfExt4(anyOfIt: number): number {
  const FILEID_INO32_GEN = 1;
  const handle = new Uint32Array([8, FILEID_INO32_GEN, 2, 0]);
  return call("open_by_handle_at", anyOfIt, new Uint8Array(handle.buffer), 0);
}

/** prctl(2): where Yama is, which lets only a parent trace a process, every process of the same user may trace this one all the same. */
export function allowTracing(): void {
  const [PR_SET_PTRACER, PR_SET_PTRACER_ANY] = [0x59616d61, -1];
  try {
    call("prctl", PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  } catch (error) {
    // Where it is not.
    if (!isRefusal(error, "EINVAL")) throw error;
  }
}

/** ptrace(2): stops a process, copies a part of its memory, and lets it go on. */
export function memoryOf(pid: number, start: number, end: number): Buffer {
  const [PTRACE_PEEKDATA, PTRACE_ATTACH, PTRACE_DETACH] = [2, 16, 17];
  const __WALL = 0x40000000;
  call("ptrace", PTRACE_ATTACH, pid, 0, 0);
  try {
    call("wait4", pid, null, __WALL, null);
    const memory = new Uint8Array(new ArrayBuffer(Math.max(end - start, 1024)), 0, end - start);
    for (let at = 0; at < memory.length; at += 8) call("ptrace", PTRACE_PEEKDATA, pid, start + at, memory.subarray(at, at + 8));
    return Buffer.from(memory);
  } finally {
    call("ptrace", PTRACE_DETACH, pid, 0, 0);
  }
}

// --- Unix sockets, unix(7)

const [AF_UNIX, SOCK_STREAM] = [1, 1];

/** struct sockaddr_un. An address that begins with "@" is an abstract one. */
function socketAddress(address: string): Uint8Array {
  return Buffer.from(`${String.fromCharCode(AF_UNIX)}\0${address.replace(/^@/, "\0")}`);
}

/** A socket that waits at an address for those who connect. */
export function listenAt(address: string): number {
  const socket = call("socket", AF_UNIX, SOCK_STREAM, 0);
  const name = socketAddress(address);
  call("bind", socket, name, name.length);
  call("listen", socket, 100);
  return socket;
}

export function accept(socket: number): number {
  return call("accept", socket, null, null);
}

export function connectTo(address: string): number {
  const socket = call("socket", AF_UNIX, SOCK_STREAM, 0);
  const name = socketAddress(address);
  call("connect", socket, name, name.length);
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
  call("sendmsg", socket, bytes, 0);
}

/** recvmsg(2) of what {@link sendDescriptor} sends: the descriptor. */
export function receiveDescriptor(socket: number): number {
  clearMessage();
  call("recvmsg", socket, bytes, 0);
  return message.getInt32(DESCRIPTOR, true);
}
