// Charts, drawn by uPlot. A chart keeps its data, so that it can be redrawn after a change of colours
// or width. Below it is a legend with the last values, or those under the pointer; series without
// any value are not in it.

import { bytes, rate } from "./format.js";
import { element, swatch, update } from "./tables.js";

const HEIGHT = 190;
// Distances between the lines of a grid of bytes.
const POWERS_OF_TWO = Array.from({ length: 60 }, (_, i) => 2 ** i);
// A logarithmic scale has a line for each power of ten.
const powersOfTen = (_, splits) => splits.map((value) => (Number.isInteger(Math.round(1e6 * Math.log10(value)) / 1e6) ? value : null));

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Cumulative sums of the series.
function stack(columns) {
  const sums = new Array(columns[0]?.length ?? 0).fill(0);
  return columns.map((column) => column.map((value, i) => (sums[i] += value ?? 0)));
}

const lastIndex = (column) => column.findLastIndex((value) => value != null);

export class Chart {
  // `title`: what it shows, for those who do not see it. `series`: [{ label, color }], the lowest
  // first if `stacked`. `format` formats values. `x`: the horizontal axis if it is not time, as
  // { log, format }. `mark`: a function that returns { x, label } of a vertical line, or nothing.
  constructor(id, { title, series, format, stacked = false, log = false, range, x, mark }) {
    this.host = document.getElementById(id);
    Object.assign(this, { title, series, format, stacked, log, range, x, mark });
    this.canvas = element("div");
    this.canvas.setAttribute("role", "img");
    this.legend = element("ul", { className: "legend" });
    this.host.append(this.canvas, this.legend);
    this.data = [[], ...series.map(() => [])];
    new ResizeObserver(() => this.fit()).observe(this.host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.draw();
  }

  // `columns`: one array for each series; `null` is a gap.
  set(xs, columns) {
    this.data = [xs, ...columns];
    this.host.dataset.points = String(xs.length);
    this.plot.setData(this.drawn());
    this.showLegend();
  }

  drawn() {
    const [xs, ...columns] = this.data;
    // Stacked series are drawn from the top sum down, so that each area covers the lower part of the
    // one before.
    return this.stacked ? [xs, ...stack(columns).reverse()] : this.data;
  }

  xText(value) {
    if (this.x) return this.x.format(value);
    const [xs] = this.data;
    const isLong = xs.at(-1) - xs[0] > 1800;
    const parts = { hour: "2-digit", minute: "2-digit", ...(isLong ? {} : { second: "2-digit" }) };
    return new Date(value * 1000).toLocaleTimeString("en-GB", parts);
  }

  // The values under the pointer, or the last ones.
  showLegend() {
    const [xs, ...columns] = this.data;
    const at = this.plot?.cursor.idx;
    const pointed = at != null && this.plot.cursor.left >= 0;
    const items = [];
    this.series.forEach(({ label, color: key }, i) => {
      const column = columns[i];
      const isShown = column.some((value) => (this.stacked ? value > 0 : value != null));
      if (!isShown) return;
      const value = pointed ? column[at] : column[lastIndex(column)];
      // A curve has no last value that would say something.
      const text = this.x && !pointed ? label : `${label} ${value == null ? "–" : this.format(value)}`;
      items.push(element("li", {}, swatch(text, key).node));
    });
    const summary = items.map((item) => item.textContent).join(", ");
    this.canvas.setAttribute("aria-label", `${this.title}${summary ? `: ${summary}` : ", nothing so far"}`);
    if (pointed) items.unshift(element("li", {}, element("b", {}, this.xText(xs[at]))));
    update(this.legend, items);
  }

  fit() {
    const width = Math.floor(this.host.clientWidth);
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  draw() {
    this.plot?.destroy();
    const [muted, line, text] = ["muted", "line", "text"].map(color);
    const drawn = this.series.map((series) => ({
      stroke: color(series.color),
      width: this.stacked ? 1 : 1.5,
      fill: this.stacked ? color(series.color) : undefined,
      points: { show: false },
      spanGaps: false,
    }));
    const axis = { stroke: muted, grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const xAxis = { ...axis, grid: { show: false }, size: 30, space: 90, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : this.xText(tick))) };
    const incrs = [bytes, rate].includes(this.format) ? POWERS_OF_TWO : undefined;
    const filter = this.log ? { filter: powersOfTen } : {};
    const yAxis = {
      ...axis, ...filter, grid: { ...axis.grid, ...filter }, size: 76, space: 36, incrs,
      values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : this.format(tick))),
    };
    this.plot = new uPlot({
      width: Math.max(1, Math.floor(this.host.clientWidth)),
      height: HEIGHT,
      scales: {
        x: this.x ? { time: false, distr: this.x.log ? 3 : 1, log: 2 } : {},
        y: { distr: this.log ? 3 : 1, range: this.range ?? (this.log ? undefined : (_, __, max) => [0, max > 0 ? max * 1.05 : 1]) },
      },
      axes: [xAxis, yAxis],
      series: [{}, ...(this.stacked ? drawn.reverse() : drawn)],
      legend: { show: false },
      cursor: { drag: { x: false, y: false } },
      hooks: { draw: this.mark ? [(plot) => this.drawMark(plot, text)] : [], setCursor: [() => this.showLegend()] },
    }, this.drawn(), this.canvas);
    this.host.dataset.series = String(this.series.length);
    this.showLegend();
  }

  drawMark(plot, stroke) {
    const mark = this.mark();
    if (!mark || plot.data[0].length === 0) return;
    const { ctx, bbox } = plot;
    const x = Math.round(plot.valToPos(mark.x, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.save();
    ctx.strokeStyle = stroke;
    ctx.fillStyle = stroke;
    ctx.setLineDash([4, 4]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.textAlign = x > bbox.left + bbox.width / 2 ? "right" : "left";
    ctx.fillText(` ${mark.label} `, x, bbox.top + bbox.height / 2);
    ctx.restore();
  }
}
