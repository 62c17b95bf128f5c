use proptest::prelude::*;
use std::vec::Vec;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SETTINGS: StreamSettings = StreamSettings { slack: MIB, min_bytes: MIB, window: 8 * MIB };

/// The windows that are due in the course of these reads.
fn announced(reads: impl IntoIterator<Item = (u64, u64)>) -> Vec<Window> {
    let mut streams = Streams::default();
    reads.into_iter().filter_map(|(offset, length)| streams.record_read(offset, length, &SETTINGS)).collect()
}

fn sequential(start: u64, end: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    (start..end).step_by(step as usize).map(move |offset| (offset, step))
}

#[test]
fn windows_of_a_sequential_reader_adjoin() {
    let windows = announced(sequential(0, 64 * MIB, 128 * KIB));
    assert_eq!(windows[0], Window { offset: MIB, length: 8 * MIB });
    for pair in windows.windows(2) {
        assert_eq!(pair[1].offset, pair[0].offset + pair[0].length);
    }
    // One for every half window.
    assert!((15..=17).contains(&windows.len()), "{} windows", windows.len());
}

#[test]
fn random_reads_are_no_stream() {
    let mut state = 1u64;
    let random = (0..100_000).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % (16 << 10) * 4 * KIB, 4 * KIB)
    });
    let windows = announced(random);
    assert!(windows.len() < 100, "{} windows for 100000 random reads", windows.len());
}

#[test]
fn neither_a_stride_nor_a_loop_is_a_stream() {
    assert_eq!(announced((0..10_000).map(|i| (i * 64 * KIB, 4 * KIB))), []);
    assert_eq!(announced((0..10_000).map(|_| (0, 64 * KIB))), []);
}

#[test]
fn two_streams_and_reads_of_a_header_are_told_apart() {
    let (a, b) = (sequential(0, 32 * MIB, 128 * KIB), sequential(1024 * MIB, 1056 * MIB, 128 * KIB));
    let mixed = a.zip(b).flat_map(|(a, b)| [a, (512 * MIB, 4 * KIB), b]);
    let windows = announced(mixed);
    for start in [0, 1024 * MIB] {
        let own: Vec<_> =
            windows.iter().filter(|window| (start..start + 64 * MIB).contains(&window.offset)).collect();
        assert_eq!(own[0].offset, start + MIB);
        assert!(own.windows(2).all(|pair| pair[1].offset == pair[0].offset + pair[0].length));
        assert!(own.len() >= 7, "{} windows from {start}", own.len());
    }
}

proptest! {
    /// Readahead requests overtake each other by up to half the slack.
    #[test]
    fn the_order_of_reads_within_the_slack_does_not_matter(seed: u64, step in 1u64..5) {
        let step = step * 64 * KIB;
        let mut reads: Vec<_> = sequential(0, 64 * MIB, step).collect();
        let (group, mut state) = ((SETTINGS.slack / 2 / step) as usize, seed | 1);
        for part in reads.chunks_mut(group) {
            for i in (1..part.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                part.swap(i, (state >> 33) as usize % (i + 1));
            }
        }
        let windows = announced(reads);
        let first = windows[0].offset;
        prop_assert!((SETTINGS.min_bytes..=SETTINGS.min_bytes + SETTINGS.slack).contains(&first), "{first}");
        for pair in windows.windows(2) {
            prop_assert_eq!(pair[1].offset, pair[0].offset + pair[0].length);
        }
        let last = windows[windows.len() - 1];
        prop_assert!(last.offset + last.length >= 64 * MIB);
    }

    #[test]
    fn nothing_overflows(reads in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50), near in any::<u64>()) {
        let settings = StreamSettings { slack: near, min_bytes: 0, window: u64::MAX - near };
        let mut streams = Streams::default();
        for (offset, length) in reads {
            streams.record_read(offset, length, &settings);
        }
    }
}
