//! How many files the kernel may remember.
//!
//! Each file that the kernel remembers takes a descriptor here, and it remembers files until memory gets short, which for a walk through millions of
//! them may be never. So when descriptors get short the kernel is asked to forget the files that it has known longest and that nobody has open: it
//! will look them up again when they are asked for. Meanwhile listings bring in one file at a time, so that they do not outrun this. Directories are left alone, since one of them may be somebody's working directory.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier};

use super::nodes::Nodes;
use super::tree::Tree;

/// How many nodes there may be for so many descriptors: what is left over is for open files, and for what comes while the kernel forgets.
pub(super) fn most(descriptors: u64) -> usize {
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX)
}

/// A way to say that there are too many nodes, and where that is heard.
pub(super) fn alarm() -> (SyncSender<()>, Receiver<()>) {
    // One that has not been heard yet says it all.
    sync_channel(1)
}

/// Has the kernel forget files whenever that is asked for, on a thread of its own: to forget a name the kernel takes a lock that it holds while a request
/// is answered.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn spawn(tree: &Arc<Tree>, alarm: Receiver<()>, notifier: Notifier) -> io::Result<()> {
    // The tree has the other end of the alarm: without it this ends.
    let tree = Arc::downgrade(tree);
    let work = move || {
        while alarm.recv().is_ok() {
            let Some(tree) = tree.upgrade() else { return };
            forget_some(tree.nodes(), &notifier);
        }
    };
    std::thread::Builder::new().name("forget".into()).spawn(work)?;
    Ok(())
}

fn forget_some(nodes: &Nodes, notifier: &Notifier) {
    let names = nodes.long_known();
    tracing::debug!(files = names.len(), "asking the kernel to forget");
    for (parent, name) in names {
        // That it does not know the name any more is as good.
        let _ = notifier.inval_entry(INodeNo(parent), &name);
    }
}
