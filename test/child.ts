/**
 * Programs that change their root run in a process of their own: `child(function)` runs the function there and gives what it
 * returns. The function's text is all that arrives, so it can use its argument and what `prelude` imports, and nothing else.
 */
import { afterEach, beforeEach, expect } from "bun:test";
import * as fs from "node:fs";
import { resolve } from "node:path";
import { MNT, MS, mount, umount2 } from "../syscalls.ts";
import { patience } from "./hard.ts";

const checkout = resolve(import.meta.dir, "..");

/** The names under which a test file must import what its functions use. */
const prelude = `
  import { heapStats } from "bun:jsc";
  import * as fs from "node:fs";
  import { checkRoot } from "${checkout}/checkroot.ts";
  import * as checks from "${checkout}/checks.ts";
  import { explained } from "${checkout}/diagnose.ts";
  import * as mounts from "${checkout}/mount.ts";
  import * as mountinfo from "${checkout}/mountinfo.ts";
  import * as syscalls from "${checkout}/syscalls.ts";
  import { SwitchRootError, switchRoot, switchRootOn } from "${checkout}/switchroot.ts";
  import { describeError, makeRoot, observe, startReader } from "${checkout}/test/observe.ts";
`;

/** Commands that start the program: in a mount namespace of its own, with nothing shared. */
export const own: readonly string[] = ["unshare", "--mount", "--propagation", "private"];

export interface ChildOptions {
  /** What starts it. Default {@link own}. */
  prefix?: readonly string[];
  cwd?: string;
  /** In milliseconds. Default a minute. */
  timeout?: number;
}

/**
 * @param program What to do there. It prints nothing.
 * @param argument What it is called with; has to survive JSON.
 */
export async function child<A, R>(program: (argument: A) => R | Promise<R>, argument: A, options: ChildOptions = {}): Promise<R> {
  const script = `${prelude}
    const result = await (${program})(${JSON.stringify(argument)});
    fs.writeSync(1, "\\n" + JSON.stringify({ result }));
    process.exit(0);
  `;
  const started = Bun.spawn([...(options.prefix ?? own), process.execPath, "-e", script], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    cwd: options.cwd ?? "/",
    timeout: (options.timeout ?? 60_000) * patience,
  });
  const [stdout, stderr, exitCode] = await Promise.all([started.stdout.text(), started.stderr.text(), started.exited]);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  if (exitCode !== 0 || !last.startsWith("{")) throw new Error(`the child ended with ${exitCode}\n${stdout}\n${stderr}`);
  const { result }: { result: R } = JSON.parse(last);
  return result;
}

/** Gives each test of a file a private tmpfs at `base`, and sees to it that no mount but that was made outside the children. */
export function onTmpfs(base: string): void {
  let before = "";
  beforeEach(() => {
    before = fs.readFileSync("/proc/self/mountinfo", "utf8");
    fs.mkdirSync(base);
    mount("base", base, "tmpfs", 0, null);
    mount(null, base, null, MS.PRIVATE, null);
  });
  afterEach(() => {
    umount2(base, MNT.DETACH);
    fs.rmdirSync(base);
    expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(before);
  });
}
