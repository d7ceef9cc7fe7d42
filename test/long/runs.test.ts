/** Thousands of `mounttree run` leave nothing, and the last ones take no more memory than the first. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { compile, makeRoot, mountTable, scratchDirectory, userland, watchMountTable } from "../compiled.ts";
import { amount, hard } from "../hard.ts";
import { processes } from "../observe.ts";

const scratch = scratchDirectory();
const mounttree = await compile(scratch);
const root = makeRoot(join(scratch, "root"));
watchMountTable();

const times = amount(5000, 50);

/**
 * Starts a command and prints its exit status and the most memory that it had, in kB, as wait4(2) has it. That counts what was there before
 * execve(2), too: for a child of Bun it would be the memory of these tests.
 */
const starter = `
  my $pid = fork // die;
  if ($pid == 0) { exec { $ARGV[1] } @ARGV[1 .. $#ARGV] or die }
  my ($status, $usage) = (pack("i", 0), "\\0" x 144);
  syscall($ARGV[0], $pid, $status, 0, $usage) == $pid or die;
  print join(" ", unpack("i", $status), unpack("x32 q", $usage));
`;
const wait4 = process.arch === "arm64" ? "260" : "61";

/** Runs it once, with all kinds of mounts; gives the most memory that it had, in bytes. */
async function runOnce(method: string): Promise<number> {
  const mounts = [...userland, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", scratch, "/made/here"];
  const command = [mounttree, "run", "--method", method, ...mounts, root, "true"];
  const started = Bun.spawn(["perl", "-e", starter, wait4, ...command], { stdin: "ignore" });
  const [status, memory] = (await started.stdout.text()).split(" ").map(Number);
  expect({ status, exited: await started.exited }).toEqual({ status: 0, exited: 0 });
  return (memory ?? Number.NaN) * 1024;
}

/** What it may leave: a mount namespace ends with its last process, unless it is mounted somewhere. */
function left(): unknown {
  return { table: mountTable(), processes: processes(), root: fs.readdirSync(root, { recursive: true }).sort() };
}

test(`${times} mounttree run leave mounts, processes, and the root where they were, and take the same memory`, async () => {
  const methods = ["pivot", "move", "detached", "chroot"];
  for (const method of methods) await runOnce(method);
  const before = left();
  const memory: number[] = [];
  while (memory.length < times) {
    // Two at a time.
    const method = methods[(memory.length >> 1) % methods.length] ?? "";
    memory.push(...(await Promise.all([runOnce(method), runOnce(method)])));
  }
  expect(left()).toEqual(before);
  // The least of many: by how much one takes more is chance, and it differs from method to method. Much of it is Bun itself, of which more or
  // less is mapped, by up to a sixth, as the kernel happens to have it in the page cache.
  const part = amount(500, 25);
  const [first, last] = [Math.min(...memory.slice(0, part)), Math.min(...memory.slice(-part))];
  if (hard)
    console.log(`${times} runs; the most memory of one, in bytes: ${first} in the first ${part}, ${last} in the last, at least`);
  expect(last).toBeLessThan(1.25 * first);
}, 1_200_000);
