//! Making files resident.
//!
//! A file is considered when it has been read by way of the daemon for about half its size: a small one at its first
//! read, a larger one if it was used before. If it is worth it ([`Worth`]) it waits in one of two lanes: large files one at a
//! time, small ones several side by side, so that these do not wait behind gigabytes.
//!
//! The bytes come block by block from where reads get theirs, so each fetch is made once whoever wants the block, and is
//! checked as ever. Blocks that are missing are fetched on speculation, which leaves half of the fill budget to readers; if
//! there is no room for long the file is given up. When the file is complete its blocks leave the arena; handles that
//! read by way of the daemon are answered from the file from then on.

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
use super::layout::{Layout, Object, Segment};
use super::{FileVersion, MAX_SMALL_FILE_SIZE, ReadError, Reader};
use crate::arrival::Arrival;
use crate::cache::BlockKey;
use crate::cache::resident::{Candidate, Extension, Promotion, ResidentFile, Residents, Worth};
use crate::vital::contained_task;

/// How many files may wait in each lane. Others are considered again when they are read again.
const QUEUE_CAPACITY: usize = 4096;
/// Small files that are made resident at the same time.
const MAX_CONCURRENT_SMALL_FILES: usize = 8;
/// Blocks of one file that are fetched at the same time: enough to keep the writer busy, and 16 MiB with usual chunks.
const MAX_CONCURRENT_BLOCKS: usize = 4;

/// Has files made resident, one after the other. Its tasks end when it is dropped.
pub(super) struct Promoter {
    residents: Arc<Residents>,
    small: mpsc::Sender<PromotionRequest>,
    large: mpsc::Sender<PromotionRequest>,
}

struct PromotionRequest {
    version: Arc<FileVersion>,
    candidate: Candidate,
}

impl Promoter {
    /// Starts tasks that fetch by way of `reader`.
    pub(super) fn start(residents: Arc<Residents>, reader: &Arc<Reader>, runtime: &Handle) -> Self {
        let lane = |at_once| {
            let (sender, request) = mpsc::channel(QUEUE_CAPACITY);
            runtime.spawn(promote_all(Arc::downgrade(reader), request, at_once));
            sender
        };
        Self { residents, small: lane(MAX_CONCURRENT_SMALL_FILES), large: lane(1) }
    }

    /// The files that are resident.
    pub(super) fn residents(&self) -> &Residents {
        &self.residents
    }

    /// Has `version` made resident if it is worth it. Returns whether it is resident or will be, as far as is known now.
    pub(super) fn consider(&self, version: &Arc<FileVersion>, worth: Worth) -> bool {
        let Some(id) = version.content_id() else { return false };
        if let Some(file) = self.residents.find(&id) {
            version.activity().note_resident(&file);
            return true;
        }
        let Some(candidate) = self.residents.want(id, version.size(), worth) else { return false };
        let lane = if version.size() <= MAX_SMALL_FILE_SIZE { &self.small } else { &self.large };
        lane.try_send(PromotionRequest { version: version.clone(), candidate }).is_ok()
    }
}

#[cfg(test)]
impl Promoter {
    /// Whether no file waits or is being made resident.
    pub(super) fn is_idle(&self) -> bool {
        self.residents.usage().waiting == 0
    }
}

async fn promote_all(reader: Weak<Reader>, request: mpsc::Receiver<PromotionRequest>, at_once: usize) {
    let promote = |request| {
        let reader = reader.upgrade();
        async move {
            if let Some(reader) = reader {
                contained_task(reader.make_resident(request)).await;
            }
        }
    };
    ReceiverStream::new(request).for_each_concurrent(at_once, promote).await;
}

/// A part of a file that has bytes, and from where on.
struct FilePart {
    offset: u64,
    origin: PartSource,
}

/// The bytes of a part, and the key of its block if that was fetched for this alone.
type FetchedPart = Result<(ReadData, Option<BlockKey>), ReadError>;

enum PartSource {
    Bytes(Bytes),
    Block(Object, BlockRange),
}

/// The parts of a file from `offset` on, but for those that are zeros.
fn parts(layout: &Layout, mut offset: u64) -> Vec<FilePart> {
    let mut parts = Vec::new();
    for segment in layout.segments(offset, layout.size()) {
        match segment {
            Segment::Zeros(len) => offset += len as u64,
            Segment::Inline(bytes) => {
                let len = bytes.len() as u64;
                parts.push(FilePart { offset, origin: PartSource::Bytes(bytes) });
                offset += len;
            }
            Segment::Object { index, range } => {
                let object = &layout.objects()[index];
                for part in block_plan::plan_large(object, &range) {
                    let len = part.range.len() as u64;
                    parts.push(FilePart { offset, origin: PartSource::Block(object.clone(), part) });
                    offset += len;
                }
            }
        }
    }
    parts
}

impl Reader {
    async fn make_resident(self: &Arc<Self>, request: PromotionRequest) {
        let PromotionRequest { version, candidate } = request;
        let parts = match self.layout(&version, Arrival::now()).await {
            Ok(layout) => parts(layout, 0),
            Err(error) => {
                tracing::debug!(path = version.path(), %error, "a file cannot be kept in memory");
                return;
            }
        };
        // Closing and unmapping what leaves takes a while.
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

    /// Writes behind the resident file of `before` what `version`, which begins with the same bytes, has more. The file is passed
    /// through for as many handles of the first as `handles` tells. None if it cannot be done; the file is then as it was.
    pub(crate) async fn extend_resident(
        self: &Arc<Self>,
        file: Arc<ResidentFile>,
        handles: impl Fn() -> u32 + Send + 'static,
        before: &FileVersion,
        version: &FileVersion,
    ) -> Option<Extension> {
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

    /// Fetches parts of a file, which come in their order.
    fn fetch_parts(
        self: &Arc<Self>,
        parts: Vec<FilePart>,
    ) -> impl Stream<Item = (u64, FetchedPart)> + Unpin + use<> {
        let reader = self.clone();
        let fetch = move |part: FilePart| {
            let reader = reader.clone();
            async move { (part.offset, reader.fetch_part(part.origin).await) }.boxed()
        };
        stream::iter(parts).map(fetch).buffered(MAX_CONCURRENT_BLOCKS)
    }

    /// Writes a part of a file, and gives up its block if that was fetched for this.
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

    /// The bytes of a part, and the key of its block if that had to be fetched.
    async fn fetch_part(self: Arc<Self>, origin: PartSource) -> FetchedPart {
        let (object, part) = match origin {
            PartSource::Bytes(bytes) => return Ok((ReadData::shared(bytes), None)),
            PartSource::Block(object, part) => (object, part),
        };
        let (block, was_fetched) = self.loader.load_below_readers(&object, part.key).await?;
        Ok((ReadData::block(block, part.range), was_fetched.then_some(part.key)))
    }
}

impl FilePart {
    fn key(&self) -> Option<BlockKey> {
        match &self.origin {
            PartSource::Bytes(_) => None,
            PartSource::Block(_, part) => Some(part.key),
        }
    }
}
