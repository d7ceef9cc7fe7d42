/** Each refusal made for real where a machine can, and from recorded files where it cannot: what the error says is the cause. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { checkRoot } from "../checkroot.ts";
import { type Call, diagnose, type Evidence, explained, type Placed } from "../diagnose.ts";
import * as mounts from "../mount.ts";
import { type Reason, reasons } from "../reasons.ts";
import { type RootMethod, SwitchRootError, switchRoot } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child, own } from "./child.ts";

const base = "/tmp/diagnose";
const root = `${base}/root`;
/** Where a mount lies on that of "/", and another one can be put over it. */
const hidden = "/mnt/hidden";

beforeAll(() => {
  fs.mkdirSync(root, { recursive: true });
  fs.mkdirSync(`${base}/jail`);
  fs.mkdirSync(hidden);
});
afterAll(() => {
  fs.rmSync(base, { recursive: true });
  fs.rmdirSync(hidden);
});

/** Starts the program after a script, in what the script has made. */
function after(script: string, ...then: string[]): string[] {
  return ["sh", "-ec", `${script}\nexec "$@"`, "sh", ...then];
}

const userNamespace = ["unshare", "--user", "--map-root-user"];
const newUserNamespace = [...userNamespace, "--mount"];
const drop = (capabilities: string): string[] => ["setpriv", `--bounding-set=${capabilities}`, `--inh-caps=${capabilities}`];

/** A copy of what Bun and the checkout need, with the root in it. */
function jail(how: string): string[] {
  const script = `
    ${how}
    for each in usr work proc dev tmp; do mkdir -p ${base}/jail/$each; mount --rbind /$each ${base}/jail/$each; done
    for each in bin lib lib64; do ln -sfn usr/$each ${base}/jail/$each; done`;
  return after(script, "chroot", `${base}/jail`);
}

/** In an environment in which Bun starts with one thread. */
const oneThread = [
  "env",
  "BUN_JSC_useConcurrentJIT=0",
  "BUN_JSC_useConcurrentGC=0",
  "BUN_JSC_numberOfGCMarkers=1",
  "BUN_JSC_useWarmUpMarkedBlocks=0",
  "BUN_FEATURE_FLAG_DISABLE_ASYNC_TRANSPILER=1",
  "MIMALLOC_SCAVENGER=0",
];

// --- switchRoot and checkRoot

interface Case {
  prefix: string[];
  /** The path; default {@link root}. */
  path?: string;
  /** What is entered as a detached tree before. */
  within?: string;
  /** Why each method is not used; what is not named works. */
  not: Partial<Record<RootMethod, Reason>>;
  /** What a method that works loses. */
  lost?: Partial<Record<RootMethod, string[]>>;
}

const allOf = (reason: Reason): Case["not"] => ({ pivot: reason, move: reason, detached: reason });
const strong = (reason: Reason): Case["not"] => ({ pivot: reason, move: reason });

