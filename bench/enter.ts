/** Calls `enterMountNamespace`, or does not, and ends: `enter.ts none|mount|user`. With `pool` behind it, asynchronous I/O comes first. */
import { enterMountNamespace } from "../namespace.ts";

const [how, first] = process.argv.slice(2);
if (first === "pool") await Bun.file("/proc/self/comm").text();
if (how !== "none") enterMountNamespace({ user: how === "user" });
