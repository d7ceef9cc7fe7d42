/** Changing the mount table, read back from the kernel. */

import { describe, expect, test } from "bun:test";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import {
  makeMountPoint,
  mergeTmpfsOptions,
  mount,
  parseMountOptions,
  setPropagation,
  setReadOnly,
  setReadOnlyByRemount,
  unmount,
  unmountAll,
} from "../mount.ts";
import { getMounts, type MountInfo, mounted, mountOf, prefixFilter } from "../mountinfo.ts";
import { MS, SyscallError, mount as syscallMount } from "../syscalls.ts";
import { onTmpfs } from "./child.ts";

/** Everything that a test mounts is below it. */
const directory = "/tmp/mount-test";
onTmpfs(directory);

function make(name: string): string {
  const path = join(directory, name);
  mkdirSync(path, { recursive: true });
  return path;
}

function makeFile(name: string, content = ""): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

function tmpfs(path: string, source: string, options = ""): string {
  mkdirSync(path, { recursive: true });
  mount(source, path, "tmpfs", options);
  return path;
}

/** What is mounted below the test's directory, in the table's order. */
function table(): MountInfo[] {
  return getMounts(prefixFilter(directory)).filter(({ mountPoint }) => mountPoint !== directory);
}

/** The same, as `point source options`, the point relative to the directory. */
function lines(): string[] {
  return table().map(
    ({ mountPoint, mountSource, mountOptions }) => `${mountPoint.slice(directory.length)} ${mountSource} ${mountOptions}`,
  );
}

function sources(): string[] {
  return table().map(({ mountSource }) => mountSource);
}

function errorOf(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  throw new Error("nothing was thrown");
}

/** What a program prints as JSON, started by another: a tracer, or a namespace of its own. */
function child(prefix: string[], code: string, ...parameters: string[]): unknown {
  const imports = `
    import * as api from ${JSON.stringify(join(import.meta.dir, "../mount.ts"))};
    import * as info from ${JSON.stringify(join(import.meta.dir, "../mountinfo.ts"))};
    import * as syscalls from ${JSON.stringify(join(import.meta.dir, "../syscalls.ts"))};
    import { writeSync } from "node:fs";
    const parameters = ${JSON.stringify(parameters)};
    const outcome = (action) => {
      try { return { value: action() ?? null }; } catch (error) {
        const seen = ({ name, code, syscall, path }) => ({ name, code, syscall, path });
        return error instanceof SuppressedError
          ? { error: seen(error.error), suppressed: seen(error.suppressed) } : { error: seen(error) };
      }
    };
    const answer = (value) => writeSync(1, JSON.stringify(value));
  `;
  const command = [...prefix, process.execPath, "--no-env-file", "--config=/dev/null", "-e", imports + code];
  const { stdout, stderr, exitCode } = Bun.spawnSync(command, { stdin: "ignore", stdout: "pipe", stderr: "pipe", cwd: "/" });
  if (exitCode !== 0) throw new Error(`exit status ${exitCode}: ${stderr}`);
  return JSON.parse(stdout.toString());
}

/** Makes system calls of the main thread fail: `mount:error=EPERM:when=2`. */
function failing(...faults: string[]): string[] {
  const calls = faults.map((fault) => fault.split(":")[0]).join(",");
  return ["strace", "-qq", "-o", "/dev/null", "-e", `trace=${calls}`, ...faults.flatMap((fault) => ["-e", `inject=${fault}`])];
}

const inUserNamespace = ["unshare", "--user", "--map-root-user", "--mount"];

