/** Option strings: nothing in them is lost, what is understood can be said again, and mount(8) understands the same. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { mergeTmpfsOptions, type ParsedMountOptions, parseMountOptions } from "../../mountoptions.ts";
import { MS } from "../../syscalls.ts";
import { run, watchMountTable } from "../compiled.ts";
import { holds, holdsForAll } from "./fuzz.ts";

watchMountTable();

// --- Options

/** Each flag, the option that sets it, and the one that takes it away, if there is one. */
const flagWords: readonly [flag: number, set: string, clear?: string][] = [
  [MS.RDONLY, "ro", "rw"],
  [MS.NOSUID, "nosuid", "suid"],
  [MS.NODEV, "nodev", "dev"],
  [MS.NOEXEC, "noexec", "exec"],
  [MS.SYNCHRONOUS, "sync", "async"],
  [MS.DIRSYNC, "dirsync"],
  [MS.REMOUNT, "remount"],
  [MS.MANDLOCK, "mand", "nomand"],
  [MS.NOATIME, "noatime", "atime"],
  [MS.RELATIME, "relatime", "norelatime"],
  [MS.STRICTATIME, "strictatime", "nostrictatime"],
  [MS.NODIRATIME, "nodiratime", "diratime"],
  [MS.LAZYTIME, "lazytime", "nolazytime"],
  [MS.SILENT, "silent", "loud"],
  [MS.I_VERSION, "iversion", "noiversion"],
  [MS.NOSYMFOLLOW, "nosymfollow", "symfollow"],
];
const propagationWords: readonly [type: number, word: string][] = [
  [MS.SHARED, "shared"],
  [MS.SLAVE, "slave"],
  [MS.PRIVATE, "private"],
  [MS.UNBINDABLE, "unbindable"],
];
const propagation = propagationWords.flatMap(([, word]) => [word, `r${word}`]);
/** Options for other programs, or for nobody. */
const ignored = ["defaults", "auto", "noauto", "nouser", "nousers", "noowner", "nogroup", "nofail", "_netdev"];
const ignoredBeginnings = /^(x-|X-|comment=)/;
const users = ["user", "users", "owner", "group"];
const flags = [...flagWords.flatMap(([, ...words]) => words.filter((word) => word !== undefined)), ...users];
const data = [
  "size=1m",
  "mode=755",
  "mpol=bind:0",
  "lowerdir=/a",
  "a=b=c",
  "RO",
  "ro=1",
  "ro ",
  "user=me",
  "remounted",
  "=",
  "constructor",
];
const quoted = ['context="a,ro,b"', "lowerdir=/a\\,b", '"', "\\", 'a"b', "\\,", '","'];

/** One option; what it holds besides, a comma above all, is for the rules of quoting to sort out. */
const option = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(...flags, ...propagation, "bind", "rbind") },
  { weight: 3, arbitrary: fc.constantFrom(...ignored, "x-mine=1", "X-mount.mkdir", "comment=a b") },
  { weight: 3, arbitrary: fc.constantFrom(...data, ...quoted) },
  { weight: 2, arbitrary: fc.string({ maxLength: 6 }) },
  { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 4 }) },
  { weight: 1, arbitrary: fc.constantFrom("\0", "\ud800", "a".repeat(2000), "ä".repeat(1000)) },
);
const optionStrings = fc.array(option, { maxLength: 10 }).map((all) => all.join(","));