const cases: Record<string, Case> = {
  "a directory, in a namespace of one's own": { prefix: [...own], not: {} },
  "a mount point": { prefix: [...own, ...after(`mount -t tmpfs t ${root}`)], not: {} },
  "in a namespace that others live in": { prefix: [], not: strong("namespace-shared") },
  "a mount that another one hides, where there is a directory now": {
    prefix: [...own, ...after(`mount -t tmpfs t ${hidden}; mount -t tmpfs t /mnt; mkdir ${hidden}`)],
    not: {},
  },
  "a directory that may not be entered": {
    prefix: [...own, ...after(`mount -t tmpfs -o mode=700,uid=1 t ${root}`), ...drop("-dac_override,-dac_read_search")],
    not: { ...allOf("refused"), chroot: "refused" },
  },
  "a directory of another mount namespace": {
    prefix: [
      ...own,
      ...after(`${own.join(" ")} sleep 10 & until [ "$(readlink /proc/$!/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ]; do :; done
        ln -sfn /proc/$!/root/usr ${base}/theirs`),
    ],
    path: `${base}/theirs`,
    not: allOf("source-unreachable"),
  },
  'a shared mount at "/"': { prefix: [...own, ...after("mount --make-shared /")], not: strong("shared-mount") },
  "a path on a shared mount": {
    prefix: [...own, ...after(`mount -t tmpfs t ${root}; mount --make-shared ${root}; mkdir ${root}/sub`)],
    path: `${root}/sub`,
    not: strong("shared-mount"),
  },
  "a mount point on a shared mount": {
    prefix: [...own, ...after(`mount -t tmpfs t ${base}; mount --make-shared ${base}; mkdir ${root}; mount -t tmpfs t ${root}`)],
    not: strong("shared-mount"),
  },
  "a process that was chrooted to a directory": { prefix: [...own, ...jail(":")], not: strong("chrooted") },
  "a process that was chrooted to a mount point": {
    prefix: [...own, ...jail(`mount -t tmpfs t ${base}/jail`)],
    not: strong("chrooted"),
  },
  "a process whose root is a detached tree": {
    prefix: [...own, ...after(`mount --rbind / ${base}/jail`)],
    within: `${base}/jail`,
    path: root,
    not: strong("root-detached"),
  },
  "without CAP_SYS_ADMIN": { prefix: [...own, ...drop("-sys_admin")], not: allOf("no-cap-sys-admin") },
  "without CAP_SYS_CHROOT": {
    prefix: [...own, ...drop("-sys_chroot")],
    not: { move: "no-cap-sys-chroot", detached: "no-cap-sys-chroot", chroot: "no-cap-sys-chroot" },
  },
  "without any capability": {
    prefix: [...own, ...drop("-all")],
    not: { ...allOf("no-cap-sys-admin"), chroot: "no-cap-sys-chroot" },
  },
  "a user namespace in the mount namespace of another": {
    prefix: [...own, ...userNamespace],
    not: allOf("namespace-not-owned"),
  },
  "a user namespace with locked mounts": { prefix: newUserNamespace, not: { move: "mount-locked" } },
  "a user namespace in which the root itself is locked": {
    prefix: [...own, ...after(`mount -t tmpfs t ${root}`, ...newUserNamespace)],
    not: { move: "mount-locked" },
  },
  "an unbindable root, a mount point": {
    prefix: [...own, ...after(`mount -t tmpfs t ${root}; mount --make-unbindable ${root}`)],
    not: { detached: "unbindable" },
  },
  "a directory of an unbindable mount": {
    prefix: [...own, ...after(`mount -t tmpfs t ${root}; mount --make-unbindable ${root}; mkdir ${root}/sub`)],
    path: `${root}/sub`,
    not: allOf("unbindable"),
  },
  "unbindable mounts below": {
    prefix: [
      ...own,
      ...after(
        `mkdir -p ${root}/a ${root}/b; mount -t tmpfs t ${root}/a; mount --make-unbindable ${root}/a
         mkdir ${root}/a/below; mount -t tmpfs t ${root}/a/below; mount -t tmpfs t ${root}/b`,
      ),
    ],
    not: {},
    lost: {
      pivot: [`${root}/a`, `${root}/a/below`],
      move: [`${root}/a`, `${root}/a/below`],
      detached: [`${root}/a`, `${root}/a/below`],
    },
  },
  "an unbindable mount below that is locked": {
    prefix: [
      ...own,
      ...after(`mkdir -p ${root}/a; mount -t tmpfs t ${root}/a`, ...newUserNamespace),
      ...after(`mount --make-unbindable ${root}/a`),
    ],
    not: allOf("unbindable"),
  },
  'something is mounted over "/"': { prefix: [...own, ...after("mount -t tmpfs t /")], not: { move: "not-verified" } },
  "more mounts than there may be": {
    prefix: [
      ...own,
      ...after(
        `mkdir -p ${base}/many/m; mount -t tmpfs t ${base}/many/m
         for i in $(seq 16); do mkdir ${base}/many/m/$i; done
         for i in $(seq 16); do mount --rbind ${base}/many/m ${base}/many/m/$i; done`,
      ),
    ],
    path: `${base}/many`,
    not: strong("mount-max"),
  },
};

interface Question {
  path: string;
  within: string | undefined;
  method: RootMethod | undefined;
}

interface Answers {
  check: { method: string; works: boolean; reason?: string; message?: string; lost: string[] }[];
  switched: string | undefined;
  reason: string | undefined;
  rejected: string | undefined;
  /** Whether checkRoot left the mount table and the working directory as they were. */
  unchanged: boolean;
}

function ask({ path, within, method }: Question): Answers {
  if (within !== undefined) switchRoot(within, { methods: ["detached"] });
  const state = (): string => fs.readFileSync("/proc/self/mountinfo", "utf8") + process.cwd();
  const before = state();
  const check = checkRoot(path).methods;
  const unchanged = state() === before;
  const answers = { check, unchanged, switched: undefined, reason: undefined, rejected: undefined };
  if (method === undefined) return answers;
  try {
    return { ...answers, switched: switchRoot(path, { methods: [method] }).method };
  } catch (error) {
    if (!(error instanceof SwitchRootError)) throw error;
    return { ...answers, reason: error.reason, rejected: error.rejected[0]?.reason };
  }
}

