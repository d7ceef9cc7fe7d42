/** Where the kernel, another process, or what lies in a foreign root could mislead a switch. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import * as fs from "node:fs";
import * as mountinfo from "../mountinfo.ts";
import { switchRoot, switchRootOn } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child } from "./child.ts";
import { describeError, makeRoot } from "./observe.ts";

const base = "/tmp/hardening";
let before = "";

beforeEach(() => {
  before = fs.readFileSync("/proc/self/mountinfo", "utf8");
  fs.mkdirSync(`${base}/root`, { recursive: true });
});
afterEach(() => {
  fs.rmSync(base, { recursive: true });
  expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(before);
});

test("an orphan of this process, whose parent is process 1 by now, still lives in the namespace", async () => {
  const outcome = await child((path: string) => {
    makeRoot(path);
    syscalls.mount("proc", `${path}/proc`, "proc", 0, null);
    const first = switchRoot(path, { methods: ["pivot"] }).method;
    const { stdout } = Bun.spawnSync(["/bin/sh", "-c", "sleep 60 </dev/null >/dev/null 2>&1 & echo $!"]);
    const orphan = Number(stdout.toString());
    const { method, rejected } = switchRoot("/usr", { methods: ["pivot", "chroot"] });
    process.kill(orphan);
    return { first, method, message: rejected[0]?.message, orphan };
  }, `${base}/root`);
  expect(outcome).toMatchObject({ first: "pivot", method: "chroot" });
  expect(outcome.message).toContain(`process ${outcome.orphan} (sleep) lives in it too`);
});

test("a thread that is in the namespace counts, although the process that it belongs to is elsewhere", async () => {
  const source = `
    import { AT, CLONE, readlinkat, unshare } from "${new URL("../syscalls.ts", import.meta.url).pathname}";
    self.onmessage = () => {}; // It stays.
    unshare(CLONE.NEWNS);
    postMessage(new TextDecoder().decode(readlinkat(AT.FDCWD, "/proc/thread-self")));
  `;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
  const thread: string = await new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data)));
  const outcome = await child((path: string) => switchRoot(path, { methods: ["pivot", "chroot"] }), `${base}/root`, {
    prefix: ["nsenter", `--mount=/proc/${thread}/ns/mnt`],
  });
  worker.terminate();
  expect(outcome.method).toBe("chroot");
  expect(outcome.rejected[0]?.message).toContain(`process ${process.pid} `);
});

test("nothing that a foreign root has in the place of /proc is executed", async () => {
  const outcome = await child((path: string) => {
    syscalls.mount("jail", path, "tmpfs", 0, null);
    makeRoot(path);
    fs.mkdirSync(`${path}/proc/self`);
    fs.writeFileSync(`${path}/proc/self/exe`, "#!/bin/sh\ntouch /ran\n", { mode: 0o755 });
    syscalls.chroot(path);
    process.chdir("/");
    const statmount = (): never => {
      throw new syscalls.SyscallError("statmount", 38);
    };
    const { method, rejected } = switchRootOn({ ...syscalls.kernel, statmount }, "/sub", {});
    return { method, messages: rejected.map(({ message }) => message) };
  }, `${base}/root`);
  expect(outcome.method).toBe("detached");
  expect(outcome.messages).toEqual(Array(2).fill(expect.stringContaining("cannot be seen: /proc is not mounted")));
  expect(fs.existsSync(`${base}/root/ran`)).toBe(false);
});

test("a mount that somebody puts on the new root between two methods is neither entered nor unmounted", async () => {
  const outcome = await child((path: string) => {
    syscalls.mount("ours", path, "tmpfs", 0, null);
    const pivot_root = (): never => {
      syscalls.mount("foreign", path, "tmpfs", 0, null);
      throw new syscalls.SyscallError("pivot_root", 1);
    };
    const attempts: string[] = [];
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        attempts.push(switchRootOn({ ...syscalls.kernel, pivot_root }, path, { methods: ["pivot", "move"] }).method);
      } catch (error) {
        attempts.push(
          describeError(error)
            .rejected.map(({ reason }) => reason)
            .join(),
        );
      }
    }
    return { attempts, mounts: mountinfo.getMounts(mountinfo.singleEntryFilter(path)).map(({ mountSource }) => mountSource) };
  }, `${base}/root`);
  expect(outcome.attempts).toEqual(["refused,not-verified", "refused,not-verified"]);
  expect(outcome.mounts).toEqual(["ours", "foreign", "foreign"]);
});

test("without a /proc a switch works, and one that fails is undone", async () => {
  const outcome = await child((path: string) => {
    const proc = syscalls.open("/proc", syscalls.O.PATH);
    const table = (): string => new TextDecoder().decode(syscalls.readFile("self/mountinfo", proc));
    syscalls.umount2("/proc", syscalls.MNT.DETACH);
    const tableBefore = table();
    const pivot_root = (): never => {
      throw new syscalls.SyscallError("pivot_root", 1);
    };
    const chroot = (): never => {
      throw new syscalls.SyscallError("chroot", 1);
    };
    try {
      switchRootOn({ ...syscalls.kernel, pivot_root, chroot }, path, {});
      throw new Error("it switched");
    } catch (error) {
      const { switched, rejected } = describeError(error);
      const unchanged = table() === tableBefore;
      return { switched, unchanged, reasons: rejected.map(({ reason }) => reason), method: switchRoot(path).method };
    }
  }, `${base}/root`);
  expect(outcome).toEqual({ switched: false, unchanged: true, reasons: Array(4).fill("refused"), method: "pivot" });
});

test("without a /proc, and without the right to have one, nothing is done, and the message says why", async () => {
  const error = await child((path: string) => {
    syscalls.umount2("/proc", syscalls.MNT.DETACH);
    process.setuid?.(65534);
    try {
      throw new Error(`it switched by ${switchRoot(path).method}`);
    } catch (refusal) {
      return describeError(refusal);
    }
  }, `${base}/root`);
  expect(error).toMatchObject({ name: "SwitchRootError", switched: false, phase: "threads", code: "EPERM" });
  expect(error.message).toContain("the threads of this process cannot be looked at, since /proc is not mounted");
});

test("move leaves everything as it was when one of the other mounts is locked, whichever comes first", async () => {
  const outcome = await child(
    (path: string) => {
      // Free, and with a shorter path than the locked ones.
      syscalls.mount("free", "/mnt", "tmpfs", 0, null);
      const tableBefore = fs.readFileSync("/proc/self/mountinfo", "utf8");
      try {
        return switchRoot(path, { methods: ["move"] }).method;
      } catch (error) {
        const { switched, phase, code } = describeError(error);
        return { switched, phase, code, unchanged: fs.readFileSync("/proc/self/mountinfo", "utf8") === tableBefore };
      }
    },
    `${base}/root`,
    { prefix: ["unshare", "--user", "--map-root-user", "--mount"] },
  );
  expect(outcome).toEqual({ switched: false, phase: "list", code: "EINVAL", unchanged: true });
});

test("move also detaches mounts that are stacked, or hidden under another", async () => {
  const outcome = await child((path: string) => {
    const { mount } = syscalls;
    mount("tmpfs", path, "tmpfs", 0, null);
    fs.mkdirSync(`${path}/proc`);
    mount("proc", `${path}/proc`, "proc", 0, null);
    fs.mkdirSync("/mnt/hidden");
    mount("hidden", "/mnt/hidden", "tmpfs", 0, null);
    mount("covers", "/mnt", "tmpfs", 0, null);
    mount("stacked", "/mnt", "tmpfs", 0, null);
    const before = syscalls.open("/", syscalls.O.PATH);
    const { method } = switchRoot(path, { methods: ["move"] });
    syscalls.fchdir(before);
    const left = ["mnt", "mnt/hidden", "proc", "dev", "tmp"].filter(
      (name) => syscalls.statx(syscalls.AT.FDCWD, name, 0, 0).mountRoot,
    );
    fs.rmdirSync(`/proc/self/cwd/mnt/hidden`);
    return { method, left, mounts: mountinfo.getMounts().map(({ mountPoint }) => mountPoint) };
  }, `${base}/root`);
  expect(outcome).toEqual({ method: "move", left: [], mounts: ["/", "/proc"] });
});

test("a bind mount by name is undone also when it cannot be opened", async () => {
  const outcome = await child((path: string) => {
    const tableBefore = fs.readFileSync("/proc/self/mountinfo", "utf8");
    let bound = false;
    const kernel: syscalls.Kernel = {
      ...syscalls.kernel,
      open_tree: () => {
        throw new syscalls.SyscallError("open_tree", 38);
      },
      mount: (...args) => {
        bound = true;
        syscalls.mount(...args);
      },
      open: (...args) => {
        if (bound) throw new syscalls.SyscallError("open", 24);
        return syscalls.open(...args);
      },
    };
    try {
      return switchRootOn(kernel, path, { methods: ["pivot"] }).method;
    } catch (error) {
      const { switched, phase } = describeError(error);
      return { switched, phase, bound, unchanged: fs.readFileSync("/proc/self/mountinfo", "utf8") === tableBefore };
    }
  }, `${base}/root`);
  expect(outcome).toEqual({ switched: false, phase: "open", bound: true, unchanged: true });
});

test("a descriptor that has got the number of a detached tree's, which the program has closed, is not closed", async () => {
  const outcome = await child((path: string) => {
    makeRoot(path);
    const host = syscalls.open("/", syscalls.O.PATH);
    let tree = -1;
    const open_tree = (...args: Parameters<typeof syscalls.open_tree>): number => {
      tree = syscalls.open_tree(...args);
      return tree;
    };
    switchRootOn({ ...syscalls.kernel, open_tree }, path, { methods: ["detached"] });
    syscalls.close(tree);
    let stranger = -1;
    while (stranger !== tree) stranger = syscalls.open("/marker", syscalls.O.RDONLY);
    syscalls.fchdir(host);
    syscalls.chroot(".");
    const { method } = switchRoot(path, { methods: ["detached"] });
    return { method, size: syscalls.read(stranger, new Uint8Array(4096)) };
  }, `${base}/root`);
  expect(outcome).toEqual({ method: "detached", size: `${base}/root`.length });
});

test("where Bun does not show what bun:ffi is made of, bun:ffi is what is used", async () => {
  const program = `
    await import("bun:ffi");
    Bun.FFI = undefined;
    const { chroot, execvp } = await import("${import.meta.dir}/../syscalls.ts");
    const { getMounts } = await import("${import.meta.dir}/../mountinfo.ts");
    for (const call of [() => chroot("/missing"), () => execvp(["/etc"])]) {
      try { call(); } catch (error) { console.log(getMounts().length > 0, error.code, Bun.FFI); }
    }
  `;
  const found = Bun.spawnSync([process.execPath, "-e", program], { stderr: "pipe" });
  expect(found.stdout.toString() || found.stderr.toString()).toBe("true ENOENT undefined\ntrue EACCES undefined\n");
});

test("a call's error is the kernel's, whatever calls the engine has made since", () => {
  fs.writeFileSync(`${base}/root/plain`, "");
  const program = `
    const { chroot, execvp, open, tryExpire } = await import("${import.meta.dir}/../syscalls.ts");
    chroot("${base}/root");
    const codeOf = (call) => {
      try { call(); } catch (error) { return error.code; }
    };
    console.log(codeOf(() => execvp(["/plain"])), codeOf(() => open("/plain/below", 0)), tryExpire("/plain"));
  `;
  // Where there is no /proc, the engine's look at how much memory there is fails, too: here at each slow allocation.
  const environment = { ...process.env, BUN_JSC_slowPathAllocsBetweenGCs: "1" };
  const found = Bun.spawnSync([process.execPath, "-e", program], { env: environment, stderr: "pipe" });
  expect(found.stdout.toString() || found.stderr.toString()).toBe("EACCES ENOTDIR 22\n");
});
