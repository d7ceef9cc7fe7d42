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
  read,
  readFile,
  readlinkat,
  STATX,
  SyscallError,
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
 * A mount that is there all the time is in it, once, whatever is mounted and unmounted meanwhile. It lists what can be reached from
 * the process's root. Inside a detached root (method `detached` of `switchRoot`) the kernel lists nothing, and the result is empty.
 *
 * @param filter Which mounts to give. Default: all.
 * @throws SyscallError if /proc is not mounted, or with `EAGAIN`, on Linux before 5.8, if mounts come and go too fast for it;
 *   {@link MountInfoError} if a line does not parse.
 */
export function getMounts(filter?: MountFilter): MountInfo[] {
  if (filter !== undefined) checkFilter(filter);
  const mounts: MountInfo[] = [];
  readTable(mounts);
  // Afterwards: a filter that mounts something must not change what is still to be read.
  return filter === undefined ? mounts : mounts.filter(filter);
}

/**
 * The first mount of this process's table that the filter picks; what comes after it is not read.
 *
 * @throws As {@link getMounts}.
 */
export function findMount(filter: MountFilter): MountInfo | undefined {
  checkFilter(filter);
  const mounts: MountInfo[] = [];
  readTable(mounts, filter);
  return mounts[0];
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
  const bytes = typeof source === "string" ? new TextEncoder().encode(source) : source;
  const mounts: MountInfo[] = [];
  parseLines(newLine(), bytes, bytes.length, true, mounts);
  return filter === undefined ? mounts : mounts.filter(filter);
}

function readTable(mounts: MountInfo[], first?: MountFilter): void {
  if (!readsWhole()) {
    const bytes = readMountInfo(table);
    parseLines(newLine(), bytes, bytes.length, true, mounts, first);
    return;
  }
  const fd = open(table, O.RDONLY | O.CLOEXEC);
  try {
    readMounts((into) => read(fd, into), mounts, first);
  } finally {
    close(fd);
  }
}

/**
 * The bytes of a mountinfo file.
 *
 * @param dirfd Where a relative path begins.
 * @throws SyscallError; with `EAGAIN` on Linux before 5.8 if mounts come and go too fast for it.
 */
export function readMountInfo(path: string, dirfd: number = AT.FDCWD): Uint8Array {
  let bytes = readFile(path, dirfd);
  if (readsWhole()) return bytes;
  for (let attempt = 1; attempt <= 100; attempt++) {
    const again = readFile(path, dirfd);
    if (Buffer.compare(again, bytes) === 0) return again;
    bytes = again;
  }
  const EAGAIN = 11;
  throw new SyscallError("read", EAGAIN, path);
}

let whole: boolean | undefined;

/**
 * Whether one reading of a table has every mount that was there all the time. Before Linux 5.8 one can be missing when another is
 * unmounted between two calls of read(2): there the table is read until it is the same twice in a row.
 */
function readsWhole(): boolean {
  // Its version is not asked for, which a vendor can choose: statx(2) has told the mount's ID since the same.
  whole ??= (statx(AT.FDCWD, "/", quietly, STATX.MNT_ID).mask & STATX.MNT_ID) !== 0;
  return whole;
}

/**
 * Parses while reading, into one block that is used again: the memory for a whole table would cost as much as parsing it.
 *
 * @param more Puts what comes next at the beginning of an array, and returns how many bytes that was; 0 at the end.
 * @param mounts Gets what is found: all, or only the first that `first` picks.
 * @param size The size of the block, as long as no line is longer.
 */
export function readMounts(
  more: (into: Uint8Array) => number,
  mounts: MountInfo[],
  first: MountFilter | undefined,
  size = 16384,
): void {
  let block = takeBlock(size);
  const line = newLine();
  for (let length = 0; ; ) {
    const count = more(length === 0 ? block : block.subarray(length));
    length += count;
    // The kernel gives a page at a time: as many are parsed together as fit.
    if (count > 0 && length <= block.length - 8192) continue;
    const parsed = parseLines(line, block, length, count === 0, mounts, first);
    if (parsed === -1 || count === 0) break;
    if (parsed === 0) {
      const larger = new Uint8Array(block.length * 2);
      larger.set(block);
      block = larger;
    } else {
      block.copyWithin(0, parsed, length);
      length -= parsed;
    }
  }
  if (block.length === size) spare = block;
}

