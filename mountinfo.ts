/**
 * The mount table: reading /proc/self/mountinfo, and telling what a path is mounted on.
 *
 * A line of the table (proc_pid_mountinfo(5)):
 *
 *     36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw,errors=continue
 *     |  |  |    |     |           |          |          |    |         |
 *     |  |  |    |     |           |          |          |    |         superOptions
 *     |  |  |    |     |           |          |          |    mountSource
 *     |  |  |    |     |           |          |          fsType
 *     |  |  |    |     |           |          optionalFields: none, or several, up to the "-"
 *     |  |  |    |     |           mountOptions, those of this mount
 *     |  |  |    |     mountPoint, as seen from the process's root
 *     |  |  |    root: the directory of the file system that is mounted here
 *     |  |  major:minor
 *     |  parentId
 *     id
 *
 * Blanks, tabs, newlines, backslashes and "#" inside a field are octal escapes (`\040`).
 */
import {
  AT,
  argumentError,
  close,
  isRefusal,
  O,
  open,
  openat2,
  type PathLike,
  pathText,
  RESOLVE,
  readFile,
  readlinkat,
  STATX,
  statx,
} from "./syscalls.ts";

/** How mount and unmount events travel to and from a mount (mount_namespaces(7)). Absent: they do not. */
export interface Propagation {
  /** The peer group that it shares events with. */
  readonly shared?: number;
  /** The peer group that it receives events from. */
  readonly master?: number;
  /** The nearest dominant peer group that this process's root can reach, when that is not the master. */
  readonly propagateFrom?: number;
  /** Whether it cannot be bind-mounted. */
  readonly unbindable: boolean;
}

/** One mount, under the names of proc_pid_mountinfo(5), octal escapes decoded. */
export interface MountInfo {
  /** The mount's ID; reused once the mount is gone. */
  id: number;
  /** The ID of the mount that it is mounted on; not in the table for the process's own root. */
  parentId: number;
  /** The device number of the files on it, as in `st_dev`. */
  major: number;
  minor: number;
  /** The path within the file system that is its root. */
  root: string;
  /** Where it is mounted, from the process's root. */
  mountPoint: string;
  /** The mount point's bytes; there only if they are not valid UTF-8, `mountPoint` then has U+FFFD in it. */
  mountPointBytes?: Uint8Array;
  /** The mount's own options: `"rw,noatime"`. */
  mountOptions: string;
  /** The fields before the separator, as they stand: `["shared:1"]`. */
  optionalFields: readonly string[];
  /** What the optional fields say. */
  propagation: Propagation;
  /** The file system's type, with its subtype if it has one: `"ext4"`, `"fuse.sshfs"`. */
  fsType: string;
  /** What is mounted: a device, `"none"`, or whatever the file system calls it; can be empty. */
  mountSource: string;
  /** The options of the file system: `"rw,errors=continue"`. */
  superOptions: string;
}

/** A line of the mount table that is not as proc_pid_mountinfo(5) says. */
export class MountInfoError extends Error {
  override readonly name = "MountInfoError";
  readonly code = "ERR_MOUNTINFO";
  /** The line's number, from 1. */
  readonly line: number;
  /** The line. */
  readonly text: string;

  constructor(line: number, text: string, reason: string) {
    super(`mountinfo line ${line}: ${reason}: '${text}'`);
    this.line = line;
    this.text = text;
  }
}

/** Picks mounts. */
export type MountFilter = (mount: MountInfo) => boolean;

const table = "/proc/self/mountinfo";

/**
 * Reads this process's mount table, in the kernel's order.
 *
 * It lists what can be reached from the process's root. Inside a detached root (method `detached`
 * of `switchRoot`) the kernel lists nothing, and the result is empty.
 *
 * @param filter Which mounts to give. Default: all.
 * @throws SyscallError if /proc is not mounted; {@link MountInfoError} if a line does not parse.
 */
export function getMounts(filter?: MountFilter): MountInfo[] {
  if (filter !== undefined) checkFilter(filter);
  return parseMountInfo(readFile(table), filter);
}

/**
 * The first mount of this process's table that the filter picks; what comes after it is not parsed.
 *
 * @throws As {@link getMounts}.
 */
export function findMount(filter: MountFilter): MountInfo | undefined {
  checkFilter(filter);
  return select(readFile(table), filter, 1)[0];
}

