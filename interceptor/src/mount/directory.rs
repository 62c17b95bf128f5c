//! READDIR and READDIRPLUS replies, filled from a listing that may still be growing.
//!
//! Entries 0 and 1 of every listing are `.` and `..`. A reply takes as many entries as fit. Each
//! entry of a READDIRPLUS reply counts as a lookup of its node (those of `.` and `..` do not, by
//! the protocol), so the lookup of an entry that did not fit is undone. While nodes take too much
//! memory, no new node is made, and the kernel gets the name alone ([`attr_without_node`]).
//!
//! A directory whose listing was truncated for lack of memory is read on page by page, by each
//! handle for itself.

use std::error::Error;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};
use parking_lot::Mutex;
use tokio::time::timeout_at;

use super::attr::{attr_without_node, errno, file_attr, file_type, no_attr};
use super::context::MountContext;
use crate::arrival::Arrival;
use crate::fuse::killed::unless_killed;
use crate::namespace::listing::{DirectoryListing, EntryBatch, ListingRead};
use crate::namespace::readdir::is_unexpired;
use crate::namespace::tail::ListingTail;
use crate::namespace::{ChangeStamp, ListedEntry, NamespaceError, NodeId, NodePin};
use crate::seaweed::entry::{Entry, FileKind};
use crate::seaweed::filer::FILER_TIMEOUT;
use crate::telemetry::request_profile::ProfiledRequest;

/// The error of a reader that has waited too long for entries.
const TIMEOUT_MESSAGE: &str = "no filer has sent the next entries in time";

/// Entries taken by `.` and `..`.
const DOT_ENTRIES: usize = 2;

/// An open directory.
pub(super) struct DirectoryHandle {
    node: NodePin,
    /// Set when the directory is opened if the listing is known, else at the first request.
    listing: Mutex<Option<Arc<DirectoryListing>>>,
    /// Reads on behind a truncated listing. The kernel sends one request of a handle at a time.
    tail: Mutex<Option<ListingTail>>,
    /// Whether the kernel may cache the listing.
    is_cacheable: bool,
    /// Whether anything was read: going back to offset 0 then means listing anew.
    was_read: AtomicBool,
}

/// An entry of a directory, and the state of the directory that it is current for if it is not
/// cached.
pub(super) struct ReaddirEntry<'a> {
    directory: NodeId,
    entry: &'a Arc<Entry>,
    stamp: Option<ChangeStamp>,
}

/// A reply that takes directory entries.
pub(super) trait EntryReply: Send + 'static {
    /// Adds an entry; returns whether the reply is full, in which case the entry was not added.
    fn add_entry(&mut self, context: &MountContext, found: &ReaddirEntry<'_>, offset: u64) -> bool;
    /// Adds `.` or `..`.
    fn add_dots(&mut self, node: NodeId, name: &str, offset: u64) -> bool;
    fn ok(self);
    fn error(self, error: Errno);
}

impl EntryReply for ReplyDirectory {
    fn add_entry(&mut self, context: &MountContext, found: &ReaddirEntry<'_>, offset: u64) -> bool {
        let &ReaddirEntry { directory, entry, .. } = found;
        let number = context.namespace.shown_id(directory, entry);
        self.add(INodeNo(number), offset, file_type(entry.attr.kind), OsStr::new(&entry.name))
    }
    fn add_dots(&mut self, node: NodeId, name: &str, offset: u64) -> bool {
        self.add(INodeNo(node), offset, file_type(FileKind::Directory), name)
    }
    fn ok(self) {
        self.ok();
    }
    fn error(self, error: Errno) {
        self.error(error);
    }
}

impl EntryReply for ReplyDirectoryPlus {
    fn add_entry(&mut self, context: &MountContext, found: &ReaddirEntry<'_>, offset: u64) -> bool {
        let &ReaddirEntry { directory, entry, stamp } = found;
        let name = OsStr::new(&entry.name);
        let (number, full) = match context.namespace.attach(directory, entry, stamp) {
            Some(ListedEntry::Node(stat)) => {
                let (attr, generation) =
                    (file_attr(stat.id, &stat.entry), Generation(stat.generation.into()));
                let number = INodeNo(stat.id);
                (stat.id, self.add(number, offset, name, &stat.entry_timeout, &attr, generation))
            }
            Some(ListedEntry::Name(number)) => {
                let attr = attr_without_node(number, entry.attr.kind);
                (number, self.add(INodeNo(number), offset, name, &Duration::ZERO, &attr, Generation(0)))
            }
            None => return true,
        };
        if full {
            context.namespace.forget(number, 1);
        }
        full
    }
    fn add_dots(&mut self, node: NodeId, name: &str, offset: u64) -> bool {
        let attr = FileAttr { ino: INodeNo(node), kind: file_type(FileKind::Directory), ..no_attr() };
        self.add(INodeNo(node), offset, name, &Duration::ZERO, &attr, Generation(0))
    }
    fn ok(self) {
        self.ok();
    }
    fn error(self, error: Errno) {
        self.error(error);
    }
}

