/** The mount table's parser: bytes of every kind are entries, field by field what they should be, or an error that names the first line that is none. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { type MountInfo, MountInfoError, parseMountInfo, readMounts } from "../../mountinfo.ts";
import { seed, someOf } from "../hard.ts";
import { entries, printed } from "../table.ts";
import { holds } from "./fuzz.ts";

// --- What a table says, found out in another way than by the parser: line by line, by splitting

/** The entries, or the number of the first line that is none. */
function expected(table: Buffer): MountInfo[] | number {
  const lines = table.toString("latin1").split("\n");
  if (lines.at(-1) === "") lines.pop();
  const all = lines.map(entryOf);
  const wrong = all.indexOf(undefined);
  return wrong === -1 ? all.filter((entry) => entry !== undefined) : wrong + 1;
}

function entryOf(line: string): MountInfo | undefined {
  const fields = line.split(" ");
  const separator = fields.indexOf("-", 6);
  const [id, parentId, device, root = "", mountPoint = "", mountOptions = ""] = fields;
  const [major, minor, ...others] = (device ?? "").split(":").map(numberOf);
  const numbers = [numberOf(id), numberOf(parentId), major, minor];
  const optional = fields.slice(6, separator).map((field) => decode(field));
  const [fsType = "", source = ""] = fields.slice(separator + 1);
  const superOptions = fields.slice(separator + 3).join(" ");
  if (separator === -1 || fields.length < separator + 4 || others.length > 0) return undefined;
  if ([root, mountPoint, mountOptions, fsType, superOptions, ...fields.slice(6, separator)].includes("")) return undefined;
  if (numbers.some((number) => number === undefined)) return undefined;
  const propagation = propagationOf(optional);
  if (propagation === undefined) return undefined;
  return {
    ...{ id: numbers[0] ?? -1, parentId: numbers[1] ?? -1, major: major ?? -1, minor: minor ?? -1 },
    ...{ root: decode(root), mountPoint: decode(mountPoint), mountOptions: decode(mountOptions) },
    ...{ optionalFields: optional, propagation, fsType: decode(fsType), mountSource: decode(source) },
    superOptions: decode(superOptions),
    ...(isUtf8(bytesOf(mountPoint)) ? {} : { mountPointBytes: new Uint8Array(bytesOf(mountPoint)) }),
  };
}

function numberOf(text: string | undefined): number | undefined {
  return text !== undefined && /^\d+$/.test(text) && Number.isSafeInteger(Number(text)) ? Number(text) : undefined;
}

function propagationOf(fields: readonly string[]): MountInfo["propagation"] | undefined {
  const groups: Record<string, number> = {};
  for (const [tag, name] of [
    ["shared", "shared"],
    ["master", "master"],
    ["propagate_from", "propagateFrom"],
  ] as const) {
    for (const field of fields.filter((each) => each.split(":")[0] === tag)) {
      const number = numberOf(field.split(":")[1]);
      if (number === undefined) return undefined;
      groups[name] = number;
    }
  }
  return { unbindable: fields.some((field) => field.split(":")[0] === "unbindable"), ...groups };
}

function bytesOf(field: string): Buffer {
  const byte = (_: string, digits: string): string => String.fromCharCode(Number.parseInt(digits, 8));
  return Buffer.from(field.replace(/\\([0-3][0-7]{2})/g, byte), "latin1");
}

function decode(field: string): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(field));
}

function isUtf8(bytes: Buffer): boolean {
  return Buffer.from(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes)).equals(bytes);
}

// --- Tables

const real = readFileSync("/proc/self/mountinfo");

/** Random bytes alone never get past the first field: they are mixed with what lines are made of. */
const pieces = [
  " ",
  " ",
  "-",
  " - ",
  "\n",
  "1",
  "0:1",
  "/",
  "rw",
  "\\",
  "\\040",
  "\\134",
  "\\777",
  "#",
  "shared:1",
  "unbindable",
  "\uFEFF",
  ":",
];
const piece = fc.oneof(fc.constantFrom(...pieces), fc.uint8Array({ maxLength: 3 }));
const soup = fc.array(piece, { maxLength: 60 }).map((all) => Buffer.concat(all.map((each) => Buffer.from(each))));
const invented = fc.array(entries, { minLength: 1, maxLength: 5 }).map((all) => Buffer.concat(all.map(printed)));

