//! The first bytes of a `.dat` file.

use crate::needle::Version;

/// Bytes of a superblock, without the extra bytes that may follow it.
pub(super) const LENGTH: usize = 8;

/// The description of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// The layout of all records.
    pub version: Version,
    /// How often the volume has been compacted, modulo 65,536. Offsets hold only within one
    /// revision.
    pub revision: u16,
    /// Where the first record begins, in bytes.
    pub first_record: u64,
}

impl Superblock {
    /// Parses a superblock; `None` if the version is unknown.
    pub fn parse(bytes: &[u8; LENGTH]) -> Option<Self> {
        let [version, _replication, _ttl_count, _ttl_unit, r0, r1, e0, e1] = *bytes;
        let version = Version::from_byte(version)?;
        let extra = match version {
            Version::V1 => 0,
            Version::V2 | Version::V3 => u64::from(u16::from_be_bytes([e0, e1])),
        };
        Some(Self { version, revision: u16::from_be_bytes([r0, r1]), first_record: LENGTH as u64 + extra })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revision_and_extra_bytes() {
        let parsed = Superblock::parse(&[3, 1, 0, 0, 0x12, 0x34, 0, 8]).unwrap();
        assert_eq!(parsed, Superblock { version: Version::V3, revision: 0x1234, first_record: 16 });
        assert_eq!(Superblock::parse(&[1, 0, 0, 0, 0, 0, 9, 9]).unwrap().first_record, 8);
        assert_eq!(Superblock::parse(&[0; 8]), None);
        assert_eq!(Superblock::parse(&[4, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
