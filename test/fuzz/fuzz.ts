/** Properties of what anybody may pass in, looked at with as many cases as there is time for. */
import { expect } from "bun:test";
import fc from "fast-check";
import { hard, seed } from "../hard.ts";

/** How often, and for how long, a property is looked at. */
export interface Bounds {
  cases: number;
  seconds: number;
}

function bounds(some: Bounds): Bounds {
  return hard ? { cases: some.cases * 100, seconds: some.seconds * 10 } : some;
}

/**
 * Looks at a property. A case in which it does not hold is made as small as it gets, and reported with the seed that leads to it again.
 *
 * @param name What it is called in the output.
 * @param some The bounds of `bun run test`; `bun run test:hard` takes ten times as long.
 */
export function holds<T>(name: string, property: fc.IProperty<T>, some: Bounds): void {
  const { cases, seconds } = bounds(some);
  const details = fc.check(property, { seed, numRuns: cases, interruptAfterTimeLimit: seconds * 1000 });
  console.log(`fuzzing ${name}: ${details.numRuns} cases, seed ${seed}`);
  const again = `MOUNTTREE_SEED=${seed}: ${fc.defaultReportMessage(details)}`;
  if (details.failed) throw new Error(again, { cause: details.errorInstance });
  expect(details.numRuns).toBeGreaterThan(Math.min(some.cases, 10) - 1);
}

/** The same for what takes a process for each case: several at once, at least once, and nothing is made smaller. */
export async function holdsForAll<T>(
  name: string,
  values: fc.Arbitrary<T>,
  { atOnce, ...some }: Bounds & { atOnce: number },
  look: (batch: T[]) => Promise<void>,
): Promise<void> {
  const { cases, seconds } = bounds(some);
  const end = performance.now() + seconds * 1000;
  const all = fc.sample(values, { seed, numRuns: cases });
  let count = 0;
  try {
    do {
      const batch = all.slice(count, count + atOnce);
      count += batch.length;
      await look(batch);
    } while (count < cases && performance.now() < end);
  } finally {
    console.log(`fuzzing ${name}: ${count} cases, seed ${seed}`);
  }
}
