/** The command line: what any arguments ask for, by a table of the options that is read in another way; and the command itself with them. */
import { describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import fc from "fast-check";
import {
  type Argument,
  type MountOption,
  type Request,
  type RunRequest,
  readCommandLine,
  UsageError,
} from "../../commandline.ts";
import { bothWays, makeRoot, run, scratchDirectory, userland, watchMountTable } from "../compiled.ts";
import { holds, holdsForAll } from "./fuzz.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
watchMountTable();

// --- What arguments should mean

/** How many values each option of `run` takes. */
const valuesOf: Readonly<Record<string, number>> = {
  ...{ "--method": 1, "--put-old": 1, "--chdir": 1, "--user": 0, "--map-same": 0, "--map-root": 0, "--keep-fds": 0 },
  ...{ "--bind": 2, "--ro-bind": 2, "--tmpfs": 1, "--proc": 1, "--dev": 1 },
};
const methods = ["pivot", "move", "detached", "chroot"] as const;
type Asked = Request | "help" | "refused";

function expected([command, ...args]: readonly Argument[]): Asked {
  if (command === "run") return expectedOfRun(args);
  if (command === "ls" || command === "check") return expectedWithPath(command, args);
  if (command === "--help" || command === "-h") return "help";
  return command === "--version" ? { command: "version" } : "refused";
}

const text = (argument: Argument | undefined): string =>
  typeof argument === "object" ? Buffer.from(argument).toString("latin1") : (argument ?? "");

function expectedOfRun(args: readonly Argument[]): Asked {
  const given: [option: string, ...values: Argument[]][] = [];
  let at = 0;
  for (; text(args[at]).startsWith("-") && args[at] !== "--"; at++) {
    const argument = args[at] ?? "";
    if (argument === "--help" || argument === "-h") return "help";
    const sign = text(argument).indexOf("=");
    const option = text(argument).slice(0, sign === -1 ? undefined : sign);
    const count = Object.hasOwn(valuesOf, option) ? (valuesOf[option] ?? 0) : -1;
    // `--method=pivot`, for those with one value.
    const values = sign === -1 ? args.slice(at + 1, at + 1 + count) : [argument.slice(sign + 1)];
    if (count === -1 || values.length !== count || (sign !== -1 && count !== 1)) return "refused";
    if (!isFit(option, text(values[0]), given)) return "refused";
    if (sign === -1) at += count;
    given.push([option, ...values]);
  }
  if (args[at] === "--") at++;
  const root = args[at++];
  const has = (option: string): boolean => given.some(([each]) => each === option);
  const last = (option: string): Argument | undefined => given.findLast(([each]) => each === option)?.[1];
  // The tests are run by root.
  if (root === undefined || ((has("--map-root") || has("--map-same")) && !has("--user"))) return "refused";
  if (args[at] === "--") at++;
  else if (text(args[at]).startsWith("-")) return "refused";
  const list = text(last("--method") ?? "pivot,move").split(",");
  return {
    ...{ command: "run", root, line: [args[at] ?? "/bin/sh", ...args.slice(at + 1)] },
    methods: list.flatMap((name) => methods.filter((method) => method === name)),
    putOld: last("--put-old") === "directory" ? "directory" : "stacked",
    ...{ directory: last("--chdir"), keepDescriptors: has("--keep-fds"), user: has("--user") },
    mapRoot: has("--map-root") || (has("--map-same") ? false : undefined),
    mounts: given.flatMap(([option, first = "", second]): MountOption[] => {
      if (option === "--bind" || option === "--ro-bind") return [{ option, source: first, destination: second ?? "" }];
      const mounts = option === "--tmpfs" || option === "--proc" || option === "--dev";
      return mounts ? [{ option, source: "", destination: first }] : [];
    }),
  };
}

function isFit(option: string, value: string, before: readonly [string, ...Argument[]][]): boolean {
  if (option === "--method") return value.split(",").every((name) => methods.some((method) => method === name));
  if (option === "--put-old") return value === "stacked" || value === "directory";
  const opposite = { "--map-root": "--map-same", "--map-same": "--map-root" }[option];
  return !before.some(([each]) => each === opposite);
}

function expectedWithPath(command: "ls" | "check", args: readonly Argument[]): Asked {
  const end = args.indexOf("--");
  const [options, rest] = end === -1 ? [args, []] : [args.slice(0, end), args.slice(end + 1)];
  const wrong = options.findIndex((each) => text(each).startsWith("-") && each !== "--json");
  if (wrong !== -1) return options[wrong] === "--help" || options[wrong] === "-h" ? "help" : "refused";
  const [path, ...more] = [...options.filter((each) => each !== "--json"), ...rest];
  const json = options.includes("--json");
  if (more.length > 0) return "refused";
  if (command === "ls") return { command, json, path };
  return path === undefined ? "refused" : { command, json, path };
}

// --- Arguments

const bytes = [
  Uint8Array.of(0xff),
  Buffer.from("--chdir=\xff", "latin1"),
  Buffer.from("--proc=/\xc3", "latin1"),
  Buffer.from("--\xff", "latin1"),
];
const options = Object.keys(valuesOf);
const values = [
  "pivot",
  "move,pivot",
  "pivot,",
  "chroot",
  "detached",
  "stacked",
  "directory",
  "/",
  ".",
  "/inner",
  "inner/missing",
  "file",
];
const odd = [
  "",
  "-",
  "--",
  "---",
  "=",
  "-x",
  "--method=",
  "--method=chroot",
  "--put-old=directory",
  "--put-old=",
  "--chdir=/",
  "--dev=/dev",
];
const wrong = [
  "--tmpfs=a=b",
  "--bind=a",
  "--user=1",
  "--keep-fds=",
  "--json=1",
  "--METHOD",
  "--methods=pivot",
  "--no-user",
  "\u{fffd}",
  "--ä",
  "-h=1",
];
const words: fc.Arbitrary<Argument> = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...options) },
  { weight: 6, arbitrary: fc.constantFrom(...values, "root", "root") },
  { weight: 3, arbitrary: fc.constantFrom(...odd) },
  { weight: 2, arbitrary: fc.constantFrom(...wrong) },
  { weight: 2, arbitrary: fc.constantFrom("--help", "-h", "--version", "--json", "run", "ls", "check") },
  { weight: 1, arbitrary: fc.constantFrom(...bytes) },
  { weight: 1, arbitrary: fc.string({ unit: "grapheme", maxLength: 6 }).filter((each) => !each.includes("\0")) },
);

