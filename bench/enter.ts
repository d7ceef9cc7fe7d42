/**
 * Calls `enterMountNamespace`, or does not, and ends: `enter.ts none|exec|mount|user`. `exec`: it executes itself once more, and no more than
 * that. With `pool` behind it, asynchronous I/O comes first.
 */
import { enterMountNamespace } from "../namespace.ts";
import { strings } from "../restart.ts";
import { execve } from "../syscalls.ts";

const [how, first] = process.argv.slice(2);
if (first === "pool") await Bun.file("/proc/self/comm").text();
if (how === "mount" || how === "user") enterMountNamespace({ user: how === "user" });
if (how === "exec" && !("AGAIN" in Bun.env)) {
  execve("/proc/self/exe", strings("/proc/self/cmdline"), [...strings("/proc/self/environ"), "AGAIN=1"]);
}
