//! What `interceptor status` prints: on a healthy mount, a screen of 80 columns and 24 lines.

use std::fmt::{self, Display};

use super::details::Details;
use super::lines::{NAME_WIDTH, line, table};
use crate::cli::figures::{
    SOURCES, UNKNOWN, latency, percent, period, server_state, severity_word, signed_size, size, source_name,
};
use crate::cli::fitted_text::{cut_end, wrap};
use crate::cli::untrusted::plain;
use crate::telemetry::answered_read::{AnsweredRead, StepList};
use crate::telemetry::health::{EngineState, ErrorRecord, FilerHealth, VolumeServerHealth};
use crate::telemetry::report::{FlowReport, StatusReport};
use crate::telemetry::slow_reads::WaitingReads;

/// Columns of a terminal, at which reasons are cut off.
const WIDTH: usize = 80;
/// How many slow reads are printed.
const MAX_SLOW_READS: usize = 5;
/// How many servers are printed, those in trouble first.
const MAX_SERVERS: usize = 6;
/// Said of a disk cache that this daemon only reads.
const WRITTEN_BY_ANOTHER: &str = "another daemon writes";
/// A report as people read it.
pub(super) struct Summary<'a> {
    pub(super) report: &'a StatusReport,
    /// The URL of the daemon's dashboard.
    pub(super) dashboard: &'a str,
    /// Why the mount is not ready.
    pub(super) readiness: Option<&'a str>,
    /// Whether details are printed that few need.
    pub(super) shows_all: bool,
}

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        self.verdict(f)?;
        self.mount(f)?;
        windows(report, f)?;
        let saved = match report.origin_bytes_saved {
            saved @ ..0 => format!("{} more were fetched than read", size(saved.unsigned_abs())),
            saved => format!("{} that no server was asked for", signed_size(saved)),
        };
        let time = report.time_saved.seconds.filter(|seconds| *seconds >= 1.0);
        let time = time.map(|seconds| format!("; about {} of waiting", period(seconds)));
        line(f, "saved", format_args!("{saved}{}", time.unwrap_or_default()))?;
        caches(report, f)?;
        sources(report, f)?;
        failures(report, f)?;
        self.servers(f)?;
        reads(report, f)?;
        for lost in &report.lost {
            let text = format!("{}: {}", lost.ability, lost.reason);
            if self.shows_all {
                line(f, "goes without", format_args!("{text} ({})", lost.remedy))?;
            } else {
                line(f, "goes without", cut_end(&text, WIDTH - NAME_WIDTH))?;
            }
        }
        if self.shows_all { write!(f, "{}", Details(report)) } else { Ok(()) }
    }
}

