//! The counters of an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use daemon::prometheus::Exposition;

use crate::Refusal;
use crate::protocol::Transport;

/// Counters of one engine. Cheap to share.
#[derive(Debug, Default)]
pub struct Metrics {
    flows: [Flow; Transport::ALL.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
    leases_over: AtomicU64,
}

/// The reads and sessions of one transport.
#[derive(Debug, Default)]
struct Flow {
    reads: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    staging: AtomicU64,
}

impl Metrics {
    /// Counts a read that was answered with `bytes` bytes.
    pub(crate) fn read(&self, transport: Transport, bytes: u64) {
        self.flow(transport).reads.fetch_add(1, Ordering::Relaxed);
        self.flow(transport).bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a request or connection that was refused.
    pub(crate) fn refused(&self, refusal: Refusal) {
        if let Some(at) = Refusal::ALL.iter().position(|&known| known == refusal) {
            self.refusals[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts grants that their client did not give back in time.
    #[cfg(feature = "verbs")]
    pub(crate) fn leases_over(&self, count: u64) {
        self.leases_over.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts a session for as long as the value lives.
    pub(crate) fn connection(self: &Arc<Self>, transport: Transport) -> Level {
        Level::raise(self, Gauge::Connections, transport, 1)
    }

    /// Counts staging memory, which holds bytes of needles on their way to a client, for as long as
    /// the value lives.
    pub(crate) fn staging(self: &Arc<Self>, transport: Transport, bytes: u64) -> Level {
        Level::raise(self, Gauge::Staging, transport, bytes)
    }

    /// All of them for `/metrics`. The caller may add further families.
    pub fn exposition(&self) -> Exposition {
        let mut out = Exposition::default();
        let mut by_transport = |name, kind, help, value: fn(&Flow) -> &AtomicU64| {
            out.family(name, kind, help);
            for transport in Transport::ALL {
                let value = value(self.flow(transport)).load(Ordering::Relaxed);
                out.sample(&[("transport", transport.name())], value);
            }
        };
        by_transport("rdma_engine_reads_total", "counter", "Reads that were answered with data.", |flow| {
            &flow.reads
        });
        by_transport(
            "rdma_engine_bytes_total",
            "counter",
            "Bytes of data that reads were answered with.",
            |flow| &flow.bytes,
        );
        by_transport("rdma_engine_connections", "gauge", "Sessions that are open.", |flow| &flow.connections);
        by_transport(
            "rdma_engine_staging_bytes",
            "gauge",
            "Memory that holds data on its way to clients.",
            |flow| &flow.staging,
        );
        out.family("rdma_engine_refusals_total", "counter", "Requests and connections that were refused.");
        for (refusal, count) in Refusal::ALL.iter().zip(&self.refusals) {
            out.sample(&[("reason", refusal.label())], count.load(Ordering::Relaxed));
        }
        out.family(
            "rdma_engine_leases_over_total",
            "counter",
            "Grants that clients did not give back in time.",
        )
        .sample(&[], self.leases_over.load(Ordering::Relaxed));
        out
    }

    fn flow(&self, transport: Transport) -> &Flow {
        match transport {
            Transport::Verbs => &self.flows[0],
            Transport::Local => &self.flows[1],
            Transport::Tcp => &self.flows[2],
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Gauge {
    Connections,
    Staging,
}

/// A share of a gauge, taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Level {
    metrics: Arc<Metrics>,
    gauge: Gauge,
    transport: Transport,
    amount: u64,
}

impl Level {
    fn raise(metrics: &Arc<Metrics>, gauge: Gauge, transport: Transport, amount: u64) -> Self {
        let level = Self { metrics: metrics.clone(), gauge, transport, amount };
        level.value().fetch_add(amount, Ordering::Relaxed);
        level
    }

    fn value(&self) -> &AtomicU64 {
        let flow = self.metrics.flow(self.transport);
        match self.gauge {
            Gauge::Connections => &flow.connections,
            Gauge::Staging => &flow.staging,
        }
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        self.value().fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_fall_again_and_counters_do_not() {
        let metrics = Arc::new(Metrics::default());
        metrics.read(Transport::Local, 10);
        metrics.refused(Refusal::NoNeedle);
        let session = metrics.connection(Transport::Tcp);
        let staging = metrics.staging(Transport::Tcp, 4096);
        let text = metrics.exposition().finish();
        for line in [
            "rdma_engine_reads_total{transport=\"local\"} 1\n",
            "rdma_engine_bytes_total{transport=\"local\"} 10\n",
            "rdma_engine_connections{transport=\"tcp\"} 1\n",
            "rdma_engine_staging_bytes{transport=\"tcp\"} 4096\n",
            "rdma_engine_refusals_total{reason=\"no_needle\"} 1\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        drop((session, staging));
        let text = metrics.exposition().finish();
        assert!(text.contains("rdma_engine_connections{transport=\"tcp\"} 0\n"));
        assert!(text.contains("rdma_engine_staging_bytes{transport=\"tcp\"} 0\n"));
    }
}
