/**
 * The option strings of mount(8): `"rbind,ro,rslave"` as flags, propagation types, and data for the file system.
 */
import { argumentError, MS } from "./syscalls.ts";

/** What {@link parseMountOptions} reads from an option string. */
export interface ParsedMountOptions {
  /** The mount(2) flags that the options set, propagation excepted. */
  readonly flags: number;
  /** The flags that they take away: `rw` gives `MS.RDONLY`. None of them is in `flags`. */
  readonly clear: number;
  /** The propagation types, each with `MS.REC` if it has it, in the order given. */
  readonly propagation: readonly number[];
  /** What is left, for the file system: joined by commas, empty if there is nothing. */
  readonly data: string;
}

/** A propagation type of mount_namespaces(7); with an `r`, also for all mounts below. */
export type PropagationMode = "shared" | "slave" | "private" | "unbindable" | "rshared" | "rslave" | "rprivate" | "runbindable";

export const propagationTypes: ReadonlyMap<string, number> = new Map<PropagationMode, number>([
  ["shared", MS.SHARED],
  ["slave", MS.SLAVE],
  ["private", MS.PRIVATE],
  ["unbindable", MS.UNBINDABLE],
  ["rshared", MS.SHARED | MS.REC],
  ["rslave", MS.SLAVE | MS.REC],
  ["rprivate", MS.PRIVATE | MS.REC],
  ["runbindable", MS.UNBINDABLE | MS.REC],
]);

/** The three exclude one another. With none of them the kernel takes relatime, or, at a remount, what was. */
export const accessTimes: number = MS.NOATIME | MS.RELATIME | MS.STRICTATIME;

/** Everything that belongs to a mount and not to its file system. */
export const perMount: number = MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.NOSYMFOLLOW | MS.NODIRATIME | accessTimes;

/** What the table shows of the file system's own flags. */
export const perFileSystem: number = MS.RDONLY | MS.SYNCHRONOUS | MS.DIRSYNC | MS.MANDLOCK | MS.LAZYTIME;

/** Each option's flags: those it sets, those it takes away. */
export const flagOptions: ReadonlyMap<string, readonly [set: number, clear: number]> = new Map<
  string,
  [set: number, clear: number]
>([
  ["defaults", [0, 0]],
  ["ro", [MS.RDONLY, 0]],
  ["rw", [0, MS.RDONLY]],
  ["nosuid", [MS.NOSUID, 0]],
  ["suid", [0, MS.NOSUID]],
  ["nodev", [MS.NODEV, 0]],
  ["dev", [0, MS.NODEV]],
  ["noexec", [MS.NOEXEC, 0]],
  ["exec", [0, MS.NOEXEC]],
  ["sync", [MS.SYNCHRONOUS, 0]],
  ["async", [0, MS.SYNCHRONOUS]],
  ["dirsync", [MS.DIRSYNC, 0]],
  ["remount", [MS.REMOUNT, 0]],
  ["mand", [MS.MANDLOCK, 0]],
  ["nomand", [0, MS.MANDLOCK]],
  ["noatime", [MS.NOATIME, MS.RELATIME | MS.STRICTATIME]],
  ["atime", [0, MS.NOATIME]],
  ["relatime", [MS.RELATIME, MS.NOATIME | MS.STRICTATIME]],
  ["norelatime", [0, MS.RELATIME]],
  ["strictatime", [MS.STRICTATIME, MS.NOATIME | MS.RELATIME]],
  ["nostrictatime", [0, MS.STRICTATIME]],
  ["nodiratime", [MS.NODIRATIME, 0]],
  ["diratime", [0, MS.NODIRATIME]],
  ["bind", [MS.BIND, MS.REC]],
  ["rbind", [MS.BIND | MS.REC, 0]],
  ["lazytime", [MS.LAZYTIME, 0]],
  ["nolazytime", [0, MS.LAZYTIME]],
  ["silent", [MS.SILENT, 0]],
  ["loud", [0, MS.SILENT]],
  ["iversion", [MS.I_VERSION, 0]],
  ["noiversion", [0, MS.I_VERSION]],
  ["nosymfollow", [MS.NOSYMFOLLOW, 0]],
  ["symfollow", [0, MS.NOSYMFOLLOW]],
  // Who may mount is for mount(8) alone; that such a mount is not to be trusted, the kernel has to be told.
  ["user", [MS.NOSUID | MS.NODEV | MS.NOEXEC, 0]],
  ["users", [MS.NOSUID | MS.NODEV | MS.NOEXEC, 0]],
  ["owner", [MS.NOSUID | MS.NODEV, 0]],
  ["group", [MS.NOSUID | MS.NODEV, 0]],
]);

/** What mount(8), fstab(5) and systemd keep for themselves. */
const userSpaceOption = /^(?:(?:auto|noauto|nouser|nousers|noowner|nogroup|nofail|_netdev)$|comment=|[xX]-)/;

/** copy_mount_options() in the kernel takes one page and cuts what is longer, without a word. */
const page = 4096;

