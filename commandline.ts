/**
 * The command line of `mounttree`: what is asked for, or what is wrong with it. Nothing is done here.
 */
import type { PutOld, RootMethod } from "./switchroot.ts";
import { pathText } from "./syscalls.ts";

const help = `mounttree: change what a command sees as "/"

usage: mounttree run [OPTION]... ROOT [--] [COMMAND [ARG]...]
       mounttree ls [--json] [PATH]
       mounttree check [--json] ROOT
       mounttree --help | --version

  run     run a command in a root file system of its own
  ls      show the mount tree
  check   say by which methods ROOT could become "/", and why not by the others

mounttree COMMAND --help says more.
`;

const runHelp = `usage: mounttree run [OPTION]... ROOT [--] [COMMAND [ARG]...]

Takes a mount namespace of its own, makes the directory ROOT its "/", and replaces itself with
COMMAND (default: /bin/sh), which is looked up there. Nothing outside sees a mount made here.

  --method LIST        how, in order of preference: pivot, move, detached, chroot
                       (default: pivot,move)
  --put-old WHERE      where pivot_root(2) puts the old root: stacked (default), or directory,
                       a temporary one in ROOT; if this is killed half-way it stays, empty
  --chdir DIR          start COMMAND in DIR of the new root (default: /)
  --user               take a user namespace as well, which needs no privileges; who is not root
                       gets one without asking. Otherwise this needs CAP_SYS_ADMIN
  --map-same           be in it the user and the group that called (default)
  --map-root           be root in it, with root's rights over what belongs to the namespace
  --keep-fds           leave descriptors above 2 open for COMMAND, but for eventfds and epoll
                       instances, which cannot be told from Bun's own

Mounted in ROOT, in the order given. A missing DEST is made in ROOT, and stays there:

  --bind SRC DEST      SRC and all mounts below it; no devices, no set-user-ID programs
  --ro-bind SRC DEST   the same, read-only
  --tmpfs DEST         an empty tmpfs
  --proc DEST          a procfs of the current PID namespace; where a new one is not allowed, the
                       one on /proc, if it shows that PID namespace and no other
  --dev DEST           a small /dev: null zero full random urandom tty pts ptmx shm fd std*

Exit status: that of COMMAND; 125 if mounttree fails, 126 if COMMAND cannot be executed,
127 if it is not found.
`;

const lsHelp = `usage: mounttree ls [--json] [PATH]

Shows the mounts of this mount namespace as a tree: what is mounted, where, how, and to where
mount events propagate. With PATH: the mount that PATH lies on, and what is mounted below PATH.

  --json   as JSON, an array of objects with the fields of proc_pid_mountinfo(5)

PROPAGATION is that of mount_namespaces(7): what is mounted inside goes to peers and comes from
them (shared), comes from a master (slave), neither (private), nor can it be bound (unbindable).

Exit status: 0, or 125 if mounttree fails.
`;

const checkHelp = `usage: mounttree check [--json] ROOT

Says for each method whether it would work with ROOT, and if not, why: for a process as it is
started here, without a namespace of its own. 'mounttree run' takes one first; to see what it
would find, ask as 'unshare --mount mounttree check ROOT', without root's rights as
'unshare --user --map-root-user --mount mounttree check ROOT'. Nothing is changed.

It names directories that a 'mounttree run --put-old directory' left in ROOT when it was killed.

  --json   as JSON: { root, methods: [{ method, works, reason, message, lost }], leftBehind }

Exit status: 0 if pivot, move or detached would work, 1 if none of them, 125 if mounttree fails.
`;

/** Wrong options or arguments; the message says which. */
export class UsageError extends Error {
  override readonly name = "UsageError";
  /** Whose help to point to: "run ", "ls ", "check ", or nothing. */
  readonly command: string;

  constructor(message: string) {
    super(message);
    this.command = /^(run|ls|check)(?=: )/.exec(message)?.[0].concat(" ") ?? "";
  }
}

/** An argument: a string, or its bytes where they are not UTF-8. */
export type Argument = string | Uint8Array;

/** What is asked for. */
export type Request =
  | { readonly command: "help"; readonly text: string }
  | { readonly command: "version" }
  | RunRequest
  | { readonly command: "ls"; readonly json: boolean; readonly path: Argument | undefined }
  | { readonly command: "check"; readonly json: boolean; readonly path: Argument };

export interface RunRequest extends RunOptions {
  readonly command: "run";
  readonly root: Argument;
  /** The command to run, and its arguments. */
  readonly line: readonly [Argument, ...Argument[]];
}

/**
 * Reads the arguments.
 *
 * @param args They are taken out of it.
 * @throws UsageError for an option that there is not, or not there, and for arguments that are missing or too many.
 */
export function readCommandLine(args: Argument[]): Request {
  const command = args.shift();
  if (command === "run") return readRun(args);
  if (command === "ls") return readLs(args);
  if (command === "check") return readCheck(args);
  if (isHelp(command)) return { command: "help", text: help };
  if (command === "--version") return { command: "version" };
  refuseCommand(command);
}

function refuseCommand(command: Argument | undefined): never {
  if (command === undefined) throw new UsageError("a command is missing: run, ls or check");
  const name = pathText(command);
  throw new UsageError(`${name.startsWith("-") ? "unknown option" : "unknown command"} '${name}'`);
}

function isHelp(option: Argument | undefined): boolean {
  return option === "--help" || option === "-h";
}

// --- run

export interface RunOptions {
  methods: readonly RootMethod[];
  putOld: PutOld;
  /** Where COMMAND starts; in "/" if there is none. */
  directory: Argument | undefined;
  keepDescriptors: boolean;
  /** Whether a user namespace is wanted, and not only where there is no other way. */
  user: boolean;
  /** Whether the caller is root in it. Undefined: not said. */
  mapRoot: boolean | undefined;
  /** What to mount in the root, in this order. */
  mounts: MountOption[];
}

