/** What switchRoot refuses, before anything has changed, and which methods it rules out. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { type SwitchRootOptions, switchRoot, switchRootOn } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child, own } from "./child.ts";
import { type DescribedError, describeError, makeRoot } from "./observe.ts";

const base = "/tmp/refusals";

beforeEach(() => {
  fs.mkdirSync(`${base}/root`, { recursive: true });
  fs.writeFileSync(`${base}/file`, "");
});
afterEach(() => fs.rmSync(base, { recursive: true }));

/** What it threw, and whether everything is as it was. */
interface Refusal {
  error: DescribedError;
  unchanged: boolean;
}

function refuse({ path, options }: { path: string; options?: SwitchRootOptions }): Refusal | { method: string } {
  const state = (): string =>
    [
      fs.readFileSync("/proc/self/mountinfo", "utf8"),
      process.cwd(),
      fs.readlinkSync("/proc/self/cwd"),
      fs.readlinkSync("/proc/self/root"),
    ].join();
  const before = state();
  try {
    return { method: switchRoot(path, options).method };
  } catch (error) {
    return { error: describeError(error), unchanged: state() === before };
  }
}

describe("bad input is refused with a clear error, before anything has changed (rule 10)", () => {
  for (const [what, path, code] of [
    ["a path that does not exist", `${base}/missing`, "ENOENT"],
    ["a file", `${base}/file`, "ENOTDIR"],
    ["an empty path", "", "ENOENT"],
    ["what is the root already", "/", "EBUSY"],
    ["the root by another name", "/tmp/..", "EBUSY"],
    ["a path below a file", `${base}/file/x`, "ENOTDIR"],
    ["a name that is too long", "x".repeat(256), "ENAMETOOLONG"],
  ] as const) {
    test(`${what}: ${code}`, async () => {
      const refusal = await child(refuse, { path });
      expect(refusal).toMatchObject({
        error: { name: "SwitchRootError", code, switched: false, phase: "arguments", rejected: [], suppressed: [] },
        unchanged: true,
      });
    });
  }

  test("a symlink that leads to itself: ELOOP", async () => {
    fs.symlinkSync("loop", `${base}/loop`);
    expect(await child(refuse, { path: `${base}/loop` })).toMatchObject({
      error: { code: "ELOOP", switched: false },
      unchanged: true,
    });
  });

  // These throw before the kernel is asked for anything, so they need no process of their own.
  test("a NUL in the path, and what is no path", () => {
    expect(() => switchRoot("/tmp\0/x")).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE", name: "TypeError" }));
    expect(() => switchRoot(new Uint8Array([0x2f, 0]))).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
    expect(() => switchRoot("/\ud800")).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
    expect(() => switchRoot(new URL("http://host/path"))).toThrow(expect.objectContaining({ code: "ERR_INVALID_URL_SCHEME" }));
    const wrong: unknown[] = [undefined, null, 3, {}, []];
    for (const value of wrong) {
      expect(() => Reflect.apply(switchRoot, undefined, [value])).toThrow(
        expect.objectContaining({ code: "ERR_INVALID_ARG_TYPE", name: "TypeError" }),
      );
    }
  });

  test("options that mean nothing", () => {
    const wrong: unknown[] = [
      { methods: [] },
      { methods: ["pivto"] },
      { methods: "pivot" },
      { methods: ["toString"] },
      { putOld: "/old" },
    ];
    for (const options of wrong) {
      expect(() => Reflect.apply(switchRoot, undefined, [`${base}/root`, options])).toThrow(
        expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE", name: "TypeError" }),
      );
    }
  });

  test("an option that is misspelt, which would otherwise allow the weak methods, and what are no options", () => {
    const wrong: [options: unknown, code: string][] = [
      [{ method: ["pivot"] }, "ERR_INVALID_ARG_VALUE"],
      ["chroot", "ERR_INVALID_ARG_TYPE"],
      [5, "ERR_INVALID_ARG_TYPE"],
      [null, "ERR_INVALID_ARG_TYPE"],
      [["pivot"], "ERR_INVALID_ARG_TYPE"],
      [{ sharedNamespace: "no" }, "ERR_INVALID_ARG_TYPE"],
    ];
    for (const [options, code] of wrong) {
      expect(() => Reflect.apply(switchRoot, undefined, [`${base}/root`, options])).toThrow(
        expect.objectContaining({ code, name: "TypeError" }),
      );
    }
  });

  test("a call from a Worker", async () => {
    const source = `
      import { switchRoot } from "${new URL("../switchroot.ts", import.meta.url).pathname}";
      try { switchRoot("${base}/root"); postMessage("switched"); } catch (error) { postMessage(error.code + " " + error.name + " " + error.message); }
    `;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
    const message = await new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data)));
    worker.terminate();
    expect(message).toContain("ERR_WORKER_UNSUPPORTED_OPERATION TypeError");
    expect(message).toContain("Worker");
  });
});

