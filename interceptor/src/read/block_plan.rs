//! Which blocks of an object a read takes: the whole object, or pieces of it.
//!
//! To fetch an object whole costs least per byte, and only then the bytes can be checked against
//! the needle's checksum. A random reader would wait for megabytes that it never reads, so its
//! first reads in an object fetch small aligned pieces. An object that keeps being read at random
//! is fetched whole in the background ([`WHOLE_FETCH_READS`]).

use std::ops::Range;

use super::layout::Object;
use crate::cache::{BlockKey, BlockPart, Cache};
use crate::prefetch::AccessPattern;

/// Objects up to this size, in bytes, are fetched whole. SeaweedFS makes smaller chunks by default
/// (2 MiB through a mount, 4 MiB through a filer, 8 MiB through S3). Larger objects are fetched in
/// pieces of [`MAX_PIECE_SHIFT`].
const MAX_WHOLE_SIZE: u64 = 16 << 20;
/// 4 MiB: the large pieces of objects beyond [`MAX_WHOLE_SIZE`].
const MAX_PIECE_SHIFT: u8 = 22;
/// 16 KiB: the smallest piece takes hardly longer to fetch than 4 KiB.
const MIN_PIECE_SHIFT: u8 = 14;
/// Objects up to this size, in bytes, are not worth dividing.
const MAX_UNDIVIDED_SIZE: u64 = 256 << 10;
/// Random reads of one object after which it is fetched whole. By then its pieces have taken about
/// as much work as the whole object would have (16 KiB cost about a tenth of the CPU time of 4
/// MiB): at worst the work is little more than doubled, and at best all further reads are free.
pub(super) const WHOLE_FETCH_READS: u8 = 16;

/// How an object is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ObjectAccess {
    /// By a sequential stream.
    Sequential,
    /// In equal steps.
    Strided {
        /// Bytes from the start of one read to the start of the next.
        stride: u64,
    },
    /// In no order.
    Random {
        /// Whether there were [`WHOLE_FETCH_READS`] such reads.
        is_hot: bool,
    },
}

impl ObjectAccess {
    /// What follows from the pattern of the file's reads; `None` for random reads, which are
    /// counted for each object.
    pub(super) fn of(pattern: AccessPattern) -> Option<Self> {
        match pattern {
            AccessPattern::Random => None,
            AccessPattern::Sequential => Some(Self::Sequential),
            AccessPattern::Strided { stride } => Some(Self::Strided { stride }),
        }
    }

    /// Whether the reads will take most of an object of `size` bytes.
    fn takes_whole(self, size: u64) -> bool {
        match self {
            Self::Sequential => true,
            Self::Strided { stride } => stride.saturating_mul(WHOLE_FETCH_READS.into()) <= size,
            Self::Random { .. } => false,
        }
    }
}

/// A part of a read that one block has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockRange {
    /// The block.
    pub key: BlockKey,
    /// Which of the block's bytes.
    pub range: Range<usize>,
}

/// The blocks from which to read `range` of `object`, in order: those that are in the cache, else
/// those that are worth fetching.
pub(super) fn plan(
    cache: &Cache,
    object: &Object,
    range: Range<u64>,
    access: ObjectAccess,
) -> Vec<BlockRange> {
    let len = range.end - range.start;
    let large = large_shift(object);
    let blocks: Vec<_> = divide(object, &range, large).collect();
    if blocks.iter().all(|block| cache.contains(&block.key)) {
        return blocks;
    }
    // What a reader in another order has left is as good.
    if let Some(pieces) = cached_pieces_of(cache, object, &range) {
        return pieces;
    }
    let takes_large = access.takes_whole(object.size) || is_undivided(object) || len * 2 >= object.size;
    if takes_large { blocks } else { divide(object, &range, Some(piece_shift(len))).collect() }
}

/// Pieces from which `range` of `object` can be read, in order, if all of them are in the cache.
pub(super) fn cached_pieces_of(
    cache: &Cache,
    object: &Object,
    range: &Range<u64>,
) -> Option<Vec<BlockRange>> {
    let mut pieces = Vec::new();
    let is_possible = !is_undivided(object) && !range.is_empty();
    (is_possible && collect_pieces(cache, object, range, MAX_PIECE_SHIFT, &mut pieces)).then_some(pieces)
}

