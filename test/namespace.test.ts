/** Programs that take a mount namespace of their own, each in a process of its own: written to a file, compiled, or given to `bun -e`. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import * as fs from "node:fs";
import { join } from "node:path";
import { enterMountNamespace } from "../namespace.ts";
import { NamespaceError, type NamespaceReason, oneThread } from "../restart.ts";
import { checkout, run, scratchDirectory, shell, watchMountTable } from "./compiled.ts";

const directory = scratchDirectory();
fs.chmodSync(directory, 0o777);
watchMountTable();

const imports = `
  import * as fs from "node:fs";
  import { enterMountNamespace, getMounts, mountOf, NamespaceError, switchRoot } from "${checkout}/index.ts";
  import { placeMarker, restartAlone, textOf } from "${checkout}/restart.ts";
  import * as syscalls from "${checkout}/syscalls.ts";
  const threads = () => fs.readdirSync("/proc/self/task");
  // A thread of the collector may end while it is looked at.
  const ofThreads = (look) => threads().flatMap((thread) => {
    try { return [look("/proc/self/task/" + thread)]; } catch (error) { if (["ENOENT", "ESRCH"].includes(error.code)) return []; throw error; }
  });
  const namespaces = () => [...new Set(ofThreads((thread) => fs.readlinkSync(thread + "/ns/mnt")))];
  const tell = (value) => fs.writeSync(1, "\\n" + JSON.stringify(value));
`;

let programs = 0;

/** Writes a program to a file. */
function program(text: string, options: { bare?: boolean } = {}): string {
  const path = join(directory, `program${programs++}.ts`);
  fs.writeFileSync(path, (options.bare ? "" : imports) + text);
  return path;
}

/** Runs it; it prints what it found as the last line, in JSON. */
async function tell(command: string[], options: Parameters<typeof run>[1] = {}): Promise<unknown> {
  const { status, stdout, stderr } = await run(command, options);
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  if (status !== 0 || last === "") throw new Error(`${command.at(0)} ended with ${status}\n${stdout}\n${stderr}`);
  return JSON.parse(last);
}

async function compileProgram(path: string): Promise<string> {
  const outfile = path.replace(".ts", "");
  const built = await run([process.execPath, "build", "--compile", path, "--outfile", outfile]);
  if (built.status !== 0) throw new Error(built.stderr);
  return outfile;
}

const bun = process.execPath;
const nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
const outside = fs.readlinkSync("/proc/self/ns/mnt");