export interface MountOption {
  option: "--bind" | "--ro-bind" | "--tmpfs" | "--proc" | "--dev";
  /** What to bind; of no meaning for the others. */
  source: Argument;
  destination: Argument;
}

const methodNames: readonly RootMethod[] = ["pivot", "move", "detached", "chroot"];

function readRun(args: Argument[]): Request {
  const options: RunOptions = {
    methods: ["pivot", "move"],
    putOld: "stacked",
    directory: undefined,
    keepDescriptors: false,
    user: false,
    mapRoot: undefined,
    mounts: [],
  };
  let root = args.shift();
  while (root !== undefined && root !== "--" && pathText(root).startsWith("-")) {
    if (!takeOption(root, args, options)) return { command: "help", text: runHelp };
    root = args.shift();
  }
  if (root === "--") root = args.shift();
  if (root === undefined) throw new UsageError("run: ROOT is missing");
  if (options.mapRoot !== undefined && !options.user && process.geteuid?.() === 0) {
    throw new UsageError("run: --map-same and --map-root go with --user, which root does not get without asking");
  }
  if (args[0] === "--") args.shift();
  else if (args[0] !== undefined && pathText(args[0]).startsWith("-")) {
    throw new UsageError(
      `run: '${pathText(args[0])}' comes after ROOT: options go before it (a command of such a name, after --)`,
    );
  }
  return { ...options, command: "run", root, line: [args.shift() ?? "/bin/sh", ...args] };
}

/** False if it was for help. */
function takeOption(option: Argument, rest: Argument[], options: RunOptions): boolean {
  switch (option) {
    case "--method":
      options.methods = pathText(nextValue(option, rest, "a list of methods"))
        .split(",")
        .map(toMethod);
      return true;
    case "--put-old":
      options.putOld = toPutOld(pathText(nextValue(option, rest, "'stacked' or 'directory'")));
      return true;
    case "--chdir":
      options.directory = nextValue(option, rest, "a directory");
      return true;
    case "--user":
      options.user = true;
      return true;
    case "--map-same":
    case "--map-root":
      if (options.mapRoot === (option !== "--map-root"))
        throw new UsageError("run: --map-same and --map-root exclude each other");
      options.mapRoot = option === "--map-root";
      return true;
    case "--keep-fds":
      options.keepDescriptors = true;
      return true;
    case "--bind":
    case "--ro-bind": {
      const source = nextValue(option, rest, "SRC and DEST");
      options.mounts.push({ option, source, destination: nextValue(option, rest, "SRC and DEST") });
      return true;
    }
    case "--tmpfs":
    case "--proc":
    case "--dev":
      options.mounts.push({ option, source: "", destination: nextValue(option, rest, "DEST") });
      return true;
    default:
      return !isHelp(option) && takeOption(withValueApart(option, rest), rest, options);
  }
}

function nextValue(option: string, rest: Argument[], what: string): Argument {
  const value = rest.shift();
  if (value === undefined) throw new UsageError(`run: ${option} needs ${what}`);
  return value;
}

/** `--method=pivot` is `--method pivot`. The option's name; the value goes to what follows. */
function withValueApart(option: Argument, rest: Argument[]): string {
  const text = pathText(option);
  const [name = "", value] = text.split(/=(.*)/s, 2);
  if (value === undefined || !/^--(method|put-old|chdir|tmpfs|proc|dev)$/.test(name)) {
    if (/^--(bind|ro-bind)$/.test(name)) throw new UsageError(`run: ${name} takes SRC and DEST as two arguments`);
    // Those that take no value are there, but not in this form.
    throw new UsageError(`run: unknown option '${/^--(keep-fds|user|map-same|map-root)$/.test(name) ? text : name}'`);
  }
  rest.unshift(typeof option === "string" ? value : option.slice(option.indexOf(0x3d) + 1));
  return name;
}

function toMethod(name: string): RootMethod {
  const method = methodNames.find((known) => known === name);
  if (method === undefined) throw new UsageError(`run: --method: '${name}' is none of ${methodNames.join(", ")}`);
  return method;
}

function toPutOld(where: string): PutOld {
  if (where === "stacked" || where === "directory") return where;
  throw new UsageError(`run: --put-old: '${where}' is neither 'stacked' nor 'directory'`);
}

// --- ls and check

function readLs(args: Argument[]): Request {
  const taken = takePath("ls", "PATH", args);
  return taken === undefined ? { command: "help", text: lsHelp } : { command: "ls", ...taken };
}

function readCheck(args: Argument[]): Request {
  const taken = takePath("check", "ROOT", args);
  if (taken === undefined) return { command: "help", text: checkHelp };
  const { json, path } = taken;
  if (path === undefined) throw new UsageError("check: ROOT is missing");
  return { command: "check", json, path };
}

/** The arguments of a command that takes --json and one path; undefined if it was for help. */
function takePath(
  command: string,
  name: string,
  args: readonly Argument[],
): { json: boolean; path: Argument | undefined } | undefined {
  let json = false;
  const paths: Argument[] = [];
  const rest = [...args];
  for (let argument = rest.shift(); argument !== undefined; argument = rest.shift()) {
    if (isHelp(argument)) return undefined;
    if (argument === "--json") json = true;
    else if (argument === "--") paths.push(...rest.splice(0));
    else if (pathText(argument).startsWith("-")) throw new UsageError(`${command}: unknown option '${pathText(argument)}'`);
    else paths.push(argument);
  }
  const [path, second] = paths;
  if (second !== undefined) throw new UsageError(`${command}: one ${name} at a time, not '${pathText(second)}' as well`);
  return { json, path };
}
