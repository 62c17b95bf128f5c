//! Requests that arrive as messages of the queue pair.
//!
//! One thread per session waits for them: it spins for a short time as long as requests follow
//! each other closely, and then blocks on the completion channel. It answers by itself what it can
//! answer at once, so a small needle from the page cache costs two messages and no other thread.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::QueuePairSession;
use crate::protocol::ProtocolError;
use crate::server::rdma_session::{RequestReceiver, TakeRequest};
use crate::verbs::{Completion, Poller, RegisteredBuffer, WorkKind};

/// The end of the queue pair wakes the thread; this is for a device that fails without an event.
const FAILURE_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The receiving side of a session's queue pair.
pub(super) struct MessageReceiver {
    pub(super) poller: Poller<RegisteredBuffer>,
    pub(super) session: Arc<QueuePairSession>,
}

impl RequestReceiver for MessageReceiver {
    fn start(mut self: Box<Self>, mut take: TakeRequest, ended: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let run = move || {
            let mut done = Vec::new();
            while self.poller.wait(&mut done, FAILURE_CHECK_INTERVAL).is_ok()
                && !self.session.pair.is_broken()
            {
                if !done.drain(..).all(|completion| self.session.completed(completion, &mut take)) {
                    break;
                }
            }
            ended();
        };
        thread::Builder::new().name("rdma requests".to_owned()).spawn(run).map(drop)
    }
}

impl QueuePairSession {
    /// Returns whether the session goes on.
    fn completed(&self, completion: Completion<RegisteredBuffer>, take: &mut TakeRequest) -> bool {
        let Completion { work, memory, result, .. } = completion;
        match (work, memory, result) {
            (_, _, Err(error)) => {
                tracing::debug!(%error, "a queue pair has failed");
                false
            }
            (WorkKind::Receive, Some(buffer), Ok(length)) => {
                let taken = buffer.get(..length).ok_or(ProtocolError::Limit).and_then(take);
                if let Err(error) = &taken {
                    tracing::debug!(%error, "a message that is no request");
                }
                taken.is_ok() && self.pair.post_receive(buffer, 0).is_ok()
            }
            (WorkKind::Send, Some(buffer), Ok(_)) => {
                self.send_buffers.give_back(buffer);
                true
            }
            _ => true,
        }
    }
}
