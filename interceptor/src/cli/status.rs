//! `interceptor status`: asks the daemon's status API once and prints the answer.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use clap::Args;
use daemon::output;
use daemon::size::ByteSize;

use super::http::StatusClient;
use super::untrusted::plain;
use crate::telemetry::MissRatioCurve;
use crate::telemetry::answered_read::{AnsweredRead, StepList};
use crate::telemetry::health::{EngineState, ErrorRecord, FilerHealth};
use crate::telemetry::report::{self, FlowReport, StatusReport};
use crate::telemetry::slow_reads::WaitingReads;

/// Prints what a running mount says of itself.
#[derive(Debug, Clone, Args)]
pub(super) struct StatusOptions {
    /// Which daemon.
    #[command(flatten)]
    pub(super) daemon: StatusClient,

    /// Print the daemon's JSON as it is
    #[arg(long)]
    pub(super) json: bool,

    /// Print the schema of that JSON; asks no daemon
    #[arg(long, conflicts_with = "json")]
    pub(super) schema: bool,
}

/// Prints the status on standard output.
pub(super) fn run(options: &StatusOptions) -> anyhow::Result<()> {
    let daemon = &options.daemon;
    if options.schema {
        output::print(format_args!("{:#}\n", report::schema()))?;
        return Ok(());
    }
    if options.json {
        output::print(format_args!("{}\n", daemon.status()?.trim_end()))?;
        return Ok(());
    }
    let report = daemon.report()?;
    let ready = daemon.get("/readyz")?;
    let readiness = if ready.code == 200 { None } else { Some(ready.body.trim()) };
    Ok(output::print(Text { report: &report, readiness })?)
}

/// How many slow reads are printed.
const MAX_SLOW_READS: usize = 5;

/// Said of a disk cache that this daemon only reads.
const WRITTEN_BY_ANOTHER: &str = "another daemon writes";

