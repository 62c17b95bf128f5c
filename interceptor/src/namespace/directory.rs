//! What is known of the names in one directory.
//!
//! A name is known to exist (`present`), known not to exist (`absent`), or unknown. After a
//! listing has been read to its end, every name is known (`complete`) except those that changed
//! since (`unknown`).

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::NodeId;
use super::listing::DirectoryListing;
use crate::ledger::{Ledger, RecordId, RecordKind};
use crate::seaweed::entry::Entry;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dentry {
    pub(super) parent: NodeId,
    pub(super) name: Arc<str>,
}

/// An entry in a set by its name, so that the name is stored once.
struct ByName(Arc<Entry>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}
impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}
impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}
impl Eq for ByName {}

/// Approximate memory of a cached entry beside the entry: its slot in the table and reference
/// counts.
const CACHED_OVERHEAD: usize = 32;

/// Cached entries by their names.
#[derive(Default)]
pub(super) struct CachedEntries {
    entries: HashSet<ByName>,
    /// Their approximate memory in bytes.
    bytes: usize,
}

impl CachedEntries {
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name).map(|ByName(entry)| entry)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.entries.contains(name)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn insert(&mut self, entry: Arc<Entry>) {
        self.bytes += Self::cost(&entry);
        if let Some(ByName(old)) = self.entries.replace(ByName(entry)) {
            self.bytes -= Self::cost(&old);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(ByName(old)) = self.entries.take(name) {
            self.bytes -= Self::cost(&old);
        }
    }

    fn cost(entry: &Entry) -> usize {
        entry.memory() + CACHED_OVERHEAD
    }
}

/// A listing that is being read from the filer, and what has changed meanwhile.
pub(super) struct OngoingListing {
    pub(super) listing: Arc<DirectoryListing>,
    /// Names that changed since the listing began: its entries of them may be old.
    pub(super) changed_names: HashSet<Box<str>>,
    /// Whether entries were not cached, so that the directory is not completely known at the end.
    pub(super) is_partial: bool,
}

/// What is known of a name.
pub(super) enum NameStatus {
    Present(Arc<Entry>),
    Absent,
    Unknown,
}

/// What the kernel may have cached of a directory of which nothing is known any more.
pub(super) struct ForgottenNames {
    /// Whether it may have a listing.
    pub(super) listed: bool,
    pub(super) present: Vec<Arc<str>>,
    /// With where they stand in the ledger.
    pub(super) absent: Vec<(Arc<str>, Option<RecordId>)>,
}

/// The largest number of changed names of a complete directory. Beyond it, one listing costs less
/// than a lookup of each.
const MAX_UNKNOWN: usize = 10_000;

/// What a directory adds to the totals of all directories.
pub(super) struct DirectoryUsage {
    pub(super) present: usize,
    pub(super) present_bytes: usize,
    pub(super) absent: usize,
    pub(super) snapshots: usize,
}

pub(super) struct Directory {
    node: NodeId,
    ledger: Ledger,
    /// The serial number of its node.
    pub(super) serial: u64,
    /// Nodes that the kernel knows, by name.
    pub(super) children: HashMap<Arc<str>, NodeId>,
    pub(super) present: CachedEntries,
    /// Also the record of absent names that the kernel may have cached, each with where it stands
    /// in the ledger.
    pub(super) absent: HashMap<Box<str>, Option<RecordId>>,
    pub(super) complete: bool,
    unknown: HashSet<Box<str>>,
    pub(super) ongoing: Option<OngoingListing>,
    /// A complete listing that is still current.
    pub(super) snapshot: Option<Arc<DirectoryListing>>,
    /// Whether the kernel may have cached a listing.
    pub(super) kernel_has_listing: bool,
    /// Grows with every change of a name in it.
    pub(super) changes: u64,
    /// Lookups that had to ask the filer: the start of the current window, and their number since.
    pub(super) misses: (Instant, u32),
    /// Whether its listing turned out too long to be read in advance.
    pub(super) too_large: bool,
    /// When it was last used, in ticks of the namespace.
    pub(super) last_used: u64,
}

impl Directory {
    pub(super) fn new(node: NodeId, serial: u64, ledger: Ledger) -> Self {
        Self {
            node,
            ledger,
            serial,
            children: HashMap::new(),
            present: CachedEntries::default(),
            absent: HashMap::new(),
            complete: false,
            unknown: HashSet::new(),
            ongoing: None,
            snapshot: None,
            kernel_has_listing: false,
            changes: 0,
            misses: (Instant::now(), 0),
            too_large: false,
            last_used: 0,
        }
    }

    /// What it adds to the totals of all directories.
    pub(super) fn usage(&self) -> DirectoryUsage {
        DirectoryUsage {
            present: self.present.len(),
            present_bytes: self.present.bytes(),
            absent: self.absent.len(),
            snapshots: usize::from(self.snapshot.is_some()),
        }
    }

