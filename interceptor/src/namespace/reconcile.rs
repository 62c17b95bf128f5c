//! Finding the nodes that the kernel does not know, after another process has died.
//!
//! A lookup is counted before the kernel is told of it. If the process dies in between, the kernel
//! sends the request again, and the successor counts it once more: a node may have more lookups
//! than the kernel will ever forget, and would stay for ever. So a successor asks the kernel about
//! each node that it inherited, once, and later about those that the kernel forgot and that still
//! have lookups.
//!
//! The kernel may not know a node yet, if the reply that tells of it is under way. So a node is
//! dropped only if its lookups have not changed in [`RECHECK_DELAY`], and the kernel did not know
//! it at the beginning and at the end of that time.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::nodes::DoubtfulNode;
use super::{KernelCache, Namespace};
use crate::vital;

/// Far longer than a reply is under way.
const RECHECK_DELAY: Duration = Duration::from_secs(10);

/// Drops inherited nodes that the kernel does not know, for as long as there is the namespace.
pub(crate) async fn follow(namespace: Weak<Namespace>, kernel: Arc<dyn KernelCache>) {
    follow_every(RECHECK_DELAY, namespace, kernel).await;
}

async fn follow_every(patience: Duration, namespace: Weak<Namespace>, kernel: Arc<dyn KernelCache>) {
    let inherited = |namespace: &Namespace| namespace.state.lock().nodes.inherited();
    let Some(mut doubtful) = namespace.upgrade().map(|namespace| inherited(&namespace)) else { return };
    loop {
        doubtful = unknown(doubtful, &kernel).await;
        tokio::time::sleep(patience).await;
        let still = unknown(doubtful, &kernel).await;
        let Some(namespace) = namespace.upgrade() else { return };
        let mut state = namespace.state.lock();
        for node in still {
            state.nodes.drop_unknown(&node);
        }
        doubtful = state.nodes.take_doubtful();
    }
}

/// Those of `nodes` that the kernel does not know.
async fn unknown(nodes: Vec<DoubtfulNode>, kernel: &Arc<dyn KernelCache>) -> Vec<DoubtfulNode> {
    if nodes.is_empty() {
        return nodes;
    }
    let kernel = kernel.clone();
    let asked = tokio::task::spawn_blocking(move || {
        vital::contained(|| nodes.into_iter().filter(|node| !kernel.knows(node.id)).collect())
    });
    asked.await.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use parking_lot::Mutex;

    use super::super::nodes::NodeTable;
    use super::super::tests::{directory, empty_filer, file};
    use super::super::{NamespaceOptions, NodeId, ROOT};
    use super::*;
    use crate::ledger::Ledger;

    /// What the kernel knows.
    struct KnownNodes(Mutex<HashSet<NodeId>>);

    impl KernelCache for KnownNodes {
        fn inval_entry(&self, _: NodeId, _: &str) {}
        fn inval_inode_attr(&self, _: NodeId) {}
        fn inval_dir(&self, _: NodeId) {}
        fn delete(&self, _: NodeId, _: NodeId, _: &str) {}
        fn prune(&self, _: &[NodeId]) {}
        fn knows(&self, node: NodeId) -> bool {
            self.0.lock().contains(&node)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nodes_that_the_kernel_does_not_know_are_dropped() {
        let ledger = Ledger::create(1 << 20).unwrap();
        let mut nodes = NodeTable::new("/", Arc::new(directory("", 0)), ledger.clone());
        let mut attach = |name: &str| {
            let entry = Arc::new(file(name, 0, name.as_bytes()));
            nodes.attach(ROOT, name, &entry).unwrap().0
        };
        let [known, never_told, told_twice] = ["known", "never told", "told twice"].map(&mut attach);
        assert_eq!(attach("told twice"), told_twice);
        drop(nodes);

        let (ledger, records) = Ledger::open(ledger.descriptor().unwrap().unwrap()).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let options = NamespaceOptions::default();
        let (namespace, _queue) =
            Namespace::restore(empty_filer(), options, runtime, ledger, &records).unwrap();
        let kernel = Arc::new(KnownNodes(Mutex::new([known, told_twice].into())));
        let patience = Duration::from_millis(10);
        let mut following = tokio::spawn(follow_every(patience, Arc::downgrade(&namespace), kernel.clone()));
        let exists = |node: NodeId| namespace.state.lock().nodes.get(node).is_some();
        let gone = async |node: NodeId| {
            let waiting = async {
                while exists(node) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
        };
        gone(never_told).await;
        assert!(exists(known) && exists(told_twice));

        // It has one lookup too many.
        kernel.0.lock().remove(&told_twice);
        namespace.forget(told_twice, 1);
        gone(told_twice).await;
        assert!(exists(known));
        drop(namespace);
        tokio::time::timeout(Duration::from_secs(10), &mut following).await.unwrap().unwrap();
    }
}
