//! The state behind the namespace's lock: nodes, pending lookups, limits and timeouts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::mpsc::{SendError, Sender};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::directory::{Dentry, Directory};
use super::invalidate::{Invalidation, QueuedInvalidation};
use super::listing::ListingBudget;
use super::nodes::NodeTable;
use super::pending_lookup::PendingLookup;
use super::pin::NodePin;
use super::{ChangeStamp, KernelFeatures, Namespace, NamespaceOptions, NodeId, NodeStat};
use crate::ledger::{RecordId, RecordKind, StoredRecord};
use crate::read::FileVersion;
use crate::seaweed::entry::Entry;

/// How many listings a daemon makes before their numbers are those of its successor: 2 to the power
/// of this.
const LISTINGS_BITS: u32 = 20;

pub(super) struct NamespaceState {
    pub(super) nodes: NodeTable,
    /// Lookups that wait for the filer, by the directory's serial number and the name.
    pub(super) pending_lookups: HashMap<(u64, Arc<str>), PendingLookup>,
    /// Whether the filer's events arrive.
    pub(super) live: bool,
    /// Grows when events cease or arrive again: what was learned in another epoch is not trusted.
    pub(super) epoch: u64,
    /// Grows with every event about a hard-linked file.
    pub(super) link_changes: u64,
    /// Grows with every event about the root itself.
    pub(super) root_changes: u64,
    clock: u64,
    next_listing: u32,
    long_timeout: Duration,
    short_timeout: Duration,
    cached_limit: usize,
    node_limit: usize,
    /// The memory of nodes, in bytes, at which the kernel is next asked to forget some.
    next_shrink_bytes: usize,
    pub(super) listings: Arc<ListingBudget>,
    absent_limit: usize,
    kernel: Sender<QueuedInvalidation>,
    pub(super) kernel_features: KernelFeatures,
    /// The queue of nodes that grow.
    pub(super) growths: Option<mpsc::UnboundedSender<NodePin>>,
    /// The namespace that this is the state of.
    namespace: Weak<Namespace>,
}

impl NamespaceState {
    pub(super) fn new(
        options: &NamespaceOptions,
        nodes: NodeTable,
        kernel: Sender<QueuedInvalidation>,
        namespace: Weak<Namespace>,
    ) -> Self {
        // Numbers of listings differ from those of a predecessor, which the kernel may know.
        let first_listing = (nodes.ledger.generation() as u32) << LISTINGS_BITS;
        Self {
            nodes,
            pending_lookups: HashMap::new(),
            live: false,
            epoch: 1,
            link_changes: 0,
            root_changes: 0,
            clock: 0,
            next_listing: first_listing,
            long_timeout: options.long_timeout,
            short_timeout: options.short_timeout,
            cached_limit: options.cached_bytes,
            node_limit: options.node_bytes,
            next_shrink_bytes: options.node_bytes,
            listings: ListingBudget::new(options.listing_bytes),
            absent_limit: options.absent_names,
            kernel,
            kernel_features: KernelFeatures::default(),
            growths: None,
            namespace,
        }
    }

    pub(super) fn size(&self) -> (usize, usize) {
        (self.nodes.len(), self.nodes.cached_entries)
    }

    /// The stamp of a reply about the content of a directory; `None` if the directory is not live.
    pub(super) fn directory_stamp(&mut self, id: NodeId) -> Option<ChangeStamp> {
        let serial = self.nodes.directory(id)?.serial;
        self.change_stamp(id, serial)
    }

    /// The same, if the directory is still the one with this serial number.
    pub(super) fn change_stamp(&mut self, id: NodeId, serial: u64) -> Option<ChangeStamp> {
        let directory = self.nodes.directory(id).filter(|directory| directory.serial == serial)?;
        let changes = directory.changes;
        Some(ChangeStamp { epoch: self.epoch, changes, link_changes: self.link_changes })
    }

    /// Queues an invalidation. It is lost only when the mount goes away; if only this process
    /// does, its successor invalidates all attributes and listings, and all names that the ledger
    /// has.
    pub(super) fn notify(&self, invalidation: Invalidation) {
        let _ = self.kernel.send(QueuedInvalidation { invalidation, pin: None, record: None });
    }

    /// Queues that a name is to be dropped which the ledger may have for no other reason.
    pub(super) fn notify_name(&self, parent: NodeId, name: &str) {
        let name = Arc::from(name);
        let record = self.note_invalidation(parent, &name);
        let invalidation = Invalidation::Entry { parent, name };
        let _ = self.kernel.send(QueuedInvalidation { invalidation, pin: None, record });
    }

