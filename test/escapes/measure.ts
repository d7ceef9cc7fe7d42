/** Tries every way out of a root, by every method and as everybody, and finds who has read a secret that is outside. */
import { randomBytes } from "node:crypto";
import * as fs from "node:fs";
import { join } from "node:path";
import { oneThread } from "../../restart.ts";
import type { RootMethod } from "../../switchroot.ts";
import { own } from "../child.ts";
import { checkout, makeRoot, shell } from "../compiled.ts";
import type { Line } from "./inside.ts";
import type { Plan } from "./switch.ts";
import { groups, type Place, symlinks } from "./ways.ts";

export const ways: readonly string[] = groups.flatMap((group) => Object.keys(group.ways));

/** Who tries, and what starts a command as that. */
const people = {
  root: [],
  // With a bounding set, uid 0 would get all capabilities back from execve(2).
  "uid 0": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
  user: ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
} as const;

export type Person = keyof typeof people;
export const everyone: readonly Person[] = ["root", "uid 0", "user"];

/** What there is outside. */
interface Host {
  /** The secret file's name, and what it says. */
  secret: string;
  content: string;
  /** Where a disk is mounted, and a directory on it that becomes the root. */
  disk: string;
  root: string;
  /** The sockets of a service, one of them in a directory of its own. */
  socket: string;
  abstractSocket: string;
  /** The directory of the programs, each in one file. */
  programs: string;
}

/** A process that tries every way, and what it is started with. */
interface Session {
  host: Host;
  place: Place;
  person: Person;
  command: [string, ...string[]];
  /** A name that `mounttree run` makes a directory of, in what symlinks in the root lead to. */
  made: string;
}

/** How a process gets into the root. */
export interface Column {
  name: string;
  start(session: Session): string[];
  /** Whether it is an ordinary user that starts it, who is root inside, or not. */
  byUser?: boolean;
}

function byMethod(method: RootMethod): Column {
  const start = ({ host, place, command }: Session): string[] => {
    const bind = { "/usr": "/usr", "/service": join(host.socket, "..") };
    const plan: Plan = { method, root: host.root, bind, keep: [place.outside, place.below], command };
    return [...own, process.execPath, join(host.programs, "switch.js"), JSON.stringify(plan)];
  };
  return { name: `\`${method}\``, start };
}

function byCommand({ host, command, made }: Session, ...options: string[]): string[] {
  const mounts = ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev", "--bind", join(host.socket, ".."), "/service"];
  const throughLinks = ["absolute", "above"].flatMap((link) => ["--tmpfs", `/${link}/${made}`]);
  return [join(checkout, "cli.ts"), "run", ...options, ...mounts, ...throughLinks, host.root, "--", ...command];
}

export const columns: readonly Column[] = [
  ...(["pivot", "move", "detached", "chroot"] as const).map(byMethod),
  { name: "`run`", start: (session) => byCommand(session) },
  {
    name: "`unshare --pid --net --fork`, `run`",
    start: (session) => ["unshare", "--pid", "--net", "--fork", ...byCommand(session)],
  },
  {
    name: "`run` by an ordinary user",
    byUser: true,
    start: (session) => [...people.user, ...byCommand(session, session.person === "user" ? "--map-same" : "--map-root")],
  },
];

/** No root at all. */
const nowhere: Column = {
  name: "nowhere",
  start: ({ host, place }) => [...own, ...tryAll(host.root, { ...place, root: host.root, socket: host.socket })],
};

/** Each group of ways is for a process of its own. */
function tryAll(root: string, place: Place): [string, ...string[]] {
  const each = groups.keys().map((group) => `bun "$0" "$1" ${group}`);
  return ["sh", "-c", [...each].join(" && "), `${root}/inside.js`, JSON.stringify(place)];
}

const environment = { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", ...Object.fromEntries(oneThread.map((each) => each.split("="))) };

/** Starts a program, and waits for the first that it prints. */
async function startReady(
  command: string[],
  env: Record<string, string> = environment,
): Promise<AsyncDisposable & { pid: number }> {
  const program = Bun.spawn(command, { env, stdin: "pipe", stdout: "pipe", stderr: "inherit" });
  const { done } = await program.stdout.getReader().read();
  if (done) throw new Error(`${command.join(" ")} ended with ${await program.exited}`);
  return {
    pid: program.pid,
    async [Symbol.asyncDispose]() {
      program.kill("SIGKILL");
      await program.exited;
    },
  };
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<Line> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) yield JSON.parse(line);
  }
}

/** Lets so many run at a time. */
function inTurn(most: number): <T>(action: () => Promise<T>) => Promise<T> {
  const lanes: Promise<unknown>[] = Array.from({ length: most }, () => Promise.resolve());
  return (action) => {
    const before = lanes.shift();
    const result = Promise.resolve(before).then(action);
    lanes.push(result);
    return result;
  };
}

let sessions = 0;

export interface Attempt {
  way: string;
  column: string;
  person: Person;
  /** Whether it read the secret. */
  out: boolean;
  /** If not: what the kernel refused, if it did. */
  refused: string | undefined;
}

