//! How readers wait for what a completion brings: an answer, or the bytes of a READ.
//!
//! The thread of the adapter brings everything to everybody, but to wake it, and to have it wake the reader, takes longer than a small needle is on its way. So a reader that
//! waits alone looks for completions itself for a little while ([`Looking`]), and while it looks the completion queue makes no events. Between two
//! looks it lets the other tasks of its thread run, which is never held up for longer than [`TURN`].
//!
//! What must hold: as long as anybody *sleeps*, that is, waits and does not look, the queue is armed, or its thread is awake and will see to it. Therefore
//! whoever goes to sleep arms the queue and takes what came before, and the thread arms it again as long as there are sleepers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::{RecvError, TryRecvError};
use tokio::task::yield_now;

use super::adapter::{Adapter, bring};
use crate::verbs::{Look, Looking};

/// How long a reader that looks keeps its thread from other tasks.
const TURN: Duration = Duration::from_micros(20);

/// Who waits for the completions of one device: how many, times [`ONE`], and whether one of them looks itself.
#[derive(Default)]
pub(super) struct Waiting(AtomicUsize);

const LOOKS: usize = 1;
const ONE: usize = 2;

impl Waiting {
    /// Whether somebody waits who does not look.
    pub(super) fn is_anybody_asleep(&self) -> bool {
        let all = self.0.load(Ordering::SeqCst);
        all / ONE > all % ONE
    }

    fn enter(&self) -> Waiter<'_> {
        let one_more = |all| if all == 0 { Some(ONE | LOOKS) } else { Some(all + ONE) };
        let looks = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) == Ok(0);
        Waiter { waiting: self, looks }
    }
}

/// One who waits. It looks, at first, if it is the only one.
struct Waiter<'a> {
    waiting: &'a Waiting,
    looks: bool,
}

impl Waiter<'_> {
    fn is_alone(&self) -> bool {
        self.waiting.0.load(Ordering::SeqCst) / ONE == 1
    }

    fn stop_looking(&mut self) {
        if std::mem::take(&mut self.looks) {
            self.waiting.0.fetch_sub(LOOKS, Ordering::SeqCst);
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // At once: a thread that sees it look no more sees it gone, too.
        let looks = if self.looks { LOOKS } else { 0 };
        self.waiting.0.fetch_sub(ONE | looks, Ordering::SeqCst);
    }
}

impl Adapter {
    /// Waits for what a completion is going to send to `coming`. `looking` is what those who waited for its like have learned.
    pub(super) async fn brings<T>(
        &self,
        coming: &mut oneshot::Receiver<T>,
        looking: &Mutex<Looking>,
    ) -> Result<T, RecvError> {
        let mut waiter = self.waiting.enter();
        let look = if waiter.looks { looking.lock().begin() } else { None };
        if let Some(look) = look {
            // First those who are about to ask for something, too: who is not alone does not look.
            yield_now().await;
            if waiter.is_alone() {
                let found = self.look(look, coming).await;
                looking.lock().ended(found.is_some());
                if let Some(outcome) = found {
                    return outcome;
                }
            }
        }
        waiter.stop_looking();
        let mut done = Vec::new();
        // A device that fails here fails its thread, too.
        let _ = self.queue.arm().and_then(|()| self.queue.take(&mut done));
        bring(&mut done);
        coming.await
    }

    /// Takes completions itself until its own is among them, or it has looked for long enough.
    async fn look<T>(
        &self,
        mut look: Look,
        coming: &mut oneshot::Receiver<T>,
    ) -> Option<Result<T, RecvError>> {
        let mut done = Vec::new();
        let mut turn = Instant::now();
        loop {
            self.queue.try_take(&mut done).ok()?;
            bring(&mut done);
            match coming.try_recv() {
                Ok(brought) => return Some(Ok(brought)),
                Err(TryRecvError::Closed) => return Some(coming.await),
                Err(TryRecvError::Empty) if !look.goes_on() => return None,
                Err(TryRecvError::Empty) => {}
            }
            if turn.elapsed() >= TURN {
                yield_now().await;
                turn = Instant::now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_alone_looks_and_all_others_sleep() {
        let waiting = Waiting::default();
        let mut first = waiting.enter();
        assert!(first.looks && first.is_alone() && !waiting.is_anybody_asleep());
        let second = waiting.enter();
        assert!(!second.looks && !first.is_alone() && waiting.is_anybody_asleep());
        // The one that looked goes: the other sleeps on.
        drop(waiting.enter());
        first.stop_looking();
        drop(first);
        assert!(second.is_alone() && waiting.is_anybody_asleep());
        drop(second);
        let looks = waiting.enter();
        assert!(looks.looks && !waiting.is_anybody_asleep());
        drop(looks);
        assert_eq!(waiting.0.into_inner(), 0);
    }
}
