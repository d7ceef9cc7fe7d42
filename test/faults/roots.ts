/** The roots that are switched to under strace, some at a time, and how things look from outside of who switches. */
import { afterAll, afterEach, beforeAll, beforeEach, expect } from "bun:test";
import * as fs from "node:fs";
import { parseMountInfo } from "../../mountinfo.ts";
import { AT, MNT, mount, STATX, statx, umount2 } from "../../syscalls.ts";
import { makeRoot } from "../observe.ts";

/** What one run at a time has for itself. */
export interface Place {
  /** A directory with a root in it, `root`, and `away`, the working directory of who switches. */
  path: string;
  log: string;
}

/** What is to become "/": a plain directory, or a mount point. Either has mounts below it. */
export type Kind = "directory" | "mount point";

const base = "/tmp/faults";
const places = Array.from({ length: navigator.hardwareConcurrency + 1 }, (_, index) => placeAt(`${base}/place${index}`));

function placeAt(path: string): Place {
  return { path, log: `${path}/log` };
}

/** Where that is done which is done once. */
export const firstPlace: Place = placeAt(`${base}/place0`);

/** Makes the roots before the tests of a file, and sees to it that none of these leaves anything: no mount, process or namespace. */
export function useRoots(propagation: number): void {
  let before: Leftovers;
  beforeAll(() => {
    fs.mkdirSync(base);
    mount("faults", base, "tmpfs", 0, null);
    mount(null, base, null, propagation, null);
    for (const place of places) {
      for (const kind of ["directory", "mount point"] as const) {
        const root = rootOf(place, kind);
        fs.mkdirSync(root, { recursive: true });
        if (kind === "mount point") mount("root", root, "tmpfs", 0, null);
        makeRoot(root, kind);
        fs.writeFileSync(`${root}/hello`, '#!/bin/sh\necho "$(cat /marker) $(pwd) $*"\nls /\n', { mode: 0o755 });
      }
      fs.mkdirSync(`${place.path}/away`);
      fs.writeFileSync(`${place.path}/away/here.json`, "{}");
      fs.writeFileSync(`${place.path}/away/file`, "");
    }
  });
  beforeEach(() => {
    before = leftovers();
  });
  afterEach(() => expect(leftovers()).toEqual(before));
  afterAll(() => {
    umount2(base, MNT.DETACH);
    fs.rmdirSync(base);
  });
}

interface Leftovers {
  mounts: string;
  processes: string[];
  /** The mount namespaces in which a process lives. */
  namespaces: string[];
}

export function mountTable(): string {
  return fs.readFileSync("/proc/self/mountinfo", "utf8");
}

function leftovers(): Leftovers {
  const processes = fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  const namespaces = processes.map((pid) => fs.readlinkSync(`/proc/${pid}/ns/mnt`));
  return { mounts: mountTable(), processes, namespaces: [...new Set(namespaces)].sort() };
}

export function rootOf({ path }: Place, kind: Kind): string {
  return `${path}/${kind === "directory" ? "directory" : "mount"}`;
}

/** The directories that a switch with putOld "directory" has left in a root. */
export function leftBehind(root: string): string[] {
  return fs.readdirSync(root).filter((name) => name.startsWith(".pivot_root"));
}

/** Takes away what may stay in a root. */
export function tidy(root: string): void {
  for (const name of leftBehind(root)) fs.rmdirSync(`${root}/${name}`);
  fs.rmSync(`${root}/new`, { recursive: true, force: true });
}

/** Does something with each, in some places at a time. */
export async function inPlaces<T>(all: readonly T[], action: (each: T, place: Place) => Promise<void>): Promise<void> {
  const rest = [...all];
  await Promise.all(
    places.map(async (place) => {
      for (let next = rest.shift(); next !== undefined; next = rest.shift()) await action(next, place);
    }),
  );
}

// --- What another process sees

/** A process. */
export interface State {
  mounts: string;
  /** Where it leads, for all threads. */
  cwd: string;
  root: string;
  descriptors: string[];
}

export function stateOf(pid: number): State {
  const threads = fs.readdirSync(`/proc/${pid}/task`);
  const common = (name: string): string =>
    [...new Set(threads.map((thread) => identityOf(`/proc/${pid}/task/${thread}/${name}`)))].join(", and ");
  return {
    mounts: fs.readFileSync(`/proc/${pid}/mountinfo`, "utf8"),
    cwd: `${fs.readlinkSync(`/proc/${pid}/cwd`)} ${common("cwd")}`,
    root: `${fs.readlinkSync(`/proc/${pid}/root`)} ${common("root")}`,
    descriptors: fs.readdirSync(`/proc/${pid}/fd`).map((fd) => `${fd} ${fs.readlinkSync(`/proc/${pid}/fd/${fd}`)}`),
  };
}

function identityOf(path: string): string {
  const { mountId, ino, devMajor, devMinor } = statx(AT.FDCWD, path, 0, STATX.BASIC_STATS | STATX.MNT_ID);
  return `inode ${ino} of ${devMajor}:${devMinor}, mount ${mountId}`;
}

/** Whether the root of a process, or its working directory, is a directory, for all of its threads, on whichever mount. */
export function isAt(pid: number, which: "root" | "cwd", directory: string): boolean {
  const { ino, dev } = fs.statSync(directory);
  return fs.readdirSync(`/proc/${pid}/task`).every((thread) => {
    const found = fs.statSync(`/proc/${pid}/task/${thread}/${which}`);
    return found.ino === ino && found.dev === dev;
  });
}

/** A mount table without the numbers that differ from one switch to the next. */
export function shapeOf(mounts: string): string[] {
  return parseMountInfo(mounts).map(({ mountPoint, root, fsType, mountOptions, propagation }) =>
    [mountPoint, root.replace(/place\d+/, "place"), fsType, mountOptions, Object.keys(propagation)].join(" "),
  );
}

/** Everything below a directory, but for what is mounted on its `usr`: names, types, permissions, times and texts. */
export function contentsOf(directory: string): string[] {
  return fs.readdirSync(directory).flatMap((name) => {
    const path = `${directory}/${name}`;
    const { mode, size, mtimeMs, nlink } = fs.lstatSync(path);
    const type = mode & fs.constants.S_IFMT;
    const text = type === fs.constants.S_IFREG ? fs.readFileSync(path, "utf8") : "";
    const below = type === fs.constants.S_IFDIR && name !== "usr" ? contentsOf(path) : [];
    return [`${path} ${mode.toString(8)} ${size} ${mtimeMs} ${nlink} ${text}`, ...below];
  });
}
