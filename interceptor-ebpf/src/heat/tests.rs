use proptest::prelude::*;
use std::vec::Vec;

use super::*;

const SETTINGS: HeatSettings = HeatSettings::new(1 << 20, 64_000_000_000);

#[test]
fn the_table_is_the_power_of_two() {
    for (i, fraction) in FRACTION.iter().enumerate() {
        let exact = (-(i as f64) / 64.0).exp2() * 65536.0;
        assert!((f64::from(*fraction) - exact).abs() <= 0.5, "{i}: {fraction} is not {exact}");
    }
}

#[test]
fn a_granule_turns_hot_once_until_it_has_cooled() {
    let half = SETTINGS.hot as u64 * UNIT / 2;
    let (heat, turned) = Heat::default().after_read(half, 5, &SETTINGS);
    assert!(!turned && !heat.is_hot());
    let (heat, turned) = heat.after_read(half, 5, &SETTINGS);
    assert!(turned && heat.is_hot());
    // 40 of 64 ticks later two thirds are left, which is not cool.
    let (heat, turned) = heat.after_read(half, 45, &SETTINGS);
    assert!(!turned && heat.is_hot());
    // Two half-lives later the granule has cooled, and one unit does not make it hot.
    let (heat, turned) = heat.after_read(UNIT, 45 + 2 * TICKS_PER_HALF_LIFE, &SETTINGS);
    assert!(!turned && !heat.is_hot());
    let (heat, turned) = heat.after_read(2 * half, 46 + 2 * TICKS_PER_HALF_LIFE, &SETTINGS);
    assert!(turned && heat.is_hot());
}

#[test]
fn a_granule_may_cool_and_turn_hot_in_one_read() {
    let (heat, _) = Heat::default().after_read(1 << 20, 0, &SETTINGS);
    let (_, turned) = heat.after_read(1 << 20, 10 * TICKS_PER_HALF_LIFE, &SETTINGS);
    assert!(turned);
}

#[test]
fn ticks_that_lag_or_wrap_are_harmless() {
    let (heat, _) = Heat::default().after_read(1 << 20, 1000, &SETTINGS);
    assert_eq!(heat.level_at(999), heat.level());
    let (heat, _) = Heat::default().after_read(1 << 20, STAMP, &SETTINGS);
    assert_eq!(heat.level_at(TICKS_PER_HALF_LIFE - 1), heat.level() / 2);
}

proptest! {
    /// The model keeps every read and sums what has not decayed of each. Rounding down loses at
    /// most a unit in each step.
    #[test]
    fn heat_is_the_decayed_sum_of_all_reads(
        reads in prop::collection::vec((0u32..200, 1u64..(64 << 20)), 1..60),
    ) {
        let (mut heat, mut tick, mut log) = (Heat::default(), 0, Vec::new());
        for (wait, bytes) in reads {
            tick += wait;
            heat = heat.after_read(bytes, tick, &SETTINGS).0;
            log.push((tick, bytes.div_ceil(UNIT) as f64));
            let exact: f64 = log
                .iter()
                .map(|(at, units)| units * (-f64::from(tick - at) / f64::from(TICKS_PER_HALF_LIFE)).exp2())
                .sum();
            let level = f64::from(heat.level());
            let error = (level - exact).abs();
            prop_assert!(error <= log.len() as f64 * 1.5 + exact * 1e-4 * log.len() as f64, "{level} is not {exact}");
        }
    }

    /// A granule turns hot at most once between two times that it is cool, and never below the
    /// threshold.
    #[test]
    fn turning_hot_and_cooling_alternate(reads in prop::collection::vec((0u32..200, 1u64..(2 << 20)), 1..200)) {
        let (mut heat, mut tick) = (Heat::default(), 0);
        for (wait, bytes) in reads {
            tick += wait;
            let (before, cooled) = (heat.is_hot(), heat.level_at(tick) < SETTINGS.cool);
            let (after, turned) = heat.after_read(bytes, tick, &SETTINGS);
            prop_assert_eq!(turned, after.is_hot() && (!before || cooled));
            prop_assert!(!turned || after.level() >= SETTINGS.hot);
            prop_assert!(after.is_hot() || after.level() < SETTINGS.hot);
            heat = after;
        }
    }

    #[test]
    fn nothing_overflows(word: u64, bytes: u64, now: u64, half_life: u64, hot: u64) {
        let settings = HeatSettings::new(hot, half_life);
        let (after, _) = Heat(word).after_read(bytes, settings.tick(now), &settings);
        prop_assert!(after.level() >= units(bytes));
    }
}
