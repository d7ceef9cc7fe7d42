/** What a command that `mounttree run` starts is given: as if it had been started by the caller. */

import { describe, expect, test } from "bun:test";
import { chmodSync, closeSync, cpSync, mkdirSync, openSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { F, fcntl, O } from "../syscalls.ts";
import {
  bothWays,
  checkout,
  type Finished,
  makeRoot,
  run,
  scratchDirectory,
  shell,
  userland,
  watchMountTable,
} from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
const root = makeRoot(join(scratch, "root"));
watchMountTable();

/** Two programs of one name, and one that is outside alone. */
const bin = join(scratch, "bin");
for (const [directory, where] of [
  [bin, "host"],
  [join(root, bin), "root"],
] as const) {
  mkdirSync(directory, { recursive: true });
  for (const tool of where === "host" ? ["which-one", "host-only"] : ["which-one"]) {
    writeFileSync(join(directory, tool), `#!/bin/sh\necho the one of the ${where}\n`);
    chmodSync(join(directory, tool), 0o755);
  }
}

/** A root with files of its own: no bun, and nothing is mounted on its /proc. */
const bare = makeRoot(join(scratch, "bare"));
cpSync("/usr", join(bare, "usr"), { recursive: true, verbatimSymlinks: true, filter: (path) => !path.endsWith("/bun") });

for (const { name, command: mounttree } of ways) {
  const head = [...mounttree, "run", ...userland, "--proc", "/proc"];
  const inside = (command: string[], options: string[] = []): Promise<Finished> => run([...head, ...options, root, ...command]);
  /** Runs a script whose `"$@"` starts a command inside, and the same script without mounttree. */
  const withAndWithout = async (script: string, options: string[] = []): Promise<[Finished, Finished]> => [
    await shell(script, [...head, ...options, root]),
    await shell(script, ["env"]),
  ];

  describe(`a started command, ${name}`, () => {
    describe("has the signals", () => {
      test("with default dispositions, SIGPIPE and SIGXFSZ too, and none blocked", async () => {
        const { stdout } = await inside(["sed", "-n", "/^Sig[BIC]/p", "/proc/self/status"]);
        const none = "0".repeat(16);
        expect(stdout).toBe(`SigBlk:\t${none}\nSigIgn:\t${none}\nSigCgt:\t${none}\n`);
        expect(await inside(["sh", "-c", "kill -PIPE $$"])).toMatchObject({ status: "SIGPIPE" });
        expect(await inside(["sh", "-c", "ulimit -f 0; echo x >/tmp/file"])).toMatchObject({ status: "SIGXFSZ" });
      });

      test("ignored and blocked as the caller had them, as nohup(1) does", async () => {
        for (const script of [
          `trap "" HUP; exec "$@" grep "^Sig[BI]" /proc/self/status`,
          `trap "" INT QUIT TERM USR1; exec "$@" grep "^Sig[BI]" /proc/self/status`,
          `exec nohup "$@" grep "^Sig[BI]" /proc/self/status`,
          `exec env --block-signal=USR1,HUP --ignore-signal=USR2 "$@" grep "^Sig[BI]" /proc/self/status`,
        ]) {
          const [through, directly] = await withAndWithout(script);
          expect(through.stdout).toBe(directly.stdout);
          expect(through.stdout).toMatch(/^Sig(Blk|Ign):\t.*[1-9a-f]/m);
        }
      });
    });

    test("has the soft limit of open files that its parent has, and the hard one", async () => {
      for (const limits of ["777:4096", "256:256", "1024:20000"]) {
        // The first shell is the parent, so it must not replace itself.
        const script = `prlimit --nofile=${limits} sh -c '"$@"; exit $?' sh "$@" grep files /proc/self/limits`;
        const [through, directly] = await withAndWithout(script);
        expect(through.stdout).toBe(directly.stdout);
        expect(through.stdout.split(/\s+/).slice(3, 5).join(":")).toBe(limits);
      }
      const [through, directly] = await withAndWithout('ulimit -Sn 100; "$@" sh -c "ulimit -Sn; ulimit -Hn"; exit $?');
      expect(through.stdout).toBe(directly.stdout);
      expect(through.stdout).toStartWith("100\n");
    });

    describe("has the descriptors", () => {
      const open = `exec 3</etc/passwd 7>"$file" 8</etc/group 8<&-; exec "$@"`;
      // No pipe, whose ends this shell would have open as well.
      const list = ["sh", "-c", "ls /proc/$$/fd; :"];
      const file = join(scratch, `written-${name}`);

      test("0, 1 and 2, and no other", async () => {
        const finished = await shell(`file=$1; shift; ${open}`, [file, ...head, root, ...list]);
        expect(finished).toMatchObject({ status: 0, stdout: "0\n1\n2\n", stderr: "" });
      });

      test("that the caller opened with --keep-fds, and none of Bun's", async () => {
        const finished = await shell(`file=$1; shift; ${open}`, [file, ...head, "--keep-fds", root, ...list]);
        expect(finished).toMatchObject({ status: 0, stdout: "0\n1\n2\n3\n7\n", stderr: "" });
        const use = ["sh", "-c", "head -n 1 <&3; echo written >&7"];
        const used = await shell(`file=$1; shift; ${open}`, [file, ...head, "--keep-fds", root, ...use]);
        expect(used).toMatchObject({ status: 0, stdout: expect.stringMatching(/^root:/), stderr: "" });
        expect(await Bun.file(file).text()).toBe("written\n");
      });

      test("above nine and hundreds of them too", async () => {
        const many = "exec 200</etc/passwd 300</etc/group 999</dev/null";
        const bash = ["bash", "-c", `${many}; exec "$@"`, "bash", ...head];
        expect(await run([...bash, "--keep-fds", root, ...list])).toMatchObject({
          stdout: "0\n1\n2\n200\n300\n999\n",
          stderr: "",
        });
        expect(await run([...bash, root, ...list])).toMatchObject({ stdout: "0\n1\n2\n", stderr: "" });
      });

      test("0, 1 and 2 even if they were closed", async () => {
        const closed = await shell('file=$1; shift; exec "$@" <&- 2>&- 1>"$file"', [file, ...head, root, ...list]);
        expect(closed).toMatchObject({ status: 0, stdout: "", stderr: "" });
        expect(await Bun.file(file).text()).toMatch(/^(0\n)?1\n(2\n)?$/);
      });
    });

    describe("has standard streams that block", () => {
      const flags = "for fd in 0 1 2; do sed -n 's/^flags:\t//p' /proc/$$/fdinfo/$fd; done";
      const nonBlocking = (stdout: string): boolean[] => {
        const lines = stdout.trim().split("\n");
        return lines.map((line) => (Number.parseInt(line, 8) & O.NONBLOCK) !== 0);
      };

      test("where they are pipes", async () => {
        const { stdout } = await shell('sleep 0 | "$@" 2>&1 | cat', [...head, root, "sh", "-c", flags]);
        expect(nonBlocking(stdout)).toEqual([false, false, false]);
      });

      test("where they were not when they were handed down", async () => {
        const pipe = join(scratch, `pipe-${name}`);
        await run(["mkfifo", pipe]);
        const fd = openSync(pipe, "r+");
        try {
          fcntl(fd, F.SETFL, fcntl(fd, F.GETFL) | O.NONBLOCK);
          const script = 'sed -n "s/^flags:\t//p" /proc/self/fdinfo/0 <&3; exec "$@" <&3 2>&3';
          const child = Bun.spawn(["sh", "-euc", script, "sh", ...head, root, "sh", "-c", flags], {
            stdio: ["ignore", "pipe", "pipe", fd],
            timeout: 20_000,
          });
          expect(nonBlocking(await child.stdout.text())).toEqual([true, false, false, false]);
        } finally {
          closeSync(fd);
          rmSync(pipe);
        }
      });
    });

    describe("has the environment", () => {
      const { PATH } = process.env;
      const path = `PATH=${PATH}`;

      test("byte for byte, in its order, with nothing of Bun's", async () => {
        const variables = `"$path" "BYTES=$(printf 'a\\377\\303')" "LINES=$(printf 'a\\nb')" EMPTY= "EQUAL=a=b" "$(printf 'N\\376AME=1')" "MARK=\u{feff}x"`;
        const script = `path=$1; shift; env -i ${variables} "$@" cat /proc/self/environ`;
        const through = await shell(script, [path, ...head, root]);
        expect(through).toMatchObject({ status: 0, stderr: "" });
        const bytes = [`${path}\0BYTES=a`, Buffer.from([0xff, 0xc3]), "\0LINES=a\nb\0EMPTY=\0EQUAL=a=b\0N", Buffer.from([0xfe])];
        const expected = Buffer.concat([...bytes, "AME=1\0MARK=\u{feff}x\0"].map((part) => Buffer.from(part)));
        expect(through.bytes.toString("latin1")).toBe(expected.toString("latin1"));
      });

      test("and PATH is looked up inside the root, where the host's program of that name is not", async () => {
        const env = { PATH: `${bin}:${PATH}` };
        expect(await run([...head, root, "which-one"], { env })).toMatchObject({ status: 0, stdout: "the one of the root\n" });
        expect(await run(["which-one"], { env })).toMatchObject({ stdout: "the one of the host\n" });
        const { status, stderr } = await run([...head, root, "host-only"], { env });
        expect({ status, stderr }).toEqual({ status: 127, stderr: "mounttree: 'host-only' is not found in the new root\n" });
      });
    });

    describe("takes the place of mounttree", () => {
      test("so it has its process number, its parent, and one thread", async () => {
        const { pid, stdout } = await inside(["sed", "-n", "s/^\\(Pid\\|PPid\\|Threads\\|Name\\):\\t//p", "/proc/self/status"]);
        expect(stdout).toBe(`sed\n${pid}\n${process.pid}\n1\n`);
      });

      test("so nothing of it is left when the command is killed", async () => {
        const child = Bun.spawn([...head, root, "sleep", "60"], { stdio: ["ignore", "pipe", "pipe"], timeout: 20_000 });
        const isSleep = async (): Promise<boolean> => (await Bun.file(`/proc/${child.pid}/comm`).text()) === "sleep\n";
        while (!(await isSleep())) await Bun.sleep(2);
        const children = Bun.file(`/proc/${child.pid}/task/${child.pid}/children`);
        expect(await children.text()).toBe("");
        child.kill("SIGTERM");
        await child.exited;
        expect(child.signalCode).toBe("SIGTERM");
      });

      test("also where the root has no bun, and an empty /proc", async () => {
        const script = "ls -A /proc; command -v bun; echo $$";
        for (const method of ["pivot", "move", "detached", "chroot"]) {
          const finished = await run([...mounttree, "run", "--method", method, bare, "sh", "-c", script]);
          expect(finished).toMatchObject({ status: 0, stdout: `${finished.pid}\n`, stderr: "" });
        }
      });

      test("also on a terminal, which is in no other mode than before", async () => {
        let output = "";
        const child = Bun.spawn([...head, root, "sh", "-c", "stty -a | grep -o -- '[-]*icanon'; read x; echo got $x"], {
          terminal: { data: (_terminal, data) => void (output += Buffer.from(data).toString()) },
          timeout: 20_000,
        });
        child.terminal?.write("line\n");
        expect(await child.exited).toBe(0);
        expect(output).toContain("icanon");
        expect(output).not.toContain("-icanon");
        expect(output).toContain("got line");
      });
    });

    test("has the caller's umask and user", async () => {
      const script = `umask 027; exec setpriv --reuid=0 --regid=7 --groups=8,9 "$@" sh -c 'umask; id -u; id -g; id -G'`;
      const [through, directly] = await withAndWithout(script);
      expect(through.stdout).toBe(directly.stdout);
      expect(through.stdout).toStartWith("0027\n0\n7\n");
    });
  });
}

describe("what is opened between prepareExec() and exec()", () => {
  const program = join(scratch, "between.ts");
  writeFileSync(
    program,
    `import { exec, prepareExec } from "${checkout}/exec.ts";
     import { chdir, chroot, open, O } from "${checkout}/syscalls.ts";
     const prepared = prepareExec(process.argv[3] === "keep");
     if (open("/etc/passwd", O.RDONLY) < 3) throw new Error("no descriptor is open");
     // Where there is no /proc.
     chroot(process.argv[2]!);
     chdir("/");
     exec(["bash", "-c", "test ! -e /proc/self && for fd in {3..20}; do (: <&$fd) 2>/dev/null && echo $fd; done; :"], prepared);
    `,
  );
  const missing = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=close_range:error=ENOSYS"];

  for (const [kernel, prefix] of [
    ["", []],
    [", before Linux 5.11", missing],
  ] as const) {
    test(`is closed${kernel}`, async () => {
      expect(await run([...prefix, process.execPath, program, bare])).toMatchObject({ status: 0, stdout: "", stderr: "" });
      const kept = await run([...prefix, process.execPath, program, bare, "keep"]);
      expect(kept).toMatchObject({ status: 0, stdout: expect.stringMatching(/^\d+\n$/), stderr: "" });
    });
  }

  test("may be closed by another thread while it is looked at", async () => {
    const racing = join(scratch, "racing.ts");
    writeFileSync(
      racing,
      `import { exec, prepareExec } from "${checkout}/exec.ts";
       const loop = 'const fs = require("node:fs"); postMessage(0); for (;;) for (const fd of [1, 2, 3, 4].map(() => fs.openSync("/etc/passwd"))) fs.closeSync(fd);';
       const worker = new Worker(URL.createObjectURL(new Blob([loop])));
       await new Promise((resolve) => worker.addEventListener("message", resolve));
       for (let i = 0; i < 200; i++) prepareExec(i % 2 === 0);
       exec(["true"], prepareExec(false));
      `,
    );
    expect(await run([...missing, process.execPath, racing])).toMatchObject({ status: 0, stderr: "" });
  });
});
