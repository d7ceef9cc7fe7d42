/** The README's first command. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";

test("the tour switches, finds one root from every side, and leaves no trace", async () => {
  const table = fs.readFileSync("/proc/self/mountinfo", "utf8");
  const tour = Bun.spawn([process.execPath, "run", "start"], { cwd: "/work", stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, exitCode] = await Promise.all([tour.stdout.text(), tour.stderr.text(), tour.exited]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "$ bun examples/tour.ts\n" });
  expect(stdout).toContain('used the method "pivot"');
  expect(stdout.match(/read from the new root/g)).toHaveLength(3);
  expect(stdout.match(/not there any more/g)).toHaveLength(2);
  expect(stdout).toMatch(/The \d+ threads of this process have one root, this one\./);
  expect(stdout).toContain("byte for byte what it was");
  expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(table);
  expect(fs.readdirSync("/tmp").filter((name) => name.startsWith("mounttree-tour"))).toEqual([]);
});

test("the tour needs no root", async () => {
  const prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
  const tour = Bun.spawn([...prefix, process.execPath, "examples/tour.ts"], { cwd: "/work", stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, exitCode] = await Promise.all([tour.stdout.text(), tour.stderr.text(), tour.exited]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  expect(stdout).toContain('used the method "pivot"');
  expect(stdout.match(/read from the new root/g)).toHaveLength(3);
  expect(stdout).toContain("byte for byte what it was");
});
