//! Reuse distances: how many other keys were used since a key was last used, which is the size that an LRU cache must have to still hold it.
//!
//! Every use has a place in the order of uses. A Fenwick tree over the places counts those that are some key's last use, so that a use takes
//! logarithmic time (Bennett and Kruskal, 1975). When the places are used up, the keys move to the front of new ones.

use std::collections::HashMap;
use std::hash::Hash;

/// The last uses of keys.
#[derive(Debug)]
pub(super) struct Distances<K> {
    /// The place of each key's last use.
    last: HashMap<K, usize>,
    /// Over the places: 1 for the last use of a key, 0 for one that is not the last any more.
    tree: Vec<u32>,
    /// The next place.
    next: usize,
}

impl<K: Copy + Eq + Hash> Distances<K> {
    /// Places at least; there are twice as many as keys when they are given out anew.
    const LEAST: usize = 1024;

    pub(super) fn new() -> Self {
        Self { last: HashMap::new(), tree: vec![0; Self::LEAST + 1], next: 0 }
    }

    /// Takes note of a use. Gives how many other keys were used since the last one, `None` if there was none.
    pub(super) fn use_of(&mut self, key: K) -> Option<u64> {
        if self.next + 1 == self.tree.len() {
            self.make_room();
        }
        let place = self.next;
        self.next += 1;
        self.add(place, 1);
        let before = self.last.insert(key, place)?;
        self.add(before, u32::MAX);
        // Of all last uses those behind the one before, without this one.
        Some(self.last.len() as u64 - u64::from(self.up_to(before)) - 1)
    }

    /// Forgets keys.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.last.retain(|key, _| keep(key));
        self.make_room();
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.last.len()
    }

    /// Gives out the places anew, in the same order.
    fn make_room(&mut self) {
        let mut order: Vec<(usize, K)> = self.last.iter().map(|(key, place)| (*place, *key)).collect();
        order.sort_unstable_by_key(|(place, _)| *place);
        self.tree = vec![0; (2 * order.len()).max(Self::LEAST) + 1];
        self.next = order.len();
        for (place, (_, key)) in order.into_iter().enumerate() {
            self.last.insert(key, place);
            self.add(place, 1);
        }
    }

    /// Adds to a place, modulo 2^32.
    fn add(&mut self, place: usize, count: u32) {
        let mut node = place + 1;
        while node < self.tree.len() {
            self.tree[node] = self.tree[node].wrapping_add(count);
            node += node & node.wrapping_neg();
        }
    }

    /// The sum of the places up to one, included.
    fn up_to(&self, place: usize) -> u32 {
        let (mut node, mut sum) = (place + 1, 0u32);
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

    /// The keys in the order of their last uses, the latest first.
    #[derive(Default)]
    struct Stack(Vec<u16>);

    impl Stack {
        fn use_of(&mut self, key: u16) -> Option<u64> {
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
        fn distances_are_those_of_a_stack(
            uses in prop::collection::vec(0u16..300, 1..4000),
            forgotten in prop::collection::vec(0usize..4000, 0..3),
        ) {
            let (mut distances, mut stack) = (Distances::new(), Stack::default());
            for (at, key) in uses.into_iter().enumerate() {
                if forgotten.contains(&at) {
                    distances.retain(|key| key % 3 != 0);
                    stack.0.retain(|key| key % 3 != 0);
                }
                prop_assert_eq!(distances.use_of(key), stack.use_of(key));
                prop_assert_eq!(distances.len(), stack.0.len());
            }
        }
    }
}
