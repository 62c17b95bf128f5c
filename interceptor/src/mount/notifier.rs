//! Sends the namespace's invalidations to the kernel, as FUSE notifications.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{INodeNo, Notifier};

use crate::namespace::{KernelCache, NodeId};

/// The code of `FUSE_NOTIFY_PRUNE` (Linux 6.18), which fuser does not have.
const NOTIFY_PRUNE: i32 = 9;

pub(super) struct KernelNotifier {
    notifier: Notifier,
    /// The connection.
    device: Arc<OwnedFd>,
}

impl KernelNotifier {
    pub(super) fn new(notifier: Notifier, device: Arc<OwnedFd>) -> Self {
        Self { notifier, device }
    }

    /// Whether the kernel supports [`prune`](KernelCache::prune).
    pub(super) fn can_prune(&self) -> bool {
        self.send_prune(&[]).is_ok()
    }

    fn send_prune(&self, nodes: &[NodeId]) -> io::Result<()> {
        let message = prune_message(nodes);
        nix::unistd::write(&self.device, &message)?;
        Ok(())
    }
}

/// A message: header (length, code, no request number), the count, and the numbers of the nodes.
fn prune_message(nodes: &[NodeId]) -> Vec<u8> {
    const HEADER: usize = 16;
    const COUNT: usize = 16;
    let len = HEADER + COUNT + size_of_val(nodes);
    let mut message = Vec::with_capacity(len);
    message.extend((len as u32).to_ne_bytes());
    message.extend(NOTIFY_PRUNE.to_ne_bytes());
    message.extend(0u64.to_ne_bytes());
    message.extend((nodes.len() as u32).to_ne_bytes());
    message.resize(HEADER + COUNT, 0);
    message.extend(nodes.iter().flat_map(|node| node.to_ne_bytes()));
    message
}

/// Logs a failed notification. fuser hides the common failure, that the kernel does not know what
/// it should drop; others happen only while the mount goes away.
fn log_failure(what: &'static str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(what, %error, "the kernel did not take an invalidation");
    }
}

impl KernelCache for KernelNotifier {
    fn inval_entry(&self, parent: NodeId, name: &str) {
        log_failure("entry", self.notifier.inval_entry(INodeNo(parent), OsStr::new(name)));
    }

    fn inval_inode_attr(&self, node: NodeId) {
        // A negative offset leaves the pages alone.
        log_failure("attributes", self.notifier.inval_inode(INodeNo(node), -1, 0));
    }

    fn inval_dir(&self, node: NodeId) {
        log_failure("listing", self.notifier.inval_inode(INodeNo(node), 0, 0));
    }

    fn delete(&self, parent: NodeId, child: NodeId, name: &str) {
        // A mount point cannot be deleted, and a name that the kernel has found under another node
        // meanwhile is another file. In both cases the kernel must drop what it knows of the name.
        if self.notifier.delete(INodeNo(parent), INodeNo(child), OsStr::new(name)).is_err() {
            self.inval_entry(parent, name);
        }
    }

    fn prune(&self, nodes: &[NodeId]) {
        log_failure("unused nodes", self.send_prune(nodes));
    }
}
