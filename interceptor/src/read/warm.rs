//! Warm-up: fills, counts and evicts whole files by request, ahead of the job that will read them.
//!
//! A file is fetched in the largest blocks it can be divided into, like the file of a sequential
//! reader, and each block by the [`BlockLoader`](super::loader::BlockLoader): a fetch that a
//! reader has started is waited for, and a reader that comes later joins the fetch of the warm-up.
//! Memory and the warm-up's permit are acquired *before* the fetch begins, so a reader never waits
//! in the queue of warm-ups ([`Reader::warm_block`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{FuturesUnordered, StreamExt};

use super::block_plan::{self, BlockRange};
use super::layout::{Object, Segment};
use super::{FileVersion, ReadError, Reader};
use crate::arrival::Arrival;
use crate::cache::{AdmissionError, EvictionMode, Joined};

/// Blocks of one file that are fetched at the same time. The bytes of all warm-ups together are
/// limited too, by [`Reader::acquire_warmup_permit`].
const MAX_CONCURRENT_BLOCKS: usize = 16;
/// After as many segments of a file, a task that goes through them yields its thread.
const SEGMENTS_PER_YIELD: usize = 64;

/// Why a file was not, or not completely, brought into the cache.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WarmupError {
    /// The cache has no room for it.
    #[error(transparent)]
    NoRoom(#[from] AdmissionError),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is no disk cache, or another daemon fills it.
    #[error("this daemon fills no disk cache")]
    NoDisk,
    /// The disk cache does not keep it.
    #[error("the disk cache does not keep it")]
    NotKept,
}

/// A request to bring files into the cache: what it may displace, and its progress in bytes.
#[derive(Debug)]
pub struct WarmupRequest {
    displace: EvictionMode,
    /// Bytes of the blocks requested so far, which must not displace each other.
    requested: AtomicU64,
    completed: AtomicU64,
    fetched: AtomicU64,
}

impl WarmupRequest {
    /// A request that may displace what `displace` tells. `requested` bytes are in the cache by
    /// earlier requests of the same caller, which this one shall not displace.
    pub fn new(displace: EvictionMode, requested: u64) -> Self {
        Self {
            displace,
            requested: AtomicU64::new(requested),
            completed: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        }
    }

    /// Bytes of files that are in the cache by now, or need not be: holes, and content that came
    /// with the entry.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Bytes that were fetched for that.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn complete(&self, bytes: u64) {
        self.completed.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Reader {
    /// Brings all of `file` into the cache. Blocks that came before an error stay. Whether the
    /// file is promoted depends on its readers.
    ///
    /// # Errors
    /// When the cache has no room, or the file cannot be read.
    pub async fn warm(
        self: &Arc<Self>,
        file: &Arc<FileVersion>,
        warmup: &WarmupRequest,
    ) -> Result<(), WarmupError> {
        if self.resident(file).is_some() {
            warmup.complete(file.size());
            return Ok(());
        }
        let layout = self.layout(file, Arrival::now()).await?;
        let mut blocks = FuturesUnordered::new();
        let mut outcome = Ok(());
        'file: for segment in layout.segments(0, layout.size()) {
            let (object, range) = match segment {
                Segment::Object { index, range } => (layout.object(index), range),
                Segment::Inline(bytes) => {
                    warmup.complete(bytes.len() as u64);
                    continue;
                }
                Segment::Zeros(len) => {
                    warmup.complete(len as u64);
                    continue;
                }
            };
            for part in block_plan::plan_large(&object, &range) {
                if file.activity().holds(&object, &part) {
                    warmup.complete(part.range.len() as u64);
                    continue;
                }
                if blocks.len() >= MAX_CONCURRENT_BLOCKS
                    && let Some(block) = blocks.next().await
                {
                    outcome = outcome.and(block);
                }
                if outcome.is_err() {
                    break 'file;
                }
                blocks.push(self.warm_block(object.clone(), part, warmup));
            }
        }
        // After an error no further fetch begins; those under way complete, and count.
        while let Some(block) = blocks.next().await {
            outcome = outcome.and(block);
        }
        outcome
    }