describe("parseMountOptions", () => {
  const none = { flags: 0, clear: 0, propagation: [], data: "" };

  test.each([
    ["", {}],
    ["defaults", {}],
    ["ro", { flags: MS.RDONLY }],
    ["rw", { clear: MS.RDONLY }],
    ["nosuid", { flags: MS.NOSUID }],
    ["suid", { clear: MS.NOSUID }],
    ["nodev", { flags: MS.NODEV }],
    ["dev", { clear: MS.NODEV }],
    ["noexec", { flags: MS.NOEXEC }],
    ["exec", { clear: MS.NOEXEC }],
    ["sync", { flags: MS.SYNCHRONOUS }],
    ["async", { clear: MS.SYNCHRONOUS }],
    ["dirsync", { flags: MS.DIRSYNC }],
    ["remount", { flags: MS.REMOUNT }],
    ["mand", { flags: MS.MANDLOCK }],
    ["nomand", { clear: MS.MANDLOCK }],
    ["noatime", { flags: MS.NOATIME, clear: MS.RELATIME | MS.STRICTATIME }],
    ["atime", { clear: MS.NOATIME }],
    ["relatime", { flags: MS.RELATIME, clear: MS.NOATIME | MS.STRICTATIME }],
    ["norelatime", { clear: MS.RELATIME }],
    ["strictatime", { flags: MS.STRICTATIME, clear: MS.NOATIME | MS.RELATIME }],
    ["nostrictatime", { clear: MS.STRICTATIME }],
    ["nodiratime", { flags: MS.NODIRATIME }],
    ["diratime", { clear: MS.NODIRATIME }],
    ["bind", { flags: MS.BIND, clear: MS.REC }],
    ["rbind", { flags: MS.BIND | MS.REC }],
    ["lazytime", { flags: MS.LAZYTIME }],
    ["nolazytime", { clear: MS.LAZYTIME }],
    ["silent", { flags: MS.SILENT }],
    ["loud", { clear: MS.SILENT }],
    ["iversion", { flags: MS.I_VERSION }],
    ["noiversion", { clear: MS.I_VERSION }],
    ["nosymfollow", { flags: MS.NOSYMFOLLOW }],
    ["symfollow", { clear: MS.NOSYMFOLLOW }],
    ["private", { propagation: [MS.PRIVATE] }],
    ["rprivate", { propagation: [MS.PRIVATE | MS.REC] }],
    ["shared", { propagation: [MS.SHARED] }],
    ["rshared", { propagation: [MS.SHARED | MS.REC] }],
    ["slave", { propagation: [MS.SLAVE] }],
    ["rslave", { propagation: [MS.SLAVE | MS.REC] }],
    ["unbindable", { propagation: [MS.UNBINDABLE] }],
    ["runbindable", { propagation: [MS.UNBINDABLE | MS.REC] }],
    ["rslave,shared", { propagation: [MS.SLAVE | MS.REC, MS.SHARED] }],
    // Later ones win.
    ["ro,rw", { clear: MS.RDONLY }],
    ["rw,ro", { flags: MS.RDONLY }],
    ["ro,defaults", { flags: MS.RDONLY }],
    ["rbind,bind", { flags: MS.BIND, clear: MS.REC }],
    ["bind,rbind", { flags: MS.BIND | MS.REC }],
    ["noatime,atime", { clear: MS.NOATIME | MS.RELATIME | MS.STRICTATIME }],
    // What mount(8) keeps for itself, and what that means for the kernel.
    ["auto,noauto,nouser,nousers,noowner,nogroup,nofail,_netdev", {}],
    ["comment=a b,x-systemd.automount,X-mount.mkdir=0755,x-", {}],
    ["user", { flags: MS.NOSUID | MS.NODEV | MS.NOEXEC }],
    ["users,exec", { flags: MS.NOSUID | MS.NODEV, clear: MS.NOEXEC }],
    ["owner", { flags: MS.NOSUID | MS.NODEV }],
    ["suid,group", { flags: MS.NOSUID | MS.NODEV }],
    // Everything else is data, in order.
    ["size=1m,ro,mode=755", { flags: MS.RDONLY, data: "size=1m,mode=755" }],
    [",,size=1m,,", { data: "size=1m" }],
    ["mpol=bind:0,2,nosuid", { flags: MS.NOSUID, data: "mpol=bind:0,2" }],
    ['context="a,ro,b",rw', { clear: MS.RDONLY, data: 'context="a,ro,b"' }],
    ["lowerdir=/a\\,ro,ro", { flags: MS.RDONLY, data: "lowerdir=/a\\,ro" }],
    ["ro=1,RO,user=me,autofs,sharedx", { data: "ro=1,RO,user=me,autofs,sharedx" }],
    ["constructor,toString", { data: "constructor,toString" }],
    ["rbind,ro,rslave", { flags: MS.BIND | MS.REC | MS.RDONLY, propagation: [MS.SLAVE | MS.REC] }],
  ])("'%s' is read as mount(8) reads it", (options, expected) => {
    expect(parseMountOptions(options)).toEqual({ ...none, ...expected });
  });

  // mount(8) passes on both flags, and the kernel takes strictatime; it leaves out a type that it had already.
  test.each([
    ["strictatime,noatime", { flags: MS.NOATIME, clear: MS.RELATIME | MS.STRICTATIME }],
    ["noatime,relatime", { flags: MS.RELATIME, clear: MS.NOATIME | MS.STRICTATIME }],
    ["shared,private,shared", { propagation: [MS.SHARED, MS.PRIVATE, MS.SHARED] }],
  ])("in '%s' the last one wins, which mount(8) does not do", (options, expected) => {
    expect(parseMountOptions(options)).toEqual({ ...none, ...expected });
  });

  test("data of 4095 bytes is the longest: a page holds its NUL, too", () => {
    expect(parseMountOptions(`ro,${"a".repeat(4095)}`).data).toHaveLength(4095);
    const tooLong = errorOf(() => parseMountOptions("a".repeat(4096)));
    expect(tooLong).toBeInstanceOf(TypeError);
    expect(tooLong).toMatchObject({ code: "ERR_OUT_OF_RANGE" });
    expect(errorOf(() => parseMountOptions(`a=${"ä".repeat(2047)}`))).toMatchObject({ code: "ERR_OUT_OF_RANGE" });
    expect(parseMountOptions(`${"x-long,".repeat(1000)}ro`)).toEqual({ ...none, flags: MS.RDONLY });
  });

  test.each([
    ["a NUL", "ro,a\0b"],
    ["half of a surrogate pair", "a=\ud800"],
    ["a quote that is not closed", 'context="a,b'],
  ])("%s is refused", (_, options) => {
    const error = errorOf(() => parseMountOptions(options));
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toMatchObject({ code: "ERR_INVALID_ARG_VALUE" });
  });

  // What does nothing else than set or take away a flag, so that one call of mount(8) shows it.
  const comparable = [
    ...["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync", "mand", "nomand", "noatime"],
    ...["atime", "relatime", "norelatime", "strictatime", "nostrictatime", "nodiratime", "diratime", "lazytime", "nolazytime"],
    ...["silent", "loud", "iversion", "noiversion", "nosymfollow", "symfollow", "defaults", "user", "users", "owner", "group"],
    ...[
      "nouser",
      "noauto",
      "auto",
      "nofail",
      "_netdev",
      "comment=hello",
      "x-mine",
      "exec,user",
      "user,exec",
      "ro,defaults",
      "rw,ro",
    ],
    ...["size=1m,nosuid,mode=755", "size=8k,size=16k"],
  ];
  test.each(comparable)("mount(8) makes the same call for '%s'", (options) => {
    const log = join(directory, "log");
    const trace = ["strace", "-qq", "-X", "raw", "-e", "trace=mount", "-o", log];
    const command = [...trace, "mount", "-t", "tmpfs", "-o", options, "source", make("target")];
    // Newer versions would use fsopen(2).
    const env = { ...process.env, LIBMOUNT_FORCE_MOUNT2: "always" };
    expect(Bun.spawnSync(command, { stdin: "ignore", stdout: "ignore", stderr: "inherit", env }).exitCode).toBe(0);
    const call = /^mount\("source", "[^"]*", "tmpfs", ([x0-9a-f]+), (?:NULL|"(.*)")\) += 0/.exec(readFileSync(log, "utf8"));
    const { flags, data } = parseMountOptions(options);
    expect([flags, data]).toEqual([Number(call?.[1]), call?.[2] ?? ""]);
  });
});

