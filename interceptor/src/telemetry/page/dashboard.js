// Shows /api/v1/live: the history of one span, then the status every second and each new point.

import { Chart } from "./charts.js";
import * as format from "./format.js";
import { showHeat } from "./heat.js";
import { bar, cell, fill, number, swatch } from "./tables.js";

const SOURCES = ["page_cache", "resident", "cache", "disk", "verbs", "local", "tcp", "http", "lower"];
const BY_DAEMON = SOURCES.slice(2);
const LAYERS = ["page_cache", "resident", "cache", "overall"];
const SPANS = { "5m": 300, "1h": 240, "1d": 288 };
const READY_EVERY_MS = 5000;

const element = (id) => document.getElementById(id);
const series = (keys) => keys.map((key) => ({ label: format.name(key), color: key }));

let now = null;
const charts = {
  sources: new Chart("sources-chart", { series: series(SOURCES), format: format.rate, stacked: true }),
  ratios: new Chart("ratios-chart", { series: series(LAYERS), format: format.percent, range: [0, 1.02] }),
  throughput: new Chart("throughput-chart", {
    series: [{ label: "all reads", color: "overall" }, { label: "asked of the daemon", color: "cache" }], format: format.rate,
  }),
  latency: new Chart("latency-chart", { series: series(BY_DAEMON), format: format.duration, log: true }),
  latencyHalf: new Chart("latency-half-chart", { series: series(BY_DAEMON), format: format.duration, log: true }),
  cache: new Chart("cache-chart", {
    series: [{ label: "blocks", color: "cache" }, { label: "resident files", color: "resident" }], format: format.bytes, stacked: true,
  }),
  prefetch: new Chart("prefetch-chart", {
    series: [{ label: "fetched", color: "fetched" }, { label: "used", color: "used" }, { label: "wasted", color: "wasted" }],
    format: format.rate,
  }),
  curve: new Chart("curve-chart", {
    series: [{ label: "would miss", color: "http" }], format: format.percent, range: [0, 1.02], x: { log: true, format: format.bytes },
    mark: () => now?.cache && { x: now.cache.capacity, label: `--cache-size ${format.bytes(now.cache.capacity)}` },
  }),
};

// History.

let points = [];
const perSecond = (bytes, point) => (bytes == null ? null : bytes / point.seconds);
const sum = (values) => values.reduce((all, value) => all + (value ?? 0), 0);

function showHistory() {
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
  charts.cache.set(xs, columns(["used", "resident"], (p, key) => p.cache[key]));
  charts.prefetch.set(xs, columns(["fetched", "used", "wasted"], (p, key) => perSecond(p.prefetch[key], p)));
}

// Status, panel by panel.

function showVerdict() {
  const { severity, text, findings } = now.verdict;
  const className = { good: "good", degraded: "warn", bad: "bad" }[severity];
  element("verdict").textContent = `${text}.`;
  element("verdict").className = className;
  element("findings").replaceChildren(...findings.map((finding) => {
    const item = document.createElement("li");
    item.textContent = `${finding.text}. ${finding.advice}`;
    return item;
  }));
}

function showGlance() {
  const last = points.at(-1);
  const recent = now.hit_ratios["1m"] ?? {};
  const incidents = sum(now.fetch_errors.map((e) => e.count)) + sum(now.fallbacks.map((f) => f.count)) +
    sum(Object.values(now.integrity_failures));
  const tiles = [
    ["from memory, last minute", format.percent(recent.overall ?? recent.cache)],
    ["throughput", last ? format.rate(perSecond(sum(Object.values(last.bytes)), last)) : "–"],
    ["time saved (estimate)", format.duration(now.time_saved.seconds)],
    ...(now.disk_cache ? [["disk cache in use", `${format.bytes(now.disk_cache.used)} of ${format.bytes(now.disk_cache.capacity)}`]] : []),
    ["cache in use", now.cache ? `${format.bytes(now.cache.used + now.cache.resident)} of ${format.bytes(now.cache.capacity)}` : "–"],
    ["readers", now.activity ? String(now.activity.readers.filter((r) => r.bytes_per_second > 0).length) : "–"],
    ["incidents since start", format.count(incidents)],
  ];
  element("tiles").replaceChildren(...tiles.map(([name, text]) => {
    const [tile, dt, dd] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    dt.textContent = name;
    dd.textContent = text;
    tile.append(dt, dd);
    return tile;
  }));
}

