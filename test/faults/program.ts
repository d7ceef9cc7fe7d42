/**
 * A program that calls `switchRoot`, to be run under strace(1). Where a switch begins and ends, and each check, step and undo in it, is
 * marked by an access(2), a call that mounttree never makes.
 */
import { dlopen, ptr } from "bun:ffi";
import * as fs from "node:fs";
import { constants } from "node:os";
import { getMounts } from "../../mountinfo.ts";
import { methods, type Step, type SwitchRootOptions, switchRootOn } from "../../switchroot.ts";
import { CLONE, execvp, kernel, MNT, MS, mount, umount2, unshare } from "../../syscalls.ts";
import { type DescribedError, describeError } from "../observe.ts";
import type { Fault } from "./strace.ts";

/** What it is asked for. */
export interface Request {
  path: string;
  options: SwitchRootOptions;
  /**
   * Whether it has its mount namespace for itself, or for a command takes one: then it unmounts there what no test needs, so that
   * `move` has not much to leave behind.
   */
  apart?: boolean;
  /** A fault that strace cannot make, in statmount(2) or listmount(2): from that time on all of them fail. */
  fault?: Fault;
  /** Not to switch, but to execute this command, all of whose calls fail. */
  command?: [string, ...string[]];
}

/** What it reports. */
export interface Report {
  method?: string;
  rejected?: { method: string; reason: string; message: string }[];
  leaks?: string[];
  error?: DescribedError;
  /** The working directory, as Bun knows it, and where Bun finds a file in it. (It remembers what was in the old "/", so nowhere after a switch.) */
  cwd: string;
  found: string;
}

function mark(name: string): void {
  fs.existsSync(`/mark/${name}`);
}

/** An action that is marked, and the end of it. */
function marked<Given extends unknown[], Result>(name: string, action: (...given: Given) => Result): (...given: Given) => Result {
  return (...given) => {
    mark(name);
    try {
      return action(...given);
    } finally {
      mark(`after ${name}`);
    }
  };
}

function markAll(): void {
  const all = Object.values(methods);
  const steps = all.flatMap((method) => method.steps.flatMap((each): readonly Step[] => ("steps" in each ? each.steps : [each])));
  for (const check of new Set(all.flatMap((method) => method.checks))) {
    check.rulesOut = marked(`check ${check.reason}`, check.rulesOut);
  }
  for (const step of new Set(steps)) {
    step.run = marked(`step ${step.phase}`, step.run);
    if (step.undo !== undefined) step.undo = marked(`undo ${step.phase}`, step.undo);
  }
}

/** From now on this call of this thread fails; or ends the process. */
function forbid({ call, errno }: Fault): void {
  const numbers: Record<string, number> = { statmount: 457, listmount: 458 };
  const errnos: Record<string, number> = constants.errno;
  const answer = errno === undefined ? 0x8000_0000 : 0x0005_0000 + (errnos[errno] ?? 0);
  // struct sock_filter, four times: load the number; if it is that one, the answer; otherwise the call is allowed.
  const instructions = [
    [0x20, 0, 0, 0],
    [0x15, 0, 1, numbers[call] ?? 0],
    [0x06, 0, 0, answer],
    [0x06, 0, 0, 0x7fff_0000],
  ] as const;
  const memory = new DataView(new ArrayBuffer(4096));
  instructions.forEach(([code, yes, no, value], index) => {
    memory.setUint16(8 * index, code, true);
    memory.setUint8(8 * index + 2, yes);
    memory.setUint8(8 * index + 3, no);
    memory.setUint32(8 * index + 4, value, true);
  });
  // struct sock_fprog
  memory.setUint16(2048, instructions.length, true);
  memory.setBigUint64(2056, BigInt(ptr(memory.buffer)), true);
  const { prctl } = dlopen("libc.so.6", { prctl: { args: ["i32", "u64", "u64"], returns: "i32" } }).symbols;
  const [PR_SET_SECCOMP, SECCOMP_MODE_FILTER] = [22, 2];
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ptr(memory.buffer) + 2048) !== 0) throw new Error("prctl(2) failed");
}

/** The kernel, in which a call fails from its `count`-th time on. */
function kernelWith(fault: Fault | undefined): typeof kernel {
  let times = 0;
  const counted =
    <Given extends unknown[], Result>(call: string, action: (...given: Given) => Result) =>
    (...given: Given): Result => {
      if (fault?.call === call && ++times === fault.count) forbid(fault);
      return action(...given);
    };
  return {
    ...kernel,
    statmount: counted("statmount", kernel.statmount),
    countMounts: counted("listmount", kernel.countMounts),
  };
}

function found(): string {
  try {
    return Bun.resolveSync("./here.json", ".");
  } catch {
    return "nothing";
  }
}

/** Says something to the test, and waits for what it says. */
function report(outcome: Omit<Report, "cwd" | "found">): string {
  const said: Report = { ...outcome, cwd: process.cwd(), found: found() };
  fs.writeSync(1, `${JSON.stringify(said)}\n`);
  const answer = new Uint8Array(1);
  fs.readSync(0, answer);
  return String.fromCharCode(...answer);
}

function unmountNeedless(): void {
  const needed = /^\/(proc|dev|tmp)?(\/|$)/;
  for (const { mountPoint } of getMounts((mount) => !needed.test(mount.mountPoint)).toReversed()) umount2(mountPoint, MNT.DETACH);
}

const { path, options, apart = false, fault, command }: Request = JSON.parse(process.argv[2] ?? "");
if (command !== undefined) {
  if (apart) {
    unshare(CLONE.NEWNS);
    mount(null, "/", null, MS.REC | MS.SLAVE, null);
    unmountNeedless();
  }
  if (fault !== undefined) forbid(fault);
  execvp(command);
}

// It stays, so that there is a second thread.
const source = `onmessage = () => {}; postMessage("ready")`;
const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
await new Promise((resolve) => worker.addEventListener("message", resolve, { once: true }));
if (options.descriptors === "report") fs.openSync("/usr", "r");

function attempt(): Omit<Report, "cwd" | "found"> {
  try {
    const { method, rejected, leaks = [] } = switchRootOn(kernelWith(fault), path, options);
    return {
      method,
      rejected: rejected.map((each) => ({ method: each.method, reason: each.reason, message: each.message })),
      leaks: leaks.map((leak) => leak.path),
    };
  } catch (error) {
    return { error: describeError(error) };
  }
}

if (apart) unmountNeedless();
markAll();
mark("ready");
let answer = report({});
while (answer === "s") {
  mark("begin");
  const outcome = attempt();
  mark("end");
  answer = report(outcome);
}
process.exit(0);
