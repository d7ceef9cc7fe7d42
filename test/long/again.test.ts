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
  /** A median of five looks: the allocator takes and gives back a megabyte or two as it sees fit. */
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
  const looks: Footprint[] = [];
  const lookAfter = (switches: number): void => {
    for (let i = 0; i < switches; i++) switchOnce();
    looks.push(footprint());
  };
  lookAfter(first);
  for (let tenth = 1; tenth <= 10; tenth++) lookAfter(times / 10);
  const [before, after] = [looks.slice(0, 5), looks.slice(-5)].map(
    (five) => five.map(({ resident }) => resident).sort((one, other) => one - other)[2],
  );
  const [[start], end] = [looks, looks.at(-1)];
  if (start === undefined || end === undefined || before === undefined || after === undefined) throw new Error("no look");
  return [
    { ...start, resident: before },
    { ...end, resident: after },
  ];
}

for (const plan of [
  { method: "pivot", putOld: "stacked", first: 1000, times: 3000 },
  { method: "pivot", putOld: "directory", first: 1000, times: 3000 },
  { method: "detached", putOld: "stacked", first: amount(30_000, 1000), times: amount(50_000, 3000) },
  { method: "chroot", putOld: "stacked", first: 1000, times: 3000 },
] satisfies Plan[]) {
  test(`${plan.times.toLocaleString("en")} switches by ${plan.method} (${plan.putOld}) leave mounts, descriptors, threads and memory where they were`, async () => {
    const [before, after] = await child(switchOften, plan, { prefix: [...own, ...quiet], timeout: 300_000 });
    if (hard) console.log(before, after);
    const counts = ({ mounts, descriptors, threads }: Footprint): number[] => [mounts, descriptors, threads];
    expect(counts(after)).toEqual(counts(before));
    expect(after.objects - before.objects).toBeLessThan(100);
    expect(after.heap - before.heap).toBeLessThan(128 << 10);
    // Between the medians lie six tenths of the switches. A page for each of 1,800 would be 7 MiB; compiling what has run often takes one or
    // two, up to some 30,000 switches. After those it goes up and down by one, also over 250,000: 3 MiB are 105 bytes for each of 30,000.
    expect(after.resident - before.resident).toBeLessThan(plan.first < 10_000 ? 5 << 20 : 3 << 20);
  }, 300_000);
}