function checkFilter(filter: MountFilter): void {
  if (typeof filter !== "function") throw argumentError("ERR_INVALID_ARG_TYPE", "the filter must be a function");
}

/**
 * Parses a mount table.
 *
 * @param source The contents of a `mountinfo` file, as text or bytes.
 * @param filter Which mounts to give. Default: all.
 * @throws MountInfoError for a line that does not parse, a truncated last one included.
 */
export function parseMountInfo(source: string | Uint8Array, filter?: MountFilter): MountInfo[] {
  return select(source, filter, Number.POSITIVE_INFINITY);
}

const space = 0x20;
const newline = 0x0a;
const dash = 0x2d;
const colon = 0x3a;
const backslash = 0x5c;

/** The entries that the filter picks, `limit` of them at most; what comes after those is not parsed. */
function select(source: string | Uint8Array, filter: MountFilter | undefined, limit: number): MountInfo[] {
  const bytes = typeof source === "string" ? new TextEncoder().encode(source) : source;
  // One character for each byte, so that an offset into the one is an offset into the other.
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1");
  noFields = Object.freeze(noFields);
  noPropagation = Object.freeze(noPropagation);
  const line: Line = { bytes, text, start: 0, end: 0, number: 0, plain: true };
  const ends: number[] = [];
  const mounts: MountInfo[] = [];
  while (line.start < bytes.length && mounts.length < limit) {
    // One pass over the bytes finds the line's end and its blanks. This loop is what parsing costs.
    let count = 0;
    let plain = true;
    let end = line.start;
    for (; end < bytes.length; end++) {
      const byte = bytes[end] ?? newline;
      if (byte === newline) break;
      if (byte === space) ends[count++] = end;
      else if (byte === backslash || byte > 0x7e) plain = false;
    }
    ends[count] = end;
    line.number++;
    line.end = end;
    line.plain = plain;
    const mount = parseLine(line, ends, count);
    if (filter === undefined || filter(mount)) mounts.push(mount);
    line.start = end + 1;
  }
  return mounts;
}

interface Line {
  bytes: Uint8Array;
  text: string;
  start: number;
  end: number;
  number: number;
  /** Nothing in it but ASCII without escapes. */
  plain: boolean;
}

// Most mounts are private: one empty list and one answer serve for all of them.
let noFields: readonly string[] = [];
let noPropagation: Propagation = { unbindable: false };

/** `ends` are the offsets of the line's `count` blanks, and its end. */
function parseLine(line: Line, ends: readonly number[], count: number): MountInfo {
  // Six fields, the optional ones, "-" and three more.
  let separator = 6;
  while (separator < count && !isSeparator(line, ends, separator)) separator++;
  if (count < separator + 3) refuse(line, "it has fewer fields than it should");
  const end = (field: number): number => ends[field] ?? line.end;

  let column = end(1) + 1;
  while (column < end(2) && line.bytes[column] !== colon) column++;
  const optionalFields = separator === 6 ? noFields : fieldsBetween(line, ends, 6, separator);
  const mountPoint = field(line, end(3), end(4), "mountPoint");
  const mount: MountInfo = {
    id: integer(line, line.start - 1, end(0), "id"),
    parentId: integer(line, end(0), end(1), "parentId"),
    major: integer(line, end(1), column, "major"),
    minor: integer(line, column, end(2), "minor"),
    root: field(line, end(2), end(3), "root"),
    mountPoint,
    mountOptions: field(line, end(4), end(5), "mountOptions"),
    optionalFields,
    propagation: separator === 6 ? noPropagation : propagationOf(line, optionalFields),
    fsType: field(line, end(separator), end(separator + 1), "fsType"),
    mountSource: text(line, end(separator + 1), end(separator + 2)),
    superOptions: text(line, end(separator + 2), line.end),
  };
  if (mount.superOptions === "") refuse(line, "superOptions is empty");
  // U+FFFD is what bytes that are not UTF-8 decode to: only then are they worth a second look.
  if (!line.plain && mountPoint.includes("\uFFFD")) {
    const original = unescapeOctal(line.bytes.subarray(end(3) + 1, end(4)));
    if (!isUtf8(original)) mount.mountPointBytes = original;
  }
  return mount;
}

