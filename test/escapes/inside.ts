/**
 * Runs in a root, as whoever is to be kept in, and tries to get out. Takes a `Place` and the number of a group of ways, and prints
 * a line of JSON for each.
 */
import { readFileSync } from "node:fs";
import { SyscallError, write } from "../../syscalls.ts";
import { groups, orRefused, type Place } from "./ways.ts";

export interface Line {
  /** Its effective capabilities. */
  capabilities?: string;
  /** It stands in the directory that is to be moved. */
  standing?: boolean;
  /** A way, and what was read on it; if nothing, what the kernel said. */
  way?: string;
  seen?: string;
  refused?: string;
}

function print(line: Line): void {
  write(1, Buffer.from(`${JSON.stringify(line)}\n`));
}

const place: Place = JSON.parse(process.argv[2] ?? "");
const group = groups[Number(process.argv[3])];
if (group === undefined) throw new Error(`there is no group ${process.argv[3]}`);
print({ capabilities: /^CapEff:\s*(\w+)$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? "" });
group.before?.();
for (const [way, tryIt] of Object.entries(group.ways)) {
  const seen = orRefused(() => tryIt(place));
  print({ way, ...(seen instanceof SyscallError ? { refused: seen.message } : seen && { seen }) });
}
