//! The file system of `interceptor mount` under raw requests, over a filer in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use rdma_engine::FileId;

use super::context::MountContext;
use super::filesystem::SeaweedFilesystem;
use super::handle_records::HandleRecords;
use super::opens::Opens;
use super::statfs::UsageCache;
use crate::arrival::Arrival;
use crate::cache::Cache;
use crate::fuse::affinity::ThreadAffinity;
use crate::fuse::cpu_latency::CpuLatencyQos;
use crate::fuse::fuzz::FuzzRun;
use crate::fuse::request_tracker::RequestTracker;
use crate::ledger::Ledger;
use crate::namespace::next_files::NextFilePrefetcher;
use crate::namespace::{
    ClusterUsage, Filer, FilerFailure, KernelCache, Namespace, NamespaceOptions, NodeId, invalidate,
};
use crate::priority::Priority;
use crate::read::{FileLayout, FileVersion, Object, ObjectEncoding, Origin, OriginError, ReadError, Reader};
use crate::seaweed::entry::{Attributes, Chunk, Content, Entry, FileKind, RemoteObject};
use crate::seaweed::filer::FoundEntry;
use crate::seaweed::subscribe::{EntryChange, EntryRef};
use crate::telemetry::{Metrics, Source};
use crate::timeline::Timeline;
use crate::write_target::WriteTarget;

/// The size of files that have chunks, and of a chunk, in bytes.
const FILE_SIZE: u64 = 200_000;
const CHUNK_SIZE: u64 = 64_000;

/// Names in each directory of the filer.
const NAMES: [&str; 12] = [
    "plain", "inline", "empty", "sparse", "huge", "damaged", "remote", "link", "pipe", "old", "expiring",
    "dir",
];

fn byte(at: u64) -> u8 {
    (at % 251) as u8
}

fn entry(name: &str, kind: FileKind, size: u64, content: Content) -> Entry {
    let attr = Attributes {
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        size,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        nlink: 1,
        rdev: 0,
        inode: 0,
    };
    Entry { name: name.into(), attr, content, xattrs: Arc::from([]), hard_link: None, expires: None }
}

fn chunk(offset: u64, size: u64) -> Chunk {
    Chunk {
        fid: FileId { volume: 1, key: offset / CHUNK_SIZE + 1, cookie: size as u32 },
        offset,
        size,
        modified_ts_ns: 1,
        cipher_key: None,
        is_compressed: false,
        is_manifest: false,
    }
}

fn chunk_list(size: u64) -> Arc<[Chunk]> {
    (0..size.div_ceil(CHUNK_SIZE))
        .map(|at| chunk(at * CHUNK_SIZE, CHUNK_SIZE.min(size - at * CHUNK_SIZE)))
        .collect()
}

fn chunks(size: u64) -> Content {
    Content::Chunks(chunk_list(size))
}

/// The content of each directory: all kinds of files, and sizes at the edge of integer types.
fn entries() -> Vec<Entry> {
    let largest = i64::MAX as u64;
    let inline = Content::Inline(Bytes::from_static(b"inline content"));
    let mut inline = entry("inline", FileKind::File, 1 << 20, inline);
    inline.xattrs = Arc::from([(Box::from("user.a"), Bytes::from_static(b"value"))]);
    inline.attr.nlink = u32::MAX;
    let far = Content::Chunks([chunk(largest - CHUNK_SIZE, CHUNK_SIZE)].into());
    let mut old = entry("old", FileKind::File, FILE_SIZE, chunks(FILE_SIZE));
    let whole = |seconds| UNIX_EPOCH.checked_sub(Duration::from_secs(seconds)).unwrap();
    (old.attr.mtime, old.attr.ctime) = (whole(i64::MAX as u64), whole(1 << 40));
    old.attr.crtime = UNIX_EPOCH.checked_add(Duration::from_secs(i64::MAX as u64)).unwrap();
    let mut expiring =
        entry("expiring", FileKind::File, 10, Content::Inline(Bytes::from_static(b"0123456789")));
    expiring.expires = Some(SystemTime::now() + Duration::from_secs(2));
    let object = Arc::new(RemoteObject {
        storage: "storage".into(),
        etag: String::new(),
        mtime: i64::MIN,
        size: FILE_SIZE as i64,
        encoding: None,
        changed: UNIX_EPOCH,
    });
    let mut directory = entry("dir", FileKind::Directory, 0, Content::None);
    directory.attr.nlink = 2;
    vec![
        entry("plain", FileKind::File, FILE_SIZE, chunks(FILE_SIZE)),
        inline,
        entry("empty", FileKind::File, 0, Content::None),
        entry("sparse", FileKind::File, largest, Content::Chunks([chunk(0, 10)].into())),
        entry("huge", FileKind::File, largest, far),
        entry("damaged", FileKind::File, largest, Content::Damaged { reason: "test".into() }),
        entry("remote", FileKind::File, FILE_SIZE, Content::Remote(object)),
        entry("link", FileKind::Symlink, 5, Content::Target("plain".into())),
        entry("pipe", FileKind::NamedPipe, 0, Content::None),
        old,
        expiring,
        directory,
    ]
}

