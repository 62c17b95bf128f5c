//! Invalidations as FUSE notifications.

use std::ffi::OsStr;
use std::io;

use fuser::{INodeNo, Notifier};

use crate::namespace::{KernelCache, NodeId};

pub(super) struct KernelNotifier(pub(super) Notifier);

/// That the kernel does not know what it should drop is the usual case, and fuser hides it; anything else happens only
/// while the mount goes away.
fn note(what: &'static str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(what, %error, "the kernel did not take an invalidation");
    }
}

impl KernelCache for KernelNotifier {
    fn inval_entry(&self, parent: NodeId, name: &str) {
        note("entry", self.0.inval_entry(INodeNo(parent), OsStr::new(name)));
    }

    fn inval_inode_attr(&self, node: NodeId) {
        // A negative offset leaves the pages alone.
        note("attributes", self.0.inval_inode(INodeNo(node), -1, 0));
    }

    fn inval_dir(&self, node: NodeId) {
        note("listing", self.0.inval_inode(INodeNo(node), 0, 0));
    }

    fn delete(&self, parent: NodeId, child: NodeId, name: &str) {
        // A name on which something is mounted cannot be deleted, and one that the kernel found under another node
        // meanwhile is another file; in both cases what it knows of the name must go.
        if self.0.delete(INodeNo(parent), INodeNo(child), OsStr::new(name)).is_err() {
            self.inval_entry(parent, name);
        }
    }
}
