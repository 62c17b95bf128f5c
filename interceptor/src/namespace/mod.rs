//! Names, attributes, and which version of a file a name stands for.
//!
//! **A node is one version of a file.** The number that the kernel knows a file by stands for bytes that never change.
//! When a file changes, its name is invalidated in the kernel and the next LOOKUP gives the name another node; handles
//! that are open keep the old node, its chunks, and the kernel's pages of it. So cached pages are never wrong and never
//! need to be dropped, and an open file keeps its view. If only attributes changed the node stays. Directories keep their
//! node through renames, and the names of a hard-linked file share one ([`nodes`]).
//!
//! **Events only invalidate.** The filer's events never bring an entry in: they drop what is known of a name, tell the
//! kernel, and the next LOOKUP asks the filer. So it does not matter in which order they come, or how often. A reply of
//! the filer that was under way when an event for the same name came may be older than the event: it is given to whom
//! waits for it, for immediate use, and not remembered ([`events`], [`lookup`]).
//!
//! **Time-outs.** While events arrive the kernel may keep names and attributes for an hour; otherwise for a second. When
//! the stream of events breaks, everything that was given out for longer is taken back ([`invalidate`]).
//!
//! **Directories.** Names are asked for one by one until there were a few in one directory; then the whole directory is
//! read in the background, with chunk lists, so that a job which opens thousands of small files pays for one listing
//! instead of thousands of round trips ([`directory`], [`listing`], [`lookup`]).
//!
//! One lock guards it all, held for a few map operations and never across a reply, a notification or an await. Nothing
//! here knows FUSE: the filer and the kernel are traits, and tests drive both.

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
use listing::Listing;
use state::NamespaceState;

use crate::read::FileVersion;
use crate::seaweed::entry::{Entry, Kind};

/// The number of a node, which is also its `st_ino`.
pub type NodeId = u64;

/// The mount's root.
pub const ROOT: NodeId = 1;

/// Bounds and behaviour of a namespace.
#[derive(Debug, Clone)]
pub struct NamespaceOptions {
    /// The directory of the filer that is the root.
    pub root_path: String,
    /// Show the filer's own directories `/topics` and `/etc`.
    pub include_system_entries: bool,
    /// How long the kernel may keep what events keep right.
    pub long_timeout: Duration,
    /// How long it may keep anything while there are no events.
    pub short_timeout: Duration,
    /// The number of names asked for in one directory, within `prefetch_window`, at which the whole directory is read.
    pub prefetch_after: u32,
    /// See `prefetch_after`.
    pub prefetch_window: Duration,
    /// The number of entries at which reading a directory in advance is given up.
    pub prefetch_limit: usize,
    /// The memory for remembered entries of all directories together, bytes.
    pub cached_bytes: usize,
    /// The memory for nodes that the kernel knows, bytes. When it is used up the kernel is told to
    /// forget some, and is shown names without nodes.
    pub node_bytes: usize,
    /// The memory for listings that are being read, or kept for others to read, bytes.
    pub listing_bytes: usize,
    /// The number of names to remember as absent in all directories together.
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
    /// The usual options beside a cache of this size: an eighth of that for names, and a quarter
    /// for nodes that the kernel knows, within bounds.
    pub fn beside_cache(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let half = (bytes / 16).clamp(4 << 20, 128 << 20);
        let node_bytes = (bytes / 4).clamp(16 << 20, 2 << 30);
        Self { cached_bytes: half, listing_bytes: half, node_bytes, ..Self::default() }
    }
}

/// What a kernel can do beyond what all can.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KernelFeatures {
    /// Forgets nodes that nothing uses when it is asked to.
    pub(crate) prunes: bool,
    /// Takes the name of a directory's entry and leaves the rest, if the attributes are none that
    /// a file could have.
    pub(crate) accepts_entries_without_node: bool,
}

/// The state of a directory that a reply of the filer is current for: every event that could concern
/// the reply changes one of these counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChangeStamp {
    epoch: u64,
    changes: u64,
    link_changes: u64,
}

/// An entry of a directory as the kernel is told of it.
#[derive(Debug, Clone)]
pub(crate) enum ListedEntry {
    /// With its node, of which one lookup was counted.
    Node(NodeStat),
    /// With its name and this number only.
    Name(NodeId),
}