/** A table, with bytes replaced, ranges taken out or copied elsewhere, and the end cut off. */
const damaged = fc
  .tuple(
    fc.oneof(invented, fc.constant(real)),
    fc.array(
      fc.tuple(fc.nat(5), fc.nat(), fc.nat(40), fc.nat(), fc.oneof(fc.nat(255), fc.constantFrom(0x20, 0x0a, 0x2d, 0x5c, 0x3a))),
      {
        maxLength: 4,
      },
    ),
  )
  .map(([table, changes]) => {
    let bytes = Buffer.from(table);
    for (const [what, from, length, to, value] of changes) {
      const at = from % Math.max(bytes.length, 1);
      const place = to % (bytes.length + 1);
      const range = bytes.subarray(at, at + length);
      if (what <= 2) bytes[at] = value;
      else if (what === 3) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
      else if (what === 4) bytes = Buffer.concat([bytes.subarray(0, place), range, bytes.subarray(place)]);
      else bytes = bytes.subarray(0, place);
    }
    return bytes;
  });

const tables = fc.oneof(soup, damaged, damaged, invented);

/** What comes of parsing: the entries, or the line that the error names. */
function outcome(parse: () => MountInfo[], table: Buffer): MountInfo[] | number {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof MountInfoError)) throw error;
    const line = table.toString("latin1").split("\n")[error.line - 1] ?? "";
    expect(error.text).toBe(new TextDecoder().decode(Buffer.from(line, "latin1")));
    return error.line;
  }
}

function parseInPieces(table: Buffer, sizes: readonly number[], block: number): MountInfo[] {
  const mounts: MountInfo[] = [];
  let at = 0;
  let piece = 0;
  const more = (into: Uint8Array): number => {
    const count = table.copy(into, 0, at, at + (sizes[piece++ % sizes.length] ?? 1));
    at += count;
    return count;
  };
  readMounts(more, mounts, undefined, block);
  return mounts;
}

// --- The tests

test("any bytes are refused by the first wrong line, or are the entries that they say", () => {
  let [accepted, refused] = [0, 0];
  const property = fc.property(tables, (table) => {
    const found = outcome(() => parseMountInfo(table), table);
    expect(found).toEqual(expected(table));
    if (typeof found === "number") refused++;
    else {
      if (found.length > 0) accepted++;
      expect(parseMountInfo(Buffer.concat(found.map(printed)))).toEqual(found);
    }
  });
  holds("the mount table", property, { cases: 1000, seconds: 1 });
  expect(Math.min(accepted, refused)).toBeGreaterThan(10);
});

test("a table that comes in pieces, into a block of any size, is the same table", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 100 }), { minLength: 1, maxLength: 5 });
  const property = fc.property(tables, sizes, fc.integer({ min: 1, max: 300 }), (table, pieces, block) => {
    const found = outcome(() => parseInPieces(table, pieces, block), table);
    expect(found).toEqual(outcome(() => parseMountInfo(table), table));
  });
  holds("the mount table in pieces", property, { cases: 500, seconds: 0.6 });
});

test("this machine's table may be cut anywhere, and is the same table", () => {
  const whole = parseMountInfo(real);
  expect(whole.length).toBeGreaterThan(3);
  const cuts = someOf([...real.keys()].slice(1), 300, seed);
  for (const cut of cuts) {
    const mounts = parseInPieces(real, [cut, real.length], real.length + 1);
    if (!Bun.deepEquals(mounts, whole)) expect({ cut, mounts }).toEqual({ cut, mounts: whole });
  }
  // Larger than the block that getMounts reads into, in pieces as large as the kernel's, and one byte less.
  const table = Buffer.concat(Array(Math.ceil(200_000 / real.length)).fill(real));
  for (const size of [4096, 4095]) expect(parseInPieces(table, [size], 65536)).toEqual(parseMountInfo(table));
});
