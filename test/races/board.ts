/** Where the racer, who switches, and the test meet: what is called how, and a piece of memory that all of them see. */
import * as fs from "node:fs";

/** Ways of changing what the path leads to that is switched to. */
export const pathKinds = [
  "swaps it with another directory",
  "swaps it with symlinks",
  "swaps its parent with another directory",
  "swaps its parent with symlinks",
  "renames it away and back",
  "removes it and makes it again",
  "mounts over it and unmounts",
  "mounts over its parent and unmounts",
  "mounts on the old root and unmounts",
  "swaps a directory that is mounted in with a symlink",
] as const;

/** Ways of changing what a destination inside of it leads to. */
export const destinationKinds = [
  "swaps it with symlinks",
  "swaps its parent with symlinks",
  "swaps its parent with another directory",
] as const;

export type Race =
  | `path: ${(typeof pathKinds)[number]}`
  | `destination: ${(typeof destinationKinds)[number]}`
  | "table: unmounts and mounts";

export const base = "/tmp/races";

const path = `${base}/parent/root`;

type Place =
  /** What is switched to, and another directory like it. */
  | "path"
  | "spare"
  /** What it lies in, and another one like that. */
  | "parent"
  | "spareParent"
  /** What is mounted over it, or over its parent. */
  | "cover"
  | "coverParent"
  /** On the old root: a directory in which something is mounted on `inner`, and one to mount on. */
  | "holder"
  | "beside"
  /** Inside of the path: where something is to be mounted, its parent, and another one like that. */
  | "destination"
  | "destinationParent"
  | "spareDestinationParent"
  /** Outside of it: one like that, and what is mounted there. */
  | "outside"
  | "source";

export const places: Readonly<Record<Place, string>> = {
  path,
  spare: `${base}/spare`,
  parent: `${base}/parent`,
  spareParent: `${base}/spare-parent`,
  cover: `${base}/cover`,
  coverParent: `${base}/cover-parent`,
  holder: "/races/holder",
  beside: "/races/beside",
  destination: `${path}/above/destination`,
  destinationParent: `${path}/above`,
  spareDestinationParent: `${path}/inside`,
  outside: `${base}/outside`,
  source: `${base}/source`,
};

/** Where something is mounted all the time, and where it comes and goes. */
export const steady: readonly string[] = Array.from({ length: 300 }, (_, index) => `${base}/steady-${index}`);
export const fleeting: readonly string[] = steady.map((place) => place.replace("steady", "fleeting"));

const up = "../../../../../../../..";

/** Symlinks, and what they lead to, for those that are swapped with symlinks. */
export const links: Readonly<Record<"path" | "parent" | "holder" | "destination" | "destinationParent", Record<string, string>>> =
  {
    path: {
      [`${base}/links/absolute`]: places.spare,
      [`${base}/links/relative`]: "../spare",
      [`${base}/links/nowhere`]: "nowhere",
    },
    parent: {
      [`${base}/links/parent-absolute`]: places.spareParent,
      [`${base}/links/parent-relative`]: "./spare-parent",
      [`${base}/links/nowhere`]: "nowhere",
    },
    holder: { "/races/root": "/" },
    destination: {
      [`${path}/links/absolute`]: `${places.outside}/destination`,
      [`${path}/links/relative`]: `${up}${places.outside}/destination`,
      [`${path}/links/inside`]: "/inside/destination",
      [`${path}/links/relative-inside`]: `${up}/inside/destination`,
      [`${path}/links/root`]: up,
    },
    destinationParent: {
      [`${path}/links/parent-absolute`]: places.outside,
      [`${path}/links/parent-relative`]: `${up}${places.outside}`,
      [`${path}/links/parent-inside`]: "/inside",
      [`${path}/links/parent-relative-inside`]: `${up}/inside`,
    },
  };

export interface Board {
  /** Set by the test: the racer comes to an end. */
  stop: boolean;
  /** How many changes the racer has made. */
  changes: number;
  /** How often something was gone that only the racer itself may take away. */
  lost: number;
}

const file = `${base}-board`;

export function makeBoard(): void {
  fs.writeFileSync(file, new Uint8Array(4096));
}

export function removeBoard(): void {
  fs.rmSync(file);
}

/** The memory, which is a file. */
export function openBoard(): Board {
  const { buffer } = Bun.mmap(file, { shared: true });
  const words = new Uint32Array(buffer, 0, 3);
  return {
    get stop() {
      return Atomics.load(words, 0) === 1;
    },
    set stop(stop) {
      Atomics.store(words, 0, stop ? 1 : 0);
    },
    get changes() {
      return Atomics.load(words, 1);
    },
    set changes(changes) {
      Atomics.store(words, 1, changes);
    },
    get lost() {
      return Atomics.load(words, 2);
    },
    set lost(lost) {
      Atomics.store(words, 2, lost);
    },
  };
}
