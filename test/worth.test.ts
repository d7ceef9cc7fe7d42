/** What each method is worth against a process inside: the tables of docs/security.md, cell by cell. */
import { afterEach, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { type RootMethod, switchRoot } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child } from "./child.ts";
import { makeRoot } from "./observe.ts";

type Way = "chroot, then .." | "setns" | "umount -l /, then setns";

interface Plan {
  method: RootMethod;
  way: Way;
}

function tryToEscape({ method, way }: Plan): string {
  fs.mkdirSync("/tmp/worth/deep", { recursive: true });
  // On the root file system itself: what was mounted on it is detached by move.
  const marked = fs.mkdtempSync("/host-");
  // Opened before, as a pidfd of oneself could be at any time, without a /proc.
  const namespace = syscalls.open("/proc/self/ns/mnt", syscalls.O.RDONLY);
  const { method: used } = switchRoot("/tmp/worth", { methods: [method] });
  if (used !== method) throw new Error(`it used ${used}`);
  if (way === "chroot, then ..") {
    syscalls.chroot("/deep");
    for (let step = 0; step < 200; step++) syscalls.chdir("..");
    syscalls.chroot(".");
  } else {
    if (way !== "setns") {
      try {
        syscalls.umount2("/", syscalls.MNT.DETACH);
      } catch (error) {
        // A detached root, and one that is no mount point, cannot be unmounted.
        if (!(error instanceof syscalls.SyscallError) || error.code !== "EINVAL") throw error;
        return "holds";
      }
    }
    // setns(2) wants a thread that shares its root with no other.
    syscalls.unshare(syscalls.CLONE.FS);
    syscalls.setns(namespace, syscalls.CLONE.NEWNS);
  }
  return fs.existsSync(marked) ? "old root" : "holds";
}

/** The cells of the table below a heading of docs/security.md: the row's name, the column's name, what it says. */
function tableBelow(heading: string): [row: string, column: string, cell: string][] {
  const page = fs.readFileSync(`${import.meta.dir}/../docs/security.md`, "utf8");
  const [, section = ""] = page.split(`## ${heading}\n`);
  const rows = (section.split("\n## ")[0] ?? "")
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .map((line) =>
      line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim()),
    );
  const [columns = [], , ...body] = rows;
  return body.flatMap(([row = "", ...cells]) =>
    cells.map((cell, at): [string, string, string] => [row, columns[at + 1] ?? "", cell]),
  );
}

const plain = (text: string): string => text.replaceAll("`", "");
const methods: readonly RootMethod[] = ["pivot", "move", "detached", "chroot"];
const ways: readonly Way[] = ["chroot, then ..", "setns", "umount -l /, then setns"];

function toMethod(name: string): RootMethod {
  const method = methods.find((known) => known === plain(name));
  if (method === undefined) throw new Error(`no method: ${name}`);
  return method;
}

function toWay(name: string): Way {
  const way = ways.find((known) => known === name);
  if (way === undefined) throw new Error(`no way: ${name}`);
  return way;
}

afterEach(() => {
  for (const name of fs.readdirSync("/").filter((entry) => entry.startsWith("host-"))) fs.rmdirSync(`/${name}`);
  for (const name of fs.readdirSync("/tmp").filter((entry) => entry.startsWith("worth-")))
    fs.rmSync(`/tmp/${name}`, { recursive: true });
});

describe("with every capability", () => {
  const cells = tableBelow("Against a process that has every capability");
  test("the table has all methods and all ways", () => expect(cells).toHaveLength(12));
  for (const [row, column, cell] of cells) {
    test(`${plain(row)}, ${column}: ${cell}`, async () => {
      expect(await child(tryToEscape, { method: toMethod(row), way: toWay(column) })).toBe(cell);
    });
  }
});

