// What the words of this page mean. A word that is shown as a term is a button; it opens an
// explanation, and the name under which METRICS has the figure.

import { element } from "./tables.js";

const TERMS = {
  page_cache: ["page cache", "Memory of the kernel. What it holds is read without asking the daemon, as fast as a local file.", 'interceptor_read_bytes_total{source="page_cache"}'],
  resident: ["resident files", "Whole files that the daemon keeps in memory and hands to the kernel, which reads them by itself (passthrough).", 'interceptor_read_bytes_total{source="resident"}'],
  cache: ["registered cache", "The daemon's memory (--cache-size), into which engines can write by RDMA.", 'interceptor_read_bytes_total{source="cache"}'],
  disk: ["disk cache", "Files on a disk of this host (--disk-cache). They outlive a restart.", 'interceptor_read_bytes_total{source="disk"}'],
  verbs: ["RDMA (verbs)", "From the engine beside a volume server, which writes into this host's memory by RDMA.", 'interceptor_read_bytes_total{source="verbs"}'],
  local: ["local files", "From files of a volume server that runs on this host.", 'interceptor_read_bytes_total{source="local"}'],
  tcp: ["engine, TCP", "From the engine beside a volume server, over TCP.", 'interceptor_read_bytes_total{source="tcp"}'],
  http: ["HTTP", "From a volume server itself. It always works and is the slowest.", 'interceptor_read_bytes_total{source="http"}'],
  lower: ["mount below", "From the mount that an attached path covers.", 'interceptor_read_bytes_total{source="lower"}'],
  overall: ["overall", "Of all bytes that applications read, those that were in this host's memory in whichever way.", 'interceptor_hit_ratio{layer="overall"}'],
  hit_ratio: ["From memory, last minute", "Of all bytes that applications read, those that were in this host's memory: page cache, resident files and registered cache. Where eBPF sees nothing, of the bytes that the daemon was asked for.", 'interceptor_hit_ratio{layer="overall",window="1m"}'],
  rate: ["Read now", "Bytes per second that applications read, wherever they come from.", "interceptor_read_bytes_total"],
  wait: ["Longest waits, last minute", "99 % of the reads that reached the daemon were answered within this time, or have waited for no longer (p99); exact to a factor of two. Reads that the kernel answers by itself do not wait.", 'interceptor_read_wait_seconds{percentile="99",window="1m"}'],
  bytes_saved: ["Spared the cluster", "Bytes that applications have read, without those that were fetched from servers. Below zero where more was read ahead than used.", "interceptor_origin_saved_bytes"],
  engine: ["engine", "rdma-engine, a program beside a volume server that reads its files and sends them by RDMA or TCP. Without one, bytes come over HTTP."],
  silent: ["silent", "It has sent nothing for at least a second while reads waited for it."],
  slow: ["slow", "Half of its last answers took four times as long to begin as those of the faster servers, and at least 30 ms.", "interceptor_volume_servers_slow"],
  p99: ["99 % within", "All but the slowest 1 % of the requests took no longer (p99)."],
  p50: ["half within", "Half of the requests took no longer (p50, the median)."],
  cached: ["through the page cache", "The usual way: the kernel asks the daemon for what its page cache does not hold.", 'interceptor_kernel_reads_total{way="cached"}'],
  direct: ["direct", "Files opened with O_DIRECT: each read asks the daemon.", 'interceptor_kernel_reads_total{way="direct"}'],
  mapped: ["mapped", "Reads of mapped memory (mmap) that had to wait for the daemon.", 'interceptor_kernel_reads_total{way="mapped"}'],
  passthrough: ["passthrough", "The kernel reads resident files by itself.", 'interceptor_kernel_reads_total{way="passthrough"}'],
};

// The displayed name of a source, a layer or another term.
export const name = (key) => TERMS[key]?.[0] ?? key;

// The name as a button that explains it.
export function term(key, shown = name(key)) {
  if (!TERMS[key]) return element("span", {}, shown);
  const button = element("button", { type: "button", className: "term", title: TERMS[key][1] }, shown);
  button.setAttribute("popovertarget", `term-${key}`);
  return button;
}

for (const [key, [title, text, metric]] of Object.entries(TERMS)) {
  const note = element("div", { id: `term-${key}` }, element("b", {}, title), element("p", {}, text));
  if (metric) note.append(element("p", {}, element("code", {}, metric)));
  note.setAttribute("popover", "");
  document.body.append(note);
}
