//! Pins of nodes, for actions that come later than the request.
//!
//! When the kernel has forgotten a node and nothing holds it, its number is reused. An action that
//! refers to a node by number after the request is over, and that would harm another node, pins
//! the node first.

use std::sync::{Arc, Weak};

use super::{Namespace, NodeId};
use crate::read::FileVersion;

/// Keeps a node, so that its number is not reused. Must not be dropped under the namespace's lock.
pub(crate) struct NodePin {
    /// Weak: a pin does not keep the mount.
    namespace: Weak<Namespace>,
    node: NodeId,
}

impl NodePin {
    /// A pin of a node that the caller has opened.
    pub(super) fn of(namespace: Weak<Namespace>, node: NodeId) -> Self {
        Self { namespace, node }
    }

    /// Dissolves the pin; the caller closes the node.
    pub(super) fn into_id(mut self) -> NodeId {
        self.namespace = Weak::new();
        self.node
    }

    /// The number of the node.
    pub(crate) fn id(&self) -> NodeId {
        self.node
    }

    /// The namespace of the node, unless the mount is gone.
    pub(super) fn namespace(&self) -> Option<Arc<Namespace>> {
        self.namespace.upgrade()
    }

    /// Whether the node still stands for `version`, and is not growing.
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
    /// Pins a node, if it exists.
    pub(crate) fn pin(self: &Arc<Self>, node: NodeId) -> Option<NodePin> {
        self.state.lock().pin(node)
    }
}
