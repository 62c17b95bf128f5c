//! The hit ratio of the last minutes, as the sparkline of `interceptor top` draws it.
//!
//! The daemon's history fills it at the start; afterwards each answer adds the ratio of what was
//! read since the answer before.

use std::collections::VecDeque;

use crate::telemetry::history::SpanReport;
use crate::telemetry::report::StatusReport;

/// The period that is drawn.
pub(super) const HISTORY_SECONDS: f64 = 300.0;
/// The span of the daemon's history that covers it.
pub(super) const HISTORY_SPAN: &str = "5m";
/// The points that come in that period at the shortest interval between answers, 100 ms.
const MAX_POINTS: usize = 3000;

/// The hit ratio of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct RatioPoint {
    /// The end of the step, in seconds of the daemon's uptime.
    end: f64,
    seconds: f64,
    /// 0 to 1.
    ratio: f64,
}

/// The steps with reads, oldest first.
#[derive(Debug, Default)]
pub(super) struct HitRatioHistory(VecDeque<RatioPoint>);

impl HitRatioHistory {
    /// The points of `past`, of which the last one ends about now, at `uptime_seconds`.
    pub(super) fn new(past: &SpanReport, uptime_seconds: f64) -> Self {
        let last = past.points.last().map_or(0, |point| point.unix_ms);
        let known = past.points.iter().filter_map(|point| {
            let age = last.saturating_sub(point.unix_ms) as f64 / 1000.0;
            let ratio = point.hit_ratios.overall.or(point.hit_ratios.cache)?;
            Some(RatioPoint { end: uptime_seconds - age, seconds: point.seconds, ratio })
        });
        Self(known.collect())
    }

    /// Adds what was read between two answers of one daemon.
    pub(super) fn add(&mut self, before: &StatusReport, now: &StatusReport) {
        let (mut hits, mut all) = (0, 0);
        for (source, bytes) in &now.bytes_by_source {
            let read = bytes.saturating_sub(before.bytes_by_source.get(source).copied().unwrap_or(0));
            all += read;
            hits += if ["page_cache", "resident", "cache"].contains(&source.as_str()) { read } else { 0 };
        }
        let seconds = now.uptime_seconds - before.uptime_seconds;
        if all > 0 && seconds > 0.0 {
            let ratio = hits as f64 / all as f64;
            self.0.push_back(RatioPoint { end: now.uptime_seconds, seconds, ratio });
        }
        let is_old = |point: &RatioPoint| now.uptime_seconds - point.end > HISTORY_SECONDS;
        while self.0.len() > MAX_POINTS || self.0.front().is_some_and(is_old) {
            self.0.pop_front();
        }
    }

    /// The mean ratio of each of `count` equal parts of the [`HISTORY_SECONDS`] before
    /// `uptime_seconds`, oldest first; `None` where nothing was read.
    pub(super) fn bars(&self, count: usize, uptime_seconds: f64) -> Vec<Option<f64>> {
        let width = HISTORY_SECONDS / count as f64;
        let begin = uptime_seconds - HISTORY_SECONDS;
        let bar = |index: usize| {
            let from = begin + index as f64 * width;
            let within = |point: &&RatioPoint| point.end > from && point.end - point.seconds < from + width;
            let (sum, points) =
                self.0.iter().filter(within).fold((0.0, 0), |(sum, n), point| (sum + point.ratio, n + 1));
            (points > 0).then(|| sum / f64::from(points))
        };
        (0..count).map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::report;
    use super::*;

    fn answer(uptime_seconds: f64, bytes: &[(&str, u64)]) -> StatusReport {
        let bytes_by_source = bytes.iter().map(|(source, bytes)| ((*source).to_owned(), *bytes)).collect();
        StatusReport { uptime_seconds, bytes_by_source, ..report() }
    }

    #[test]
    fn a_bar_is_the_ratio_of_what_was_read_in_its_time() {
        let mut history = HitRatioHistory::default();
        let start = answer(1000.0, &[("cache", 100), ("http", 100)]);
        let next = answer(1100.0, &[("cache", 130), ("http", 110)]);
        let last = answer(1200.0, &[("cache", 130), ("http", 110), ("page_cache", 7)]);
        history.add(&start, &next);
        history.add(&next, &last);
        assert_eq!(history.bars(3, 1200.0), [None, Some(0.75), Some(1.0)]);
        history.add(&last, &answer(1300.0, &[("cache", 130), ("http", 110), ("page_cache", 7)]));
        assert_eq!(history.bars(3, 1300.0), [Some(0.75), Some(1.0), None]);
    }

    #[test]
    fn old_points_are_dropped() {
        let mut history = HitRatioHistory::default();
        for second in 0..10_000_u32 {
            let at = |second: u32| answer(f64::from(second), &[("cache", u64::from(second))]);
            history.add(&at(second), &at(second + 1));
        }
        assert!(history.0.len() <= HISTORY_SECONDS as usize + 1, "{}", history.0.len());
    }
}
