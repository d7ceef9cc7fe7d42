/** A process outside that has read the secret, which is in its environment, and waits. */
import { allowTracing } from "./calls.ts";

allowTracing();
console.log("waiting");
await Bun.stdin.text();
