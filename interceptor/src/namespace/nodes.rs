//! The nodes that the kernel knows, and their names.
//!
//! A node is one version of a file. A lookup finds it again by its name, by the key that hard
//! links share, or, if a rename took its name away, by SeaweedFS's inode number; in each case only
//! if the content is the same. A node lives while the kernel counts lookups of it, while it is
//! open, or while another live node has its home in it, so that every node has a path.
//!
//! What the kernel was told of a node stands in the [ledger](crate::ledger) before it is told.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::directory::{Dentry, Directory};
use super::{NodeId, ROOT};
use crate::ledger::{Ledger, RecordId, RecordKind, StoredRecord};
use crate::read::FileVersion;
use crate::seaweed::entry::{Content, Entry, FileKind};

pub(super) struct NodeRecord {
    /// Unique among all nodes ever made, while numbers are reused.
    pub(super) serial: u64,
    pub(super) generation: u32,
    pub(super) entry: Arc<Entry>,
    /// Where it was seen last; kept when the name is gone.
    pub(super) home: Dentry,
    /// Every name by which the kernel knows it; empty once all are gone.
    pub(super) names: Vec<Dentry>,
    pub(super) lookups: u64,
    /// Handles of a directory, and [pins](super::NodePin). The handles of files are not
    /// counted: while there are any, the kernel keeps its lookups.
    pub(super) opens: u64,
    /// How many live nodes have their home here.
    home_count: usize,
    /// Whether the kernel was asked to forget it, and has not looked it up since.
    forget_requested: bool,
    /// Whether an event said that the attributes have changed.
    pub(super) stale: bool,
    /// When the attributes were the filer's: the epoch of the subscription, and the time.
    pub(super) verified: (u64, Instant),
    /// Made when the file is first read.
    pub(super) version: OnceLock<Arc<FileVersion>>,
    /// The growth in progress; `version` is then the longer one already.
    pub(super) growth: Option<PendingGrowth>,
    /// Whether a longer version of the file is always another node.
    pub(super) cannot_grow: bool,
    pub(super) directory: Option<Box<Directory>>,
    record: Option<RecordId>,
    /// Whether a predecessor counted lookups of it.
    is_inherited: bool,
}

/// What the ledger has of a node.
#[derive(Serialize, Deserialize)]
struct StoredNode<'a> {
    id: NodeId,
    generation: u32,
    home: Cow<'a, Dentry>,
    names: Cow<'a, [Dentry]>,
    entry: Cow<'a, Entry>,
}

/// The growth of a node in progress.
pub(super) struct PendingGrowth {
    pub(super) entry: Arc<Entry>,
    pub(super) before: Arc<FileVersion>,
    pub(super) version: Arc<FileVersion>,
    /// Dropped when the growth is over.
    pub(super) over: watch::Sender<()>,
}

/// An inherited node whose lookups may be too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct DoubtfulNode {
    pub(super) id: NodeId,
    /// That of the node, while numbers are reused.
    serial: u64,
    lookups: u64,
}

impl DoubtfulNode {
    fn of(id: NodeId, node: &NodeRecord) -> Self {
        Self { id, serial: node.serial, lookups: node.lookups }
    }
}

impl NodeRecord {
    /// Its approximate memory in bytes. What a directory caches of its names is counted elsewhere.
    fn memory(&self) -> usize {
        let directory = if self.directory.is_some() { size_of::<Directory>() } else { 0 };
        NODE_OVERHEAD + directory + self.entry.memory()
    }
}

/// Approximate memory of a node without its entry: the node, its names, its slots in tables, and
/// its record in the ledger.
const NODE_OVERHEAD: usize = 400 + 256;

/// The first number for nodes whose preferred number is taken.
const FIRST_SPARE_ID: NodeId = 1 << 63;

