//! Requests and short answers as messages of the queue pair: no socket and no task of the network's stands between a reader and the engine.
//!
//! As many requests may be under way this way as the engine has room for ([`MESSAGE_WINDOW`]); further ones take the stream.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lent::Lent;
use crate::client::connection::Connection;
use crate::client::demultiplexer;
use crate::protocol::{MAX_ANSWER_SIZE, MAX_REQUEST_SIZE, MESSAGE_WINDOW, ProtocolError};
use crate::transport::messages::{self, Outbox};
use crate::verbs::{ProtectionDomain, QueuePair, RegisteredBuffer, VerbsError, WorkError};

/// Requests and what follows them: each may be given up or given back.
pub(super) const SENDS: usize = 2 * MESSAGE_WINDOW;

/// Messages that have a token lie in memory of ours.
const WITH_TOKEN: usize = 16;

/// The messages of one connection.
pub(super) struct Mail {
    outbox: Arc<Outbox>,
    window: Arc<Semaphore>,
    /// For the engine's messages, until the connection listens.
    receives: Mutex<Vec<RegisteredBuffer>>,
}

impl Mail {
    pub(super) fn new(domain: &Arc<ProtectionDomain>) -> Result<Self, VerbsError> {
        Ok(Self {
            outbox: Arc::new(Outbox::new(messages::slots(domain, WITH_TOKEN, MAX_REQUEST_SIZE)?)),
            window: Arc::new(Semaphore::new(MESSAGE_WINDOW)),
            receives: Mutex::new(messages::slots(domain, MESSAGE_WINDOW, MAX_ANSWER_SIZE)?),
        })
    }

    /// Takes the engine's messages from now on. Returns whether the queue pair has room for them.
    pub(super) fn listen(&self, pair: &QueuePair<Lent>, connection: &Weak<Connection>) -> bool {
        let letters = self.receives.lock().split_off(0);
        letters.into_iter().all(|slot| {
            let letter = Letter { slot, connection: connection.clone() };
            pair.post_receive(Lent::Receive(letter), 0).is_ok()
        })
    }

    /// The right to send one request by message, which ends when it was answered and, if something was granted, given back.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.window.clone().try_acquire_owned().ok()
    }

    /// Sends a message, if there is room for it. Returns whether it went.
    pub(super) fn send(&self, pair: &QueuePair<Lent>, message: &[u8]) -> bool {
        let lend = |slot| Lent::Send(slot, self.outbox.clone());
        let back = |lent| if let Lent::Send(slot, _) = lent { Some(slot) } else { None };
        self.outbox.send(pair, message, lend, back)
    }
}

/// Memory for one message of the engine.
pub(super) struct Letter {
    pub(super) slot: RegisteredBuffer,
    connection: Weak<Connection>,
}

impl Letter {
    /// A message has come, of so many bytes; or none will.
    pub(super) fn arrived(self, outcome: Result<usize, WorkError>) {
        let Some(connection) = self.connection.upgrade() else { return };
        let read = || {
            let length = outcome.map_err(|error| format!("the queue pair has failed: {error}"))?;
            let message =
                self.slot.get(..length).ok_or(ProtocolError::Limit).map_err(|error| error.to_string())?;
            Ok(Bytes::copy_from_slice(message))
        };
        let handled = read().and_then(|message| {
            // First the memory: whoever has got its answer may ask again.
            if let Some(rdma) = connection.rdma() {
                rdma.receive_again(Lent::Receive(self));
            }
            demultiplexer::take_message(&connection, message).map_err(|error| error.to_string())
        });
        if let Err(reason) = handled {
            connection.close(&reason);
        }
    }
}