/** Uses asynchronous I/O, takes the namespace, switches, and looks from everywhere. */
const everywhere = `
  await Promise.all(Array.from({ length: 300 }, () => fs.promises.readFile("/proc/self/smaps")));
  const pool = () => ofThreads((thread) => fs.readFileSync(thread + "/comm", "utf8")).filter((name) => name.startsWith("Bun Pool")).length;
  const poolBefore = pool();
  enterMountNamespace(JSON.parse(process.env.OPTIONS ?? "{}"));
  const root = "${directory}/root" + process.pid;
  fs.mkdirSync(root);
  syscalls.mount("root", root, "tmpfs", 0, null);
  fs.mkdirSync(root + "/usr");
  // Recursively: what is mounted below is locked in a user namespace.
  syscalls.mount("/usr", root + "/usr", null, syscalls.MS.BIND | syscalls.MS.REC, null);
  for (const name of ["bin", "lib", "lib64"]) fs.symlinkSync("usr/" + name, root + "/" + name);
  for (const name of ["proc", "dev"]) fs.mkdirSync(root + "/" + name);
  fs.writeFileSync(root + "/dev/null", "");
  fs.writeFileSync(root + "/marker", "inside");
  syscalls.mount("/proc", root + "/proc", null, syscalls.MS.BIND | syscalls.MS.REC, null);
  const oldRoot = fs.statSync("/");
  const { method } = switchRoot(root);
  const count = (texts) => Object.fromEntries(Map.groupBy(texts, (text) => text).entries().map(([text, all]) => [text, all.length]));
  const reads = await Promise.all(Array.from({ length: 1000 }, (_, index) => index % 2 ? Bun.file("/marker").text() : fs.promises.readFile("/marker", "utf8")));
  const spawns = [];
  for (let i = 0; i < 100; i += 10) {
    spawns.push(...await Promise.all(Array.from({ length: 10 }, () => Bun.spawn(["/bin/cat", "/marker"], { stdin: null }).stdout.text())));
  }
  const source = \`
    import { readFileSync } from "node:fs";
    self.postMessage([readFileSync("/marker", "utf8"), await Bun.file("/marker").text(), Bun.spawnSync(["/bin/cat", "/marker"], { stdin: null }).stdout.toString()]);
  \`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
  const fromWorker = await new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data), { once: true }));
  const roots = ofThreads((thread) => fs.statSync(thread + "/root")).map(({ dev, ino }) => dev + ":" + ino);
  const { dev, ino } = fs.statSync("/");
  const input = process.env.INPUT ? (await Bun.stdin.bytes()).reduce((sum, byte) => sum + byte, 0) : undefined;
  tell({
    method,
    pool: poolBefore >= 4 && pool() >= 4,
    reads: count(reads),
    spawns: count(spawns),
    worker: count(fromWorker),
    roots: new Set(roots).size === 1 && roots[0] === dev + ":" + ino && (dev !== oldRoot.dev || ino !== oldRoot.ino),
    namespaces: namespaces().length === 1 && namespaces()[0] !== "${outside}",
    input,
  });
  worker.terminate();
  process.exit(0);
`;
const seen = {
  method: "pivot",
  pool: true,
  reads: { inside: 1000 },
  spawns: { inside: 100 },
  worker: { inside: 3 },
  roots: true,
  namespaces: true,
};
const env = { ...process.env, UV_THREADPOOL_SIZE: "6" };

describe("after enterMountNamespace and switchRoot, all reads, spawns, Workers and threads are in the new root", () => {
  let source = "";
  let compiled = "";
  beforeAll(async () => {
    source = program(everywhere);
    compiled = await compileProgram(source);
  });
  const ways: [string, () => string[]][] = [
    ["from source", () => [bun, source]],
    ["compiled", () => [compiled]],
    ["as bun -e", () => [bun, "-e", imports + everywhere]],
    ["with --smol and bun run", () => [bun, "--smol", "run", source]],
    ["started in a mount namespace of its own already", () => ["unshare", "--mount", bun, source]],
  ];
  for (const [way, command] of ways) {
    test(way, async () => {
      expect(await tell(command(), { env })).toEqual(seen);
    }, 30_000);
    test(`${way}, with a megabyte of standard input, of which nothing is lost`, async () => {
      const input = "\u0001".repeat(1 << 20);
      expect(await tell(command(), { env: { ...env, INPUT: "1" }, input })).toEqual({ ...seen, input: 1 << 20 });
    }, 30_000);
  }
  for (const map of ["root", "same"]) {
    test(`by an ordinary user, in a user namespace (${map})`, async () => {
      const options = { ...env, HOME: directory, OPTIONS: JSON.stringify({ user: true, map }), INPUT: "1" };
      const input = "\u0001".repeat(1 << 20);
      expect(await tell([...nobody, compiled], { env: options, input })).toEqual({ ...seen, input: 1 << 20 });
      expect(await tell([...nobody, bun, source], { env: options, input })).toEqual({ ...seen, input: 1 << 20 });
    }, 30_000);
  }
});