describe("checkRoot says, and switchRoot does:", () => {
  for (const [name, { prefix, path = root, within, not, lost = {} }] of Object.entries(cases)) {
    test(name, async () => {
      for (const method of ["pivot", "move", "detached", "chroot"] as const) {
        const { check, unchanged, switched, reason, rejected } = await child(ask, { path, within, method }, { prefix });
        const found = check.find((one) => one.method === method);
        const expected = not[method];
        const context = `${method}: ${found?.message}`;
        expect({ context, works: found?.works, reason: found?.reason }).toEqual({
          context,
          works: expected === undefined,
          reason: expected,
        });
        // Text, so that a failure shows both.
        expect({ context, switched, reason, rejected }).toEqual({
          context,
          switched: expected === undefined ? method : undefined,
          reason: expected,
          rejected: expected,
        });
        expect({ context, lost: found?.lost }).toEqual({ context, lost: lost[method] ?? [] });
        expect({ context, unchanged }).toEqual({ context, unchanged: true });
      }
    }, 60_000);
  }
});

test("checkRoot leaves no descriptor open, and refuses what switchRoot refuses", async () => {
  const { before, afterwards, codes } = await child((path: string) => {
    const open = (): number => fs.readdirSync("/proc/self/fd").length;
    checkRoot(path);
    const before = open();
    for (let time = 0; time < 50; time++) checkRoot(path);
    const afterwards = open();
    const codes = ["/", "/nowhere", "/proc/self/status"].map((wrong) => {
      try {
        checkRoot(wrong);
        return "";
      } catch (error) {
        return error instanceof SwitchRootError ? error.code : String(error);
      }
    });
    return { before, afterwards, codes };
  }, root);
  expect(afterwards).toBe(before);
  expect(codes).toEqual(["EBUSY", "ENOENT", "ENOTDIR"]);
});

test("a thread that would stay behind is a reason, too", async () => {
  const outcome = await child(async (path: string) => {
    const source = `
      import { unshare, CLONE } from "/work/syscalls.ts";
      self.onmessage = () => {}; // It stays.
      unshare(CLONE.FS);
      postMessage("apart");
    `;
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
    await new Promise((resolve) => worker.addEventListener("message", resolve));
    const check = checkRoot(path).methods.map(({ works, reason }) => `${works} ${reason}`);
    try {
      return { check, thrown: switchRoot(path).method };
    } catch (error) {
      return { check, thrown: error instanceof SwitchRootError ? error.reason : String(error) };
    }
  }, root);
  expect(outcome).toEqual({ check: Array(4).fill("false stray-thread"), thrown: "stray-thread" });
});

// --- System calls

interface Attempt {
  /** The call, as it is in syscalls.ts or mount.ts. */
  from: "syscalls" | "mounts";
  name: string;
  args: (string | number | null)[];
  call?: Call;
  /** What is entered as a detached tree before. */
  within?: string;
}

/** Makes a call, and says how it was refused. */
function attempt({
  from,
  name,
  args,
  call,
  within,
}: Attempt): { code: string; reason: string | undefined; message: string } | string {
  if (within !== undefined) switchRoot(within, { methods: ["detached"] });
  const all: Record<string, unknown> = from === "syscalls" ? { ...syscalls } : { ...mounts };
  const found = all[name];
  if (typeof found !== "function") throw new Error(`there is no ${name}`);
  try {
    Reflect.apply(found, undefined, args);
    return "it was not refused";
  } catch (error) {
    const why = explained(error, call);
    if (!(why instanceof syscalls.SyscallError)) throw error;
    return { code: why.code, reason: why.reason, message: why.message };
  }
}

const pivot = (newRoot: string, putOld: string): Attempt => ({ from: "syscalls", name: "pivot_root", args: [newRoot, putOld] });
const mount = (source: string | null, target: string, fsType: string | null, options: string): Attempt => ({
  from: "mounts",
  name: "mount",
  args: [source, target, fsType, options],
});
const remount = (flags: number): Attempt => ({
  from: "syscalls",
  name: "mount",
  args: [null, root, null, syscalls.MS.REMOUNT | flags, null],
  call: { flags: syscalls.MS.REMOUNT | flags, source: null },
});
const move = (source: string, target: string): Attempt => {
  const flags = syscalls.MS.MOVE;
  return { from: "syscalls", name: "mount", args: [source, target, null, flags, null], call: { flags } };
};
const unshare = (flags: number): Attempt => ({ from: "syscalls", name: "unshare", args: [flags], call: { flags } });
const { NEWNS, NEWUSER } = syscalls.CLONE;
const tmpfs = `mount -t tmpfs t ${root}; mkdir -p ${root}/old ${root}/sub`;

