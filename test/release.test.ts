/**
 * What is published: the files of the package, their types, and every example of the README and of docs/, run from the package that is
 * installed in an empty project. The examples are read from the pages.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import * as fs from "node:fs";
import { dirname, join } from "node:path";
import { exports as entryPoints, packageManager, scripts, version } from "../package.json" with { type: "json" };
import { checkout, type Finished, run, scratchDirectory, shell, watchMountTable } from "./compiled.ts";

const scratch = scratchDirectory();
// One of the programs is an ordinary user's.
fs.chmodSync(scratch, 0o755);
const project = join(scratch, "project");
const packed = join(project, "node_modules/mounttree");
const bun = process.execPath;
watchMountTable();
// The compiler needs more than a second with a processor of its own.
setDefaultTimeout(60_000);

const modules = ["checkroot", "checks", "descriptors", "diagnose", "index", "mount", "mountinfo", "mountoptions", "namespace"];
modules.push("reasons", "restart", "switchroot", "syscalls");
const contents = [
  ...["CHANGELOG.md", "LICENSE", "README.md", "docs/errors.md", "docs/security.md", "docs/threads.md", "package.json"],
  ...[...modules, "cli", "commandline", "exec", "ls", "rootfs", "usernamespace"].map((name) => `${name}.ts`),
  ...modules.map((name) => `types/${name}.d.ts`),
].sort();

// --- The pages

interface Block {
  page: string;
  language: string;
  text: string;
}

const pages = ["README.md", ...fs.readdirSync(join(checkout, "docs")).map((name) => `docs/${name}`)];
const blocks = pages.flatMap((page) => {
  const fences = fs.readFileSync(join(checkout, page), "utf8").matchAll(/^```(\w*)\n(.*?)^```$/gms);
  return [...fences].map(([, language = "", text = ""]): Block => ({ page, language, text }));
});
const used = new Set<Block>();

/** The only block of a page that holds a text. */
function block(page: string, part: string): string {
  const [found, ...others] = blocks.filter((each) => each.page === page && each.text.includes(part));
  if (found === undefined || others.length > 0) throw new Error(`${page} has not one block with '${part}'`);
  used.add(found);
  return found.text;
}

const sections = {
  start: block("README.md", "npx -y"),
  switchRoot: block("README.md", "for (const { method, reason"),
  enter: block("README.md", "unshare(2) moves only one"),
  unprivileged: block("README.md", "process.setuid"),
  mounts: block("README.md", "unmountAll"),
  command: block("README.md", "mkdir root"),
  untrusted: block("README.md", "unshare --pid"),
  errors: block("docs/errors.md", "error.reason"),
  enterFirst: block("docs/threads.md", '// "pivot"'),
  user: block("docs/threads.md", "user: true"),
};
// What examples/threads.ts prints.
block("docs/threads.md", "left behind");

// --- The programs

/** Commands that start a program: a mount namespace of its own, one that a shell lives in as well, and an ordinary user. */
const own = ["unshare", "--mount", "--propagation", "private"];
const withOthers = [...own, "sh", "-euc", '"$@"; :', "sh"];
const nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];

/** Writes a program into the project. */
function program(name: string, text: string): string {
  const path = join(project, `${name}.ts`);
  fs.writeFileSync(path, text);
  return path;
}

/** Runs a program to its end; it has to succeed. Returns what it printed. */
async function printed(command: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await run([...command], { cwd: project });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return stdout;
}

/** What the machine sees of a process. */
interface Seen {
  /** The roots of its threads, as device and inode. */
  roots: string[];
  mounts: string;
  status: string;
}

const identity = (path: string): string => {
  const { dev, ino } = fs.statSync(path);
  return `${dev}:${ino}`;
};

/** Runs a program to its end, and looks at it, from outside, when it has done what it does. */
async function seen(command: readonly string[], name: string, text: string): Promise<Seen> {
  const path = program(
    name,
    `${text}\nimport { readSync } from "node:fs";\nconsole.log("done");\nreadSync(0, Buffer.alloc(1));\n`,
  );
  const child = Bun.spawn([...command, bun, path], { stdin: "pipe", stdout: "pipe", stderr: "inherit", timeout: 20_000 });
  let output = "";
  for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
    output += chunk;
    if (output.endsWith("done\n")) break;
  }
  const proc = `/proc/${child.pid}`;
  const result = {
    roots: fs.readdirSync(`${proc}/task`).map((thread) => identity(`${proc}/task/${thread}/root`)),
    mounts: fs.readFileSync(`${proc}/mountinfo`, "utf8"),
    status: fs.readFileSync(`${proc}/status`, "utf8"),
  };
  child.stdin.end();
  expect(await child.exited).toBe(0);
  return result;
}

