//! What is said about the repetitions of one row.

/// Middle and ends of a set of repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `None` for no values at all.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        Some(Self { median: median(&sorted)?, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// The value below which `fraction` of the values lie (nearest rank).
pub(super) fn quantile(values: &[f64], fraction: f64) -> Option<f64> {
    let sorted = sorted(values);
    let rank = (fraction * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The 95 % confidence interval of the median: the sign test, by the normal approximation of the
/// binomial distribution. `None` for fewer than six values, which give no interval.
fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    let count = sorted.len() as f64;
    let rank = (count / 2.0 - 0.98 * count.sqrt()).floor().max(1.0) as usize;
    (sorted.len() >= 6).then(|| (sorted[rank - 1], sorted[sorted.len() - rank]))
}

/// The median of the ratios of neighbours, and how well it is known.
pub(super) fn paired(ratios: &[f64]) -> String {
    let median = Summary::of(ratios).map_or(f64::NAN, |summary| summary.median);
    let interval = match median_interval(ratios) {
        Some((low, high)) => format!("with 95 % confidence {low:.4} to {high:.4}"),
        None => "too few for an interval".to_owned(),
    };
    format!("paired ratio {median:.4}, {interval}, of {} pairs", ratios.len())
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_sets() {
        assert_eq!(Summary::of(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_interval_of_a_median_narrows_with_the_number_of_values() {
        let of = |count: i32| median_interval(&(0..count).map(f64::from).collect::<Vec<_>>());
        assert_eq!(of(5), None);
        assert_eq!(of(6), Some((0.0, 5.0)));
        // The tables of the sign test have the 40th and the 61st of a hundred.
        assert_eq!(of(100), Some((39.0, 60.0)));
    }

    #[test]
    fn quantiles_take_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), Some(100.0));
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values, 1.0), Some(200.0));
        assert_eq!(quantile(&[7.0], 0.5), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
