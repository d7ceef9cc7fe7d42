/**
 * What `bun test` says, and whether it can be believed: it can lose tests and succeed (a `process.exit(0)` in one of them is enough).
 */
import type { Finished } from "./container.ts";

export interface Counts {
  passed: number;
  failed: number;
}

/** Compares what `bun test` printed and reported with the files it was given: the counts, and every sentence of doubt. */
export function judge(
  files: string[],
  { exitCode, stderr }: Pick<Finished, "exitCode" | "stderr">,
  junit: string | undefined,
): Counts & { doubts: string[] } {
  const summary = stderr.match(/((?:^ \d+ .*\n)+)Ran (\d+) tests? across (\d+) files?\.[^\n]*\n*$/m);
  const count = (word: string): number => Number(summary?.[1]?.match(new RegExp(`^ (\\d+) ${word}$`, "m"))?.[1] ?? 0);
  const [passed, failed, skipped] = [count("pass"), count("fail"), count("skip") + count("todo")];
  const doubts: string[] = [];
  if (!summary) doubts.push(`bun test ended with ${exitCode} and printed no summary: a test ended the process`);
  if (summary && Number(summary[2]) !== passed + failed + skipped) {
    doubts.push(`bun test says it ran ${summary[2]} tests, and counts ${passed} passed, ${failed} failed, ${skipped} skipped`);
  }
  if (summary && Number(summary[3]) !== files.length) {
    doubts.push(`bun test ran ${summary[3]} files, and there are ${files.length}`);
  }
  if (summary && exitCode !== 0 && failed === 0) doubts.push(`bun test ended with ${exitCode}, and no test failed`);
  if (skipped > 0) doubts.push(`tests that were skipped or are still to be written: ${skipped}`);
  if (junit === undefined) doubts.push("bun test wrote no JUnit file");
  else {
    for (const file of files) if (!junit.includes(` file="${file}"`)) doubts.push(`${file} ran no test`);
  }
  return { passed, failed, doubts };
}
