//! Requests that come as messages of the queue pair.
//!
//! One thread a session looks for them: for a little while without sleeping, as long as requests follow each other closely, and then on the completion channel. It
//! answers itself what it can answer at once, so a small needle from the page cache costs two messages and no other thread.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Rdma;
use crate::protocol::ProtocolError;
use crate::verbs::{Completion, Poller, RegisteredBuffer, WorkKind};

/// The end of the queue pair wakes the thread; this is for a device that fails without a word.
const LOOK: Duration = Duration::from_secs(30);

/// The receiving side of a session's queue pair.
pub(crate) struct Inbox {
    pub(super) poller: Poller<RegisteredBuffer>,
    pub(super) rdma: Arc<Rdma>,
}

impl Inbox {
    /// Brings each request to `take` until that finds one that is none, the queue pair fails, or the session is at its [`end`](Rdma::end); then calls `ended`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn open(
        mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), ProtocolError> + Send + 'static,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let run = move || {
            let mut done = Vec::new();
            while self.poller.wait(&mut done, LOOK).is_ok() && !self.rdma.pair.is_broken() {
                if !done.drain(..).all(|completion| self.rdma.completed(completion, &mut take)) {
                    break;
                }
            }
            ended();
        };
        thread::Builder::new().name("rdma requests".to_owned()).spawn(run).map(drop)
    }
}

impl Rdma {
    /// Returns whether the session goes on.
    fn completed(
        &self,
        completion: Completion<RegisteredBuffer>,
        take: &mut impl FnMut(&[u8]) -> Result<(), ProtocolError>,
    ) -> bool {
        let Completion { work, memory, result, .. } = completion;
        match (work, memory, result) {
            (_, _, Err(error)) => {
                tracing::debug!(%error, "a queue pair has failed");
                false
            }
            (WorkKind::Receive, Some(slot), Ok(length)) => {
                let taken = slot.get(..length).ok_or(ProtocolError::Limit).and_then(&mut *take);
                if let Err(error) = &taken {
                    tracing::debug!(%error, "a message that is no request");
                }
                taken.is_ok() && self.pair.post_receive(slot, 0).is_ok()
            }
            (WorkKind::Send, Some(slot), Ok(_)) => {
                self.outbox.give_back(slot);
                true
            }
            _ => true,
        }
    }
}