    /// Queues that an absent name is to be dropped, which stands in the ledger as `record`.
    pub(super) fn notify_absent(&self, parent: NodeId, name: Arc<str>, record: Option<RecordId>) {
        let invalidation = Invalidation::Entry { parent, name };
        let _ = self.kernel.send(QueuedInvalidation { invalidation, pin: None, record });
    }

    fn note_invalidation(&self, parent: NodeId, name: &Arc<str>) -> Option<RecordId> {
        let dentry = Dentry { parent, name: name.clone() };
        self.nodes.ledger.insert(RecordKind::Invalidation, 0, &dentry)
    }

    /// Queues the invalidations that a predecessor has not sent.
    pub(super) fn resume_invalidations(&self, records: &[StoredRecord]) {
        for record in records.iter().filter(|record| record.kind == RecordKind::Invalidation) {
            if let Some(Dentry { parent, name }) = record.value() {
                let invalidation = Invalidation::Entry { parent, name };
                let queued = QueuedInvalidation { invalidation, pin: None, record: Some(record.id) };
                let _ = self.kernel.send(queued);
            }
        }
    }

    /// Pins a node, if it exists.
    pub(super) fn pin(&mut self, id: NodeId) -> Option<NodePin> {
        self.nodes.open(id)?;
        Some(NodePin::of(self.namespace.clone(), id))
    }

    /// Queues that `name` of `parent`, which stood for `child`, was deleted.
    pub(super) fn notify_deleted(&mut self, parent: NodeId, child: NodeId, name: &str) {
        let name = Arc::from(name);
        let record = self.note_invalidation(parent, &name);
        let invalidation = Invalidation::Deleted { parent, child, name };
        let pin = self.pin(child);
        if let Err(SendError(lost)) = self.kernel.send(QueuedInvalidation { invalidation, pin, record })
            && let Some(pin) = lost.pin
        {
            self.nodes.close(pin.into_id());
        }
    }

    pub(super) fn next_listing(&mut self) -> u32 {
        self.next_listing = self.next_listing.wrapping_add(1);
        self.next_listing
    }

    /// Runs `work` on a live directory, marks it as used, and updates the totals of all
    /// directories.
    pub(super) fn with_directory<T>(
        &mut self,
        id: NodeId,
        work: impl FnOnce(&mut Directory) -> T,
    ) -> Option<T> {
        self.clock += 1;
        let directory = self.nodes.directory(id)?;
        directory.last_used = self.clock;
        let before = directory.usage();
        let result = work(directory);
        let now = directory.usage();
        let nodes = &mut self.nodes;
        nodes.cached_entries = nodes.cached_entries + now.present - before.present;
        nodes.cached_bytes = nodes.cached_bytes + now.present_bytes - before.present_bytes;
        nodes.absent = nodes.absent + now.absent - before.absent;
        nodes.snapshots = nodes.snapshots + now.snapshots - before.snapshots;
        Some(result)
    }

    /// Whether another absent name may be cached.
    pub(super) fn has_room_for_absent(&self) -> bool {
        self.nodes.absent < self.absent_limit
    }

    /// If cached entries take too much memory, evicts those of the least recently used
    /// directories.
    pub(super) fn evict_entries(&mut self) {
        if self.nodes.cached_bytes <= self.cached_limit {
            return;
        }
        let enough = self.cached_limit / 4 * 3;
        self.evict(|directory| directory.present.len() > 0, |state| state.nodes.cached_bytes <= enough);
    }

    /// If listings take too much memory, the least recently used directories drop theirs, which
    /// are freed unless handles still read them.
    pub(super) fn evict_listings(&mut self) {
        if self.nodes.snapshots > 0 {
            self.evict(|directory| directory.snapshot.is_some(), |state| state.listings.is_below_watermark());
        }
    }

    /// Drops the cache of directories that `which` selects, the least recently used first, until
    /// it `is_enough`.
    fn evict(&mut self, which: impl Fn(&Directory) -> bool, is_enough: impl Fn(&Self) -> bool) {
        let mut by_age: Vec<(u64, NodeId)> = self
            .nodes
            .iter_mut()
            .filter_map(|(id, node)| {
                let directory = node.directory.as_ref()?;
                which(directory).then_some((directory.last_used, id))
            })
            .collect();
        by_age.sort_unstable();
        for (_, id) in by_age {
            if is_enough(self) {
                break;
            }
            let clock = self.clock;
            self.with_directory(id, Directory::drop_cache);
            self.clock = clock;
        }
    }

    /// How long the kernel may cache what is known of `entry`.
    pub(super) fn timeout(&self, entry: &Entry) -> Duration {
        let timeout = if self.live { self.long_timeout } else { self.short_timeout };
        match entry.expires {
            Some(at) => timeout.min(at.duration_since(SystemTime::now()).unwrap_or_default()),
            None => timeout,
        }
    }

