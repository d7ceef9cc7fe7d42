/** Whoever owns the working directory, or one above it, has no say in what the command does there. */

import { beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { bothWays, checkout, compile, makeRoot, run, scratchDirectory, shellApart, userland } from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
const root = makeRoot(join(scratch, "root"));

/** The directory with everything in it that could be obeyed, and one below it that is empty. */
const hostile = join(scratch, "hostile");
const below = join(hostile, "below/that");
const directories = [hostile, join(hostile, "below"), below];
const marker = join(hostile, "marker");
mkdirSync(below, { recursive: true });

const libraries = ["libc.so.6", "libc.so", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1", "ld-musl-x86_64.so.1"];

function plant(directory: string, markerPath: string): void {
  const write = (name: string, text: string): void => writeFileSync(join(directory, name), text);
  const script = `require("node:fs").writeFileSync(${JSON.stringify(markerPath)}, "");\n`;
  write("planted.ts", `${script}export default {}; export const dlopen = 0;\n`);
  write("bunfig.toml", 'preload = ["./planted.ts"]\n[run]\npreload = ["./planted.ts"]\n');
  const variables = `BUN_OPTIONS=--preload=${directory}/planted.ts\nPATH=${directory}\nLC_ALL=C\nPLANTED=1\n`;
  for (const name of [".env", ".env.local", ".env.development", ".env.production"]) write(name, variables);
  const names = ["*", "bun:ffi", "./syscalls.ts", "./exec.ts", "node:tty", "node:util", "./package.json"];
  const paths = Object.fromEntries(names.map((name) => [name, ["./planted.ts"]]));
  const compilerOptions = { baseUrl: ".", paths };
  for (const name of ["tsconfig.json", "jsconfig.json"]) write(name, JSON.stringify({ extends: "./base.json", compilerOptions }));
  write("base.json", JSON.stringify({ compilerOptions }));
  const scripts = Object.fromEntries(
    ["cli.ts", "preinstall", "prestart", "start", "run", "ls"].map((script) => [script, "bun planted.ts"]),
  );
  const imports = { "#*": "./planted.ts" };
  write(
    "package.json",
    JSON.stringify({ name: "planted", version: "6.6.6", type: "commonjs", main: "planted.ts", scripts, imports }),
  );
  for (const name of libraries) write(name, "no library, but to see that, it has to be opened\n");
}
plant(hostile, marker);

const calls = "openat,open,openat2,readlink,readlinkat,execve,execveat,creat";

/** The files below `directory` that a trace, made in `cwd`, says were opened or executed, or were to be. */
function touched(trace: string, directory: string, cwd: string): string[] {
  const paths = trace.split("\n").flatMap((line) => {
    const call = /^(?:\d+ +)?(\w+)\((?:(?:AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"/.exec(line);
    return call?.[3] === undefined ? [] : [resolve(call[2] ?? cwd, call[3])];
  });
  if (paths.length < 5) throw new Error(`this is no trace:\n${trace}`);
  return [...new Set(paths.map((path) => relative(directory, path)))].filter((path) => !path.startsWith(".."));
}

async function trace(command: string[], cwd: string): Promise<{ status: number | string; stdout: string; files: string[] }> {
  const log = join(scratch, "trace");
  const { status, stdout } = await run(["strace", "-f", "-y", "--output", log, `--trace=${calls}`, ...command], { cwd });
  const files = touched(readFileSync(log, "utf8"), hostile, cwd).filter((file) => !directories.includes(join(hostile, file)));
  return { status, stdout, files };
}

beforeEach(() => rmSync(marker, { force: true }));

/**
 * A bun that is given a script reads these in the working directory and above (the last because the one before it says so), whatever
 * it is told; but it takes nothing from them.
 */
const readByBun = ["package.json", "tsconfig.json", "base.json"];

for (const { name, command: mounttree } of ways) {
  describe(`a hostile directory, ${name}`, () => {
    for (const [where, cwd] of [
      ["here", hostile],
      ["above", below],
    ] as const) {
      for (const [what, line, expected] of [
        ["run", ["run", ...userland, "--tmpfs", "/tmp", root, "sh", "-c", "echo run $PLANTED"], "run\n"],
        ["run by the weaker methods", ["run", ...userland, "--method", "detached,chroot", root, "echo", "run"], "run\n"],
        ["ls", ["ls", "/tmp"], expect.stringContaining("PROPAGATION")],
        ["ls --json", ["ls", "--json"], expect.stringContaining('"mountPoint": "/tmp"')],
        ["--version", ["--version"], expect.not.stringContaining("6.6.6")],
        ["an error", ["run", root, "/no/such/command"], ""],
      ] as const) {
        test(`that is ${where}: nothing in it is ${name === "compiled" ? "opened" : "obeyed"} by ${what}`, async () => {
          const { status, stdout, files } = await trace([...mounttree, ...line], cwd);
          expect(files.filter((file) => name === "compiled" || !readByBun.includes(file))).toEqual([]);
          expect(existsSync(marker)).toBe(false);
          expect({ status, stdout }).toEqual({ status: what === "an error" ? 127 : 0, stdout: expected });
        });
      }
    }

    test('that is "/", because this process was chrooted: nothing in it is obeyed', async () => {
      const jail = join(scratch, "jail");
      const log = join(scratch, "trace");
      mkdirSync(jail, { recursive: true });
      // To tell whether the process was chrooted, a child is started, which is a bun as well.
      const script = `
        jail=$1 log=$2 planted=$3; shift 3; mount -t tmpfs none "$jail"; cp -a "$planted"/. "$jail"
        for each in usr work proc dev tmp; do mkdir -p "$jail/$each"; mount --rbind /$each "$jail/$each"; done
        ln -s usr/bin usr/lib usr/lib64 "$jail"
        strace -f -y --output "$log" --trace=${calls},chroot chroot "$jail" "$@" || echo "ended with $?"
        ls -A "$jail"`;
      const planted = join(scratch, "planted");
      mkdirSync(planted, { recursive: true });
      plant(planted, "/marker");
      const { stdout, stderr } = await shellApart(script, [jail, log, planted, ...mounttree, "run", ...userland, root, "true"]);
      expect(stderr).toContain("pivot and move: this process was chrooted");
      expect(stdout).toStartWith("ended with 125\n");
      expect(stdout).toContain("\nplanted.ts\n");
      expect(stdout).not.toContain("\nmarker\n");
      const lines = readFileSync(log, "utf8").split("\n");
      const inside = lines.slice(lines.findIndex((line) => line.includes("chroot(")) + 1);
      const files = touched(inside.join("\n"), "/", "/");
      const names = readdirSync(planted);
      expect(names).toContain("bunfig.toml");
      expect(files.filter((file) => names.includes(file) && !readByBun.includes(file))).toEqual([]);
    });
  });
}

describe("without its guards the command would obey what is planted, so that the tests above mean something:", () => {
  const source = join(checkout, "cli.ts");
  const firstLine = readFileSync(source, "utf8").split("\n", 1)[0] ?? "";
  const guards = firstLine.split(" ").filter((word) => word.startsWith("--"));

  test("from source, they are in the first line", () => {
    expect(firstLine).toBe("#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null");
  });

  for (const [guard, file, ran] of [
    ["--no-env-file", ".env", false],
    ["--config=/dev/null", "bunfig.toml", true],
    ["--tsconfig-override=/dev/null", "tsconfig.json", true],
  ] as const) {
    test(`from source, without ${guard}`, async () => {
      expect(guards).toContain(guard);
      const others = guards.filter((each) => each !== guard);
      const { files } = await trace([process.execPath, ...others, source, "ls"], hostile);
      expect(files).toContain(file);
      expect(existsSync(marker)).toBe(ran);
    });
  }

  test("a library of a name that the loader does not find is looked for in the working directory", async () => {
    const script = 'import { dlopen } from "bun:ffi"; dlopen("libc.musl-x86_64.so.1", { getpid: { args: [], returns: "i32" } });';
    expect((await trace([process.execPath, ...guards, "-e", script], hostile)).files).toContain("libc.musl-x86_64.so.1");
  });

  for (const [guard, file, ran] of [
    ["--no-compile-autoload-dotenv", ".env", false],
    ["--no-compile-autoload-bunfig", "bunfig.toml", true],
  ] as const) {
    test(`compiled, without ${guard}`, async () => {
      const { files } = await trace([await compile(scratch, [guard]), "ls"], hostile);
      expect(files).toContain(file);
      expect(existsSync(marker)).toBe(ran);
    });
  }
});