const looks = `
  const [before, id] = [process.pid, fs.readFileSync("/proc/self/stat", "utf8").split(" ")[0]];
  enterMountNamespace(JSON.parse(process.env.OPTIONS ?? "{}"));
  enterMountNamespace();
  const status = (text) => text.split("\\n").filter((line) => /^Cap(Inh|Eff|Amb)/.test(line)).map((line) => line.split("\\t")[1]);
  const child = Bun.spawnSync(["sh", "-c", "cat /proc/self/status; env; ls /proc/self/fd"]).stdout.toString();
  const worker = new Worker(URL.createObjectURL(new Blob(["self.postMessage({ ...process.env })"], { type: "application/javascript" })));
  const ofWorker = await new Promise((resolve) => worker.addEventListener("message", ({ data }) => resolve(data), { once: true }));
  const ours = (names) => names.filter((name) => /^(BUN_|MIMALLOC_)/.test(name));
  tell({
    uid: process.getuid(),
    gid: process.getgid(),
    capable: syscalls.hasCapability(syscalls.CAP.SYS_ADMIN),
    child: status(child),
    name: fs.readFileSync("/proc/self/comm", "utf8").trim(),
    setgroups: fs.readFileSync("/proc/self/setgroups", "utf8").trim(),
    variables: [...ours(Object.keys(process.env)), ...ours(Object.keys(ofWorker)), ...ours(child.split("\\n"))],
    arguments: process.argv.slice(2),
    umask: process.umask(),
    cwd: process.cwd(),
    shared: getMounts().filter((mount) => mount.propagation.shared !== undefined).length,
    open: fs.readdirSync("/proc/self/fd").filter((fd) => { try { return fs.readlinkSync("/proc/self/fd/" + fd).startsWith("/memfd:mounttree"); } catch { return false; } }),
  });
  process.exit(0);
`;
const none = "0000000000000000";

