/**
 * What `bun run build` runs: `bun build` with the arguments that package.json gives it. With `--target arm64` (or x64) behind them it makes
 * the same file for that architecture, with its name at the end, around the Bun of that architecture, which comes from npm.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The names of Bun's packages. */
const packages = { x64: "bun-linux-x64", arm64: "bun-linux-aarch64" } as const;

export type Target = keyof typeof packages;

export function isTarget(name: string | undefined): name is Target {
  return name !== undefined && Object.hasOwn(packages, name);
}

/**
 * Fetches the Bun of an architecture, of the version that runs here.
 *
 * @param directory An empty one.
 * @returns The program's path.
 */
export function fetchBun(target: Target, directory: string): string {
  const name = `@oven/${packages[target]}`;
  writeFileSync(join(directory, "package.json"), "{}");
  run(["add", "--exact", "--os=linux", `--cpu=${target}`, `${name}@${Bun.version}`], directory);
  return join(directory, "node_modules", name, "bin/bun");
}

function run(command: string[], cwd?: string): void {
  const { exitCode } = Bun.spawnSync([process.execPath, ...command], {
    ...(cwd !== undefined && { cwd }),
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  });
  if (exitCode !== 0) throw new Error(`bun ${command[0]} ended with ${exitCode}`);
}

if (import.meta.main) {
  const args = process.argv.slice(2);
  const at = args.indexOf("--target");
  if (at === -1) run(["build", ...args]);
  else {
    const [, target] = args.splice(at, 2);
    if (!isTarget(target)) throw new Error(`--target: '${target}' is none of ${Object.keys(packages).join(", ")}`);
    const outfile = args.indexOf("--outfile") + 1;
    const directory = mkdtempSync(join(tmpdir(), "mounttree-bun-"));
    try {
      const others = args.toSpliced(outfile, 1, `${args[outfile]}-linux-${target}`);
      run(["build", ...others, "--compile-executable-path", fetchBun(target, directory)]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  }
}
