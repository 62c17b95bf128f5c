//! The engine's side of `verbs`: offers its ports, connects queue pairs, and stages data where clients fetch it by RDMA READ.
//!
//! ```text
//!  Fabric ─ offers() ─► bootstrap ─ accept() ─► Rdma, one a session: device context, protection domain, queue pair
//!                                                │ stage()          and one registered region, the Shelf
//!                                                ▼
//!     .dat ── pread ──► Shelf ── Held ─ lend() ─► Loan, until Done or the lease is over
//! ```
//!
//! Everything of a session is its own, down to the open device. So an rkey opens nothing of another session's, and all of it goes with the
//! session. Data the engine only stages: clients read it, and the device answers without us. Requests and short answers are messages (`inbox`).

mod inbox;
mod shelf;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub(crate) use self::inbox::Inbox;
use self::shelf::{Extent, Held, Shelf, Source};
use super::admission::StagingShare;
use super::session::{Located, Ticket};
use crate::metrics::Metrics;
use crate::protocol::{
    Grant, MAX_ANSWER_SIZE, MAX_REQUEST_SIZE, MESSAGE_WINDOW, QueuePairEnd, Transport, VerbsOffer,
};
use crate::store::{DataFile, ReadMode, StoreError};
use crate::transport::end;
use crate::transport::messages::{self, Outbox};
use crate::verbs::{
    Device, DeviceContext, LocalMemory, MemoryAccess, Pages, Poller, PortSelection, PortSelector,
    PreparedQueuePair, ProtectionDomain, QueuePair, RegisteredBuffer, Timeouts, VerbsError, devices,
};

/// For how long the list of devices is good: links go up and down, and addresses come and go.
const FRESH: Duration = Duration::from_secs(5);

/// Most ports that one client is offered.
const MOST_OFFERS: usize = 16;

/// Data from this many bytes on is staged on a thread of its own.
const LARGE: u32 = 128 << 10;

/// Each request that is not answered yet may be followed by one message that gives up or gives back.
const RECEIVES: usize = 2 * MESSAGE_WINDOW;

/// Answers that the client has and the device has not told us of yet take room, too.
const SENDS: usize = 2 * MESSAGE_WINDOW;

const QUEUE: crate::verbs::QueuePairOptions = crate::verbs::QueuePairOptions {
    send_depth: SENDS as u32,
    receive_depth: RECEIVES as u32,
    inline: messages::INLINE,
    serve_reads: true,
};

