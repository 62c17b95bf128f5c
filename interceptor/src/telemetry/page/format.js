// Formats figures for people. `null` and `undefined` are unknown values.

const UNKNOWN = "–";

export function bytes(n) {
  if (n == null) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (Math.abs(n) >= 1024 && unit < units.length - 1) { n /= 1024; unit += 1; }
  return `${n.toFixed(unit === 0 || Math.abs(n) >= 100 ? 0 : 1)} ${units[unit]}`;
}

export const rate = (n) => (n == null ? UNKNOWN : `${bytes(n)}/s`);

export function count(n) {
  return n == null ? UNKNOWN : Math.round(n).toLocaleString("en");
}

export function duration(seconds) {
  if (seconds == null) return UNKNOWN;
  const size = Math.abs(seconds);
  if (size < 1e-3) return `${(seconds * 1e6).toPrecision(3)} µs`;
  if (size < 1) return `${(seconds * 1e3).toPrecision(3)} ms`;
  return size < 100 ? `${seconds.toPrecision(3)} s` : `${seconds < 0 ? "-" : ""}${age(size)}`;
}

export function age(seconds) {
  const s = Math.floor(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const found = parts.findIndex(([size]) => s >= size);
  const first = found < 0 ? parts.length - 1 : found;
  return parts.slice(first, first + 2).map(([size, name], i) =>
    `${Math.floor((i === 0 ? s : s % parts[first][0]) / size)} ${name}`).join(" ");
}

export const percent = (ratio) => (ratio == null ? UNKNOWN : `${(100 * ratio).toFixed(1)} %`);

// The displayed names of sources and layers.
const NAMES = {
  page_cache: "page cache", resident: "resident files", cache: "registered cache", disk: "disk cache", verbs: "RDMA (verbs)", local: "local files",
  tcp: "engine, TCP", http: "HTTP", lower: "mount below",
};
export const name = (key) => NAMES[key] ?? key;
