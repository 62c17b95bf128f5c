//! Names, attributes, and which version of a file a name stands for.
//!
//! **A node is one version of a file.** The number by which the kernel knows a file stands for
//! bytes that never change. If a file changes, its name is invalidated in the kernel, and the next
//! LOOKUP gives the name another node; open handles keep the old node, its chunks, and the
//! kernel's pages of it. So cached pages are never wrong, and an open file keeps its view. If only
//! attributes change, the node stays. A file that was only appended to keeps its node as well
//! ([`growth`]). Directories keep their node through renames, and the names of a hard-linked file
//! share one ([`nodes`]).
//!
//! **Events only invalidate.** An event of the filer never adds an entry: it drops what is known
//! of a name, and invalidates it in the kernel; the next LOOKUP asks the filer. So the order of
//! events does not matter, nor do repetitions. A reply of the filer that was under way when an
//! event for the same name came may be older than the event: it is given to the waiting requests
//! for immediate use, and not cached ([`events`], [`lookup`]).
//!
//! **Timeouts.** While events arrive, the kernel may cache names and attributes for an hour;
//! otherwise for a second. If the stream of events breaks, everything with a longer timeout is
//! invalidated ([`invalidate`]).
//!
//! **Directories.** Names are looked up one by one until there were a few in one directory. Then
//! the whole directory is listed in the background, with chunk lists: a job that opens thousands
//! of small files takes one listing instead of thousands of round trips ([`directory`],
//! [`listing`], [`lookup`]).
//!
//! One lock guards all of it, held for a few map operations and never across a reply, a
//! notification or an await. Nothing here knows FUSE: the filer and the kernel are traits, and
//! tests drive both.

mod directory;
mod events;
mod filer;
pub(crate) mod growth;
pub(crate) mod invalidate;
pub(crate) mod listing;
mod lookup;
#[cfg(test)]
mod model_tests;
pub(crate) mod next_files;
mod nodes;
mod pending_lookup;
mod pin;
pub(crate) mod readdir;
pub(crate) mod reconcile;
mod root;
mod state;
pub(crate) mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;

pub use filer::{ClusterUsage, Filer, FilerFailure, NamespaceError};
pub use invalidate::KernelCache;
pub(crate) use pin::NodePin;
pub use root::RootError;
pub(crate) use root::find_root;

use invalidate::InvalidationQueue;
use listing::DirectoryListing;
use nodes::NodeTable;
use state::NamespaceState;

use crate::ledger::{Ledger, StoredRecord};
use crate::read::FileVersion;
use crate::seaweed::entry::{Entry, FileKind};

/// The number of a node, which is also its `st_ino`.
pub type NodeId = u64;

/// The root of the mount.
pub const ROOT: NodeId = 1;

/// Limits and behaviour of a namespace.
#[derive(Debug, Clone)]
pub struct NamespaceOptions {
    /// The filer's path of the root.
    pub root_path: String,
    /// Show the filer's own directories `/topics` and `/etc`.
    pub include_system_entries: bool,
    /// How long the kernel may cache what events invalidate.
    pub long_timeout: Duration,
    /// How long the kernel may cache anything while no events arrive.
    pub short_timeout: Duration,
    /// Lookups in one directory within `prefetch_window` after which the whole directory is
    /// listed.
    pub prefetch_after: u32,
    /// See `prefetch_after`.
    pub prefetch_window: Duration,
    /// The largest number of entries in a listing that no reader waits for.
    pub prefetch_limit: usize,
    /// The limit on memory for cached entries of all directories, in bytes.
    pub cached_bytes: usize,
    /// The limit on memory for nodes that the kernel knows, in bytes. Beyond it the kernel is
    /// asked to forget some, and gets listed names without nodes.
    pub node_bytes: usize,
    /// The limit on memory for listings, in progress or kept for other readers, in bytes.
    pub listing_bytes: usize,
    /// The limit on absent names that are cached, in all directories together.
    pub absent_names: usize,
}