/// Adds cached pieces of up to `1 << shift` bytes that hold `range`; returns whether all are there.
fn collect_pieces(
    cache: &Cache,
    object: &Object,
    range: &Range<u64>,
    shift: u8,
    pieces: &mut Vec<BlockRange>,
) -> bool {
    divide(object, range, Some(shift)).all(|piece| {
        if cache.contains(&piece.key) {
            pieces.push(piece);
            return true;
        }
        shift > MIN_PIECE_SHIFT
            && collect_pieces(cache, object, &range_in_object(object, &piece), shift - 1, pieces)
    })
}

/// The large blocks from which to read `range` of `object`, in order, cached or not.
pub(super) fn plan_large(object: &Object, range: &Range<u64>) -> impl Iterator<Item = BlockRange> {
    divide(object, range, large_shift(object))
}

/// The keys of the large blocks that hold `range` of `object`.
pub(super) fn large_blocks(object: &Object, range: &Range<u64>) -> impl Iterator<Item = BlockKey> {
    plan_large(object, range).map(|part| part.key)
}

/// How many bytes of `range` are in blocks, of any size, for which `is_cached` holds.
pub(super) fn cached_bytes(
    object: &Object,
    range: &Range<u64>,
    is_cached: &impl Fn(&BlockKey) -> bool,
) -> u64 {
    let whole = BlockKey { object: object.id, object_size: object.size, part: BlockPart::Whole };
    if is_cached(&whole) {
        range.end - range.start
    } else if is_undivided(object) {
        0
    } else {
        cached_pieces(object, range, MAX_PIECE_SHIFT, is_cached)
    }
}

/// The same for pieces of `1 << shift` bytes, and for smaller ones where such a piece is absent.
fn cached_pieces(
    object: &Object,
    range: &Range<u64>,
    shift: u8,
    is_cached: &impl Fn(&BlockKey) -> bool,
) -> u64 {
    let bytes = |piece: BlockRange| {
        let part = range_in_object(object, &piece);
        if is_cached(&piece.key) {
            part.end - part.start
        } else if shift > MIN_PIECE_SHIFT {
            cached_pieces(object, &part, shift - 1, is_cached)
        } else {
            0
        }
    };
    divide(object, range, Some(shift)).map(bytes).sum()
}

/// Every key under which a byte of `range` of `object` can be in the cache.
pub(super) fn all_blocks(object: &Object, range: &Range<u64>) -> impl Iterator<Item = BlockKey> {
    let shifts = if is_undivided(object) { 0..0 } else { MIN_PIECE_SHIFT..MAX_PIECE_SHIFT + 1 };
    let pieces = shifts.flat_map(|shift| divide(object, range, Some(shift)));
    divide(object, range, None).chain(pieces).map(|part| part.key)
}

/// Where in the object the bytes of `part` are.
pub(super) fn range_in_object(object: &Object, part: &BlockRange) -> Range<u64> {
    let start = span(object, part.key.part).0;
    start + part.range.start as u64..start + part.range.end as u64
}

/// Where in the file the bytes of `part` are.
pub(super) fn range_in_file(object: &Object, part: &BlockRange) -> Range<u64> {
    let range = range_in_object(object, part);
    object.offset + range.start..object.offset + range.end
}

/// Whether `part` is one of the large blocks of `object`.
pub(super) fn is_large(object: &Object, part: BlockPart) -> bool {
    match (part, large_shift(object)) {
        (BlockPart::Whole, None) => true,
        (BlockPart::Piece { shift, .. }, Some(large)) => shift == large,
        _ => false,
    }
}

fn is_undivided(object: &Object) -> bool {
    !object.is_divisible() || object.size <= MAX_UNDIVIDED_SIZE
}

/// Where in `object` a block begins, and how long it is, in bytes.
pub(super) fn span(object: &Object, part: BlockPart) -> (u64, usize) {
    match part {
        BlockPart::Whole => (0, object.size as usize),
        BlockPart::Piece { shift, index } => {
            let start = u64::from(index) << shift;
            (start, (object.size - start).min(1 << shift) as usize)
        }
    }
}

