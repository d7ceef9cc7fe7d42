/**
 * What goes wrong without the rules of the state machine. Each test is set up so that the damage would be done, and looks for it
 * from outside: at the mounts of other namespaces, and at the roots of other processes.
 */
import { afterEach, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as checks from "../checks.ts";
import * as mountinfo from "../mountinfo.ts";
import { switchRoot, switchRootOn } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child, onTmpfs, own } from "./child.ts";
import { describeError, makeRoot, mountsOf } from "./observe.ts";

const base = "/tmp/damage";
onTmpfs(base);

function rootOf(pid: number): string {
  const { dev, ino } = fs.statSync(`/proc/${pid}/root`);
  return `${dev}:${ino}`;
}

/** A process that does nothing, started by `prefix`; in a new namespace it is ready when it says so. */
async function sleeper(prefix: readonly string[]): Promise<{ pid: number } & AsyncDisposable> {
  const started = Bun.spawn([...prefix, "sh", "-c", "echo ready; exec sleep 60"], { stdout: "pipe" });
  const reader = started.stdout.getReader();
  await reader.read();
  return {
    pid: started.pid,
    [Symbol.asyncDispose]: async () => {
      started.kill();
      await started.exited;
    },
  };
}

describe("a namespace with other processes in it (rule 1)", () => {
  test("is not pivoted: the other process keeps its root", async () => {
    await using other = await sleeper(own);
    const otherRoot = rootOf(other.pid);
    const table = JSON.stringify(mountsOf(other.pid));
    fs.mkdirSync(`${base}/root`);
    const { method, rejected } = await child((path: string) => switchRoot(path), "/tmp/elsewhere", {
      prefix: ["nsenter", `--mount=/proc/${other.pid}/ns/mnt`, "sh", "-c", 'mkdir -p /tmp/elsewhere; exec "$@"', "sh"],
    });
    fs.rmdirSync("/tmp/elsewhere");
    expect(method).toBe("detached");
    expect(rejected.map(({ reason }) => reason)).toEqual(["namespace-shared", "namespace-shared"]);
    expect(rootOf(other.pid)).toBe(otherRoot);
    expect(JSON.stringify(mountsOf(other.pid))).toBe(table);
  });

  test("is not pivoted by process 1 of a PID namespace that was made without a mount namespace", async () => {
    fs.mkdirSync(`${base}/root`);
    const root = rootOf(process.pid);
    const { pid, method, reasons } = await child(
      (path: string) => {
        const { method: used, rejected } = switchRoot(path);
        return { pid: process.pid, method: used, reasons: rejected.map(({ reason }) => reason) };
      },
      `${base}/root`,
      { prefix: ["unshare", "--pid", "--fork"] },
    );
    expect(pid).toBe(1);
    expect(method).toBe("detached");
    expect(reasons).toEqual(["namespace-shared", "namespace-shared"]);
    expect(rootOf(process.pid)).toBe(root);
  });

  test("counts one's own children, whose root would move as well", async () => {
    fs.mkdirSync(`${base}/root`);
    const outcome = await child(async (path: string) => {
      const sleeping = Bun.spawn(["sleep", "60"], { stdio: ["ignore", "ignore", "ignore"] });
      const proc = syscalls.open("/proc", syscalls.O.PATH);
      const inode = (): bigint => syscalls.statx(proc, `${sleeping.pid}/root`, 0, syscalls.STATX.BASIC_STATS).ino;
      const inodeBefore = inode();
      const { method, rejected } = switchRoot(path, { methods: ["pivot", "chroot"] });
      const kept = inode() === inodeBefore;
      sleeping.kill();
      await sleeping.exited;
      return { method, message: rejected[0]?.message, pid: sleeping.pid, kept };
    }, `${base}/root`);
    expect(outcome).toMatchObject({ method: "chroot", kept: true });
    expect(outcome.message).toContain(`process ${outcome.pid} (sleep) lives in it too`);
  });

  test("is looked at again once children were started, although it was one's own before", async () => {
    const outcome = await child(async (path: string) => {
      makeRoot(`${path}/root`);
      syscalls.mount("proc", `${path}/root/proc`, "proc", 0, null);
      const first = switchRoot(`${path}/root`, { methods: ["pivot"] }).method;
      const sleeping = Bun.spawn(["/bin/sleep", "60"], { stdio: [null, null, null] });
      let message = "";
      try {
        switchRoot("/usr", { methods: ["pivot"] });
      } catch (error) {
        message = describeError(error).message;
      }
      sleeping.kill();
      await sleeping.exited;
      return { first, message, second: switchRoot("/usr", { methods: ["pivot"] }).method };
    }, base);
    expect(outcome.first).toBe("pivot");
    expect(outcome.message).toContain("the mount namespace is shared: process");
    expect(outcome.second).toBe("pivot");
  });

  test("is pivoted when sharedNamespace says so, and then the others' root moves too", async () => {
    const outcome = await child(async (path: string) => {
      makeRoot(`${path}/root`, "new");
      syscalls.mount("proc", `${path}/root/proc`, "proc", 0, null);
      const sleeping = Bun.spawn(["sleep", "60"], { stdio: ["ignore", "ignore", "ignore"] });
      const { method } = switchRoot(`${path}/root`, { sharedNamespace: true });
      const marker = fs.readFileSync(`/proc/${sleeping.pid}/root/marker`, "utf8");
      sleeping.kill();
      await sleeping.exited;
      return { method, marker };
    }, base);
    expect(outcome).toEqual({ method: "pivot", marker: "new" });
  });

  test("that cannot be looked into, since its processes belong to somebody else, counts as shared", async () => {
    fs.mkdirSync(`${base}/root`);
    const outcome = await child(
      (path: string) => {
        try {
          return switchRoot(path).rejected.map(({ reason, method }) => `${method} ${reason}`);
        } catch (error) {
          return describeError(error).rejected.map(({ reason, method }) => `${method} ${reason}`);
        }
      },
      `${base}/root`,
      { prefix: ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--map-root-user"] },
    );
    expect(outcome.slice(0, 2)).toEqual(["pivot namespace-shared", "move namespace-shared"]);
  });
});

describe("processes that may not be traced (rule 1)", () => {
  const user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--map-root-user", "--mount"];
  const reasonsOf = (path: string): string[] =>
    switchRoot(path, { methods: ["pivot", "chroot"] }).rejected.map(({ message }) => message);

  test("are told apart by their mount tables, and zombies do not count", async () => {
    fs.mkdirSync(`${base}/root`);
    const zombie = Bun.spawn(["sh", "-c", "sleep 0.1 & echo ready; exec sleep 60"], { stdout: "pipe" });
    await zombie.stdout.getReader().read();
    const children = `/proc/${zombie.pid}/task/${zombie.pid}/children`;
    const state = (): string => fs.readFileSync(`/proc/${fs.readFileSync(children, "utf8").trim()}/status`, "utf8");
    while (!/^State:\s*Z/m.test(state())) await Bun.sleep(1);
    const reasons = await child(reasonsOf, `${base}/root`, { prefix: user });
    zombie.kill();
    await zombie.exited;
    expect(reasons).toEqual([]);
  });

  test("count as living here when their mount table shows nothing", async () => {
    fs.mkdirSync(`${base}/root`);
    const program = `
      import { chroot } from "/work/syscalls.ts";
      const sleeping = Bun.stdin.stream().getReader();
      chroot("${base}/root");
      process.chdir("/");
      console.log("ready");
      await sleeping.read();
    `;
    const chrooted = Bun.spawn([process.execPath, "-e", program], { stdin: "pipe", stdout: "pipe" });
    await chrooted.stdout.getReader().read();
    expect(mountsOf(chrooted.pid)).toEqual([]);
    const reasons = await child(reasonsOf, `${base}/root`, { prefix: user });
    chrooted.kill();
    await chrooted.exited;
    expect(reasons).toEqual([expect.stringContaining(`whether process ${chrooted.pid} lives in it cannot be seen`)]);
  });
});

test("process numbers are those of /proc, which can belong to another PID namespace (rule 1)", async () => {
  fs.mkdirSync(`${base}/root`);
  const outcome = await child(
    (path: string) => ({ pid: process.pid, self: fs.readlinkSync("/proc/self"), method: switchRoot(path).method }),
    `${base}/root`,
    { prefix: ["unshare", "--pid", "--fork", ...own] },
  );
  expect(outcome).toMatchObject({ pid: 1, method: "pivot" });
  expect(outcome.self).not.toBe("1");
});

test("the absolute root, which is an initramfs, is not pivoted but moved", async () => {
  const outcome = await child((path: string) => {
    // Booting one is another test; here statmount(2) says that "/" is its own parent.
    const { mountId } = checks.describe(syscalls.kernel, syscalls.open("/", syscalls.O.PATH)).stat;
    const statmount = (id: bigint): syscalls.Statmount => ({
      ...syscalls.statmount(id),
      ...(id === mountId && { parentId: id }),
    });
    const { method, rejected } = switchRootOn({ ...syscalls.kernel, statmount }, path, {});
    return { method, reasons: rejected.map(({ reason }) => reason) };
  }, base);
  expect(outcome).toEqual({ method: "move", reasons: ["initramfs"] });
});

describe("a process that was chrooted before (rule 2)", () => {
  interface Jail {
    base: string;
    /** Where the process is chrooted to: the root of a mount, or a plain directory. */
    jail: "mount" | "directory";
    /** Whether statmount(2) is there. */
    statmount: boolean;
  }

  /** Chrooted, with every capability, it switches; then it tries to get out the classic way. */
  const switchAndEscape = ({ base: path, jail, statmount }: Jail): { rejected: string[]; method: string; found: string } => {
    fs.writeFileSync("/tmp/outside", "the host");
    const inside = `${path}/jail`;
    fs.mkdirSync(inside);
    syscalls.mount("jail", inside, "tmpfs", 0, null);
    const place = jail === "mount" ? inside : `${inside}/plain`;
    makeRoot(place);
    fs.mkdirSync(`${place}/sub/deep`);
    syscalls.mount("proc", `${place}/proc`, "proc", 0, null);
    syscalls.chroot(place);
    process.chdir("/");
    const refuse = (): never => {
      throw new syscalls.SyscallError("statmount", 38);
    };
    const kernel = statmount ? syscalls.kernel : { ...syscalls.kernel, statmount: refuse };
    const { method, rejected } = switchRootOn(kernel, "/sub", {});
    syscalls.chroot("/deep");
    for (let step = 0; step < 200; step++) syscalls.chdir("..");
    syscalls.chroot(".");
    const found = fs.readdirSync("/").includes("marker") ? fs.readFileSync("/marker", "utf8") : "nothing";
    return { rejected: rejected.map(({ reason }) => reason), method, found };
  };

  for (const jail of ["mount", "directory"] as const) {
    for (const statmount of [true, false]) {
      test(`is not pivoted or moved, and does not escape: ${jail}, ${statmount ? "with" : "without"} statmount(2)`, async () => {
        const { rejected, method, found } = await child(switchAndEscape, { base, jail, statmount });
        expect(rejected).toEqual(["chrooted", "chrooted"]);
        expect(method).toBe("detached");
        expect(found).toBe(`${base}/jail${jail === "mount" ? "" : "/plain"}/sub`);
      });
    }
  }

  test("that was not, is pivoted also without statmount(2), where the namespace's root has to be looked for", async () => {
    const outcome = await child((path: string) => {
      let asked = 0;
      const statmount = (): never => {
        asked++;
        throw new syscalls.SyscallError("statmount", 38);
      };
      const { method } = switchRootOn({ ...syscalls.kernel, statmount }, path, { methods: ["pivot"] });
      return { method, asked: asked > 0 };
    }, base);
    expect(outcome).toEqual({ method: "pivot", asked: true });
  });

  test("after a move, the root that covers another one is still known as the namespace's", async () => {
    const outcome = await child((path: string) => {
      makeRoot(`${path}/root`);
      syscalls.mount("proc", `${path}/root/proc`, "proc", 0, null);
      const { method } = switchRoot(`${path}/root`, { methods: ["move"] });
      const fd = syscalls.open("/", syscalls.O.PATH);
      const isRoot = checks.isSame(syscalls.statNamespaceRoot(), checks.describe(syscalls.kernel, fd).stat);
      return { method, isRoot, second: switchRoot("/sub", { methods: ["pivot"] }).method };
    }, base);
    expect(outcome).toEqual({ method: "move", isRoot: true, second: "pivot" });
  });
});

describe("undoing", () => {
  test("leaves a mount alone that somebody else put on the path meanwhile (rule 4)", async () => {
    const outcome = await child((path: string) => {
      fs.mkdirSync(`${path}/root`);
      const pivot_root = (): never => {
        // What another process of a shared namespace might do between two of our calls.
        syscalls.mount("foreign", `${path}/root`, "tmpfs", 0, null);
        throw new syscalls.SyscallError("pivot_root", 22);
      };
      try {
        return switchRootOn({ ...syscalls.kernel, pivot_root }, `${path}/root`, { methods: ["pivot"] }).method;
      } catch (error) {
        const mounts = mountinfo.getMounts(mountinfo.singleEntryFilter(`${path}/root`)).map(({ mountSource }) => mountSource);
        return { error: describeError(error), mounts };
      }
    }, base);
    if (typeof outcome === "string") throw new Error(`it switched by ${outcome}`);
    expect(outcome.mounts).toEqual(["base", "foreign"]);
    expect(outcome.error).toMatchObject({ switched: true, phase: "pivot_root" });
    expect(outcome.error.suppressed.join()).toContain("is mounted over");
  });

  test("counts what somebody else has unmounted meanwhile as undone", async () => {
    const outcome = await child((path: string) => {
      fs.mkdirSync(`${path}/parent`);
      syscalls.mount("parent", `${path}/parent`, "tmpfs", 0, null);
      fs.mkdirSync(`${path}/parent/root`);
      const pivot_root: typeof syscalls.pivot_root = (...args) => {
        syscalls.umount2(`${path}/parent`, syscalls.MNT.DETACH);
        syscalls.pivot_root(...args);
      };
      try {
        return switchRootOn({ ...syscalls.kernel, pivot_root }, `${path}/parent/root`, { methods: ["pivot"] }).method;
      } catch (error) {
        return { error: describeError(error), mounts: mountinfo.getMounts(mountinfo.prefixFilter(path)).length };
      }
    }, base);
    expect(outcome).toMatchObject({
      error: { switched: false, phase: "pivot_root", suppressed: [] },
      mounts: 1,
    });
  });

  test("a move that fails has not lost the other mounts", async () => {
    const outcome = await child((path: string) => {
      const chroot = (): never => {
        throw new syscalls.SyscallError("chroot", 1);
      };
      const tableBefore = fs.readFileSync("/proc/self/mountinfo", "utf8");
      try {
        return switchRootOn({ ...syscalls.kernel, chroot }, path, { methods: ["move"] }).method;
      } catch (error) {
        return { error: describeError(error), same: fs.readFileSync("/proc/self/mountinfo", "utf8") === tableBefore };
      }
    }, base);
    expect(outcome).toMatchObject({ error: { switched: false, phase: "chroot" }, same: true });
  });
});

describe("verifying (rule 8)", () => {
  test("tells a mount from another one that has got its plain ID", async () => {
    const outcome = await child((path: string) => {
      const look = (): { plain: number; seen: checks.Directory } => {
        syscalls.mount("again", path, "tmpfs", 0, null);
        const fd = syscalls.open(path, syscalls.O.PATH);
        const found = { plain: mountinfo.mountIdOf(fd), seen: checks.describe(syscalls.kernel, fd) };
        syscalls.close(fd);
        syscalls.umount2(path, 0);
        return found;
      };
      const [first, second] = [look(), look()];
      return { reused: first.plain === second.plain, same: first.seen.stat.mountId === second.seen.stat.mountId };
    }, base);
    expect(outcome).toEqual({ reused: true, same: false });
  });

  for (const method of ["pivot", "move", "detached"] as const) {
    test(`refuses a path that somebody mounts on after it was opened, which "/.." would lead to: ${method}`, async () => {
      const outcome = await child(
        ({ path, method: only }: { path: string; method: "pivot" | "move" | "detached" }) => {
          fs.mkdirSync(`${path}/root`);
          const open_tree: typeof syscalls.open_tree = (...args) => {
            syscalls.mount("foreign", `${path}/root`, "tmpfs", 0, null);
            return syscalls.open_tree(...args);
          };
          try {
            return switchRootOn({ ...syscalls.kernel, open_tree }, `${path}/root`, { methods: [only] }).method;
          } catch (error) {
            const mounts = mountinfo.getMounts(mountinfo.singleEntryFilter(`${path}/root`)).map(({ mountSource }) => mountSource);
            return { error: describeError(error), mounts };
          }
        },
        { path: base, method },
      );
      expect(outcome).toMatchObject({
        error: { switched: false, phase: "covered", rejected: [{ reason: "not-verified" }] },
        mounts: ["foreign"],
      });
    });
  }

  test("refuses a mount point that somebody mounts on after it was opened, and leaves what is there alone", async () => {
    const outcome = await child((path: string) => {
      fs.mkdirSync(`${path}/root`);
      syscalls.mount("ours", `${path}/root`, "tmpfs", 0, null);
      let covered = false;
      const fchdir: typeof syscalls.fchdir = (fd) => {
        if (!covered) syscalls.mount("foreign", `${path}/root`, "tmpfs", 0, null);
        covered = true;
        syscalls.fchdir(fd);
      };
      const attempt = (): unknown => {
        try {
          return switchRootOn({ ...syscalls.kernel, fchdir }, `${path}/root`, { methods: ["pivot"] }).method;
        } catch (error) {
          return describeError(error);
        }
      };
      const error = attempt();
      return { error, mounts: mountinfo.getMounts(mountinfo.singleEntryFilter(`${path}/root`)).map((each) => each.mountSource) };
    }, base);
    expect(outcome).toMatchObject({
      error: { switched: false, phase: "probe", rejected: [{ reason: "not-verified" }] },
      mounts: ["ours", "foreign"],
    });
  });

  test("tells a read-only bind mount from its source, and undoes when the root is the wrong one", async () => {
    const outcome = await child((path: string) => {
      fs.mkdirSync(`${path}/root`);
      syscalls.mount(`${path}/root`, `${path}/root`, null, syscalls.MS.BIND, null);
      const tableBefore = fs.readFileSync("/proc/self/mountinfo", "utf8");
      // The working directory is led to the mount's source, the same directory on another mount.
      const source = syscalls.open(path, syscalls.O.PATH);
      const chroot = (): void => {
        syscalls.fchdir(source);
        syscalls.chroot("root/../root");
      };
      let calls = 0;
      const once = (to: syscalls.PathLike): void => (calls++ === 0 ? chroot() : syscalls.chroot(to));
      try {
        return switchRootOn({ ...syscalls.kernel, chroot: once }, `${path}/root`, { methods: ["detached"] }).method;
      } catch (error) {
        return { error: describeError(error), same: fs.readFileSync("/proc/self/mountinfo", "utf8") === tableBefore };
      }
    }, base);
    expect(outcome).toMatchObject({
      error: { switched: false, phase: "verify", rejected: [{ reason: "not-verified" }] },
      same: true,
    });
  });
});

describe("a move, which detaches what is mounted on the old root", () => {
  const onOldRoot = "/damage";
  afterEach(() => fs.rmSync(onOldRoot, { recursive: true }));

  /** Something is mounted on the old root, and somebody does something to it when the move has listed it. */
  const moveWhile = ({ path, place, change }: { path: string; place: string; change: "unmount" | "rename" | "symlink" }) => {
    fs.mkdirSync(`${place}/holder/inner`, { recursive: true });
    syscalls.mount("other", `${place}/holder/inner`, "tmpfs", 0, null);
    fs.mkdirSync(`${path}/root/inner`, { recursive: true });
    syscalls.mount("inner", `${path}/root/inner`, "tmpfs", 0, null);
    const proc = syscalls.open("/proc", syscalls.O.PATH);
    const mount: typeof syscalls.mount = (...args) => {
      if (args[3] === syscalls.MS.MOVE) {
        if (change === "unmount") syscalls.umount2(`${place}/holder/inner`, syscalls.MNT.DETACH);
        else {
          fs.renameSync(`${place}/holder`, `${place}/away`);
          if (change === "symlink") fs.symlinkSync("/", `${place}/holder`);
        }
      }
      syscalls.mount(...args);
    };
    const { mountId } = syscalls.statx(syscalls.AT.FDCWD, "/", 0, syscalls.STATX.MNT_ID_UNIQUE);
    const { method } = switchRootOn({ ...syscalls.kernel, mount }, `${path}/root`, { methods: ["move"] });
    const table = new TextDecoder().decode(syscalls.readFile("self/mountinfo", proc));
    const mounts = mountinfo.parseMountInfo(table).map(({ mountPoint }) => mountPoint);
    // The table has only what lies below "/". The new root and what is mounted there lie below the old one.
    return { method, mounts, onOldRoot: syscalls.countMounts(mountId) };
  };

  test("does without what somebody else has unmounted meanwhile", async () => {
    const outcome = await child(moveWhile, { path: base, place: onOldRoot, change: "unmount" });
    expect(outcome).toEqual({ method: "move", mounts: ["/", "/inner"], onOldRoot: 2 });
  });

  test("finds what is mounted in a directory that somebody has renamed meanwhile", async () => {
    const outcome = await child(moveWhile, { path: base, place: onOldRoot, change: "rename" });
    expect(outcome).toEqual({ method: "move", mounts: ["/", "/inner"], onOldRoot: 2 });
  });

  test("follows no symlink that has come to lie there, which could lead to what is mounted in the new root", async () => {
    const outcome = await child(moveWhile, { path: base, place: onOldRoot, change: "symlink" });
    expect(outcome).toEqual({ method: "move", mounts: ["/", "/inner"], onOldRoot: 2 });
  });

  test("gives up where what is mounted there is renamed each time that it is looked for, and says that it is too late to undo", async () => {
    const look = ({ path, place }: { path: string; place: string }) => {
      fs.mkdirSync(`${place}/holder`, { recursive: true });
      syscalls.mount("other", `${place}/holder`, "tmpfs", 0, null);
      fs.mkdirSync(`${path}/root/inside`, { recursive: true });
      let looks = 0;
      const openat2: typeof syscalls.openat2 = (dirfd, name, how) => {
        if (syscalls.pathText(name) !== `${place}/holder`.slice(1)) return syscalls.openat2(dirfd, name, how);
        looks++;
        throw new syscalls.SyscallError("openat2", 2);
      };
      try {
        return switchRootOn({ ...syscalls.kernel, openat2 }, `${path}/root`, { methods: ["move"] }).method;
      } catch (error) {
        return { ...describeError(error), looks, root: fs.readdirSync("/") };
      }
    };
    // What else is mounted on the old root, its /proc for one, has been detached by then.
    expect(await child(look, { path: base, place: onOldRoot })).toMatchObject({
      switched: true,
      phase: "detach",
      reason: "not-verified",
      message: expect.stringContaining(`'${onOldRoot}/holder' is still mounted on the old root: it is renamed all the time`),
      looks: 100,
      root: ["inside"],
    });
  });
});