/// The RDMA devices of this host, and what sessions may take of its memory.
pub(crate) struct Fabric {
    device: Option<String>,
    seen: Mutex<Option<(Instant, Vec<Device>)>>,
    staging: usize,
    lease: Duration,
    /// Bytes of staging memory that further sessions may take.
    left: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

/// Staging memory of one session, taken from what all may take.
struct Share {
    bytes: u64,
    left: Arc<AtomicU64>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl Fabric {
    /// What there is, or why there is nothing. `device` limits it to one.
    pub(crate) fn find(options: &super::EngineOptions, metrics: &Arc<Metrics>) -> Result<Self, VerbsError> {
        let fabric = Self {
            device: options.device.clone(),
            seen: Mutex::new(None),
            staging: options.staging.max(1).next_multiple_of(shelf::GRAIN),
            lease: options.lease,
            left: Arc::new(AtomicU64::new(options.all_staging)),
            metrics: metrics.clone(),
        };
        for place in fabric.places(None)? {
            let address = place.gid.map_or("no GID".to_owned(), |entry| entry.gid.to_string());
            tracing::info!(device = place.device, port = place.port, address, "offering RDMA");
        }
        Ok(fabric)
    }

    /// Bytes of staging memory that a session takes.
    pub(crate) fn staging(&self) -> u64 {
        self.staging as u64
    }

    /// The ports to offer to a client that came to `near`, best first.
    pub(crate) fn offers(&self, near: IpAddr) -> Vec<VerbsOffer> {
        let places = match self.places(Some(near)) {
            Ok(places) => places,
            Err(error) => {
                tracing::debug!(%error, "no RDMA to offer");
                return Vec::new();
            }
        };
        let seen = self.seen.lock();
        let devices = seen.as_ref().map_or(&[][..], |(_, devices)| devices);
        let offer = |(number, place): (usize, &PortSelection)| {
            let device = devices.iter().find(|device| device.name == place.device)?;
            let port = device.ports.iter().find(|port| port.number == place.port)?;
            Some(VerbsOffer {
                port: u8::try_from(number).ok()?,
                gid: place.gid.map_or([0; 16], |entry| entry.gid.0),
                lid: port.lid,
                gigabits: u16::try_from(port.speed / 1000).unwrap_or(u16::MAX),
            })
        };
        places.iter().take(MOST_OFFERS).enumerate().filter_map(offer).collect()
    }

    /// Connects to the client's `peer`, which chose among the [`offers`](Self::offers) to who came to `near`. Returns our end of it. Waits for the device.
    ///
    /// # Errors
    /// In text, for the log: the client has nothing to do with it.
    pub(super) fn accept(
        &self,
        near: IpAddr,
        peer: &QueuePairEnd,
        of_peer: StagingShare,
    ) -> Result<(Arc<Rdma>, Inbox, QueuePairEnd), String> {
        let share = self.share().ok_or("all staging memory is taken")?;
        let connect = || -> Result<_, VerbsError> {
            let places = self.places(Some(near))?;
            let place = places.get(usize::from(peer.port));
            let place = place.ok_or(VerbsError::Endpoint("it names a port that was not offered"))?;
            let endpoint =
                end::endpoint(peer).map_err(|_| VerbsError::Endpoint("its MTU is none of verbs"))?;
            let context = DeviceContext::open(&place.device)?;
            let domain = ProtectionDomain::new(&context)?;
            let poller = Poller::new(&context, QUEUE.send_depth + QUEUE.receive_depth)?;
            let pages =
                Pages::new(self.staging).map_err(|source| VerbsError::Call { call: "mmap", source })?;
            let memory = domain.register(pages, MemoryAccess::RemoteRead)?.into_slot();
            let rkey = memory.remote().rkey;
            let prepared = PreparedQueuePair::new(&domain, poller.queue(), place, QUEUE)?;
            for slot in messages::slots(&domain, RECEIVES, MAX_REQUEST_SIZE)? {
                let posted = prepared.post_receive(slot, 0);
                posted.map_err(|_| VerbsError::Endpoint("no room for its requests"))?;
            }
            let outbox = Outbox::new(messages::slots(&domain, MESSAGE_WINDOW, MAX_ANSWER_SIZE)?);
            let own = end::describe(&prepared.endpoint(), peer.port);
            let pair = prepared.handshake(&endpoint, Timeouts::default())?;
            let rdma = Arc::new(Rdma {
                pair,
                outbox,
                staging: Arc::new(Mutex::new(Shelf::new(memory))),
                loans: Mutex::default(),
                rkey,
                lease: self.lease,
                metrics: self.metrics.clone(),
                _share: (share, of_peer),
            });
            Ok((rdma.clone(), Inbox { poller, rdma }, own))
        };
        connect().map_err(|error| error.to_string())
    }

    fn places(&self, near: Option<IpAddr>) -> Result<Vec<PortSelection>, VerbsError> {
        let mut seen = self.seen.lock();
        if seen.as_ref().is_none_or(|(when, _)| when.elapsed() > FRESH) {
            *seen = Some((Instant::now(), devices()?));
        }
        let found = seen.as_ref().map_or(&[][..], |(_, devices)| devices);
        PortSelector { device: self.device.clone(), near, ..PortSelector::default() }.places(found)
    }

    fn share(&self) -> Option<Share> {
        let bytes = self.staging();
        let take = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Share { bytes, left: self.left.clone() })
    }
}

impl Extent for RegisteredBuffer {
    fn start(&self) -> u64 {
        LocalMemory::start(self) as u64
    }

    fn length(&self) -> usize {
        self.len()
    }

    fn split(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }

    fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        RegisteredBuffer::join(self, next)
    }
}

