// Charts, drawn by uPlot. A chart keeps its data, so that it can be redrawn after a change of colours
// or width.

import { bytes, rate } from "./format.js";

const HEIGHT = 190;
// Distances between the lines of a grid of bytes.
const POWERS_OF_TWO = Array.from({ length: 60 }, (_, i) => 2 ** i);

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Cumulative sums of the series.
function stack(columns) {
  const sums = new Array(columns[0]?.length ?? 0).fill(0);
  return columns.map((column) => column.map((value, i) => (sums[i] += value ?? 0)));
}

export class Chart {
  // `series`: [{ label, color }], the lowest first if `stacked`. `format` formats values. `x`: the
  // horizontal axis if it is not time, as { log, format }. `mark`: a function that returns { x, label }
  // of a vertical line, or nothing.
  constructor(id, { series, format, stacked = false, log = false, range, x, mark }) {
    this.host = document.getElementById(id);
    Object.assign(this, { series, format, stacked, log, range, x, mark });
    this.host.classList.toggle("stacked", stacked);
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
  }

  drawn() {
    const [xs, ...columns] = this.data;
    // Stacked series are drawn from the top sum down, so that each area covers the lower part of the
    // one before.
    return this.stacked ? [xs, ...stack(columns).reverse()] : this.data;
  }

  xText(value) {
    return this.x ? this.x.format(value) : new Date(value * 1000).toLocaleTimeString("en-GB");
  }

  fit() {
    const width = Math.floor(this.host.clientWidth);
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  draw() {
    this.plot?.destroy();
    const [muted, line, text] = ["muted", "line", "text"].map(color);
    const count = this.series.length;
    const drawn = this.series.map((series, i) => ({
      label: series.label,
      stroke: color(series.color),
      width: this.stacked ? 1 : 1.5,
      fill: this.stacked ? color(series.color) : undefined,
      points: { show: false },
      spanGaps: false,
      value: (_, value, __, at) => (value == null ? "–" : this.format(this.data[i + 1][at] ?? 0)),
    }));
    const axis = { stroke: muted, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const xAxis = { ...axis, space: 76, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : this.xText(tick))) };
    const incrs = [bytes, rate].includes(this.format) ? POWERS_OF_TWO : undefined;
    const yAxis = { ...axis, size: 76, incrs, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : this.format(tick))) };
    const xLabel = { label: this.x ? "size" : "time", value: (_, value) => (value == null ? "–" : this.xText(value)) };
    this.plot = new uPlot({
      width: Math.max(1, Math.floor(this.host.clientWidth)),
      height: HEIGHT,
      scales: {
        x: this.x ? { time: false, distr: this.x.log ? 3 : 1, log: 2 } : {},
        y: { distr: this.log ? 3 : 1, range: this.range ?? (this.log ? undefined : (_, __, max) => [0, max > 0 ? max * 1.05 : 1]) },
      },
      axes: [xAxis, yAxis],
      series: [xLabel, ...(this.stacked ? drawn.reverse() : drawn)],
      cursor: { drag: { x: false, y: false } },
      hooks: { draw: this.mark ? [(plot) => this.drawMark(plot, text)] : [] },
    }, this.drawn(), this.host);
    this.host.dataset.series = String(count);
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
    ctx.fillText(` ${mark.label} `, x, bbox.top + 14 * devicePixelRatio);
    ctx.restore();
  }
}
