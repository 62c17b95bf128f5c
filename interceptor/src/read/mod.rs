//! The one place where the bytes of a read are found, whichever file system was asked.
//!
//! A [`FileVersion`] is what a name stood for at one moment: it never changes. Its [`FileLayout`]
//! tells which object of the [`Origin`] holds which of its bytes. A read is divided at the borders
//! of objects, and then into blocks ([`block_plan`]), which are taken from the cache or fetched.
//!
//! [`Reader::read`] runs on the thread that took the request from the kernel. If all blocks are in
//! memory it answers at once, without a copy if one block has all bytes. Otherwise it starts the
//! missing fetches, each block once for all of its readers ([`loader`]), and returns a future that
//! waits for them.
//!
//! ```text
//!  Reader::read ─► FileActivity: resident? ─► Prefetcher ─► block_plan ─► BlockLoader
//!                                             read-ahead                  get, join, fetch
//! ```
//!
//! * [`prefetcher`] fetches ahead of streams, and small files before they are read.
//! * [`drafts`] moves what sequential readers have passed to where the kernel can read it without
//!   the daemon, and [`promote`] makes other files resident that are worth it. A handle that still
//!   reads by way of the daemon is answered from there.
//! * [`residency`] finds resident files for opens, and retires those of replaced content.
//! * [`warm`] fills, counts and evicts whole files by request.
//! * [`kernel_hints`] acts on reads that the kernel answers by itself, as far as eBPF reports
//!   them.
//! * [`disk_tier`] keeps what is used again on a disk, which is asked before the origin.
//! * [`seaweedfs`] is the origin of `interceptor mount`, and of `attach` with a filer.
//!
//! If a fetch fails, every read that waits for it fails (`mount` replies EIO, `overlay` asks the
//! lower mount), the block stays absent, and the
//! next read tries again. A block is never visible before it is complete and checked.

mod activity;
mod block_plan;
mod data;
mod disk_tier;
mod drafts;
mod error;
mod kernel_hints;
mod layout;
mod layout_cell;
mod loader;
mod origin;
mod pauses;
mod prefetcher;
mod promote;
mod residency;
mod seaweedfs;
mod uncached;
mod version;
mod warm;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::arrival::Arrival;
use crate::cache::resident::PromotionReason;
use crate::cache::{Cache, Joined, PinnedBlock, PrefetchObserver};
use crate::prefetch::AccessPattern;
use crate::telemetry::answered_read::ReadTarget;
use crate::telemetry::metrics::{Metrics, Source, Trigger};
use crate::timeline::{StepKind, Timeline};

pub use activity::FileActivity;
pub use data::ReadData;
pub use disk_tier::DiskTier;
pub use error::{OriginError, ReadError};
pub use kernel_hints::KernelHints;
pub use layout::{FileLayout, Object, ObjectEncoding, ObjectList};
pub use origin::Origin;
pub use prefetcher::PrefetchReason;
pub use residency::CompleteFile;
pub use seaweedfs::ClusterOrigin;
pub use version::{FileVersion, MAX_SMALL_FILE_SIZE, OriginFile};
pub use warm::{WarmupError, WarmupRequest};

use activity::StreamProgress;
use block_plan::{BlockRange, ObjectAccess};
use layout::Segment;
use loader::BlockLoader;
use pauses::ReadPauses;
use prefetcher::{PrefetchReporter, Prefetcher};
use promote::Promoter;

/// The reply to a read: now or later.
pub enum ReadReply {
    /// The bytes; fewer than requested only at the end of the file.
    Ready(ReadData),
    /// Resolves when the missing blocks have been fetched.
    Pending(BoxFuture<'static, Result<ReadData, ReadError>>),
}

/// Answers reads of all files of a mount.
pub struct Reader {
    cache: Arc<Cache>,
    loader: Arc<BlockLoader>,
    prefetcher: Prefetcher,
    metrics: Arc<Metrics>,
    warmup_reporter: Arc<dyn PrefetchObserver>,
    /// Permits for warm-up fetches under way, one for each KiB.
    warmup_permits: Arc<Semaphore>,
    pauses: ReadPauses,
    /// Set by [`keep_resident_files`](Self::keep_resident_files).
    promoter: OnceLock<Promoter>,
    runtime: Handle,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("cache", &self.cache.usage()).finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader that keeps what it fetches from `origin` in `cache`; fetches run on `runtime`.
    pub fn new(
        cache: Arc<Cache>,
        origin: Arc<dyn Origin>,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        Self::with_disk(cache, None, origin, metrics, runtime)
    }

