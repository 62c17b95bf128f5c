//! The files that are open, and the way in which each is read.
//!
//! A file is open in one of two ways: *cached*, where the kernel fills its page cache by asking us, or *passed through*,
//! where it reads a resident file by itself. The kernel takes one way at a time, and one resident file, for all handles of a
//! node: another would be our mistake and the application's EIO. So the first open of a node chooses, the others get the
//! same, and only when the last handle is gone is the next open free to choose again. The kernel forgets a handle's way before
//! it tells of its release, so what this table thinks open is always at least what the kernel thinks open.
//!
//! A handle lives until its release, which comes when the last descriptor of it is closed, and, if it is cached, the last
//! mapping gone; a mapping of a file that is passed through has a hold of its own on the resident file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::namespace::NodeId;

/// Nodes are spread over this many locks, so that opens of different files seldom meet.
const SHARDS: usize = 16;

/// The open nodes of a mount. `V` is the version that a node stands for, `F` a resident file that the
/// kernel can read.
pub(super) struct Opens<V, F> {
    shards: [Mutex<HashMap<NodeId, OpenNode<V, F>>>; SHARDS],
}

struct OpenNode<V, F> {
    /// What it was opened as, oldest first, and how often. A node that grows comes to stand for other versions.
    versions: Vec<(Arc<V>, u32)>,
    /// What the kernel reads by itself. `None`: it asks us.
    backing: Option<F>,
}

impl<V, F: Clone> Opens<V, F> {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn shard(&self, node: NodeId) -> &Mutex<HashMap<NodeId, OpenNode<V, F>>> {
        &self.shards[node as usize % SHARDS]
    }

    /// A handle is opened. `resident` is what could be passed through now, if the node still stands for `version`, which
    /// `is_current` tells; returns what has to be.
    pub(super) fn open(
        &self,
        node: NodeId,
        version: &Arc<V>,
        resident: Option<F>,
        is_current: impl FnOnce() -> bool,
    ) -> Option<F> {
        match self.shard(node).lock().entry(node) {
            Entry::Occupied(mut open) => {
                let open = open.get_mut();
                match open.versions.iter_mut().find(|(known, _)| Arc::ptr_eq(known, version)) {
                    Some((_, handles)) => *handles += 1,
                    None => open.versions.push((version.clone(), 1)),
                }
                open.backing.clone()
            }
            Entry::Vacant(place) => {
                // Who lets a node grow looks here once it stands for the longer version.
                let backing = resident.filter(|_| is_current());
                place.insert(OpenNode { versions: vec![(version.clone(), 1)], backing: backing.clone() });
                backing
            }
        }
    }

    /// A handle was released. Returns what it was a handle of, or another that is open: it does not matter which of them goes
    /// first. That is nothing only if the kernel counts wrongly.
    pub(super) fn release(&self, node: NodeId) -> Option<Arc<V>> {
        let mut shard = self.shard(node).lock();
        let Entry::Occupied(mut open) = shard.entry(node) else { return None };
        let (version, handles) = open.get_mut().versions.first_mut()?;
        let version = version.clone();
        *handles -= 1;
        if *handles == 0 {
            open.get_mut().versions.remove(0);
        }
        let last = open.get().versions.is_empty().then(|| open.remove());
        drop(shard);
        // What the last handle held of a resident file is given up here, without the lock.
        drop(last);
        Some(version)
    }