    /// What is known of `name`.
    pub(super) fn known(&mut self, name: &str, now: SystemTime) -> NameStatus {
        if let Some(entry) = self.present.get(name) {
            if entry.expires.is_none_or(|at| at > now) {
                return NameStatus::Present(entry.clone());
            }
            self.present.remove(name);
            self.mark_unknown(name);
            return NameStatus::Unknown;
        }
        if self.absent.contains_key(name) || (self.complete && !self.unknown.contains(name)) {
            return NameStatus::Absent;
        }
        NameStatus::Unknown
    }

    /// A current listing that another reader may share: nothing has changed since it began.
    pub(super) fn shared_listing(&self) -> Option<Arc<DirectoryListing>> {
        let growing = || self.ongoing.as_ref().filter(|ongoing| ongoing.changed_names.is_empty());
        let listing = self.snapshot.clone().or_else(|| growing().map(|ongoing| ongoing.listing.clone()))?;
        listing.set_has_reader();
        Some(listing)
    }

    /// The newest listing, complete or not, even if something has changed since.
    pub(super) fn newest_listing(&self) -> Option<&Arc<DirectoryListing>> {
        self.snapshot.as_ref().or_else(|| self.ongoing.as_ref().map(|ongoing| &ongoing.listing))
    }

    /// Whether a lookup of its name would return `entry` now.
    pub(super) fn is_current(&self, entry: &Arc<Entry>) -> bool {
        self.present.get(entry.name.as_str()).is_some_and(|known| Arc::ptr_eq(known, entry))
    }

    pub(super) fn learn_present(&mut self, entry: Arc<Entry>) {
        if entry.hard_link.is_some() {
            // A change through another of its names would not show here, so it is never cached.
            self.mark_unknown(&entry.name);
            return;
        }
        self.unknown.remove(entry.name.as_str());
        self.present.insert(entry);
    }

    pub(super) fn learn_absent(&mut self, name: &str) {
        self.present.remove(name);
        self.unknown.remove(name);
        if !self.absent.contains_key(name) {
            let dentry = Dentry { parent: self.node, name: name.into() };
            let record = self.ledger.insert(RecordKind::Absent, 0, &dentry);
            self.absent.insert(name.into(), record);
        }
    }

    /// A predecessor had learned that the name is absent. Returns how many names that adds.
    pub(super) fn restore_absent(&mut self, name: &str, record: RecordId) -> usize {
        match self.absent.insert(name.into(), Some(record)) {
            None => 1,
            Some(other) => {
                self.ledger.remove(other);
                0
            }
        }
    }

    fn mark_unknown(&mut self, name: &str) {
        if self.complete && !self.unknown.contains(name) {
            self.unknown.insert(name.into());
            if self.unknown.len() > MAX_UNKNOWN {
                self.complete = false;
                self.unknown = HashSet::new();
            }
        }
    }

    /// The name has changed: nothing is known of it, and no listing is current.
    pub(super) fn invalidate(&mut self, name: &str) {
        self.changes += 1;
        self.present.remove(name);
        if let Some(record) = self.absent.remove(name) {
            self.ledger.remove(record);
        }
        self.mark_unknown(name);
        self.snapshot = None;
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.changed_names.insert(name.into());
            if ongoing.changed_names.len() > MAX_UNKNOWN {
                self.ongoing = None;
            }
        }
    }

    /// Ends a listing that was read completely.
    pub(super) fn finish_listing(&mut self, ongoing: OngoingListing) {
        if !ongoing.is_partial {
            self.complete = true;
            self.unknown = HashSet::new();
            let linked: Vec<_> = ongoing.listing.linked_names();
            for name in
                ongoing.changed_names.iter().map(|name| &**name).chain(linked.iter().map(|name| &**name))
            {
                if !self.present.contains(name) {
                    self.unknown.insert(name.into());
                }
            }
            if ongoing.changed_names.is_empty() {
                self.snapshot = Some(ongoing.listing);
            }
        }
    }

    /// Drops all that is known, after events were missed. Returns whether the kernel may have
    /// cached a listing, the names that it may have cached, and those that it may have cached as
    /// absent. The latter stay in the ledger until the caller removes their records.
    pub(super) fn forget_all(&mut self) -> ForgottenNames {
        self.changes += 1;
        self.ongoing = None;
        self.too_large = false;
        self.drop_cache();
        ForgottenNames {
            listed: std::mem::take(&mut self.kernel_has_listing),
            present: self.children.keys().cloned().collect(),
            absent: self.absent.drain().map(|(name, record)| (Arc::from(name), record)).collect(),
        }
    }

    /// Drops cached entries to save memory. The record of what the kernel may have cached stays.
    pub(super) fn drop_cache(&mut self) {
        self.present = CachedEntries::default();
        self.complete = false;
        self.unknown = HashSet::new();
        self.snapshot = None;
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.is_partial = true;
        }
    }
}
