/**
 * `bun run bench`: mounttree beside C, bubblewrap, runc and util-linux, as one table: RESULTS.md and, drawn, RESULTS.svg. The peers take
 * turns. All mounts are made in mount namespaces of the processes that are measured.
 *
 * `bun run bench PART...` measures some parts, and only prints them. A limit that is missed is printed; with --strict it also makes the
 * exit status 1.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem } from "node:os";
import { join } from "node:path";
import { scripts } from "../package.json" with { type: "json" };
import {
  type Bench,
  detached,
  enteringNamespaces,
  firstSwitch,
  mountTable,
  newNamespaces,
  pivotAgainAndAgain,
  switchesByMounts,
  unmounting,
} from "./measurements.ts";
import { plot } from "./plot.ts";
import { inARow, memory, processes } from "./processes.ts";
import { Report } from "./report.ts";

const parts: Readonly<Record<string, (bench: Bench) => Promise<void>>> = {
  pivot: async (bench) => {
    await pivotAgainAndAgain(bench, "bind");
    await pivotAgainAndAgain(bench, "tmpfs");
  },
  first: firstSwitch,
  detached,
  namespaces: newNamespaces,
  switches: switchesByMounts,
  table: mountTable,
  unmount: unmounting,
  processes,
  row: inARow,
  memory,
  entering: enteringNamespaces,
};

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

/** The first line that a command prints. */
function said(...command: [string, ...string[]]): string {
  if (Bun.which(command[0]) === null) return "not installed";
  const { stdout } = Bun.spawnSync(command, { cwd: checkout, stdin: "ignore", stderr: "ignore" });
  return stdout.toString().split("\n")[0] ?? "";
}

/** What the numbers depend on. */
function facts(): Record<string, string> {
  const system = /^PRETTY_NAME="(.*)"$/m.exec(readFileSync("/etc/os-release", "utf8"))?.[1];
  const virtual = /^flags\s*:.*\bhypervisor\b/m.test(readFileSync("/proc/cpuinfo", "utf8")) ? ", a virtual machine" : "";
  return {
    machine: `${availableParallelism()} cores (${cpus()[0]?.model.trim()}), ${(totalmem() / 2 ** 30).toFixed(0)} GiB${virtual}`,
    kernel: `Linux ${release()}, ${process.arch}`,
    system: `${system}, ${said("getconf", "GNU_LIBC_VERSION")}`,
    Bun: Bun.version,
    "util-linux": said("unshare", "--version"),
    bubblewrap: said("bwrap", "--version"),
    runc: said("runc", "--version"),
    "C compiler": said(compilerName ?? "cc", "--version"),
    load: `${loadavg()[0]?.toFixed(2)} before it began`,
    mounttree: said("git", "describe", "--always", "--dirty", "--exclude=*"),
    date: new Date().toISOString().slice(0, 10),
  };
}

const compilerName = ["cc", "gcc"].find((name) => Bun.which(name) !== null);

/** floor.c as a program; undefined, and said, where there is no C compiler. */
function compileFloor(directory: string): string | undefined {
  if (compilerName === undefined) {
    console.log("There is no C compiler (cc or gcc): what is measured beside C is left out.");
    return undefined;
  }
  const floor = `${directory}/floor`;
  run([compilerName, "-O2", "-o", floor, join(import.meta.dir, "floor.c")]);
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

function prepare(directory: string, report: Report): Bench {
  const empty = `${directory}/empty.ts`;
  writeFileSync(empty, "export {};\n");
  const enter = join(import.meta.dir, "enter.ts");
  return {
    report,
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

const names = process.argv.slice(2).filter((argument) => argument !== "--strict");
const unknown = names.find((name) => !Object.hasOwn(parts, name));
if (unknown !== undefined) stop(`there is no part '${unknown}'; there are ${Object.keys(parts).join(", ")}`);

const before = hostTable();
// Not below /tmp, which may be a tmpfs.
const directory = mkdtempSync("/var/tmp/mounttree-bench-");
const started = performance.now();
const measuredOn = facts();
for (const [name, value] of Object.entries(measuredOn)) console.log(`${name}: ${value}`);
const report = new Report();
try {
  const bench = prepare(directory, report);
  for (const [name, part] of Object.entries(parts)) if (names.length === 0 || names.includes(name)) await part(bench);
} finally {
  const after = hostTable();
  const changed = [...before.filter((line) => !after.includes(line)), ...after.filter((line) => !before.includes(line))];
  // First of all: with a mount left in it, removing the directory would empty what is mounted there.
  if (changed.length > 0) stop(`the host's mount table has changed; ${directory} is left as it is:\n${changed.join("\n")}`);
  rmSync(directory, { recursive: true });
}

const duration = `${((performance.now() - started) / 1000).toFixed(0)} s`;
console.log(`\n${report.missed.length} limits missed; the host's mount table is as it was; ${duration}`);
for (const limit of report.missed) console.log(`  ${limit}`);
if (names.length === 0) {
  writeFileSync(join(import.meta.dir, "RESULTS.md"), report.markdown({ ...measuredOn, took: duration }));
  writeFileSync(join(import.meta.dir, "RESULTS.svg"), plot(report.sections));
  console.log("written: bench/RESULTS.md, bench/RESULTS.svg");
}
process.exit(process.argv.includes("--strict") && report.missed.length > 0 ? 1 : 0);