describe("the program that goes on", () => {
  let source = "";
  let compiled = "";
  beforeAll(async () => {
    source = program(looks);
    compiled = await compileProgram(source);
  });
  const expected = {
    gid: 0,
    uid: 0,
    capable: true,
    setgroups: "allow",
    variables: [],
    arguments: ["a", "b c", ""],
    umask: 0o27,
    cwd: "/usr/bin",
    shared: 0,
    open: [],
  };
  const startIn = ["sh", "-c", 'umask 027; exec "$@"', "sh"];
  const rest = ["a", "b c", ""];
  test("has the arguments, the umask, the working directory and the name that it had, and no descriptor more", async () => {
    for (const [command, name] of [
      [[bun, source], "bun"],
      [[compiled], "program"],
    ] as const) {
      const found = await tell([...startIn, ...command, ...rest], { cwd: "/usr/bin" });
      expect(found).toMatchObject(expected);
      expect(found).toHaveProperty("name", expect.stringMatching(name));
    }
  });
  test("is root in its user namespace, with none of our variables in its environment, its children's or its Workers'", async () => {
    const options = { cwd: "/usr/bin", env: { ...process.env, HOME: directory, OPTIONS: '{"user":true}' } };
    for (const command of [[bun, source], [compiled]]) {
      const found = await tell([...startIn, ...nobody, ...command, ...rest], options);
      expect(found).toMatchObject({ ...expected, setgroups: "deny" });
    }
  });
  test('is the same user there with map: "same", has capabilities, and does not pass them on', async () => {
    const options = { cwd: "/usr/bin", env: { ...process.env, HOME: directory, OPTIONS: '{"user":true,"map":"same"}' } };
    for (const command of [[bun, source], [compiled]]) {
      const found = await tell([...startIn, ...nobody, ...command, ...rest], options);
      expect(found).toMatchObject({ ...expected, uid: 65534, gid: 65534, setgroups: "deny", child: [none, none, none] });
    }
  });
  test("has its working directory on a mount of its own namespace", async () => {
    const path = program(`
      enterMountNamespace(JSON.parse(process.env.OPTIONS));
      tell(mountOf(".").id === mountOf(process.cwd()).id);
      process.exit(0);
    `);
    for (const OPTIONS of ["{}", '{"user":true}', '{"user":true,"map":"same"}']) {
      expect(await tell([bun, path], { cwd: "/usr/bin", env: { ...process.env, OPTIONS } })).toBe(true);
    }
  });
  test("keeps environment variables of its own that mean something to Bun, and bytes that are not UTF-8", async () => {
    const path = program(`
      enterMountNamespace({ user: true });
      tell([process.env.MIMALLOC_SCAVENGER, Buffer.from(fs.readFileSync("/proc/self/environ")).includes(Buffer.from("ODD=\\xff\\xfe", "latin1"))]);
      process.exit(0);
    `);
    const { stdout } = await shell('ODD="$(printf "\\377\\376")" MIMALLOC_SCAVENGER=1 "$@"', [bun, path]);
    expect(JSON.parse(stdout)).toEqual(["1", true]);
  });
  test("has a mount that nobody else sees", async () => {
    const path = program(`
      enterMountNamespace();
      syscalls.mount("seen", "/mnt", "tmpfs", 0, null);
      const outside = Bun.spawnSync(["cat", "/proc/" + process.ppid + "/mountinfo"]).stdout.toString();
      tell([getMounts().some((mount) => mount.mountSource === "seen"), outside.includes(" seen ")]);
      process.exit(0);
    `);
    expect(await tell(["unshare", "--mount", "--propagation", "shared", "sh", "-c", '"$@"; exit $?', "sh", bun, path])).toEqual([
      true,
      false,
    ]);
  });
  test("has the propagation it asked for", async () => {
    const path = program(`
      enterMountNamespace({ propagation: process.argv[2] });
      tell(Object.keys(getMounts().find((mount) => mount.mountPoint === "/").propagation));
      process.exit(0);
    `);
    const start = ["unshare", "--mount", "--propagation", "shared", bun, path];
    expect(await tell([...start, "rslave"])).toContain("master");
    expect(await tell([...start, "rprivate"])).toEqual(["unbindable"]);
    expect(await tell([...start, "rshared"])).toContain("shared");
  });
  test("has written what it wrote before, also more than a pipe holds", async () => {
    const path = program(
      'process.stdout.write("x".repeat(1 << 20)); enterMountNamespace(); fs.writeSync(2, "inside"); process.exit(0);',
    );
    const { stdout, stderr } = await shell('"$@" | (sleep 0.3; wc -c)', [bun, path]);
    // Once in each run; the second has what process.exit() leaves of it.
    expect(Number(stdout)).toBeGreaterThanOrEqual((1 << 20) + 65536);
    expect(stderr).toBe("inside");
  });
  test("keeps the descriptors that it was started with, and the channel to its parent", async () => {
    const path = program(`
      enterMountNamespace(JSON.parse(process.env.OPTIONS ?? "{}"));
      process.on("message", (message) => { process.send({ message, files: [3, 4].map((fd) => fs.fstatSync(fd).isFile()) }); process.disconnect(); });
    `);
    const parent = program(`
      for (const OPTIONS of ["{}", '{"user":true}']) {
        const messages = [];
        const child = Bun.spawn(["sh", "-c", 'exec "$0" "$1" 3</etc/passwd 4</etc/passwd', process.execPath, "${path}"], {
          env: { ...process.env, OPTIONS },
          ipc: (message) => messages.push(message),
          stdio: ["ignore", "inherit", "inherit", Bun.file("/dev/null"), Bun.file("/dev/null")],
        });
        child.send("hello");
        await child.exited;
        tell(messages);
      }
      process.exit(0);
    `);
    const { stdout, stderr } = await run([bun, parent]);
    const one = JSON.stringify([{ message: "hello", files: [true, true] }]);
    expect({ lines: stdout.trim().split("\n"), stderr }).toEqual({ lines: [one, one], stderr: "" });
  });
  test("takes the namespace anew each time that --watch starts it again, and once with --hot", async () => {
    for (const flag of ["--watch", "--hot"]) {
      const path = program(
        'enterMountNamespace(); console.log("run", process.pid, fs.readlinkSync("/proc/self/ns/mnt"), 1); setInterval(() => {}, 1000);',
      );
      const child = Bun.spawn([bun, flag, "--no-clear-screen", path], { stdout: "pipe", stderr: "inherit" });
      const lines: string[] = [];
      const decoder = new TextDecoder();
      for await (const chunk of child.stdout) {
        lines.push(...(decoder.decode(chunk).match(/run .*/g) ?? []));
        if (lines.length === 2) break;
        fs.writeFileSync(path, fs.readFileSync(path, "utf8").replace(", 1)", ", 2)"));
      }
      child.kill();
      await child.exited;
      expect(lines[1]).toMatch(/ 2$/);
      expect(lines.join()).not.toContain(outside);
      expect(new Set(lines.map((line) => line.split(" ")[1])).size).toBe(1);
      // What --watch starts anew may get the number of the namespace that has ended; with --hot it is the same one.
      if (flag === "--hot") expect(new Set(lines.map((line) => line.split(" ")[2])).size).toBe(1);
    }
  }, 20_000);
});

