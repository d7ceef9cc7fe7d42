/** What each method is worth against a process inside that has every capability: the README's table, row by row. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { type RootMethod, switchRoot } from "../switchroot.ts";
import * as syscalls from "../syscalls.ts";
import { child } from "./child.ts";

type Way = "chroot, then .." | "setns" | "umount -l /, then setns";

interface Plan {
  method: RootMethod;
  way: Way;
}

function tryToEscape({ method, way }: Plan): string {
  fs.mkdirSync("/tmp/worth/deep", { recursive: true });
  // On the root file system itself: what was mounted on it is detached by move.
  const marked = fs.mkdtempSync("/host-");
  // Opened before, as a pidfd of oneself could be at any time, without a /proc.
  const namespace = syscalls.open("/proc/self/ns/mnt", syscalls.O.RDONLY);
  const { method: used } = switchRoot("/tmp/worth", { methods: [method] });
  if (used !== method) throw new Error(`it used ${used}`);
  if (way === "chroot, then ..") {
    syscalls.chroot("/deep");
    for (let step = 0; step < 200; step++) syscalls.chdir("..");
    syscalls.chroot(".");
  } else {
    if (way !== "setns") {
      try {
        syscalls.umount2("/", syscalls.MNT.DETACH);
      } catch (error) {
        // A detached root, and one that is no mount point, cannot be unmounted.
        if (!(error instanceof syscalls.SyscallError) || error.code !== "EINVAL") throw error;
        return "holds";
      }
    }
    // setns(2) wants a thread that shares its root with no other.
    syscalls.unshare(syscalls.CLONE.FS);
    syscalls.setns(namespace, syscalls.CLONE.NEWNS);
  }
  return fs.existsSync(marked) ? "old root" : "holds";
}

const table: readonly (readonly [RootMethod, Record<Way, "holds" | "old root">])[] = [
  ["pivot", { "chroot, then ..": "holds", setns: "holds", "umount -l /, then setns": "holds" }],
  ["move", { "chroot, then ..": "holds", setns: "holds", "umount -l /, then setns": "old root" }],
  ["detached", { "chroot, then ..": "holds", setns: "old root", "umount -l /, then setns": "holds" }],
  ["chroot", { "chroot, then ..": "old root", setns: "old root", "umount -l /, then setns": "holds" }],
];

for (const [method, escapes] of table) {
  for (const way of ["chroot, then ..", "setns", "umount -l /, then setns"] as const) {
    test(`${method}, ${way}: ${escapes[way]}`, async () => {
      expect(await child(tryToEscape, { method, way })).toBe(escapes[way]);
      for (const name of fs.readdirSync("/").filter((entry) => entry.startsWith("host-"))) fs.rmdirSync(`/${name}`);
    });
  }
}
