/** Whoever owns the working directory, or one above it, has no say in what the command does there. */

import { beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { bothWays, checkout, compile, makeRoot, run, scratchDirectory, shellApart, userland } from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
const root = makeRoot(join(scratch, "root"));

/** The directory with everything in it that could be obeyed, and one below it that is empty. */
const hostile = join(scratch, "hostile");
const below = join(hostile, "below/that");
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
  for (const name of ["tsconfig.json", "jsconfig.json"])
    write(name, JSON.stringify({ compilerOptions: { baseUrl: ".", paths } }));
  write("package.json", JSON.stringify({ name: "planted", version: "6.6.6", type: "commonjs", main: "planted.ts" }));
  // A real library, so that one who loads it gets further than to its first byte.
  const library = readFileSync(realpathSync("/lib64/ld-linux-x86-64.so.2"));
  for (const name of libraries) writeFileSync(join(directory, name), library);
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
  return [...new Set(paths.map((path) => relative(directory, path)))].filter((path) => path !== "" && !path.startsWith(".."));
}

async function trace(command: string[], cwd: string): Promise<{ status: number | string; stdout: string; files: string[] }> {
  const log = join(scratch, "trace");
  const { status, stdout } = await run(["strace", "-f", "-y", "--output", log, `--trace=${calls}`, ...command], { cwd });
  return {
    status,
    stdout,
    files: touched(readFileSync(log, "utf8"), hostile, cwd).filter((file) => join(hostile, file) !== cwd),
  };
}

beforeEach(() => rmSync(marker, { force: true }));

for (const { name, command: mounttree } of ways) {
  describe(`a hostile directory, ${name}`, () => {
    for (const [where, cwd] of [
      ["here", hostile],
      ["above", below],
    ] as const) {
      for (const [what, line, expected] of [
        ["run", ["run", ...userland, "--tmpfs", "/tmp", root, "sh", "-c", "echo run ${PLANTED-}"], "run \n"],
        ["run by the weaker methods", ["run", ...userland, "--method", "detached,chroot", root, "echo", "run"], "run\n"],
        ["ls", ["ls", "/tmp"], expect.stringContaining("PROPAGATION")],
        ["ls --json", ["ls", "--json"], expect.stringContaining('"mountPoint": "/tmp"')],
        ["--version", ["--version"], expect.not.stringContaining("6.6.6")],
        ["an error", ["run", root, "/no/such/command"], ""],
      ] as const) {
        test(`that is ${where}: nothing in it is opened or run by ${what}`, async () => {
          const { status, stdout, files } = await trace([...mounttree, ...line], cwd);
          expect(files).toEqual([]);
          expect(existsSync(marker)).toBe(false);
          expect({ status, stdout }).toEqual({ status: what === "an error" ? 127 : 0, stdout: expected });
        });
      }
    }

    test('that is "/", because this process was chrooted: nothing in it is opened or run', async () => {
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
      expect(stderr).toContain("pivot: this process was chrooted");
      expect(stdout).toStartWith("ended with 125\n");
      expect(stdout).toContain("\nplanted.ts\n");
      expect(stdout).not.toContain("\nmarker\n");
      const lines = readFileSync(log, "utf8").split("\n");
      const inside = lines.slice(lines.findIndex((line) => line.includes("chroot(")) + 1);
      const files = touched(inside.join("\n"), "/", "/");
      const system = ["usr", "work", "proc", "dev", "tmp", "etc", "sys", "lib", "lib64", "bin", "sbin", "run", "root", "$bunfs"];
      expect(files.filter((file) => !system.includes(file.split("/")[0] ?? ""))).toEqual([]);
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
      expect((await trace([process.execPath, ...guards, source, "ls"], hostile)).files).toEqual([]);
    });
  }

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
