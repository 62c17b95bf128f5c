//! `cargo xtask run --smoke`: reads everything twice through the mount, compares it, and prints
//! which sources the bytes came from.
//!
//! The daemon counts the bytes that it answered with, by source. Bytes that applications read
//! beyond these never reached the daemon: the kernel had them in its page cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use ::tests::Mount;
use ::tests::data::sum_reader;
use anyhow::{Context, Result, ensure};

use crate::dataset::{LINK, SampleFile};
use crate::interrupt;
use crate::progress::{digits, size};
use crate::upload::TappedReader;

/// How long one pass may take.
const PASS_TIMEOUT: Duration = Duration::from_secs(600);

/// Sources whose bytes were at hand when they were asked for.
const HIT_SOURCES: [&str; 3] = [PAGE_CACHE, "resident", "cache"];
const PAGE_CACHE: &str = "page_cache";

/// Bytes by source.
type BytesBySource = BTreeMap<String, u64>;

/// What one pass over the files gave.
struct ReadPass {
    /// Bytes that were read.
    bytes: u64,
    elapsed: Duration,
    wrong: Vec<String>,
    sources: BytesBySource,
}

/// Reads everything twice; fails if anything differs from what was written.
pub(crate) fn read_twice(mount: &Mount, written: Vec<SampleFile>) -> Result<()> {
    let passes = [pass(mount, &written)?, pass(mount, &written)?];
    print!("{}", table(&passes));
    let wrong: Vec<&String> = passes.iter().flat_map(|pass| &pass.wrong).collect();
    for line in &wrong {
        println!("WRONG: {line}");
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} reads gave something else than was written",
        wrong.len(),
        2 * written.len()
    );
    println!("\n{} files read twice, every byte as it was written.", written.len());
    Ok(())
}

fn pass(mount: &Mount, written: &[SampleFile]) -> Result<ReadPass> {
    let before = counters(mount)?;
    let (root, files) = (mount.path().to_owned(), written.to_vec());
    let started = Instant::now();
    let wrong = interrupt::guard("reading the sample", PASS_TIMEOUT, move || {
        let mut wrong: Vec<String> =
            files.iter().filter_map(|file| check(&root, file).err()).map(text).collect();
        wrong.extend(check_link(&root).err().map(text));
        Ok(wrong)
    })?;
    let elapsed = started.elapsed();
    let bytes = written.iter().map(|file| file.size).sum();
    Ok(ReadPass { bytes, elapsed, wrong, sources: difference(&before, &counters(mount)?, bytes) })
}

