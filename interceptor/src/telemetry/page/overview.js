// The first card: how the mount is doing in a sentence, four numbers, and what is wrong. Above it are
// the other mounts of the host.

import * as format from "./format.js";
import { element, setText, update } from "./tables.js";
import { term } from "./terms.js";

// The words of `interceptor top` and `status`.
const LABELS = { good: "OK", degraded: "Degraded", bad: "Bad" };
const CLASSES = { good: "good", degraded: "warn", bad: "bad" };
const at = (id) => document.getElementById(id);

// Readiness is asked for apart, since that takes a request to the mount itself.
let notReady = null;
let last = null;
let mountPoint = "";

function showVerdict() {
  const { severity, text, findings } = last;
  const worst = notReady ? "bad" : severity;
  // What is bad already is told better by its own sentence than by the check that fails of it.
  const leads = notReady && severity !== "bad";
  setText(at("severity"), LABELS[worst]);
  document.title = `${LABELS[worst]} – ${mountPoint} – interceptor`;
  at("severity").className = CLASSES[worst];
  const sentence = text.endsWith(".") ? text : `${text}.`;
  setText(at("sentence"), leads ? `${notReady.text}.` : sentence);
  const all = leads ? [notReady, ...findings] : [...findings, ...(notReady ? [notReady] : [])];
  // The sentence has the first one already.
  update(at("findings"), all.map(({ text: what, advice }, i) =>
    element("li", {}, element("b", {}, i === 0 ? "What to do:" : `${what}.`), " ", element("span", {}, advice))));
}

// `reason`: why the mount is not ready, or null.
export function showReady(reason) {
  notReady = reason && { text: `The mount is not ready: ${reason}`, advice: "Programs that read from it may wait or fail." };
  if (last) showVerdict();
}

// The daemon does not answer this page: what is shown is old.
export function showGone() {
  document.body.classList.add("is-gone");
  last = { severity: "bad", text: "The daemon does not answer this page; the figures are old", findings: [] };
  notReady = null;
  showVerdict();
}

function savedNote(saved, read) {
  if (read === 0) return "nothing was read";
  return saved < 0 ? `${format.bytes(-saved)} were read ahead and not used so far` : `${format.percent(saved / read)} of what was read`;
}

export function showOverview(now, points) {
  document.body.classList.remove("is-gone");
  mountPoint = now.mount_point;
  setText(at("version"), now.version);
  setText(at("place"), `${now.mount_point} · ${now.current_filer ?? (now.filers.length > 0 ? "no filer" : "the mount below")}${now.filer_path}`);
  at("open").hidden = now.access !== "open";
  last = now.verdict;
  showVerdict();

  const sum = (values) => Object.values(values).reduce((all, value) => all + value, 0);
  const point = points.at(-1);
  const [minute, ten] = ["1m", "10m"].map((window) => now.hit_ratios[window] ?? {});
  const layer = minute.overall == null ? "cache" : "overall";
  const waits = now.read_waits["1m"] ?? {};
  const read = sum(now.bytes_by_source);
  const saved = now.origin_bytes_saved;
  const numbers = [
    ["hit_ratio", format.percent(minute[layer]), `${format.percent(ten[layer])} in ten minutes`, `ratio.${layer}.1m`, minute[layer] ?? "NaN"],
    ["rate", format.rate(point && sum(point.bytes) / point.seconds), `${format.bytes(read)} since the start`],
    ["wait", waits.p99_seconds == null ? "none" : format.duration(waits.p99_seconds),
      waits.count > 0 ? `half within ${format.duration(waits.p50_seconds)}` : "no read asked the daemon", "wait.99.1m", waits.p99_seconds ?? "NaN"],
    ["bytes_saved", saved < 0 ? "nothing yet" : format.bytes(saved), savedNote(saved, read), "bytes_saved", saved],
  ];
  update(at("numbers"), numbers.map(([key, text, note, figure, value]) => {
    const dd = element("dd", {}, element("b", {}, text), element("small", {}, note));
    if (figure) Object.assign(dd.firstChild.dataset, { key: figure, value: String(value) });
    return element("div", {}, element("dt", {}, term(key)), dd);
  }));
}

// The mounts of this host, if there are others.
export function showMounts(mounts) {
  at("mounts").hidden = mounts.length < 2;
  update(at("mounts"), mounts.map((mount) => {
    const label = mount.severity ? LABELS[mount.severity] : mount.error;
    const state = element("span", { className: CLASSES[mount.severity] ?? "none" }, label);
    const text = [element("b", {}, mount.mount_point), " ", state];
    const title = mount.text ?? "";
    if (mount.is_this) {
      const here = element("span", { title }, ...text);
      here.setAttribute("aria-current", "page");
      return here;
    }
    // The address is one of this host's.
    return mount.url ? element("a", { title, href: mount.url }, ...text) : element("span", { title }, ...text);
  }));
}
