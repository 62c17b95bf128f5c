//! Listing whole directories, for readers of a directory, and in advance for programs that open
//! one file after another.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::StreamExt;

use super::directory::OngoingListing;
use super::invalidate::Invalidation;
use super::listing::{DirectoryListing, ListingEnd};
use super::state::NamespaceState;
use super::{ChangeStamp, ListedEntry, Namespace, NamespaceError, NodeId, NodePin, ROOT};
use crate::seaweed::entry::Entry;
use crate::telemetry::log_limit::LogLimit;

/// An opened directory.
pub(crate) struct OpenedDirectory {
    pub(crate) node: NodePin,
    /// Its content, if that is known or being read.
    pub(crate) listing: Option<Arc<DirectoryListing>>,
    /// Whether the kernel may cache the listing until it is invalidated.
    pub(crate) cacheable: bool,
}

/// How many entries of the filer's stream are cached at a time, under one lock.
const MAX_PORTION_ENTRIES: usize = 256;

impl Namespace {
    /// Opens a directory. Reads nothing yet: the kernel may have cached the listing.
    pub(crate) fn open_directory(self: &Arc<Self>, id: NodeId) -> Result<OpenedDirectory, NamespaceError> {
        let node = self.pin(id).ok_or(NamespaceError::Stale)?;
        let mut state = self.state.lock();
        let listing = state.nodes.directory(id).ok_or(NamespaceError::NotDirectory)?.shared_listing();
        Ok(OpenedDirectory { node, listing, cacheable: state.live })
    }

    /// The content of a directory, for a handle that starts to read it.
    pub(crate) fn listing(self: &Arc<Self>, id: NodeId) -> Result<Arc<DirectoryListing>, NamespaceError> {
        let mut state = self.state.lock();
        let known = state.with_directory(id, |directory| directory.shared_listing());
        let listing = match known {
            Some(Some(listing)) => listing,
            Some(None) => self.start_listing(&mut state, id).ok_or(NamespaceError::Stale)?,
            None => return Err(NamespaceError::Stale),
        };
        listing.set_has_reader();
        Ok(listing)
    }

    /// Counts a lookup that asks the filer; after a few of them the whole directory is listed.
    pub(super) fn count_miss(self: &Arc<Self>, state: &mut NamespaceState, id: NodeId) {
        let (after, window) = (self.options.prefetch_after, self.options.prefetch_window);
        let live = state.live;
        let due = state.with_directory(id, |directory| {
            if directory.misses.0.elapsed() > window {
                directory.misses = (Instant::now(), 0);
            }
            directory.misses.1 += 1;
            live && directory.misses.1 >= after
                && !directory.complete
                && !directory.too_large
                && directory.ongoing.is_none()
        });
        if due == Some(true) {
            self.start_listing(state, id);
        }
    }

    /// Starts to list a directory in the background.
    fn start_listing(
        self: &Arc<Self>,
        state: &mut NamespaceState,
        id: NodeId,
    ) -> Option<Arc<DirectoryListing>> {
        let listing = DirectoryListing::new(state.next_listing(), state.listings.clone());
        let ongoing = OngoingListing {
            listing: listing.clone(),
            changed_names: Default::default(),
            is_partial: !state.live,
        };
        let directory = state.nodes.directory(id)?;
        directory.ongoing = Some(ongoing);
        let serial = directory.serial;
        let path = state.nodes.path(id);
        let reading = self.clone().run_listing(id, serial, path, listing.clone());
        self.runtime.spawn(reading);
        Some(listing)
    }

    async fn run_listing(
        self: Arc<Self>,
        id: NodeId,
        serial: u64,
        path: String,
        listing: Arc<DirectoryListing>,
    ) {
        let unfinished = ListingGuard(&listing);
        let mut portions = self.filer.list(&path, "", usize::MAX).ready_chunks(MAX_PORTION_ENTRIES);
        let mut end = ListingEnd::Complete;
        while let Some(portion) = portions.next().await {
            let mut entries = Vec::with_capacity(portion.len());
            for entry in portion {
                match entry {
                    Ok(entry) if self.is_hidden(id, &entry.name) => {}
                    Ok(entry) => entries.push(Arc::new(entry)),
                    Err(failure) => end = ListingEnd::Failed(failure),
                }
            }
            self.cache_portion(id, serial, &listing, &entries);
            listing.push(&entries);
            if !matches!(end, ListingEnd::Complete) || self.should_give_up(id, serial, &listing) {
                break;
            }
            if self.should_truncate(id, serial, &listing) {
                end = ListingEnd::Truncated;
                break;
            }
        }
        if let ListingEnd::Failed(failure) = &end {
            static LIMIT: LogLimit = LogLimit::new();
            if let Some(left_out) = LIMIT.admit(&path) {
                tracing::warn!(directory = path, error = %failure, left_out = left_out.field(), "cannot list directory");
            }
        }
        std::mem::forget(unfinished);
        self.end_listing(id, serial, &listing, end);
    }

    fn cache_portion(
        &self,
        id: NodeId,
        serial: u64,
        listing: &Arc<DirectoryListing>,
        entries: &[Arc<Entry>],
    ) {
        let mut state = self.state.lock();
        if !state.live || !is_ongoing(&mut state, id, serial, listing) {
            return;
        }
        state.evict_entries();
        let share = self.options.cached_bytes / 2;
        state.with_directory(id, |directory| {
            let Some(mut ongoing) = directory.ongoing.take() else { return };
            if directory.present.bytes() >= share {
                ongoing.is_partial = true;
            } else {
                for entry in
                    entries.iter().filter(|entry| !ongoing.changed_names.contains(entry.name.as_str()))
                {
                    // The reply of a lookup may be newer than the listing.
                    if !directory.present.contains(entry.name.as_str()) {
                        directory.learn_present(entry.clone());
                    }
                }
            }
            directory.ongoing = Some(ongoing);
        });
    }