/// A report as people read it, a line for each figure. One format string aligns the names; a table
/// crate would take the place of that string only.
struct Text<'a> {
    report: &'a StatusReport,
    /// Why the mount is not ready.
    readiness: Option<&'a str>,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let mut line = |name: &str, text: &dyn fmt::Display| writeln!(f, "{name:<18} {text}");
        let filer = report.current_filer.as_deref().unwrap_or("none");
        line("verdict", &plain(&report.verdict.text))?;
        for finding in &report.verdict.findings {
            line("", &format_args!("{}. {}", plain(&finding.text), finding.advice))?;
        }
        line("mount point", &report.mount_point)?;
        if report.filers.is_empty() {
            line("filer", &"none was named: the mount below answers")?;
        } else {
            line("filer", &format_args!("{filer}{}  (of {})", report.filer_path, report.filers.join(", ")))?;
        }
        line("process", &format_args!("{}, version {}, up {}", report.pid, report.version, age(report)))?;
        line("ready", &self.readiness.map_or("yes".to_owned(), |reason| format!("no: {reason}")))?;
        let subscription = &report.subscription;
        if report.filers.is_empty() {
            line("changes", &"not from a filer: what was kept is compared with the mount below")?;
        } else {
            let state = if subscription.live { "heard" } else { "NOT heard, everything is revalidated" };
            let counts = format!("{} so far, lost {} times", subscription.changes, subscription.losses);
            line("changes", &format_args!("{state}; {counts}"))?;
            if let Some(reason) = &subscription.last_loss {
                line("", &format_args!("last loss: {reason}"))?;
            }
        }
        if let Some(cache) = &report.cache {
            let [used, capacity, allocated] = [cache.used, cache.capacity, cache.allocated].map(ByteSize);
            let [resident, pinned] = [cache.resident, cache.pinned].map(ByteSize);
            line("cache", &format_args!("{used} of {capacity}, {allocated} allocated"))?;
            let files = &cache.resident_files;
            let waiting = format!("{} more on their way", files.waiting);
            line(
                "",
                &format_args!(
                    "{resident} in {} resident files ({waiting}), {pinned} being read",
                    files.ready
                ),
            )?;
            line("", &format_args!("memory: {}", backing_text(&cache.backing)))?;
            if cache.prefaulting {
                line("", &"memory is being touched ahead of its use, as fresh memory is slow here")?;
            }
            if cache.withheld > 0 {
                let withheld = ByteSize(cache.withheld);
                line("", &format_args!("{withheld} given back, because memory is short"))?;
            }
        }
        if let Some(disk) = &report.disk_cache {
            let [used, capacity, written] = [disk.used, disk.capacity, disk.written].map(ByteSize);
            let writer =
                if disk.is_writer { format!("{written} written") } else { WRITTEN_BY_ANOTHER.into() };
            line("disk cache", &format_args!("{used} of {capacity} in {} files, {writer}", disk.files))?;
        }
        let ratio = |(window, ratio): (&String, &Option<f64>)| match ratio {
            Some(ratio) => format!("{:.1} % in {window}", 100.0 * ratio),
            None => format!("no reads in {window}"),
        };
        // The names of longer windows happen to sort first.
        line("hit ratio", &report.hit_ratio.iter().rev().map(ratio).collect::<Vec<_>>().join(", "))?;
        for (window, ratios) in report.hit_ratios.iter().rev() {
            let text =
                |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{:.1} %", 100.0 * ratio));
            let [page_cache, resident, overall] =
                [ratios.page_cache, ratios.resident, ratios.overall].map(text);
            let layers = format!("page cache {page_cache}, resident {resident}, overall {overall}");
            line("", &format_args!("in {window}: {layers}"))?;
        }
        if let Some(seconds) = report.time_saved.seconds {
            // Without a sign before zero.
            let seconds = (10.0 * seconds).round() / 10.0 + 0.0;
            line("time saved", &format_args!("about {seconds:.1} s of waiting (estimate)"))?;
        }
        for (size, ratio) in report.miss_ratio_curve.iter().flat_map(MissRatioCurve::hit_ratios) {
            line(
                "expected hits",
                &format_args!("{:.1} % with {} for data, page cache included", 100.0 * ratio, ByteSize(size)),
            )?;
        }
        if let Some(nodes) = report.nodes {
            line("kernel knows", &format_args!("{nodes} files and directories"))?;
        }
        for (what, flows) in [("reads", &report.reads), ("fetches", &report.fetches)] {
            for (source, flow) in flows {
                line(&format!("{what} {source}"), &flow_text(flow))?;
            }
        }
        for error in &report.fetch_errors {
            line("fetch errors", &format_args!("{} of {} ({})", error.count, error.source, error.reason))?;
        }
        for (source, count) in report.integrity_failures.iter().filter(|(_, count)| **count > 0) {
            line("DAMAGED", &format_args!("{count} fetches from {source} refused"))?;
        }
        if let Some(kernel) = &report.kernel {
            if let Some(bytes) = kernel.page_cache_bytes {
                line("reads page cache", &format_args!("{}, which nobody was asked for", ByteSize(bytes)))?;
            }
            for (way, reads) in &kernel.reads {
                let counts = format_args!("{}, {}", reads.count, ByteSize(reads.bytes)).to_string();
                line("kernel", &format_args!("{way}: {counts}"))?;
            }
            let counts = |counts: &BTreeMap<String, u64>| {
                counts.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
            };
            let (events, lost) = (counts(&kernel.events), counts(&kernel.lost));
            line("events", &format_args!("{events}; lost where full: {lost}"))?;
            for report in &kernel.capabilities {
                let by = report.attached_to.as_deref().unwrap_or("NOT seen");
                line("eBPF", &format_args!("{}: {by}", report.capability))?;
            }
        }
        let last = |trouble: &Option<ErrorRecord>| {
            trouble.as_ref().map_or(String::new(), |last| {
                format!(", last error {:.0} s ago: {}", last.seconds_ago, last.text)
            })
        };
        for server in &report.health.volume_servers {
            let silent = if server.is_silent { ", SILENT" } else { "" };
            let text = format!("{} by {}{silent}", server.address, server.source);
            line("volume server", &format_args!("{text}{}", last(&server.last_error)))?;
            // Most hosts of volume servers have no engine, which is no problem.
            let engine = server.engine.as_ref().filter(|engine| engine.state != EngineState::Absent);
            if let Some(engine) = engine {
                let text = format!("{} {}", engine.address, engine.state.label());
                line("engine", &format_args!("{text}{}", last(&engine.last_error)))?;
            }
        }
        let in_trouble = |filer: &&FilerHealth| filer.is_silent || filer.last_error.is_some();
        for filer in report.health.filers.iter().filter(in_trouble) {
            let silent = if filer.is_silent { " SILENT" } else { "" };
            line("filer", &format_args!("{}{silent}{}", filer.address, last(&filer.last_error)))?;
        }
        let WaitingReads { count, oldest_seconds, oldest_path } = &report.waiting_reads;
        if let Some(path) = oldest_path {
            let path = plain(path);
            line("reads waiting", &format_args!("{count}, the oldest for {oldest_seconds:.1} s, of {path}"))?;
        }
        for read in report.slow_reads.iter().take(MAX_SLOW_READS) {
            let AnsweredRead { path, offset, len, seconds, caller, caller_name, .. } = read;
            let answer = read.error.as_ref().map_or(String::new(), |error| format!(", failed: {error}"));
            let what = format!("{len} bytes at {offset} of {path} by {caller_name} ({caller}){answer}");
            line("slow read", &format_args!("{seconds:.3} s, {}", plain(&what)))?;
            line("", &plain(&StepList(&read.steps).to_string()))?;
        }
        for lost in &report.lost {
            line("goes without", &format_args!("{}: {} ({})", lost.ability, lost.reason, lost.remedy))?;
        }
        Ok(())
    }
}

