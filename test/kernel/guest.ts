/**
 * What run.ts runs in its machine, on the initramfs and on a tmpfs that was moved into. Before Linux 6.8 a mount has no unique ID, and
 * there is no statmount(2): the package's older ways are in use here, and nothing stands in for them.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { checkRoot } from "../../checkroot.ts";
import * as mounts from "../../mount.ts";
import * as mountinfo from "../../mountinfo.ts";
import { type RootMethod, switchRoot } from "../../switchroot.ts";
import * as syscalls from "../../syscalls.ts";
import { child, own } from "../child.ts";
import { run, shell, shellApart } from "../compiled.ts";
import { patience } from "../hard.ts";
import { describeError, makeRoot, mountsOf, type Observation, observe, startReader } from "../observe.ts";

const { WORLD } = process.env;
const onInitramfs = WORLD === "initramfs";
/** What a switch uses in a namespace of its own. */
const strongest: RootMethod = onInitramfs ? "move" : "pivot";
const base = "/tmp/guest";
const root = `${base}/root`;

/** Everything the tests mount is in namespaces of their own, but for this root. */
let mountsBefore = "";
beforeAll(() => {
  mountsBefore = fs.readFileSync("/proc/self/mountinfo", "utf8");
  fs.mkdirSync(root, { recursive: true });
  makeRoot(root, "inside");
  syscalls.mount("proc", `${root}/proc`, "proc", 0, null);
  const { release } = process.getBuiltinModule("node:os");
  fs.writeSync(1, `@@ kernel ${release()} ${process.arch}\n`);
});
afterAll(() => {
  const names = fs.readdirSync(root).sort();
  for (const name of ["usr", "proc"]) syscalls.umount2(`${root}/${name}`, 0);
  fs.rmSync(base, { recursive: true });
  expect(fs.readFileSync("/proc/self/mountinfo", "utf8")).toBe(mountsBefore);
  // Nothing is left in the root, whatever happened.
  expect(names).toEqual(["bin", "dev", "lib", "lib64", "marker", "proc", "sub", "usr"]);
});

/** All that a program sees that went on after a switch. */
function expectInside({ markers, cwd, names, threadRoots, root: itsRoot }: Observation, marker = "inside"): void {
  expect(new Set(Object.values(markers))).toEqual(new Set([marker]));
  expect(Object.keys(markers).length).toBe(7);
  expect(cwd).toBe("/");
  expect(names).not.toContain("host-only");
  expect(names).not.toContain("work");
  expect(threadRoots.length).toBeGreaterThan(1);
  expect(new Set(threadRoots)).toEqual(new Set([itsRoot]));
}

