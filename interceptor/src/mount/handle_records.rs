//! Open files and directories, as they stand in the ledger for a successor.
//!
//! The number of a handle is never used again, also not by a successor: a RELEASE that the kernel
//! sends again, because the predecessor was killed before it had answered, finds nothing to
//! release. An OPEN that is sent again is known by its request's number, and takes the place of the
//! first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::fuse::handles::Handles;
use crate::fuse::session::RESENT;
use crate::ledger::{Ledger, RecordId, RecordKind, StoredRecord};
use crate::namespace::NodeId;

/// How many handles a daemon opens before their numbers are those of its successor: 2 to the power
/// of this.
const NUMBERS_BITS: u32 = 40;

/// What is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum OpenKind {
    Directory,
    /// A file of which the daemon answers reads.
    Cached,
    /// A file that the kernel reads by itself, by the number of its registration.
    PassedThrough(u32),
}

/// An open handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredHandle {
    pub(super) number: u64,
    pub(super) node: NodeId,
    pub(super) kind: OpenKind,
    /// The number of the request that opened it.
    request: u64,
}

struct HandleRecord {
    stored: StoredHandle,
    record: Option<RecordId>,
}

/// The open handles of a mount. Without a ledger it keeps nothing, and all numbers are zero.
pub(super) struct HandleRecords {
    ledger: Ledger,
    open: Handles<HandleRecord>,
    next: AtomicU64,
    /// Handles that the predecessor opened, by the numbers of their requests.
    inherited: Mutex<HashMap<u64, u64>>,
}

impl HandleRecords {
    pub(super) fn new(ledger: Ledger) -> Self {
        let next = AtomicU64::new((ledger.generation() << NUMBERS_BITS) + 1);
        Self { ledger, open: Handles::new(), next, inherited: Mutex::default() }
    }

    /// How many are open.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Takes the handles that the predecessor had open.
    pub(super) fn restore(&self, records: &[StoredRecord]) -> Vec<StoredHandle> {
        let handles = records.iter().filter(|record| record.kind == RecordKind::Handle);
        let known = handles.filter_map(|record| Some((record.id, record.value::<StoredHandle>()?)));
        known
            .map(|(record, stored)| {
                self.inherited.lock().insert(stored.request, stored.number);
                self.open.insert_as(stored.number, Arc::new(HandleRecord { stored, record: Some(record) }));
                stored
            })
            .collect()
    }

    /// Notes a handle before the kernel is told of it, and returns its number.
    pub(super) fn opened(&self, node: NodeId, kind: OpenKind, request: u64) -> u64 {
        if !self.ledger.is_kept() {
            return 0;
        }
        let (number, request) = (self.next.fetch_add(1, Ordering::Relaxed), request & !RESENT);
        let stored = StoredHandle { number, node, kind, request };
        let record = self.ledger.insert(RecordKind::Handle, 0, &stored);
        self.open.insert_as(number, Arc::new(HandleRecord { stored, record }));
        number
    }

    /// Notes that a handle was released. Returns whether it was open.
    pub(super) fn closed(&self, number: u64) -> bool {
        if !self.ledger.is_kept() {
            return true;
        }
        let Some(closed) = self.open.remove(number) else { return false };
        self.ledger.remove(closed.record);
        let mut inherited = self.inherited.lock();
        if inherited.get(&closed.stored.request) == Some(&number) {
            inherited.remove(&closed.stored.request);
        }
        true
    }

    /// The handle that the predecessor opened for this request, if the kernel sends it again.
    pub(super) fn opened_before(&self, request: u64) -> Option<u64> {
        if request & RESENT == 0 {
            return None;
        }
        self.inherited.lock().get(&(request & !RESENT)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_has_the_handles_and_no_request_counts_twice() {
        let ledger = Ledger::create(1 << 20).unwrap();
        let first = HandleRecords::new(ledger.clone());
        let file = first.opened(7, OpenKind::PassedThrough(3), 100);
        let directory = first.opened(8, OpenKind::Directory, 102);
        let closed = first.opened(7, OpenKind::Cached, 104);
        assert!(first.closed(closed) && !first.closed(closed));
        assert_eq!(first.opened_before(100 | RESENT), None, "it is its own");

        let (ledger, records) = Ledger::open(ledger.descriptor().unwrap().unwrap()).unwrap();
        let second = HandleRecords::new(ledger);
        let mut restored = second.restore(&records);
        restored.sort_by_key(|handle| handle.node);
        let kinds: Vec<_> = restored.iter().map(|handle| (handle.number, handle.node, handle.kind)).collect();
        assert_eq!(kinds, [(file, 7, OpenKind::PassedThrough(3)), (directory, 8, OpenKind::Directory)]);
        assert_eq!(second.opened_before(100), None, "another request");
        assert_eq!(second.opened_before(100 | RESENT), Some(file));
        assert!(second.closed(file));
        assert_eq!(second.opened_before(100 | RESENT), None);
        let again = second.opened(7, OpenKind::Cached, 100 | RESENT);
        assert!(![file, directory, closed].contains(&again));
        assert!(!second.closed(closed), "a release that is sent again");
    }

    #[test]
    fn without_a_ledger_there_are_no_numbers() {
        let handles = HandleRecords::new(Ledger::none());
        assert_eq!(handles.opened(7, OpenKind::Cached, 100), 0);
        assert!(handles.closed(0) && handles.closed(0));
    }
}