/** Memory that was not used before costs a page fault for every 4 kB, and these four would be most of reading a small table. */
let spare: Uint8Array | undefined;

function takeBlock(size: number): Uint8Array {
  const block = spare?.length === size ? spare : new Uint8Array(size);
  // A filter that reads the table in the middle of this reading gets one of its own.
  spare = undefined;
  return block;
}

const space = 0x20;
const newline = 0x0a;
const dash = 0x2d;
const slash = 0x2f;
const colon = 0x3a;
const backslash = 0x5c;

/**
 * Parses the lines at the beginning of `bytes`.
 *
 * @param length How many bytes there are.
 * @param last Whether nothing follows: then what has no newline at its end is a line, too.
 * @param mounts Gets what is found: all, or only the first that `first` picks.
 * @returns Where the first line begins that is not parsed yet; -1 if no more are wanted.
 */
function parseLines(
  line: Line,
  bytes: Uint8Array,
  length: number,
  last: boolean,
  mounts: MountInfo[],
  first?: MountFilter,
): number {
  line.bytes = bytes;
  line.buffer = Buffer.from(bytes.buffer, bytes.byteOffset, length);
  line.words = new DataView(bytes.buffer, bytes.byteOffset, length);
  line.start = 0;
  line.tailLength = -1;
  const ends: number[] = [];
  while (line.start < length) {
    // One pass over the bytes finds the line's end and its blanks. This loop is what parsing costs.
    let count = 0;
    let plain = true;
    let sameTail = false;
    let end = line.start;
    for (; end < length; end++) {
      const byte = bytes[end] ?? newline;
      if (byte === newline) break;
      if (byte === space) {
        ends[count++] = end;
        // What follows the mount point is, as a rule, what followed it in the line before.
        if (count === 5 && isTail(line, end, length)) {
          sameTail = true;
          end += line.tailLength;
          break;
        }
      } else if (byte === backslash || byte > 0x7e) plain = false;
    }
    if (end === length && !last) break;
    ends[count] = end;
    line.number++;
    line.end = end;
    line.plain = plain;
    if (!sameTail) readTail(line, ends, count);
    const mount = parseLine(line, ends);
    if (first === undefined) mounts.push(mount);
    else if (first(mount)) {
      mounts.push(mount);
      return -1;
    }
    line.start = end + 1;
  }
  return line.start;
}

function newLine(): Line {
  return {
    bytes: new Uint8Array(0),
    buffer: Buffer.alloc(0),
    words: new DataView(new ArrayBuffer(0)),
    start: 0,
    end: 0,
    number: 0,
    plain: true,
    tail: {
      mountOptions: "",
      optionalFields: [],
      propagation: { unbindable: false },
      fsType: "",
      mountSource: "",
      superOptions: "",
    },
    tailStart: 0,
    tailLength: -1,
  };
}

/** The line that is parsed, and what the lines have in common. */
interface Line {
  bytes: Uint8Array;
  /** The same memory, to make strings of, and to compare four bytes at once. */
  buffer: Buffer;
  words: DataView;
  start: number;
  end: number;
  number: number;
  /** Nothing in it but ASCII without escapes. */
  plain: boolean;
  /** What follows the mount point in the last line, where that stands, and its length. */
  tail: Omit<MountInfo, "id" | "parentId" | "major" | "minor" | "root" | "mountPoint" | "mountPointBytes">;
  tailStart: number;
  tailLength: number;
}

/** `ends` are the offsets of the line's blanks. A field lies between two of them. */
function parseLine(line: Line, ends: readonly number[]): MountInfo {
  const { bytes } = line;
  // Not destructured: that would go through an iterator, and take as long as the rest.
  const end0 = ends[0] ?? 0;
  const end1 = ends[1] ?? 0;
  const end2 = ends[2] ?? 0;
  const end3 = ends[3] ?? 0;
  const end4 = ends[4] ?? 0;

  let column = end1 + 1;
  while (column < end2 && bytes[column] !== colon) column++;
  const { mountOptions, optionalFields, propagation, fsType, mountSource, superOptions } = line.tail;
  const mount: MountInfo = {
    id: integer(bytes, line.start - 1, end0),
    parentId: integer(bytes, end0, end1),
    major: integer(bytes, end1, column),
    minor: integer(bytes, column, end2),
    root: field(line, end2, end3),
    mountPoint: field(line, end3, end4),
    mountOptions,
    optionalFields,
    propagation,
    fsType,
    mountSource,
    superOptions,
  };
  const { id, parentId, major, minor, root, mountPoint } = mount;
  if (Number.isNaN(id + parentId + major + minor) || root === "" || mountPoint === "") refuseField(line, mount);
  // U+FFFD is what bytes that are not UTF-8 decode to: only then are they worth a second look.
  if (!line.plain && mountPoint.includes("\uFFFD")) {
    const original = unescapeOctal(bytes.subarray(end3 + 1, end4));
    if (!isUtf8(original)) mount.mountPointBytes = original;
  }
  return mount;
}