describe(`on ${WORLD}`, () => {
  test("the kernel is older than what the package was written on, and the root is what this is about", () => {
    const codes = [() => syscalls.statmount(1n), () => syscalls.countMounts(1n)].map((call) => {
      try {
        call();
        return "there";
      } catch (error) {
        return describeError(error).code;
      }
    });
    expect(codes).toEqual(["ENOSYS", "ENOSYS"]);
    const { mask } = syscalls.statx(syscalls.AT.FDCWD, "/", 0, syscalls.STATX.MNT_ID | syscalls.STATX.MNT_ID_UNIQUE);
    expect(mask & syscalls.STATX.MNT_ID_UNIQUE).toBe(0);
    expect(mask & syscalls.STATX.MNT_ID).not.toBe(0);
    const [first] = mountsOf("self");
    expect({ fsType: first?.fsType, absolute: first?.id === first?.parentId }).toEqual(
      onInitramfs ? { fsType: "rootfs", absolute: true } : { fsType: "tmpfs", absolute: false },
    );
    expect(fs.existsSync("/host-only")).toBe(true);
  });

  test(`mounttree check ${onInitramfs ? "names the initramfs as the reason against pivot" : "says that pivot would work"}`, async () => {
    const { status, stdout, stderr } = await run([...own, "mounttree", "check", root]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    const lines = Object.fromEntries(
      ["pivot", "move", "detached", "chroot"].map((method) => [method, new RegExp(`^${method} .*$`, "m").exec(stdout)?.[0]]),
    );
    expect(lines).toEqual({
      pivot: onInitramfs ? expect.stringMatching(/^pivot +no +initramfs: .*cannot be pivoted$/) : "pivot     yes",
      move: "move      yes",
      detached: "detached  yes",
      chroot: "chroot    yes",
    });
  });

  test(`mounttree run uses ${strongest}, and its command sees the root and nothing else`, async () => {
    const look = "cat /marker; pwd; ls /; [ ! -e /host-only ] && [ ! -e /work ] && exit 7";
    const seen = "inside/\nbin\ndev\nlib\nlib64\nmarker\nproc\nsub\nusr\n";
    expect(await run(["mounttree", "run", root, "--", "sh", "-c", look])).toMatchObject({ status: 7, stdout: seen, stderr: "" });
    // Which of the two it was, strace says.
    const trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", `${base}/trace`, "-e", "trace=pivot_root,mount,chroot"];
    expect(await run([...trace, "mounttree", "run", root, "--", "true"])).toMatchObject({ status: 0, stderr: "" });
    const calls = fs.readFileSync(`${base}/trace`, "utf8").match(/pivot_root\(.*= 0|MS_MOVE.*= 0/g);
    expect(calls).toEqual([onInitramfs ? expect.stringContaining("MS_MOVE") : expect.stringContaining("pivot_root")]);
    const pivoted = await run(["mounttree", "run", "--method", "pivot", root, "--", "true"]);
    expect(pivoted).toMatchObject(
      onInitramfs ? { status: 125, stderr: expect.stringContaining("initramfs") } : { status: 0, stderr: "" },
    );
  });

  test("mounttree run mounts /proc, /dev and what else it is asked for", async () => {
    const script =
      "grep -c . /proc/self/mountinfo; echo >/dev/null; echo >/tmp/x; touch /usr/x 2>&1 | grep -o Read-only; echo x | tee /data/y";
    const options = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", base, "/data"];
    const target = `${base}/empty`;
    fs.mkdirSync(target);
    for (const name of ["bin", "lib", "lib64"]) fs.symlinkSync(`usr/${name}`, `${target}/${name}`);
    const { status, stdout, stderr } = await run(["mounttree", "run", ...options, target, "--", "sh", "-euc", script]);
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toMatch(/^\d+\nRead-only\nx\n$/);
    expect(fs.readFileSync(`${base}/y`, "utf8")).toBe("x\n");
    fs.rmSync(target, { recursive: true });
    fs.rmSync(`${base}/y`);
  });

  test(`a compiled program uses ${strongest} and goes on, as is seen from outside as well`, async () => {
    const started = Bun.spawn([...own, "goes-on", root], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
      timeout: 60_000 * patience,
    });
    const lines = started.stdout.pipeThrough(new TextDecoderStream()).getReader();
    const next = async (): Promise<{ method: string; rejected: { method: string; reason: string }[]; seen: Observation }> => {
      let text = "";
      while (!text.endsWith("\n")) {
        const { value, done } = await lines.read();
        if (done) throw new Error(`it ended after '${text}'`);
        text += value;
      }
      return JSON.parse(text);
    };
    const first = await next();
    expect(first.method).toBe(strongest);
    expect(first.rejected.map(({ method, reason }) => `${method} ${reason}`)).toEqual(onInitramfs ? ["pivot initramfs"] : []);
    expectInside(first.seen);
    const { pid } = started;
    const identity = ({ dev, ino }: fs.Stats): string => `${dev}:${ino}`;
    for (const task of fs.readdirSync(`/proc/${pid}/task`)) {
      expect(identity(fs.statSync(`/proc/${pid}/task/${task}/root`))).toBe(identity(fs.statSync(root)));
      expect(fs.readlinkSync(`/proc/${pid}/task/${task}/cwd`)).toBe("/");
    }
    // Nothing of the old root is mounted there any more; after a move the absolute root itself cannot be taken away.
    const table = mountsOf(pid);
    expect(table.map(({ mountPoint }) => mountPoint)).toEqual(["/", "/usr", "/proc"]);
    started.stdin.write("\n");
    await started.stdin.end();
    expectInside((await next()).seen);
    expect(await started.exited).toBe(0);
  });

  for (const method of ["pivot", "move", "detached", "chroot"] as const) {
    if (method === "pivot" && onInitramfs) continue;
    for (const putOld of method === "pivot" ? (["stacked", "directory"] as const) : (["stacked"] as const)) {
      test(`switchRoot by ${method} (${putOld}) moves every thread`, async () => {
        const { result, seen } = await child(
          async ({ path, method, putOld }: { path: string; method: RootMethod; putOld: "stacked" | "directory" }) => {
            const reader = await startReader();
            const proc = syscalls.open("/proc", syscalls.O.PATH);
            const result = switchRoot(path, { methods: [method], putOld });
            return { result, seen: await observe(reader, proc) };
          },
          { path: root, method, putOld },
        );
        expect(result).toEqual({ method, root, bound: method === "pivot" || method === "move", rejected: [] });
        expectInside(seen);
      });
    }
  }

  test("what rules a method out is seen without statmount(2), and checkRoot agrees", async () => {
    const chroot = [
      "sh",
      "-euc",
      `mkdir ${base}/jail; mount -t tmpfs jail ${base}/jail; for each in usr work proc sub; do mkdir ${base}/jail/$each; done
      for each in usr work proc; do mount --rbind /$each ${base}/jail/$each; done
      ln -s usr/bin usr/lib usr/lib64 ${base}/jail; exec chroot ${base}/jail "$@"`,
      "sh",
    ];
    const ask = (path: string) => {
      const check = checkRoot(path).methods.flatMap(({ method, reason }) =>
        reason === undefined ? [] : [`${method} ${reason}`],
      );
      const { rejected } = switchRoot(path);
      return { check, rejected: rejected.map(({ method, reason }) => `${method} ${reason}`) };
    };
    const initramfs = onInitramfs ? ["pivot initramfs"] : [];
    const both = (reason: string): string[] => [`pivot ${reason}`, `move ${reason}`];
    // Chrooted to a mount's root, which only a look from the namespace's root tells.
    expect(await child(ask, "/sub", { prefix: [...own, ...chroot] })).toEqual({
      check: both("chrooted"),
      rejected: both("chrooted"),
    });
    fs.rmdirSync(`${base}/jail`);
    expect(await child(ask, root, { prefix: [...own] })).toEqual({ check: initramfs, rejected: initramfs });
    // The machine's own namespace, where others live.
    const shared = await child(ask, root, { prefix: ["env"] });
    expect(shared).toEqual({ check: both("namespace-shared"), rejected: both("namespace-shared") });
    const exposed = await child(ask, root, { prefix: ["unshare", "--mount", "--propagation", "shared"] });
    const reasons = onInitramfs ? ["pivot initramfs", "move shared-mount"] : both("shared-mount");
    expect(exposed).toEqual({ check: reasons, rejected: reasons });
  });

  test("a second and a third switch work, from roots in which no program can be started, and no descriptor leads out", async () => {
    const outcome = await child(
      ({ path, methods }: { path: string; methods: RootMethod[] }) => {
        let place = path;
        for (const _ of methods) {
          fs.mkdirSync(`${place}/next/proc`, { recursive: true });
          syscalls.mount("proc", `${place}/next/proc`, "proc", 0, null);
          place += "/next";
        }
        fs.writeFileSync(`${place}/marker`, "the last");
        const open: number[] = [];
        const used = methods.map((method, index) => {
          const { method: used, leaks } = switchRoot(index === 0 ? `${path}/next` : "/next", {
            methods: [method],
            descriptors: "report",
          });
          open.push(fs.readdirSync("/proc/self/fd").length);
          return `${used}, ${leaks?.length} leaks`;
        });
        return { used, open, marker: fs.readFileSync("/marker", "utf8") };
      },
      { path: `${base}/chain`, methods: [strongest, "move", "move", onInitramfs ? "move" : "pivot", "detached"] },
    );
    fs.rmSync(`${base}/chain`, { recursive: true });
    expect(outcome.marker).toBe("the last");
    expect(outcome.used).toEqual([strongest, "move", "move", strongest, "detached"].map((method) => `${method}, 0 leaks`));
    expect(new Set(outcome.open).size).toBe(1);
  });

  test("a detached root cannot be copied before Linux 6.15: checkRoot and switchRoot say so", async () => {
    const outcome = await child((path: string) => {
      switchRoot(path, { methods: ["detached"] });
      const check = checkRoot("/sub").methods.map(({ method, works, reason }) => `${method} ${works ? "works" : reason}`);
      const { method, rejected } = switchRoot("/sub");
      return {
        check,
        method,
        rejected: rejected.map((each) => `${each.method} ${each.reason}`),
        marker: fs.readFileSync("/marker", "utf8"),
      };
    }, root);
    const reasons = ["pivot root-detached", "move root-detached", "detached root-detached"];
    expect(outcome).toEqual({ check: [...reasons, "chroot works"], method: "chroot", rejected: reasons, marker: "inside/sub" });
  });

  const asNobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];

  for (const map of ["--map-same", "--map-root"]) {
    test(`mounttree run by an ordinary user, ${map}, ${onInitramfs ? "names what is in the way" : "pivots"}`, async () => {
      const command = [...asNobody, "mounttree", "run", map, root, "--", "sh", "-c", "cat /marker; id -u; [ ! -e /host-only ]"];
      const finished = await run(command, { cwd: "/" });
      // Whoever made the namespace did not make the initramfs's mounts: they are locked in it.
      const refused = { status: 125, stdout: "", stderr: expect.stringMatching(/pivot: .*initramfs.*; move: .*locked/) };
      const done = { status: 0, stdout: `inside${map === "--map-same" ? 65534 : 0}\n`, stderr: "" };
      expect(finished).toMatchObject(onInitramfs ? refused : done);
    });

    test(`a program of an ordinary user, ${map}, ${onInitramfs ? "gets what is left" : "pivots"}`, async () => {
      const program = `
        import { readFileSync } from "node:fs";
        import { enterMountNamespace, switchRoot } from "/work/index.ts";
        enterMountNamespace({ user: true, map: "${map.slice(6)}" });
        const { method, rejected } = switchRoot("${root}");
        const read = { sync: readFileSync("/marker", "utf8"), async: await Bun.file("/marker").text() };
        console.log(JSON.stringify({ method, reasons: rejected.map(({ reason }) => reason), read }));
      `;
      const path = `${base}/program${map}.ts`;
      fs.writeFileSync(path, program);
      const { stdout, stderr } = await run([...asNobody, "bun", path], { cwd: "/" });
      fs.rmSync(path);
      expect(stderr).toBe("");
      const reasons = onInitramfs ? ["initramfs", "mount-locked"] : [];
      const method = onInitramfs ? "detached" : "pivot";
      expect(JSON.parse(stdout)).toEqual({ method, reasons, read: { sync: "inside", async: "inside" } });
    });
  }

  test("the mount table is what another program says it is, and each way of asking what is mounted gives one answer", async () => {
    const script = `mkdir -p ${base}/m/a/b; mount -t tmpfs one ${base}/m; mkdir -p ${base}/m/a; mount -t tmpfs two ${base}/m/a; mkdir '${base}/m/a/with space'
      touch ${base}/m/file; mount --bind ${base}/m/file ${base}/m/file; mount -t tmpfs three '${base}/m/a/with space'; exec "$@"`;
    const prefix = [...own, "sh", "-euc", script, "sh"];
    const found = await child(
      (path: string) => {
        const listed = Bun.spawnSync(["findmnt", "--json", "--list", "--output", "ID,TARGET,FSTYPE,SOURCE"]).stdout.toString();
        const paths = ["", "/a", "/a/with space", "/file"].map((name) => `${path}${name}`);
        const ways = [...paths, "/", "/usr/bin", "/proc/self/status"].map((each) => {
          const fd = syscalls.open(each, syscalls.O.PATH);
          const byTable = mountinfo.mountedByTable(fd);
          const byOpenat2 = mountinfo.mountedByOpenat2(fd) ?? byTable;
          syscalls.close(fd);
          return [each, mountinfo.mounted(each), byOpenat2, byTable];
        });
        const table = mountinfo.getMounts().map(({ id, mountPoint, fsType }) => `${id} ${mountPoint} ${fsType}`);
        const gone = mounts.unmountAll(path);
        const left = mountinfo.getMounts(mountinfo.prefixFilter(path)).length;
        return { listed, table, ways, gone, left };
      },
      `${base}/m`,
      { prefix },
    );
    const { filesystems }: { filesystems: { id: number; target: string; fstype: string }[] } = JSON.parse(found.listed);
    expect(found.table).toEqual(filesystems.map(({ id, target, fstype }) => `${id} ${target} ${fstype}`));
    expect(found.ways.map(([path, ...answers]) => `${path} ${new Set(answers).size === 1 ? answers[0] : answers}`)).toEqual([
      ...["", "/a", "/a/with space", "/file"].map((name) => `${base}/m${name} true`),
      "/ true",
      "/usr/bin false",
      "/proc/self/status false",
    ]);
    expect({ gone: found.gone, left: found.left }).toEqual({ gone: 4, left: 0 });
    fs.rmSync(`${base}/m`, { recursive: true });
  });

  test("setReadOnly, mount and makeMountPoint, also where mount_setattr(2) and open_tree(2) are taken away", async () => {
    const program = (path: string): string[] => {
      const attempt = (file: string): string => {
        try {
          fs.writeFileSync(file, "");
          return "written";
        } catch (error) {
          return describeError(error).code ?? "";
        }
      };
      for (const name of ["top/below", "other"]) fs.mkdirSync(`${path}/${name}`, { recursive: true });
      mounts.mount("top", `${path}/top`, "tmpfs", "mode=755");
      fs.mkdirSync(`${path}/top/below`);
      mounts.mount("below", `${path}/top/below`, "tmpfs");
      const before = [attempt(`${path}/top/x`), attempt(`${path}/top/below/x`)];
      mounts.setReadOnly(`${path}/top`, { recursive: true });
      const after = [attempt(`${path}/top/y`), attempt(`${path}/top/below/y`)];
      mounts.mount(`${path}/top`, `${path}/other`, null, "rbind,ro,rslave");
      const bound = [attempt(`${path}/other/y`), mountinfo.mountOf(`${path}/other/below`).fsType];
      const made = [mounts.makeMountPoint(`${path}/other`), mounts.makeMountPoint(path), mountinfo.mounted(path)].map(String);
      return [...before, ...after, ...bound, ...made];
    };
    const expected = ["written", "written", "EROFS", "EROFS", "EROFS", "tmpfs", "false", "true", "true"];
    const without = (...calls: string[]): string[] => [
      ...["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", `trace=${calls.join(",")}`],
      ...calls.flatMap((call) => ["-e", `inject=${call}:error=ENOSYS`]),
    ];
    const ways = [[], without("mount_setattr"), without("open_tree", "mount_setattr")];
    for (const [index, tracer] of ways.entries()) {
      const path = `${base}/ro${index}`;
      expect(await child(program, path, { prefix: [...own, ...tracer] })).toEqual(expected);
      fs.rmSync(path, { recursive: true });
    }
  });

  test("mounttree ls draws the tree", async () => {
    const { stdout, status } = await shellApart(`mount -t tmpfs drawn ${root}/sub; mounttree ls ${root}`);
    expect(status).toBe(0);
    expect(stdout).toContain(`${root}/sub`);
    expect(stdout).toMatch(/drawn +tmpfs/);
    const { stdout: json } = await shell("mounttree ls --json");
    const parsed: { id: number }[] = JSON.parse(json);
    expect(parsed.map(({ id }) => id).sort()).toEqual(
      mountsOf("self")
        .map(({ id }) => id)
        .sort(),
    );
  });
});
