// The heat map: a strip for each file, with a cell for each part of the file.

import { bytes } from "./format.js";
import { cell, fill, number } from "./tables.js";

function strip(file, hottest) {
  const host = document.createElement("div");
  host.className = "strip";
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", `heat of ${file.cells.length} parts of ${bytes(file.cell_bytes)}`);
  file.cells.forEach((heat, i) => {
    const part = document.createElement("span");
    // A logarithmic scale, so that little heat is visible next to much.
    const shade = heat === 0 ? 0 : 0.15 + 0.85 * Math.max(0, 1 + Math.log2(heat / hottest) / 8);
    part.style.background = `rgb(var(--hot) / ${shade.toFixed(2)})`;
    part.title = `${bytes(i * file.cell_bytes)}: ${bytes(heat)} read`;
    host.append(part);
  });
  return { node: host };
}

export function showHeat(activity) {
  const files = activity?.hottest ?? [];
  const hottest = Math.max(1, ...files.flatMap((file) => file.cells));
  fill("hot-table", ["file", "read lately", "size", "from its beginning to its end"], files.map((file) => [
    cell(file.path ?? `node ${file.node}`, "path"), number(bytes(file.bytes)), number(bytes(file.size)), strip(file, hottest),
  ]), activity ? "nothing is warm" : "not seen: this mount has no eBPF");
}
