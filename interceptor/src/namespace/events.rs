//! The effects of the filer's events.
//!
//! An event tells which names have changed. What is known of them is dropped, pending lookups of
//! them are marked as overtaken, and the kernel gets invalidations. The entry in an event is used
//! only to see whether the kernel's node is still right and just its attributes have changed; then
//! the kernel may keep the name. That is safe in any order of events, because the entry is
//! compared with the current node: if a later change was handled before, the comparison fails, and
//! the name is dropped once more than needed.

use std::collections::HashSet;
use std::sync::Arc;

use super::directory::{Dentry, Directory, ForgottenNames};
use super::invalidate::Invalidation;
use super::state::NamespaceState;
use super::{Namespace, NodeId, ROOT};
use crate::ledger::{RecordId, RecordKind};
use crate::seaweed::entry::{Entry, FileKind};
use crate::seaweed::subscribe::{EntryChange, EntryRef};

impl Namespace {
    /// Events arrive from now on. Changes before that may have been missed, so nothing that is
    /// known stays.
    pub fn connected(&self) {
        let mut state = self.state.lock();
        state.invalidate_all();
        state.live = true;
    }

    /// Events may be missed from now on.
    pub fn disconnected(&self) {
        let mut state = self.state.lock();
        state.live = false;
        state.invalidate_all();
    }

    /// Applies a change on the filer: drops what is known of the names that it concerns.
    pub fn apply(&self, change: &EntryChange) {
        let (old, new) = (change.old.as_ref(), change.new.as_ref());
        let mut state = self.state.lock();
        // What the kernel has of these names is in doubt until the invalidations are queued.
        let doubts = [old, new].map(|side| state.doubt(side?));
        self.apply_to(&mut state, old, new);
        doubts.into_iter().for_each(|record| state.nodes.ledger.remove(record));
    }

    fn apply_to(&self, state: &mut NamespaceState, old: Option<&EntryRef>, new: Option<&EntryRef>) {
        for side in [old, new].into_iter().flatten() {
            state.hard_link_changed(&side.entry);
        }
        let of_root = |side: Option<&EntryRef>| side.is_some_and(|side| self.is_root(side));
        match (of_root(old), of_root(new)) {
            (false, false) => {}
            (true, true) => return state.root_changed(),
            // The root came or went, under whatever name: what is known below it is not there now.
            (true, false) | (false, true) => {
                state.root_changed();
                return state.invalidate_subtree(ROOT);
            }
        }
        match (old, new) {
            (Some(old), Some(new)) if !same_name(old, new) => self.renamed(state, old, new),
            (_, Some(new)) => self.updated(state, new),
            (Some(old), None) => self.deleted(state, old),
            (None, None) => {}
        }
    }

    fn updated(&self, state: &mut NamespaceState, new: &EntryRef) {
        let Some(parent) = state.nodes.resolve(&new.directory) else { return };
        let name = new.entry.name.as_str();
        state.forget_name(parent, name);
        match state.nodes.child(parent, name) {
            // Its name stays: a directory in use would lose its path without it.
            Some(child) if state.stands_for(child, &new.entry) => state.attributes_changed(child),
            Some(child) => {
                state.attributes_changed(child);
                state.invalidate_name(parent, name);
            }
            None => state.invalidate_name(parent, name),
        }
    }

    fn deleted(&self, state: &mut NamespaceState, old: &EntryRef) {
        let Some(parent) = state.nodes.resolve(&old.directory) else { return };
        let name = old.entry.name.as_str();
        state.forget_name(parent, name);
        match state.nodes.unlink(parent, name) {
            // A directory may reappear under another name (some renames arrive as creation and
            // deletion), but the kernel never reuses one that it was told was deleted.
            Some(child)
                if old.entry.hard_link.is_none()
                    && !state.is_directory(child)
                    && state.kernel_knows(parent) =>
            {
                state.notify_deleted(parent, child, name);
            }
            _ => state.invalidate_name(parent, name),
        }
    }

    fn renamed(&self, state: &mut NamespaceState, old: &EntryRef, new: &EntryRef) {
        let from = state.nodes.resolve(&old.directory);
        let to = state.nodes.resolve(&new.directory);
        for (directory, side) in [(from, old), (to, new)] {
            if let Some(directory) = directory {
                state.forget_name(directory, &side.entry.name);
            }
        }
        if let Some(from) = from {
            let name = old.entry.name.as_str();
            let is_directory = new.entry.attr.kind == FileKind::Directory;
            let is_moved = |child: &NodeId| match state.is_directory(*child) {
                true => is_directory,
                false => state.stands_for(*child, &new.entry),
            };
            let child = state.nodes.child(from, name).filter(is_moved);
            let moved = match (child, to) {
                (Some(_), Some(to)) => {
                    let from = Dentry { parent: from, name: name.into() };
                    let to = Dentry { parent: to, name: new.entry.name.as_str().into() };
                    state.nodes.rename(&from, &to)
                }
                _ => None,
            };
            match moved {
                Some(child) => state.attributes_changed(child),
                // A lookup of the new name finds the file again by its number and its content.
                None => {
                    state.nodes.unlink(from, name);
                }
            }
            state.invalidate_name(from, name);
        }
        if let Some(to) = to {
            state.invalidate_name(to, &new.entry.name);
        }
    }
}

