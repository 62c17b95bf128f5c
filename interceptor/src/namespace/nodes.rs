//! The nodes that the kernel knows, and the names it knows them by.
//!
//! A node is one version of a file. It is found again by its name, by the key that hard links share, or, when it lost
//! its name to a rename, by SeaweedFS's inode number: in each case only if the content is the same. A node lives while
//! the kernel counts lookups of it, while it is open, or while another live node has its home in it, so that the path
//! of every node can be told.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use super::directory::Directory;
use super::{NodeId, ROOT};
use crate::read::FileVersion;
use crate::seaweed::entry::{Content, Entry, Kind};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dentry {
    pub(super) parent: NodeId,
    pub(super) name: Arc<str>,
}

pub(super) struct Node {
    /// Unique among all nodes ever made: numbers are used again, this is not.
    pub(super) serial: u64,
    pub(super) generation: u32,
    pub(super) entry: Arc<Entry>,
    /// Where it was seen last; kept when the name is gone.
    pub(super) home: Dentry,
    /// Every name that the kernel knows it by; none once all of them are gone.
    pub(super) names: Vec<Dentry>,
    pub(super) lookups: u64,
    /// Handles of a directory, and [holds](super::NodePin). Of a file's handles the kernel does not tell: while there are any
    /// it keeps its lookups.
    pub(super) opens: u64,
    /// How many live nodes have their home here.
    home_count: usize,
    /// Whether the kernel was told to forget it, and has not asked for it since.
    forget_requested: bool,
    /// Whether an event said that the attributes are not what we have.
    pub(super) stale: bool,
    /// The epoch of the subscription and the time at which the attributes were the filer's.
    pub(super) verified: (u64, Instant),
    /// Made when the file is read first.
    pub(super) version: OnceLock<Arc<FileVersion>>,
    /// The growth that it is in: `version` is then the longer one already.
    pub(super) growth: Option<PendingGrowth>,
    /// Whether it does not grow: another version of the file is another node.
    pub(super) cannot_grow: bool,
    pub(super) directory: Option<Box<Directory>>,
}

/// What a node is about to become.
pub(super) struct PendingGrowth {
    pub(super) entry: Arc<Entry>,
    pub(super) before: Arc<FileVersion>,
    pub(super) version: Arc<FileVersion>,
    /// Dropped when it is over.
    pub(super) over: watch::Sender<()>,
}

impl Node {
    /// About how much memory it takes. What a directory remembers of its names counts elsewhere.
    fn memory(&self) -> usize {
        let directory = if self.directory.is_some() { size_of::<Directory>() } else { 0 };
        NODE_OVERHEAD + directory + self.entry.memory()
    }
}

/// What a node takes beside its entry: itself, its names, and its places in tables.
const NODE_OVERHEAD: usize = 400;

/// Numbers for nodes whose own number is taken begin here.
const FIRST_SPARE_ID: NodeId = 1 << 63;

pub(super) struct Nodes {
    nodes: HashMap<NodeId, Node>,
    /// About how much memory they take.
    pub(super) bytes: usize,
    /// How many of them the kernel was told to forget.
    forgets_requested: usize,
    /// Lookups that the kernel will forget at once, as it was shown a name alone, by the number
    /// shown.
    uncounted_lookups: HashMap<NodeId, u64>,
    links: HashMap<Bytes, NodeId>,
    /// Nodes without a name, by SeaweedFS's inode number.
    unnamed: HashMap<u64, NodeId>,
    /// How many entries all directories remember.
    pub(super) cached_entries: usize,
    /// About how much memory these take.
    pub(super) cached_bytes: usize,
    /// How many directories keep a listing that nothing changed since.
    pub(super) snapshots: usize,
    /// How many names all directories remember as absent.
    pub(super) absent: usize,
    next_spare_id: NodeId,
    next_serial: u64,
    root_path: Box<str>,
    /// Whether files that are appended to keep their node.
    pub(super) growth_enabled: bool,
}

