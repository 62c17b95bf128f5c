//! The file of checksums: which bytes the file beside it has, and how to tell that they are right.
//!
//! ```text
//! 0   "intrcpt\0"   version u32   members u32   checksum of the header u32   0 u32
//! 24  the file's own name, 32 bytes
//! 56  members: name, 32 bytes; length u64      one after the other in the file of bytes
//! …   a checksum u32 for each 16 KiB (sector) of each member; 0 if the sector is absent
//! ```
//!
//! All numbers are little-endian. The checksum of a sector is the CRC32C of its bytes, begun with
//! a value that depends on the member's name and the number of the sector, so that bytes that
//! came to lie elsewhere fail it, too. A sector is written before its checksum, and counts only
//! if both agree when it is read: whatever a crash leaves of either, the sector is right or
//! absent.

use super::name::DiskName;

/// Bytes that have a checksum of their own. A read brings whole sectors; the smallest piece of an
/// object that is fetched by itself has as many.
pub(super) const SECTOR: u64 = 16 << 10;
/// Members of a file at most; two such files are as many chunks as a filer lists without
/// manifests.
pub(super) const MAX_MEMBERS: usize = 1 << 16;
/// The largest file, in bytes: its checksums take 16 MiB.
pub(super) const MAX_FILE_SIZE: u64 = 64 << 30;

/// In as many bytes a file system allocates.
const PAGE: u64 = 4096;
const MAGIC: [u8; 8] = *b"intrcpt\0";
const VERSION: u32 = 1;
const FIXED_SIZE: usize = 56;
const MEMBER_SIZE: usize = 40;

/// An object of which a file has bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: DiskName,
    /// Its length in bytes.
    pub len: u64,
}

/// What a file is about: the objects that it holds, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileHeader {
    /// The name of the file; for a file of one object alone, the name of the object.
    pub(super) name: DiskName,
    pub(super) members: Box<[Member]>,
}

impl FileHeader {
    /// A file for one object.
    pub(super) fn of_object(object: Member) -> Self {
        Self { name: object.name, members: Box::new([object]) }
    }

    /// Length of the file of bytes; `None` if that is out of bounds.
    pub(super) fn data_len(&self) -> Option<u64> {
        let sum = self.members.iter().try_fold(0u64, |sum, member| sum.checked_add(member.len))?;
        (sum <= MAX_FILE_SIZE && self.members.len() <= MAX_MEMBERS).then_some(sum)
    }

    /// How many sectors the file has.
    pub(super) fn sectors(&self) -> u64 {
        self.members.iter().map(|member| member.len.div_ceil(SECTOR)).sum()
    }

    /// Bytes of the header, behind which the checksums begin.
    pub(super) fn encoded_len(&self) -> u64 {
        (FIXED_SIZE + self.members.len() * MEMBER_SIZE) as u64
    }

    /// Bytes of the disk that the file of checksums takes, in whole pages.
    pub(super) fn sums_bytes(&self) -> u64 {
        size_on_disk(self.encoded_len() + 4 * self.sectors())
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.encoded_len() as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.members.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&self.name.0);
        for member in &self.members {
            bytes.extend_from_slice(&member.name.0);
            bytes.extend_from_slice(&member.len.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, if it is whole and that of the file `name`.
    pub(super) fn decode(bytes: &[u8], name: &DiskName) -> Option<Self> {
        let fixed = bytes.get(..FIXED_SIZE)?;
        let number = |at: usize| Some(u32::from_le_bytes(*fixed.get(at..)?.first_chunk()?));
        let count = number(12)? as usize;
        if fixed[..8] != MAGIC || number(8)? != VERSION || count > MAX_MEMBERS || fixed[24..] != name.0 {
            return None;
        }
        let mut header = bytes.get(..FIXED_SIZE + count * MEMBER_SIZE)?.to_vec();
        header[16..20].fill(0);
        if number(16)? != crc32c::crc32c(&header) {
            return None;
        }
        let members = header[FIXED_SIZE..].as_chunks::<MEMBER_SIZE>().0.iter().map(|member| {
            let (name, len) = member.split_first_chunk::<32>()?;
            Some(Member { name: DiskName(*name), len: u64::from_le_bytes(*len.first_chunk()?) })
        });
        let header = Self { name: *name, members: members.collect::<Option<_>>()? };
        header.data_len().is_some().then_some(header)
    }
}

/// Bytes of the disk that `len` bytes take, in whole pages.
pub(super) fn size_on_disk(len: u64) -> u64 {
    len.div_ceil(PAGE) * PAGE
}

/// How many bytes a header can have that begins with `bytes`, bounded; what is no header has 0.
pub(super) fn header_len(bytes: &[u8]) -> usize {
    let count =
        bytes.get(12..).and_then(|rest| rest.first_chunk()).map_or(0, |count| u32::from_le_bytes(*count));
    FIXED_SIZE + (count as usize).min(MAX_MEMBERS) * MEMBER_SIZE
}

/// The checksum of sector number `number` of an object. Never 0, which stands for an absent
/// sector.
pub(super) fn checksum(object: &DiskName, number: u64, bytes: &[u8]) -> u32 {
    let begin = (object.hash() as u32).wrapping_add(number as u32);
    crc32c::crc32c_append(begin, bytes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(byte: u8) -> DiskName {
        DiskName([byte; 32])
    }

    fn header(lens: &[u64]) -> FileHeader {
        let members =
            lens.iter().enumerate().map(|(at, &len)| Member { name: name(at as u8), len }).collect();
        FileHeader { name: name(9), members }
    }

    proptest! {
        #[test]
        fn a_header_survives_encoding(lens in prop::collection::vec(0u64..(1 << 20), 0..20), more in 0usize..50) {
            let header = header(&lens);
            let mut bytes = header.encode();
            prop_assert_eq!(bytes.len() as u64, header.encoded_len());
            prop_assert_eq!(header_len(&bytes), bytes.len());
            bytes.resize(bytes.len() + more, 7);
            prop_assert_eq!(FileHeader::decode(&bytes, &name(9)), Some(header));
            prop_assert_eq!(FileHeader::decode(&bytes, &name(8)), None);
        }

        #[test]
        fn a_damaged_header_is_none(
            lens in prop::collection::vec(0u64..(1 << 20), 1..5),
            at in 0.0f64..1.0,
            bit in 0u8..8,
            cut: bool,
        ) {
            let mut bytes = header(&lens).encode();
            let at = (at * bytes.len() as f64) as usize;
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << bit;
            }
            prop_assert_eq!(FileHeader::decode(&bytes, &name(9)), None);
            let _ = header_len(&bytes);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = FileHeader::decode(&bytes, &name(9));
            prop_assert!(header_len(&bytes) <= FIXED_SIZE + MAX_MEMBERS * MEMBER_SIZE);
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for lens in [&[u64::MAX, 2][..], &[MAX_FILE_SIZE, 1]] {
            let bytes = header(lens).encode();
            assert_eq!(FileHeader::decode(&bytes, &name(9)), None);
        }
    }

    #[test]
    fn equal_bytes_elsewhere_have_another_checksum() {
        let bytes = [3; 100];
        let sum = checksum(&DiskName([1; 32]), 5, &bytes);
        assert_ne!(sum, checksum(&DiskName([1; 32]), 6, &bytes));
        assert_ne!(sum, checksum(&DiskName([2; 32]), 5, &bytes));
    }
}
