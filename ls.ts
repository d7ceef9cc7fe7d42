/**
 * The mount tree as text: what `mounttree ls` prints.
 */
import { getMounts, isBelow, type MountInfo, mountOf, type Propagation } from "./mountinfo.ts";
import { AT, close, O, open, type PathLike, pathText, readlinkat } from "./syscalls.ts";

export interface DrawOptions {
  /** JSON instead of a drawing. Default false. */
  json?: boolean;
  /** How wide a line may be, in columns. Default: as wide as it gets. */
  width?: number | undefined;
  /** Draw with ASCII characters only. Default false. */
  ascii?: boolean;
}

/**
 * The mounts of this process's mount namespace.
 *
 * @param path Only the mount that this lies on, and those mounted on it below the path, in the order of the tree. Default: all.
 * @throws As {@link getMounts} and {@link mountOf}.
 */
export function drawTree(path: PathLike | undefined, options: DrawOptions = {}): string {
  const mounts = path === undefined ? getMounts() : mountsBelow(path);
  if (options.json) return `${JSON.stringify(mounts, bytesAsNumbers, 2)}\n`;
  const ascii = options.ascii === true;
  const rows = [
    { target: "TARGET", source: "SOURCE", type: "FSTYPE", options: "OPTIONS", propagation: "PROPAGATION" },
    ...rowsOf(mounts, ascii),
  ];
  return layOut(rows, options.width, ascii ? "~" : "…");
}

function bytesAsNumbers(_key: string, value: unknown): unknown {
  return value instanceof Uint8Array ? [...value] : value;
}

function mountsBelow(path: PathLike): MountInfo[] {
  const on = mountOf(path);
  const fd = open(path, O.PATH | O.CLOEXEC);
  const resolved = pathText(readlinkat(AT.FDCWD, `/proc/self/fd/${fd}`));
  close(fd);
  const below = getMounts(({ mountPoint }) => isBelow(mountPoint, resolved) && mountPoint !== on.mountPoint);
  // Not all of these: what the mount hides has mount points below the path as well.
  const children = Map.groupBy(below, ({ parentId }) => parentId);
  const order: MountInfo[] = [];
  const add = (mount: MountInfo): void => {
    order.push(mount);
    for (const child of children.get(mount.id) ?? []) add(child);
  };
  add(on);
  return order;
}

interface Row {
  target: string;
  source: string;
  type: string;
  options: string;
  propagation: string;
}

function rowsOf(mounts: readonly MountInfo[], ascii: boolean): Row[] {
  const [branch, last, bar] = ascii ? ["|-", "`-", "| "] : ["├─", "└─", "│ "];
  const ids = new Set(mounts.map((mount) => mount.id));
  const children = Map.groupBy(mounts, (mount) =>
    ids.has(mount.parentId) && mount.parentId !== mount.id ? mount.parentId : undefined,
  );
  const rows: Row[] = [];
  const printable = ascii ? printableAscii : printableText;
  const draw = (mount: MountInfo, edge: string, below: string): void => {
    rows.push({
      target: edge + printable(mount.mountPoint),
      source: printable(mount.root === "/" ? mount.mountSource : `${mount.mountSource}[${mount.root}]`),
      type: printable(mount.fsType),
      options: printable(mergedOptions(mount)),
      propagation: propagationText(mount.propagation),
    });
    const nested = children.get(mount.id) ?? [];
    for (const [index, child] of nested.entries()) {
      const isLast = index === nested.length - 1;
      draw(child, below + (isLast ? last : branch), below + (isLast ? "  " : bar));
    }
  };
  for (const root of children.get(undefined) ?? []) draw(root, "", "");
  return rows;
}

/** The mount's own options, and those of the file system that are not among them, as findmnt(8) shows them. */
function mergedOptions({ mountOptions, superOptions }: MountInfo): string {
  const own = mountOptions.split(",");
  const others = superOptions.split(",").filter((option) => option !== "rw" && !own.includes(option));
  return [...own, ...others].join(",");
}

function propagationText({ shared, master, unbindable }: Propagation): string {
  const words = [shared !== undefined && "shared", master !== undefined && "slave", unbindable && "unbindable"];
  return words.filter((word) => word !== false).join(",") || "private";
}

/** A mount point can hold anything but NUL: what would move the cursor or turn the text around is shown as its bytes. */
export function printableText(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, octal);
}

function printableAscii(text: string): string {
  return text.replace(/[^ -~]/gu, octal);
}

/** As the kernel writes them in the table. */
function octal(character: string): string {
  return [...Buffer.from(character)].map((byte) => `\\${byte.toString(8).padStart(3, "0")}`).join("");
}

const columns = ["target", "source", "type", "options", "propagation"] as const;
const gap = 1;

function layOut(rows: readonly Row[], width = Number.POSITIVE_INFINITY, cutMark: string): string {
  const widths = Object.fromEntries(
    columns.map((column) => [column, Math.max(...rows.map((row) => Bun.stringWidth(row[column])))]),
  );
  // What has to be cut is cut where most is left to read: options first, then sources, then the tree itself.
  let excess = columns.reduce((sum, column) => sum + (widths[column] ?? 0) + gap, -gap) - width;
  for (const column of ["options", "source", "target"] as const) {
    const cut = Math.min(Math.max(excess, 0), (widths[column] ?? 0) - 7);
    if (cut <= 0) continue;
    widths[column] = (widths[column] ?? 0) - cut;
    excess -= cut;
  }
  const lines = rows.map((row) => columns.map((column) => fit(row[column], widths[column] ?? 0, cutMark)).join(" ".repeat(gap)));
  return `${lines.map((line) => line.trimEnd()).join("\n")}\n`;
}

function fit(text: string, width: number, cutMark: string): string {
  const actual = Bun.stringWidth(text);
  if (actual <= width) return text + " ".repeat(width - actual);
  let cut = "";
  for (const character of text) {
    if (Bun.stringWidth(cut + character) > width - 1) break;
    cut += character;
  }
  return `${cut}${cutMark}${" ".repeat(width - 1 - Bun.stringWidth(cut))}`;
}
