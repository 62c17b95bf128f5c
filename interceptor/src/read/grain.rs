//! How much of a chunk to fetch for a read.
//!
//! Fetching a whole chunk is the cheapest way per byte and the only one whose bytes can be checked against the needle's
//! checksum. A reader that jumps about would wait for megabytes it never looks at, so its first reads in a chunk bring
//! small aligned pieces; a chunk that keeps being read is then fetched whole in the background.

use std::ops::Range;

use crate::cache::{BlockKey, Cache, Part};
use crate::fetch::must_fetch_whole;
use crate::prefetch::Pattern;
use crate::seaweed::entry::Chunk;

/// Chunks up to this size are fetched whole: it is more than SeaweedFS makes by default (2 MiB through a mount, 4 MiB
/// through a filer, 8 MiB through S3). What is larger is fetched in pieces of [`LARGE_SHIFT`].
const WHOLE_LIMIT: u64 = 16 << 20;
/// 4 MiB, the large piece of chunks beyond [`WHOLE_LIMIT`].
const LARGE_SHIFT: u8 = 22;
/// 16 KiB, the smallest piece: it takes hardly longer than 4 KiB.
const SMALL_SHIFT: u8 = 14;
/// Chunks up to this size are not worth cutting up.
const TINY: u64 = 256 << 10;
/// The largest chunk that may have to be held whole in memory, because it is encrypted or compressed.
pub(super) const MAX_WHOLE: u64 = 1 << 30;

/// Random reads of one chunk after which it is fetched whole: by then about as much work has gone into pieces of it as all
/// of it would have taken (a range of 16 KiB costs about a tenth of the CPU time of a chunk of 4 MiB), so at worst the
/// work is little more than doubled, and at best all further reads are free.
pub(super) const HOT: u8 = 16;

/// How a chunk is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// By a sequential stream.
    Sequential,
    /// In equal steps of this many bytes.
    Strided {
        /// From the start of one read to the start of the next.
        stride: u64,
    },
    /// Here and there.
    Random {
        /// Often enough that the whole chunk is worth fetching.
        hot: bool,
    },
}

impl Access {
    /// What follows from the pattern of a file's reads alone; nothing for random ones.
    pub(super) fn of(pattern: Pattern) -> Option<Self> {
        match pattern {
            Pattern::Random => None,
            Pattern::Sequential => Some(Self::Sequential),
            Pattern::Strided { stride } => Some(Self::Strided { stride }),
        }
    }

    /// Whether all of a chunk of `size` bytes is going to be worth fetching.
    fn wants_whole(self, size: u64) -> bool {
        match self {
            Self::Sequential => true,
            Self::Strided { stride } => stride.saturating_mul(HOT.into()) <= size,
            Self::Random { .. } => false,
        }
    }
}

/// A part of a read that one block has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// The block.
    pub key: BlockKey,
    /// Which of the block's bytes.
    pub range: Range<usize>,
}

/// The blocks from which `range` of `chunk` is to be read, in order: the ones that are in the cache, else the ones that
/// are worth fetching.
pub(super) fn locate(cache: &Cache, chunk: &Chunk, range: Range<u64>, access: Access) -> Vec<Located> {
    let len = range.end - range.start;
    let large = large_shift(chunk);
    let take_large = access.wants_whole(chunk.size)
        || must_fetch_whole(chunk)
        || chunk.size <= TINY
        || len * 2 >= chunk.size
        || cut(chunk, &range, large).all(|located| cache.contains(&located.key));
    let shift = if take_large { large } else { Some(small_shift(len)) };
    cut(chunk, &range, shift).collect()
}

/// The large blocks of `chunk` from which `range` is to be read, in order, whether or not they are in the cache.
pub(super) fn locate_large(chunk: &Chunk, range: &Range<u64>) -> impl Iterator<Item = Located> {
    cut(chunk, range, large_shift(chunk))
}

/// The large blocks of `chunk` that hold `range`.
pub(super) fn large_blocks(chunk: &Chunk, range: &Range<u64>) -> impl Iterator<Item = BlockKey> {
    locate_large(chunk, range).map(|located| located.key)
}

/// Where in its chunk a block begins and how long it is, in bytes.
pub(super) fn span(chunk: &Chunk, part: Part) -> (u64, usize) {
    match part {
        Part::Whole => (0, chunk.size as usize),
        Part::Piece { shift, index } => {
            let start = u64::from(index) << shift;
            (start, (chunk.size - start).min(1 << shift) as usize)
        }
    }
}

fn large_shift(chunk: &Chunk) -> Option<u8> {
    (chunk.size > WHOLE_LIMIT && !must_fetch_whole(chunk)).then_some(LARGE_SHIFT)
}

