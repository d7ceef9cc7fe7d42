/**
 * Each system call of `switchRoot` fails once, at each place where it is made, with each error that it can have: at the real kernel, made
 * to by strace(1), which does not make the call then. The calls are recorded from a switch that works, not typed in. Seen from another
 * process, everything is as it was, or the root is the right one.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import type { RootMethod } from "../../switchroot.ts";
import { MS } from "../../syscalls.ts";
import { scratchDirectory } from "../compiled.ts";
import { seed, someOf } from "../hard.ts";
import {
  type Case,
  casesOf,
  codeOf,
  complaintsAbout,
  differences,
  failsOnce,
  faultOf,
  isNamed,
  isTolerated,
  type Tolerated,
} from "./cases.ts";
import { firstPlace, shapeOf, useRoots } from "./roots.ts";
import type { Call } from "./strace.ts";
import { callsOfSwitch, compileProgram, isFinal, type ProgramCase, type Switched, switches, switchIn } from "./switches.ts";

const program = await compileProgram(scratchDirectory());
useRoots(MS.PRIVATE);

console.log(`faults: seed ${seed}`);

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
  // Whether a mount that stays behind is locked shows also when it is detached. Any error: a dead FUSE or NFS mount has its own.
  { call: /^step list statx\(AT_FDCWD/ },
  { call: /^step list umount2\(/, errnos: ["EAGAIN", "EBUSY"] },
  // libc then looks for the path by itself.
  { call: /^step chdir getcwd\(/, errnos: ["ENAMETOOLONG"] },
  // Linux before 5.6, or a seccomp filter: open(2) will do.
  { call: /^step detach openat2\(/, errnos: ["ENOSYS", "EPERM"] },
  // Somebody has moved or covered the mount point: it is left alone.
  { call: /^step detach openat2\(/, errnos: ["ELOOP", "ENOENT", "ENOTDIR"] },
  // What is done is done. Any error: after a close(2) the descriptor is gone, and nobody needs what getrusage(2) says.
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
  let clean: Switched;
  let calls: Call[];
  let tested: Call[];

  beforeAll(async () => {
    clean = await switchIn(firstPlace, given([method]));
    expect(clean.report).toMatchObject({ method, rejected: [], leaks: descriptors === "report" ? ["/usr"] : [] });
    expect(clean.arrived).toEqual({ root: true, cwd: true });
    calls = callsOfSwitch(clean.calls);
    tested = calls.filter(({ section }) => those.test(section));
  });

  test("a call that fails is named and undone; or what it was for is had in another way", async () => {
    const cases = someOf(casesOf(tested), 10, seed);
    expect(cases.length).toBeGreaterThanOrEqual(10);
    const complaints = await complaintsAbout(cases, async (each, place) => {
      const expected = expectationOf(each, calls, method);
      return judge(each, expected, method, clean, await switchIn(place, given([method]), faultOf(each)));
    });
    expect(complaints).toEqual([]);
  }, 600_000);

  test("the next method is tried as soon as everything is undone, and not if it could not be", async () => {
    const cases = tested.filter(failsOnce).flatMap((call) => {
      const fatal = casesOf([call]).filter((each) => expectationOf(each, calls, method).what !== "goes on");
      return fatal.filter(({ errno }) => errno !== "ENOENT").slice(0, 1);
    });
    const complaints = await complaintsAbout(someOf(cases, 2, seed), async (each, place) => {
      const expected = expectationOf(each, calls, method);
      return judgeFallback(each, expected, methods, await switchIn(place, given(methods), faultOf(each)));
    });
    expect(complaints).toEqual([]);
  }, 120_000);
});
