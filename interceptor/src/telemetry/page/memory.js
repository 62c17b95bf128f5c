// Cards about caches: how full they are, what more memory would bring, whether reading ahead pays.

import { Chart } from "./charts.js";
import * as format from "./format.js";
import { bar, fill, number, setText, swatch, update } from "./tables.js";
import { term } from "./terms.js";

// Why something was read ahead, by the label `trigger`.
const TRIGGERS = {
  sequential: "the file is read in order", hot: "a part is read again and again", next_file: "the files of a directory are read in order",
  strided: "the file is read in even steps", epoch: "the same files are read again each time", open: "a small file was opened",
  warmup: "interceptor warmup", seen: "eBPF saw the file being read in order",
};

let capacity = null;
const charts = {
  cache: new Chart("cache-chart", {
    title: "Bytes in the cache", series: [{ label: "blocks", color: "cache" }, { label: "resident files", color: "resident" }], format: format.bytes, stacked: true,
  }),
  prefetch: new Chart("prefetch-chart", {
    title: "Bytes read ahead per second", format: format.rate,
    series: [{ label: "fetched", color: "fetched" }, { label: "used", color: "used" }, { label: "wasted", color: "wasted" }],
  }),
  curve: new Chart("curve-chart", {
    title: "Part of the reads that memory of a size would answer", series: [{ label: "from memory", color: "resident" }],
    format: format.percent, range: [0, 1.02], x: { log: true, format: format.bytes },
    mark: () => capacity && { x: capacity, label: `--cache-size ${format.bytes(capacity)}` },
  }),
};

export function showMemoryHistory(points) {
  const xs = points.map((point) => point.unix_ms / 1000);
  const column = (of) => points.map((point) => of(point) ?? null);
  charts.cache.set(xs, ["used", "resident"].map((key) => column((p) => p.cache[key])));
  charts.prefetch.set(xs, ["fetched", "used", "wasted"].map((key) => column((p) => p.prefetch[key] / p.seconds)));
}

function showCache(now) {
  const { cache, disk_cache: disk } = now;
  if (!cache) {
    fill("cache-table", null, [], "this mount has no cache");
    return;
  }
  const { used, resident, pinned } = cache;
  const free = Math.max(0, cache.capacity - used - resident);
  const parts = [
    { value: pinned, color: "http", title: `being read: ${format.bytes(pinned)}` },
    { value: used - pinned, color: "cache", title: `blocks: ${format.bytes(used - pinned)}` },
    { value: resident, color: "resident", title: `resident files: ${format.bytes(resident)}` },
  ];
  update(document.getElementById("cache-bars"), [bar(parts, cache.capacity)]);
  const backing = { hugetlb: "huge pages set aside", transparent: "transparent huge pages", plain: "4 KiB pages" }[cache.backing] ?? cache.backing;
  fill("cache-table", ["memory", "bytes", "of what kind"], [
    [swatch("blocks", "cache"), number(format.bytes(used), "cache.used", used), ""],
    [swatch("of these, being read", "http"), number(format.bytes(pinned), "cache.pinned", pinned), ""],
    [swatch(term("resident"), "resident"), number(format.bytes(resident), "cache.resident", resident),
      `${format.count(cache.resident_files.ready)} files, ${format.count(cache.resident_files.waiting)} on their way`],
    ["free", number(format.bytes(free)), ""],
    ["capacity", number(format.bytes(cache.capacity), "cache.capacity", cache.capacity), backing],
    ...(cache.withheld > 0 ? [["given back: memory is short", number(format.bytes(cache.withheld)), ""]] : []),
    ...(disk ? [[swatch(term("disk"), "disk"), number(format.bytes(disk.used), "disk.used", disk.used),
      `of ${format.bytes(disk.capacity)}, ${format.count(disk.files)} files${disk.is_writer ? "" : ", another daemon writes"}`]] : []),
  ]);
  const widest = Math.max(1, ...cache.classes.map((slots) => slots.held));
  fill("classes-table", ["slots of", "in use", "part"], cache.classes.map((slots) => [
    format.bytes(slots.slot), number(`${format.bytes(slots.used)} of ${format.bytes(slots.held)}`, `class.${slots.slot}`, slots.used),
    { node: bar([{ value: slots.used, color: "cache", title: `${format.bytes(slots.used)} in use` }], widest) },
  ]));
}

function showPrefetch(now) {
  const outcome = (trigger, result) => now.prefetch.find((p) => p.trigger === trigger && p.outcome === result)?.bytes ?? 0;
  fill("prefetch-table", ["because", "fetched", "used", "wasted"], Object.entries(now.prefetch_fetched).map(([trigger, fetched]) => [
    TRIGGERS[trigger] ?? trigger, number(format.bytes(fetched), `prefetch.fetched.${trigger}`, fetched),
    ...["used", "wasted"].map((result) => number(format.bytes(outcome(trigger, result)), `prefetch.${result}.${trigger}`, outcome(trigger, result))),
  ]), "nothing was read ahead");
}

function showCurve(now) {
  const curve = now.miss_ratio_curve;
  const points = curve?.points ?? [];
  capacity = now.cache?.capacity ?? null;
  charts.curve.set(points.map((point) => point.bytes), [points.map((point) => 1 - point.miss_ratio)]);
  document.getElementById("curve-chart").hidden = points.length === 0;
  const best = points.at(-1);
  // The smallest size that brings nearly as much as the largest.
  const enough = points.find((point) => point.miss_ratio <= best.miss_ratio + 0.01);
  setText(document.getElementById("curve-note"), points.length === 0 ?
    "Not known yet: this mount has not sampled how far apart reads of the same data are." :
    `With ${format.bytes(enough.bytes)} of memory for data, page cache included, ${format.percent(1 - enough.miss_ratio)} of the reads would be answered from it; ` +
      `more would bring hardly more. From ${format.count(curve.sampled_reads)} sampled reads, in pieces of ${format.bytes(curve.granule_bytes)}.`);
}

function showSaved(now) {
  const { seconds, http_seconds_per_mib: http, waited_seconds: waited } = now.time_saved;
  fill("saved-table", null, [
    ["saved", number(seconds === null ? "not known: nothing came over HTTP yet" : format.duration(seconds), "saved", seconds ?? "NaN")],
    ["a MiB over HTTP takes", number(format.duration(http))],
    ["readers waited for the daemon", number(format.duration(waited))],
  ]);
}

export function showMemory(now) {
  showCache(now);
  showPrefetch(now);
  showCurve(now);
  showSaved(now);
}
