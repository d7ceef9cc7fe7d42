/**
 * How many system calls a switch makes, and a start of `mounttree run`: not more than test/calls.json says. The numbers are those of Bun
 * 1.4.5 on Linux 6.18; kernels without statmount(2) (before 6.8) have to be asked in more calls.
 *
 * Counted is the main thread, which does all of it. In 50 runs beside other work each number was the same in every run, with this left out:
 * - futex and memory calls, which the collector and the compiler make when they see fit. Without concurrent compilation the main thread
 *   makes no other call on their behalf, but for looking into /proc/self/statm now and then, which is left out as well.
 * - one kcmp(2) for each thread: how many threads Bun has depends on the machine's processors.
 * - what the loader and Bun do before a program's first call, but for what it is more than in a program that does nothing.
 *
 * So that the machine's mounts and processes do not count either, all of it runs in a root and a PID namespace of its own.
 */
import { beforeAll, expect, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import recorded from "./calls.json" with { type: "json" };
import { checkout, compile, makeRoot, run, scratchDirectory, watchMountTable } from "./compiled.ts";

const scratch = scratchDirectory();
const surroundings = makeRoot(join(scratch, "surroundings"));
makeRoot(join(scratch, "root"));
watchMountTable();

const memory = ["brk", "mmap", "munmap", "mprotect", "mremap", "madvise"];
const leftOut = new Set([...memory, "futex"]);

/** Calls of a log, by name, from behind one line to another. */
function callsBetween(log: string, first: RegExp, last: RegExp): Map<string, number> {
  const lines = log.split("\n");
  const start = lines.findIndex((line) => first.test(line));
  const length = lines.slice(start + 1).findIndex((line) => last.test(line));
  if (start === -1 || length === -1) throw new Error(`the log has no ${start === -1 ? first : last}:\n${log}`);
  const calls = new Map<string, number>();
  const compared = new Set<string>();
  let looking = false;
  for (const line of lines.slice(start + 1, start + 1 + length)) {
    const name = /^(\w+)\(/.exec(line)?.[1];
    if (line.includes('"/proc/self/statm"')) looking = true;
    if (looking) {
      looking = name !== "close";
      continue;
    }
    if (name === undefined || leftOut.has(name)) continue;
    if (name === "kcmp" && compared.size < compared.add(line).size) continue;
    calls.set(name, (calls.get(name) ?? 0) + 1);
  }
  return calls;
}

function sum(calls: ReadonlyMap<string, number>): number {
  return calls.values().reduce((total, count) => total + count, 0);
}

/** Prints a number; returns what is wrong with it, or nothing. */
function compare(name: keyof typeof recorded, made: number, calls: ReadonlyMap<string, number>): string[] {
  const hint = made < recorded[name] ? `; fewer than before: write ${made} into test/calls.json, so that it stays so` : "";
  console.log(`system calls: ${name}: ${made}, recorded: ${recorded[name]}${hint}`);
  const list = [...calls].map(([call, count]) => `${call} ${count}`).join(", ");
  return made > recorded[name] ? [`${name}: ${made} system calls, and there were ${recorded[name]}: ${list}`] : [];
}

/** Runs a command in the surroundings, and returns the log of its main thread's calls. */
async function trace(command: readonly string[]): Promise<string> {
  const log = join(scratch, "log");
  const mounts = [
    "--ro-bind",
    "/usr",
    "/usr",
    "--ro-bind",
    checkout,
    checkout,
    "--bind",
    scratch,
    scratch,
    "--tmpfs",
    "/tmp/new",
  ];
  const around = ["unshare", "--pid", "--fork", mounttree, "run", ...mounts, "--proc", "/proc", "--dev", "/dev", surroundings];
  const env = { ...process.env, BUN_JSC_useConcurrentJIT: "0" };
  const { status, stderr } = await run([...around, "strace", "-qq", "-o", log, ...command], { env });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return fs.readFileSync(log, "utf8");
}

const program = join(scratch, "program.ts");
let mounttree = "";
let empty = "";

beforeAll(async () => {
  mounttree = await compile(scratch);
  fs.writeFileSync(
    program,
    `
      import { existsSync, mkdirSync } from "node:fs";
      import { mount, switchRoot } from "${checkout}/index.ts";
      for (const path of ["/tmp/new/proc", "/tmp/new/next/proc"]) {
        mkdirSync(path, { recursive: true });
        mount("proc", path, "proc");
      }
      // Starts the threads that do asynchronous I/O.
      await Bun.file("/proc/self/stat").text();
      const methods = [process.argv[2]];
      // A mount point first, then a directory.
      for (const [path, name] of [["/tmp/new", "first"], ["/next", "again"]]) {
        existsSync("/before-" + name);
        switchRoot(path, { methods });
        existsSync("/after-" + name);
      }
    `,
  );
  empty = await compile(scratch, [], "process.umask(0o22);\n");
}, 60_000);

for (const method of ["pivot", "move", "detached", "chroot"] as const) {
  test(`switching by ${method} makes no more system calls than it did, the first time and again`, async () => {
    const log = await trace(["unshare", "--mount", "--propagation", "private", process.execPath, program, method]);
    const more = (["first", "again"] as const).flatMap((time) => {
      const calls = callsBetween(log, new RegExp(`"/before-${time}"`), new RegExp(`"/after-${time}"`));
      return compare(`${method}, ${time}`, sum(calls), calls);
    });
    expect(more).toEqual([]);
  }, 20_000);
}

test("mounttree run makes no more system calls than it did, before its first one and from there to its command", async () => {
  const mounts = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"];
  const log = await trace([mounttree, "run", ...mounts, join(scratch, "root"), "/usr/bin/true"]);
  const firstCall = /^rt_sigaction\(SIGPIPE, {sa_handler=SIG_DFL/;
  const before = callsBetween(log, /^execve\(/, firstCall);
  const ofBun = callsBetween(await trace([empty]), /^execve\(/, /^umask\(/);
  const calls = callsBetween(log, firstCall, /^execve\("\/usr\/bin\/true"/);
  const more = [
    ...compare("mounttree run, before its first call, beyond an empty program", sum(before) - sum(ofBun), before),
    ...compare("mounttree run", sum(calls), calls),
  ];
  expect(more).toEqual([]);
}, 20_000);
