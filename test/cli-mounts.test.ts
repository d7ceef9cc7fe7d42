/** What `mounttree run` mounts in the root, and what it leaves alone outside. */

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { parseMountInfo } from "../mountinfo.ts";
import {
  bothWays,
  checkout,
  type Finished,
  makeRoot,
  run,
  scratchDirectory,
  shellApart,
  userland,
  watchMountTable,
} from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
watchMountTable();

const source = join(scratch, "source");
mkdirSync(join(source, "sub/deep"), { recursive: true });
writeFileSync(join(source, "file"), "from the source\n");

let roots = 0;
/** A root of the test's own, since destinations that are made in it stay. */
function newRoot(directory = scratch): string {
  return makeRoot(join(directory, `root${++roots}`));
}

const onDisk = "/roots-of-mount-tests";
mkdirSync(onDisk);
afterAll(() => rmSync(onDisk, { recursive: true }));

/** Mounts something below `$source` first: a tmpfs, and one within that. */
const nested = 'mount -t tmpfs one "$source/sub"; mkdir "$source/sub/deep"; mount -t tmpfs two "$source/sub/deep"';

for (const { name, command: mounttree } of ways) {
  const inside = (root: string, options: string[], command: string[]): Promise<Finished> =>
    run([...mounttree, "run", ...userland, "--proc", "/proc", ...options, root, ...command]);
  const sh = (root: string, options: string[], script: string): Promise<Finished> => inside(root, options, ["sh", "-c", script]);

  /** In a mount namespace of its own: `before`, then the command with `options`, in which `$source` and `$root` are replaced, then `after`. */
  const apart = (
    root: string,
    before: string,
    options: string,
    script: string,
    after = "",
    propagation?: string,
  ): Promise<Finished> =>
    shellApart(
      `source=$1 root=$2 script=$3; shift 3
       ${before}
       "$@" run --ro-bind /usr /usr --proc /proc ${options} "$root" sh -c "$script"
       ${after}`,
      [source, root, script, ...mounttree],
      propagation,
    );

  describe(`mounts, ${name}`, () => {
    for (const [option, flags] of [
      ["--bind", "rw,nosuid,nodev"],
      ["--ro-bind", "ro,nosuid,nodev"],
    ] as const) {
      test(`${option} takes along what is mounted below, ${flags} down to the last mount`, async () => {
        const root = newRoot();
        const script = `
          for each in /in/ /in/sub/ /in/sub/deep/; do echo >"$each/new" || :; done 2>/dev/null
          cat /in/file /proc/self/mountinfo`;
        const after = 'echo -- ; cd "$source"; echo new* sub/new* sub/deep/new*; touch sub/mine sub/deep/mine; rm -f new';
        const { status, stdout } = await apart(root, nested, `${option} "$source" /in`, script, after);
        expect(status).toBe(0);
        const [file, ...rest] = stdout.split("\n");
        expect(file).toBe("from the source");
        const end = rest.indexOf("--");
        const mounts = parseMountInfo(`${rest.slice(0, end).join("\n")}\n`).filter((mount) => mount.mountPoint.startsWith("/in"));
        expect(mounts.map((mount) => mount.mountPoint)).toEqual(["/in", "/in/sub", "/in/sub/deep"]);
        for (const mount of mounts) expect(mount.mountOptions).toStartWith(flags);
        expect(rest[end + 1]).toBe(option === "--bind" ? "new sub/new sub/deep/new" : "new* sub/new* sub/deep/new*");
      });

      test(`${option} on what is a mount point already covers it, and the mount below keeps its flags`, async () => {
        const root = newRoot();
        const before = 'mkdir "$root/in"; mount -t tmpfs old "$root/in"; echo old >"$root/in/old"';
        const script = 'echo >/in/new; ls /in; grep " /in " /proc/self/mountinfo';
        const after = 'touch "$root/in/mine"; ls "$root/in"; rm -f "$source/new"';
        const { status, stdout, stderr } = await apart(root, before, `${option} "$source" /in`, script, after);
        expect(stdout).toMatch(
          option === "--bind"
            ? /^file\nnew\nsub\n.* \/in rw,relatime - tmpfs old rw\n.* \/in rw,nosuid,nodev.*\nmine\nold\n$/
            : /^file\nsub\n.* \/in rw,relatime - tmpfs old rw\n.* \/in ro,nosuid,nodev.*\nmine\nold\n$/,
        );
        if (option === "--ro-bind") expect(stderr).toContain("Read-only file system");
        expect(status).toBe(0);
      });
    }

    test("SRC is looked up outside, from the working directory, and a missing one is an error that names it", async () => {
      const root = newRoot();
      const head = [...mounttree, "run", ...userland, "--ro-bind"];
      const relative = await run([...head, "source/file", "/in", root, "cat", "/in"], { cwd: scratch });
      expect(relative).toMatchObject({ status: 0, stdout: "from the source\n", stderr: "" });
      const { status, stderr } = await run([...head, "nowhere", "/in", root, "true"], { cwd: scratch });
      expect({ status, stderr }).toEqual({
        status: 125,
        stderr: "mounttree: --ro-bind nowhere /in: ENOENT: no such file or directory, open_tree 'nowhere'\n",
      });
    });

    test("--tmpfs is empty, writable, of mode 755, without set-user-ID programs and devices", async () => {
      const { status, stdout } = await sh(
        newRoot(),
        ["--tmpfs", "/tmp"],
        "ls -A /tmp; stat -c '%a %u %g' /tmp; echo mine >/tmp/file; cat /tmp/file; tail -n 1 /proc/self/mountinfo",
      );
      expect(stdout).toMatch(/^755 0 0\nmine\n\d+ .* \/ \/tmp rw,nosuid,nodev,\S* - tmpfs tmpfs rw.*\n$/);
      expect(status).toBe(0);
    });

    test("--proc shows the processes of this PID namespace", async () => {
      const finished = await sh(
        newRoot(),
        [],
        'readlink /proc/self/exe; echo $$; [ -d /proc/1 ]; grep " /proc " /proc/self/mountinfo',
      );
      expect(finished.stdout).toMatch(/^\S+\n\d+\n.* \/proc rw,nosuid,nodev,noexec.* - proc proc /);
      expect(finished.stdout.split("\n")[1]).toBe(String(finished.pid));
    });

    describe("--dev", () => {
      const dev = (script: string): Promise<Finished> => sh(newRoot(), ["--dev", "/dev"], script);

      test("has the nodes that programs need, and each works", async () => {
        const { stdout, stderr, status } = await dev(`
          head -c 3 /dev/zero | od -An -tx1; head -c 4 /dev/random | wc -c; head -c 4 /dev/urandom | wc -c
          echo gone >/dev/null; wc -c </dev/null; head -c 2 /dev/full | od -An -tx1
          echo x 2>/dev/null >/dev/full || echo full is full
          (: </dev/tty) 2>&1; echo x | cat /dev/stdin; { echo y >/dev/stdout; echo z >/dev/fd/1; echo 0 >/dev/stderr; } 2>&1 | cat`);
        expect(stdout.split("\n")).toEqual([
          " 00 00 00",
          ...["4", "4", "0", " 00 00", "full is full"],
          expect.stringMatching(/\/dev\/tty: No such device or address$/),
          ...["x", "y", "z", "0", ""],
        ]);
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      });

      test("refuses to write to a full device with ENOSPC", async () => {
        expect((await dev("/usr/bin/echo x >/dev/full")).stderr).toMatch(/No space left on device/);
      });

      test("has terminals of its own", async () => {
        expect(await dev("exec 3<>/dev/ptmx; ls /dev/pts")).toMatchObject({ status: 0, stdout: "0\nptmx\n", stderr: "" });
        const command = ["sh", "-c", "readlink /proc/self/fd/0; echo written >/dev/tty"];
        const script = `
          const data = (_, bytes) => process.stdout.write(bytes);
          await Bun.spawn(${JSON.stringify(command)}, { terminal: { data } }).exited;`;
        const opened = await inside(newRoot(), ["--dev", "/dev"], ["bun", "-e", script]);
        expect(opened).toMatchObject({ status: 0, stdout: "/dev/pts/0\r\nwritten\r\n", stderr: "" });
      });

      test("has a shm that everyone can use, and the links", async () => {
        const { stdout } = await dev(`
          stat -c '%a %F' /dev/shm; echo here >/dev/shm/file && cat /dev/shm/file
          for each in fd stdin stdout stderr core ptmx; do readlink /dev/$each; done
          ls /dev | tr '\\n' ' '`);
        expect(stdout.split("\n")).toEqual([
          ...["1777 directory", "here", "/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"],
          ...["/proc/kcore", "pts/ptmx", "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "],
        ]);
      });
    });

    test("are made in the order in which they are named", async () => {
      const hidden = ["--bind", source, "/tmp/in", "--tmpfs", "/tmp"];
      expect(await inside(newRoot(), hidden, ["ls", "-A", "/tmp"])).toMatchObject({ status: 0, stdout: "" });
      const seen = ["--tmpfs", "/tmp", "--bind", source, "/tmp/in"];
      expect(await inside(newRoot(), seen, ["ls", "-A", "/tmp", "/tmp/in"])).toMatchObject({
        stdout: "/tmp:\nin\n\n/tmp/in:\nfile\nsub\n",
      });
    });

    describe("a destination that is missing", () => {
      test("is made, a directory for a directory and a file for a file, whatever the umask, and stays", async () => {
        for (const directory of [scratch, onDisk]) {
          const root = newRoot(directory);
          const options = ["--bind", source, "/a/b/../c/", "--ro-bind", join(source, "file"), "x/./y", "--tmpfs", "//t//u"];
          const line = [...mounttree, "run", ...userland, ...options, root, "sh", "-c", "umask; ls /a/c; cat /x/y; ls /t/u"];
          const finished = await run(["sh", "-c", 'umask 077; exec "$@"', "sh", ...line]);
          expect(finished).toMatchObject({ status: 0, stdout: "0077\nfile\nsub\nfrom the source\n", stderr: "" });
          const made = ["a", "a/b", "a/c", "x", "t", "t/u"].map((path) => statSync(join(root, path)));
          for (const { mode } of made) expect(mode.toString(8)).toBe("40755");
          expect(statSync(join(root, "x/y"))).toMatchObject({ mode: 0o100644, size: 0 });
          expect(readdirSync(join(root, "a/c"))).toEqual([]);
        }
      });

      test("in a root that cannot be written is an error that says so", async () => {
        const root = newRoot(onDisk);
        const readOnly = 'mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"';
        const { status, stderr } = await apart(root, readOnly, '--tmpfs "/new dir"', "true");
        expect({ status, stderr }).toEqual({
          status: 125,
          stderr: "mounttree: --tmpfs /new dir: EROFS: read-only file system, mkdirat 'new dir'\n",
        });
        expect(await apart(root, readOnly, "--tmpfs /tmp", "ls -A /tmp")).toMatchObject({ status: 0, stdout: "", stderr: "" });
      });
    });

    test("a directory on a file, or a file on a directory, is refused", async () => {
      const root = newRoot();
      writeFileSync(join(root, "file"), "");
      for (const [options, message] of [
        [["--bind", source, "/file"], "'/file' is no directory, as what is to be mounted there is"],
        [["--bind", join(source, "file"), "/tmp"], "'/tmp' is a directory, and what is to be mounted there is none"],
        [["--tmpfs", "/file/below"], "ENOTDIR: not a directory, openat2 '/file/below'"],
      ] as const) {
        const { status, stderr } = await inside(root, [...options], ["true"]);
        expect(stderr).toBe(`mounttree: ${options.join(" ")}: ${message}\n`);
        expect(status).toBe(125);
      }
    });

    test("a destination that is ROOT itself is refused: the command would not see it", async () => {
      const root = newRoot();
      symlinkSync("/", join(root, "self"));
      for (const destination of ["/", "", "..", "/tmp/..", "/self", "/self/../.."]) {
        const { status, stderr } = await inside(root, ["--tmpfs", destination], ["true"]);
        expect(stderr).toBe(`mounttree: --tmpfs ${destination}: '${destination}' leads to ROOT itself\n`);
        expect(status).toBe(125);
      }
    });

    describe("a destination that leads out of ROOT", () => {
      const outside = join(scratch, `outside-${name}`);
      const planted: [string, string][] = [
        ["absolute", outside],
        ["slash", "/"],
        ["up", "../../../../../../../../.."],
        ["far", `../../../../../../..${outside}`],
        ["dangling", join(outside, "made")],
        ["far-dangling", `../../../../../../..${outside}/made`],
        ["process", "/proc/self/root"],
        ["cwd", "/proc/self/cwd"],
      ];

      /** Everything outside that could be hit. */
      const seen = (): string => {
        const etc = readdirSync("/etc").map((file) => `${file} ${statSync(`/etc/${file}`).ino}`);
        return JSON.stringify([readdirSync("/").sort(), readdirSync(scratch).sort(), readdirSync(outside).sort(), etc.sort()]);
      };

      for (const [mount, ...what] of [
        ["tmpfs"],
        ["bind", source],
        ["bind", join(source, "file")],
        ["ro-bind", source],
        ["proc"],
        ["dev"],
      ]) {
        test(`stays inside, or is refused: --${[mount, ...what.map((path) => basename(path))].join(" ")}`, async () => {
          const root = newRoot();
          mkdirSync(join(outside, "there"), { recursive: true });
          writeFileSync(join(outside, "there/file"), "outside\n");
          for (const [link, target] of planted) symlinkSync(target, join(root, link));
          const before = seen();
          const destinations = planted.flatMap(([link]) => [
            `/${link}`,
            `/${link}/there`,
            `/${link}/new`,
            `/${link}/new/../../../new`,
          ]);
          const out = [`/../../../..${outside}/there`, `${"../".repeat(12)}${outside}/new`];
          for (const destination of [...destinations, ...out]) {
            const options = [`--${mount}`, ...what, destination];
            // Neither in a namespace of its own, nor is the table looked at from within: what went wrong would show outside.
            const { status, stderr } = await inside(root, options, ["true"]);
            if (status === 0) continue;
            expect(stderr).toMatch(
              /^mounttree: --\S+ .*: (E(NOENT|LOOP|NOTDIR|XDEV)|.* (leads to ROOT itself|is (no|a) directory|is a symlink that leads nowhere))/,
            );
            expect(status).toBe(125);
          }
          expect(seen()).toBe(before);
          expect(readFileSync(join(outside, "there/file"), "utf8")).toBe("outside\n");
        });
      }

      test("is looked up again when the kernel cannot tell where a .. leads, because somebody else mounts something", async () => {
        const options = ["--tmpfs", "/tmp/../tmp", "--bind", source, "/tmp/new/../made"];
        const strace = ["strace", "--quiet=all", "--trace=openat2", "--inject=openat2:error=EAGAIN:when=1..5"];
        const finished = await run([...strace, ...mounttree, "run", ...options, ...userland, newRoot(), "ls", "/tmp"]);
        expect(finished).toMatchObject({ status: 0, stdout: "made\nnew\n" });
        const always = [...strace.with(-1, "--inject=openat2:error=EAGAIN"), ...mounttree, "run", ...options, newRoot(), "true"];
        expect(await run(always)).toMatchObject({
          status: 125,
          stderr: expect.stringContaining("mounttree: --tmpfs /tmp/../tmp: EAGAIN"),
        });
      });

      test("is used when somebody else makes it after it was missing", async () => {
        for (const options of [
          ["--tmpfs", "/made"],
          ["--bind", join(source, "file"), "/made"],
        ]) {
          const root = newRoot();
          if (options.length === 2) mkdirSync(join(root, "made"));
          else writeFileSync(join(root, "made"), "");
          // It is there, but neither the first look at it nor the second, before it is to be made, finds it.
          const log = join(scratch, "trace");
          const trace = ["--trace=openat2,mkdirat,openat", "--inject=openat2:error=ENOENT:when=1..3+2"];
          const strace = ["strace", `--output=${log}`, ...trace];
          const command = ["test", "-w", "/made"];
          const finished = await run([...strace, ...mounttree, "run", ...options, ...userland, root, ...command]);
          expect(finished).toMatchObject({ status: 0, stderr: "" });
          expect(readFileSync(log, "utf8").match(/ = -1 .*EEXIST.*/g)?.length).toBe(1);
        }
      });

      test("is, for an absolute symlink and for .., what it is for the command", async () => {
        const root = newRoot();
        mkdirSync(join(root, "etc"));
        symlinkSync("/etc", join(root, "link"));
        const options = ["--tmpfs", "/link/made", "--bind", source, "/../../link/other"];
        const listed = await inside(root, options, ["ls", "/etc", "/etc/other"]);
        expect(listed).toMatchObject({ status: 0, stdout: "/etc:\nmade\nother\n\n/etc/other:\nfile\nsub\n", stderr: "" });
      });
    });

    for (const propagation of ["private", "shared"]) {
      test(`leave the mount table outside as it was, where it is ${propagation}, by every method`, async () => {
        const options = '--bind "$source" /in --ro-bind "$source" /ro --tmpfs /tmp --dev /dev';
        for (const method of ["pivot", "move", "detached", "chroot", "pivot --put-old directory"]) {
          const finished = await apart(
            newRoot(),
            `${nested}; mount --bind "$root" "$root"; cat /proc/self/mountinfo >"$source/before"`,
            `--method ${method} ${options}`,
            "ls /in/file /ro/sub/deep /dev/null",
            'cat /proc/self/mountinfo >"$source/after"; cmp "$source/before" "$source/after"; ls -A "$root"; rm "$source/after" "$source/before"',
            propagation,
          );
          expect(finished).toMatchObject({
            status: 0,
            stdout: "/dev/null\n/in/file\n\n/ro/sub/deep:\nbin\ndev\nin\nlib\nlib64\nproc\nro\ntmp\nusr\n",
            stderr: "",
          });
        }
      });
    }

    test("what is mounted and unmounted outside later reaches neither side", async () => {
      const script = `
        source=$1 root=$2; shift 2; mkdir -p "$source/late" "$source/sub"; mount --bind "$root" "$root"; mount -t tmpfs early "$source/sub"
        mkfifo "$source/go"
        { read -r _ <"$source/go"; mount -t tmpfs late "$source/late"; umount "$source/sub"; echo done >"$source/go"; } &
        "$@" run --ro-bind /usr /usr --bind "$source" /in --proc /proc "$root" \\
          sh -c 'echo >/in/go; read -r _ </in/go; grep -c "early" /proc/self/mountinfo; grep -c " late " /proc/self/mountinfo' `;
      const { stdout } = await shellApart(script, [join(scratch, `changing-${name}`), newRoot(), ...mounttree], "shared");
      expect(stdout).toBe("1\n0\n");
    });

    test("what is unmounted outside is not kept busy by the mounts that the command does not see", async () => {
      const script = `
        source=$1 root=$2; shift 2; mkdir -p "$source"; mount -t tmpfs early "$source"
        "$@" run --method chroot --ro-bind /usr /usr "$root" sleep 60 & pid=$!
        until read -r name <"/proc/$pid/comm" && [ "$name" = sleep ]; do sleep 0.01; done
        count() { nsenter --target "$pid" --mount grep -c " early " /proc/self/mountinfo || :; }
        count; umount "$source"; count; kill "$pid"`;
      const { stdout } = await shellApart(script, [join(scratch, `busy-${name}`), newRoot(), ...mounttree], "shared");
      expect(stdout).toBe("1\n0\n");
    });

    test("a ROOT outside of a chroot, where mounts are still shared, is refused before anything is mounted there", async () => {
      const program = `import { chroot, execvp } from "${checkout}/syscalls.ts";
        const [top, ...command] = process.argv.slice(1);
        process.chdir(top + "/outside"); chroot(top + "/jail"); execvp(command);`;
      const script = `
        top=$1 bun=$2 escape=$3; shift 3; mkdir -p "$top"; mount -t tmpfs top "$top"; mkdir -p "$top/jail" "$top/outside/root"
        mount --rbind / "$top/jail"
        "$bun" -e "$escape" "$top" "$@" run --method detached --tmpfs /tmp root true || echo "status $?"
        grep -c outside/root /proc/self/mountinfo || :`;
      const parameters = [join(scratch, `outside-${name}`), process.execPath, program, ...mounttree];
      const { stdout, stderr } = await shellApart(script, parameters, "shared");
      expect({ stdout, stderr }).toEqual({
        stdout: "status 125\n0\n",
        stderr: "mounttree: opening ROOT: what is mounted there would appear in other mount namespaces\n",
      });
    });

    test("a step that fails is undone, whatever way ROOT was written", async () => {
      const root = newRoot();
      symlinkSync(root, `${root}-link`);
      for (const written of [root, basename(root), `${basename(root)}-link`, `./${basename(root)}`]) {
        const { status, stderr } = await run(
          [
            "strace",
            "-o",
            "/dev/null",
            "-e",
            "inject=umount2:error=EPERM",
            ...mounttree,
            "run",
            "--tmpfs",
            "/tmp",
            written,
            "true",
          ],
          { cwd: dirname(root) },
        );
        expect(status).toBe(125);
        expect(stderr).toMatch(/pivot: detach: EPERM[^;]*; move: list: EPERM/);
        expect(stderr).not.toContain("half-way");
      }
    });

    test("ROOT can be /, if something is mounted: the copy of it is entered, but not by move, which would have to go from / to /", async () => {
      const script = `cd /; "$@" run --tmpfs /mnt / sh -c 'echo "$PWD"; grep -c " / / " /proc/self/mountinfo; grep -o " /mnt .* tmpfs " /proc/self/mountinfo'
        "$@" run --method move --tmpfs /mnt / true || echo "status $?"`;
      const { stdout, stderr } = await shellApart(script, mounttree);
      expect(stdout).toMatch(/^\/\n1\n \/mnt .*\nstatus 125\n$/);
      expect(stderr).toContain('move: list: the new root is mounted over "/" already');
    });

    test("move is refused, and undone, where something is mounted over /", async () => {
      const script = `root=$1; shift; mount --bind / /
        "$@" run --method move --ro-bind /usr /usr "$root" true || echo "status $?"
        "$@" run --method move,detached --ro-bind /usr /usr "$root" echo detached`;
      const { stdout, stderr } = await shellApart(script, [newRoot(), ...mounttree]);
      expect(stdout).toBe("status 125\ndetached\n");
      expect(stderr).toContain('move: list: something is mounted over "/"');
    });
  });
}