impl Summary<'_> {
    fn verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.report.verdict;
        line(f, "verdict", format_args!("{}: {}", severity_word(verdict.severity), plain(&verdict.text)))?;
        for (number, finding) in (1..).zip(&verdict.findings) {
            // A single finding is in the verdict's sentence.
            let text = match verdict.findings.len() {
                1 => finding.advice.clone(),
                _ => format!("{number}. {}. {}", finding.text, finding.advice),
            };
            for text in wrap(&plain(&text), WIDTH - NAME_WIDTH, usize::MAX) {
                line(f, "", text)?;
            }
        }
        if let Some(reason) = self.readiness {
            line(f, "not ready", plain(reason))?;
        }
        Ok(())
    }

    fn mount(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let source = match &report.current_filer {
            _ if report.filers.is_empty() => "the mount below (no filer is named)".to_owned(),
            Some(filer) => format!("{filer}{}", report.filer_path),
            None => format!("no filer, {}", report.filer_path),
        };
        line(f, "mount", format_args!("{} of {}", plain(&report.mount_point), plain(&source)))?;
        if report.filers.len() > 1 {
            line(f, "", format_args!("filers {}", report.filers.join(", ")))?;
        }
        let (pid, version, up) = (report.pid, &report.version, period(report.uptime_seconds));
        line(f, "process", format_args!("{pid}, version {version}, up {up}, {}", plain(self.dashboard)))?;
        let subscription = &report.subscription;
        if report.filers.is_empty() {
            return Ok(());
        }
        let state = if subscription.live { "heard" } else { "NOT heard, everything is revalidated" };
        let lost = match (subscription.losses, &subscription.last_loss) {
            (0, _) => String::new(),
            (losses, reason) => {
                let reason = reason.as_deref().unwrap_or("unknown");
                format!(", lost {losses} times, the last time: {}", plain(reason))
            }
        };
        line(f, "changes", format_args!("{state}; {} so far{lost}", subscription.changes))
    }

    /// Servers with their latency within the last minute, those in trouble first.
    fn servers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = &self.report.health;
        // Most hosts of volume servers have no engine, which is no problem. A filer that works is
        // named above.
        let engines = health.volume_servers.iter().filter_map(engine_row);
        let filers = health.filers.iter().filter(|filer| filer.is_silent || filer.last_error.is_some());
        let mut rows: Vec<ServerRow> = health
            .volume_servers
            .iter()
            .map(volume_server_row)
            .chain(engines)
            .chain(filers.map(filer_row))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_by_key(|row| !row.is_in_trouble);
        let shown = if self.shows_all { rows.len() } else { MAX_SERVERS };
        let more = rows.len().saturating_sub(shown);
        let head = ["SERVER, LAST MINUTE", "STATE", "SAMPLED", "P50", "P99", "LAST ERROR"];
        let body = rows.into_iter().take(shown).map(|row| row.cells).collect();
        table(f, head, body, &[0, 1, 5])?;
        if more > 0 { writeln!(f, "and {more} more: --all") } else { Ok(()) }
    }
}

/// Hit ratios and waits of the last minutes.
fn windows(report: &StatusReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // The names of longer windows happen to sort first.
    for (number, (window, ratios)) in report.hit_ratios.iter().rev().enumerate() {
        let name = if number == 0 { "hit ratio" } else { "" };
        let all = percent(ratios.overall.or(ratios.cache));
        let [page_cache, resident, cache] = [ratios.page_cache, ratios.resident, ratios.cache].map(percent);
        let layers = format_args!("page cache {page_cache}, resident {resident}, cache {cache}");
        line(f, name, format_args!("{window:<4}{all:<8}({layers})"))?;
    }
    for (number, (window, waits)) in report.read_waits.iter().rev().enumerate() {
        let name = if number == 0 { "read waits" } else { "" };
        let [p50, p99] = [waits.p50_seconds, waits.p99_seconds].map(latency);
        line(f, name, format_args!("{window:<4}p50 {p50}, p99 {p99} of {} reads", waits.count))?;
    }
    Ok(())
}

fn caches(report: &StatusReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if let Some(cache) = &report.cache {
        let [used, resident, capacity] = [cache.used, cache.resident, cache.capacity].map(size);
        let files = cache.resident_files.ready;
        let withheld = match cache.withheld {
            0 => String::new(),
            bytes => format!("; {} given back, because memory is short", size(bytes)),
        };
        line(
            f,
            "cache",
            format_args!("{used} blocks + {resident} in {files} resident files of {capacity}{withheld}"),
        )?;
    }
    if let Some(disk) = &report.disk_cache {
        let [used, capacity, written] = [disk.used, disk.capacity, disk.written].map(size);
        let writer = if disk.is_writer { format!("{written} written") } else { WRITTEN_BY_ANOTHER.into() };
        line(f, "disk cache", format_args!("{used} of {capacity} in {} files, {writer}", disk.files))?;
    }
    Ok(())
}

