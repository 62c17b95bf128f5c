//! Whole files in and out of the cache because somebody asks for it, ahead of the job that will read them.
//!
//! A file is brought in the largest blocks it can be cut into, like the file of a sequential reader, and each block
//! through the same single flight as a reader's: what a reader is fetching is waited for, and a reader who comes while
//! a block is on its way waits for that. Memory is taken and the turn is waited for *before* the flight begins, so
//! that a reader never waits in our queue ([`Reader::warm_block`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::{FuturesUnordered, StreamExt};

use super::block_plan::{self, BlockRange};
use super::layout::{Object, Segment};
use super::{FileVersion, ReadError, Reader};
use crate::arrival::Arrival;
use crate::cache::{Displace, Joined, NoRoom};

/// How many blocks of one file may be on their way. What all of them together may hold is bounded by bytes.
const MAX_CONCURRENT_BLOCKS: usize = 16;
/// After how many segments of a file others get their turn on the thread that counts them.
const SEGMENTS_PER_YIELD: usize = 64;

/// Why a file was not brought in, or not all of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WarmupError {
    /// The cache has no room for it.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A request for files to be brought in: what it may take, and how far it has come. All in bytes.
#[derive(Debug)]
pub struct WarmupRequest {
    displace: Displace,
    /// Blocks that it has asked for so far, which are not to push out each other.
    held: AtomicU64,
    completed: AtomicU64,
    fetched: AtomicU64,
}

impl WarmupRequest {
    /// A request that may displace this. `held` bytes are in the cache by earlier requests of the same caller, which
    /// this one shall not push out.
    pub fn new(displace: Displace, held: u64) -> Self {
        Self {
            displace,
            held: AtomicU64::new(held),
            completed: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        }
    }

    /// Bytes of files that are in the cache by now, or need not be: holes, and content that came with the names.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Bytes that had to be fetched for that.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    fn complete(&self, bytes: u64) {
        self.completed.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Reader {
    /// Brings all of `file` into the cache. What has come in before an error stays. Whether it becomes resident is for its readers to
    /// show.
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
                Segment::Object { index, range } => (&layout.objects()[index], range),
                Segment::Inline(bytes) => {
                    warmup.complete(bytes.len() as u64);
                    continue;
                }
                Segment::Zeros(len) => {
                    warmup.complete(len as u64);
                    continue;
                }
            };
            for part in block_plan::plan_large(object, &range) {
                if blocks.len() >= MAX_CONCURRENT_BLOCKS
                    && let Some(block) = blocks.next().await
                {
                    outcome = outcome.and(block);
                }
                if outcome.is_err() {
                    break 'file;
                }
                blocks.push(self.warm_block(object, part, warmup));
            }
        }
        // After an error nothing more is begun; what is on its way comes in, and counts.
        while let Some(block) = blocks.next().await {
            outcome = outcome.and(block);
        }
        outcome
    }

    /// Brings one block in.
    async fn warm_block(
        self: &Arc<Self>,
        object: &Object,
        part: BlockRange,
        warmup: &WarmupRequest,
    ) -> Result<(), WarmupError> {
        let key = part.key;
        let len = block_plan::span(object, key.part).1;
        let held = warmup.held.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        // By force anything can be made to leave, even what this request has found or brought itself.
        if warmup.displace == Displace::LeastValued && held > self.cache.keep_limit() {
            return Err(NoRoom::Full.into());
        }
        if self.cache.keep(&key) {
            warmup.complete(part.range.len() as u64);
            return Ok(());
        }
        let permit = self.acquire_warmup_permit(len).await;
        let filling = self.cache.fill_kept(key, len, warmup.displace, self.warmup_reporter.clone()).await?;
        let (joined, is_own) = self.loader.join_or_fetch(object, key, filling, permit);
        if let Joined::Waiting(outcome) = joined {
            outcome.await?;
        }
        if is_own {
            warmup.fetched.fetch_add(len as u64, Ordering::Relaxed);
        } else if !self.cache.keep(&key) {
            // A reader's fetch brought it, in memory outside of the cache or only for a moment.
            return Err(NoRoom::Full.into());
        }
        warmup.complete(part.range.len() as u64);
        Ok(())
    }

    /// Waits until `len` more bytes may be fetched that nobody waits for. Whatever holds such fetches back belongs here.
    async fn acquire_warmup_permit(&self, len: usize) -> impl Send + 'static + use<> {
        let most = self.cache.speculation_limit() >> 10;
        let units = (len as u64).div_ceil(1024).min(most) as u32;
        self.warmup_permits.clone().acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// How many bytes of `file` can be read without a fetch. A file whose content is not in the cluster is not brought
    /// there to find out.
    ///
    /// # Errors
    /// When the list of its chunks cannot be had.
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
                    block_plan::cached_bytes(&layout.objects()[index], &range, &|key| {
                        self.cache.contains(key)
                    })
                }
            };
            if number % SEGMENTS_PER_YIELD == SEGMENTS_PER_YIELD - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(sum)
    }

    /// Gives up all blocks of `file`, and its resident file. Reads that are under way keep theirs until they are answered, and open
    /// handles the file. Returns how many bytes left the cache.
    ///
    /// # Errors
    /// When the list of its chunks cannot be had.
    pub async fn evict(&self, file: &FileVersion) -> Result<u64, ReadError> {
        if file.is_remote() {
            return Ok(0);
        }
        let layout = self.layout(file, Arrival::now()).await?;
        let mut sum = self.retire(file);
        for (number, segment) in layout.segments(0, layout.size()).enumerate() {
            if let Segment::Object { index, range } = segment {
                let object = &layout.objects()[index];
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
