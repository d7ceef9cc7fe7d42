/** How much of the long tests is run: all of it by `bun run test:hard`, a part by `bun run test`. */

const { MOUNTTREE_HARD, MOUNTTREE_PATIENCE, MOUNTTREE_SEED } = process.env;

/** Whether everything is to be run. */
export const hard: boolean = MOUNTTREE_HARD === "1";

/** How many times as long as on a machine of its own something may take: an emulated one is slow. */
export const patience: number = Number(MOUNTTREE_PATIENCE ?? 1);

/** What decides which cases are taken, where there are more than can be. It is printed; MOUNTTREE_SEED=N takes the same again. */
export const seed: number = Number(MOUNTTREE_SEED ?? Math.floor(Date.now() / 1000));

/** `all` of something, or `part` of it. */
export function amount(all: number, part: number): number {
  return hard ? all : part;
}

/**
 * All cases, or about `part` of them, spread evenly: which ones depends on `seed`, so that not always the same are left out. Print it.
 *
 * @param seed Any number, such as today's.
 */
export function someOf<T>(cases: readonly T[], part: number, seed: number): T[] {
  if (hard || cases.length <= part) return [...cases];
  const step = cases.length / part;
  const first = seed % Math.ceil(step);
  return Array.from({ length: part }, (_, index) => cases[(first + Math.floor(index * step)) % cases.length]).filter(
    (each) => each !== undefined,
  );
}
