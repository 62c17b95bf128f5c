//! Reads of made-up files, compared with the same bytes painted into an array.

mod disk;
mod kernel_hints;
mod warm;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use rdma_engine::FileId;
use tokio::runtime::Runtime;

use super::seaweedfs::chunks;
use super::seaweedfs::resolve::{self, ChunkLists};
use super::*;

mod residency;

use crate::arrival::Arrival;
use crate::cache::BlockKey;
use crate::cache::resident::ResidentError;
use crate::priority::Priority;
use crate::seaweed::entry::{Attributes, Chunk, Content, Entry, FileKind, RemoteObject};
use crate::timeline::Timeline;
use crate::write_target::WriteTarget;

/// Holds needles in memory, and counts the requests for them.
#[derive(Default)]
struct Needles {
    data: Mutex<HashMap<FileId, Vec<u8>>>,
    manifests: Mutex<HashMap<FileId, Vec<Chunk>>>,
    /// The remote object, and its entry once the cluster has a copy.
    remote: Mutex<Option<(RemoteObject, Entry)>>,
    /// Manifests that list ciphertext.
    encrypted: Mutex<HashSet<FileId>>,
    failing: AtomicBool,
    /// While set, speculative fetches wait, as they would behind others at a full server.
    crowded: AtomicBool,
    /// Speculative fetches that wait.
    waiting: AtomicUsize,
    fetches: AtomicUsize,
    /// When the reader arrived that the last chunk was fetched for.
    demanded: Mutex<Option<Arrival>>,
    /// When the cluster had its copy of the remote object.
    brought: Mutex<Option<Arrival>>,
    /// Requests for manifests.
    lists: AtomicUsize,
}

#[derive(Debug, thiserror::Error)]
#[error("no such needle")]
struct Missing;

/// Is counted for as long as it lives.
struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Needles {
    /// Chunks with these offsets, lengths, and bytes in their needles beyond that, each newer than
    /// the one before; and the `size` bytes of the file that has them.
    fn paint(&self, list: Vec<(u64, u64, u64)>, size: u64) -> (Vec<Chunk>, Vec<u8>) {
        let mut painted = vec![0u8; size as usize];
        let mut chunks = Vec::new();
        for (i, (offset, len, extra)) in list.into_iter().enumerate() {
            let chunk = self.chunk(i as u64 + 1, offset, len, i as i64, extra);
            let needle = self.data.lock()[&chunk.fid].clone();
            for at in offset..(offset + len).min(size) {
                painted[at as usize] = needle[(at - offset) as usize];
            }
            chunks.push(chunk);
        }
        (chunks, painted)
    }
}

impl Origin for Needles {
    fn resolve<'a>(
        &'a self,
        file: &'a FileVersion,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        resolve::resolve(self, file, arrival).boxed()
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        priority: &'a Priority,
        _: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            *self.demanded.lock() = priority.demanded_at();
            tokio::task::yield_now().await;
            if self.crowded.load(Ordering::Relaxed) {
                let _waits = Waits::new(&self.waiting);
                priority.raised().await;
            }
            if self.failing.load(Ordering::Relaxed) {
                return Err(Arc::new(Missing) as OriginError);
            }
            let dst = dst.bytes();
            assert!(offset + dst.len() as u64 <= object.size, "asked beyond the object");
            let data = self.data.lock();
            let needle =
                data.get(&chunks::file_id(object.id)).ok_or_else(|| Arc::new(Missing) as OriginError)?;
            dst.copy_from_slice(&needle[offset as usize..][..dst.len()]);
            Ok(Source::Http)
        }
        .boxed()
    }
}

impl ChunkLists for Needles {
    fn read_manifest<'a>(
        &'a self,
        chunk: &'a Chunk,
        _: Arrival,
    ) -> BoxFuture<'a, Result<Vec<Chunk>, ReadError>> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        if self.encrypted.lock().contains(&chunk.fid) {
            return async { Err(ReadError::Encrypted("chunk manifest".into())) }.boxed();
        }
        async move {
            tokio::task::yield_now().await;
            let found = self.manifests.lock().get(&chunk.fid).cloned();
            found.ok_or_else(|| ReadError::Origin(Arc::new(Missing)))
        }
        .boxed()
    }

    fn cache_remote<'a>(
        &'a self,
        _path: &'a str,
        object: &'a RemoteObject,
    ) -> BoxFuture<'a, Result<Option<Entry>, OriginError>> {
        let answer = match &*self.remote.lock() {
            None => Err(Arc::new(Missing) as OriginError),
            Some((state, copy)) => Ok((state == object).then(|| copy.clone())),
        };
        async {
            *self.brought.lock() = Some(Arrival::now());
            answer
        }
        .boxed()
    }
}