function showSources() {
  const all = sum(Object.values(now.bytes_by_source));
  fill("sources-table", ["source", "bytes", "share", "reads", "at present"], SOURCES.map((source) => {
    const bytes = now.bytes_by_source[source];
    const last = points.at(-1);
    return [
      swatch(format.name(source), source), number(bytes === undefined ? "not seen" : format.bytes(bytes), `bytes.${source}`, bytes ?? ""),
      number(format.percent(all > 0 && bytes !== undefined ? bytes / all : null)),
      number(now.reads[source] ? format.count(now.reads[source].count) : "–", `reads.${source}`, now.reads[source]?.count ?? ""),
      number(last?.bytes[source] === undefined ? "–" : format.rate(perSecond(last.bytes[source], last))),
    ];
  }));
}

function showRatios() {
  const windows = Object.keys(now.hit_ratios).sort((a, b) => parseInt(a, 10) - parseInt(b, 10));
  fill("ratios-table", ["layer", ...windows.map((window) => `last ${window}`)], LAYERS.map((layer) => [
    swatch(format.name(layer), layer),
    ...windows.map((window) => {
      const ratio = now.hit_ratios[window][layer];
      return number(format.percent(ratio), `ratio.${layer}.${window}`, ratio ?? "NaN");
    }),
  ]));
}

function showThroughput() {
  const ways = Object.entries(now.kernel?.reads ?? {});
  fill("throughput-table", ["as the kernel reads", "reads", "bytes"], ways.map(([way, reads]) => [
    way, number(format.count(reads.count), `way.reads.${way}`, reads.count),
    number(format.bytes(reads.bytes), `way.bytes.${way}`, reads.bytes),
  ]), "not seen: this mount has no eBPF");
}

function showLatency() {
  const row = (label, flow, key) => [
    label, number(format.count(flow.count), `latency.count.${key}`, flow.count), number(format.duration(flow.mean_seconds)),
    number(format.duration(flow.p50_seconds)), number(format.duration(flow.p99_seconds)),
  ];
  const requests = now.kernel?.requests.read;
  fill("latency-table", ["since the start", "reads", "mean", "half below", "99 % below"], [
    ...BY_DAEMON.filter((source) => now.reads[source]?.count > 0)
      .map((source) => row(swatch(format.name(source), source), now.reads[source], source)),
    ...(requests?.count > 0 ? [row("as the kernel measures", requests, "kernel")] : []),
  ]);
}

function showCache() {
  const cache = now.cache;
  if (!cache) return;
  const { capacity, used, resident, pinned } = cache;
  const free = Math.max(0, capacity - used - resident);
  const parts = [
    { value: pinned, color: "http", title: `being read: ${format.bytes(pinned)}` },
    { value: used - pinned, color: "cache", title: `blocks: ${format.bytes(used - pinned)}` },
    { value: resident, color: "resident", title: `resident files: ${format.bytes(resident)}` },
  ];
  const widest = Math.max(1, ...cache.classes.map((c) => c.held));
  element("cache-bars").replaceChildren(bar(parts, capacity));
  fill("cache-table", ["what", "bytes", ""], [
    [swatch("blocks", "cache"), number(format.bytes(used), "cache.used", used), ""],
    [swatch("of these, being read", "http"), number(format.bytes(pinned), "cache.pinned", pinned), ""],
    [swatch("resident files", "resident"), number(format.bytes(resident), "cache.resident", resident),
      `${format.count(cache.resident_files.ready)} files, ${format.count(cache.resident_files.waiting)} on their way`],
    ["free", number(format.bytes(free)), ""],
    ["capacity", number(format.bytes(capacity), "cache.capacity", capacity),
      { hugetlb: "huge pages set aside", transparent: "transparent huge pages", plain: "4 KiB pages" }[cache.backing] ?? cache.backing],
    ...cache.classes.map((c) => [
      `slots of ${format.bytes(c.slot)}`, number(`${format.bytes(c.used)} of ${format.bytes(c.held)}`, `class.${c.slot}`, c.used),
      { node: bar([{ value: c.used, color: "cache", title: "used" }], widest) },
    ]),
  ]);
}