function isSeparator({ bytes }: Line, ends: readonly number[], field: number): boolean {
  const before = ends[field - 1] ?? 0;
  return bytes[before + 1] === dash && ends[field] === before + 2;
}

// A field lies between the blanks (or the colon) at `before` and `end`.

function fieldsBetween(line: Line, ends: readonly number[], first: number, last: number): string[] {
  const fields: string[] = [];
  for (let at = first; at < last; at++) fields.push(field(line, ends[at - 1] ?? 0, ends[at] ?? 0, "an optional field"));
  return fields;
}

function integer(line: Line, before: number, end: number, name: string): number {
  let value = 0;
  for (let at = before + 1; at < end; at++) {
    const digit = (line.bytes[at] ?? 0) - 0x30;
    if (digit < 0 || digit > 9) refuse(line, `${name} is not a number`);
    value = value * 10 + digit;
  }
  if (end <= before + 1 || value > Number.MAX_SAFE_INTEGER) refuse(line, `${name} is not a number`);
  return value;
}

function field(line: Line, before: number, end: number, name: string): string {
  if (end <= before + 1) refuse(line, `${name} is empty`);
  return text(line, before, end);
}

function text(line: Line, before: number, end: number): string {
  if (line.plain) return line.text.slice(before + 1, end);
  // A name may begin with the bytes that a decoder would take for a mark and leave out.
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(unescapeOctal(line.bytes.subarray(before + 1, end)));
}

function propagationOf(line: Line, fields: readonly string[]): Propagation {
  const propagation: { -readonly [K in keyof Propagation]: Propagation[K] } = { unbindable: false };
  for (const tag of fields) {
    const [name, group] = tag.split(":", 2);
    if (name === "unbindable") propagation.unbindable = true;
    else if (name === "shared") propagation.shared = peerGroup(line, group);
    else if (name === "master") propagation.master = peerGroup(line, group);
    else if (name === "propagate_from") propagation.propagateFrom = peerGroup(line, group);
    // Others are to be ignored, says the man page: a newer kernel may have more of them.
  }
  return propagation;
}

function peerGroup(line: Line, digits: string | undefined): number {
  const group = Number(digits);
  if (digits === undefined || !/^\d+$/.test(digits) || !Number.isSafeInteger(group))
    refuse(line, "an optional field names no peer group");
  return group;
}

function refuse({ bytes, start, end, number }: Line, reason: string): never {
  throw new MountInfoError(number, new TextDecoder().decode(bytes.subarray(start, end)), reason);
}

/** `\040` and its like become the byte they stand for; other backslashes stay. */
function unescapeOctal(field: Uint8Array): Uint8Array {
  const out = new Uint8Array(field.length);
  let length = 0;
  for (let at = 0; at < field.length; at++) {
    const byte = field[at] ?? 0;
    const value = byte === backslash ? octal(field, at + 1) : undefined;
    if (value !== undefined) at += 3;
    out[length++] = value ?? byte;
  }
  return out.slice(0, length);
}

function octal(field: Uint8Array, at: number): number | undefined {
  let value = 0;
  for (let i = at; i < at + 3; i++) {
    const digit = (field[i] ?? 0) - 0x30;
    if (digit < 0 || digit > 7) return undefined;
    value = value * 8 + digit;
  }
  return value > 0xff ? undefined : value;
}

function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}

// --- Filters. Paths are compared by component: `/foo` is no parent of `/foobar`.

/** Mounts on `path` or below it. */
export function prefixFilter(path: string): MountFilter {
  const prefix = withoutTrailingSlash(path);
  return (mount) => isBelow(mount.mountPoint, prefix);
}

/** Mounts on exactly `path`; several if they are stacked. */
export function singleEntryFilter(path: string): MountFilter {
  const mountPoint = withoutTrailingSlash(path);
  return (mount) => mount.mountPoint === mountPoint;
}

/** Mounts on `path` or on one of the directories above it. */
export function parentsFilter(path: string): MountFilter {
  const below = withoutTrailingSlash(path);
  return (mount) => isBelow(below, mount.mountPoint);
}

/** Mounts of one of these file system types, compared whole: `"fuse.sshfs"` is not `"fuse"`. */
export function fsTypeFilter(...fsTypes: readonly string[]): MountFilter {
  return (mount) => fsTypes.includes(mount.fsType);
}

