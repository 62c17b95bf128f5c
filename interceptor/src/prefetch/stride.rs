//! Finds readers of equal pieces that are equally far from each other, as of one column of a table, of the records' headers,
//! or of a file read backward.
//!
//! Four reads of about the same length, each as far from the last, are such a series, whatever else was read in between: the
//! latest reads that belong to no stream are kept to look for them. The kernel reads whole pages, so places and lengths are
//! known to a page only; the stride is therefore taken from the whole length of the series, and gets more exact with every step.

use std::collections::VecDeque;
use std::ops::Range;

use super::stream::{AccessPattern, ReadAhead, StreamAdvice};
use super::window::Window;

/// Series followed in one file.
const SERIES: usize = 8;
/// Reads among which a new series is looked for: enough for several readers at once, and few enough that each read that belongs
/// nowhere can be compared with all of them.
const LATEST: usize = 24;
/// Steps between the reads that make a series.
const FOUND: u64 = 3;
/// The kernel rounds to pages: a length may be off by one, a place by as many as there are steps to count.
const PAGE: u64 = 4096;
/// By how much a read may be off the place where it is expected, in bytes.
const TOLERANCE: u128 = 2 * PAGE as u128;
/// How many steps a read may be out of order.
const DISORDER: u64 = 4;
/// Most reads to run ahead.
const MOST_AHEAD: u64 = 256;
/// Most steps that a new series must make before it is believed, in a file where many have come to nothing.
const MOST_DOUBT: u64 = 16;

/// The series of one file.
#[derive(Debug, Default)]
pub(super) struct Strides {
    series: Vec<Series>,
    /// Offset and length of reads that belong nowhere, the latest last.
    latest: VecDeque<(u64, u64)>,
    /// Steps that a series must make before it is believed, beyond those by which it was found.
    doubt: u64,
    clock: u64,
}

#[derive(Debug)]
struct Series {
    id: u64,
    first: u64,
    /// Offset of the read that is furthest in the direction of the series.
    last: u64,
    /// Length of the first read in bytes.
    len: u64,
    /// Length of the longest.
    longest: u64,
    /// Steps from `first` to `last`.
    steps: u64,
    /// At which number of steps it is believed.
    believed: u64,
    window: Window,
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
        series.longest = series.longest.max(len);
        if step > series.steps {
            if series.advised > 0 {
                series.window.consume((step - series.steps) * series.len, max_window);
            }
            series.steps = step;
            series.last = offset;
            if step == series.believed {
                self.doubt = self.doubt.saturating_sub(1);
            }
        }
        Some(series.advise(max_window, size))
    }

    /// StreamAdvice for a read that, with others before it, makes a new series; `number` will be its name.
    pub(super) fn find(
        &mut self,
        number: u64,
        offset: u64,
        len: u64,
        max_window: u64,
        size: u64,
    ) -> Option<StreamAdvice> {
        let Some(first) = self.first_of(offset, len) else {
            if self.latest.len() == LATEST {
                self.latest.pop_front();
            }
            self.latest.push_back((offset, len));
            return None;
        };
        let series = Series {
            id: number,
            first,
            last: offset,
            len,
            longest: len,
            steps: FOUND,
            believed: FOUND + self.doubt,
            window: Window::new((2 * len).min(max_window), len.min(max_window)),
            advised: 0,
            used: self.clock,
        };
        self.latest.retain(|(offset, len)| series.step_at(*offset, *len).is_none());
        let place = if self.series.len() < SERIES {
            self.series.push(series);
            self.series.len() - 1
        } else {
            let places = 0..self.series.len();
            let oldest = places.min_by_key(|place| self.series[*place].used).unwrap_or_default();
            let left = std::mem::replace(&mut self.series[oldest], series);
            if left.steps < left.believed + FOUND {
                self.doubt = (self.doubt + 2).min(MOST_DOUBT);
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
                (i128::from(*other) - at).unsigned_abs() <= TOLERANCE && its.abs_diff(len) <= PAGE
            };
            self.latest.iter().any(near)
        };
        self.latest.iter().rev().find_map(|&(before, its)| {
            let stride = i128::from(offset) - i128::from(before);
            // Contiguous pieces in ascending order are a stream's.
            let contiguous = stride > 0 && stride < i128::from(len + PAGE);
            let overlapping = stride.unsigned_abs() < u128::from(len.max(PAGE));
            if its.abs_diff(len) > PAGE || contiguous || overlapping {
                return None;
            }
            let first = i128::from(before) - stride * i128::from(FOUND - 1);
            let all = (1..i128::from(FOUND)).all(|step| is_there(i128::from(before) - stride * step));
            u64::try_from(first).ok().filter(|_| all)
        })
    }
}

impl Series {
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
        if len.abs_diff(self.len) > PAGE {
            return None;
        }
        let from_first = i128::from(offset) - i128::from(self.first);
        let step = u64::try_from(from_first * i128::from(self.steps) / self.span()).ok()?;
        let near = self.steps.saturating_sub(DISORDER)..=self.steps + DISORDER;
        let expected = |step: &u64| (self.place(*step) - i128::from(offset)).unsigned_abs() <= TOLERANCE;
        // The division may have come out one step short.
        [step, step + 1].into_iter().find(|step| near.contains(step) && expected(step))
    }

    fn advise(&mut self, max_window: u64, size: u64) -> StreamAdvice {
        let pattern = AccessPattern::Strided { stride: self.stride() };
        if self.steps < self.believed {
            return StreamAdvice { pattern: AccessPattern::Random, ahead: None };
        }
        let count = (self.window.size().min(max_window) / self.len.max(1)).min(MOST_AHEAD);
        self.advised = self.advised.max(self.steps);
        if self.advised - self.steps > count / 2 {
            return StreamAdvice { pattern, ahead: None };
        }
        let range = |step: u64| -> Option<Range<u64>> {
            let start = u64::try_from(self.place(step)).ok().filter(|start| *start < size)?;
            Some(start..start.saturating_add(self.longest).min(size))
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
