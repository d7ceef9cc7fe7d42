/**
 * Runs tests on Linux 6.1 in an emulated machine: `bun test/kernel/run.ts [x64|x86|arm64] [FILE]...`.
 *
 * guest.ts runs twice there: on the initramfs, whose root cannot be pivoted, and on a tmpfs that was moved into, whose root can. FILEs are
 * test files, such as test/mount.test.ts, that run on the tmpfs as well. With arm64, syscalls.ts is compared besides, as that
 * architecture's Bun runs it in user mode emulation on this machine's kernel, with what it says here.
 *
 * It takes root on Debian, where it installs QEMU. The last line is `N passed, N failed`.
 */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fetchBun, isTarget, type Target } from "../../build.ts";
import { scripts } from "../../package.json" with { type: "json" };
import { mustRun, seconds } from "../container.ts";
import { type Counts, judge } from "../judge.ts";
import { addFiles, addProgram, boot, type Machine, moreTools, prepareMachine, tools } from "./machine.ts";

const checkout = resolve(import.meta.dir, "../..");
const guest = "test/kernel/guest.ts";
const traced = "test/kernel/syscalls.test.ts";

const worlds = ["initramfs", "tmpfs"] as const;

/** The machine has two processors. */
const concurrent = "--concurrent --max-concurrency=3";

/** Process 1. Bun does not start where /proc is not mounted. What it prints between "@@ begin" and "@@ end" is looked for. */
function script(files: readonly string[]): string {
  return `
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=1 MOUNTTREE_PATIENCE=20
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /mnt /run
busybox mount -t devpts -o ptmxmode=666 devpts /dev/pts
busybox mount -t tmpfs -o mode=1777 shm /dev/shm
busybox mount -t tmpfs -o mode=1777 tmp /tmp
ln -s /proc/self/fd /dev/fd
busybox ifconfig lo up
echo this is the host >/host-only

cat >/usr/bin/tests <<'END'
#!/bin/bash
# tests NAME FILE...
printf "\\n@@ begin %s\\n" "$1"
cd /work
WORLD=$1 bun test --timeout 300000 --reporter=junit --reporter-outfile=/tmp/junit.xml "\${@:2}" 2>&1 | cat
status=\${PIPESTATUS[0]}
echo "@@ junit"
cat /tmp/junit.xml
echo
echo "@@ end $1 $status"
END
chmod +x /usr/bin/tests

tests initramfs ${concurrent} ./${guest}

mkdir /new
busybox mount -t tmpfs -o mode=755 new /new
mkdir /new/usr /new/work /new/proc /new/sys /new/dev /new/tmp /new/etc /new/root /new/mnt /new/run
for each in bin sbin lib lib64; do ln -s usr/$each /new/$each; done
cp -a /etc/. /new/etc/
for each in usr work; do busybox mount -o bind /$each /new/$each; done
for each in proc sys dev tmp; do busybox mount -o rbind /$each /new/$each; done
echo this is the host >/new/host-only
mounttree run --method move /new -- bash -c '
  tests tmpfs ${concurrent} ./${guest}
  ${files.map((file) => `tests ${file} ./${file}`).join("\n  ")}
'
echo "@@ off"
busybox poweroff -f
`;
}

/** What a run in the machine printed, and what is to be thought of it. */
function judgeRun(name: string, file: string, text: string): Counts & { lines: string[] } {
  const [, output = "", junit, status] =
    text.match(new RegExp(`^@@ begin ${name}\n([\\s\\S]*?)^@@ junit\n([\\s\\S]*?)^@@ end ${name} (\\d+)$`, "m")) ?? [];
  if (status === undefined) return { passed: 0, failed: 1, lines: [`(fail) ${name}: it did not get to its end`] };
  const { passed, failed, doubts } = judge([file], { exitCode: Number(status), stderr: output }, junit);
  // Each that fails is named again at the end.
  const lines = [...new Set(output.match(/^\((pass|fail)\) .*$/gm))];
  return { passed, failed: failed + doubts.length, lines: [...lines, ...doubts.map((doubt) => `(fail) ${doubt}`)] };
}

async function compileProgram(target: Target, bun: string, directory: string): Promise<string> {
  const outfile = join(directory, "goes-on");
  const executable = target === process.arch ? [] : ["--compile-executable-path", bun];
  await mustRun([
    process.execPath,
    "build",
    "--compile",
    join(import.meta.dir, "goes-on.ts"),
    "--outfile",
    outfile,
    ...executable,
  ]);
  return outfile;
}