/// A filer whose directories all have the same content, some levels deep. Entries change from time
/// to time.
struct FilerContent {
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Whether requests fail.
    is_away: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error("away")]
struct Away;

struct MemoryFiler(Arc<FilerContent>);

impl MemoryFiler {
    fn failure(&self) -> Option<FilerFailure> {
        self.0.is_away.load(Ordering::Relaxed).then(|| Arc::new(Away) as FilerFailure)
    }
}

impl Filer for MemoryFiler {
    fn lookup(
        &self,
        directory: &str,
        name: &str,
        _: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
        let failure = self.failure();
        let is_deep = directory.matches('/').count() > 4 && name == "dir";
        let entry = self.0.entries.lock().get(name).filter(|_| !is_deep).cloned();
        async move {
            tokio::task::yield_now().await;
            failure.map_or(Ok(FoundEntry { entry, is_followed: true }), Err)
        }
        .boxed()
    }

    fn list(&self, _: &str, after: &str, limit: usize) -> BoxStream<'static, Result<Entry, FilerFailure>> {
        let entries = self.0.entries.lock();
        let rest = entries.values().filter(|entry| entry.name.as_str() > after);
        let rest: Vec<_> = rest.take(limit).cloned().map(Ok).collect();
        let failure = self.failure().map(Err);
        futures::stream::iter(rest).chain(futures::stream::iter(failure)).boxed()
    }

    fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
        async { Ok(ClusterUsage { total: u64::MAX, used: u64::MAX, files: u64::MAX }) }.boxed()
    }
}

/// The bytes of the files; one request in 16 fails.
#[derive(Default)]
struct MemoryOrigin(AtomicU64);

impl Origin for MemoryOrigin {
    fn resolve<'a>(
        &'a self,
        file: &'a FileVersion,
        _: Arrival,
    ) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        async {
            if !file.path().ends_with("remote") {
                return Err(ReadError::Damaged("test".into()));
            }
            let object = |Chunk { fid, offset, size, modified_ts_ns, .. }: &Chunk| Object {
                id: (*fid).into(),
                offset: *offset,
                size: *size,
                modified_ts_ns: *modified_ts_ns,
                encoding: ObjectEncoding::default(),
            };
            let objects: Box<[Object]> = chunk_list(FILE_SIZE).iter().map(object).collect();
            Ok(FileLayout::in_order(objects, FILE_SIZE))
        }
        .boxed()
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        _: &'a Priority,
        _: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            tokio::task::yield_now().await;
            if self.0.fetch_add(1, Ordering::Relaxed) % 16 == 15 {
                return Err(Arc::new(Away) as OriginError);
            }
            let begin = object.offset + offset;
            for (at, slot) in (begin..).zip(dst.bytes()) {
                *slot = byte(at);
            }
            Ok(Source::Http)
        }
        .boxed()
    }
}

/// A change of an entry of the root.
fn changed(old: Option<Entry>, new: Option<Entry>) -> EntryChange {
    let side = |entry| EntryRef { directory: "/".into(), entry };
    EntryChange { ts_ns: 0, old: old.map(side), new: new.map(side) }
}

/// Replaces and deletes entries, and makes the filer go away and come back, until `ended`.
async fn change(memory: Arc<FilerContent>, namespace: Arc<Namespace>, ended: Arc<AtomicBool>) {
    let (all, mut step) = (entries(), 0usize);
    while !ended.load(Ordering::Relaxed) {
        step += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
        let mut new = all[step % all.len()].clone();
        new.attr.mtime += Duration::from_nanos(step as u64 % 3);
        let old = memory.entries.lock().insert(new.name.clone(), new.clone());
        if step.is_multiple_of(5) {
            memory.entries.lock().remove(&new.name);
            namespace.apply(&changed(old, None));
        } else {
            namespace.apply(&changed(old, Some(new)));
        }
        match step % 200 {
            150 => {
                memory.is_away.store(true, Ordering::Relaxed);
                namespace.disconnected();
            }
            180 => {
                memory.is_away.store(false, Ordering::Relaxed);
                namespace.connected();
            }
            _ => {}
        }
    }
    memory.is_away.store(false, Ordering::Relaxed);
}

