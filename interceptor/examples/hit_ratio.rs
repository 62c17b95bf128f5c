//! Prints what share of a recorded load the cache would miss at several sizes, beside LIRS with
//! fixed parameters, and LRU.
//!
//! `cargo xtask bench hit-ratio --trace FILE --sizes 1%,5%,10%,20%,40%` builds and runs it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use interceptor::cache::replay::Trace;

/// Plays a trace of block ids through the cache's index and policy.
#[derive(Debug, Parser)]
struct Options {
    /// One block id a line, as text or gzip.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Sizes of the cache, in per cent of the distinct blocks.
    #[arg(long, value_delimiter = ',', default_value = "1%,5%,10%,20%,40%", value_parser = share)]
    sizes: Vec<f64>,
    /// Write the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    let percent: f64 =
        text.trim_end_matches('%').parse().map_err(|_| format!("{text} is not a percentage"))?;
    if percent > 0.0 && percent <= 100.0 {
        Ok(percent / 100.0)
    } else {
        Err(format!("{text} is not above 0 and up to 100 %"))
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let trace = Trace::open(&options.trace).with_context(|| options.trace.display().to_string())?;
    println!("{} requests of {} blocks", trace.requests(), trace.distinct());
    println!("{:>6} {:>9} {:>7} {:>7} {:>7}", "size", "blocks", "cache", "LIRS", "LRU");
    let mut rows = Vec::new();
    for share in options.sizes {
        let ratio = trace.miss_ratio(share)?;
        let percent = share * 100.0;
        println!(
            "{percent:>5}% {:>9} {:>7.4} {:>7.4} {:>7.4}",
            ratio.slots, ratio.cache, ratio.lirs, ratio.lru
        );
        rows.push(serde_json::json!({
            "size_percent": percent, "blocks": ratio.slots, "miss_ratio": ratio.cache, "lirs_miss_ratio": ratio.lirs, "lru_miss_ratio": ratio.lru,
        }));
    }
    if let Some(path) = options.json {
        let report = serde_json::json!({
            "trace": options.trace, "requests": trace.requests(), "distinct": trace.distinct(), "sizes": rows,
        });
        let written = std::fs::write(&path, serde_json::to_vec_pretty(&report)?);
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
