//! Sizes that fit into a message of the protocol.

use daemon::size::{ByteSize, SizeError};

/// Parses a number of bytes below 4 GiB.
pub(super) fn below_4_gib(text: &str) -> Result<u32, String> {
    let ByteSize(bytes) = text.parse().map_err(|error: SizeError| error.to_string())?;
    u32::try_from(bytes).map_err(|_| "a size is below 4GiB here".to_owned())
}

/// A number of bytes as it would be typed.
pub(super) fn show(bytes: u32) -> String {
    match bytes {
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}MiB", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}KiB", b >> 10),
        b => b.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("64KiB", 65536), ("1.5 mib", 3 << 19), ("3G", 3 << 30), ("4KB", 4000)]
        {
            assert_eq!(below_4_gib(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "4GiB", "99999999999"] {
            assert!(below_4_gib(text).is_err(), "{text}");
        }
        assert_eq!((show(4096), show(1 << 20), show(1000)), ("4KiB".into(), "1MiB".into(), "1000".into()));
    }
}