/// The sources that were used since the start.
fn sources(report: &StatusReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let row = |source: &str| {
        let bytes = report.bytes_by_source.get(source).copied().unwrap_or(0);
        let used = |flow: &&FlowReport| flow.count > 0;
        let (reads, fetches) =
            (report.reads.get(source).filter(used), report.fetches.get(source).filter(used));
        if bytes == 0 && reads.is_none() && fetches.is_none() {
            return None;
        }
        let figures = |flow: Option<&FlowReport>| match flow {
            Some(flow) => [flow.count.to_string(), latency(flow.p50_seconds), latency(flow.p99_seconds)],
            None => [UNKNOWN; 3].map(str::to_owned),
        };
        let ([reads, p50, p99], [fetches, fetch_p50, fetch_p99]) = (figures(reads), figures(fetches));
        Some([source_name(source), size(bytes), reads, p50, p99, fetches, fetch_p50, fetch_p99])
    };
    let head = ["SINCE START", "BYTES", "READS", "P50", "P99", "FETCHES", "FETCH P50", "FETCH P99"];
    let rows: Vec<_> = SOURCES.into_iter().filter_map(row).collect();
    if rows.is_empty() { Ok(()) } else { table(f, head, rows, &[0]) }
}

fn failures(report: &StatusReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let errors = &report.fetch_errors;
    let texts = errors.iter().map(|e| format!("{} of {} ({})", e.count, e.source, e.reason));
    if !errors.is_empty() {
        line(f, "fetch errors", texts.collect::<Vec<_>>().join(", "))?;
    }
    for (source, count) in report.integrity_failures.iter().filter(|(_, count)| **count > 0) {
        line(f, "DAMAGED", format_args!("{count} fetches from {source} refused"))?;
    }
    Ok(())
}

/// Reads that wait, and those that waited for long.
fn reads(report: &StatusReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let WaitingReads { count, oldest_seconds, oldest_path } = &report.waiting_reads;
    if let Some(path) = oldest_path {
        let path = plain(path);
        line(f, "reads waiting", format_args!("{count}, the oldest for {oldest_seconds:.1} s, of {path}"))?;
    }
    for read in report.slow_reads.iter().take(MAX_SLOW_READS) {
        let AnsweredRead { path, offset, len, seconds, caller, caller_name, .. } = read;
        let answer = read.error.as_ref().map_or(String::new(), |error| format!(", failed: {error}"));
        let what = format!("{len} bytes at {offset} of {path} by {caller_name} ({caller}){answer}");
        line(f, "slow read", format_args!("{seconds:.3} s, {}", plain(&what)))?;
        line(f, "", plain(&StepList(&read.steps).to_string()))?;
    }
    Ok(())
}

/// A line of the table of servers.
struct ServerRow {
    is_in_trouble: bool,
    cells: [String; 6],
}

impl ServerRow {
    fn new(name: String, state: String, is_in_trouble: bool, error: Option<&ErrorRecord>) -> Self {
        let error = error.map(|last| format!("{:.0} s ago: {}", last.seconds_ago, plain(&last.text)));
        let [requests, p50, p99] = [UNKNOWN; 3].map(str::to_owned);
        Self { is_in_trouble, cells: [name, state, requests, p50, p99, error.unwrap_or_default()] }
    }
}

fn volume_server_row(server: &VolumeServerHealth) -> ServerRow {
    let is_in_trouble = server.is_silent || server.slow.is_some();
    let name = format!("volume server {}", server.address);
    let mut row = ServerRow::new(name, server_state(server), is_in_trouble, server.last_error.as_ref());
    if let Some(recent) = &server.latency {
        row.cells[2] = recent.requests.to_string();
        row.cells[3] = latency(Some(recent.p50_seconds));
        row.cells[4] = latency(Some(recent.p99_seconds));
    }
    row
}

/// The row of the engine beside `server`, if there is one or was one.
fn engine_row(server: &VolumeServerHealth) -> Option<ServerRow> {
    let engine = server.engine.as_ref().filter(|engine| engine.state != EngineState::Absent)?;
    let is_in_trouble = engine.state != EngineState::Connected;
    let (name, state) = (format!("engine of {}", server.address), engine.state.label().to_owned());
    Some(ServerRow::new(name, state, is_in_trouble, engine.last_error.as_ref()))
}

fn filer_row(filer: &FilerHealth) -> ServerRow {
    let state = if filer.is_silent { "SILENT" } else { "answers" };
    let name = format!("filer {}", filer.address);
    ServerRow::new(name, state.to_owned(), filer.is_silent, filer.last_error.as_ref())
}
