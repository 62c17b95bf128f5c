//! How long a server takes to begin a response, and when a request to it is late.
//!
//! A volume server reads all of what it is asked for before it sends a byte, so latencies are kept
//! by size class. Each class keeps the last [`MAX_SAMPLES`]. A request is late when it has waited
//! longer than 95 % of these did. Dean and Barroso (The Tail at Scale, CACM 2013) send their
//! hedged requests at this point: it catches the slowest requests and costs little.

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::health::RecentLatency;

/// Latencies that are kept for each size class. Above the 95th percentile are six of them, enough
/// that one slow moment does not decide.
const MAX_SAMPLES: usize = 128;
/// Latencies that must be known before the percentile counts.
const MIN_SAMPLES: usize = 20;
/// After how many new latencies the percentile is computed again.
const RECOMPUTE_INTERVAL: usize = 16;
/// Into how many classes requests are divided by their size.
pub(super) const SIZE_CLASSES: usize = 3;
/// The largest requests of each size class but the last, in bytes.
const SIZE_CLASS_LIMITS: [u64; SIZE_CLASSES - 1] = [64 << 10, 1 << 20];
/// No request is late before this: a hedge would gain too little, and most such delays are this
/// host's own.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(10);
/// Every request is late after this: a disk that seeks for 4 MiB under load takes less.
const MAX_HEDGE_DELAY: Duration = Duration::from_secs(1);
/// When a request is late while too few latencies are known.
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_millis(100);
/// Latencies older than this say nothing of how the server does now.
const RECENT_WINDOW: Duration = Duration::from_secs(60);
/// The median of as many last latencies says how a server does at present.
const MAX_MEDIAN_SAMPLES: usize = 16;
/// It says nothing if there are fewer.
const MIN_MEDIAN_SAMPLES: usize = 8;

/// The medians of a server's last latencies, by size class; `None` where there are too few.
pub(super) type RecentMedians = [Option<Duration>; SIZE_CLASSES];

/// The latencies of one server, from a request to the first byte of its response.
#[derive(Debug, Default)]
pub(super) struct LatencyTracker {
    classes: [LatencyWindow; SIZE_CLASSES],
}

#[derive(Debug, Default)]
struct LatencyWindow {
    /// A ring buffer: when each was recorded, and the latency.
    samples: Vec<(Instant, Duration)>,
    /// How many samples were ever recorded.
    count: usize,
    p95: Option<Duration>,
}

impl LatencyTracker {
    /// Records that the response to a request for `bytes` began after `time`, or that it had not
    /// begun by then.
    pub(super) fn record(&mut self, bytes: u64, time: Duration) {
        self.classes[size_class(bytes)].record(time);
    }

    /// After how long without a byte of the response a request for `bytes` is late.
    pub(super) fn hedge_delay(&self, bytes: u64) -> Duration {
        let p95 = self.classes[size_class(bytes)].p95;
        p95.map_or(DEFAULT_HEDGE_DELAY, |p95| p95.clamp(MIN_HEDGE_DELAY, MAX_HEDGE_DELAY))
    }

    /// The latencies of the last minute before `now`, of all sizes; `None` if there are none.
    pub(super) fn recent(&self, now: Instant) -> Option<RecentLatency> {
        let samples = self.classes.iter().flat_map(|class| &class.samples);
        let recent = samples.filter(|(at, _)| now.saturating_duration_since(*at) < RECENT_WINDOW);
        let mut latencies: Vec<Duration> = recent.map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let percentile = |part: usize| latencies.get(latencies.len() * part / 100);
        Some(RecentLatency {
            requests: latencies.len() as u64,
            p50_seconds: percentile(50)?.as_secs_f64(),
            p99_seconds: percentile(99)?.as_secs_f64(),
        })
    }

    /// The medians of the last latencies within the last minute before `now`.
    pub(super) fn recent_medians(&self, now: Instant) -> RecentMedians {
        self.classes.each_ref().map(|class| class.recent_median(now))
    }
}

