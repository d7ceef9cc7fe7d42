/** Seccomp filters, which need a container of their own: what checkRoot says is what switchRoot then does, and why is the filter. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { OutsideRun } from "./run.ts";

/** Each method in a process of its own, since a switch cannot be taken back. */
const program = `
  import { mkdirSync } from "node:fs";
  import { checkRoot, SwitchRootError, switchRoot } from "/work/index.ts";
  const method = process.argv.at(-1);
  mkdirSync("/tmp/root", { recursive: true });
  const { works, reason } = checkRoot("/tmp/root").methods.find((one) => one.method === method);
  const before = works ? "works" : reason;
  let then;
  try {
    then = switchRoot("/tmp/root", { methods: [method] }).method === method ? "works" : "another method";
  } catch (error) {
    if (!(error instanceof SwitchRootError)) throw error;
    then = error.reason;
    if (error.rejected[0].reason !== then) then += " and " + error.rejected[0].reason;
  }
  console.log(method + " " + before + (before === then ? "" : ", then " + then));
`;

const each = 'for method in pivot move detached chroot; do "$@" bun -e "$0" $method || exit; done';
const unshare = ["unshare", "--mount"];

function expects(...lines: string[]): OutsideRun["expect"] {
  return ({ stdout }) => (stdout.trim() === lines.join("\n") ? undefined : `expected\n${lines.join("\n")}`);
}

const directory = mkdtempSync(join(tmpdir(), "mounttree-profiles-"));
process.on("exit", () => rmSync(directory, { recursive: true }));

/** A profile that allows everything but these calls. */
function profile(name: string, calls: string[], errno: number): string[] {
  const path = join(directory, `${name}.json`);
  const refused = { names: calls, action: "SCMP_ACT_ERRNO", errnoRet: errno };
  writeFileSync(path, JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW", syscalls: [refused] }));
  return ["--cap-add", "SYS_ADMIN", "--security-opt", `seccomp=${path}`, "--security-opt", "apparmor=unconfined"];
}

const [EPERM, ENOSYS] = [1, 38];

/** What an error says. */
const why = (code: string): string[] => [
  "bun",
  "-e",
  `import * as m from "/work/index.ts"; try { ${code} } catch (e) { console.log(e.reason, e.message); }`,
];

function says(...words: string[]): OutsideRun["expect"] {
  return ({ stdout }) => (words.every((word) => stdout.includes(word)) ? undefined : `expected ${words.join(" and ")}`);
}

export const runs: OutsideRun[] = [
  {
    name: "an ordinary container: no CAP_SYS_ADMIN",
    dockerArguments: [],
    command: ["sh", "-c", each, program],
    expect: expects("pivot no-cap-sys-admin", "move no-cap-sys-admin", "detached no-cap-sys-admin", "chroot works"),
  },
  {
    name: "with CAP_SYS_ADMIN and Docker's default profile: it forbids pivot_root(2) and nothing else",
    dockerArguments: ["--cap-add", "SYS_ADMIN"],
    command: ["sh", "-c", each, program, ...unshare],
    expect: expects("pivot seccomp", "move works", "detached works", "chroot works"),
  },
  {
    name: "a filter that forbids open_tree(2): a directory can be neither copied nor bound",
    dockerArguments: profile("open_tree", ["open_tree"], EPERM),
    command: ["sh", "-c", each, program, ...unshare],
    expect: expects("pivot seccomp", "move seccomp", "detached seccomp", "chroot works"),
  },
  {
    name: "a filter that answers ENOSYS to open_tree(2), as on an old kernel: a directory is bound by its name",
    dockerArguments: profile("open_tree_enosys", ["open_tree"], ENOSYS),
    command: ["sh", "-c", each, program, ...unshare],
    expect: expects("pivot works", "move works", "detached seccomp", "chroot works"),
  },
  {
    name: "a filter that forbids mount(2)",
    dockerArguments: profile("mount", ["mount"], EPERM),
    // unshare(1) would change the propagation with mount(2).
    command: ["sh", "-c", each, program, "unshare", "--mount", "--propagation", "unchanged"],
    expect: expects("pivot seccomp", "move seccomp", "detached works", "chroot works"),
  },
  {
    name: "a filter that forbids umount2(2)",
    dockerArguments: profile("umount2", ["umount2"], EPERM),
    command: ["sh", "-c", each, program, ...unshare],
    expect: expects("pivot seccomp", "move seccomp", "detached works", "chroot works"),
  },
  {
    name: "a filter that forbids chroot(2)",
    dockerArguments: profile("chroot", ["chroot"], EPERM),
    command: ["sh", "-c", each, program, ...unshare],
    expect: expects("pivot works", "move seccomp", "detached seccomp", "chroot seccomp"),
  },
  {
    name: "mount: the filter is named",
    dockerArguments: profile("mount_alone", ["mount"], EPERM),
    command: why('m.mount("t", "/tmp", "tmpfs")'),
    expect: says("seccomp EPERM", "a seccomp filter forbids mount(2)", "--security-opt seccomp="),
  },
  {
    name: "makeMountPoint in an ordinary container: the capability is named",
    dockerArguments: [],
    command: why('m.makeMountPoint("/usr")'),
    expect: says("no-cap-sys-admin EPERM", "does not have CAP_SYS_ADMIN"),
  },
  {
    name: "mounttree run in an ordinary container says that it has no CAP_SYS_ADMIN",
    dockerArguments: [],
    command: ["sh", "-c", "bun /work/cli.ts run /tmp true 2>&1; echo $?"],
    expect: says("taking a mount namespace, which needs CAP_SYS_ADMIN: EPERM", "does not have CAP_SYS_ADMIN", "125"),
  },
  {
    name: "mounttree run where a filter forbids unshare(2) says so",
    dockerArguments: profile("unshare", ["unshare"], EPERM),
    command: ["sh", "-c", "bun /work/cli.ts run /tmp true 2>&1; echo $?"],
    expect: says("a seccomp filter forbids unshare(2)", "125"),
  },
  {
    name: "mounttree check with Docker's default profile: detached, exit status 0; without the capability 1",
    dockerArguments: ["--cap-add", "SYS_ADMIN"],
    command: [
      "sh",
      "-c",
      "unshare --mount bun /work/cli.ts check /tmp; echo $?; setpriv --bounding-set=-sys_admin bun /work/cli.ts check /tmp; echo $?",
    ],
    expect: says("pivot     no   seccomp: pivot_root: EPERM", "move      yes", "\n0\n", "no-cap-sys-admin", "\n1\n"),
  },
];
