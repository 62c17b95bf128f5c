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
  if (size < 1e-3) return `${three(seconds * 1e6)} µs`;
  if (size < 1) return `${three(seconds * 1e3)} ms`;
  return size < 100 ? `${three(seconds)} s` : `${seconds < 0 ? "-" : ""}${age(size)}`;
}

// Three digits, without an exponent.
const three = (n) => Number(n.toPrecision(3)).toString();

export function age(seconds) {
  const s = Math.floor(seconds);
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const found = parts.findIndex(([size]) => s >= size);
  const first = found < 0 ? parts.length - 1 : found;
  return parts.slice(first, first + 2).map(([size, name], i) =>
    `${Math.floor((i === 0 ? s : s % parts[first][0]) / size)} ${name}`).join(" ");
}

// Rounded down near the end: 100 % is said of nothing less.
export function percent(ratio) {
  if (ratio == null) return UNKNOWN;
  const shown = Math.min(100 * ratio, ratio < 1 ? 99.9 : 100);
  return `${shown.toFixed(1)} %`;
}
