/** A process that switches thousands of times is no larger afterwards. */
import { heapStats } from "bun:jsc";
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { type RootMethod, switchRoot } from "../../switchroot.ts";
import * as syscalls from "../../syscalls.ts";
import { child, own } from "../child.ts";
import { amount, hard } from "../hard.ts";

/** No threads of the collector and the compiler, which come and go as they please. */
const quiet = ["env", "BUN_JSC_useConcurrentJIT=0", "BUN_JSC_useConcurrentGC=0", "BUN_JSC_numberOfGCMarkers=1"];

interface Footprint {
  mounts: number;
  descriptors: number;
  threads: number;
  /** What the collector leaves. */
  objects: number;
  /** Bytes. */
  heap: number;
  resident: number;
}

interface Plan {
  method: RootMethod;
  putOld: "stacked" | "directory";
  /** How often it is switched before it is looked at for the first time: until everything is compiled that will be. */
  first: number;
  /** How often it is switched then. */
  times: number;
}

async function switchOften({ method, putOld, first, times }: Plan): Promise<[before: Footprint, after: Footprint]> {
  await Bun.file("/proc/self/comm").text();
  fs.mkdirSync("/tmp/self", { recursive: true });
  const host = syscalls.open("/", syscalls.O.PATH | syscalls.O.CLOEXEC);
  const { MS, mount } = syscalls;
  const switchOnce = (): void => {
    if (method !== "pivot") {
      // A detached root, or a chroot, is left through a descriptor.
      switchRoot("/tmp", { methods: [method], putOld });
      syscalls.fchdir(host);
      syscalls.chroot(".");
      return;
    }
    mount("/", "/tmp/self", null, MS.BIND | MS.REC, null);
    switchRoot("/tmp/self", { methods: [method], putOld });
  };
  const footprint = (): Footprint => {
    Bun.gc(true);
    const { objectCount, heapSize } = heapStats();
    return {
      mounts: fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n").length,
      descriptors: fs.readdirSync("/proc/self/fd").length,
      threads: fs.readdirSync("/proc/self/task").length,
      objects: objectCount,
      heap: heapSize,
      resident: process.memoryUsage.rss(),
    };
  };
  for (let i = 0; i < first; i++) switchOnce();
  const before = footprint();
  for (let i = 0; i < times; i++) switchOnce();
  return [before, footprint()];
}

for (const plan of [
  { method: "pivot", putOld: "stacked", first: 1000, times: 3000 },
  { method: "pivot", putOld: "directory", first: 1000, times: 3000 },
  { method: "detached", putOld: "stacked", first: amount(10_000, 1000), times: amount(50_000, 3000) },
  { method: "chroot", putOld: "stacked", first: 1000, times: 3000 },
] satisfies Plan[]) {
  test(`${plan.times.toLocaleString("en")} switches by ${plan.method} (${plan.putOld}) leave mounts, descriptors, threads and memory where they were`, async () => {
    const [before, after] = await child(switchOften, plan, { prefix: [...own, ...quiet], timeout: 300_000 });
    if (hard) console.log(before, after);
    const counts = ({ mounts, descriptors, threads }: Footprint): number[] => [mounts, descriptors, threads];
    expect(counts(after)).toEqual(counts(before));
    expect(after.objects - before.objects).toBeLessThan(100);
    expect(after.heap - before.heap).toBeLessThan(128 << 10);
    // A page for each of 3,000 switches would be 12 MiB; compiling what has run often takes one or two, up to some 10,000 switches. After
    // those, it goes up and down by one: 3 MiB are 63 bytes for each of 50,000.
    expect(after.resident - before.resident).toBeLessThan(plan.first < 10_000 ? 6 << 20 : 3 << 20);
  }, 300_000);
}
