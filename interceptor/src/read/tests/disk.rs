//! Reads with a disk between memory and the origin.

use tempfile::TempDir;

use super::*;
use crate::disk::{ClusterIdentity, DiskCache, DiskCacheConfig};

/// Readers of the same needles that come one after the other, each with an empty memory.
struct Restarted {
    directory: TempDir,
    needles: Arc<Needles>,
    /// The signature of the filer's store.
    signature: i32,
}

impl Restarted {
    fn new(needles: Needles) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), needles: Arc::new(needles), signature: 1 }
    }

    fn start(&self) -> (Mounted, Arc<DiskCache>) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let metrics = Metrics::new();
        let config = DiskCacheConfig {
            directory: self.directory.path().to_owned(),
            capacity: 64 << 20,
            max_queued: 16 << 20,
        };
        let disk = DiskCache::open(&config, metrics.clone(), runtime.handle().clone()).unwrap();
        // The thread of the one before may not have ended yet.
        while !disk.usage().is_writer {
            std::thread::yield_now();
        }
        let cluster = ClusterIdentity::new("", self.signature).unwrap();
        let cache = Arc::new(Cache::new(crate::cache::MIN_CAPACITY).unwrap());
        let reader = Reader::with_disk(
            cache.clone(),
            Some(DiskTier::new(disk.clone(), cluster)),
            self.needles.clone(),
            metrics.clone(),
            runtime.handle().clone(),
        );
        (Mounted { runtime, needles: self.needles.clone(), cache, metrics, reader }, disk)
    }

    fn fetches(&self) -> usize {
        self.needles.fetches.load(Ordering::Relaxed)
    }
}

fn settle(disk: &DiskCache) {
    while disk.usage().queued > 0 {
        std::thread::yield_now();
    }
}

fn file_of(chunk: Chunk) -> Arc<FileVersion> {
    let size = chunk.size;
    version(Content::Chunks(Arc::new([chunk])), size)
}

#[test]
fn what_was_read_again_is_read_from_the_disk_after_a_restart() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 100_000, 1, 0);
    let restarted = Restarted::new(needles);
    let (mounted, disk) = restarted.start();
    let file = file_of(chunk.clone());
    let content = mounted.read(&file, 0, 100_000).unwrap().to_vec();
    settle(&disk);
    assert_eq!(disk.usage().written, 0, "it was read once");
    mounted.read(&file, 0, 100_000).unwrap();
    settle(&disk);
    assert_eq!(disk.usage().written, 100_000);
    drop((mounted, disk));
    let (mounted, _) = restarted.start();
    assert_eq!(*mounted.read(&file_of(chunk.clone()), 0, 100_000).unwrap(), content);
    assert_eq!(restarted.fetches(), 1);
    assert_eq!(mounted.metrics.totals().reads[Source::Disk as usize].bytes, 100_000);
    drop(mounted);
    let other = Restarted { signature: 2, ..restarted };
    let (mounted, _) = other.start();
    mounted.read(&file_of(chunk), 0, 100_000).unwrap();
    assert_eq!(other.fetches(), 2, "it is another cluster");
}

#[test]
fn what_was_fetched_again_is_kept_and_the_time_of_writing_is_a_part_of_its_name() {
    let needles = Needles::default();
    let chunk = needles.chunk(1, 0, 100_000, 1, 0);
    let restarted = Restarted::new(needles);
    let (mounted, disk) = restarted.start();
    for _ in 0..2 {
        let file = file_of(chunk.clone());
        mounted.read(&file, 0, 100_000).unwrap();
        mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap();
        settle(&disk);
    }
    assert_eq!((restarted.fetches(), disk.usage().written), (2, 100_000));
    mounted.read(&file_of(chunk.clone()), 0, 100_000).unwrap();
    assert_eq!(restarted.fetches(), 2, "it came from the disk");
    let rewritten = Chunk { modified_ts_ns: chunk.modified_ts_ns + 1, ..chunk };
    let file = file_of(rewritten);
    mounted.runtime.block_on(mounted.reader.evict(&file)).unwrap();
    mounted.read(&file, 0, 100_000).unwrap();
    assert_eq!(restarted.fetches(), 3);
}

#[test]
fn what_is_encrypted_in_the_cluster_is_not_kept() {
    let needles = Needles::default();
    let chunk = Chunk { cipher_key: Some(Box::new([1; 32])), ..needles.chunk(1, 0, 100_000, 1, 0) };
    let restarted = Restarted::new(needles);
    let (mounted, disk) = restarted.start();
    for _ in 0..3 {
        mounted.read(&file_of(chunk.clone()), 0, 100_000).unwrap();
    }
    settle(&disk);
    assert_eq!((disk.usage().written, disk.usage().files), (0, 0));
}

#[test]
fn a_file_is_warmed_to_disk_as_one() {
    let needles = Needles::default();
    let chunks = [needles.chunk(1, 0, 100_000, 1, 0), needles.chunk(2, 100_000, 50_001, 1, 0)];
    let restarted = Restarted::new(needles);
    let (mounted, disk) = restarted.start();
    let content = Content::Chunks(Arc::new(chunks.clone()));
    let file = version(content.clone(), 150_001);
    let warmup = WarmupRequest::new(crate::cache::EvictionMode::FreeOnly, 0);
    mounted.runtime.block_on(mounted.reader.warm_to_disk(&file, &warmup)).unwrap();
    assert_eq!((warmup.completed(), disk.usage().files, restarted.fetches()), (150_001, 1, 2));
    assert!(!mounted.cache.contains(&BlockKey {
        object: chunks[0].fid.into(),
        object_size: chunks[0].size,
        part: crate::cache::BlockPart::Whole,
    }));
    drop((mounted, disk));
    let (mounted, disk) = restarted.start();
    // Where its objects are in a file of several is found in the background.
    while disk.usage().files == 0 {
        std::thread::yield_now();
    }
    mounted.read(&version(content, 150_001), 99_000, 5_000).unwrap();
    assert_eq!(restarted.fetches(), 2);
    // A hole between them: each is kept by itself.
    let chunks = Arc::new([chunks[0].clone(), Chunk { offset: 200_000, ..chunks[1].clone() }]);
    let file = version(Content::Chunks(chunks), 250_001);
    mounted.runtime.block_on(mounted.reader.warm_to_disk(&file, &warmup)).unwrap();
    assert_eq!((disk.usage().files, restarted.fetches()), (3, 2), "both came from the disk");
}
