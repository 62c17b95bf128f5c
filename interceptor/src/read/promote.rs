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

use super::data::ReadData;
use super::grain::{self, Located};
use super::layout::{Layout, Object, Segment};
use super::{FileVersion, MAX_SMALL_FILE_SIZE, ReadError, Reader};
use crate::arrival::Arrival;
use crate::cache::BlockKey;
use crate::cache::resident::{Candidate, Extension, Promotion, ResidentFile, Residents, Worth};
use crate::vital::contained_task;

/// How many files may wait in each lane. Others are considered again when they are read again.
const WAITING: usize = 4096;
/// Small files that are made resident at the same time.
const SMALL_AT_ONCE: usize = 8;
/// Blocks of one file that are fetched at the same time: enough to keep the writer busy, and 16 MiB with usual chunks.
const BLOCKS_AT_ONCE: usize = 4;

/// Has files made resident, one after the other. Its tasks end when it is dropped.
pub(super) struct Promoter {
    residents: Arc<Residents>,
    small: mpsc::Sender<Wanted>,
    large: mpsc::Sender<Wanted>,
}

struct Wanted {
    version: Arc<FileVersion>,
    candidate: Candidate,
}

impl Promoter {
    /// Starts tasks that fetch by way of `reader`.
    pub(super) fn start(residents: Arc<Residents>, reader: &Arc<Reader>, runtime: &Handle) -> Self {
        let lane = |at_once| {
            let (sender, wanted) = mpsc::channel(WAITING);
            runtime.spawn(work(Arc::downgrade(reader), wanted, at_once));
            sender
        };
        Self { residents, small: lane(SMALL_AT_ONCE), large: lane(1) }
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
        lane.try_send(Wanted { version: version.clone(), candidate }).is_ok()
    }
}

#[cfg(test)]
impl Promoter {
    /// Whether no file waits or is being made resident.
    pub(super) fn is_idle(&self) -> bool {
        self.residents.usage().waiting == 0
    }
}

async fn work(reader: Weak<Reader>, wanted: mpsc::Receiver<Wanted>, at_once: usize) {
    let promote = |wanted| {
        let reader = reader.upgrade();
        async move {
            if let Some(reader) = reader {
                contained_task(reader.make_resident(wanted)).await;
            }
        }
    };
    ReceiverStream::new(wanted).for_each_concurrent(at_once, promote).await;
}

/// A part of a file that has bytes, and from where on.
struct Piece {
    offset: u64,
    origin: PieceOrigin,
}

/// The bytes of a part, and the key of its block if that was fetched for this alone.
type FetchedPiece = Result<(ReadData, Option<BlockKey>), ReadError>;

enum PieceOrigin {
    Bytes(Bytes),
    Block(Object, Located),
}

/// The parts of a file from `offset` on, but for those that are zeros.
fn pieces(layout: &Layout, mut offset: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for segment in layout.segments(offset, layout.size()) {
        match segment {
            Segment::Zeros(len) => offset += len as u64,
            Segment::Inline(bytes) => {
                let len = bytes.len() as u64;
                pieces.push(Piece { offset, origin: PieceOrigin::Bytes(bytes) });
                offset += len;
            }
            Segment::Object { index, range } => {
                let object = &layout.objects()[index];
                for located in grain::locate_large(object, &range) {
                    let len = located.range.len() as u64;
                    pieces.push(Piece { offset, origin: PieceOrigin::Block(object.clone(), located) });
                    offset += len;
                }
            }
        }
    }
    pieces
}

impl Reader {
    async fn make_resident(self: &Arc<Self>, wanted: Wanted) {
        let Wanted { version, candidate } = wanted;
        let pieces = match self.layout(&version, Arrival::now()).await {
            Ok(layout) => pieces(layout, 0),
            Err(error) => {
                tracing::debug!(path = version.path(), %error, "a file cannot be kept in memory");
                return;
            }
        };
        // Closing and unmapping what leaves takes a while.
        let made = tokio::task::spawn_blocking(|| candidate.make_room()).await;
        let Ok(Some(mut promotion)) = made else { return };
        let keys: Vec<_> = pieces.iter().filter_map(Piece::key).collect();
        let mut fetched = self.fetch_pieces(pieces);
        while let Some((offset, data)) = fetched.next().await {
            promotion = match self.land(promotion, offset, data).await {
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
        let pieces = match self.layout(version, Arrival::now()).await {
            Ok(layout) => pieces(layout, file.grown_len().min(len)),
            Err(_) => return None,
        };
        let residents = self.promoter.get()?.residents.clone();
        let extend = move || residents.extend(file, &content, handles, len);
        let mut extension = tokio::task::spawn_blocking(extend).await.ok()??;
        let mut fetched = self.fetch_pieces(pieces);
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
        let pieces = pieces(layout, version.size().saturating_sub(1));
        match self.fetch_pieces(pieces).next().await {
            Some((_, part)) => Ok(part?.0.first().copied().unwrap_or_default()),
            None => Ok(0),
        }
    }

    /// Fetches parts of a file, which come in their order.
    fn fetch_pieces(
        self: &Arc<Self>,
        pieces: Vec<Piece>,
    ) -> impl Stream<Item = (u64, FetchedPiece)> + Unpin + use<> {
        let reader = self.clone();
        let fetch = move |piece: Piece| {
            let reader = reader.clone();
            async move { (piece.offset, reader.piece(piece.origin).await) }.boxed()
        };
        stream::iter(pieces).map(fetch).buffered(BLOCKS_AT_ONCE)
    }

    /// Writes a part of a file, and gives up its block if that was fetched for this.
    async fn land(&self, promotion: Promotion, offset: u64, part: FetchedPiece) -> Option<Promotion> {
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
    async fn piece(self: Arc<Self>, origin: PieceOrigin) -> FetchedPiece {
        let (object, located) = match origin {
            PieceOrigin::Bytes(bytes) => return Ok((ReadData::shared(bytes), None)),
            PieceOrigin::Block(object, located) => (object, located),
        };
        let (block, was_fetched) = self.loader.load_below_readers(&object, located.key).await?;
        Ok((ReadData::block(block, located.range), was_fetched.then_some(located.key)))
    }
}

impl Piece {
    fn key(&self) -> Option<BlockKey> {
        match &self.origin {
            PieceOrigin::Bytes(_) => None,
            PieceOrigin::Block(_, located) => Some(located.key),
        }
    }
}
