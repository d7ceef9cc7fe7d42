#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/** The `mounttree` command. Whoever runs it may be root in somebody else's directory: nothing is read from there (see the first line). */
import { checkRoot, type RootCheck } from "./checkroot.ts";
import { type Call, explained } from "./diagnose.ts";
import { ExecError, exec, prepareExec } from "./exec.ts";
import { drawTree, printableText } from "./ls.ts";
import { version } from "./package.json" with { type: "json" };
import { restartAlone } from "./restart.ts";
import { bindInside, devInside, openBound, openDirectory, procInside, tmpfsInside } from "./rootfs.ts";
import { type PutOld, type RootMethod, SwitchRootError, switchRootOfThread } from "./switchroot.ts";
import {
  AT,
  CLONE,
  chdir,
  columnsOf,
  isRefusal,
  MS,
  mount,
  type PathLike,
  pathText,
  readFile,
  resetSignal,
  SyscallError,
  unshare,
  write,
} from "./syscalls.ts";
import { enterUserNamespace } from "./usernamespace.ts";

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
class UsageError extends Error {
  override readonly name = "UsageError";
  /** Whose help to point to: "run ", "ls ", "check ", or nothing. */
  readonly command: string;

  constructor(message: string) {
    super(message);
    this.command = /^(run|ls|check)(?=: )/.exec(message)?.[0].concat(" ") ?? "";
  }
}

/** An argument: a string, or its bytes where they are not UTF-8. */
type Argument = string | Uint8Array;

function main(): void {
  // Bun ignores it, so that a reader who goes away would not end this.
  const SIGPIPE = 13;
  resetSignal(SIGPIPE);
  const args = commandLine();
  const command = args.shift();
  if (command === "run") run(args);
  else if (command === "ls") ls(args);
  else if (command === "check") check(args);
  else if (isHelp(command)) print(help);
  else if (command === "--version") print(`mounttree ${version}\n`);
  else refuseCommand(command);
}

function refuseCommand(command: Argument | undefined): never {
  if (command === undefined) throw new UsageError("a command is missing: run, ls or check");
  const name = pathText(command);
  throw new UsageError(`${name.startsWith("-") ? "unknown option" : "unknown command"} '${name}'`);
}

function isHelp(option: Argument | undefined): boolean {
  return option === "--help" || option === "-h";
}

/** The arguments. What is not UTF-8 is lost in `process.argv`: then they come from the bytes that the kernel keeps. */
function commandLine(): Argument[] {
  const texts = process.argv.slice(2);
  for (const text of texts) if (text.includes("\uFFFD")) return commandLineBytes();
  return texts;
}

function commandLineBytes(): Argument[] {
  const bytes = readFile("/proc/self/cmdline");
  const all: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    const found = bytes.indexOf(0, at);
    const end = found === -1 ? bytes.length : found;
    all.push(bytes.slice(at, end));
    at = end + 1;
  }
  return all.slice(all.length - process.argv.length + 2).map((argument) => {
    const text = pathText(argument);
    return text.includes("\uFFFD") ? argument : text;
  });
}

// --- run