describe("mount", () => {
  test.each([
    ["", "rw,relatime", "rw"],
    ["defaults", "rw,relatime", "rw"],
    ["ro", "ro,relatime", "ro"],
    ["ro,rw", "rw,relatime", "rw"],
    ["nosuid", "rw,nosuid,relatime", "rw"],
    ["nosuid,suid", "rw,relatime", "rw"],
    ["nodev", "rw,nodev,relatime", "rw"],
    ["nodev,dev", "rw,relatime", "rw"],
    ["noexec", "rw,noexec,relatime", "rw"],
    ["noexec,exec", "rw,relatime", "rw"],
    ["nosymfollow", "rw,relatime,nosymfollow", "rw"],
    ["nosymfollow,symfollow", "rw,relatime", "rw"],
    ["noatime", "rw,noatime", "rw"],
    ["noatime,atime", "rw,relatime", "rw"],
    ["relatime", "rw,relatime", "rw"],
    ["norelatime", "rw,relatime", "rw"],
    ["strictatime", "rw", "rw"],
    ["strictatime,noatime", "rw,noatime", "rw"],
    ["strictatime,nostrictatime", "rw,relatime", "rw"],
    ["nodiratime", "rw,nodiratime,relatime", "rw"],
    ["nodiratime,diratime", "rw,relatime", "rw"],
    ["sync", "rw,relatime", "rw,sync"],
    ["sync,async", "rw,relatime", "rw"],
    ["dirsync", "rw,relatime", "rw,dirsync"],
    ["lazytime", "rw,relatime", "rw,lazytime"],
    ["lazytime,nolazytime", "rw,relatime", "rw"],
    ["silent,mand,nomand,loud,iversion,noiversion", "rw,relatime", "rw"],
    ["user", "rw,nosuid,nodev,noexec,relatime", "rw"],
    ["noauto,nofail,x-mine=1", "rw,relatime", "rw"],
    ["size=64k", "rw,relatime", "rw,size=64k"],
    ["nr_inodes=7,size=64k,mode=711", "rw,relatime", "rw,size=64k,nr_inodes=7,mode=711"],
    ["ro,nosuid,nodev,noexec,noatime,nodiratime,size=1m", "ro,nosuid,nodev,noexec,noatime,nodiratime", "ro,size=1024k"],
  ])("the options '%s' are read back from the table", (options, mountOptions, superOptions) => {
    const target = make("target");
    mount("source", target, "tmpfs", options);
    const entry = mountOf(target);
    expect(entry).toMatchObject({ mountPoint: target, mountSource: "source", fsType: "tmpfs", mountOptions });
    // Kernels add options of their own, as inode64.
    expect(entry.superOptions.split(",").filter((option) => option !== "inode64")).toEqual(superOptions.split(","));
  });

  test("an empty source is an empty source, and none is none", () => {
    mount("", make("empty"), "tmpfs");
    mount(null, make("null"), "tmpfs");
    expect(sources()).toEqual(["", "none"]);
  });

  test("source and target may be bytes or file: URLs, and a link is followed", () => {
    const target = make("a b");
    symlinkSync(target, join(directory, "link"));
    mount(Buffer.from("bytes"), Bun.pathToFileURL(target), "tmpfs");
    mount("upper", Buffer.from(join(directory, "link")), "tmpfs");
    expect(table().map(({ mountPoint }) => mountPoint)).toEqual([target, target]);
    expect(sources()).toEqual(["bytes", "upper"]);
  });

  test("a bind shows the same files, of a directory and of a file", () => {
    const [source, target] = [make("source"), make("target")];
    makeFile("source/file", "content");
    mount(source, target, null, "bind");
    mount(join(source, "file"), makeFile("point"), null, "bind");
    expect(readFileSync(join(target, "file"), "utf8")).toBe("content");
    expect(readFileSync(join(directory, "point"), "utf8")).toBe("content");
    expect(table().map(({ root }) => root)).toEqual(["/source", "/source/file"]);
  });

  test("bind leaves behind what is mounted below, rbind takes it along", () => {
    const source = make("source");
    tmpfs(join(source, "below"), "below");
    mount(source, make("flat"), null, "bind");
    mount(source, make("deep"), null, "rbind");
    expect(lines().map((line) => line.split(" ").slice(0, 2).join(" "))).toEqual([
      "/source/below below",
      "/flat base",
      "/deep base",
      "/deep/below below",
    ]);
  });

  test("a read-only bind is read-only and its source is not", () => {
    const [source, target] = [make("source"), make("target")];
    mount(source, target, null, "bind,ro");
    expect(mountOf(target)).toMatchObject({ mountOptions: "ro,relatime" });
    expect(mountOf(target).superOptions).toStartWith("rw");
    expect(errorOf(() => writeFileSync(join(target, "file"), ""))).toMatchObject({ code: "EROFS" });
    writeFileSync(join(source, "file"), "");
    expect(existsSync(join(target, "file"))).toBe(true);
  });

  test("a bind with what it cannot be given is refused: it would be ignored, and the bind writable", () => {
    const [source, target] = [make("source"), make("target")];
    for (const options of ["bind,readonly", "rbind,r0", "bind,ro,size=1k", "bind,private,mode=755"]) {
      expect(errorOf(() => mount(source, target, null, options))).toMatchObject({ code: "ERR_INVALID_ARG_VALUE" });
      expect(mounted(target)).toBe(false);
    }
    mount(source, target, null, "bind,ro,nofail,x-mount.mkdir,comment=here");
    expect(mountOf(target).mountOptions).toBe("ro,relatime");
  });

  test("a read-only bind of a file is read-only", () => {
    const target = makeFile("target");
    mount(makeFile("source"), target, null, "bind,ro");
    expect(errorOf(() => writeFileSync(target, "x"))).toMatchObject({ code: "EROFS" });
  });

  test("rbind,ro,rslave makes the top read-only, leaves what is below writable, and makes all slaves", () => {
    const source = tmpfs(make("source"), "top", "shared");
    tmpfs(join(source, "below"), "below", "shared");
    mount(source, make("target"), null, "rbind,ro,rslave");
    const [, , top, below] = table();
    expect([top?.mountOptions, below?.mountOptions]).toEqual(["ro,relatime", "rw,relatime"]);
    for (const entry of [top, below]) expect(entry?.propagation).toEqual({ master: expect.any(Number), unbindable: false });
  });

  test.each([
    ["bind,ro", "ro,nosuid,nodev,noexec,relatime"],
    ["bind,noatime", "rw,nosuid,nodev,noexec,noatime"],
    ["bind,strictatime", "rw,nosuid,nodev,noexec"],
    ["bind,nosymfollow", "rw,nosuid,nodev,noexec,relatime,nosymfollow"],
    ["bind,suid", "rw,nodev,noexec,relatime"],
    ["bind,exec,dev,ro", "ro,nosuid,relatime"],
    ["bind,rw", "rw,nosuid,nodev,noexec,relatime"],
    ["bind,defaults", "rw,nosuid,nodev,noexec,relatime"],
    ["bind,sync", "rw,nosuid,nodev,noexec,relatime"],
  ])("'%s' of a nosuid,nodev,noexec mount changes what it names and keeps the rest", (options, expected) => {
    const source = tmpfs(make("source"), "source", "nosuid,nodev,noexec");
    mount(source, make("target"), null, options);
    expect(mountOf(join(directory, "target")).mountOptions).toBe(expected);
    expect(mountOf(source).mountOptions).toBe("rw,nosuid,nodev,noexec,relatime");
  });

  test.each([
    ["noatime,nodiratime", "bind,ro", "ro,noatime,nodiratime"],
    ["noatime,nodiratime", "bind,atime,diratime", "rw,relatime"],
    ["noatime", "bind,relatime", "rw,relatime"],
    ["strictatime", "bind,nosuid", "rw,nosuid"],
    ["strictatime", "bind,nostrictatime", "rw,relatime"],
    ["nosymfollow", "bind,ro", "ro,relatime,nosymfollow"],
    ["nosymfollow", "bind,symfollow", "rw,relatime"],
    ["ro", "bind,nosuid", "ro,nosuid,relatime"],
    ["ro", "bind,rw", "rw,relatime"],
  ])("of a source with '%s', '%s' gives '%s'", (before, options, expected) => {
    const source = tmpfs(make("source"), "source", before);
    mount(source, make("target"), null, options);
    expect(mountOf(join(directory, "target")).mountOptions).toBe(expected);
  });

  test("a bind of a file system that is read-only does not become read-only for good", () => {
    const source = tmpfs(make("source"), "source");
    // The file system is made read-only, the mount itself is not.
    syscallMount(null, source, null, MS.REMOUNT | MS.RDONLY, null);
    syscallMount(null, source, null, MS.REMOUNT | MS.BIND, null);
    mount(source, make("target"), null, "bind,nosuid");
    expect(mountOf(join(directory, "target"))).toMatchObject({ mountOptions: "rw,nosuid,relatime" });
    expect(mountOf(join(directory, "target")).superOptions).toStartWith("ro");
  });

  test("remount,bind,ro changes the mount, keeps its other options, and leaves the file system alone", () => {
    const source = tmpfs(make("source"), "source", "nosuid,noatime");
    const other = make("other");
    mount(source, other, null, "bind");
    mount(null, source, null, "remount,bind,ro");
    expect([mountOf(source).mountOptions, mountOf(other).mountOptions]).toEqual(["ro,nosuid,noatime", "rw,nosuid,noatime"]);
    mount(null, source, null, "remount,bind,rw,suid");
    expect(mountOf(source).mountOptions).toBe("rw,noatime");
  });

  test("remount changes the file system, and keeps what it does not name", () => {
    const target = tmpfs(make("target"), "source", "nosuid,nodev,lazytime,size=64k");
    mount(null, target, null, "remount,size=128k");
    expect(mountOf(target)).toMatchObject({ mountOptions: "rw,nosuid,nodev,relatime" });
    expect(mountOf(target).superOptions).toStartWith("rw,lazytime,size=128k");
    mount("source", target, "tmpfs", "remount,ro");
    expect(mountOf(target)).toMatchObject({ mountOptions: "ro,nosuid,nodev,relatime" });
    expect(mountOf(target).superOptions).toStartWith("ro,lazytime,size=128k");
    mount(null, target, null, "remount,noexec,nolazytime");
    expect(mountOf(target)).toMatchObject({ mountOptions: "ro,nosuid,nodev,noexec,relatime" });
    expect(mountOf(target).superOptions).toStartWith("ro,size=128k");
    mount(null, target, null, "remount,rw,shared");
    expect(mountOf(target)).toMatchObject({ propagation: { shared: expect.any(Number), unbindable: false } });
    expect(mountOf(target).superOptions).toStartWith("rw,size=128k");
  });

  test("remount of what is not a mount point is EINVAL and changes nothing", () => {
    tmpfs(make("mounted"), "source");
    const before = lines();
    const path = make("mounted/directory");
    const error = errorOf(() => mount(null, path, null, "remount,bind,ro"));
    expect(error).toMatchObject({ code: "EINVAL", syscall: "mount", path });
    expect(lines()).toEqual(before);
  });

  const modes: ["private" | "shared" | "slave" | "unbindable", Partial<MountInfo["propagation"]>][] = [
    ["private", {}],
    ["shared", { shared: expect.any(Number) }],
    ["slave", { master: expect.any(Number) }],
    ["unbindable", { unbindable: true }],
  ];
  for (const [mode, expected] of modes) {
    const seen = { unbindable: false, ...expected };
    const before = { unbindable: false, shared: expect.any(Number) };

    function sharedTree(): string {
      const top = tmpfs(make("source"), "top", "shared");
      tmpfs(join(top, "below"), "below", "shared");
      return top;
    }

    test(`a bind with '${mode}' is read back as such`, () => {
      mount(sharedTree(), make("target"), null, `bind,${mode}`);
      expect(table().map(({ propagation }) => propagation)).toEqual([before, before, seen]);
    });

    test(`an rbind with 'r${mode}' is read back as such from every mount of it`, () => {
      mount(sharedTree(), make("target"), null, `rbind,r${mode}`);
      expect(table().map(({ propagation }) => propagation)).toEqual([before, before, seen, seen]);
    });

    test(`a new file system with '${mode}' is read back as such`, () => {
      tmpfs(make("target"), "new", mode);
      // Nothing to be a slave of.
      expect(table()[0]?.propagation).toEqual(mode === "slave" ? { unbindable: false } : seen);
    });

    test(`'${mode}' alone changes a mount that is there, 'r${mode}' also those below`, () => {
      const top = sharedTree();
      // A peer each: only then a slave has a master.
      mount(top, make("peer"), null, "rbind");
      mount(null, top, null, mode);
      expect(table().map(({ propagation }) => propagation)).toEqual([seen, before, before, before]);
      mount("none", top, "none", `rshared,r${mode}`);
      expect(table()[0]?.propagation).toEqual(mode === "slave" ? { unbindable: false, master: expect.any(Number) } : seen);
      expect(table()[1]?.propagation).toEqual(seen);
    });

    test(`setPropagation('${mode}') changes one mount, 'r${mode}' also those below`, () => {
      const top = sharedTree();
      mount(top, make("peer"), null, "rbind");
      setPropagation(top, mode);
      expect(table().map(({ propagation }) => propagation)).toEqual([seen, before, before, before]);
      setPropagation(top, "rshared");
      setPropagation(top, `r${mode}`);
      expect(table()[1]?.propagation).toEqual(seen);
    });
  }

  test("several propagation types are applied in the order given", () => {
    const source = tmpfs(make("source"), "source", "shared");
    mount(source, make("slave and shared"), null, "bind,slave,shared");
    mount(source, make("shared and slave"), null, "bind,shared,slave");
    const [, first, second] = table();
    expect(first?.propagation).toEqual({ shared: expect.any(Number), master: expect.any(Number), unbindable: false });
    expect(second?.propagation).toEqual({ master: expect.any(Number), unbindable: false });
  });

  test("setPropagation refuses another word, and what is not a mount point", () => {
    const path = make("directory");
    const word: string = "sharde";
    // @ts-expect-error: not one of the words
    const error = errorOf(() => setPropagation(path, word));
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toMatchObject({ code: "ERR_INVALID_ARG_VALUE", message: expect.stringContaining("sharde") });
    expect(errorOf(() => setPropagation(path, "shared"))).toMatchObject({ code: "EINVAL", syscall: "mount", path });
  });

  test("a target or source that is not there is ENOENT and names both", () => {
    const [here, missing] = [make("here"), join(directory, "missing")];
    const error = errorOf(() => mount("x", missing, "tmpfs"));
    expect(error).toBeInstanceOf(SyscallError);
    expect(error).toMatchObject({ code: "ENOENT", syscall: "mount", path: "x", dest: missing });
    expect(errorOf(() => mount(missing, here, null, "bind,ro"))).toMatchObject({ code: "ENOENT", path: missing, dest: here });
    expect(errorOf(() => mount(null, missing, null, "shared"))).toMatchObject({
      code: "ENOENT",
      message: `ENOENT: no such file or directory, mount '${missing}'`,
    });
    expect(table()).toEqual([]);
  });

  test("a type that does not exist is ENODEV, an option that the file system does not know EINVAL", () => {
    const target = make("target");
    expect(errorOf(() => mount("x", target, "no-such-type"))).toMatchObject({ code: "ENODEV" });
    expect(errorOf(() => mount("x", target, "tmpfs", "no-such-option"))).toMatchObject({ code: "EINVAL" });
    expect(table()).toEqual([]);
  });

  test("neither a type nor an option that does without is refused before anything is done", () => {
    const target = make("target");
    for (const [source, options, words] of [
      ["/usr", "", /type is needed.*"bind"/],
      ["/usr", "bidn", /type is needed.*"bind"/],
      ["/usr", "ro,shared", /type is needed/],
      [null, "ro", /type is needed/],
      [null, "bind", /source is needed/],
      [null, "rbind,ro", /source is needed/],
    ] as const) {
      const message = expect.stringMatching(words);
      const expected = { name: "TypeError", code: "ERR_INVALID_ARG_VALUE", message };
      expect(errorOf(() => mount(source, target, null, options))).toMatchObject(expected);
    }
    expect(table()).toEqual([]);
    // For the kernel to judge.
    expect(errorOf(() => mount("/usr", target, "none"))).toMatchObject({ code: "ENODEV" });
  });

  test("a NUL anywhere, and data that is too long, are refused before anything is mounted", () => {
    const target = make("target");
    const invalid = { name: "TypeError", code: "ERR_INVALID_ARG_VALUE" };
    expect(errorOf(() => mount("a\0b", target, "tmpfs"))).toMatchObject(invalid);
    expect(errorOf(() => mount("x", `${target}\0`, "tmpfs"))).toMatchObject(invalid);
    expect(errorOf(() => mount("x", target, "tmpfs\0"))).toMatchObject(invalid);
    expect(errorOf(() => mount("x", target, "tmpfs", "ro,\0"))).toMatchObject(invalid);
    expect(errorOf(() => mount("x", target, "tmpfs", "a".repeat(4096)))).toMatchObject({ code: "ERR_OUT_OF_RANGE" });
    expect(table()).toEqual([]);
  });
});

