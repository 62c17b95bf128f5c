//! Events of the programs: a thread drains the ring buffer into a channel.
//!
//! Samples stop at this thread, which builds miss-ratio curves from them. It also copies what the
//! programs log into the process's log.
//!
//! The programs wake the thread up for an event, which is rare, and not for a sample. Samples are
//! drained every [`SAMPLE_INTERVAL`], or earlier if the ring buffer fills so far that the programs
//! wake the thread up.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use interceptor_ebpf::event;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::device::DeviceNumber;
use super::maps::{Maps, record};
use super::miss_ratio::CurveEstimator;
use crate::vital::contained;

/// The programs' log.
type ProgramLog = EbpfLogger<&'static dyn log::Log>;

/// How long a sample, or a record of the programs' log, may stay in its ring buffer.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// How often the programs' counters are added to the curves.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);

/// An event that the programs report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelEvent {
    /// What happened.
    pub kind: EventKind,
    /// The mount.
    pub device: DeviceNumber,
    /// The FUSE node of the file.
    pub node: u64,
    /// The bytes that the event is about. They may reach beyond the end of the file.
    pub range: Range<u64>,
    /// The process that read.
    pub process: u32,
    /// The time of the read, on the monotonic clock.
    pub at: Duration,
}

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The granule turned hot, with this many bytes read lately.
    Hot {
        /// Bytes, which decay by half in every half-life.
        bytes: u64,
    },
    /// The file is read front to back; the range is the next window of it.
    Stream,
}

/// The watched mounts, by watch id.
pub(super) type Watches = Arc<RwLock<HashMap<u32, DeviceNumber>>>;

/// The miss-ratio curves of mounts whose granules are sampled, by watch id.
pub(super) type Curves = Arc<Mutex<HashMap<u32, CurveEstimator>>>;

/// The thread that drains the ring buffer. Dropping the value ends and joins the thread.
pub(super) struct EventThread {
    /// Closed to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

impl EventThread {
    /// Starts the thread. The channel holds `capacity` events.
    pub(super) fn start(
        ring: RingBuf<MapData>,
        log: ProgramLog,
        watches: Watches,
        curves: Curves,
        maps: Arc<Mutex<Maps>>,
        capacity: usize,
    ) -> io::Result<(Self, Receiver<KernelEvent>)> {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let (stopped, stop) = io::pipe()?;
        let dropped = Arc::new(AtomicU64::new(0));
        let reader = RingReader { ring, log, watches, curves, maps, sender, dropped: dropped.clone() };
        let thread = thread::Builder::new().name("ebpf-events".into()).spawn(move || reader.run(&stopped))?;
        Ok((Self { stop: Some(stop), thread: Some(thread), dropped }, receiver))
    }

    /// The number of events that were dropped because the channel was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of the thread has been logged; raising it again here would help no caller.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The state of the thread.
struct RingReader {
    ring: RingBuf<MapData>,
    log: ProgramLog,
    watches: Watches,
    curves: Curves,
    maps: Arc<Mutex<Maps>>,
    sender: Sender<KernelEvent>,
    dropped: Arc<AtomicU64>,
}

impl RingReader {
    fn run(mut self, stopped: &PipeReader) {
        let timeout = PollTimeout::try_from(SAMPLE_INTERVAL).expect("a few milliseconds");
        let mut counted = Instant::now();
        loop {
            // The ring buffer has released an event whose handling panics.
            contained(|| self.drain());
            contained(|| self.log.flush());
            if counted.elapsed() >= COUNTER_INTERVAL {
                counted = Instant::now();
                contained(|| self.update_curves());
            }
            let ring = self.ring.as_fd();
            let mut ready =
                [PollFd::new(stopped.as_fd(), PollFlags::POLLIN), PollFd::new(ring, PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => {
                    tracing::error!("events of the kernel cannot be waited for any more: {error}");
                    return;
                }
            }
            if ready[0].any().unwrap_or(true) {
                return;
            }
        }
    }

    fn drain(&mut self) {
        while let Some(item) = self.ring.next() {
            let Some(event) = record::<event::Event>(&item) else {
                tracing::error!("a program sent {} bytes that are no event", item.len());
                continue;
            };
            // Events of a mount that is no longer watched are discarded.
            let Some(device) = self.watches.read().get(&event.watch_id).copied() else {
                continue;
            };
            if event.kind == event::kind::SAMPLE {
                if let Some(curve) = self.curves.lock().get_mut(&event.watch_id) {
                    curve.add_sample(event.node, event.offset / event.length.max(1));
                }
                continue;
            }
            if self.sender.try_send(KernelEvent::new(&event, device)).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Adds the programs' counters to the curves, and passes the curves' sampling rates to the
    /// programs.
    fn update_curves(&self) {
        let watches = self.watches.read().clone();
        for (watch_id, device) in watches {
            let mut maps = self.maps.lock();
            let Ok(traffic) = maps.traffic(device.in_kernel()) else { continue };
            let rank_limit = self.curves.lock().get_mut(&watch_id).map(|curve| {
                curve.add_counters(traffic.granules_read, traffic.repeated_samples);
                curve.limit_rate();
                curve.rank_limit()
            });
            // If the map cannot be written, the programs send more samples than needed, and
            // `add_sample` discards them.
            let _ = rank_limit.map(|limit| maps.set_sampling(device.in_kernel(), limit));
        }
    }
}

impl KernelEvent {
    fn new(event: &event::Event, device: DeviceNumber) -> Self {
        let kind = match event.kind {
            event::kind::HOT => {
                EventKind::Hot { bytes: u64::from(event.level) * interceptor_ebpf::heat::UNIT }
            }
            _ => EventKind::Stream,
        };
        Self {
            kind,
            device,
            node: event.node,
            range: event.offset..event.offset.saturating_add(event.length),
            process: event.process,
            at: Duration::from_nanos(event.time_ns),
        }
    }
}
