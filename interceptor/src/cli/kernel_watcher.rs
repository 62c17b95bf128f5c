//! The eBPF observer of a mount of this process: events go to the reader, counters to the metrics,
//! and missing capabilities to the status API.
//!
//! ```text
//!  ring buffer ──► thread `ebpf-events` ──► channel ──► `follow`
//!     ──► WatchedMount::version(node) ──► Reader::hint_hot_range, Reader::hint_stream
//! ```
//!
//! Reads do not depend on it: a failure here is reported, and the mount goes on without.

mod activity;
mod calls;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use interceptor_ebpf::records::{Latency, Traffic};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use super::host;
use crate::ebpf::{
    DeviceNumber, EbpfError, EventKind, KernelEvent, Observer, ObserverSettings, ProbeStatus, capability,
};
use crate::mount::Mount;
use crate::namespace::NodeId;
use crate::overlay::Overlay;
use crate::read::{FileVersion, Reader};
use crate::telemetry::read_followers::ReadFollowers;
use crate::telemetry::{
    CapabilityReport, FlowTotal, KernelCounts, KernelEventKind, KernelReads, Metrics, Status,
};
use crate::vital::contained;

/// `FUSE_READ` of `linux/fuse.h`.
const FUSE_READ: u32 = 15;

/// Programs that are being loaded, with what they will tell.
pub(super) type ObserverLoading = JoinHandle<Result<(Observer, Receiver<KernelEvent>), EbpfError>>;

/// A mount of this process, and what its files are.
pub(super) trait WatchedMount: Send + Sync + 'static {
    /// Its device number, `MAJOR:MINOR`.
    fn device(&self) -> &str;

    /// Which version of a file the reader serves for a node, if it does.
    fn version(&self, node: NodeId) -> Option<Arc<FileVersion>>;

    /// Where the file of a node is, for people.
    fn path(&self, node: NodeId) -> Option<String>;

    /// The path under which `followers` know the reads of a node's file.
    fn traced_path(&self, node: NodeId, followers: &ReadFollowers) -> Option<String>;
}

impl WatchedMount for Mount {
    fn device(&self) -> &str {
        Mount::device(self)
    }

    fn version(&self, node: NodeId) -> Option<Arc<FileVersion>> {
        Mount::version(self, node)
    }

    fn path(&self, node: NodeId) -> Option<String> {
        Some(Mount::version(self, node)?.path().to_owned())
    }

    fn traced_path(&self, node: NodeId, _: &ReadFollowers) -> Option<String> {
        WatchedMount::path(self, node)
    }
}

impl WatchedMount for Overlay {
    fn device(&self) -> &str {
        Overlay::device(self)
    }

    fn version(&self, node: NodeId) -> Option<Arc<FileVersion>> {
        self.served(node)
    }

    fn path(&self, node: NodeId) -> Option<String> {
        self.path_of(node)
    }

    fn traced_path(&self, node: NodeId, followers: &ReadFollowers) -> Option<String> {
        Some(followers.path_of(&self.path_of(node)?))
    }
}

/// Watches a mount until it is dropped.
pub(super) struct KernelWatcher {
    follower: JoinHandle<()>,
    /// The only strong reference; all others are weak, so that dropping this unloads the programs.
    _observer: Arc<Observer>,
}

