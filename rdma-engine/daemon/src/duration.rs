//! Durations as they are typed: `500ms`, `6s`, `2m`. A crate (`humantime`) would also accept sums
//! and months, which no option documents, and does not name the bounds of an option.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Parses a whole number of milliseconds, seconds or minutes.
///
/// # Errors
/// When the text is no such duration; the error says what is expected.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "expected a time such as 500ms, 6s or 2m";
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or(EXPECTED)?);
    let number: u32 = number.parse().map_err(|_| EXPECTED)?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(60 * u64::from(number))),
        _ => Err(EXPECTED),
    }
}

/// As [`parse`], within bounds.
///
/// # Errors
/// See [`parse`]; and when the duration is out of bounds.
pub fn within(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let time = parse(text)?;
    if bounds.contains(&time) {
        return Ok(time);
    }
    let shown = |time: &Duration| match time.as_millis() {
        millis if millis % 60_000 == 0 => format!("{}m", millis / 60_000),
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    };
    Err(format!("expected a time from {} to {}", shown(bounds.start()), shown(bounds.end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(parse("6s"), Ok(Duration::from_secs(6)));
        assert_eq!(parse("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "6", "s", "-6s", "6h", "6 s", "4294967296s"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_error_names_the_bounds() {
        let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
        assert_eq!(within("100ms", bounds.clone()), Ok(Duration::from_millis(100)));
        assert_eq!(within("11m", bounds), Err("expected a time from 100ms to 10m".into()));
    }
}
