/**
 * In a container with Docker's default seccomp profile, which knows no statmount(2), and lets pivot_root(2) through for nobody and
 * kcmp(2) only for tracers.
 */
import type { OutsideRun } from "./run.ts";

const program = `
  import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
  import { switchRoot } from "/work/index.ts";
  mkdirSync("/tmp/root");
  writeFileSync("/tmp/root/marker", "new");
  await Bun.file("/etc/passwd").text();
  const { method, rejected } = switchRoot("/tmp/root");
  const markers = [readFileSync("/marker", "utf8"), await Bun.file("/marker").text()];
  const reasons = rejected.map(({ method, reason, error }) => [method, reason, error?.code].join(" ").trim());
  console.log(JSON.stringify({ method, reasons, markers }));
`;

function expects(method: string, reasons: string[]): OutsideRun["expect"] {
  return ({ stdout }) => {
    const expected = JSON.stringify({ method, reasons, markers: ["new", "new"] });
    return stdout.trim() === expected ? undefined : `expected ${expected}`;
  };
}

export const runs: OutsideRun[] = [
  {
    name: "an ordinary container: chroot is what is left",
    dockerArguments: [],
    command: ["bun", "-e", program],
    expect: expects("chroot", ["pivot no-cap-sys-admin", "move no-cap-sys-admin", "detached no-cap-sys-admin"]),
  },
  {
    name: "with CAP_SYS_ADMIN and a mount namespace of its own: pivot_root(2) is refused, and move is used",
    dockerArguments: ["--cap-add", "SYS_ADMIN"],
    command: ["unshare", "--mount", "bun", "-e", program],
    expect: expects("move", ["pivot seccomp EPERM"]),
  },
  {
    name: "with CAP_SYS_ADMIN, in the namespace of the container's first process: detached",
    dockerArguments: ["--cap-add", "SYS_ADMIN"],
    command: ["sh", "-c", 'bun -e "$0"; exit $?', program],
    expect: expects("detached", ["pivot namespace-shared", "move namespace-shared"]),
  },
  {
    name: "without any capability: every method is ruled out, with its reason",
    dockerArguments: ["--cap-drop", "ALL"],
    command: ["bun", "-e", program],
    expect: ({ exitCode, stderr }) =>
      exitCode === 1 && stderr.includes("chroot: this process does not have CAP_SYS_CHROOT") ? undefined : "expected a refusal",
  },
];