impl Nodes {
    /// A table with nothing but the root, which stands for `root_path` of the filer.
    pub(super) fn new(root_path: &str, root: Arc<Entry>) -> Self {
        let mut nodes = Self {
            nodes: HashMap::new(),
            bytes: 0,
            forgets_requested: 0,
            uncounted_lookups: HashMap::new(),
            links: HashMap::new(),
            unnamed: HashMap::new(),
            cached_entries: 0,
            cached_bytes: 0,
            snapshots: 0,
            absent: 0,
            next_spare_id: FIRST_SPARE_ID,
            next_serial: 0,
            root_path: root_path.into(),
            growth_enabled: false,
        };
        let dentry = Dentry { parent: ROOT, name: "".into() };
        nodes.insert(ROOT, dentry, root);
        nodes
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub(super) fn directory(&mut self, id: NodeId) -> Option<&mut Directory> {
        self.nodes.get_mut(&id)?.directory.as_deref_mut()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut Node)> {
        self.nodes.iter_mut().map(|(id, node)| (*id, node))
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes that the kernel should forget, so that `count` are leaving: first files that
    /// nobody has read, then other files, then, if they may go, directories of which it knows no
    /// entry; of each those that it has known longest.
    pub(super) fn request_forgets(&mut self, count: usize, directories_may_go: bool) -> Vec<NodeId> {
        let may_go = |node: &Node| {
            let is_empty = node.directory.as_ref().is_none_or(|directory| directory.children.is_empty());
            let may_go = node.directory.is_none() || directories_may_go && is_empty && node.home_count == 0;
            may_go && node.opens == 0 && !node.names.is_empty() && !node.forget_requested
        };
        let rank = |node: &Node| (node.directory.is_some(), node.version.get().is_some(), node.serial);
        let mut all: Vec<_> = self.nodes.iter_mut().filter(|(_, node)| may_go(node)).collect();
        let count = count.saturating_sub(self.forgets_requested).min(all.len());
        if count < all.len() {
            all.select_nth_unstable_by_key(count, |(_, node)| rank(node));
        }
        self.forgets_requested += count;
        all.truncate(count);
        let leaves = |(id, node): (&NodeId, &mut Node)| {
            node.forget_requested = true;
            *id
        };
        all.into_iter().map(leaves).collect()
    }

    /// The kernel is shown `number` with a name alone: it will forget a lookup that was not
    /// counted.
    pub(super) fn show_without_node(&mut self, number: NodeId) {
        *self.uncounted_lookups.entry(number).or_default() += 1;
    }

    /// How many of `count` lookups of a number, which the kernel forgets, were counted.
    fn deduct_uncounted(&mut self, number: NodeId, count: u64) -> u64 {
        let Some(alone) = self.uncounted_lookups.get_mut(&number) else { return count };
        let of_name = count.min(*alone);
        *alone -= of_name;
        if *alone == 0 {
            self.uncounted_lookups.remove(&number);
        }
        count - of_name
    }

    /// The node that `parent` has under `name`, if the kernel knows one.
    pub(super) fn child(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.nodes.get(&parent)?.directory.as_ref()?.children.get(name).copied()
    }

    /// The filer's path of a node, as far as it is known where the node is.
    pub(super) fn path(&self, id: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            let Some(node) = self.nodes.get(&at) else { break };
            names.push(node.home.name.clone());
            at = node.home.parent;
        }
        let mut path = self.root_path.trim_end_matches('/').to_owned();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        if path.is_empty() { "/".into() } else { path }
    }

    /// The node of a directory by its filer path; `None` if it is outside the mount or not known to the kernel.
    pub(super) fn resolve(&self, path: &str) -> Option<NodeId> {
        let inside = path.strip_prefix(self.root_path.trim_end_matches('/'))?;
        if !inside.is_empty() && !inside.starts_with('/') {
            return None;
        }
        inside.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| self.child(at, name))
    }

    /// A directory and all nodes below it, as far as the kernel knows them.
    pub(super) fn subtree(&self, top: NodeId) -> Vec<NodeId> {
        let mut found = vec![top];
        let mut next = 0;
        while let Some(id) = found.get(next) {
            let directory = self.nodes.get(id).and_then(|node| node.directory.as_ref());
            found.extend(directory.into_iter().flat_map(|directory| directory.children.values()));
            next += 1;
        }
        found
    }

