/**
 * Each system call of a switch fails once, at each place where it is made, with each error that it can have: at the real kernel, made to
 * by strace(1), which does not make the call then. The calls are recorded from a switch that works, not typed in. Seen from another
 * process, everything is as it was, or the root is the right one.
 */
import { describe, expect, test } from "bun:test";
import type { RootMethod } from "../../switchroot.ts";
import { MS } from "../../syscalls.ts";
import { compile, scratchDirectory } from "../compiled.ts";
import { someOf } from "../hard.ts";
import { errnosOf } from "./errnos.ts";
import { inPlaces, type Kind, type Place, shapeOf, useRoots } from "./roots.ts";
import type { Call, Fault } from "./strace.ts";
import {
  type CommandCase,
  callsOfRun,
  callsOfSwitch,
  compileProgram,
  type ProgramCase,
  type Ran,
  runIn,
  type Switched,
  switchIn,
} from "./switches.ts";

const scratch = scratchDirectory();
const [mounttree, program] = await Promise.all([compile(scratch), compileProgram(scratch)]);
useRoots(MS.PRIVATE);

const seed = Math.floor(Date.now() / 1000);
console.log(`faults: seed ${seed}`);

/** A call and the error that it is given. */
interface Case {
  call: Call;
  errno: string;
}

function casesOf(calls: readonly Call[]): Case[] {
  return calls.flatMap((call) => errnosOf(call.name).map((errno) => ({ call, errno })));
}

function faultOf({ call, errno }: Case): Fault {
  return { call: call.name, count: call.count, errno };
}

function nameOf({ call, errno }: Case): string {
  return `${errno} at ${call.section === "" ? "" : `${call.section}: `}${call.name}${call.text} [${call.count}]`;
}

/** Does something with cases that complains if anything is wrong. */
async function complaintsAbout(
  cases: readonly Case[],
  judge: (each: Case, place: Place) => Promise<string[]>,
): Promise<string[]> {
  console.log(`${cases.length} faults`);
  const found: string[] = [];
  await inPlaces(cases, async (each, place) => {
    for (const complaint of await judge(each, place)) found.push(`${nameOf(each)}: ${complaint}`);
  });
  return found;
}

// What mounttree's errors call a call, and the error that is the same number under two names.
const names: Readonly<Record<string, string>> = { openat: "open(at)?", execve: "execvp", prlimit64: "prlimit" };
const aliases: Readonly<Record<string, string>> = { EOPNOTSUPP: "ENOTSUP" };

/** Whether a text names the call and the error. */
function isNamed({ call, errno }: Case, text: string | undefined): boolean {
  return new RegExp(`\\b${codeOf(errno)}: [^,]+, ${names[call.name] ?? call.name}\\b`).test(text ?? "");
}

function codeOf(errno: string): string {
  return aliases[errno] ?? errno;
}

function differences<T>(name: string, was: T, is: T): string[] {
  const [one, other] = [JSON.stringify(was), JSON.stringify(is)];
  return one === other ? [] : [`${name} should be ${one}, is ${other}`];
}

// --- switchRoot

/** A failure that is no reason to fail: what is done instead is as good. */
interface Tolerated {
  /** Section, call and arguments. */
  call: RegExp;
  /** Default: whatever the error is. */
  errnos?: readonly string[];
  /** A method for which it is one. */
  not?: RootMethod;
}

function isTolerated(all: readonly Tolerated[], call: string, errno: string, method: RootMethod): boolean {
  return all.some((each) => each.call.test(call) && (each.errnos?.includes(errno) ?? true) && (!each.not || each.not !== method));
}

