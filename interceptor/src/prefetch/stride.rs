//! Finds readers of equal pieces that are equally far from each other, as of one column of a table, of the records' headers,
//! or of a file read backward.
//!
//! Four reads of about the same length, each as far from the last, are such a series, whatever else was read in between: the
//! latest reads that belong to no stream are kept to look for them. The kernel reads whole pages, so places and lengths are
//! known to a page only; the stride is therefore taken from the whole length of the series, and gets more exact with every step.

use std::collections::VecDeque;
use std::ops::Range;

use super::stream::{AccessPattern, ReadAhead, StreamAdvice};
use super::window::ReadAheadWindow;

/// StridedSeries followed in one file.
const MAX_SERIES: usize = 8;
/// Reads among which a new series is looked for: enough for several readers at once, and few enough that each read that belongs
/// nowhere can be compared with all of them.
const MAX_UNMATCHED_READS: usize = 24;
/// Steps between the reads that make a series.
const MIN_STEPS: u64 = 3;
/// The kernel rounds to pages: a length may be off by one, a place by as many as there are steps to count.
const PAGE_SIZE: u64 = 4096;
/// By how much a read may be off the place where it is expected, in bytes.
const MAX_OFFSET_ERROR: u128 = 2 * PAGE_SIZE as u128;
/// How many steps a read may be out of order.
const MAX_REORDERED_STEPS: u64 = 4;
/// Most reads to run ahead.
const MAX_READS_AHEAD: u64 = 256;
/// Most steps that a new series must make before it is trusted_at, in a file where many have come to nothing.
const MAX_EXTRA_STEPS: u64 = 16;

/// The series of one file.
#[derive(Debug, Default)]
pub(super) struct Strides {
    series: Vec<StridedSeries>,
    /// Offset and length of reads that belong nowhere, the latest last.
    unmatched: VecDeque<(u64, u64)>,
    /// Steps that a series must make before it is trusted_at, beyond those by which it was found.
    extra_steps: u64,
    clock: u64,
}

#[derive(Debug)]
struct StridedSeries {
    id: u64,
    first: u64,
    /// Offset of the read that is furthest in the direction of the series.
    last: u64,
    /// Length of the first read in bytes.
    len: u64,
    /// Length of the max_len.
    max_len: u64,
    /// Steps from `first` to `last`.
    steps: u64,
    /// At which number of steps it is trusted_at.
    trusted_at: u64,
    window: ReadAheadWindow,
    /// Reads up to this many steps from `first` have been advised.
    advised: u64,
    used: u64,
}

impl Strides {
    /// StreamAdvice for a read that continues a series.
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

    /// StreamAdvice for a read that, with others before it, makes a new series; `number` will be its name.
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

    /// Where a series began whose latest read this is.
    fn first_of(&self, offset: u64, len: u64) -> Option<u64> {
        let is_there = |at: i128| {
            let near = |(other, its): &(u64, u64)| {
                (i128::from(*other) - at).unsigned_abs() <= MAX_OFFSET_ERROR && its.abs_diff(len) <= PAGE_SIZE
            };
            self.unmatched.iter().any(near)
        };
        self.unmatched.iter().rev().find_map(|&(before, its)| {
            let stride = i128::from(offset) - i128::from(before);
            // Contiguous pieces in ascending order are a stream's.
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

    /// Where the read `step` steps from the first one is expected.
    fn place(&self, step: u64) -> i128 {
        i128::from(self.first) + self.span() * i128::from(step) / i128::from(self.steps)
    }

    fn stride(&self) -> u64 {
        (self.span().unsigned_abs() / u128::from(self.steps)) as u64
    }

    /// How many steps from the first one a read is, if it belongs here.
    fn step_at(&self, offset: u64, len: u64) -> Option<u64> {
        if len.abs_diff(self.len) > PAGE_SIZE {
            return None;
        }
        let from_first = i128::from(offset) - i128::from(self.first);
        let step = u64::try_from(from_first * i128::from(self.steps) / self.span()).ok()?;
        let near = self.steps.saturating_sub(MAX_REORDERED_STEPS)..=self.steps + MAX_REORDERED_STEPS;
        let expected =
            |step: &u64| (self.place(*step) - i128::from(offset)).unsigned_abs() <= MAX_OFFSET_ERROR;
        // The division may have come out one step short.
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
