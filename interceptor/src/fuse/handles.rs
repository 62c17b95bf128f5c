//! Open handles, by the number that the kernel sends with every request.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// Locks that the handles are spread over, so that readers of different files seldom contend.
const SHARDS: usize = 16;

pub(crate) struct Handles<T> {
    shards: [RwLock<HashMap<u64, Arc<T>>>; SHARDS],
    next: AtomicU64,
}

impl<T> Handles<T> {
    pub(crate) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()), next: AtomicU64::new(1) }
    }

    fn shard(&self, number: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[number as usize % SHARDS]
    }

    pub(crate) fn insert(&self, handle: Arc<T>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, handle);
        number
    }

    /// Adds a handle under a number that no other has.
    pub(crate) fn insert_as(&self, number: u64, handle: Arc<T>) {
        self.shard(number).write().insert(number, handle);
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).read().get(&number).cloned()
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.shard(number).write().remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Handles;

    #[test]
    fn a_handle_is_found_until_it_is_removed() {
        let handles = Handles::new();
        let numbers: Vec<_> = (0..100).map(|value| handles.insert(Arc::new(value))).collect();
        assert_eq!(handles.len(), 100);
        for (value, number) in numbers.iter().enumerate() {
            assert_eq!(handles.get(*number).as_deref(), Some(&value));
            assert_eq!(handles.remove(*number).as_deref(), Some(&value));
            assert!(handles.get(*number).is_none() && handles.remove(*number).is_none());
        }
        assert_eq!(handles.len(), 0);
    }
}
