//! Events: a thread takes them out of the ring buffer, whoever wants them takes them from a channel.
//!
//! Samples go no further than the thread, which makes curves of them.
//!
//! The programs wake the thread up for an event, which is rare, and not for a sample: for those it looks every [`LOOK`], or as soon as they do wake
//! it because the ring fills.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use interceptor_ebpf::event;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::curve::Curve;
use super::device::Device;
use super::maps::Maps;
use crate::vital::contained;

/// How long a sample may lie in the ring before somebody looks.
const LOOK: Duration = Duration::from_millis(50);

/// How often curves are brought up to date with the counters.
const COUNT: Duration = Duration::from_secs(1);

/// Something that the kernel tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// The mount.
    pub device: Device,
    /// The FUSE node of the file.
    pub node: u64,
    /// The bytes it is about. They may reach beyond the end of the file.
    pub range: Range<u64>,
    /// The process that read.
    pub process: u32,
    /// When it happened, by the monotonic clock.
    pub at: Duration,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The granule turned hot, with this many bytes read lately.
    Hot {
        /// Bytes, of which half are forgotten in a half-life.
        bytes: u64,
    },
    /// The file is read front to back, and this is what comes next.
    Stream,
}

/// The mounts that are watched, by the number of the watch.
pub(super) type Watches = Arc<RwLock<HashMap<u32, Device>>>;

/// The curves of mounts whose granules are sampled, by the number of the watch.
pub(super) type Curves = Arc<Mutex<HashMap<u32, Curve>>>;

/// The thread that takes events out of the ring. Dropping it ends the thread.
pub(super) struct Drain {
    /// Closed to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

impl Drain {
    /// Starts it.
    pub(super) fn start(
        ring: RingBuf<MapData>,
        watches: Watches,
        curves: Curves,
        maps: Arc<Mutex<Maps>>,
        capacity: usize,
    ) -> io::Result<(Self, Receiver<Event>)> {
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let (stopped, stop) = io::pipe()?;
        let dropped = Arc::new(AtomicU64::new(0));
        let taker = Taker { ring, watches, curves, maps, sender, dropped: dropped.clone() };
        let thread = thread::Builder::new().name("ebpf-events".into()).spawn(move || taker.run(&stopped))?;
        Ok((Self { stop: Some(stop), thread: Some(thread), dropped }, receiver))
    }

    /// Events that found the channel full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It has no reason to panic, and nobody would be helped by a second one.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Taker {
    ring: RingBuf<MapData>,
    watches: Watches,
    curves: Curves,
    maps: Arc<Mutex<Maps>>,
    sender: Sender<Event>,
    dropped: Arc<AtomicU64>,
}

impl Taker {
    fn run(mut self, stopped: &PipeReader) {
        let timeout = PollTimeout::try_from(LOOK).expect("a few milliseconds");
        let mut counted = Instant::now();
        loop {
            // The ring has let go of an event that caused a panic.
            contained(|| self.take_all());
            if counted.elapsed() >= COUNT {
                counted = Instant::now();
                contained(|| self.count());
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

    fn take_all(&mut self) {
        while let Some(item) = self.ring.next() {
            let Some(event) = parse(&item) else {
                tracing::error!("a program sent {} bytes that are no event", item.len());
                continue;
            };
            // Events of a mount that is not watched any more are of no use.
            let Some(device) = self.watches.read().get(&event.watch).copied() else {
                continue;
            };
            if event.kind == event::kind::SAMPLE {
                if let Some(curve) = self.curves.lock().get_mut(&event.watch) {
                    curve.read(event.node, event.offset / event.length.max(1));
                }
                continue;
            }
            if self.sender.try_send(Event::new(&event, device)).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Taker {
    /// Brings the curves up to date, and tells the programs what they should sample.
    fn count(&self) {
        let watches = self.watches.read().clone();
        for (watch, device) in watches {
            let mut maps = self.maps.lock();
            let Ok(traffic) = maps.traffic(device.in_kernel()) else { continue };
            let below = self.curves.lock().get_mut(&watch).map(|curve| {
                curve.count(traffic.touched, traffic.sampled_again);
                curve.second();
                curve.below()
            });
            // What cannot be told is left out here.
            let _ = below.map(|below| maps.sample(device.in_kernel(), below));
        }
    }
}

fn parse(data: &[u8]) -> Option<event::Event> {
    // SAFETY: the length is checked, an event is made of numbers, for which all bytes are right, and needs not be aligned to be copied.
    (data.len() == size_of::<event::Event>())
        .then(|| unsafe { data.as_ptr().cast::<event::Event>().read_unaligned() })
}

impl Event {
    fn new(event: &event::Event, device: Device) -> Self {
        let kind = match event.kind {
            event::kind::HOT => Kind::Hot { bytes: u64::from(event.level) * interceptor_ebpf::heat::UNIT },
            _ => Kind::Stream,
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
