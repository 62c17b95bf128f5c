//! The state of `interceptor top`: the last two answers of the daemon, and the user's choice of
//! what to see of them.

use std::cmp::Ordering;

use daemon::size::ByteSize;

use crate::cli::untrusted::plain;
use crate::telemetry::health::ErrorRecord;
use crate::telemetry::report::{FlowReport, StatusReport};

/// Sources in the order in which they are shown.
const SOURCES: [&str; 9] =
    ["page_cache", "resident", "cache", "disk", "verbs", "local", "tcp", "http", "lower"];

/// What the lower half of the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopView {
    Files,
    Readers,
    Servers,
    Incidents,
}

impl TopView {
    pub(super) const ALL: [TopView; 4] =
        [TopView::Files, TopView::Readers, TopView::Servers, TopView::Incidents];

    pub(super) fn name(self) -> &'static str {
        match self {
            TopView::Files => "files",
            TopView::Readers => "readers",
            TopView::Servers => "servers",
            TopView::Incidents => "incidents",
        }
    }
}

/// A table of texts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TableRows {
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    /// By which column they are sorted.
    pub(super) sorted_by: usize,
}

/// A cell: its text, and the number to sort by, the greatest first; without a number the text
/// decides.
type TableCell = (String, Option<f64>);

/// See the module.
pub(super) struct TopModel {
    before: Option<StatusReport>,
    now: StatusReport,
    /// Why the last answer is missing.
    trouble: Option<String>,
    view: TopView,
    /// By view.
    sorted_by: [usize; TopView::ALL.len()],
    filter: String,
    is_typing: bool,
    is_paused: bool,
}

impl TopModel {
    pub(super) fn new(first: StatusReport) -> Self {
        Self {
            before: None,
            now: first,
            trouble: None,
            view: TopView::Files,
            sorted_by: [0; TopView::ALL.len()],
            filter: String::new(),
            is_typing: false,
            is_paused: false,
        }
    }

