/** The container has what the other tests take for granted. Without it they would test something else. */

import { expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";

function shell(script: string): { exitCode: number; output: string } {
  const { exitCode, stdout, stderr } = Bun.spawnSync(["sh", "-ec", script], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  return { exitCode, output: `${stdout}${stderr}`.trim() };
}

test("root is root of the machine, in no user namespace, and not process 1", () => {
  expect(process.geteuid?.()).toBe(0);
  expect(readFileSync("/proc/self/uid_map", "utf8").trim().split(/\s+/)).toEqual(["0", "0", "4294967295"]);
  expect(process.pid).not.toBe(1);
});

test("the root is a file system on disk, /tmp is a tmpfs, and programs can be run from it", () => {
  const found = shell("findmnt --noheadings --output FSTYPE / && findmnt --noheadings --output FSTYPE /tmp");
  expect(found.output).toMatch(/^(overlay|ext4|xfs|btrfs)\s+tmpfs$/);
  expect(shell("cp /bin/echo /tmp/harness && /tmp/harness here && rm /tmp/harness")).toEqual({ exitCode: 0, output: "here" });
});

test("the checkout is read-only", () => {
  expect(() => writeFileSync(`${import.meta.dir}/written`, "")).toThrow("EROFS");
});

test("there is no network", () => {
  expect(readdirSync("/sys/class/net")).toEqual(["lo"]);
});

test("a mount namespace can be made, and its root pivoted", () => {
  const script =
    "mount -t tmpfs none /mnt && mkdir /mnt/usr && mount --rbind /usr /mnt/usr && ln -s usr/bin usr/lib usr/lib64 /mnt";
  const pivoted = shell(`unshare --mount sh -ec '${script} && cd /mnt && mkdir old && pivot_root . old && exec chroot . ls /'`);
  expect(pivoted).toEqual({ exitCode: 0, output: "bin\nlib\nlib64\nold\nusr" });
  expect(readdirSync("/mnt")).toEqual([]);
});

test("an overlay can be mounted", () => {
  const script = "cd /tmp && mkdir -p o/l o/u o/w o/m && mount -t overlay -o lowerdir=o/l,upperdir=o/u,workdir=o/w none o/m";
  expect(shell(`unshare --mount sh -ec '${script}'; rm -rf /tmp/o`)).toEqual({ exitCode: 0, output: "" });
});

test("a user without capabilities can make a user namespace and mount in it, /proc as well", () => {
  const script = "mount -t tmpfs none /mnt && mount -t proc proc /proc && id -u";
  const user = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all";
  const result = shell(`${user} unshare --map-root-user --mount --pid --fork sh -ec '${script}'`);
  expect(result).toEqual({ exitCode: 0, output: "0" });
});

test("system calls can be traced", () => {
  const traced = shell("strace --trace=execve /bin/true");
  expect(traced.exitCode).toBe(0);
  expect(traced.output).toContain('execve("/bin/true"');
});
