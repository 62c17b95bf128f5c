//! How many files are held by descriptors.
//!
//! The kernel remembers files until memory gets short, which for a walk through millions of them may be never. Where each
//! takes a descriptor as long ([`node_file`](super::inodes)), and descriptors get short, those of directories are
//! closed, and the kernel is asked to forget files: those that have not been used for longest and that nobody has open. It
//! will look them up again when they are asked for. Meanwhile listings bring in one file at a time, so that they do not
//! outrun this. The kernel is not asked to forget directories, since one of them may be somebody's working directory.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use fuser::{INodeNo, Notifier};

use super::inodes::{IDLE_TIMEOUT, Nodes};
use crate::vital::contained;

/// How many of so many descriptors nodes may have: what is left over is for open files, and for what comes while the kernel forgets.
pub(super) fn most(descriptors: u64) -> usize {
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX)
}

/// A way to say that there are too many, and where that is heard.
pub(super) fn alarm() -> (SyncSender<()>, Receiver<()>) {
    // One that has not been heard yet says it all.
    sync_channel(1)
}

/// Closes descriptors that are not used any more, and has the kernel forget files whenever that is asked for, on a thread
/// of its own: to forget a name the kernel takes a lock that it holds while a request is answered.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn spawn(nodes: &Arc<Nodes>, alarm: Receiver<()>, notifier: Notifier) -> io::Result<()> {
    let closes_unused = nodes.closes_unused();
    // They have the other end of the alarm: without it this ends.
    let nodes = Arc::downgrade(nodes);
    let work = move || {
        let mut last_look = Instant::now();
        loop {
            let heard = match closes_unused {
                true => alarm.recv_timeout(IDLE_TIMEOUT),
                false => alarm.recv().map_err(RecvTimeoutError::from),
            };
            let Some(nodes) = nodes.upgrade() else { return };
            match heard {
                Ok(()) => _ = contained(|| relieve(&nodes, &notifier)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Also while one alarm follows the other.
            if closes_unused && last_look.elapsed() >= IDLE_TIMEOUT {
                contained(|| nodes.close_unused());
                last_look = Instant::now();
            }
        }
    };
    std::thread::Builder::new().name("forget".into()).spawn(work)?;
    Ok(())
}

fn relieve(nodes: &Nodes, notifier: &Notifier) {
    let names = nodes.relieve();
    tracing::debug!(files = names.len(), "asking the kernel to forget");
    for forgettable in names {
        // That it does not know the name any more is as good.
        let _ = notifier.inval_entry(INodeNo(forgettable.directory), &forgettable.name);
    }
}
