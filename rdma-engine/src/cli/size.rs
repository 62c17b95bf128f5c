//! Sizes as people type them.

/// Parses a number of bytes below 4 GiB: `4096`, `64KiB`, `1MiB`.
pub(super) fn parse(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("a size is a number of bytes, or as in 64KiB or 1MiB".to_owned()),
    };
    let number: u32 = number.parse().map_err(|_| "a size is a number of bytes, or as in 64KiB or 1MiB")?;
    number.checked_mul(1 << shift).ok_or_else(|| "a size is below 4GiB".to_owned())
}

/// A number of bytes as people read it.
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
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64KiB", 65536), ("1 mib", 1 << 20), ("3G", 3 << 30)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "-1", "1.5MiB", "4GiB", "99999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!((show(4096), show(1 << 20), show(1000)), ("4KiB".into(), "1MiB".into(), "1000".into()));
    }
}
