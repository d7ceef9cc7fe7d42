/** Every `reason` that an error can carry. What each means, and what to do about it, is in docs/errors.md. */
export const reasons = [
  // What a method of `switchRoot` needs, looked at before anything is changed (checks.ts).
  "no-cap-sys-admin",
  "no-cap-sys-chroot",
  "root-detached",
  "namespace-shared",
  "chrooted",
  "initramfs",
  "shared-mount",
  "stray-thread",
  "not-verified",
  // What `switchRoot` was told to refuse.
  "open-descriptors",
  // Why the kernel refused a call (diagnose.ts).
  "already-mounted",
  "apparmor",
  "apparmor-restrict-userns",
  "fs-not-in-userns",
  "kernel-too-old",
  "locked-below",
  "locked-options",
  "max-mnt-namespaces",
  "max-user-namespaces",
  "mount-locked",
  "mount-max",
  "namespace-not-owned",
  "new-root-on-root-mount",
  "new-root-not-mount-point",
  "no-cap-setfcap",
  "no-user-namespaces",
  "not-mount-point",
  "not-same-kind",
  "pid-namespace-not-owned",
  "proc-covered",
  "put-old-not-below",
  "put-old-on-root-mount",
  "root-not-mount-point",
  "seccomp",
  "selinux",
  "source-unreachable",
  "target-unreachable",
  "unbindable",
  "userns-clone-disabled",
  "userns-in-chroot",
  "userns-threads",
  "userns-unmapped",
  // The kernel refused, and the cause could not be found; or it need not be looked for, since the error's code says it.
  "unknown",
  "refused",
] as const;

/** A stable identifier of why something was refused. */
export type Reason = (typeof reasons)[number];
