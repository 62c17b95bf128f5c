//! The choice of the granules whose reads are sampled for a miss-ratio curve, by a hash of file
//! and offset.
//!
//! Waldspurger et al. ("Efficient MRC Construction with SHARDS", FAST 2015) sample in space: a
//! granule is sampled at every read or never, so that distances between its reads are right, up
//! to the sampling rate. Here a group of [`GROUP_GRANULES`] neighbours has one hash: it picks the
//! granule that represents the group, and the group is sampled if its rank is below a limit. A
//! long read thus computes few hashes.

/// Granules in a group, of which at most one is sampled.
pub const GROUP_GRANULES: u64 = 1 << GROUP_SHIFT;
/// The binary logarithm of [`GROUP_GRANULES`].
pub const GROUP_SHIFT: u32 = 4;

/// The number of ranks. As the limit, it samples every group.
pub const RANKS: u32 = 1 << 24;

/// The sample of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSample {
    /// The group is sampled if this is below the limit; less than [`RANKS`].
    pub rank: u32,
    /// The granule that is sampled, if the group is.
    pub granule: u64,
}

/// The sample of a group of a file: granules `group * GROUP_GRANULES` and those after it.
#[inline(always)]
pub const fn group_sample(node: u64, group: u64) -> GroupSample {
    let hash = hash(node, group);
    GroupSample { rank: (hash >> 40) as u32, granule: group * GROUP_GRANULES + (hash >> 32) % GROUP_GRANULES }
}

/// MurmurHash3's finaliser without its last step, which does not change the upper half.
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
        let (mut low, mut granules) = (0, [0u64; GROUP_GRANULES as usize]);
        for group in 0..GROUPS {
            // Files of ten groups each.
            let (node, group) = (1000 + group / 10, group % 10);
            let sample = group_sample(node, group);
            assert!(sample.rank < RANKS && sample.granule / GROUP_GRANULES == group);
            low += u64::from(sample.rank < RANKS / 8);
            granules[(sample.granule % GROUP_GRANULES) as usize] += 1;
        }
        assert!(low.abs_diff(GROUPS / 8) < GROUPS / 100, "{low}");
        let even = GROUPS / GROUP_GRANULES;
        assert!(granules.iter().all(|&count| count.abs_diff(even) < even / 10), "{granules:?}");
    }
}