const calls: Record<string, [code: string, reason: Reason, prefix: string[], attempt: Attempt]> = {
  "pivot_root(2) in a chroot to a plain directory": [
    "EINVAL",
    "root-not-mount-point",
    [...own, ...jail(`mount -t tmpfs t ${root}; mkdir ${root}/old`)],
    pivot(root, `${root}/old`),
  ],
  "pivot_root(2), the new root mounted on a shared mount": [
    "EINVAL",
    "shared-mount",
    [
      ...own,
      ...after(`mount -t tmpfs t ${base}; mount --make-shared ${base}; mkdir ${root}; ${tmpfs}; mount --make-private ${root}`),
    ],
    pivot(root, `${root}/old`),
  ],
  "pivot_root(2), the old root put on a shared mount": [
    "EINVAL",
    "shared-mount",
    [...own, ...after(`${tmpfs}; mount --make-shared ${root}`)],
    pivot(root, `${root}/old`),
  ],
  "pivot_root(2), the new root no mount point": [
    "EINVAL",
    "new-root-not-mount-point",
    [...own, ...after(`${tmpfs}; mkdir ${root}/sub/old`)],
    pivot(`${root}/sub`, `${root}/sub/old`),
  ],
  "pivot_root(2), a locked new root": [
    "EINVAL",
    "mount-locked",
    [...own, ...after(tmpfs, ...newUserNamespace)],
    pivot(root, `${root}/old`),
  ],
  "pivot_root(2), the old root put outside of the new one": [
    "EINVAL",
    "put-old-not-below",
    [...own, ...after(`${tmpfs}; mount -t tmpfs t ${base}/jail`)],
    pivot(root, `${base}/jail`),
  ],
  "pivot_root(2), the new root on the mount of /": ["EBUSY", "new-root-on-root-mount", [...own], pivot("/usr", "/usr/lib")],
  "pivot_root(2), the old root put on the mount of /": [
    "EBUSY",
    "put-old-on-root-mount",
    [...own, ...after(tmpfs)],
    pivot(root, "/usr"),
  ],
  "pivot_root(2) without CAP_SYS_ADMIN": [
    "EPERM",
    "no-cap-sys-admin",
    [...own, ...after(tmpfs), ...drop("-sys_admin")],
    pivot(root, `${root}/old`),
  ],
  "pivot_root(2) in a mount namespace of an outer user namespace": [
    "EPERM",
    "namespace-not-owned",
    [...own, ...after(tmpfs), ...userNamespace],
    pivot(root, `${root}/old`),
  ],
  "chroot(2) without CAP_SYS_CHROOT": [
    "EPERM",
    "no-cap-sys-chroot",
    [...own, ...drop("-all")],
    { from: "syscalls", name: "chroot", args: [root] },
  ],
  "a bind of an unbindable mount": [
    "EINVAL",
    "unbindable",
    [...own, ...after(`${tmpfs}; mount --make-unbindable ${root}`)],
    mount(root, `${base}/jail`, null, "bind"),
  ],
  "a bind without what is locked below": [
    "EINVAL",
    "locked-below",
    [...own, ...after(`${tmpfs}; mount -t tmpfs t ${root}/sub`, ...newUserNamespace)],
    mount(root, `${base}/jail`, null, "bind"),
  ],
  "propagation of what is no mount point": ["EINVAL", "not-mount-point", [...own], mount(null, root, null, "rslave")],
  "a remount of what is no mount point": ["EINVAL", "not-mount-point", [...own], mount(null, root, null, "remount,bind,ro")],
  "a move of what is no mount point": ["EINVAL", "not-mount-point", [...own], move(root, `${base}/jail`)],
  "a move of what is mounted on a shared mount": [
    "EINVAL",
    "shared-mount",
    [...own, ...after(`mount -t tmpfs t ${base}; mount --make-shared ${base}; mkdir ${root} ${base}/jail; ${tmpfs}`)],
    move(root, `${base}/jail`),
  ],
  "a mount inside a detached root": [
    "EINVAL",
    "root-detached",
    [...own, ...after(`mount --rbind / ${base}/jail`)],
    { ...mount("t", root, "tmpfs", ""), within: `${base}/jail` },
  ],
  "a bind of what is in another mount namespace": [
    "EINVAL",
    "source-unreachable",
    [...own],
    mount("/proc/1/root/usr", root, null, "bind"),
  ],
  "a mount in another mount namespace": ["EINVAL", "target-unreachable", [...own], mount("t", "/proc/1/root/usr", "tmpfs", "")],
  "pivot_root(2) to another mount namespace": [
    "EINVAL",
    "source-unreachable",
    [...own],
    pivot("/proc/1/root/tmp", "/proc/1/root/tmp"),
  ],
  "mount options that the file system does not know": ["EINVAL", "unknown", [...own], mount("t", root, "tmpfs", "nosuchoption")],
  "a move of a locked mount": [
    "EINVAL",
    "mount-locked",
    [...own, ...after(tmpfs, ...newUserNamespace)],
    move(root, `${base}/jail`),
  ],
  "a procfs of a PID namespace that is another user namespace's": [
    "EPERM",
    "pid-namespace-not-owned",
    newUserNamespace,
    mount("proc", root, "proc", ""),
  ],
  "a procfs in a user namespace, where /proc is covered in part": [
    "EPERM",
    "proc-covered",
    [...own, ...after("mount -t tmpfs t /proc/sys", ...newUserNamespace), "--pid", "--fork"],
    mount("proc", root, "proc", ""),
  ],
  "a sysfs of a network namespace that is another user namespace's": [
    "EPERM",
    "net-namespace-not-owned",
    newUserNamespace,
    mount("sysfs", root, "sysfs", ""),
  ],
  "a file system on a disk, in a user namespace": [
    "EPERM",
    "fs-not-in-userns",
    newUserNamespace,
    mount("/dev/null", root, "ext4", ""),
  ],
  "taking away an option that came from outside, in a user namespace": [
    "EPERM",
    "locked-options",
    [...own, ...after(`${tmpfs}; mount -o remount,ro,nodev ${root}`, ...newUserNamespace)],
    remount(syscalls.MS.BIND),
  ],
  "changing how access times are kept that came from outside, in a user namespace": [
    "EPERM",
    "locked-options",
    [...own, ...after(tmpfs, ...newUserNamespace)],
    remount(syscalls.MS.BIND | syscalls.MS.STRICTATIME),
  ],
  "a remount of the file system itself, with an option missing that did not come from outside": [
    "EPERM",
    "unknown",
    [...own, ...after(tmpfs, ...newUserNamespace), ...after(`mount --bind ${root} ${root}; mount -o remount,bind,nodev ${root}`)],
    remount(syscalls.MS.RDONLY),
  ],
  "a file system type that there is not": ["ENODEV", "fs-unknown", [...own], mount("t", root, "nofs", "")],
  "a subtype of a type that has none": ["ENODEV", "fs-unknown", [...own], mount("t", root, "tmpfs.x", "")],
  "a mount without CAP_SYS_ADMIN": ["EPERM", "no-cap-sys-admin", [...own, ...drop("-all")], mount("t", root, "tmpfs", "")],
  "makeMountPoint without CAP_SYS_ADMIN": [
    "EPERM",
    "no-cap-sys-admin",
    [...own, ...drop("-all")],
    { from: "mounts", name: "makeMountPoint", args: [root] },
  ],
  "makeMountPoint in a mount namespace of an outer user namespace": [
    "EPERM",
    "namespace-not-owned",
    [...own, ...userNamespace],
    { from: "mounts", name: "makeMountPoint", args: [root] },
  ],
  "unshare(2) of a mount namespace without CAP_SYS_ADMIN": ["EPERM", "no-cap-sys-admin", drop("-all"), unshare(NEWNS)],
  "unshare(2) of a mount namespace, of which there may be no more": [
    "ENOSPC",
    "max-mnt-namespaces",
    [
      ...newUserNamespace,
      ...after("mount -t proc proc /proc || mount --rbind /proc /proc; echo 0 >/proc/sys/user/max_mnt_namespaces"),
    ],
    unshare(NEWNS),
  ],
  "unshare(2) of a user namespace, of which there may be no more": [
    "ENOSPC",
    "max-user-namespaces",
    [
      ...newUserNamespace,
      "--pid",
      "--fork",
      ...after("mount -t proc proc /proc; echo 0 >/proc/sys/user/max_user_namespaces"),
      ...oneThread,
    ],
    unshare(NEWUSER),
  ],
  "unshare(2) of a user namespace by one of several threads": ["EINVAL", "userns-threads", [], unshare(NEWUSER)],
  "unshare(2) of a user namespace in a chroot": [
    "EPERM",
    "userns-in-chroot",
    [...own, ...jail(":"), ...oneThread],
    unshare(NEWUSER),
  ],
  "unshare(2) of a user namespace in a chroot to a mount point": [
    "EPERM",
    "userns-in-chroot",
    [...own, ...jail(`mount -t tmpfs t ${base}/jail`), ...oneThread],
    unshare(NEWUSER),
  ],
  "unshare(2) of a user namespace by a user that is not mapped": [
    "EPERM",
    "userns-unmapped",
    ["unshare", "--user", ...oneThread],
    unshare(NEWUSER | NEWNS),
  ],
};

