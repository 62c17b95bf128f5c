//! Connects a queue pair to an engine: takes a port of this host that reaches one on offer, and
//! exchanges the ends.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::adapter::Adapter;
use super::message_channel::{MessageChannel, SEND_DEPTH};
use super::posted_buffer::PostedBuffer;
use super::read_buffer::BouncePool;
use super::{READ_DEPTH, VerbsPath};
use crate::client::ReadError;
use crate::client::registration_cache::RegistrationCache;
use crate::protocol::{MESSAGE_WINDOW, ProtocolError, QueuePairEnd, VerbsOffer};
use crate::transport::{messages, queue_pair_end};
use crate::verbs::{
    AdaptivePoll, PortSelector, PreparedQueuePair, QueuePairOptions, Timeouts, VerbsError, devices,
};

const QUEUE_PAIR: QueuePairOptions = QueuePairOptions {
    send_depth: READ_DEPTH + SEND_DEPTH as u32,
    receive_depth: MESSAGE_WINDOW as u32,
    inline: messages::MAX_INLINE_MESSAGE,
    serve_reads: false,
};

/// A queue pair that waits for the engine's end.
pub(in crate::client) struct PreparedPath {
    pair: PreparedQueuePair<PostedBuffer>,
    bounce: Arc<BouncePool>,
    messages: Option<MessageChannel>,
    caches: Vec<Arc<RegistrationCache>>,
    /// The number of the offer that it is for.
    offer: u8,
    adapter: Arc<Adapter>,
}

/// Prepares the client's end of a connection to one of the ports on offer. `near` is the address
/// that the connection to the engine has on this host. With `messages`, the engine takes requests
/// as messages. Waits for the device.
///
/// # Errors
/// When there is no library, no device, or no port that reaches one on offer.
pub(in crate::client) fn prepare(
    near: IpAddr,
    offers: &[VerbsOffer],
    caches: Vec<Arc<RegistrationCache>>,
    messages: bool,
) -> Result<PreparedPath, VerbsError> {
    let ports = PortSelector { near: Some(near), ..PortSelector::default() }.select(&devices()?)?;
    let (offer, port) = offers
        .iter()
        .flat_map(|offer| ports.iter().map(move |port| (offer, port)))
        .find(|(offer, port)| queue_pair_end::reaches(port, offer))
        .ok_or(VerbsError::Endpoint("no port of this host is on the engine's network"))?;
    let adapter = Adapter::open(&port.device)?;
    let bounce = BouncePool::new(&adapter.domain)?;
    let messages = messages.then(|| MessageChannel::new(&adapter.domain)).transpose()?;
    let pair = PreparedQueuePair::new(&adapter.domain, &adapter.queue, port, QUEUE_PAIR)?;
    Ok(PreparedPath { pair, bounce, messages, caches, offer: offer.port, adapter })
}

impl PreparedPath {
    /// The client's end, for the engine.
    pub(in crate::client) fn end(&self) -> QueuePairEnd {
        queue_pair_end::describe(&self.pair.endpoint(), self.offer)
    }

    /// Connects to the engine's end. Waits for the device, which may have to resolve its address.
    ///
    /// # Errors
    /// When the end cannot be reached, or serves no READ: the first READ would wait for ever.
    pub(in crate::client) fn connect(self, peer: &QueuePairEnd) -> Result<VerbsPath, ReadError> {
        if peer.reads == 0 {
            return Err(ProtocolError::Value.into());
        }
        let endpoint = queue_pair_end::endpoint(peer)?;
        let pair = self.pair.handshake(&endpoint, Timeouts::default());
        let pair = pair.map_err(|error| ReadError::Lost(error.to_string()))?;
        Ok(VerbsPath {
            pair: Arc::new(pair),
            read_permits: Arc::new(Semaphore::new(READ_DEPTH as usize)),
            bounce: self.bounce,
            messages: self.messages,
            caches: self.caches,
            succeeded: Arc::default(),
            failed: AtomicBool::new(false),
            answer_poll: Mutex::new(AdaptivePoll::new()),
            read_poll: Mutex::new(AdaptivePoll::new()),
            adapter: self.adapter,
        })
    }
}
