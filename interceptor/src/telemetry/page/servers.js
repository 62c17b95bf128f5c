// Cards about what is behind the mount: servers and engines, what went wrong, what this host lacks.

import * as format from "./format.js";
import { cell, fill, number, setText } from "./tables.js";
import { name, term } from "./terms.js";

const trouble = (last) => (last ? cell(`${format.age(last.seconds_ago)} ago: ${last.text}`, "text") : cell("none", "none"));

function engineState({ state, source }) {
  return {
    connected: cell(`in use (${name(source)})`, "good"),
    lost: cell("lost: HTTP is used in its place", "warn"),
    unproved: cell("there and not used: HTTP is used", "warn"),
  }[state] ?? state;
}

function serverState(server) {
  if (server.keeps_readers_waiting) return cell("silent, readers wait", "bad");
  if (server.is_silent) return cell("silent, others are asked first", "warn");
  if (server.slow) return { node: term("slow", "slow"), className: "warn" };
  return cell(server.requests > 0 ? "busy" : "answers", "good");
}

function showHealth(now) {
  const { filers, volume_servers: servers } = now.health;
  const none = () => number("–");
  fill("health-table", ["server", "address", "state", { node: term("p50") }, { node: term("p99") }, "under way", "last error"], [
    ...filers.map((filer) => ["filer", filer.address,
      filer.is_silent ? { node: term("silent", "silent"), className: "bad" } : filer.is_current ? cell("in use", "good") : cell("in reserve", "none"),
      none(), none(), none(), trouble(filer.last_error)]),
    ...servers.flatMap((server) => [
      ["volume server", server.address, serverState(server),
        number(format.duration(server.latency?.p50_seconds)), number(format.duration(server.latency?.p99_seconds)),
        number(server.waiting > 0 ? `${server.requests}, ${server.waiting} queued` : String(server.requests)), trouble(server.last_error)],
      ...(server.engine && server.engine.state !== "absent" ? [[{ node: term("engine", "its engine") }, server.engine.address, engineState(server.engine),
        none(), none(), none(), trouble(server.engine.last_error)]] : []),
    ]),
  ], "none was asked so far");
  const without = servers.filter((server) => server.engine?.state === "absent").length;
  setText(document.getElementById("health-note"), without === 0 ? "" :
    `Beside ${without} of ${servers.length} volume servers no engine answers: their bytes come over HTTP, which is slower.`);
}

function showIncidents(now) {
  fill("incidents-table", ["what", "how often"], [
    ...now.fetch_errors.map((e) => [`${name(e.source)}: ${e.reason}`, number(format.count(e.count), `error.${e.source}.${e.reason}`, e.count)]),
    ...now.fallbacks.map((f) => [`${name(f.from)} failed, ${name(f.to)} was used`, number(format.count(f.count), `fallback.${f.from}.${f.to}`, f.count)]),
    ...Object.entries(now.integrity_failures).filter(([, n]) => n > 0).map(([source, n]) =>
      [`${name(source)}: refused as damaged`, number(format.count(n), `integrity.${source}`, n)]),
    ...(now.hedges.sent > 0 ? [["a second server was asked, as the first was late", number(`${format.count(now.hedges.sent)}, ${format.count(now.hedges.won)} of them faster`)]] : []),
    ...(now.subscription.losses > 0 ? [["the filer's stream of changes was lost", number(format.count(now.subscription.losses))]] : []),
  ], "nothing");
}

function showMount(now) {
  const { subscription } = now;
  const changes = `${format.count(subscription.changes)} so far, lost ${format.count(subscription.losses)} times`;
  fill("mount-table", null, [
    ["mount point", now.mount_point],
    ["filer path", now.filer_path],
    ["process", `${now.pid}, up ${format.age(now.uptime_seconds)}`],
    ["changes of the filer", now.filers.length === 0 ? "none: the mount below answers" :
      subscription.live ? `heard: ${changes}` : cell(`not heard: ${changes}`, "bad")],
    ...(subscription.last_loss ? [["last loss", cell(subscription.last_loss, "text")]] : []),
    ["known to the kernel", `${format.count(now.nodes)} files and directories`],
    ...(now.kernel?.sights ?? []).map((sight) => [`eBPF: ${sight.sight}`, sight.by ?? cell(`not seen: ${sight.why}`, "warn")]),
  ]);
  fill("lost-table", ["ability", "why not", "remedy"],
    now.lost.map((l) => [l.ability, cell(l.reason, "text"), cell(l.remedy, "text")]), "nothing");
  fill("options-table", null, Object.entries(now.options));
}

export function showServers(now) {
  showHealth(now);
  showIncidents(now);
  showMount(now);
}