describe("the kernel refuses, and the error says why:", () => {
  for (const [name, [code, reason, prefix, made]] of Object.entries(calls)) {
    test(`${name}: ${reason}`, async () => {
      const refused = await child(attempt, made, { prefix });
      expect(refused).toMatchObject({ code, reason });
      if (typeof refused === "string") throw new Error(refused);
      expect(refused.message).toMatch(new RegExp(`^${code}: .+, \\w+.*: .+`));
    });
  }
});

// --- What this machine cannot be made to do

/** A process with every capability on a machine on which nothing is out of the ordinary, but for these files and answers. */
function recorded(files: Record<string, string>, other: Partial<Evidence> = {}): Evidence {
  const all: Record<string, string> = {
    "/proc/self/status": "Name:\tbun\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nThreads:\t1\nSeccomp:\t0\n",
    "/proc/self/uid_map": "         0          0 4294967295\n",
    "/proc/self/gid_map": "         0          0 4294967295\n",
    "/proc/sys/kernel/osrelease": "6.18.0\n",
    "/proc/self/mountinfo":
      "21 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n30 21 0:30 / /new rw - tmpfs t rw\n31 30 0:31 / /new/old rw - tmpfs t rw\n",
    ...files,
  };
  const places: Record<string, Placed> = {
    "/": { path: "/", mountId: 21, mountRoot: true, directory: true },
    "/new": { path: "/new", mountId: 30, mountRoot: true, directory: true },
    "/new/old": { path: "/new/old", mountId: 31, mountRoot: true, directory: true },
    "/new/dir": { path: "/new/dir", mountId: 30, mountRoot: false, directory: true },
  };
  return {
    file: (path) => all[path],
    capable: () => true,
    probe: (syscall) => (/^(open_tree|mount_setattr|fsconfig|fsmount)$/.test(syscall) ? "EBADF" : "ENOENT"),
    place: (place) => places[String(place)],
    owns: () => true,
    locked: () => false,
    parentOfRootShared: () => false,
    inNamespace: () => true,
    chrooted: () => false,
    ...other,
  };
}

