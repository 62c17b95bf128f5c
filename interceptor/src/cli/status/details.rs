//! What `interceptor status --all` prints below the rest: figures that are looked at when something
//! is odd.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::lines::line;
use crate::cli::figures::size;
use crate::cli::miss_ratio_chart::MissRatioChart;
use crate::telemetry::metrics::CacheUsage;
use crate::telemetry::report::{KernelReport, StatusReport};

/// Prints the details of a report.
pub(super) struct Details<'a>(pub(super) &'a StatusReport);

impl Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(report) = self;
        if let Some(cache) = &report.cache {
            memory(cache, f)?;
        }
        if let Some(nodes) = report.nodes {
            line(f, "kernel knows", format_args!("{nodes} files and directories"))?;
        }
        for part in &report.prefetch {
            let (bytes, outcome, trigger) = (size(part.bytes), &part.outcome, &part.trigger);
            line(f, "fetched ahead", format_args!("{bytes} {outcome} ({trigger})"))?;
        }
        let hedges = report.hedges;
        line(f, "hedges", format_args!("{} sent, {} answered first", hedges.sent, hedges.won))?;
        for fallback in &report.fallbacks {
            let (count, from, to) = (fallback.count, &fallback.from, &fallback.to);
            line(f, "fallbacks", format_args!("{count} from {from} to {to}"))?;
        }
        if let Some(kernel) = &report.kernel {
            observed(kernel, f)?;
        }
        if let Some(curve) = &report.miss_ratio_curve {
            writeln!(f, "hits to expect by size of cache, page cache included")?;
            write!(f, "{}", MissRatioChart(curve))?;
        }
        Ok(())
    }
}

fn memory(cache: &CacheUsage, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let [allocated, pinned, rdma] = [cache.allocated, cache.pinned, cache.rdma].map(size);
    let backing = match cache.backing.as_str() {
        "hugetlb" => "huge pages that were set aside (hugetlb)",
        "transparent" => "transparent huge pages",
        "plain" => "pages of 4 KiB",
        other => other,
    };
    line(f, "memory", format_args!("{allocated} allocated of {backing}"))?;
    line(f, "", format_args!("{pinned} being read, {rdma} registered for RDMA"))?;
    if cache.prefaulting {
        line(f, "", "memory is being touched ahead of its use, as fresh memory is slow here")?;
    }
    let files = &cache.resident_files;
    let (waiting, promoted, failed) = (files.waiting, files.promoted, files.failed);
    let (displaced, retired) = (files.displaced, files.retired);
    let counts = format!("{waiting} on their way, {promoted} promoted, {failed} failed");
    line(f, "resident", format_args!("{counts}, {displaced} displaced, {retired} retired"))?;
    for class in &cache.classes {
        let [slot, used, held] = [class.slot, class.used, class.held].map(size);
        line(f, "slots", format_args!("of {slot}: {used} used, {held} held"))?;
    }
    Ok(())
}

/// What eBPF sees, by which program, and what was lost on the way.
fn observed(kernel: &KernelReport, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (way, reads) in &kernel.reads {
        line(f, "kernel", format_args!("{way}: {}, {}", reads.count, size(reads.bytes)))?;
    }
    let counts = |counts: &BTreeMap<String, u64>| {
        counts.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    };
    let (events, lost) = (counts(&kernel.events), counts(&kernel.lost));
    line(f, "events", format_args!("{events}; lost where full: {lost}"))?;
    for report in &kernel.capabilities {
        let by = report.attached_to.as_deref().unwrap_or("NOT seen");
        line(f, "eBPF", format_args!("{}: {by}", report.capability))?;
    }
    Ok(())
}
