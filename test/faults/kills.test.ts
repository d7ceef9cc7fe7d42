/**
 * Whoever switches is killed at each of its system calls: nothing is left on the host. No mount, no process, no mount namespace, and in
 * the root nothing but, with putOld "directory", the directory that `mounttree check` names. The mounts of the host are shared.
 */
import { describe, expect, test } from "bun:test";
import { MS } from "../../syscalls.ts";
import { compile, run, scratchDirectory } from "../compiled.ts";
import { seed, someOf } from "../hard.ts";
import {
  contentsOf,
  firstPlace,
  inPlaces,
  type Kind,
  leftBehind,
  mountTable,
  type Place,
  rootOf,
  tidy,
  useRoots,
} from "./roots.ts";
import { type Call, type Fault, parseTrace, type Traced } from "./strace.ts";
import {
  callsOfRun,
  callsOfSwitch,
  compileProgram,
  mainThread,
  type ProgramCase,
  runIn,
  runs,
  startCommand,
  startProgram,
  switches,
  switchIn,
} from "./switches.ts";

const scratch = scratchDirectory();
const [mounttree, program] = await Promise.all([compile(scratch), compileProgram(scratch)]);
useRoots(MS.SHARED);

console.log(`kills: seed ${seed}`);

interface KillTest {
  name: string;
  kind: Kind;
  /** The calls of one that is not killed. */
  record(place: Place): Promise<Call[]>;
  start(place: Place, fault: Fault): Traced;
}

function ofProgram(where: "in a namespace" | "on the host", kind: Kind, options: ProgramCase["options"], tested = /./): KillTest {
  const given: ProgramCase = { program, ...(where === "in a namespace" && { propagation: "slave" }), kind, options };
  return {
    name: `switchRoot ${where}, ${options.methods}, putOld ${options.putOld ?? "stacked"}${options.descriptors === "report" ? ", with open directories" : ""}`,
    kind,
    record: async (place) => callsOfSwitch((await switchIn(place, given)).calls).filter(({ section }) => tested.test(section)),
    start(place, fault) {
      const traced = startProgram(place, given, fault);
      traced.send("sq");
      return traced;
    },
  };
}

function ofCommand(kind: Kind, options: readonly string[], few = false): KillTest {
  const given = { mounttree, program, kind, few, options };
  return {
    name: `mounttree run ${options.join(" ")}${few ? ", with few mounts" : ""}`,
    kind,
    record: async (place) => callsOfRun((await runIn(place, given)).calls),
    start: (place, fault) => startCommand(place, given, fault),
  };
}

const kills: readonly KillTest[] = [
  ...switches.map(({ methods: [method], kind, putOld, descriptors, tested }) =>
    ofProgram(
      "in a namespace",
      kind,
      { methods: [method], ...(putOld && { putOld }), ...(descriptors && { descriptors }) },
      tested,
    ),
  ),
  ofProgram("on the host", "directory", { methods: ["detached"] }),
  ofProgram("on the host", "mount point", { methods: ["chroot"] }),
  ...runs.map(({ method, options = [], kind, few }) => ofCommand(kind, ["--method", method, ...options], few)),
  ofCommand("directory", ["--method", "pivot", "--put-old", "directory"]),
  ofCommand("mount point", ["--method", "move"]),
  ofCommand("directory", ["--user", "--map-root", "--ro-bind", "/usr", "/usr"]),
];

describe.each(kills)("$name, of a $kind", ({ kind, record, start }) => {
  test("leaves nothing on the host when it is killed", async () => {
    const calls = await record(firstPlace);
    const killed = someOf(calls, 3, seed);
    console.log(`${killed.length} kills`);
    expect(killed.length).toBeGreaterThan(0);
    const complaints: string[] = [];
    await inPlaces(killed, async (call, place) => {
      const root = rootOf(place, kind);
      tidy(root);
      const before = { mounts: mountTable(), contents: contentsOf(root) };
      const traced = start(place, { call: call.name, count: call.count });
      const { status, log } = await traced.finish();
      const left = leftBehind(root);
      const is = {
        status: /^(137|159|SIGKILL|SIGSYS)$/.test(String(status)) ? "killed" : status,
        reached: reached(log, call),
        left: left.length,
        named: left.length === 0 ? [] : await namedByCheck(root),
        mounts: mountTable(),
        // What was made for a DEST stays.
        contents: contentsOf(root).filter((line) => !/^[^ ]*\/(new|\.pivot_root)/.test(line)),
      };
      const should = { status: "killed", reached: call.count - 1, left: leftAt(call, calls), named: left, ...before };
      if (!Bun.deepEquals(is, should)) {
        const differing = Object.entries(should).filter(([name, value]) => !Bun.deepEquals(Reflect.get(is, name), value));
        complaints.push(
          `${call.name}${call.text} [${call.count}]: ${differing.map(([name, value]) => `${name} should be ${JSON.stringify(value)}, is ${JSON.stringify(Reflect.get(is, name))}`)}`,
        );
      }
      tidy(root);
    });
    expect(complaints).toEqual([]);
  }, 240_000);
});

/** How many of these calls came to their end. Those that strace does not know are not in its log. */
function reached(log: string, { name, count }: Call): number {
  if (name === "statmount" || name === "listmount") return count - 1;
  const thread = log.includes('access("/mark/') ? mainThread(log) : Number(/^\d+/.exec(log)?.[0]);
  return parseTrace(log, thread).findLast((call) => call.name === name && !call.text.endsWith("= ?"))?.count ?? 0;
}

/** How many directories for the old root are there when a call is to be made. */
function leftAt(call: Call, calls: readonly Call[]): number {
  const isTemporary = ({ text }: Call): boolean => text.includes(".pivot_root");
  const made = calls.findIndex((each) => each.name === "mkdirat" && isTemporary(each));
  const removed = calls.findIndex((each) => each.name === "unlinkat" && isTemporary(each));
  const at = calls.indexOf(call);
  return made !== -1 && at > made && at <= removed ? 1 : 0;
}

async function namedByCheck(root: string): Promise<string[]> {
  const { stdout } = await run([mounttree, "check", "--json", root]);
  const { leftBehind: names }: { leftBehind: string[] } = JSON.parse(stdout);
  return names;
}
