/** Asking processes in mount namespaces of their own, in turn, so that what slows the machine down slows all of them down. */
import { join } from "node:path";

export interface PeerOptions {
  /** See the options of peer.ts. */
  root?: string;
  type?: "bind" | "tmpfs";
  mounts?: number;
  below?: string;
  enter?: boolean;
  floor?: string;
}

/** A process that answers to the commands in peer.ts and floor.c. */
export class Peer implements AsyncDisposable {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #output: AsyncIterator<Uint8Array>;

  constructor(options: PeerOptions) {
    const { enter, ...values } = options;
    const named = Object.entries(values).map(([name, value]) => `--${name}=${value}`);
    // A slave, not private: what the host unmounts meanwhile must not stay busy here.
    const command = [
      "unshare",
      "-m",
      "--propagation",
      "slave",
      "--",
      process.execPath,
      join(import.meta.dir, "peer.ts"),
      ...named,
    ];
    if (enter) command.push("--enter");
    this.#process = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
    this.#output = this.#process.stdout[Symbol.asyncIterator]();
  }

  /** @returns The times in nanoseconds; for "state", what that command says. */
  async ask(command: string, times: number, ...args: string[]): Promise<number[]> {
    this.#process.stdin.write(`${[command, times, ...args].join("\t")}\n`);
    await this.#process.stdin.flush();
    const decoder = new TextDecoder();
    let answer = "";
    while (!answer.endsWith("\n")) {
      const { done, value } = await this.#output.next();
      if (done) throw new Error(`a process of the bench ended instead of answering to '${command}'`);
      answer += decoder.decode(value, { stream: true });
    }
    return answer.trim().split(" ").map(Number);
  }

  /** Its namespace ends with it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stdin.end();
    await this.#process.exited;
  }
}

export type Task = () => Promise<number[]>;

/** What a peer took: the median of each round, and the median of those. */
export interface Sample {
  readonly median: number;
  readonly rounds: readonly number[];
}

/** What a peer took, or why there is no telling. */
export type Measured = Sample | string;

/** As many rounds as fit into the seconds, between `least` (default 5, so that there are quartiles) and `most`. */
export interface Rounds {
  most: number;
  seconds: number;
  least?: number;
  /** Whether each number that a task gives is a round of its own, and not their median. Default false. */
  each?: boolean;
}

/** Has each task done once in every round, in another order each round. One that is a string is not there, and says why. */
export async function takeTurns<Name extends string>(
  { most, seconds, least = 5, each = false }: Rounds,
  tasks: Readonly<Record<Name, Task | string>>,
): Promise<Record<Name, Measured>> {
  const results: Record<string, Measured> = {};
  const entries: { name: string; task: Task; rounds: number[] }[] = [];
  for (const [name, task] of Object.entries<Task | string>(tasks)) {
    if (typeof task === "string") results[name] = task;
    else entries.push({ name, task, rounds: [] });
  }
  const end = performance.now() + seconds * 1000;
  for (let round = 0; round < most && (round < least || performance.now() < end); round++) {
    for (let turn = 0; turn < entries.length; turn++) {
      const entry = entries[(round + turn) % entries.length];
      if (entry === undefined) continue;
      const values = await entry.task();
      entry.rounds.push(...(each ? values : [median(values)]));
    }
  }
  for (const { name, rounds } of entries) results[name] = { median: median(rounds), rounds };
  return results;
}

/** One number from two of the same run, round by round. */
export function combine(one: Measured, other: Measured, by: (one: number, other: number) => number): Measured {
  if (typeof one === "string") return one;
  if (typeof other === "string") return other;
  return { median: by(one.median, other.median), rounds: roundByRound(one, other, by) };
}

function roundByRound(one: Sample, other: Sample, by: (one: number, other: number) => number): number[] {
  if (one.rounds.length !== other.rounds.length) throw new Error("these two did not take turns");
  return one.rounds.map((value, round) => by(value, other.rounds[round] ?? Number.NaN));
}

/** The ratio of two medians; and what half of the ratios of the rounds lie between. */
export interface Ratio {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

export function ratioOf(one: Measured, other: Measured): Ratio | undefined {
  if (typeof one === "string" || typeof other === "string") return undefined;
  const ratios = roundByRound(one, other, (value, beside) => value / beside);
  return { value: one.median / other.median, low: quantile(ratios, 0.25), high: quantile(ratios, 0.75) };
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** Between two values, in proportion. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = values.toSorted((one, other) => one - other);
  const at = (sorted.length - 1) * part;
  const [low, high] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]];
  if (low === undefined || high === undefined) throw new Error("there is no quantile of nothing");
  return low + (high - low) * (at % 1);
}
