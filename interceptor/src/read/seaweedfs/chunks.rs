//! Chunk lists as layouts.
//!
//! Chunks of a file may overlap: at every byte the newest chunk that covers it wins, and of two
//! equally old ones the later in the filer's list. What no chunk covers is a hole and reads as
//! zeros. Where SeaweedFS itself is well defined this is its rule too
//! (`weed/filer/filechunks_read.go`).

use std::collections::BinaryHeap;
use std::sync::Arc;

use bytes::Bytes;
use rdma_engine::FileId;

use crate::cache::ObjectId;
use crate::fetch::must_fetch_whole;
use crate::read::ReadError;
use crate::read::layout::{Extent, FileLayout, MAX_INDIVISIBLE_SIZE, Object, ObjectEncoding, ObjectList};
use crate::seaweed::entry::{Chunk, Content, Entry};

/// A needle's size is a signed 32-bit number on disk, so no chunk of data can be larger.
const MAX_NEEDLE_SIZE: u64 = i32::MAX as u64;

/// The layout of a file of SeaweedFS that follows from its entry alone; `None` if it takes a
/// fetch, or cannot be had.
pub(super) fn known_layout(entry: &Entry) -> Option<FileLayout> {
    let size = entry.attr.size;
    match &entry.content {
        Content::None | Content::Target(_) => Some(FileLayout::inline(Bytes::new(), size)),
        Content::Inline(bytes) => Some(FileLayout::inline(bytes.clone(), size)),
        Content::Chunks(chunks) if !chunks.iter().any(|chunk| chunk.is_manifest) => layout(chunks, size).ok(),
        Content::Chunks(_) | Content::Remote(_) | Content::Encrypted { .. } | Content::Damaged { .. } => None,
    }
}

/// The layout of a file of `size` bytes in `chunks`, none of which is a manifest.
pub(super) fn layout(chunks: &Arc<[Chunk]>, size: u64) -> Result<FileLayout, ReadError> {
    for chunk in chunks.iter() {
        if chunk.size > if must_fetch_whole(chunk) { MAX_INDIVISIBLE_SIZE } else { MAX_NEEDLE_SIZE } {
            return Err(ReadError::Damaged(format!(
                "chunk {} claims {} bytes, more than a needle can hold",
                chunk.fid, chunk.size
            )));
        }
    }
    let objects = ChunkList(chunks.clone());
    Ok(match is_in_order(chunks, size) {
        true => FileLayout::in_order(objects, size),
        false => FileLayout::new(objects, visible_extents(chunks, size), size),
    })
}

/// The list of the entry itself, or that of its manifests.
#[derive(Debug)]
struct ChunkList(Arc<[Chunk]>);

impl ObjectList for ChunkList {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn object(&self, index: usize) -> Object {
        let chunk = &self.0[index];
        Object {
            id: chunk.fid.into(),
            offset: chunk.offset,
            size: chunk.size,
            modified_ts_ns: chunk.modified_ts_ns,
            encoding: ObjectEncoding {
                cipher_key: chunk.cipher_key.clone(),
                is_compressed: chunk.is_compressed,
            },
        }
    }

    fn span(&self, index: usize) -> (u64, u64) {
        (self.0[index].offset, self.0[index].size)
    }
}

/// The chunk that `object` was made of, as far as a fetch needs it.
pub(super) fn chunk(object: &Object) -> Chunk {
    Chunk {
        fid: file_id(object.id),
        offset: object.offset,
        size: object.size,
        modified_ts_ns: object.modified_ts_ns,
        cipher_key: object.encoding.cipher_key.clone(),
        is_compressed: object.encoding.is_compressed,
        is_manifest: false,
    }
}

/// Volume, cookie and key are 128 bits, so no two needles have the same id. A needle never changes
/// under its file id.
impl From<FileId> for ObjectId {
    fn from(fid: FileId) -> Self {
        Self(u128::from(fid.volume) << 96 | u128::from(fid.cookie) << 64 | u128::from(fid.key))
    }
}

/// The file id that `id` was made of.
pub(in crate::read) fn file_id(ObjectId(id): ObjectId) -> FileId {
    FileId { volume: (id >> 96) as u32, cookie: (id >> 64) as u32, key: id as u64 }
}

/// Whether `chunks` are in the order of the file and do not overlap, so that each of them is an
/// extent of its own, as are nearly all files that were written once.
fn is_in_order(chunks: &[Chunk], size: u64) -> bool {
    let mut end = 0;
    chunks.iter().all(|chunk| {
        let follows = chunk.size > 0 && (end..size).contains(&chunk.offset);
        end = chunk.offset.saturating_add(chunk.size);
        follows
    })
}

/// The extents of `chunks`, which have no manifest among them, that show in a file of `size`
/// bytes, in the order of the file and without overlap.
fn visible_extents(chunks: &[Chunk], size: u64) -> Box<[Extent]> {
    let mut spans: Vec<Extent> = chunks
        .iter()
        .enumerate()
        .filter(|(_, chunk)| chunk.size > 0 && chunk.offset < size)
        .map(|(index, chunk)| Extent {
            start: chunk.offset,
            end: chunk.offset.saturating_add(chunk.size).min(size),
            object: index as u32,
        })
        .collect();
    spans.sort_by_key(|span| span.start);
    if spans.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        return spans.into_boxed_slice();
    }
    sweep(chunks, &spans).into_boxed_slice()
}