describe("mount, when a later call fails", () => {
  const act = "answer(outcome(() => api.mount(parameters[0], parameters[1], null, parameters[2])));";

  test("a bind whose option the kernel refuses in a user namespace is unmounted again", () => {
    const source = tmpfs(make("source"), "source", "nosuid,nodev");
    const target = make("target");
    // What came from the namespace outside has its nosuid locked, and so has a bind of it (mount_namespaces(7)).
    const code = `
      const before = info.getMounts().map(({ id }) => id);
      const result = outcome(() => api.mount(parameters[0], parameters[1], null, "bind,suid"));
      const after = info.getMounts().map(({ id }) => id);
      api.mount(parameters[0], parameters[1], null, "bind,ro");
      const { mountOptions } = info.mountOf(parameters[1]);
      answer({ result, same: Bun.deepEquals(before, after), mountOptions });
    `;
    expect(child(inUserNamespace, code, source, target)).toEqual({
      result: { error: { name: "SyscallError", code: "EPERM", syscall: "mount", path: target } },
      same: true,
      mountOptions: "ro,nosuid,nodev,relatime",
    });
  });

  test.each([
    ["the remount", "bind,ro", 2],
    ["the propagation", "bind,shared", 2],
    ["the propagation after a remount", "bind,ro,shared", 3],
    ["the second propagation", "bind,slave,shared", 3],
  ])("%s failing leaves nothing mounted", (_, options, when) => {
    const [source, target] = [make("source"), make("target")];
    const result = child(failing(`mount:error=EPERM:when=${when}`), act, source, target, options);
    expect(result).toEqual({ error: { name: "SyscallError", code: "EPERM", syscall: "mount", path: target } });
    expect(table()).toEqual([]);
  });

  test("undoing an rbind of shared mounts does not unmount the originals", () => {
    const source = tmpfs(make("source"), "top", "shared");
    tmpfs(join(source, "below"), "below", "shared");
    const before = table();
    const result = child(failing("mount:error=EPERM:when=2"), act, source, make("target"), "rbind,ro");
    expect(result).toMatchObject({ error: { code: "EPERM" } });
    expect(table()).toEqual(before);
  });

  test("undoing leaves alone what was mounted at the target before", () => {
    const [source, target] = [make("source"), tmpfs(make("target"), "before")];
    child(failing("mount:error=EPERM:when=2"), act, source, target, "bind,ro");
    expect(sources()).toEqual(["before"]);
  });

  test("undoing works for a file", () => {
    child(failing("mount:error=EPERM:when=2"), act, makeFile("source"), makeFile("target"), "bind,ro");
    expect(table()).toEqual([]);
  });

  test("when undoing fails as well, both errors are kept", () => {
    const [source, target] = [make("source"), make("target")];
    const tracer = failing("mount:error=EPERM:when=2", "umount2:error=EBUSY");
    expect(child(tracer, act, source, target, "bind,ro")).toMatchObject({
      error: { name: "SyscallError", code: "EBUSY", syscall: "umount2" },
      suppressed: { name: "SyscallError", code: "EPERM", syscall: "mount" },
    });
    expect(table()).toHaveLength(1);
  });

  test("a target that cannot be opened after mounting is unmounted again", () => {
    const [source, target] = [make("source"), make("target")];
    const tracer = [...failing("openat:error=EMFILE"), "-P", target];
    expect(child(tracer, act, source, target, "bind,ro")).toMatchObject({
      error: { code: "EMFILE", syscall: "open", path: target },
    });
    expect(table()).toEqual([]);
  });

  test("a mount that someone stacks on it in the meantime is not unmounted in its place", async () => {
    const [source, target] = [make("source"), make("target")];
    // The second call is held up and then fails; meanwhile something is mounted over the new bind.
    const tracer = failing("mount:error=EPERM:delay_enter=1500000:when=2");
    const script = `
      const waiting = Bun.spawn(JSON.parse(parameters[0]), { stdout: "pipe", stderr: "inherit" });
      const target = parameters[1];
      while (!info.mounted(target)) await Bun.sleep(5);
      await Bun.sleep(100);
      syscalls.mount("foreign", target, "tmpfs", 0, null);
      answer(JSON.parse(await waiting.stdout.text()));
    `;
    const module = JSON.stringify(join(import.meta.dir, "../mount.ts"));
    const inner = `
      import { mount } from ${module};
      try { mount(${JSON.stringify(source)}, ${JSON.stringify(target)}, null, "bind,ro"); }
      catch (error) { console.log(JSON.stringify([error.name, error.error?.code, error.suppressed?.code])); }
    `;
    const command = [...tracer, process.execPath, "--no-env-file", "--config=/dev/null", "-e", inner];
    expect(child([], script, JSON.stringify(command), target)).toEqual(["SuppressedError", "EBUSY", "EPERM"]);
    expect(sources()).toEqual(["base", "foreign"]);
  });

  test("where /proc is not mounted, what needs a second call is ENOENT and mounts nothing, and one call works", () => {
    const code = `
      syscalls.umount2("/proc", syscalls.MNT.DETACH);
      const failed = outcome(() => api.mount(parameters[0], parameters[1], null, "bind,ro"));
      const empty = !info.mounted(parameters[1]);
      api.mount(parameters[0], parameters[1], null, "bind");
      answer({ failed, empty, mounted: info.mounted(parameters[1]) });
    `;
    const result = child(["unshare", "--mount", "--propagation", "private"], code, make("source"), make("target"));
    expect(result).toMatchObject({ failed: { error: { code: "ENOENT" } }, empty: true, mounted: true });
  });

  test("files that only look like /proc are not believed", () => {
    const code = `
      const [source, target, fake] = parameters;
      syscalls.mount(fake, "/proc", null, syscalls.MS.BIND, null);
      const failed = outcome(() => api.mount(source, target, null, "bind,ro"));
      answer({ failed, mounted: info.mounted(target) });
    `;
    make("fake/self/fd");
    const result = child(["unshare", "--mount", "--propagation", "private"], code, make("source"), make("target"), make("fake"));
    expect(result).toMatchObject({ failed: { error: { code: "ENOENT", path: "/proc/self/fd" } }, mounted: false });
  });
});