const refuses = `
  try { enterMountNamespace(JSON.parse(process.env.OPTIONS ?? "{}")); tell("entered"); } catch (error) {
    tell({ name: error.name, reason: error.reason, code: error.code, entered: error.entered, message: error.message, same: namespaces().length === 1 && namespaces()[0] === "${outside}" });
  }
  process.exit(0);
`;

describe("a program that cannot be started once more is told what to do instead", () => {
  const refusal = (reason: string, says: string) => ({
    name: "NamespaceError",
    reason,
    entered: false,
    same: true,
    message: expect.stringContaining(says),
  });
  test("read from standard input", async () => {
    const input = imports + refuses;
    expect(await tell([bun, "-"], { input })).toMatchObject(refusal("program-from-stdin", "put it in a file"));
    expect(await tell([bun, "run", "-"], { input })).toMatchObject(refusal("program-from-stdin", "put it in a file"));
  });
  test("with a relative --cwd", async () => {
    const path = program(refuses);
    for (const flags of [["--cwd", "tmp"], ["--cwd=tmp"]]) {
      expect(await tell([bun, ...flags, path], { cwd: "/" })).toMatchObject(refusal("relative-cwd", "make it an absolute path"));
    }
    expect(await tell([bun, "--cwd=/tmp", path], { cwd: "/" })).toBe("entered");
  });
  test("in another directory by now, whose configuration Bun would obey", async () => {
    const theirs = fs.mkdtempSync(join(directory, "theirs-"));
    fs.writeFileSync(join(theirs, "bunfig.toml"), 'preload = ["./theirs.ts"]');
    fs.writeFileSync(join(theirs, "theirs.ts"), 'require("node:fs").writeFileSync("ran", "")');
    const path = program(`await Bun.file("/proc/self/comm").text(); process.chdir("${theirs}"); ${refuses}`);
    const text = fs.readFileSync(path, "utf8");
    for (const command of [
      [bun, path],
      [bun, path.slice(directory.length + 1)],
      [bun, "-e", text],
      [await compileProgram(path)],
    ]) {
      expect(await tell(command, { cwd: directory })).toMatchObject(refusal("working-directory", "before process.chdir()"));
    }
    expect(fs.readdirSync(theirs).sort()).toEqual(["bunfig.toml", "theirs.ts"]);
    // By another name it is still the same.
    const same = program(`await Bun.file("/proc/self/comm").text(); process.chdir("/proc/self/cwd"); ${refuses}`);
    expect(await tell([bun, same], { cwd: directory })).toBe("entered");
  });
  test("under bun test", () => {
    expect(() => enterMountNamespace()).toThrow(NamespaceError);
    expect(() => enterMountNamespace()).toThrow(/in a program that the test starts as a child process/);
  });
  test("in a Worker", async () => {
    const path = program(`
      if (Bun.isMainThread) new Worker(import.meta.path).addEventListener("message", ({ data }) => { tell(data); process.exit(0); });
      else try { enterMountNamespace(); } catch (error) { self.postMessage([error.name, error.code, error.message]); }
    `);
    const message = expect.stringContaining("call it in the main thread");
    expect(await tell([bun, path])).toEqual(["TypeError", "ERR_WORKER_UNSUPPORTED_OPERATION", message]);
  });
});

