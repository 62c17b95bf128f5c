//! What eBPF reports of reads, on our mount and on a foreign one: exactly what was read, and
//! nothing of mounts that are not watched.
//!
//! Here a granule is a page and every page that is read is hot, so that events name every page
//! that was read, once.

mod counters;
mod events;
mod prefetch;
mod programs;
mod warnings;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use interceptor::ebpf::{DeviceNumber, EventKind, KernelEvent, Observer, ObserverSettings};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tests::{Cluster, Shared, eventually, host};

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

static CLUSTER: Shared<Cluster> = Shared::new();

/// Every page once, and no streams.
fn every_page() -> ObserverSettings {
    ObserverSettings {
        granule: PAGE,
        hot_bytes: 1,
        half_life: Duration::from_secs(1 << 20),
        stream_min_bytes: u64::MAX,
        sampled: None,
        ..ObserverSettings::default()
    }
}

/// Whether `seen` bytes are the `expected` ones, but for the few pages that the kernel does not
/// report: those for which its readahead found no memory, as happens when there is little, and
/// which it then reads one by one.
fn nearly(seen: u64, expected: u64) -> bool {
    seen <= expected && expected - seen <= 16 * PAGE
}

/// A mount that is watched.
struct WatchedMount {
    observer: Observer,
    events: tokio::sync::mpsc::Receiver<KernelEvent>,
    device: DeviceNumber,
}

impl WatchedMount {
    /// Returns with the programs attached, so that the next read is seen.
    fn start(mounted: &Path, settings: &ObserverSettings) -> Self {
        let (observer, events) = Observer::start(settings).unwrap();
        let device = DeviceNumber::of(mounted).unwrap();
        observer.watch(device).unwrap();
        Self { observer, events, device }
    }

    /// The next events, until one of node `last`, which is not among them.
    fn events_until(&mut self, last: u64) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        eventually("the last event", WAIT_TIMEOUT, || {
            while let Ok(event) = self.events.try_recv() {
                if event.node == last {
                    return Some(());
                }
                events.push(event);
            }
            None
        })
        .unwrap();
        events
    }

    /// The pages that `events` name, as ranges of bytes, and that no page is named twice.
    fn ranges(&self, node: u64, events: &[KernelEvent]) -> Vec<Range<u64>> {
        let mut pages = BTreeSet::new();
        for event in events {
            assert_eq!((event.device, event.node), (self.device, node), "{event:?}");
            assert!(matches!(event.kind, EventKind::Hot { bytes } if bytes > 0), "{event:?}");
            assert_eq!(event.process, std::process::id(), "{event:?}");
            assert!(pages.insert(event.range.start), "told twice: {event:?}");
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in pages {
            match ranges.last_mut() {
                Some(range) if range.end == page => range.end += PAGE,
                _ => ranges.push(page..page + PAGE),
            }
        }
        ranges
    }
}

/// Whether the programs can be used here; the test returns if not.
fn can_observe() -> bool {
    let lack = match Observer::start(&every_page()) {
        Err(error) => Some(error.to_string()),
        Ok((observer, _)) => {
            let blind = observer
                .probes()
                .iter()
                .find(|probe| probe.attached_to.is_none() && probe.capability != "passthrough reads");
            blind.map(|probe| format!("{}: {}", probe.capability, probe.reason.clone().unwrap_or_default()))
        }
    };
    if let Some(reason) = &lack {
        host::skipped(reason);
    }
    lack.is_none()
}

/// Reads one page, and so has one event sent.
fn read_page(path: &Path, page: u64) {
    File::open(path).unwrap().read_exact_at(&mut [0], page * PAGE).unwrap();
}

/// Keeps the kernel from reading ahead: what is asked for is what is read, to the page.
fn disable_readahead(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
}

/// The number of eBPF programs that a process has open: without an open descriptor a program is
/// unloaded, unless it is pinned.
fn programs_of(pid: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-prog")).count()
}
