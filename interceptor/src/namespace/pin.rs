//! Holding nodes for what is to be done with them later.
//!
//! The number of a node is given to another as soon as the kernel has forgotten the node and nothing holds it. Whatever acts
//! on a number later than the request that named it, and would harm another node, takes a hold first.

use std::sync::{Arc, Weak};

use super::{Namespace, NodeId};
use crate::read::FileVersion;

/// Keeps a node, and so its number from being given to another. Must not be dropped under the namespace's lock.
pub(crate) struct NodePin {
    /// A mount that is gone has nothing to keep.
    namespace: Weak<Namespace>,
    node: NodeId,
}

impl NodePin {
    /// For a node that was opened.
    pub(super) fn of(namespace: Weak<Namespace>, node: NodeId) -> Self {
        Self { namespace, node }
    }

    /// Leaves it to the caller to close the node.
    pub(super) fn into_id(mut self) -> NodeId {
        self.namespace = Weak::new();
        self.node
    }

    /// The number of the node.
    pub(crate) fn id(&self) -> NodeId {
        self.node
    }

    /// The tree that the node is of, unless that is gone.
    pub(super) fn namespace(&self) -> Option<Arc<Namespace>> {
        self.namespace.upgrade()
    }

    /// Whether the node still stands for `version`, and is not about to stand for more.
    pub(crate) fn stands_for(&self, version: &Arc<FileVersion>) -> bool {
        self.namespace.upgrade().is_some_and(|namespace| {
            let state = namespace.state.lock();
            state.growth_end(self.node).is_none()
                && state.version(self.node).is_some_and(|now| Arc::ptr_eq(&now, version))
        })
    }
}

impl Drop for NodePin {
    fn drop(&mut self) {
        if let Some(namespace) = self.namespace.upgrade() {
            namespace.state.lock().nodes.close(self.node);
        }
    }
}

impl Namespace {
    /// Keeps a node, if there is such a node.
    pub(crate) fn pin(self: &Arc<Self>, node: NodeId) -> Option<NodePin> {
        self.state.lock().pin(node)
    }
}
