/**
 * A machine with another kernel, and if need be of another architecture: QEMU without KVM, a kernel and programs from Debian's
 * packages, which are unpacked and not installed, and an initramfs of these and of what the caller puts there.
 */
import { chmodSync, copyFileSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Target } from "../../build.ts";
import { canInstall, install, mustRun, run, which } from "../container.ts";

/** Debian 12: Linux 6.1. */
const release = "bookworm";

interface Architecture {
  /** What Debian calls it. */
  name: string;
  emulator: string[];
  console: string;
  /** What has to be installed here. */
  installed: Record<string, string>;
}

const architectures: Record<Target, Architecture> = {
  x64: {
    name: "amd64",
    emulator: ["qemu-system-x86_64", "-cpu", "max"],
    console: "ttyS0",
    installed: { "qemu-system-x86_64": "qemu-system-x86", cpio: "cpio" },
  },
  arm64: {
    name: "arm64",
    // To emulate the pointer authentication that newer ones have takes half of the time.
    emulator: ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72"],
    console: "ttyAMA0",
    installed: { "qemu-system-aarch64": "qemu-system-arm", "qemu-aarch64-static": "qemu-user-static", cpio: "cpio" },
  },
};

/** What the tests call. */
export const tools: readonly string[] = [
  ...["busybox-static", "libstdc++6", "bash", "dash", "grep", "sed", "coreutils", "util-linux", "mount", "strace"],
];
/** What more of them call. */
export const moreTools: readonly string[] = ["bsdutils", "diffutils", "e2fsprogs", "findutils", "libcap2-bin", "procps"];

export interface Machine {
  target: Target;
  /** The kernel's file. */
  kernel: string;
  /** The directory whose contents are the initramfs's. */
  tree: string;
}

/**
 * Fetches and unpacks everything.
 *
 * @param directory An empty one; it is the caller's to remove.
 */
export async function prepareMachine(
  target: Target,
  directory: string,
  wanted: readonly string[],
  signal: AbortSignal,
): Promise<Machine> {
  const { name, installed } = architectures[target];
  const missing = Object.keys(installed).filter((program) => which(program) === undefined);
  const packages = missing.flatMap((program) => installed[program] ?? []);
  if (packages.length > 0) {
    if (!canInstall()) throw new Error(`it takes root on Debian, or these packages: ${packages.join(", ")}`);
    await install(packages, signal);
  }

  const apt = await privateApt(name, directory, signal);
  await apt(["install", "--download-only", "--yes", "--no-install-recommends", ...wanted]);
  // The one for virtual machines is a third of the other, and has all that is needed built in.
  const shown = await apt(["show", "--no-all-versions", `linux-image-cloud-${name}`], "apt-cache");
  const kernelPackage = /^Depends: (\S+)/m.exec(shown)?.[1];
  if (kernelPackage === undefined) throw new Error(`linux-image-cloud-${name} names no kernel`);
  await apt(["download", kernelPackage]);

  const tree = join(directory, "tree");
  for (const folder of ["bin", "sbin", "lib", "lib64"]) {
    mkdirSync(join(tree, "usr", folder), { recursive: true });
    symlinkSync(`usr/${folder}`, join(tree, folder));
  }
  const archives = join(directory, "cache/archives");
  const unpack =
    'tree=$1; shift; for each; do dpkg-deb --fsys-tarfile "$each" | tar -x --keep-directory-symlink -C "$tree"; done';
  const files = readdirSync(archives).filter((file) => file.endsWith(".deb"));
  await mustRun(["bash", "-euo", "pipefail", "-c", unpack, "bash", tree, ...files.map((file) => join(archives, file))], {
    signal,
  });
  for (const unused of ["usr/share", "usr/include", "var", "boot", "home", "media", "srv"]) {
    rmSync(join(tree, unused), { recursive: true, force: true });
  }

  const kernel = readdirSync(directory).find((file) => file.startsWith(`${kernelPackage}_`));
  await mustRun(
    [
      "bash",
      "-euo",
      "pipefail",
      "-c",
      'dpkg-deb --fsys-tarfile "$1" | tar -x --wildcards "./boot/vmlinuz-*"',
      "bash",
      `${kernel}`,
    ],
    { cwd: directory, signal },
  );
  const [image] = readdirSync(join(directory, "boot"));
  if (image === undefined) throw new Error(`there is no kernel in ${kernelPackage}`);
  return { target, kernel: join(directory, "boot", image), tree };
}

