//! Sizes as they are typed: `1GiB`, `512M`, `1.5g`. A crate (`bytesize`) reads `M` as a power of
//! 1000, and `weed`'s users mean one of 1024.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not begin with a number.
    #[error("expected a number of bytes such as 512MiB, 2G or 1.5GiB")]
    Number,
    /// The unit is unknown.
    #[error(
        "unknown unit {0:?}: use K, M, G or T (powers of 1024, also KiB to TiB), or KB, MB, GB or TB (powers of 1000)"
    )]
    Unit(String),
    /// Beyond 16 EiB.
    #[error("larger than any memory")]
    Overflow,
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || number.ends_with('.') || fraction.contains('.') || fraction.len() > 9 {
            return Err(SizeError::Number);
        }
        let unit: u128 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err(SizeError::Unit(unit.trim().to_owned())),
        };
        let whole: u64 = whole.parse().map_err(|_| SizeError::Overflow)?;
        let parts = format!("{fraction:0<9}").parse::<u64>().map_err(|_| SizeError::Number)?;
        let bytes = u128::from(whole) * unit + u128::from(parts) * unit / 1_000_000_000;
        u64::try_from(bytes).map(Self).map_err(|_| SizeError::Overflow)
    }
}

impl ByteSize {
    /// Parses a number of bytes below 4 GiB.
    ///
    /// # Errors
    /// When the text is no size, or a larger one; the error says so.
    pub fn parse_u32(text: &str) -> Result<u32, String> {
        let Self(bytes) = text.parse().map_err(|error: SizeError| error.to_string())?;
        u32::try_from(bytes).map_err(|_| "a size is below 4GiB here".to_owned())
    }

    /// The size as it is typed: in whole MiB or KiB if it is a multiple, without a space.
    pub fn typed(self) -> String {
        match self.0 {
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
            bytes if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
            bytes => bytes.to_string(),
        }
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit (powers of 1024) of which it has at least one, with at most one
    /// decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (self.0.max(1).ilog2() / 10) as usize;
        let scaled = self.0 as f64 / (1u64 << (10 * unit)) as f64;
        let text = format!("{scaled:.1}");
        write!(f, "{} {}", text.strip_suffix(".0").unwrap_or(&text), units[unit])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<u64, SizeError> {
        text.parse().map(|ByteSize(bytes)| bytes)
    }

    #[test]
    fn a_size_has_a_number_and_maybe_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("512MiB", 512 << 20),
            ("1G", 1 << 30),
            ("1gib", 1 << 30),
            ("1 GiB", 1 << 30),
            ("1GB", 1_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0.5k", 512),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        assert_eq!(parse(""), Err(SizeError::Number));
        assert_eq!(parse("-1G"), Err(SizeError::Number));
        assert_eq!(parse(".5G"), Err(SizeError::Number));
        assert_eq!(parse("1.G"), Err(SizeError::Number));
        assert_eq!(parse("1.2.3G"), Err(SizeError::Number));
        assert_eq!(parse("1 GiBi"), Err(SizeError::Unit("GiBi".into())));
        assert_eq!(parse("99999999999999999999"), Err(SizeError::Overflow));
        assert_eq!(parse("18446744073709551615K"), Err(SizeError::Overflow));
    }

    #[test]
    fn a_size_is_shown_in_the_largest_unit() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize(u64::MAX).to_string(), "16 EiB");
    }

    #[test]
    fn sizes_of_messages_are_below_4_gib() {
        for (text, bytes) in
            [("0", 0), ("64KiB", 65536), ("1.5 mib", 3 << 19), ("3G", 3 << 30), ("4KB", 4000)]
        {
            assert_eq!(ByteSize::parse_u32(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "4GiB", "99999999999"] {
            assert!(ByteSize::parse_u32(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_typed_size_has_no_space() {
        let typed = [4096, 1 << 20, 1000].map(|bytes| ByteSize(bytes).typed());
        assert_eq!(typed, ["4KiB", "1MiB", "1000"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn a_number_without_a_unit_is_a_number_of_bytes(bytes: u64) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
        }
    }
}
