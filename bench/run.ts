/**
 * `bun run bench`: mounttree beside C, bubblewrap and util-linux. Every number is a median, every ratio one of medians from this run,
 * in which the peers took turns. All mounts are made in mount namespaces of the processes that are measured.
 *
 * A limit that is missed is printed; with --strict it also makes the exit status 1.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, loadavg, release } from "node:os";
import { join } from "node:path";
import { scripts } from "../package.json" with { type: "json" };
import {
  type Bench,
  detached,
  enteringNamespaces,
  mountTable,
  newNamespaces,
  pivotAgainAndAgain,
  processes,
} from "./measurements.ts";
import { missedLimits, section } from "./report.ts";

const checkout = join(import.meta.dir, "..");
const hostTable = () => readFileSync("/proc/self/mountinfo", "utf8").split("\n");

function stop(message: string): never {
  console.error(`bench: ${message}`);
  process.exit(1);
}

function run(command: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(command, { cwd: checkout, stdin: "ignore", stderr: "pipe" });
  if (exitCode !== 0) stop(`${command.join(" ")}: ${stderr.toString().trim()}`);
}

/** floor.c as a program; undefined, and said, where there is no C compiler. */
function compileFloor(directory: string): string | undefined {
  const compiler = Bun.which("cc") ?? Bun.which("gcc");
  if (compiler === null) {
    console.log("There is no C compiler (cc or gcc): what is measured beside C is left out.");
    return undefined;
  }
  const floor = `${directory}/floor`;
  run([compiler, "-O2", "-o", floor, join(import.meta.dir, "floor.c")]);
  return floor;
}

/** As `bun run build` compiles the command, but elsewhere: what is in dist may be older than the source. */
function compileAlike(entry: string, outfile: string): string {
  return compile(outfile, scripts.build.replace("cli.ts", entry).replace("dist/mounttree", outfile).split(" ").slice(1));
}

function compile(outfile: string, build: readonly string[]): string {
  run([process.execPath, ...build]);
  // How the kernel keeps the pages of a file that was just written is a matter of luck, and worth a millisecond to a program that
  // starts from it. Read in from the disk in one go, all of them are kept alike.
  run(["dd", `of=${outfile}`, "oflag=nocache", "conv=notrunc,fdatasync", "count=0"]);
  readFileSync(outfile);
  return outfile;
}

function prepare(directory: string): Bench {
  const empty = `${directory}/empty.ts`;
  writeFileSync(empty, "export {};\n");
  const enter = join(import.meta.dir, "enter.ts");
  return {
    directory,
    floor: compileFloor(directory),
    mounttree: compileAlike("cli.ts", `${directory}/mounttree`),
    empty: compile(`${directory}/empty`, ["build", empty, "--compile", "--outfile", `${directory}/empty`]),
    emptyAlike: compileAlike(empty, `${directory}/empty-alike`),
    enter,
    enterCompiled: compile(`${directory}/enter`, ["build", enter, "--compile", "--outfile", `${directory}/enter`]),
  };
}

if (process.platform !== "linux") stop("it needs Linux");
if (process.getuid?.() !== 0) stop("it needs root: it mounts and switches, in mount namespaces of its own");
if (Bun.which("unshare") === null) stop("it needs unshare (util-linux)");

const before = hostTable();
// Not below /tmp, which may be a tmpfs.
const directory = mkdtempSync("/var/tmp/mounttree-bench-");
const started = performance.now();
const load = loadavg()[0]?.toFixed(2);
console.log(
  `mounttree bench: Linux ${release()}, ${process.arch}, ${availableParallelism()} cores, Bun ${Bun.version}, load ${load}`,
);
try {
  const bench = prepare(directory);
  await pivotAgainAndAgain(bench, "bind");
  await pivotAgainAndAgain(bench, "tmpfs");
  await detached(bench);
  await newNamespaces(bench);
  await mountTable(bench);
  await processes(bench);
  await enteringNamespaces(bench);
} finally {
  const after = hostTable();
  const changed = [...before.filter((line) => !after.includes(line)), ...after.filter((line) => !before.includes(line))];
  // First of all: with a mount left in it, removing the directory would empty what is mounted there.
  if (changed.length > 0) stop(`the host's mount table has changed; ${directory} is left as it is:\n${changed.join("\n")}`);
  rmSync(directory, { recursive: true });
}

const missed = missedLimits();
section(
  `${missed.length} limits missed; the host's mount table is as it was; ${((performance.now() - started) / 1000).toFixed(0)} s`,
  ...missed,
);
process.exit(process.argv.includes("--strict") && missed.length > 0 ? 1 : 0);