    /// Whether a node is open.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.shard(node).lock().contains_key(&node)
    }

    /// What is passed through for the handles of a node.
    pub(super) fn passed_through(&self, node: NodeId) -> Option<F> {
        self.shard(node).lock().get(&node)?.backing.clone()
    }

    /// The nodes for whose handles something is passed through.
    pub(super) fn all_passed_through(&self) -> Vec<NodeId> {
        let in_shard = |shard: &Mutex<HashMap<NodeId, OpenNode<V, F>>>| -> Vec<NodeId> {
            shard.lock().iter().filter(|(_, open)| open.backing.is_some()).map(|(node, _)| *node).collect()
        };
        self.shards.iter().flat_map(in_shard).collect()
    }

    /// How many handles of a node were opened as `version`.
    pub(super) fn handles(&self, node: NodeId, version: &Arc<V>) -> u32 {
        let shard = self.shard(node).lock();
        let versions = shard.get(&node).into_iter().flat_map(|open| &open.versions);
        versions.filter(|(known, _)| Arc::ptr_eq(known, version)).map(|(_, handles)| handles).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_open_chooses_for_all_until_the_last_is_closed() {
        let opens = Opens::new();
        let version = Arc::new("version");
        let (old, new) = (Arc::new("old"), Arc::new("new"));
        assert_eq!(opens.open(1, &version, None, || true), None);
        assert_eq!(opens.open(1, &version, Some(old.clone()), || true), None, "there is a cached handle");
        assert_eq!(
            opens.open(17, &version, Some(old.clone()), || true),
            Some(old.clone()),
            "another node of the shard"
        );
        assert!(opens.release(1).is_some());
        assert_eq!(opens.open(1, &version, Some(old.clone()), || true), None, "there still is one");
        assert!(opens.release(1).is_some() && opens.release(1).is_some());
        assert_eq!(opens.open(1, &version, Some(old.clone()), || true), Some(old.clone()));
        assert_eq!(opens.open(1, &version, Some(new.clone()), || true), Some(old.clone()));
        assert_eq!(opens.open(1, &version, None, || true), Some(old.clone()), "evicted, but open");
        (0..3).for_each(|_| assert!(opens.release(1).is_some()));
        assert!(opens.release(1).is_none());
        assert!(opens.release(17).is_some());
        assert_eq!((Arc::strong_count(&old), Arc::strong_count(&version)), (1, 1), "nothing is kept");
    }

    #[test]
    fn handles_of_every_version_are_given_back() {
        let opens = Opens::new();
        let (short, long) = (Arc::new("short"), Arc::new("long"));
        opens.open(1, &short, Some("file"), || true);
        opens.open(1, &long, None, || true);
        opens.open(1, &short, None, || true);
        assert_eq!(opens.passed_through(1), Some("file"));
        assert_eq!((opens.handles(1, &short), opens.handles(1, &long)), (2, 1));
        assert!(opens.is_open(1) && !opens.is_open(17));
        let mut left: Vec<_> = (0..3).filter_map(|_| opens.release(1)).map(|version| *version).collect();
        left.sort_unstable();
        assert_eq!(left, ["long", "short", "short"]);
        assert!(opens.release(1).is_none() && !opens.is_open(1));
        assert_eq!((opens.passed_through(1), opens.handles(1, &short)), (None, 0));
        assert_eq!(opens.open(1, &short, Some("file"), || false), None, "that is not all of it any more");
        assert_eq!(opens.open(1, &long, Some("longer file"), || true), None, "it is open in the other way");
    }

    /// What the kernel keeps of a node, and refuses.
    #[derive(Default)]
    struct Kernel {
        backing: Vec<Option<u8>>,
    }

    proptest! {
        #[test]
        fn the_kernel_never_sees_two_ways_at_once(
            steps in proptest::collection::vec((0..2u64, any::<bool>(), proptest::option::of(0..3u8)), 0..200)
        ) {
            let opens = Opens::new();
            let version = Arc::new(());
            let mut kernel = [Kernel::default(), Kernel::default()];
            for (node, close, resident) in steps {
                let open = &mut kernel[node as usize].backing;
                if close && !open.is_empty() {
                    open.pop();
                    prop_assert!(opens.release(node).is_some());
                } else {
                    open.push(opens.open(node, &version, resident.map(Arc::new), || true).map(|file| *file));
                    prop_assert!(open.iter().all(|way| *way == open[0]), "{open:?}");
                }
            }
        }
    }
}
