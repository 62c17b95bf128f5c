//! The client's side of `verbs`: fetches what an engine has granted, by RDMA READ.
//!
//! ```text
//!  Grant ─► fetch() ── Landing ─► QueuePair ═ READ ═► engine's staging memory
//!                                    │ completion
//!             copied from the ◄── Adapter's thread, or the reader
//!             slot, or in place   itself while it waits alone (`waiting`)
//! ```
//! Into memory that its caller owns, and that devices may be shown ([`Client::register`](super::Client::register)), the device writes directly. Anything else lands
//! in slots of the connection's own and is copied from there, piece by piece while the next ones are on their way.
//!
//! Requests and short answers are messages of the same queue pair, if the engine takes them (`mail`).
//!
//! Posted memory belongs to the queue pair (see `verbs`), so a read may be dropped at any point: what was posted comes back later and is free then.

mod adapter;
mod landing;
mod lent;
mod mail;
mod registration;
mod waiting;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use self::adapter::Adapter;
use self::landing::{Bounce, Direct, Ground, Landed, Landing, SLOT};
use self::lent::Lent;
use self::mail::Mail;
use self::registration::Registered;
pub use self::registration::RegistrationCache;
use super::connection::Connection;
use super::{Destination, ReadError};
use crate::checksum;
use crate::protocol::{Grant, MESSAGE_WINDOW, ProtocolError, QueuePairEnd, VerbsOffer};
use crate::transport::{end, messages};
use crate::verbs::{
    Looking, PortSelector, PreparedQueuePair, QueuePair, QueuePairOptions, RdmaRead, RemoteMemory, Timeouts,
    VerbsError, WorkError, devices,
};

/// READs that are posted at a time; the device has as many of them on the way as it can.
const DEPTH: u32 = 64;

const QUEUE: QueuePairOptions = QueuePairOptions {
    send_depth: DEPTH + mail::SENDS as u32,
    receive_depth: MESSAGE_WINDOW as u32,
    inline: messages::INLINE,
    serve_reads: false,
};

/// A READ that has not come so long after it was posted, while no other came either, will not come.
const SILENCE: Duration = Duration::from_secs(1);

/// A queue pair that waits for its peer's end.
pub(super) struct Prepared {
    pair: PreparedQueuePair<Lent>,
    rdma: Parts,
    offer: u8,
}

struct Parts {
    bounce: Arc<Bounce>,
    mail: Option<Mail>,
    memory: Vec<Arc<RegistrationCache>>,
    // Last: everything else is on it.
    adapter: Arc<Adapter>,
}

/// Makes our end of a connection to a port on offer, from the address that the connection to the engine has here; with `messages`, the engine takes requests
/// over it. Waits for the device.
///
/// # Errors
/// Why there is none: no library, no device, no port that reaches the engine's.
pub(super) fn prepare(
    near: IpAddr,
    offers: &[VerbsOffer],
    memory: Vec<Arc<RegistrationCache>>,
    messages: bool,
) -> Result<Prepared, VerbsError> {
    let places = PortSelector { near: Some(near), ..PortSelector::default() }.places(&devices()?)?;
    let pairs = offers.iter().flat_map(|offer| places.iter().map(move |place| (offer, place)));
    let (offer, place) = pairs
        .into_iter()
        .find(|(offer, place)| end::reaches(place, offer))
        .ok_or(VerbsError::Endpoint("no port of this host is on the engine's network"))?;
    let adapter = Adapter::open(&place.device)?;
    let bounce = Bounce::new(&adapter.domain)?;
    let mail = messages.then(|| Mail::new(&adapter.domain)).transpose()?;
    let pair = PreparedQueuePair::new(&adapter.domain, &adapter.queue, place, QUEUE)?;
    Ok(Prepared { pair, offer: offer.port, rdma: Parts { bounce, mail, memory, adapter } })
}

impl Prepared {
    /// Our end, for the engine.
    pub(super) fn end(&self) -> QueuePairEnd {
        end::describe(&self.pair.endpoint(), self.offer)
    }

