//! Requests and short answers as messages of the queue pair: neither a socket nor a task of the
//! network stands between the reader and the engine.
//!
//! As many requests may be in progress this way as the engine has receives for
//! ([`MESSAGE_WINDOW`]); further ones go over the stream.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::posted_buffer::{PostedBuffer, RecvBuffer};
use crate::client::answer::Session;
use crate::protocol::{MAX_ANSWER_SIZE, MAX_REQUEST_SIZE, MESSAGE_WINDOW};
use crate::transport::messages::{self, SendBuffers};
use crate::verbs::{ProtectionDomain, QueuePair, RegisteredBuffer, VerbsError};

/// Sends that may be posted at a time: each request may be followed by one message that cancels it
/// or gives back its grant.
pub(super) const SEND_DEPTH: usize = 2 * MESSAGE_WINDOW;

/// Buffers for messages with a token, which are too long to be sent inline.
const TOKEN_BUFFERS: usize = 16;

/// The messages of one connection.
pub(super) struct MessageChannel {
    send_buffers: Arc<SendBuffers>,
    window: Arc<Semaphore>,
    /// For the engine's messages, until [`start`](Self::start) posts them.
    receive_buffers: Mutex<Vec<RegisteredBuffer>>,
}

impl MessageChannel {
    pub(super) fn new(domain: &Arc<ProtectionDomain>) -> Result<Self, VerbsError> {
        let send_buffers = messages::buffers(domain, TOKEN_BUFFERS, MAX_REQUEST_SIZE)?;
        Ok(Self {
            send_buffers: Arc::new(SendBuffers::new(send_buffers)),
            window: Arc::new(Semaphore::new(MESSAGE_WINDOW)),
            receive_buffers: Mutex::new(messages::buffers(domain, MESSAGE_WINDOW, MAX_ANSWER_SIZE)?),
        })
    }

    /// Posts the memory for the engine's messages. Returns whether the queue pair takes it.
    pub(super) fn start(&self, pair: &Arc<QueuePair<PostedBuffer>>, session: &Weak<dyn Session>) -> bool {
        let buffers = self.receive_buffers.lock().split_off(0);
        buffers.into_iter().all(|buffer| {
            let receive = RecvBuffer { buffer, pair: Arc::downgrade(pair), session: session.clone() };
            pair.post_receive(PostedBuffer::Receive(receive), 0).is_ok()
        })
    }

    /// The permit to send one request as a message. It is released when the request is answered
    /// and a grant, if there was one, is given back.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.window.clone().try_acquire_owned().ok()
    }

    /// Sends a message, if there is room for it. Returns whether it was sent.
    pub(super) fn send(&self, pair: &QueuePair<PostedBuffer>, message: &[u8]) -> bool {
        let wrap = |buffer| PostedBuffer::Send(buffer, self.send_buffers.clone());
        let unwrap = |posted| if let PostedBuffer::Send(buffer, _) = posted { Some(buffer) } else { None };
        self.send_buffers.send(pair, message, wrap, unwrap)
    }
}