impl Default for NamespaceOptions {
    fn default() -> Self {
        Self {
            root_path: "/".into(),
            include_system_entries: false,
            long_timeout: Duration::from_secs(3600),
            short_timeout: Duration::from_secs(1),
            prefetch_after: 4,
            prefetch_window: Duration::from_secs(2),
            prefetch_limit: 100_000,
            cached_bytes: 64 << 20,
            node_bytes: 256 << 20,
            listing_bytes: 64 << 20,
            absent_names: 200_000,
        }
    }
}

impl NamespaceOptions {
    /// The default options beside a block cache of this size: an eighth of it for names, and a
    /// quarter for nodes that the kernel knows, within bounds.
    pub fn beside_cache(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let half = (bytes / 16).clamp(4 << 20, 128 << 20);
        let node_bytes = (bytes / 4).clamp(16 << 20, 2 << 30);
        Self { cached_bytes: half, listing_bytes: half, node_bytes, ..Self::default() }
    }
}

/// Features that not every kernel has.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KernelFeatures {
    /// Forgets unused nodes on request (`FUSE_NOTIFY_PRUNE`).
    pub(crate) prunes: bool,
    /// Takes only the name of a listed entry if no file could have its attributes.
    pub(crate) accepts_entries_without_node: bool,
}

/// The state of a directory that a reply of the filer is current for: every event that could
/// concern the reply changes one of these counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChangeStamp {
    epoch: u64,
    changes: u64,
    link_changes: u64,
}

/// An entry of a directory in a READDIRPLUS reply.
#[derive(Debug, Clone)]
pub(crate) enum ListedEntry {
    /// With its node, of which one lookup was counted.
    Node(NodeStat),
    /// Without a node: its name and this number only.
    Name(NodeId),
}

/// A node in a reply.
#[derive(Debug, Clone)]
pub struct NodeStat {
    /// Its number.
    pub id: NodeId,
    /// Tells it from earlier nodes with the same number.
    pub generation: u32,
    /// Its attributes and content.
    pub entry: Arc<Entry>,
    /// How long the kernel may cache the name.
    pub entry_timeout: Duration,
    /// How long the kernel may cache the attributes.
    pub attr_timeout: Duration,
}

/// The result of a lookup.
#[derive(Debug, Clone)]
pub enum LookupResult {
    /// The name exists. One lookup of the node was counted.
    Node(NodeStat),
    /// The name does not exist, which the kernel may cache for this long.
    Absent(Duration),
}

/// An answer that is known, or has to be waited for.
pub enum NowOrLater<T> {
    /// The answer.
    Now(T),
    /// Resolves when the filer has answered.
    Later(BoxFuture<'static, T>),
}

/// The tree of names of a mount.
pub struct Namespace {
    options: NamespaceOptions,
    filer: Arc<dyn Filer>,
    runtime: tokio::runtime::Handle,
    state: Mutex<NamespaceState>,
}

impl Namespace {
    /// A tree that knows only its root, and the queue of invalidations for the kernel.
    pub(crate) fn new(
        filer: Arc<dyn Filer>,
        root: Entry,
        options: NamespaceOptions,
        runtime: tokio::runtime::Handle,
    ) -> (Arc<Self>, InvalidationQueue) {
        Self::with_ledger(filer, root, options, runtime, Ledger::none())
    }

    /// The same, of which `ledger` has what the kernel is told.
    pub(crate) fn with_ledger(
        filer: Arc<dyn Filer>,
        root: Entry,
        options: NamespaceOptions,
        runtime: tokio::runtime::Handle,
        ledger: Ledger,
    ) -> (Arc<Self>, InvalidationQueue) {
        let nodes = NodeTable::new(&options.root_path, Arc::new(root), ledger);
        Self::of(nodes, filer, options, runtime)
    }

