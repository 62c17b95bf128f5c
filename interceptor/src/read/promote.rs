//! Promotion: makes files resident.
//!
//! A file is considered when about half of its bytes have been read by way of the daemon (a small
//! one at its first read, a larger one if it was used before), when about half of them are hot in
//! the page cache (`kernel_hints`), or when a block that a stream had read is fetched again
//! (`Reader::note_use`). If it is worth it ([`PromotionReason`], decided in
//! `cache/resident/table.rs`), it waits in one of two queues: large files are promoted one at a
//! time, small ones several side by side, so that these do not wait behind gigabytes.
//!
//! The bytes come block by block through the [`BlockLoader`](super::loader::BlockLoader), so each
//! block is fetched once, and checked, whether a reader needs it too or not. Absent blocks are
//! fetched with the priority of speculation, which leaves half of the fill budget to readers. If
//! there is no room for long, the promotion fails. When the file is complete its blocks leave the
//! arena, and handles that read by way of the daemon are answered from the file.

use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, Stream, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::block_plan::{self, BlockRange};
use super::data::ReadData;
use super::layout::{FileLayout, Object, Segment};
use super::{FileVersion, MAX_SMALL_FILE_SIZE, ReadError, Reader};
use crate::arrival::Arrival;
use crate::cache::BlockKey;
use crate::cache::resident::{
    Promotion, PromotionCandidate, PromotionReason, ResidentAppend, ResidentFile, ResidentFiles,
};
use crate::vital::contained_task;

/// How many files may wait in each queue. Others are considered again when they are read again.
const QUEUE_CAPACITY: usize = 4096;
/// Small files that are promoted at the same time.
const MAX_CONCURRENT_SMALL_FILES: usize = 8;
/// Blocks of one file that are fetched at the same time: enough to keep the writer busy, and 16
/// MiB with usual chunks.
const MAX_CONCURRENT_BLOCKS: usize = 4;

/// The queues of files to promote. Their tasks end when this is dropped.
pub(super) struct Promoter {
    residents: Arc<ResidentFiles>,
    small: mpsc::Sender<PromotionRequest>,
    large: mpsc::Sender<PromotionRequest>,
}

struct PromotionRequest {
    version: Arc<FileVersion>,
    candidate: PromotionCandidate,
}

impl Promoter {
    /// Starts the tasks, which fetch by way of `reader`.
    pub(super) fn start(residents: Arc<ResidentFiles>, reader: &Arc<Reader>, runtime: &Handle) -> Self {
        let queue = |max_concurrent| {
            let (sender, requests) = mpsc::channel(QUEUE_CAPACITY);
            runtime.spawn(promote_all(Arc::downgrade(reader), requests, max_concurrent));
            sender
        };
        Self { residents, small: queue(MAX_CONCURRENT_SMALL_FILES), large: queue(1) }
    }

    /// The files that are resident.
    pub(super) fn residents(&self) -> &ResidentFiles {
        &self.residents
    }

    /// Queues `version` for promotion if it is worth it. Returns whether it is resident, or
    /// queued.
    pub(super) fn consider(&self, version: &Arc<FileVersion>, worth: PromotionReason) -> bool {
        let Some(id) = version.content_id() else { return false };
        if let Some(file) = self.residents.find(&id) {
            version.activity().note_resident(&file);
            return true;
        }
        let Some(candidate) = self.residents.request_promotion(id, version.size(), worth) else {
            return false;
        };
        let queue = if version.size() <= MAX_SMALL_FILE_SIZE { &self.small } else { &self.large };
        queue.try_send(PromotionRequest { version: version.clone(), candidate }).is_ok()
    }
}

#[cfg(test)]
impl Promoter {
    /// Whether no file waits or is being promoted.
    pub(super) fn is_idle(&self) -> bool {
        self.residents.usage().waiting == 0
    }
}

async fn promote_all(
    reader: Weak<Reader>,
    requests: mpsc::Receiver<PromotionRequest>,
    max_concurrent: usize,
) {
    let promote = |request| {
        let reader = reader.upgrade();
        async move {
            if let Some(reader) = reader {
                contained_task(reader.promote(request)).await;
            }
        }
    };
    ReceiverStream::new(requests).for_each_concurrent(max_concurrent, promote).await;
}

/// A part of a file that is not a hole.
struct FilePart {
    /// Where in the file it begins, in bytes.
    offset: u64,
    source: PartSource,
}

/// The bytes of a part, and the key of its block if that was fetched for the promotion alone.
type FetchedPart = Result<(ReadData, Option<BlockKey>), ReadError>;

enum PartSource {
    Bytes(Bytes),
    Block(Object, BlockRange),
}