    /// The kernel is told of `entry` as `name` of `parent`: finds its node or makes one, and counts the lookup. A node that
    /// [grows](super::growth) to `entry` is found, too, and left as it is. Returns also whether that is a directory which had
    /// lost its name. `None` if `parent` is no live directory.
    pub(super) fn attach(
        &mut self,
        parent: NodeId,
        name: &str,
        entry: &Arc<Entry>,
    ) -> Option<(NodeId, bool)> {
        self.nodes.get(&parent)?.directory.as_ref()?;
        let mut returns = false;
        let id = if let Some(id) = self.find_same(parent, name, entry) {
            returns = self.get(id).is_some_and(|node| node.directory.is_some() && node.names.is_empty());
            self.update(id, entry);
            id
        } else if let Some(id) = self.find_growing(parent, name, entry) {
            id
        } else {
            let id = self.free_id(parent, name, entry);
            self.insert(id, Dentry { parent, name: name.into() }, entry.clone());
            id
        };
        if let Some(key) = &entry.hard_link {
            self.links.insert(key.clone(), id);
        }
        self.link(parent, name, id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
            self.forgets_requested -= usize::from(std::mem::take(&mut node.forget_requested));
        }
        Some((id, returns))
    }

    /// The node has other attributes now; its content is the same.
    pub(super) fn update(&mut self, id: NodeId, entry: &Arc<Entry>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let before = node.memory();
        let old = std::mem::replace(&mut node.entry, entry.clone());
        self.bytes = self.bytes + node.memory() - before;
        if old.attr.inode != entry.attr.inode && self.unnamed.get(&old.attr.inode) == Some(&id) {
            self.unnamed.remove(&old.attr.inode);
        }
        if let Some(key) = &old.hard_link
            && old.hard_link != entry.hard_link
            && self.links.get(key) == Some(&id)
        {
            self.links.remove(key);
        }
    }

    /// The node that would stand for `entry` as `name` of `parent`, as it is or grown, if there is one.
    pub(super) fn find(&self, parent: NodeId, name: &str, entry: &Entry) -> Option<NodeId> {
        self.find_same(parent, name, entry).or_else(|| self.find_growing(parent, name, entry))
    }

    fn find_same(&self, parent: NodeId, name: &str, entry: &Entry) -> Option<NodeId> {
        self.find_where(parent, name, entry, |node| same_node(&node.entry, entry))
    }

    fn find_growing(&self, parent: NodeId, name: &str, entry: &Entry) -> Option<NodeId> {
        self.find_where(parent, name, entry, |node| node.grows_to(entry))
    }

    fn find_where(
        &self,
        parent: NodeId,
        name: &str,
        entry: &Entry,
        fits: impl Fn(&Node) -> bool,
    ) -> Option<NodeId> {
        let fits = |id: &NodeId| self.nodes.get(id).is_some_and(&fits);
        if let Some(id) = self.child(parent, name).filter(fits) {
            return Some(id);
        }
        if let Some(id) = entry.hard_link.as_ref().and_then(|key| self.links.get(key)).copied().filter(fits) {
            return Some(id);
        }
        // A directory must not come to be inside itself, whatever the filer says.
        self.unnamed.get(&entry.attr.inode).copied().filter(fits).filter(|id| !self.is_within(parent, *id))
    }

    fn is_within(&self, mut at: NodeId, ancestor: NodeId) -> bool {
        while at != ROOT {
            if at == ancestor {
                return true;
            }
            let Some(node) = self.nodes.get(&at) else { return false };
            at = node.home.parent;
        }
        ancestor == ROOT
    }

    /// SeaweedFS's inode number if it has one and no version of the file holds it, so that `st_ino` is the same in
    /// every mount.
    fn free_id(&mut self, parent: NodeId, name: &str, entry: &Entry) -> NodeId {
        let own = self.preferred_id(parent, name, entry);
        if own > ROOT && !self.nodes.contains_key(&own) {
            return own;
        }
        while self.nodes.contains_key(&self.next_spare_id) {
            self.next_spare_id = self.next_spare_id.checked_add(1).unwrap_or(FIRST_SPARE_ID);
        }
        let id = self.next_spare_id;
        self.next_spare_id = id.checked_add(1).unwrap_or(FIRST_SPARE_ID);
        id
    }