pub(super) struct NodeTable {
    /// Boxed, so that a table that grows moves pointers.
    nodes: HashMap<NodeId, Box<NodeRecord>, RandomState>,
    /// Their approximate memory in bytes.
    pub(super) bytes: usize,
    /// How many of them the kernel was asked to forget.
    forgets_requested: usize,
    /// Lookups that were not counted, by number: the kernel got a name without a node, and will
    /// forget a lookup of it at once.
    uncounted_lookups: HashMap<NodeId, (u64, Option<RecordId>)>,
    links: HashMap<Bytes, NodeId>,
    /// Nodes without a name, by SeaweedFS's inode number.
    unnamed: HashMap<u64, NodeId>,
    /// The cached entries of all directories.
    pub(super) cached_entries: usize,
    /// Their approximate memory in bytes.
    pub(super) cached_bytes: usize,
    /// The directories that keep a listing which is still current.
    pub(super) snapshots: usize,
    /// The cached absent names of all directories.
    pub(super) absent: usize,
    next_spare_id: NodeId,
    next_serial: u64,
    root_path: Box<str>,
    /// Whether files that are appended to keep their node.
    pub(super) growth_enabled: bool,
    pub(super) ledger: Ledger,
    /// Inherited nodes that the kernel forgot, and that still have lookups.
    doubtful: HashSet<NodeId>,
}

impl NodeTable {
    /// A table with only the root, which stands for `root_path` of the filer.
    pub(super) fn new(root_path: &str, root: Arc<Entry>, ledger: Ledger) -> Self {
        let mut nodes = Self::empty(root_path, ledger);
        let dentry = Dentry { parent: ROOT, name: "".into() };
        nodes.insert(ROOT, dentry, root);
        nodes.save(ROOT);
        nodes
    }

    /// The table that a predecessor had. Nothing in it is fresh, except what has no name.
    /// `None` if the records make no tree.
    pub(super) fn restore(root_path: &str, ledger: Ledger, records: &[StoredRecord]) -> Option<Self> {
        let mut nodes = Self::empty(root_path, ledger);
        // A name leads to the node that got it last.
        let mut named = Vec::new();
        for record in records.iter().filter(|record| record.kind == RecordKind::Node) {
            let stored: StoredNode<'_> = record.value()?;
            let (id, lookups) = (stored.id, record.counter);
            if let Some(earlier) = nodes.nodes.remove(&id) {
                nodes.ledger.remove(earlier.record);
                nodes.bytes -= earlier.memory();
            }
            nodes.insert(id, stored.home.into_owned(), Arc::new(stored.entry.into_owned()));
            let node = nodes.nodes.get_mut(&id)?;
            node.generation = stored.generation;
            (node.lookups, node.record, node.cannot_grow) = (lookups, Some(record.id), false);
            node.is_inherited = true;
            if let Some(directory) = &mut node.directory {
                directory.kernel_has_listing = true;
            }
            named.push((id, record.id, stored.names.into_owned()));
        }
        nodes.nodes.get(&ROOT)?;
        for (id, record, names) in named {
            if nodes.nodes.get(&id).is_none_or(|node| node.record != Some(record)) {
                continue;
            }
            for dentry in names.into_iter().filter(|_| id != ROOT) {
                let Some(directory) = nodes.directory(dentry.parent) else { continue };
                let replaced = directory.children.insert(dentry.name.clone(), id);
                if let Some(old) = replaced.and_then(|old| nodes.nodes.get_mut(&old)) {
                    old.names.retain(|other| *other != dentry);
                }
                nodes.nodes.get_mut(&id)?.names.push(dentry);
            }
        }
        nodes.count_homes()?;
        for record in records {
            match record.kind {
                RecordKind::Absent => {
                    let Dentry { parent, name } = record.value()?;
                    match nodes.directory(parent) {
                        Some(directory) => nodes.absent += directory.restore_absent(&name, record.id),
                        None => nodes.ledger.remove(Some(record.id)),
                    }
                }
                RecordKind::Uncounted => {
                    let number: NodeId = record.value()?;
                    nodes.uncounted_lookups.insert(number, (record.counter, Some(record.id)));
                }
                _ => {}
            }
        }
        let all: Vec<_> = nodes.nodes.keys().copied().collect();
        for id in all {
            let Some(node) = nodes.nodes.get(&id) else { continue };
            if let Some(key) = &node.entry.hard_link {
                nodes.links.insert(key.clone(), id);
            }
            if node.names.is_empty() && node.entry.attr.inode != 0 && id != ROOT {
                nodes.unnamed.insert(node.entry.attr.inode, id);
            }
            nodes.reap(id);
        }
        Some(nodes)
    }