const refusals = {
  pivotEinval: new syscalls.SyscallError("pivot_root", 22, "/new", "/new/old"),
  pivotEperm: new syscalls.SyscallError("pivot_root", 1, "/new", "/new/old"),
  pivotEacces: new syscalls.SyscallError("pivot_root", 13, "/new", "/new/old"),
  mountEacces: new syscalls.SyscallError("mount", 13, "/new", "/new/dir"),
  mountEperm: new syscalls.SyscallError("mount", 1, "t", "/new"),
  unshareEperm: new syscalls.SyscallError("unshare", 1),
  openTreeEnosys: new syscalls.SyscallError("open_tree", 38, "/new"),
};

const docker = "docker-default (enforce)\n";
const filtered = "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nThreads:\t1\nSeccomp:\t2\n";
const initramfs = "1 1 0:2 / / rw - rootfs rootfs rw\n30 1 0:30 / /new rw - tmpfs t rw\n31 30 0:31 / /new/old rw - tmpfs t rw\n";
const asRootOfInitramfs: Partial<Evidence> = {
  place: (place) => ({
    path: String(place),
    mountId: place === "/" ? 1 : place === "/new" ? 30 : 31,
    mountRoot: true,
    directory: true,
  }),
};
const noCapabilities: Partial<Evidence> = { capable: () => false };
const newUser: Call = { flags: NEWUSER };