    /// How long the kernel may cache that a name is absent, if that is recorded.
    pub(super) fn absent_timeout(&self) -> Duration {
        if self.live { self.long_timeout } else { self.short_timeout }
    }

    /// Whether the attributes of a node are current.
    pub(super) fn is_fresh(&self, id: NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| {
            let (epoch, at) = node.verified;
            let checked = epoch == self.epoch && (self.live || at.elapsed() < self.short_timeout);
            // A version without a name keeps its last attributes.
            !node.stale && node.growth.is_none() && (checked || (node.names.is_empty() && id != super::ROOT))
        })
    }

    /// Whether no optional nodes should be made.
    pub(super) fn is_over_node_limit(&self) -> bool {
        self.nodes.bytes > self.node_limit
    }

    /// If nodes take too much memory, asks the kernel to forget some, which it does in its own
    /// time.
    pub(super) fn limit_nodes(&mut self) {
        let (bytes, limit) = (self.nodes.bytes, self.node_limit);
        let step = limit / 8;
        if bytes > limit && bytes > self.next_shrink_bytes {
            // Down to three quarters of the limit, if all nodes take about as much.
            let stay = (self.nodes.len() as u128 * limit as u128 * 3 / (bytes as u128 * 4)) as usize;
            for id in self.nodes.request_forgets(self.nodes.len() - stay, self.kernel_features.prunes) {
                self.request_forget(id);
            }
            // If that does not help, the next attempt comes an eighth of the limit later.
            self.next_shrink_bytes = bytes + step;
        }
        self.next_shrink_bytes = self.next_shrink_bytes.min(bytes + step).max(limit);
    }

    /// Asks the kernel to forget a node. A kernel without `FUSE_NOTIFY_PRUNE` gets its names
    /// invalidated, even if the file is in use.
    fn request_forget(&self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        if !self.kernel_features.prunes {
            for dentry in &node.names {
                self.notify(Invalidation::Entry { parent: dentry.parent, name: dentry.name.clone() });
            }
            return;
        }
        // Negative dentries keep a directory in use.
        for name in node.directory.iter().flat_map(|directory| directory.absent.keys()) {
            self.notify(Invalidation::Entry { parent: id, name: name.as_ref().into() });
        }
        self.notify(Invalidation::Unused(id));
    }

    /// The node for a reply that has `entry` as `name` of `parent`. `current`: the entry is what
    /// the filer would say now. `None` if the directory is not live.
    pub(super) fn attach(
        &mut self,
        parent: NodeId,
        name: &str,
        entry: &Arc<Entry>,
        current: bool,
    ) -> Option<NodeStat> {
        let entry = &self.newest_known(parent, name, entry, current);
        let (id, returns) = self.nodes.attach(parent, name, entry)?;
        self.limit_nodes();
        if returns {
            self.invalidate_subtree(id);
        }
        let epoch = self.epoch;
        let node = self.nodes.get_mut(id)?;
        if !Arc::ptr_eq(&node.entry, entry) {
            self.grow(id, entry);
            return self.stat(id);
        }
        let current = current && node.growth.is_none();
        node.stale = !current;
        node.verified = (epoch, Instant::now());
        let generation = node.generation;
        let timeout = if current { self.timeout(entry) } else { Duration::ZERO };
        Some(NodeStat { id, generation, entry: entry.clone(), entry_timeout: timeout, attr_timeout: timeout })
    }

    /// The newest known entry of a name, for a reply that may have been overtaken by a longer
    /// version. Without events any reply may be that.
    fn newest_known(&self, parent: NodeId, name: &str, entry: &Arc<Entry>, current: bool) -> Arc<Entry> {
        if current && self.live {
            return entry.clone();
        }
        let known = self.nodes.child(parent, name).and_then(|id| self.nodes.get(id));
        known.filter(|node| node.has_outgrown(entry)).map_or(entry, |node| &node.entry).clone()
    }

    /// The version that a node stands for.
    pub(super) fn version(&self, id: NodeId) -> Option<Arc<FileVersion>> {
        let node = self.nodes.get(id)?;
        let make = || FileVersion::new(&self.nodes.path(id), node.entry.clone());
        Some(node.version.get_or_init(make).clone())
    }

    /// A node as it is known, with timeouts of zero if that is not current.
    pub(super) fn stat(&self, id: NodeId) -> Option<NodeStat> {
        let node = self.nodes.get(id)?;
        let timeout = if self.is_fresh(id) { self.timeout(&node.entry) } else { Duration::ZERO };
        Some(NodeStat {
            id,
            generation: node.generation,
            entry: node.entry.clone(),
            entry_timeout: timeout,
            attr_timeout: timeout,
        })
    }
}
