//! The one place where a read is answered.
//!
//! A [`FileVersion`] is one immutable state of a file: its size and, once resolved, which chunk holds which byte
//! ([`intervals`]; chunk manifests are expanded first, which takes fetches). A read is cut at the borders of extents
//! into segments, each either zeros or a range of one chunk, and each range is looked for in the cache, as
//! the whole chunk or as pieces of it ([`grain`] decides which is worth fetching).
//!
//! [`Reader::read`] runs on the thread that took the request from the kernel. If everything is in memory it answers at
//! once, without a copy when one block has all of it. Otherwise it starts the missing fetches (each block once, whoever
//! asks) and returns a future that waits for them; the answer is then put together from the blocks. Sequential streams
//! are noticed on the way and fetched ahead, as far as the fill budget of the cache allows.
//!
//! A fetch that was started for a reader goes on when the reader is interrupted: what comes is kept. One that was started on
//! speculation is given up when whoever it was for is gone ([`speculation`]), unless a reader has joined it.
//!
//! Files that are worth it are made resident ([`promote`]): complete in memory, for the kernel to read without the daemon. A
//! handle that still reads by way of the daemon is answered from the resident file.
//!
//! Of reads that the kernel answers by itself the daemon hears by eBPF, if it can ([`kernel_hints`]).
//!
//! When a fetch fails every read that waits for it fails with EIO, the block stays absent, and the next read tries
//! again. A block is never visible before it is complete and checked.

mod activity;
mod content;
mod data;
mod grain;
pub mod intervals;
mod kernel_hints;
mod layout;
mod origin;
mod outside;
mod promote;
mod speculation;
mod version;
mod warm;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::arrival::Arrival;
use crate::cache::resident::{ResidentError, ResidentFile, Residents, Worth};
use crate::cache::{BlockKey, Cache, Filling, Flights, Interrupted, Joined, PrefetchOutcome, Readable};
use crate::fetch::{Priority, Urgency};
use crate::prefetch::{Ahead, Ledger, Pattern};
use crate::seaweed::entry::{Chunk, Content, Entry};
use crate::telemetry::metrics::{Metrics, Outcome, Source, Trigger};

pub use activity::FileActivity;
pub use data::Data;
pub use kernel_hints::KernelHints;
pub use origin::{Cluster, Origin, OriginError};
pub use version::FileVersion;
pub use warm::{WarmError, Warmup};

use data::Segment;
use grain::{Access, Located};
use layout::Layout;
use outside::Outside;
use promote::Promoter;
use speculation::Interest;

/// Why a read could not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No source had the bytes.
    #[error("{0}")]
    Origin(OriginError),
    /// The list of chunks makes no sense.
    #[error("{0}")]
    Damaged(String),
    /// The object on remote storage that was opened is not there any more, and the cluster has no copy of it.
    #[error("{0}: the object on remote storage has been replaced, renamed or deleted since it was opened")]
    Replaced(String),
    /// The bytes are ciphertext of the S3 gateway, and the key is not to be had.
    #[error("{0}; only the S3 gateway can decrypt it")]
    Encrypted(String),
    /// The fetch panicked or the daemon is stopping.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// What was to be fetched on speculation found no room for long. Never the answer to a read.
    #[error("the cache has no room to fetch it to")]
    NoRoom,
}

impl ReadError {
    /// The error number that the application is given.
    pub fn errno(&self) -> i32 {
        match self {
            // What file systems that encrypt by themselves say when a key is missing (see fscrypt).
            Self::Encrypted(_) => libc::ENOKEY,
            Self::Replaced(_) => libc::ESTALE,
            Self::Origin(_) | Self::Damaged(_) | Self::Interrupted(_) | Self::NoRoom => libc::EIO,
        }
    }
}