impl LatencyWindow {
    /// The median of the last samples, of the last minute before `now`; `None` if they are few.
    fn recent_median(&self, now: Instant) -> Option<Duration> {
        // The latest is the one before the place of the next.
        let latest_first = (1..=self.samples.len()).map(|back| {
            let place = (self.count - back) % MAX_SAMPLES;
            self.samples[place]
        });
        let recent = latest_first.take_while(|(at, _)| now.saturating_duration_since(*at) < RECENT_WINDOW);
        let mut latencies: Vec<Duration> =
            recent.take(MAX_MEDIAN_SAMPLES).map(|(_, latency)| latency).collect();
        if latencies.len() < MIN_MEDIAN_SAMPLES {
            return None;
        }
        let middle = latencies.len() / 2;
        Some(*latencies.select_nth_unstable(middle).1)
    }

    fn record(&mut self, time: Duration) {
        let sample = (Instant::now(), time);
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples[self.count % MAX_SAMPLES] = sample;
        }
        self.count += 1;
        let is_due = self.count > MIN_SAMPLES && self.count.is_multiple_of(RECOMPUTE_INTERVAL);
        if self.count == MIN_SAMPLES || is_due {
            let mut sorted: Vec<Duration> = self.samples.iter().map(|(_, latency)| *latency).collect();
            let rank = sorted.len() * 95 / 100;
            self.p95 = Some(*sorted.select_nth_unstable(rank).1);
        }
    }
}

fn size_class(bytes: u64) -> usize {
    SIZE_CLASS_LIMITS.partition_point(|&limit| limit < bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_latencies_are_of_the_last_minute() {
        let mut latency = LatencyTracker::default();
        assert_eq!(latency.recent(Instant::now()), None);
        for i in 1..=100 {
            latency.record(if i % 2 == 0 { 1 } else { 1 << 30 }, ms(i));
        }
        let recent = latency.recent(Instant::now()).unwrap();
        assert_eq!(recent, RecentLatency { requests: 100, p50_seconds: 0.051, p99_seconds: 0.1 });
        assert_eq!(latency.recent(Instant::now() + RECENT_WINDOW), None);
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_server_that_turns_slow_is_judged_by_its_last_answers() {
        let mut latency = LatencyTracker::default();
        for _ in 1..MIN_MEDIAN_SAMPLES {
            latency.record(1, ms(1));
        }
        assert_eq!(latency.recent_medians(Instant::now()), [None; SIZE_CLASSES]);
        for _ in 0..MAX_SAMPLES {
            latency.record(1, ms(1));
        }
        assert_eq!(latency.recent_medians(Instant::now()), [Some(ms(1)), None, None]);
        for _ in 0..MAX_MEDIAN_SAMPLES / 2 {
            latency.record(1, ms(500));
        }
        assert_eq!(latency.recent_medians(Instant::now())[0], Some(ms(500)));
        assert_eq!(latency.recent_medians(Instant::now() + RECENT_WINDOW)[0], None);
    }

    #[test]
    fn a_request_is_late_when_it_is_slower_than_nearly_all_recent_ones() {
        let mut latency = LatencyTracker::default();
        assert_eq!(latency.hedge_delay(4096), DEFAULT_HEDGE_DELAY);
        for i in 1..=100 {
            latency.record(4096, ms(i));
        }
        let delay = latency.hedge_delay(16 << 10);
        assert!((ms(90)..=ms(96)).contains(&delay), "{delay:?}");
        assert_eq!(latency.hedge_delay(4 << 20), DEFAULT_HEDGE_DELAY, "another size class");
        for _ in 0..MAX_SAMPLES + RECOMPUTE_INTERVAL {
            latency.record(4096, ms(20));
        }
        assert_eq!(latency.hedge_delay(4096), ms(20), "old samples are forgotten");
    }

    #[test]
    fn the_hedge_delay_has_bounds() {
        let mut latency = LatencyTracker::default();
        for _ in 0..MAX_SAMPLES {
            latency.record(1, Duration::ZERO);
            latency.record(1 << 30, ms(60_000));
        }
        assert_eq!(
            (latency.hedge_delay(1), latency.hedge_delay(1 << 30)),
            (MIN_HEDGE_DELAY, MAX_HEDGE_DELAY)
        );
    }
}
