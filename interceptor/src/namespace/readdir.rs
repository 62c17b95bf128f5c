//! Reading whole directories: for those who list them, and in advance for those who open one file after another.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::StreamExt;

use super::directory::OngoingListing;
use super::invalidate::Invalidation;
use super::listing::{Listing, ListingEnd};
use super::state::NamespaceState;
use super::{ChangeStamp, ListedEntry, Namespace, NamespaceError, NodeId, NodePin, ROOT};
use crate::seaweed::entry::Entry;
use crate::telemetry::log_limit::LogLimit;

/// A directory that was opened.
pub(crate) struct OpenedDirectory {
    pub(crate) node: NodePin,
    /// What it holds, if that is known or being read.
    pub(crate) listing: Option<Arc<Listing>>,
    /// Whether the kernel may keep a copy of the listing until it is told to drop it.
    pub(crate) cacheable: bool,
}

/// How many entries are taken from the filer's ongoing before the lock is taken to note them.
const MAX_PORTION_ENTRIES: usize = 256;

impl Namespace {
    /// A directory is opened. Reads nothing yet: the kernel may have a copy.
    pub(crate) fn open_directory(self: &Arc<Self>, id: NodeId) -> Result<OpenedDirectory, NamespaceError> {
        let node = self.pin(id).ok_or(NamespaceError::Stale)?;
        let mut state = self.state.lock();
        let listing = state.nodes.directory(id).ok_or(NamespaceError::NotDirectory)?.shared_listing();
        Ok(OpenedDirectory { node, listing, cacheable: state.live })
    }

    /// What the directory holds now, for a handle that begins to read it.
    pub(crate) fn listing(self: &Arc<Self>, id: NodeId) -> Result<Arc<Listing>, NamespaceError> {
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

    /// Counts a name that had to be asked for, and after a few of them reads the whole directory.
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

    /// Starts reading a directory from the filer in the background.
    fn start_listing(self: &Arc<Self>, state: &mut NamespaceState, id: NodeId) -> Option<Arc<Listing>> {
        let listing = Listing::new(state.next_listing(), state.listings.clone());
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

    async fn run_listing(self: Arc<Self>, id: NodeId, serial: u64, path: String, listing: Arc<Listing>) {
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

    fn cache_portion(&self, id: NodeId, serial: u64, listing: &Arc<Listing>, entries: &[Arc<Entry>]) {
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
                    // What was asked for by name may be newer than the listing.
                    if !directory.present.contains(entry.name.as_str()) {
                        directory.learn_present(entry.clone());
                    }
                }
            }
            directory.ongoing = Some(ongoing);
        });
    }

    /// Whether to stop: nobody waits for the listing, and it is too long to be worth it.
    fn should_give_up(&self, id: NodeId, serial: u64, listing: &Arc<Listing>) -> bool {
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

    /// Whether to stop because listings have no more memory. Its handles read on by themselves.
    fn should_truncate(&self, id: NodeId, serial: u64, listing: &Arc<Listing>) -> bool {
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

    fn end_listing(&self, id: NodeId, serial: u64, listing: &Arc<Listing>, end: ListingEnd) {
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

    /// The kernel is told of an entry of a listing with all that belongs to it: finds its node, counting a lookup. `stamp` is
    /// when the filer told of the entry, if it is not remembered. While nodes take too much memory
    /// none is made for it, and the kernel has to ask for the name if that is of interest. `None`
    /// if the directory is not live.
    pub(crate) fn attach(
        &self,
        directory: NodeId,
        entry: &Arc<Entry>,
        stamp: Option<ChangeStamp>,
    ) -> Option<ListedEntry> {
        let mut state = self.state.lock();
        let is_remembered = state.nodes.directory(directory)?.is_current(entry);
        if state.kernel_features.accepts_entries_without_node
            && state.is_over_node_limit()
            && state.nodes.find(directory, &entry.name, entry).is_none()
        {
            let number = state.nodes.shown_id(directory, entry);
            // The kernel leaves these two alone by themselves.
            if number > ROOT {
                state.limit_nodes();
                state.nodes.show_without_node(number);
                return Some(ListedEntry::Name(number));
            }
        }
        let is_new = stamp.is_some() && stamp == state.directory_stamp(directory);
        // A change through another of its names would not be seen here.
        let current = is_remembered || is_new && entry.hard_link.is_none();
        // Without events nothing is remembered, and a listing is as good as a lookup for as long as either is trusted.
        let current = current || !state.live;
        state.attach(directory, &entry.name, entry, current).map(ListedEntry::Node)
    }

    /// The number under which an entry of a listing is shown when nothing else of it is asked for.
    pub(crate) fn shown_id(&self, directory: NodeId, entry: &Entry) -> NodeId {
        self.state.lock().nodes.shown_id(directory, entry)
    }

    /// The directory that holds a directory.
    pub(crate) fn parent(&self, directory: NodeId) -> NodeId {
        self.state.lock().nodes.get(directory).map_or(ROOT, |node| node.home.parent)
    }

    /// A handle read a listing to its end, of which the kernel now has a copy: it may keep that until something changes
    /// in the directory, but not if something did already, or will by itself.
    pub(crate) fn listing_read_to_end(&self, id: NodeId, listing: &Arc<Listing>) {
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

/// Ends a listing whose reading was cut short, so that nobody waits for it for ever.
struct ListingGuard<'a>(&'a Listing);

impl Drop for ListingGuard<'_> {
    fn drop(&mut self) {
        let error = Box::<dyn std::error::Error + Send + Sync>::from("reading was cut short");
        self.0.finish(ListingEnd::Failed(Arc::from(error)));
    }
}

/// Whether the entry still exists by its time to live.
pub(crate) fn is_unexpired(entry: &Entry, now: SystemTime) -> bool {
    entry.expires.is_none_or(|at| at > now)
}

/// Whether `listing` is what the directory is being read into.
fn is_ongoing(state: &mut NamespaceState, id: NodeId, serial: u64, listing: &Arc<Listing>) -> bool {
    state
        .nodes
        .directory(id)
        .filter(|directory| directory.serial == serial)
        .and_then(|directory| directory.ongoing.as_ref())
        .is_some_and(|ongoing| Arc::ptr_eq(&ongoing.listing, listing))
}
