//! The limit on descriptors of inodes, and thereby on inodes that the kernel references.
//!
//! The kernel drops inodes only under memory pressure, which during a walk through millions of
//! files may never come. Meanwhile most of them hold a descriptor ([`inodes`](super::inodes)).
//! Above the limit a thread closes the descriptors of idle directories, and asks the kernel to
//! drop the dentries of the least recently used files that are not open. The kernel looks them up
//! again on demand. It is not asked to drop directories, since one may be a process's working
//! directory. Until the count is below the limit, `readdirplus` returns one entry at a time, so
//! that listings do not outrun the thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use fuser::{INodeNo, Notifier};

use super::inodes::{IDLE_TIMEOUT, InodeTable};
use crate::vital::contained;

/// The channel by which the inode table wakes the thread.
pub(super) fn channel() -> (SyncSender<()>, Receiver<()>) {
    // One pending signal is enough.
    sync_channel(1)
}

/// Starts the thread that closes idle descriptors and, on a signal, has the kernel drop dentries.
/// It is a thread of its own because `inval_entry` takes a directory lock that the kernel also
/// holds while it waits for the reply to a request.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn spawn(inodes: &Arc<InodeTable>, wakeups: Receiver<()>, notifier: Notifier) -> io::Result<()> {
    let closes_idle_fds = inodes.closes_idle_fds();
    // The table owns the sender: when the table is dropped, the thread ends.
    let inodes = Arc::downgrade(inodes);
    let work = move || {
        let mut last_scan = Instant::now();
        loop {
            let wakeup = match closes_idle_fds {
                true => wakeups.recv_timeout(IDLE_TIMEOUT),
                false => wakeups.recv().map_err(RecvTimeoutError::from),
            };
            let Some(inodes) = inodes.upgrade() else { return };
            match wakeup {
                Ok(()) => _ = contained(|| reclaim(&inodes, &notifier)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Also when signals leave no time-out between them.
            if closes_idle_fds && last_scan.elapsed() >= IDLE_TIMEOUT {
                contained(|| inodes.close_idle_fds());
                last_scan = Instant::now();
            }
        }
    };
    std::thread::Builder::new().name("forget".into()).spawn(work)?;
    Ok(())
}

fn reclaim(inodes: &InodeTable, notifier: &Notifier) {
    let names = inodes.reclaim();
    tracing::debug!(files = names.len(), "asking the kernel to forget");
    for dentry in names {
        // An error means that the kernel does not know the name, which is as good.
        let _ = notifier.inval_entry(INodeNo(dentry.directory), &dentry.name);
    }
}
