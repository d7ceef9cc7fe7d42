/** As faults.test.ts, for `mounttree run`: from its first own call to the execve(2) of what it runs. */
import { describe, expect, test } from "bun:test";
import type { RootMethod } from "../../switchroot.ts";
import { MS } from "../../syscalls.ts";
import { compile, scratchDirectory } from "../compiled.ts";
import { seed, someOf } from "../hard.ts";
import {
  type Case,
  casesOf,
  complaintsAbout,
  differences,
  failsOnce,
  faultOf,
  isNamed,
  isTolerated,
  type Tolerated,
} from "./cases.ts";
import { firstPlace, useRoots } from "./roots.ts";
import type { Call } from "./strace.ts";
import { type CommandCase, callsOfRun, compileProgram, isFinal, type RunTest, runIn, runs } from "./switches.ts";

const scratch = scratchDirectory();
const [mounttree, program] = await Promise.all([compile(scratch), compileProgram(scratch)]);
useRoots(MS.PRIVATE);

console.log(`faults of mounttree run: seed ${seed}`);

const tolerated: readonly Tolerated[] = [
  // The limit that the parent has is not to be known.
  { call: /^prlimit64\((?!0,)/ },
  // Whether this program was started by itself, see restart.ts.
  { call: /^fcntl\(20[01], F_GETFD/ },
  // A standard stream may be closed.
  { call: /^fcntl\(.*F_GETFL/, errnos: ["EBADF"] },
  // Linux before 5.9 and 5.11, or a seccomp filter: the descriptors are marked one by one. What works the first time works the last.
  { call: /^close_range\((?!.* last\b)/, errnos: ["ENOSYS", "EINVAL", "EPERM"] },
  // With --keep-fds: another thread has closed it since it was listed.
  { call: /^readlinkat\(\d+<\/proc\/\d+\/fd>, /, errnos: ["EBADF", "ENOENT"] },
  // Something was mounted or renamed meanwhile: it is looked up again.
  { call: /^openat2\(.*RESOLVE_IN_ROOT/, errnos: ["EAGAIN"] },
  // A missing DEST is made; here it turns out to be there.
  { call: /^openat2\(.*, "\/(usr|proc|dev)", /, errnos: ["ENOENT"] },
  { call: /^openat2\(.*, "\/new", .* = \d(?!.* made$)/, errnos: ["ENOENT"] },
  // Without rights over the PID namespace, the procfs that is there is bound.
  { call: /^proc fs(open|config|mount)\(/, errnos: ["EPERM"] },
  // Without a /proc, one that is mounted nowhere will do; a user namespace cannot have one.
  { call: /^openat\(AT_FDCWD<[^>]*>, "\/proc", .*(?<! --user)$/, errnos: ["ENOENT", "ENOTDIR"] },
  // Linux before 6.8, or a seccomp filter: the mount table tells.
  { call: /^statmount\(/, errnos: ["ENOSYS", "EPERM"] },
  // What is not in this namespace is not shared with another.
  { call: /^statmount\(.* without mounts/, errnos: ["ENOENT"] },
  { call: /^open_tree\(.* without mounts/, errnos: ["ENOSYS"], not: "detached" },
  { call: /^mount_setattr\(.* without mounts/, errnos: ["ENOSYS"] },
  { call: /^umount2\(".", MNT_EXPIRE\)/, errnos: ["EBUSY", "EINVAL"] },
  { call: /^umount2\(.*MNT_EXPIRE\|UMOUNT_NOFOLLOW/, errnos: ["EAGAIN", "EBUSY"] },
  { call: /^openat2\(\d+<\/>, .*RESOLVE_NO_SYMLINKS/, errnos: ["ELOOP", "ENOENT", "ENOSYS", "ENOTDIR", "EPERM"] },
  // Of a mount that stays behind. Any error: a dead FUSE or NFS mount has its own, and it shows also when it is detached.
  { call: /^statx\(.*AT_SYMLINK_NOFOLLOW\|AT_NO_AUTOMOUNT, STATX_MNT_ID/ },
  // libc takes what no binary format claims for a script.
  { call: /^execve\(/, errnos: ["ENOEXEC"] },
];

/** The exit status, 0 if it goes on as if nothing had been. */
function statusOf({ call, errno }: Case, calls: readonly Call[], { method, options = [] }: RunTest): number {
  const at = calls.indexOf(call);
  const before = calls.slice(0, at);
  const type = call.name.startsWith("fs") ? before.concat(call).findLast(({ name }) => name === "fsopen") : undefined;
  const prefix = type === undefined ? "" : `${/"(\w+)"/.exec(type.text)?.[1]} `;
  const isMade = before.slice(-2).some((each) => each.name === "mkdirat" || each.text.includes("O_CREAT"));
  const where = options.includes("--bind") ? "" : " without mounts";
  const isLast = call.name === "close_range" && !calls.slice(at + 1).some(({ name }) => name === "close_range");
  const suffix = `${isLast ? " last" : ""}${where}${options.includes("--user") ? " --user" : ""}${isMade ? " made" : ""}`;
  const text = `${prefix}${call.name}${call.text}${suffix}`;
  if (isTolerated(tolerated, text, errno, methodNamed(method)) || call.text.includes(`= -1 ${errno} `)) return 0;
  if (call.name === "execve") return errno === "ENOENT" ? 127 : 126;
  // The first step of a method enters the root; the old root is detached by the last that can be taken back.
  const first = calls.findIndex(({ name }) => name === "fchdir");
  const last = calls.findIndex((each) => each.name === "umount2" && each.text.includes("MNT_DETACH"));
  return method === "pivot,move" && at >= first && at <= last ? 0 : 125;
}

/** What the command says in the place of the call and the error. */
function saysInstead({ call, errno }: Case): RegExp {
  if (call.name === "execve" && errno === "ENOENT") return /cannot execute '\/hello': it is there, but the interpreter/;
  // It is not there, but for that error.
  if (errno === "EEXIST") return /ENOENT: [^,]+, openat2 '\/new/;
  if (call.text.includes('"/proc", ')) return /\/proc is not mounted/;
  return /(?!)/;
}

function methodNamed(method: RunTest["method"]): RootMethod {
  return method === "pivot,move" ? "pivot" : method;
}

const namedRuns = runs.map((run) => ({
  name: `${["run --method", run.method, ...(run.options ?? [])].join(" ")}, of a ${run.kind}`,
  run,
}));

describe.each(namedRuns)("mounttree $name", ({ run }) => {
  const { method, options = [], kind, whole = false, few = false } = run;
  const given: CommandCase = { mounttree, program, kind, few, options: ["--method", method, ...options] };

  test("a call that fails is named, and nothing runs; or what it was for is had in another way", async () => {
    const clean = await runIn(firstPlace, given);
    expect(clean).toMatchObject({ status: 0, stderr: "" });
    expect(clean.stdout[0]).toBe(`${kind} ${options.includes("/sub") ? "/sub" : "/"} to you`);
    const calls = callsOfRun(clean.calls);
    const start = whole ? 0 : calls.findIndex(({ text }) => /^\(AT_FDCWD<[^>]*>, "\/proc", /.test(text));
    const tested = calls.slice(start).filter((call) => failsOnce(call) || call.count === 1);
    const cases = someOf(casesOf(tested), whole ? 12 : 4, seed);
    const complaints = await complaintsAbout(cases, async (each, place) => {
      const ran = await runIn(place, given, faultOf(each));
      const status = statusOf(each, calls, run);
      // What was made for a DEST; and what is not taken away after the point of no return.
      const mayStay = isFinal(each.call, calls) ? /^[^ ]*\/(new|\.pivot_root)/ : /^[^ ]*\/new/;
      const found = [
        ...differences("exit status", status, ran.status),
        ...differences("what it printed", status === 0 ? clean.stdout : [], ran.stdout),
        ...differences("the mount table outside", ran.before.host, ran.after.host),
        ...differences(
          "contents",
          ran.before.contents,
          ran.after.contents.filter((line) => !mayStay.test(line)),
        ),
      ];
      const hit = ran.calls.filter(({ injected }) => injected).map(({ name, text }) => name + argumentsIn(text));
      if (failsOnce(each.call)) {
        found.push(...differences("the call that failed", [each.call.name + argumentsIn(each.call.text)], hit));
      }
      if (status === 0) return [...found, ...differences("complaints", "", ran.stderr)];
      return ran.stderr.startsWith("mounttree: ") && (isNamed(each, ran.stderr) || saysInstead(each).test(ran.stderr))
        ? found
        : [...found, `call or error are not named: ${ran.stderr}`];
    });
    expect(complaints).toEqual([]);
  }, 600_000);
});

/** What a call was given, up to what differs from run to run. */
function argumentsIn(text: string): string {
  return text.replace(/place\d+/g, "place").replace(/\)? += .*|0x[0-9a-f]+.*|\{.*|\.pivot_root\w+.*|<.*|^\(\d+.*/, "");
}
