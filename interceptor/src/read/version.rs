//! One immutable state of a file.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::activity::FileActivity;
use super::content::content_id;
use super::layout::Layout;
use super::{Origin, ReadError, SMALL_FILE};
use crate::arrival::Arrival;
use crate::cache::resident::ContentId;
use crate::seaweed::entry::{Chunk, Content, Entry};

/// Manifests may list manifests; SeaweedFS makes one level for each factor of 10,000 chunks, so this many never occur.
const MAX_DEPTH: u32 = 8;
/// Chunks of one file: 8 TB in chunks of 2 MiB, which take 300 MB of memory.
const MAX_CHUNKS: usize = 4_000_000;
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
    content: OnceLock<Option<ContentId>>,
    activity: FileActivity,
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
        Arc::new(Self {
            path: path.into(),
            entry,
            layout: OnceCell::new(),
            layout_failure: Mutex::new(None),
            content: OnceLock::new(),
            activity: FileActivity::new(size),
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

    /// What its readers have done.
    pub fn activity(&self) -> &FileActivity {
        &self.activity
    }

    /// Whether it is a small file that is about to be read for the first time: none of it is in the page cache, and reads will come.
    pub(crate) fn is_small_and_unread(&self) -> bool {
        !self.activity.was_read() && self.size() <= SMALL_FILE
    }

    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What names its bytes, if the entry says which they are.
    pub(super) fn content(&self) -> Option<ContentId> {
        *self.content.get_or_init(|| content_id(&self.entry))
    }

    /// Why no byte of it can be read, if that is known without a fetch.
    pub(crate) fn refusal(&self) -> Option<ReadError> {
        match &self.entry.content {
            Content::Encrypted { reason } => Some(self.encrypted(reason)),
            _ => None,
        }
    }

    fn encrypted(&self, reason: &str) -> ReadError {
        ReadError::Encrypted(format!("{}: {reason}", self.path))
    }

    /// Whether no chunk of it is in the cluster, as far as is known.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.entry.content, Content::Remote(_)) && self.layout.get().is_none()
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
