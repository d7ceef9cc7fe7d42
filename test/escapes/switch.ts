/** A program that switches to a root by one method, and executes a command there. Takes a {@link Plan} as its argument. */
import { type RootMethod, switchRoot } from "../../switchroot.ts";
import { execvp, F, fcntl, MS, mount } from "../../syscalls.ts";

export interface Plan {
  method: RootMethod;
  root: string;
  /** What is bound in the root, and where. */
  bind: Record<string, string>;
  /** The descriptors that the command gets. */
  keep: number[];
  command: [string, ...string[]];
}

const { method, root, bind, keep, command }: Plan = JSON.parse(process.argv[2] ?? "");
mount("proc", `${root}/proc`, "proc", 0, null);
for (const [place, source] of Object.entries(bind)) mount(source, `${root}${place}`, null, MS.BIND, null);
switchRoot(root, { methods: [method] });
for (const fd of keep) fcntl(fd, F.SETFD, 0);
execvp(command);
