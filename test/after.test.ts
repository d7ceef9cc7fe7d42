/** What changes for a Bun program after the switch: the README's list. */
import { expect, test } from "bun:test";
import * as fs from "node:fs";
import { switchRoot } from "../switchroot.ts";
import { child } from "./child.ts";
import { makeRoot } from "./observe.ts";

test("after the switch, modules, commands and /dev/null are those of the new root, and connections go on", async () => {
  const outcome = await child(async (path: string) => {
    makeRoot(path);
    fs.rmSync(`${path}/dev/null`);
    fs.rmdirSync(`${path}/dev`);
    fs.writeFileSync(`${path}/module.ts`, "export const from: string = 'the new root';");
    const server = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("served") });
    switchRoot(path, { methods: ["detached"] });
    const start = (stdio: "ignore" | "pipe"): string => {
      try {
        return Bun.spawn(["/bin/true"], { stdio: [stdio, stdio, stdio] }).pid > 0 ? "started" : "no";
      } catch (error) {
        return error instanceof Error ? error.message : "";
      }
    };
    const { from } = await import(`${"/module.ts"}`);
    const bun = Bun.spawnSync(["/usr/bin/bun", "-e", "0"], { stdio: ["inherit", "inherit", "inherit"] });
    const answer = await (await fetch(`http://127.0.0.1:${server.port}/`)).text();
    server.stop(true);
    return {
      from,
      ignore: start("ignore"),
      pipe: start("pipe"),
      answer,
      bunWithoutProc: bun.success,
      cwd: process.cwd(),
    };
  }, "/tmp/after");
  fs.rmSync("/tmp/after", { recursive: true });
  expect(outcome).toEqual({
    from: "the new root",
    ignore: expect.stringContaining("ENOENT"),
    pipe: "started",
    answer: "served",
    bunWithoutProc: false,
    cwd: "/",
  });
});
