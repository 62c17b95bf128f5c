// What is hot, a strip for each file with a cell for each part of it, and who reads.

import { bytes, rate } from "./format.js";
import { cell, element, fill, number } from "./tables.js";

// Its number may be larger than a script can hold.
const UNNAMED = "a file whose name is not known";
const UNSEEN = "not seen: this mount has no eBPF";

function strip(file, hottest) {
  const host = element("div", { className: "strip" });
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", `heat of ${file.cells.length} parts of ${bytes(file.cell_bytes)}`);
  file.cells.forEach((heat, i) => {
    const part = element("span", { title: `${bytes(i * file.cell_bytes)}: ${bytes(heat)} read` });
    // A logarithmic scale, so that little heat is visible next to much.
    const shade = heat === 0 ? 0 : 0.15 + 0.85 * Math.max(0, 1 + Math.log2(heat / hottest) / 8);
    part.style.background = `rgb(var(--hot) / ${shade.toFixed(2)})`;
    host.append(part);
  });
  return { node: host, className: "strip-cell" };
}

export function showHeat(activity) {
  const files = activity?.hottest ?? [];
  const hottest = Math.max(1, ...files.flatMap((file) => file.cells));
  fill("hot-table", ["file", "read lately", "size", "from its beginning to its end"], files.map((file) => [
    cell(file.path ?? UNNAMED, "path"), number(bytes(file.bytes)), number(bytes(file.size)), strip(file, hottest),
  ]), activity ? "nothing is warm" : UNSEEN);
}

export function showReaders(activity) {
  fill("readers-table", ["command", "now", "in all", "asked of the daemon", "control group"], (activity?.readers ?? []).map((reader) => [
    cell(`${reader.command}${reader.processes > 1 ? ` (${reader.processes} processes)` : ""}`),
    number(rate(reader.bytes_per_second)), number(bytes(reader.bytes)), number(bytes(reader.requested_bytes)), cell(reader.cgroup, "text"),
  ]), activity ? "nobody has read" : UNSEEN);
}
