//! Which chunk holds which byte of a file.
//!
//! Chunks of a file may overlap: at every byte the newest chunk that covers it wins, and of two equally old ones the
//! later in the filer's list. What no chunk covers is a hole and reads as zeros. Where SeaweedFS itself is well defined
//! this is its rule too (`weed/filer/filechunks_read.go`).

use std::collections::BinaryHeap;

use crate::seaweed::entry::Chunk;

/// A run of a file's bytes that one chunk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
    /// Index of the chunk in the list that was resolved.
    pub chunk: u32,
}

/// Resolves `chunks` (manifests already expanded) to the extents that are visible in a file of `size` bytes, in file
/// order, without overlap.
pub fn visible_extents(chunks: &[Chunk], size: u64) -> Box<[Extent]> {
    let mut spans: Vec<Extent> = chunks
        .iter()
        .enumerate()
        .filter(|(_, chunk)| chunk.size > 0 && chunk.offset < size)
        .map(|(index, chunk)| Extent {
            start: chunk.offset,
            end: chunk.offset.saturating_add(chunk.size).min(size),
            chunk: index as u32,
        })
        .collect();
    spans.sort_by_key(|span| span.start);
    if spans.windows(2).all(|pair| pair[0].end <= pair[1].start) {
        return spans.into_boxed_slice();
    }
    sweep(chunks, &spans).into_boxed_slice()
}

/// Goes through the file from chunk border to chunk border, with the chunks that cover the current byte in a heap
/// whose top is the one to be seen.
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
            covering.push((chunks[span.chunk as usize].modified_ts_ns, span.chunk, span.end));
        }
        let Some(&(_, chunk, end)) = covering.peek() else { continue };
        let until = upcoming.peek().map_or(end, |next| end.min(next.start));
        if until > at {
            match visible.last_mut() {
                Some(last) if last.chunk == chunk && last.end == at => last.end = until,
                _ => visible.push(Extent { start: at, end: until, chunk }),
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
        visible_extents(chunks, size).iter().map(|e| (e.start, e.end, e.chunk)).collect()
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
                    painted[at as usize] = Some(i as u32);
                }
            }
            let mut shown = vec![None; size as usize];
            let mut last = 0;
            for extent in visible_extents(&chunks, size) {
                prop_assert!(extent.start >= last && extent.start < extent.end && extent.end <= size);
                last = extent.end;
                for at in extent.start..extent.end {
                    shown[at as usize] = Some(extent.chunk);
                }
            }
            prop_assert_eq!(shown, painted);
        }
    }
}
