//! Loads blocks: from memory, by joining a fetch under way, or by starting one, which asks the disk
//! before the origin.
//!
//! Readers, prefetch, promotion and warm-up load their blocks here, so each block is fetched once,
//! whichever of them needs it. They differ in how they take memory:
//!
//! * A **reader** ([`BlockLoader::load`]) waits for memory of the cache. If there is none for
//!   long, the block is fetched into memory outside of the cache ([`UncachedBlocks`]).
//! * **Prefetch** ([`BlockLoader::prefetch`]) takes memory only if speculation may have it now.
//!   Nothing waits for the block, so the fetch is given up when its version is forgotten, or after
//!   [`PREFETCH_TIMEOUT`]: it waits behind every read at its server, and holds memory meanwhile.
//! * **Promotion** ([`BlockLoader::load_below_readers`]) tries for such memory again and again.
//! * **Warm-up** ([`BlockLoader::join_or_fetch`]) brings memory of its own.
//!
//! A reader that joins a speculative fetch makes a demand of it: it is seen through from then on.
//! A fetch that a reader has started goes on when the reader is interrupted: what comes is kept.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::block_plan;
use super::disk_tier::DiskTier;
use super::layout::Object;
use super::uncached::UncachedBlocks;
use super::{Origin, ReadError};
use crate::arrival::Arrival;
use crate::cache::{
    BlockKey, BlockWriter, Cache, FetchInterrupted, InflightMap, Joined, PinnedBlock, PrefetchObserver,
    SharedFetch,
};
use crate::priority::{Priority, Urgency};
use crate::telemetry::metrics::Source;
use crate::timeline::{StepKind, Timeline};

/// How long a prefetched block is worth waiting for. By then the stream that it was for is
/// elsewhere.
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a promotion waits for memory to fetch a block to.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a promotion tries for memory. It must not queue for it, or readers would wait behind
/// it.
const MEMORY_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Loads the blocks of all files of a mount.
pub(super) struct BlockLoader {
    cache: Arc<Cache>,
    disk: Option<DiskTier>,
    origin: Arc<dyn Origin>,
    fetches: InflightMap<BlockKey, LoadedBlock, FailedLoad>,
    uncached: Arc<UncachedBlocks>,
}

/// A block and where it came from.
#[derive(Clone)]
pub(super) struct LoadedBlock {
    pub(super) block: PinnedBlock,
    pub(super) source: Source,
    /// What its fetch did; `None` if it was in memory.
    pub(super) timeline: Option<Timeline>,
}

impl LoadedBlock {
    /// A block that was in memory.
    fn cached(block: PinnedBlock) -> Self {
        Self { block, source: Source::Cache, timeline: None }
    }
}

/// Said of a block that is fetched past the cache.
const NOT_KEPT: &str = "the block is not kept: it is too large for the cache, or that has no room";

/// Why a block could not be loaded.
#[derive(Debug, Clone)]
pub(super) struct FailedLoad {
    pub(super) error: ReadError,
    /// What its fetch did; `None` if that was interrupted.
    pub(super) timeline: Option<Timeline>,
}

impl From<FetchInterrupted> for FailedLoad {
    fn from(interrupted: FetchInterrupted) -> Self {
        Self { error: interrupted.into(), timeline: None }
    }
}

impl From<FailedLoad> for ReadError {
    fn from(failed: FailedLoad) -> Self {
        failed.error
    }
}

/// Prefetched blocks of which the outcome is counted elsewhere: with the resident file.
#[derive(Debug)]
struct Unreported;

impl PrefetchObserver for Unreported {
    fn fetched(&self, _: usize) {}
    fn used(&self, _: usize) {}
    fn wasted(&self, _: usize) {}
}

