// Cards about reads: where they come from, how much of them from memory, how long they wait, which
// were slow.

import { Chart } from "./charts.js";
import * as format from "./format.js";
import { cell, fill, number, setText, swatch, update } from "./tables.js";
import { name, term } from "./terms.js";

export const SOURCES = ["page_cache", "resident", "cache", "disk", "verbs", "local", "tcp", "http", "lower"];
const BY_DAEMON = SOURCES.slice(2);
const LAYERS = ["page_cache", "resident", "cache", "overall"];

const series = (keys) => keys.map((key) => ({ label: name(key), color: key }));
const named = (key) => swatch(term(key), key);
const perSecond = (bytes, point) => (bytes == null ? null : bytes / point.seconds);
const sum = (values) => values.reduce((all, value) => all + (value ?? 0), 0);

const charts = {
  sources: new Chart("sources-chart", { title: "Bytes read per second, by source", series: series(SOURCES), format: format.rate, stacked: true }),
  ratios: new Chart("ratios-chart", { title: "Hit ratios", series: series(LAYERS), format: format.percent, range: [0, 1.02] }),
  throughput: new Chart("throughput-chart", {
    title: "Bytes read per second", format: format.rate,
    series: [{ label: "all reads", color: "overall" }, { label: "asked of the daemon", color: "cache" }],
  }),
  latency: new Chart("latency-chart", { title: "Waits of 99 % of the reads, by source", series: series(BY_DAEMON), format: format.duration, log: true }),
  latencyHalf: new Chart("latency-half-chart", { title: "Waits of half of the reads, by source", series: series(BY_DAEMON), format: format.duration, log: true }),
};

export function showReadHistory(points) {
  const xs = points.map((point) => point.unix_ms / 1000);
  const columns = (keys, of) => keys.map((key) => points.map((point) => of(point, key) ?? null));
  charts.sources.set(xs, columns(SOURCES, (p, key) => perSecond(p.bytes[key], p)));
  charts.ratios.set(xs, columns(LAYERS, (p, key) => p.hit_ratios[key]));
  charts.throughput.set(xs, [
    points.map((p) => perSecond(sum(Object.values(p.bytes)), p)),
    points.map((p) => perSecond(sum(BY_DAEMON.map((key) => p.bytes[key])), p)),
  ]);
  charts.latency.set(xs, columns(BY_DAEMON, (p, key) => p.p99_seconds[key]));
  charts.latencyHalf.set(xs, columns(BY_DAEMON, (p, key) => p.p50_seconds[key]));
}

function showSources(now, point) {
  const all = sum(Object.values(now.bytes_by_source));
  const unused = SOURCES.filter((source) => now.bytes_by_source[source] === 0);
  const used = SOURCES.filter((source) => !unused.includes(source));
  fill("sources-table", ["source", "now", "since the start", "share", "reads"], used.map((source) => {
    const bytes = now.bytes_by_source[source];
    return [
      named(source),
      number(point?.bytes[source] === undefined ? "–" : format.rate(perSecond(point.bytes[source], point))),
      number(bytes === undefined ? "not seen" : format.bytes(bytes), `bytes.${source}`, bytes ?? ""),
      number(format.percent(all > 0 && bytes !== undefined ? bytes / all : null)),
      number(now.reads[source] ? format.count(now.reads[source].count) : "–", `reads.${source}`, now.reads[source]?.count ?? ""),
    ];
  }));
  const nodes = unused.flatMap((source, i) => [i === 0 ? "Nothing came from: " : ", ", term(source)]);
  update(document.getElementById("sources-note"), nodes.map((node) => (typeof node === "string" ? document.createTextNode(node) : node)));
}

// Which sources had brought what is read from the cache.
function showFound(now) {
  const found = Object.entries(now.found_in_cache);
  const all = sum(found.map(([, bytes]) => bytes));
  fill("found-table", ["brought into the cache by", "read from there", "share"], found.map(([source, bytes]) => [
    named(source), number(format.bytes(bytes), `found.${source}`, bytes), number(format.percent(all > 0 ? bytes / all : null)),
  ]));
}

function showRatios(now) {
  const windows = Object.keys(now.hit_ratios).sort((a, b) => parseInt(a, 10) - parseInt(b, 10));
  const minutes = (window) => (window === "1m" ? "last minute" : `last ${parseInt(window, 10)} minutes`);
  fill("ratios-table", ["layer", ...windows.map(minutes)], LAYERS.map((layer) => [
    named(layer),
    ...windows.map((window) => {
      const ratio = now.hit_ratios[window][layer];
      return number(format.percent(ratio), `ratio.${layer}.${window}`, ratio ?? "NaN");
    }),
  ]));
}

function showThroughput(now) {
  fill("throughput-table", ["way", "reads", "bytes"], Object.entries(now.kernel?.reads ?? {}).map(([way, reads]) => [
    { node: term(way) }, number(format.count(reads.count), `way.reads.${way}`, reads.count),
    number(format.bytes(reads.bytes), `way.bytes.${way}`, reads.bytes),
  ]), "not seen: this mount has no eBPF");
}

function showLatency(now) {
  const row = (label, flow, key) => [
    label, number(format.duration(flow.p50_seconds)), number(format.duration(flow.p99_seconds)), number(format.duration(flow.mean_seconds)),
    number(format.count(flow.count), `latency.count.${key}`, flow.count),
  ];
  const requests = now.kernel?.requests.read;
  fill("latency-table", ["since the start", { node: term("p50") }, { node: term("p99") }, "mean", "reads"], [
    ...BY_DAEMON.filter((source) => now.reads[source]?.count > 0).map((source) => row(named(source), now.reads[source], source)),
    ...(requests?.count > 0 ? [row("as the kernel measures", requests, "kernel")] : []),
  ]);
}

function showSlow(now) {
  const { count, oldest_seconds: oldest, oldest_path: path } = now.waiting_reads;
  const waiting = count > 0 ?
    `${count === 1 ? "One read waits" : `${format.count(count)} reads wait`} for a fetch now, the oldest for ${format.duration(oldest)}, of ${path}.` :
    "No read waits for a fetch now.";
  setText(document.getElementById("slow-note"), `${waiting} Below are the last that took longer than --slow-read, and what they waited for.`);
  const step = (s) => [s.source ? name(s.source) : s.step, s.server, format.duration(s.seconds),
    s.error ?? s.note ? `(${s.error ?? s.note})` : s.first_byte === null ? null : `(first byte ${format.duration(s.first_byte)})`].filter(Boolean).join(" ");
  fill("slow-table", ["answered", "took", "waited for", "file", "bytes", "read by"], now.slow_reads.map((read) => [
    new Date(1000 * read.at).toLocaleTimeString("en-GB"), number(format.duration(read.seconds)),
    cell([...read.steps.map(step), ...(read.error ? [`failed: ${read.error}`] : [])].join(", "), "text"),
    cell(read.path, "text"), `${read.len} at ${read.offset}`, `${read.caller_name} (${read.caller})`,
  ]), "none");
}

export function showReads(now, points) {
  showSources(now, points.at(-1));
  showFound(now);
  showRatios(now);
  showThroughput(now);
  showLatency(now);
  showSlow(now);
}