/** Options with as many values as they take, which random words seldom have. */
const wellFormed: fc.Arbitrary<Argument[]> = fc.oneof(
  fc.tuple(fc.constant("--method"), fc.constantFrom("pivot", "move,pivot", "chroot,detached")),
  fc.tuple(fc.constant("--put-old"), fc.constantFrom("stacked", "directory")),
  fc.tuple(fc.constantFrom("--chdir", "--tmpfs", "--proc", "--dev"), words),
  fc.tuple(fc.constantFrom("--bind", "--ro-bind"), words, words),
  fc.tuple(fc.constantFrom("--user", "--map-same", "--map-root", "--keep-fds")),
  fc.tuple(fc.constantFrom("--method=move", "--put-old=stacked", "--chdir=inner", "--tmpfs=/tmp", "--proc=/p", "--dev=/d")),
);

const runLines = fc
  .tuple(fc.array(wellFormed, { maxLength: 5 }), fc.constantFrom([], ["--"]), fc.array(words, { maxLength: 4 }))
  .map(([given, dashes, rest]): Argument[] => ["run", ...given.flat(), ...dashes, ...rest]);
const lineOf = (commands: Argument[][], maxLength: number): fc.Arbitrary<Argument[]> =>
  fc.tuple(fc.constantFrom(...commands), fc.array(words, { maxLength })).map(([command, rest]) => [...command, ...rest]);