describe("unmount", () => {
  test("unmounts the topmost mount, and follows a link", () => {
    const target = tmpfs(make("target"), "lower");
    tmpfs(target, "upper");
    symlinkSync(target, join(directory, "link"));
    unmount(target);
    expect(sources()).toEqual(["lower"]);
    unmount(join(directory, "link"));
    expect(table()).toEqual([]);
  });

  test("what is not mounted is EINVAL, what is not there ENOENT", () => {
    const path = make("directory");
    expect(errorOf(() => unmount(path))).toMatchObject({
      ...{ code: "EINVAL", syscall: "umount2", path, reason: "not-mount-point" },
      message: expect.stringMatching(/: nothing is mounted on '.*'$/),
    });
    expect(errorOf(() => unmount(join(path, "missing")))).toMatchObject({ code: "ENOENT", syscall: "umount2" });
    expect(errorOf(() => unmount("a\0"))).toMatchObject({ name: "TypeError", code: "ERR_INVALID_ARG_VALUE" });
  });

  test("what is in use is EBUSY, and lazy takes it away at once, with what is below", () => {
    const target = tmpfs(make("target"), "busy");
    tmpfs(join(target, "below"), "below");
    const file = openSync(join(target, "file"), "w");
    try {
      unmount(join(target, "below"));
      expect(errorOf(() => unmount(target))).toMatchObject({ code: "EBUSY" });
      tmpfs(join(target, "below"), "below");
      unmount(target, { lazy: true });
      expect(table()).toEqual([]);
      writeFileSync(file, "still there");
    } finally {
      closeSync(file);
    }
  });

  test("force is passed on", () => {
    const target = tmpfs(make("target"), "x");
    unmount(target, { force: true });
    expect(table()).toEqual([]);
    expect(errorOf(() => unmount(target, { force: true, lazy: true }))).toMatchObject({ code: "EINVAL" });
  });

  // The child's root is a tmpfs of its own: should this go wrong, no other file system becomes read-only.
  const root = `
    const root = parameters[0];
    syscalls.mount("root", root, "tmpfs", 0, null);
    syscalls.mkdirat(-100, root + "/proc", 0o755);
    if (parameters[1] === "proc") syscalls.mount("/proc", root + "/proc", null, syscalls.MS.BIND | syscalls.MS.REC, null);
    syscalls.chroot(root);
    process.chdir("/");
  `;
  const apart = ["unshare", "--mount", "--propagation", "private"];

  test.each(["proc", "no proc"])("the process's own root is EBUSY and stays writable, under any name, with %s", (proc) => {
    const code = `${root}
      const failed = ["/", "/proc/..", "."].map((path) => outcome(() => api.unmount(path)));
      syscalls.mkdirat(-100, "/written", 0o755);
      answer(failed);
    `;
    const refused = (path: string) => ({ error: { name: "SyscallError", code: "EBUSY", syscall: "umount2", path } });
    expect(child(apart, code, make("root"), proc)).toEqual(["/", "/proc/..", "."].map(refused));
  });

  test("what is mounted over the root can be unmounted", () => {
    const code = `${root}
      syscalls.mount("over", "/", "tmpfs", 0, null);
      const sources = () => info.getMounts(({ mountPoint }) => mountPoint === "/").map(({ mountSource }) => mountSource);
      const before = sources();
      api.unmount("/");
      answer([before, sources()]);
    `;
    expect(child(apart, code, make("root"), "proc")).toEqual([["root", "over"], ["root"]]);
  });

  test("a FUSE-like mount that cannot be looked at is left to umount2", () => {
    const target = tmpfs(make("target"), "x");
    const tracer = [...failing("statx:error=ENOTCONN"), "-P", target];
    expect(child(tracer, "answer(outcome(() => api.unmount(parameters[0])));", target)).toEqual({ value: null });
    expect(table()).toEqual([]);
  });
});

