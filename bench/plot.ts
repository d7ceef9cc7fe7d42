/** The parts of the table that go by the number of mounts, drawn: a panel each, logarithmic on both axes. */
import { quantile, type Sample } from "./peers.ts";
import { duration, type Section, size } from "./report.ts";

/** A line of a panel; its points are in the order of their mounts. */
interface Series {
  name: string;
  color: string;
  dashes: string;
  points: { mounts: number; sample: Sample }[];
}

const colors = ["#0b62c4", "#c8501e", "#1d7d4a", "#8a3fa0", "#5b6470", "#b8860b"];
const panel = { width: 600, height: 430, left: 78, top: 58, plotWidth: 330, plotHeight: 300 };

export function plot(sections: readonly Section[]): string {
  const drawn = sections.filter(({ drawn }) => drawn);
  const rows = Math.ceil(drawn.length / 2);
  const [width, height] = [2 * panel.width, rows * panel.height + 30];
  const key =
    "Unbroken: mounttree. Dashed, of the same color: the bare system calls in C. Dotted: other programs. A bar lies between the quartiles of the rounds.";
  const panels = drawn.map((section, at) => {
    const [x, y] = [(at % 2) * panel.width, Math.floor(at / 2) * panel.height];
    return `<g transform="translate(${x} ${y})">\n${draw(section)}\n</g>`;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="#222">`,
    "<title>What mounttree costs, by the number of mounts</title>",
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
    ...panels,
    text(panel.left, height - 14, key, "start"),
    "</svg>\n",
  ].join("\n");
}

function draw(section: Section): string {
  const all = seriesOf(section);
  const samples = all.flatMap(({ points }) => points.map(({ sample }) => sample.median));
  const mounts = all.flatMap(({ points }) => points.map((point) => point.mounts));
  const { left, top, plotWidth, plotHeight } = panel;
  const x = scale(Math.min(...mounts), Math.max(...mounts), left, left + plotWidth);
  const [levels, label] = section.unit === "time" ? [ticks(samples, 10), duration] : [ticks(samples, 4), size];
  const y = scale(levels[0] ?? 1, levels.at(-1) ?? 1, top + plotHeight, top);
  const bottom = top + plotHeight;
  return [
    ...title(section.title),
    ...levels.flatMap((value) => [
      `<line x1="${left}" x2="${left + plotWidth}" y1="${y(value)}" y2="${y(value)}" stroke="#ddd"/>`,
      text(left - 8, y(value) + 4, label(value).replace(/\.0+ /, " "), "end"),
    ]),
    ...[...new Set(mounts)].flatMap((count) => [
      `<line x1="${x(count)}" x2="${x(count)}" y1="${top}" y2="${bottom}" stroke="#eee"/>`,
      text(x(count), bottom + 18, count.toLocaleString("en"), "middle"),
    ]),
    text(left + plotWidth / 2, bottom + 38, "mounts", "middle"),
    `<rect x="${left}" y="${top}" width="${plotWidth}" height="${plotHeight}" fill="none" stroke="#888"/>`,
    ...all.map((series) => line(series, x, y)),
    ...all.flatMap(({ name, color, dashes }, at) => {
      const [from, level] = [left + plotWidth + 14, top + 12 + at * 20];
      return [
        `<line x1="${from}" x2="${from + 26}" y1="${level}" y2="${level}" stroke="${color}" stroke-width="2" stroke-dasharray="${dashes}"/>`,
        text(from + 32, level + 4, name, "start"),
      ];
    }),
  ].join("\n");
}

/** What mounttree does is a line without gaps, C's beside it dashed and of the same color, a peer's dotted. */
function seriesOf({ rows }: Section): Series[] {
  const all = new Map<string, Series>();
  let used = 0;
  const add = (name: string, dashes: string, mounts: number, sample: Sample, like?: Series): Series => {
    const series = all.get(name) ?? { name, color: like?.color ?? colors[used++ % colors.length] ?? "", dashes, points: [] };
    all.set(name, series);
    if (!series.points.some((point) => point.mounts === mounts)) series.points.push({ mounts, sample });
    return series;
  };
  for (const { what, mounts, measured, beside } of rows) {
    if (mounts === undefined || typeof measured === "string" || beside === undefined || beside.is === "self") continue;
    const ours = add(what, "", mounts, measured);
    if (typeof beside.measured === "string") continue;
    if (beside.is === "floor") add(`${what}: ${beside.what}`, "6 4", mounts, beside.measured, ours);
    else add(beside.what, "2 3", mounts, beside.measured);
  }
  return [...all.values()];
}

/** Medians, and a bar between the quartiles of the rounds where there is something to see of it. */
function line({ color, dashes, points }: Series, x: (value: number) => number, y: (value: number) => number): string {
  const path = points.map(({ mounts, sample }, at) => `${at === 0 ? "M" : "L"}${x(mounts)} ${y(sample.median)}`).join(" ");
  const marks = points.flatMap(({ mounts, sample }) => {
    const [low, high] = [quantile(sample.rounds, 0.25), quantile(sample.rounds, 0.75)];
    return [
      `<circle cx="${x(mounts)}" cy="${y(sample.median)}" r="3" fill="${color}"/>`,
      `<line x1="${x(mounts)}" x2="${x(mounts)}" y1="${y(low)}" y2="${y(high)}" stroke="${color}" stroke-width="5" stroke-opacity="0.3"/>`,
    ];
  });
  return [`<path d="${path}" fill="none" stroke="${color}" stroke-width="2" stroke-dasharray="${dashes}"/>`, ...marks].join("\n");
}

function title(words: string): string[] {
  // Two lines, if it is long.
  const at = words.length > 70 ? words.lastIndexOf(" ", 70) : words.length;
  return [words.slice(0, at), words.slice(at + 1)].map((part, row) => text(panel.left, 24 + row * 16, part, "start", "bold"));
}

function text(x: number, y: number, words: string, anchor: string, weight = "normal"): string {
  const escaped = words.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  return `<text x="${x}" y="${y}" text-anchor="${anchor}" font-weight="${weight}">${escaped}</text>`;
}

function scale(low: number, high: number, from: number, to: number): (value: number) => number {
  const part = (value: number): number => Math.log(value / low) / Math.log(high / low);
  return (value) => Number((from + (to - from) * part(Math.max(value, low))).toFixed(1));
}

/** From one to another power of the base, so that all values lie between. */
function ticks(values: readonly number[], base: number): number[] {
  const exponent = (value: number): number => Math.log(value) / Math.log(base);
  const [low, high] = [Math.floor(exponent(Math.min(...values))), Math.ceil(exponent(Math.max(...values)))];
  return Array.from({ length: high - low + 1 }, (_, at) => base ** (low + at));
}
