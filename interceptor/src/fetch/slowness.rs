//! Which servers are much slower than the others.
//!
//! The last few answers decide, so that a server that turns slow is named after some of them,
//! however many fast ones it has sent before. Servers are compared by size class: one that is asked
//! for more at a time takes longer and is not slow. The usual speed is that of the faster servers
//! (the lower quartile), so that also a majority that turns slow is named. With a single server
//! there is nothing to compare.

use std::time::Duration;

use super::latency::{RecentMedians, SIZE_CLASSES};
use crate::telemetry::health::Slowness;

/// A server that takes longer than this for half of its answers may be called slow: a disk that
/// seeks, and has no queue, takes less.
const MIN_SLOW_LATENCY: Duration = Duration::from_millis(30);
/// How many times slower than usual it is then.
const SLOW_FACTOR: u32 = 4;

/// How slow each server is beside the others, in the order of `servers`; `None` if it is not slow.
pub(super) fn compare(servers: &[RecentMedians]) -> Vec<Option<Slowness>> {
    let usual: [Option<Duration>; SIZE_CLASSES] = std::array::from_fn(|class| {
        let mut known: Vec<Duration> = servers.iter().filter_map(|medians| medians[class]).collect();
        known.sort_unstable();
        // Of up to four the fastest.
        known.get(known.len().saturating_sub(1) / 4).copied()
    });
    let slowness = |medians: &RecentMedians| {
        let classes = medians.iter().zip(usual).filter_map(|(median, usual)| Some(((*median)?, usual?)));
        let slow =
            classes.filter(|(median, usual)| *median >= MIN_SLOW_LATENCY && *median >= SLOW_FACTOR * *usual);
        let (median, usual) = slow.max_by_key(|(median, _)| *median)?;
        Some(Slowness { p50_seconds: median.as_secs_f64(), usual_p50_seconds: usual.as_secs_f64() })
    };
    servers.iter().map(slowness).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    fn slow_ones(servers: &[RecentMedians]) -> Vec<bool> {
        compare(servers).iter().map(Option::is_some).collect()
    }

    #[test]
    fn a_server_much_slower_than_the_others_is_slow() {
        let of = |millis: &[u64]| {
            let servers: Vec<RecentMedians> = millis.iter().map(|&median| [ms(median), None, None]).collect();
            slow_ones(&servers)
        };
        assert_eq!(of(&[2, 200, 3]), [false, true, false]);
        assert_eq!(of(&[200, 2]), [true, false]);
        assert_eq!(of(&[200, 2, 200]), [true, false, true], "most are slow");
        assert_eq!(of(&[200, 200, 200]), [false; 3], "nobody is faster");
        assert_eq!(of(&[1, 20, 1]), [false; 3], "disks do that");
        assert_eq!(of(&[200]), [false], "there is nothing to compare");
        assert_eq!(of(&[]), [] as [bool; 0]);
        let found = compare(&[[ms(2), None, None], [ms(200), None, None]])[1].unwrap();
        assert_eq!(found, Slowness { p50_seconds: 0.2, usual_p50_seconds: 0.002 });
    }

    #[test]
    fn only_answers_of_like_sizes_are_compared() {
        let small = [ms(2), None, None];
        assert_eq!(slow_ones(&[small, [None, None, ms(200)]]), [false; 2]);
        assert_eq!(slow_ones(&[small, [ms(2), None, ms(200)], [None, None, ms(20)]]), [false, true, false]);
    }
}