    /// Counts anew how many nodes have their home in each. One whose home is gone gets the root.
    /// `None` if a node is within itself.
    fn count_homes(&mut self) -> Option<()> {
        let homes: Vec<_> = self.nodes.iter().map(|(id, node)| (*id, node.home.parent)).collect();
        self.nodes.values_mut().for_each(|node| node.home_count = 0);
        for (id, home) in homes.into_iter().filter(|(id, _)| *id != ROOT) {
            let home = if self.nodes.contains_key(&home) { home } else { ROOT };
            if let Some(node) = self.nodes.get_mut(&id) {
                node.home.parent = home;
            }
            if let Some(parent) = self.nodes.get_mut(&home) {
                parent.home_count += 1;
            }
        }
        let mut rooted = HashSet::from([ROOT]);
        for id in self.nodes.keys() {
            let (mut at, mut way) = (*id, Vec::new());
            while !rooted.contains(&at) {
                way.push(at);
                at = self.nodes.get(&at).filter(|_| way.len() <= self.nodes.len())?.home.parent;
            }
            rooted.extend(way);
        }
        Some(())
    }

    fn empty(root_path: &str, ledger: Ledger) -> Self {
        Self {
            nodes: HashMap::default(),
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
            ledger,
            doubtful: HashSet::new(),
        }
    }

    /// All inherited nodes but the root.
    pub(super) fn inherited(&self) -> Vec<DoubtfulNode> {
        let others = self.nodes.iter().filter(|(id, node)| node.is_inherited && **id != ROOT);
        others.map(|(id, node)| DoubtfulNode::of(*id, node)).collect()
    }

    /// Inherited nodes that the kernel forgot since the last call, and that still have lookups.
    pub(super) fn take_doubtful(&mut self) -> Vec<DoubtfulNode> {
        let doubtful = std::mem::take(&mut self.doubtful).into_iter();
        doubtful.filter_map(|id| Some(DoubtfulNode::of(id, self.nodes.get(&id)?))).collect()
    }

    /// The kernel does not know the node. If its lookups are the same as before, none is under way,
    /// and all of them are forgotten.
    pub(super) fn drop_unknown(&mut self, doubtful: &DoubtfulNode) {
        let node = self.nodes.get(&doubtful.id);
        if node.is_some_and(|node| DoubtfulNode::of(doubtful.id, node) == *doubtful) {
            self.forget(doubtful.id, doubtful.lookups);
        }
    }

    /// Writes what the kernel is about to be told of a node.
    fn save(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let stored = StoredNode {
            id,
            generation: node.generation,
            home: Cow::Borrowed(&node.home),
            names: Cow::Borrowed(&node.names),
            entry: Cow::Borrowed(&node.entry),
        };
        node.record = self.ledger.replace(node.record, RecordKind::Node, node.lookups, &stored);
    }