/// The smallest piece that a read of `len` bytes fits into, if it is aligned.
fn small_shift(len: u64) -> u8 {
    (len.max(1).next_power_of_two().trailing_zeros() as u8).clamp(SMALL_SHIFT, LARGE_SHIFT)
}

/// Cuts `range` at the borders of pieces of `1 << shift` bytes, or not at all.
fn cut(chunk: &Chunk, range: &Range<u64>, shift: Option<u8>) -> impl Iterator<Item = Located> {
    let key = |part| BlockKey { fid: chunk.fid, chunk_size: chunk.size, part };
    let range = range.clone();
    let pieces = match shift {
        None => 0..1,
        Some(shift) => range.start >> shift..((range.end - 1) >> shift) + 1,
    };
    pieces.map(move |index| match shift {
        None => Located { key: key(Part::Whole), range: range.start as usize..range.end as usize },
        Some(shift) => {
            let base = index << shift;
            let from = range.start.max(base) - base;
            let to = range.end.min(base + (1 << shift)) - base;
            Located {
                key: key(Part::Piece { shift, index: index as u32 }),
                range: from as usize..to as usize,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::MIN_CAPACITY;
    use futures::FutureExt;
    use proptest::prelude::*;
    use rdma_engine::FileId;

    fn chunk(size: u64) -> Chunk {
        Chunk {
            fid: FileId { volume: 1, key: 2, cookie: 3 },
            offset: 0,
            size,
            modified_ts_ns: 0,
            cipher_key: None,
            is_compressed: false,
            is_manifest: false,
        }
    }

    fn fill(cache: &Cache, key: BlockKey, len: usize) {
        drop(cache.fill(key, len).now_or_never().expect("an empty cache has room").publish());
    }

    const RANDOM: Access = Access::Random { hot: false };

    #[test]
    fn a_random_read_of_an_absent_chunk_takes_a_small_piece() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let located = locate(&cache, &chunk(4 << 20), 20_000..24_096, RANDOM);
        assert_eq!(located.len(), 1);
        assert_eq!(located[0].key.part, Part::Piece { shift: 14, index: 1 });
        assert_eq!(located[0].range, 3616..7712);
    }

    #[test]
    fn whole_chunks_for_streams_small_files_and_what_cannot_be_cut() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let whole = |chunk: &Chunk, access| locate(&cache, chunk, 0..4096, access)[0].key.part == Part::Whole;
        assert!(whole(&chunk(4 << 20), Access::Sequential));
        assert!(whole(&chunk(100_000), RANDOM));
        assert!(whole(&Chunk { is_compressed: true, ..chunk(64 << 20) }, RANDOM));
        assert!(whole(&Chunk { cipher_key: Some(Box::new([0; 32])), ..chunk(64 << 20) }, RANDOM));
        assert!(!whole(&chunk(4 << 20), RANDOM));
        assert!(!whole(&chunk(64 << 20), Access::Sequential));
    }

    #[test]
    fn equal_steps_take_whole_chunks_if_they_are_small() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let part = |stride| locate(&cache, &chunk(4 << 20), 0..4096, Access::Strided { stride })[0].key.part;
        assert_eq!(part(256 << 10), Part::Whole);
        assert_eq!(part(1 << 20), Part::Piece { shift: SMALL_SHIFT, index: 0 });
    }

    #[test]
    fn a_chunk_in_the_cache_serves_random_reads() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let chunk = chunk(4 << 20);
        let key = BlockKey { fid: chunk.fid, chunk_size: chunk.size, part: Part::Whole };
        fill(&cache, key, 4 << 20);
        assert_eq!(locate(&cache, &chunk, 5..10, RANDOM), [Located { key, range: 5..10 }]);
    }

    proptest! {
        #[test]
        fn blocks_cover_the_range_exactly(
            size in 1u64..(100 << 20),
            at in 0.0f64..1.0,
            len in 1u64..(3 << 20),
            sequential: bool,
        ) {
            let chunk = chunk(size);
            let start = ((size - 1) as f64 * at) as u64;
            let range = start..(start + len).min(size);
            let access = if sequential { Access::Sequential } else { RANDOM };
            let mut next = range.start;
            for located in locate(&Cache::new(MIN_CAPACITY).unwrap(), &chunk, range.clone(), access) {
                let (offset, block_len) = span(&chunk, located.key.part);
                prop_assert!(located.range.end <= block_len && offset + block_len as u64 <= size);
                prop_assert_eq!(offset + located.range.start as u64, next);
                next = offset + located.range.end as u64;
            }
            prop_assert_eq!(next, range.end);
        }
    }
}