    /// The number under which a name is shown alone: that of its node if the kernel knows it, else
    /// the one it would most likely get.
    pub(super) fn shown_id(&self, parent: NodeId, entry: &Entry) -> NodeId {
        self.child(parent, &entry.name).unwrap_or_else(|| self.preferred_id(parent, &entry.name, entry))
    }

    /// The number that belongs to an entry, whether or not it is free.
    fn preferred_id(&self, parent: NodeId, name: &str, entry: &Entry) -> NodeId {
        if entry.attr.inode != 0 {
            return entry.attr.inode;
        }
        let path = self.path(parent) + "/" + name;
        fnv1a(path.as_bytes().iter().copied()) & (FIRST_SPARE_ID - 1)
    }

    fn insert(&mut self, id: NodeId, home: Dentry, entry: Arc<Entry>) {
        self.next_serial += 1;
        let serial = self.next_serial;
        let directory = (entry.attr.kind == Kind::Directory).then(|| Box::new(Directory::new(serial)));
        if id != ROOT
            && let Some(parent) = self.nodes.get_mut(&home.parent)
        {
            parent.home_count += 1;
        }
        let node = Node {
            serial,
            generation: generation(&entry),
            entry,
            home,
            names: Vec::new(),
            lookups: 0,
            opens: 0,
            home_count: 0,
            forget_requested: false,
            stale: false,
            verified: (0, Instant::now()),
            version: OnceLock::new(),
            growth: None,
            cannot_grow: !self.growth_enabled,
            directory,
        };
        self.bytes += node.memory();
        self.nodes.insert(id, node);
    }

    /// Gives a node a name; whatever had that name loses it. The node must be live, and so must the directory.
    pub(super) fn link(&mut self, parent: NodeId, name: &str, id: NodeId) {
        if self.child(parent, name) == Some(id) {
            return;
        }
        let dentry = Dentry { parent, name: name.into() };
        // The directory may have nothing that keeps it but this name, so the old one goes last.
        let replaced = self.directory(parent).and_then(|d| d.children.insert(dentry.name.clone(), id));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.names.is_empty() && self.unnamed.get(&node.entry.attr.inode) == Some(&id) {
            self.unnamed.remove(&node.entry.attr.inode);
        }
        node.names.push(dentry.clone());
        self.rehome(id, dentry.clone());
        if let Some(old) = replaced {
            self.lose_name(old, &dentry);
        }
    }

    /// Takes a name away. The node stays as long as the kernel or an open handle holds it, and may be given a name again.
    pub(super) fn unlink(&mut self, parent: NodeId, name: &str) -> Option<NodeId> {
        let id = self.directory(parent)?.children.remove(name)?;
        self.lose_name(id, &Dentry { parent, name: name.into() });
        self.reap(parent);
        Some(id)
    }

