/**
 * Switches to one path again and again, each time as it is told: `bun switcher.ts`. For a line on standard input, a {@link Plan},
 * it answers with a line, a {@link Reply}, and stays where it is until the next one, so that others can look at it from outside.
 *
 * It must have one thread: then it can take a mount namespace for one switch, and leave it for the next.
 */
import * as fs from "node:fs";
import { type RootMethod, SwitchRootError, switchRoot } from "../../switchroot.ts";
import {
  AT,
  CLONE,
  close,
  countMounts,
  MS,
  mount,
  O,
  open,
  openat,
  read,
  readDirectory,
  readFile,
  STATX,
  setns,
  statx,
  unshare,
  write,
} from "../../syscalls.ts";
import { type DescribedError, describeError } from "../observe.ts";
import { base, openBoard, places } from "./board.ts";

export interface Plan {
  methods: RootMethod[];
  putOld: "stacked" | "directory";
}

export interface Reply {
  /** What was used; undefined if nothing worked. */
  method?: RootMethod;
  error?: DescribedError;
  /** The mount table before the switch. */
  table: string;
  /** Whether `/..` is "/", as seen from inside. */
  closed: boolean;
  /** How many mounts a move has left on the old root. */
  left: number;
  /** How many changes the racer made meanwhile. */
  changes: number;
  /** With more than one, no other namespace can be taken. */
  threads: number;
}

const board = openBoard();
const proc = open("/proc", O.PATH | O.CLOEXEC);
const outer = open("/proc/self/ns/mnt", O.RDONLY | O.CLOEXEC);

function attempt({ methods, putOld }: Plan): Reply {
  setns(outer, CLONE.NEWNS);
  if (methods.includes("pivot") || methods.includes("move")) {
    unshare(CLONE.NEWNS);
    // What is mounted outside goes on to appear here.
    mount(null, "/", null, MS.SLAVE | MS.REC, null);
  }
  process.chdir(base);
  const table = fs.readFileSync("/proc/self/mountinfo", "utf8");
  const before = board.changes;
  const oldRoot = statx(AT.FDCWD, "/", 0, STATX.MNT_ID_UNIQUE).mountId;
  let outcome: Pick<Reply, "method" | "error">;
  try {
    outcome = { method: switchRoot(places.path, { methods, putOld }).method };
  } catch (error) {
    if (!(error instanceof SwitchRootError)) throw error;
    outcome = { error: describeError(error) };
  }
  const changes = board.changes - before;
  const left = outcome.method === "move" ? countLeft(oldRoot) : 0;
  return { ...outcome, table, left, changes, closed: identity("/..") === identity("/"), threads: countThreads() };
}

function identity(of: string): string {
  const { ino, devMinor, mountId } = statx(AT.FDCWD, of, 0, STATX.BASIC_STATS | STATX.MNT_ID_UNIQUE);
  return `${devMinor}:${ino}:${mountId}`;
}

/** How many mounts there are below a root that are not below "/". On "/" itself the racer's may come and go just now: then they are counted again. */
function countLeft(oldRoot: bigint): number {
  for (;;) {
    const { changes } = board;
    const all = countMounts(oldRoot);
    const left = all - countVisible();
    if (countMounts(oldRoot) === all && board.changes === changes) return left;
  }
}

/** The mounts that the table has, which are those below "/". */
function countVisible(): number {
  return Buffer.from(readFile("self/mountinfo", proc)).toString().split("\n").length - 1;
}

function countThreads(): number {
  const fd = openat(proc, "self/task", O.RDONLY | O.DIRECTORY | O.CLOEXEC);
  const { length } = readDirectory(fd);
  close(fd);
  return length;
}

const line = new Uint8Array(4096);
for (let length = read(0, line); length > 0; length = read(0, line)) {
  const plan: Plan = JSON.parse(Buffer.from(line.subarray(0, length)).toString());
  let answer: Uint8Array = Buffer.from(`${JSON.stringify(attempt(plan))}\n`);
  while (answer.length > 0) answer = answer.subarray(write(1, answer));
}
