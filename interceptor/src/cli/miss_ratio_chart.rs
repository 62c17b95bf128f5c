//! The miss-ratio curve as people read it: the hits to expect of caches of several sizes, as bars.

use std::fmt::{self, Display};

use super::figures::{percent, size};
use super::fitted_text::columns;
use crate::telemetry::MissRatioCurve;

/// Columns of the bar of a cache that misses nothing.
const BAR_COLUMNS: usize = 40;
/// A column of a bar, filled by so many eighths.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// How many sizes are printed.
const SIZES: u32 = 8;

/// Prints a line for each size: powers of two, of which the last one holds all that was read again.
pub(super) struct MissRatioChart<'a>(pub(super) &'a MissRatioCurve);

impl Display for MissRatioChart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(curve) = self;
        let Some(last) = curve.points.last() else { return Ok(()) };
        let largest = last.bytes.max(curve.granule_bytes).next_power_of_two();
        let sizes = (0..SIZES).rev().map(|halvings| largest >> halvings);
        for bytes in sizes.filter(|bytes| *bytes >= curve.granule_bytes) {
            let ratio = 1.0 - curve.miss_ratio(bytes).unwrap_or(1.0);
            let bar = bar(ratio);
            let gap = BAR_COLUMNS - columns(&bar);
            writeln!(f, "  {:>10}  {bar}{:gap$} {:>7}", size(bytes), "", percent(Some(ratio)))?;
        }
        Ok(())
    }
}

fn bar(ratio: f64) -> String {
    let eighths = (ratio.clamp(0.0, 1.0) * (8 * BAR_COLUMNS) as f64).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::MissRatioPoint;

    #[test]
    fn a_bar_is_as_long_as_the_ratio_is_high() {
        let points = [(4 << 20, 1.0), (16 << 20, 0.49), (64 << 20, 0.0)];
        let points =
            points.map(|(bytes, miss_ratio)| MissRatioPoint { bytes, miss_ratio }).into_iter().collect();
        let curve = MissRatioCurve { granule_bytes: 4 << 20, sampled_reads: 9, points };
        let chart = MissRatioChart(&curve).to_string();
        let expected = [
            format!("{:>12}  {:40} {:>7}", "4 MiB", "", "0 %"),
            format!("{:>12}  {:40} {:>7}", "8 MiB", "██████▊", "17 %"),
            format!("{:>12}  {:40} {:>7}", "16 MiB", "█".repeat(20) + "▍", "51 %"),
            format!("{:>12}  {:40} {:>7}", "32 MiB", "█".repeat(26) + "▉", "67.3 %"),
            format!("{:>12}  {:40} {:>7}", "64 MiB", "█".repeat(40), "100 %"),
        ];
        assert_eq!(chart.lines().collect::<Vec<_>>(), expected);
    }
}