interface RunOptions {
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

interface MountOption {
  option: "--bind" | "--ro-bind" | "--tmpfs" | "--proc" | "--dev";
  /** What to bind; of no meaning for the others. */
  source: Argument;
  destination: Argument;
}

const methodNames: readonly RootMethod[] = ["pivot", "move", "detached", "chroot"];

function run(args: Argument[]): void {
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
    if (!takeOption(root, args, options)) {
      print(runHelp);
      return;
    }
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
  const command: [PathLike, ...PathLike[]] = [args.shift() ?? "/bin/sh", ...args];
  const prepared = prepareExec(options.keepDescriptors);
  enter(root, options);
  exec(command, prepared);
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

const userNamespace = "taking a user namespace";

/** From here on this thread is alone in what it does: the others stay outside, and end with the execve(2). */
function enter(path: Argument, { mounts, methods, putOld, directory, user, mapRoot }: RunOptions): void {
  let doing: string | MountOption = "taking a mount namespace, which needs CAP_SYS_ADMIN";
  try {
    if (user || !tookMountNamespace()) {
      doing = userNamespace;
      restartAlone();
      enterUserNamespace(mapRoot === true);
    }
    // Not private: what the host unmounts should not stay busy here.
    doing = "keeping mounts from the host";
    mount(null, "/", null, MS.REC | MS.SLAVE, null);
    doing = "opening ROOT";
    const madeForThis = mounts.length > 0;
    const fd = madeForThis ? openBound(path) : openDirectory(path);
    // What is made for a DEST should not depend on who calls.
    const umask = process.umask(0);
    for (const wanted of mounts) {
      doing = wanted;
      mountInside(fd, wanted);
    }
    process.umask(umask);
    doing = "";
    switchRootOfThread({ fd, path, madeForThis }, methods, putOld);
    doing = "--chdir";
    if (directory !== undefined) chdir(directory);
  } catch (error) {
    throw during(doing, explained(error, callOf(doing, path, error)));
  }
}

/** False if this takes a user namespace as well. */
function tookMountNamespace(): boolean {
  try {
    unshare(CLONE.NEWNS);
    return true;
  } catch (error) {
    if (!isRefusal(error, "EPERM") || process.geteuid?.() === 0) throw error;
    return false;
  }
}

/** What the system call that failed was given. */
function callOf(doing: string | MountOption, root: Argument, error: unknown): Call {
  const syscall = error instanceof SyscallError ? error.syscall : "";
  if (syscall === "unshare") return { flags: doing === userNamespace ? CLONE.NEWUSER | CLONE.NEWNS : CLONE.NEWNS };
  if (syscall === "mount") return { source: null, target: "/", flags: MS.REC | MS.SLAVE };
  // Every copy is recursive.
  if (typeof doing === "string") return { source: root, target: root, flags: AT.RECURSIVE };
  const isBind = doing.option === "--bind" || doing.option === "--ro-bind";
  if (isBind) return { source: doing.source, flags: AT.RECURSIVE };
  // A /dev has several; which one it was does not matter to who reads that the kernel refused it.
  return { flags: AT.RECURSIVE, ...(doing.option !== "--dev" && { fsType: doing.option.slice(2) }) };
}

function mountInside(root: number, { option, source, destination }: MountOption): void {
  if (option === "--proc") procInside(root, destination);
  else if (option === "--dev") devInside(root, destination);
  else if (option === "--tmpfs") tmpfsInside(root, destination);
  else bindInside(root, source, destination, { readOnly: option === "--ro-bind" });
}

function during(doing: string | MountOption, error: unknown): unknown {
  if (doing === "" || !(error instanceof Error)) return error;
  return new Error(`${typeof doing === "string" ? doing : mountText(doing)}: ${error.message}`, { cause: error });
}

/** A mount as it was asked for. */
function mountText({ option, source, destination }: MountOption): string {
  const isBind = option === "--bind" || option === "--ro-bind";
  return `${option} ${isBind ? `${pathText(source)} ` : ""}${pathText(destination)}`;
}

// --- ls

function ls(args: Argument[]): void {
  const taken = takePath("ls", "PATH", args);
  if (taken === undefined) {
    print(lsHelp);
    return;
  }
  const { json, path } = taken;
  // Not from `process.stdout`: Bun makes what is behind it non-blocking, for others too that have it open, and the start twice as long.
  print(drawTree(path, { json, width: columnsOf(1), ascii: !isUtf8Locale() }));
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

function isUtf8Locale(): boolean {
  const { LC_ALL, LC_CTYPE, LANG } = process.env;
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || "");
}

// --- check

function check(args: Argument[]): void {
  const taken = takePath("check", "ROOT", args);
  if (taken === undefined) {
    print(checkHelp);
    return;
  }
  const { json, path } = taken;
  if (path === undefined) throw new UsageError("check: ROOT is missing");
  const result = checkDirectory(path);
  print(json ? `${JSON.stringify(result, undefined, 2)}\n` : checkText(result));
  const strong = result.methods.some(({ method, works }) => works && method !== "chroot");
  process.exit(strong ? 0 : 1);
}

function checkDirectory(path: Argument): RootCheck {
  try {
    return checkRoot(path);
  } catch (error) {
    if (!(error instanceof SwitchRootError) || error.phase !== "arguments") throw error;
    const { cause, code } = error;
    const why = code === "EBUSY" ? "it is the root already" : cause instanceof Error ? cause.message : "";
    throw new Error(`ROOT '${pathText(path)}': ${why}`, { cause: error });
  }
}

function checkText({ root, methods, leftBehind }: RootCheck): string {
  const rows = methods.map(({ method, works, reason = "", message = "", lost }) => {
    const without = lost.length === 0 ? "" : `without what is mounted on ${lost.join(", ")} (unbindable)`;
    return `${method.padEnd(9)} ${works ? "yes" : "no "}  ${works ? without : `${reason}: ${message}`}`.trimEnd();
  });
  const left = leftBehind.map((name) => `${name} in it was left by a switch that was killed half-way: remove it with rmdir`);
  const hints = [...left, ...hint(methods)];
  const lines = [
    `${root} as "/" of a process that is started here, as it is:`,
    "",
    ...rows,
    ...(hints.length > 0 ? ["", ...hints] : []),
  ];
  return lines.map((line) => `${printableText(line)}\n`).join("");
}

/** What is missing here and 'mounttree run' would have. */
function hint(methods: RootCheck["methods"]): string[] {
  const needs = (...reasons: string[]): boolean => methods.some(({ reason }) => reason !== undefined && reasons.includes(reason));
  const privileges = needs("no-cap-sys-admin", "namespace-not-owned");
  if (!privileges && !needs("namespace-shared", "shared-mount")) return [];
  const namespaces = privileges ? "a user namespace and a mount namespace" : "a mount namespace";
  const options = privileges ? "--user --map-root-user --mount" : "--mount";
  return [
    "",
    `mounttree run takes ${namespaces} of its own: to see what it would find, 'unshare ${options} mounttree check ROOT'.`,
  ];
}

// --- Output

/** By write(2): `process.stdout` costs a start of this command more than all the rest. */
function print(text: string, fd = 1): void {
  let bytes = new TextEncoder().encode(text);
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(write(fd, bytes));
    } catch (error) {
      // A full pipe that was non-blocking when it was handed down.
      if (!isRefusal(error, "EAGAIN")) throw error;
      Bun.sleepSync(1);
    }
  }
}

try {
  main();
} catch (error) {
  if (!(error instanceof Error)) throw error;
  const hint = error instanceof UsageError ? `Try 'mounttree ${error.command}--help'.\n` : "";
  try {
    print(`mounttree: ${error.message}\n${hint}`, 2);
  } catch {
    // Nobody listens. The exit status still says what it was.
  }
  process.exit(error instanceof ExecError ? error.status : 125);
}