/** Of many words, one is nearly always too many for these. */
const shortLines = lineOf([["ls"], ["check"], []], 2);
const lines = fc.oneof(runLines, lineOf([["run"], ["run"], ["ls"], ["check"], []], 10), shortLines);

/** With a userland, programs can be run. These options work with any of the others. */
const working: fc.Arbitrary<string[]> = fc.constantFrom(
  ...[["--put-old", "stacked"], ["--put-old=directory"], ["--chdir", "/inner"], ["--chdir=inner"], ["--keep-fds"]],
  ...[["--tmpfs", "/tmp"], ["--proc", "/proc"], ["--dev=/dev"], ["--bind", "root/inner", "/inner"]],
);
/** Not together: in a user namespace, not all mounts can be left behind. */
const methodsOrUser: fc.Arbitrary<string[]> = fc.constantFrom(
  ...[[], ["--method", "move"], ["--method=detached"], ["--method", "chroot,pivot"]],
  ...[["--user"], ["--user", "--map-root"], ["--map-same", "--user"]],
);
const failing: fc.Arbitrary<string[]> = fc.constantFrom(
  ["--chdir", "missing"],
  ["--bind", "missing", "/tmp"],
  ["--no-such"],
  ["--method=missing"],
);
const ends: Readonly<Record<string, number>> = {
  "/bin/sh": 0,
  true: 0,
  "sh -c exit 7": 7,
  "/file": 126,
  missing: 127,
  "/missing": 127,
};

function runsOf(
  option: fc.Arbitrary<string[]>,
  root: fc.Arbitrary<string>,
  command: fc.Arbitrary<string[]>,
): fc.Arbitrary<string[]> {
  const dashes = fc.constantFrom([], ["--"]);
  return fc
    .tuple(methodsOrUser, fc.array(option, { maxLength: 4 }), dashes, root, dashes, command)
    .map(([way, given, before, path, after, line]) => {
      return ["run", ...userland, ...way, ...given.flat(), ...before, path, ...after, ...line];
    });
}

const successes = runsOf(working, fc.constant("root"), fc.constantFrom([], ["true"]));
const attempts = runsOf(
  fc.oneof({ weight: 8, arbitrary: working }, { weight: 1, arbitrary: failing }),
  fc.constantFrom("root", "root", "root", "missing", "file"),
  fc.constantFrom([], ["true"], ["sh", "-c", "exit 7"], ["/file"], ["missing"], ["/missing"]),
);

/** A copy of "/", which is entered if something is mounted in it, has all programs of this machine, which end as they do. */
function runsHere({ root, mounts }: RunRequest): boolean {
  return mounts.length > 0 && resolve(scratch, "command", text(root)) === "/";
}

/** With which statuses it may end: with one, if it is known what is where. */
function statusesOfRun({ root, mounts, directory, line }: RunRequest): readonly number[] {
  if (["missing", "file"].includes(text(root)) || mounts.some(({ source }) => source === "missing")) return [125];
  // Where there is no userland there is no program: it is not found, or cannot be executed.
  if (!mounts.some(({ source }) => source === "/usr")) return [125, 126, 127];
  return [directory === "missing" ? 125 : (ends[line.map(text).join(" ")] ?? -1)];
}

// --- The tests

/** Arguments that are the same bytes in another class are the same. */
const plain = (value: unknown): unknown =>
  JSON.parse(JSON.stringify(value, (_, each) => (each?.type === "Buffer" ? { ...each.data } : each)) ?? "null");

function asked(args: readonly Argument[]): Request | UsageError {
  try {
    return readCommandLine([...args]);
  } catch (error) {
    if (error instanceof UsageError) return error;
    throw error;
  }
}