describe("what the kernel refuses is an error that can be caught, and says what to do", () => {
  test("without privileges", async () => {
    const found = await tell([...nobody, bun, program(refuses)], { env: { ...process.env, HOME: directory } });
    const message = expect.stringContaining(
      "this process does not have CAP_SYS_ADMIN in its user namespace (run it as root, or in a user namespace",
    );
    expect(found).toMatchObject({ reason: "refused", code: "EPERM", entered: false, same: true, message });
  });
  test("a user namespace, in the second run: once for each kind that the program asks for", async () => {
    // Within: a limit of the namespace that is made here, and not of the machine.
    const script = 'mount -t proc proc /proc; echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"';
    const path = program(`
      const kinds = [{ user: true }, { user: true, map: "same" }, { user: true, propagation: "rprivate" }];
      const runs = fs.readFileSync("${directory}/runs", { flag: "a+", encoding: "utf8" }).length + 1;
      fs.appendFileSync("${directory}/runs", "x");
      const found = [];
      for (const kind of kinds) try { enterMountNamespace(kind); found.push("entered"); } catch (error) { found.push(error.code + " " + error.entered); }
      enterMountNamespace();
      tell({ found, runs, inside: namespaces().length === 1 });
      process.exit(0);
    `);
    const command = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-euc", script, "sh"];
    expect(await tell([...command, bun, path])).toEqual({
      found: ["ENOSPC false", "ENOSPC false", "ENOSPC false"],
      // One for each kind, and one more for the namespace without a user namespace.
      runs: 5,
      inside: true,
    });
  });
  test("after the user namespace was taken: that it was, and which file could not be written", async () => {
    const path = program(`
      const found = [];
      try { enterMountNamespace({ user: true }); } catch (error) { found.push(error.reason, error.entered, error.cause.path, error.message); }
      tell([...found, fs.readlinkSync("/proc/self/ns/user") === process.argv[2]]);
      process.exit(0);
    `);
    const start = ["unshare", "--mount", "sh", "-euc", 'mount -o remount,bind,ro /proc; exec "$@"', "sh"];
    const command = [bun, path, fs.readlinkSync("/proc/self/ns/user")];
    for (const threads of [[], ["env", ...oneThread]]) {
      const message = expect.stringMatching(/EROFS: .*, open '\/proc\/self\/setgroups'.*should exit$/);
      expect(await tell([...start, ...threads, ...command])).toEqual(["refused", true, "/proc/self/setgroups", message, false]);
    }
  });
  test("wrong options", () => {
    // What TypeScript would not let through.
    const enter = (options: object) => () => Reflect.apply(enterMountNamespace, undefined, [options]);
    expect(enter({ propagation: "rslavish" })).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
    expect(enter({ user: 1 })).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_TYPE" }));
    expect(enter({ user: true, map: "nobody" })).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
    expect(enter({ map: "same" })).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
    expect(enter({ users: true })).toThrow(expect.objectContaining({ code: "ERR_INVALID_ARG_VALUE" }));
  });
});

describe("a marker", () => {
  test("of another process, or that names another namespace, is not believed", async () => {
    const path = program(`
      const pid = Number(process.argv[2]) || process.pid;
      if (!syscalls.isOpen(200)) placeMarker(textOf({ pid, comm: "x", faults: 0, refusals: [], namespace: "mnt:[1]" }), []);
      fs.writeSync(1, fs.readlinkSync("/proc/self/ns/mnt") + "\\n");
      ${refuses}
    `);
    const started = await run([bun, path]);
    expect(JSON.parse(started.stdout.trim().split("\n").at(-1) ?? "")).toMatchObject({ reason: "threads", entered: true });
    // Not its own: it is passed over, and the program restarted.
    expect(await tell([bun, path, "1"])).toBe("entered");
  });
});

