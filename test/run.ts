/**
 * Runs the tests in a privileged container: `bun test/run.ts [--hard] [--docs] [FILTER]... [--OPTION=VALUE]...`. A filter is a part of a test
 * file's path, options go to `bun test`. With --hard, the tests that have so many cases that a part of them is run otherwise run all of them.
 * With --docs, those that compare what they measure with a page of docs/ write it there instead.
 *
 * `bun test` can lose tests and succeed (a `process.exit(0)` in one of them is enough), so what it says is compared with
 * the files that are there. The last line is `N passed, N failed`.
 */

import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type Containers, type Finished, mustRun, openContainers, seconds } from "./container.ts";
import { patience } from "./hard.ts";
import { type Counts, judge } from "./judge.ts";

/** Exported as an array named `runs` by test files named `*.outside.ts`: a container that is not privileged. */
export interface OutsideRun {
  name: string;
  /** Arguments of `docker run`, such as `["--cap-add", "SYS_ADMIN"]`. */
  dockerArguments: string[];
  command: string[];
  /** Returns what is wrong, or nothing. */
  expect(result: Finished): string | undefined;
}

const checkout = resolve(import.meta.dir, "..");
const testFiles = new Bun.Glob("**/*{.test,_test,.spec,_spec}.{ts,tsx,mts,cts,js,jsx,mjs,cjs}");
const hard = process.argv.includes("--hard");
const docs = process.argv.includes("--docs");
const { MOUNTTREE_PATIENCE, MOUNTTREE_SEED } = process.env;
const minutes = (hard ? 40 : 20) * patience;

function filesOf(glob: Bun.Glob, filters: string[]): string[] {
  return [...glob.scanSync(checkout)]
    .filter((file) => !file.startsWith("node_modules/") && !file.startsWith("dist/"))
    .filter((file) => filters.length === 0 || filters.some((filter) => file.includes(filter.replace(/^\.\//, ""))))
    .sort();
}

async function runInside(containers: Containers, files: string[], options: string[], results: string): Promise<Counts> {
  const started = performance.now();
  const reports = ["--reporter=junit", "--reporter-outfile=/results/junit.xml"];
  // Most tests start processes, which a busy machine is slow at.
  const timeout = `--timeout=${60_000 * patience}`;
  const paths = files.map((file) => `./${file}`);
  const forThisRun = [
    ...(hard ? ["--env", "MOUNTTREE_HARD=1"] : []),
    ...(MOUNTTREE_SEED === undefined ? [] : ["--env", `MOUNTTREE_SEED=${MOUNTTREE_SEED}`]),
    ...(MOUNTTREE_PATIENCE === undefined ? [] : ["--env", `MOUNTTREE_PATIENCE=${MOUNTTREE_PATIENCE}`]),
    ...(docs ? ["--env", "MOUNTTREE_DOCS=1", "--mount", `type=bind,source=${checkout}/docs,target=/work/docs`] : []),
  ];
  const finished = await containers.run(
    [...containers.privileged, ...forThisRun],
    ["bun", "test", ...reports, timeout, ...options, ...paths],
    {
      timeout: minutes * 60,
      show: true,
    },
  );
  const inTime = performance.now() - started < minutes * 60_000;
  const junit = Bun.file(join(results, "junit.xml"));
  const { passed, failed, doubts } = judge(files, finished, (await junit.exists()) ? await junit.text() : undefined);
  if (!inTime) doubts.push(`the container was stopped after ${minutes} minutes`);
  for (const doubt of doubts) console.log(`(fail) ${doubt}`);
  console.log(`tests: ${files.length} files in ${seconds(started)}`);
  return { passed, failed: failed + doubts.length };
}

async function runOutside(containers: Containers, file: string): Promise<Counts> {
  const counts = { passed: 0, failed: 0 };
  const { runs }: { runs?: OutsideRun[] } = await import(join(checkout, file));
  if (!runs || runs.length === 0) throw new Error(`${file} exports no runs`);
  console.log(`\n${file}:`);
  for (const { name, dockerArguments, command, expect } of runs) {
    const started = performance.now();
    const result = await containers.run(dockerArguments, command, { timeout: 120 });
    const complaint = expect(result);
    counts[complaint === undefined ? "passed" : "failed"]++;
    console.log(`(${complaint === undefined ? "pass" : "fail"}) ${name} [${seconds(started)}]`);
    if (complaint !== undefined) {
      console.log(`  ${complaint}\n  exit status ${result.exitCode}\n${result.stdout}${result.stderr}`);
    }
  }
  return counts;
}

function mountsOfHost(): string {
  return readFileSync("/proc/self/mountinfo", "utf8");
}

/** Deletes a directory in which a daemon may have left mounts: what is mounted there belongs to someone. */
async function remove(directory: string): Promise<void> {
  const mounts = mountsOfHost()
    .split("\n")
    .filter((line) => line.split(" ")[4]?.startsWith(directory));
  if (mounts.length > 0) throw new Error(`not deleted, since something is mounted below ${directory}:\n${mounts.join("\n")}`);
  await mustRun(["rm", "-rf", "--one-file-system", directory]);
}

async function runTests(signal: AbortSignal, counts: Counts): Promise<void> {
  const options = process.argv
    .slice(2)
    .filter((argument) => argument.startsWith("-") && !["--hard", "--docs"].includes(argument));
  const filters = process.argv.slice(2).filter((argument) => !argument.startsWith("-"));
  const inside = filesOf(testFiles, filters);
  const outside = filesOf(new Bun.Glob("test/**/*.outside.ts"), filters);
  if (inside.length + outside.length === 0) throw new Error(`no test file's path contains ${filters.join(" or ")}`);

  const installing = performance.now();
  await mustRun([process.execPath, "install", "--frozen-lockfile"], { signal, cwd: checkout });
  console.log(`dependencies: as in the lock file, ${seconds(installing)}`);

  await using stack = new AsyncDisposableStack();
  const directory = mkdtempSync(join(tmpdir(), "mounttree-"));
  stack.defer(() => remove(directory));
  const containers = await openContainers(checkout, directory, stack, signal);
  console.log(`container: ${containers.description}`);

  const add = ({ passed, failed }: Counts): void => {
    counts.passed += passed;
    counts.failed += failed;
  };
  if (inside.length > 0) add(await runInside(containers, inside, options, join(directory, "results")));
  for (const file of outside) add(await runOutside(containers, file));
}

const stopping = new AbortController();
// Not once: npx passes on the interrupt that the terminal has sent already, and the second would end this at once.
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(name, () => stopping.abort(new Error(`stopped by ${name}`)));

const counts = { passed: 0, failed: 0 };
const mountsBefore = mountsOfHost();
try {
  await runTests(stopping.signal, counts);
} catch (error) {
  counts.failed++;
  // The clean-up may fail as well, after what made it necessary.
  for (let each = error; each !== undefined; each = each instanceof SuppressedError ? each.suppressed : undefined) {
    const shown: unknown = each instanceof SuppressedError ? each.error : each;
    console.log(`(fail) ${shown instanceof Error ? shown.message : String(shown)}`);
  }
}
const mountsAfter = mountsOfHost();
if (mountsAfter !== mountsBefore) {
  counts.failed++;
  const [before, after] = [mountsBefore.split("\n"), mountsAfter.split("\n")];
  console.log("(fail) the mount table of this machine is not what it was:");
  for (const line of before) if (!after.includes(line)) console.log(`  - ${line}`);
  for (const line of after) if (!before.includes(line)) console.log(`  + ${line}`);
}
console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 && counts.passed > 0 ? 0 : 1);