    /// The tree that a predecessor has left in `ledger`, as `records`. Everything that the kernel
    /// has cached is invalidated. `None` if the ledger does not have it.
    pub(crate) fn restore(
        filer: Arc<dyn Filer>,
        options: NamespaceOptions,
        runtime: tokio::runtime::Handle,
        ledger: Ledger,
        records: &[StoredRecord],
    ) -> Option<(Arc<Self>, InvalidationQueue)> {
        let nodes = NodeTable::restore(&options.root_path, ledger, records)?;
        let (namespace, queue) = Self::of(nodes, filer, options, runtime);
        namespace.state.lock().resume_invalidations(records);
        namespace.disconnected();
        Some((namespace, queue))
    }

    fn of(
        nodes: NodeTable,
        filer: Arc<dyn Filer>,
        options: NamespaceOptions,
        runtime: tokio::runtime::Handle,
    ) -> (Arc<Self>, InvalidationQueue) {
        let (sender, queue) = invalidate::queue();
        let namespace = Arc::new_cyclic(|own| {
            let state = Mutex::new(NamespaceState::new(&options, nodes, sender, own.clone()));
            Self { options, filer, runtime, state }
        });
        (namespace, queue)
    }

    /// What a successor would find.
    pub(crate) fn ledger(&self) -> Ledger {
        self.state.lock().nodes.ledger.clone()
    }

    /// Sets the features of the kernel. To be called before the first request.
    pub(crate) fn set_kernel_features(&self, kernel_features: KernelFeatures) {
        self.state.lock().kernel_features = kernel_features;
    }

    /// The kernel forgets `count` lookups of a node.
    pub fn forget(&self, node: NodeId, count: u64) {
        let mut state = self.state.lock();
        state.nodes.forget(node, count);
    }

    /// The version that a node stands for. Does not ask the filer.
    ///
    /// # Errors
    /// [`NamespaceError::Stale`] for a node that does not exist.
    pub fn version(&self, node: NodeId) -> Result<Arc<FileVersion>, NamespaceError> {
        self.state.lock().version(node).ok_or(NamespaceError::Stale)
    }

    /// The serial number and the owner of a regular file. Another file never has the same serial
    /// number.
    pub(crate) fn file_identity(&self, node: NodeId) -> Option<(u64, u32)> {
        let state = self.state.lock();
        let node = state.nodes.get(node).filter(|node| node.entry.attr.kind == FileKind::File)?;
        Some((node.serial, node.entry.attr.uid))
    }

    /// The version that a node stands for, if the node still has this serial number.
    pub(crate) fn version_of(&self, node: NodeId, serial: u64) -> Option<Arc<FileVersion>> {
        let state = self.state.lock();
        state.nodes.get(node).filter(|node| node.serial == serial)?;
        state.version(node)
    }

    /// The newest listing of a node's directory, if there is one, and the node's index in it.
    pub(crate) fn listing_index(&self, node: NodeId) -> Option<(Arc<DirectoryListing>, usize)> {
        let (listing, name) = {
            let mut state = self.state.lock();
            let home = state.nodes.get(node)?.home.clone();
            (state.nodes.directory(home.parent)?.newest_listing()?.clone(), home.name)
        };
        let index = listing.index_of(&name)?;
        Some((listing, index))
    }

    /// The filer's path of a node, or its last path if it has no name any more.
    pub(crate) fn path(&self, node: NodeId) -> String {
        self.state.lock().nodes.path(node)
    }

    /// The entry of a node that has a name and is not known to have changed.
    pub(crate) fn named_entry(&self, node: NodeId) -> Option<Arc<Entry>> {
        let state = self.state.lock();
        let node = state.nodes.get(node).filter(|node| !node.stale && !node.names.is_empty())?;
        Some(node.entry.clone())
    }

    /// The number of nodes that the kernel knows, and of cached entries.
    pub fn size(&self) -> (usize, usize) {
        self.state.lock().size()
    }

    /// Whether the filer's events arrive.
    pub fn is_live(&self) -> bool {
        self.state.lock().live
    }

    fn is_hidden(&self, parent: NodeId, name: &str) -> bool {
        parent == ROOT
            && !self.options.include_system_entries
            && self.options.root_path == "/"
            && matches!(name, "topics" | "etc")
    }
}
