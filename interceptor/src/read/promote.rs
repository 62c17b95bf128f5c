//! Promotion: makes files resident.
//!
//! A file is considered when about half of its bytes have been read by way of the daemon (a small
//! one at its first read, a larger one if it was used before), when about half of them are hot in
//! the page cache (`kernel_hints`), or when streams read all of it again in one open
//! (`Reader::read`). If it is worth it ([`PromotionReason`], decided in
//! `cache/resident/table.rs`), it waits in one of two queues: large files are promoted one at a
//! time, small ones several side by side, so that these do not wait behind gigabytes.
//!
//! The bytes come block by block from the arena, and each block leaves it when it has come to the
//! file, which handles that read by way of the daemon are answered from then on. What a draft of
//! the file has stays there. Absent blocks are fetched through the
//! [`BlockLoader`](super::loader::BlockLoader), once and checked, whether a reader needs them too
//! or not, while reads [pause], and with the priority of speculation, which leaves half of the fill
//! budget to readers. If there is no room for long, the promotion fails.
//!
//! [pause]: super::pauses

use std::collections::HashMap;
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
    PromotionCandidate, PromotionReason, ResidentAppend, ResidentFile, ResidentFiles,
};
use crate::disk::FileSource;
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
    pub(super) fn residents(&self) -> &Arc<ResidentFiles> {
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

/// The bytes of a part.
struct FetchedPart {
    data: ReadData,
    /// The block that holds them.
    key: Option<BlockKey>,
    /// Whether the block was fetched for this alone.
    is_own: bool,
    /// Smaller blocks that hold the bytes instead.
    pieces: Vec<BlockKey>,
}

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
                let object = &layout.object(index);
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
        let draft = promotion.file().clone();
        // Reads find here what has left the arena.
        version.activity().note_resident(&draft);
        // A block leaves the arena when the last part that it holds has come to the file.
        let mut uses: HashMap<BlockKey, usize> = HashMap::new();
        parts.iter().filter_map(FilePart::key).for_each(|key| *uses.entry(key).or_default() += 1);
        let mut fetched = self.fetch_parts(parts, Some(draft));
        while let Some((offset, part)) = fetched.next().await {
            let FetchedPart { data, key, pieces, .. } = match part {
                Ok(Some(part)) => part,
                Ok(None) => continue,
                Err(error) => return promotion.fail(io::Error::other(error)),
            };
            let Some((rest, _)) = promotion.write(data, offset).await else { return };
            promotion = rest;
            pieces.iter().for_each(|piece| _ = self.cache.remove(piece));
            if let Some(key) = key
                && let Some(left) = uses.get_mut(&key)
            {
                *left -= 1;
                if *left == 0 {
                    self.cache.remove(&key);
                }
            }
        }
        promotion.complete().await;
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
        let mut fetched = self.fetch_parts(parts, None);
        while let Some((offset, part)) = fetched.next().await {
            let Some(FetchedPart { data, key, is_own, .. }) = part.ok()? else { continue };
            (extension, _) = extension.write(data, offset).await?;
            key.filter(|_| is_own).inspect(|key| _ = self.cache.remove(key));
        }
        Some(extension)
    }

    /// The last byte of `version`, which must not be empty.
    pub(crate) async fn last_byte(self: &Arc<Self>, version: &FileVersion) -> Result<u8, ReadError> {
        let layout = self.layout(version, Arrival::now()).await?;
        let parts = parts(layout, version.size().saturating_sub(1));
        match self.fetch_parts(parts, None).next().await {
            Some((_, part)) => Ok(part?.and_then(|part| part.data.first().copied()).unwrap_or_default()),
            None => Ok(0),
        }
    }

    /// Fetches parts of a file, except those that `draft` has. They come in their order.
    fn fetch_parts(
        self: &Arc<Self>,
        parts: Vec<FilePart>,
        draft: Option<Arc<ResidentFile>>,
    ) -> impl Stream<Item = (u64, Result<Option<FetchedPart>, ReadError>)> + Unpin + use<> {
        let reader = self.clone();
        let fetch = move |part: FilePart| {
            let (reader, draft) = (reader.clone(), draft.clone());
            async move { (part.offset, reader.fetch_part(part, draft).await) }.boxed()
        };
        stream::iter(parts).map(fetch).buffered(MAX_CONCURRENT_BLOCKS)
    }

    /// The bytes of whole objects, one after the other, loaded below readers as they are asked for.
    pub(super) fn object_source(self: &Arc<Self>, objects: Vec<Object>) -> FileSource {
        let mut parts = Vec::new();
        let mut start = 0;
        for object in objects {
            for part in block_plan::plan_large(&object, &(0..object.size)) {
                let offset = start + block_plan::span(&object, part.key.part).0;
                parts.push(FilePart { offset, source: PartSource::Block(object.clone(), part) });
            }
            start += object.size;
        }
        let (reader, mut fetched) = (self.clone(), self.fetch_parts(parts, None));
        let mut latest: Option<(u64, ReadData)> = None;
        FileSource::Reader(Box::new(move |offset, bytes| {
            let mut filled = 0;
            while filled < bytes.len() {
                let at = offset + filled as u64;
                if let Some((start, data)) = &latest
                    && let Some(rest) =
                        at.checked_sub(*start).and_then(|skipped| data.get(skipped as usize..))
                    && !rest.is_empty()
                {
                    let len = rest.len().min(bytes.len() - filled);
                    bytes[filled..filled + len].copy_from_slice(&rest[..len]);
                    filled += len;
                    continue;
                }
                let next = reader.runtime.block_on(fetched.next());
                let (start, part) = next.ok_or(io::ErrorKind::UnexpectedEof)?;
                let Some(part) = part.map_err(io::Error::other)? else { continue };
                let FetchedPart { data, key, is_own, .. } = part;
                key.filter(|_| is_own).inspect(|key| _ = reader.cache.remove(key));
                latest = Some((start, data));
            }
            Ok(())
        }))
    }

    /// Fetches a part of a file, unless `draft` has it.
    async fn fetch_part(
        self: Arc<Self>,
        part: FilePart,
        draft: Option<Arc<ResidentFile>>,
    ) -> Result<Option<FetchedPart>, ReadError> {
        let (object, part) = match part.source {
            PartSource::Bytes(bytes) => {
                let data = ReadData::shared(bytes);
                return Ok(Some(FetchedPart { data, key: None, is_own: false, pieces: Vec::new() }));
            }
            PartSource::Block(object, part) => (object, part),
        };
        let range = block_plan::range_in_file(&object, &part);
        let is_in_draft = || draft.as_ref().is_some_and(|draft| draft.holds(&range));
        if self.loader.is_absent(&part.key) && !is_in_draft() {
            if let Some((data, pieces)) = self.gather_pieces(&object, &part) {
                return Ok(Some(FetchedPart { data, key: None, is_own: false, pieces }));
            }
            // The block may come, and go on to the draft, while this waits.
            self.pauses.wait().await;
        }
        // In this order: a block leaves the arena after it has come to the draft.
        let (block, is_own) = match self.cache.get(&part.key) {
            Some(block) => (block, false),
            None if is_in_draft() => return Ok(None),
            None => self.loader.load_below_readers(&object, part.key).await?,
        };
        let data = ReadData::block(block, part.range);
        Ok(Some(FetchedPart { data, key: Some(part.key), is_own, pieces: Vec::new() }))
    }

    /// The bytes of `part`, and the smaller blocks that they were copied from, if such have all.
    fn gather_pieces(&self, object: &Object, part: &BlockRange) -> Option<(ReadData, Vec<BlockKey>)> {
        let range = block_plan::range_in_object(object, part);
        let pieces = block_plan::cached_pieces_of(&self.cache, object, &range)?;
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for piece in &pieces {
            bytes.extend_from_slice(&self.cache.get(&piece.key)?[piece.range.clone()]);
        }
        Some((ReadData::shared(bytes.into()), pieces.into_iter().map(|piece| piece.key).collect()))
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