/// A node as a reply describes it.
#[derive(Debug, Clone)]
pub struct NodeStat {
    /// Its number.
    pub id: NodeId,
    /// Tells it from others that had the number before.
    pub generation: u32,
    /// Its attributes and content.
    pub entry: Arc<Entry>,
    /// How long the name may be trusted to stand for the node.
    pub entry_timeout: Duration,
    /// How long the attributes may be trusted.
    pub attr_timeout: Duration,
}

/// What became of a lookup.
#[derive(Debug, Clone)]
pub enum LookupResult {
    /// There is such a name. One lookup of the node was counted.
    Node(NodeStat),
    /// There is none, and for so long that may be trusted.
    Absent(Duration),
}

/// An answer that is known, or has to be waited for.
pub enum NowOrLater<T> {
    /// It is known.
    Now(T),
    /// It needs the filer.
    Later(BoxFuture<'static, T>),
}

/// The tree of a mount.
pub struct Namespace {
    options: NamespaceOptions,
    filer: Arc<dyn Filer>,
    runtime: tokio::runtime::Handle,
    state: Mutex<NamespaceState>,
}

impl Namespace {
    /// A tree with only its root known, and the queue of what the kernel must be told.
    pub(crate) fn new(
        filer: Arc<dyn Filer>,
        root: Entry,
        options: NamespaceOptions,
        runtime: tokio::runtime::Handle,
    ) -> (Arc<Self>, InvalidationQueue) {
        let (sender, queue) = invalidate::queue();
        let namespace = Arc::new_cyclic(|own| {
            let state = Mutex::new(NamespaceState::new(&options, Arc::new(root), sender, own.clone()));
            Self { options, filer, runtime, state }
        });
        (namespace, queue)
    }

    /// What the kernel of the mount can do. To be called before the first request.
    pub(crate) fn set_kernel_features(&self, kernel_features: KernelFeatures) {
        self.state.lock().kernel_features = kernel_features;
    }

    /// The kernel dropped `count` of the lookups it was told of.
    pub fn forget(&self, node: NodeId, count: u64) {
        let mut state = self.state.lock();
        state.nodes.forget(node, count);
    }

    /// The bytes that a node stands for. Needs nothing from the filer.
    ///
    /// # Errors
    /// [`NamespaceError::Stale`] for a node that does not exist.
    pub fn version(&self, node: NodeId) -> Result<Arc<FileVersion>, NamespaceError> {
        self.state.lock().version(node).ok_or(NamespaceError::Stale)
    }

    /// The serial number and the owner of a regular file, which is another file when it has another serial number.
    pub(crate) fn file_identity(&self, node: NodeId) -> Option<(u64, u32)> {
        let state = self.state.lock();
        let node = state.nodes.get(node).filter(|node| node.entry.attr.kind == Kind::File)?;
        Some((node.serial, node.entry.attr.uid))
    }

    /// The bytes that a node stands for, if it still is the one with this serial number.
    pub(crate) fn version_of(&self, node: NodeId, serial: u64) -> Option<Arc<FileVersion>> {
        let state = self.state.lock();
        state.nodes.get(node).filter(|node| node.serial == serial)?;
        state.version(node)
    }

    /// Where a node stands in a listing of its directory, if there is one.
    pub(crate) fn listing_index(&self, node: NodeId) -> Option<(Arc<Listing>, usize)> {
        let (listing, name) = {
            let mut state = self.state.lock();
            let home = state.nodes.get(node)?.home.clone();
            (state.nodes.directory(home.parent)?.newest_listing()?.clone(), home.name)
        };
        let index = listing.index_of(&name)?;
        Some((listing, index))
    }

    /// The filer's path of a node; that of its last name if it has none any more.
    pub(crate) fn path(&self, node: NodeId) -> String {
        self.state.lock().nodes.path(node)
    }

    /// What a node stands for, if it still has a name and nothing is known to have changed.
    pub(crate) fn named_entry(&self, node: NodeId) -> Option<Arc<Entry>> {
        let state = self.state.lock();
        let node = state.nodes.get(node).filter(|node| !node.stale && !node.names.is_empty())?;
        Some(node.entry.clone())
    }

    /// How many nodes the kernel knows, and how many entries are remembered.
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