describe("a method is ruled out", () => {
  test("in a shared mount namespace: the message says how to get one of one's own", async () => {
    const refusal = await child(refuse, { path: `${base}/root`, options: { methods: ["pivot"] } }, { prefix: [] });
    if (!("error" in refusal)) throw new Error("it switched");
    expect(refusal.error.message).toMatch(/the mount namespace is shared: process \d+ \(\S+\) lives in it too/);
    expect(refusal.error.message).toContain(
      "(for one of its own call enterMountNamespace() first of all in the program, or start it by 'unshare --mount' directly in front of it: a launcher in between, such as npx or 'bun run', shares it)",
    );
  });

  const setpriv = (capabilities: string): string[] => ["setpriv", `--bounding-set=${capabilities}`, `--inh-caps=${capabilities}`];

  test("without CAP_SYS_ADMIN: chroot is what is left", async () => {
    const outcome = await child((path: string) => switchRoot(path), `${base}/root`, {
      prefix: [...own, ...setpriv("-sys_admin")],
    });
    expect(outcome.method).toBe("chroot");
    expect(outcome.rejected.map(({ method, reason }) => `${method} ${reason}`)).toEqual([
      "pivot no-cap-sys-admin",
      "move no-cap-sys-admin",
      "detached no-cap-sys-admin",
    ]);
  });

  test("without any capability: all are, and the message says why", async () => {
    const refusal = await child(refuse, { path: `${base}/root` }, { prefix: [...own, ...setpriv("-all")] });
    expect(refusal).toMatchObject({ error: { name: "SwitchRootError", switched: false, phase: "checks" }, unchanged: true });
    if (!("error" in refusal)) throw new Error("it switched");
    expect(refusal.error.rejected.map(({ method, reason }) => `${method} ${reason}`)).toEqual([
      "pivot no-cap-sys-admin",
      "move no-cap-sys-admin",
      "detached no-cap-sys-admin",
      "chroot no-cap-sys-chroot",
    ]);
    // It is root already.
    for (const capability of ["SYS_ADMIN", "SYS_CHROOT"]) {
      expect(refusal.error.message).toContain(
        `this process does not have CAP_${capability} (in a container: '--cap-add ${capability}', or take a user namespace: enterMountNamespace({ user: true }) in a program, 'mounttree run --user' as a command)`,
      );
    }
  });

  test("for an ordinary user: the same", async () => {
    fs.chmodSync(base, 0o755);
    const user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    const refusal = await child(refuse, { path: `${base}/root` }, { prefix: user });
    if (!("error" in refusal)) throw new Error("it switched");
    expect(refusal.error.rejected.map(({ reason }) => reason)).toEqual([
      ...Array(3).fill("no-cap-sys-admin"),
      "no-cap-sys-chroot",
    ]);
    expect(refusal.error.message).toContain("this process does not have CAP_SYS_ADMIN (be root, or take a user namespace: ");
    expect(refusal.unchanged).toBe(true);
  });

  test("but in a user namespace of one's own all is well, also for a mount that is locked there", async () => {
    fs.chmodSync(base, 0o755);
    const prefix = [
      "setpriv",
      "--reuid=65534",
      "--regid=65534",
      "--clear-groups",
      "unshare",
      "--user",
      "--map-root-user",
      "--mount",
    ];
    const plain = await child((path: string) => switchRoot(path), `${base}/root`, { prefix });
    expect(plain).toMatchObject({ method: "pivot", bound: true, rejected: [] });

    // A mount point that came with the namespace: it cannot be pivoted or moved itself.
    const locked = await child(() => {
      syscalls.mount("tmpfs", "/run", "tmpfs", 0, null);
      fs.mkdirSync("/run/mount");
      syscalls.mount("locked", "/run/mount", "tmpfs", 0, null);
      fs.chmodSync("/run/mount", 0o755);
      fs.mkdirSync("/run/mount/below");
      syscalls.mount("below", "/run/mount/below", "tmpfs", 0, null);
      const program = (method: string, putOld: string): string[] => [
        process.execPath,
        "-e",
        `import { switchRoot } from "/work/switchroot.ts";
           console.log(JSON.stringify(switchRoot("/run/mount", { methods: ["${method}"], putOld: "${putOld}" })))`,
      ];
      return (["pivot", "move"] as const).map((method) => {
        const { stdout, stderr } = Bun.spawnSync([
          "unshare",
          "--user",
          "--map-root-user",
          "--mount",
          ...program(method, "stacked"),
        ]);
        return stdout.toString() || stderr.toString();
      });
    }, undefined);
    const [pivot = "", move = ""] = locked;
    expect(JSON.parse(pivot)).toMatchObject({ method: "pivot", bound: true });
    // Other mounts are locked there, and cannot be left behind one by one.
    expect(move).toContain("umount2");
    expect(move).toContain("switched: false");
  });

  test("when something it needs is missing from the kernel: open_tree(2), mount_setattr(2)", async () => {
    const outcomes = await child((path: string) => {
      const missing = (call: string) => (): never => {
        throw new syscalls.SyscallError(call, 38);
      };
      const old = { ...syscalls.kernel, open_tree: missing("open_tree"), mount_setattr: missing("mount_setattr") };
      const propagation: string[] = [];
      const older = {
        ...syscalls.kernel,
        mount_setattr: missing("mount_setattr"),
        mount: (...args: Parameters<typeof syscalls.mount>): void => {
          propagation.push(String(args[3]));
          syscalls.mount(...args);
        },
      };
      for (const name of ["a", "b", "c"]) makeRoot(`${path}/${name}/${name}`);
      const first = switchRootOn(old, `${path}/a`, { methods: ["detached", "pivot"] });
      const second = switchRootOn(older, "/a", { methods: ["pivot"] });
      return { first, second, propagation, names: fs.readdirSync("/").includes("marker") };
    }, `${base}/root`);
    expect(outcomes.first).toMatchObject({ method: "pivot", bound: true, rejected: [{ method: "detached", reason: "refused" }] });
    expect(outcomes.first.rejected[0]?.error).toMatchObject({ code: "ENOSYS" });
    expect(outcomes.second).toMatchObject({ method: "pivot", bound: true });
    expect(outcomes.propagation).toEqual([
      String(syscalls.MS.PRIVATE | syscalls.MS.REC),
      String(syscalls.MS.SLAVE | syscalls.MS.REC),
    ]);
    expect(outcomes.names).toBe(true);
  });
});