function tryWithoutCapabilities({ method, way }: Plan): string {
  fs.mkdirSync("/tmp/worth/deep", { recursive: true });
  const namespace = syscalls.open("/proc/self/ns/mnt", syscalls.O.RDONLY);
  switchRoot("/tmp/worth", { methods: [method] });
  process.setgroups?.([]);
  process.setgid?.(65534);
  process.setuid?.(65534);
  const attempts: (() => void)[] = [];
  if (way === "chroot, then ..") attempts.push(() => syscalls.chroot("/deep"));
  if (way === "umount -l /, then setns") attempts.push(() => syscalls.umount2("/", syscalls.MNT.DETACH));
  if (way !== "chroot, then ..")
    attempts.push(
      () => syscalls.unshare(syscalls.CLONE.FS),
      () => syscalls.setns(namespace, syscalls.CLONE.NEWNS),
    );
  const answers = attempts.map((attempt) => {
    try {
      attempt();
      return "done";
    } catch (error) {
      return error instanceof syscalls.SyscallError ? error.code : String(error);
    }
  });
  // To unshare one's own fs_struct takes no right; each of the others does.
  return answers.filter((answer) => answer !== "done").every((answer) => answer === "EPERM") && answers.at(-1) === "EPERM"
    ? "refused"
    : answers.join();
}

describe("without capabilities", () => {
  const cells = tableBelow("Against a process without capabilities");
  test("the table has all methods and all ways", () => expect(cells).toHaveLength(12));
  for (const [row, column, cell] of cells) {
    test(`${plain(row)}, ${column}: ${cell}`, async () => {
      expect(await child(tryWithoutCapabilities, { method: toMethod(row), way: toWay(column) })).toBe(cell);
    });
  }
});

interface Outside {
  method: RootMethod;
  way: string;
}

function tryByOutside({ method, way }: Outside): string {
  fs.mkdirSync("/tmp/worth/proc", { recursive: true });
  const marked = fs.mkdtempSync("/host-");
  const directory = syscalls.open("/", syscalls.O.PATH | syscalls.O.DIRECTORY);
  syscalls.mount("proc", "/tmp/worth/proc", "proc", 0, null);
  switchRoot("/tmp/worth", { methods: [method] });
  const outside = `/proc/${process.ppid}`;
  if (way.includes("open before")) {
    process.setuid?.(65534);
    syscalls.fchdir(directory);
    return fs.existsSync(`.${marked}`) ? "old root" : "holds";
  }
  if (way.includes("/root")) return fs.existsSync(`${outside}/root${marked}`) ? "old root" : "holds";
  const namespace = syscalls.open(`${outside}/ns/mnt`, syscalls.O.RDONLY);
  syscalls.unshare(syscalls.CLONE.FS);
  syscalls.setns(namespace, syscalls.CLONE.NEWNS);
  return fs.existsSync(marked) ? "old root" : "holds";
}

describe("what leads out of all", () => {
  const cells = tableBelow("What leads out of all four");
  test("the table has all methods and three ways", () => expect(cells).toHaveLength(12));
  for (const [way, column, cell] of cells) {
    test(`${plain(column)}, ${plain(way)}: ${cell}`, async () => {
      // The child starts in a mount namespace of its own; the test's process, its parent, stays outside.
      expect(await child(tryByOutside, { method: toMethod(column), way: plain(way) })).toBe(cell);
    });
  }
});

/** Whether a process without capabilities can make a user namespace inside, and be root in it. */
function tryUserNamespace(method: RootMethod): string {
  const root = fs.mkdtempSync("/tmp/worth-");
  fs.chmodSync(root, 0o755);
  makeRoot(root);
  syscalls.mount("proc", `${root}/proc`, "proc", 0, null);
  switchRoot(root, { methods: [method] });
  process.setgroups?.([]);
  process.setgid?.(65534);
  process.setuid?.(65534);
  const { exitCode, stdout, stderr } = Bun.spawnSync(["unshare", "--user", "--map-root-user", "--mount", "id", "-u"], {
    stdin: null,
    stderr: "pipe",
  });
  return exitCode === 0 ? stdout.toString() : stderr.toString();
}

for (const method of methods) {
  const allowed = method === "pivot" || method === "move";
  test(`a user namespace without capabilities is ${allowed ? "to be had" : "refused"} in a root by ${method}`, async () => {
    const refused = "unshare: unshare failed: Operation not permitted\n";
    expect(await child(tryUserNamespace, method)).toBe(allowed ? "0\n" : refused);
  });
}
