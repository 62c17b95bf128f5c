//! Lookups and attributes: one call of the filer for all requests at the same time, whose reply is
//! cached only if no event overtook it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use super::directory::{Dentry, NameStatus};
use super::growth::GROWTH_WAIT_TIMEOUT;
use super::nodes::same_node;
use super::pending_lookup::{FilerReply, PendingLookup};
use super::state::NamespaceState;
use super::{LookupResult, Namespace, NamespaceError, NodeId, NodeStat, NowOrLater, ROOT};
use crate::arrival::Arrival;
use crate::seaweed::entry::Entry;

impl Namespace {
    /// Finds the node of a name, and counts one lookup of it.
    pub fn lookup(
        self: &Arc<Self>,
        parent: NodeId,
        name: &str,
    ) -> NowOrLater<Result<LookupResult, NamespaceError>> {
        let mut state = self.state.lock();
        if let Some(answer) = self.lookup_cached(&mut state, parent, name) {
            return NowOrLater::Now(answer);
        }
        let Some((serial, reply)) = self.join_or_start_lookup(&mut state, parent, name) else {
            return NowOrLater::Now(Err(NamespaceError::NotDirectory));
        };
        self.count_miss(&mut state, parent);
        drop(state);
        let (namespace, name) = (self.clone(), Arc::<str>::from(name));
        NowOrLater::Later(async move { namespace.lookup_replied(parent, serial, &name, reply.await) }.boxed())
    }

    fn lookup_cached(
        &self,
        state: &mut NamespaceState,
        parent: NodeId,
        name: &str,
    ) -> Option<Result<LookupResult, NamespaceError>> {
        if state.nodes.get(parent).is_none() {
            return Some(Err(NamespaceError::Stale));
        }
        if self.is_hidden(parent, name) {
            return Some(Ok(LookupResult::Absent(self.options.short_timeout)));
        }
        if name == "." || name == ".." {
            return Some(self.lookup_dots(state, parent, name));
        }
        match state.with_directory(parent, |directory| directory.known(name, SystemTime::now())) {
            Some(NameStatus::Present(entry)) => Some(
                state.attach(parent, name, &entry, true).map(LookupResult::Node).ok_or(NamespaceError::Stale),
            ),
            Some(NameStatus::Absent) => Some(Ok(self.absent(state, parent, name, true))),
            Some(NameStatus::Unknown) => None,
            None => Some(Err(NamespaceError::NotDirectory)),
        }
    }

    /// An NFS server looks up a node this way that it has a handle of.
    fn lookup_dots(
        &self,
        state: &mut NamespaceState,
        id: NodeId,
        name: &str,
    ) -> Result<LookupResult, NamespaceError> {
        let node = state.nodes.get(id).ok_or(NamespaceError::Stale)?;
        let id = if name == ".." { node.home.parent } else { id };
        let stat = state.stat(id).ok_or(NamespaceError::Stale)?;
        state.nodes.count_lookup(id);
        Ok(LookupResult::Node(stat))
    }

    /// The result for a name that does not exist. The kernel may cache that only as long as it is
    /// recorded here, so that an event can invalidate it.
    fn absent(&self, state: &mut NamespaceState, parent: NodeId, name: &str, current: bool) -> LookupResult {
        if !current {
            return LookupResult::Absent(Duration::ZERO);
        }
        if state.live {
            if !state.has_room_for_absent() {
                return LookupResult::Absent(Duration::ZERO);
            }
            state.with_directory(parent, |directory| directory.learn_absent(name));
        }
        LookupResult::Absent(state.absent_timeout())
    }

    fn lookup_replied(
        &self,
        parent: NodeId,
        serial: u64,
        name: &str,
        reply: FilerReply,
    ) -> Result<LookupResult, NamespaceError> {
        let entry = reply.entry?;
        let mut state = self.state.lock();
        let now = state.change_stamp(parent, serial).ok_or(NamespaceError::Stale)?;
        let current = reply.stamp == Some(now);
        match entry {
            Some(entry) => state
                .attach(parent, name, &entry, current)
                .map(LookupResult::Node)
                .ok_or(NamespaceError::Stale),
            None => Ok(self.absent(&mut state, parent, name, current)),
        }
    }

    /// Joins the pending lookup of `name`, or starts one. `None` if `parent` is no live directory.
    fn join_or_start_lookup(
        self: &Arc<Self>,
        state: &mut NamespaceState,
        parent: NodeId,
        name: &str,
    ) -> Option<(u64, Shared<BoxFuture<'static, FilerReply>>)> {
        let serial = state.nodes.directory(parent)?.serial;
        let key = (serial, Arc::<str>::from(name));
        if let Some(pending) = state.pending_lookups.get(&key) {
            return Some((serial, pending.reply.clone()));
        }
        let path = state.nodes.path(parent);
        let (epoch, link_changes) = (state.epoch, state.link_changes);
        let overtaken = Arc::new(AtomicBool::new(false));
        let arrival = Arrival::now();
        let reply = {
            let (namespace, key, overtaken) = (self.clone(), key.clone(), overtaken.clone());
            async move {
                let found = namespace.filer.lookup(&path, &key.1, arrival).await;
                let is_followed = found.as_ref().is_ok_and(|found| found.is_followed);
                let entry = found.map(|found| found.entry.map(Arc::new)).map_err(NamespaceError::Filer);
                let mut state = namespace.state.lock();
                if !overtaken.load(Ordering::Relaxed) {
                    state.pending_lookups.remove(&key);
                }
                let valid = is_followed
                    && !overtaken.load(Ordering::Relaxed)
                    && state.epoch == epoch
                    && (state.link_changes == link_changes || !is_hard_link(&entry));
                let stamp = if valid { state.change_stamp(parent, serial) } else { None };
                if stamp.is_some() && state.live {
                    cache_reply(&mut state, parent, &key.1, &entry);
                }
                FilerReply { entry, stamp }
            }
            .boxed()
            .shared()
        };
        state.pending_lookups.insert(key, PendingLookup::new(reply.clone(), overtaken));
        Some((serial, reply))
    }