/// A request for entries: its caller, and when it came. A profile counts it when it is dropped.
pub(super) struct ReaddirRequest {
    context: Arc<MountContext>,
    caller: u32,
    arrival: Arrival,
    _profiled: ProfiledRequest,
}

impl ReaddirRequest {
    /// A request that has just come.
    pub(super) fn of(request: &Request, context: &Arc<MountContext>, profiled: ProfiledRequest) -> Self {
        let (caller, arrival) = (request.pid(), Arrival::now());
        Self { context: context.clone(), caller, arrival, _profiled: profiled }
    }
}

/// The tail of a handle while a request reads on. Puts the tail back when the request ends or is
/// dropped.
struct BorrowedTail<'a> {
    handle: &'a DirectoryHandle,
    tail: Option<ListingTail>,
}

impl BorrowedTail<'_> {
    fn get(&mut self) -> &mut ListingTail {
        self.tail.as_mut().expect("is there until this is dropped")
    }
}

impl Drop for BorrowedTail<'_> {
    fn drop(&mut self) {
        *self.handle.tail.lock() = self.tail.take();
    }
}

impl DirectoryHandle {
    pub(super) fn open(context: &MountContext, node: NodeId) -> Result<(Self, FopenFlags), NamespaceError> {
        let opened = context.namespace.open_directory(node)?;
        let flags = if opened.cacheable {
            FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::empty()
        };
        let handle = Self {
            node: opened.node,
            listing: Mutex::new(opened.listing),
            tail: Mutex::new(None),
            is_cacheable: opened.cacheable,
            was_read: AtomicBool::new(false),
        };
        Ok((handle, flags))
    }

    /// Answers one request for the entries behind `offset`.
    pub(super) fn read(self: &Arc<Self>, request: ReaddirRequest, offset: u64, mut reply: impl EntryReply) {
        let context = &request.context;
        let listing = match self.listing(context, offset) {
            Ok(listing) => listing,
            Err(error) => return reply.error(errno(&error)),
        };
        let node = self.node.id();
        let mut index = DirectoryListing::index_at(offset);
        while index < DOT_ENTRIES {
            let (node, name) = if index == 0 { (node, ".") } else { (context.namespace.parent(node), "..") };
            index += 1;
            if reply.add_dots(node, name, listing.offset_after(index)) {
                return reply.ok();
            }
        }
        let has_dots = index > DirectoryListing::index_at(offset);
        match self.try_batch(&listing, index) {
            Some(batch) => self.fill(request, listing, index, batch, has_dots, reply),
            // The kernel sends another request for the rest, which waits.
            None if has_dots => reply.ok(),
            None => self.wait(request, listing, index, reply),
        }
    }

    /// The listing of the handle, the same for all its requests until one goes back to offset 0.
    fn listing(&self, context: &MountContext, offset: u64) -> Result<Arc<DirectoryListing>, NamespaceError> {
        let mut listing = self.listing.lock();
        let again = self.was_read.swap(true, Ordering::Relaxed) && offset == 0;
        match &*listing {
            Some(listing) if !again => Ok(listing.clone()),
            _ => {
                *self.tail.lock() = None;
                Ok(listing.insert(context.namespace.listing(self.node.id())?).clone())
            }
        }
    }

    /// The entries from `index` on, if they are known.
    fn try_batch(
        &self,
        listing: &DirectoryListing,
        index: usize,
    ) -> Option<Result<EntryBatch, NamespaceError>> {
        match listing.try_batch(index - DOT_ENTRIES)? {
            Ok(ListingRead::Batch(batch)) => Some(Ok(batch)),
            Ok(ListingRead::Truncated) => self.tail.lock().as_ref()?.try_batch(index - DOT_ENTRIES).map(Ok),
            Err(error) => Some(Err(error)),
        }
    }

    /// The same, but waits for the filer.
    async fn batch(
        &self,
        context: &MountContext,
        listing: &DirectoryListing,
        index: usize,
    ) -> Result<EntryBatch, NamespaceError> {
        if let ListingRead::Batch(batch) = listing.batch(index - DOT_ENTRIES).await? {
            return Ok(batch);
        }
        let tail = self.tail.lock().take();
        let tail = tail.unwrap_or_else(|| ListingTail::new(self.node.id(), listing));
        // If the request is dropped, the next one continues with the same tail.
        let mut tail = BorrowedTail { handle: self, tail: Some(tail) };
        tail.get().batch(&context.namespace, index - DOT_ENTRIES).await
    }

    fn wait(
        self: &Arc<Self>,
        request: ReaddirRequest,
        listing: Arc<DirectoryListing>,
        index: usize,
        reply: impl EntryReply,
    ) {
        let (handle, context) = (self.clone(), request.context.clone());
        context.spawn(async move {
            let late = |_| {
                Err(NamespaceError::Filer(Arc::from(Box::<dyn Error + Send + Sync>::from(TIMEOUT_MESSAGE))))
            };
            let batch = async {
                let batch = handle.batch(&request.context, &listing, index);
                timeout_at(request.arrival.deadline(FILER_TIMEOUT), batch).await.unwrap_or_else(late)
            };
            let batch = unless_killed(request.caller, batch).await.unwrap_or(Err(NamespaceError::Killed));
            handle.fill(request, listing, index, batch, false, reply);
        });
    }

