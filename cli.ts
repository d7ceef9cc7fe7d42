#!/usr/bin/env -S bun --no-env-file --config=/dev/null --tsconfig-override=/dev/null
/** The `mounttree` command. Whoever runs it may be root in somebody else's directory: nothing is read from there (see the first line). */
import { checkRoot, type RootCheck } from "./checkroot.ts";
import { type Argument, type MountOption, type RunRequest, readCommandLine, UsageError } from "./commandline.ts";
import { type Call, explained } from "./diagnose.ts";
import { ExecError, exec, prepareExec } from "./exec.ts";
import { drawTree, printableText } from "./ls.ts";
import { version } from "./package.json" with { type: "json" };
import { restartAlone } from "./restart.ts";
import { bindInside, devInside, openBound, openDirectory, procInside, tmpfsInside } from "./rootfs.ts";
import { SwitchRootError, switchRootOfThread } from "./switchroot.ts";
import {
  AT,
  CLONE,
  chdir,
  columnsOf,
  isRefusal,
  MS,
  mount,
  pathText,
  readFile,
  resetSignal,
  SyscallError,
  unshare,
  write,
} from "./syscalls.ts";
import { enterUserNamespace } from "./usernamespace.ts";

function main(): void {
  // Bun ignores it, so that a reader who goes away would not end this.
  const SIGPIPE = 13;
  resetSignal(SIGPIPE);
  const request = readCommandLine(commandLine());
  if (request.command === "run") run(request);
  else if (request.command === "ls") ls(request.path, request.json);
  else if (request.command === "check") check(request.path, request.json);
  else print(request.command === "help" ? request.text : `mounttree ${version}\n`);
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

function run(request: RunRequest): void {
  const prepared = prepareExec(request.keepDescriptors);
  enter(request);
  exec(request.line, prepared);
}

const userNamespace = "taking a user namespace";

/** From here on this thread is alone in what it does: the others stay outside, and end with the execve(2). */
function enter({ root: path, mounts, methods, putOld, directory, user, mapRoot }: RunRequest): void {
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

function ls(path: Argument | undefined, json: boolean): void {
  // Not from `process.stdout`: Bun makes what is behind it non-blocking, for others too that have it open, and the start twice as long.
  print(drawTree(path, { json, width: columnsOf(1), ascii: !isUtf8Locale() }));
}

function isUtf8Locale(): boolean {
  const { LC_ALL, LC_CTYPE, LANG } = process.env;
  return /utf-?8/i.test(LC_ALL || LC_CTYPE || LANG || "");
}

// --- check

function check(path: Argument, json: boolean): void {
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
  // Who is root is not given a user namespace unasked.
  const command = needs("no-cap-sys-admin") && process.geteuid?.() === 0 ? "mounttree run --user" : "mounttree run";
  const namespaces = privileges ? "a user namespace and a mount namespace" : "a mount namespace";
  const options = privileges ? "--user --map-root-user --mount" : "--mount";
  return [`${command} takes ${namespaces} of its own: to see what it would find, 'unshare ${options} mounttree check ROOT'.`];
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
