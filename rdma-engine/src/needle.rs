//! The record of a needle in a volume's `.dat` file, as SeaweedFS writes it
//! (`weed/storage/needle`).
//!
//! ```text
//!  0  cookie u32 · key u64 · size u32            header, 16 bytes
//! 16  [size bytes]   version 1: the data
//!                    versions 2 and 3, unless size is 0:
//!                    dataSize u32 · data · flags u8 · optional parts
//!     checksum u32 · version 3: appendAtNs u64   trailer
//!     padding, 1 to 8 bytes                      so that records begin at multiples of 8
//! ```
//! All integers are big-endian. `size` is also in the index. Padding is never checked: it has
//! arbitrary bytes of earlier records.
//!
//! The data comes first, with its length before it. So two small reads give everything of a record
//! but its data: the [`Header`] with `dataSize`, and the [`Tail`], which lies between data and
//! padding.

/// Bytes of a record's header, without `dataSize`.
pub const HEADER: usize = 16;

/// Records begin at multiples of this many bytes, which are the unit of offsets in the index.
pub const ALIGNMENT: u64 = 8;

/// The largest tail of a record: a name and a type of 255 bytes, 64 KiB of pairs, and the fixed
/// parts.
pub const MAX_TAIL: usize = 1 + 256 + 256 + 5 + 2 + 2 + 65_535 + 12;

/// The layout of a volume's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Data only.
    V1,
    /// Data with flags and optional parts.
    V2,
    /// As version 2, with the time of writing in the trailer. SeaweedFS has written it for years.
    V3,
}

impl Version {
    /// The version in the first byte of a superblock.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            3 => Some(Self::V3),
            _ => None,
        }
    }

    /// Bytes of checksum and time.
    pub const fn trailer(self) -> usize {
        match self {
            Self::V1 | Self::V2 => 4,
            Self::V3 => 12,
        }
    }

    /// Bytes of the whole record, padding included, of a needle with this `size` in the index.
    pub const fn record_length(self, size: u32) -> u64 {
        let used = HEADER as u64 + size as u64 + self.trailer() as u64;
        used + ALIGNMENT - used % ALIGNMENT
    }
}

/// The first 16 bytes of a record, which identify its needle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The random number in the file id.
    pub cookie: u32,
    /// The key in the file id.
    pub key: u64,
    /// Bytes between header and checksum. SeaweedFS never writes a negative number.
    pub size: i32,
}

impl Header {
    /// Parses a header.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let [c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, k6, k7, s0, s1, s2, s3] = *bytes;
        Self {
            cookie: u32::from_be_bytes([c0, c1, c2, c3]),
            key: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
            size: i32::from_be_bytes([s0, s1, s2, s3]),
        }
    }

    /// The bytes on disk.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[4..12].copy_from_slice(&self.key.to_be_bytes());
        bytes[12..].copy_from_slice(&self.size.to_be_bytes());
        bytes
    }
}

/// A record's flags for its data; the bits are those on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    const GZIP: u8 = 0x01;
    const NAME: u8 = 0x02;
    const MIME: u8 = 0x04;
    const LAST_MODIFIED: u8 = 0x08;
    const TTL: u8 = 0x10;
    const PAIRS: u8 = 0x20;
    const MANIFEST: u8 = 0x80;

    /// Whether the data is a gzip stream of the written bytes.
    pub const fn is_gzip(self) -> bool {
        self.0 & Self::GZIP != 0
    }

    /// Whether the data is a JSON list of other needles. A volume server sends their data in its
    /// place.
    pub const fn is_manifest(self) -> bool {
        self.0 & Self::MANIFEST != 0
    }
}

/// The part of a record that follows its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// Whether the data is compressed, and which optional parts there are.
    pub flags: Flags,
    /// CRC32C of the data, in either form (see [`checksum`](crate::checksum)).
    pub checksum: u32,
    /// When the record was written, in nanoseconds of Unix time; 0 before version 3.
    pub append_at_ns: u64,
    /// When the content was last modified, in seconds of Unix time.
    pub last_modified: Option<u64>,
    /// How long the needle may be read, in seconds.
    pub ttl: Option<u64>,
}

