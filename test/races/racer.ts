/**
 * Changes what a path leads to, in one of several ways, as fast as it can until it is told to stop: `bun racer.ts RACE`.
 * It ends when everything is as it was in the beginning.
 */
import { dlopen } from "bun:ffi";
import * as fs from "node:fs";
import { MNT, MS, mount, SyscallError, umount2 } from "../../syscalls.ts";
import { fleeting, links, openBoard, places, type Race } from "./board.ts";

const { path, parent, spare, spareParent, cover, coverParent, holder, beside } = places;
const { destination, destinationParent, spareDestinationParent } = places;
const board = openBoard();

const { syscall } = dlopen("libc.so.6", {
  syscall: { args: ["i64", "i32", "cstring", "i32", "cstring", "u32"], returns: "i32" },
}).symbols;

/** renameat2(2): two names swap what they lead to, so that at no time one of them is missing. */
function swap(one: string, other: string): void {
  const [AT_FDCWD, RENAME_EXCHANGE] = [-100, 2];
  const number = process.arch === "arm64" ? 276 : 316;
  if (syscall(number, AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) === -1) throw new Error(`cannot swap ${one} and ${other}`);
}

type Changes = readonly (() => void)[];

function swapWith(one: string, others: readonly string[]): Changes {
  return others.flatMap((other) => [() => swap(one, other), () => swap(one, other)]);
}

/** Mounts on a place, and on what it has mounted there; and unmounts. */
function mountOver(place: string, source: string): Changes {
  const cover = (): void => {
    mount(source, place, null, MS.BIND, null);
    // Unmounting takes longer than mounting: so that the place is covered about as long as it is not.
    const until = performance.now() + 0.2;
    while (performance.now() < until) {}
  };
  const uncover = (): void => {
    try {
      umount2(place, MNT.DETACH);
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      board.lost++;
    }
  };
  return [cover, cover, uncover, uncover];
}

/** With putOld "directory" there is something in it for a moment. */
function removeOnceEmpty(directory: string): void {
  for (;;) {
    try {
      fs.rmdirSync(directory);
      return;
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ENOTEMPTY")) throw error;
    }
  }
}

/** What each race consists of, one change after the other. */
const races: Record<Race, Changes> = {
  "path: swaps it with another directory": swapWith(path, [spare]),
  "path: swaps it with symlinks": swapWith(path, Object.keys(links.path)),
  "path: swaps its parent with another directory": swapWith(parent, [spareParent]),
  "path: swaps its parent with symlinks": swapWith(parent, Object.keys(links.parent)),
  "path: renames it away and back": [() => fs.renameSync(path, `${path}-away`), () => fs.renameSync(`${path}-away`, path)],
  "path: removes it and makes it again": [
    () => {
      fs.renameSync(path, `${path}-away`);
      fs.mkdirSync(path);
    },
    () => {
      removeOnceEmpty(path);
      fs.renameSync(`${path}-away`, path);
    },
  ],
  "path: mounts over it and unmounts": mountOver(path, cover),
  "path: mounts over its parent and unmounts": mountOver(parent, coverParent),
  "path: mounts on the old root and unmounts": mountOver(beside, cover),
  "path: swaps a directory that is mounted in with a symlink": swapWith(holder, Object.keys(links.holder)),
  "destination: swaps it with symlinks": swapWith(destination, Object.keys(links.destination)),
  "destination: swaps its parent with symlinks": swapWith(destinationParent, Object.keys(links.destinationParent)),
  "destination: swaps its parent with another directory": swapWith(destinationParent, [spareDestinationParent]),
  "table: unmounts and mounts": [
    // Not in the order of the table.
    ...fleeting.toSorted().map((place) => () => umount2(place, 0)),
    ...fleeting.map((place) => () => mount("fleeting", place, "tmpfs", 0, null)),
  ],
};

const [name = ""] = process.argv.slice(2);
const changes = new Map(Object.entries(races)).get(name);
if (changes === undefined) throw new Error(`there is no race '${name}'`);
while (!board.stop) {
  for (const change of changes) {
    change();
    board.changes++;
  }
}
