//! Fetches what [`prefetch`](crate::prefetch) advises, and what is sure to be read soon.
//!
//! * **Read-ahead**: each read is shown to the streams of its file, and what they advise is
//!   fetched.
//! * **Whole objects**: an object that is read at random again and again is fetched whole.
//! * **Small files** are fetched whole when they are opened, or when their turn seems to come.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::block_plan::{self, ObjectAccess};
use super::layout::{FileLayout, Object, Segment};
use super::loader::BlockLoader;
use super::version::{FileVersion, MAX_SMALL_FILE_SIZE};
use super::{OriginFile, Reader};
use crate::cache::{BlockKey, Cache, PrefetchObserver};
use crate::prefetch::{AccessPattern, PrefetchStats, ReadAhead};
use crate::telemetry::metrics::{Metrics, Outcome, Trigger};

/// No stream is run further ahead of its reader, in bytes: as much keeps more than 100 Gbit/s busy
/// at 1 ms to a volume server, and more would only displace other blocks.
const MAX_WINDOW: u64 = 32 << 20;

/// Why a small file is expected to be read next, with the account of that guess.
#[derive(Debug)]
pub enum PrefetchReason {
    /// It comes next in its directory.
    NextFile(Arc<PrefetchStats>),
    /// It was read in the epoch before.
    Epoch(Arc<PrefetchStats>),
}

/// Starts fetches that no reader has asked for.
pub(super) struct Prefetcher {
    loader: Arc<BlockLoader>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    /// Bytes that a stream may be run ahead of its reader.
    pub(super) max_window: u64,
    hot: Arc<dyn PrefetchObserver>,
    open: Arc<dyn PrefetchObserver>,
    /// Held by the fetch of a whole object that is read at random. One at a time, so that random
    /// readers, who wait for small pieces meanwhile, do not wait behind a crowd of large ones.
    whole_object: Arc<Semaphore>,
    /// Never cancelled: small files are fetched before they have a version.
    never: CancellationToken,
}

impl Prefetcher {
    pub(super) fn new(loader: Arc<BlockLoader>, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Self {
        Self {
            max_window: cache.speculation_limit().min(MAX_WINDOW),
            hot: PrefetchReporter::observer(Trigger::Hot, &metrics, None),
            open: PrefetchReporter::observer(Trigger::Open, &metrics, None),
            whole_object: Arc::new(Semaphore::new(1)),
            never: CancellationToken::new(),
            loader,
            cache,
            metrics,
        }
    }

    /// Shows a read to the streams of its file, fetches ahead what they advise, and returns how
    /// the read fits in.
    pub(super) fn observe(&self, file: &FileVersion, layout: &FileLayout, read: Range<u64>) -> AccessPattern {
        let Some(streams) = file.activity().streams() else { return AccessPattern::Random };
        let advice = streams.lock().observe(read.start, read.end - read.start, self.max_window);
        if advice.pattern != AccessPattern::Random {
            file.activity().kernel_hints().deferred.note_reader(Instant::now());
        }
        if let Some(ahead) = &advice.ahead
            && let Err(declined) = self.run_ahead(file, layout, ahead, advice.pattern)
        {
            streams.lock().decline(ahead, declined);
        }
        advice.pattern
    }

    /// Starts to fetch what a stream advises. The error is the byte of the file from which on
    /// there was no room.
    fn run_ahead(
        &self,
        file: &FileVersion,
        layout: &FileLayout,
        ahead: &ReadAhead,
        pattern: AccessPattern,
    ) -> Result<(), u64> {
        let Some(access) = ObjectAccess::of(pattern) else { return Ok(()) };
        let trigger = match access {
            ObjectAccess::Strided { .. } => Trigger::Strided,
            ObjectAccess::Sequential | ObjectAccess::Random { .. } => Trigger::Sequential,
        };
        let observer = self.reporter(trigger, &ahead.stats);
        ahead.ranges.iter().try_for_each(|range| self.fetch_range(file, layout, range, access, &observer))
    }

    /// Starts to fetch the blocks that reads of `range` will want, unless they are there or on
    /// their way. The error is the byte of the file from which on there was no room.
    pub(super) fn fetch_range(
        &self,
        file: &FileVersion,
        layout: &FileLayout,
        range: &Range<u64>,
        access: ObjectAccess,
        observer: &Arc<dyn PrefetchObserver>,
    ) -> Result<(), u64> {
        for segment in layout.segments(range.start, range.end) {
            let Segment::Object { index, range } = segment else { continue };
            let object = &layout.object(index);
            let blocks = block_plan::plan(&self.cache, object, range.clone(), access).into_iter();
            let absent = blocks.filter(|part| self.loader.is_absent(&part.key));
            // In this order: a block leaves the arena after it has come to the draft.
            let mut absent = absent.filter(|part| !file.activity().holds(object, part)).map(|part| part.key);
            let forgotten = file.activity().forgotten();
            if !absent.all(|key| self.loader.prefetch(object, key, observer, forgotten.clone(), ())) {
                return Err(object.offset + range.start);
            }
        }
        Ok(())
    }

    /// Starts to fetch all of an object that is read at random again and again, unless pieces have
    /// all of it, or another one is being fetched so.
    pub(super) fn fetch_whole_object(&self, file: &FileVersion, object: &Object) {
        for part in block_plan::plan_large(object, &(0..object.size)) {
            let key = part.key;
            let range = block_plan::range_in_object(object, &part);
            if !self.loader.is_absent(&key)
                || file.activity().holds(object, &part)
                || block_plan::cached_pieces_of(&self.cache, object, &range).is_some()
            {
                continue;
            }
            let Ok(permit) = self.whole_object.clone().try_acquire_owned() else { return };
            let forgotten = file.activity().forgotten().clone();
            if !self.loader.prefetch(object, key, &self.hot, forgotten, permit) {
                return;
            }
        }
    }

    /// Starts to fetch a block that is hot in the page cache. Returns whether there was room for
    /// it.
    pub(super) fn fetch_hot_block(&self, file: &FileVersion, object: &Object, key: BlockKey) -> bool {
        self.loader.prefetch(object, key, &self.hot, file.activity().forgotten().clone(), ())
    }

    /// Starts to fetch what is missing of a small file, unless its bytes have left the arena for
    /// the resident file, as `is_kept` tells. Returns how many bytes that is, or `None` if there is
    /// no room.
    fn fetch_small(
        &self,
        layout: &FileLayout,
        is_kept: impl Fn() -> bool,
        observer: &Arc<dyn PrefetchObserver>,
    ) -> Option<u64> {
        let mut bytes = 0;
        for object in layout.objects().filter(|object| (1..=MAX_SMALL_FILE_SIZE).contains(&object.size)) {
            let all = 0..object.size;
            for key in block_plan::large_blocks(&object, &all) {
                // In this order: a block leaves the arena after it has come to the file.
                if !self.loader.is_absent(&key) || is_kept() {
                    continue;
                }
                if !self.loader.prefetch(&object, key, observer, self.never.clone(), ()) {
                    return None;
                }
                bytes += block_plan::span(&object, key.part).1 as u64;
            }
        }
        Some(bytes)
    }

    /// Reports prefetched blocks to the metrics, and to the `stats` of the predictor that advised
    /// them.
    pub(super) fn reporter(&self, trigger: Trigger, stats: &Arc<PrefetchStats>) -> Arc<dyn PrefetchObserver> {
        PrefetchReporter::observer(trigger, &self.metrics, Some(stats.clone()))
    }
}

impl Reader {
    /// Starts to fetch a file that was opened for the first time, if it is small: its first read
    /// is sure to come, and joins the fetch.
    pub fn prefetch_opened(&self, file: &FileVersion) {
        if file.size() <= MAX_SMALL_FILE_SIZE
            && self.resident(file).is_none()
            && let Some(layout) = file.layout_now()
        {
            let is_kept = || file.content_id().is_some_and(|content| self.is_kept(&content));
            self.prefetcher.fetch_small(layout, is_kept, &self.prefetcher.open);
        }
    }