impl Needles {
    /// A needle of pseudo-random bytes, `extra` more than the chunk covers.
    fn chunk(&self, key: u64, offset: u64, size: u64, modified_ts_ns: i64, extra: u64) -> Chunk {
        let fid = FileId { volume: 1, key, cookie: 1 };
        let bytes = (0..size + extra).map(|i| (key * 131 + i * 7 + i / 251) as u8).collect();
        self.data.lock().insert(fid, bytes);
        Chunk {
            fid,
            offset,
            size,
            modified_ts_ns,
            cipher_key: None,
            is_compressed: false,
            is_manifest: false,
        }
    }

    /// A manifest in place of `children`.
    fn fold(&self, key: u64, children: Vec<Chunk>) -> Chunk {
        let fid = FileId { volume: 2, key, cookie: 1 };
        let offset = children.iter().map(|c| c.offset).min().unwrap_or(0);
        let end = children.iter().map(|c| c.offset + c.size).max().unwrap_or(0);
        self.manifests.lock().insert(fid, children);
        Chunk {
            fid,
            offset,
            size: end - offset,
            modified_ts_ns: 0,
            cipher_key: None,
            is_compressed: false,
            is_manifest: true,
        }
    }
}

fn object() -> Arc<RemoteObject> {
    Arc::new(RemoteObject {
        storage: "s".into(),
        etag: "a".into(),
        mtime: 7,
        size: 1000,
        encoding: None,
        changed: SystemTime::UNIX_EPOCH,
    })
}

fn version(content: Content, size: u64) -> Arc<FileVersion> {
    FileVersion::new("/f", Arc::new(entry(content, size)))
}

/// The content that the entry of `version` tells.
fn content(version: &FileVersion) -> Content {
    version.origin_file::<Entry>().unwrap().content.clone()
}

fn entry(content: Content, size: u64) -> Entry {
    let attr = Attributes {
        kind: FileKind::File,
        perm: 0o644,
        uid: 0,
        gid: 0,
        size,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        nlink: 1,
        rdev: 0,
        inode: 0,
    };
    Entry { name: "f".into(), attr, content, xattrs: Arc::new([]), hard_link: None, expires: None }
}

struct Mounted {
    runtime: Runtime,
    needles: Arc<Needles>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    reader: Arc<Reader>,
}

impl Mounted {
    fn new(needles: Needles) -> Self {
        Self::with_cache(needles, crate::cache::MIN_CAPACITY)
    }

    /// With a cache of `capacity` bytes.
    fn with_cache(needles: Needles, capacity: u64) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let needles = Arc::new(needles);
        let cache = Arc::new(Cache::new(capacity).unwrap());
        let metrics = Metrics::new();
        let reader = Reader::new(cache.clone(), needles.clone(), metrics.clone(), runtime.handle().clone());
        Self { runtime, needles, cache, metrics, reader }
    }

    fn read(&self, file: &Arc<FileVersion>, offset: u64, len: usize) -> Result<ReadData, ReadError> {
        match self.reader.read(file, offset, len, 0) {
            ReadReply::Ready(data) => Ok(data),
            ReadReply::Pending(rest) => self.runtime.block_on(rest),
        }
    }
}

#[test]
fn a_second_read_is_answered_at_once() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 100_000, 1, 0);
    let file = version(Content::Chunks(Arc::new([chunk])), 100_000);
    let mounted = Mounted::new(needles);
    let first = mounted.read(&file, 0, 4096).unwrap();
    assert!(matches!(mounted.reader.read(&file, 4096, 4096, 0), ReadReply::Ready(_)));
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 1);
    assert_eq!(first.len(), 4096);
    let totals = mounted.metrics.totals();
    assert_eq!(totals.reads[Source::Http as usize].bytes, 4096);
    assert_eq!(totals.reads[Source::Cache as usize].bytes, 4096);
}