/**
 * Reads an option string as mount(8) does.
 *
 * Later options win over earlier ones. In two cases mount(8) does otherwise: of `noatime`, `relatime` and `strictatime` it
 * passes on all that are named, and the kernel chooses; a type of propagation that it had before, it leaves out. Options that
 * only mount(8), fstab(5) or systemd look at (`noauto`, `nofail`, `_netdev`, `comment=`, `x-*`, ...) are left out, but `user`
 * and `users` stand for `nosuid,nodev,noexec`, `owner` and `group` for `nosuid,nodev`. Double quotes keep commas together (`context="a,b"`), as a backslash before the comma does;
 * both are passed on.
 *
 * @param options The options, separated by commas. May be empty.
 * @throws TypeError `ERR_INVALID_ARG_VALUE` for a NUL, half of a surrogate pair, or a quote that is not closed;
 *   `ERR_OUT_OF_RANGE` if what is left for the file system has 4096 bytes or more, of which the kernel would cut the end;
 *   `ERR_INVALID_ARG_TYPE` if it is no string.
 * @see mount(8), libmount's optmap.c; `nosymfollow` is for Linux 5.10 and later.
 */
export function parseMountOptions(options: string): ParsedMountOptions {
  let flags = 0;
  let clear = 0;
  const propagation: number[] = [];
  const rest: string[] = [];
  for (const option of splitOptions(options)) {
    const change = flagOptions.get(option);
    const type = propagationTypes.get(option);
    if (change !== undefined) {
      flags = (flags & ~change[1]) | change[0];
      clear = (clear & ~change[0]) | change[1];
    } else if (type !== undefined) propagation.push(type);
    else if (!userSpaceOption.test(option)) rest.push(option);
  }
  const data = rest.join(",");
  // The NUL at the end needs a place in the page, too.
  if (Buffer.byteLength(data) >= page)
    throw argumentError("ERR_OUT_OF_RANGE", `options for the file system must be shorter than ${page} bytes`);
  return { flags, clear, propagation, data };
}

function splitOptions(options: string): string[] {
  if (typeof options !== "string") throw argumentError("ERR_INVALID_ARG_TYPE", "options must be a string");
  if (options.includes("\0")) throw argumentError("ERR_INVALID_ARG_VALUE", "options must not hold a NUL");
  if (!options.isWellFormed()) throw argumentError("ERR_INVALID_ARG_VALUE", "options is not well-formed UTF-16");
  const parts: string[] = [];
  let quoted = false;
  let start = 0;
  for (let at = 0; at <= options.length; at++) {
    const character = options[at];
    if (character === '"') quoted = !quoted;
    if (at < options.length && (character !== "," || quoted || options[at - 1] === "\\")) continue;
    if (at > start) parts.push(options.slice(start, at));
    start = at + 1;
  }
  if (quoted) throw argumentError("ERR_INVALID_ARG_VALUE", `a quote in the options is not closed: '${options}'`);
  return parts;
}

/** Options of tmpfs that take a value, by what they set. */
const tmpfsKeys: ReadonlyMap<string, string> = new Map([
  ["size", "size"],
  // The same limit, counted in pages.
  ["nr_blocks", "size"],
  ["nr_inodes", "nr_inodes"],
  ["mode", "mode"],
  ["uid", "uid"],
  ["gid", "gid"],
  ["mpol", "mpol"],
  ["huge", "huge"],
  ["usrquota_block_hardlimit", "usrquota_block_hardlimit"],
  ["usrquota_inode_hardlimit", "usrquota_inode_hardlimit"],
  ["grpquota_block_hardlimit", "grpquota_block_hardlimit"],
  ["grpquota_inode_hardlimit", "grpquota_inode_hardlimit"],
]);

/** Options of tmpfs that take none. */
const tmpfsFlags: ReadonlyMap<string, string> = new Map([
  ["noswap", "noswap"],
  ["inode32", "inode"],
  ["inode64", "inode"],
  ["quota", "quota"],
  ["usrquota", "usrquota"],
  ["grpquota", "grpquota"],
]);

/**
 * Merges options for a tmpfs: of those that set the same thing, the last stays, at its place.
 *
 * `exec` and `noexec` set the same thing, and so do `size=` and `nr_blocks=`, `inode32` and `inode64`, and all propagation
 * types. `defaults` is left out. A comma followed by a digit belongs to the value before it, as in `mpol=bind:0,2`.
 *
 * @param options The options: one string, or several of which each is an option or a string of them.
 * @throws TypeError `ERR_INVALID_ARG_VALUE` for an option that is none of a tmpfs, naming it (`bind` is none); as
 *   {@link parseMountOptions} for a NUL or an open quote. Values are left for the kernel to judge.
 * @see tmpfs(5), the kernel's Documentation/filesystems/tmpfs.rst.
 */
export function mergeTmpfsOptions(options: string | readonly string[]): string[] {
  const all: string[] = [];
  for (const part of splitOptions(typeof options === "string" ? options : options.join(","))) {
    if (/^\d/.test(part) && all.length > 0) all.push(`${all.pop()},${part}`);
    else all.push(part);
  }
  const seen = new Set<string>();
  let decided = 0;
  const merged: string[] = [];
  for (const option of all.reverse()) {
    const change = flagOptions.get(option);
    if (change !== undefined && ((change[0] | change[1]) & (MS.BIND | MS.REC)) === 0) {
      const bits = change[0] | change[1];
      if ((bits & ~decided) !== 0) merged.push(option);
      decided |= bits;
      continue;
    }
    const key = propagationTypes.has(option) ? "propagation" : (tmpfsFlags.get(option) ?? tmpfsKey(option));
    if (key === undefined) throw argumentError("ERR_INVALID_ARG_VALUE", `'${option}' is not an option of tmpfs`);
    if (!seen.has(key)) merged.push(option);
    seen.add(key);
  }
  return merged.reverse();
}

function tmpfsKey(option: string): string | undefined {
  const sign = option.indexOf("=");
  return sign === -1 ? undefined : tmpfsKeys.get(option.slice(0, sign));
}