    /// Brings all of `file` to the disk cache, from memory and disk where it is there.
    ///
    /// # Errors
    /// When there is no disk cache to fill, the disk has no room, or the file cannot be read.
    pub async fn warm_to_disk(
        self: &Arc<Self>,
        file: &FileVersion,
        warmup: &WarmupRequest,
    ) -> Result<(), WarmupError> {
        let disk = self.loader.disk().filter(|disk| disk.is_writer()).ok_or(WarmupError::NoDisk)?;
        let layout = self.layout(file, Arrival::now()).await?;
        if !disk.keep(file, layout, |objects| self.object_source(objects)).await {
            return Err(WarmupError::NotKept);
        }
        warmup.complete(file.size());
        Ok(())
    }

    /// Brings one block into the cache.
    async fn warm_block(
        self: &Arc<Self>,
        object: Object,
        part: BlockRange,
        warmup: &WarmupRequest,
    ) -> Result<(), WarmupError> {
        let key = part.key;
        let len = block_plan::span(&object, key.part).1;
        let requested = warmup.requested.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        // `Evict` displaces anything, even blocks that this request has found or fetched.
        if warmup.displace == EvictionMode::Evict && requested > self.cache.retained_limit() {
            return Err(AdmissionError::Full.into());
        }
        if self.cache.retain(&key) {
            warmup.complete(part.range.len() as u64);
            return Ok(());
        }
        let permit = self.acquire_warmup_permit(len).await;
        let writer =
            self.cache.reserve_retained(key, len, warmup.displace, self.warmup_reporter.clone()).await?;
        let (joined, is_own) = self.loader.join_or_fetch(&object, key, writer, permit, None);
        if let Joined::InFlight(outcome) = joined {
            outcome.await.map_err(ReadError::from)?;
        }
        if is_own {
            warmup.fetched.fetch_add(len as u64, Ordering::Relaxed);
        } else if !self.cache.retain(&key) {
            // A reader's fetch brought it, to memory outside of the cache, or it left again at
            // once.
            return Err(AdmissionError::Full.into());
        }
        warmup.complete(part.range.len() as u64);
        Ok(())
    }

    /// Waits until `len` more bytes may be fetched for warm-ups. Limits of such fetches belong
    /// here.
    async fn acquire_warmup_permit(&self, len: usize) -> impl Send + 'static + use<> {
        let most = self.cache.speculation_limit() >> 10;
        let units = (len as u64).div_ceil(1024).min(most) as u32;
        self.warmup_permits.clone().acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// How many bytes of `file` can be read without a fetch. Does not have the cluster cache the
    /// content of a remote file to find out.
    ///
    /// # Errors
    /// When the layout cannot be resolved.
    pub async fn cached_bytes(&self, file: &FileVersion) -> Result<u64, ReadError> {
        if self.resident(file).is_some() {
            return Ok(file.size());
        }
        if file.is_remote() {
            return Ok(0);
        }
        let layout = self.layout(file, Arrival::now()).await?;
        let mut sum = 0;
        for (number, segment) in layout.segments(0, layout.size()).enumerate() {
            sum += match segment {
                Segment::Inline(bytes) => bytes.len() as u64,
                Segment::Zeros(len) => len as u64,
                Segment::Object { index, range } => {
                    let object = &layout.object(index);
                    let parts = block_plan::plan_large(object, &range);
                    let cached = |part: block_plan::BlockRange| match file.activity().holds(object, &part) {
                        true => part.range.len() as u64,
                        false => {
                            let range = block_plan::range_in_object(object, &part);
                            block_plan::cached_bytes(object, &range, &|key| self.cache.contains(key))
                        }
                    };
                    parts.map(cached).sum()
                }
            };
            if number % SEGMENTS_PER_YIELD == SEGMENTS_PER_YIELD - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(sum)
    }

    /// Evicts all blocks of `file`, and retires its resident file. Reads under way keep their
    /// blocks until they are answered, and open handles keep the file. Returns how many bytes left
    /// the cache.
    ///
    /// # Errors
    /// When the layout cannot be resolved.
    pub async fn evict(&self, file: &FileVersion) -> Result<u64, ReadError> {
        if file.is_remote() {
            return Ok(0);
        }
        let layout = self.layout(file, Arrival::now()).await?;
        let mut sum = self.retire(file);
        for (number, segment) in layout.segments(0, layout.size()).enumerate() {
            if let Segment::Object { index, range } = segment {
                let object = &layout.object(index);
                let gone = block_plan::all_blocks(object, &range).filter(|key| self.cache.remove(key));
                sum += gone.map(|key| block_plan::span(object, key.part).1 as u64).sum::<u64>();
            }
            if number % SEGMENTS_PER_YIELD == SEGMENTS_PER_YIELD - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(sum)
    }
}