    /// Whether to stop because no reader waits for the listing and it is too long to be worth it.
    fn should_give_up(&self, id: NodeId, serial: u64, listing: &Arc<DirectoryListing>) -> bool {
        let mut state = self.state.lock();
        if listing.has_reader() || listing.len() < self.options.prefetch_limit {
            return false;
        }
        if is_ongoing(&mut state, id, serial, listing)
            && let Some(directory) = state.nodes.directory(id)
        {
            directory.ongoing = None;
            directory.too_large = true;
        }
        true
    }

    /// Whether to stop because listings have no more memory. Handles of the listing read on by
    /// themselves.
    fn should_truncate(&self, id: NodeId, serial: u64, listing: &Arc<DirectoryListing>) -> bool {
        if listing.has_room() {
            return false;
        }
        let mut state = self.state.lock();
        state.evict_listings();
        if listing.has_room() {
            return false;
        }
        if is_ongoing(&mut state, id, serial, listing)
            && let Some(directory) = state.nodes.directory(id)
        {
            directory.ongoing = None;
            directory.too_large = true;
        }
        true
    }

    fn end_listing(&self, id: NodeId, serial: u64, listing: &Arc<DirectoryListing>, end: ListingEnd) {
        let mut state = self.state.lock();
        if is_ongoing(&mut state, id, serial, listing) {
            let live = state.live;
            state.with_directory(id, |directory| {
                if let Some(ongoing) = directory.ongoing.take()
                    && live
                    && matches!(end, ListingEnd::Complete)
                {
                    directory.finish_listing(ongoing);
                }
            });
        }
        listing.finish(end);
    }

    /// The node of a listed entry for a READDIRPLUS reply, counting a lookup. `stamp` is the state
    /// of the directory that the entry is current for, if it is not cached. While nodes take too
    /// much memory none is made, and the kernel looks the name up if it needs to. `None` if the
    /// directory is not live.
    pub(crate) fn attach(
        &self,
        directory: NodeId,
        entry: &Arc<Entry>,
        stamp: Option<ChangeStamp>,
    ) -> Option<ListedEntry> {
        let mut state = self.state.lock();
        let is_cached = state.nodes.directory(directory)?.is_current(entry);
        if state.kernel_features.accepts_entries_without_node
            && state.is_over_node_limit()
            && state.nodes.find(directory, &entry.name, entry).is_none()
        {
            let number = state.nodes.shown_id(directory, entry);
            // 0 and 1 have a meaning of their own, so such an entry gets a node with another
            // number.
            if number > ROOT {
                state.limit_nodes();
                state.nodes.show_without_node(number);
                return Some(ListedEntry::Name(number));
            }
        }
        let is_new = stamp.is_some() && stamp == state.directory_stamp(directory);
        // A change through another name of a hard-linked file would not change the stamp.
        let current = is_cached || is_new && entry.hard_link.is_none();
        // Without events nothing is cached, and a listing is as good as a lookup for the short
        // timeout.
        let current = current || !state.live;
        state.attach(directory, &entry.name, entry, current).map(ListedEntry::Node)
    }

    /// The number of a listed entry in a READDIR reply.
    pub(crate) fn shown_id(&self, directory: NodeId, entry: &Entry) -> NodeId {
        self.state.lock().nodes.shown_id(directory, entry)
    }

    /// The parent of a directory.
    pub(crate) fn parent(&self, directory: NodeId) -> NodeId {
        self.state.lock().nodes.get(directory).map_or(ROOT, |node| node.home.parent)
    }

    /// A handle has read a listing to its end, of which the kernel has a cached copy now. The
    /// kernel may keep it until the directory changes, unless it has changed already or an entry
    /// will expire.
    pub(crate) fn listing_read_to_end(&self, id: NodeId, listing: &Arc<DirectoryListing>) {
        let mut state = self.state.lock();
        let Some(directory) = state.nodes.directory(id) else { return };
        let current = directory.snapshot.as_ref().is_some_and(|snapshot| Arc::ptr_eq(snapshot, listing));
        if current && !listing.expires() {
            directory.kernel_has_listing = true;
        } else {
            state.notify(Invalidation::Listing(id));
        }
    }
}

/// Ends a listing that is dropped or panics, so that no reader waits for it for ever.
struct ListingGuard<'a>(&'a DirectoryListing);

impl Drop for ListingGuard<'_> {
    fn drop(&mut self) {
        let error = Box::<dyn std::error::Error + Send + Sync>::from("reading was cut short");
        self.0.finish(ListingEnd::Failed(Arc::from(error)));
    }
}

/// Whether the time to live of an entry has not passed.
pub(crate) fn is_unexpired(entry: &Entry, now: SystemTime) -> bool {
    entry.expires.is_none_or(|at| at > now)
}

/// Whether `listing` is the one that the directory is being read into.
fn is_ongoing(state: &mut NamespaceState, id: NodeId, serial: u64, listing: &Arc<DirectoryListing>) -> bool {
    state
        .nodes
        .directory(id)
        .filter(|directory| directory.serial == serial)
        .and_then(|directory| directory.ongoing.as_ref())
        .is_some_and(|ongoing| Arc::ptr_eq(&ongoing.listing, listing))
}
