/**
 * What tests do and look at inside a child: make a root, and see from which root files come, however they are read.
 */
import * as fs from "node:fs";
import { type MountInfo, parseMountInfo } from "../mountinfo.ts";
import { SwitchRootError } from "../switchroot.ts";
import { MS, mount } from "../syscalls.ts";

/** Fills a directory so that commands run in it: the machine's /usr, read-only, and a file that says which root this is. */
export function makeRoot(path: string, marker: string = path): void {
  fs.mkdirSync(`${path}/usr`, { recursive: true });
  mount("/usr", `${path}/usr`, null, MS.BIND, null);
  for (const name of ["bin", "lib", "lib64"]) fs.symlinkSync(`usr/${name}`, `${path}/${name}`);
  for (const name of ["proc", "dev", "sub"]) fs.mkdirSync(`${path}/${name}`);
  fs.writeFileSync(`${path}/dev/null`, "");
  fs.writeFileSync(`${path}/marker`, marker);
  fs.writeFileSync(`${path}/sub/marker`, `${marker}/sub`);
}

export interface Reader {
  /** What a Worker that was started before reads. */
  read(path: string): Promise<{ sync: string; async: string }>;
}

/** Starts a Worker, and the threads that do asynchronous I/O. */
export async function startReader(): Promise<Reader> {
  await Bun.file("/proc/self/comm").text();
  const source = `
    import { readFileSync } from "node:fs";
    self.onmessage = async ({ data }) => {
      const read = (action) => { try { return action(); } catch (error) { return String(error); } };
      const sync = read(() => readFileSync(data, "utf8"));
      self.postMessage({ sync, async: await Bun.file(data).text().catch(String) });
    };
    self.postMessage("ready");
  `;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
  const answer = <T>(): Promise<T> =>
    new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data), { once: true }));
  await answer();
  return {
    read: (path) => {
      const promise = answer<{ sync: string; async: string }>();
      worker.postMessage(path);
      return promise;
    },
  };
}

export interface Observation {
  /** The marker, by each way of reading. All the same, or something is wrong. */
  markers: Record<string, string>;
  cwd: string;
  /** What is in "/". */
  names: string[];
  /** The device and inode of each thread's root, as one text each; read through `proc`. */
  threadRoots: string[];
  root: string;
}

/**
 * @param proc A procfs's descriptor that was opened before, for roots without one.
 */
export async function observe(reader: Reader, proc: number): Promise<Observation> {
  const fromWorker = await reader.read("/marker");
  const spawned = Bun.spawnSync(["/bin/cat", "/marker"], { stdin: null, stderr: "pipe" });
  const identity = ({ dev, ino }: fs.Stats): string => `${dev}:${ino}`;
  const tasks = `/proc/self/fd/${proc}/self/task`;
  const visible = fs.existsSync(tasks);
  return {
    markers: {
      readFileSync: fs.readFileSync("/marker", "utf8"),
      bunFile: await Bun.file("/marker").text(),
      promises: await fs.promises.readFile("/marker", "utf8"),
      relative: fs.readFileSync("marker", "utf8"),
      workerSync: fromWorker.sync,
      workerAsync: fromWorker.async,
      spawned: spawned.stdout.toString() || spawned.stderr.toString(),
    },
    cwd: process.cwd(),
    names: fs.readdirSync("/").sort(),
    threadRoots: visible ? fs.readdirSync(tasks).map((task) => identity(fs.statSync(`${tasks}/${task}/root`))) : [],
    root: identity(fs.statSync("/")),
  };
}

/** The mount table of a process, read from outside. */
export function mountsOf(pid: number | "self"): MountInfo[] {
  return parseMountInfo(fs.readFileSync(`/proc/${pid}/mountinfo`));
}

/** The numbers of all processes that there are. */
export function processes(): string[] {
  return fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name));
}

/** What a test wants to know of an error, as JSON can carry it. */
export interface DescribedError {
  name: string;
  message: string;
  code: string | undefined;
  switched: boolean | undefined;
  phase: string | undefined;
  reason: string | undefined;
  method: string | undefined;
  cause: string | undefined;
  suppressed: string[];
  rejected: { method: string; reason: string; message: string; code: string | undefined }[];
}

export function describeError(error: unknown): DescribedError {
  if (!(error instanceof Error)) throw new Error(`not an error: ${error}`);
  const code = "code" in error ? String(error.code) : undefined;
  const common = { name: error.name, message: error.message, code };
  if (!(error instanceof SwitchRootError)) {
    return {
      ...common,
      switched: undefined,
      phase: undefined,
      reason: undefined,
      method: undefined,
      cause: undefined,
      suppressed: [],
      rejected: [],
    };
  }
  return {
    ...common,
    switched: error.switched,
    phase: error.phase,
    reason: error.reason,
    method: error.method,
    cause: error.cause === undefined ? undefined : String(error.cause),
    suppressed: error.suppressed.map(String),
    rejected: error.rejected.map(({ method, reason, message, error: refused }) => ({
      method,
      reason,
      message,
      code: refused?.code,
    })),
  };
}
