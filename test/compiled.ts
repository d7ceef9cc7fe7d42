/** The command in both ways in which it is used, from its source and compiled, and what its tests need around it. */

import { afterAll, afterEach, beforeEach, expect } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { scripts } from "../package.json" with { type: "json" };
import { patience } from "./hard.ts";

export interface Way {
  name: string;
  /** What the command line begins with. */
  command: string[];
}

export interface Finished {
  /** The exit status, or the name of the signal that ended it. */
  status: number | string;
  stdout: string;
  stderr: string;
  /** What was printed, byte for byte. */
  bytes: Buffer;
  pid: number;
}

export const checkout: string = resolve(import.meta.dir, "..");

/** A directory on a tmpfs for one test file, removed when its tests have ended. */
export function scratchDirectory(): string {
  const directory = mkdtempSync("/tmp/mounttree-cli-");
  afterAll(() => rmSync(directory, { recursive: true }));
  return directory;
}

/** Runs a command to its end. It gets a pipe as each of its standard streams, and `input` on the first. */
export async function run(
  command: string[],
  options: { cwd?: string; env?: Record<string, string | undefined>; input?: string } = {},
): Promise<Finished> {
  const { input = "", ...others } = options;
  const child = Bun.spawn(command, {
    ...others,
    stdin: Buffer.from(input),
    stdout: "pipe",
    stderr: "pipe",
    timeout: 20_000 * patience,
    killSignal: "SIGKILL",
  });
  const [stdout, stderr] = await Promise.all([child.stdout.bytes(), child.stderr.text(), child.exited]);
  const bytes = Buffer.from(stdout);
  return { status: child.signalCode ?? child.exitCode ?? -1, stdout: bytes.toString(), stderr, bytes, pid: child.pid };
}

/** Runs a shell script to its end; its arguments are `$1`, `$2`, ... */
export function shell(script: string, parameters: string[] = [], options: Parameters<typeof run>[1] = {}): Promise<Finished> {
  return run(["sh", "-euc", script, "sh", ...parameters], options);
}

/** The same in a mount namespace of its own, in which it can mount what it likes. */
export function shellApart(script: string, parameters: string[] = [], propagation = "private"): Promise<Finished> {
  return run(["unshare", "--mount", "--propagation", propagation, "sh", "-euc", script, "sh", ...parameters]);
}

/**
 * Compiles the command as `bun run build` does, in a copy of the checkout, which may be read-only.
 *
 * @param leftOut Arguments of the build script to leave out.
 * @param program The text of a program that is compiled in place of the command.
 */
export async function compile(directory: string, leftOut: readonly string[] = [], program?: string): Promise<string> {
  const copy = mkdtempSync(join(directory, "checkout-"));
  const files = readdirSync(checkout).filter((name) => /\.(ts|json)$/.test(name));
  for (const name of files) cpSync(join(checkout, name), join(copy, name));
  if (program !== undefined) writeFileSync(join(copy, "cli.ts"), program);
  const [bun, ...flags] = scripts.build.split(" ").filter((argument) => !leftOut.includes(argument));
  if (bun !== "bun") throw new Error(`the build script does not begin with bun: ${scripts.build}`);
  const built = await run([process.execPath, ...flags], { cwd: copy });
  if (built.status !== 0) throw new Error(`the build ended with ${built.status}: ${built.stderr}`);
  return join(copy, "dist/mounttree");
}

export async function bothWays(directory: string): Promise<Way[]> {
  return [
    { name: "from source", command: [join(checkout, "cli.ts")] },
    { name: "compiled", command: [await compile(directory)] },
  ];
}

/** Makes a root that holds no file. With {@link userland} on it, the tools of this container run there. */
export function makeRoot(path: string): string {
  for (const name of ["usr", "proc", "dev", "tmp"]) mkdirSync(join(path, name), { recursive: true });
  for (const name of ["bin", "lib", "lib64"]) symlinkSync(`usr/${name}`, join(path, name));
  return path;
}

export const userland: readonly string[] = ["--ro-bind", "/usr", "/usr"];

export function mountTable(): string {
  return readFileSync("/proc/self/mountinfo", "utf8");
}

/** Every test of the file has to leave the mount table as it was, byte for byte. */
export function watchMountTable(): void {
  let before = "";
  beforeEach(() => {
    before = mountTable();
  });
  afterEach(() => expect(mountTable()).toBe(before));
}