/// What the cache's memory is made of, in words.
fn backing_text(backing: &str) -> &str {
    match backing {
        "hugetlb" => "huge pages that were set aside (hugetlb)",
        "transparent" => "transparent huge pages",
        "plain" => "pages of 4 KiB",
        other => other,
    }
}

fn flow_text(flow: &FlowReport) -> String {
    let mut text = format!("{}, {}", flow.count, ByteSize(flow.bytes));
    if let (Some(p50), Some(p99)) = (flow.p50_seconds, flow.p99_seconds) {
        let (p50, p99) = (Duration::from_secs_f64(p50), Duration::from_secs_f64(p99));
        let _ = write!(text, ", half below {p50:.1?}, 99 % below {p99:.1?}");
    }
    text
}

pub(super) fn age(report: &StatusReport) -> String {
    let seconds = report.uptime_seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::access::ApiSecrets;
    use crate::telemetry::server::StatusServer;
    use crate::telemetry::status::MountIdentity;
    use crate::telemetry::{CapabilityReport, KernelCounts, KernelReads, Metrics, Source, Status};

    fn identity() -> MountIdentity {
        MountIdentity {
            mount_point: "/mnt/data".into(),
            filers: vec!["a:8888".into(), "b:8888".into()],
            filer_path: "/x".into(),
            options: BTreeMap::new(),
        }
    }

    #[tokio::test]
    async fn a_daemon_is_asked_and_understood() {
        let server = StatusServer::bind("127.0.0.1:0", ApiSecrets::default()).await.unwrap();
        let address = server.address().to_string();
        let status = Status::new(identity(), Metrics::new());
        status.metrics().read(Source::Http, 3 << 20, Duration::from_millis(2));
        let reads = KernelReads { count: 5, bytes: 5 << 20 };
        let counts = KernelCounts {
            reads: [("cached", reads)].into(),
            page_cache_bytes: Some(4 << 20),
            lost: [("ring", 2)].into(),
            ..KernelCounts::default()
        };
        status.metrics().set_kernel(Box::new(move || Some(counts.clone())));
        let (capability, reason) = ("passthrough reads".to_owned(), Some("refused".to_owned()));
        status.set_capabilities(vec![CapabilityReport { capability, attached_to: None, reason }]);
        tokio::spawn(server.serve(status, axum::Router::new()));
        let asked = tokio::task::spawn_blocking(move || {
            let daemon = StatusClient::at(address);
            (daemon.report().unwrap(), daemon.get("/readyz").unwrap())
        });
        let (report, ready) = asked.await.unwrap();
        assert_eq!(ready.code, 503);
        let text = Text { report: &report, readiness: Some("mount: hangs") }.to_string();
        for part in [
            "/mnt/data",
            "a:8888, b:8888",
            "no: mount: hangs",
            "NOT heard",
            "reads http         1, 3 MiB, half below 2.1ms",
            "reads page cache   4 MiB",
            "cached: 5, 5 MiB",
            "0 hot, 0 stream; lost where full: 2 ring",
            "passthrough reads: NOT seen",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn without_a_filer_no_changes_are_missed() {
        let status = Status::new(MountIdentity { filers: Vec::new(), ..identity() }, Metrics::new());
        let text = Text { report: &status.report(), readiness: None }.to_string();
        assert!(!text.contains("NOT heard") && text.contains("the mount below answers"), "{text}");
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_option() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let daemon = StatusClient::at(closed);
        let error = run(&StatusOptions { daemon, json: false, schema: false }).unwrap_err();
        assert!(error.to_string().contains("--status-addr"), "{error}");
    }
}