describe("a thread that would stay behind", () => {
  /** A Worker leaves the process's fs_struct, as a naive unshare(2) does, and tells its thread's number. */
  async function withStray({ path, kcmp }: { path: string; kcmp: boolean }): Promise<Refusal & { thread: string }> {
    const source = `
      import { unshare, readlinkat, CLONE, AT } from "/work/syscalls.ts";
      self.onmessage = () => {}; // It stays.
      unshare(CLONE.FS);
      postMessage(new TextDecoder().decode(readlinkat(AT.FDCWD, "/proc/thread-self")).split("/").at(-1));
    `;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
    const thread: string = await new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data)));
    const sharesFs = (): never => {
      throw new syscalls.SyscallError("kcmp", 1);
    };
    const state = (): string => fs.readFileSync("/proc/self/mountinfo", "utf8") + fs.readlinkSync("/proc/self/cwd");
    const before = state();
    try {
      switchRootOn(kcmp ? syscalls.kernel : { ...syscalls.kernel, sharesFs }, path, {});
    } catch (error) {
      return { error: describeError(error), unchanged: state() === before, thread };
    }
    throw new Error("it switched");
  }

  for (const kcmp of [true, false]) {
    test(`is named, and nothing is changed (${kcmp ? "kcmp(2)" : "where kcmp(2) is forbidden"})`, async () => {
      const { error, unchanged, thread } = await child(withStray, { path: `${base}/root`, kcmp });
      expect(error).toMatchObject({ name: "SwitchRootError", phase: "threads", switched: false });
      expect(error.message).toMatch(new RegExp(`thread ${thread} \\(.+\\) does not share this thread's root`));
      expect(unchanged).toBe(true);
    });
  }

  test("is not seen where there is none, also where kcmp(2) is forbidden", async () => {
    const outcome = await child((path: string) => {
      const sharesFs = (): never => {
        throw new syscalls.SyscallError("kcmp", 1);
      };
      return switchRootOn({ ...syscalls.kernel, sharesFs }, path, {}).method;
    }, `${base}/root`);
    expect(outcome).toBe("pivot");
  });
});

test("importing works anywhere, and a call on another system says so", async () => {
  const { platform, code } = await child(() => {
    Object.defineProperty(process, "platform", { value: "darwin" });
    try {
      switchRoot("/tmp");
      return { platform: process.platform, code: "none" };
    } catch (error) {
      return { platform: process.platform, code: describeError(error).code };
    }
  }, undefined);
  expect({ platform, code }).toEqual({ platform: "darwin", code: "ERR_UNSUPPORTED_PLATFORM" });
});