/// A read that was answered at once, or will be.
pub enum Answer {
    /// The bytes; fewer than were asked for only at the end of the file.
    Ready(Data),
    /// Resolves when what is missing has been fetched.
    Pending(BoxFuture<'static, Result<Data, ReadError>>),
}

/// Answers reads of all files of a mount.
pub struct Reader {
    cache: Arc<Cache>,
    origin: Arc<dyn Origin>,
    flights: Flights<BlockKey, Fetched, ReadError>,
    outside: Arc<Outside>,
    metrics: Arc<Metrics>,
    max_window: u64,
    hot: Arc<dyn PrefetchOutcome>,
    open: Arc<dyn PrefetchOutcome>,
    warmup: Arc<dyn PrefetchOutcome>,
    /// Held, by the KiB, by fetches of files that somebody has asked for in advance.
    warming: Arc<Semaphore>,
    /// Held by the fetch of a hot chunk. One at a time, so that random readers, who wait for small pieces meanwhile, do not
    /// wait behind a crowd of large ones.
    hot_chunk: Arc<Semaphore>,
    /// There once files are kept resident.
    promoter: OnceLock<Promoter>,
    runtime: Handle,
}

/// Files up to this size, in bytes, are fetched whole when their turn seems to come.
pub const SMALL_FILE: u64 = 1 << 20;

/// Why a small file is expected to be read next, and who is to be told whether it was.
#[derive(Debug)]
pub enum Expected {
    /// It comes next in its directory.
    NextFile(Arc<Ledger>),
    /// It was read in the epoch before.
    Epoch(Arc<Ledger>),
}

/// What a flight brings: the block and where it came from.
#[derive(Clone)]
struct Fetched {
    block: Readable,
    source: Source,
}

fn from_cache(block: Readable) -> Fetched {
    Fetched { block, source: Source::Registered }
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
        // 32 MiB ahead keeps more than 100 Gbit/s busy at 1 ms to a volume server; more would only displace others.
        let max_window = cache.speculation_limit().min(32 << 20);
        let counted = |trigger| Arc::new(Counted { trigger, metrics: metrics.clone(), ledger: None });
        Arc::new(Self {
            flights: Flights::new(runtime.clone()),
            outside: Outside::new(cache.usage().capacity / 4, runtime.clone()),
            hot: counted(Trigger::Hot),
            open: counted(Trigger::Open),
            warmup: counted(Trigger::Warmup),
            warming: Arc::new(Semaphore::new((cache.speculation_limit() >> 10) as usize)),
            hot_chunk: Arc::new(Semaphore::new(1)),
            promoter: OnceLock::new(),
            runtime,
            cache,
            origin,
            metrics,
            max_window,
        })
    }

    /// From now on, keeps hot files as files that the kernel can read by itself. To be called by who can hand them to the
    /// kernel; before that, [`opened`](Self::opened) finds none.
    ///
    /// # Errors
    /// When this host or this cache has no room for such files. Everything else works without.
    pub fn keep_resident_files(self: &Arc<Self>) -> Result<(), ResidentError> {
        let residents = self.cache.residents()?;
        self.promoter.get_or_init(|| Promoter::start(residents.clone(), self, &self.runtime));
        Ok(())
    }

    /// A handle of `version` is opened, which counts as a use. Returns its resident file if there is one: complete, and
    /// not displaced by others before as many handles were [closed](Self::closed) as were opened. Never blocks.
    pub fn opened(&self, version: &Arc<FileVersion>) -> Option<Arc<ResidentFile>> {
        let file = self.residents()?.opened(version.content()?)?;
        version.activity().note_resident(&file);
        Some(file)
    }

    /// A handle of `version` that was [opened](Self::opened) is closed.
    pub fn closed(&self, version: &Arc<FileVersion>) {
        if let (Some(residents), Some(content)) = (self.residents(), version.content()) {
            residents.closed(&content);
        }
    }

    /// The filer says that `old` is gone, or that `new` is in its place. If the bytes are others, nobody is handed the
    /// resident file of the old ones any more; handles that have it keep it.
    pub fn replaced(&self, old: &Entry, new: Option<&Entry>) {
        let Some(residents) = self.residents() else { return };
        if new.is_some_and(|new| new.same_content(old)) {
            return;
        }
        if let Some(content) = content::content_id(old) {
            residents.retire(&content);
        }
    }

    fn residents(&self) -> Option<&Residents> {
        self.promoter.get().map(Promoter::residents)
    }

    /// The resident file of `version`. Is no use of it.
    fn resident(&self, version: &FileVersion) -> Option<Arc<ResidentFile>> {
        self.residents()?.find(&version.content()?)
    }

    /// Has nobody handed the resident file of `version` any more. Returns how many bytes that is.
    fn retire(&self, version: &FileVersion) -> u64 {
        let retire = || {
            let (residents, content) = (self.residents()?, version.content()?);
            let file = residents.find(&content)?;
            residents.retire(&content);
            Some(file.len())
        };
        retire().unwrap_or(0)
    }