    /// The attributes of a node; asks the filer if they may have changed.
    pub fn attributes(self: &Arc<Self>, id: NodeId) -> NowOrLater<Result<NodeStat, NamespaceError>> {
        let mut state = self.state.lock();
        if state.nodes.get(id).is_none() {
            return NowOrLater::Now(Err(NamespaceError::Stale));
        }
        if id == ROOT && self.options.root_path == "/" {
            // The filer has no entry of its root that could change.
            let epoch = state.epoch;
            if let Some(root) = state.nodes.get_mut(ROOT) {
                root.verified = (epoch, Instant::now());
            }
        }
        if state.is_fresh(id) {
            let stat = state.stat(id).ok_or(NamespaceError::Stale);
            return NowOrLater::Now(stat);
        }
        let namespace = self.clone();
        if id == ROOT {
            drop(state);
            return NowOrLater::Later(namespace.refresh_root(Arrival::now()).boxed());
        }
        let Some(Dentry { parent, name }) = state.nodes.get(id).map(|node| node.home.clone()) else {
            return NowOrLater::Now(Err(NamespaceError::Stale));
        };
        let Some((serial, reply)) = self.join_or_start_lookup(&mut state, parent, &name) else {
            return NowOrLater::Now(Err(NamespaceError::Stale));
        };
        drop(state);
        NowOrLater::Later(
            async move {
                let (mut reply, deadline) = (reply.await, Instant::now() + GROWTH_WAIT_TIMEOUT);
                loop {
                    let stat = namespace.apply_attributes(id, parent, serial, &name, reply.clone())?;
                    if !namespace.wait_for_growth(id, deadline).await {
                        return Ok(stat);
                    }
                    // More may have been appended during the growth.
                    reply.stamp = None;
                }
            }
            .boxed(),
        )
    }

    /// Applies a reply about a node's name to the node's attributes, if the name still stands for
    /// the node.
    fn apply_attributes(
        &self,
        id: NodeId,
        parent: NodeId,
        serial: u64,
        name: &str,
        reply: FilerReply,
    ) -> Result<NodeStat, NamespaceError> {
        let mut state = self.state.lock();
        let entry = match reply.entry {
            Ok(entry) => entry,
            Err(error) => {
                // What is known of the node stays true of it; only changes are not known.
                tracing::debug!(name, %error, "attributes could not be checked");
                return state.stat(id).ok_or(NamespaceError::Stale);
            }
        };
        let now = state.change_stamp(parent, serial);
        let current = now.is_some() && reply.stamp == now;
        let is_named = state.nodes.child(parent, name) == Some(id);
        let epoch = state.epoch;
        let Some(node) = state.nodes.get_mut(id) else { return Err(NamespaceError::Stale) };
        let is_directory = node.directory.is_some();
        match entry {
            Some(entry) if is_named && same_node(&node.entry, &entry) => {
                node.stale = !current;
                node.verified = (epoch, Instant::now());
                state.nodes.update(id, &entry);
            }
            Some(entry) if is_named && node.grows_to(&entry) => state.grow(id, &entry),
            _ if !is_named => node.stale = !node.names.is_empty(),
            _ if !current => {
                node.stale = true;
                state.notify_name(parent, name);
            }
            _ => {
                // The name stands for another file now, or for none; open handles keep the node.
                // The kernel is told first: the ledger then has a name that it may know.
                state.notify_name(parent, name);
                state.nodes.unlink(parent, name);
                if let Some(node) = state.nodes.get_mut(id) {
                    node.stale = false;
                }
                if is_directory {
                    return Err(NamespaceError::Stale);
                }
            }
        }
        state.stat(id).ok_or(NamespaceError::Stale)
    }
}

fn is_hard_link(entry: &Result<Option<Arc<Entry>>, NamespaceError>) -> bool {
    matches!(entry, Ok(Some(entry)) if entry.hard_link.is_some())
}

fn cache_reply(
    state: &mut NamespaceState,
    parent: NodeId,
    name: &str,
    entry: &Result<Option<Arc<Entry>>, NamespaceError>,
) {
    match entry {
        Ok(Some(entry)) if *entry.name == *name => {
            state.with_directory(parent, |directory| directory.learn_present(entry.clone()));
            state.evict_entries();
        }
        Ok(None) if state.has_room_for_absent() => {
            state.with_directory(parent, |directory| directory.learn_absent(name));
        }
        _ => {}
    }
}
