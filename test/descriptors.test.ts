/** Open directories that lead out of the new root. */
import { describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { SwitchRootError, switchRoot } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child, onTmpfs, own } from "./child.ts";
import { type DescribedError, describeError } from "./observe.ts";

const base = "/tmp/descriptors";
onTmpfs(base);

interface Setup {
  base: string;
  method: "pivot" | "move" | "detached" | "chroot";
  mountPoint: boolean;
  descriptors?: "keep" | "report" | "refuse";
}

interface Seen {
  leaks: string[] | undefined;
  /** The paths of the descriptors from which ".." leads to the host's file, tried for real. */
  escapes: string[];
}

/** Opens directories in the root, below it, above it and beside it, switches, and looks whether each leads out. */
function switchWithOpenDirectories({
  base: top,
  method,
  mountPoint,
  descriptors,
}: Setup): Seen | { error: DescribedError; unchanged: boolean } {
  const root = `${top}/root`;
  for (const name of ["root/sub/deep", "beside"]) fs.mkdirSync(`${top}/${name}`, { recursive: true });
  if (mountPoint) {
    syscalls.mount(root, root, null, syscalls.MS.BIND, null);
    syscalls.mount(null, root, null, syscalls.MS.PRIVATE, null);
  }
  fs.writeFileSync(`${top}/host`, "");
  const paths = ["/", top, root, `${root}/sub/deep`, `${top}/beside`];
  const open = paths.map((path) => [path, syscalls.open(path, syscalls.O.RDONLY | syscalls.O.DIRECTORY)] as const);
  // Files and what is no file are no way out.
  syscalls.open(`${top}/host`, syscalls.O.RDONLY);
  const before = fs.readFileSync("/proc/self/mountinfo", "utf8");
  let leaks: string[] | undefined;
  try {
    const result = switchRoot(root, { methods: [method], ...(descriptors && { descriptors }) });
    leaks = result.leaks?.map(({ fd, path }) => (open.some((one) => one[0] === path && one[1] === fd) ? path : `${fd} ${path}`));
  } catch (error) {
    return { error: describeError(error), unchanged: fs.readFileSync("/proc/self/mountinfo", "utf8") === before };
  }
  // "work" is in the host's "/", "host" where the root was; the mounts of the host may be gone from one another.
  const leadsOut = (fd: number): boolean =>
    ["", "../", "../../", "../../../", "../../../../"].some((up) =>
      ["work", "host"].some((name) => {
        try {
          syscalls.close(syscalls.openat(fd, up + name, syscalls.O.PATH));
          return true;
        } catch {
          return false;
        }
      }),
    );
  return { leaks, escapes: open.filter((one) => leadsOut(one[1])).map((one) => one[0]) };
}

const root = `${base}/root`;
const outside = ["/", base, `${base}/beside`];
const all = ["/", base, root, `${root}/sub/deep`, `${base}/beside`];

describe("descriptors that lead out", () => {
  for (const [method, mountPoint, leaks] of [
    ["pivot", true, outside],
    ["move", true, outside],
    ["chroot", true, outside],
    ["chroot", false, outside],
    ["pivot", false, all],
    ["move", false, all],
    ["detached", true, all],
    ["detached", false, all],
  ] as const) {
    const setup = { base, method, mountPoint };
    const what = `${method}, path ${mountPoint ? "a mount point" : "a directory"}`;

    test(`are reported, exactly those from which there is a way out: ${what}`, async () => {
      const seen = await child(switchWithOpenDirectories, { ...setup, descriptors: "report" });
      expect(seen).toMatchObject({ leaks });
      // A mount that was made over the path, and a copy, leave those in the path itself below the old root.
      expect("escapes" in seen && seen.escapes.every((path) => leaks.some((leak) => leak === path))).toBe(true);
      expect("escapes" in seen && outside.every((path) => seen.escapes.includes(path))).toBe(true);
    });

    test(`are a reason to refuse, with nothing changed: ${what}`, async () => {
      const refused = await child(switchWithOpenDirectories, { ...setup, descriptors: "refuse" });
      expect(refused).toMatchObject({
        error: { phase: "descriptors", switched: false, method, reason: "open-descriptors" },
        unchanged: true,
      });
      for (const path of leaks) expect("error" in refused && refused.error.message).toContain(`('${path}')`);
      if (leaks === outside) expect("error" in refused && refused.error.message).not.toContain(`('${root}')`);
    });
  }

  test("are kept, and not looked for, by default", async () => {
    const seen = await child(switchWithOpenDirectories, { base, method: "pivot", mountPoint: true });
    expect(seen).toMatchObject({ escapes: outside });
    expect(seen).not.toHaveProperty("leaks");
  });
});

