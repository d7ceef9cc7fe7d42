/**
 * Switches to a root and goes on: `goes-on ROOT [METHOD]...`. Prints what it sees, as JSON; waits for a line, so that it can be looked at
 * from outside; and looks again.
 */
import { openProc } from "../../checks.ts";
import { type RootMethod, switchRoot } from "../../switchroot.ts";
import { observe, startReader } from "../observe.ts";

const [path = "", ...wanted] = process.argv.slice(2);
const every: RootMethod[] = ["pivot", "move", "detached", "chroot"];
const methods = every.filter((method) => wanted.includes(method));
const reader = await startReader();
const proc = openProc();
const { method, rejected } = switchRoot(path, methods.length > 0 ? { methods } : {});
console.log(JSON.stringify({ method, rejected, seen: await observe(reader, proc) }));
for await (const _ of console) break;
console.log(JSON.stringify({ seen: await observe(reader, proc) }));
process.exit(0);