/// Bytes that are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a needle record: {0}")]
pub struct Malformed(pub &'static str);

impl Tail {
    /// Parses the part between data and padding. `bytes` must end with the trailer.
    ///
    /// # Errors
    /// When the parts that the flags announce do not fill `bytes` exactly.
    pub fn parse(version: Version, bytes: &[u8]) -> Result<Self, Malformed> {
        let optional = bytes.len().checked_sub(version.trailer()).ok_or(Malformed("it ends early"))?;
        let (optional, trailer) = bytes.split_at(optional);
        let mut trailer = OptionalParts(trailer);
        let mut tail = Self {
            flags: Flags::default(),
            checksum: u32::from_be_bytes(trailer.array()?),
            append_at_ns: 0,
            last_modified: None,
            ttl: None,
        };
        if version == Version::V3 {
            tail.append_at_ns = u64::from_be_bytes(trailer.array()?);
        }
        if version != Version::V1 && !optional.is_empty() {
            tail.parse_optional(OptionalParts(optional))?;
        } else if !optional.is_empty() {
            return Err(Malformed("a record of version 1 has nothing but data"));
        }
        Ok(tail)
    }

    fn parse_optional(&mut self, mut parts: OptionalParts<'_>) -> Result<(), Malformed> {
        let [flags] = parts.array()?;
        self.flags = Flags(flags);
        for text in [Flags::NAME, Flags::MIME] {
            if flags & text != 0 {
                let [length] = parts.array()?;
                parts.skip(usize::from(length))?;
            }
        }
        if flags & Flags::LAST_MODIFIED != 0 {
            let [a, b, c, d, e] = parts.array()?;
            self.last_modified = Some(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]));
        }
        if flags & Flags::TTL != 0 {
            let [count, unit] = parts.array()?;
            self.ttl = ttl_seconds(count, unit);
        }
        if flags & Flags::PAIRS != 0 {
            let length = u16::from_be_bytes(parts.array()?);
            parts.skip(usize::from(length))?;
        }
        if parts.0.is_empty() { Ok(()) } else { Err(Malformed("its parts do not add up to its size")) }
    }

    /// Whether the needle's time to live is over at `now_s`, in seconds of Unix time. Volume
    /// servers count from the time of writing when they read, and from the time of modification
    /// when they compact; here the earlier of the two counts.
    pub fn is_expired(&self, now_s: u64) -> bool {
        let (Some(ttl), Some(modified)) = (self.ttl, self.last_modified) else { return false };
        let written = match self.append_at_ns {
            0 => modified,
            ns => modified.min(ns / 1_000_000_000),
        };
        now_s >= written.saturating_add(ttl)
    }
}

/// A time to live in seconds; `None` for a count or unit of 0, and for unknown units.
pub(crate) fn ttl_seconds(count: u8, unit: u8) -> Option<u64> {
    const DAY: u64 = 24 * 3600;
    let unit = match unit {
        1 => 60,
        2 => 3600,
        3 => DAY,
        4 => 7 * DAY,
        5 => 30 * DAY,
        6 => 365 * DAY,
        _ => return None,
    };
    (count > 0).then(|| u64::from(count) * unit)
}

/// The rest of the bytes to parse.
struct OptionalParts<'a>(&'a [u8]);

impl OptionalParts<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed("it ends early"))?;
        self.0 = rest;
        Ok(*array)
    }

    fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(count..).ok_or(Malformed("it ends early"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn a_tombstone_of_a_real_volume() {
        let record = bytes("3b2e4ea7 0000000000000014 00000000 c73e5dad 189295d74eb770a7 00000000");
        let header = Header::parse(record.first_chunk().unwrap());
        assert_eq!(header, Header { cookie: 0x3b2e_4ea7, key: 20, size: 0 });
        assert_eq!(header.to_bytes()[..], record[..HEADER]);
        assert_eq!(Version::V3.record_length(0), 32);
        let tail = Tail::parse(Version::V3, &record[16..28]).unwrap();
        assert_eq!((tail.checksum, tail.flags), (0xc73e_5dad, Flags(0)));
        assert_eq!(tail.append_at_ns, 0x1892_95d7_4eb7_70a7);
    }

    #[test]
    fn padding_is_never_empty() {
        for (version, size, length) in [
            (Version::V3, 75_652, 75_688),
            (Version::V3, 4, 40),
            (Version::V3, 12, 48),
            (Version::V2, 4, 32),
            (Version::V2, 3, 24),
            (Version::V1, 0, 24),
        ] {
            assert_eq!(version.record_length(size), length, "{version:?} {size}");
            assert!((1..=8).contains(&(length - 16 - u64::from(size) - version.trailer() as u64)));
        }
    }

    #[test]
    fn every_optional_part_is_parsed() {
        let tail = bytes("3f 02 6162 01 78 0065000000 0501 0003 7b7d20 deadbeef 0000000000000001");
        let tail = Tail::parse(Version::V3, &tail).unwrap();
        assert!(tail.flags.is_gzip() && !tail.flags.is_manifest());
        assert_eq!((tail.checksum, tail.append_at_ns), (0xdead_beef, 1));
        assert_eq!((tail.last_modified, tail.ttl), (Some(0x6500_0000), Some(300)));
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for text in ["02 05 6162", "08 00650000", "10 05", "20 0003 7b", "00 00", "40 00"] {
            let mut tail = bytes(text);
            tail.extend_from_slice(&[0; 12]);
            assert!(Tail::parse(Version::V3, &tail).is_err(), "{text}");
        }
        assert!(Tail::parse(Version::V3, &[0; 11]).is_err());
        assert!(Tail::parse(Version::V1, &[0; 5]).is_err());
    }

    #[test]
    fn a_needle_expires_after_its_time_to_live() {
        let tail = Tail {
            flags: Flags(0x18),
            checksum: 0,
            append_at_ns: 1_000_000_000_000,
            last_modified: Some(1_000),
            ttl: ttl_seconds(1, 1),
        };
        assert!(!tail.is_expired(1_059));
        assert!(tail.is_expired(1_060));
        assert!(!Tail { ttl: None, ..tail }.is_expired(u64::MAX));
        assert!(!Tail { last_modified: None, ..tail }.is_expired(u64::MAX));
        assert_eq!(ttl_seconds(0, 3), None);
        assert_eq!(ttl_seconds(2, 6), Some(2 * 365 * 86_400));
    }

    proptest! {
        #[test]
        fn arbitrary_tails_never_panic(bytes: Vec<u8>) {
            for version in [Version::V1, Version::V2, Version::V3] {
                let _ = Tail::parse(version, &bytes);
            }
        }
    }
}
