/** The switch on the real kernel: every method, from every kind of root, seen from every thread. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as mountinfo from "../mountinfo.ts";
import { type RootMethod, type SwitchRootResult, switchRoot } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child } from "./child.ts";
import { describeError, makeRoot, mountsOf, type Observation, observe, startReader } from "./observe.ts";

interface Case {
  /** What is done to make the root. */
  kind: "directory" | "tmpfs" | "read-only" | "symlink" | "relative" | "mounts below";
  methods: RootMethod[];
  putOld: "stacked" | "directory";
}

interface Seen {
  result: SwitchRootResult;
  seen: Observation;
  /** The mount points in the new root's mount table. */
  mountPoints: string[];
  below: string;
}

/** Everything happens in the child's own mount namespace, but for the directory itself. */
async function switchAndLook({ kind, methods, putOld, directory }: Case & { directory: string }): Promise<Seen> {
  const { MS, mount } = syscalls;
  const reader = await startReader();
  let path = `${directory}/root`;
  fs.mkdirSync(path, { recursive: true });
  if (kind === "tmpfs") mount("tmpfs", path, "tmpfs", 0, null);
  makeRoot(path, "the new root");
  mount("proc", `${path}/proc`, "proc", 0, null);
  if (kind === "mounts below") mount("tmpfs", `${path}/sub`, "tmpfs", 0, null);
  if (kind === "mounts below") fs.writeFileSync(`${path}/sub/marker`, "mounted below");
  if (kind === "read-only") {
    mount(path, path, null, MS.BIND | MS.REC, null);
    mount(null, path, null, MS.REMOUNT | MS.BIND | MS.RDONLY, null);
  }
  if (kind === "symlink") {
    fs.symlinkSync("root", `${directory}/link`);
    path = `${directory}/link`;
  }
  if (kind === "relative") {
    process.chdir(directory);
    path = "root/../root";
  }
  const proc = syscalls.open("/proc", syscalls.O.PATH);
  const result = switchRoot(path, { methods, putOld });
  const seen = await observe(reader, proc);
  return {
    result,
    seen,
    mountPoints: mountinfo.getMounts().map((entry) => entry.mountPoint),
    below: fs.readFileSync("/sub/marker", "utf8"),
  };
}

let directory = "";
let before = "";

for (const [place, parent] of [
  ["overlay", "/"],
  ["tmpfs", "/tmp/"],
] as const) {
  describe(`on ${place}`, () => {
    beforeEach(() => {
      directory = fs.mkdtempSync(`${parent}switchroot-`);
      before = fs.readFileSync("/proc/self/mountinfo", "utf8");
    });
    afterEach(() => {
      expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(before);
      expect(fs.readdirSync(`${directory}/root`).filter((name) => name.startsWith(".pivot_root"))).toEqual([]);
      fs.rmSync(directory, { recursive: true });
    });

    for (const kind of ["directory", "tmpfs", "read-only", "symlink", "relative", "mounts below"] as const) {
      for (const [method, putOld] of [
        ["pivot", "stacked"],
        ["pivot", "directory"],
        ["move", "stacked"],
        ["detached", "stacked"],
        ["chroot", "stacked"],
      ] as const) {
        // Nothing can be made in a read-only root.
        if (kind === "read-only" && putOld === "directory") continue;
        test(`${method} (${putOld}) moves every thread into a root: ${kind}`, async () => {
          const { result, seen, mountPoints, below } = await child(switchAndLook, { kind, methods: [method], putOld, directory });

          const isMountPoint = kind === "tmpfs" || kind === "read-only";
          const bound = (method === "pivot" || method === "move") && !isMountPoint;
          expect(result).toEqual({ method, root: `${directory}/root`, bound, rejected: [] });
          for (const [way, marker] of Object.entries(seen.markers))
            expect({ way, marker }).toEqual({ way, marker: "the new root" });
          expect(Object.keys(seen.markers)).toHaveLength(7);
          expect(seen.cwd).toBe("/");
          expect(seen.names).toEqual(["bin", "dev", "lib", "lib64", "marker", "proc", "sub", "usr"]);
          expect(seen.threadRoots.length).toBeGreaterThan(4);
          expect(new Set(seen.threadRoots)).toEqual(new Set([seen.root]));
          expect(below).toBe(kind === "mounts below" ? "mounted below" : "the new root/sub");

          // Nothing of the old root is in the table; a detached root has none, and a chroot shows what is below it.
          const own = ["/usr", "/proc", ...(kind === "mounts below" ? ["/sub"] : [])];
          const expected = {
            pivot: ["/", ...own],
            move: ["/", ...own],
            detached: [],
            chroot: isMountPoint ? ["/", ...own] : own,
          };
          expect(mountPoints.sort()).toEqual(expected[method].sort());
        });
      }
    }

    test("a read-only root with putOld directory is left as it was, and the next method is used", async () => {
      const { result } = await child(switchAndLook, {
        kind: "read-only",
        methods: ["pivot", "move"],
        putOld: "directory",
        directory,
      });
      expect(result.method).toBe("move");
      expect(result.rejected).toMatchObject([
        { method: "pivot", reason: "refused", error: { code: "EROFS", syscall: "mkdirat" } },
      ]);
    });
  });
}

