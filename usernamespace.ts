/** A user namespace, in which a mount namespace needs no privileges. */
import { isOlder } from "./diagnose.ts";
import { CAP, CLONE, close, hasCapability, O, open, pathText, readFile, SyscallError, unshare, write } from "./syscalls.ts";

/**
 * Puts this process, which must have one thread only, in a user namespace and a mount namespace of its own. Only the caller's user and
 * group exist in it; everybody else's files belong to nobody.
 *
 * @param mapRoot Whether the caller is root in it; otherwise what it was. Either way this process has all capabilities over the
 *   namespaces, until an execve(2) in which it is not root.
 * @throws SyscallError as unshare(2): `EINVAL` if there is more than one thread, `EPERM` if this process was chrooted or user namespaces
 *   are not for its user; `EPERM` also for user 0 without CAP_SETFCAP; `ENOSPC` if there are as many of them as there may be.
 *   Then nothing has changed. If a map cannot be written, as open(2) or write(2): then this process is in both namespaces, as nobody.
 * @see user_namespaces(7).
 */
export function enterUserNamespace(mapRoot: boolean): void {
  // Inside, before there is a map, it is nobody.
  const maps = userNamespaceMaps(mapRoot);
  unshare(CLONE.NEWUSER | CLONE.NEWNS);
  for (const [path, text] of maps) writeText(path, text);
}

/** What is written to which file in a new user namespace, in this order, for its one user and its one group to be the caller. */
export function userNamespaceMaps(mapRoot: boolean): [path: string, text: string][] {
  const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0];
  if (uid === 0) requireSetfcap();
  return [
    // Without that, no group may be mapped: to leave a group could give rights.
    ["/proc/self/setgroups", "deny"],
    ["/proc/self/uid_map", `${mapRoot ? 0 : uid} ${uid} 1`],
    ["/proc/self/gid_map", `${mapRoot ? 0 : gid} ${gid} 1`],
  ];
}

/** Writes a text to a file of /proc, in one call. */
function writeText(path: string, text: string): void {
  const fd = open(path, O.WRONLY | O.CLOEXEC);
  try {
    write(fd, new TextEncoder().encode(text));
  } catch (error) {
    throw error instanceof SyscallError ? new SyscallError("write", -error.errno, path) : error;
  } finally {
    close(fd);
  }
}

/** Since Linux 5.12 user 0 can be mapped only by who could set file capabilities as that user (user_namespaces(7)). */
function requireSetfcap(): void {
  if (hasCapability(CAP.SETFCAP) || isOlder(pathText(readFile("/proc/sys/kernel/osrelease")), "5.12")) return;
  const message =
    "to map user 0 takes CAP_SETFCAP, which this process does not have (run it as another user; in a container, start that with '--cap-add SETFCAP')";
  const EPERM = 1;
  throw new SyscallError("write", EPERM, "/proc/self/uid_map", undefined, { reason: "no-cap-setfcap", message });
}
