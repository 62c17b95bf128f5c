//! Reuse distances: the number of distinct other keys used since a key's last use. An LRU cache of
//! more than that many keys still holds it.
//!
//! Every use has a position in the order of uses. A Fenwick tree over the positions counts those
//! that are some key's last use, so that recording a use takes logarithmic time (Bennett and
//! Kruskal, 1975). When the positions run out, the keys are renumbered from 0 in a new tree.

use std::collections::HashMap;
use std::hash::Hash;

/// The position of the last use of each key.
#[derive(Debug)]
pub(super) struct ReuseDistances<K> {
    last: HashMap<K, usize>,
    /// Fenwick tree over the positions: 1 if a position is the last use of a key, 0 otherwise.
    tree: Vec<u32>,
    /// The next free position.
    next: usize,
}

impl<K: Copy + Eq + Hash> ReuseDistances<K> {
    /// A new tree has twice as many positions as keys, and at least this many.
    const MIN_POSITIONS: usize = 1024;

    pub(super) fn new() -> Self {
        Self { last: HashMap::new(), tree: vec![0; Self::MIN_POSITIONS + 1], next: 0 }
    }

    /// Records a use. Returns the number of other keys used since the key's last use; `None` if
    /// there was no use of it before.
    pub(super) fn record_use(&mut self, key: K) -> Option<u64> {
        if self.next + 1 == self.tree.len() {
            self.renumber();
        }
        let position = self.next;
        self.next += 1;
        self.add(position, 1);
        let before = self.last.insert(key, position)?;
        self.add(before, u32::MAX);
        // All last uses after the position of the one before, without this use itself.
        Some(self.last.len() as u64 - u64::from(self.up_to(before)) - 1)
    }

    /// Forgets the keys for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.last.retain(|key, _| keep(key));
        self.renumber();
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.last.len()
    }

    /// Renumbers the positions from 0, in the same order.
    fn renumber(&mut self) {
        let mut order: Vec<(usize, K)> = self.last.iter().map(|(key, position)| (*position, *key)).collect();
        order.sort_unstable_by_key(|(position, _)| *position);
        self.tree = vec![0; (2 * order.len()).max(Self::MIN_POSITIONS) + 1];
        self.next = order.len();
        for (position, (_, key)) in order.into_iter().enumerate() {
            self.last.insert(key, position);
            self.add(position, 1);
        }
    }

    /// Adds to a position, modulo 2^32.
    fn add(&mut self, position: usize, count: u32) {
        let mut node = position + 1;
        while node < self.tree.len() {
            self.tree[node] = self.tree[node].wrapping_add(count);
            node += node & node.wrapping_neg();
        }
    }

    /// The sum over the positions up to and including `position`.
    fn up_to(&self, position: usize) -> u32 {
        let (mut node, mut sum) = (position + 1, 0u32);
        while node > 0 {
            sum = sum.wrapping_add(self.tree[node]);
            node &= node - 1;
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference model: the keys in the order of their last uses, the latest first.
    #[derive(Default)]
    struct RecencyList(Vec<u16>);

    impl RecencyList {
        fn record_use(&mut self, key: u16) -> Option<u64> {
            let at = self.0.iter().position(|other| *other == key);
            if let Some(at) = at {
                self.0.remove(at);
            }
            self.0.insert(0, key);
            at.map(|at| at as u64)
        }
    }

    proptest! {
        #[test]
        fn distances_match_a_move_to_front_list(
            uses in prop::collection::vec(0u16..300, 1..4000),
            forgotten in prop::collection::vec(0usize..4000, 0..3),
        ) {
            let (mut distances, mut list) = (ReuseDistances::new(), RecencyList::default());
            for (at, key) in uses.into_iter().enumerate() {
                if forgotten.contains(&at) {
                    distances.retain(|key| key % 3 != 0);
                    list.0.retain(|key| key % 3 != 0);
                }
                prop_assert_eq!(distances.record_use(key), list.record_use(key));
                prop_assert_eq!(distances.len(), list.0.len());
            }
        }
    }
}
