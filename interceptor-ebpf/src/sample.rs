//! Which granules of which files are looked at to learn how large a cache should be: a few, chosen by a hash of where they are.
//!
//! Waldspurger et al. ("Efficient MRC Construction with SHARDS", FAST 2015) sample in space: a granule is either always looked at or never, so that the
//! distances between its reads are right, up to the share of the granules that are looked at. Here [`GROUP`] neighbours stand for each
//! other: one of them, by the hash, is the one to be looked at, if the hash of the group is below a threshold. Who reads a long
//! range so has few hashes to compute.

/// Granules of which one at most is sampled.
pub const GROUP: u64 = 1 << GROUP_SHIFT;
/// Its logarithm.
pub const GROUP_SHIFT: u32 = 4;

/// The threshold that samples one granule of every group.
pub const ALL: u32 = 1 << 24;

/// What decides on a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Compared with the threshold; below [`ALL`].
    pub rank: u32,
    /// The granule that is sampled if any is.
    pub granule: u64,
}

/// The choice for a group: granules `group * GROUP` to `group * GROUP + GROUP - 1` of a file.
#[inline(always)]
pub const fn choice(node: u64, group: u64) -> Choice {
    let hash = hash(node, group);
    Choice { rank: (hash >> 40) as u32, granule: group * GROUP + (hash >> 32) % GROUP }
}

/// The steps of MurmurHash3's finaliser, as far as they are needed for the upper half.
#[inline(always)]
const fn hash(node: u64, group: u64) -> u64 {
    let mut hash = node.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(group);
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_granules_are_spread_evenly() {
        const GROUPS: u64 = 100_000;
        let (mut low, mut granules) = (0, [0u64; GROUP as usize]);
        for group in 0..GROUPS {
            // Files of ten groups each.
            let (node, group) = (1000 + group / 10, group % 10);
            let choice = choice(node, group);
            assert!(choice.rank < ALL && choice.granule / GROUP == group);
            low += u64::from(choice.rank < ALL / 8);
            granules[(choice.granule % GROUP) as usize] += 1;
        }
        assert!(low.abs_diff(GROUPS / 8) < GROUPS / 100, "{low}");
        let even = GROUPS / GROUP;
        assert!(granules.iter().all(|&count| count.abs_diff(even) < even / 10), "{granules:?}");
    }
}