    /// The daemon has answered, or has not.
    pub(super) fn answered(&mut self, answer: anyhow::Result<StatusReport>) {
        match answer {
            _ if self.is_paused => {}
            Ok(report) => {
                let before = std::mem::replace(&mut self.now, report);
                // After another start the counters begin anew.
                self.before = (before.pid == self.now.pid).then_some(before);
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
    }

    pub(super) fn report(&self) -> &StatusReport {
        &self.now
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn view(&self) -> TopView {
        self.view
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn is_typing(&self) -> bool {
        self.is_typing
    }

    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub(super) fn pause(&mut self) {
        self.is_paused = !self.is_paused;
    }

    pub(super) fn show(&mut self, view: TopView) {
        self.view = view;
    }

    pub(super) fn show_next(&mut self) {
        self.view = TopView::ALL[(self.view as usize + 1) % TopView::ALL.len()];
    }

    pub(super) fn sort_next(&mut self) {
        let columns = self.cells().0.len();
        let sorted_by = &mut self.sorted_by[self.view as usize];
        *sorted_by = (*sorted_by + 1) % columns;
    }

    pub(super) fn start_typing(&mut self) {
        self.is_typing = true;
    }

    pub(super) fn stop_typing(&mut self) {
        self.is_typing = false;
    }

    pub(super) fn typed(&mut self, letter: char) {
        self.filter.push(letter);
    }

    pub(super) fn erase(&mut self) {
        self.filter.pop();
    }

    pub(super) fn clear_filter(&mut self) {
        self.is_typing = false;
        self.filter.clear();
    }

    /// Seconds between the two answers.
    fn seconds(&self) -> Option<f64> {
        let seconds = self.now.uptime_seconds - self.before.as_ref()?.uptime_seconds;
        (seconds > 0.0).then_some(seconds)
    }

    /// Bytes per second of all sources.
    pub(super) fn throughput(&self) -> Option<f64> {
        SOURCES.iter().map(|source| self.rate(source)).sum::<Option<f64>>()
    }

    fn rate(&self, source: &str) -> Option<f64> {
        let bytes = |report: &StatusReport| report.bytes_by_source.get(source).copied().unwrap_or(0);
        Some(bytes(&self.now).saturating_sub(bytes(self.before.as_ref()?)) as f64 / self.seconds()?)
    }

    /// Where bytes come from.
    pub(super) fn sources(&self) -> TableRows {
        let row = |source: &&str| {
            let flow = self.now.reads.get(*source);
            let time = |of: fn(&FlowReport) -> Option<f64>| flow.and_then(of).map_or("-".into(), seconds);
            vec![
                if *source == "lower" { "mount below".into() } else { source.replace('_', " ") },
                self.rate(source).map_or("-".into(), rate),
                self.now.bytes_by_source.get(*source).map_or("not seen".into(), |bytes| size(*bytes)),
                flow.map_or("-".into(), |flow| flow.count.to_string()),
                time(|flow| flow.p50_seconds),
                time(|flow| flow.p99_seconds),
            ]
        };
        TableRows {
            head: vec!["SOURCE", "RATE", "BYTES", "READS", "50 % <", "99 % <"],
            rows: SOURCES.iter().map(row).collect(),
            sorted_by: usize::MAX,
        }
    }

    /// What is chosen to be seen, filtered and sorted.
    pub(super) fn rows(&self) -> TableRows {
        let (head, mut cells) = self.cells();
        let wanted = self.filter.to_lowercase();
        cells.retain(|row| row.iter().any(|(text, _)| text.to_lowercase().contains(&wanted)));
        let by = self.sorted_by[self.view as usize];
        cells.sort_by(|a, b| match (&a[by], &b[by]) {
            ((_, Some(a)), (_, Some(b))) => b.partial_cmp(a).unwrap_or(Ordering::Equal),
            ((a, _), (b, _)) => a.cmp(b),
        });
        let rows = cells.into_iter().map(|row| row.into_iter().map(|(text, _)| text).collect()).collect();
        TableRows { head, rows, sorted_by: by }
    }

    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<TableCell>>) {
        match self.view {
            TopView::Files => (vec!["READ LATELY", "SIZE", "FILE"], self.files()),
            TopView::Readers => (vec!["RATE", "IN ALL", "COMMAND", "CONTROL GROUP"], self.readers()),
            TopView::Servers => (vec!["SERVER", "STATE", "LAST ERROR"], self.servers()),
            TopView::Incidents => (vec!["HOW OFTEN", "WHAT"], self.incidents()),
        }
    }

    fn files(&self) -> Vec<Vec<TableCell>> {
        let files = self.now.activity.iter().flat_map(|activity| &activity.hottest);
        let row = |file: &crate::telemetry::activity::HotFile| {
            let path = file.path.as_deref().map_or_else(|| format!("node {}", file.node), plain);
            let bytes = file.size.map_or("-".into(), size);
            vec![
                (size(file.bytes), Some(file.bytes as f64)),
                (bytes, Some(file.size.unwrap_or(0) as f64)),
                (path, None),
            ]
        };
        files.map(row).collect()
    }

    fn readers(&self) -> Vec<Vec<TableCell>> {
        let readers = self.now.activity.iter().flat_map(|activity| &activity.readers);
        let row = |reader: &crate::telemetry::activity::ReaderGroup| {
            vec![
                (rate(reader.bytes_per_second), Some(reader.bytes_per_second)),
                (size(reader.bytes), Some(reader.bytes as f64)),
                (plain(&reader.command), None),
                (plain(&reader.cgroup), None),
            ]
        };
        readers.map(row).collect()
    }

    fn servers(&self) -> Vec<Vec<TableCell>> {
        let last = |trouble: &Option<ErrorRecord>| {
            let text =
                trouble.as_ref().map(|last| format!("{:.0} s ago: {}", last.seconds_ago, plain(&last.text)));
            (text.unwrap_or_else(|| "none".into()), None)
        };
        let health = &self.now.health;
        let filers = health.filers.iter().map(|filer| {
            let state = match (filer.is_silent, filer.is_current) {
                (true, _) => "silent",
                (false, true) => "in use",
                (false, false) => "in reserve",
            };
            vec![(format!("filer {}", filer.address), None), (state.into(), None), last(&filer.last_error)]
        });
        let servers = health.volume_servers.iter().map(|server| {
            let silent = if server.is_silent { ", silent" } else { "" };
            let state = format!("by {}{silent}, {} under way", server.source, server.requests);
            vec![(format!("volume {}", server.address), None), (state, None), last(&server.last_error)]
        });
        let engines =
            health.volume_servers.iter().filter_map(|server| server.engine.as_ref()).map(|engine| {
                let state = engine.source.clone().unwrap_or_else(|| engine.state.label().to_owned());
                vec![(format!("engine {}", engine.address), None), (state, None), last(&engine.last_error)]
            });
        filers.chain(servers).chain(engines).collect()
    }

    fn incidents(&self) -> Vec<Vec<TableCell>> {
        let now = &self.now;
        let row = |count: u64, what: String| vec![(count.to_string(), Some(count as f64)), (what, None)];
        let errors = now.fetch_errors.iter().map(|e| row(e.count, format!("{}: {}", e.source, e.reason)));
        let fallbacks = now.fallbacks.iter().map(|f| row(f.count, format!("{} left for {}", f.from, f.to)));
        let damaged = now.integrity_failures.iter().filter(|(_, count)| **count > 0);
        let damaged = damaged.map(|(source, count)| row(*count, format!("{source}: REFUSED AS DAMAGED")));
        let subscription = &now.subscription;
        let losses = (subscription.losses > 0).then(|| {
            let reason = subscription.last_loss.as_deref().unwrap_or_default();
            row(subscription.losses, format!("lost the filer's changes, last: {}", plain(reason)))
        });
        errors.chain(fallbacks).chain(damaged).chain(losses).collect()
    }
}

fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

pub(super) fn rate(bytes: f64) -> String {
    format!("{}/s", ByteSize(bytes as u64))
}

fn seconds(seconds: f64) -> String {
    format!("{:.1?}", std::time::Duration::from_secs_f64(seconds))
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::activity::{Activity, HotFile};
    use crate::telemetry::status::MountIdentity;
    use crate::telemetry::{Metrics, Source, Status};

    pub(in super::super) fn model() -> TopModel {
        let identity = MountIdentity {
            mount_point: "/mnt/data".into(),
            filers: vec!["a:8888".into()],
            filer_path: "/".into(),
            options: [].into(),
        };
        let status = Status::new(identity, Metrics::new());
        let file = |path: &str, bytes| HotFile {
            path: Some(path.into()),
            node: 1,
            size: Some(1 << 20),
            bytes,
            cells: vec![bytes],
            cell_bytes: 1 << 20,
        };
        let hottest = vec![file("/b\u{1b}[2J\u{202e}evil", 9), file("/a", 5)];
        let activity = Activity { hottest, ..Activity::default() };
        status.set_activity(Box::new(move || Some(activity.clone())));
        let at = |seconds| StatusReport { uptime_seconds: seconds, ..status.report() };
        let mut model = TopModel::new(at(10.0));
        status.metrics().read(Source::Http, 4 << 20, Duration::from_millis(3));
        model.answered(Ok(at(12.0)));
        model
    }

    #[test]
    fn rates_are_of_what_came_between_two_answers() {
        let model = model();
        let rows = model.sources().rows;
        let http = rows.iter().find(|row| row[0] == "http").unwrap();
        assert_eq!(*http, ["http", "2 MiB/s", "4 MiB", "1", "4.2ms", "4.2ms"]);
        assert_eq!(rows[0][..3], ["page cache", "0 B/s", "not seen"]);
        assert!(rows.iter().any(|row| row[0] == "mount below"), "{rows:?}");
        assert_eq!(model.throughput(), Some(2_097_152.0));
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let mut model = model();
        let names = |model: &TopModel| -> Vec<String> {
            model.rows().rows.into_iter().map(|mut row| row.pop().unwrap()).collect()
        };
        assert_eq!(names(&model), ["/b\u{fffd}[2J\u{fffd}evil", "/a"]);
        model.sort_next();
        model.sort_next();
        assert_eq!(names(&model)[0], "/a");
        "EVIL".chars().for_each(|letter| model.typed(letter));
        assert_eq!(names(&model).len(), 1);
        model.clear_filter();
        assert_eq!(names(&model).len(), 2);
        model.sort_next();
        assert_eq!(model.rows().sorted_by, 0);
    }

    #[test]
    fn a_pause_keeps_what_is_there() {
        let mut model = model();
        model.pause();
        model.answered(Err(anyhow::anyhow!("gone")));
        assert_eq!(model.trouble(), None);
        model.pause();
        model.answered(Err(anyhow::anyhow!("gone")));
        assert_eq!(model.trouble(), Some("gone"));
    }
}
