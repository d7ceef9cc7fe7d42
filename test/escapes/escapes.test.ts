/** Who gets out of a root, and how: the table of docs/security.md, which `bun run docs` writes. */
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkout, makeRoot, mountTable, scratchDirectory, shell, userland } from "../compiled.ts";
import { columns, everyone, measure, ways } from "./measure.ts";

const scratch = scratchDirectory();
const before = mountTable();
const attempts = await measure();

/** A row of the table: the way, and for each column who gets out. */
function row(way: string): string {
  const cells = columns.map(({ name }) => {
    const out = everyone.filter((person) =>
      attempts.some((each) => each.way === way && each.column === name && each.person === person && each.out),
    );
    return out.length === 0 ? "holds" : out.length === everyone.length ? "everyone" : out.join(", ");
  });
  return `| ${[way, ...cells].join(" | ")} |`;
}

const head = [`| way | ${columns.map(({ name }) => name).join(" | ")} |`, `| --- ${"| --- ".repeat(columns.length)}|`];
const page = join(checkout, "docs/security.md");
const marks = /(?<=<!-- written by bun run docs -->\n\n).*?(?=\n\n<!-- end -->)/s;

const { MOUNTTREE_DOCS } = process.env;
if (MOUNTTREE_DOCS === "1") {
  writeFileSync(page, readFileSync(page, "utf8").replace(marks, [...head, ...ways.map(row)].join("\n")));
}

describe("docs/security.md says who gets out", () => {
  const documented = marks.exec(readFileSync(page, "utf8"))?.[0].split("\n") ?? [];

  test("by every way and no other, of every root", () => {
    expect(documented.slice(0, 2)).toEqual(head);
    expect(documented.slice(2).map((line) => line.split(" | ")[0])).toEqual(ways.map((way) => `| ${way}`));
  });

  for (const way of ways) {
    test(way, () => expect(row(way)).toBe(documented.find((line) => line.startsWith(`| ${way} |`)) ?? "not in the table"));
  }
});

test("what was mounted for it is gone", () => expect(mountTable()).toBe(before));

test("every way is one: it leads out of some root, or to the secret where there is none", () => {
  expect(ways.filter((way) => !attempts.some((each) => each.way === way && each.out))).toEqual([]);
});

test("without capabilities, only what a service hands it leads a command out of `mounttree run` in namespaces of its own", () => {
  const column = columns.find(({ name }) => name.includes("unshare"))?.name;
  const out = attempts.filter((each) => each.column === column && each.person !== "root" && each.out);
  expect(out.map(({ way, person }) => [way, person])).toEqual([
    ["a unix socket in a bound directory", "uid 0"],
    ["a unix socket in a bound directory", "user"],
  ]);
});

test("a user namespace is to be had inside after pivot and move, and refused after detached and chroot", () => {
  const answers = ["pivot", "move", "detached", "chroot"].map(
    (method) =>
      attempts.find(({ way, column, person }) => person === "user" && column === `\`${method}\`` && /^a user namespace/.test(way))
        ?.refused,
  );
  const refused = "EPERM: operation not permitted, unshare";
  expect(answers).toEqual([undefined, undefined, refused, refused]);
});

test("a directory that is a standard stream leads out of `mounttree run`", async () => {
  const root = makeRoot(join(scratch, "root"));
  writeFileSync(join(scratch, "secret"), "outside");
  const command = [join(checkout, "cli.ts"), "run", ...userland, "--proc", "/proc", root, "cat", "/proc/self/fd/0/secret"];
  expect(await shell('directory=$1; shift; exec "$@" <"$directory"', [scratch, ...command])).toMatchObject({
    status: 0,
    stdout: "outside",
  });
});