    /// Starts to fetch what is missing of a file of at most [`MAX_SMALL_FILE_SIZE`] bytes that is
    /// expected to be read next; larger files are left alone. Returns how many bytes that is, or
    /// `None` if there is no room.
    pub fn prefetch_small_file(&self, file: &dyn OriginFile, expected: &PrefetchReason) -> Option<u64> {
        if file.size() > MAX_SMALL_FILE_SIZE {
            return Some(0);
        }
        let layout = file.layout().filter(|layout| layout.object_count() > 0);
        let Some(layout) = layout.filter(|_| !self.is_resident(file)) else { return Some(0) };
        let observer = match expected {
            PrefetchReason::NextFile(stats) => self.prefetcher.reporter(Trigger::NextFile, stats),
            PrefetchReason::Epoch(stats) => self.prefetcher.reporter(Trigger::Epoch, stats),
        };
        let is_kept = || file.content_id().is_some_and(|content| self.is_kept(&content));
        self.prefetcher.fetch_small(&layout, is_kept, &observer)
    }

    /// What epochs may count on now, in bytes: the memory for blocks, and how much of it may hold
    /// prefetched blocks.
    pub fn room_for_epochs(&self) -> (u64, u64) {
        (self.cache.block_capacity(), self.cache.speculation_limit())
    }
}

/// Reports what became of blocks that were prefetched for one reason.
pub(super) struct PrefetchReporter {
    trigger: Trigger,
    metrics: Arc<Metrics>,
    /// Of the predictor that advised them, if it learns from the outcome.
    stats: Option<Arc<PrefetchStats>>,
}

impl PrefetchReporter {
    pub(super) fn observer(
        trigger: Trigger,
        metrics: &Arc<Metrics>,
        stats: Option<Arc<PrefetchStats>>,
    ) -> Arc<dyn PrefetchObserver> {
        Arc::new(Self { trigger, metrics: metrics.clone(), stats })
    }
}

impl fmt::Debug for PrefetchReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trigger.fmt(f)
    }
}

impl PrefetchObserver for PrefetchReporter {
    fn fetched(&self, bytes: usize) {
        self.metrics.fetched_ahead(self.trigger, bytes as u64);
    }

    fn used(&self, bytes: usize) {
        self.metrics.prefetch(self.trigger, Outcome::Used, bytes as u64);
        if let Some(stats) = &self.stats {
            stats.used(bytes as u64);
        }
    }

    fn wasted(&self, bytes: usize) {
        self.metrics.prefetch(self.trigger, Outcome::Wasted, bytes as u64);
        if let Some(stats) = &self.stats {
            stats.wasted(bytes as u64);
        }
    }
}
