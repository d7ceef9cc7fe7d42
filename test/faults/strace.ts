/** Programs under strace(1), which makes one of their system calls fail, or kills them at it; and what it saw. */
import * as fs from "node:fs";
import { oneThread } from "../../restart.ts";

/** A system call of a thread. */
export interface Call {
  name: string;
  /** Arguments and result, as strace prints them. */
  text: string;
  /** How many times the thread had made it by then, this time included: what strace counts. */
  count: number;
  /** The mark before it, see `program.ts`: in which check, step or undo it was made. `"after"` one if in none. */
  section: string;
  injected: boolean;
}

/** What the thread does not do for the switch: memory, locks, events, the marks; and random numbers, without which Bun ends. */
const notOurs =
  /^(futex|madvise|mmap|munmap|mprotect|brk|sched_yield|epoll_pwait2|rt_sigprocmask|getrandom|getpid|gettid|access)$/;

/** Newer than strace may be. */
const numbers: Readonly<Record<string, string>> = { syscall_0x1c9: "statmount", syscall_0x1ca: "listmount" };

/** The calls of one thread, in order. */
export function parseTrace(log: string, thread: number): Call[] {
  const calls: Call[] = [];
  const counts = new Map<string, number>();
  let section = "";
  let pending = "";
  for (const [index, line] of log.split("\n").entries()) {
    const [, by, rest = ""] = /^(\d+) +(.*)$/.exec(line) ?? [];
    if (Number(by) !== thread) continue;
    const text = rest.replace(/^<\.\.\. \w+ resumed>/, () => pending);
    const [, raw] = /^(\w+)\(/.exec(text) ?? [];
    if (raw === undefined) continue;
    if (text.endsWith("<unfinished ...>")) {
      pending = text.slice(0, -"<unfinished ...>".length);
      continue;
    }
    const name = numbers[raw] ?? raw;
    // The first line is strace's own execve(2), which it does not count.
    const count = (counts.get(name) ?? 0) + (index === 0 ? 0 : 1);
    counts.set(name, count);
    const mark = /^access\("\/mark\/([^"]*)"/.exec(text)?.[1];
    if (mark !== undefined) section = mark;
    calls.push({ name, text: text.slice(raw.length), count, section, injected: text.endsWith("(INJECTED)") });
  }
  return calls;
}

/** Of some calls those that mounttree makes. Now and then Bun looks at how much memory it has. */
export function ownCalls(calls: readonly Call[]): Call[] {
  let looking = false;
  return calls.filter(({ name, text }) => {
    if (text.includes('"/proc/self/statm"')) looking = true;
    const isOurs = !looking && !notOurs.test(name);
    if (looking && name === "close") looking = false;
    return isOurs;
  });
}

/** The call that a thread makes for the `count`-th time does not happen. */
export interface Fault {
  call: string;
  count: number;
  /** What it returns; without it, the process is killed. */
  errno?: string | undefined;
}

/** With this, Bun makes the same calls each time, and no thread but what the program wants. */
const environment: Record<string, string | undefined> = {
  ...process.env,
  ...Object.fromEntries(oneThread.map((entry) => entry.split("="))),
};

export interface TraceOptions {
  /** The file that strace writes. */
  log: string;
  cwd: string;
  /** The calls that are traced. Default: all, or with a fault those that it needs. */
  trace?: string | undefined;
  fault?: Fault | undefined;
}

function straceOf({ log, trace, fault }: TraceOptions): string[] {
  const strace = ["strace", "-f", "-y", "-o", log];
  if (fault === undefined) return [...strace, `--trace=${trace ?? "all"}`];
  const { call, count, errno } = fault;
  const calls = `--trace=${trace ?? `access,${call}`}`;
  // With --seccomp-bpf, which saves half of the time, strace forgets to send signals.
  if (errno === undefined) return [...strace, calls, `--inject=${call}:signal=KILL:when=${count}`];
  return [...strace, "--seccomp-bpf", calls, `--inject=${call}:error=${errno}:when=${count}`];
}

/** A program under strace, with which one can talk by lines. */
export class Traced {
  readonly #log: string;
  readonly #process: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly #lines: AsyncIterator<string, undefined>;
  readonly #stderr: Promise<string>;

  constructor(command: readonly string[], options: TraceOptions) {
    this.#log = options.log;
    this.#process = Bun.spawn([...straceOf(options), ...command], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      cwd: options.cwd,
      env: environment,
      timeout: 60_000,
      killSignal: "SIGKILL",
    });
    this.#lines = linesOf(this.#process.stdout);
    this.#stderr = this.#process.stderr.text();
  }

  /** The next line that the program prints; undefined if it has ended. */
  async line(): Promise<string | undefined> {
    return (await this.#lines.next()).value;
  }

  send(text: string): void {
    this.#process.stdin.write(text);
    this.#process.stdin.flush();
  }

  /** What strace has seen so far. */
  log(): string {
    return fs.readFileSync(this.#log, "utf8");
  }

  /** Waits for the end of the program and of all that it has started. strace ends as the program did. */
  async finish(): Promise<{ status: number | string; stderr: string; log: string }> {
    this.#process.stdin.end();
    const [stderr] = await Promise.all([this.#stderr, this.#process.exited]);
    return { status: this.#process.signalCode ?? this.#process.exitCode ?? -1, stderr, log: this.log() };
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, undefined> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    for (let end = text.indexOf("\n"); end !== -1; end = text.indexOf("\n")) {
      yield text.slice(0, end);
      text = text.slice(end + 1);
    }
  }
  return undefined;
}