    /// The same, with a `disk` that is asked before `origin`.
    pub fn with_disk(
        cache: Arc<Cache>,
        disk: Option<DiskTier>,
        origin: Arc<dyn Origin>,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let loader = BlockLoader::new(cache.clone(), disk, origin, &runtime);
        Arc::new(Self {
            prefetcher: Prefetcher::new(loader.clone(), cache.clone(), metrics.clone()),
            warmup_reporter: PrefetchReporter::observer(Trigger::Warmup, &metrics, None),
            warmup_permits: Arc::new(Semaphore::new((cache.speculation_limit() >> 10) as usize)),
            pauses: ReadPauses::default(),
            promoter: OnceLock::new(),
            runtime,
            cache,
            loader,
            metrics,
        })
    }

    /// The counters of reads and prefetches.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The size of the cache in bytes.
    pub fn cache_capacity(&self) -> u64 {
        self.cache.capacity()
    }

    /// Reads up to `len` bytes of `file` from `offset` on, for the thread `caller`. Never blocks.
    pub fn read(
        self: &Arc<Self>,
        file: &Arc<FileVersion>,
        offset: u64,
        len: usize,
        caller: u32,
    ) -> ReadReply {
        let arrival = Arrival::now();
        let reply = self.begin(file, offset, len, caller, arrival);
        if matches!(reply, ReadReply::Ready(_)) {
            let target = || ReadTarget { path: file.path(), offset, len, caller };
            self.metrics.slow_reads().answered_at_once(target, arrival);
        }
        reply
    }

    /// The same for a read that arrived at `arrival`.
    fn begin(
        self: &Arc<Self>,
        file: &Arc<FileVersion>,
        offset: u64,
        len: usize,
        caller: u32,
        arrival: Arrival,
    ) -> ReadReply {
        self.pauses.note_read();
        file.activity().mark_read();
        // Reads of a draft go on to be counted, or the rest of the file would never be brought in.
        let resident = file.activity().resident().filter(|resident| resident.is_complete());
        if let Some(data) = resident.and_then(|resident| ReadData::resident(&resident, offset, len)) {
            self.metrics.read(Source::Cache, data.len() as u64, arrival.elapsed());
            return ReadReply::Ready(data);
        }
        let Some(layout) = file.layout_now() else {
            let (reader, file) = (self.clone(), file.clone());
            return ReadReply::Pending(
                async move {
                    let was_remote = file.is_remote();
                    let target = ReadTarget { path: file.path(), offset, len, caller };
                    let waiting = reader.metrics.slow_reads().begin(target, arrival);
                    let timeline = Timeline::default();
                    let resolving = timeline.begin(StepKind::Layout);
                    let resolved = reader.layout(&file, arrival).await;
                    resolving.end_with(&resolved);
                    let layout = match resolved {
                        Ok(layout) => layout,
                        Err(error) => {
                            waiting.end(Some(&error), &[timeline]);
                            return Err(error);
                        }
                    };
                    // The cluster may take longer to cache a remote object than a read may take.
                    let limit = if was_remote { Arrival::now() } else { arrival };
                    let resolved = Some((arrival, timeline.clone()));
                    match reader.read_laid_out(&file, layout, target, limit, resolved) {
                        ReadReply::Ready(data) => {
                            waiting.end(None, &[timeline]);
                            Ok(data)
                        }
                        ReadReply::Pending(rest) => {
                            drop(waiting);
                            rest.await
                        }
                    }
                }
                .boxed(),
            );
        };
        let target = ReadTarget { path: file.path(), offset, len, caller };
        self.read_laid_out(file, layout, target, arrival, None)
    }

