/**
 * Every call of a switch fails once, at each place where it is made, on the real kernel otherwise; and then its undo fails, too.
 * The calls are recorded from a switch that works, not typed in.
 */
import { describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { type RootMethod, switchRootOn } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child } from "./child.ts";
import { type DescribedError, describeError } from "./observe.ts";

type Call = Extract<keyof syscalls.Kernel, string>;

interface Attempt {
  /** The calls that were made, in order, the one that failed included. */
  calls: Call[];
  /** The method that worked, or what was thrown. */
  outcome: { method: string; rejected: string[] } | { error: DescribedError };
  /** Whether mount table, working directory, root and the contents of the new root are what they were. */
  unchanged: boolean;
  /** What the difference is. */
  difference: string;
}

interface Plan {
  methods: RootMethod[];
  putOld: "stacked" | "directory";
  /** Whether the new root is a mount point already. */
  mountPoint: boolean;
  /** The numbers of the calls that fail with EIO, which none of them returns by itself. */
  failing: number[];
}

/** A switch in which some calls fail. */
async function attempt({ methods, putOld, mountPoint, failing }: Plan): Promise<Attempt> {
  const path = "/tmp/attempt/root";
  fs.mkdirSync(path, { recursive: true });
  if (mountPoint) syscalls.mount("tmpfs", path, "tmpfs", 0, null);
  for (const name of ["proc", "inner"]) fs.mkdirSync(`${path}/${name}`, { recursive: true });
  fs.writeFileSync(`${path}/marker`, "");
  syscalls.mount("proc", `${path}/proc`, "proc", 0, null);
  process.chdir("/tmp");

  const proc = syscalls.open("/proc", syscalls.O.PATH);
  const read = (name: string): string => new TextDecoder().decode(syscalls.readFile(name, proc));
  const link = (name: string): string => new TextDecoder().decode(syscalls.readlinkat(proc, name));
  const root = syscalls.open(path, syscalls.O.RDONLY | syscalls.O.DIRECTORY);
  const state = (): string[] => {
    const listing = syscalls.openat(root, ".", syscalls.O.RDONLY | syscalls.O.DIRECTORY);
    const names = syscalls.readDirectory(listing).sort().join(" ");
    syscalls.close(listing);
    return [read("self/mountinfo"), link("self/cwd"), link("self/root"), process.cwd(), names];
  };

  const calls: Call[] = [];
  const changing = [
    "chdir",
    "chroot",
    "fchdir",
    "mkdirat",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "tryExpire",
    "umount2",
    "unlinkat",
  ] as const;
  const kernel = { ...syscalls.kernel };
  for (const name of changing) {
    const original = kernel[name];
    const replaced = (...args: unknown[]): unknown => {
      calls.push(name);
      if (failing.includes(calls.length - 1)) throw new syscalls.SyscallError(name, 5);
      return Reflect.apply(original, undefined, args);
    };
    Object.defineProperty(kernel, name, { value: replaced });
  }
  const before = state();
  let outcome: Attempt["outcome"];
  try {
    const { method, rejected } = switchRootOn(kernel, path, { methods, putOld });
    outcome = { method, rejected: rejected.map((one) => `${one.method} ${one.reason} ${one.error?.code}`) };
  } catch (error) {
    outcome = { error: describeError(error) };
  }
  const after = state();
  const difference = before.flatMap((text, index) => (text === after[index] ? [] : [`${text} -> ${after[index]}`])).join("\n");
  return { calls, outcome, unchanged: difference === "", difference };
}

/** The call after which nothing can be undone: the old root is detached, or the first of the other mounts. */
function pointOfNoReturn(method: RootMethod, calls: readonly Call[]): number {
  if (method === "pivot") return calls.lastIndexOf("umount2");
  return method === "move" ? calls.indexOf("umount2", calls.indexOf("chroot")) : Number.POSITIVE_INFINITY;
}

for (const method of ["pivot", "move", "detached", "chroot"] as const) {
  for (const putOld of method === "pivot" ? (["stacked", "directory"] as const) : (["stacked"] as const)) {
    for (const mountPoint of [false, true]) {
      describe(`${method} (${putOld}), ${mountPoint ? "of a mount point" : "of a directory"}`, () => {
        const plan: Plan = { methods: [method], putOld, mountPoint, failing: [] };

        test("each call that fails is undone, named, and leaves everything as it was", async () => {
          const clean = await child(attempt, plan);
          expect(clean.outcome).toEqual({ method, rejected: [] });
          for (const [index, call] of clean.calls.entries()) {
            const { calls, outcome, unchanged, difference } = await child(attempt, { ...plan, failing: [index] });
            expect(calls[index]).toBe(call);
            if (!("error" in outcome)) throw new Error(`call ${index}, ${call}, failed, and it switched by ${outcome.method}`);
            const { error } = outcome;
            const context = `${call} (${index}), phase ${error.phase}`;
            expect({ context, cause: error.cause }).toEqual({
              context,
              cause: expect.stringContaining(`EIO: i/o error, ${call}`),
            });
            expect({ context, code: error.code, method: error.method }).toEqual({ context, code: "EIO", method });
            const switched = index > pointOfNoReturn(method, clean.calls);
            expect({ context, switched: error.switched, suppressed: error.suppressed }).toEqual({
              context,
              switched,
              suppressed: [],
            });
            if (switched) expect(error.message).toContain("this process should exit");
            else expect({ context, unchanged, difference }).toEqual({ context, unchanged: true, difference: "" });
          }
        }, 60_000);

        test("where the undo fails as well, both errors are kept, and the caller is told that the process is half-way", async () => {
          const clean = await child(attempt, plan);
          let halfway = 0;
          for (const [index, call] of clean.calls.entries()) {
            const undone = await child(attempt, { ...plan, failing: [index] });
            for (let undo = index + 1; undo < undone.calls.length; undo++) {
              const { outcome, calls } = await child(attempt, { ...plan, failing: [index, undo] });
              if (!("error" in outcome)) throw new Error(`it switched by ${outcome.method}`);
              const { error } = outcome;
              const context = `${call} (${index}), then ${calls[undo]} (${undo})`;
              expect({ context, switched: error.switched, cause: error.cause, suppressed: error.suppressed }).toEqual({
                context,
                switched: true,
                cause: expect.stringContaining(`EIO: i/o error, ${call}`),
                suppressed: [expect.stringContaining(`EIO: i/o error, ${calls[undo]}`)],
              });
              halfway++;
            }
          }
          expect(halfway).toBeGreaterThan(0);
        }, 60_000);
      });
    }
  }
}

test("a method that fails is undone before the next is tried, at each of its calls", async () => {
  const plan: Plan = { methods: ["pivot", "move", "detached", "chroot"], putOld: "stacked", mountPoint: false, failing: [] };
  const clean = await child(attempt, { ...plan, methods: ["pivot"] });
  const last = clean.calls.lastIndexOf("umount2");
  for (const [index, call] of clean.calls.slice(0, last + 1).entries()) {
    const { outcome } = await child(attempt, { ...plan, failing: [index] });
    expect({ call, index, outcome }).toEqual({ call, index, outcome: { method: "move", rejected: ["pivot refused EIO"] } });
  }
}, 60_000);
