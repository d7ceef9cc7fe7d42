/**
 * A place to run the tests in: a container engine, an image made of this machine's own files, and as many privileges
 * as the engine grants. Whatever is made here is handed to the caller's stack, which takes it away again.
 */

import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

export interface Finished {
  exitCode: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  signal?: AbortSignal;
  /** In seconds. What runs longer is killed. */
  timeout?: number;
  env?: Record<string, string | undefined>;
  cwd?: string;
  /** Print what the command prints, as it comes. */
  show?: boolean;
}

async function collect(stream: ReadableStream<Uint8Array>, show: boolean): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    if (show) process.stdout.write(chunk);
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

/** Runs a command without input to its end, whatever its exit status. Throws when the signal is aborted. */
export async function run(command: string[], { signal, timeout, env, cwd, show = false }: RunOptions = {}): Promise<Finished> {
  signal?.throwIfAborted();
  const child = Bun.spawn(command, {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    killSignal: "SIGKILL",
    ...(signal && { signal }),
    ...(timeout && { timeout: timeout * 1000 }),
    ...(env && { env }),
    ...(cwd && { cwd }),
  });
  const [stdout, stderr, exitCode] = await Promise.all([collect(child.stdout, show), collect(child.stderr, show), child.exited]);
  signal?.throwIfAborted();
  return { exitCode, stdout, stderr };
}

/** The same for a command that has to succeed: returns what it printed. */
export async function mustRun(command: string[], options: RunOptions = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await run(command, options);
  if (exitCode !== 0) throw new Error(`${command.slice(0, 3).join(" ")} ended with ${exitCode}: ${(stderr || stdout).trim()}`);
  return stdout.trim();
}

/** Where every distribution has its programs. The caller's own PATH may put something else before them. */
const programs = "/usr/sbin:/usr/bin:/sbin:/bin";

const needed = [
  ...["sh", "bash", "grep", "sed"],
  ...["cat", "ls", "id", "true", "false", "env", "sleep", "mkdir", "rmdir", "mktemp", "mknod", "mkfifo", "ln", "rm", "cp", "mv"],
  ...["chmod", "chown", "stat", "readlink", "realpath", "touch", "truncate", "head", "tail", "wc", "sort", "tr", "cut", "tee"],
  ...["dd", "df", "od", "seq", "sync", "echo", "printf", "test", "pwd", "uname", "nohup", "timeout", "stty", "chroot"],
  ...["mount", "umount", "findmnt", "mountpoint", "unshare", "nsenter", "setpriv", "setsid", "prlimit", "pivot_root"],
  ...["strace", "jq", "mkfs.ext4", "perl"],
];
const welcome = ["ps", "kill", "find", "cmp", "tty", "script", "losetup", "lsns", "capsh"];

const installedBy: Record<string, string> = {
  strace: "strace",
  jq: "jq",
  perl: "perl-base",
  mount: "mount",
  umount: "mount",
  "mkfs.ext4": "e2fsprogs",
};

export function which(program: string): string | undefined {
  return Bun.which(program, { PATH: programs }) ?? undefined;
}

export function canInstall(): boolean {
  return process.geteuid?.() === 0 && existsSync("/etc/debian_version") && which("apt-get") !== undefined;
}

export async function install(packages: string[], signal: AbortSignal): Promise<void> {
  console.log(`installing ${packages.join(", ")} with apt-get`);
  // apt-get verifies as a user of its own and needs a directory for temporary files which that user can write to.
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive", TMPDIR: "/tmp", PATH: programs };
  const lock = ["-o", "DPkg::Lock::Timeout=300"];
  // One source that does not answer makes the update fail; whether the package can be had shows in the next step.
  const update = await run(["apt-get", ...lock, "update"], { signal, env });
  const result = await run(["apt-get", ...lock, "install", "--yes", "--no-install-recommends", ...packages], { signal, env });
  if (result.exitCode === 0) return;
  throw new Error(`apt-get could not install ${packages.join(", ")}:\n${update.stderr}${result.stdout}${result.stderr}`);
}