    /// The layout of `file`, for a request that arrived at `arrival`.
    async fn layout<'a>(&self, file: &'a FileVersion, arrival: Arrival) -> Result<&'a FileLayout, ReadError> {
        if let Some(layout) = file.layout_now() {
            return Ok(layout);
        }
        // How long the cluster takes to cache a remote object does not depend on the reader.
        let shares_failure = file.is_remote();
        let resolve = async || self.loader.origin().resolve(file, arrival).await;
        file.layout().get_or_resolve(arrival, shares_failure, resolve).await
    }

    /// Reads what `target` says, of a file whose layout is known. `resolved`: when the read came,
    /// and what it took to find out the layout, if the read had to wait for that.
    fn read_laid_out(
        self: &Arc<Self>,
        file: &Arc<FileVersion>,
        layout: &FileLayout,
        target: ReadTarget<'_>,
        arrival: Arrival,
        resolved: Option<(Arrival, Timeline)>,
    ) -> ReadReply {
        let ReadTarget { offset, len, caller, .. } = target;
        let end = offset.saturating_add(len as u64).min(layout.size());
        if offset >= end {
            return ReadReply::Ready(ReadData::empty());
        }
        let pattern = self.prefetcher.observe(file, layout, offset..end);
        let mut parts = Vec::with_capacity(1);
        let mut missing = Vec::new();
        for segment in layout.segments(offset, end) {
            match segment {
                Segment::Inline(bytes) => parts.push(Some(ReadData::shared(bytes))),
                Segment::Zeros(len) => parts.push(Some(ReadData::zeros(len))),
                Segment::Object { index, range } => {
                    let object = &layout.object(index);
                    let access = file.activity().access(index, layout.object_count(), pattern);
                    for part in block_plan::plan(&self.cache, object, range, access) {
                        let loaded = self.loader.get(&part.key);
                        // In this order: a block leaves the arena after it has come to the file.
                        if loaded.is_none()
                            && let Some(data) = file.activity().resident_part(object, &part)
                        {
                            parts.push(Some(data));
                            continue;
                        }
                        let loaded = loaded.map(Joined::Cached);
                        match loaded.unwrap_or_else(|| self.loader.load(object, part.key, arrival)) {
                            Joined::Cached(loaded) => {
                                let first_source = Source::from_index(loaded.block.tag());
                                self.metrics.found_in_cache(first_source, part.range.len() as u64);
                                if self.note_use(file, object, &part, &loaded.block) {
                                    self.loader.read_again(object, &part.key, &loaded.block);
                                }
                                parts.push(Some(ReadData::block(loaded.block, part.range)));
                            }
                            Joined::InFlight(outcome) => {
                                missing.push((parts.len(), outcome, part, object.clone()));
                                parts.push(None);
                            }
                        }
                    }
                    if access == (ObjectAccess::Random { is_hot: true }) {
                        self.prefetcher.fetch_whole_object(file, object);
                    }
                }
            }
        }
        // Only now, with all blocks found or being fetched: a promotion that ended before would
        // have removed them from the cache, and this read would fetch them again.
        if file.activity().note_read(end - offset) {
            let worth = if file.size() <= MAX_SMALL_FILE_SIZE {
                PromotionReason::FirstUse
            } else {
                PromotionReason::Reuse
            };
            self.consider(file, worth);
        }
        if pattern != AccessPattern::Random {
            match file.activity().note_streamed(end - offset) {
                StreamProgress::Unremarkable => {}
                StreamProgress::Underway => self.begin_draft(file, layout),
                StreamProgress::Again => _ = self.consider(file, PromotionReason::Reread),
            }
        }
        if missing.is_empty() {
            let data = ReadData::join(parts.into_iter().flatten().collect());
            self.metrics.read(Source::Cache, data.len() as u64, arrival.elapsed());
            return ReadReply::Ready(data);
        }
        let (reader, file) = (self.clone(), file.clone());
        ReadReply::Pending(
            async move {
                let target = ReadTarget { path: file.path(), offset, len, caller };
                let came = resolved.as_ref().map_or(arrival, |(came, _)| *came);
                let waiting = reader.metrics.slow_reads().begin(target, came);
                let mut timelines = Vec::from_iter(resolved.map(|(_, timeline)| timeline));
                let mut source = Source::Cache;
                for (index, outcome, part, object) in missing {
                    let loaded = match outcome.await {
                        Ok(loaded) => loaded,
                        Err(failed) => {
                            timelines.extend(failed.timeline);
                            waiting.end(Some(&failed.error), &timelines);
                            return Err(failed.error);
                        }
                    };
                    timelines.extend(loaded.timeline);
                    reader.note_use(&file, &object, &part, &loaded.block);
                    source = loaded.source;
                    parts[index] = Some(ReadData::block(loaded.block, part.range));
                }
                waiting.end(None, &timelines);
                let data = ReadData::join(parts.into_iter().flatten().collect());
                reader.metrics.read(source, data.len() as u64, came.elapsed());
                Ok(data)
            }
            .boxed(),
        )
    }

    /// Notes that a reader was given `part`. If that is the end of a block of a file that has a
    /// draft, the block moves there. Returns whether the block was used before.
    fn note_use(&self, file: &FileVersion, object: &Object, part: &BlockRange, block: &PinnedBlock) -> bool {
        let is_again = block.mark_read(&part.range);
        if let Some(content) = file.activity().draft_content().get()
            && block.is_read_through()
        {
            self.move_to_draft(file, object, part.key, *content);
        }
        is_again
    }
}