const tolerated: readonly Tolerated[] = [
  // Without a /proc, one that is mounted nowhere will do.
  { call: /^begin openat\(AT_FDCWD<[^>]*>, "\/proc"/, errnos: ["ENOENT", "ENOTDIR"] },
  // A symlink in the path, Linux before 5.6, a seccomp filter: open(2) will do.
  { call: /^begin openat2\(/, errnos: ["ELOOP", "ENOSYS", "EPERM"] },
  // Without kcmp(2), the working directory tells which threads share it.
  { call: /^begin kcmp\(/, errnos: ["ENOSYS", "EPERM"] },
  // A process that has ended lives nowhere.
  { call: /^check namespace-shared (openat\(.*"1\/task"|getdents64\(.*\/1\/task>|readlinkat\(.*"1\/task)/, errnos: ["ENOENT"] },
  // Where the namespace may not be seen, the mount tables tell.
  { call: /^check namespace-shared readlinkat\(.*"1\/task/, errnos: ["EACCES"] },
  // Linux before 6.8, or a seccomp filter: the mount table tells, and a child of this process.
  { call: /^check (root-detached|shared-mount) statmount\(.* #1$/, errnos: ["ENOSYS", "EPERM"] },
  // What is not in this namespace is not shared with another.
  { call: /^check shared-mount statmount\(.* #1$/, errnos: ["ENOENT"] },
  // What the mount is mounted on is shown to the privileged alone.
  { call: /^check (root-detached|shared-mount) statmount\(.* #2$/, errnos: ["EPERM"] },
  // Linux before 5.2 and 5.12: mount(2) will do.
  { call: /^step open_tree open_tree\(/, errnos: ["ENOSYS"], not: "detached" },
  { call: /^step mount_setattr mount_setattr\(/, errnos: ["ENOSYS"] },
  // What the probe of a lock is for: not locked, and locked.
  { call: /^step probe umount2\(/, errnos: ["EBUSY", "EINVAL"] },
  // Whether a mount that stays behind is locked shows also when it is detached.
  { call: /^step list statx\(AT_FDCWD/ },
  { call: /^step list umount2\(/, errnos: ["EAGAIN", "EBUSY"] },
  // libc then looks for the path by itself.
  { call: /^step chdir getcwd\(/, errnos: ["ENAMETOOLONG"] },
  // Linux before 5.6, or a seccomp filter: open(2) will do.
  { call: /^step detach openat2\(/, errnos: ["ENOSYS", "EPERM"] },
  // Somebody has moved or covered the mount point: it is left alone.
  { call: /^step detach openat2\(/, errnos: ["ELOOP", "ENOENT", "ENOTDIR"] },
  // What is done is done.
  { call: /^after step (chdir|rmdir) / },
  // It was closed meanwhile.
  { call: /^descriptors (statx|readlinkat)\(/, errnos: ["EBADF", "ENOENT"] },
];

type Expectation =
  | { what: "goes on" }
  /** The error is thrown before a method is tried, or afterwards; `switched` says which. */
  | { what: "thrown"; phase: string; switched: boolean }
  /** The next method is tried. */
  | { what: "ruled out"; reason: string; isNamed: boolean }
  | { what: "undone"; phase: string };

/** From the first mount that is detached on, there is no way back. */
function isFinal(call: Call, calls: readonly Call[]): boolean {
  return calls.slice(0, calls.indexOf(call)).some((each) => each.name === "umount2" && each.text.includes("MNT_DETACH"));
}

/** @param calls All of the switch. */
function expectationOf({ call, errno }: Case, calls: readonly Call[], method: RootMethod): Expectation {
  const at = calls.indexOf(call);
  const nth = calls.slice(0, at + 1).filter(({ section, name: same }) => section === call.section && same === call.name).length;
  const text = `${call.section} ${call.name}${call.text} #${nth}`;
  if (isTolerated(tolerated, text, errno, method)) return { what: "goes on" };
  const [kind, name = ""] = call.section.split(/ (.*)/s);
  if (kind === "check") {
    // The kernel has no such mount in this namespace: no failure, but an answer.
    if (call.section === "check root-detached" && call.name === "statmount" && nth === 1 && errno === "ENOENT") {
      return { what: "ruled out", reason: "root-detached", isNamed: false };
    }
    return { what: "ruled out", reason: name, isNamed: true };
  }
  if (kind === "step") {
    return isFinal(call, calls) ? { what: "thrown", phase: name, switched: true } : { what: "undone", phase: name };
  }
  if (kind === "descriptors") return { what: "thrown", phase: "descriptors", switched: false };
  const opened = calls.findIndex((each) => each.name === "openat2");
  const listed = calls.findIndex((each) => each.text.includes('"self/task"'));
  const isLookUp = at >= opened && at < listed;
  return { what: "thrown", phase: isLookUp ? "arguments" : "threads", switched: false };
}

/** What strace does not know fails from then on, and is not in its log. */
function failsOnce({ name }: Call): boolean {
  return name !== "statmount" && name !== "listmount";
}

/** What is wrong with a switch of one method in which a call failed. */
function judge(each: Case, expected: Expectation, method: RootMethod, clean: Switched, is: Switched): string[] {
  const { report, before, after, again, start } = is;
  const once = failsOnce(each.call);
  const hit = is.calls.filter(({ injected }) => injected).map(({ section, name }) => `${section} ${name}`);
  const recorded = `${each.call.section.replace("descriptors", "begin")} ${each.call.name}`;
  const complaints = once ? differences("the call that failed", [recorded], hit) : [];
  complaints.push(...differences("the mount table outside", before.host, after.host));
  const error = report.error;
  if (expected.what === "goes on") {
    return [
      ...complaints,
      ...differences("what it says", { method, rejected: [] }, { method: report.method, rejected: report.rejected, error }),
      // One that cannot be asked where it leads is named.
      ...(/^(EBADF|ENOENT)$/.test(each.errno) ? [] : differences("open directories", clean.report.leaks, report.leaks)),
      ...differences("whether it is in the root", { root: true, cwd: true }, is.arrived),
      ...differences("mounts", shapeOf(clean.after.mounts), shapeOf(after.mounts)),
      ...differences("contents", before.contents, after.contents),
      ...differences("the working directory, for Bun", "/", report.cwd),
      // What is not closed stays open, and Bun keeps two for the child that is started where statmount(2) does not answer.
      ...(/^(close|statmount)$/.test(each.call.name)
        ? []
        : differences("open files", clean.after.descriptors.length, after.descriptors.length)),
    ];
  }
  if (error === undefined) return [...complaints, `it switched by ${report.method}`];
  const { phase, switched, suppressed, code, cause, message } = error;
  const says = { name: error.name, phase, method: error.method, switched, suppressed, code };
  const common = { name: "SwitchRootError", switched: expected.what === "thrown" && expected.switched, suppressed: [] };
  const named = { code: codeOf(each.errno) };
  if (expected.what === "ruled out") {
    const should = { ...common, phase: "checks", ...(expected.isNamed && named) };
    complaints.push(...differences("what it says", sorted(should), sorted(says)));
    complaints.push(
      ...differences(
        "reason",
        [expected.reason],
        error.rejected.map(({ reason }) => reason),
      ),
    );
  } else {
    const isBefore = expected.what === "thrown" && !expected.switched;
    const should = { ...common, phase: expected.phase, ...named, ...(!isBefore && { method }) };
    complaints.push(...differences("what it says", sorted(should), sorted(says)));
  }
  if (expected.what !== "ruled out" || expected.isNamed) {
    for (const text of [message, cause]) if (!isNamed(each, text)) complaints.push(`call or error are not named: ${text}`);
  }
  if (common.switched) {
    complaints.push(...differences("whether it is in the root", true, is.arrived.root));
    if (!message.includes("this process should exit")) complaints.push(`it does not say what to do: ${message}`);
    return complaints;
  }
  const { descriptors, ...state } = after;
  const { descriptors: opened, ...was } = before;
  complaints.push(...differences("the state", was, state));
  complaints.push(...differences("the working directory, for Bun", [start.cwd, start.found], [report.cwd, report.found]));
  if (each.call.name !== "close") complaints.push(...differences("open files", opened, descriptors));
  if (once) complaints.push(...differences("once more", method, again.method ?? again.error?.message));
  return complaints;
}

function sorted(object: Record<string, unknown>): object {
  return Object.fromEntries(Object.entries(object).sort(([one], [other]) => (one < other ? -1 : 1)));
}

/** What is wrong with a switch that could take the next method. */
function judgeFallback(each: Case, expected: Expectation, [method, next]: readonly RootMethod[], is: Switched): string[] {
  const { report } = is;
  if (expected.what === "thrown" || next === undefined) {
    return differences("what was tried", expected.what === "thrown" && !expected.switched ? [] : [method], [
      ...(report.error?.rejected.map((rejected) => rejected.method) ?? [`it switched by ${report.method}`]),
    ]);
  }
  const rejected = report.rejected?.map(
    (one) => `${one.method} ${expected.what === "undone" ? one.message.split(":")[0] : one.reason}`,
  );
  const why = expected.what === "undone" ? expected.phase : expected.what === "ruled out" ? expected.reason : "";
  return [
    ...differences("the method", next, report.method ?? report.error?.message),
    ...differences("what was tried", [`${method} ${why}`], rejected),
    ...(isNamed(each, report.rejected?.[0]?.message) ? [] : [`call or error are not named: ${report.rejected?.[0]?.message}`]),
    ...differences("whether it is in the root", { root: true, cwd: true }, is.arrived),
    ...differences("contents", is.before.contents, is.after.contents),
    ...differences("the mount table outside", is.before.host, is.after.host),
  ];
}

interface SwitchTest {
  methods: readonly [RootMethod, ...RootMethod[]];
  putOld?: "stacked" | "directory";
  kind: Kind;
  descriptors?: "keep" | "report";
  /** Sections and names of the calls that no test before has. */
  tested: RegExp;
}

const all = /./;
const steps = /^(after )?step /;
const switches: readonly SwitchTest[] = [
  { methods: ["pivot", "move", "detached", "chroot"], kind: "directory", tested: all },
  { methods: ["pivot", "move"], kind: "mount point", putOld: "directory", tested: steps },
  { methods: ["move", "detached", "chroot"], kind: "directory", tested: /step |no-cap-sys-chroot/ },
  { methods: ["move", "detached"], kind: "mount point", tested: /step probe|step list|step move|step chroot/ },
  { methods: ["detached", "chroot"], kind: "directory", tested: steps },
  { methods: ["chroot"], kind: "mount point", tested: steps },
  // Which directories are open is looked up before the first check, where they lead at the end.
  { methods: ["detached", "chroot"], kind: "directory", descriptors: "report", tested: /^descriptors|^after step chdir/ },
];

const namedSwitches = switches.map(({ putOld = "stacked", ...others }) => ({
  name: `${others.methods[0]}, putOld ${putOld}, of a ${others.kind}${others.descriptors === "report" ? ", with open directories" : ""}`,
  putOld,
  ...others,
}));

describe.each(namedSwitches)("switchRoot, $name", ({ methods, putOld, kind, descriptors = "keep", tested: those }) => {
  const [method] = methods;
  const given = (order: readonly RootMethod[]): ProgramCase => ({
    program,
    propagation: "private",
    kind,
    options: { methods: [...order], putOld, descriptors },
  });
  const record = async (): Promise<{ clean: Switched; calls: Call[]; tested: Call[] }> => {
    const found: Switched[] = [];
    await inPlaces([0], async (_, place) => void found.push(await switchIn(place, given([method]))));
    const [clean] = found;
    if (clean === undefined) throw new Error("nothing was run");
    expect(clean.report).toMatchObject({ method, rejected: [] });
    expect(clean.arrived).toEqual({ root: true, cwd: true });
    const calls = callsOfSwitch(clean.calls);
    return { clean, calls, tested: calls.filter(({ section }) => those.test(section)) };
  };

  test("a call that fails is named and undone; or what it was for is had in another way", async () => {
    const { clean, calls, tested } = await record();
    const cases = someOf(casesOf(tested), 12, seed);
    expect(cases.length).toBeGreaterThanOrEqual(12);
    const complaints = await complaintsAbout(cases, async (each, place) => {
      const expected = expectationOf(each, calls, method);
      return judge(each, expected, method, clean, await switchIn(place, given([method]), faultOf(each)));
    });
    expect(complaints).toEqual([]);
  }, 600_000);

  test("the next method is tried as soon as everything is undone, and not if it could not be", async () => {
    const { calls, tested } = await record();
    const cases = tested.filter(failsOnce).flatMap((call) => {
      const fatal = casesOf([call]).filter((each) => expectationOf(each, calls, method).what !== "goes on");
      return fatal.filter(({ errno }) => errno !== "ENOENT").slice(0, 1);
    });
    const complaints = await complaintsAbout(someOf(cases, 3, seed), async (each, place) => {
      const expected = expectationOf(each, calls, method);
      return judgeFallback(each, expected, methods, await switchIn(place, given(methods), faultOf(each)));
    });
    expect(complaints).toEqual([]);
  }, 120_000);
});

// --- The command

const toleratedByRun: readonly Tolerated[] = [
  // The limit that the parent has is not to be known.
  { call: /^prlimit64\((?!0,)/ },
  // Whether this program was started by itself, see restart.ts.
  { call: /^fcntl\(20[01], F_GETFD/ },
  // A standard stream may be closed.
  { call: /^fcntl\(.*F_GETFL/, errnos: ["EBADF"] },
  // Linux before 5.9 and 5.11: the descriptors are marked one by one.
  { call: /^close_range\(/, errnos: ["ENOSYS", "EINVAL"] },
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
  { call: /^statx\(.*AT_SYMLINK_NOFOLLOW\|AT_NO_AUTOMOUNT, STATX_MNT_ID/ },
  // libc takes what no binary format claims for a script.
  { call: /^execve\(/, errnos: ["ENOEXEC"] },
];

interface RunTest {
  method: RootMethod | "pivot,move";
  options?: readonly string[];
  kind: Kind;
  few?: boolean;
  /** Whether all calls are tested, or those of the switch alone, which the other tests do not have. */
  whole?: boolean;
}

const mounts = [
  ...["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"],
  ...["--tmpfs", "/new/directory", "--bind", "PLACE/away/file", "/new/file"],
];
const runs: readonly RunTest[] = [
  { method: "pivot", options: mounts, kind: "directory", whole: true },
  { method: "pivot,move", kind: "directory" },
  { method: "pivot", options: ["--user", "--map-root", "--keep-fds", "--chdir", "/sub"], kind: "directory", whole: true },
  { method: "pivot", options: ["--put-old", "directory"], kind: "mount point" },
  { method: "move", kind: "directory", few: true },
  { method: "detached", kind: "directory" },
  { method: "chroot", kind: "mount point" },
];

/** The exit status, 0 if it goes on as if nothing had been. */
function statusOf({ call, errno }: Case, calls: readonly Call[], { method, options = [] }: RunTest): number {
  const at = calls.indexOf(call);
  const before = calls.slice(0, at);
  const type = call.name.startsWith("fs") ? before.concat(call).findLast(({ name }) => name === "fsopen") : undefined;
  const prefix = type === undefined ? "" : `${/"(\w+)"/.exec(type.text)?.[1]} `;
  const isMade = before.slice(-2).some((each) => each.name === "mkdirat" || each.text.includes("O_CREAT"));
  const where = options === mounts ? "" : " without mounts";
  const suffix = `${where}${options.includes("--user") ? " --user" : ""}${isMade ? " made" : ""}`;
  const text = `${prefix}${call.name}${call.text}${suffix}`;
  if (isTolerated(toleratedByRun, text, errno, methodNamed(method)) || call.text.includes(`= -1 ${errno} `)) return 0;
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
    const cleans: Ran[] = [];
    await inPlaces([0], async (_, place) => void cleans.push(await runIn(place, given)));
    const [clean] = cleans;
    if (clean === undefined) throw new Error("nothing was run");
    expect(clean).toMatchObject({ status: 0, stderr: "" });
    expect(clean.stdout[0]).toBe(`${kind} ${options.includes("/sub") ? "/sub" : "/"} to you`);
    const calls = callsOfRun(clean.calls);
    const start = whole ? 0 : calls.findIndex(({ text }) => /^\(AT_FDCWD<[^>]*>, "\/proc", /.test(text));
    const tested = calls.slice(start).filter((call) => failsOnce(call) || call.count === 1);
    const cases = someOf(casesOf(tested), whole ? 16 : 5, seed);
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
