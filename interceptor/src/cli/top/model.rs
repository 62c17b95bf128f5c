//! The state of `interceptor top`: the last two answers of the daemon, and the user's choice of
//! what to see of them.

use std::cmp::Ordering;

use super::hit_ratio_history::HitRatioHistory;
use super::view_rows::{Column, ColumnFit, TopView};
use crate::cli::figures::{SOURCES, UNKNOWN, latency, percent, rate, size, source_name};
use crate::telemetry::report::StatusReport;

const SOURCE_COLUMNS: [Column; 7] = [
    ("SOURCE", ColumnFit::Name),
    ("RATE", ColumnFit::Number),
    ("BYTES", ColumnFit::Number),
    ("SHARE", ColumnFit::Number),
    ("READS", ColumnFit::Number),
    ("P50", ColumnFit::Number),
    ("P99", ColumnFit::Number),
];

/// A table of texts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TableRows {
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Vec<String>>,
    /// The column by which they are sorted, if the user chooses it.
    pub(super) sorted_by: Option<usize>,
}

/// See the module.
pub(super) struct TopModel {
    before: Option<StatusReport>,
    now: StatusReport,
    history: HitRatioHistory,
    /// Why the last answer is missing.
    trouble: Option<String>,
    view: TopView,
    /// By view.
    sorted_by: [usize; TopView::ALL.len()],
    filter: String,
    is_typing: bool,
    is_paused: bool,
    shows_help: bool,
}

impl TopModel {
    pub(super) fn new(first: StatusReport, history: HitRatioHistory) -> Self {
        Self {
            before: None,
            now: first,
            history,
            trouble: None,
            view: TopView::Files,
            sorted_by: [0; TopView::ALL.len()],
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            shows_help: false,
        }
    }

    /// The daemon has answered, or has not.
    pub(super) fn answered(&mut self, answer: anyhow::Result<StatusReport>) {
        match answer {
            _ if self.is_paused => {}
            Ok(report) => {
                let before = std::mem::replace(&mut self.now, report);
                self.trouble = None;
                // After another start the counters begin anew.
                // In a container each may have the same process id.
                if before.pid == self.now.pid && before.uptime_seconds <= self.now.uptime_seconds {
                    self.history.add(&before, &self.now);
                    self.before = Some(before);
                } else {
                    (self.history, self.before) = (HitRatioHistory::default(), None);
                }
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

    pub(super) fn shows_help(&self) -> bool {
        self.shows_help
    }

    pub(super) fn show_help(&mut self, is_shown: bool) {
        self.shows_help = is_shown;
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
        let sorted_by = &mut self.sorted_by[self.view as usize];
        *sorted_by = (*sorted_by + 1) % self.view.columns().len();
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

    /// The share of bytes from this host's memory in the last minute.
    pub(super) fn hit_ratio(&self) -> Option<f64> {
        let ratios = self.now.hit_ratios.get("1m")?;
        ratios.overall.or(ratios.cache)
    }

    /// The hit ratio of each of `count` parts of the last minutes, oldest first.
    pub(super) fn hit_ratio_bars(&self, count: usize) -> Vec<Option<f64>> {
        self.history.bars(count, self.now.uptime_seconds)
    }

    /// Where bytes come from: the sources that were used.
    pub(super) fn sources(&self) -> TableRows {
        let all: u64 = self.now.bytes_by_source.values().sum();
        let row = |source: &str| {
            let bytes = self.now.bytes_by_source.get(source).copied().filter(|bytes| *bytes > 0)?;
            let flow = self.now.reads.get(source);
            Some(vec![
                source_name(source),
                self.rate(source).map_or(UNKNOWN.into(), rate),
                size(bytes),
                percent(Some(bytes as f64 / all as f64)),
                flow.map_or(UNKNOWN.into(), |flow| flow.count.to_string()),
                latency(flow.and_then(|flow| flow.p50_seconds)),
                latency(flow.and_then(|flow| flow.p99_seconds)),
            ])
        };
        let rows = SOURCES.iter().filter_map(|source| row(source)).collect();
        TableRows { columns: &SOURCE_COLUMNS, rows, sorted_by: None }
    }

    /// The sources without a row, in words.
    pub(super) fn other_sources(&self) -> String {
        let named = |is_wanted: fn(Option<&u64>) -> bool| {
            let sources = SOURCES.iter().filter(|source| is_wanted(self.now.bytes_by_source.get(**source)));
            sources.map(|source| source_name(source)).collect::<Vec<_>>().join(", ")
        };
        let parts = [
            ("not observed: ", named(|bytes| bytes.is_none())),
            ("not used: ", named(|bytes| bytes == Some(&0))),
        ];
        let parts = parts.into_iter().filter(|(_, sources)| !sources.is_empty());
        parts.map(|(what, sources)| format!("{what}{sources}")).collect::<Vec<_>>().join("; ")
    }

    /// What is chosen to be seen, filtered and sorted.
    pub(super) fn rows(&self) -> TableRows {
        let mut cells = self.view.rows(&self.now);
        let wanted = self.filter.to_lowercase();
        cells.retain(|row| row.iter().any(|(text, _)| text.to_lowercase().contains(&wanted)));
        let by = self.sorted_by[self.view as usize];
        cells.sort_by(|a, b| match (&a[by], &b[by]) {
            ((_, Some(a)), (_, Some(b))) => b.partial_cmp(a).unwrap_or(Ordering::Equal),
            ((a, _), (b, _)) => a.cmp(b),
        });
        let rows = cells.into_iter().map(|row| row.into_iter().map(|(text, _)| text).collect()).collect();
        TableRows { columns: self.view.columns(), rows, sorted_by: Some(by) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::activity::{Activity, HotFile};
    use crate::telemetry::status::MountIdentity;
    use crate::telemetry::{Metrics, Source, Status};

    fn status() -> Arc<Status> {
        let identity = MountIdentity {
            mount_point: "/mnt/data".into(),
            filers: vec!["a:8888".into()],
            filer_path: "/".into(),
            options: [].into(),
        };
        Status::new(identity, Metrics::new())
    }

    pub(in super::super) fn report() -> StatusReport {
        status().report()
    }

    pub(in super::super) fn model() -> TopModel {
        let status = status();
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
        let mut model = TopModel::new(at(10.0), HitRatioHistory::default());
        status.metrics().read(Source::Cache, 12 << 20, Duration::from_micros(3));
        status.metrics().read(Source::Http, 4 << 20, Duration::from_millis(3));
        model.answered(Ok(at(12.0)));
        model
    }

    #[test]
    fn rates_are_of_what_came_between_two_answers() {
        let model = model();
        let rows = model.sources().rows;
        let http = ["http", "2 MiB/s", "4 MiB", "25 %", "1", "4.2 ms", "4.2 ms"];
        assert_eq!(rows.last().unwrap(), &http);
        assert_eq!(rows.len(), 2, "sources without bytes have no row");
        assert_eq!(
            model.other_sources(),
            "not observed: page cache, resident; not used: disk, verbs, local, tcp, mount below"
        );
        assert_eq!(model.throughput(), Some(8_388_608.0));
        assert_eq!(model.hit_ratio_bars(300)[299], Some(0.75));
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
        assert_eq!(model.rows().sorted_by, Some(0));
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