test("any arguments are refused, or ask for what every one of them says", () => {
  const seen = { help: 0, refused: 0, version: 0, run: 0, ls: 0, check: 0 };
  const property = fc.property(lines, (args) => {
    const result = asked(args);
    const meant = expected(args);
    if (result instanceof UsageError) expect(meant).toBe("refused");
    else if (result.command === "help") expect(meant).toBe("help");
    else expect(plain(result)).toEqual(plain(meant));
    seen[typeof meant === "string" ? meant : meant.command]++;
  });
  holds("the command line", property, { cases: 1000, seconds: 0.6 });
  for (const kind of ["help", "refused", "run", "ls", "check"] as const)
    expect({ kind, seen: seen[kind] > 0 }).toEqual({ kind, seen: true });
});

describe.each(ways)("the command, $name,", ({ name, command }) => {
  const directory = join(scratch, name.replaceAll(" ", "-"));
  mkdirSync(join(makeRoot(join(directory, "root")), "inner"));
  writeFileSync(join(directory, "root/file"), "");
  writeFileSync(join(directory, "file"), "");

  /** A shell passes on what is not UTF-8, too. */
  const quoted = (argument: Argument): Buffer =>
    Buffer.concat([
      Buffer.from("'"),
      Buffer.from(text(argument).replaceAll("'", "'\\''"), typeof argument === "string" ? "utf8" : "latin1"),
      Buffer.from("' "),
    ]);

  /** Returns the status with which it ended, after a look at it. */
  async function statusOf(args: readonly Argument[], index: number): Promise<number | string> {
    const script = join(directory, `script${index}`);
    writeFileSync(script, Buffer.concat([Buffer.from("exec "), ...[...command, ...args].map(quoted)]));
    const { status, stdout, stderr } = await run(["sh", script], { cwd: directory });
    const context = { args: args.map(text), stderr };
    // Bun, which a program from source is given to, takes a `--` that comes first for itself.
    const taken = name === "from source" && args[0] === "--" ? 1 : 0;
    const result = asked(args.slice(taken));
    if (result instanceof UsageError) {
      const message = `mounttree: ${result.message}\nTry 'mounttree ${result.command}--help'.\n`;
      expect({ ...context, status, stdout }).toEqual({ ...context, stderr: message, status: 125, stdout: "" });
      return status;
    }
    if (result.command === "run" && runsHere(result)) return status;
    const others = { check: [0, 1, 125], ls: [0, 125], help: [0], version: [0] };
    const statuses = result.command === "run" ? statusesOfRun(result) : others[result.command];
    const fits = statuses.includes(Number(status));
    expect({ ...context, statuses, status, fits }).toEqual({ ...context, statuses, status, fits: true });
    expect(stderr).toMatch(Number(status) >= 125 ? /^mounttree: .+\n$/s : /^$/);
    expect(stderr).not.toMatch(/^Try |^ +at /m);
    if (result.command === "help") expect(stdout).toBe(result.text);
    return status;
  }

  test("ends with any arguments as it should, without a trace of what it is made of", async () => {
    const found = [["--", "ls"], ["--"], ["--", "--", "ls"], ["run", "--tmpfs", "inner", "/"]];
    expect((await Promise.all(found.map(statusOf))).at(-1)).toBe(0);
    await holdsForAll(`the command, ${name}`, lines, { cases: 64, atOnce: 8, seconds: 0.6 }, async (batch) => {
      await Promise.all(batch.map(statusOf));
    });
  });

  test("runs what is there, with whatever options work, and otherwise says so by its status", async () => {
    const seen = new Map<number | string, number>();
    const pairs = fc.tuple(successes, attempts);
    await holdsForAll(`mounttree run, ${name}`, pairs, { cases: 32, atOnce: 4, seconds: 0.6 }, async (batch) => {
      for (const status of await Promise.all(batch.flat().map(statusOf))) seen.set(status, (seen.get(status) ?? 0) + 1);
    });
    console.log(`statuses: ${[...seen].map(([status, count]) => `${status} ${count} times`).join(", ")}`);
    expect(seen.get(0) ?? 0).toBeGreaterThanOrEqual(4);
  });
});
