/** The mount table: parsing, filters, and what a path is mounted on, against this machine's own table. */

import { describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import {
  findMount,
  fsTypeFilter,
  getMounts,
  isBelow,
  type MountFilter,
  type MountInfo,
  MountInfoError,
  mounted,
  mountedByOpenat2,
  mountedByTable,
  mountIdOf,
  mountOf,
  parentsFilter,
  parseMountInfo,
  prefixFilter,
  readMounts,
  singleEntryFilter,
} from "../mountinfo.ts";
import { close, MNT, MS, mount, O, open, SyscallError, umount2 } from "../syscalls.ts";
import { onTmpfs } from "./child.ts";
import { entries, escaped, printed } from "./table.ts";

const example = "36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";

function only(source: string | Uint8Array): MountInfo {
  const [entry, ...others] = parseMountInfo(source);
  if (entry === undefined || others.length > 0) throw new Error(`${others.length + 1} entries instead of one`);
  return entry;
}

function errorOf(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

function refusal(source: string | Uint8Array): MountInfoError {
  const error = errorOf(() => parseMountInfo(source));
  if (!(error instanceof MountInfoError)) throw error;
  return error;
}

describe("parsing", () => {
  test("every field of the man page's example arrives under its name", () => {
    expect(only(example)).toEqual({
      id: 36,
      parentId: 35,
      major: 98,
      minor: 0,
      root: "/mnt1",
      mountPoint: "/mnt/parent",
      mountOptions: "rw,noatime",
      optionalFields: ["master:1"],
      propagation: { master: 1, unbindable: false },
      fsType: "ext3",
      mountSource: "/dev/root",
      superOptions: "rw,errors=continue",
    });
  });

  test.each([
    ["", [], { unbindable: false }],
    ["shared:7 ", ["shared:7"], { shared: 7, unbindable: false }],
    ["master:2 ", ["master:2"], { master: 2, unbindable: false }],
    ["shared:3 master:2 ", ["shared:3", "master:2"], { shared: 3, master: 2, unbindable: false }],
    ["master:4 propagate_from:9 ", ["master:4", "propagate_from:9"], { master: 4, propagateFrom: 9, unbindable: false }],
    ["unbindable ", ["unbindable"], { unbindable: true }],
    ["shared:1 from_the_future:x ", ["shared:1", "from_the_future:x"], { shared: 1, unbindable: false }],
  ])("the optional fields '%s' are kept and understood", (fields, optionalFields, propagation) => {
    const entry = only(`1 0 0:1 / / rw ${fields}- tmpfs none rw`);
    expect(entry.optionalFields).toEqual(optionalFields);
    expect(entry.propagation).toEqual(propagation);
    expect(entry.fsType).toBe("tmpfs");
  });

  test("octal escapes are decoded in every field, and other backslashes stay", () => {
    const entry = only(
      String.raw`1 0 0:1 /r\040t /a\040b\011c\012d\134e\043f rw - fuse.a\040b s\040o\134040 rw,lowerdir=\134x\9\400`,
    );
    expect(entry.root).toBe("/r t");
    expect(entry.mountPoint).toBe("/a b\tc\nd\\e#f");
    expect(entry.mountPointBytes).toBeUndefined();
    expect(entry.fsType).toBe("fuse.a b");
    expect(entry.mountSource).toBe("s o\\040");
    expect(entry.superOptions).toBe("rw,lowerdir=\\x\\9\\400");
  });

  test("a mount point that is not UTF-8 keeps its bytes, one that holds U+FFFD has none to keep", () => {
    const head = Buffer.from("1 0 0:1 / ");
    const tail = Buffer.from(" rw - tmpfs none rw\n");
    const spoilt = only(Buffer.concat([head, Buffer.from([0x2f, 0xff, 0x5c, 0x30, 0x34, 0x30, 0xc3]), tail]));
    expect(spoilt.mountPoint).toBe("/\uFFFD \uFFFD");
    expect(spoilt.mountPointBytes).toEqual(Uint8Array.of(0x2f, 0xff, 0x20, 0xc3));
    const sound = only(Buffer.concat([head, Buffer.from("/\uFFFDä"), tail]));
    expect(sound.mountPoint).toBe("/\uFFFDä");
    expect(sound.mountPointBytes).toBeUndefined();
  });

  test("a field that begins with a byte order mark keeps it", () => {
    expect(only("1 0 0:1 / /x rw - tmpfs \uFEFFsource rw\n").mountSource).toBe("\uFEFFsource");
  });

  test("an empty source is an empty string", () => {
    const entry = only("25 1 0:22 / /mnt rw,relatime - tmpfs  rw,size=4k\n");
    expect(entry.mountSource).toBe("");
    expect(entry.superOptions).toBe("rw,size=4k");
  });

  test("a subtype stays part of the type", () => {
    expect(only("25 1 0:22 / /mnt rw - fuse.sshfs me@host: rw,user_id=0\n").fsType).toBe("fuse.sshfs");
  });

  test("blanks in the file system's own options belong to them", () => {
    expect(only("25 1 0:22 / /mnt rw - odd none rw,name=a b\n").superOptions).toBe("rw,name=a b");
  });

  test("text and bytes parse alike, with a newline at the end or without", () => {
    const two = example + example.trimEnd();
    expect(parseMountInfo(two)).toEqual(parseMountInfo(Buffer.from(two)));
    expect(parseMountInfo(two)).toEqual(parseMountInfo(`${two}\n`));
    expect(parseMountInfo(two)).toHaveLength(2);
    expect(parseMountInfo("")).toEqual([]);
  });

  test("bytes that are a part of a larger buffer are read where they lie", () => {
    const padded = Buffer.from(`xx${example}yy`);
    expect(parseMountInfo(padded.subarray(2, -2))).toEqual(parseMountInfo(example));
  });

  test("a line cut short anywhere before its last field is refused, never half filled", () => {
    const line = example.trimEnd();
    const last = line.lastIndexOf(" ") + 1;
    for (let length = 1; length <= last; length++) {
      const cut = line.slice(0, length);
      const error = refusal(example + cut);
      expect(error.line).toBe(2);
      expect(error.text).toBe(cut);
      expect(error.message).toContain(`mountinfo line 2: `);
      expect(error.message).toContain(cut);
      expect(error.code).toBe("ERR_MOUNTINFO");
    }
  });

  test.each([
    ["x 35 98:0 / / rw - ext3 /dev/root rw", "id is not a number"],
    ["36 -1 98:0 / / rw - ext3 /dev/root rw", "parentId is not a number"],
    ["36 35 98 / / rw - ext3 /dev/root rw", "minor is not a number"],
    ["36 35 :0 / / rw - ext3 /dev/root rw", "major is not a number"],
    ["36 35 98:0:1 / / rw - ext3 /dev/root rw", "minor is not a number"],
    ["99999999999999999999 35 98:0 / / rw - ext3 /dev/root rw", "id is not a number"],
    ["36 35 98:0  / rw - ext3 /dev/root rw", "root is empty"],
    ["36 35 98:0 /  rw - ext3 /dev/root rw", "mountPoint is empty"],
    ["36 35 98:0 / /  - ext3 /dev/root rw", "mountOptions is empty"],
    ["36 35 98:0 / / rw  - ext3 /dev/root rw", "an optional field is empty"],
    ["36 35 98:0 / / rw shared:x - ext3 /dev/root rw", "an optional field names no peer group"],
    ["36 35 98:0 / / rw master - ext3 /dev/root rw", "an optional field names no peer group"],
    ["36 35 98:0 / / rw ext3 /dev/root rw rw rw", "it has fewer fields than it should"],
    ["36 35 98:0 / / rw -  /dev/root rw", "fsType is empty"],
    ["36 35 98:0 / / rw - ext3 /dev/root ", "superOptions is empty"],
    ["", "it has fewer fields than it should"],
  ])("'%s' is refused because %s", (line, reason) => {
    const error = refusal(`${line}\n`);
    expect([error.line, error.text]).toEqual([1, line]);
    expect(error.message).toBe(`mountinfo line 1: ${reason}: '${line}'`);
  });

  test("what follows the mount point is that of its own line, where it differs from the line before in one letter", () => {
    for (const end of ["", "a", "ab", "abc"]) {
      const line = `36 35 98:0 /mnt1 /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=${end}\n`;
      for (let at = line.indexOf(" rw"); at < line.length; at++) {
        const other = `${line.slice(0, at)}2${line.slice(at + 1)}`;
        // A blank is what tells the fields apart, and "master" is a name.
        if (/[^a-z0-9]/.test(line[at] ?? "") || !other.includes("master:")) continue;
        expect(parseMountInfo(line + other + line)).toEqual([only(line), only(other), only(line)]);
      }
    }
  });

  test("the filter sees each entry in order and picks", () => {
    const text = [1, 2, 3].map((id) => `${id} 0 0:1 / /m${id} rw - tmpfs none rw\n`).join("");
    const seen: number[] = [];
    const picked = parseMountInfo(text, ({ id }) => {
      seen.push(id);
      return id !== 2;
    });
    expect(seen).toEqual([1, 2, 3]);
    expect(picked.map(({ id }) => id)).toEqual([1, 3]);
  });
});

describe("reading", () => {
  /** The lines of a table, as read(2) would give them at once. */
  const reading = (lines: string[]): ((into: Uint8Array) => number) => {
    let rest = lines.join("");
    return (into) => {
      const { written } = new TextEncoder().encodeInto(rest, into);
      rest = "";
      return written;
    };
  };
  const linesBelow = (parent: string): string[] =>
    ["a", "b", "c"].map((name) => example.replace("/mnt1", parent).replace("parent", name));

  test("a filter that reads a table itself does not change what is still to be read", () => {
    const seen: string[] = [];
    const first: MountFilter = ({ root, mountPoint }) => {
      seen.push(`${root} ${mountPoint}`);
      const others: MountInfo[] = [];
      readMounts(reading(linesBelow("/inner")), others, undefined);
      seen.push(...others.map((each) => `${each.root} ${each.mountPoint}`));
      return false;
    };
    // Twice: the memory of the first reading is there to be used again.
    for (const filter of [undefined, first]) readMounts(reading(linesBelow("/outer")), [], filter);
    const inner = ["/inner /mnt/a", "/inner /mnt/b", "/inner /mnt/c"];
    expect(seen).toEqual(["/outer /mnt/a", ...inner, "/outer /mnt/b", ...inner, "/outer /mnt/c", ...inner]);
  });
});

describe("properties", () => {
  test("an entry printed with the kernel's escapes parses to itself", () => {
    fc.assert(
      fc.property(fc.array(entries, { minLength: 1, maxLength: 4 }), (list) => {
        expect(parseMountInfo(Buffer.concat(list.map(printed)))).toEqual(list);
      }),
      { numRuns: 500 },
    );
  });

  test("a mount point of any bytes parses to those bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 1, maxLength: 20 }), (name) => {
        const bytes = Uint8Array.of(0x2f, ...name.filter((byte) => byte !== 0));
        const line = Buffer.concat([Buffer.from("1 0 0:1 / "), escaped(bytes), Buffer.from(" rw - tmpfs none rw\n")]);
        const entry = only(line);
        expect(Buffer.from(entry.mountPointBytes ?? Buffer.from(entry.mountPoint))).toEqual(Buffer.from(bytes));
      }),
      { numRuns: 500 },
    );
  });
});