#[test]
fn a_chunk_too_large_for_the_cache_is_fetched_once_for_its_readers() {
    let needles = Needles::default();
    let size = crate::cache::MIN_CAPACITY / 2;
    let chunk = |key, offset| Chunk { is_compressed: true, ..needles.chunk(key, offset, size, 1, 0) };
    let file = version(Content::Chunks(Arc::new([chunk(1, 0), chunk(2, size)])), 2 * size);
    let mounted = Mounted::new(needles);
    let slow_reads = mounted.metrics.slow_reads();
    slow_reads.set_threshold(Duration::ZERO);
    // Two readers. One is ahead, and comes to the next chunk first.
    for step in 0..(2 * size) >> 17 {
        for at in [step << 17, (step << 17) + (1 << 20)].into_iter().filter(|at| at + (1 << 17) <= 2 * size) {
            let data = mounted.read(&file, at, 1 << 17).unwrap();
            let (key, within) = (1 + at / size, at % size);
            assert_eq!(data[0], (key * 131 + within * 7 + within / 251) as u8);
        }
    }
    assert_eq!(mounted.needles.fetches.load(Ordering::Relaxed), 2, "one for each chunk");
    let first = slow_reads.last().pop().unwrap();
    assert!(first.steps[0].note.as_ref().unwrap().contains("not kept"), "{first:?}");
}

#[test]
fn a_chunk_read_at_random_again_and_again_is_fetched_whole() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 4 << 20, 1, 0);
    let whole =
        BlockKey { object: chunk.fid.into(), object_size: chunk.size, part: crate::cache::BlockPart::Whole };
    let file = version(Content::Chunks(Arc::new([chunk])), 4 << 20);
    // Speculation may fill a sixteenth of the cache, and the whole chunk has to fit beside the
    // read that asks for it.
    let mounted = Mounted::with_cache(needles, 128 << 20);
    // No four of these places make equal steps, and none comes shortly after another.
    for place in [40, 39, 37, 36, 31, 30, 28, 27, 13, 12, 10, 9, 4, 3, 1, 0u64] {
        mounted.read(&file, place * 65536, 4096).unwrap();
        assert!(!mounted.cache.contains(&whole) && mounted.reader.loader.inflight(&whole).is_none());
    }
    mounted.read(&file, 60 * 65536, 4096).unwrap();
    match mounted.reader.loader.inflight(&whole) {
        Some(outcome) => drop(mounted.runtime.block_on(outcome).unwrap()),
        None => assert!(mounted.cache.contains(&whole), "the chunk should be on its way or there"),
    }
    assert!(matches!(mounted.reader.read(&file, 1 << 20, 1 << 20, 0), ReadReply::Ready(_)));
}

#[test]
fn a_failed_fetch_is_eio_and_the_next_read_tries_again() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 1000, 1, 0);
    let file = version(Content::Chunks(Arc::new([chunk])), 1000);
    let mounted = Mounted::new(needles);
    mounted.needles.failing.store(true, Ordering::Relaxed);
    assert_eq!(mounted.read(&file, 0, 10).unwrap_err().errno(), libc::EIO);
    mounted.needles.failing.store(false, Ordering::Relaxed);
    assert_eq!(mounted.read(&file, 0, 10).unwrap().len(), 10);
}

#[test]
fn a_remote_object_is_read_as_it_was_opened_or_not_at_all() {
    let needles = Needles::default();
    let copy = |size| Content::Chunks(Arc::new([needles.chunk(size, 0, size, 1, 0)]));
    let (same, shorter) = (entry(copy(1000), 1000), entry(copy(500), 500));
    let other = RemoteObject { etag: "b".into(), ..(*object()).clone() };
    let mounted = Mounted::new(needles);
    let file = version(Content::Remote(object()), 1000);
    let read = |remote: (RemoteObject, &Entry)| {
        *mounted.needles.remote.lock() = Some((remote.0, remote.1.clone()));
        mounted.read(&file, 0, 1000).map(|data| data.len()).map_err(|error| error.errno())
    };
    assert_eq!(mounted.read(&file, 0, 1000).unwrap_err().errno(), libc::EIO, "there is none");
    assert_eq!(read((other.clone(), &same)), Err(libc::ESTALE), "another state of the same size");
    assert_eq!(read(((*object()).clone(), &shorter)), Err(libc::ESTALE), "truncated in the cluster");
    assert_eq!(read(((*object()).clone(), &same)), Ok(1000));
    // Otherwise the time that the cluster took would be missing for the chunks.
    let (demanded, brought) = (*mounted.needles.demanded.lock(), *mounted.needles.brought.lock());
    assert!(demanded.is_some() && demanded >= brought, "its chunks count from then on");
    assert_eq!(read((other, &shorter)), Ok(1000), "what was read once is kept in mind");
}