fn large_shift(object: &Object) -> Option<u8> {
    (object.size > MAX_WHOLE_SIZE && object.is_divisible()).then_some(MAX_PIECE_SHIFT)
}

/// The smallest piece that holds an aligned read of `len` bytes.
fn piece_shift(len: u64) -> u8 {
    (len.max(1).next_power_of_two().trailing_zeros() as u8).clamp(MIN_PIECE_SHIFT, MAX_PIECE_SHIFT)
}

/// Divides `range` at the borders of pieces of `1 << shift` bytes; without `shift`, not at all.
fn divide<'a>(
    object: &'a Object,
    range: &Range<u64>,
    shift: Option<u8>,
) -> impl Iterator<Item = BlockRange> + use<'a> {
    let key = |part| BlockKey { object: object.id, object_size: object.size, part };
    let range = range.clone();
    let pieces = match shift {
        None => 0..1,
        Some(shift) => range.start >> shift..((range.end - 1) >> shift) + 1,
    };
    pieces.map(move |index| match shift {
        None => BlockRange { key: key(BlockPart::Whole), range: range.start as usize..range.end as usize },
        Some(shift) => {
            let base = index << shift;
            let from = range.start.max(base) - base;
            let to = range.end.min(base + (1 << shift)) - base;
            BlockRange {
                key: key(BlockPart::Piece { shift, index: index as u32 }),
                range: from as usize..to as usize,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::MIN_CAPACITY;
    use crate::cache::ObjectId;
    use crate::read::layout::ObjectEncoding;
    use futures::FutureExt;
    use proptest::prelude::*;

    fn object(size: u64) -> Object {
        Object { id: ObjectId(1), offset: 0, size, modified_ts_ns: 0, encoding: ObjectEncoding::default() }
    }

    fn fill(cache: &Cache, key: BlockKey, len: usize) {
        drop(cache.reserve(key, len).now_or_never().expect("an empty cache has room").publish());
    }

    const RANDOM: ObjectAccess = ObjectAccess::Random { is_hot: false };

    #[test]
    fn a_random_read_of_an_absent_object_takes_a_small_piece() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let part = plan(&cache, &object(4 << 20), 20_000..24_096, RANDOM);
        assert_eq!(part.len(), 1);
        assert_eq!(part[0].key.part, BlockPart::Piece { shift: 14, index: 1 });
        assert_eq!(part[0].range, 3616..7712);
    }

    #[test]
    fn streams_and_small_or_indivisible_objects_take_whole_objects() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let whole =
            |object: &Object, access| plan(&cache, object, 0..4096, access)[0].key.part == BlockPart::Whole;
        assert!(whole(&object(4 << 20), ObjectAccess::Sequential));
        assert!(whole(&object(100_000), RANDOM));
        let stored = |encoding| Object { encoding, ..object(64 << 20) };
        assert!(whole(&stored(ObjectEncoding { is_compressed: true, ..ObjectEncoding::default() }), RANDOM));
        let cipher_key = Some(Box::new([0; 32]));
        assert!(whole(&stored(ObjectEncoding { cipher_key, ..ObjectEncoding::default() }), RANDOM));
        assert!(!whole(&object(4 << 20), RANDOM));
        assert!(!whole(&object(64 << 20), ObjectAccess::Sequential));
    }

    #[test]
    fn small_strides_take_whole_objects() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let part =
            |stride| plan(&cache, &object(4 << 20), 0..4096, ObjectAccess::Strided { stride })[0].key.part;
        assert_eq!(part(256 << 10), BlockPart::Whole);
        assert_eq!(part(1 << 20), BlockPart::Piece { shift: MIN_PIECE_SHIFT, index: 0 });
    }

    #[test]
    fn pieces_that_are_there_serve_streams() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let object = object(4 << 20);
        let piece = |index| BlockKey {
            object: object.id,
            object_size: object.size,
            part: BlockPart::Piece { shift: 20, index },
        };
        let plan = |range| plan(&cache, &object, range, ObjectAccess::Sequential);
        fill(&cache, piece(1), 1 << 20);
        fill(&cache, piece(2), 1 << 20);
        let range = (2 << 20) - 5..(2 << 20) + 7;
        let parts = [(piece(1), (1 << 20) - 5..1 << 20), (piece(2), 0..7)];
        assert_eq!(plan(range), parts.map(|(key, range)| BlockRange { key, range }));
        assert_eq!(plan((3 << 20) - 1..(3 << 20) + 1)[0].key.part, BlockPart::Whole, "not all are there");
        // Pieces of other sizes beside them.
        let small = |index| BlockKey { part: BlockPart::Piece { shift: 16, index }, ..piece(0) };
        fill(&cache, small(48), 1 << 16);
        let parts = [(piece(2), (1 << 20) - 1..1 << 20), (small(48), 0..1)];
        assert_eq!(plan((3 << 20) - 1..(3 << 20) + 1), parts.map(|(key, range)| BlockRange { key, range }));
    }

    #[test]
    fn a_whole_object_in_the_cache_serves_random_reads() {
        let cache = Cache::new(MIN_CAPACITY).unwrap();
        let object = object(4 << 20);
        let key = BlockKey { object: object.id, object_size: object.size, part: BlockPart::Whole };
        fill(&cache, key, 4 << 20);
        assert_eq!(plan(&cache, &object, 5..10, RANDOM), [BlockRange { key, range: 5..10 }]);
    }

    proptest! {
        /// With blocks of all sizes in the cache: the bytes counted as cached are those that the
        /// blocks hold, and every block is listed.
        #[test]
        fn the_cached_part_is_what_the_blocks_hold(
            size in 1u64..(20 << 20),
            from in 0.0f64..1.0,
            to in 0.0f64..1.0,
            present in prop::collection::vec((14u8..23, 0.0f64..1.0), 0..12),
            whole in prop::bool::weighted(0.1),
        ) {
            let object = object(size);
            let at = |part: f64| ((size - 1) as f64 * part) as u64;
            let range = at(from.min(to))..at(from.max(to)) + 1;
            let key = |part| BlockKey { object: object.id, object_size: size, part };
            let mut blocks: Vec<BlockKey> = Vec::new();
            if size > MAX_UNDIVIDED_SIZE {
                let piece = |(shift, place): (u8, f64)| BlockPart::Piece { shift, index: (at(place) >> shift) as u32 };
                blocks.extend(present.into_iter().map(piece).map(key));
            }
            blocks.extend(whole.then(|| key(BlockPart::Whole)));
            let held = |byte: u64| blocks.iter().any(|block| {
                let (start, len) = span(&object, block.part);
                (start..start + len as u64).contains(&byte)
            });
            // Borders lie at multiples of the smallest piece, so one byte tells of all of a piece.
            let step = 1 << MIN_PIECE_SHIFT;
            let mut bytes = 0;
            let mut byte = range.start;
            while byte < range.end {
                let next = ((byte / step + 1) * step).min(range.end);
                bytes += if held(byte) { next - byte } else { 0 };
                byte = next;
            }
            prop_assert_eq!(cached_bytes(&object, &range, &|key| blocks.contains(key)), bytes);
            let names: Vec<_> = all_blocks(&object, &range).collect();
            for block in &blocks {
                let (start, len) = span(&object, block.part);
                let overlaps = start < range.end && range.start < start + len as u64;
                prop_assert_eq!(names.contains(block), overlaps, "{:?}", block);
            }
        }

        #[test]
        fn blocks_cover_the_range_exactly(
            size in 1u64..(100 << 20),
            at in 0.0f64..1.0,
            len in 1u64..(3 << 20),
            sequential: bool,
        ) {
            let object = object(size);
            let start = ((size - 1) as f64 * at) as u64;
            let range = start..(start + len).min(size);
            let access = if sequential { ObjectAccess::Sequential } else { RANDOM };
            let mut next = range.start;
            for part in plan(&Cache::new(MIN_CAPACITY).unwrap(), &object, range.clone(), access) {
                let (offset, block_len) = span(&object, part.key.part);
                prop_assert!(part.range.end <= block_len && offset + block_len as u64 <= size);
                prop_assert_eq!(offset + part.range.start as u64, next);
                next = offset + part.range.end as u64;
            }
            prop_assert_eq!(next, range.end);
        }
    }
}
