//! Messages over a queue pair: one frame each, with the data of a small needle behind it.
//!
//! What is sent lies in registered memory until the device is done with it, unless it is so short that the device takes it along with the work
//! request. Whoever finds no memory, or no room in the queue, has a stream to fall back to.

use parking_lot::Mutex;

use crate::verbs::{LocalMemory, PostError, ProtectionDomain, QueuePair, RegisteredBuffer, Unposted};
use crate::verbs::{MemoryAccess, Pages, VerbsError};

/// Longest message that we want sent along with its work request, in bytes: every message but those with data or a token.
pub(crate) const INLINE: u32 = 96;

/// Registered memory for messages: `count` of `length` bytes each.
pub(crate) fn slots(
    domain: &std::sync::Arc<ProtectionDomain>,
    count: usize,
    length: usize,
) -> Result<Vec<RegisteredBuffer>, VerbsError> {
    let pages = Pages::new(count * length).map_err(|source| VerbsError::Call { call: "mmap", source })?;
    Ok(domain.register(pages, MemoryAccess::Local)?.into_slot().split_every(length))
}

/// Memory for messages that are sent.
pub(crate) struct Outbox(Mutex<Vec<RegisteredBuffer>>);

impl Outbox {
    pub(crate) fn new(slots: Vec<RegisteredBuffer>) -> Self {
        Self(Mutex::new(slots))
    }

    /// Takes memory back that the device is done with.
    pub(crate) fn give_back(&self, slot: RegisteredBuffer) {
        self.0.lock().push(slot);
    }

    /// Sends a message; `lend` and `back` say how its memory is known to the completion queue. Returns whether it went.
    pub(crate) fn send<M: LocalMemory>(
        &self,
        pair: &QueuePair<M>,
        message: &[u8],
        lend: impl FnOnce(RegisteredBuffer) -> M,
        back: impl FnOnce(M) -> Option<RegisteredBuffer>,
    ) -> bool {
        if message.len() <= pair.max_inline() {
            return pair.post_inline(message, 0).is_ok();
        }
        let Some(mut slot) = self.0.lock().pop() else { return false };
        let Some(place) = slot.get_mut(..message.len()) else {
            self.give_back(slot);
            return false;
        };
        place.copy_from_slice(message);
        match pair.post_send(lend(slot), message.len(), 0) {
            Ok(()) => true,
            Err(Unposted { error, memory }) => {
                // After anything else the queue pair is broken, and the memory goes with it.
                if matches!(error, PostError::Full { .. }) {
                    self.0.lock().extend(back(memory));
                }
                false
            }
        }
    }
}