    /// Connects to the engine's end. Waits for the device, which may have to find out where that
    /// is.
    ///
    /// # Errors
    /// When it cannot be reached, or serves no READ: the first would wait for ever.
    pub(super) fn connect(self, peer: &QueuePairEnd) -> Result<Rdma, ReadError> {
        if peer.reads == 0 {
            return Err(ProtocolError::Value.into());
        }
        let endpoint = end::endpoint(peer)?;
        let pair = self.pair.handshake(&endpoint, Timeouts::default());
        let pair = pair.map_err(|error| ReadError::Lost(error.to_string()))?;
        let Parts { bounce, mail, memory, adapter } = self.rdma;
        let posts = Arc::new(Semaphore::new(DEPTH as usize));
        Ok(Rdma {
            pair,
            posts,
            bounce,
            mail,
            memory,
            landed: Arc::default(),
            failed: AtomicBool::new(false),
            answers: Mutex::new(Looking::new()),
            reads: Mutex::new(Looking::new()),
            adapter,
        })
    }
}

/// The RDMA part of a connection.
pub(super) struct Rdma {
    pair: QueuePair<Lent>,
    /// Room in the send queue.
    posts: Arc<Semaphore>,
    bounce: Arc<Bounce>,
    mail: Option<Mail>,
    /// What of may be registered.
    memory: Vec<Arc<RegistrationCache>>,
    /// How many READs have come: whether the queue pair works at all, and whether it still does.
    landed: Arc<AtomicU64>,
    /// A READ has failed by itself, not because the connection was ended.
    failed: AtomicBool,
    /// Whether looking for answers, and for the bytes of READs, pays off.
    answers: Mutex<Looking>,
    reads: Mutex<Looking>,
    adapter: Arc<Adapter>,
}

impl Rdma {
    /// Whether READs have failed and none has ever come: the bootstrap's network leads to the engine and this one does not.
    pub(super) fn is_unreachable(&self) -> bool {
        self.failed.load(Ordering::Relaxed) && self.landed.load(Ordering::Relaxed) == 0
    }

    /// Takes the engine's messages from now on, if it sends any. Returns whether it can.
    pub(super) fn listen(&self, connection: &Weak<Connection>) -> bool {
        self.mail.as_ref().is_none_or(|mail| mail.listen(&self.pair, connection))
    }

    /// Posts memory for a message again.
    fn receive_again(&self, letter: Lent) {
        // If that fails the queue pair has, and whoever waits hears of it from there.
        let _ = self.pair.post_receive(letter, 0);
    }