impl BlockLoader {
    /// A loader that keeps what it fetches from `origin` in `cache`; fetches run on `runtime`.
    pub(super) fn new(
        cache: Arc<Cache>,
        disk: Option<DiskTier>,
        origin: Arc<dyn Origin>,
        runtime: &Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            fetches: InflightMap::new(runtime.clone()),
            uncached: UncachedBlocks::new(cache.capacity() / 4, runtime.clone()),
            cache,
            disk,
            origin,
        })
    }

    /// The disk between memory and the origin.
    pub(super) fn disk(&self) -> Option<&DiskTier> {
        self.disk.as_ref()
    }

    /// Where the bytes come from.
    pub(super) fn origin(&self) -> &dyn Origin {
        &*self.origin
    }

    /// The block under `key`, if it is in memory.
    pub(super) fn get(&self, key: &BlockKey) -> Option<LoadedBlock> {
        self.cache.get(key).or_else(|| self.uncached.get(key)).map(LoadedBlock::cached)
    }

    /// Whether the block under `key` is neither in the cache nor being fetched.
    pub(super) fn is_absent(&self, key: &BlockKey) -> bool {
        !self.cache.contains(key) && !self.fetches.contains(key)
    }

    /// The fetch of the block under `key` that is under way, if there is one.
    pub(super) fn inflight(&self, key: &BlockKey) -> Option<SharedFetch<LoadedBlock, FailedLoad>> {
        self.fetches.get(key)
    }

    /// Loads a block for a reader that came at `arrival`. Never blocks.
    pub(super) fn load(
        self: &Arc<Self>,
        object: &Object,
        key: BlockKey,
        arrival: Arrival,
    ) -> Joined<LoadedBlock, FailedLoad> {
        if let Some(loaded) = self.get(&key) {
            return Joined::Cached(loaded);
        }
        self.fetches.join_at(
            key,
            Some(arrival),
            || self.get(&key),
            |priority| {
                let (loader, object) = (self.clone(), object.clone());
                async move {
                    let timeline = Timeline::default();
                    let len = block_plan::span(&object, key.part).1;
                    let waiting = timeline.begin(StepKind::Memory);
                    let writer = loader.cache.reserve(key, len).await;
                    match writer.in_arena() {
                        true => waiting.end(),
                        false => waiting.end_noting(NOT_KEPT),
                    }
                    loader.fetch(&object, key, writer, &priority, timeline).await
                }
            },
        )
    }

    /// Starts to fetch a block that no reader has asked for. The fetch is given up when `cancel`
    /// is cancelled, and holds `permit` until it ends. `observer` is told what became of the
    /// block. Returns whether there was memory for it.
    pub(super) fn prefetch(
        self: &Arc<Self>,
        object: &Object,
        key: BlockKey,
        observer: &Arc<dyn PrefetchObserver>,
        cancel: CancellationToken,
        permit: impl Send + 'static,
    ) -> bool {
        let len = block_plan::span(object, key.part).1;
        let Some(writer) = self.cache.try_reserve_prefetch(key, len, observer.clone()) else { return false };
        // If another thread was faster, its fetch brings the block and this one is dropped.
        let _ = self.join_or_fetch(object, key, writer, permit, Some(cancel));
        true
    }

    /// Loads a block in memory that readers leave. Returns it, and whether it was fetched for this
    /// call alone.
    pub(super) async fn load_below_readers(
        self: &Arc<Self>,
        object: &Object,
        key: BlockKey,
    ) -> Result<(PinnedBlock, bool), ReadError> {
        let len = block_plan::span(object, key.part).1;
        let deadline = Instant::now() + MEMORY_TIMEOUT;
        loop {
            if let Some(block) = self.cache.get(&key) {
                return Ok((block, false));
            }
            if let Some(outcome) = self.inflight(&key) {
                return Ok((outcome.await?.block, false));
            }
            if let Some(writer) = self.cache.try_reserve_prefetch(key, len, Arc::new(Unreported)) {
                let (joined, is_own) = self.join_or_fetch(object, key, writer, (), None);
                let loaded = match joined {
                    Joined::Cached(loaded) => loaded,
                    Joined::InFlight(outcome) => outcome.await?,
                };
                return Ok((loaded.block, is_own));
            }
            if !self.cache.admits(len) || Instant::now() >= deadline {
                return Err(ReadError::NoRoom);
            }
            sleep(MEMORY_POLL_INTERVAL).await;
        }
    }

    /// Fetches a block into `writer`, with the priority of speculation, unless it has arrived or
    /// is being fetched by now. The fetch holds `permit` until it ends. With `cancel` it may be
    /// given up, as [`prefetch`](Self::prefetch) tells. Returns also whether this call started it.
    pub(super) fn join_or_fetch(
        self: &Arc<Self>,
        object: &Object,
        key: BlockKey,
        writer: BlockWriter,
        permit: impl Send + 'static,
        cancel: Option<CancellationToken>,
    ) -> (Joined<LoadedBlock, FailedLoad>, bool) {
        let mut is_own = false;
        let joined = self.fetches.join(
            key,
            Urgency::Speculative,
            || self.cache.get(&key).map(LoadedBlock::cached),
            |priority| {
                is_own = true;
                let (loader, object) = (self.clone(), object.clone());
                async move {
                    let _permit = permit;
                    let fetch = loader.fetch(&object, key, writer, &priority, Timeline::default());
                    match cancel {
                        Some(cancel) => unless_given_up(fetch, &priority, &cancel).await,
                        None => fetch.await,
                    }
                }
            },
        );
        (joined, is_own)
    }

    /// Notes that a block that was in memory was read again.
    pub(super) fn read_again(&self, object: &Object, key: &BlockKey, block: &PinnedBlock) {
        if let Some(disk) = &self.disk {
            disk.read_again(object, block_plan::span(object, key.part).0, block);
        }
    }

    /// Fetches a block into `writer` and publishes it. What is done goes to `timeline`.
    async fn fetch(
        &self,
        object: &Object,
        key: BlockKey,
        mut writer: BlockWriter,
        priority: &Priority,
        timeline: Timeline,
    ) -> Result<LoadedBlock, FailedLoad> {
        let offset = block_plan::span(object, key.part).0;
        let source = match self.read_from_disk(object, offset, &mut writer, &timeline).await {
            Some(source) => source,
            None => match self.origin.read(object, offset, &mut writer, priority, &timeline).await {
                Ok(source) => source,
                Err(error) => {
                    return Err(FailedLoad { error: ReadError::Origin(error), timeline: Some(timeline) });
                }
            },
        };
        // So that later reads of it can be counted by where it came from.
        writer.set_tag(source as u8);
        let is_uncached = !writer.in_arena();
        let block = writer.publish();
        if let Some(disk) = self.disk.as_ref().filter(|_| source != Source::Disk) {
            disk.fetched(object, offset, &block);
        }
        if is_uncached {
            self.uncached.insert(key, block.clone());
        }
        Ok(LoadedBlock { block, source, timeline: Some(timeline) })
    }

    /// Fills `writer` from the disk cache. `None` if that does not have it.
    async fn read_from_disk(
        &self,
        object: &Object,
        offset: u64,
        writer: &mut BlockWriter,
        timeline: &Timeline,
    ) -> Option<Source> {
        let disk = self.disk.as_ref()?;
        let reading = timeline.begin(StepKind::Disk);
        let found = disk.read(object, offset, writer).await;
        reading.end();
        found.then_some(Source::Disk)
    }
}

/// Runs `fetch` until `cancel` is cancelled or [`PREFETCH_TIMEOUT`] is over; after that only if a
/// reader waits for it.
async fn unless_given_up(
    fetch: impl Future<Output = Result<LoadedBlock, FailedLoad>>,
    priority: &Priority,
    cancel: &CancellationToken,
) -> Result<LoadedBlock, FailedLoad> {
    let mut fetch = pin!(fetch);
    tokio::select! {
        biased;
        outcome = &mut fetch => return outcome,
        () = cancel.cancelled() => {}
        () = sleep(PREFETCH_TIMEOUT) => {}
    }
    if priority.try_cancel() { Err(FetchInterrupted.into()) } else { fetch.await }
}