    /// The counters that reads go to.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Up to `len` bytes of `file` from `offset` on. Never blocks.
    pub fn read(self: &Arc<Self>, file: &Arc<FileVersion>, offset: u64, len: usize) -> Answer {
        let begun = Arrival::now();
        file.activity().mark_read();
        if let Some(data) =
            file.activity().resident().and_then(|resident| Data::resident(&resident, offset, len))
        {
            self.metrics.read(Source::Registered, data.len() as u64, begun.elapsed());
            return Answer::Ready(data);
        }
        let Some(layout) = file.layout_now() else {
            let (reader, file) = (self.clone(), file.clone());
            return Answer::Pending(
                async move {
                    let was_remote = file.is_remote();
                    let layout = file.layout(&*reader.origin, begun).await?;
                    // Bringing an object into the cluster may take longer than a read may.
                    let begun = if was_remote { Arrival::now() } else { begun };
                    match reader.read_laid_out(&file, layout, offset, len, begun) {
                        Answer::Ready(data) => Ok(data),
                        Answer::Pending(rest) => rest.await,
                    }
                }
                .boxed(),
            );
        };
        self.read_laid_out(file, layout, offset, len, begun)
    }

    fn read_laid_out(
        self: &Arc<Self>,
        file: &Arc<FileVersion>,
        layout: &Layout,
        offset: u64,
        len: usize,
        begun: Arrival,
    ) -> Answer {
        let end = offset.saturating_add(len as u64).min(layout.size());
        if offset >= end {
            return Answer::Ready(Data::empty());
        }
        let pattern = self.follow_streams(file, layout, offset, end);
        if pattern != Pattern::Random {
            file.activity().kernel_hints().deferred.note_streamed(Instant::now());
        }
        let mut parts = Vec::with_capacity(1);
        let mut missing = Vec::new();
        for segment in layout.segments(offset, end) {
            match segment {
                Segment::Bytes(bytes) => parts.push(Some(Data::shared(bytes))),
                Segment::Zeros(len) => parts.push(Some(Data::zeros(len))),
                Segment::Chunk { index, range } => {
                    let chunk = layout.chunk(index);
                    let access = file.activity().access(index, layout.chunk_count(), pattern);
                    for located in grain::locate(&self.cache, chunk, range, access) {
                        match self.join(chunk, located.key, begun) {
                            Joined::Landed(fetched) => {
                                self.note_use(file, &located, &fetched.block, pattern);
                                parts.push(Some(Data::block(fetched.block, located.range)));
                            }
                            Joined::Waiting(outcome) => {
                                missing.push((parts.len(), outcome, located));
                                parts.push(None);
                            }
                        }
                    }
                    if access == (Access::Random { hot: true }) {
                        self.fetch_hot_chunk(file, chunk);
                    }
                }
            }
        }
        // Its blocks are found, or on their way by now: a promotion that was over before would have given them up, and this
        // read would fetch them again.
        if file.activity().note_read(end - offset) {
            let worth = if file.size() <= SMALL_FILE { Worth::IfRoom } else { Worth::IfReused };
            self.consider(file, worth);
        }
        if missing.is_empty() {
            let data = Data::join(parts.into_iter().flatten().collect());
            self.metrics.read(Source::Registered, data.len() as u64, begun.elapsed());
            return Answer::Ready(data);
        }
        let (reader, file) = (self.clone(), file.clone());
        Answer::Pending(
            async move {
                let mut source = Source::Registered;
                for (index, outcome, located) in missing {
                    let fetched = outcome.await?;
                    reader.note_use(&file, &located, &fetched.block, pattern);
                    source = fetched.source;
                    parts[index] = Some(Data::block(fetched.block, located.range));
                }
                let data = Data::join(parts.into_iter().flatten().collect());
                reader.metrics.read(source, data.len() as u64, begun.elapsed());
                Ok(data)
            }
            .boxed(),
        )
    }

    fn note_use(&self, file: &Arc<FileVersion>, located: &Located, block: &Readable, pattern: Pattern) {
        block.mark_read(&located.range);
        if pattern != Pattern::Random && self.cache.consumed(&located.key, block, located.range.len()) {
            self.consider(file, Worth::ReadAgain);
        }
    }

    /// Has the file made resident if it is worth it. Returns whether it is resident or waits to be made so.
    fn consider(&self, file: &Arc<FileVersion>, worth: Worth) -> bool {
        self.promoter.get().is_some_and(|promoter| promoter.consider(file, worth))
    }

    /// The block under `key`, from the cache or from a fetch that this starts or joins, for a reader that came at `arrival`.
    fn join(self: &Arc<Self>, chunk: &Chunk, key: BlockKey, arrival: Arrival) -> Joined<Fetched, ReadError> {
        if let Some(block) = self.find(&key) {
            return Joined::Landed(from_cache(block));
        }
        self.flights.join_for(
            key,
            Some(arrival),
            || self.find(&key).map(from_cache),
            |priority| {
                let (reader, chunk) = (self.clone(), chunk.clone());
                async move {
                    let len = grain::span(&chunk, key.part).1;
                    let filling = reader.cache.fill(key, len).await;
                    reader.fill(chunk, key, filling, &priority).await
                }
            },
        )
    }

