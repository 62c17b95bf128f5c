//! Hot ranges are given to the mount's page cache whole.
//!
//! What is read again and again through the page cache is mostly there, and the daemon hears nothing of it. If it is asked for such a range all the same,
//! pages of it are missing: they were never read, or the kernel took them for something else. Then the kernel is handed the
//! whole range out of the cache, by one `FUSE_NOTIFY_STORE`, instead of being answered page after page.
//!
//! ```text
//!  eBPF: range is hot ──► FileVersion ──┐
//!  FUSE_READ in that range ────────────►┴─► queue ──► thread `fuse-push` ──► FUSE_NOTIFY_STORE
//! ```
//!
//! It cannot give a reader a wrong byte: a node is one version of a file, whose bytes never change. The thread is one of its own because the kernel lets it
//! wait for pages that are being read, which other threads have to answer.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier, OpenFlags};

use crate::namespace::NodeId;
use crate::read::{FileVersion, Reader};

/// Ranges that may wait; more are dropped, as the kernel is busy enough with what it asks for.
const QUEUE: usize = 64;

/// Takes what is to be pushed. Dropping it ends its thread.
pub(super) struct Pusher {
    queue: SyncSender<Push>,
}

struct Push {
    node: NodeId,
    version: Arc<FileVersion>,
    range: Range<u64>,
}

impl Pusher {
    /// Starts the thread, which has the bytes from `reader`.
    pub(super) fn start(notifier: Notifier, reader: Arc<Reader>) -> io::Result<Self> {
        let (queue, pushes) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("fuse-push".into())
            .spawn(move || run(&pushes, &notifier, &reader))?;
        Ok(Self { queue })
    }

    /// The kernel has asked for bytes of `version` from `offset` on, for a file that was opened with `flags`. Does not block.
    pub(super) fn asked(&self, node: NodeId, version: &Arc<FileVersion>, offset: u64, flags: OpenFlags) {
        if flags.0 & libc::O_DIRECT != 0 {
            return;
        }
        if let Some(range) = version.take_hot(offset) {
            let push = Push { node, version: version.clone(), range };
            if let Err(full) = self.queue.try_send(push) {
                tracing::debug!(?full, "a hot range is not given to the page cache");
            }
        }
    }
}

fn run(pushes: &Receiver<Push>, notifier: &Notifier, reader: &Reader) {
    while let Ok(Push { node, version, range }) = pushes.recv() {
        let Some(data) = reader.held(&version, &range) else {
            // It is being fetched, or found no room. The next read of the range asks again.
            version.note_hot_range(range);
            continue;
        };
        match notifier.store(INodeNo(node), range.start, &data) {
            Ok(()) => reader.metrics().pushed(data.len() as u64),
            // The kernel has no memory for it or does not know the file any more.
            Err(error) => {
                tracing::debug!(%error, path = version.path(), "the page cache did not take a hot range")
            }
        }
    }
}
