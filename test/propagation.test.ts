/**
 * What a switch must not do where mounts are shared with the host (rules 3, 5 and 9). Each test is set up so that the damage would
 * be done, and looks for it on the host.
 */
import { describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as mountinfo from "../mountinfo.ts";
import { switchRoot, switchRootOn } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child, onTmpfs } from "./child.ts";
import { mountsOf } from "./observe.ts";

const base = "/tmp/propagation";
onTmpfs(base);

function mountPointsBelow(path: string): string[] {
  return mountsOf("self")
    .map((mount) => mount.mountPoint)
    .filter((mountPoint) => mountPoint.startsWith(`${path}/`))
    .sort();
}

describe("shared mounts (rules 3, 5 and 9)", () => {
  /** The host's: a shared mount with a mount on it, and a directory to become a root. */
  function makeShared(): void {
    const { MS, mount } = syscalls;
    mount(null, base, null, MS.SHARED, null);
    for (const name of ["root", "below"]) fs.mkdirSync(`${base}/${name}`);
    mount("below", `${base}/below`, "tmpfs", 0, null);
    mount("inner", `${base}/root`, "tmpfs", 0, null);
    fs.mkdirSync(`${base}/root/inner`);
    fs.mkdirSync(`${base}/root/sub`);
    mount("inner", `${base}/root/inner`, "tmpfs", 0, null);
  }
  const unchanged = ["unshare", "--mount", "--propagation", "unchanged"];

  const advice =
    "in a mount namespace of its own, which enterMountNamespace() and 'unshare --mount' make: 'mount --make-rprivate /'";

  const reasons = (path: string): string[] =>
    switchRoot(path, { methods: ["pivot", "chroot"] }).rejected.map(({ message }) => message);

  test("it is enough that the new root is mounted on a shared mount", async () => {
    makeShared();
    syscalls.mount(null, `${base}/root`, null, syscalls.MS.PRIVATE, null);
    const ruledOut = await child(reasons, `${base}/root`, { prefix: unchanged });
    expect(ruledOut).toEqual([`the mount that the new root is mounted on is shared (${advice})`]);
  });

  test('it is enough that "/" is shared', async () => {
    fs.mkdirSync(`${base}/root`);
    const ruledOut = await child((path: string) => {
      syscalls.mount(null, "/", null, syscalls.MS.SHARED, null);
      return switchRoot(path, { methods: ["pivot", "chroot"] }).rejected.map(({ message }) => message);
    }, `${base}/root`);
    expect(ruledOut).toEqual([`the mount at "/" is shared (${advice})`]);
  });

  test('it is enough that "/" is mounted on a shared mount, which no mount table shows', async () => {
    const ruledOut = await child((path: string) => {
      fs.mkdirSync(`${path}/proc`);
      fs.mkdirSync(`${path}/sub`);
      syscalls.mount("proc", `${path}/proc`, "proc", 0, null);
      const below = syscalls.open("/", syscalls.O.PATH);
      switchRoot(path, { methods: ["move"] });
      syscalls.fchdir(below);
      syscalls.mount(null, ".", null, syscalls.MS.SHARED, null);
      return switchRoot("/sub", { methods: ["pivot", "detached"] }).rejected.map(({ message }) => message);
    }, base);
    expect(ruledOut).toEqual(['the mount that "/" is mounted on is shared, and no path leads there (use the method "detached")']);
  });

  for (const name of ["root", "below", "root/sub"]) {
    test(`pivot and move are ruled out before anything is mounted: ${name}`, async () => {
      makeShared();
      const mountPoints = mountPointsBelow(base);
      const { method, rejected, log } = await child(
        (path: string) => {
          const log: string[] = [];
          const kernel: syscalls.Kernel = {
            ...syscalls.kernel,
            mount: (...args) => {
              log.push("mount");
              syscalls.mount(...args);
            },
            move_mount: (...args) => {
              log.push("move_mount");
              syscalls.move_mount(...args);
            },
          };
          const { method: used, rejected: ruledOut } = switchRootOn(kernel, path, { methods: ["pivot", "move", "chroot"] });
          return { method: used, rejected: ruledOut.map(({ reason }) => reason), log };
        },
        `${base}/${name}`,
        { prefix: unchanged },
      );
      expect(rejected).toEqual(["shared-mount", "shared-mount"]);
      expect(method).toBe("chroot");
      expect(log).toEqual([]);
      expect(mountPointsBelow(base)).toEqual(mountPoints);
    });
  }

  test("what is mounted inside a detached root does not appear on the host, and what the host unmounts stays", async () => {
    makeShared();
    const mountPoints = mountPointsBelow(base);
    const outcome = await child(
      (path: string) => {
        const { method } = switchRoot(path, { methods: ["detached"] });
        const context = syscalls.fsopen("tmpfs", 0);
        syscalls.fsconfig(context, syscalls.FSCONFIG.CMD_CREATE, null, null);
        const mounted = syscalls.fsmount(context, 0, 0);
        syscalls.move_mount(mounted, "", syscalls.AT.FDCWD, "/sub", syscalls.MOVE_MOUNT.F_EMPTY_PATH);
        return { method, inside: mountinfo.mounted("/sub"), inner: mountinfo.mounted("/inner") };
      },
      `${base}/root`,
      { prefix: [] },
    );
    expect(outcome).toEqual({ method: "detached", inside: true, inner: true });
    expect(mountPointsBelow(base)).toEqual(mountPoints);
  });

  for (const putOld of ["stacked", "directory"] as const) {
    test(`detaching the old root takes nothing away on the host (${putOld})`, async () => {
      makeShared();
      const mountPoints = mountPointsBelow(base);
      const method = await child(
        ({ path, where }: { path: string; where: "stacked" | "directory" }) => {
          // A root beside the shared mounts, which stay shared with the host below the old root.
          fs.mkdirSync(path);
          return switchRoot(path, { methods: ["pivot"], putOld: where }).method;
        },
        { path: `/tmp/beside-${putOld}`, where: putOld },
        { prefix: unchanged },
      );
      fs.rmdirSync(`/tmp/beside-${putOld}`);
      expect(method).toBe("pivot");
      expect(mountPointsBelow(base)).toEqual(mountPoints);
    });
  }

  test("move takes nothing away on the host either", async () => {
    makeShared();
    const mountPoints = mountPointsBelow(base);
    fs.mkdirSync("/tmp/beside");
    const method = await child((path: string) => switchRoot(path, { methods: ["move"] }).method, "/tmp/beside", {
      prefix: unchanged,
    });
    fs.rmdirSync("/tmp/beside");
    expect(method).toBe("move");
    expect(mountPointsBelow(base)).toEqual(mountPoints);
  });

  for (const method of ["pivot", "move"] as const) {
    test(`${method} leaves the propagation of the new root's own mounts alone`, async () => {
      const propagation = await child(
        ({ path, used }: { path: string; used: "pivot" | "move" }) => {
          fs.mkdirSync(`${path}/proc`);
          fs.mkdirSync(`${path}/shared`);
          syscalls.mount("proc", `${path}/proc`, "proc", 0, null);
          syscalls.mount("shared", `${path}/shared`, "tmpfs", 0, null);
          syscalls.mount(null, `${path}/shared`, null, syscalls.MS.SHARED, null);
          switchRoot(path, { methods: [used] });
          return mountinfo.mountOf("/shared").propagation.shared;
        },
        { path: base, used: method },
      );
      expect(propagation).toBeGreaterThan(0);
    });
  }
});