fn text(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn check(root: &Path, file: &SampleFile) -> Result<()> {
    let handle = File::open(root.join(&file.path)).with_context(|| format!("{}: open", file.path))?;
    let mut size = 0;
    let seen = |part: &[u8]| size += part.len() as u64;
    let sum =
        sum_reader(TappedReader { inner: handle, seen }).with_context(|| format!("{}: read", file.path))?;
    ensure!(size == file.size, "{}: {size} bytes, not {}", file.path, file.size);
    ensure!(sum == file.sha256, "{}: other bytes than were written", file.path);
    Ok(())
}

fn check_link(root: &Path) -> Result<()> {
    let (path, expected) = LINK;
    let target = fs::read_link(root.join(path)).with_context(|| format!("{path}: readlink"))?;
    ensure!(target == Path::new(expected), "{path}: points to {}, not {expected}", target.display());
    Ok(())
}

/// The daemon's counters of bytes read, now.
fn counters(mount: &Mount) -> Result<BytesBySource> {
    let (status, page) = mount.status("/metrics").context("the daemon's counters cannot be read")?;
    ensure!(status == 200, "the daemon's counters cannot be read: /metrics answers {status}");
    Ok(parse(&page))
}

/// Takes `interceptor_read_bytes_total{source="…"} N` from the text of a metrics page.
fn parse(metrics: &str) -> BytesBySource {
    metrics
        .lines()
        .filter_map(|line| {
            let (labels, value) = line.strip_prefix("interceptor_read_bytes_total{")?.split_once('}')?;
            let source = labels
                .split(',')
                .find_map(|label| label.trim().strip_prefix("source=\"")?.strip_suffix('"'))?;
            Some((source.to_owned(), value.split_ascii_whitespace().next()?.parse::<f64>().ok()? as u64))
        })
        .collect()
}

/// What was added between two readings of the counters while an application read `bytes`.
fn difference(before: &BytesBySource, after: &BytesBySource, bytes: u64) -> BytesBySource {
    let mut sources: BytesBySource = after
        .iter()
        .filter(|(source, _)| *source != PAGE_CACHE)
        .map(|(source, count)| {
            (source.clone(), count.saturating_sub(before.get(source).copied().unwrap_or(0)))
        })
        .collect();
    let daemon: u64 = sources.values().sum();
    sources.insert(PAGE_CACHE.to_owned(), bytes.saturating_sub(daemon));
    sources
}

fn hit_ratio(pass: &ReadPass) -> f64 {
    let hits: u64 = HIT_SOURCES.iter().filter_map(|source| pass.sources.get(*source)).sum();
    let all: u64 = pass.sources.values().sum();
    if all == 0 { 0.0 } else { hits as f64 / all as f64 }
}

fn table(passes: &[ReadPass; 2]) -> String {
    let mut text = format!("\n{:<24}{:>14}{:>14}\n", "bytes by source", "first pass", "second pass");
    let mut row = |name: &str, values: [String; 2]| {
        text.push_str(&format!("{name:<24}{:>14}{:>14}\n", values[0], values[1]));
    };
    let mut names: Vec<&String> = passes.iter().flat_map(|pass| pass.sources.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        row(name, passes.each_ref().map(|pass| size(pass.sources.get(name).copied().unwrap_or(0))));
    }
    row("read by the application", passes.each_ref().map(|pass| size(pass.bytes)));
    row("hit ratio", passes.each_ref().map(|pass| format!("{:.1} %", hit_ratio(pass) * 100.0)));
    row(
        "rate",
        passes
            .each_ref()
            .map(|pass| format!("{} MB/s", digits(pass.bytes as f64 / pass.elapsed.as_secs_f64() / 1e6))),
    );
    text.push_str(
        "page_cache: what the application read and the daemon was not asked for. Hits: page_cache, resident and\n\
         cache, among them what was fetched ahead of the reader.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_metrics_page() {
        let page = "# TYPE interceptor_read_bytes counter\n\
                    interceptor_read_bytes_total{source=\"http\"} 1048576\n\
                    interceptor_read_bytes_total{mount=\"a\",source=\"cache\"} 2e6 1700000000\n\
                    interceptor_reads_total{source=\"http\"} 3\n\
                    interceptor_read_bytes_total{source=\"broken\n";
        let expected = [("http".to_owned(), 1 << 20), ("cache".to_owned(), 2_000_000)];
        assert_eq!(parse(page), BytesBySource::from(expected));
    }

    #[test]
    fn what_the_daemon_was_not_asked_for_is_the_page_cache() {
        let before = BytesBySource::from([("http".to_owned(), 100)]);
        let after = BytesBySource::from([
            ("http".to_owned(), 130),
            ("cache".to_owned(), 20),
            (PAGE_CACHE.to_owned(), 7),
        ]);
        let sources = difference(&before, &after, 200);
        assert_eq!(sources[PAGE_CACHE], 150);
        assert_eq!((sources["http"], sources["cache"]), (30, 20));
        let pass = ReadPass { bytes: 200, elapsed: Duration::from_secs(1), wrong: vec![], sources };
        assert!((hit_ratio(&pass) - 0.85).abs() < 1e-9);
        assert_eq!(difference(&after, &after, 0)[PAGE_CACHE], 0);
    }
}
