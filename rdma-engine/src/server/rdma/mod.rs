//! The engine's side of `verbs`: offers its ports, connects queue pairs, and stages data where
//! clients fetch it by RDMA READ.
//!
//! ```text
//!  RdmaDevices ─ offers() ─► bootstrap ─ accept() ─► QueuePairSession, one per session:
//!                                                     │  device context, protection domain,
//!                                                     │  queue pair, one registered region
//!                                                     │ stage()
//!                                                     ▼
//!     .dat ── pread ──► StagingPool ── StagedRange ─ lease() ─► ReadLease, until the client is
//!                                                               done or the lease is over
//! ```
//!
//! A session shares nothing with other sessions, not even the open device. So an rkey opens
//! nothing of another session's, and all of it is freed with the session. The engine only stages
//! data: clients read it, and the device answers without the engine. Requests and short answers
//! are messages (`request_receiver`).

mod request_receiver;
mod staging_pool;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::request_receiver::MessageReceiver;
use self::staging_pool::{MemoryRange, SourceRange, StagedRange, StagingPool};
use super::admission::StagingShare;
use super::rdma_session::{AcceptedPair, RdmaHost, RdmaSession, StagedData};
use super::session::{LocatedRange, RequestTicket};
use crate::metrics::Metrics;
use crate::protocol::{
    Grant, MAX_ANSWER_SIZE, MAX_REQUEST_SIZE, MESSAGE_WINDOW, QueuePairEnd, Transport, VerbsOffer,
};
use crate::store::{DataFile, ReadMode, StoreError};
use crate::transport::messages::{self, SendBuffers};
use crate::transport::queue_pair_end;
use crate::verbs::{
    Device, DeviceContext, LocalMemory, MemoryAccess, Pages, Poller, PortSelection, PortSelector,
    PreparedQueuePair, ProtectionDomain, QueuePair, QueuePairOptions, RegisteredBuffer, Timeouts, VerbsError,
    devices,
};

/// How old the list of devices may be: links go up and down, and addresses change.
const MAX_DEVICES_AGE: Duration = Duration::from_secs(5);

/// The most ports that one client is offered.
const MAX_OFFERS: usize = 16;

/// Data from this many bytes on is staged on a thread that may wait.
const MIN_BLOCKING_SIZE: u32 = 128 << 10;

/// Each unanswered request may be followed by one message that cancels it or gives back its grant.
const RECEIVE_DEPTH: usize = 2 * MESSAGE_WINDOW;

/// Answers that the client has received, and the device has not reported yet, take room, too.
const SEND_DEPTH: usize = 2 * MESSAGE_WINDOW;

const QUEUE_PAIR: QueuePairOptions = QueuePairOptions {
    send_depth: SEND_DEPTH as u32,
    receive_depth: RECEIVE_DEPTH as u32,
    inline: messages::MAX_INLINE_MESSAGE,
    serve_reads: true,
};