/** As one person, in the root of one column. */
async function tryEveryWay(host: Host, { name: column, ...how }: Column, person: Person): Promise<Attempt[]> {
  const number = ++sessions;
  const [directory, moving, made] = [`directory-${number}`, `moving-${number}`, `made-${number}`];
  for (const name of [directory, moving]) fs.mkdirSync(join(host.root, name));
  const outside = fs.openSync("/", "r");
  const below = fs.openSync(join(host.root, directory), "r");
  // As whom it is started, and as whom it goes on.
  const [startedAs, become] = how.byUser
    ? [people.user, person === "user" ? [] : people[person]]
    : [people[person], people[person]];
  const secretly = { ...environment, SECRET: host.content };
  await using neighbour = await startReady([...startedAs, "bun", join(host.programs, "neighbour.js")], secretly);
  const place: Place = {
    ...{ root: "", secret: host.secret, disk: fs.statSync(host.disk).dev, directory, moving, node: `node-${number}` },
    ...{ outside: 3, below: 4, neighbour: neighbour.pid, socket: "/service/socket", abstractSocket: host.abstractSocket },
  };
  const command: Session["command"] = ["env", ...become, ...tryAll("", place)];
  const line = how.start({ host, place, person, command, made });
  const program = Bun.spawn(line, {
    env: environment,
    cwd: "/",
    stdio: ["pipe", "pipe", "pipe", outside, below],
    timeout: 60_000,
  });
  const stderr = program.stderr.text();

  const attempts: Attempt[] = [];
  for await (const { capabilities, standing, way, seen, refused } of linesOf(program.stdout)) {
    if (capabilities !== undefined && /[^0]/.test(capabilities) !== (person === "root")) {
      throw new Error(`${column}: ${person} has the capabilities ${capabilities}`);
    }
    if (standing) {
      fs.renameSync(join(host.root, moving), join(host.disk, moving));
      program.stdin.write("\n");
      await program.stdin.flush();
    }
    if (seen !== undefined && seen !== host.content) throw new Error(`${column}: ${way} leads to something else: ${seen}`);
    if (way !== undefined) attempts.push({ way, column, person, out: seen !== undefined, refused });
  }
  for (const fd of [outside, below]) fs.closeSync(fd);
  const status = await program.exited;
  const tried = attempts.map(({ way }) => way);
  if (status !== 0 || tried.join() !== ways.join()) {
    throw new Error(`${column}, ${person}: it ended with ${status} after ${tried.at(-1)}\n${await stderr}`);
  }
  // It matters not only what is read there: what is mounted there must not be made outside.
  if (fs.existsSync(join(host.disk, made))) for (const attempt of attempts) attempt.out ||= attempt.way === symlinks;
  return attempts;
}

/** Makes everything that is outside. */
async function makeHost(stack: AsyncDisposableStack): Promise<Host> {
  const secret = `secret-${randomBytes(8).toString("hex")}`;
  const content = `the secret is ${randomBytes(32).toString("hex")}`;
  fs.writeFileSync(`/${secret}`, content);
  stack.defer(() => fs.rmSync(`/${secret}`));
  const disk = fs.mkdtempSync("/disk-");
  stack.defer(() => fs.rmdirSync(disk));
  const programs = fs.mkdtempSync("/tmp/escapes-");
  fs.chmodSync(programs, 0o755);
  stack.defer(() => fs.rmSync(programs, { recursive: true }));

  // The container's /dev has no loop devices, or all that the machine has.
  const mountDisk = `
    made=
    node() { [ -e "$1" ] || { mknod "$@"; made="$made $1"; }; }
    node /dev/loop-control c 10 237
    for n in $(seq 0 63); do node /dev/loop$n b 7 $n; done
    truncate -s 16M "$1"
    mkfs.ext4 -q "$1"
    mount -o loop "$1" "$2"
    rm -f $made`;
  const mounted = await shell(mountDisk, [join(programs, "image"), disk]);
  if (mounted.status !== 0) throw new Error(`no disk: ${mounted.stderr}`);
  stack.defer(async () => {
    const { status, stderr } = await shell('umount "$1"', [disk]);
    if (status !== 0) throw new Error(stderr);
  });
  // What leads there from inside may be used by everyone.
  fs.chmodSync(disk, 0o777);
  fs.writeFileSync(join(disk, secret), content, { flush: true });

  const root = makeRoot(join(disk, "root"));
  for (const name of ["service", disk]) fs.mkdirSync(join(root, name));
  fs.chmodSync(join(root, disk), 0o777);
  fs.copyFileSync("/usr/bin/cat", join(root, "set-user-id"));
  fs.chmodSync(join(root, "set-user-id"), 0o4755);
  fs.symlinkSync(disk, join(root, "absolute"));
  fs.symlinkSync(`../../../..${disk}`, join(root, "above"));

  const entrypoints = ["inside", "switch", "service", "neighbour"].map((name) => join(import.meta.dir, `${name}.ts`));
  await Bun.build({ entrypoints, outdir: programs, target: "bun" });
  fs.copyFileSync(join(programs, "inside.js"), join(root, "inside.js"));

  const socket = join(disk, "service/socket");
  fs.mkdirSync(join(disk, "service"));
  const abstractSocket = `@${secret}`;
  for (const address of [socket, abstractSocket]) {
    stack.use(await startReady([process.execPath, join(programs, "service.js"), address]));
  }
  return { secret, content, disk, root, socket, abstractSocket, programs };
}

/** Every way, by every method and as everybody; and as root from {@link nowhere}. */
export async function measure(): Promise<Attempt[]> {
  await using stack = new AsyncDisposableStack();
  const host = await makeHost(stack);
  const turn = inTurn(4);
  const inside = columns.flatMap((column) => everyone.map((person) => turn(() => tryEveryWay(host, column, person))));
  // All have to have ended before what they stand on is taken away.
  const ended = await Promise.allSettled([turn(() => tryEveryWay(host, nowhere, "root")), ...inside]);
  return ended.flatMap((each) => {
    if (each.status === "rejected") throw each.reason;
    return each.value;
  });
}