    /// The block under `key`, if it is in memory.
    fn find(&self, key: &BlockKey) -> Option<Readable> {
        self.cache.get(key).or_else(|| self.outside.get(key))
    }

    /// Fetches a block into the cache.
    async fn fill(
        self: Arc<Self>,
        chunk: Chunk,
        key: BlockKey,
        mut filling: Filling,
        priority: &Priority,
    ) -> Result<Fetched, ReadError> {
        let offset = grain::span(&chunk, key.part).0;
        let read = self.origin.read_chunk(&chunk, offset, &mut filling, priority);
        let source = read.await.map_err(ReadError::Origin)?;
        let is_outside = !filling.in_arena();
        let block = filling.publish();
        if is_outside {
            self.outside.hold(key, block.clone());
        }
        Ok(Fetched { block, source })
    }

    /// Notes the read with the streams of its file, fetches ahead what they advise, and says how it fits in.
    fn follow_streams(
        self: &Arc<Self>,
        file: &FileVersion,
        layout: &Layout,
        offset: u64,
        end: u64,
    ) -> Pattern {
        let Some(streams) = file.activity().streams() else { return Pattern::Random };
        let advice = streams.lock().observe(offset, end - offset, self.max_window);
        if let Some(ahead) = &advice.ahead
            && let Err(declined) = self.run_ahead(file, layout, ahead, advice.pattern)
        {
            streams.lock().decline(ahead, declined);
        }
        advice.pattern
    }

    /// Starts to fetch what a stream advises. The error is the byte of the file from which on there was no room.
    fn run_ahead(
        self: &Arc<Self>,
        file: &FileVersion,
        layout: &Layout,
        ahead: &Ahead,
        pattern: Pattern,
    ) -> Result<(), u64> {
        let Some(access) = Access::of(pattern) else { return Ok(()) };
        let trigger = match access {
            Access::Strided { .. } => Trigger::Strided,
            Access::Sequential | Access::Random { .. } => Trigger::Sequential,
        };
        let outcome = self.outcome(trigger, &ahead.ledger);
        let interest = file.activity().interest();
        for wanted in &ahead.ranges {
            for segment in layout.segments(wanted.start, wanted.end) {
                if let Segment::Chunk { index, range } = segment
                    && !self.fetch_ahead(layout.chunk(index), &range, access, &outcome, Some(&interest))
                {
                    return Err(layout.chunk(index).offset + range.start);
                }
            }
        }
        Ok(())
    }

    /// Has `ledger` told of what is fetched ahead for one guesser.
    fn outcome(&self, trigger: Trigger, ledger: &Arc<Ledger>) -> Arc<dyn PrefetchOutcome> {
        Arc::new(Counted { trigger, metrics: self.metrics.clone(), ledger: Some(ledger.clone()) })
    }

    /// Starts to fetch all of a chunk that is read at random again and again, unless another one is being fetched so.
    fn fetch_hot_chunk(self: &Arc<Self>, file: &FileVersion, chunk: &Chunk) {
        for key in grain::large_blocks(chunk, &(0..chunk.size)) {
            if !self.is_wanted(&key) {
                continue;
            }
            let Ok(turn) = self.hot_chunk.clone().try_acquire_owned() else { return };
            if !self.start(chunk, key, &self.hot, Some(file.activity().interest()), turn) {
                return;
            }
        }
    }

    /// How much epochs may reckon with now, in bytes: what blocks may take, and what may wait in it for its readers.
    pub fn room_for_epochs(&self) -> (u64, u64) {
        (self.cache.room_for_blocks(), self.cache.speculation_limit())
    }

    /// The size of the cache.
    pub fn cache_capacity(&self) -> u64 {
        self.cache.usage().capacity
    }

    /// Starts to fetch a file that was opened for the first time, if it is small: its first read is sure to come, and joins.
    pub fn fetch_opened(self: &Arc<Self>, file: &FileVersion) {
        if self.resident(file).is_none() {
            self.fetch_whole(small_file(file.entry()), &self.open);
        }
    }

