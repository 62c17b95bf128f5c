//! Fetches that wait for memory.

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::cache::sync::{AtomicUsize, Ordering};

/// Wakes the fetches that wait, whenever a slot or a pin is dropped.
#[derive(Debug, Default)]
pub(in crate::cache) struct MemoryWaiters {
    freed: Notify,
    count: AtomicUsize,
}

impl MemoryWaiters {
    /// Whether no fetch waits.
    pub(in crate::cache) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Has the waiters try again, because memory may be free now. Costs one load without waiters.
    pub(in crate::cache) fn wake(&self) {
        // Pairs with the waiter's increment: either the waiter sees the freed memory, or this sees
        // the waiter. After a lost wake-up the waiter would run into its deadline, which callers
        // handle.
        if !self.is_empty() {
            self.freed.notify_waiters();
        }
    }

    /// Calls `attempt` until it succeeds, again after each wake-up, until the deadline.
    pub(in crate::cache) async fn retry_until<T>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(value) = attempt() {
            return Some(value);
        }
        let _guard = WaiterGuard::new(self);
        let tries = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if let Some(value) = attempt() {
                    return value;
                }
                freed.await;
            }
        };
        timeout_at(deadline, tries).await.ok()
    }
}

/// Counts one waiter while it lives.
struct WaiterGuard<'a>(&'a MemoryWaiters);

impl<'a> WaiterGuard<'a> {
    fn new(waiters: &'a MemoryWaiters) -> Self {
        waiters.count.fetch_add(1, Ordering::SeqCst);
        Self(waiters)
    }
}

impl Drop for WaiterGuard<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}
