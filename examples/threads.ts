/**
 * What unshare(2) does to a Bun program: it moves the thread that calls it, and leaves the others where they are. `bun examples/threads.ts`
 * shows it; it needs root.
 *
 * Two processes: this one, and a child that unshares, and then that calls enterMountNamespace() instead. What they mount is in
 * mount namespaces of their own, and is gone when they have ended.
 */
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { enterMountNamespace } from "../namespace.ts";
import { CAP, CLONE, hasCapability, MS, mount, unshare } from "../syscalls.ts";

const [, script = "", stage = "outside", directory = ""] = process.argv;

if (stage === "outside") await outside();
else await inside();

async function outside(): Promise<void> {
  if (process.platform !== "linux" || !hasCapability(CAP.SYS_ADMIN)) {
    console.error("It mounts something in a namespace of its own: run it on Linux, as root (for example with sudo).");
    process.exit(1);
  }
  const shared = fs.mkdtempSync(join(tmpdir(), "mounttree-threads-"));
  fs.writeFileSync(`${shared}/which`, "the host's");
  for (const how of ["unshare", "enterMountNamespace"]) {
    // In a mount namespace already, for the thread that stays behind to be no thread of the host's.
    const child = Bun.spawn(["unshare", "--mount", process.execPath, script, how, shared], {
      stdio: ["ignore", "inherit", "inherit"],
    });
    if ((await child.exited) !== 0) process.exitCode = 1;
  }
  fs.rmSync(shared, { recursive: true });
}

async function inside(): Promise<void> {
  // From here on there are threads that do asynchronous I/O.
  await Bun.file(`${directory}/which`).text();
  if (stage === "unshare") {
    unshare(CLONE.NEWNS);
    mount(null, "/", null, MS.SLAVE | MS.REC, null);
  } else {
    enterMountNamespace();
  }
  mount("tmpfs", directory, "tmpfs", 0, null);
  fs.writeFileSync(`${directory}/which`, "the new one");

  console.log(`\nAfter ${stage}(), and mounting a tmpfs with a file of its own over ${directory}:\n`);
  console.log(`  fs.readFileSync()       reads  ${fs.readFileSync(`${directory}/which`, "utf8")}`);
  console.log(`  await Bun.file().text() reads  ${await Bun.file(`${directory}/which`).text()}`);
  console.log(`  await fs.promises...    reads  ${await fs.promises.readFile(`${directory}/which`, "utf8")}\n`);
  const own = fs.readlinkSync("/proc/self/ns/mnt");
  for (const thread of fs.readdirSync("/proc/self/task")) {
    // One of the collector's may have ended in the meantime.
    if (!fs.existsSync(`/proc/self/task/${thread}/comm`)) continue;
    const name = fs.readFileSync(`/proc/self/task/${thread}/comm`, "utf8").trim();
    const namespace = fs.readlinkSync(`/proc/self/task/${thread}/ns/mnt`);
    console.log(`  ${name.padEnd(14)} ${namespace}${namespace === own ? "" : "   left behind"}`);
  }
}