/// The RDMA devices of this host, and the staging memory that sessions may take.
pub(super) struct RdmaDevices {
    /// The only device to use, if one was named.
    device: Option<String>,
    /// The devices, and when they were listed.
    listed: Mutex<Option<(Instant, Vec<Device>)>>,
    staging_size: usize,
    lease: Duration,
    /// Bytes of staging memory that further sessions may take.
    unused_staging: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

/// The staging memory of one session, taken from that of all sessions.
struct SessionShare {
    bytes: u64,
    unused: Arc<AtomicU64>,
}

impl Drop for SessionShare {
    fn drop(&mut self) {
        self.unused.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

impl RdmaDevices {
    /// Finds the devices, limited to one if the options name it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn find(options: &super::EngineOptions, metrics: &Arc<Metrics>) -> Result<Self, VerbsError> {
        let devices = Self {
            device: options.device.clone(),
            listed: Mutex::new(None),
            staging_size: options.staging.max(1).next_multiple_of(staging_pool::GRANULE),
            lease: options.lease,
            unused_staging: Arc::new(AtomicU64::new(options.all_staging)),
            metrics: metrics.clone(),
        };
        for port in devices.ports(None)? {
            let address = port.gid.map_or("no GID".to_owned(), |entry| entry.gid.to_string());
            tracing::info!(device = port.device, port = port.port, address, "offering RDMA");
        }
        Ok(devices)
    }

    /// The ports for a client that connected to the address `near`, best first.
    fn ports(&self, near: Option<IpAddr>) -> Result<Vec<PortSelection>, VerbsError> {
        let mut listed = self.listed.lock();
        if listed.as_ref().is_none_or(|(when, _)| when.elapsed() > MAX_DEVICES_AGE) {
            *listed = Some((Instant::now(), devices()?));
        }
        let found = listed.as_ref().map_or(&[][..], |(_, devices)| devices);
        PortSelector { device: self.device.clone(), near, ..PortSelector::default() }.select(found)
    }

    fn take_share(&self) -> Option<SessionShare> {
        let bytes = self.staging_size();
        let take = |unused: u64| unused.checked_sub(bytes);
        self.unused_staging.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(SessionShare { bytes, unused: self.unused_staging.clone() })
    }

    fn connect(
        &self,
        near: IpAddr,
        peer: &QueuePairEnd,
        shares: (SessionShare, StagingShare),
    ) -> Result<AcceptedPair, VerbsError> {
        let ports = self.ports(Some(near))?;
        let port = ports.get(usize::from(peer.port));
        let port = port.ok_or(VerbsError::Endpoint("it names a port that was not offered"))?;
        let endpoint =
            queue_pair_end::endpoint(peer).map_err(|_| VerbsError::Endpoint("its MTU is none of verbs"))?;
        let context = DeviceContext::open(&port.device)?;
        let domain = ProtectionDomain::new(&context)?;
        let poller = Poller::new(&context, QUEUE_PAIR.send_depth + QUEUE_PAIR.receive_depth)?;
        let pages =
            Pages::new(self.staging_size).map_err(|source| VerbsError::Call { call: "mmap", source })?;
        let memory = domain.register(pages, MemoryAccess::RemoteRead)?.into_buffer();
        let rkey = memory.remote().rkey;
        let prepared = PreparedQueuePair::new(&domain, poller.queue(), port, QUEUE_PAIR)?;
        for buffer in messages::buffers(&domain, RECEIVE_DEPTH, MAX_REQUEST_SIZE)? {
            let posted = prepared.post_receive(buffer, 0);
            posted.map_err(|_| VerbsError::Endpoint("no room for its requests"))?;
        }
        let send_buffers = SendBuffers::new(messages::buffers(&domain, MESSAGE_WINDOW, MAX_ANSWER_SIZE)?);
        let end = queue_pair_end::describe(&prepared.endpoint(), peer.port);
        let pair = prepared.handshake(&endpoint, Timeouts::default())?;
        let session = Arc::new(QueuePairSession {
            pair,
            send_buffers,
            staging: Arc::new(Mutex::new(StagingPool::new(memory))),
            leases: Mutex::default(),
            rkey,
            lease: self.lease,
            metrics: self.metrics.clone(),
            _shares: shares,
        });
        let receiver = Box::new(MessageReceiver { poller, session: session.clone() });
        Ok(AcceptedPair { session, receiver, end })
    }
}

impl RdmaHost for RdmaDevices {
    fn staging_size(&self) -> u64 {
        self.staging_size as u64
    }

    fn offers(&self, near: IpAddr) -> Vec<VerbsOffer> {
        let ports = match self.ports(Some(near)) {
            Ok(ports) => ports,
            Err(error) => {
                tracing::debug!(%error, "no RDMA to offer");
                return Vec::new();
            }
        };
        let listed = self.listed.lock();
        let devices = listed.as_ref().map_or(&[][..], |(_, devices)| devices);
        let offer = |(number, selected): (usize, &PortSelection)| {
            let device = devices.iter().find(|device| device.name == selected.device)?;
            let port = device.ports.iter().find(|port| port.number == selected.port)?;
            Some(VerbsOffer {
                port: u8::try_from(number).ok()?,
                gid: selected.gid.map_or([0; 16], |entry| entry.gid.0),
                lid: port.lid,
                gigabits: u16::try_from(port.speed / 1000).unwrap_or(u16::MAX),
            })
        };
        ports.iter().take(MAX_OFFERS).enumerate().filter_map(offer).collect()
    }

