//! Memory that the device has while work is posted, and what happens to it afterwards.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::read_buffer::PendingRead;
use crate::client::answer::Session;
use crate::protocol::ProtocolError;
use crate::transport::messages::SendBuffers;
use crate::verbs::{LocalMemory, QueuePair, RegisteredBuffer, WorkError};

/// Memory that is posted.
pub(super) enum PostedBuffer {
    /// For the bytes of a READ.
    Read(PendingRead),
    /// For a message of the engine.
    Receive(RecvBuffer),
    /// With a message of the client, and the pool that it goes back to.
    Send(RegisteredBuffer, Arc<SendBuffers>),
}

impl PostedBuffer {
    /// The device is done with it.
    pub(super) fn complete(self, outcome: Result<usize, WorkError>) {
        match self {
            Self::Read(read) => read.complete(outcome.map(drop)),
            Self::Receive(buffer) => buffer.received(outcome),
            Self::Send(buffer, pool) => pool.give_back(buffer),
        }
    }
}

/// Memory for one message of the engine.
pub(super) struct RecvBuffer {
    pub(super) buffer: RegisteredBuffer,
    pub(super) pair: Weak<QueuePair<PostedBuffer>>,
    pub(super) session: Weak<dyn Session>,
}

impl RecvBuffer {
    /// A message of this length has arrived; or, after an error, none will.
    fn received(self, outcome: Result<usize, WorkError>) {
        let Some(session) = self.session.upgrade() else { return };
        let read = || {
            let length = outcome.map_err(|error| format!("the queue pair has failed: {error}"))?;
            let message = self.buffer.get(..length).ok_or_else(|| ProtocolError::Limit.to_string())?;
            Ok(Bytes::copy_from_slice(message))
        };
        let handled = read().and_then(|message| {
            // The memory first: a reader that has its answer may send the next request.
            if let Some(pair) = self.pair.upgrade() {
                // If that fails the queue pair has failed, and completes everything else with an
                // error.
                let _ = pair.post_receive(PostedBuffer::Receive(self), 0);
            }
            session.clone().take_message(message).map_err(|error| error.to_string())
        });
        if let Err(reason) = handled {
            session.close(&reason);
        }
    }
}

// SAFETY: each kind is registered memory with this one owner, and says where it is.
unsafe impl LocalMemory for PostedBuffer {
    fn start(&self) -> *mut u8 {
        match self {
            Self::Read(read) => read.start(),
            Self::Receive(receive) => receive.buffer.start(),
            Self::Send(buffer, _) => LocalMemory::start(buffer),
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Read(read) => read.length(),
            Self::Receive(receive) => receive.buffer.length(),
            Self::Send(buffer, _) => LocalMemory::length(buffer),
        }
    }

    fn lkey(&self) -> u32 {
        match self {
            Self::Read(read) => read.lkey(),
            Self::Receive(receive) => receive.buffer.lkey(),
            Self::Send(buffer, _) => buffer.lkey(),
        }
    }
}
