/** `mounttree run`: its options, its exit statuses, what arrives as arguments, and the methods. */

import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdirSync, readdirSync, rmdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../package.json" with { type: "json" };
import {
  bothWays,
  type Finished,
  makeRoot,
  run,
  scratchDirectory,
  shell,
  shellApart,
  userland,
  watchMountTable,
} from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
const onTmpfs = makeRoot(join(scratch, "root"));
const onDisk = makeRoot("/root-of-cli-tests");
afterAll(() => rmSync(onDisk, { recursive: true }));
watchMountTable();

writeFileSync(join(onTmpfs, "tmp/plain"), "not a program\n");
writeFileSync(join(onTmpfs, "tmp/orphan"), "#!/no/such/interpreter\n");
writeFileSync(join(onTmpfs, "tmp/script"), "#!/bin/sh\necho script: $1\n");
for (const name of ["orphan", "script"]) chmodSync(join(onTmpfs, "tmp", name), 0o755);
symlinkSync("root", join(scratch, "link"));
writeFileSync(join(scratch, "file"), "");

const noCapabilities = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"];

for (const { name, command: mounttree } of ways) {
  const inside = (command: string[], options: string[] = [], root = onTmpfs): Promise<Finished> =>
    run([...mounttree, "run", ...userland, ...options, root, ...command]);
  const fails = async (command: string[], message: RegExp, options: Parameters<typeof run>[1] = {}): Promise<void> => {
    const { status, stdout, stderr } = await run(command, options);
    expect(stderr).toMatch(message);
    expect({ status, stdout }).toEqual({ status: 125, stdout: "" });
    expect(stderr).toStartWith("mounttree: ");
  };

  describe(`the command, ${name}`, () => {
    describe("ends as its command does", () => {
      test("with the exit status 0 or another one", async () => {
        expect(await inside(["true"])).toMatchObject({ status: 0, stdout: "", stderr: "" });
        expect(await inside(["sh", "-c", "exit 7"])).toMatchObject({ status: 7, stderr: "" });
      });

      test("killed by the same signal", async () => {
        for (const signal of ["TERM", "KILL", "PIPE"]) {
          expect(await inside(["sh", "-c", `kill -${signal} $$`])).toMatchObject({ status: `SIG${signal}`, stderr: "" });
        }
      });

      test("which is /bin/sh if none is named", async () => {
        const shellInside = await run([...mounttree, "run", ...userland, onTmpfs], { input: "readlink /bin; exit 3" });
        expect(shellInside).toMatchObject({ status: 3, stdout: "usr/bin\n", stderr: "" });
        expect(await run([...mounttree, "run", ...userland, onTmpfs, "--"], { input: "exit 4" })).toMatchObject({ status: 4 });
      });
    });

    describe("ends with 125, and a message, for", () => {
      test("no command, or an unknown one", async () => {
        await fails(mounttree, /a command is missing/);
        await fails([...mounttree, "walk"], /unknown command 'walk'/);
      });

      test("an option that there is not, by its name", async () => {
        await fails([...mounttree, "--verbose"], /unknown option '--verbose'/);
        await fails([...mounttree, "run", "--ro-bnd", "/usr", "/usr", onTmpfs, "true"], /run: unknown option '--ro-bnd'/);
        await fails([...mounttree, "run", "-x", onTmpfs], /run: unknown option '-x'/);
        await fails(
          [...mounttree, "run", "--methods=chroot", onTmpfs],
          /run: unknown option '--methods'[\s\S]*mounttree run --help/,
        );
        await fails([...mounttree, "run", "--bind=/usr", onTmpfs], /run: --bind takes SRC and DEST as two arguments/);
        await fails([...mounttree, "run", "--method=chroott", onTmpfs], /run: --method: 'chroott' is none of pivot, move/);
        await fails([...mounttree, "ls", "--long"], /ls: unknown option '--long'/);
      });

      test("options after ROOT, which would be the command", async () => {
        await fails(
          [...mounttree, "run", onTmpfs, "--tmpfs", "/tmp", "--", "true"],
          /'--tmpfs' comes after ROOT: options go before/,
        );
        expect((await inside(["--", "--no-such-command"])).stderr).toContain("'--no-such-command' is not found");
      });

      test("a way to be mapped that has no effect, or two of them", async () => {
        for (const option of ["--map-root", "--map-same"]) {
          await fails([...mounttree, "run", option, onTmpfs, "true"], /--map-same and --map-root go with --user/);
        }
        const both = ["--user", "--map-root", "--map-same"];
        await fails([...mounttree, "run", ...both, onTmpfs, "true"], /--map-same and --map-root exclude each other/);
        await fails([...mounttree, "run", ...both.toReversed(), onTmpfs, "true"], /exclude each other/);
      });

      test("an option without its arguments", async () => {
        for (const option of ["method", "put-old", "chdir", "bind", "ro-bind", "tmpfs", "proc", "dev"]) {
          await fails([...mounttree, "run", `--${option}`], new RegExp(`run: --${option} needs `));
        }
        await fails([...mounttree, "run", "--bind", "/usr"], /run: --bind needs SRC and DEST/);
      });

      test("a method or a place for the old root that there is not", async () => {
        for (const list of ["escape", "pivot,escape", "", "pivot,"]) {
          const method = list.split(",").at(-1);
          await fails(
            [...mounttree, "run", "--method", list, onTmpfs],
            new RegExp(`--method: '${method}' is none of pivot, move, `),
          );
        }
        await fails([...mounttree, "run", "--put-old", "away", onTmpfs], /--put-old: 'away' is neither/);
      });

      test("a ROOT that is missing", async () => {
        await fails([...mounttree, "run"], /ROOT is missing/);
        await fails([...mounttree, "run", "--method", "pivot", "--"], /ROOT is missing/);
        await fails([...mounttree, "run", join(scratch, "nowhere"), "true"], /opening ROOT: ENOENT: .*\/nowhere'/);
        await fails([...mounttree, "run", "", "true"], /opening ROOT: ENOENT/);
      });

      test("a ROOT that is no directory", () =>
        fails([...mounttree, "run", join(scratch, "file"), "true"], /opening ROOT: ENOTDIR: .*\/file'/));

      test("a ROOT that is the root already", async () => {
        symlinkSync("/", join(scratch, `slash-${name}`));
        for (const root of ["/", "/usr/..", join(scratch, `slash-${name}`)]) {
          await fails([...mounttree, "run", root, "true"], /cannot switch the root to '.*': it is the root already\n$/);
        }
      });

      test("a directory to start in that is not there", () =>
        fails([...mounttree, "run", "--chdir", "/nowhere", onTmpfs, "true"], /--chdir: ENOENT: .*'\/nowhere'/));

      test("a process without capabilities", () =>
        fails(
          [...noCapabilities, ...mounttree, "run", onTmpfs, "true"],
          /taking a mount namespace, which needs CAP_SYS_ADMIN: EPERM: .*: this process does not have CAP_SYS_ADMIN/,
        ));
    });

    test("ends with 126 for a command that cannot be executed", async () => {
      for (const command of ["/tmp/plain", "/tmp", "/bin/sh/below"]) {
        const { status, stderr } = await inside([command]);
        expect(stderr).toStartWith(`mounttree: cannot execute '${command}': E`);
        expect(status).toBe(126);
      }
    });

    test("ends with 127 for a command that is not found", async () => {
      for (const command of ["no-such-command", "/tmp/nowhere", ""]) {
        const { status, stderr } = await inside([command]);
        expect({ status, stderr }).toEqual({ status: 127, stderr: `mounttree: '${command}' is not found in the new root\n` });
      }
    });

    test("ends with 127 for a script whose interpreter is missing, and says so", async () => {
      const { status, stderr } = await inside(["/tmp/orphan"]);
      expect(stderr).toBe(
        "mounttree: cannot execute '/tmp/orphan': it is there, but the interpreter or loader that it names is not\n",
      );
      expect(status).toBe(127);
      expect(await inside(["/tmp/script", "here"])).toMatchObject({ status: 0, stdout: "script: here\n" });
    });

    describe("arguments", () => {
      test("-- may stand before ROOT, after it, or both", async () => {
        const [head, tail] = [
          [...mounttree, "run", ...userland],
          ["sh", "-c", "exit 5"],
        ];
        expect(await run([...head, "--", onTmpfs, ...tail])).toMatchObject({ status: 5 });
        expect(await run([...head, onTmpfs, "--", ...tail])).toMatchObject({ status: 5 });
        expect(await run([...head, "--", onTmpfs, "--", ...tail])).toMatchObject({ status: 5 });
        expect(await run([...head, onTmpfs, "--", "--"])).toMatchObject({
          status: 127,
          stderr: expect.stringContaining("'--' is not found"),
        });
      });

      test("a ROOT that begins with a dash can stand after --", async () => {
        makeRoot(join(scratch, name, "-root"));
        const command = [...mounttree, "run", ...userland, "--", "-root", "echo", "here"];
        expect(await run(command, { cwd: join(scratch, name) })).toMatchObject({ status: 0, stdout: "here\n" });
      });

      test("options after ROOT belong to the command", async () => {
        expect(await inside(["echo", "--chdir", "/tmp", "--", "--no-such"])).toMatchObject({
          status: 0,
          stdout: "--chdir /tmp -- --no-such\n",
        });
        expect(await inside(["--", "--help"])).toMatchObject({ status: 127, stdout: "" });
      });

      test("arrive byte for byte: blanks, nothing, newlines, what is not UTF-8", async () => {
        const { status, bytes, stderr } = await shell(
          `exec "$@" "two words" "" "$(printf 'a\\nb')" ' "$x" *' "$(printf 'a\\377b\\303')" "$(printf '\\355\\240\\200')" "\u{fffd}" "ä€😀" ""`,
          [...mounttree, "run", ...userland, onTmpfs, "/usr/bin/printf", "%s\\0"],
        );
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        const notUtf8 = Buffer.from([0x61, 0xff, 0x62, 0xc3, 0, 0xed, 0xa0, 0x80, 0]);
        const expected = [Buffer.from('two words\0\0a\nb\0 "$x" *\0'), notUtf8, Buffer.from("\u{fffd}\0ä€😀\0\0")];
        expect(bytes.toString("hex")).toBe(Buffer.concat(expected).toString("hex"));
      });

      test("that begin with a byte order mark keep it", async () => {
        const { bytes } = await inside(["/usr/bin/printf", "%s", "\u{feff}mark"]);
        expect(bytes.toString("hex")).toBe(Buffer.from("\u{feff}mark").toString("hex"));
      });

      test("may be many and long", async () => {
        const many = Array.from({ length: 2000 }, (_, index) => String(index));
        const long = "x".repeat(120_000);
        const counted = await inside([
          "sh",
          "-c",
          'for last; do :; done; echo $#; printf %s "$last" | wc -c',
          "sh",
          ...many,
          long,
        ]);
        expect(counted).toMatchObject({ status: 0, stdout: "2001\n120000\n", stderr: "" });
      });

      test("ROOT, SRC, DEST and --chdir may be paths that are not UTF-8", async () => {
        const script = `
          root=$1/$(printf 'r\\377'); source=$1/$(printf 's\\376'); shift
          mkdir -p "$root/usr" "$source"; ln -sf usr/bin usr/lib usr/lib64 "$root"
          echo inside >"$source/$(printf 'f\\375')"
          "$@" run --ro-bind /usr /usr --bind "$source" "/$(printf 'd\\374/e\\373')" --chdir "/$(printf 'd\\374')" "$root" \\
            sh -c 'cat "$(printf "e\\373/f\\375")"; pwd' | od -An -c
          cd "$root" && echo d* | od -An -c`;
        expect(await shell(script, [join(scratch, name), ...mounttree])).toMatchObject({
          status: 0,
          stdout: "   i   n   s   i   d   e  \\n   /   d 374  \\n\n   d 374  \\n\n",
          stderr: "",
        });
      });
    });

    describe("the root", () => {
      for (const [where, root] of [
        ["a tmpfs", onTmpfs],
        ["disk", onDisk],
      ] as const) {
        const calls = "mount,pivot_root,chroot,open_tree";
        const strace = ["strace", "--quiet=all", `--trace=${calls}`, "--signal=none", ...mounttree, "run", ...userland];
        for (const [method, expected] of [
          ["pivot", /pivot_root\("\.", "\."\)/],
          ["move", /mount\("\.", "\/", NULL, MS_MOVE, NULL\) += 0\nchroot\("\."\)/],
          ["detached", /open_tree\(\d+, "", [^)]*AT_RECURSIVE\) += \d+\nchroot\("\."\)/],
          ["chroot", /^chroot\("\."\)/m],
        ] as const) {
          test(`can be on ${where}, and --method ${method} is the method that is used`, async () => {
            const { status, stdout, stderr } = await run([...strace, "--method", method, root, "ls", "/"]);
            expect({ status, stdout }).toEqual({ status: 0, stdout: "bin\ndev\nlib\nlib64\nproc\ntmp\nusr\n" });
            expect(stderr).toMatch(expected);
            if (method !== "pivot") expect(stderr).not.toContain("pivot_root(");
            if (method === "chroot") expect(stderr).not.toContain('open_tree(AT_FDCWD, "", ');
          });
        }

        test(`can be on ${where}, and either --put-old leaves nothing in it`, async () => {
          const before = readdirSync(root).sort();
          for (const putOld of ["stacked", "directory"]) {
            const { status, stdout, stderr } = await run([
              ...strace,
              "--method",
              "pivot",
              "--put-old",
              putOld,
              root,
              "ls",
              "-A",
              "/",
            ]);
            expect(stderr).toMatch(putOld === "stacked" ? /pivot_root\("\.", "\."\)/ : /pivot_root\("\.", "\.pivot_root\w+"\)/);
            expect({ status, stdout: stdout.trim().split("\n").sort() }).toEqual({ status: 0, stdout: before });
            expect(readdirSync(root).sort()).toEqual(before);
          }
        });
      }

      test("is pivoted if no method is named", async () => {
        const traced = await run(["strace", "--trace=pivot_root", ...mounttree, "run", ...userland, onTmpfs, "true"]);
        expect(traced).toMatchObject({ status: 0, stderr: expect.stringMatching(/pivot_root\("\.", "\."\) += 0/) });
      });

      test("may be read-only, but not for --put-old directory", async () => {
        const script = 'mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; root=$1; shift; "$@" "$root" ls /usr/bin/ls';
        const on = (...options: string[]) =>
          shellApart(script, [onDisk, ...mounttree, "run", ...userland, "--method", ...options]);
        for (const method of ["pivot", "move", "detached", "chroot"]) {
          expect(await on(method)).toMatchObject({ status: 0, stdout: "/usr/bin/ls\n" });
        }
        const refused = await on("pivot", "--put-old", "directory");
        expect(refused).toMatchObject({ status: 125, stderr: expect.stringMatching(/pivot: mkdir: EROFS/) });
      });

      test("may be a relative path or a symlink", async () => {
        const command = (root: string) => [...mounttree, "run", ...userland, root, "readlink", "/bin"];
        expect(await run(command("root"), { cwd: scratch })).toMatchObject({ status: 0, stdout: "usr/bin\n" });
        expect(await run(command("."), { cwd: onTmpfs })).toMatchObject({ status: 0, stdout: "usr/bin\n" });
        expect(await run(command(join(scratch, "link")))).toMatchObject({ status: 0, stdout: "usr/bin\n" });
      });

      test("is the working directory, unless --chdir says another", async () => {
        expect(await inside(["pwd", "-P"])).toMatchObject({ stdout: "/\n" });
        expect(await inside(["pwd", "-P"], ["--chdir", "/usr/bin"])).toMatchObject({ stdout: "/usr/bin\n" });
        expect(await inside(["pwd", "-P"], ["--chdir", "usr"])).toMatchObject({ stdout: "/usr\n" });
      });

      test("has nothing of the host above it", async () => {
        for (const method of ["pivot", "move", "detached", "chroot"]) {
          const listed = await inside(["ls", "/..", "../../.."], ["--method", method]);
          expect(listed).toMatchObject({ status: 0, stdout: expect.not.stringContaining("work") });
        }
      });
    });

    describe("in a process that was chrooted", () => {
      /** Makes a copy of the container's root with this very command in it, and goes there. */
      const chrooted = (jail: string, ...options: string[]) =>
        shellApart(
          `mkdir -p "$1"; ${jail}
           for each in usr work proc dev tmp; do mkdir -p "$1/$each"; mount --rbind /$each "$1/$each"; done
           ln -sfn usr/bin "$1/bin"; ln -sfn usr/lib "$1/lib"; ln -sfn usr/lib64 "$1/lib64"
           jail=$1; shift; exec chroot "$jail" "$@"`,
          ["/jail-of-cli-tests", ...mounttree, "run", ...userland, ...options, onTmpfs, "echo", "inside"],
        );
      const mountPoint = 'mount -t tmpfs none "$1"';
      afterAll(() => rmSync("/jail-of-cli-tests", { recursive: true }));

      test("nothing weaker is taken than what was asked for, and the error says what is wrong", async () => {
        const { status, stdout, stderr } = await chrooted(mountPoint);
        expect(stderr).toMatch(/^mounttree: cannot switch the root to .*: pivot and move: this process was chrooted: [^;]*$/);
        expect({ status, stdout }).toEqual({ status: 125, stdout: "" });
      });

      test("detached and chroot work where they are named", async () => {
        for (const method of ["detached", "chroot", "pivot,move,detached"]) {
          expect(await chrooted(mountPoint, "--method", method)).toMatchObject({ status: 0, stdout: "inside\n", stderr: "" });
        }
      });

      test('to a plain directory, it says that "/" has to be a mount', async () => {
        for (const method of ["pivot,move", "detached", "chroot"]) {
          const { status, stderr } = await chrooted(":", "--method", method);
          expect(stderr).toMatch(
            /^mounttree: keeping mounts from the host: EINVAL: .*root is a plain directory: it was chrooted \(start it outside/,
          );
          expect(status).toBe(125);
        }
      });
    });

    describe("check", () => {
      const check = (prefix: string[], ...args: string[]) => run([...prefix, ...mounttree, "check", ...args]);
      const rows = (stdout: string) =>
        [...stdout.matchAll(/^(pivot|move|detached|chroot) +(yes|no) *([a-z-]*)/gm)].map((row) => row.slice(1));

      test("says by which methods it would work, and what it speaks of; exit status 0", async () => {
        const { status, stdout, stderr } = await check(["unshare", "--mount"], onTmpfs);
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        expect(rows(stdout)).toEqual(["pivot", "move", "detached", "chroot"].map((method) => [method, "yes", ""]));
        expect(stdout).toStartWith(`${onTmpfs} as "/" of a process that is started here, as it is:\n`);
        expect(stdout).not.toContain("mounttree run");
      });

      test("says why not", async () => {
        const { status, stdout } = await check([], onTmpfs);
        expect(stdout).toEndWith(
          "\n\nmounttree run takes a mount namespace of its own: to see what it would find, 'unshare --mount mounttree check ROOT'.\n",
        );
        expect(stdout).not.toContain("\n\n\n");
        expect(rows(stdout).slice(0, 3)).toEqual([
          ["pivot", "no", "namespace-shared"],
          ["move", "no", "namespace-shared"],
          ["detached", "yes", ""],
        ]);
        expect(status).toBe(0);
      });

      test("ends with 1 if chroot alone would work, or nothing", async () => {
        const weak = await check(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], onTmpfs);
        expect(rows(weak.stdout).map(([, works]) => works)).toEqual(["no", "no", "no", "yes"]);
        expect(weak.status).toBe(1);
        // Root, who is given a user namespace only if it is asked for.
        const sentence = "mounttree run --user takes a user namespace and a mount namespace of its own: ";
        expect(weak.stdout).toContain(`\n\n${sentence}`);
        const without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", ...mounttree, "run"];
        expect(await run([...without, ...userland, onTmpfs, "true"])).toMatchObject({ status: 125 });
        expect(await run([...without, "--user", ...userland, onTmpfs, "true"])).toMatchObject({ status: 0, stderr: "" });
        const nothing = await check(noCapabilities, onTmpfs);
        expect(nothing).toMatchObject({ status: 1, stderr: "" });
        expect(nothing.stdout).toEndWith("'unshare --user --map-root-user --mount mounttree check ROOT'.\n");
      });

      test("names what would be lost", async () => {
        const { stdout } = await shellApart(
          'mkdir "$1/tmp/lost"; mount -t tmpfs t "$1/tmp/lost"; mount --make-unbindable "$1/tmp/lost"; root=$1; shift; "$@" check "$root"; umount "$root/tmp/lost"; rmdir "$root/tmp/lost"',
          [onTmpfs, ...mounttree],
        );
        expect(stdout).toContain(`without what is mounted on ${onTmpfs}/tmp/lost (unbindable)\n`);
      });

      test("names what a switch that was killed has left in ROOT", async () => {
        mkdirSync(join(onTmpfs, ".pivot_root0a1b2c3d"));
        try {
          const text = await check([], onTmpfs);
          expect(text.stdout).toContain(
            "\n.pivot_root0a1b2c3d in it was left by a switch that was killed half-way: remove it with rmdir\n",
          );
          const json = await check([], "--json", onTmpfs);
          expect(JSON.parse(json.stdout)).toMatchObject({ leftBehind: [".pivot_root0a1b2c3d"] });
          chmodSync(onTmpfs, 0o311);
          const blind = await check(noCapabilities, "--json", onTmpfs);
          expect(JSON.parse(blind.stdout)).toMatchObject({ leftBehind: [] });
        } finally {
          chmodSync(onTmpfs, 0o755);
          rmdirSync(join(onTmpfs, ".pivot_root0a1b2c3d"));
        }
      });

      test("--json has the same for programs", async () => {
        const { status, stdout } = await check(["unshare", "--mount", ...noCapabilities], "--json", onTmpfs);
        expect(status).toBe(1);
        expect(JSON.parse(stdout)).toMatchObject({
          root: onTmpfs,
          methods: ["pivot", "move", "detached", "chroot"].map((method) => ({
            method,
            works: false,
            reason: method === "chroot" ? "no-cap-sys-chroot" : "no-cap-sys-admin",
            lost: [],
          })),
          leftBehind: [],
        });
      });

      test("changes nothing", async () => {
        const script = 'cat /proc/self/mountinfo; "$@" >/dev/null; echo; cat /proc/self/mountinfo';
        const { stdout } = await shellApart(script, [...mounttree, "check", onTmpfs]);
        const [before, afterwards] = stdout.split("\n\n");
        expect(afterwards?.trim()).toBe(before?.trim() ?? "nothing");
      });

      test("ends with 125 for what can be no ROOT", async () => {
        await fails([...mounttree, "check"], /check: ROOT is missing[\s\S]*mounttree check --help/);
        await fails([...mounttree, "check", "/usr", "/tmp"], /check: one ROOT at a time, not '\/tmp' as well/);
        await fails([...mounttree, "check", "--long", "/usr"], /check: unknown option '--long'/);
        await fails([...mounttree, "check", "/nowhere"], /^mounttree: ROOT '\/nowhere': ENOENT/);
        await fails([...mounttree, "check", "/"], /^mounttree: ROOT '\/': it is the root already\n$/);
      });
    });

    test("--help and --version answer on standard output", async () => {
      expect(await run([...mounttree, "--version"])).toMatchObject({ status: 0, stdout: `mounttree ${version}\n`, stderr: "" });
      for (const [options, words] of [
        [["--help"], ["mounttree run", "mounttree ls", "mounttree check"]],
        [["-h"], ["mounttree run", "mounttree ls", "mounttree check"]],
        [
          ["run", "--help"],
          ["usage: mounttree run", "--ro-bind SRC DEST", "--keep-fds", "125", "126", "127"],
        ],
        [["run", "--method", "pivot", "-h"], ["usage: mounttree run"]],
        [
          ["ls", "--help"],
          ["usage: mounttree ls", "--json"],
        ],
        [
          ["check", "--help"],
          ["usage: mounttree check", "--json", "unshare --mount mounttree check", "125"],
        ],
      ] as const) {
        const { status, stdout, stderr } = await run([...mounttree, ...options]);
        for (const word of words) expect(stdout).toContain(word);
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        for (const line of stdout.split("\n")) expect(line.length).toBeLessThanOrEqual(100);
      }
    });
  });
}