describe("filters", () => {
  const points = ["/", "/foo", "/foobar", "/foo/bar", "/foo/bar/baz", "/proc"];
  const text = points
    .map((point, at) => `${at + 1} 0 0:1 / ${point} rw - ${point === "/proc" ? "proc" : "fuse.x"} none rw\n`)
    .join("");
  const picked = (filter: MountFilter): string[] => parseMountInfo(text, filter).map(({ mountPoint }) => mountPoint);

  test("prefixFilter picks a path and what is below it, by component", () => {
    expect(picked(prefixFilter("/foo"))).toEqual(["/foo", "/foo/bar", "/foo/bar/baz"]);
    expect(picked(prefixFilter("/foo/"))).toEqual(["/foo", "/foo/bar", "/foo/bar/baz"]);
    expect(picked(prefixFilter("/fo"))).toEqual([]);
    expect(picked(prefixFilter("/"))).toEqual(points);
  });

  test("singleEntryFilter picks a path and nothing else", () => {
    expect(picked(singleEntryFilter("/foo"))).toEqual(["/foo"]);
    expect(picked(singleEntryFilter("/foo/bar//"))).toEqual(["/foo/bar"]);
    expect(picked(singleEntryFilter("/"))).toEqual(["/"]);
    expect(picked(singleEntryFilter("/nothing"))).toEqual([]);
  });

  test("parentsFilter picks a path and what is above it, by component", () => {
    expect(picked(parentsFilter("/foo/bar/x"))).toEqual(["/", "/foo", "/foo/bar"]);
    expect(picked(parentsFilter("/foobar"))).toEqual(["/", "/foobar"]);
    expect(picked(parentsFilter("/"))).toEqual(["/"]);
  });

  test("fsTypeFilter compares whole types and takes several", () => {
    expect(picked(fsTypeFilter("proc"))).toEqual(["/proc"]);
    expect(picked(fsTypeFilter("fuse"))).toEqual([]);
    expect(picked(fsTypeFilter("fuse.x", "proc"))).toEqual(points);
    expect(picked(fsTypeFilter())).toEqual([]);
  });

  test("isBelow takes a path to be below itself", () => {
    expect([isBelow("/a", "/a"), isBelow("/a/b", "/a"), isBelow("/ab", "/a"), isBelow("/a", "/a/b"), isBelow("/a", "/")]).toEqual(
      [true, true, false, false, true],
    );
  });
});