/** Packs this machine's bun, the tools that the tests call and the libraries of all of them into a tar file. */
async function packImage(directory: string, signal: AbortSignal): Promise<string> {
  const missing = (): string[] => needed.filter((tool) => which(tool) === undefined);
  if (missing().length > 0 && canInstall()) {
    await install([...new Set(missing().map((tool) => installedBy[tool] ?? "util-linux"))], signal);
  }
  if (missing().length > 0) {
    throw new Error(
      `the tests need ${missing().join(", ")}: install strace, jq, perl, util-linux, mount, e2fsprogs and coreutils`,
    );
  }

  const root = join(directory, "root");
  const folders = "dev etc mnt proc results root run sys tmp usr usr/bin usr/lib usr/lib64 usr/sbin work".split(" ");
  for (const folder of [".", ...folders]) {
    mkdirSync(join(root, folder), { recursive: true });
    // Not left to the umask: tests run commands as users other than root.
    chmodSync(join(root, folder), folder === "tmp" ? 0o1777 : 0o755);
  }
  for (const folder of ["bin", "lib", "lib64", "sbin"]) symlinkSync(`usr/${folder}`, join(root, folder));
  writeFileSync(join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
  writeFileSync(join(root, "etc/group"), "root:x:0:\nnogroup:x:65534:\n");

  const tools = [...needed, ...welcome].map(which).filter((path) => path !== undefined);
  // ldd ends with 1 when one of them is static.
  const { stdout } = await run(["ldd", process.execPath, ...tools], { signal, env: { ...process.env, LC_ALL: "C" } });
  const libraries = [...stdout.matchAll(/(\/\S+) \(0x/g)].flatMap((match) => match[1] ?? []);
  const files = new Map([...tools, ...libraries].map((path) => [path, path]));
  files.set("/usr/bin/bun", process.execPath);
  if (existsSync("/etc/ld.so.cache")) files.set("/etc/ld.so.cache", "/etc/ld.so.cache");
  for (const [path, source] of files) {
    // A machine whose /bin and /lib are directories of their own gets a merged /usr as well.
    const target = join(root, path.replace(/^\/(?=(bin|lib\w*|sbin)\/)/, "/usr/"));
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(source, target);
    chmodSync(target, 0o755);
  }
  const archive = join(directory, "image.tar");
  await mustRun(
    ["tar", "--create", "--numeric-owner", "--owner=0", "--group=0", `--file=${archive}`, `--directory=${root}`, "."],
    {
      signal,
    },
  );
  return archive;
}

interface Engine {
  name: string;
  /** What every command line for it begins with. */
  command: string[];
}

async function runningDocker(signal: AbortSignal): Promise<Engine | undefined> {
  const docker = Bun.which("docker");
  if (docker === null) return undefined;
  const { exitCode, stdout } = await run([docker, "version", "--format", "{{.Server.Version}}"], { signal, timeout: 30 });
  return exitCode === 0 ? { name: `Docker ${stdout.trim()}, which was running`, command: [docker] } : undefined;
}

async function podman(signal: AbortSignal): Promise<Engine | undefined> {
  const path = Bun.which("podman");
  if (path === null) return undefined;
  const { exitCode, stdout } = await run([path, "info", "--format", "{{.Version.Version}}"], { signal, timeout: 60 });
  return exitCode === 0 ? { name: `Podman ${stdout.trim()}`, command: [path] } : undefined;
}

/** Removes the control groups that a daemon made below one of its own: an empty one per controller stays behind. */
function removeGroups(name: string): void {
  const top = "/sys/fs/cgroup";
  if (!existsSync(top)) return;
  for (const controller of [".", ...readdirSync(top)]) {
    const group = join(top, controller, name);
    if (existsSync(group)) rmdirSync(group);
  }
}

/** Starts a Docker daemon that shares nothing with one that the machine has or gets. */
async function ownDocker(directory: string, stack: AsyncDisposableStack, signal: AbortSignal): Promise<Engine | undefined> {
  if (!canInstall()) return undefined;
  if (which("dockerd") === undefined || which("docker") === undefined) {
    console.log("no container engine answers, and this is Debian with root");
    // Newer releases have the client in a package of its own.
    const client = await run(["apt-cache", "show", "--no-all-versions", "docker-cli"], { signal });
    await install(["docker.io", ...(client.exitCode === 0 && client.stdout !== "" ? ["docker-cli"] : [])], signal);
    // Where there is a service manager, the package has started a daemon already.
    const started = await runningDocker(signal);
    if (started) return started;
  }
  const docker = which("docker");
  const dockerd = which("dockerd");
  if (docker === undefined || dockerd === undefined) throw new Error("docker.io is installed and has no docker and dockerd");

  const state = join(directory, "docker");
  mkdirSync(state);
  const configuration = join(state, "daemon.json");
  writeFileSync(configuration, "{}");
  const socket = `unix://${join(state, "socket")}`;
  const log = join(state, "log");
  const group = basename(directory);
  // containerd makes this directory wherever its own state is.
  const plugins = "/opt/containerd";
  const hadPlugins = existsSync(plugins);
  // In a mount namespace of its own no mount of the daemon's shows on the host, and all of them end with it. Covered there:
  // the directories in which it would leave something, and the socket of a containerd that could not see these mounts.
  // setpriv: should this process be killed, the daemon stops by itself.
  const output = openSync(log, "w");
  const daemon = Bun.spawn(
    [
      ...["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "slave"],
      ...["sh", "-c", 'for each in /run /etc/docker; do [ ! -d "$each" ] || mount -t tmpfs none "$each"; done; exec "$@"', "sh"],
      ...[dockerd, "--config-file", configuration, "--host", socket, "--pidfile", join(state, "pid")],
      ...["--data-root", join(state, "data"), "--exec-root", join(state, "run")],
      ...["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"],
      ...["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", `/${group}`],
    ],
    // Detached: an interrupt from the terminal must not reach it before its containers are removed.
    { stdin: "ignore", stdout: output, stderr: output, env: { ...process.env, PATH: programs }, detached: true },
  );
  closeSync(output);
  stack.defer(async () => {
    daemon.kill("SIGTERM");
    const timer = setTimeout(() => daemon.kill("SIGKILL"), 30_000);
    await daemon.exited;
    clearTimeout(timer);
    removeGroups(group);
    if (!hadPlugins) rmSync(plugins, { recursive: true, force: true });
  });

  const command = [docker, "--host", socket];
  const patience = Date.now() + 60_000;
  while (Date.now() < patience && daemon.exitCode === null && daemon.signalCode === null) {
    const { exitCode, stdout } = await run([...command, "version", "--format", "{{.Server.Version}}"], { signal, timeout: 30 });
    if (exitCode === 0) return { name: `Docker ${stdout.trim()}, started for this run`, command };
    await Bun.sleep(100);
  }
  throw new Error(`dockerd did not start; its log:\n${readFileSync(log, "utf8")}`);
}

/** Names in the order of their numbers in `capability.h`. */
const capabilities = [
  ...["CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE"],
  ...["NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO"],
  ...["SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME"],
  ...["SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"],
  ...["WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"],
];

/** What a container is given so that it may do everything, in the order of preference. */
function privileges(): string[][] {
  const bounding = BigInt(`0x${readFileSync("/proc/self/status", "utf8").match(/^CapBnd:\s*(\w+)/m)?.[1]}`);
  // A daemon cannot give what it lacks itself, and refuses --privileged then as a whole.
  const absent = capabilities.filter((_, bit) => (bounding & (1n << BigInt(bit))) === 0n);
  return [
    ["--privileged"],
    [
      ...["--cap-add", "ALL", ...absent.flatMap((name) => ["--cap-drop", name])],
      ...["seccomp", "apparmor", "systempaths"].flatMap((name) => ["--security-opt", `${name}=unconfined`]),
      ...["--device-cgroup-rule", "a *:* rwm"],
    ],
  ];
}

// In a user namespace root is not root: half of the tests would test something else.
const probe = 'read -r _ _ users </proc/self/uid_map && [ "$users" = 4294967295 ] && unshare --mount mount -t tmpfs none /mnt';

export interface Containers {
  /** What runs them, and with which privileges, for people. */
  description: string;
  /** Arguments that give a container every privilege there is. */
  privileged: string[];
  /** Runs a command in a new container, with no network, the checkout read-only at /work and `results` at /results. */
  run(dockerArguments: string[], command: string[], options?: { timeout?: number; show?: boolean }): Promise<Finished>;
}

/** Finds an engine that works, starting one if need be, and makes the image. `directory` is a private temporary one. */
export async function openContainers(
  checkout: string,
  directory: string,
  stack: AsyncDisposableStack,
  signal: AbortSignal,
): Promise<Containers> {
  const packing = performance.now();
  const archive = await packImage(directory, signal);
  console.log(`image: bun ${Bun.version} and the tools of this machine, packed in ${seconds(packing)}`);
  const results = join(directory, "results");
  mkdirSync(results);
  let count = 0;

  for (const find of [runningDocker, podman, (signal: AbortSignal) => ownDocker(directory, stack, signal)]) {
    const engine = await find(signal);
    if (!engine) continue;
    console.log(`engine: ${engine.name}`);
    const importing = performance.now();
    const image = await mustRun([...engine.command, "import", archive], { signal }).catch(refused);
    if (image === undefined) continue;
    stack.defer(async () => {
      await mustRun([...engine.command, "rmi", "--force", image], { timeout: 60 });
    });
    console.log(`image: imported in ${seconds(importing)}`);

    const runContainer: Containers["run"] = async (dockerArguments, command, options = {}) => {
      const name = `mounttree-test-${process.pid}-${++count}`;
      const { exitCode, ...output } = await run(
        [
          ...[...engine.command, "run", "--rm", "--name", name, "--init", "--network", "none", "--workdir", "/work"],
          ...["--mount", `type=bind,source=${checkout},target=/work,readonly`],
          ...["--mount", `type=bind,source=${results},target=/results`, "--tmpfs", "/tmp:exec,suid,dev,mode=1777,size=4g"],
          ...["--env", "HOME=/root", "--env", "CI=1", ...dockerArguments, image, ...command],
        ],
        { signal, ...options },
      ).finally(() =>
        // Killing the client leaves the container; one that has ended is gone already, and this fails without harm.
        run([...engine.command, "rm", "--force", name], { timeout: 60 }),
      );
      return { exitCode, ...output };
    };
    for (const privileged of privileges()) {
      const { exitCode, stdout, stderr } = await runContainer(privileged, ["sh", "-c", probe], { timeout: 60 });
      if (exitCode === 0) return { description: `${engine.name}, ${privileged.join(" ")}`, privileged, run: runContainer };
      refused(`${privileged.join(" ")}, exit status ${exitCode}: ${(stderr || stdout).trim()}`);
    }
  }
  throw new Error(
    "no container engine gives full privileges here: install and start Docker (or Podman, as root), or run this as root on Debian, where it installs docker.io and starts it for itself",
  );
}

function refused(reason: unknown): undefined {
  console.log(`  refused, so with less: ${reason instanceof Error ? reason.message : String(reason)}`);
}

export function seconds(since: number): string {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`;
}