function showPrefetch() {
  const triggers = Object.entries(now.prefetch_fetched);
  const outcome = (trigger, name) => now.prefetch.find((p) => p.trigger === trigger && p.outcome === name)?.bytes ?? 0;
  fill("prefetch-table", ["because", "fetched", "used", "wasted"], triggers.map(([trigger, fetched]) => [
    trigger.replace("_", " "), number(format.bytes(fetched), `prefetch.fetched.${trigger}`, fetched),
    number(format.bytes(outcome(trigger, "used")), `prefetch.used.${trigger}`, outcome(trigger, "used")),
    number(format.bytes(outcome(trigger, "wasted")), `prefetch.wasted.${trigger}`, outcome(trigger, "wasted")),
  ]), "nothing was fetched ahead");
}

function showReaders() {
  fill("readers-table", ["command", "control group", "at present", "in all", "asked of the daemon"],
    (now.activity?.readers ?? []).map((reader) => [
      cell(`${reader.command}${reader.processes > 1 ? ` (${reader.processes} processes)` : ""}`), cell(reader.cgroup, "text"),
      number(format.rate(reader.bytes_per_second)), number(format.bytes(reader.bytes)), number(format.bytes(reader.requested_bytes)),
    ]), now.activity ? "nobody has read" : "not seen: this mount has no eBPF");
}

function showCurve() {
  const curve = now.miss_ratio_curve;
  const points = curve?.points ?? [];
  charts.curve.set(points.map((point) => point.bytes), [points.map((point) => point.miss_ratio)]);
  element("curve-chart").hidden = points.length === 0;
  element("curve-note").textContent = points.length > 0 ?
    `If there were so much memory for data, page cache included. From ${format.count(curve.sampled_reads)} sampled reads, ` +
      `in pieces of ${format.bytes(curve.granule_bytes)}.` :
    "not available: this mount has not sampled how far apart reads of the same data are";
}

function showHealth() {
  const trouble = (last) => cell(last ? `${format.age(last.seconds_ago)} ago: ${last.text}` : "none", "text");
  const { filers, volume_servers: servers } = now.health;
  fill("health-table", ["what", "address", "state", "requests", "last error"], [
    ...filers.map((filer) => ["filer", filer.address,
      filer.is_silent ? cell("silent", "bad") : filer.is_current ? cell("in use", "good") : "in reserve", cell("", "number"), trouble(filer.last_error)]),
    ...servers.flatMap((server) => [
      ["volume server", server.address,
        server.is_silent ? cell(server.keeps_readers_waiting ? "silent, readers wait" : "silent, asked last", "bad") : cell(`asked by ${format.name(server.source)}`, "good"),
        number(`${server.requests} under way, ${server.waiting} waiting`), trouble(server.last_error)],
      ...(server.engine ? [["engine", server.engine.address, {
        connected: cell(`connected (${format.name(server.engine.source)})`, "good"), lost: cell("lost", "bad"), absent: cell("absent", "note"),
        unproved: cell("not trusted", "bad"),
      }[server.engine.state] ?? server.engine.state, cell("", "number"), trouble(server.engine.last_error)]] : []),
    ]),
  ]);
}

function showSlow() {
  const { count, oldest_seconds: oldest, oldest_path: path } = now.waiting_reads;
  const waiting = count > 0 ?
    `${format.count(count)} reads wait for a fetch now, the oldest for ${format.duration(oldest)}, of ${path}.` :
    "No read waits for a fetch now.";
  element("slow-note").textContent = `${waiting} Below are the last that took longer than --slow-read, and what they waited for.`;
  const step = (s) => [s.source ? format.name(s.source) : s.step, s.server, format.duration(s.seconds),
    s.error ? `(${s.error})` : s.first_byte === null ? null : `(first byte ${format.duration(s.first_byte)})`].filter(Boolean).join(" ");
  fill("slow-table", ["answered", "file", "bytes", "read by", "took", "waited for"], now.slow_reads.map((read) => [
    new Date(1000 * read.at).toLocaleTimeString(), cell(read.path, "text"), `${read.len} at ${read.offset}`,
    `${read.caller_name} (${read.caller})`, number(format.duration(read.seconds)),
    cell([...read.steps.map(step), ...(read.error ? [`failed: ${read.error}`] : [])].join(", "), "text"),
  ]), "none");
}

