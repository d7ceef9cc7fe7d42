/** Calls and the errors that they are given, what is said of them, and which are no reason to fail. */
import type { RootMethod } from "../../switchroot.ts";
import { errnosOf } from "./errnos.ts";
import { inPlaces, type Place } from "./roots.ts";
import type { Call, Fault } from "./strace.ts";

/** A call and the error that it is given. */
export interface Case {
  call: Call;
  errno: string;
}

export function casesOf(calls: readonly Call[]): Case[] {
  return calls.flatMap((call) => errnosOf(call.name).map((errno) => ({ call, errno })));
}

export function faultOf({ call, errno }: Case): Fault {
  return { call: call.name, count: call.count, errno };
}

function nameOf({ call, errno }: Case): string {
  return `${errno} at ${call.section === "" ? "" : `${call.section}: `}${call.name}${call.text} [${call.count}]`;
}

/** Does something with cases that complains if anything is wrong. */
export async function complaintsAbout(
  cases: readonly Case[],
  judge: (each: Case, place: Place) => Promise<string[]>,
): Promise<string[]> {
  console.log(`${cases.length} faults`);
  const found: string[] = [];
  await inPlaces(cases, async (each, place) => {
    for (const complaint of await judge(each, place)) found.push(`${nameOf(each)}: ${complaint}`);
  });
  return found;
}

// What mounttree's errors call a call, and the error that is the same number under two names.
const names: Readonly<Record<string, string>> = { openat: "open(at)?", execve: "execvp", prlimit64: "prlimit" };
const aliases: Readonly<Record<string, string>> = { EOPNOTSUPP: "ENOTSUP" };

/** Whether a text names the call and the error. */
export function isNamed({ call, errno }: Case, text: string | undefined): boolean {
  return new RegExp(`\\b${codeOf(errno)}: [^,]+, ${names[call.name] ?? call.name}\\b`).test(text ?? "");
}

export function codeOf(errno: string): string {
  return aliases[errno] ?? errno;
}

export function differences<T>(name: string, was: T, is: T): string[] {
  const [one, other] = [JSON.stringify(was), JSON.stringify(is)];
  return one === other ? [] : [`${name} should be ${one}, is ${other}`];
}

/** What strace does not know fails from then on, and is not in its log. */
export function failsOnce({ name }: Call): boolean {
  return name !== "statmount" && name !== "listmount";
}

/** A failure that is no reason to fail: what is done instead is as good. */
export interface Tolerated {
  /** Section, call and arguments. */
  call: RegExp;
  /** Default: whatever the error is. */
  errnos?: readonly string[];
  /** A method for which it is one. */
  not?: RootMethod;
}

export function isTolerated(all: readonly Tolerated[], call: string, errno: string, method: RootMethod): boolean {
  return all.some((each) => each.call.test(call) && (each.errnos?.includes(errno) ?? true) && (!each.not || each.not !== method));
}