beforeAll(async () => {
  const copy = join(scratch, "checkout");
  fs.mkdirSync(join(copy, "types"), { recursive: true });
  for (const name of fs.readdirSync(checkout)) {
    if (["node_modules", ".git", "dist", "types"].includes(name)) continue;
    fs.cpSync(join(checkout, name), join(copy, name), { recursive: true });
  }
  fs.symlinkSync(join(checkout, "node_modules"), join(copy, "node_modules"));
  // Of a module that there was once.
  fs.writeFileSync(join(copy, "types/gone.d.ts"), "");
  const pack = await run([bun, "pm", "pack", "--destination", scratch], { cwd: copy });
  if (pack.status !== 0) throw new Error(`packing ended with ${pack.status}: ${pack.stderr}${pack.stdout}`);

  fs.mkdirSync(project);
  fs.writeFileSync(join(project, "package.json"), '{ "type": "module" }\n');
  const add = await run([bun, "add", `../mounttree-${version}.tgz`], { cwd: project });
  if (add.status !== 0) throw new Error(`installing ended with ${add.status}: ${add.stderr}${add.stdout}`);

  for (const path of ["/srv/tenant-a/data", "/srv/data"]) fs.mkdirSync(path, { recursive: true });
});
afterAll(() => fs.rmSync("/srv", { recursive: true }));

// --- The tests

