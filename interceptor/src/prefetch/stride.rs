//! Finds strided readers: equal pieces at equal distances, as of one column of a table, of the
//! headers of records, or of a file read backward.
//!
//! Four reads of about the same length, each as far from the last, are a series, whatever else was
//! read in between: the latest reads that belong to no stream are kept to look for them. The
//! kernel reads whole pages, so offsets and lengths are known to a page only. The stride is
//! therefore computed from the whole length of the series, and gets more exact with every step.
//!
//! Without this the row `stride-64k` of the benchmark is 43 % slower, `backward-128k` 72 %.

use std::collections::VecDeque;
use std::ops::Range;

use super::advice::{AccessPattern, ReadAhead, StreamAdvice};
use super::window::ReadAheadWindow;

/// Series followed in one file.
const MAX_SERIES: usize = 8;
/// Latest unmatched reads, in which a new series is looked for: enough for several readers at
/// once, and few enough to compare each unmatched read with all of them.
const MAX_UNMATCHED_READS: usize = 24;
/// Steps between the reads that make a series.
const MIN_STEPS: u64 = 3;
/// The kernel rounds to pages of so many bytes: a length may be off by one.
const PAGE_SIZE: u64 = 4096;
/// How far a read may be from the predicted offset, in bytes.
const MAX_OFFSET_ERROR: u128 = 2 * PAGE_SIZE as u128;
/// How many steps a read may be out of order.
const MAX_REORDERED_STEPS: u64 = 4;
/// Reads that may be advised ahead.
const MAX_READS_AHEAD: u64 = 256;
/// Extra steps that a new series must make before it is trusted, at most, in a file where many
/// series ended early.
const MAX_EXTRA_STEPS: u64 = 16;

/// The series of one file.
#[derive(Debug, Default)]
pub(super) struct Strides {
    series: Vec<StridedSeries>,
    /// Offset and length of unmatched reads, the latest last.
    unmatched: VecDeque<(u64, u64)>,
    /// Steps that a series must make before it is trusted, beyond [`MIN_STEPS`].
    extra_steps: u64,
    clock: u64,
}

#[derive(Debug)]
struct StridedSeries {
    id: u64,
    first: u64,
    /// Offset of the furthest read in the direction of the series.
    last: u64,
    /// Length of the first read in bytes.
    len: u64,
    /// Length of the longest read in bytes.
    max_len: u64,
    /// Steps from `first` to `last`.
    steps: u64,
    /// Number of steps at which it is trusted.
    trusted_at: u64,
    window: ReadAheadWindow,
    /// Reads up to this many steps from `first` have been advised.
    advised: u64,
    used: u64,
}

impl Strides {
    /// Advice for a read that continues a series.
    pub(super) fn follow(
        &mut self,
        offset: u64,
        len: u64,
        max_window: u64,
        size: u64,
    ) -> Option<StreamAdvice> {
        self.clock += 1;
        let (series, step) = self.series.iter_mut().find_map(|series| {
            let step = series.step_at(offset, len)?;
            Some((series, step))
        })?;
        series.used = self.clock;
        series.max_len = series.max_len.max(len);
        if step > series.steps {
            if series.advised > 0 {
                series.window.consume((step - series.steps) * series.len, max_window);
            }
            series.steps = step;
            series.last = offset;
            if step == series.trusted_at {
                self.extra_steps = self.extra_steps.saturating_sub(1);
            }
        }
        Some(series.advise(max_window, size))
    }

    /// Advice for a read that makes a new series with others before it; `number` identifies the
    /// series.
    pub(super) fn detect(
        &mut self,
        number: u64,
        offset: u64,
        len: u64,
        max_window: u64,
        size: u64,
    ) -> Option<StreamAdvice> {
        let Some(first) = self.first_of(offset, len) else {
            if self.unmatched.len() == MAX_UNMATCHED_READS {
                self.unmatched.pop_front();
            }
            self.unmatched.push_back((offset, len));
            return None;
        };
        let series = StridedSeries {
            id: number,
            first,
            last: offset,
            len,
            max_len: len,
            steps: MIN_STEPS,
            trusted_at: MIN_STEPS + self.extra_steps,
            window: ReadAheadWindow::new((2 * len).min(max_window), len.min(max_window)),
            advised: 0,
            used: self.clock,
        };
        self.unmatched.retain(|(offset, len)| series.step_at(*offset, *len).is_none());
        let place = if self.series.len() < MAX_SERIES {
            self.series.push(series);
            self.series.len() - 1
        } else {
            let places = 0..self.series.len();
            let oldest = places.min_by_key(|place| self.series[*place].used).unwrap_or_default();
            let left = std::mem::replace(&mut self.series[oldest], series);
            if left.steps < left.trusted_at + MIN_STEPS {
                self.extra_steps = (self.extra_steps + 2).min(MAX_EXTRA_STEPS);
            }
            oldest
        };
        Some(self.series[place].advise(max_window, size))
    }