describe("unmountAll", () => {
  test("nothing mounted there is 0, and what is missing ENOENT", () => {
    const path = make("plain");
    tmpfs(make("other"), "other");
    expect(unmountAll(path)).toBe(0);
    expect(errorOf(() => unmountAll(join(path, "missing")))).toMatchObject({ code: "ENOENT" });
    expect(sources()).toEqual(["other"]);
  });

  test("unmounts nested mounts, deepest first", () => {
    const top = tmpfs(make("top"), "1");
    tmpfs(join(top, "a"), "2");
    tmpfs(join(top, "a/b"), "3");
    tmpfs(join(top, "c/d"), "4");
    expect(unmountAll(top)).toBe(4);
    expect(table()).toEqual([]);
  });

  test("takes what is below a directory that is no mount point itself, and leaves /ab alone when asked for /a", () => {
    tmpfs(make("a/x"), "in a");
    tmpfs(make("a/x/y"), "in a, too");
    tmpfs(make("ab"), "beside");
    tmpfs(make("ab/x"), "beside, too");
    expect(unmountAll(join(directory, "a"))).toBe(2);
    expect(sources()).toEqual(["beside", "beside, too"]);
  });

  test("a mount point keeps its namesake's mounts: /m and /mm are two", () => {
    tmpfs(make("m"), "m");
    tmpfs(make("mm"), "mm");
    expect(unmountAll(join(directory, "m"))).toBe(1);
    expect(sources()).toEqual(["mm"]);
  });

  test("unmounts stacked mounts, with what each of them has below", () => {
    const target = make("target");
    for (const layer of ["1", "2", "3"]) {
      tmpfs(target, layer);
      tmpfs(join(target, "below"), `below ${layer}`);
      tmpfs(join(target, "below"), `stacked below ${layer}`);
    }
    expect(unmountAll(target)).toBe(9);
    expect(table()).toEqual([]);
  });

  test("unmounts what a mount covers, after that mount", () => {
    const top = make("top");
    tmpfs(join(top, "a/b/c"), "covered");
    tmpfs(join(top, "a/b"), "covering");
    tmpfs(join(top, "a/b/c"), "on the covering one");
    tmpfs(join(top, "a"), "covering all");
    expect(unmountAll(top)).toBe(4);
    expect(table()).toEqual([]);
  });

  test("what the target itself covers goes as well, so that nothing is left below it", () => {
    const target = make("target");
    tmpfs(join(target, "deep"), "covered by the target");
    tmpfs(target, "target");
    expect(unmountAll(target)).toBe(2);
    expect(table()).toEqual([]);
  });

  test("what lies under a foreign mount above the target is not touched", () => {
    const above = make("above");
    tmpfs(join(above, "target"), "hidden");
    tmpfs(join(above, "target/x"), "hidden, too");
    tmpfs(above, "foreign");
    mkdirSync(join(above, "target"));
    expect(unmountAll(join(above, "target"))).toBe(0);
    tmpfs(join(above, "target"), "seen");
    expect(unmountAll(join(above, "target"))).toBe(1);
    expect(sources()).toEqual(["hidden", "hidden, too", "foreign"]);
  });

  test("what lies under a foreign mount stacked above is not touched either", () => {
    const above = tmpfs(make("above"), "own");
    tmpfs(join(above, "target"), "hidden");
    tmpfs(above, "foreign");
    tmpfs(join(above, "target"), "seen");
    expect(unmountAll(join(above, "target"))).toBe(1);
    expect(sources()).toEqual(["own", "hidden", "foreign"]);
  });

  test("follows a link to the target, and no link below it", () => {
    const target = tmpfs(make("target"), "target");
    tmpfs(make("elsewhere"), "elsewhere");
    symlinkSync(join(directory, "elsewhere"), join(target, "link"));
    symlinkSync(target, join(directory, "link"));
    expect(unmountAll(join(directory, "link"))).toBe(1);
    expect(sources()).toEqual(["elsewhere"]);
  });

  test("unmounts a file", () => {
    const target = makeFile("target");
    mount(makeFile("source"), target, null, "bind");
    expect(unmountAll(target)).toBe(1);
    expect(table()).toEqual([]);
  });

  test("unmounts names with blanks, backslashes, newlines, and two that differ only in bytes that are not UTF-8", () => {
    const top = make("top");
    for (const name of ["a b", "a\\040b", "a\nb", "#"]) tmpfs(join(top, name), "odd");
    const spoilt = [0xfe, 0xff].map((byte) => Buffer.concat([Buffer.from(`${top}/`), Buffer.of(byte)]));
    for (const path of spoilt) {
      mkdirSync(path);
      mount("bytes", path, "tmpfs");
    }
    // Read as text, the two are one.
    const [first = "", second = ""] = spoilt;
    expect(unmountAll(first)).toBe(1);
    expect([mounted(first), mounted(second)]).toEqual([false, true]);
    expect(unmountAll(top)).toBe(5);
    expect(table()).toEqual([]);
  });

  test("counts what goes with its peer", () => {
    const top = make("top");
    const one = tmpfs(join(top, "one"), "peers", "shared");
    mkdirSync(join(top, "two"));
    mount(one, join(top, "two"), null, "bind");
    tmpfs(join(one, "below"), "below");
    expect(sources()).toEqual(["peers", "peers", "below", "below"]);
    expect(unmountAll(top)).toBe(4);
    expect(table()).toEqual([]);
  });

  test("stops at the first that is busy, and throws its error", () => {
    const top = tmpfs(make("top"), "top");
    tmpfs(join(top, "busy"), "busy");
    tmpfs(join(top, "busy/free"), "free");
    const file = openSync(join(top, "busy/file"), "w");
    try {
      const path = join(top, "busy");
      expect(errorOf(() => unmountAll(top))).toMatchObject({ code: "EBUSY", syscall: "umount2", path });
      expect(sources()).toEqual(["top", "busy"]);
      expect(unmountAll(top, { lazy: true })).toBe(2);
      expect(table()).toEqual([]);
    } finally {
      closeSync(file);
    }
  });

  test("leaves the descriptors as they were", () => {
    const target = tmpfs(make("target"), "target");
    const open = (): number => [...new Bun.Glob("*").scanSync({ cwd: "/proc/self/fd", onlyFiles: false })].length;
    const before = open();
    unmountAll(target);
    makeMountPoint(target);
    setReadOnlyByRemount(target, { recursive: true });
    mount(target, target, null, "bind,ro,shared");
    expect(open()).toBe(before);
  });

  test("asked for the root, it unmounts all but the root and what hides there, where no path leads", () => {
    const code = `
      const before = info.getMounts().length;
      syscalls.mount("over", "/", "tmpfs", 0, null);
      const count = api.unmountAll("/", { lazy: true });
      syscalls.mount("proc", "/proc", "proc", 0, null);
      const left = info.getMounts();
      answer({ all: count === before - 1, left: left.map(({ mountPoint }) => mountPoint), over: left[1].mountSource });
    `;
    const apart = ["unshare", "--mount", "--propagation", "private"];
    expect(child(apart, code)).toEqual({ all: true, left: ["/", "/", "/proc"], over: "over" });
  });
});

