//! Open files, and how the kernel reads each of them.
//!
//! A file is open *cached*, if the kernel fills its page cache by READ requests, or *passed
//! through*, if the kernel reads a resident file by itself. For all handles of a node the kernel
//! accepts one of the two, and one resident file; otherwise the application gets EIO. So the first
//! open of a node chooses, later opens get the same, and when the last handle is released the next
//! open chooses anew. The kernel forgets the choice before it sends the RELEASE of the last
//! handle, so a node that the kernel thinks open is always open in this table.
//!
//! The RELEASE of a handle comes when its last descriptor is closed and, if it is cached, its last
//! mapping is gone; a mapping of a file that is passed through keeps the resident file itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::namespace::NodeId;

/// Locks that the nodes are spread over, so that opens of different files seldom contend.
const SHARDS: usize = 16;

/// The open nodes of a mount. `V` is the version that a node stands for, `F` a resident file that
/// the kernel can read.
pub(super) struct Opens<V, F> {
    shards: [Mutex<HashMap<NodeId, OpenNode<V, F>>>; SHARDS],
}

struct OpenNode<V, F> {
    /// The versions it was opened as, oldest first, each with its number of handles. A node that
    /// grows stands for several versions in turn.
    versions: Vec<(Arc<V>, u32)>,
    /// The resident file that the kernel reads. `None`: the kernel sends READ requests.
    backing: Option<F>,
}

impl<V, F: Clone> Opens<V, F> {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn shard(&self, node: NodeId) -> &Mutex<HashMap<NodeId, OpenNode<V, F>>> {
        &self.shards[node as usize % SHARDS]
    }

    /// Notes that a handle was opened, and returns the file to pass through. `resident` is the
    /// resident file of `version`, if there is one; it is used only if `is_current` says that the
    /// node still stands for `version`.
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
            Entry::Vacant(vacant) => {
                // A node that grows looks here for the file only after it stands for the longer
                // version.
                let backing = resident.filter(|_| is_current());
                vacant.insert(OpenNode { versions: vec![(version.clone(), 1)], backing: backing.clone() });
                backing
            }
        }
    }

    /// Notes that a handle was released. Returns the version that it was a handle of, or that of
    /// another open handle of the node: their order does not matter. `None` only if the kernel
    /// counts wrongly.
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
        // Dropped without the lock: this may be the last reference to a resident file.
        drop(last);
        Some(version)
    }

    /// Whether a node is open.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.shard(node).lock().contains_key(&node)
    }

    /// The file that is passed through for the handles of a node.
    pub(super) fn passed_through(&self, node: NodeId) -> Option<F> {
        self.shard(node).lock().get(&node)?.backing.clone()
    }

    /// The nodes with a file that is passed through.
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
    fn the_first_open_chooses_for_all_until_the_last_release() {
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
    fn handles_of_every_version_are_released() {
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
        assert_eq!(
            opens.open(1, &short, Some("file"), || false),
            None,
            "the resident file is shorter by now"
        );
        assert_eq!(opens.open(1, &long, Some("longer file"), || true), None, "it is open cached");
    }

    /// How the kernel has a node open.
    #[derive(Default)]
    struct SimulatedKernel {
        backing: Vec<Option<u8>>,
    }

    proptest! {
        #[test]
        fn the_kernel_never_sees_two_choices_at_once(
            steps in proptest::collection::vec((0..2u64, any::<bool>(), proptest::option::of(0..3u8)), 0..200)
        ) {
            let opens = Opens::new();
            let version = Arc::new(());
            let mut kernel = [SimulatedKernel::default(), SimulatedKernel::default()];
            for (node, close, resident) in steps {
                let open = &mut kernel[node as usize].backing;
                if close && !open.is_empty() {
                    open.pop();
                    prop_assert!(opens.release(node).is_some());
                } else {
                    open.push(opens.open(node, &version, resident.map(Arc::new), || true).map(|file| *file));
                    prop_assert!(open.iter().all(|choice| *choice == open[0]), "{open:?}");
                }
            }
        }
    }
}
