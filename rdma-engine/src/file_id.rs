//! The name of a needle: volume, key and cookie, in text `3,01637037d6`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A needle's name. A needle never changes under its name, so the name is also a cache key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// The volume that holds the needle; never 0.
    pub volume: u32,
    /// The needle's key within the volume; never 0 in a legal name.
    pub key: u64,
    /// A random number, against guessed keys.
    pub cookie: u32,
}

/// Why a text is not a file id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseFileIdError {
    /// There is no comma with a volume before it.
    #[error("a file id is VOLUME,KEYCOOKIE")]
    Shape,
    /// The part before the comma is not a 32-bit decimal number above 0.
    #[error("the volume of a file id is a decimal number from 1 to 4294967295")]
    Volume,
    /// Key and cookie together have fewer than 9 or more than 24 hexadecimal digits, or other
    /// characters.
    #[error("the key and cookie of a file id are 9 to 24 hexadecimal digits")]
    KeyCookie,
}

impl FromStr for FileId {
    type Err = ParseFileIdError;

    /// Accepts both cases of hexadecimal digits and an odd number of them, as SeaweedFS does, but
    /// not the `_N` suffix that only volume servers understand.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (volume, rest) = text.split_once(',').ok_or(ParseFileIdError::Shape)?;
        if volume.is_empty() || !volume.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseFileIdError::Volume);
        }
        let volume = volume.parse().ok().filter(|&v| v != 0).ok_or(ParseFileIdError::Volume)?;
        if !(9..=24).contains(&rest.len()) || !rest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseFileIdError::KeyCookie);
        }
        let (key, cookie) = rest.split_at(rest.len() - 8);
        let key = u64::from_str_radix(key, 16).map_err(|_| ParseFileIdError::KeyCookie)?;
        let cookie = u32::from_str_radix(cookie, 16).map_err(|_| ParseFileIdError::KeyCookie)?;
        Ok(Self { volume, key, cookie })
    }
}

impl fmt::Display for FileId {
    /// Leading zero bytes of the key are left out, so the digits are even in number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = (u64::BITS - self.key.leading_zeros()).div_ceil(8) as usize * 2;
        write!(f, "{},", self.volume)?;
        if digits > 0 {
            write!(f, "{:0digits$x}", self.key)?;
        }
        write!(f, "{:08x}", self.cookie)
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_documented_example_is_parsed_and_printed() {
        let fid: FileId = "3,01637037d6".parse().unwrap();
        assert_eq!(fid, FileId { volume: 3, key: 1, cookie: 0x6370_37d6 });
        assert_eq!(fid.to_string(), "3,01637037d6");
        assert_eq!("3,1637037D6".parse(), Ok(fid));
    }

    #[test]
    fn malformed_names_are_refused() {
        use ParseFileIdError::*;
        for (text, error) in [
            ("", Shape),
            ("3", Shape),
            (",01637037d6", Volume),
            ("x,01637037d6", Volume),
            ("+3,01637037d6", Volume),
            ("0,01637037d6", Volume),
            ("4294967296,01637037d6", Volume),
            ("3,", KeyCookie),
            ("3,637037d6", KeyCookie),
            ("3,+1637037d6", KeyCookie),
            ("3,01637037d6_1", KeyCookie),
            ("3,0123456789abcdef012345678", KeyCookie),
            ("3,ééééééééé", KeyCookie),
        ] {
            assert_eq!(text.parse::<FileId>(), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(volume in 1u32.., key in 1u64.., cookie: u32) {
            let fid = FileId { volume, key, cookie };
            prop_assert_eq!(fid.to_string().parse(), Ok(fid));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*") {
            let _ = text.parse::<FileId>();
        }
    }
}