    /// The right to send one request by message, if there is one left.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.mail.as_ref().and_then(Mail::place)
    }

    /// Sends a message, if there is room for it. Returns whether it went.
    pub(super) fn send(&self, message: &[u8]) -> bool {
        self.mail.as_ref().is_some_and(|mail| mail.send(&self.pair, message))
    }

    /// Waits for the answer to a request that went by message.
    pub(super) async fn answer<T>(&self, coming: &mut oneshot::Receiver<T>) -> Result<T, RecvError> {
        self.adapter.brings(coming, &self.answers).await
    }

    /// Ends the connection's READs; those that are posted come back as failed.
    pub(super) fn abort(&self) {
        // If the device does not even do that, dropping the queue pair is what is left.
        let _ = self.pair.abort();
    }

    /// Whether the queue pair has failed.
    pub(super) fn is_broken(&self) -> bool {
        self.pair.is_broken()
    }

    /// Fetches what was granted into `destination`, by way of memory of ours. Returns the checksum of all bytes.
    ///
    /// # Errors
    /// [`ReadError::Lost`]: the queue pair has failed.
    pub(super) async fn fetch(&self, grant: &Grant, destination: &mut [u8]) -> Result<u32, ReadError> {
        let mut under_way: VecDeque<Posted<'_>> = VecDeque::new();
        let (mut posted, mut filled, mut crc) = (0, 0, 0);
        while filled < destination.len() {
            while posted < destination.len() {
                // Whoever has slots under way waits for no more of them, or two readers would wait for each other.
                let taken = match under_way.is_empty() {
                    true => self.bounce.take().await,
                    false => self.bounce.try_take(),
                };
                let Some(mut slot) = taken else { break };
                slot.length = SLOT.min(destination.len() - posted);
                let length = slot.length;
                under_way.push_back(self.post(grant, posted, length, Ground::Bounced(slot)).await?);
                posted += length;
            }
            let next = under_way.pop_front().ok_or_else(lost)?;
            let Ground::Bounced(slot) = next.landed().await? else { return Err(lost()) };
            let bytes = slot.bytes();
            destination[filled..filled + bytes.len()].copy_from_slice(bytes);
            crc = checksum::crc32c_append(crc, bytes);
            filled += bytes.len();
        }
        Ok(crc)
    }

    /// The registered part that the memory lies in, for [`fetch_into`](Self::fetch_into). May register it.
    pub(super) fn region(&self, destination: &dyn Destination) -> Option<Arc<Registered>> {
        self.memory.iter().find_map(|memory| memory.region(&self.adapter, destination))
    }

    /// Fetches `length` bytes that were granted straight into the caller's memory, which lies in `region`, and gives it back.
    ///
    /// # Errors
    /// [`ReadError::Lost`]: the queue pair has failed.
    pub(super) async fn fetch_into(
        &self,
        grant: &Grant,
        length: usize,
        destination: Box<dyn Destination>,
        region: &Arc<Registered>,
    ) -> Result<Box<dyn Destination>, ReadError> {
        let direct = Direct::new(destination, length, region).ok_or_else(lost)?;
        match self.post(grant, 0, length, Ground::Direct(direct)).await?.landed().await? {
            Ground::Direct(direct) => Ok(direct.into_memory()),
            Ground::Bounced(_) => Err(lost()),
        }
    }

    async fn post(
        &self,
        grant: &Grant,
        offset: usize,
        length: usize,
        ground: Ground,
    ) -> Result<Posted<'_>, ReadError> {
        let place = self.posts.clone().acquire_owned().await.map_err(|_| lost())?;
        let (landing, landed) = Landing::new(ground, place, &self.landed);
        let address = grant.address.wrapping_add(offset as u64);
        let remote = RemoteMemory { address, rkey: grant.rkey, length: length as u64 };
        let mut reads = vec![RdmaRead { memory: Lent::Read(landing), remote, token: 0 }];
        let before = self.landed.load(Ordering::Relaxed);
        self.pair.post_reads(&mut reads).map_err(|error| ReadError::Lost(error.to_string()))?;
        Ok(Posted { rdma: self, landed: Some(landed), at: Instant::now(), before })
    }
}

/// A READ under way. One that is given up before it came, after a while in which none came, ends the connection: a device may
/// retry for longer than anybody would wait.
struct Posted<'a> {
    rdma: &'a Rdma,
    landed: Option<oneshot::Receiver<Landed>>,
    at: Instant,
    /// How many READs had come when it was posted.
    before: u64,
}

impl Posted<'_> {
    async fn landed(mut self) -> Result<Ground, ReadError> {
        let landed = match &mut self.landed {
            Some(landed) => self.rdma.adapter.brings(landed, &self.rdma.reads).await,
            None => return Err(lost()),
        };
        self.landed = None;
        // Without a word when the queue pair is gone.
        let (ground, outcome) = landed.map_err(|_| lost())?;
        outcome.map_err(|error| {
            self.rdma.failed.fetch_or(error != WorkError::Flushed, Ordering::Relaxed);
            ReadError::Lost(format!("RDMA READ: {error}"))
        })?;
        Ok(ground)
    }
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        let silent = self.rdma.landed.load(Ordering::Relaxed) == self.before;
        if self.landed.is_some() && silent && self.at.elapsed() >= SILENCE {
            self.rdma.failed.store(true, Ordering::Relaxed);
            self.rdma.abort();
        }
    }
}

fn lost() -> ReadError {
    ReadError::Lost("the queue pair has failed".to_owned())
}