/** The package manager with a state of its own, in which nothing is installed: this machine's knows nothing of it. */
async function privateApt(
  architecture: string,
  directory: string,
  signal: AbortSignal,
): Promise<(args: string[], program?: string) => Promise<string>> {
  for (const folder of ["state/lists/partial", "cache/archives/partial"]) {
    mkdirSync(join(directory, folder), { recursive: true });
  }
  writeFileSync(join(directory, "status"), "");
  const sources = join(directory, "sources.list");
  const keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
  writeFileSync(sources, `deb [signed-by=${keys}] ${await mirror(signal)} ${release} main\n`);
  const settings = {
    "APT::Architecture": architecture,
    "APT::Architectures": architecture,
    "APT::Sandbox::User": "root",
    "Dir::Cache": join(directory, "cache"),
    "Dir::Etc::sourcelist": sources,
    "Dir::Etc::sourceparts": "-",
    "Dir::State": join(directory, "state"),
    "Dir::State::status": join(directory, "status"),
  };
  const options = Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  const apt = (args: string[], program = "apt-get"): Promise<string> =>
    mustRun([program, ...options, ...args], {
      signal,
      cwd: directory,
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
    });
  await apt(["update"]);
  return apt;
}

/** The mirror that this machine's own packages come from. */
async function mirror(signal: AbortSignal): Promise<string> {
  const format = "$(ORIGIN) $(LABEL) $(COMPONENT) $(SITE)";
  const { stdout } = await run(["apt-get", "indextargets", "--format", format], { signal });
  const [, site] = /^Debian Debian main (\S+)$/m.exec(stdout) ?? [];
  if (site === undefined) throw new Error("the package sources of this machine name no Debian mirror");
  return site;
}

/** Puts a file where all machines have their programs. */
export function addProgram({ tree }: Machine, name: string, path: string): void {
  const target = join(tree, "usr/bin", name);
  copyFileSync(path, target);
  chmodSync(target, 0o755);
}

/** Puts files and directories of a directory of this machine in one of the initramfs, under the same names. */
export async function addFiles({ tree }: Machine, from: string, names: readonly string[], place: string): Promise<void> {
  const target = join(tree, place);
  mkdirSync(target, { recursive: true });
  await mustRun(["cp", "-a", "--parents", ...names, target], { cwd: from });
}

/**
 * Starts it, and waits until it is off.
 *
 * @param init The script that is process 1. Its interpreter is busybox, which needs nothing.
 * @param timeout In seconds.
 * @returns What is written to its console, as lines.
 */
export async function boot(
  { target, kernel, tree }: Machine,
  init: string,
  { timeout, signal }: { timeout: number; signal: AbortSignal },
): Promise<string> {
  const { emulator, console } = architectures[target];
  writeFileSync(join(tree, "init"), `#!/usr/bin/busybox sh\n${init}`, { mode: 0o755 });
  const initramfs = join(dirname(tree), "initramfs");
  // Not compressed: the emulated machine would take longer to unpack it than this one takes to copy it.
  const pack = 'cd "$1" && find . | cpio --quiet --create --format=newc --owner=0:0 >"$2"';
  await mustRun(["bash", "-euo", "pipefail", "-c", pack, "bash", tree, initramfs], { signal });
  const { stdout, stderr } = await run(
    [
      // Should this process be killed, so is that.
      ...["setpriv", "--pdeathsig", "KILL"],
      ...[...emulator, "-accel", "tcg,thread=multi", "-smp", "2", "-m", "4G", "-nic", "none", "-nographic", "-no-reboot"],
      ...["-kernel", kernel, "-initrd", initramfs, "-append", `console=${console} panic=-1 quiet loglevel=1`],
    ],
    { timeout, signal },
  );
  return `${stdout}${stderr}`.replaceAll("\r", "");
}
