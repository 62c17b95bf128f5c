//! The name under which a block is found.

/// Identifies bytes that never change. Opaque to the cache: the origin that makes an id guarantees
/// that equal ids mean equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId(pub u128);

/// Which part of an object a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockPart {
    /// All of it, verified against the object's checksum where there is one.
    Whole,
    /// The `index`-th piece of `1 << shift` bytes; the last one may be shorter.
    Piece {
        /// Binary logarithm of the size of a piece in bytes.
        shift: u8,
        /// Number of the piece, from 0.
        index: u32,
    },
}

/// Identifies a block: which part of which object it holds.
///
/// The size is a part of the key because two versions of a file can use the same object to
/// different lengths (truncation shortens SeaweedFS's chunk record, not the needle).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// How many bytes of the object the file version uses.
    pub object_size: u64,
    /// Which of these bytes the block holds.
    pub part: BlockPart,
}