describe("the package", () => {
  test("holds what a user needs, and nothing else", async () => {
    const files = await new Bun.Archive(fs.readFileSync(join(scratch, `mounttree-${version}.tgz`))).files();
    expect([...files.keys()].sort()).toEqual(contents.map((name) => `package/${name}`));
  });

  test("holds no file that does not lead to another or is led to", () => {
    const link = /(?:from|import) "\.\/(.+?)"/g;
    const entries = Object.values(entryPoints).flatMap(({ types, default: source }) => [types, source]);
    const reached = new Set(
      [...entries, "cli.ts", "README.md", "LICENSE", "CHANGELOG.md", "package.json"].map((name) => join(name)),
    );
    for (const name of reached) {
      const text = fs.readFileSync(join(packed, name), "utf8");
      if (/\.md$/.test(name))
        for (const [, to = ""] of text.matchAll(/\]\((?!https:)(.+?)(?:#.*?)?\)/g)) reached.add(join(dirname(name), to));
      for (const [, to = ""] of text.matchAll(link)) {
        reached.add(join(dirname(name), name.endsWith(".d.ts") ? to.replace(/\.ts$/, ".d.ts") : to));
      }
    }
    expect([...reached].sort()).toEqual(contents);
  });

  test("installs without a network, and brings nothing along", () => {
    const { dependencies } = JSON.parse(fs.readFileSync(join(project, "package.json"), "utf8"));
    expect(dependencies).toEqual({ mounttree: `../mounttree-${version}.tgz` });
    expect(fs.readdirSync(join(project, "node_modules")).sort()).toEqual([".bin", "mounttree"]);
    expect(fs.readdirSync(join(project, "node_modules/.bin"))).toEqual(["mounttree"]);
  });

  test("has a command that runs", async () => {
    expect(await printed([join(project, "node_modules/.bin/mounttree"), "--version"])).toBe(`mounttree ${version}\n`);
  });

  test("gives under each of its names what the README says", async () => {
    const readme = fs.readFileSync(join(packed, "README.md"), "utf8");
    const named = [...readme.matchAll(/`(mounttree\/\w+)`[^(`]*\(((?:`\w+`,?\s*)+)\)/g)].map(
      ([, name = "", list = ""]) => [name, [...list.matchAll(/\w+/g)].map(String)] as const,
    );
    expect(named.map(([name]) => name)).toEqual(["mounttree/mountinfo", "mounttree/mount"]);
    for (const [name, functions] of [...named, ["mounttree", named.flatMap(([, list]) => list)] as const]) {
      const given: object = await import(Bun.resolveSync(name, project));
      expect(Object.keys(given)).toEqual(expect.arrayContaining(functions));
    }
  });
});

describe("its types", () => {
  const use = `
    import { type RootMethod, switchRoot } from "mounttree";
    import { mount } from "mounttree/mount";
    import { getMounts, type MountInfo } from "mounttree/mountinfo";
    import { SyscallError, statx } from "mounttree/syscalls";
    type IsAny<T> = 0 extends 1 & T ? true : false;
    const result = switchRoot(new URL("file:///"), { methods: ["pivot", "move"], putOld: "directory" });
    const method: RootMethod = result.method;
    const mounts: MountInfo[] = getMounts(({ fsType }) => fsType === "proc");
    const nothingIsAny: IsAny<typeof result | typeof mounts | ReturnType<typeof statx> | SyscallError> = false;
    // @ts-expect-error There is no such method.
    switchRoot("/", { methods: ["pivott"] });
    // @ts-expect-error There is no such option.
    switchRoot("/", { method: "pivot" });
    // @ts-expect-error A file system has a type, or null.
    mount("a", "/b");
    // @ts-expect-error What is inside is nobody's business.
    import "mounttree/checks";
    export { method, mounts, nothingIsAny };
  `;

  const check = async (moduleResolution: string, files: Record<string, string>): Promise<Finished> => {
    const directory = join(project, moduleResolution);
    fs.mkdirSync(directory);
    for (const [name, text] of Object.entries(files)) fs.writeFileSync(join(directory, name), text);
    fs.mkdirSync(join(directory, "node_modules"));
    fs.symlinkSync(join(checkout, "node_modules/bun-types"), join(directory, "node_modules/bun-types"));
    const compilerOptions = {
      ...{ moduleResolution, module: moduleResolution === "bundler" ? "preserve" : moduleResolution, moduleDetection: "force" },
      ...{ target: "esnext", lib: ["esnext"], types: ["bun-types"], noEmit: true, strict: true, skipLibCheck: false },
      ...{ exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true },
    };
    fs.writeFileSync(join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions }));
    return run([bun, join(checkout, "node_modules/typescript/bin/tsc"), "-p", directory]);
  };

  test.each(["bundler", "nodenext"])("hold for every example, and refuse what is wrong, by the rules of %s", async (rules) => {
    const examples = blocks.filter(({ language }) => language === "ts").map(({ text }, index) => [`example${index}.ts`, text]);
    const { status, stdout } = await check(rules, { "use.ts": use, ...Object.fromEntries(examples) });
    expect({ status, stdout }).toEqual({ status: 0, stdout: "" });
  });
});

describe("the examples", () => {
  test("are all run here", () => {
    expect(blocks.filter((each) => !used.has(each))).toEqual([]);
  });

  test("what the README says to start with are this version of Bun and scripts that there are", () => {
    for (const line of sections.start.trim().split("\n")) {
      const [, name, script = ""] = line.match(/^npx -y (\S+) (?:run )?(\S+)$/) ?? [];
      expect({ line, name, isScript: Object.hasOwn(scripts, script) }).toEqual({ line, name: packageManager, isScript: true });
    }
  });

  const readme = fs.readFileSync(join(checkout, "README.md"), "utf8");
  const table = readme.match(/^\| started as \| it gets \|\n.*\n((?:\|.*\n)+)/m)?.[1] ?? "";
  const rows = table.trimEnd().split("\n");
  const entering = sections.enter.replace("switchRoot(", "const { method } = switchRoot(").concat("console.log(method);\n");
  const ways: [row: RegExp, command: string[], text: string][] = [
    [/`enterMountNamespace\(\)`/, [], entering],
    [/`enterMountNamespace\({ user: true }\)`/, nobody, entering.replace("Namespace()", "Namespace({ user: true })")],
    [/`unshare --mount bun app.ts`/, ["unshare", "--mount"], sections.switchRoot],
    [/^\| `bun app.ts` \|/, [], sections.switchRoot],
    [/without further privileges/, ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"], sections.switchRoot],
  ];
  test("are started in the five ways of which the README says what they get", () => expect(rows).toHaveLength(ways.length));
  for (const [index, [row, command, text]] of ways.entries()) {
    test(`it gets what the README says, started as in row ${index + 1}`, async () => {
      expect(rows[index]).toMatch(row);
      const stated = rows[index]?.match(/\| `(\w+)`[^|]*\|$/)?.[1];
      const [method, ...rejected] = (await printed([...command, bun, program(`way${index}`, text)])).trimEnd().split("\n");
      expect(method).toBe(stated ?? "");
      const stronger = { pivot: 0, move: 1, detached: 2, chroot: 3 }[stated ?? ""];
      expect(rejected).toHaveLength(text === entering ? 0 : (stronger ?? Number.NaN));
      for (const line of rejected) expect(line).toMatch(/^(pivot|move|detached) was not used \([a-z-]+\): \S/);
    });
  }

  test("switching: from outside, too, every thread has the new root", async () => {
    const { roots } = await seen([], "switch", sections.switchRoot);
    expect(roots.length).toBeGreaterThan(1);
    expect(new Set(roots)).toEqual(new Set([identity("/srv/tenant-a")]));
  });

  test.each([
    ["the README", sections.enter],
    ["docs/threads.md", sections.enterFirst],
  ])("a namespace first of all: every thread has the new root, and nothing else is mounted any more (%s)", async (_, text) => {
    const { roots, mounts } = await seen([], "enter", text);
    expect(new Set(roots)).toEqual(new Set([identity("/srv/tenant-a")]));
    expect(mounts).toMatch(/^\d+ \d+ \S+ \S*\/srv\/tenant-a \/ [^\n]*\n$/);
  });

  test("rights given up: an ordinary user without capabilities is left, in the new root", async () => {
    const { roots, status } = await seen(own, "unprivileged", sections.unprivileged);
    expect(new Set(roots)).toEqual(new Set([identity("/srv/tenant-a")]));
    expect(status).toMatch(/^Uid:\t65534\t65534\t65534\t65534$/m);
    expect(status).toMatch(/^Gid:\t65534\t65534\t65534\t65534$/m);
    expect(status).toMatch(/^Groups:\t *$/m);
    expect(status).toMatch(/^CapPrm:\t0+$/m);
  });

  test("the parts: a read-only bind is listed, and gone in the end", async () => {
    const table = 'console.log(await Bun.file("/proc/self/mountinfo").text());\n';
    const output = await printed([...own, bun, program("mounts", sections.mounts.replace(/^if /m, `${table}$&`) + table)]);
    const [listed, during, after] = output.split(/(?<=^\/srv.*\n)|\n\n/);
    expect(listed).toMatch(/^\/srv\/tenant-a\/data ro(,\w+)*\n$/);
    expect(during).toMatch(/ \/srv\/tenant-a\/data ro[, ]/);
    expect(after).not.toContain("/srv/");
  });

  test("errors have reasons", async () => {
    const unbindable = "mount --bind /srv/data /srv/data; mount --make-unbindable /srv/data";
    const output = await printed([
      ...withOthers.with(-2, `${unbindable}; ${withOthers.at(-2)}`),
      bun,
      program("errors", sections.errors),
    ]);
    const [bind, pivot, ...methods] = output.trimEnd().split("\n");
    expect(bind).toMatch(/^EINVAL: .*mount '\/srv\/data' -> '\/srv\/tenant-a\/data': .*unbindable/);
    expect(pivot).toStartWith("namespace-shared [");
    expect(
      methods.filter((line) => /^(pivot|move) false namespace-shared|^(detached|chroot) true undefined/.test(line)),
    ).toHaveLength(4);
  });

  test("a user namespace: without privileges, root inside", async () => {
    const { status } = await seen(nobody, "user", sections.user);
    expect(status).toMatch(/^Uid:\t65534\t/m);
    expect(status).toMatch(/^CapEff:\t0*1f+$/m);
  });

  describe("the command", () => {
    const path = `${join(project, "node_modules/.bin")}:/usr/sbin:/usr/bin:/sbin:/bin`;
    const directory = join(scratch, "empty");
    beforeAll(() => fs.mkdirSync(directory));

    test("in an empty directory: runs, checks, lists", async () => {
      const { status, stdout, stderr } = await shell(sections.command, [], { cwd: directory, env: { PATH: path } });
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      const [ran, checked, listed] = stdout.split(/(?<=^hello\n)|^(?=TARGET)/m);
      expect(ran).toBe("bin\ndev\nlib\nlib64\nproc\ntmp\nusr\nhello\n");
      expect(checked).toMatch(/^detached +yes$/m);
      expect(listed).toMatch(/^\/sys +sysfs +sysfs /m);
      const tmpfs = (await printed(["findmnt", "--list", "--noheadings", "--types", "tmpfs", "--output", "TARGET"]))
        .trim()
        .split("\n");
      const mountPoints = stdout.split("\n").filter((line) => line.startsWith('"'));
      expect(mountPoints.sort()).toEqual(tmpfs.map((target) => JSON.stringify(target)).sort());
    });

    test("for what is not trusted: an ordinary user, without privileges, that sees no other process", async () => {
      const input = "id -u; cd /proc; echo [0-9]*; grep -E '^(NoNewPrivs|Groups|Cap(Bnd|Prm))' self/status\n";
      const { status, stdout, stderr } = await shell(sections.untrusted, [], { cwd: directory, env: { PATH: path }, input });
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      const none = "0000000000000000";
      expect(stdout).toBe(`65534\n1\nGroups:\t \nCapPrm:\t${none}\nCapBnd:\t${none}\nNoNewPrivs:\t1\n`);
    });
  });
});