    fn lose_name(&mut self, id: NodeId, dentry: &Dentry) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.names.retain(|other| other != dentry);
        match node.names.last().cloned() {
            Some(other) => self.rehome(id, other),
            None if node.entry.attr.inode != 0 => {
                self.unnamed.insert(node.entry.attr.inode, id);
            }
            None => {}
        }
    }

    fn rehome(&mut self, id: NodeId, dentry: Dentry) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let old = std::mem::replace(&mut node.home, dentry.clone()).parent;
        if old == dentry.parent {
            return;
        }
        if let Some(parent) = self.nodes.get_mut(&dentry.parent) {
            parent.home_count += 1;
        }
        if let Some(parent) = self.nodes.get_mut(&old) {
            parent.home_count -= 1;
        }
        self.reap(old);
    }

    /// Moves a directory, and with it all that is known of what it holds. `None` if that would put it inside itself.
    pub(super) fn rename(&mut self, from: &Dentry, to: &Dentry) -> Option<NodeId> {
        let id = self.child(from.parent, &from.name)?;
        if self.is_within(to.parent, id) {
            return None;
        }
        self.link(to.parent, &to.name, id);
        self.unlink(from.parent, &from.name);
        Some(id)
    }

    /// The kernel dropped `count` of its lookups.
    pub(super) fn forget(&mut self, id: NodeId, count: u64) {
        let count = self.deduct_uncounted(id, count);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        debug_assert!(id == ROOT || node.lookups >= count, "more lookups forgotten than made");
        node.lookups = node.lookups.saturating_sub(count);
        self.reap(id);
    }

    pub(super) fn open(&mut self, id: NodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&id)?;
        node.opens += 1;
        Some(node)
    }

    pub(super) fn close(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        debug_assert!(node.opens > 0, "closed more often than opened");
        node.opens = node.opens.saturating_sub(1);
        self.reap(id);
    }

    /// Removes the node if nothing holds it, then whatever it held.
    fn reap(&mut self, id: NodeId) {
        let mut candidates = vec![id];
        while let Some(id) = candidates.pop() {
            let Some(node) = self.nodes.get(&id) else { continue };
            let has_children = node.directory.as_ref().is_some_and(|d| !d.children.is_empty());
            if id == ROOT || node.lookups > 0 || node.opens > 0 || node.home_count > 0 || has_children {
                continue;
            }
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.bytes -= node.memory();
            self.forgets_requested -= usize::from(node.forget_requested);
            if let Some(directory) = &node.directory {
                self.cached_entries -= directory.present.len();
                self.cached_bytes -= directory.present.bytes();
                self.snapshots -= usize::from(directory.snapshot.is_some());
                self.absent -= directory.absent.len();
            }
            for dentry in node.names {
                // While a name changes hands the node that has it now is there already (see `link`).
                if self.child(dentry.parent, &dentry.name) == Some(id)
                    && let Some(directory) = self.directory(dentry.parent)
                {
                    directory.children.remove(&dentry.name);
                }
                candidates.push(dentry.parent);
            }
            if let Some(parent) = self.nodes.get_mut(&node.home.parent) {
                parent.home_count -= 1;
            }
            candidates.push(node.home.parent);
            if let Some(key) = &node.entry.hard_link
                && self.links.get(key) == Some(&id)
            {
                self.links.remove(key);
            }
            if self.unnamed.get(&node.entry.attr.inode) == Some(&id) {
                self.unnamed.remove(&node.entry.attr.inode);
            }
        }
    }

    /// The node that the names of a hard-linked file share.
    pub(super) fn by_hard_link(&self, key: &Bytes) -> Option<NodeId> {
        self.links.get(key).copied()
    }
}

#[cfg(test)]
impl Nodes {
    /// How many lookups the kernel will forget that were not counted.
    pub(super) fn uncounted_lookups(&self) -> u64 {
        self.uncounted_lookups.values().sum()
    }
}

/// Whether a name that stood for `node` and now for `entry` stands for the same thing: a file with the same bytes, or
/// the same directory.
pub(super) fn same_node(node: &Entry, entry: &Entry) -> bool {
    let (a, b) = (node.attr.inode, entry.attr.inode);
    let same_inode = a == b || a == 0 || b == 0;
    same_inode && (both_directories(node, entry) || node.same_content(entry))
}

fn both_directories(a: &Entry, b: &Entry) -> bool {
    a.attr.kind == Kind::Directory && b.attr.kind == Kind::Directory
}

/// Tells versions apart that have the same number at different times (exported over NFS, a handle holds both). 32 bits
/// wide, because the kernel keeps no more and takes a node with another generation for a stale one.
fn generation(entry: &Entry) -> u32 {
    let mut summary = entry.attr.size.to_le_bytes().to_vec();
    match &entry.content {
        Content::Chunks(chunks) => {
            for chunk in chunks.first().into_iter().chain(chunks.last()) {
                summary.extend(chunk.fid.volume.to_le_bytes());
                summary.extend(chunk.fid.key.to_le_bytes());
            }
            summary.extend(chunks.len().to_le_bytes());
        }
        Content::Inline(bytes) => summary.extend(bytes),
        Content::Target(target) => summary.extend(target.bytes()),
        Content::Remote(object) => {
            summary.extend(object.etag.bytes());
            summary.extend(object.mtime.to_le_bytes());
        }
        Content::None | Content::Encrypted { .. } | Content::Damaged { .. } => {}
    }
    (fnv1a(summary.into_iter()) >> 32) as u32
}

/// FNV-1a, because the number of a node must be the same in every build.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