    fn accept(
        &self,
        near: IpAddr,
        peer: &QueuePairEnd,
        of_peer: StagingShare,
    ) -> Result<AcceptedPair, String> {
        let share = self.take_share().ok_or("all staging memory is taken")?;
        self.connect(near, peer, (share, of_peer)).map_err(|error| error.to_string())
    }
}

impl MemoryRange for RegisteredBuffer {
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

type SharedPool = Arc<Mutex<StagingPool<RegisteredBuffer, Arc<DataFile>>>>;

/// The queue pair and the staging memory of one session.
struct QueuePairSession {
    // First: after it is dropped, the client reads nothing more.
    pair: QueuePair<RegisteredBuffer>,
    send_buffers: SendBuffers,
    leases: Mutex<HashMap<u64, ReadLease>>,
    staging: SharedPool,
    rkey: u32,
    lease: Duration,
    metrics: Arc<Metrics>,
    _shares: (SessionShare, StagingShare),
}

/// A granted read: the request is in progress until the client gives the grant back.
struct ReadLease {
    _ticket: RequestTicket,
    _staged: Box<dyn StagedData>,
    until: Instant,
}

/// A staged range, held until this is dropped.
struct HeldRange {
    range: StagedRange,
    length: u32,
    rkey: u32,
    lease: Duration,
    staging: SharedPool,
}

impl StagedData for HeldRange {
    fn grant(&self) -> Grant {
        let lease_ms = u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX);
        Grant { address: self.range.address, rkey: self.rkey, lease_ms }
    }

    fn length(&self) -> u64 {
        self.length.into()
    }
}

impl Drop for HeldRange {
    fn drop(&mut self) {
        self.staging.lock().release(self.range.number);
    }
}

impl QueuePairSession {
    /// Staging memory for `length` bytes. If there is none, leases that are over are ended for it.
    fn take_memory(&self, length: usize) -> Option<RegisteredBuffer> {
        let memory = self.staging.lock().take(length);
        if memory.is_some() {
            return memory;
        }
        self.expire_leases();
        self.staging.lock().take(length)
    }
}

impl RdmaSession for QueuePairSession {
    fn send(&self, message: &[u8]) -> bool {
        self.send_buffers.send(&self.pair, message, |buffer| buffer, Some)
    }

    fn abort(&self) {
        // If the device does not even do that, dropping the queue pair is what is left.
        let _ = self.pair.abort();
    }

    fn stage(
        &self,
        located: &LocatedRange,
        mode: ReadMode,
    ) -> Result<Option<Box<dyn StagedData>>, StoreError> {
        let file = &located.record.file;
        let length = located.needle.length;
        let source = SourceRange { file: Arc::as_ptr(file) as usize, position: located.position(), length };
        let (rkey, lease) = (self.rkey, self.lease);
        let hold = |range| -> Box<dyn StagedData> {
            Box::new(HeldRange { range, length, rkey, lease, staging: self.staging.clone() })
        };
        if let Some(range) = self.staging.lock().hold(source) {
            return Ok(Some(hold(range)));
        }
        if mode == ReadMode::CachedOnly && length >= MIN_BLOCKING_SIZE {
            return Err(StoreError::WouldBlock);
        }
        let Some(mut memory) = self.take_memory(length as usize) else { return Ok(None) };
        let read = located.record.read_into(located.offset, &mut memory[..length as usize], mode);
        let mut staging = self.staging.lock();
        match read {
            Ok(()) => {
                let counted = self.metrics.staging(Transport::Verbs, length.into());
                let range = staging.put(source, memory, file.clone(), counted);
                drop(staging);
                Ok(Some(hold(range)))
            }
            Err(error) => {
                staging.give_back(memory);
                Err(error)
            }
        }
    }

    fn lease(&self, ticket: RequestTicket, staged: Box<dyn StagedData>) {
        let number = ticket.number();
        let lease = ReadLease { _ticket: ticket, _staged: staged, until: Instant::now() + self.lease };
        self.leases.lock().insert(number, lease);
    }

    fn give_back(&self, number: u64) {
        let lease = self.leases.lock().remove(&number);
        drop(lease);
    }

    fn expire_leases(&self) {
        let now = Instant::now();
        let expired: Vec<ReadLease> =
            self.leases.lock().extract_if(|_, lease| lease.until <= now).map(|(_, lease)| lease).collect();
        self.metrics.leases_over(expired.len() as u64);
    }
}
