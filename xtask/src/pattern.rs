//! Bytes that look random to every compressor, and yet can be checked at any offset without being kept anywhere.
//!
//! The 64-bit word number `i` of a file is a mix of the file's seed and `i` (the finalizer of SplitMix64), little-endian. So a block that
//! arrives in the wrong place, a page of zeros and a single flipped bit are all seen.

/// The content of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pattern {
    seed: u64,
}

/// How far apart [`Pattern::probe`] looks: at least one word in every page.
const PROBE_STRIDE: usize = 4096;

impl Pattern {
    /// The content of the file called `name`.
    pub(crate) fn of(name: &str) -> Self {
        // FNV-1a: short, and the same in every build.
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { seed }
    }

    fn word(self, index: u64) -> u64 {
        let mut z = self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Writes the bytes that begin at `offset`.
    pub(crate) fn fill(self, offset: u64, buffer: &mut [u8]) {
        let mut at = 0;
        while at < buffer.len() {
            let position = offset + at as u64;
            let word = self.word(position / 8).to_le_bytes();
            let skip = (position % 8) as usize;
            let part = (8 - skip).min(buffer.len() - at);
            buffer[at..at + part].copy_from_slice(&word[skip..skip + part]);
            at += part;
        }
    }

    /// The offset in the file of the first byte of `data`, which was read at `offset`, that is wrong.
    pub(crate) fn first_difference(self, offset: u64, data: &[u8]) -> Option<u64> {
        let mut at = 0;
        while at < data.len() {
            let position = offset + at as u64;
            let word = self.word(position / 8).to_le_bytes();
            let skip = (position % 8) as usize;
            let part = (8 - skip).min(data.len() - at);
            let wrong = (0..part).find(|i| data[at + i] != word[skip + i]);
            if let Some(i) = wrong {
                return Some(position + i as u64);
            }
            at += part;
        }
        None
    }

    /// Looks at a few bytes of every page of `data`, which was read at `offset` (a multiple of 8): cheap enough to be done while a clock
    /// runs. `turn` moves the places looked at. Returns where the first wrong word was read, if any.
    pub(crate) fn probe(self, offset: u64, data: &[u8], turn: u64) -> Option<u64> {
        let whole = data.len() & !7;
        let first = (turn as usize * 8) % PROBE_STRIDE.min(whole.max(8));
        (first..whole)
            .step_by(PROBE_STRIDE)
            .find(|&at| data[at..at + 8] != self.word((offset + at as u64) / 8).to_le_bytes())
            .map(|at| offset + at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_in_the_whole() {
        let pattern = Pattern::of("a/file");
        let mut whole = vec![0; 20_000];
        pattern.fill(0, &mut whole);
        for (offset, len) in [(0, 1), (3, 5), (7, 2), (8, 8), (4095, 8194), (19_999, 1), (5, 0)] {
            let mut part = vec![0; len];
            pattern.fill(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + len]);
            assert_eq!(pattern.first_difference(offset as u64, &part), None);
        }
        assert_eq!(pattern.probe(0, &whole, 11), None);
        assert_eq!(pattern.probe(8192, &whole[8192..8200], 3), None);
        assert_eq!(pattern.probe(0, &whole[..3], 9), None);
    }

    #[test]
    fn wrong_bytes_are_found() {
        let pattern = Pattern::of("a/file");
        let mut data = vec![0; 16 * 4096];
        pattern.fill(4096, &mut data);
        assert_eq!(pattern.probe(0, &data, 0), Some(0), "a block from elsewhere");
        assert_eq!(Pattern::of("b/file").probe(4096, &data, 5), Some(4096 + 40), "another file");
        data[9 * 4096 + 17] ^= 1;
        assert_eq!(pattern.first_difference(4096, &data), Some(10 * 4096 + 17));
        assert_eq!(pattern.probe(4096, &data, 2), Some(10 * 4096 + 16));
        data[12 * 4096..13 * 4096].fill(0);
        assert_eq!(pattern.probe(4096, &data, 0), Some(13 * 4096), "a page of zeros");
    }
}
