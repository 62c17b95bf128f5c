//! The tables below the tabs of `interceptor top`: their columns, and their rows of a report.

use crate::cli::figures::{UNKNOWN, latency, percent, rate, server_state, severity_word, size};
use crate::cli::untrusted::plain;
use crate::telemetry::activity::{HotFile, ReaderGroup};
use crate::telemetry::health::{EngineState, ErrorRecord, FilerHealth, RecentLatency, VolumeServerHealth};
use crate::telemetry::report::StatusReport;

/// What the lower half of the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopView {
    Files,
    Readers,
    Servers,
    Incidents,
    Findings,
}

/// How a column uses the width of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnFit {
    /// Aligned right, and as wide as its widest cell.
    Number,
    /// As wide as its widest cell, at most a third of the screen; cut in the middle.
    Name,
    /// What the other columns leave; cut in the middle, as the end has the name of the file.
    Path,
    /// What the other columns leave, in several lines.
    Sentence,
}

/// A column: its name and how it is fitted.
pub(super) type Column = (&'static str, ColumnFit);

/// A cell: its text, and the number to sort by, the greatest first; without a number the text
/// decides.
pub(super) type TableCell = (String, Option<f64>);

impl TopView {
    pub(super) const ALL: [TopView; 5] =
        [TopView::Files, TopView::Readers, TopView::Servers, TopView::Incidents, TopView::Findings];

    pub(super) fn name(self) -> &'static str {
        match self {
            TopView::Files => "Files",
            TopView::Readers => "Readers",
            TopView::Servers => "Servers",
            TopView::Incidents => "Incidents",
            TopView::Findings => "Findings",
        }
    }

    /// Said in the place of rows, where there are none.
    pub(super) fn empty_text(self, report: &StatusReport) -> &'static str {
        match self {
            TopView::Files | TopView::Readers if report.activity.is_none() => {
                "not observed: this mount runs without eBPF (`interceptor status` says why)"
            }
            TopView::Files | TopView::Readers => "nothing was read lately",
            TopView::Servers => "no server was asked yet",
            TopView::Incidents => "no failed fetch, no fallback, no damaged bytes since the start",
            TopView::Findings => "nothing is wrong",
        }
    }

    pub(super) fn columns(self) -> &'static [Column] {
        use ColumnFit::{Name, Number, Path, Sentence};
        match self {
            TopView::Files => &[("READ LATELY", Number), ("SIZE", Number), ("FILE", Path)],
            TopView::Readers => &[
                ("RATE", Number),
                ("IN ALL", Number),
                ("BY KERNEL", Number),
                ("COMMAND", Name),
                ("CONTROL GROUP", Path),
            ],
            TopView::Servers => &[
                ("SERVER", Name),
                ("STATE", Name),
                ("P50", Number),
                ("P99", Number),
                ("SAMPLED", Number),
                ("IN FLIGHT", Number),
                ("LAST ERROR", Sentence),
            ],
            TopView::Incidents => &[("HOW OFTEN", Number), ("WHAT", Sentence)],
            TopView::Findings => &[("SEVERITY", Name), ("WHAT, AND WHAT TO DO", Sentence)],
        }
    }

    /// The rows, each with a cell for every column.
    pub(super) fn rows(self, report: &StatusReport) -> Vec<Vec<TableCell>> {
        match self {
            TopView::Files => report.activity.iter().flat_map(|seen| &seen.hottest).map(file).collect(),
            TopView::Readers => report.activity.iter().flat_map(|seen| &seen.readers).map(reader).collect(),
            TopView::Servers => servers(report),
            TopView::Incidents => incidents(report),
            TopView::Findings => findings(report),
        }
    }
}

fn number(text: String, value: f64) -> TableCell {
    (text, Some(value))
}

fn file(file: &HotFile) -> Vec<TableCell> {
    let path = file.path.as_deref().map_or_else(|| format!("node {}", file.node), plain);
    vec![
        number(size(file.bytes), file.bytes as f64),
        number(file.size.map_or(UNKNOWN.into(), size), file.size.unwrap_or(0) as f64),
        (path, None),
    ]
}

