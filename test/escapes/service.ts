/** Listens at a unix socket, and hands a descriptor of its "/" to everyone who connects. */
import { chmodSync } from "node:fs";
import { close, O, open } from "../../syscalls.ts";
import { accept, listenAt, sendDescriptor } from "./calls.ts";

const address = process.argv[2] ?? "";
const root = open("/", O.RDONLY | O.DIRECTORY);
const socket = listenAt(address);
if (!address.startsWith("@")) chmodSync(address, 0o666);
console.log("listening");
for (;;) {
  const caller = accept(socket);
  sendDescriptor(caller, root);
  close(caller);
}