describe("makeMountPoint", () => {
  const ways: [string, string[] | undefined][] = [
    ["by descriptor", undefined],
    ["where open_tree is missing", ["open_tree:error=ENOSYS"]],
    ["where move_mount is missing", ["move_mount:error=ENOSYS"]],
    ["where mount_setattr is missing", ["mount_setattr:error=ENOSYS"]],
  ];
  for (const [way, faults] of ways) {
    const act = (path: string): unknown =>
      faults === undefined
        ? { value: makeMountPoint(path) }
        : child(failing(...faults), "answer(outcome(() => api.makeMountPoint(parameters[0])));", path);

    test(`a directory becomes a mount point once, with the mounts below it, private (${way})`, () => {
      const path = make("directory");
      tmpfs(join(path, "below"), "below", "shared");
      makeFile("directory/file", "content");
      expect(act(path)).toEqual({ value: true });
      expect(mountOf(path)).toMatchObject({ mountPoint: path, root: "/directory", propagation: { unbindable: false } });
      expect(mountOf(join(path, "below")).propagation).toEqual({ unbindable: false });
      expect(readFileSync(join(path, "file"), "utf8")).toBe("content");
      expect(table()).toHaveLength(3);
      expect(act(path)).toEqual({ value: false });
      expect(table()).toHaveLength(3);
    });

    test(`so does a file, and what a link leads to (${way})`, () => {
      const file = makeFile("file", "content");
      symlinkSync(make("directory"), join(directory, "link"));
      expect(act(file)).toEqual({ value: true });
      expect(act(join(directory, "link"))).toEqual({ value: true });
      expect(readFileSync(file, "utf8")).toBe("content");
      expect(table().map(({ mountPoint }) => mountPoint)).toEqual([file, join(directory, "directory")]);
    });
  }

  test("by name, a failure afterwards is undone, and the originals below stay", () => {
    const source = tmpfs(make("source"), "top", "shared");
    const path = make("source/directory");
    tmpfs(join(path, "below"), "below", "shared");
    const before = table();
    const act = "answer(outcome(() => api.makeMountPoint(parameters[0])));";
    const tracer = failing("open_tree:error=ENOSYS", "mount:error=EPERM:when=2");
    expect(child(tracer, act, path)).toEqual({ error: { name: "SyscallError", code: "EPERM", syscall: "mount", path } });
    expect(table()).toEqual(before);
    expect(mounted(source)).toBe(true);
  });

  test("a failure to attach leaves nothing mounted and names the path", () => {
    const path = make("directory");
    const act = "answer(outcome(() => api.makeMountPoint(parameters[0])));";
    expect(child(failing("move_mount:error=EPERM"), act, path)).toEqual({
      error: { name: "SyscallError", code: "EPERM", syscall: "move_mount", path },
    });
    expect(table()).toEqual([]);
  });

  test("a missing path is ENOENT", () => {
    const path = join(directory, "missing");
    expect(errorOf(() => makeMountPoint(path))).toMatchObject({ code: "ENOENT", path });
  });
});

