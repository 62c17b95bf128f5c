//! Files that somebody wants in the cache before they are read.
//!
//! Nobody has such a file open, so it is opened here, as root, to find out which version of it can be served, and stays open while that is read. Who asks names files
//! that the kernel has let him find, as it does of a mount ([`warmup`](crate::warmup)).

use std::io;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::decider::Decider;
use super::kept;
use super::nodes::Node;
use super::tree::Tree;
use crate::warmup::wire::FileProblem;
use crate::warmup::{PinnedVersion, WarmupFile};

/// A file of the mount below.
pub(super) struct ToWarm {
    pub(super) node: Arc<Node>,
    pub(super) tree: Arc<Tree>,
    pub(super) decider: Decider,
}

impl ToWarm {
    fn open(node: Arc<Node>, tree: &Tree, decider: &Decider) -> io::Result<Option<PinnedVersion>> {
        let file = Arc::new(tree.open(&node, libc::O_RDONLY)?);
        let attributes = decider.find_out(tree, &file)?;
        if attributes.stamp().size == 0 {
            return Ok(Some(PinnedVersion { version: kept::empty(&attributes), pin: None }));
        }
        let served = file.node.content.served();
        Ok(served.map(|served| PinnedVersion { version: served.version, pin: Some(file) }))
    }
}

impl WarmupFile for ToWarm {
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>> {
        let (node, tree, decider) = (self.node.clone(), self.tree.clone(), self.decider.clone());
        // The mount below may take its time.
        let opened = tokio::task::spawn_blocking(move || Self::open(node, &tree, &decider));
        opened
            .map(|opened| match opened.map_err(io::Error::other).flatten() {
                Ok(version) => version.ok_or(FileProblem::NotServed),
                Err(error) => {
                    tracing::info!(%error, "a file cannot be warmed");
                    Err(FileProblem::Unreadable)
                }
            })
            .boxed()
    }
}