function refuseField(line: Line, fields: object): never {
  for (const [name, value] of Object.entries(fields)) {
    if (Number.isNaN(value)) refuse(line, `${name} is not a number`);
    // The source is the only one that can be empty.
    if (value === "" && name !== "mountSource") refuse(line, `${name} is empty`);
  }
  throw new TypeError("there is no field to refuse");
}

/** Whether the last line's tail stands at an offset as well, up to the end of the line. */
function isTail({ bytes, words, tailStart, tailLength }: Line, start: number, length: number): boolean {
  const end = start + tailLength;
  if (tailLength === -1 || end >= length || bytes[end] !== newline) return false;
  let at = 0;
  for (; at <= tailLength - 4; at += 4) if (words.getInt32(start + at) !== words.getInt32(tailStart + at)) return false;
  for (; at < tailLength; at++) if (bytes[start + at] !== bytes[tailStart + at]) return false;
  return true;
}

/** `count` is the number of the line's blanks; after them, `ends` has the line's end. */
function readTail(line: Line, ends: readonly number[], count: number): void {
  // Six fields, the optional ones, "-" and three more.
  let separator = 6;
  while (separator < count && !isSeparator(line.bytes, ends, separator)) separator++;
  if (count < separator + 3) refuse(line, "it has fewer fields than it should");
  const [mountPointEnd = 0, mountOptionsEnd = 0] = ends.slice(4, 6);
  const [beforeType = 0, typeEnd = 0, sourceEnd = 0] = ends.slice(separator, separator + 3);
  const optionalFields = fieldsBetween(line, ends, 6, separator);
  line.tail = {
    mountOptions: field(line, mountPointEnd, mountOptionsEnd),
    optionalFields: Object.freeze(optionalFields),
    propagation: Object.freeze(propagationOf(line, optionalFields)),
    fsType: field(line, beforeType, typeEnd),
    mountSource: field(line, typeEnd, sourceEnd),
    superOptions: field(line, sourceEnd, line.end),
  };
  const { mountOptions, fsType, superOptions } = line.tail;
  if (mountOptions === "" || fsType === "" || superOptions === "") refuseField(line, line.tail);
  line.tailStart = mountPointEnd;
  line.tailLength = line.end - mountPointEnd;
}

function isSeparator(bytes: Uint8Array, ends: readonly number[], field: number): boolean {
  const before = ends[field - 1] ?? 0;
  return bytes[before + 1] === dash && ends[field] === before + 2;
}

function fieldsBetween(line: Line, ends: readonly number[], first: number, last: number): string[] {
  const fields: string[] = [];
  for (let at = first; at < last; at++) {
    const tag = field(line, ends[at - 1] ?? 0, ends[at] ?? 0);
    if (tag === "") refuse(line, "an optional field is empty");
    fields.push(tag);
  }
  return fields;
}

/** NaN if there is anything but digits, or nothing, or more than a number holds exactly. */
function integer(bytes: Uint8Array, before: number, end: number): number {
  let value = 0;
  for (let at = before + 1; at < end; at++) {
    const digit = (bytes[at] ?? 0) - 0x30;
    if (digit < 0 || digit > 9) return Number.NaN;
    value = value * 10 + digit;
  }
  return end <= before + 1 || value > Number.MAX_SAFE_INTEGER ? Number.NaN : value;
}

function field(line: Line, before: number, end: number): string {
  if (end === before + 2 && line.bytes[end - 1] === slash) return "/";
  // Not as a part of a text of all lines, which would stay in memory as long as one of its parts does.
  if (line.plain) return line.buffer.toString("latin1", before + 1, end);
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
