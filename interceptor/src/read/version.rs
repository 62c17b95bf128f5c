//! One immutable state of a file.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::content::content_id;
use super::hot_ranges::HotRanges;
use super::layout::Layout;
use super::put_off::PutOff;
use super::speculation::{Holder, Interest};
use super::{Origin, ReadError, SMALL_FILE};
use crate::arrival::Arrival;
use crate::cache::resident::{ContentId, ResidentFile};
use crate::prefetch::{Ledger, Streams};
use crate::seaweed::entry::{Chunk, Content, Entry};

/// Files up to this size are one or two fetches; following streams in them brings nothing.
const STREAMED_FROM: u64 = 1 << 20;
/// Manifests may list manifests; SeaweedFS makes one level for each factor of 10,000 chunks, so this many never occur.
const MAX_DEPTH: u32 = 8;
/// Chunks of one file: 8 TB in chunks of 2 MiB, which take 300 MB of memory.
const MAX_CHUNKS: usize = 4_000_000;
/// A read of less than this has cost about as much as one of so many bytes.
const LEAST_READ: u64 = 64 << 10;
/// A request that has waited for so much less than another shares its failure: it would have about
/// a second at most.
const SHARED_TIME: Duration = Duration::from_secs(1);
/// Manifests of one file that are fetched at the same time.
const MANIFESTS_AT_ONCE: usize = 8;

/// One immutable state of a file's content. Reads of it give the same bytes for ever, whatever happens to the name it
/// was found under.
#[derive(Debug)]
pub struct FileVersion {
    path: Box<str>,
    entry: Arc<Entry>,
    layout: OnceCell<Layout>,
    layout_failure: Mutex<Option<LayoutFailure>>,
    streams: Option<Mutex<Streams>>,
    /// Of what is fetched ahead; made with the first of it.
    holder: OnceLock<Holder>,
    was_read: AtomicBool,
    was_refused: AtomicBool,
    content: OnceLock<Option<ContentId>>,
    /// Its resident file, as far as is known here.
    resident: Mutex<Weak<ResidentFile>>,
    /// Bytes that were read since it was last considered whether the file should be resident.
    read: AtomicU64,
    /// Bytes that turned hot since that was last considered for it.
    hot: AtomicU64,
    /// Those of them that the daemon has not been asked for since.
    hot_ranges: HotRanges,
    /// What turned hot while it was read front to back.
    pub(super) put_off: PutOff,
    /// What became of what was fetched for readers that the page cache had served so far.
    seen_ahead: OnceLock<Arc<Ledger>>,
}

/// Why a layout could not be had.
#[derive(Debug)]
struct LayoutFailure {
    at: Instant,
    /// How long the request had waited by then.
    waited: Duration,
    error: ReadError,
}

