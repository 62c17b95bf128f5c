//! Tracks the requests in flight, to find readers that have one request in flight at a time.
//!
//! For such a reader the request threads run on its CPU ([`affinity`](super::affinity)), and the
//! CPUs stay awake ([`cpu_latency`](super::cpu_latency)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::affinity::{RequestSample, ThreadAffinity};
use super::cpu_latency::CpuLatencyQos;
use crate::telemetry::request_profile::ProfiledRequest;

/// The largest request, in bytes, whose time is that of wake-ups rather than of copying.
const MAX_SMALL_REQUEST: u32 = 128 << 10;

/// The requests in flight of a mount.
pub(crate) struct RequestTracker {
    in_flight: Arc<AtomicU32>,
    affinity: Arc<ThreadAffinity>,
    cpu_latency: CpuLatencyQos,
}

/// A request in flight. To be dropped right before the answer is sent, since the reader may send
/// its next request as soon as it has the answer.
pub(crate) struct InFlightGuard {
    in_flight: Arc<AtomicU32>,
    profiled: ProfiledRequest,
}

impl InFlightGuard {
    /// The request has read or written so many bytes.
    pub(crate) fn transferred(&mut self, bytes: usize) {
        self.profiled.transferred(bytes);
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RequestTracker {
    pub(crate) fn new(affinity: Arc<ThreadAffinity>, cpu_latency: CpuLatencyQos) -> Self {
        Self { in_flight: Arc::default(), affinity, cpu_latency }
    }

    /// Notes a request of `len` bytes from the thread `reader`, which the calling thread has
    /// received. A profile counts it as answered when the guard is dropped.
    pub(crate) fn begin(&self, reader: u32, len: u32, profiled: ProfiledRequest) -> InFlightGuard {
        let is_only_one = self.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        let is_small = len <= MAX_SMALL_REQUEST;
        if is_only_one && is_small {
            self.cpu_latency.on_request();
        }
        self.affinity.observe(RequestSample { reader, is_only_one, is_small });
        InFlightGuard { in_flight: self.in_flight.clone(), profiled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn requests_in_flight_are_counted_until_they_are_answered() {
        let metrics = Metrics::new();
        let tracker = RequestTracker::new(ThreadAffinity::new(false), CpuLatencyQos::new(false, &metrics));
        let profiled = |reader| metrics.profilers().begin("read", reader, || None);
        let guards: Vec<_> = (1..4).map(|reader| tracker.begin(reader, 4096, profiled(reader))).collect();
        assert_eq!(tracker.in_flight.load(Ordering::Relaxed), 3);
        drop(guards);
        assert_eq!(tracker.in_flight.load(Ordering::Relaxed), 0);
    }
}
