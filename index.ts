/** Change what a Bun program sees as "/", and know that it really happened. */
export { checkRoot, type MethodCheck, type RootCheck } from "./checkroot.ts";
export type { Leak } from "./descriptors.ts";
export * from "./mount.ts";
export {
  findMount,
  fsTypeFilter,
  getMounts,
  type MountFilter,
  type MountInfo,
  MountInfoError,
  mounted,
  mountOf,
  type Propagation,
  parentsFilter,
  parseMountInfo,
  prefixFilter,
  singleEntryFilter,
} from "./mountinfo.ts";
export { type EnterMountNamespaceOptions, enterMountNamespace } from "./namespace.ts";
export type { Reason } from "./reasons.ts";
export { NamespaceError, type NamespaceReason } from "./restart.ts";
export {
  type PutOld,
  type RejectedMethod,
  type RejectionReason,
  type RootMethod,
  SwitchRootError,
  type SwitchRootOptions,
  type SwitchRootResult,
  switchRoot,
} from "./switchroot.ts";
export { type PathLike, SyscallError } from "./syscalls.ts";
