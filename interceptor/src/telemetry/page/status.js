"use strict";

// Shows /api/v1/status and follows it. Everything that comes from the daemon goes into text nodes.

const PERIOD_MS = 2000;
let previous = null;

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed(unit === 0 || n >= 100 ? 0 : 1)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds === null) return "-";
  if (seconds < 1e-3) return `${(seconds * 1e6).toPrecision(3)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toPrecision(3)} ms`;
  return `${seconds.toPrecision(3)} s`;
}

function age(seconds) {
  const s = Math.floor(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, parts.findIndex(([size]) => s >= size));
  return parts.slice(first, first + 2).map(([size, name], i) =>
    `${Math.floor((i === 0 ? s : s % parts[first][0]) / size)} ${name}`).join(" ");
}

const percent = (ratio) => (ratio === null ? "no reads" : `${(100 * ratio).toFixed(1)} %`);

function fill(id, head, rows) {
  const table = document.getElementById(id);
  const line = (cells, tag) => {
    const tr = document.createElement("tr");
    cells.forEach((cell, i) => {
      const td = document.createElement(i === 0 ? "th" : tag);
      td.textContent = cell;
      tr.append(td);
    });
    return tr;
  };
  table.replaceChildren(...(head ? [line(head, "th")] : []), ...rows.map((row) => line(row, "td")));
}

function rate(now, kind, source) {
  if (!previous || previous.pid !== now.pid || !previous[kind][source]) return "";
  const seconds = now.uptime_seconds - previous.uptime_seconds;
  return seconds > 0 ? `${bytes((now[kind][source].bytes - previous[kind][source].bytes) / seconds)}/s` : "";
}

function flows(id, now, kind, noun) {
  fill(id, ["source", noun, "bytes", "now", "p50 below", "p99 below"],
    Object.entries(now[kind]).map(([source, flow]) => [
      source, String(flow.count), bytes(flow.bytes), rate(now, kind, source),
      duration(flow.p50_seconds), duration(flow.p99_seconds),
    ]));
}

function show(now) {
  document.title = `interceptor ${now.mount_point}`;
  document.getElementById("version").textContent = now.version;
  fill("mount", null, [
    ["mount point", now.mount_point],
    ["filer", `${now.current_filer ?? "-"} (of ${now.filers.join(", ")})`],
    ["filer path", now.filer_path],
    ["process", `${now.pid}, up ${age(now.uptime_seconds)}`],
    ["changes of the filer", `${now.subscription.live ? "heard" : "NOT heard"}, ${now.subscription.changes} so far, ` +
      `lost ${now.subscription.losses} times`],
    ["last loss", now.subscription.last_loss ?? "-"],
    ["known to the kernel", `${now.nodes ?? "-"} files and directories`],
  ]);
  const cache = now.cache;
  fill("cache", null, [
    ...(cache ? [["used", `${bytes(cache.used)} of ${bytes(cache.capacity)}`], ["allocated", bytes(cache.allocated)],
      ["resident files", bytes(cache.resident)], ["being read", bytes(cache.pinned)],
      ["memory", { hugetlb: "huge pages (hugetlb)", transparent: "transparent huge pages", plain: "pages of 4 KiB" }[cache.backing] ??
        cache.backing],
      ...cache.classes.map((c) => [`slots of ${bytes(c.slot)}`, `${bytes(c.used)} of ${bytes(c.held)}`])] : []),
    ...Object.entries(now.hit_ratio).map(([window, ratio]) => [`hit ratio, ${window}`, percent(ratio)]),
  ]);
  flows("reads", now, "reads", "reads");
  flows("fetches", now, "fetches", "fetches");
  const incidents = [
    ...now.fetch_errors.map((e) => [`${e.source}: ${e.reason}`, String(e.count)]),
    ...Object.entries(now.integrity_failures).filter(([, n]) => n > 0).map(([source, n]) =>
      [`${source}: refused as damaged`, String(n)]),
  ];
  fill("incidents", null, incidents.length ? incidents : [["none"]]);
  fill("lost", null, now.lost.length ? now.lost.map((l) => [l.ability, l.reason, l.remedy]) : [["nothing"]]);
  fill("options", null, Object.entries(now.options));
  previous = now;
}

async function follow() {
  const state = document.getElementById("state");
  try {
    const ready = await fetch("/readyz");
    const reason = (await ready.text()).trim();
    show(await (await fetch("/api/v1/status")).json());
    state.textContent = ready.ok ? "Ready." : `Not ready: ${reason}`;
    state.className = ready.ok ? "good" : "bad";
  } catch (error) {
    state.textContent = `The daemon does not answer: ${error.message}`;
    state.className = "bad";
  }
  setTimeout(follow, PERIOD_MS);
}

follow();
