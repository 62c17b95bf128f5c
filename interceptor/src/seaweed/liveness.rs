//! Whether a filer answers, and what its clock shows.
//!
//! A filer is **down** when it has left a ping unanswered for a while and nothing else has come
//! from it in that time, or when it cannot be connected to ([`ping`](super::ping)). It is **up**
//! again with the first message that comes from it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// A filer does not answer.
#[derive(Debug, Clone)]
pub(super) struct Outage {
    /// When it last sent something, or was first asked.
    pub(super) since: Instant,
    /// Whether it ever sent anything.
    pub(super) was_up: bool,
    /// What is wrong, for the log and the status.
    pub(super) reason: Arc<str>,
}

/// Whether a filer answers.
#[derive(Debug)]
pub(super) struct Liveness {
    /// When the filer last sent something, or was first asked, and whether it ever sent anything.
    last_message: Mutex<(Instant, bool)>,
    outage: watch::Sender<Option<Outage>>,
    /// What its clock showed, in ns since the epoch, and when.
    clock: Mutex<Option<(i64, Instant)>>,
}

impl Liveness {
    /// A filer that was not asked anything yet counts as up.
    pub(super) fn new() -> Self {
        Self {
            last_message: Mutex::new((Instant::now(), false)),
            outage: watch::Sender::new(None),
            clock: Mutex::new(None),
        }
    }

    /// Records that something has come from the filer.
    pub(super) fn mark_up(&self) {
        *self.last_message.lock() = (Instant::now(), true);
        self.outage.send_if_modified(|outage| outage.take().is_some());
    }

    /// Records that the filer does not answer.
    pub(super) fn mark_down(&self, reason: String) {
        let (since, was_up) = *self.last_message.lock();
        self.outage.send_if_modified(|outage| {
            let begins = outage.is_none();
            *outage = Some(Outage { since, was_up, reason: reason.into() });
            begins
        });
    }

    pub(super) fn is_down(&self) -> bool {
        self.outage.borrow().is_some()
    }

    /// Since when the filer is down, and why; `None` while it is up.
    pub(super) fn outage(&self) -> Option<Outage> {
        self.outage.borrow().clone()
    }

    /// Completes when the filer is down.
    pub(super) async fn down(&self) -> Outage {
        let mut changes = self.outage.subscribe();
        loop {
            if let Some(outage) = &*changes.borrow_and_update() {
                return outage.clone();
            }
            // Cannot fail: this value holds the sender.
            let _ = changes.changed().await;
        }
    }

    /// When the filer last sent something, or was first asked.
    pub(super) fn last_message(&self) -> Instant {
        self.last_message.lock().0
    }

    /// What the filer's clock shows now, in ns since the epoch; `None` before it was asked.
    pub(super) fn filer_time(&self) -> Option<i64> {
        let (then, at) = (*self.clock.lock())?;
        Some(then.saturating_add(at.elapsed().as_nanos() as i64))
    }

    /// Records what the filer's clock shows now, in ns since the epoch.
    pub(super) fn set_filer_time(&self, now_ns: i64) {
        *self.clock.lock() = Some((now_ns, Instant::now()));
    }
}

#[cfg(test)]
impl Liveness {
    /// Records that the filer was up until `since` and has not answered from then on.
    pub(super) fn mark_down_since(&self, since: Instant) {
        *self.last_message.lock() = (since, true);
        self.mark_down("test".into());
    }
}