/** Options without what has a meaning to the rules of quoting. */
const plain = option.filter((text) => text !== "" && !/[,"\\\0]/.test(text) && text.isWellFormed());

/** A string that means this. */
function said({ flags, clear, propagation, data }: ParsedMountOptions): string {
  const words = flagWords.flatMap(([flag, , word]) => (clear & flag && word !== undefined ? [word] : []));
  if (flags & MS.BIND) words.push(flags & MS.REC ? "rbind" : "bind");
  words.push(...flagWords.flatMap(([flag, word]) => (flags & flag ? [word] : [])));
  for (const type of propagation) {
    const word = propagationWords.find(([each]) => each === (type & ~MS.REC))?.[1] ?? "";
    words.push(type & MS.REC ? `r${word}` : word);
  }
  return [...words, ...(data === "" ? [] : [data])].join(",");
}

/** Why a string cannot be taken, as the documentation has it. */
function refusal(options: string): string | undefined {
  const isWhole = options.isWellFormed() && !options.includes("\0") && options.split('"').length % 2 === 1;
  return isWhole ? undefined : "ERR_INVALID_ARG_VALUE";
}

function attempt<T>(action: () => T): T | string {
  try {
    return action();
  } catch (error) {
    expect(error).toBeInstanceOf(TypeError);
    if (!(error instanceof TypeError && "code" in error)) throw error;
    return String(error.code);
  }
}

// --- The tests

test("every option does something, or is one that is meant for nobody here", () => {
  const property = fc.property(plain, (text) => {
    const parsed = parseMountOptions(text);
    const { flags, clear, propagation, data } = parsed;
    const isIgnored = ignored.includes(text) || ignoredBeginnings.test(text);
    const isNothing = flags === 0 && clear === 0 && propagation.length === 0 && data === "";
    expect({ text, isNothing }).toEqual({ text, isNothing: isIgnored });
    // What is not understood is passed on as it is, and nothing else is.
    expect([text, ""]).toContain(data);
  });
  holds("options, one by one", property, { cases: 500, seconds: 0.2 });
});

test("several options do what each of them does, in their order", () => {
  const property = fc.property(fc.array(plain, { maxLength: 12 }), (all) => {
    let [set, clear] = [0, 0];
    const each = all.map((text) => parseMountOptions(text));
    for (const one of each) {
      set = (set & ~one.clear) | one.flags;
      clear = (clear & ~one.flags) | one.clear;
    }
    const data = each.map((one) => one.data).filter((text) => text !== "");
    const propagation = each.flatMap((one) => one.propagation);
    const together = attempt(() => parseMountOptions(all.join(",")));
    const tooLong = Buffer.byteLength(data.join(",")) > 4095;
    expect(together).toEqual(tooLong ? "ERR_OUT_OF_RANGE" : { flags: set, clear, propagation, data: data.join(",") });
  });
  holds("options together", property, { cases: 500, seconds: 0.3 });
});

test("any text is refused, or can be said again in other words, and by a tmpfs in fewer", () => {
  const property = fc.property(optionStrings, (options) => {
    const parsed = attempt(() => parseMountOptions(options));
    if (typeof parsed === "string") expect([refusal(options) ?? "ERR_OUT_OF_RANGE"]).toContain(parsed);
    else {
      expect(refusal(options)).toBeUndefined();
      expect(parseMountOptions(said(parsed))).toEqual(parsed);
    }
    const merged = attempt(() => mergeTmpfsOptions(options));
    if (typeof merged === "string") expect(merged).toBe("ERR_INVALID_ARG_VALUE");
    else expect(mergeTmpfsOptions(merged)).toEqual(merged);
  });
  holds("option strings", property, { cases: 500, seconds: 0.3 });
});

const directory = mkdtempSync("/tmp/mounttree-fuzz-");
beforeAll(() => mkdirSync(join(directory, "target")));
afterAll(() => rmSync(directory, { recursive: true }));

/** The calls of mount(2) that mount(8) makes for each string; they do nothing, and succeed. */
async function callsOfMount(strings: readonly string[]): Promise<{ flags: number; data: string }[][]> {
  const [log, script] = [join(directory, "log"), join(directory, "script")];
  const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
  const commands = strings.map((options, at) => `mount -t tmpfs -o ${quote(options)} case${at} ${join(directory, "target")}`);
  writeFileSync(script, `${commands.join("\n")}\n`);
  const trace = [
    "strace",
    "-f",
    "-qq",
    "-X",
    "raw",
    "-x",
    "-s",
    "5000",
    "--trace=mount,execve",
    "--inject=mount:retval=0",
    "-o",
    log,
  ];
  // Newer versions would use fsopen(2).
  const { status, stderr } = await run([...trace, "sh", "-eu", script], {
    env: { ...process.env, LIBMOUNT_FORCE_MOUNT2: "always" },
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  const calls: { flags: number; data: string }[][] = [];
  for (const line of readFileSync(log, "utf8").split("\n")) {
    if (/ execve\(.*"case\d+"/.test(line)) calls.push([]);
    const call = / mount\(.*, ((?:0x)?[0-9a-f]+), (?:NULL|"(.*)")\) += 0/.exec(line);
    if (call !== null) calls.at(-1)?.push({ flags: Number(call[1]), data: bytesOf(call[2] ?? "") });
  }
  return calls;
}

/** The string that strace printed. */
function bytesOf(text: string): string {
  return text.replace(/\\(?:x([0-9a-f]{2})|(.))/g, (_, hex, other) =>
    hex === undefined ? other : String.fromCharCode(Number.parseInt(hex, 16)),
  );
}

test("mount(8) makes the same calls", async () => {
  // Not what it does something about: remounting, binding, users' names, directories to be made.
  const words = [...flags, ...propagation, ...ignored, "x-mine=1", "comment=a b", "lowerdir=/a\\,b", ...data];
  const list = words.filter((word) => !["remount", "=", "user=me"].includes(word));
  const strings = fc.array(fc.constantFrom(...list), { minLength: 1, maxLength: 8 }).map((all) => {
    // Where the last one does not win with mount(8): of access times, and of types of propagation.
    const kindOf = (word: string): string | undefined => {
      if (propagation.includes(word)) return word.replace(/^r/, "");
      return ["noatime", "relatime", "strictatime"].includes(word) ? "atime" : undefined;
    };
    const isAgain = (word: string, at: number): boolean =>
      kindOf(word) !== undefined && all.slice(0, at).some((other) => kindOf(other) === kindOf(word));
    return all.filter((word, at) => !isAgain(word, at)).join(",");
  });
  await holdsForAll("options, beside mount(8)", strings, { cases: 60, atOnce: 20, seconds: 0.8 }, async (batch) => {
    const calls = await callsOfMount(batch);
    expect(calls).toHaveLength(batch.length);
    for (const [at, options] of batch.entries()) {
      const { flags, data, propagation } = parseMountOptions(options);
      // To be silent about a change of propagation means nothing, but mount(8) says it.
      const later = propagation.map((type) => ({ flags: type | (flags & MS.SILENT), data: "" }));
      expect({ options, calls: calls[at] }).toEqual({ options, calls: [{ flags, data }, ...later] });
    }
  });
});
