//! Counts the readers that wait for completions of one device, and which of them spins.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of waiting readers times [`ONE`], plus [`SPINS`] if one of them spins.
#[derive(Default)]
pub(super) struct CompletionWaiters(AtomicUsize);

const SPINS: usize = 1;
const ONE: usize = 2;

impl CompletionWaiters {
    /// Whether a reader waits without spinning.
    pub(super) fn has_sleepers(&self) -> bool {
        let all = self.0.load(Ordering::SeqCst);
        all / ONE > all % ONE
    }

    /// Adds a reader. It may spin if it is the only one.
    pub(super) fn enter(&self) -> WaitGuard<'_> {
        let one_more = |all| if all == 0 { Some(ONE | SPINS) } else { Some(all + ONE) };
        let spins = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more) == Ok(0);
        WaitGuard { waiters: self, spins }
    }
}

/// A reader that waits, until this is dropped.
pub(super) struct WaitGuard<'a> {
    waiters: &'a CompletionWaiters,
    spins: bool,
}

impl WaitGuard<'_> {
    /// Whether this reader is counted as spinning.
    pub(super) fn spins(&self) -> bool {
        self.spins
    }

    pub(super) fn is_alone(&self) -> bool {
        self.waiters.0.load(Ordering::SeqCst) / ONE == 1
    }

    pub(super) fn stop_spinning(&mut self) {
        if std::mem::take(&mut self.spins) {
            self.waiters.0.fetch_sub(SPINS, Ordering::SeqCst);
        }
    }
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        // In one step: a thread that sees it spin no more must also see it gone.
        let spins = if self.spins { SPINS } else { 0 };
        self.waiters.0.fetch_sub(ONE | spins, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_reader_spins_and_all_others_sleep() {
        let waiters = CompletionWaiters::default();
        let mut first = waiters.enter();
        assert!(first.spins() && first.is_alone() && !waiters.has_sleepers());
        let second = waiters.enter();
        assert!(!second.spins() && !first.is_alone() && waiters.has_sleepers());
        // The reader that spun leaves: the other sleeps on.
        drop(waiters.enter());
        first.stop_spinning();
        drop(first);
        assert!(second.is_alone() && waiters.has_sleepers());
        drop(second);
        let next = waiters.enter();
        assert!(next.spins() && !waiters.has_sleepers());
        drop(next);
        assert_eq!(waiters.0.into_inner(), 0);
    }
}