#[test]
fn ciphertext_of_the_s3_gateway_is_never_the_answer() {
    let reason = Box::<str>::from("chunk record 0: ...");
    let file = version(Content::Encrypted { reason }, 1000);
    let mounted = Mounted::new(Needles::default());
    assert_eq!(file.refusal().unwrap().errno(), libc::ENOKEY);
    assert_eq!(mounted.read(&file, 0, 10).unwrap_err().errno(), libc::ENOKEY);
    assert!(file.activity().is_first_refusal() && !file.activity().is_first_refusal());

    // Ciphertext that only a manifest tells of.
    let needles = Needles::default();
    let plain = needles.chunk(1, 0, 1000, 1, 0);
    let manifest = needles.fold(2, vec![needles.chunk(3, 1000, 1000, 1, 0)]);
    needles.encrypted.lock().insert(manifest.fid);
    let file = version(Content::Chunks(Arc::new([plain, manifest])), 2000);
    let mounted = Mounted::new(needles);
    assert!(file.refusal().is_none());
    assert_eq!(mounted.read(&file, 0, 10).unwrap_err().errno(), libc::ENOKEY);
}

#[test]
fn sequential_reading_is_fetched_ahead_within_the_fill_budget() {
    let needles = Needles::default();
    let chunks: Vec<_> = (0..64).map(|i| needles.chunk(i + 1, i << 20, 1 << 20, 1, 0)).collect();
    let file = version(Content::Chunks(chunks.into()), 64 << 20);
    let mounted = Mounted::new(needles);
    let mut read = 0;
    while read < 64 << 20 {
        let data = mounted.read(&file, read, 1 << 20).unwrap();
        assert_eq!(data[5], ((read / (1 << 20) + 1) * 131 + 35) as u8);
        read += data.len() as u64;
        let usage = mounted.cache.usage();
        assert!(usage.used <= usage.capacity, "{usage:?}");
    }
    let fetched = mounted.needles.fetches.load(Ordering::Relaxed);
    assert!((64..=72).contains(&fetched), "{fetched} fetches of 64 chunks");
    drop(mounted);
}

/// The blocks ahead of a stream are stuck as speculation. A reader that comes to them gets them
/// all the same. When the version is forgotten, the other fetches are cancelled and their memory
/// is free.
#[test]
fn speculation_is_joined_or_given_up() {
    let needles = Needles::default();
    let chunks: Vec<_> = (0..16).map(|i| needles.chunk(i + 1, i << 20, 1 << 20, 1, 0)).collect();
    let file = version(Content::Chunks(chunks.into()), 16 << 20);
    let mounted = Mounted::new(needles);
    mounted.needles.crowded.store(true, Ordering::Relaxed);
    let waiting = || mounted.needles.waiting.load(Ordering::SeqCst);
    for block in 0..4 {
        let data = mounted.read(&file, block << 20, 1 << 20).unwrap();
        assert_eq!(data[5], ((block + 1) * 131 + 35) as u8);
    }
    while waiting() == 0 {
        std::thread::yield_now();
    }
    drop(file);
    while waiting() > 0 {
        std::thread::yield_now();
    }
    // The pieces that were read are all that is left.
    while mounted.cache.usage().allocated > 4 << 20 {
        std::thread::yield_now();
    }
}

#[test]
fn a_chunk_larger_than_any_needle_is_refused() {
    let needles = Needles::default();
    let mut chunk = needles.chunk(1, 0, 10, 1, 0);
    chunk.size = u64::MAX / 2;
    let file = version(Content::Chunks(Arc::new([chunk])), u64::MAX / 2);
    let error = Mounted::new(needles).read(&file, 0, 10).unwrap_err();
    assert!(error.to_string().contains("more than a needle can hold"), "{error}");
}

