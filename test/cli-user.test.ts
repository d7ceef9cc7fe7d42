/** `mounttree run` for who has no privileges: a user namespace. */
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, chownSync, cpSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bothWays, type Finished, makeRoot, run, scratchDirectory, watchMountTable } from "./compiled.ts";

const ways = await bothWays(scratchDirectory());
watchMountTable();

const uid = 65534;
/** Where the user may write, and what it may read. */
const home = mkdtempSync("/tmp/mounttree-user-");
afterAll(() => rmSync(home, { recursive: true }));
chmodSync(home, 0o755);
const command = join(home, "mounttree");
const compiled = ways.find(({ name }) => name === "compiled")?.command[0] ?? "";
cpSync(compiled, command);
const root = makeRoot(join(home, "root"));
for (const directory of [home, root]) chownSync(directory, uid, uid);

const asUser = ["setpriv", `--reuid=${uid}`, `--regid=${uid}`, "--clear-groups", "env", `HOME=${home}`];
const programs = [{ name: "compiled", program: [command] }];

for (const { name, program } of programs) {
  const mounts = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"];
  const inside = (options: string[], ...what: string[]): Promise<Finished> =>
    run([...asUser, ...program, "run", ...options, ...mounts, root, "--", ...what]);

  describe(`run as an ordinary user, ${name}`, () => {
    test("takes a user namespace by itself, in which the user is who it was, without capabilities", async () => {
      const finished = await inside([], "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status; cat /proc/self/setgroups");
      expect(finished).toMatchObject({ status: 0, stdout: `${uid}\n${uid}\nCapEff:\t0000000000000000\ndeny\n`, stderr: "" });
    });

    test("check says so", async () => {
      const { stdout } = await run([...asUser, ...program, "check", root]);
      expect(stdout).toContain("\n\nmounttree run takes a user namespace and a mount namespace of its own: ");
    });

    test("--map-root makes it root there", async () => {
      for (const options of [["--map-root"], ["--user", "--map-root"]]) {
        expect(await inside(options, "id", "-u")).toMatchObject({ status: 0, stdout: "0\n", stderr: "" });
      }
    });

    test("all that run mounts is there, the /proc that there was included", async () => {
      const script =
        "ls /; ls -d /proc/self /dev/pts/ptmx; echo >/dev/null && echo >/tmp/file; touch /usr/x 2>/dev/null || echo read-only; head -c 4 /dev/zero | wc -c";
      const { status, stdout, stderr } = await inside([], "sh", "-c", script);
      expect({ status, stdout, stderr }).toEqual({
        status: 0,
        stdout: "bin\ndev\nlib\nlib64\nproc\ntmp\nusr\n/dev/pts/ptmx\n/proc/self\nread-only\n4\n",
        stderr: "",
      });
    });

    test("what the command makes belongs to the user outside", async () => {
      const made = `made-${name.replace(" ", "-")}`;
      expect(await inside(["--map-root", "--bind", home, "/tmp"], "touch", `/tmp/${made}`)).toMatchObject({ status: 0 });
      // The tmpfs on /tmp came after the bind, and is what the command saw.
      expect(() => statSync(join(home, made))).toThrow("ENOENT");
      expect(await inside(["--map-root"], "touch", `/${made}`)).toMatchObject({ status: 0 });
      expect(statSync(join(root, made))).toMatchObject({ uid, gid: uid });
    });

    test("each of pivot, detached and chroot works, and the exit status is the command's", async () => {
      for (const method of ["pivot", "detached", "chroot"]) {
        expect(await inside(["--method", method], "sh", "-c", "exit 7")).toMatchObject({ status: 7, stderr: "" });
      }
    });

    test("nothing of how it was started is left for the command", async () => {
      const { stdout } = await inside([], "env");
      expect(stdout).not.toMatch(/^(BUN|MIMALLOC|MOUNTTREE)/m);
      expect((await inside([], "sh", "-c", "ls /proc/self/fd | wc -l")).stdout).toBe("4\n");
    });
  });

  // The number of the shell, and the lowest number that /proc shows.
  const numbers = ["sh", "-c", "echo $$; ls /proc | sort -n | grep -m 1 ^[0-9]"];

  for (const [who, prefix, options] of [
    ["root that takes a user namespace", ["unshare"], ["--user"]],
    ["an ordinary user", [...asUser, "unshare", "--user", "--map-current-user"], []],
  ] as const) {
    test(`--proc shows no outer PID namespace to ${who}, ${name}`, async () => {
      const start = [...prefix, "--pid", "--fork", ...program, "run", ...options];
      const finished = await run([...start, ...mounts, root, "--", ...numbers]);
      expect(finished).toMatchObject({ status: 125, stdout: "" });
      expect(finished.stderr).toStartWith("mounttree: --proc /proc: EPERM: ");
      expect(finished.stderr).toContain("'unshare --user --map-root-user --pid --fork'");
    });
  }

  test(`--proc shows the PID namespace that an ordinary user took together with a user namespace, ${name}`, async () => {
    const together = ["unshare", "--user", "--map-root-user", "--pid", "--fork"];
    const finished = await run([...asUser, ...together, ...program, "run", ...mounts, root, "--", ...numbers]);
    expect(finished).toMatchObject({ status: 0, stdout: "1\n1\n", stderr: "" });
  });

  test(`root without CAP_SETFCAP is told so before anything has changed, ${name}`, async () => {
    const without = ["setpriv", "--bounding-set=-setfcap", "--inh-caps=-setfcap"];
    const finished = await run([...without, ...program, "run", "--user", ...mounts, root, "true"]);
    expect(finished).toMatchObject({ status: 125, stdout: "" });
    expect(finished.stderr).toMatch(/^mounttree: taking a user namespace: EPERM: .* CAP_SETFCAP/);
  });

  test(`root can ask for a user namespace, too, ${name}`, async () => {
    const finished = await run([...program, "run", "--user", ...mounts, root, "grep", "-c", "^ *0 *0 *1$", "/proc/self/uid_map"]);
    expect(finished).toMatchObject({ status: 0, stdout: "1\n", stderr: "" });
  });

  test(`root is root in it by default as well, and root outside to files, ${name}`, async () => {
    const file = join(home, "of-root");
    writeFileSync(file, "before", { mode: 0o600 });
    const script = "grep CapEff /proc/self/status; echo after >/tmp/of-root";
    const finished = await run([...program, "run", "--user", ...mounts, "--bind", home, "/tmp", root, "sh", "-c", script]);
    expect(finished).toMatchObject({ status: 0, stdout: expect.stringMatching(/^CapEff:\t[0-9a-f]*[1-9a-f]+$/m), stderr: "" });
    expect(readFileSync(file, "utf8")).toBe("after\n");
  });
}
