/** The mount table is read while somebody mounts and unmounts as fast as he can: what is there all the time is in it, once. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as mountinfo from "../../mountinfo.ts";
import * as syscalls from "../../syscalls.ts";
import { MNT, mount, type SyscallError, umount2 } from "../../syscalls.ts";
import { child, onTmpfs, own } from "../child.ts";
import { amount, hard } from "../hard.ts";
import { base, fleeting, makeBoard, removeBoard, steady } from "./board.ts";
import { race } from "./stage.ts";

const { findMount, getMounts, mountOf } = mountinfo;

onTmpfs(base);
beforeEach(makeBoard);
afterEach(removeBoard);

function isFleeting({ mountSource }: mountinfo.MountInfo): boolean {
  return mountSource === "fleeting";
}

/** What is the same in all entries that come and go. */
function kindOf({ id, minor, mountPoint, ...others }: mountinfo.MountInfo): string {
  return JSON.stringify({ ...others, isListed: fleeting.includes(mountPoint), isNumbered: Number.isInteger(id + minor) });
}

test("mounts that stay are all in the table, once, and those that come and go are whole", async () => {
  let [reads, changes] = [0, 0];
  const lengths = new Map<number, number>();
  for (let round = 0; round < amount(10, 2); round++) {
    mount("round", base, "tmpfs", 0, null);
    // Alternately: each one that goes stands before one that stays.
    for (const [index, place] of steady.entries()) {
      for (const each of [fleeting[index] ?? "", place]) {
        fs.mkdirSync(each);
        mount(each === place ? "steady" : "fleeting", each, "tmpfs", 0, null);
      }
    }
    const before = getMounts();
    const staying = JSON.stringify(before.filter((entry) => !isFleeting(entry)));
    const kinds = [...new Set(before.filter(isFleeting).map(kindOf))];
    expect(kinds.length).toBe(1);

    const { changes: changed } = await race("table: unmounts and mounts", async (board) => {
      for (let read = 0; read < amount(200, 50) || board.changes < amount(1000, 300); read++) {
        const table = getMounts();
        const gone = table.filter(isFleeting);
        reads++;
        lengths.set(gone.length, (lengths.get(gone.length) ?? 0) + 1);
        // Not by expect(), which would take most of the time.
        if (JSON.stringify(table.filter((entry) => !isFleeting(entry))) !== staying) {
          expect(table.filter((entry) => !isFleeting(entry))).toEqual(JSON.parse(staying));
        }
        for (const entry of gone) if (kindOf(entry) !== kinds[0]) throw new Error(`this is not whole: ${JSON.stringify(entry)}`);
        const place = steady[read % steady.length] ?? "";
        if (findMount(({ mountPoint }) => mountPoint === place)?.mountSource !== "steady") throw new Error(`${place} is missing`);
        if (mountOf(place).mountPoint !== place) throw new Error(`${place} lies on another mount`);
      }
    });
    changes += changed;
    umount2(base, MNT.DETACH);
  }
  if (hard) console.log(`${reads} reads during ${changes} changes; numbers of mounts that came and went:`, lengths.size);
  expect(lengths.size).toBeGreaterThan(2);
}, 200_000);

/** A read that ends before the end of the table, as it can where a mount is missed, and whether statx(2) knows mounts, as since then. */
describe("on Linux before 5.8, where one reading can miss mounts", () => {
  interface Found {
    entries?: number;
    code?: string;
    really: number;
  }

  const read = (mounts: number): Found => {
    for (let count = 0; count < mounts; count++) syscalls.mount("one of many", "/mnt", "tmpfs", 0, null);
    const found = (): Pick<Found, "entries" | "code"> => {
      try {
        return { entries: mountinfo.getMounts().length };
      } catch (error) {
        return { code: (error as SyscallError).code };
      }
    };
    const first = found();
    return { ...first, really: mountinfo.parseMountInfo(fs.readFileSync("/proc/thread-self/mountinfo")).length };
  };

  /** strace(1) changes what the kernel answers; with -D it is not in between, so that the process has the number of the shell. */
  function traced(...injections: readonly string[]): string[] {
    const script = `exec strace -D -f --output=/dev/null --trace=read,statx -P /proc/$$/mountinfo -P / "$@"`;
    return [...own, "sh", "-c", script, "sh", ...injections.flatMap((each) => ["--inject", each])];
  }
  const old = "statx:poke_exit=@arg5=00000000";

  test("it is read again until it is the same twice in a row", async () => {
    const cut = "read:retval=0:when=2";
    const complete = await child(read, 100, { prefix: traced(old, cut) });
    expect(complete.entries).toBe(complete.really);
    const incomplete = await child(read, 100, { prefix: traced(cut) });
    expect(incomplete.entries).toBeLessThan(incomplete.really);
  });

  test("it is an error if it never is", async () => {
    // Two pages and an end, and then one page and an end.
    const lines = fs.readFileSync("/proc/self/mountinfo", "utf8");
    const found = await child(read, Math.ceil((6500 - lines.length) / 70), { prefix: traced(old, "read:retval=0:when=2+5") });
    expect(found).toMatchObject({ code: "EAGAIN" });
  });
});
