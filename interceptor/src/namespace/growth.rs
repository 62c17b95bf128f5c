//! Files that were only appended to keep their node.
//!
//! Another version of a file is another node, except a version that begins with all bytes of the
//! known one: programs that follow the end of a file keep it open (`tail -f`), or take another
//! inode number for another file (`tail -F`).
//!
//! The kernel fills the page that holds the end of a file with zeros, which readers must never
//! take for bytes. So a node grows in this order:
//!
//! ```text
//!  the filer tells of a longer file (NamespaceState::grow)
//!   1. reads are answered from the longer version               NodeRecord::version
//!   2. the file system ensures that the kernel keeps nothing    GrowthHandle
//!      that was read at the end of the shorter version
//!   3. attributes are answered from the longer version          NodeRecord::entry
//! ```
//!
//! Meanwhile a lookup returns the node as it was, with a timeout of zero: it must not wait,
//! because the kernel locks the directory for it. A request for attributes waits for the growth,
//! and so does a reader beyond the end that the kernel knows. A node has one growth at a time;
//! what is appended meanwhile makes another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::directory::Dentry;
use super::invalidate::Invalidation;
use super::nodes::{NodeRecord, PendingGrowth, same_node};
use super::pin::NodePin;
use super::state::NamespaceState;
use super::{Namespace, NodeId};
use crate::read::FileVersion;
use crate::seaweed::entry::{Chunk, Content, Entry, FileKind};
use crate::seaweed::subscribe::EntryRef;

/// How long a request for attributes waits for a growth; then it gets the old attributes.
pub(super) const GROWTH_WAIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Nodes that are to grow.
pub(crate) type GrowthQueue = mpsc::UnboundedReceiver<NodePin>;

impl NodeRecord {
    /// Whether the node can become `entry` by growing only.
    pub(super) fn grows_to(&self, entry: &Entry) -> bool {
        match &self.growth {
            Some(growth) => same_node(&growth.entry, entry) || grows(&growth.entry, entry),
            None => !self.cannot_grow && grows(&self.entry, entry),
        }
    }

    /// Whether a name that stood for the node still does if it stands for `entry`, as it is or
    /// grown.
    pub(super) fn stands_for(&self, entry: &Entry) -> bool {
        same_node(&self.entry, entry) || self.grows_to(entry)
    }

    /// Whether `entry`, which may be outdated, can be an earlier state of the node. A file that
    /// was truncated has a later modification time.
    pub(super) fn has_outgrown(&self, entry: &Entry) -> bool {
        let latest = self.growth.as_ref().map_or(&self.entry, |growth| &growth.entry);
        entry.attr.mtime <= latest.attr.mtime && grows(entry, latest)
    }
}

/// The growth of a node. Requests for its attributes wait until this is dropped. If the growth was
/// not [published](Self::publish) by then, the node stays as it was, and its name gets another
/// node.
pub(crate) struct GrowthHandle {
    pin: NodePin,
    before: Arc<FileVersion>,
    version: Arc<FileVersion>,
    is_published: bool,
}

impl GrowthHandle {
    /// The growth that a pinned node is in.
    pub(crate) fn new(pin: NodePin) -> Option<Self> {
        let namespace = pin.namespace()?;
        let (before, version) = {
            let state = namespace.state.lock();
            let growth = state.nodes.get(pin.id())?.growth.as_ref()?;
            (growth.before.clone(), growth.version.clone())
        };
        Some(Self { pin, before, version, is_published: false })
    }

    /// The number of the node.
    pub(crate) fn node(&self) -> NodeId {
        self.pin.id()
    }

    /// The shorter version.
    pub(crate) fn before(&self) -> &Arc<FileVersion> {
        &self.before
    }

    /// The longer version: the same bytes, and more behind them.
    pub(crate) fn version(&self) -> &Arc<FileVersion> {
        &self.version
    }

    /// The kernel keeps nothing of the shorter version from the page with its end on: from now on
    /// the attributes of the longer version are returned.
    pub(crate) fn publish(&mut self) {
        if let Some(namespace) = self.pin.namespace() {
            self.is_published = true;
            namespace.publish_growth(self.pin.id(), &self.version);
        }
    }
}

impl Drop for GrowthHandle {
    fn drop(&mut self) {
        if let Some(namespace) = self.pin.namespace() {
            namespace.state.lock().end_growth(self.pin.id(), &self.version, self.is_published);
        }
    }
}

