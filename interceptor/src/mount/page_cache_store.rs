//! Stores hot ranges into the mount's page cache as a whole.
//!
//! Reads of a hot range mostly hit the page cache, and the daemon does not see them. A READ
//! request for a hot range shows that pages of it are missing: they were never read, or the kernel
//! evicted them. Then one `FUSE_NOTIFY_STORE` puts the whole range into the page cache, instead of
//! one answer for each missing page.
//!
//! ```text
//!  eBPF: range is hot ──► FileVersion ──┐
//!  FUSE_READ in that range ────────────►┴─► queue ──► thread `fuse-push` ──► FUSE_NOTIFY_STORE
//! ```
//!
//! Without this the row `hot-part-64k` of the benchmark is 46 % slower.
//!
//! The notification names a node by its number, and is sent when the queue has been worked off: by
//! then the kernel may have forgotten the node, and the number may stand for another version. So a
//! queued request pins its node, which keeps the number from being reused, and is dropped if the
//! node stands for another version by then.
//!
//! Storing has a thread of its own, because the kernel lets it wait for pages that are being read,
//! which request threads have to answer.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use fuser::{INodeNo, Notifier, OpenFlags};
use parking_lot::{Condvar, Mutex};

use crate::namespace::{Namespace, NodeId, NodePin};
use crate::read::{FileVersion, Reader};
use crate::vital::contained;

/// Ranges that may be queued; more are dropped, as the kernel is busy enough with its own
/// requests.
const QUEUE_CAPACITY: usize = 64;

/// The kernel's pages of files.
trait PageCache: Send + 'static {
    /// Stores bytes of a node.
    fn store(&self, node: NodeId, offset: u64, data: &[u8]) -> io::Result<()>;
}

impl PageCache for Notifier {
    fn store(&self, node: NodeId, offset: u64, data: &[u8]) -> io::Result<()> {
        Notifier::store(self, INodeNo(node), offset, data)
    }
}

/// Queues ranges to store. Dropping it ends the thread.
pub(super) struct PageCacheStore {
    namespace: Arc<Namespace>,
    queue: SyncSender<StoreRequest>,
    ongoing: Arc<OngoingStore>,
}

struct StoreRequest {
    node: NodePin,
    version: Arc<FileVersion>,
    range: Range<u64>,
}

/// The node of which a range is being stored, from before its version is compared.
#[derive(Default)]
struct OngoingStore {
    node: Mutex<Option<NodeId>>,
    changed: Condvar,
}

impl OngoingStore {
    fn set(&self, node: Option<NodeId>) {
        *self.node.lock() = node;
        self.changed.notify_all();
    }
}

impl PageCacheStore {
    /// Starts the thread, which takes the bytes from `reader`.
    pub(super) fn start(
        namespace: Arc<Namespace>,
        notifier: Notifier,
        reader: Arc<Reader>,
    ) -> io::Result<Self> {
        let (page_cache, requests) = Self::new(namespace);
        let ongoing = page_cache.ongoing.clone();
        std::thread::Builder::new()
            .name("fuse-push".into())
            .spawn(move || run(&requests, &ongoing, &notifier, &reader))?;
        Ok(page_cache)
    }

    fn new(namespace: Arc<Namespace>) -> (Self, Receiver<StoreRequest>) {
        let (queue, requests) = sync_channel(QUEUE_CAPACITY);
        (Self { namespace, queue, ongoing: Arc::default() }, requests)
    }

    /// Waits until no range is being stored of a version that `node` stood for before this call.
    /// Blocks as long as the kernel does.
    pub(super) fn wait_until_idle(&self, node: NodeId) {
        let mut current = self.ongoing.node.lock();
        self.ongoing.changed.wait_while(&mut current, |current| *current == Some(node));
    }

    /// Notes a READ request for `version` from `offset` on, of a file that was opened with
    /// `flags`. Does not block.
    pub(super) fn on_read(&self, node: NodeId, version: &Arc<FileVersion>, offset: u64, flags: OpenFlags) {
        if flags.0 & libc::O_DIRECT != 0 {
            return;
        }
        if let Some(range) = version.activity().kernel_hints().take_hot_range(offset)
            && let Some(node) = self.namespace.pin(node)
        {
            let request = StoreRequest { node, version: version.clone(), range };
            if self.queue.try_send(request).is_err() {
                tracing::debug!(path = version.path(), "a hot range is not given to the page cache");
            }
        }
    }
}

