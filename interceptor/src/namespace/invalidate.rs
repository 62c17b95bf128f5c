//! Telling the kernel what to drop from its caches.
//!
//! To drop a name the kernel takes the lock of its directory, which it also holds while it waits for a LOOKUP in that
//! directory to be answered. So a notification must never wait for, or be waited for by, anything that answers
//! requests: all of them go through an unbounded queue to one thread of its own that holds no lock of ours.
//!
//! They name nodes by numbers, which may stand for others when they come. To drop a name, attributes or a listing of another
//! node costs a request more and is never wrong. To delete is: the kernel would tell of the other node that it has no name left.
//! So a deletion holds the node that it is about.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::NodeId;
use super::pin::NodePin;
use crate::vital;

/// The kernel's caches of names, attributes and directory pages.
pub trait KernelCache: Send + Sync + 'static {
    /// Drop a name, known to exist or known not to.
    fn inval_entry(&self, parent: NodeId, name: &str);
    /// Drop the attributes of a node, not its pages.
    fn inval_inode_attr(&self, node: NodeId);
    /// Drop the cached listing of a directory.
    fn inval_dir(&self, node: NodeId);
    /// A name was deleted that stood for `child`.
    fn delete(&self, parent: NodeId, child: NodeId, name: &str);
    /// Forget nodes that nothing uses. Only for a kernel that
    /// [can](super::KernelFeatures::prunes).
    fn prune(&self, nodes: &[NodeId]);
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
    /// A node that is to be forgotten if nothing uses it.
    Unused(NodeId),
}

/// An invalidation on its way.
pub(crate) struct QueuedInvalidation {
    pub(super) invalidation: Invalidation,
    /// The node whose number must still be its own when the kernel is told.
    pub(super) pin: Option<NodePin>,
}

/// Where invalidations wait for their thread.
pub(crate) type InvalidationQueue = Receiver<QueuedInvalidation>;

pub(super) fn queue() -> (Sender<QueuedInvalidation>, InvalidationQueue) {
    channel()
}

/// Starts the thread that hands invalidations to the kernel; it ends when the namespace is gone.
/// One that is lost would leave the kernel with what is not so any more, so the mount does not go
/// on without it.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn spawn(
    queue: InvalidationQueue,
    kernel: Arc<dyn KernelCache>,
) -> std::io::Result<JoinHandle<()>> {
    vital::thread("invalidate", move || {
        while let Ok(first) = queue.recv() {
            deliver(first, &queue, kernel.as_ref());
        }
    })
}

/// How many nodes the kernel is asked to forget at a time.
const MAX_PRUNED: usize = 1024;

/// Delivers `first` and all that wait behind it, each once: what is queued says that something changed, not what it
/// became, so a repetition within one batch adds nothing.
pub(super) fn deliver(first: QueuedInvalidation, queue: &InvalidationQueue, kernel: &dyn KernelCache) {
    let mut seen = HashSet::new();
    let is_new = |queued: &QueuedInvalidation| seen.insert(queued.invalidation.clone());
    let batch: Vec<_> = std::iter::once(first).chain(queue.try_iter()).filter(is_new).collect();
    let mut unused = Vec::new();
    for QueuedInvalidation { invalidation, pin: _pin } in batch {
        match invalidation {
            Invalidation::Entry { parent, name } => kernel.inval_entry(parent, &name),
            Invalidation::Attributes(node) => kernel.inval_inode_attr(node),
            Invalidation::Listing(node) => kernel.inval_dir(node),
            Invalidation::Deleted { parent, child, name } => kernel.delete(parent, child, &name),
            Invalidation::Unused(node) => unused.push(node),
        }
    }
    // Last, as names in a directory keep it in use.
    for nodes in unused.chunks(MAX_PRUNED) {
        kernel.prune(nodes);
    }
}