impl Drop for KernelWatcher {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// For one mount.
fn settings() -> ObserverSettings {
    ObserverSettings { mounts: 1, inserts: false, ..ObserverSettings::default() }
}

/// Begins to load the programs.
pub(super) fn load() -> ObserverLoading {
    tokio::task::spawn_blocking(|| Observer::start(&settings()))
}

/// Watches `mount` with the `programs`. Reports if they are switched off or cannot be loaded. Hot
/// ranges and streams are hinted to `reader`, if there is one. Holds no strong reference to the
/// mount.
pub(super) async fn watch<W: WatchedMount>(
    programs: Option<ObserverLoading>,
    mount: &Arc<W>,
    reader: Option<Arc<Reader>>,
    status: &Arc<Status>,
) -> Option<KernelWatcher> {
    let Some(loading) = programs else {
        tracing::info!("what the kernel reads by itself is not watched: eBPF is switched off by --no-ebpf");
        return None;
    };
    let device = DeviceNumber::parse(mount.device())?;
    let loaded = loading.await.unwrap_or_else(|panic| Err(EbpfError::Thread(std::io::Error::other(panic))));
    let watched = loaded.and_then(|(observer, events)| observer.watch(device).map(|()| (observer, events)));
    let (observer, events) = match watched {
        Ok(watched) => watched,
        Err(error) => {
            host::go_without(&host::no_ebpf(&error), status);
            return None;
        }
    };
    tracing::info!("reads that the kernel answers by itself are watched (eBPF)");
    observer.probes().iter().for_each(|probe| host::go_without(&host::ebpf_probe(probe.clone()), status));
    status.set_capabilities(capabilities(&observer));
    let observer = Arc::new(observer);
    count(status.metrics(), &observer, device);
    status.set_activity(activity::gauge(&observer, device, mount));
    status.set_call_source(calls::source(device, mount, status.metrics()));
    let sampled = Arc::downgrade(&observer);
    status.set_miss_ratio_curve(Box::new(move || sampled.upgrade()?.curve(device).ok()?));
    let follower = tokio::spawn(follow(events, Arc::downgrade(mount), reader));
    Some(KernelWatcher { follower, _observer: observer })
}

fn capabilities(observer: &Observer) -> Vec<CapabilityReport> {
    let report = |probe: &ProbeStatus| CapabilityReport {
        capability: probe.capability.to_owned(),
        attached_to: probe.attached_to.clone(),
        reason: probe.reason.clone(),
    };
    observer.probes().iter().map(report).collect()
}

/// Acts on events as they come.
async fn follow<W: WatchedMount>(
    mut events: Receiver<KernelEvent>,
    mount: Weak<W>,
    reader: Option<Arc<Reader>>,
) {
    let window = settings().stream_window;
    while let Some(event) = events.recv().await {
        let Some(reader) = &reader else { continue };
        // The kernel may have forgotten the node meanwhile. If its number stands for another
        // version by now, that version is ranked too high or fetched in vain; but its own bytes
        // are fetched and given to the page cache.
        let Some(version) = mount.upgrade().and_then(|mount| mount.version(event.node)) else { continue };
        let kind = contained(|| match event.kind {
            EventKind::Hot { .. } => {
                reader.hint_hot_range(&version, event.range);
                KernelEventKind::Hot
            }
            EventKind::Stream => {
                let head = event.range.end.saturating_sub(window);
                reader.hint_stream(&version, head, event.range);
                KernelEventKind::Stream
            }
        });
        let Some(kind) = kind else { continue };
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        reader.metrics().kernel_event_handled(kind, now.saturating_sub(event.at));
    }
}

/// Has the metrics tell what the programs have counted, as long as they are there.
fn count(metrics: &Metrics, observer: &Arc<Observer>, device: DeviceNumber) {
    let [cached, mapped, requests, passthrough] =
        [capability::CACHED_READS, capability::MAPPED_WINDOWS, capability::REQUESTS, capability::PASSTHROUGH]
            .map(|capability| observer.sees(capability));
    let observer = Arc::downgrade(observer);
    // Readahead requests more than is read, so the difference may shrink for a while; a counter
    // may not.
    let most_from_cache = AtomicU64::new(0);
    metrics.set_kernel(Box::new(move || {
        let observer = observer.upgrade()?;
        let (traffic, latency) = (observer.traffic(device).ok()?, observer.latency(device).ok()?);
        let ways = [
            (cached, "cached", traffic.cached_reads, traffic.cached_bytes),
            (requests, "direct", traffic.direct_reads, traffic.direct_bytes),
            (mapped, "mapped", traffic.map_windows, traffic.map_bytes),
            (passthrough, "passthrough", traffic.passthrough_reads, traffic.passthrough_bytes),
        ];
        let seen = ways.into_iter().filter(|(seen, ..)| *seen);
        let from_cache = traffic.cached_bytes.saturating_sub(traffic.fill_bytes);
        let from_cache = most_from_cache.fetch_max(from_cache, Relaxed).max(from_cache);
        Some(KernelCounts {
            reads: seen.map(|(_, way, count, bytes)| (way, KernelReads { count, bytes })).collect(),
            page_cache_bytes: (cached && requests).then_some(from_cache),
            requests: by_request(latency),
            lost: lost(&traffic, &observer),
        })
    }));
}

fn lost(traffic: &Traffic, observer: &Observer) -> BTreeMap<&'static str, u64> {
    [("ring", traffic.lost_events), ("queue", observer.dropped())].into()
}

/// Reads, and all the rest together.
fn by_request(latency: impl IntoIterator<Item = (u32, Latency)>) -> BTreeMap<&'static str, FlowTotal> {
    let mut requests: BTreeMap<_, _> = ["read", "other"].map(|name| (name, FlowTotal::default())).into();
    for (opcode, part) in latency {
        let sum = requests.entry(if opcode == FUSE_READ { "read" } else { "other" }).or_default();
        sum.buckets.iter_mut().zip(part.buckets).for_each(|(sum, part)| *sum += part);
        sum.nanos = sum.nanos.wrapping_add(part.nanos);
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_to_read_are_told_from_others() {
        let of = |bucket: usize| {
            let mut latency = Latency { nanos: 10, ..Latency::NONE };
            latency.buckets[bucket] = 1;
            latency
        };
        let requests = by_request([(FUSE_READ, of(3)), (1, of(4)), (14, of(4))]);
        assert_eq!(
            (requests["read"].count(), requests["read"].nanos, requests["read"].buckets[3]),
            (1, 10, 1)
        );
        assert_eq!((requests["other"].count(), requests["other"].nanos), (2, 20));
    }
}