fn run(requests: &Receiver<StoreRequest>, ongoing: &OngoingStore, pages: &impl PageCache, reader: &Reader) {
    while let Ok(request) = requests.recv() {
        ongoing.set(Some(request.node.id()));
        contained(|| store(request, pages, reader));
        ongoing.set(None);
    }
}

fn store(StoreRequest { node, version, range }: StoreRequest, pages: &impl PageCache, reader: &Reader) {
    if !node.stands_for(&version) {
        return;
    }
    let Some(data) = reader.cached_range(&version, &range) else {
        // The range is being fetched, or found no room in the cache. Its next read tries again.
        return version.activity().kernel_hints().note_hot_range(range);
    };
    match pages.store(node.id(), range.start, &data) {
        Ok(()) => reader.metrics().pushed(data.len() as u64),
        // The kernel has no memory for the range, or has forgotten the file.
        Err(error) => {
            tracing::debug!(%error, path = version.path(), "the page cache did not take a hot range")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use futures::stream::BoxStream;
    use futures::{FutureExt, StreamExt};

    use super::*;
    use crate::arrival::Arrival;
    use crate::cache::{Cache, MIN_CAPACITY};
    use crate::namespace::{
        ClusterUsage, Filer, FilerFailure, LookupResult, NamespaceOptions, NowOrLater, ROOT,
    };
    use crate::priority::Priority;
    use crate::read::{FileLayout, Object, Origin, OriginError, ReadError};
    use crate::seaweed::entry::{Attributes, Content, Entry, FileKind};
    use crate::seaweed::filer::FoundEntry;
    use crate::telemetry::{Metrics, Source};
    use crate::timeline::Timeline;
    use crate::write_target::WriteTarget;

    fn entry(name: &str, kind: FileKind, content: Content, size: u64) -> Entry {
        let (mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
        // A file that is replaced keeps its inode number in the filer.
        let (perm, uid, gid, nlink, rdev, inode) = (0o644, 0, 0, 1, 0, 77);
        let attr = Attributes { kind, perm, uid, gid, size, mtime, ctime, crtime, nlink, rdev, inode };
        let (name, xattrs) = (name.into(), Arc::from([]));
        Entry { name, attr, content, xattrs, hard_link: None, expires: None }
    }

    fn file(byte: u8) -> Entry {
        let content = Content::Inline(Bytes::from(vec![byte; 4096]));
        entry("f", FileKind::File, content, 4096)
    }

    /// A filer with one file.
    struct OneFile(Mutex<Entry>);

    impl Filer for Arc<OneFile> {
        fn lookup(
            &self,
            _: &str,
            _: &str,
            _: Arrival,
        ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
            let entry = Some(self.0.lock().clone());
            std::future::ready(Ok(FoundEntry { entry, is_followed: true })).boxed()
        }
        fn list(&self, _: &str, _: &str, _: usize) -> BoxStream<'static, Result<Entry, FilerFailure>> {
            futures::stream::empty().boxed()
        }
        fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
            std::future::ready(Ok(ClusterUsage::default())).boxed()
        }
    }

    /// Inline content needs no origin.
    struct NoOrigin;

    impl Origin for NoOrigin {
        fn resolve<'a>(
            &'a self,
            _: &'a FileVersion,
            _: Arrival,
        ) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
            unreachable!("all layouts are known")
        }
        fn read<'a>(
            &'a self,
            _: &'a Object,
            _: u64,
            _: &'a mut dyn WriteTarget,
            _: &'a Priority,
            _: &'a Timeline,
        ) -> BoxFuture<'a, Result<Source, OriginError>> {
            unreachable!("there is no object")
        }
    }

    /// Records what is stored, by node.
    #[derive(Default)]
    struct RecordedPages(Mutex<Vec<(NodeId, Vec<u8>)>>);

    impl PageCache for Arc<RecordedPages> {
        fn store(&self, node: NodeId, _: u64, data: &[u8]) -> io::Result<()> {
            self.0.lock().push((node, data.to_vec()));
            Ok(())
        }
    }

    struct Fixture {
        filer: Arc<OneFile>,
        namespace: Arc<Namespace>,
        reader: Arc<Reader>,
    }

    fn fixture() -> Fixture {
        let runtime = tokio::runtime::Handle::current();
        let filer = Arc::new(OneFile(Mutex::new(file(1))));
        let root = entry("", FileKind::Directory, Content::None, 0);
        let options = NamespaceOptions::default();
        let (namespace, _) = Namespace::new(Arc::new(filer.clone()), root, options, runtime.clone());
        let cache = Arc::new(Cache::new(MIN_CAPACITY).unwrap());
        let reader = Reader::new(cache, Arc::new(NoOrigin), Metrics::new(), runtime);
        Fixture { filer, namespace, reader }
    }

    impl Fixture {
        async fn lookup(&self) -> NodeId {
            let found = match self.namespace.lookup(ROOT, "f") {
                NowOrLater::Now(found) => found,
                NowOrLater::Later(found) => found.await,
            };
            match found {
                Ok(LookupResult::Node(stat)) => stat.id,
                other => panic!("{other:?}"),
            }
        }

        /// The file is replaced; the kernel forgets it and looks it up again.
        async fn replace(&self, node: NodeId) -> NodeId {
            *self.filer.0.lock() = file(2);
            self.namespace.forget(node, 1);
            self.lookup().await
        }
    }

    #[tokio::test]
    async fn a_late_store_never_gives_a_node_the_bytes_of_another_version() {
        let fixture = fixture();
        let (page_cache, requests) = PageCacheStore::new(fixture.namespace.clone());
        let node = fixture.lookup().await;
        let version = fixture.namespace.version(node).unwrap();
        version.activity().kernel_hints().note_hot_range(0..4096);
        page_cache.on_read(node, &version, 0, OpenFlags(libc::O_RDONLY));
        // The file is replaced while the request is queued.
        let other = fixture.replace(node).await;
        drop(page_cache);
        let pages = Arc::new(RecordedPages::default());
        run(&requests, &OngoingStore::default(), &pages, &fixture.reader);
        let stored = std::mem::take(&mut *pages.0.lock());
        assert!(stored.iter().all(|(node, _)| *node != other), "the new node has bytes of the old version");
        // Without queued requests the number is free.
        fixture.namespace.forget(other, 1);
        assert_eq!(fixture.lookup().await, node);
    }

    #[tokio::test]
    async fn a_hot_range_is_stored_into_the_node_that_was_read() {
        let fixture = fixture();
        let (page_cache, requests) = PageCacheStore::new(fixture.namespace.clone());
        let node = fixture.lookup().await;
        let version = fixture.namespace.version(node).unwrap();
        version.activity().kernel_hints().note_hot_range(0..4096);
        page_cache.on_read(node, &version, 100, OpenFlags(libc::O_RDONLY | libc::O_DIRECT));
        page_cache.on_read(node, &version, 100, OpenFlags(libc::O_RDONLY));
        page_cache.on_read(node, &version, 200, OpenFlags(libc::O_RDONLY));
        drop(page_cache);
        let pages = Arc::new(RecordedPages::default());
        run(&requests, &OngoingStore::default(), &pages, &fixture.reader);
        assert_eq!(*pages.0.lock(), [(node, vec![1; 4096])]);
    }

    /// Panics at the first store.
    struct PanickingPages(Mutex<bool>, Arc<RecordedPages>);

    impl PageCache for PanickingPages {
        fn store(&self, node: NodeId, offset: u64, data: &[u8]) -> io::Result<()> {
            assert!(std::mem::replace(&mut *self.0.lock(), true), "test");
            self.1.store(node, offset, data)
        }
    }

    #[tokio::test]
    async fn a_panic_loses_one_range() {
        let fixture = fixture();
        let (page_cache, requests) = PageCacheStore::new(fixture.namespace.clone());
        let node = fixture.lookup().await;
        let version = fixture.namespace.version(node).unwrap();
        for _ in 0..2 {
            version.activity().kernel_hints().note_hot_range(0..4096);
            page_cache.on_read(node, &version, 0, OpenFlags(libc::O_RDONLY));
        }
        drop(page_cache);
        let pages = Arc::new(RecordedPages::default());
        run(
            &requests,
            &OngoingStore::default(),
            &PanickingPages(Mutex::new(false), pages.clone()),
            &fixture.reader,
        );
        assert_eq!(pages.0.lock().len(), 1);
    }
}