    /// Takes advice back; see [`super::Streams::decline`].
    pub(super) fn decline(&mut self, ahead: &ReadAhead, from: u64) {
        let Some(series) = self.series.iter_mut().find(|series| series.id == ahead.stream) else { return };
        let Some(place) = ahead.ranges.iter().position(|range| range.contains(&from)) else { return };
        series.advised = series.advised.saturating_sub((ahead.ranges.len() - place) as u64);
    }

    /// Offset of the first read of a series of which this is the latest.
    fn first_of(&self, offset: u64, len: u64) -> Option<u64> {
        let is_there = |at: i128| {
            let near = |(other, its): &(u64, u64)| {
                (i128::from(*other) - at).unsigned_abs() <= MAX_OFFSET_ERROR && its.abs_diff(len) <= PAGE_SIZE
            };
            self.unmatched.iter().any(near)
        };
        self.unmatched.iter().rev().find_map(|&(before, its)| {
            let stride = i128::from(offset) - i128::from(before);
            // Contiguous pieces in ascending order make a sequential stream.
            let contiguous = stride > 0 && stride < i128::from(len + PAGE_SIZE);
            let overlapping = stride.unsigned_abs() < u128::from(len.max(PAGE_SIZE));
            if its.abs_diff(len) > PAGE_SIZE || contiguous || overlapping {
                return None;
            }
            let first = i128::from(before) - stride * i128::from(MIN_STEPS - 1);
            let all = (1..i128::from(MIN_STEPS)).all(|step| is_there(i128::from(before) - stride * step));
            u64::try_from(first).ok().filter(|_| all)
        })
    }
}

impl StridedSeries {
    fn span(&self) -> i128 {
        i128::from(self.last) - i128::from(self.first)
    }

    /// The predicted offset of the read `step` steps after the first.
    fn place(&self, step: u64) -> i128 {
        i128::from(self.first) + self.span() * i128::from(step) / i128::from(self.steps)
    }

    fn stride(&self) -> u64 {
        (self.span().unsigned_abs() / u128::from(self.steps)) as u64
    }

    /// How many steps a read is from the first one, if it belongs to the series.
    fn step_at(&self, offset: u64, len: u64) -> Option<u64> {
        if len.abs_diff(self.len) > PAGE_SIZE {
            return None;
        }
        let from_first = i128::from(offset) - i128::from(self.first);
        let step = u64::try_from(from_first * i128::from(self.steps) / self.span()).ok()?;
        let near = self.steps.saturating_sub(MAX_REORDERED_STEPS)..=self.steps + MAX_REORDERED_STEPS;
        let expected =
            |step: &u64| (self.place(*step) - i128::from(offset)).unsigned_abs() <= MAX_OFFSET_ERROR;
        // The division may round to one step less.
        [step, step + 1].into_iter().find(|step| near.contains(step) && expected(step))
    }

    fn advise(&mut self, max_window: u64, size: u64) -> StreamAdvice {
        let pattern = AccessPattern::Strided { stride: self.stride() };
        if self.steps < self.trusted_at {
            return StreamAdvice { pattern: AccessPattern::Random, ahead: None };
        }
        let count = (self.window.size().min(max_window) / self.len.max(1)).min(MAX_READS_AHEAD);
        self.advised = self.advised.max(self.steps);
        if self.advised - self.steps > count / 2 {
            return StreamAdvice { pattern, ahead: None };
        }
        let range = |step: u64| -> Option<Range<u64>> {
            let start = u64::try_from(self.place(step)).ok().filter(|start| *start < size)?;
            Some(start..start.saturating_add(self.max_len).min(size))
        };
        let ranges: Vec<_> = (self.advised + 1..=self.steps + count).map_while(range).collect();
        self.advised += ranges.len() as u64;
        let ahead = (!ranges.is_empty()).then(|| ReadAhead {
            stream: self.id,
            ranges,
            stats: self.window.stats().clone(),
        });
        StreamAdvice { pattern, ahead }
    }
}