describe("setReadOnly", () => {
  const ways: [string, typeof setReadOnly][] = [
    ["mount_setattr", setReadOnly],
    ["remount", setReadOnlyByRemount],
    [
      "the fallback itself",
      (target, options = {}) => {
        const act = "answer(outcome(() => api.setReadOnly(parameters[0], JSON.parse(parameters[1]))));";
        const tracer = failing("mount_setattr:error=ENOSYS");
        const result: unknown = child(tracer, act, String(target), JSON.stringify(options));
        if (!Bun.deepEquals(result, { value: null })) throw Object.assign(new Error("in the child"), { ...Object(result).error });
      },
    ],
  ];

  describe.each(ways)("by %s", (_, act) => {
    function tree(): string {
      const top = tmpfs(make("top"), "top", "nosuid,nodev");
      tmpfs(join(top, "a"), "a", "noexec,noatime");
      tmpfs(join(top, "a/b c"), "b", "strictatime,nosymfollow");
      tmpfs(join(top, "a/b c/e"), "e");
      tmpfs(join(top, "d"), "d", "nodiratime");
      tmpfs(make("beside"), "beside");
      return top;
    }
    const before = [
      "/top top rw,nosuid,nodev,relatime",
      "/top/a a rw,noexec,noatime",
      "/top/a/b c b rw,nosymfollow",
      "/top/a/b c/e e rw,relatime",
      "/top/d d rw,nodiratime,relatime",
      "/beside beside rw,relatime",
    ];

    test("makes one mount read-only, keeps its other options, and leaves the file system writable", () => {
      const top = tree();
      const other = make("other");
      mount(top, other, null, "bind");
      act(top);
      expect(lines().slice(0, 6)).toEqual(["/top top ro,nosuid,nodev,relatime", ...before.slice(1)]);
      expect(errorOf(() => writeFileSync(join(top, "file"), ""))).toMatchObject({ code: "EROFS" });
      writeFileSync(join(other, "file"), "");
    });

    test("makes all mounts below read-only as well when it is recursive, and none beside", () => {
      act(tree(), { recursive: true });
      expect(lines()).toEqual([...before.slice(0, 5).map((line) => line.replace(" rw", " ro")), ...before.slice(5)]);
    });

    test("follows a link, takes a file, and what is read-only already", () => {
      const top = tree();
      symlinkSync(top, join(directory, "link"));
      act(join(directory, "link"));
      act(top);
      expect(mountOf(top).mountOptions).toBe("ro,nosuid,nodev,relatime");
      const file = makeFile("file");
      makeMountPoint(file);
      act(file);
      expect(errorOf(() => writeFileSync(file, "x"))).toMatchObject({ code: "EROFS" });
    });

    test("a file open for writing is EBUSY, and then nothing has changed", () => {
      const top = tree();
      const file = openSync(join(top, "d/file"), "w");
      try {
        expect(errorOf(() => act(top, { recursive: true }))).toMatchObject({ code: "EBUSY" });
        expect(lines()).toEqual(before);
      } finally {
        closeSync(file);
      }
    });

    test("what is not a mount point is EINVAL, also when mounts are below it, and nothing changes", () => {
      const path = make("plain");
      tmpfs(join(path, "below"), "below");
      expect(errorOf(() => act(path, { recursive: true }))).toMatchObject({ code: "EINVAL" });
      expect(errorOf(() => act(join(path, "missing")))).toMatchObject({ code: "ENOENT" });
      expect(lines()).toEqual(["/plain/below below rw,relatime"]);
    });
  });

  test("a recursive change reaches mounts that are covered", () => {
    const top = tmpfs(make("top"), "top");
    tmpfs(join(top, "a/b"), "covered");
    tmpfs(join(top, "a"), "covering");
    setReadOnly(top, { recursive: true });
    expect(lines().map((line) => line.split(" ")[2])).toEqual(["ro,relatime", "ro,relatime", "ro,relatime"]);
  });

  test("by remount, a covered mount is refused before anything is changed", () => {
    const top = tmpfs(make("top"), "top");
    tmpfs(join(top, "a"), "seen");
    tmpfs(join(top, "b"), "lower");
    tmpfs(join(top, "b/c"), "covered");
    tmpfs(join(top, "b"), "upper");
    mkdirSync(join(top, "b/c"));
    const before = lines();
    const error = errorOf(() => setReadOnlyByRemount(top, { recursive: true }));
    expect(error).toMatchObject({ code: "ERR_MOUNT_COVERED", message: expect.stringContaining(join(top, "b")) });
    expect(lines()).toEqual(before);
  });

  test("by remount, both errors are kept when undoing fails as well", () => {
    const top = tmpfs(make("top"), "top");
    tmpfs(join(top, "a"), "a");
    const act = "answer(outcome(() => api.setReadOnlyByRemount(parameters[0], { recursive: true })));";
    // The first mount is changed, the second is refused, and so is changing the first back.
    expect(child(failing("mount:error=EPERM:when=2+"), act, top)).toMatchObject({
      error: { code: "EPERM", path: top },
      suppressed: { code: "EPERM", path: join(top, "a") },
    });
  });
});

describe("mergeTmpfsOptions", () => {
  test.each([
    ["", []],
    ["size=1m", ["size=1m"]],
    ["size=1m,size=2m", ["size=2m"]],
    ["size=1m,noexec,size=2m", ["noexec", "size=2m"]],
    ["exec,noexec", ["noexec"]],
    ["noexec,exec", ["exec"]],
    ["ro,rw,ro", ["ro"]],
    ["nosuid,nodev,suid", ["nodev", "suid"]],
    ["noatime,relatime", ["relatime"]],
    ["relatime,strictatime,noatime", ["noatime"]],
    ["strictatime,norelatime", ["strictatime", "norelatime"]],
    ["norelatime,strictatime", ["strictatime"]],
    ["defaults,noexec,defaults", ["noexec"]],
    ["mode=755,uid=1,gid=2,nr_inodes=3,mode=700", ["uid=1", "gid=2", "nr_inodes=3", "mode=700"]],
    ["size=1m,nr_blocks=3", ["nr_blocks=3"]],
    ["nr_blocks=3,size=50%", ["size=50%"]],
    ["inode32,inode64", ["inode64"]],
    ["noswap,huge=always,noswap,huge=never", ["noswap", "huge=never"]],
    ["mpol=bind:0,2-4,size=1m,mpol=interleave:1,3", ["size=1m", "mpol=interleave:1,3"]],
    ["private,rslave,shared", ["shared"]],
    [
      ["size=1m", "noexec", "size=2m"],
      ["noexec", "size=2m"],
    ],
    [
      ["size=1m,exec", "noexec,uid=0"],
      ["size=1m", "noexec", "uid=0"],
    ],
    [[], []],
  ])("%j merges to %j", (options, expected) => {
    expect(mergeTmpfsOptions(options)).toEqual(expected);
  });

  test.each([
    ["size"],
    ["sise=1m"],
    ["=1"],
    ["noswap=1"],
    ["bind"],
    ["rbind"],
    ["noauto"],
    ["lowerdir=/a"],
    ["constructor"],
    ["__proto__=1"],
    ["5"],
  ])("'%s' is refused by name", (option) => {
    const error = errorOf(() => mergeTmpfsOptions(["ro", option, "size=1m"].slice(option === "5" ? 1 : 0)));
    expect(error).toBeInstanceOf(TypeError);
    expect(error).toMatchObject({ code: "ERR_INVALID_ARG_VALUE", message: expect.stringContaining(`'${option}'`) });
  });

  test("the list that is given stays as it is", () => {
    const options = Object.freeze(["noexec", "exec"]);
    expect(mergeTmpfsOptions(options)).toEqual(["exec"]);
  });

  test("what is merged means what it meant before, and merges to itself", () => {
    const option = fc.constantFrom(
      ...["ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "atime", "noatime"],
      ...["diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime"],
      ...["silent", "loud", "symfollow", "nosymfollow", "mand", "nomand", "user", "owner", "defaults"],
    );
    fc.assert(
      fc.property(fc.array(option, { maxLength: 12 }), (options) => {
        const merged = mergeTmpfsOptions(options);
        expect(parseMountOptions(merged.join(","))).toEqual(parseMountOptions(options.join(",")));
        expect(mergeTmpfsOptions(merged)).toEqual(merged);
      }),
      { numRuns: 1000 },
    );
  });

  test("a tmpfs takes the result", () => {
    const options = mergeTmpfsOptions("size=1m,ro,mode=700,uid=7,gid=8,nr_inodes=9,mpol=local,huge=never,rw,size=64k,noexec");
    const target = make("target");
    mount("merged", target, "tmpfs", options.join(","));
    expect(mountOf(target)).toMatchObject({ mountOptions: "rw,noexec,relatime" });
    const { mode, uid, gid } = statSync(target);
    expect([mode & 0o7777, uid, gid]).toEqual([0o700, 7, 8]);
    expect(mountOf(target).superOptions).toContain("size=64k,nr_inodes=9,mode=700,uid=7,gid=8");
  });
});
