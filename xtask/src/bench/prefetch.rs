//! What `interceptor` fetched before it was asked for, and whether that paid.

use ::tests::Mount;
use anyhow::Result;
use serde::Serialize;

use crate::progress::digits;

/// Bytes fetched ahead by one daemon.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Prefetched {
    pub(super) fetched: f64,
    /// Of those, what readers came for.
    pub(super) used: f64,
    /// What left the cache unread.
    pub(super) wasted: f64,
}

/// All repetitions of one workload together.
#[derive(Debug, Serialize)]
pub(super) struct PrefetchRow {
    pub(super) name: &'static str,
    #[serde(flatten)]
    pub(super) bytes: Prefetched,
    /// The share of the fetched bytes that were not read by the end of the repetition.
    pub(super) waste: Option<f64>,
}

impl Prefetched {
    /// What the daemon of `mount` counts now.
    pub(super) fn by(mount: &Mount) -> Result<Self> {
        let outcome = |label| mount.metric("interceptor_prefetch_bytes_total", &[label]);
        Ok(Self {
            fetched: mount.metric("interceptor_prefetch_fetched_bytes_total", &[])?,
            used: outcome("outcome=\"used\"")?,
            wasted: outcome("outcome=\"wasted\"")?,
        })
    }
}

impl PrefetchRow {
    pub(super) fn new(name: &'static str, repetitions: &[Prefetched]) -> Self {
        let sum = |bytes: fn(&Prefetched) -> f64| repetitions.iter().map(bytes).sum::<f64>();
        let bytes =
            Prefetched { fetched: sum(|p| p.fetched), used: sum(|p| p.used), wasted: sum(|p| p.wasted) };
        // What is still unread has no reader left: the repetition is over.
        let waste = (bytes.fetched > 0.0).then(|| 1.0 - bytes.used / bytes.fetched);
        Self { name, bytes, waste }
    }

    /// Column heads of [`PrefetchRow::cells`].
    pub(super) const HEAD: [&str; 5] = ["fetched ahead", "MB", "used MB", "evicted unread MB", "waste"];

    pub(super) fn cells(&self) -> [String; 5] {
        let megabytes = |bytes: f64| digits(bytes / 1e6);
        let Prefetched { fetched, used, wasted } = self.bytes;
        let waste = self.waste.map_or("-".to_owned(), |waste| format!("{:.1} %", waste.max(0.0) * 100.0));
        [self.name.to_owned(), megabytes(fetched), megabytes(used), megabytes(wasted), waste]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_unread_counts_as_waste() {
        let one = Prefetched { fetched: 100e6, used: 80e6, wasted: 5e6 };
        let row = PrefetchRow::new("walk", &[one, one]);
        assert_eq!(row.cells()[1..], ["200", "160", "10.0", "20.0 %"]);
        assert_eq!(PrefetchRow::new("walk", &[]).cells()[4], "-");
    }
}
