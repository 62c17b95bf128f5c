//! Invalidations of the kernel's caches.
//!
//! To drop a name, the kernel takes the lock of its directory, which it also holds while it waits
//! for a LOOKUP in that directory. So a notification must not wait for a thread that answers
//! requests, nor such a thread for it: all notifications go through an unbounded queue to a thread
//! of their own, which holds no lock of ours.
//!
//! Notifications name nodes by number, and the number may stand for another node when they arrive.
//! To drop a name, attributes or a listing of another node costs one request and is never wrong. A
//! deletion would be: the kernel would consider the other node nameless. So a deletion pins its
//! node.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::NodeId;
use super::pin::NodePin;
use crate::ledger::{Ledger, RecordId};
use crate::vital;

/// The kernel's nodes, and its caches of names, attributes and directory listings.
pub trait KernelCache: Send + Sync + 'static {
    /// Drop a name, also one that is cached as absent.
    fn inval_entry(&self, parent: NodeId, name: &str);
    /// Drop the attributes of a node, not its pages.
    fn inval_inode_attr(&self, node: NodeId);
    /// Drop the cached listing of a directory.
    fn inval_dir(&self, node: NodeId);
    /// The name, which stood for `child`, was deleted.
    fn delete(&self, parent: NodeId, child: NodeId, name: &str);
    /// Forget nodes that nothing uses. Only for a kernel that
    /// [can](super::KernelFeatures::prunes).
    fn prune(&self, nodes: &[NodeId]);
    /// Whether the kernel has a node.
    fn knows(&self, node: NodeId) -> bool;
}

/// One thing for the kernel to drop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Invalidation {
    Entry {
        parent: NodeId,
        name: Arc<str>,
    },
    Attributes(NodeId),
    Listing(NodeId),
    Deleted {
        parent: NodeId,
        child: NodeId,
        name: Arc<str>,
    },
    /// A node to forget if nothing uses it.
    Unused(NodeId),
}

/// An invalidation in the queue.
pub(crate) struct QueuedInvalidation {
    pub(super) invalidation: Invalidation,
    /// Keeps the node's number from being reused before the kernel is told.
    pub(super) pin: Option<NodePin>,
    /// Where a name that is to be dropped stands in the ledger.
    pub(super) record: Option<RecordId>,
}

/// Invalidations that wait for their thread.
pub(crate) type InvalidationQueue = Receiver<QueuedInvalidation>;

pub(super) fn queue() -> (Sender<QueuedInvalidation>, InvalidationQueue) {
    channel()
}

/// Starts the thread that sends invalidations to the kernel; it ends with the namespace. A lost
/// invalidation would leave the kernel with outdated names, so the mount ends if the thread
/// panics.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn spawn(
    queue: InvalidationQueue,
    kernel: Arc<dyn KernelCache>,
    ledger: Ledger,
) -> std::io::Result<JoinHandle<()>> {
    vital::thread("invalidate", move || {
        while let Ok(first) = queue.recv() {
            deliver(first, &queue, kernel.as_ref(), &ledger);
        }
    })
}

/// How many nodes one notification names.
const MAX_PRUNED: usize = 1024;

/// Sends `first` and all queued invalidations, each once: an invalidation says that something
/// changed, not what it became, so a repetition within one batch adds nothing.
pub(super) fn deliver(
    first: QueuedInvalidation,
    queue: &InvalidationQueue,
    kernel: &dyn KernelCache,
    ledger: &Ledger,
) {
    let (mut seen, mut records) = (HashSet::new(), Vec::new());
    let is_new = |queued: &QueuedInvalidation| {
        records.extend(queued.record);
        seen.insert(queued.invalidation.clone())
    };
    let batch: Vec<_> = std::iter::once(first).chain(queue.try_iter()).filter(is_new).collect();
    let mut unused = Vec::new();
    for QueuedInvalidation { invalidation, pin: _pin, record: _ } in batch {
        match invalidation {
            Invalidation::Entry { parent, name } => kernel.inval_entry(parent, &name),
            Invalidation::Attributes(node) => kernel.inval_inode_attr(node),
            Invalidation::Listing(node) => kernel.inval_dir(node),
            Invalidation::Deleted { parent, child, name } => kernel.delete(parent, child, &name),
            Invalidation::Unused(node) => unused.push(node),
        }
    }
    records.into_iter().for_each(|record| ledger.remove(Some(record)));
    // Last, since cached names keep a directory in use.
    for nodes in unused.chunks(MAX_PRUNED) {
        kernel.prune(nodes);
    }
}