impl FileVersion {
    /// The version that `entry` describes, found at the filer's `path` (for remote-only files and log lines). Does no
    /// I/O: what must be fetched to know where the content is, is fetched at the first read.
    pub fn new(path: &str, entry: Arc<Entry>) -> Arc<Self> {
        let size = entry.attr.size;
        let streams = (size > STREAMED_FROM).then(|| Mutex::new(Streams::new(size)));
        Arc::new(Self {
            path: path.into(),
            entry,
            layout: OnceCell::new(),
            layout_failure: Mutex::new(None),
            streams,
            holder: OnceLock::new(),
            was_read: AtomicBool::new(false),
            was_refused: AtomicBool::new(false),
            content: OnceLock::new(),
            resident: Mutex::default(),
            read: AtomicU64::new(0),
            hot: AtomicU64::new(0),
            hot_ranges: HotRanges::default(),
            put_off: PutOff::default(),
            seen_ahead: OnceLock::new(),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.entry.attr.size
    }

    /// The path at which this version was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether anything was read from it.
    pub fn was_read(&self) -> bool {
        self.was_read.load(Ordering::Relaxed)
    }

    /// Whether it is a small file that is about to be read for the first time: none of it is in the page cache, and reads will come.
    pub(crate) fn is_small_and_unread(&self) -> bool {
        !self.was_read() && self.size() <= SMALL_FILE
    }

    pub(super) fn mark_read(&self) {
        // Most reads are not the first; they leave the line of memory shared.
        if !self.was_read() {
            self.was_read.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What names its bytes, if the entry says which they are.
    pub(super) fn content(&self) -> Option<ContentId> {
        *self.content.get_or_init(|| content_id(&self.entry))
    }

    /// The resident file with these bytes, unless there is none, or it is not known here.
    pub(super) fn resident(&self) -> Option<Arc<ResidentFile>> {
        self.resident.lock().upgrade()
    }

    /// Remembers that the file with these bytes is resident.
    pub(super) fn note_resident(&self, file: &Arc<ResidentFile>) {
        *self.resident.lock() = Arc::downgrade(file);
    }

    /// Notes that `bytes` were read, and says whether that makes about half of the file since it last did.
    pub(super) fn note_read(&self, bytes: u64) -> bool {
        let bytes = bytes.max(LEAST_READ);
        let is_due = self.read.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= self.size() / 2;
        if is_due {
            self.read.store(0, Ordering::Relaxed);
        }
        is_due
    }

    /// Notes that `bytes` turned hot, and says whether that makes about half of the file since it last did.
    pub(super) fn note_hot(&self, bytes: u64) -> bool {
        let is_due = self.hot.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) >= self.size() / 2;
        if is_due {
            self.hot.store(0, Ordering::Relaxed);
        }
        is_due
    }

    /// Notes a range that is read again and again through the page cache.
    pub fn note_hot_range(&self, range: Range<u64>) {
        self.hot_ranges.note(range);
    }

    /// The range that was [noted](Self::note_hot_range) and holds the byte at `offset`, if there is one. It is forgotten, so that it is told
    /// once for each time that it turns hot.
    pub fn take_hot(&self, offset: u64) -> Option<Range<u64>> {
        self.hot_ranges.take(offset)
    }

    /// The account of what is fetched for readers that the page cache has served so far.
    pub(super) fn seen_ahead(&self) -> &Arc<Ledger> {
        self.seen_ahead.get_or_init(Arc::default)
    }

    /// Why no byte of it can be read, if that is known without a fetch.
    pub(crate) fn refusal(&self) -> Option<ReadError> {
        match &self.entry.content {
            Content::Encrypted { reason } => Some(self.encrypted(reason)),
            _ => None,
        }
    }

    /// Whether nobody was refused it before: programs that try again get one line in the log.
    pub(crate) fn is_first_refusal(&self) -> bool {
        !self.was_refused.swap(true, Ordering::Relaxed)
    }

    fn encrypted(&self, reason: &str) -> ReadError {
        ReadError::Encrypted(format!("{}: {reason}", self.path))
    }

    /// Whether no chunk of it is in the cluster, as far as is known.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.entry.content, Content::Remote(_)) && self.layout.get().is_none()
    }

    pub(super) fn streams(&self) -> Option<&Mutex<Streams>> {
        self.streams.as_ref()
    }

    /// That of this version in what is fetched ahead of its readers; lost when the version is forgotten.
    pub(super) fn interest(&self) -> Interest {
        self.holder.get_or_init(Holder::new).interest()
    }

    /// The layout, if it is known or follows from the entry alone.
    pub(super) fn layout_now(&self) -> Option<&Layout> {
        if let Some(layout) = self.layout.get() {
            return Some(layout);
        }
        let layout = match &self.entry.content {
            Content::None | Content::Target(_) => Layout::inline(Bytes::new(), self.size()),
            Content::Inline(bytes) => Layout::inline(bytes.clone(), self.size()),
            Content::Chunks(chunks) if !chunks.iter().any(|chunk| chunk.is_manifest) => {
                Layout::chunks(chunks.clone(), self.size()).ok()?
            }
            Content::Chunks(_) | Content::Remote(_) | Content::Encrypted { .. } | Content::Damaged { .. } => {
                return None;
            }
        };
        // Another thread may have been faster; both layouts are the same.
        let _ = self.layout.set(layout);
        self.layout.get()
    }

    /// The layout, fetching what it takes, for a request that arrived at `arrival`.
    pub(super) async fn layout(&self, origin: &dyn Origin, arrival: Arrival) -> Result<&Layout, ReadError> {
        self.layout
            .get_or_try_init(async || {
                if let Some(error) = self.failure_for(arrival) {
                    return Err(error);
                }
                let found = self.fetch_layout(origin, arrival).await;
                if let Err(error) = &found {
                    self.layout_failed(Instant::now(), arrival, error.clone());
                }
                found
            })
            .await
    }

    /// What another request has failed with, if this one was waiting for the same then, and about
    /// as long; else it has time left to try by itself. How long an object takes to come into the
    /// cluster does not depend on who waits.
    pub(super) fn failure_for(&self, arrival: Arrival) -> Option<ReadError> {
        let failure = self.layout_failure.lock();
        let failure = failure.as_ref().filter(|failure| failure.at >= arrival.deadline(Duration::ZERO))?;
        let has_waited = self.is_remote() || arrival.elapsed() + SHARED_TIME >= failure.waited;
        has_waited.then(|| failure.error.clone())
    }

    /// A request that arrived at `arrival` has failed.
    pub(super) fn layout_failed(&self, at: Instant, arrival: Arrival, error: ReadError) {
        let waited = at - arrival.deadline(Duration::ZERO);
        *self.layout_failure.lock() = Some(LayoutFailure { at, waited, error });
    }

    async fn fetch_layout(&self, origin: &dyn Origin, arrival: Arrival) -> Result<Layout, ReadError> {
        let chunks = match &self.entry.content {
            Content::Chunks(chunks) => chunks.clone(),
            Content::Remote(object) => {
                let cached = origin.cache_remote(&self.path, object).await;
                let cached = cached.map_err(ReadError::Origin)?;
                let Some(cached) = cached.filter(|cached| cached.attr.size == self.size()) else {
                    return Err(ReadError::Replaced(self.path.to_string()));
                };
                match cached.content {
                    Content::Chunks(chunks) => chunks,
                    Content::Inline(bytes) => return Ok(Layout::inline(bytes, self.size())),
                    Content::Encrypted { reason } => return Err(self.encrypted(&reason)),
                    _ => {
                        return Err(ReadError::Damaged(format!(
                            "{}: the cluster did not bring it from its remote storage",
                            self.path
                        )));
                    }
                }
            }
            Content::Encrypted { reason } => return Err(self.encrypted(reason)),
            Content::Damaged { reason } => {
                return Err(ReadError::Damaged(format!("{}: {reason}", self.path)));
            }
            Content::Inline(bytes) => return Ok(Layout::inline(bytes.clone(), self.size())),
            Content::None | Content::Target(_) => {
                return Ok(Layout::inline(Bytes::new(), self.size()));
            }
        };
        Layout::chunks(expand(origin, &chunks, arrival).await?.into(), self.size())
    }
}

/// Replaces every manifest by the chunks it lists, in place, so that the order of the list is kept. Level by level: what
/// one level lists is counted before any of the next is fetched.
async fn expand(origin: &dyn Origin, chunks: &[Chunk], arrival: Arrival) -> Result<Vec<Chunk>, ReadError> {
    let mut expanded = chunks.to_vec();
    let mut known = HashSet::new();
    for _ in 0..MAX_DEPTH {
        let manifests: Vec<_> = expanded.iter().filter(|chunk| chunk.is_manifest).cloned().collect();
        let Some(first) = manifests.first().map(|manifest| manifest.fid) else { return Ok(expanded) };
        if let Some(again) = manifests.iter().find(|manifest| known.contains(&manifest.fid)) {
            return Err(ReadError::Damaged(format!("chunk manifest {} lists itself", again.fid)));
        }
        known.extend(manifests.iter().map(|manifest| manifest.fid));
        let mut count = expanded.len();
        let too_many = format!("chunk manifest {first} and its like list more than {MAX_CHUNKS} chunks");
        let mut listed = VecDeque::with_capacity(manifests.len());
        let mut lists = stream::iter(manifests)
            .map(|manifest| async move { origin.read_manifest(&manifest, arrival).await })
            .buffered(MANIFESTS_AT_ONCE);
        while let Some(list) = lists.try_next().await? {
            count += list.len();
            if count > MAX_CHUNKS {
                return Err(ReadError::Damaged(too_many));
            }
            listed.push_back(list);
        }
        expanded = expanded
            .into_iter()
            .flat_map(|chunk| match chunk.is_manifest {
                // As many lists as there are manifests, in their order.
                true => listed.pop_front().unwrap_or_default(),
                false => vec![chunk],
            })
            .collect();
    }
    match expanded.iter().find(|chunk| chunk.is_manifest) {
        Some(deepest) => {
            Err(ReadError::Damaged(format!("chunk manifests nest too deeply at {}", deepest.fid)))
        }
        None => Ok(expanded),
    }
}
