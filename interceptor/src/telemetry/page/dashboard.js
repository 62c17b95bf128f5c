// Shows /api/v1/live: the history of one span, then the status every second and each new point. Each
// group of cards has a module of its own.

import { showHeat, showReaders } from "./heat.js";
import { showMemory, showMemoryHistory } from "./memory.js";
import { showGone, showMounts, showOverview, showReady } from "./overview.js";
import { showReadHistory, showReads } from "./reads.js";
import { showServers } from "./servers.js";

const POINTS = { "5m": 300, "1h": 240, "1d": 288 };
const READY_EVERY_MS = 5000;
const MOUNTS_EVERY_MS = 15000;
// The daemon answers from memory and sends the status every second; one that hangs does not.
const ANSWER_TIMEOUT_MS = 8000;
const SILENCE_MS = 6000;

let points = [];
let lastStatus = Date.now();
const ask = (path) => fetch(path, { signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS) });

function showHistory() {
  showReadHistory(points);
  showMemoryHistory(points);
}

function showStatus(now) {
  showOverview(now, points);
  showReads(now, points);
  showMemory(now);
  showServers(now);
  showHeat(now.activity);
  showReaders(now.activity);
  lastStatus = Date.now();
  document.body.dataset.shown = String(now.uptime_seconds);
}

async function askReady() {
  try {
    const ready = await ask("/readyz");
    showReady(ready.ok ? null : (await ready.text()).trim());
  } catch {
    showGone();
  }
  setTimeout(askReady, READY_EVERY_MS);
}

async function askMounts() {
  try {
    const mounts = await ask("/api/v1/mounts");
    if (mounts.ok) showMounts(await mounts.json());
  } catch {
    // `askReady` tells it.
  }
  setTimeout(askMounts, MOUNTS_EVERY_MS);
}

let events = null;
let retry = null;

function follow(span) {
  events?.close();
  clearTimeout(retry);
  for (const button of document.querySelectorAll("button[data-span]")) {
    button.setAttribute("aria-pressed", String(button.dataset.span === span));
  }
  events = new EventSource(`/api/v1/live?span=${span}`);
  events.addEventListener("history", (event) => {
    points = JSON.parse(event.data).points;
    showHistory();
    document.body.dataset.span = span;
  });
  events.addEventListener("point", (event) => {
    points = [...points, JSON.parse(event.data)].slice(-POINTS[span]);
    showHistory();
  });
  events.addEventListener("status", (event) => showStatus(JSON.parse(event.data)));
  // What was refused is not asked for again by the browser.
  events.addEventListener("error", () => {
    if (events.readyState === EventSource.CLOSED) retry = setTimeout(() => follow(span), READY_EVERY_MS);
  });
}

function watchSilence() {
  if (Date.now() - lastStatus > SILENCE_MS) showGone();
  setTimeout(watchSilence, 1000);
}

for (const button of document.querySelectorAll("button[data-span]")) button.addEventListener("click", () => follow(button.dataset.span));
follow("5m");
askReady();
askMounts();
watchSilence();