/// The parts of a file from `offset` on, without holes.
fn parts(layout: &FileLayout, mut offset: u64) -> Vec<FilePart> {
    let mut parts = Vec::new();
    for segment in layout.segments(offset, layout.size()) {
        match segment {
            Segment::Zeros(len) => offset += len as u64,
            Segment::Inline(bytes) => {
                let len = bytes.len() as u64;
                parts.push(FilePart { offset, source: PartSource::Bytes(bytes) });
                offset += len;
            }
            Segment::Object { index, range } => {
                let object = &layout.objects()[index];
                for part in block_plan::plan_large(object, &range) {
                    let len = part.range.len() as u64;
                    parts.push(FilePart { offset, source: PartSource::Block(object.clone(), part) });
                    offset += len;
                }
            }
        }
    }
    parts
}

impl Reader {
    async fn promote(self: &Arc<Self>, request: PromotionRequest) {
        let PromotionRequest { version, candidate } = request;
        let parts = match self.layout(&version, Arrival::now()).await {
            Ok(layout) => parts(layout, 0),
            Err(error) => {
                tracing::debug!(path = version.path(), %error, "a file cannot be kept in memory");
                return;
            }
        };
        // Blocks: closing and unmapping the displaced files takes a while.
        let made = tokio::task::spawn_blocking(|| candidate.make_room()).await;
        let Ok(Some(mut promotion)) = made else { return };
        let keys: Vec<_> = parts.iter().filter_map(FilePart::key).collect();
        let mut fetched = self.fetch_parts(parts);
        while let Some((offset, data)) = fetched.next().await {
            promotion = match self.write_part(promotion, offset, data).await {
                Some(promotion) => promotion,
                None => return,
            };
        }
        if let Some(file) = promotion.complete().await {
            version.activity().note_resident(&file);
            keys.iter().for_each(|key| _ = self.cache.remove(key));
        }
    }

    /// Appends to the resident `file` of `before` what `version`, which begins with the same
    /// bytes, has more. `handles` tells for how many handles of `before` the file is passed
    /// through. `None` if it cannot be done; the file is then as it was.
    pub(crate) async fn extend_resident(
        self: &Arc<Self>,
        file: Arc<ResidentFile>,
        handles: impl Fn() -> u32 + Send + 'static,
        before: &FileVersion,
        version: &FileVersion,
    ) -> Option<ResidentAppend> {
        let (content, len) = (before.content_id()?, version.size());
        let parts = match self.layout(version, Arrival::now()).await {
            Ok(layout) => parts(layout, file.grown_len().min(len)),
            Err(_) => return None,
        };
        let residents = self.promoter.get()?.residents.clone();
        let extend = move || residents.extend(file, &content, handles, len);
        let mut extension = tokio::task::spawn_blocking(extend).await.ok()??;
        let mut fetched = self.fetch_parts(parts);
        while let Some((offset, part)) = fetched.next().await {
            let (data, fetched) = part.ok()?;
            (extension, _) = extension.write(data, offset).await?;
            fetched.iter().for_each(|key| _ = self.cache.remove(key));
        }
        Some(extension)
    }

    /// The last byte of `version`, which must not be empty.
    pub(crate) async fn last_byte(self: &Arc<Self>, version: &FileVersion) -> Result<u8, ReadError> {
        let layout = self.layout(version, Arrival::now()).await?;
        let parts = parts(layout, version.size().saturating_sub(1));
        match self.fetch_parts(parts).next().await {
            Some((_, part)) => Ok(part?.0.first().copied().unwrap_or_default()),
            None => Ok(0),
        }
    }

    /// Fetches parts of a file. They come in their order.
    fn fetch_parts(
        self: &Arc<Self>,
        parts: Vec<FilePart>,
    ) -> impl Stream<Item = (u64, FetchedPart)> + Unpin + use<> {
        let reader = self.clone();
        let fetch = move |part: FilePart| {
            let reader = reader.clone();
            async move { (part.offset, reader.fetch_part(part.source).await) }.boxed()
        };
        stream::iter(parts).map(fetch).buffered(MAX_CONCURRENT_BLOCKS)
    }

    /// Writes a part of a file, and evicts its block if that was fetched for the promotion.
    async fn write_part(&self, promotion: Promotion, offset: u64, part: FetchedPart) -> Option<Promotion> {
        match part {
            Ok((data, fetched)) => {
                let (promotion, _) = promotion.write(data, offset).await?;
                if let Some(key) = fetched {
                    self.cache.remove(&key);
                }
                Some(promotion)
            }
            Err(error) => {
                promotion.fail(io::Error::other(error));
                None
            }
        }
    }

    async fn fetch_part(self: Arc<Self>, source: PartSource) -> FetchedPart {
        let (object, part) = match source {
            PartSource::Bytes(bytes) => return Ok((ReadData::shared(bytes), None)),
            PartSource::Block(object, part) => (object, part),
        };
        let (block, was_fetched) = self.loader.load_below_readers(&object, part.key).await?;
        Ok((ReadData::block(block, part.range), was_fetched.then_some(part.key)))
    }
}

impl FilePart {
    fn key(&self) -> Option<BlockKey> {
        match &self.source {
            PartSource::Bytes(_) => None,
            PartSource::Block(_, part) => Some(part.key),
        }
    }
}