describe("the marker's descriptor", () => {
  test("may be in use: the second run has the marker there, whatever the program has open", async () => {
    const path = program(`
      const open = Array.from({ length: 300 }, () => fs.openSync("/dev/null"));
      ${refuses}
    `);
    expect(await tell([bun, path])).toBe("entered");
  });

  test("is what it was, when the marker is taken away again", async () => {
    const path = program(`
      const now = (fd) => [syscalls.isOpen(fd) && fs.readlinkSync("/proc/self/fd/" + fd), syscalls.isOpen(fd) && syscalls.fcntl(fd, syscalls.F.GETFD)];
      const found = [];
      for (const flags of [undefined, 0, syscalls.O.CLOEXEC]) {
        if (flags !== undefined) syscalls.dup3(syscalls.open("/proc/self/comm", 0), 200, flags);
        const before = now(200);
        const place = placeMarker("text", []);
        const meanwhile = [place.fd, ...now(200)];
        place.remove();
        found.push(before, meanwhile, now(200), now(202));
      }
      const place = placeMarker("text", [200]);
      found.push([place.fd, ...now(200)]);
      tell(found);
    `);
    const comm = expect.stringMatching(/^.proc.[0-9]+.comm$/);
    const memory = "/memfd:mounttree (deleted)";
    expect(await tell([bun, path])).toEqual([
      ...[
        [false, false],
        [200, memory, 0],
        [false, false],
        [false, false],
      ],
      ...[
        [comm, 0],
        [200, memory, 0],
        [comm, 0],
        [false, false],
      ],
      ...[
        [comm, 1],
        [200, memory, 0],
        [comm, 1],
        [false, false],
      ],
      [201, comm, 1],
    ]);
  });
});

test("a thread that is outside after the second start is an error, each time that it is tried: there is no third start", async () => {
  const path = program(`
    fs.appendFileSync("${directory}/starts", "x");
    const starts = fs.readFileSync("${directory}/starts").length;
    if (starts > 2) { tell({ starts }); process.exit(0); }
    const source = 'import { unshare } from "${checkout}/syscalls.ts"; unshare(0x20000); self.postMessage(1); setInterval(() => {}, 1000);';
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "application/javascript" })));
    await new Promise((resolve) => worker.addEventListener("message", resolve, { once: true }));
    const found = [];
    for (let i = 0; i < 3; i++) try { enterMountNamespace(); } catch (error) { found.push([error.reason, error.entered]); }
    tell({ starts, found });
    process.exit(0);
  `);
  const failed = ["threads", true];
  expect(await tell([bun, path])).toEqual({ starts: 2, found: [failed, failed, failed] });
});

describe("restartAlone", () => {
  test("leaves one thread, and a command that is executed then has the environment of before", async () => {
    const path = program(`
      restartAlone();
      restartAlone();
      const count = threads().length;
      syscalls.unshare(syscalls.CLONE.NEWUSER | syscalls.CLONE.NEWNS);
      syscalls.execvp(["sh", "-c", "env | grep -E '^(BUN|MIMALLOC)_' | tr '\\\\n' ' '; echo; echo [" + count + ",$1]", "sh", ...process.argv.slice(2)]);
    `);
    const compiled = await compileProgram(path);
    for (const command of [[bun, path], [bun, "--smol", path], [compiled]]) {
      const environment = { ...process.env, HOME: directory, MIMALLOC_SCAVENGER: "7" };
      const { stdout, stderr } = await run([...nobody, ...command, "3"], { env: environment });
      expect({ stdout, stderr }).toEqual({ stdout: "MIMALLOC_SCAVENGER=7 \n[1,3]\n", stderr: "" });
    }
  });
});

test("docs/threads.md has every reason, once, and no other", () => {
  // The type sees to it that none is missing here.
  const reasons: Record<NamespaceReason, true> = {
    refused: true,
    "no-proc": true,
    chrooted: true,
    "program-from-stdin": true,
    "relative-cwd": true,
    "working-directory": true,
    "bun-test": true,
    "output-pending": true,
    threads: true,
  };
  const text = fs.readFileSync(`${checkout}/docs/threads.md`, "utf8");
  const [heading, ...documented] = [...text.matchAll(/^\| `([a-z-]+)` \|/gm)].map(([, reason]) => reason);
  expect({ heading, documented }).toEqual({ heading: "reason", documented: Object.keys(reasons) });
});

afterAll(() => expect(fs.readlinkSync("/proc/self/ns/mnt")).toBe(outside));
