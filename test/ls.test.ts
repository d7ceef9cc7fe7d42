/** `mounttree ls`: the mount tree as people read it, and as programs do. */

import { describe, expect, test } from "bun:test";
import { closeSync, mkdirSync, openSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { drawTree } from "../ls.ts";
import { getMounts } from "../mountinfo.ts";
import { F, fcntl, O } from "../syscalls.ts";
import { bothWays, type Finished, run, scratchDirectory, shell, shellApart, watchMountTable } from "./compiled.ts";

const scratch = scratchDirectory();
const ways = await bothWays(scratch);
watchMountTable();

const top = join(scratch, "top");
mkdirSync(top);
writeFileSync(join(scratch, "file"), "");

/** The first column, without the blanks that fill it up. */
function targets(stdout: string): string[] {
  const lines = stdout.trimEnd().split("\n");
  const width = lines[0]?.indexOf("SOURCE") ?? 0;
  return lines.slice(1).map((line) => line.slice(0, width).trimEnd());
}

/** Mounts a tmpfs with this name as its source on a directory that is made. */
const define = 'make() { mkdir -p "$2"; mount -t tmpfs "$1" "$2"; }; top=$1; shift; make top "$top"; ';

for (const { name, command: mounttree } of ways) {
  const english = { env: { ...process.env, LC_ALL: "C.UTF-8" } };
  /** In a mount namespace of its own with a tmpfs on `$top`: `script`, then `ls` with `options`. */
  const apart = (script: string, options: string, locale = "C.UTF-8"): Promise<Finished> =>
    shellApart(`${define} ${script}\nexport LC_ALL=${locale}\n"$@" ls ${options}`, [top, ...mounttree]);

  describe(`ls, ${name}`, () => {
    describe("draws", () => {
      test("what is mounted on what as a tree", async () => {
        const script = `
          make a "$top/a"; make b "$top/a/b"; make c "$top/a/c"; make d "$top/a/c/d"
          mkdir "$top/e" "$top/a/plain"; mount --bind "$top/a/plain" "$top/e"; mount -o remount,bind,ro,nosuid "$top/e"`;
        const { status, stdout, stderr } = await apart(script, '"$top"');
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        expect(stdout.replaceAll(top, "TOP").replaceAll(/ +/g, " ")).toBe(
          `${[
            "TARGET SOURCE FSTYPE OPTIONS PROPAGATION",
            "TOP top tmpfs rw,relatime private",
            "├─TOP/a a tmpfs rw,relatime private",
            "│ ├─TOP/a/b b tmpfs rw,relatime private",
            "│ └─TOP/a/c c tmpfs rw,relatime private",
            "│ └─TOP/a/c/d d tmpfs rw,relatime private",
            "└─TOP/e a[/plain] tmpfs ro,nosuid,relatime private",
          ].join("\n")}\n`,
        );
        expect(targets(stdout).at(-2)).toBe(`│   └─${top}/a/c/d`);
        // Every column begins in one place.
        const lines = stdout.trimEnd().split("\n");
        for (const header of ["FSTYPE", "OPTIONS", "PROPAGATION"]) {
          const at = lines[0]?.indexOf(header) ?? -1;
          for (const line of lines) expect(line.slice(at - 1, at + 1)).toMatch(/^ \S$/);
        }
      });

      test("mounts that lie on one another below each other", async () => {
        const { stdout } = await apart(
          'make one "$top/s"; make two "$top/s"; make three "$top/s"; make in "$top/s/in"',
          '"$top"',
        );
        const s = `${top}/s`;
        expect(targets(stdout)).toEqual([top, `└─${s}`, `  └─${s}`, `    └─${s}`, `      └─${s}/in`]);
      });

      test("the root of a process that was chrooted, whose parent it does not see", async () => {
        const script = 'for each in usr proc work tmp dev; do mkdir "$top/$each"; mount --rbind /$each "$top/$each"; done';
        const { stdout } = await shellApart(
          `${define} ${script}; ln -s usr/bin usr/lib usr/lib64 "$top"; LC_ALL=C.UTF-8 chroot "$top" "$@" ls`,
          [top, ...mounttree],
        );
        expect(targets(stdout)[0]).toBe("/");
        expect(targets(stdout).filter((target) => target.startsWith("/"))).toEqual(["/"]);
      });

      test("how events propagate", async () => {
        const script = `
          for each in private shared slave both unbindable; do make "$each" "$top/$each"; done
          mount --make-shared "$top/shared"; mount --make-unbindable "$top/unbindable"
          for each in slave both; do
            mkdir "$top/of-$each"; mount --make-shared "$top/$each"; mount --bind "$top/$each" "$top/of-$each"; mount --make-slave "$top/of-$each"
          done
          mount --make-shared "$top/of-both"`;
        const { stdout } = await apart(script, '"$top"');
        const words = stdout.split("\n").map((line) => [/\S*top\/(\S+)/.exec(line)?.[1], line.split(" ").at(-1)]);
        expect(Object.fromEntries(words.filter(([mount]) => mount !== undefined))).toEqual({
          private: "private",
          shared: "shared",
          slave: "shared",
          both: "shared",
          unbindable: "unbindable",
          "of-slave": "slave",
          "of-both": "shared,slave",
        });
      });

      test("with ASCII alone where the locale is not a UTF-8 one", async () => {
        const script = 'make wide "$top/ä€"; make a "$top/ä€/a"; make b "$top/b"';
        for (const locale of ["C", "POSIX", '""; LANG=de_DE.ISO-8859-1']) {
          const { stdout } = await apart(script, '"$top"', locale);
          const escaped = `${top}/\\303\\244\\342\\202\\254`;
          expect(targets(stdout)).toEqual([top, `|-${escaped}`, `| \`-${escaped}/a`, `\`-${top}/b`]);
        }
        for (const locale of ["C.UTF-8", "de_DE.utf8"]) {
          expect(targets((await apart(script, '"$top"', locale)).stdout)).toContain(`├─${top}/ä€`);
        }
      });

      test("what would break a line, move the cursor or turn the text around as octal bytes", async () => {
        const names = [
          "new\nline",
          "tab\there",
          "esc\x1b[2Jape",
          "back\rwards",
          "del\x7f",
          "nel\u{85}",
          "\u{202e}turned",
          "line\u{2028}",
        ];
        const script = 'for each in "$@"; do [ "$each" = -- ] && break; make odd "$top/$each"; shift; done; shift';
        const { stdout } = await shellApart(`${define} ${script}; LC_ALL=C.UTF-8 "$@" ls "$top"`, [
          top,
          ...names,
          "--",
          ...mounttree,
        ]);
        const shown = targets(stdout).slice(1);
        expect(shown.map((target) => target.slice(target.lastIndexOf("/") + 1))).toEqual([
          ...["new\\012line", "tab\\011here", "esc\\033[2Jape", "back\\015wards"],
          ...["del\\177", "nel\\302\\205", "\\342\\200\\256turned", "line\\342\\200\\250"],
        ]);
        for (const line of stdout.trimEnd().split("\n")) expect(line).toMatch(/ (PROPAGATION|private)$/);
      });
    });

    describe("narrows to PATH:", () => {
      test("the mount that it lies on, and what is mounted below it", async () => {
        const script = 'make a "$top/a"; make b "$top/a/b"; make ab "$top/ab"; mkdir "$top/a/plain"; make c "$top/a/plain/c"';
        const list = async (path: string) => targets((await apart(script, path)).stdout).map((each) => each.replace(top, "TOP"));
        expect(await list('"$top/a"')).toEqual(["TOP/a", "├─TOP/a/b", "└─TOP/a/plain/c"]);
        expect(await list('"$top/a/plain"')).toEqual(["TOP/a", "└─TOP/a/plain/c"]);
        expect(await list('-- "$top/a/plain/../b"')).toEqual(["TOP/a/b"]);
        expect(await list('"$top"')).toEqual(["TOP", "├─TOP/a", "│ ├─TOP/a/b", "│ └─TOP/a/plain/c", "└─TOP/ab"]);
        expect(await list("/dev/null")).toEqual(["/dev"]);
      });

      test("what it hides is left out, and a mount that lies on one below it is not", async () => {
        const script = `
          make under "$top/o"; make lost "$top/o/lost"; make lost "$top/o/in"; make over "$top/o"
          make in "$top/o/in"; make on "$top/o/in"; make deep "$top/o/in/deep"`;
        const { stdout } = await apart(script, '"$top/o"');
        const o = `${top}/o`;
        expect(targets(stdout)).toEqual([o, `└─${o}/in`, `  └─${o}/in`, `    └─${o}/in/deep`]);
        expect(stdout).not.toMatch(/ (under|lost) /);
        const json: { mountSource: string }[] = JSON.parse((await apart(script, '--json "$top/o"')).stdout);
        expect(json.map(({ mountSource }) => mountSource)).toEqual(["over", "in", "on", "deep"]);
      });

      test("PATH's own mount comes first, also if it was put there after those below it", async () => {
        const script =
          'make old "$top/m"; make b "$top/m/b"; make c "$top/m/b/c"; make new "$top/n"; mkdir "$top/n/b"; mount --move "$top/m/b" "$top/n/b"';
        const { stdout } = await apart(script, '--json "$top/n"');
        const json: { mountSource: string }[] = JSON.parse(stdout);
        expect(json.map(({ mountSource }) => mountSource)).toEqual(["new", "b", "c"]);
      });

      test("one that is missing is an error, and so are two", async () => {
        for (const [paths, message] of [
          [[join(scratch, "nowhere")], /^mounttree: ENOENT: no such file or directory, \w+ '.*\/nowhere'\n$/],
          [[join(scratch, "file/below")], /^mounttree: ENOTDIR: /],
          [["/", "/tmp"], /^mounttree: ls: one PATH at a time, not '\/tmp' as well\n/],
        ] as const) {
          const { status, stdout, stderr } = await run([...mounttree, "ls", ...paths]);
          expect(stderr).toMatch(message);
          expect({ status, stdout }).toEqual({ status: 125, stdout: "" });
        }
      });
    });

    describe("--json", () => {
      test("is what getMounts() returns", async () => {
        const { status, stdout, stderr } = await run([...mounttree, "ls", "--json"]);
        expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
        expect(JSON.parse(stdout)).toEqual(getMounts());
        const tmp = getMounts((mount) => mount.mountPoint === "/tmp" || mount.mountPoint.startsWith("/tmp/"));
        expect(JSON.parse((await run([...mounttree, "ls", "/tmp", "--json"])).stdout)).toEqual(tmp);
      });

      test("has the bytes of a mount point that is not UTF-8", async () => {
        const { stdout } = await apart(`make odd "$top/$(printf 'o\\377')"`, '--json "$top"');
        const bytes = [...Buffer.from(`${top}/o`), 0xff];
        expect(JSON.parse(stdout)[1]).toMatchObject({ mountPoint: `${top}/o\u{fffd}`, mountPointBytes: bytes });
      });
    });

    describe("on a terminal", () => {
      const onTerminal = async (cols: number): Promise<string[]> => {
        let output = "";
        const terminal = {
          cols,
          rows: 24,
          data: (_terminal: unknown, data: Uint8Array) => void (output += Buffer.from(data).toString()),
        };
        const child = Bun.spawn([...mounttree, "ls"], { terminal, ...english, timeout: 20_000 });
        expect(await child.exited).toBe(0);
        return output.trimEnd().split("\r\n");
      };

      test("fits its width", async () => {
        for (const cols of [80, 100]) {
          const lines = await onTerminal(cols);
          expect(lines.length).toBe(getMounts().length + 1);
          expect(Math.max(...lines.map((line) => Bun.stringWidth(line)))).toBe(cols);
          expect(lines.join()).toContain("…");
        }
      });

      test("cuts nothing off where all of it fits, or where it is no terminal", async () => {
        const piped = await run([...mounttree, "ls"], english);
        expect(piped.stdout).not.toContain("…");
        expect((await onTerminal(4000)).join("\n")).toBe(piped.stdout.trimEnd());
      });
    });

    describe("in a pipe", () => {
      const many = 'for each in $(seq 300); do mount -t tmpfs "$each" "$top"; done';
      const mounts = 300 + 1 + getMounts().length;

      test("whose reader goes away, ends quietly", async () => {
        const ended = await shellApart(`${define} ${many}; { "$@" ls --json || echo "ended with $?" >&2; } | head -n 1`, [
          top,
          ...mounttree,
        ]);
        expect(ended).toMatchObject({ stdout: "[\n", stderr: "ended with 141\n" });
        const small = await shell('{ sleep 0.05; "$@" ls || echo "ended with $?" >&2; } | true', mounttree);
        expect(small).toMatchObject({ stdout: "", stderr: "ended with 141\n" });
      });

      test("whose reader is slow, loses nothing, and leaves it blocking", async () => {
        const script = `"$@" ls --json | { sleep 0.2; grep -c '"mountPoint"'; }; { "$@" ls; grep ^flags /proc/self/fdinfo/1; } | tail -n 1`;
        const { stdout, stderr } = await shellApart(`${define} ${many}; ${script}`, [top, ...mounttree]);
        expect({ stdout, stderr }).toEqual({ stdout: `${mounts}\nflags:\t01\n`, stderr: "" });
      });

      test("that was non-blocking when it was handed down, loses nothing", async () => {
        const pipe = join(scratch, `pipe-${name}`);
        await run(["mkfifo", pipe]);
        const [reading, writing] = [openSync(pipe, O.RDONLY | O.NONBLOCK), openSync(pipe, O.WRONLY | O.NONBLOCK)];
        fcntl(reading, F.SETFL, 0);
        const script = `${define} ${many}; exec "$@" ls --json >&3`;
        const command = ["unshare", "--mount", "sh", "-euc", script, "sh", top, ...mounttree];
        const writer = Bun.spawn(command, { stdio: ["ignore", "ignore", "pipe", writing], timeout: 20_000 });
        const reader = Bun.spawn(["sh", "-c", "sleep 0.5; grep -c mountPoint.:"], {
          stdio: [reading, "pipe", "pipe"],
          timeout: 20_000,
        });
        for (const fd of [reading, writing]) closeSync(fd);
        expect(await writer.stderr.text()).toBe("");
        expect(await reader.stdout.text()).toBe(`${mounts}\n`);
      });
    });
  });
}

describe("drawTree", () => {
  test("fits every width that leaves a few characters of each column", () => {
    for (const ascii of [false, true]) {
      const whole = drawTree(undefined, { ascii });
      const widest = Math.max(...whole.split("\n").map((line) => Bun.stringWidth(line)));
      for (const width of [60, 72, 80, 120, 200, widest - 1, widest]) {
        const lines = drawTree(undefined, { width, ascii }).trimEnd().split("\n");
        expect(lines.length).toBe(getMounts().length + 1);
        for (const line of lines) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(width);
        // What tells the mounts apart, and how they propagate, is never cut away altogether.
        for (const line of lines) expect(line).toMatch(/ (PROPAGATION|private|shared|slave|shared,slave|unbindable)$/);
        if (ascii) expect(lines.join("")).toMatch(/^[ -~]*$/);
      }
      expect(drawTree(undefined, { width: widest, ascii })).toBe(whole);
    }
  });
});
