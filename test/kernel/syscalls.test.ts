/** strace(1) says which calls are made: here, and in the machines that run.ts starts, of both architectures. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import * as syscalls from "../../syscalls.ts";
import { own } from "../child.ts";
import { checkout, run } from "../compiled.ts";
import { calls, others } from "./syscalls.ts";

test("every function of syscalls.ts is looked at", () => {
  const functions = Object.entries(syscalls).filter(([, value]) => typeof value === "function" && !/^class /.test(String(value)));
  const named = new Set([...Object.keys(calls).map((name) => name.replace(/,.*/, "")), ...others]);
  expect(functions.map(([name]) => name).filter((name) => !named.has(name))).toEqual([]);
});

/** A call during which another thread made one is in two parts. */
function wholeLines(log: string): string[] {
  const begun = new Map<string, string>();
  return log.split("\n").flatMap((line) => {
    const [, pid = "", rest = ""] = /^(\d+) +(.*)/.exec(line) ?? [];
    const first = / <unfinished \.\.\.>$/.test(rest) ? rest.replace(/ <unfinished \.\.\.>$/, "") : undefined;
    if (first !== undefined) {
      begun.set(pid, first);
      return [];
    }
    // The second part is filled up with spaces.
    return [rest.replace(/^<\.\.\. \w+ resumed>/, () => begun.get(pid) ?? "").replace(/\) += /, ") = ")];
  });
}

test("each makes the call that it is named for, and strace reads what it was given and what it got", async () => {
  const names = new Set(Object.values(calls).map(({ traced }) => /^\w+/.exec(traced(undefined)[0] ?? "")?.[0]));
  const path = "/tmp/calls";
  const trace = ["strace", "-f", "-v", "-s", "200", "-o", path, "--seccomp-bpf", "-e", `trace=${[...names].join(",")}`];
  const { stdout, stderr, status } = await run([...own, ...trace, process.execPath, `${checkout}/test/kernel/syscalls.ts`]);
  expect({ stderr, status }).toEqual({ stderr: "", status: 0 });
  const values: Record<string, unknown> = JSON.parse(stdout);
  const lines = wholeLines(fs.readFileSync(path, "utf8"));
  fs.rmSync(path);
  for (const [name, { traced }] of Object.entries(calls)) {
    const [first = "", ...rest] = traced(values[name]);
    const begun = lines.filter((line) => line.startsWith(first));
    const found = begun.some((line) => rest.every((part) => line.includes(part)));
    expect({ name, found, ...(!found && { first, rest, begun }) }).toEqual({ name, found: true });
  }
});