type Staging = Arc<Mutex<Shelf<RegisteredBuffer, Arc<DataFile>>>>;

/// The RDMA part of one session.
pub(crate) struct Rdma {
    // First: when it is gone, the client reads nothing more.
    pair: QueuePair<RegisteredBuffer>,
    outbox: Outbox,
    loans: Mutex<HashMap<u64, Loan>>,
    staging: Staging,
    rkey: u32,
    lease: Duration,
    metrics: Arc<Metrics>,
    _share: (Share, StagingShare),
}

/// What was granted: the request is in progress until it is given back.
struct Loan {
    _ticket: Ticket,
    _staged: Staged,
    until: Instant,
}

/// Staged data that nothing else takes the place of as long as this lives.
pub(crate) struct Staged {
    held: Held,
    length: u32,
    rkey: u32,
    lease: Duration,
    staging: Staging,
}

impl Staged {
    /// What the client is told of it.
    pub(crate) fn grant(&self) -> Grant {
        let lease_ms = u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX);
        Grant { address: self.held.address, rkey: self.rkey, lease_ms }
    }

    /// How many bytes, as a number to count.
    pub(crate) fn length(&self) -> u64 {
        self.length.into()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.staging.lock().release(self.held.number);
    }
}

impl Rdma {
    /// Sends a message, if there is room for it. Returns whether it went.
    pub(crate) fn send(&self, message: &[u8]) -> bool {
        self.outbox.send(&self.pair, message, |slot| slot, Some)
    }

    /// Ends the queue pair: the client reads nothing more, and no request comes from it.
    pub(crate) fn end(&self) {
        // If the device does not even do that, dropping the queue pair is what is left.
        let _ = self.pair.abort();
    }

    /// Reads what was located into staging memory, unless it is there. `None` if there is no room: then it goes in line.
    pub(crate) fn stage(&self, located: &Located, mode: ReadMode) -> Result<Option<Staged>, StoreError> {
        let file = &located.record.file;
        let length = located.needle.length;
        let source = Source { file: Arc::as_ptr(file) as usize, position: located.position(), length };
        let (rkey, lease) = (self.rkey, self.lease);
        let hold = |held| Staged { held, length, rkey, lease, staging: self.staging.clone() };
        if let Some(held) = self.staging.lock().hold(source) {
            return Ok(Some(hold(held)));
        }
        if mode == ReadMode::CachedOnly && length >= LARGE {
            return Err(StoreError::WouldBlock);
        }
        let Some(mut slot) = self.room(length as usize) else { return Ok(None) };
        let read = located.record.read_into(located.offset, &mut slot[..length as usize], mode);
        let mut shelf = self.staging.lock();
        match read {
            Ok(()) => {
                let counted = self.metrics.staging(Transport::Verbs, length.into());
                let held = shelf.put(source, slot, file.clone(), counted);
                drop(shelf);
                Ok(Some(hold(held)))
            }
            Err(error) => {
                shelf.give_back(slot);
                Err(error)
            }
        }
    }

    /// Staging memory; what clients did not give back in time is taken back for it.
    fn room(&self, length: usize) -> Option<RegisteredBuffer> {
        let slot = self.staging.lock().take(length);
        if slot.is_some() {
            return slot;
        }
        self.expire();
        self.staging.lock().take(length)
    }

    /// Lends staged data to the client, until it is done with the request or the lease is over.
    pub(crate) fn lend(&self, ticket: Ticket, staged: Staged) {
        let number = ticket.number();
        let loan = Loan { _ticket: ticket, _staged: staged, until: Instant::now() + self.lease };
        self.loans.lock().insert(number, loan);
    }

    /// The client is done with the request of this number. If its lease was over before, there is nothing to do.
    pub(crate) fn done(&self, number: u64) {
        let loan = self.loans.lock().remove(&number);
        drop(loan);
    }

    /// Takes back what was lent for longer than the lease.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let expired: Vec<Loan> =
            self.loans.lock().extract_if(|_, loan| loan.until <= now).map(|(_, loan)| loan).collect();
        self.metrics.leases_over(expired.len() as u64);
    }
}
