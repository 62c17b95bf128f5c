//! The miss-ratio curve, as the status API shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The share of reads that an LRU cache would miss, by its size. All reads of applications count,
/// wherever the bytes came from; first reads are misses at any size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MissRatioCurve {
    /// Bytes of a granule, the unit of the modelled cache.
    pub granule_bytes: u64,
    /// The sampled reads of granules that the curve is estimated from.
    pub sampled_reads: u64,
    /// By size, from the smallest to the one that holds everything.
    pub points: Vec<MissRatioPoint>,
}

/// A point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MissRatioPoint {
    /// The size of the cache, bytes.
    pub bytes: u64,
    /// The share of reads that it misses, 0 to 1.
    pub miss_ratio: f64,
}

impl MissRatioCurve {
    /// The miss ratio of a cache of `bytes` bytes, interpolated linearly between points; `None`
    /// without samples.
    pub fn miss_ratio(&self, bytes: u64) -> Option<f64> {
        let Some(after) = self.points.iter().position(|point| point.bytes >= bytes) else {
            return self.points.last().map(|point| point.miss_ratio);
        };
        let b = self.points[after];
        let a = match after {
            0 => MissRatioPoint { bytes: 0, miss_ratio: 1.0 },
            _ => self.points[after - 1],
        };
        let part = (bytes - a.bytes) as f64 / (b.bytes - a.bytes).max(1) as f64;
        Some(a.miss_ratio + (b.miss_ratio - a.miss_ratio) * part)
    }

    /// The smallest size of a cache, in bytes, beyond which a larger one would miss hardly fewer
    /// reads: by `most`, a share of all reads, at most. Also the miss ratio at that size.
    pub fn enough(&self, most: f64) -> Option<(u64, f64)> {
        let best = self.points.last()?.miss_ratio;
        let point = self.points.iter().find(|point| point.miss_ratio <= best + most)?;
        Some((point.bytes, point.miss_ratio))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u64, f64)]) -> MissRatioCurve {
        let points = points.iter().map(|&(bytes, miss_ratio)| MissRatioPoint { bytes, miss_ratio }).collect();
        MissRatioCurve { granule_bytes: 4096, sampled_reads: 1, points }
    }

    #[test]
    fn between_points_the_curve_is_linear() {
        let curve = curve(&[(4096, 0.9), (8192, 0.5)]);
        let ratios = [0, 2048, 4096, 6144, 8192, 1 << 40].map(|bytes| curve.miss_ratio(bytes).unwrap());
        for (found, expected) in ratios.iter().zip([1.0, 0.95, 0.9, 0.7, 0.5, 0.5]) {
            assert!((found - expected).abs() < 1e-9, "{ratios:?}");
        }
    }

    #[test]
    fn enough_is_the_size_beyond_which_little_is_gained() {
        let curve = curve(&[(4096, 0.9), (60_000, 0.255), (90_000, 0.25)]);
        assert_eq!(curve.enough(0.01), Some((60_000, 0.255)));
        assert_eq!(curve.enough(0.0), Some((90_000, 0.25)));
        assert_eq!(MissRatioCurve::default().enough(0.01), None);
    }
}