fn reader(reader: &ReaderGroup) -> Vec<TableCell> {
    let by_daemon = reader.requested_bytes as f64 / reader.bytes.max(1) as f64;
    let by_kernel = (reader.bytes > 0).then(|| (1.0 - by_daemon).max(0.0));
    vec![
        number(rate(reader.bytes_per_second), reader.bytes_per_second),
        number(size(reader.bytes), reader.bytes as f64),
        number(percent(by_kernel), by_kernel.unwrap_or(-1.0)),
        (plain(&reader.command), None),
        (plain(&reader.cgroup), None),
    ]
}

fn last_error(error: Option<&ErrorRecord>) -> TableCell {
    let text = error.map(|last| format!("{:.0} s ago: {}", last.seconds_ago, plain(&last.text)));
    (text.unwrap_or_else(|| "none".into()), None)
}

/// A server of which neither requests nor latency are known.
fn server_without_figures(name: String, state: &str, error: Option<&ErrorRecord>) -> Vec<TableCell> {
    let unknown = || number(UNKNOWN.into(), -1.0);
    let (name, state) = ((name, None), (state.to_owned(), None));
    vec![name, state, unknown(), unknown(), unknown(), unknown(), last_error(error)]
}

fn servers(report: &StatusReport) -> Vec<Vec<TableCell>> {
    let health = &report.health;
    let filer = |filer: &FilerHealth| {
        let state = match (filer.is_silent, filer.is_current) {
            (true, _) => "SILENT",
            (false, true) => "in use",
            (false, false) => "in reserve",
        };
        server_without_figures(format!("filer {}", filer.address), state, filer.last_error.as_ref())
    };
    // Most hosts of volume servers have no engine, which is no problem.
    let engine = |server: &VolumeServerHealth| {
        let engine = server.engine.as_ref().filter(|engine| engine.state != EngineState::Absent)?;
        let state = engine.source.as_deref().unwrap_or(engine.state.label());
        let name = format!("engine of {}", server.address);
        Some(server_without_figures(name, state, engine.last_error.as_ref()))
    };
    health
        .filers
        .iter()
        .map(filer)
        .chain(health.volume_servers.iter().map(volume_server))
        .chain(health.volume_servers.iter().filter_map(engine))
        .collect()
}

fn volume_server(server: &VolumeServerHealth) -> Vec<TableCell> {
    let time = |of: fn(&RecentLatency) -> f64| {
        let seconds = server.latency.as_ref().map(of);
        number(latency(seconds), seconds.unwrap_or(-1.0))
    };
    let requests = server.latency.map(|latency| latency.requests);
    vec![
        (format!("volume {}", server.address), None),
        (server_state(server), None),
        time(|latency| latency.p50_seconds),
        time(|latency| latency.p99_seconds),
        number(
            requests.map_or(UNKNOWN.into(), |requests| requests.to_string()),
            requests.map_or(-1.0, |requests| requests as f64),
        ),
        number(server.requests.to_string(), server.requests as f64),
        last_error(server.last_error.as_ref()),
    ]
}

fn incidents(report: &StatusReport) -> Vec<Vec<TableCell>> {
    let row = |count: u64, what: String| vec![number(count.to_string(), count as f64), (what, None)];
    let errors = report.fetch_errors.iter().map(|e| row(e.count, format!("{}: {}", e.source, e.reason)));
    let fallbacks = report.fallbacks.iter().map(|f| row(f.count, format!("{} left for {}", f.from, f.to)));
    let damaged = report.integrity_failures.iter().filter(|(_, count)| **count > 0);
    let damaged = damaged.map(|(source, count)| row(*count, format!("{source}: REFUSED AS DAMAGED")));
    let subscription = &report.subscription;
    let losses = (subscription.losses > 0).then(|| {
        let reason = subscription.last_loss.as_deref().unwrap_or_default();
        row(subscription.losses, format!("lost the filer's changes, last: {}", plain(reason)))
    });
    errors.chain(fallbacks).chain(damaged).chain(losses).collect()
}

fn findings(report: &StatusReport) -> Vec<Vec<TableCell>> {
    let findings = report.verdict.findings.iter().map(|finding| {
        let severity = number(severity_word(finding.severity).to_owned(), f64::from(finding.severity as u8));
        vec![severity, (plain(&format!("{}. {}", finding.text, finding.advice)), None)]
    });
    findings.collect()
}