test("without open directories that lead out, refuse lets the switch pass, and report reports none", async () => {
  const nothingOpen = ({ base: top, descriptors }: { base: string; descriptors: "report" | "refuse" }) => {
    fs.mkdirSync(`${top}/root`);
    try {
      const { method, leaks } = switchRoot(`${top}/root`, { descriptors });
      return { method, leaks };
    } catch (error) {
      return { failed: error instanceof SwitchRootError ? error.message : String(error) };
    }
  };
  expect(await child(nothingOpen, { base, descriptors: "report" })).toEqual({ method: "pivot", leaks: [] });
  expect(await child(nothingOpen, { base: `${base}/root`, descriptors: "refuse" })).toMatchObject({ method: "pivot" });
});

describe("descriptors of another kind", () => {
  const withDeadProcess = async ({ root: path, descriptors }: { root: string; descriptors: "report" | "refuse" }) => {
    fs.mkdirSync(path, { recursive: true });
    const process = Bun.spawn(["sleep", "60"]);
    const fd = syscalls.open(`/proc/${process.pid}`, syscalls.O.RDONLY | syscalls.O.DIRECTORY);
    process.kill();
    await process.exited;
    try {
      return switchRoot(path, { descriptors }).leaks?.map((leak) => leak.fd === fd);
    } catch (error) {
      return describeError(error);
    }
  };
  test("the directory of a process that has ended, which cannot be asked where it is, leads out", async () => {
    expect(await child(withDeadProcess, { root, descriptors: "report" })).toEqual([true]);
    const refused = { name: "SwitchRootError", phase: "descriptors", switched: false };
    expect(await child(withDeadProcess, { root, descriptors: "refuse" })).toMatchObject(refused);
  });

  const below = ({ root: path, descriptors }: { root: string; descriptors: "report" | "refuse" }) => {
    fs.mkdirSync(`${path}/sub`, { recursive: true });
    const fd = syscalls.open(`${path}/sub`, syscalls.O.RDONLY | syscalls.O.DIRECTORY);
    try {
      const { bound, leaks } = switchRoot(path, { methods: ["pivot"], descriptors });
      return { bound, leaks: leaks?.map((leak) => leak.fd === fd) };
    } catch (error) {
      return describeError(error);
    }
  };
  test("a directory below a locked mount point leads out, since a copy of that is entered", async () => {
    const inside = ["unshare", "--user", "--map-root-user", "--mount"];
    const prefix = [...own, "sh", "-ec", `mkdir -p ${root}; mount -t tmpfs t ${root}; exec "$@"`, "sh", ...inside];
    expect(await child(below, { root, descriptors: "report" }, { prefix })).toEqual({ bound: true, leaks: [true] });
    const refused = { name: "SwitchRootError", phase: "descriptors", switched: false };
    expect(await child(below, { root, descriptors: "refuse" }, { prefix })).toMatchObject(refused);
  });

  const twice = ({ root: path, descriptors }: { root: string; descriptors: "report" | "refuse" }) => {
    fs.mkdirSync(`${path}/sub`, { recursive: true });
    fs.writeFileSync(`${path}/above`, "");
    switchRoot(path, { methods: ["detached"] });
    try {
      const { leaks = [] } = switchRoot("/sub", { methods: ["chroot"], descriptors });
      return leaks.map(({ fd }) => syscalls.openat(fd, "above", syscalls.O.RDONLY) > 0);
    } catch (error) {
      return describeError(error);
    }
  };
  test("the tree that was entered before leads out of a chroot in it", async () => {
    expect(await child(twice, { root, descriptors: "report" })).toEqual([true]);
    const refused = { name: "SwitchRootError", phase: "descriptors", switched: false };
    expect(await child(twice, { root, descriptors: "refuse" })).toMatchObject(refused);
  });
});
