//! Fetches that nobody has asked for, for as long as somebody may.
//!
//! They wait behind every read at their server, perhaps for long, and hold memory of the cache meanwhile. So each ends when the
//! version of the file that it is for is forgotten, and none is waited for longer than [`PATIENCE`]. As soon as a reader
//! joins it, it is that reader's fetch and is seen through.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;

use super::ReadError;
use super::loader::LoadedBlock;
use crate::cache::Interrupted;
use crate::fetch::Priority;

/// How long a block is worth waiting for. Long after that the stream that it was for is elsewhere.
const PATIENCE: Duration = Duration::from_secs(30);

/// Held by whoever speculation is for; when it goes, so does the interest in what is under way.
#[derive(Debug)]
pub(super) struct Holder(watch::Sender<()>);

/// Tells whether its holder is still there.
#[derive(Debug, Clone)]
pub(super) struct Interest(watch::Receiver<()>);

impl Holder {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    pub(super) fn interest(&self) -> Interest {
        Interest(self.0.subscribe())
    }
}

impl Interest {
    /// Waits until the holder is gone.
    async fn lost(mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Fetches until `interest` is lost or patience is over; after that only if a reader waits.
pub(super) async fn run(
    fetch: impl Future<Output = Result<LoadedBlock, ReadError>>,
    priority: &Priority,
    interest: Option<Interest>,
) -> Result<LoadedBlock, ReadError> {
    let mut fetch = pin!(fetch);
    let lost = async {
        match interest {
            Some(interest) => interest.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        outcome = &mut fetch => return outcome,
        () = lost => {}
        () = tokio::time::sleep(PATIENCE) => {}
    }
    if priority.give_up() { Err(Interrupted.into()) } else { fetch.await }
}