describe("recorded files: ", () => {
  for (const [name, reason, error, files, call, other, words] of [
    [
      "an initramfs",
      "initramfs",
      refusals.pivotEinval,
      { "/proc/self/mountinfo": initramfs },
      {},
      asRootOfInitramfs,
      'the method "move"',
    ],
    [
      "AppArmor, by its own file",
      "apparmor",
      refusals.pivotEacces,
      { "/proc/self/attr/apparmor/current": docker },
      {},
      {},
      "profile 'docker-default'",
    ],
    [
      "AppArmor, by the common file",
      "apparmor",
      refusals.mountEacces,
      { "/proc/self/attr/current": docker },
      { flags: syscalls.MS.BIND },
      {},
      "apparmor=unconfined",
    ],
    [
      "AppArmor, which takes the capability away",
      "apparmor",
      refusals.pivotEperm,
      { "/proc/self/attr/current": docker },
      {},
      {},
      "docker-default",
    ],
    [
      "SELinux",
      "selinux",
      refusals.pivotEacces,
      { "/proc/self/attr/current": "system_u:system_r:container_t:s0:c1,c2\0", "/sys/fs/selinux/enforce": "1" },
      {},
      {},
      "container_t",
    ],
    [
      "a seccomp filter",
      "seccomp",
      refusals.pivotEperm,
      { "/proc/self/status": filtered },
      {},
      { probe: () => "EPERM" },
      "pivot_root(2)",
    ],
    [
      "a seccomp filter that says ENOSYS",
      "seccomp",
      refusals.openTreeEnosys,
      { "/proc/self/status": filtered },
      {},
      { probe: () => "ENOSYS" },
      "open_tree(2)",
    ],
    [
      "an old kernel",
      "kernel-too-old",
      refusals.openTreeEnosys,
      { "/proc/sys/kernel/osrelease": "4.19.0-27-amd64\n" },
      {},
      { probe: () => "ENOSYS" },
      "Linux 5.2, and this is 4.19.0-27-amd64",
    ],
    [
      "a detached tree, which no kernel before 6.15 copies",
      "root-detached",
      new syscalls.SyscallError("open_tree", 22, "/new"),
      { "/proc/self/mountinfo": "", "/proc/sys/kernel/osrelease": "6.1.0-50-amd64\n" },
      {},
      {},
      "since Linux 6.15 only, and this is 6.1.0-50-amd64",
    ],
    [
      "unprivileged_userns_clone",
      "userns-clone-disabled",
      refusals.unshareEperm,
      { "/proc/sys/kernel/unprivileged_userns_clone": "0\n" },
      newUser,
      noCapabilities,
      "unprivileged_userns_clone is 0",
    ],
    [
      "unprivileged_userns_clone, for who is root in a user namespace only",
      "userns-clone-disabled",
      refusals.unshareEperm,
      {
        "/proc/sys/kernel/unprivileged_userns_clone": "0\n",
        "/proc/self/uid_map": "0 1000 1\n",
        "/proc/self/gid_map": "0 1000 1\n",
      },
      newUser,
      {},
      "unprivileged_userns_clone is 0",
    ],
    [
      "apparmor_restrict_unprivileged_userns, when the maps are written",
      "apparmor-restrict-userns",
      new syscalls.SyscallError("open", 13, "/proc/self/setgroups"),
      {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        "/proc/self/attr/current": "unprivileged_userns (enforce)\n",
      },
      newUser,
      noCapabilities,
      "restrict_unprivileged_userns is 1",
    ],
    [
      "apparmor_restrict_unprivileged_userns, at unshare(2)",
      "apparmor-restrict-userns",
      refusals.unshareEperm,
      { "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n" },
      newUser,
      noCapabilities,
      "restrict_unprivileged_userns is 1",
    ],
    [
      "apparmor_restrict_unprivileged_userns, in the user namespace",
      "apparmor-restrict-userns",
      refusals.mountEperm,
      {
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
        "/proc/self/attr/current": "unprivileged_userns (enforce)\n",
      },
      { fsType: "tmpfs" },
      {},
      "userns",
    ],
    [
      "the parent of the root is shared",
      "shared-mount",
      refusals.pivotEinval,
      {},
      {},
      { parentOfRootShared: () => true },
      '"/" is mounted on is shared',
    ],
    [
      "user namespaces are not built in",
      "no-user-namespaces",
      new syscalls.SyscallError("unshare", 22),
      { "/proc/self/uid_map": "" },
      newUser,
      { file: (path) => (path === "/proc/self/status" ? filtered : undefined) },
      "CONFIG_USER_NS",
    ],
  ] satisfies [string, Reason, syscalls.SyscallError, Record<string, string>, Call, Partial<Evidence>, string][]) {
    test(name, () => {
      const found = diagnose(error, call, recorded(files, other));
      expect(found).toMatchObject({ reason, message: expect.stringContaining(words) });
    });
  }

  // What could be the cause, and is not known to be: each is named, and none is told as a fact.
  for (const [name, error, files, call, other, words] of [
    ["nothing is found", refusals.pivotEinval, {}, {}, {}, "ruled out: "],
    [
      "what cannot be seen is named",
      refusals.pivotEinval,
      {},
      {},
      { parentOfRootShared: () => undefined },
      "not to be seen: whether the mount that",
    ],
    [
      "AppArmor in complain mode refuses nothing",
      refusals.pivotEacces,
      { "/proc/self/attr/current": "bun (complain)\n" },
      {},
      {},
      "kernel.apparmor_restrict_unprivileged_userns, AppArmor (profile 'bun', complain)",
    ],
    [
      "SELinux that is permissive refuses nothing",
      refusals.pivotEacces,
      { "/proc/self/attr/current": "a_u:b_r:c_t:s0", "/sys/fs/selinux/enforce": "0" },
      {},
      {},
      "SELinux (permissive)",
    ],
    [
      "another security module",
      refusals.pivotEacces,
      { "/proc/self/attr/current": "", "/sys/kernel/security/lsm": "capability,landlock,yama,tomoyo" },
      {},
      {},
      "landlock, tomoyo",
    ],
    [
      "a filter that does not refuse the whole call can still refuse its arguments",
      refusals.pivotEperm,
      { "/proc/self/status": filtered },
      {},
      {},
      "not to be seen: whether a seccomp filter refuses these arguments",
    ],
    [
      "a filter and an enforced profile: which of the two",
      refusals.pivotEperm,
      { "/proc/self/status": filtered, "/proc/self/attr/current": docker },
      {},
      { probe: () => "EPERM" },
      "whether a seccomp filter or the security module refuses it, whether AppArmor refuses it (profile 'docker-default')",
    ],
    [
      "a new kernel that says ENOSYS without a filter",
      refusals.openTreeEnosys,
      {},
      {},
      {},
      "the kernel's version (6.18.0), a seccomp filter",
    ],
    [
      "two limits at once",
      new syscalls.SyscallError("unshare", 28),
      { "/proc/sys/user/max_user_namespaces": "10", "/proc/sys/user/max_mnt_namespaces": "10" },
      { flags: NEWUSER | NEWNS },
      {},
      "how many mount namespaces",
    ],
    ["no /proc", refusals.pivotEinval, {}, {}, { file: () => undefined }, "the mount table"],
  ] satisfies [string, syscalls.SyscallError, Record<string, string>, Call, Partial<Evidence>, string][]) {
    test(`unknown: ${name}`, () => {
      const found = diagnose(error, call, recorded(files, other));
      expect(found?.reason).toBe("unknown");
      expect(found?.message).toStartWith("the cause is not known (");
      expect(found?.message).toContain(words);
    });
  }

  test("a code that says it all is not explained", () => {
    for (const [call, errno] of [
      ["pivot_root", 2],
      ["mount", 20],
      ["open_tree", 5],
      ["close", 9],
      ["openat", 1],
    ] as const) {
      const error = new syscalls.SyscallError(call, errno, "/new");
      expect(diagnose(error, {}, recorded({}))).toBeUndefined();
      expect(explained(error)).toBe(error);
    }
    const other = new Error("other");
    expect(explained(other)).toBe(other);
  });
});

describe("docs/errors.md", () => {
  const text = fs.readFileSync(new URL("../docs/errors.md", import.meta.url), "utf8");
  const documented = [...text.matchAll(/^\| `([a-z-]+)` \| (.+) \| (.+) \|$/gm)].map(([, reason]) => reason);

  test("has every reason, once, and no other", () => {
    expect(documented.toSorted()).toEqual([...reasons].toSorted());
  });

  test("and every reason is one that the code gives", () => {
    const sources = ["checks.ts", "diagnose.ts", "switchroot.ts", "checkroot.ts", "usernamespace.ts"];
    const code = sources.map((name) => fs.readFileSync(new URL(`../${name}`, import.meta.url), "utf8")).join("\n");
    expect(reasons.filter((reason) => reason !== "apparmor" && reason !== "selinux" && !code.includes(`"${reason}"`))).toEqual(
      [],
    );
  });
});