    /// Fills a reply with the entries from `index` on. `added`: the reply has entries already.
    fn fill(
        self: &Arc<Self>,
        request: ReaddirRequest,
        listing: Arc<DirectoryListing>,
        mut index: usize,
        mut batch: Result<EntryBatch, NamespaceError>,
        mut added: bool,
        mut reply: impl EntryReply,
    ) {
        let (now, context) = (SystemTime::now(), request.context.clone());
        loop {
            let EntryBatch { entries, stamp } = match batch {
                Ok(batch) => batch,
                // Entries before the failure are returned first: an empty reply would mean the
                // end.
                Err(_) if added => return reply.ok(),
                Err(error) => return reply.error(errno(&error)),
            };
            if entries.is_empty() {
                reply.ok();
                if !added && self.is_cacheable {
                    context.namespace.listing_read_to_end(self.node.id(), &listing);
                }
                return;
            }
            for entry in &entries {
                if is_unexpired(entry, now) {
                    let found = ReaddirEntry { directory: self.node.id(), entry, stamp };
                    if reply.add_entry(&context, &found, listing.offset_after(index + 1)) {
                        return reply.ok();
                    }
                    added = true;
                }
                index += 1;
            }
            batch = match self.try_batch(&listing, index) {
                Some(batch) => batch,
                None if added => return reply.ok(),
                // All entries so far have expired, which must not look like the end.
                None => return self.wait(request, listing, index, reply),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::UNIX_EPOCH;

    use futures::future::BoxFuture;
    use futures::stream::BoxStream;
    use futures::{FutureExt, StreamExt};

    use super::super::fuzz::context;
    use super::*;
    use crate::namespace::{ClusterUsage, Filer, FilerFailure, Namespace, NamespaceOptions, ROOT};
    use crate::seaweed::entry::{Attributes, Content};
    use crate::seaweed::filer::FoundEntry;

    const FILES: usize = 10_000;

    fn entry(name: String, kind: FileKind) -> Entry {
        let [mtime, ctime, crtime] = [UNIX_EPOCH; 3];
        let (perm, uid, gid, size, nlink, rdev, inode) = (0o755, 0, 0, 0, 1, 0, 0);
        let attr = Attributes { kind, perm, uid, gid, size, mtime, ctime, crtime, nlink, rdev, inode };
        Entry { name, attr, content: Content::None, xattrs: Arc::from([]), hard_link: None, expires: None }
    }

    /// A filer with one large directory.
    #[derive(Default)]
    struct LargeFiler {
        lists: AtomicUsize,
        /// Whether the filer sends no entries.
        hangs: AtomicBool,
    }

    impl Filer for Arc<LargeFiler> {
        fn lookup(
            &self,
            _: &str,
            _: &str,
            _: Arrival,
        ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
            std::future::ready(Ok(FoundEntry { entry: None, is_followed: true })).boxed()
        }
        fn list(
            &self,
            _: &str,
            after: &str,
            limit: usize,
        ) -> BoxStream<'static, Result<Entry, FilerFailure>> {
            self.lists.fetch_add(1, Ordering::Relaxed);
            if self.hangs.load(Ordering::Relaxed) {
                return futures::stream::pending().boxed();
            }
            let first = after.parse().map_or(0, |last: usize| last + 1);
            let entries = (first..FILES).map(|n| Ok(entry(format!("{n:06}"), FileKind::File)));
            futures::stream::iter(entries.take(limit)).boxed()
        }
        fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
            std::future::ready(Ok(ClusterUsage::default())).boxed()
        }
    }

    #[tokio::test]
    async fn a_dropped_request_in_a_long_listing_keeps_the_tail() {
        let runtime = tokio::runtime::Handle::current();
        let large = Arc::<LargeFiler>::default();
        let filer: Arc<dyn Filer> = Arc::new(large.clone());
        let options = NamespaceOptions { listing_bytes: 0, ..NamespaceOptions::default() };
        let root = entry(String::new(), FileKind::Directory);
        let (namespace, _) = Namespace::new(filer.clone(), root, options, runtime.clone());
        let context = context(namespace, filer, runtime);
        let (handle, _) = DirectoryHandle::open(&context, ROOT).unwrap();
        let listing = handle.listing(&context, 0).unwrap();
        let batch = async |index: usize| handle.batch(&context, &listing, DOT_ENTRIES + index).await;
        let names =
            |batch: EntryBatch| batch.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>();
        let far = names(batch(FILES / 2).await.unwrap());
        assert_eq!(far[0], format!("{:06}", FILES / 2));
        let (next, lists) = (FILES / 2 + far.len(), large.lists.load(Ordering::Relaxed));

        large.hangs.store(true, Ordering::Relaxed);
        assert!(batch(next).now_or_never().is_none(), "the filer sends nothing, and its caller dies");
        large.hangs.store(false, Ordering::Relaxed);
        assert_eq!(names(batch(next).await.unwrap())[0], format!("{next:06}"));
        assert_eq!(large.lists.load(Ordering::Relaxed), lists + 2, "the page is requested again");
    }
}