describe("against the kernel", () => {
  const directory = "/tmp/mountinfo-test";
  const below = (name: string): string => join(directory, name);
  // Everything a test has mounted is below this one mount and goes with it.
  onTmpfs(directory);

  function make(name: string): string {
    mkdirSync(below(name));
    return below(name);
  }

  test.each([
    ["a space", "a b"],
    ["a tab", "a\tb"],
    ["a newline", "a\nb"],
    ["a backslash", "a\\b"],
    ["a hash", "a#b"],
    ["what looks like an escape", "\\040"],
    ["letters beyond ASCII", "äöü-日本-🦊"],
    ["a byte order mark", "\uFEFFmark"],
  ])("a mount point with %s in its name is read as it is, and unmounted under the name that was read", (_, name) => {
    const path = make(name);
    mount(name, path, "tmpfs", 0, null);
    const [entry, ...others] = getMounts(singleEntryFilter(path));
    expect(others).toEqual([]);
    expect(entry?.mountSource).toBe(name);
    expect(entry?.mountPointBytes).toBeUndefined();
    umount2(entry?.mountPoint ?? "", 0);
    expect(mounted(path)).toBe(false);
  });

  test("a mount point that is not UTF-8 is read with its bytes, and unmounted by them", () => {
    const path = Buffer.concat([Buffer.from(`${directory}/`), Buffer.of(0x61, 0xff, 0x20, 0xc3)]);
    mkdirSync(path);
    mount("bytes", path, "tmpfs", 0, null);
    const entry = findMount(({ mountSource }) => mountSource === "bytes");
    expect(entry?.mountPoint).toBe(below("a\uFFFD \uFFFD"));
    expect(Buffer.from(entry?.mountPointBytes ?? [])).toEqual(path);
    umount2(entry?.mountPointBytes ?? "", 0);
    expect(mounted(path)).toBe(false);
  });

  test("an empty source is read as such", () => {
    const path = make("empty");
    mount("", path, "tmpfs", 0, null);
    expect(mountOf(path)).toMatchObject({ mountSource: "", fsType: "tmpfs", mountPoint: path });
  });

  test("getMounts gives the lines of the table, in its order", () => {
    const lines = readFileSync("/proc/self/mountinfo", "utf8").trimEnd().split("\n");
    const mounts = getMounts();
    expect(mounts.map(({ id, parentId, major, minor }) => `${id} ${parentId} ${major}:${minor}`)).toEqual(
      lines.map((line) => line.split(" ", 3).join(" ")),
    );
    expect(Buffer.concat(mounts.map(printed)).toString()).toBe(`${lines.join("\n")}\n`);
  });

  test("findmnt reads the same from this machine's table", () => {
    mount("strange source", make("for findmnt"), "tmpfs", MS.NOSUID | MS.RDONLY, "size=64k");
    mount(below("for findmnt"), make("bind"), null, MS.BIND, null);
    mount(null, below("bind"), null, MS.SHARED, null);
    mount(null, below("for findmnt"), null, MS.UNBINDABLE, null);
    const columns = "ID,PARENT,MAJ:MIN,FSROOT,TARGET,VFS-OPTIONS,FS-OPTIONS,OPT-FIELDS,FSTYPE,SOURCE";
    const { stdout, exitCode } = Bun.spawnSync(
      ["findmnt", "--json", "--list", "--nofsroot", "--kernel", "--output", columns, "--notruncate"],
      { stdout: "pipe" },
    );
    expect(exitCode).toBe(0);
    const { filesystems } = JSON.parse(stdout.toString());
    const ours = getMounts().map((entry) => ({
      id: entry.id,
      parent: entry.parentId,
      "maj:min": `${entry.major}:${entry.minor}`,
      fsroot: entry.root,
      target: entry.mountPoint,
      "vfs-options": entry.mountOptions,
      "fs-options": entry.superOptions,
      "opt-fields": entry.optionalFields.length === 0 ? null : entry.optionalFields.join(" "),
      fstype: entry.fsType,
      source: entry.mountSource,
    }));
    // Versions differ in whether a number is one in JSON, and in what they write for an empty field.
    const plain = (rows: Record<string, unknown>[]): Record<string, string>[] =>
      rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [key, String(value ?? "").trim()])));
    expect(ours.length).toBeGreaterThan(3);
    expect(plain(filesystems)).toEqual(plain(ours));
  });

  test("findMount stops at the first: what comes after it is neither parsed nor given to the filter", () => {
    const third = getMounts()[2];
    let calls = 0;
    const found = findMount((entry) => ++calls > 0 && entry.id === third?.id);
    expect(found).toEqual(third);
    expect(calls).toBe(3);
    expect(findMount(() => false)).toBeUndefined();
  });

  /** All ways of telling, which have to agree; openat2(2) may leave it open. */
  function allSay(path: string): boolean {
    const answer = mounted(path);
    const fd = open(path, O.PATH | O.CLOEXEC);
    try {
      expect(mountedByTable(fd)).toBe(answer);
      expect([answer, undefined]).toContain(mountedByOpenat2(fd));
    } finally {
      close(fd);
    }
    return answer;
  }

  test("a mount point is told from a directory, a file and a link, in every way there is", () => {
    const point = make("point");
    const plain = make("plain");
    mount("x", point, "tmpfs", 0, null);
    writeFileSync(below("file"), "");
    writeFileSync(below("bound"), "");
    mount(below("file"), below("bound"), null, MS.BIND, null);
    mkdirSync(join(point, "inside"));
    symlinkSync(point, below("link"));
    symlinkSync(plain, below("plain link"));
    const answers = [point, plain, below("bound"), below("file"), join(point, "inside"), below("link"), below("plain link")];
    expect(answers.map(allSay)).toEqual([true, false, true, false, false, true, false]);
    expect([allSay("/"), allSay("/proc"), allSay("/proc/self")]).toEqual([true, true, false]);
  });

  test("a directory bound over itself is a mount point although its device is the same", () => {
    const path = make("self");
    mount(path, path, null, MS.BIND, null);
    expect(allSay(path)).toBe(true);
  });

  test("openat2 tells of directories, and leaves files and the root to the table", () => {
    const answer = (path: string): boolean | undefined => {
      const fd = open(path, O.PATH | O.CLOEXEC);
      try {
        return mountedByOpenat2(fd);
      } finally {
        close(fd);
      }
    };
    writeFileSync(below("file"), "");
    expect([answer(directory), answer(make("plain")), answer(below("file")), answer("/")]).toEqual([
      true,
      false,
      undefined,
      undefined,
    ]);
  });

  test("mounted takes bytes and file: URLs, and a relative path", () => {
    const path = make("a b");
    mount("x", path, "tmpfs", 0, null);
    expect(mounted(Buffer.from(path))).toBe(true);
    expect(mounted(Bun.pathToFileURL(path))).toBe(true);
    const before = process.cwd();
    process.chdir(directory);
    try {
      expect(mounted("a b")).toBe(true);
    } finally {
      process.chdir(before);
    }
  });

  test("a path that does not exist is ENOENT, and one with a NUL is refused", () => {
    const missing = below("missing");
    expect(errorOf(() => mounted(missing))).toMatchObject({ code: "ENOENT", syscall: "statx", path: missing });
    expect(errorOf(() => mountOf(missing))).toMatchObject({ code: "ENOENT", path: missing });
    expect(errorOf(() => mounted("/a\0b"))).toMatchObject({ name: "TypeError", code: "ERR_INVALID_ARG_VALUE" });
    expect(errorOf(() => mounted(missing))).toBeInstanceOf(SyscallError);
  });

  test("mountOf tells two mounts of one file system apart, by their IDs", () => {
    const first = make("first");
    mount("x", first, "tmpfs", 0, null);
    const second = make("second");
    mount(first, second, null, MS.BIND, null);
    mkdirSync(join(first, "inside"));
    const [one, two] = [mountOf(join(first, "inside")), mountOf(join(second, "inside"))];
    expect([one.mountPoint, two.mountPoint]).toEqual([first, second]);
    expect([one.major, one.minor]).toEqual([two.major, two.minor]);
    expect(one.id).not.toBe(two.id);
  });

  test("mountOf gives the topmost of stacked mounts, and the bind of a subdirectory with its root", () => {
    const path = make("stack");
    mount("lower", path, "tmpfs", 0, null);
    mount("upper", path, "tmpfs", 0, null);
    expect(mountOf(path).mountSource).toBe("upper");
    const bound = make("bound");
    mount(make("source"), bound, null, MS.BIND, null);
    expect(mountOf(bound)).toMatchObject({ root: "/source", mountPoint: bound, mountSource: "base" });
    expect(mountOf(below("source"))).toMatchObject({ root: "/", mountPoint: directory, mountSource: "base" });
  });

  test("the ID of a descriptor's mount is the one that /proc/self/fdinfo shows", () => {
    const fd = open(directory, O.PATH | O.CLOEXEC);
    try {
      const shown = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"));
      expect(mountIdOf(fd)).toBe(Number(shown?.[1]));
    } finally {
      close(fd);
    }
  });

  test("a path on a detached mount has an error of its own", () => {
    const path = make("detached");
    mount("x", path, "tmpfs", 0, null);
    const fd = open(path, O.PATH | O.CLOEXEC);
    try {
      umount2(path, MNT.DETACH);
      expect(errorOf(() => mountOf(`/proc/self/fd/${fd}`))).toMatchObject({ code: "ERR_MOUNT_NOT_LISTED" });
    } finally {
      close(fd);
    }
  });

  test("a file can be a mount point, of which mountOf knows the root", () => {
    writeFileSync(below("file"), "content");
    writeFileSync(below("point"), "");
    mount(below("file"), below("point"), null, MS.BIND, null);
    expect(mountOf(below("point"))).toMatchObject({ root: "/file", mountPoint: below("point") });
    expect(readFileSync(below("point"), "utf8")).toBe("content");
    umount2(below("point"), 0);
    rmSync(below("point"));
  });
});
