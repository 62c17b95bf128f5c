//! Messages over a queue pair: one frame each, followed by the data of a small needle.
//!
//! A message that is sent lies in registered memory until the device is done with it, unless it is
//! so short that the device takes it along with the work request. If there is no memory, or no
//! room in the queue, the sender uses its stream.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::verbs::{LocalMemory, PostError, ProtectionDomain, QueuePair, RegisteredBuffer, Unposted};
use crate::verbs::{MemoryAccess, Pages, VerbsError};

/// The longest message to be sent inline, in bytes: every message but those with data or a token.
pub(crate) const MAX_INLINE_MESSAGE: u32 = 96;

/// Registered memory for messages: `count` buffers of `length` bytes each.
pub(crate) fn buffers(
    domain: &Arc<ProtectionDomain>,
    count: usize,
    length: usize,
) -> Result<Vec<RegisteredBuffer>, VerbsError> {
    let pages = Pages::new(count * length).map_err(|source| VerbsError::Call { call: "mmap", source })?;
    Ok(domain.register(pages, MemoryAccess::Local)?.into_buffer().split_every(length))
}

/// Buffers for messages that are sent.
pub(crate) struct SendBuffers(Mutex<Vec<RegisteredBuffer>>);

impl SendBuffers {
    pub(crate) fn new(buffers: Vec<RegisteredBuffer>) -> Self {
        Self(Mutex::new(buffers))
    }

    /// Takes back a buffer that the device is done with.
    pub(crate) fn give_back(&self, buffer: RegisteredBuffer) {
        self.0.lock().push(buffer);
    }

    /// Sends a message. `wrap` and `unwrap` convert a buffer to and from the memory type of the
    /// queue pair. Returns whether it was sent.
    pub(crate) fn send<M: LocalMemory>(
        &self,
        pair: &QueuePair<M>,
        message: &[u8],
        wrap: impl FnOnce(RegisteredBuffer) -> M,
        unwrap: impl FnOnce(M) -> Option<RegisteredBuffer>,
    ) -> bool {
        if message.len() <= pair.max_inline() {
            return pair.post_inline(message, 0).is_ok();
        }
        let Some(mut buffer) = self.0.lock().pop() else { return false };
        let Some(part) = buffer.get_mut(..message.len()) else {
            self.give_back(buffer);
            return false;
        };
        part.copy_from_slice(message);
        match pair.post_send(wrap(buffer), message.len(), 0) {
            Ok(()) => true,
            Err(Unposted { error, memory }) => {
                // After any other error the queue pair is broken, and the memory goes with it.
                if matches!(error, PostError::Full { .. }) {
                    self.0.lock().extend(unwrap(memory));
                }
                false
            }
        }
    }
}
