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

/** The median of what each task gave. They take turns, in another order each round. */
export async function medians<Name extends string>(
  rounds: number,
  tasks: Readonly<Record<Name, Task | undefined>>,
): Promise<Partial<Record<Name, number>>> {
  const entries = Object.entries<Task | undefined>(tasks).flatMap(([name, task]) =>
    task === undefined ? [] : [{ name, task, times: [] as number[] }],
  );
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < entries.length; turn++) {
      const entry = entries[(round + turn) % entries.length];
      if (entry !== undefined) entry.times.push(...(await entry.task()));
    }
  }
  const results: Partial<Record<string, number>> = {};
  for (const { name, times } of entries) results[name] = median(times);
  return results;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((one, other) => one - other);
  const half = sorted.length >> 1;
  const [low, high] = [sorted[sorted.length - 1 - half], sorted[half]];
  if (low === undefined || high === undefined) throw new Error("there is no median of nothing");
  return (low + high) / 2;
}