async function fill(machine: Machine, directory: string): Promise<string> {
  const { target } = machine;
  const own = target === process.arch;
  const fetched = join(directory, "bun");
  mkdirSync(fetched);
  const bun = own ? process.execPath : fetchBun(target, fetched);
  const suffix = own ? [] : ["--target", target];
  const [, ...build] = scripts.build.split(" ");
  await mustRun([process.execPath, ...build, ...suffix], { cwd: checkout });
  addProgram(machine, "bun", bun);
  addProgram(machine, "mounttree", join(checkout, `dist/mounttree${own ? "" : `-linux-${target}`}`));
  addProgram(machine, "goes-on", await compileProgram(target, bun, directory));
  const sources = readdirSync(checkout).filter((name) => /\.(ts|json|md)$/.test(name));
  const needed = ["docs", "examples", "test", "node_modules/fast-check", "node_modules/pure-rand"];
  await addFiles(machine, checkout, [...sources, ...needed], "work");
  await Bun.write(join(machine.tree, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
  await Bun.write(join(machine.tree, "etc/group"), "root:x:0:\nnogroup:x:65534:\n");
  return bun;
}

/** What QEMU 7.2 does not pass on in user mode. In the machine it is looked at as well. */
const notPassedOn = [
  "openat2",
  "open_tree",
  "move_mount",
  "mount_setattr",
  "fsopen",
  "fsconfig",
  "fsmount",
  "owningUserNamespace",
];

/** The same program, with the other architecture's Bun and with this one's, on this machine's kernel. */
async function compareCalls(machine: Machine, bun: string, counts: Counts, signal: AbortSignal): Promise<void> {
  const program = join(import.meta.dir, "syscalls.ts");
  // What there is below it, the program would find instead of this machine's.
  const libraries = join(dirname(machine.tree), "libraries");
  mkdirSync(libraries);
  symlinkSync(join(machine.tree, "usr/lib"), join(libraries, "lib"));
  const say = async (command: string[]): Promise<Record<string, unknown>> =>
    JSON.parse(await mustRun(["unshare", "--mount", ...command, program], { signal, timeout: 60 }));
  const here = await say([process.execPath]);
  const there = await say(["qemu-aarch64-static", "-L", libraries, bun]);
  for (const [name, value] of Object.entries(here)) {
    // It differs from one mount namespace to the next.
    if (name === "statx, the mount's ID") continue;
    const [ours, theirs] = [JSON.stringify(value), JSON.stringify(there[name])];
    const same = ours === theirs || (notPassedOn.includes(name.replace(/,.*/, "")) && /^\[?("ENOSYS",?)+\]?$/.test(theirs));
    counts[same ? "passed" : "failed"]++;
    console.log(
      `(${same ? "pass" : "fail"}) ${machine.target} in user mode emulation: ${name}: ${theirs}${same ? "" : `, here ${ours}`}`,
    );
  }
}

async function main(signal: AbortSignal, counts: Counts): Promise<void> {
  const [first = "x64", ...more] = process.argv.slice(2);
  const files = [traced, ...more];
  const target = first === "x86" ? "x64" : first;
  if (!isTarget(target)) throw new Error(`'${first}' is none of x86, arm64`);
  const directory = mkdtempSync(join(tmpdir(), "mounttree-kernel-"));
  try {
    const preparing = performance.now();
    const machine = await prepareMachine(target, directory, [...tools, ...(more.length > 0 ? moreTools : [])], signal);
    const bun = await fill(machine, directory);
    console.log(`${target}: kernel and programs in ${seconds(preparing)}`);
    if (target !== process.arch) await compareCalls(machine, bun, counts, signal);
    const booting = performance.now();
    const text = await boot(machine, script(files), { timeout: more.length > 0 ? 14400 : 1200, signal });
    const kernel = /^@@ kernel (.*)$/m.exec(text)?.[1] ?? "no kernel";
    console.log(`${target}: Linux ${kernel}, from power on to power off in ${seconds(booting)}`);
    const before = counts.failed;
    for (const [name, file] of [
      ...worlds.map((world) => [world, guest] as const),
      ...files.map((file) => [file, file] as const),
    ]) {
      const { passed, failed, lines } = judgeRun(name, file, text);
      for (const line of lines) console.log(line);
      counts.passed += passed;
      counts.failed += failed;
    }
    if (!/^@@ off$/m.test(text)) {
      counts.failed++;
      console.log("(fail) the machine did not get to the point where it is turned off");
    }
    if (counts.failed > before) console.log(`its console:\n${text.replaceAll(/^@@ junit\n[\s\S]*?^@@ end/gm, "@@ end")}`);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const stopping = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(name, () => stopping.abort(new Error(`stopped by ${name}`)));

const counts = { passed: 0, failed: 0 };
const mountsBefore = readFileSync("/proc/self/mountinfo", "utf8");
try {
  await main(stopping.signal, counts);
} catch (error) {
  counts.failed++;
  console.log(`(fail) ${error instanceof Error ? error.message : String(error)}`);
}
if (readFileSync("/proc/self/mountinfo", "utf8") !== mountsBefore) {
  counts.failed++;
  console.log("(fail) the mount table of this machine is not what it was");
}
console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 && counts.passed > 0 ? 0 : 1);