fn same_name(old: &EntryRef, new: &EntryRef) -> bool {
    old.directory == new.directory && old.entry.name == new.entry.name
}

impl NamespaceState {
    /// Notes in the ledger that a name has changed.
    fn doubt(&self, side: &EntryRef) -> Option<RecordId> {
        let parent = self.nodes.resolve(&side.directory)?;
        let dentry = Dentry { parent, name: side.entry.name.as_str().into() };
        self.nodes.ledger.insert(RecordKind::Invalidation, 0, &dentry)
    }

    /// Drops what is known of a name.
    fn forget_name(&mut self, parent: NodeId, name: &str) {
        let Some(serial) = self.nodes.directory(parent).map(|directory| directory.serial) else { return };
        if let Some(pending) = self.pending_lookups.remove(&(serial, Arc::from(name))) {
            pending.overtake();
        }
        let listed = self.with_directory(parent, |directory| {
            directory.invalidate(name);
            std::mem::take(&mut directory.kernel_has_listing)
        });
        if listed == Some(true) {
            self.notify(Invalidation::Listing(parent));
        }
    }

    fn invalidate_name(&self, parent: NodeId, name: &str) {
        if self.kernel_knows(parent) {
            self.notify_name(parent, name);
        }
    }

    fn attributes_changed(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.stale = true;
        if self.kernel_knows(id) {
            self.notify(Invalidation::Attributes(id));
        }
    }

    fn root_changed(&mut self) {
        self.root_changes += 1;
        self.attributes_changed(ROOT);
    }

    /// A change through one name of a file changes all of its names.
    fn hard_link_changed(&mut self, entry: &Entry) {
        let Some(key) = &entry.hard_link else { return };
        self.link_changes += 1;
        let Some(id) = self.nodes.by_hard_link(key) else { return };
        let names = self.nodes.get(id).map(|node| node.names.clone()).unwrap_or_default();
        for Dentry { parent, name } in names {
            self.forget_name(parent, &name);
            self.invalidate_name(parent, &name);
        }
        self.attributes_changed(id);
    }

    fn stands_for(&self, id: NodeId, entry: &Entry) -> bool {
        self.nodes.get(id).is_some_and(|node| node.stands_for(entry))
    }

    fn is_directory(&self, id: NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.directory.is_some())
    }

    /// Whether the kernel knows a node.
    fn kernel_knows(&self, id: NodeId) -> bool {
        id == ROOT || self.nodes.get(id).is_some_and(|node| node.lookups > 0)
    }

    /// Invalidates everything in the kernel, and drops all that is known.
    fn invalidate_all(&mut self) {
        self.epoch += 1;
        for (_, pending) in self.pending_lookups.drain() {
            pending.overtake();
        }
        let all: Vec<_> = self.nodes.iter_mut().map(|(id, _)| id).collect();
        for id in all {
            self.invalidate_node(id);
        }
    }

    /// The same for a directory and all below it. While the directory had no name, events about
    /// its content found nothing.
    pub(super) fn invalidate_subtree(&mut self, top: NodeId) {
        let below = self.nodes.subtree(top);
        let serials: HashSet<_> =
            below.iter().filter_map(|id| Some(self.nodes.directory(*id)?.serial)).collect();
        for (_, pending) in self.pending_lookups.extract_if(|(serial, _), _| serials.contains(serial)) {
            pending.overtake();
        }
        for id in below {
            if let Some(node) = self.nodes.get_mut(id) {
                node.stale = true;
            }
            self.invalidate_node(id);
        }
    }

    fn invalidate_node(&mut self, id: NodeId) {
        self.notify(Invalidation::Attributes(id));
        let Some(forgotten) = self.with_directory(id, Directory::forget_all) else { return };
        let ForgottenNames { listed, mut present, absent } = forgotten;
        if listed {
            self.notify(Invalidation::Listing(id));
        }
        // Names of directories stay: if one is gone, its attributes cannot be had, which shows it.
        present.retain(|name| !self.nodes.child(id, name).is_some_and(|child| self.is_directory(child)));
        for name in present {
            self.notify(Invalidation::Entry { parent: id, name });
        }
        for (name, record) in absent {
            self.notify_absent(id, name, record);
        }
    }
}
