//! The latency histogram that kernel and daemon record in: one bucket per power of two of
//! nanoseconds.
//!
//! Finding the bucket is one count of leading zeros, which a BPF program can afford on every
//! request. Histograms add up bucket by bucket, so per-CPU and per-thread copies merge without
//! loss.

/// Number of buckets. Bucket `i` counts values below `2^(FIRST_SHIFT + i)` ns that are in no lower
/// bucket; the last also counts all larger ones (8.6 s and more).
pub const BUCKETS: usize = 26;

/// Values below `2^FIRST_SHIFT` ns (256 ns) share the first bucket; no request is faster.
pub const FIRST_SHIFT: u32 = 8;

/// The bucket that a duration of `ns` nanoseconds belongs to.
#[inline]
pub const fn bucket_of(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    let bucket = bits.saturating_sub(FIRST_SHIFT) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The exclusive upper bound of a bucket in nanoseconds; `None` for the last one, which is
/// unbounded.
#[inline]
pub const fn upper_bound(bucket: usize) -> Option<u64> {
    if bucket + 1 < BUCKETS { Some(1 << (FIRST_SHIFT as usize + bucket)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_between_the_bounds_of_its_bucket() {
        for shift in 0..64 {
            for ns in [1u64 << shift, (1u64 << shift) - 1, (1u64 << shift) | 1] {
                let bucket = bucket_of(ns);
                if let Some(bound) = upper_bound(bucket) {
                    assert!(ns < bound, "{ns} in bucket {bucket}");
                }
                if bucket > 0 {
                    assert!(ns >= upper_bound(bucket - 1).unwrap(), "{ns} in bucket {bucket}");
                }
            }
        }
    }
}