describe("without a mount namespace of its own", () => {
  const path = "/plain-root";
  const unmount = (): void => {
    for (const { mountPoint } of mountsOf("self").filter((entry) => entry.mountPoint.startsWith(path))) {
      syscalls.umount2(mountPoint, syscalls.MNT.DETACH);
    }
  };
  afterEach(() => {
    unmount();
    fs.rmSync(path, { recursive: true });
  });

  test("detached is used, and the host's mount table stays byte for byte what it was", async () => {
    makeRoot(path, "the new root");
    const table = fs.readFileSync("/proc/self/mountinfo", "utf8");
    const { result, seen } = await child(
      async (root: string) => {
        const reader = await startReader();
        const proc = syscalls.open("/proc", syscalls.O.PATH);
        const switched = switchRoot(root);
        return { result: switched, seen: await observe(reader, proc) };
      },
      path,
      { prefix: [] },
    );
    expect(result.method).toBe("detached");
    expect(result.rejected.map(({ method, reason }) => `${method} ${reason}`)).toEqual([
      "pivot namespace-shared",
      "move namespace-shared",
    ]);
    expect(new Set(Object.values(seen.markers))).toEqual(new Set(["the new root"]));
    expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(table);
  });

  test("a file: URL and bytes that are not UTF-8 are paths, too", async () => {
    const roots = await child((root: string) => {
      makeRoot(`${root}/a b`);
      const bytes = Buffer.from(`${root}/\xff`, "latin1");
      fs.mkdirSync(bytes);
      fs.mkdirSync(Buffer.concat([bytes, Buffer.from("/inner")]));
      const first = switchRoot(new URL(`file://${root}/a%20b`), { methods: ["pivot"] }).root;
      return [first];
    }, path);
    expect(roots).toEqual([`${path}/a b`]);
    const bytes = await child((root: string) => {
      const name = Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff])]);
      fs.writeFileSync(Buffer.concat([name, Buffer.from("/marker")]), "bytes");
      const { method, root: called } = switchRoot(name, { methods: ["pivot"], putOld: "directory" });
      return { method, called, marker: fs.readFileSync("/marker", "utf8"), names: fs.readdirSync("/").sort() };
    }, path);
    expect(bytes).toEqual({ method: "pivot", called: `${path}/\uFFFD`, marker: "bytes", names: ["inner", "marker"] });
  });
});

describe("again and again", () => {
  test("a switch inside a switched root works by every method, from every method", async () => {
    const every: RootMethod[] = ["pivot", "move", "detached", "chroot"];
    for (const [first, second] of every.flatMap((outer) => every.map((inner) => [outer, inner] as const))) {
      const outcome = await child(
        async ({ path, methods }: { path: string; methods: RootMethod[] }) => {
          fs.mkdirSync(`${path}/outer/inner`, { recursive: true });
          for (const proc of [`${path}/outer/proc`, `${path}/outer/inner/proc`]) {
            fs.mkdirSync(proc);
            syscalls.mount("proc", proc, "proc", 0, null);
          }
          fs.writeFileSync(`${path}/outer/inner/marker`, "inner");
          const used: string[] = [];
          for (const [index, method] of methods.entries()) {
            try {
              used.push(switchRoot(index === 0 ? `${path}/outer` : "/inner", { methods: [method] }).method);
            } catch (error) {
              used.push(describeError(error).message);
            }
          }
          return { used, marker: fs.existsSync("/marker") ? "inner" : "outer" };
        },
        { path: `/tmp/chain-${first}-${second}`, methods: [first, second] },
      );
      fs.rmSync(`/tmp/chain-${first}-${second}`, { recursive: true });
      const cannot = (first === "detached" || first === "chroot") && (second === "pivot" || second === "move");
      if (cannot) {
        expect(outcome.used[1]).toContain(first === "detached" ? "detached tree" : "chrooted");
        expect(outcome.marker).toBe("outer");
      } else {
        expect(outcome).toEqual({ used: [first, second], marker: "inner" });
      }
    }
  });
});