impl NamespaceState {
    /// Starts the growth of a node to `entry`, unless the node is growing already.
    pub(super) fn grow(&mut self, id: NodeId, entry: &Arc<Entry>) {
        let (before, path) = (self.version(id), self.nodes.path(id));
        let (Some(before), Some(node)) = (before, self.nodes.get_mut(id)) else { return };
        node.stale = true;
        if node.growth.is_some() {
            return;
        }
        let version = FileVersion::new(&path, entry.clone());
        node.version = version.clone().into();
        let over = watch::Sender::new(());
        node.growth = Some(PendingGrowth { entry: entry.clone(), before, version: version.clone(), over });
        let (Some(growths), Some(pin)) = (self.growths.clone(), self.pin(id)) else { return };
        if let Err(mpsc::error::SendError(pin)) = growths.send(pin) {
            // The mount is going away.
            self.end_growth(id, &version, false);
            self.nodes.close(pin.into_id());
        }
    }

    fn end_growth(&mut self, id: NodeId, version: &Arc<FileVersion>, is_published: bool) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        let Some(growth) = node.growth.take_if(|growth| Arc::ptr_eq(&growth.version, version)) else {
            return;
        };
        // More may have been appended since, or what was appended may have been taken back.
        node.stale = true;
        let names = node.names.clone();
        if !is_published {
            node.version = growth.before.into();
            node.cannot_grow = true;
        }
        for Dentry { parent, name } in names {
            self.notify(Invalidation::Entry { parent, name });
        }
    }

    /// Reports the end of a growth: the sender is dropped then.
    pub(super) fn growth_end(&self, id: NodeId) -> Option<watch::Receiver<()>> {
        Some(self.nodes.get(id)?.growth.as_ref()?.over.subscribe())
    }
}

impl Namespace {
    /// Lets files that are appended to keep their node. To be called before there are nodes, by
    /// the owner of the queue, which makes a [`GrowthHandle`] for each.
    pub(crate) fn enable_growth(&self) -> GrowthQueue {
        let (growths, queue) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        state.nodes.growth_enabled = true;
        state.growths = Some(growths);
        queue
    }

    /// The node that becomes `new` by growing only, if the kernel knows it.
    pub(crate) fn node_growing_to(&self, new: &EntryRef) -> Option<NodeId> {
        let state = self.state.lock();
        let id = state.nodes.child(state.nodes.resolve(&new.directory)?, &new.entry.name)?;
        state.nodes.get(id)?.grows_to(&new.entry).then_some(id)
    }

    fn publish_growth(&self, id: NodeId, version: &Arc<FileVersion>) {
        let mut state = self.state.lock();
        let growth = state.nodes.get(id).and_then(|node| node.growth.as_ref());
        if let Some(growth) = growth.filter(|growth| Arc::ptr_eq(&growth.version, version)) {
            let entry = growth.entry.clone();
            state.nodes.update(id, &entry);
        }
    }

    /// Waits for the end of a node's growth. Returns whether there was one that ended in time.
    pub(super) async fn wait_for_growth(&self, id: NodeId, deadline: Instant) -> bool {
        let growth = self.state.lock().growth_end(id);
        let Some(mut growth) = growth else { return false };
        // The end of a growth drops the sender, which resolves this with an error.
        tokio::time::timeout_at(deadline.into(), growth.changed()).await.is_ok()
    }
}

/// Whether `new` is the file `old` with bytes behind it, and otherwise the same.
pub(super) fn grows(old: &Entry, new: &Entry) -> bool {
    let (was, is) = (&old.attr, &new.attr);
    was.kind == FileKind::File
        && is.kind == FileKind::File
        && was.inode == is.inode
        && was.size < is.size
        && starts_with_content(&new.content, &old.content, was.size)
}

/// Whether the first `size` bytes of `content` are those of `beginning`.
fn starts_with_content(content: &Content, beginning: &Content, size: u64) -> bool {
    match (beginning, content) {
        (_, Content::Inline(_) | Content::Chunks(_)) if size == 0 => true,
        (Content::Inline(beginning), Content::Inline(content)) => {
            beginning.len() as u64 == size && content.starts_with(beginning)
        }
        (Content::Chunks(beginning), Content::Chunks(content)) => appends_to(content, beginning, size),
        _ => false,
    }
}

/// Whether `chunks` has all of `first`, in their order, and other chunks only from `size` on. The
/// chunks that a manifest lists are not known here.
fn appends_to(chunks: &[Chunk], first: &[Chunk], size: u64) -> bool {
    let mut first = first.iter().peekable();
    let fits = |chunk: &Chunk| {
        first.next_if(|known| *known == chunk).is_some() || chunk.offset >= size && !chunk.is_manifest
    };
    chunks.iter().all(fits) && first.peek().is_none()
}
