//! Entries of an `.idx` file: a log of where each needle was written or deleted. The last entry of
//! a key is valid.
//!
//! ```text
//!  0  key u64
//!  8  offset u32, or 5 bytes: the low 32 bits, then bits 32 to 39      in units of 8 bytes
//!     size u32                                                         -1 for a deletion
//! ```
//! Whether offsets have 4 or 5 bytes depends on how the server was compiled; the file does not
//! say.

use crate::needle::ALIGNMENT;

/// The width of the offsets of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetWidth {
    /// Volumes up to 32 GiB, the usual build.
    Four,
    /// Volumes up to 8 TiB, builds called `large_disk`.
    Five,
}

impl OffsetWidth {
    /// Bytes of one entry.
    pub const fn entry_length(self) -> usize {
        match self {
            Self::Four => 16,
            Self::Five => 17,
        }
    }
}

/// The content of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexChange {
    /// The needle's record was written there.
    Written(RecordPosition),
    /// The needle was deleted.
    Deleted,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPosition {
    /// In bytes from the beginning of the `.dat` file; a multiple of 8, never 0.
    pub offset: u64,
    /// The size in the record's header.
    pub size: u32,
}

/// Parses one entry: a key, and what happened to its needle.
///
/// # Panics
/// When `bytes` does not have the length of an entry of this width.
pub fn parse_entry(width: OffsetWidth, bytes: &[u8]) -> (u64, IndexChange) {
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let key = u64::from(word(0)) << 32 | u64::from(word(4));
    let (units, size) = match width {
        OffsetWidth::Four => (u64::from(word(8)), word(12)),
        OffsetWidth::Five => (u64::from(word(8)) | u64::from(bytes[12]) << 32, word(13)),
    };
    let deleted = units == 0 || size.cast_signed() < 0;
    let change = match deleted {
        true => IndexChange::Deleted,
        false => IndexChange::Written(RecordPosition { offset: units * ALIGNMENT, size }),
    };
    (key, change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(width: OffsetWidth, key: u64, units: u64, size: i32) -> Vec<u8> {
        let mut bytes = key.to_be_bytes().to_vec();
        bytes.extend_from_slice(&u32::try_from(units & 0xffff_ffff).unwrap().to_be_bytes());
        if width == OffsetWidth::Five {
            bytes.push(u8::try_from(units >> 32).unwrap());
        }
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes
    }

    #[test]
    fn the_fifth_byte_is_the_highest() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 1, 0, 0, 0, 9];
        let (key, change) = parse_entry(OffsetWidth::Five, &bytes);
        assert_eq!(key, 7);
        assert_eq!(change, IndexChange::Written(RecordPosition { offset: ((1 << 32) + 2) * 8, size: 9 }));
    }

    #[test]
    fn a_negative_size_or_no_offset_is_a_deletion() {
        for (units, size, deleted) in
            [(1, 5, false), (1, 0, false), (1, -1, true), (1, -5, true), (0, 5, true), (0, 0, true)]
        {
            let (_, change) = parse_entry(OffsetWidth::Four, &entry(OffsetWidth::Four, 1, units, size));
            assert_eq!(change == IndexChange::Deleted, deleted, "{units} {size}");
        }
    }

    proptest! {
        #[test]
        fn entries_round_trip(key: u64, units in 1u64..1 << 32, size in 0i32.., high: u8) {
            for width in [OffsetWidth::Four, OffsetWidth::Five] {
                let units = if width == OffsetWidth::Five { units | u64::from(high) << 32 } else { units };
                let bytes = entry(width, key, units, size);
                prop_assert_eq!(bytes.len(), width.entry_length());
                let position = RecordPosition { offset: units * 8, size: size.cast_unsigned() };
                prop_assert_eq!(parse_entry(width, &bytes), (key, IndexChange::Written(position)));
            }
        }
    }
}