    /// Starts to fetch what is not there of a file of at most [`SMALL_FILE`] bytes that is expected to be read next; others
    /// are left alone. Returns how many bytes that is, or nothing if there is no room.
    pub fn fetch_small_file(self: &Arc<Self>, entry: &Entry, expected: &Expected) -> Option<u64> {
        let chunks = small_file(entry);
        if chunks.is_empty() || self.is_resident(entry) {
            return Some(0);
        }
        match expected {
            Expected::NextFile(ledger) => self.fetch_whole(chunks, &self.outcome(Trigger::NextFile, ledger)),
            Expected::Epoch(ledger) => self.fetch_whole(chunks, &self.outcome(Trigger::Epoch, ledger)),
        }
    }

    fn is_resident(&self, entry: &Entry) -> bool {
        let find = |residents: &Residents| residents.find(&content::content_id(entry)?);
        self.residents().and_then(find).is_some()
    }

    fn fetch_whole(self: &Arc<Self>, chunks: &[Chunk], outcome: &Arc<dyn PrefetchOutcome>) -> Option<u64> {
        let mut bytes = 0;
        for chunk in chunks.iter().filter(|chunk| (1..=SMALL_FILE).contains(&chunk.size)) {
            for key in grain::large_blocks(chunk, &(0..chunk.size)).filter(|key| self.is_wanted(key)) {
                if !self.start(chunk, key, outcome, None, ()) {
                    return None;
                }
                bytes += grain::span(chunk, key.part).1 as u64;
            }
        }
        Some(bytes)
    }

    /// Starts to fetch the blocks of `chunk` that a read of `range` will want, unless they are there or on their way. Returns
    /// whether there was room for all of them.
    fn fetch_ahead(
        self: &Arc<Self>,
        chunk: &Chunk,
        range: &std::ops::Range<u64>,
        access: Access,
        outcome: &Arc<dyn PrefetchOutcome>,
        interest: Option<&Interest>,
    ) -> bool {
        let blocks = grain::locate(&self.cache, chunk, range.clone(), access).into_iter();
        let mut wanted = blocks.map(|located| located.key).filter(|key| self.is_wanted(key));
        wanted.all(|key| self.start(chunk, key, outcome, interest.cloned(), ()))
    }

    fn is_wanted(&self, key: &BlockKey) -> bool {
        !self.cache.contains(key) && !self.flights.contains(key)
    }

    /// Starts to fetch a block that nobody has asked for, holding `token` until it is there or given up because there is no
    /// `interest` any more. Returns whether there was room for it.
    fn start(
        self: &Arc<Self>,
        chunk: &Chunk,
        key: BlockKey,
        outcome: &Arc<dyn PrefetchOutcome>,
        interest: Option<Interest>,
        token: impl Send + 'static,
    ) -> bool {
        let len = grain::span(chunk, key.part).1;
        let Some(filling) = self.cache.try_fill(key, len, outcome.clone()) else { return false };
        let (reader, chunk) = (self.clone(), chunk.clone());
        let fetch = |priority: Priority| async move {
            let _token = token;
            let fill = reader.fill(chunk, key, filling, &priority);
            speculation::run(fill, &priority, interest).await
        };
        // If another thread was faster, its fetch brings the block and this one is dropped.
        let _ = self.flights.join(key, Urgency::Speculative, || None, fetch);
        true
    }
}

/// The chunks of a file of at most [`SMALL_FILE`] bytes that are known without a fetch; none of others.
fn small_file(entry: &Entry) -> &[Chunk] {
    match &entry.content {
        Content::Chunks(chunks)
            if entry.attr.size <= SMALL_FILE && !chunks.iter().any(|chunk| chunk.is_manifest) =>
        {
            chunks
        }
        _ => &[],
    }
}

/// Tells the metrics, and who guessed, what became of blocks that were fetched for one reason.
struct Counted {
    trigger: Trigger,
    metrics: Arc<Metrics>,
    /// Of whoever thought that they would be wanted, if he learns from it.
    ledger: Option<Arc<Ledger>>,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trigger.fmt(f)
    }
}

impl PrefetchOutcome for Counted {
    fn fetched(&self, bytes: usize) {
        self.metrics.fetched_ahead(self.trigger, bytes as u64);
    }

    fn used(&self, bytes: usize) {
        self.metrics.prefetch(self.trigger, Outcome::Used, bytes as u64);
        if let Some(ledger) = &self.ledger {
            ledger.used(bytes as u64);
        }
    }

    fn wasted(&self, bytes: usize) {
        self.metrics.prefetch(self.trigger, Outcome::Wasted, bytes as u64);
        if let Some(ledger) = &self.ledger {
            ledger.wasted(bytes as u64);
        }
    }
}
