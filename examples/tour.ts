/**
 * The tour: builds a small root, switches into it, and shows what changed. `bun start` runs it. Without root it takes a user namespace.
 *
 * Two processes: this one, which looks at the machine before and after, and a child in a mount namespace of its own, which builds the
 * root and switches.
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { drawTree } from "../ls.ts";
import { mount } from "../mount.ts";
import { enterMountNamespace } from "../namespace.ts";
import { bindInside, devInside, procInside } from "../rootfs.ts";
import { switchRootOn } from "../switchroot.ts";
import { CAP, close, hasCapability, kernel, O, open } from "../syscalls.ts";

const [, script = "", stage = "outside", directory = ""] = process.argv;
const width = process.stdout.columns ?? 110;

if (stage === "outside") await outside();
else {
  // Bun has several threads, and this brings all of them along.
  enterMountNamespace({ user: !hasCapability(CAP.SYS_ADMIN) });
  await inside();
}

async function outside(): Promise<void> {
  if (process.platform !== "linux") {
    console.error("The tour mounts things in a namespace of its own: run it on Linux.");
    process.exit(1);
  }
  const before = fs.readFileSync("/proc/self/mountinfo", "utf8");
  const root = fs.mkdtempSync(join(tmpdir(), "mounttree-tour-"));
  const child = Bun.spawn([process.execPath, script, "inside", root], { stdio: ["inherit", "inherit", "inherit"] });
  const status = await child.exited;
  fs.rmdirSync(root);
  const same = fs.readFileSync("/proc/self/mountinfo", "utf8") === before;
  heading("Outside again");
  console.log(`The machine's mount table is ${same ? "byte for byte what it was" : "NOT what it was"}, and ${root} is gone.`);
  process.exit(status === 0 && same ? 0 : 1);
}

async function inside(): Promise<void> {
  const took: [what: string, microseconds: number][] = [];
  const timed = <T>(what: string, action: () => T): T => {
    const start = Bun.nanoseconds();
    const result = action();
    took.push([what, (Bun.nanoseconds() - start) / 1000]);
    return result;
  };

  heading("A small root");
  timed("a tmpfs", () => mount("tmpfs", directory, "tmpfs", "mode=0755,nosuid,nodev"));
  const root = open(directory, O.PATH | O.CLOEXEC);
  timed("/usr and what belongs to it, read-only", () => bindSystem(root));
  timed("/proc", () => procInside(root, "/proc"));
  timed("/dev", () => devInside(root, "/dev"));
  close(root);
  fs.writeFileSync(`${directory}/hello`, "read from the new root");
  console.log(`It is at ${directory}, a tmpfs with the machine's /usr bound into it. What is mounted there now:\n`);
  console.log(drawTree(directory, { width }));

  heading("The switch");
  console.log(`The mount tree before: ${fs.readFileSync("/proc/self/mountinfo", "utf8").split("\n").length - 1} mounts.\n`);
  console.log(drawTree(undefined, { width }));
  const calls: string[] = [];
  const { method, root: called } = timed("switchRoot", () => switchRootOn(listening(calls), directory, {}));
  console.log(`switchRoot("${called}") used the method "${method}". The mount tree after:\n`);
  console.log(drawTree(undefined, { width }));

  heading("What this process sees");
  const spawned = Bun.spawnSync(["/bin/sh", "-c", "cat /hello"]).stdout.toString();
  console.log(`process.cwd()                 ${process.cwd()}`);
  console.log(`readdirSync("/")              ${fs.readdirSync("/").join(" ")}`);
  console.log(`readFileSync("/hello")        ${fs.readFileSync("/hello", "utf8")}`);
  console.log(`await Bun.file("/hello")      ${await Bun.file("/hello").text()}`);
  console.log(`a command that was started    ${spawned}`);
  for (const name of [script, directory]) {
    console.log(`${name}: ${fs.existsSync(name) ? "STILL THERE" : "not there any more: it was the host's"}`);
  }
  const roots = fs.readdirSync("/proc/self/task").map((task) => fs.statSync(`/proc/self/task/${task}/root`).ino);
  console.log(
    `The ${roots.length} threads of this process have ${new Set(roots).size === 1 ? "one root, this one" : "DIFFERENT ROOTS"}.`,
  );

  heading("What it took");
  for (const [what, microseconds] of took) console.log(`${microseconds.toFixed(0).padStart(6)} µs  ${what}`);
  console.log("\nMost of switchRoot's time is the loading and compiling of what is called for the first time in this process.");
  console.log(`Its calls that change something (µs):\n  ${calls.join(", ")}`);
}

/** /usr, and /bin, /lib and the like, which are links into it on most systems, and directories on others. */
function bindSystem(root: number): void {
  bindInside(root, "/usr", "/usr", { readOnly: true });
  for (const name of fs.readdirSync("/").filter((entry) => /^(s?bin|lib\w*)$/.test(entry))) {
    if (fs.lstatSync(`/${name}`).isSymbolicLink()) fs.symlinkSync(fs.readlinkSync(`/${name}`), `${directory}/${name}`);
    else bindInside(root, `/${name}`, `/${name}`, { readOnly: true });
  }
}

/** The kernel, with a note of each call that changes something. */
function listening(calls: string[]): typeof kernel {
  const note = <A extends unknown[], R>(name: string, call: (...args: A) => R): ((...args: A) => R) => {
    return (...args) => {
      const start = Bun.nanoseconds();
      const result = call(...args);
      calls.push(`${name} ${((Bun.nanoseconds() - start) / 1000).toFixed(0)}`);
      return result;
    };
  };
  return {
    ...kernel,
    open_tree: note("open_tree", kernel.open_tree),
    mount_setattr: note("mount_setattr", kernel.mount_setattr),
    move_mount: note("move_mount", kernel.move_mount),
    fchdir: note("fchdir", kernel.fchdir),
    pivot_root: note("pivot_root", kernel.pivot_root),
    mount: note("mount", kernel.mount),
    umount2: note("umount2", kernel.umount2),
    chdir: note("chdir", kernel.chdir),
  };
}

function heading(text: string): void {
  console.log(`\n── ${text} ${"─".repeat(Math.max(0, width - text.length - 4))}\n`);
}
