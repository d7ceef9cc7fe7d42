/** Mount tables as the kernel prints them, of what is really mounted or of anything that could be. */
import fc from "fast-check";
import type { MountInfo } from "../mountinfo.ts";

/** As the kernel's seq_path() and seq_escape() write it. */
export function escaped(field: string | Uint8Array): Uint8Array {
  const out: number[] = [];
  for (const byte of Buffer.from(field)) {
    if (byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x5c || byte === 0x23)
      out.push(...Buffer.from(`\\${byte.toString(8).padStart(3, "0")}`));
    else out.push(byte);
  }
  return Uint8Array.from(out);
}

/** The line of an entry. */
export function printed(entry: Omit<MountInfo, "propagation">): Uint8Array {
  const fields: (string | Uint8Array)[] = [
    ...[String(entry.id), String(entry.parentId), `${entry.major}:${entry.minor}`],
    ...[entry.root, entry.mountPointBytes ?? entry.mountPoint, entry.mountOptions, ...entry.optionalFields],
    ...["-", entry.fsType, entry.mountSource, entry.superOptions],
  ];
  return Buffer.concat([...fields.flatMap((field, at) => [Buffer.from(at === 0 ? "" : " "), escaped(field)]), Buffer.from("\n")]);
}

const number = fc.integer({ min: 0, max: 2 ** 31 });
const anyText = fc.string({ unit: "grapheme", minLength: 1, maxLength: 12 }).filter((text) => !text.includes("\0"));
/** What a parser could stumble over. Any text at all takes ten times as long to make. */
const parts = [
  "a",
  "-",
  " ",
  "\t",
  "\n",
  "\\",
  "\\040",
  "#",
  ":",
  ",",
  "=",
  "ä",
  "\uFEFF",
  "\uFFFD",
  "😀",
  "shared:1",
  "unbindable",
  "\r",
  "\x7f",
];
const oddText = fc.array(fc.constantFrom(...parts), { minLength: 1, maxLength: 4 }).map((all) => all.join(""));
const word = fc.oneof({ weight: 1, arbitrary: anyText }, { weight: 19, arbitrary: oddText });
const group = fc.integer({ min: 1, max: 99999 });
const fields = fc.record({
  id: number,
  parentId: number,
  major: number,
  minor: number,
  root: word.map((text) => `/${text}`),
  mountPoint: word.map((text) => `/${text}`),
  mountOptions: word,
  fsType: word,
  mountSource: fc.oneof(word, fc.constant("")),
  superOptions: word,
  propagation: fc.oneof(
    fc.constant({ unbindable: false }),
    fc.constant({ unbindable: true }),
    group.map((shared) => ({ shared, unbindable: false })),
    fc.record({ shared: group, master: group, unbindable: fc.constant(false) }),
    fc.record({ master: group, propagateFrom: group, unbindable: fc.constant(false) }),
  ),
});

function tags({ shared, master, propagateFrom, unbindable }: MountInfo["propagation"]): string[] {
  return [
    ...(shared === undefined ? [] : [`shared:${shared}`]),
    ...(master === undefined ? [] : [`master:${master}`]),
    ...(propagateFrom === undefined ? [] : [`propagate_from:${propagateFrom}`]),
    ...(unbindable ? ["unbindable"] : []),
  ];
}

/** Entries with any text in their fields. */
export const entries: fc.Arbitrary<MountInfo> = fields.map((entry) => ({ ...entry, optionalFields: tags(entry.propagation) }));