function showSaved() {
  const { seconds, http_seconds_per_mib: http, waited_seconds: waited } = now.time_saved;
  fill("saved-table", null, [
    ["saved", number(seconds === null ? "not known: nothing came over HTTP yet" : format.duration(seconds), "saved", seconds ?? "NaN")],
    ["a MiB over HTTP takes", number(format.duration(http))],
    ["readers waited for the daemon", number(format.duration(waited))],
  ]);
}

function showIncidents() {
  fill("incidents-table", ["what", "how often"], [
    ...now.fetch_errors.map((e) => [`${format.name(e.source)}: ${e.reason}`, number(format.count(e.count), `error.${e.source}.${e.reason}`, e.count)]),
    ...now.fallbacks.map((f) => [`${format.name(f.from)} left for ${format.name(f.to)}`,
      number(format.count(f.count), `fallback.${f.from}.${f.to}`, f.count)]),
    ...Object.entries(now.integrity_failures).filter(([, n]) => n > 0).map(([source, n]) =>
      [`${format.name(source)}: refused as damaged`, number(format.count(n), `integrity.${source}`, n)]),
    ...(now.hedges.sent > 0 ? [["asked a second server", number(`${now.hedges.sent}, of which ${now.hedges.won} were faster`)]] : []),
    ...(now.subscription.losses > 0 ? [["lost the filer's stream of changes", number(format.count(now.subscription.losses))]] : []),
  ], "none");
}

function showMount() {
  const { subscription } = now;
  fill("mount-table", null, [
    ["mount point", now.mount_point],
    ["filer path", now.filer_path],
    ["process", `${now.pid}, up ${format.age(now.uptime_seconds)}`],
    ["changes of the filer", now.filers.length === 0 ? "none: the mount below answers" : cell(`${subscription.live ? "heard" : "NOT heard"}, ${subscription.changes} so far, lost ${subscription.losses} times`,
      subscription.live ? "" : "bad")],
    ["last loss", subscription.last_loss ?? "–"],
    ["known to the kernel", `${format.count(now.nodes)} files and directories`],
    ...(now.kernel?.sights ?? []).map((sight) => [`eBPF: ${sight.sight}`, sight.by ?? cell(`not seen: ${sight.why}`, "warn")]),
  ]);
  fill("lost-table", null, now.lost.map((l) => [l.ability, cell(l.reason, "text"), cell(l.remedy, "text")]), "nothing");
  fill("options-table", null, Object.entries(now.options));
}

function showStatus() {
  document.title = `interceptor ${now.mount_point}`;
  element("version").textContent = now.version;
  element("place").textContent = `${now.mount_point} · ${now.current_filer ?? "no filer"}${now.filer_path}`;
  element("open").hidden = now.access !== "open";
  for (const show of [showVerdict, showGlance, showSources, showRatios, showThroughput, showLatency, showCache, showPrefetch, showReaders, showCurve,
    showHealth, showSlow, showSaved, showIncidents, showMount]) show();
  showHeat(now.activity);
  document.body.dataset.shown = String(now.uptime_seconds);
}

// The live connection.

function say(text, className) {
  element("state").textContent = text;
  element("state").className = className;
}

async function askReady() {
  try {
    const ready = await fetch("/readyz");
    const reason = (await ready.text()).trim();
    say(ready.ok ? "Ready." : `Not ready: ${reason}`, ready.ok ? "good" : "bad");
  } catch {
    say("The daemon does not answer.", "bad");
  }
  setTimeout(askReady, READY_EVERY_MS);
}

let events = null;

function follow(span) {
  events?.close();
  for (const button of document.querySelectorAll("[data-span]")) {
    button.setAttribute("aria-pressed", String(button.dataset.span === span));
  }
  events = new EventSource(`/api/v1/live?span=${span}`);
  events.addEventListener("history", (event) => {
    points = JSON.parse(event.data).points;
    showHistory();
    document.body.dataset.span = span;
  });
  events.addEventListener("point", (event) => {
    points = [...points, JSON.parse(event.data)].slice(-SPANS[span]);
    showHistory();
  });
  events.addEventListener("status", (event) => {
    now = JSON.parse(event.data);
    showStatus();
  });
}

for (const button of document.querySelectorAll("[data-span]")) button.addEventListener("click", () => follow(button.dataset.span));
follow("5m");
askReady();