/// The parts of a mount without passthrough.
pub(super) fn context(
    namespace: Arc<Namespace>,
    filer: Arc<dyn Filer>,
    runtime: tokio::runtime::Handle,
) -> Arc<MountContext> {
    let metrics = Metrics::new();
    let cache = Arc::new(Cache::new(16 << 20).unwrap());
    let origin = Arc::new(MemoryOrigin::default());
    let reader = Reader::new(cache, origin, metrics.clone(), runtime.clone());
    let ledger = namespace.ledger();
    Arc::new(MountContext {
        namespace,
        next_files: NextFilePrefetcher::new(&reader),
        reader,
        usage: UsageCache::new(filer, runtime.clone()),
        runtime,
        requests: RequestTracker::new(ThreadAffinity::new(true), CpuLatencyQos::new(false, &metrics)),
        metrics,
        wants_passthrough: false,
        passthrough_offered: AtomicBool::new(false),
        checks_attributes: AtomicBool::new(false),
        opens: std::sync::OnceLock::from(Opens::new()),
        handles: HandleRecords::new(ledger.clone()),
        ledger,
        device: std::sync::OnceLock::new(),
        page_cache: std::sync::OnceLock::new(),
        status_api: Arc::default(),
        tickets: Arc::default(),
    })
}

/// What the ledger may take, in bytes: the names that are cached as absent, above all.
const MAX_LEDGER: usize = 512 << 20;

/// A kernel that has nothing to drop: the simulated one asks for everything anew.
struct ForgetfulKernel;

impl KernelCache for ForgetfulKernel {
    fn inval_entry(&self, _: NodeId, _: &str) {}
    fn inval_inode_attr(&self, _: NodeId) {}
    fn inval_dir(&self, _: NodeId) {}
    fn delete(&self, _: NodeId, _: NodeId, _: &str) {}
    fn prune(&self, _: &[NodeId]) {}
    fn knows(&self, _: NodeId) -> bool {
        false
    }
}

#[test]
fn a_mount_survives_any_request() {
    let run = FuzzRun::begin();
    let runtime = &run.runtime;
    let known = entries().into_iter().map(|entry| (entry.name.clone(), entry)).collect();
    let memory = Arc::new(FilerContent { entries: Mutex::new(known), is_away: AtomicBool::new(false) });
    let filer: Arc<dyn Filer> = Arc::new(MemoryFiler(memory.clone()));
    let mut root = entry("", FileKind::Directory, 0, Content::None);
    root.attr.nlink = 2;
    // Without one, handles have no numbers.
    let ledger = Ledger::create(MAX_LEDGER).unwrap();
    let (options, handle) = (NamespaceOptions::default(), runtime.handle().clone());
    let (namespace, queue) = Namespace::with_ledger(filer.clone(), root, options, handle, ledger.clone());
    // What waits in the queue keeps nodes.
    invalidate::spawn(queue, Arc::new(ForgetfulKernel), ledger.clone()).unwrap();
    namespace.connected();
    let context = context(namespace.clone(), filer, runtime.handle().clone());
    let ended = Arc::new(AtomicBool::new(false));
    let changing = runtime.spawn(change(memory.clone(), namespace.clone(), ended.clone()));
    let handles = context.clone();
    let plain = || {
        ended.store(true, Ordering::Relaxed);
        runtime.block_on(changing).unwrap();
        let content: Vec<u8> = (0..60_000).map(byte).collect();
        let fresh = entry("fresh", FileKind::File, 60_000, chunks(60_000));
        memory.entries.lock().insert("fresh".into(), fresh.clone());
        namespace.connected();
        namespace.apply(&changed(None, Some(fresh)));
        ("fresh".into(), content)
    };
    run.fuzz(SeaweedFilesystem::new(context), &NAMES, plain, || handles.handles.open_count());
    assert!(ledger.is_complete(), "the ledger is full");
}
