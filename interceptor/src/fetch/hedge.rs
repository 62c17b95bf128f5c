//! When a second server may be asked for what the first one is slow to send.
//!
//! A request that a reader waits for is late when nothing of its answer has come after the time that [`Pace`](super::pace)
//! gives its server. Then the next replica is asked as well, into memory of the second request's own, and the first
//! complete and verified answer is taken. That must not become a load of its own when everything is slow:
//!
//! * of all requests that could have a second one, [`EARNED`] in a thousand get it, and a few more after a quiet time;
//! * the second one does not wait: it is sent only if its server has room for it right now;
//! * all second requests together hold no more than [`MEMORY`] bytes.
//!
//! A server that lost [`SILENT`] times in a row without saying a word has stopped rather than being slow. It is asked last
//! for a while, like one that failed, and what is under way there may be asked for elsewhere without counting: there is
//! no second answer to be paid for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::gate::Pass;
use super::servers::Server;
use crate::priority::Priority;
use crate::seaweed::volume::Begun;

/// How many of a thousand requests get a second one in the long run.
const EARNED: u32 = 30;
/// A second request, in the unit of [`EARNED`].
const PRICE: u32 = 1000;
/// How many second requests may come at once after a quiet time. Enough for each reader of a busy host, once.
const SAVED: u32 = 16 * PRICE;
/// What all second requests may hold in bytes, beyond the cache. Chunks that are larger than that are asked for once.
const MEMORY: u32 = 32 << 20;

/// Lost races in a row, without a word in between, after which a server counts as stopped.
const SILENT: u32 = 3;

/// Decides on second requests.
#[derive(Debug)]
pub(super) struct Hedges {
    savings: Mutex<u32>,
    memory: Arc<Semaphore>,
}

/// The permission for a second request: room at its server, and memory for what it brings.
#[derive(Debug)]
pub(super) struct Permit {
    _pass: Pass,
    _memory: OwnedSemaphorePermit,
}

impl Hedges {
    pub(super) fn new() -> Self {
        Self { savings: Mutex::new(SAVED), memory: Arc::new(Semaphore::new(MEMORY as usize)) }
    }

    /// Waits until a request for `bytes`, which `first` is to answer, should be sent to `second` as well. For ever, if
    /// nobody waits for it, if the answer begins to come, or if there is no room.
    pub(super) async fn due(
        &self,
        first: &Server,
        second: &Server,
        priority: &Priority,
        begun: &Begun,
        bytes: u64,
    ) -> Permit {
        let start = Instant::now();
        priority.raised().await;
        self.earn();
        let patience = first.patience(bytes);
        let mut late = start + patience;
        loop {
            sleep_until(late).await;
            if begun.at().is_some() {
                std::future::pending::<()>().await;
            }
            if let Some(permit) = self.permit(first, second, bytes) {
                return permit;
            }
            late = Instant::now() + patience;
        }
    }

    fn permit(&self, first: &Server, second: &Server, bytes: u64) -> Option<Permit> {
        let memory = u32::try_from(bytes).ok()?;
        let memory = self.memory.clone().try_acquire_many_owned(memory).ok()?;
        let pass = second.gate().try_enter(bytes)?;
        (first.is_silent() || self.spend()).then_some(Permit { _pass: pass, _memory: memory })
    }

    fn earn(&self) {
        let mut savings = self.savings.lock();
        *savings = (*savings + EARNED).min(SAVED);
    }

    fn spend(&self) -> bool {
        let mut savings = self.savings.lock();
        let left = savings.checked_sub(PRICE);
        *savings = left.unwrap_or(*savings);
        left.is_some()
    }
}

/// How many races a server has lost without a word.
#[derive(Debug, Default)]
pub(super) struct Silence(AtomicU32);

impl Silence {
    /// The server said something.
    pub(super) fn is_broken(&self) {
        self.0.store(0, Relaxed);
    }

    /// The server lost a race and had said nothing.
    pub(super) fn goes_on(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Whether the server counts as stopped.
    pub(super) fn is_long(&self) -> bool {
        self.0.load(Relaxed) >= SILENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_requests_stay_a_few_percent() {
        let hedges = Hedges::new();
        let sent = (0..100_000)
            .filter(|_| {
                hedges.earn();
                hedges.spend()
            })
            .count();
        let saved = (SAVED / PRICE) as usize;
        let share = 100_000 * EARNED as usize / PRICE as usize;
        assert!((share..=share + saved).contains(&sent), "{sent}");
    }

    #[test]
    fn what_is_saved_has_a_bound() {
        let hedges = Hedges::new();
        (0..100_000).for_each(|_| hedges.earn());
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), (SAVED / PRICE) as usize);
    }
}