    /// Counts a lookup of a node.
    pub(super) fn count_lookup(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lookups += 1;
            self.ledger.count(node.record, node.lookups);
        }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id).map(Box::as_ref)
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut NodeRecord> {
        self.nodes.get_mut(&id).map(Box::as_mut)
    }

    pub(super) fn directory(&mut self, id: NodeId) -> Option<&mut Directory> {
        self.nodes.get_mut(&id)?.directory.as_deref_mut()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (NodeId, &mut NodeRecord)> {
        self.nodes.iter_mut().map(|(id, node)| (*id, node.as_mut()))
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Picks nodes that the kernel should forget, so that requests for `count` are under way:
    /// first files that nothing has read, then other files, then, if `directories_may_go`,
    /// directories without known entries; among each the ones that the kernel has known longest.
    pub(super) fn request_forgets(&mut self, count: usize, directories_may_go: bool) -> Vec<NodeId> {
        let may_go = |node: &NodeRecord| {
            let is_empty = node.directory.as_ref().is_none_or(|directory| directory.children.is_empty());
            let may_go = node.directory.is_none() || directories_may_go && is_empty && node.home_count == 0;
            may_go && node.opens == 0 && !node.names.is_empty() && !node.forget_requested
        };
        let rank = |node: &NodeRecord| (node.directory.is_some(), node.version.get().is_some(), node.serial);
        let mut all: Vec<_> = self.nodes.iter_mut().filter(|(_, node)| may_go(node)).collect();
        let count = count.saturating_sub(self.forgets_requested).min(all.len());
        if count < all.len() {
            all.select_nth_unstable_by_key(count, |(_, node)| rank(node));
        }
        self.forgets_requested += count;
        all.truncate(count);
        let leaves = |(id, node): (&NodeId, &mut Box<NodeRecord>)| {
            node.forget_requested = true;
            *id
        };
        all.into_iter().map(leaves).collect()
    }

    /// The kernel gets `number` with a name alone: it will forget a lookup that was not counted.
    pub(super) fn show_without_node(&mut self, number: NodeId) {
        let ledger = &self.ledger;
        let (count, record) = self
            .uncounted_lookups
            .entry(number)
            .or_insert_with(|| (0, ledger.insert(RecordKind::Uncounted, 0, &number)));
        *count += 1;
        ledger.count(*record, *count);
    }

    /// How many of `count` lookups that the kernel forgets were counted.
    fn deduct_uncounted(&mut self, number: NodeId, count: u64) -> u64 {
        let Some((uncounted, record)) = self.uncounted_lookups.get_mut(&number) else { return count };
        let of_name = count.min(*uncounted);
        *uncounted -= of_name;
        self.ledger.count(*record, *uncounted);
        if *uncounted == 0 {
            self.ledger.remove(*record);
            self.uncounted_lookups.remove(&number);
        }
        count - of_name
    }

    /// The node that `parent` has under `name`, if the kernel knows one.
    pub(super) fn child(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.nodes.get(&parent)?.directory.as_ref()?.children.get(name).copied()
    }

    /// The filer's path of a node, as far as its position is known.
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

    /// The node of a directory by its filer path; `None` if the path is outside the mount or the
    /// kernel does not know it.
    pub(super) fn resolve(&self, path: &str) -> Option<NodeId> {
        let inside = path.strip_prefix(self.root_path.trim_end_matches('/'))?;
        if !inside.is_empty() && !inside.starts_with('/') {
            return None;
        }
        inside.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |at, name| self.child(at, name))
    }

    /// A directory and all nodes below it that the kernel knows.
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

    /// Finds or makes the node of `entry`, which the kernel gets as `name` of `parent`, and counts
    /// a lookup. A node that [grows](super::growth) to `entry` is found as well, and left as it
    /// is. Also returns whether the node is a directory that had lost its name. `None` if `parent`
    /// is no live directory.
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
            self.link(parent, name, id);
            id
        } else if let Some(id) = self.find_growing(parent, name, entry) {
            self.link(parent, name, id);
            id
        } else {
            let id = self.free_id(parent, name, entry);
            let dentry = Dentry { parent, name: name.into() };
            self.insert(id, dentry.clone(), entry.clone());
            self.give_name(dentry, id);
            id
        };
        if let Some(key) = &entry.hard_link {
            self.links.insert(key.clone(), id);
        }
        self.count_lookup(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            self.forgets_requested -= usize::from(std::mem::take(&mut node.forget_requested));
        }
        Some((id, returns))
    }

    /// Updates the attributes of a node whose content is the same.
    pub(super) fn update(&mut self, id: NodeId, entry: &Arc<Entry>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let before = node.memory();
        let old = std::mem::replace(&mut node.entry, entry.clone());
        self.bytes = self.bytes + node.memory() - before;
        if old != *entry {
            self.save(id);
        }
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

    /// The node that would stand for `entry` as `name` of `parent`, as it is or grown, if there is
    /// one.
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
        fits: impl Fn(&NodeRecord) -> bool,
    ) -> Option<NodeId> {
        let fits = |id: &NodeId| self.get(*id).is_some_and(&fits);
        if let Some(id) = self.child(parent, name).filter(fits) {
            return Some(id);
        }
        if let Some(id) = entry.hard_link.as_ref().and_then(|key| self.links.get(key)).copied().filter(fits) {
            return Some(id);
        }
        // A directory must not become its own ancestor, whatever the filer says.
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

    /// SeaweedFS's inode number if it has one and no other version of the file has it, so that
    /// `st_ino` is the same in every mount; else a spare number.
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

    /// The number of a listed name that gets no node: that of its node if the kernel knows it,
    /// else the one it would most likely get.
    pub(super) fn shown_id(&self, parent: NodeId, entry: &Entry) -> NodeId {
        self.child(parent, &entry.name).unwrap_or_else(|| self.preferred_id(parent, &entry.name, entry))
    }

    /// The number that belongs to an entry, free or not.
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
        let directory = (entry.attr.kind == FileKind::Directory)
            .then(|| Box::new(Directory::new(id, serial, self.ledger.clone())));
        if id != ROOT
            && let Some(parent) = self.nodes.get_mut(&home.parent)
        {
            parent.home_count += 1;
        }
        let node = NodeRecord {
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
            record: None,
            is_inherited: false,
        };
        self.bytes += node.memory();
        self.nodes.insert(id, Box::new(node));
    }

    /// Gives a node a name, which any other node loses. The node and the directory must be live.
    pub(super) fn link(&mut self, parent: NodeId, name: &str, id: NodeId) {
        if self.child(parent, name) != Some(id) {
            self.give_name(Dentry { parent, name: name.into() }, id);
        }
    }

    /// [`Self::link`] for a name that is not the node's yet.
    fn give_name(&mut self, dentry: Dentry, id: NodeId) {
        // This name may be the only thing that keeps the directory, so the old node loses it last.
        let directory = self.directory(dentry.parent);
        let replaced = directory.and_then(|known| known.children.insert(dentry.name.clone(), id));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.names.is_empty() {
            // Most files have one name, and a vector would begin with room for four.
            node.names.reserve_exact(1);
            if self.unnamed.get(&node.entry.attr.inode) == Some(&id) {
                self.unnamed.remove(&node.entry.attr.inode);
            }
        }
        node.names.push(dentry.clone());
        self.rehome(id, dentry.clone());
        self.save(id);
        if let Some(old) = replaced {
            self.lose_name(old, &dentry);
        }
    }

    /// Removes a name. The node stays as long as the kernel or an open handle holds it, and may
    /// get a name again.
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
        self.save(id);
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

    /// Moves a directory, with all that is known below it. `None` if that would put it inside
    /// itself.
    pub(super) fn rename(&mut self, from: &Dentry, to: &Dentry) -> Option<NodeId> {
        let id = self.child(from.parent, &from.name)?;
        if self.is_within(to.parent, id) {
            return None;
        }
        self.link(to.parent, &to.name, id);
        self.unlink(from.parent, &from.name);
        Some(id)
    }

    /// The kernel forgets `count` lookups.
    pub(super) fn forget(&mut self, id: NodeId, count: u64) {
        let count = self.deduct_uncounted(id, count);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        debug_assert!(id == ROOT || node.lookups >= count, "more lookups forgotten than made");
        node.lookups = node.lookups.saturating_sub(count);
        self.ledger.count(node.record, node.lookups);
        if node.is_inherited && node.lookups > 0 {
            self.doubtful.insert(id);
        }
        self.reap(id);
    }

    pub(super) fn open(&mut self, id: NodeId) -> Option<&mut NodeRecord> {
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

    /// Removes a node that nothing holds, then what it held.
    fn reap(&mut self, id: NodeId) {
        let mut candidates = vec![id];
        while let Some(id) = candidates.pop() {
            let Some(node) = self.nodes.get(&id) else { continue };
            let has_children = node.directory.as_ref().is_some_and(|d| !d.children.is_empty());
            if id == ROOT || node.lookups > 0 || node.opens > 0 || node.home_count > 0 || has_children {
                continue;
            }
            let Some(node) = self.nodes.remove(&id) else { continue };
            self.ledger.remove(node.record);
            self.bytes -= node.memory();
            self.forgets_requested -= usize::from(node.forget_requested);
            if let Some(directory) = &node.directory {
                self.cached_entries -= directory.present.len();
                self.cached_bytes -= directory.present.bytes();
                self.snapshots -= usize::from(directory.snapshot.is_some());
                self.absent -= directory.absent.len();
                directory.absent.values().for_each(|record| self.ledger.remove(*record));
            }
            for dentry in node.names {
                // While a name changes hands, it leads to its new node already (see `give_name`).
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
impl NodeTable {
    /// How many lookups that were not counted the kernel will forget.
    pub(super) fn uncounted_lookups(&self) -> u64 {
        self.uncounted_lookups.values().map(|(count, _)| count).sum()
    }
}

/// Whether two entries are the same node: a file with the same bytes, or the same directory.
pub(super) fn same_node(node: &Entry, entry: &Entry) -> bool {
    let (a, b) = (node.attr.inode, entry.attr.inode);
    let same_inode = a == b || a == 0 || b == 0;
    same_inode && (both_directories(node, entry) || node.same_content(entry))
}

fn both_directories(a: &Entry, b: &Entry) -> bool {
    a.attr.kind == FileKind::Directory && b.attr.kind == FileKind::Directory
}

/// Tells versions apart that have the same number at different times (an NFS handle contains
/// both). 32 bits wide: the kernel keeps no more, and takes a node with another generation for a
/// stale one.
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

/// FNV-1a: the number of a node must be the same in every build.
fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
