//! Where fetches wait for memory.

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::cache::sync::{AtomicUsize, Ordering};

/// Wakes those who wait whenever a slot or a pin is given up.
#[derive(Debug, Default)]
pub(in crate::cache) struct Room {
    freed: Notify,
    waiting: AtomicUsize,
}

impl Room {
    /// Whether somebody waits.
    pub(in crate::cache) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Says that something may be free now. Costs a look at a counter unless somebody waits.
    pub(in crate::cache) fn announce(&self) {
        // Against the waiter's increment: it sees what was freed or we see it wait. Were one missed, it would run out of
        // patience, which is provided for.
        if self.is_waited_for() {
            self.freed.notify_waiters();
        }
    }

    /// Tries until `attempt` succeeds, each time something was given up, until the deadline.
    pub(in crate::cache) async fn wait<T>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(value) = attempt() {
            return Some(value);
        }
        let _waiting = Waiting::new(self);
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

/// Counts one who waits, until it gives up.
struct Waiting<'a>(&'a Room);

impl<'a> Waiting<'a> {
    fn new(room: &'a Room) -> Self {
        room.waiting.fetch_add(1, Ordering::SeqCst);
        Self(room)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
