import type { Section } from "./report.ts";

export function plot(_sections: readonly Section[]): string {
  return "";
}
