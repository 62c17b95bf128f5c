//! Sizes as people type them: `1GiB`, `512M`, `1.5g`.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// A text that is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number in front.
    #[error("expected a number of bytes such as 512MiB, 2G or 1.5GiB")]
    Number,
    /// An unknown unit behind.
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

impl fmt::Display for ByteSize {
    /// The largest unit of 1024 in which it is at least one, with at most one decimal.
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
    fn units() {
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
    fn nonsense_is_told_apart() {
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
    fn display() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB")] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize(u64::MAX).to_string(), "16 EiB");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn bytes_are_themselves(bytes: u64) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
        }
    }
}