#[test]
fn readers_that_wait_for_one_list_of_chunks_share_its_failure() {
    const READERS: usize = 50;
    let needles = Needles::default();
    let children = vec![needles.chunk(1, 0, 1000, 1, 0)];
    let manifest = needles.fold(2, children.clone());
    needles.manifests.lock().clear();
    let mounted = Mounted::new(needles);
    let file = version(Content::Chunks(Arc::new([manifest.clone()])), 1000);
    let reads: Vec<_> = (0..READERS)
        .map(|_| match mounted.reader.read(&file, 0, 1000, 0) {
            ReadReply::Pending(read) => read,
            ReadReply::Ready(_) => panic!("nothing is known of the file"),
        })
        .collect();
    // The first of them resolves the layout, the others wait for it.
    let outcomes = mounted.runtime.block_on(futures::future::join_all(reads));
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(ReadError::Origin(_)))));
    assert_eq!(mounted.needles.lists.load(Ordering::Relaxed), 1, "as many times as long");

    // A later read does not share that failure.
    mounted.needles.manifests.lock().insert(manifest.fid, children);
    assert_eq!(mounted.read(&file, 0, 1000).unwrap().len(), 1000);
}

#[test]
fn a_manifest_that_lists_itself_is_refused() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 10, 1, 0);
    let manifest = needles.fold(7, vec![chunk]);
    needles.manifests.lock().insert(manifest.fid, vec![manifest.clone()]);
    let file = version(Content::Chunks(Arc::new([manifest])), 10);
    let error = Mounted::new(needles).read(&file, 0, 10).unwrap_err();
    assert!(error.to_string().contains("lists itself"), "{error}");
}

#[test]
fn manifests_that_nest_too_deeply_or_list_too_much_are_refused() {
    let needles = Needles::default();
    let deep = (1..10).fold(needles.chunk(1, 0, 10, 0, 0), |child, key| needles.fold(key, vec![child]));
    let file = version(Content::Chunks(vec![deep].into()), 10);
    let mounted = Mounted::new(needles);
    let error = mounted.read(&file, 0, 10).unwrap_err();
    assert!(error.to_string().contains("nest too deeply"), "{error}");

    // Ten thousand manifests list ten thousand chunks each: a hundred million.
    let needles = Needles::default();
    let leaves = vec![needles.chunk(1, 0, 10, 0, 0); 10_000];
    let wide = vec![needles.fold(1, leaves); 10_000];
    let file = version(Content::Chunks(vec![needles.fold(2, wide)].into()), 10);
    let mounted = Mounted::new(needles);
    let error = mounted.read(&file, 0, 10).unwrap_err();
    assert!(error.to_string().contains("chunks"), "{error}");
    assert!(mounted.needles.lists.load(Ordering::Relaxed) < 500);
}

#[test]
fn inline_content_is_followed_by_zeros() {
    let file = version(Content::Inline(Bytes::from_static(b"hello")), 8);
    let mounted = Mounted::new(Needles::default());
    assert_eq!(&*mounted.read(&file, 0, 100).unwrap(), b"hello\0\0\0");
    assert_eq!(&*mounted.read(&file, 3, 3).unwrap(), b"lo\0");
    assert!(mounted.read(&file, 8, 3).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Chunks with overlaps, gaps and truncation, some of them folded into nested manifests.
    #[test]
    fn reads_give_what_was_painted(
        list in prop::collection::vec((0u64..600_000, 1u64..400_000, 0u64..5000), 0..20),
        size in 0u64..1_000_000,
        folds in prop::collection::vec((0usize..20, 1usize..6), 0..4),
        reads in prop::collection::vec((0u64..1_100_000, 1usize..300_000), 1..20),
    ) {
        let needles = Needles::default();
        let (mut chunks, painted) = needles.paint(list, size);
        for (i, (from, count)) in folds.into_iter().enumerate() {
            if from < chunks.len() {
                let until = (from + count).min(chunks.len());
                let children: Vec<_> = chunks.drain(from..until).collect();
                chunks.insert(from, needles.fold(i as u64 + 1, children));
            }
        }
        let file = version(Content::Chunks(chunks.into()), size);
        let mounted = Mounted::new(needles);
        for (offset, len) in reads {
            let data = mounted.read(&file, offset, len).unwrap();
            let start = offset.min(size) as usize;
            let end = (offset + len as u64).min(size) as usize;
            prop_assert_eq!(&*data, &painted[start..end]);
        }
    }
}