/// Goes through the file from chunk border to chunk border, with the chunks that cover the current
/// byte in a heap; the top of the heap is the chunk that shows.
fn sweep(chunks: &[Chunk], spans: &[Extent]) -> Vec<Extent> {
    let mut visible: Vec<Extent> = Vec::with_capacity(spans.len());
    let mut covering: BinaryHeap<(i64, u32, u64)> = BinaryHeap::new();
    let mut upcoming = spans.iter().peekable();
    let mut at = 0;
    loop {
        while let Some(&(_, _, end)) = covering.peek()
            && end <= at
        {
            covering.pop();
        }
        match (covering.is_empty(), upcoming.peek()) {
            (true, None) => return visible,
            (true, Some(next)) => at = next.start,
            (false, _) => {}
        }
        while let Some(span) = upcoming.next_if(|span| span.start <= at) {
            covering.push((chunks[span.object as usize].modified_ts_ns, span.object, span.end));
        }
        let Some(&(_, chunk, end)) = covering.peek() else { continue };
        let until = upcoming.peek().map_or(end, |next| end.min(next.start));
        if until > at {
            match visible.last_mut() {
                Some(last) if last.object == chunk && last.end == at => last.end = until,
                _ => visible.push(Extent { start: at, end: until, object: chunk }),
            }
            at = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rdma_engine::FileId;

    use crate::read::layout::Segment;

    fn chunk(offset: u64, size: u64, modified_ts_ns: i64) -> Chunk {
        Chunk {
            fid: FileId { volume: 1, key: 1, cookie: 1 },
            offset,
            size,
            modified_ts_ns,
            cipher_key: None,
            is_compressed: false,
            is_manifest: false,
        }
    }

    fn extents(chunks: &[Chunk], size: u64) -> Vec<(u64, u64, u32)> {
        visible_extents(chunks, size).iter().map(|e| (e.start, e.end, e.object)).collect()
    }

    #[test]
    fn a_newer_chunk_hides_the_middle_of_an_older_one() {
        let chunks = [chunk(0, 100, 1), chunk(40, 20, 2)];
        assert_eq!(extents(&chunks, 100), [(0, 40, 0), (40, 60, 1), (60, 100, 0)]);
    }

    #[test]
    fn an_older_chunk_shows_only_beside_a_newer_one() {
        let chunks = [chunk(40, 20, 2), chunk(0, 100, 1)];
        assert_eq!(extents(&chunks, 100), [(0, 40, 1), (40, 60, 0), (60, 100, 1)]);
    }

    #[test]
    fn of_equal_age_the_later_in_the_list_wins() {
        let chunks = [chunk(0, 10, 5), chunk(5, 10, 5)];
        assert_eq!(extents(&chunks, 15), [(0, 5, 0), (5, 15, 1)]);
    }

    #[test]
    fn gaps_stay_and_the_end_is_cut() {
        let chunks = [chunk(10, 10, 1), chunk(30, 100, 1), chunk(500, 1, 1)];
        assert_eq!(extents(&chunks, 40), [(10, 20, 0), (30, 40, 1)]);
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let chunks = [chunk(u64::MAX - 1, u64::MAX, 1), chunk(0, u64::MAX, 2)];
        assert_eq!(extents(&chunks, u64::MAX), [(0, u64::MAX, 1)]);
    }

    #[test]
    fn a_file_that_was_written_once_takes_no_memory_but_its_chunk_list() {
        let chunks: Arc<[Chunk]> = (0..1000).map(|n| chunk(n * 2048, 2048, 1)).collect();
        assert_eq!(size_of_val(&*chunks), 56 * 1000);
        let size = 2048 * 1000 - 7;
        let layout = layout(&chunks, size).unwrap();
        assert_eq!(Arc::strong_count(&chunks), 2, "the layout has no list of its own");
        assert_eq!(layout.extent_bytes(), 0);
        let ranges: Vec<_> = layout.segments(2047, size).collect();
        assert_eq!(ranges.len(), 1000);
        assert_eq!(ranges[0], Segment::Object { index: 0, range: 2047..2048 });
        assert_eq!(ranges[999], Segment::Object { index: 999, range: 0..2041 });
    }

    proptest! {
        /// The model: paint chunk after chunk, oldest first, into an array of bytes.
        #[test]
        fn as_if_painted_in_order_of_age(
            list in prop::collection::vec((0u64..200, 0u64..80, 0i64..6), 0..40),
            size in 0u64..260,
        ) {
            let chunks: Vec<Chunk> = list.iter().map(|&(o, s, t)| chunk(o, s, t)).collect();
            let mut order: Vec<usize> = (0..chunks.len()).collect();
            order.sort_by_key(|&i| chunks[i].modified_ts_ns);
            let mut painted = vec![None; size as usize];
            for i in order {
                for at in chunks[i].offset..(chunks[i].offset + chunks[i].size).min(size) {
                    painted[at as usize] = Some(i);
                }
            }
            let mut shown = Vec::new();
            for segment in layout(&chunks.into(), size).unwrap().segments(0, size) {
                shown.extend(match segment {
                    Segment::Object { index, range } => {
                        prop_assert!(!range.is_empty());
                        vec![Some(index); (range.end - range.start) as usize]
                    }
                    Segment::Zeros(len) => vec![None; len],
                    Segment::Inline(_) => unreachable!("there is nothing inline"),
                });
            }
            prop_assert_eq!(shown, painted);
        }
    }
}
