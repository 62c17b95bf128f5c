//! Requests as they come and are answered: who waits for one thing at a time is served where it runs ([`affinity`](super::affinity)), by CPUs that
//! are cpu_latency ([`cpu_latency`](super::cpu_latency)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::affinity::{RequestSample, ThreadAffinity};
use super::cpu_latency::CpuLatencyQos;

/// Bytes up to which the time of a request is that of its wake-ups and not of copying.
const MAX_SMALL_REQUEST: u32 = 128 << 10;

/// The requests of a mount.
pub(crate) struct RequestTracker {
    in_flight: Arc<AtomicU32>,
    affinity: Arc<ThreadAffinity>,
    cpu_latency: CpuLatencyQos,
}

/// A request that is being answered. To be dropped right before the answer is sent, since a reader that has its answer
/// may ask the next thing at once.
pub(crate) struct InFlightGuard(Arc<AtomicU32>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RequestTracker {
    pub(crate) fn new(affinity: Arc<ThreadAffinity>, cpu_latency: CpuLatencyQos) -> Self {
        Self { in_flight: Arc::default(), affinity, cpu_latency }
    }

    /// A request of `len` bytes by the thread `reader` has come, on the calling thread.
    pub(crate) fn begin(&self, reader: u32, len: u32) -> InFlightGuard {
        let is_only_one = self.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        let is_small = len <= MAX_SMALL_REQUEST;
        if is_only_one && is_small {
            self.cpu_latency.on_request();
        }
        self.affinity.observe(RequestSample { reader, is_only_one, is_small });
        InFlightGuard(self.in_flight.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn what_is_under_way_is_counted_until_it_is_answered() {
        let arrivals =
            RequestTracker::new(ThreadAffinity::new(false), CpuLatencyQos::new(false, &Metrics::new()));
        let turns: Vec<_> = (1..4).map(|reader| arrivals.begin(reader, 4096)).collect();
        assert_eq!(arrivals.in_flight.load(Ordering::Relaxed), 3);
        drop(turns);
        assert_eq!(arrivals.in_flight.load(Ordering::Relaxed), 0);
    }
}