/** Whether `path` is `above` or something below it. Both absolute, without a slash at the end. */
export function isBelow(path: string, above: string): boolean {
  return above === "/" || path === above || (path.startsWith(above) && path[above.length] === "/");
}

function withoutTrailingSlash(path: string): string {
  return path.replace(/(?<=.)\/+$/, "");
}

// --- What a path is mounted on

/** Neither trigger an automount nor wait for a server that does not answer (statx(2)). */
const quietly = AT.NO_AUTOMOUNT | AT.STATX_DONT_SYNC;

/**
 * Whether a path is a mount point, that is, the root of a mount: a file can be one, too.
 *
 * One statx(2) on Linux 5.8 and later, however many mounts there are. Before that openat2(2) (5.6), then the mount table.
 *
 * @param path The path. Symlinks are followed.
 * @throws SyscallError if there is no such path, or it cannot be reached.
 */
export function mounted(path: PathLike): boolean {
  const { mountRoot } = statx(AT.FDCWD, path, quietly, 0);
  return mountRoot ?? withDescriptor(path, (fd) => mountedByOpenat2(fd) ?? mountedByTable(fd));
}

/** The answer of {@link mounted} from openat2(2): whether ".." leads to another mount. Undefined where that does not tell. */
export function mountedByOpenat2(fd: number): boolean | undefined {
  try {
    const parent = openat2(fd, "..", { flags: O.PATH | O.CLOEXEC, resolve: RESOLVE.NO_XDEV });
    try {
      const [above, here] = [statx(parent, "", AT.EMPTY_PATH, 0), statx(fd, "", AT.EMPTY_PATH, 0)];
      // Only in "/" is ".." the directory itself; whether that is a mount's root, the table has to say.
      return above.ino === here.ino && above.devMajor === here.devMajor && above.devMinor === here.devMinor ? undefined : false;
    } finally {
      close(parent);
    }
  } catch (error) {
    if (isRefusal(error, "EXDEV")) return true;
    if (isRefusal(error, "ENOTDIR", "ENOSYS")) return undefined;
    throw error;
  }
}

/** The answer of {@link mounted} from the mount table: whether the mount that the file lies on is mounted right there. */
export function mountedByTable(fd: number): boolean {
  const mount = mountOfDescriptor(fd);
  const path = readlinkat(AT.FDCWD, `/proc/self/fd/${fd}`);
  return mount !== undefined && Buffer.from(path).equals(mount.mountPointBytes ?? Buffer.from(mount.mountPoint));
}

/**
 * The mount that a path lies on.
 *
 * Found by the mount's ID, not by the device number, which differs on btrfs.
 *
 * @param path The path. Symlinks are followed.
 * @throws SyscallError if there is no such path. An `Error` with code `ERR_MOUNT_NOT_LISTED` if its mount is not in
 *   this process's table: inside a detached root no mount is.
 */
export function mountOf(path: PathLike): MountInfo {
  const mount = withDescriptor(path, mountOfDescriptor);
  if (mount !== undefined) return mount;
  const message = `the mount that '${pathText(path)}' lies on is not in ${table}: it is detached, or not below this process's root`;
  throw Object.assign(new Error(message), { code: "ERR_MOUNT_NOT_LISTED" });
}

/** The entry of the mount that a descriptor lies on; undefined if it is not in the table. */
export function mountOfDescriptor(fd: number): MountInfo | undefined {
  const id = mountIdOf(fd);
  return findMount((mount) => mount.id === id);
}

/** The ID under which the mount table lists a descriptor's mount. */
export function mountIdOf(fd: number): number {
  const { mask, mountId } = statx(fd, "", AT.EMPTY_PATH, STATX.MNT_ID);
  if (mask & STATX.MNT_ID) return Number(mountId);
  // Before Linux 5.8 (proc_pid_fdinfo(5)).
  const fdinfo = new TextDecoder().decode(readFile(`/proc/self/fdinfo/${fd}`));
  return Number(/^mnt_id:\s*(\d+)$/m.exec(fdinfo)?.[1]);
}

/** Opens a path (`O.PATH`) for as long as it is used. */
export function withDescriptor<T>(path: PathLike, use: (fd: number) => T, flags = 0): T {
  const fd = open(path, O.PATH | O.CLOEXEC | flags);
  try {
    return use(fd);
  } finally {
    close(fd);
  }
}
