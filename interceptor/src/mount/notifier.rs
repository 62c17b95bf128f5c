//! Sends the namespace's invalidations to the kernel, as FUSE notifications.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;

use crate::namespace::{KernelCache, NodeId};

/// The code of `FUSE_NOTIFY_INVAL_INODE`. fuser hides whether the kernel has the node.
const NOTIFY_INVAL_INODE: i32 = 2;

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

/// The count, in 16 bytes, and the numbers of the nodes.
fn prune_message(nodes: &[NodeId]) -> Vec<u8> {
    let mut body = vec![0; 16];
    body[..4].copy_from_slice(&(nodes.len() as u32).to_ne_bytes());
    body.extend(nodes.iter().flat_map(|node| node.to_ne_bytes()));
    message(NOTIFY_PRUNE, &body)
}

/// A node, an offset and a length. A negative offset leaves the pages alone.
fn attributes_message(node: NodeId) -> Vec<u8> {
    let body = [node.to_ne_bytes(), (-1i64).to_ne_bytes(), 0i64.to_ne_bytes()];
    message(NOTIFY_INVAL_INODE, body.as_flattened())
}

/// A message: header (length, code, no request number) and body.
fn message(code: i32, body: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let len = (HEADER + body.len()) as u32;
    [&len.to_ne_bytes()[..], &code.to_ne_bytes(), &0u64.to_ne_bytes(), body].concat()
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

    fn knows(&self, node: NodeId) -> bool {
        // If the kernel has it, it asks for the attributes once more.
        nix::unistd::write(&self.device, &attributes_message(node)) != Err(Errno::ENOENT)
    }

    fn prune(&self, nodes: &[NodeId]) {
        log_failure("unused nodes", self.send_prune(nodes));
    }
}
