//! `/metrics`: name, unit and labels of every exported metric.
//!
//! `doc/METRICS.md` explains each metric to operators. Dashboards and alerts depend on these
//! names.

use std::time::Instant;

use daemon::process_metrics;
use daemon::prometheus::{Exposition, Labels};
use interceptor_ebpf::histogram::upper_bound;

use super::health::{EngineState, FilerHealth, VolumeServerHealth};
use super::kernel::KernelCounts;
use super::metrics::{
    CacheUsage, DiskCacheUsage, KernelEventKind, Levels, Metrics, OpenMode, Outcome, ResidentFiles, Source,
    Totals, Trigger,
};
use super::ratios::{TimeSaved, origin_bytes_saved};
use super::report::percentile;
use super::shard::FlowTotal;
use super::slow_reads::SlowReads;
use super::status::MountIdentity;
use super::window::WindowReads;

/// All metrics of a mount. `is_ready`: whether it is, as `/readyz` says.
pub fn exposition(metrics: &Metrics, identity: &MountIdentity, is_ready: bool) -> Exposition {
    let mut out = Exposition::default();
    let version = ("version", env!("CARGO_PKG_VERSION"));
    out.family("interceptor_build_info", "gauge", "Always 1; the version is in the label.")
        .sample(&[version], 1);
    out.family("interceptor_mount_info", "gauge", "Always 1; the labels say which mount this is.")
        .sample(&[("mount_point", &identity.mount_point), ("filer_path", &identity.filer_path), version], 1);
    out.family("interceptor_ready", "gauge", "1 while the mount answers and its filers are heard, else 0.")
        .sample(&[], u8::from(is_ready));
    process_metrics::add_to(&mut out);
    out.family(
        "interceptor_log_lines_lost_total",
        "counter",
        "Log lines that standard error did not take, or not fast enough.",
    )
    .sample(&[], daemon::output::lost_lines());
    let (totals, kernel) = (metrics.totals(), metrics.kernel());
    reads(&mut out, &totals, kernel.as_ref());
    slow_reads(&mut out, metrics.slow_reads());
    fetches(&mut out, &totals);
    prefetches(&mut out, &totals);
    opens(&mut out, &totals);
    if let Some(counts) = &kernel {
        self::kernel(&mut out, counts, &totals);
    }
    levels(&mut out, &metrics.levels());
    let now = Instant::now();
    windows(&mut out, &metrics.window_reads(now, &totals, kernel.as_ref()));
    out.family(
        "interceptor_origin_saved_bytes",
        "gauge",
        "Bytes read by applications without those fetched from servers or the mount below; below zero: more was fetched.",
    )
    .sample(&[], origin_bytes_saved(&totals, kernel.as_ref()) as f64);
    time_saved(&mut out, &TimeSaved::new(&totals, kernel.as_ref()));
    if let Some(filers) = metrics.filers() {
        self::filers(&mut out, &filers);
    }
    if let Some(servers) = metrics.volume_servers() {
        volume_servers(&mut out, &servers);
    }
    out
}

fn windows(out: &mut Exposition, windows: &[(&'static str, WindowReads)]) {
    out.family(
        "interceptor_cache_hit_ratio",
        "gauge",
        "Of the bytes that reads asked of the daemon, the part answered from memory; NaN without reads.",
    );
    for (window, reads) in windows {
        out.sample(&[("window", *window)], reads.hit_ratios.cache.unwrap_or(f64::NAN));
    }
    out.family(
        "interceptor_hit_ratio",
        "gauge",
        "Of the bytes that reached a layer, the part that it had; NaN without reads or where it is not seen.",
    );
    for (window, reads) in windows {
        for (layer, ratio) in reads.hit_ratios.by_layer() {
            out.sample(&[("layer", layer), ("window", *window)], ratio.unwrap_or(f64::NAN));
        }
    }
    out.family(
        "interceptor_read_wait_seconds",
        "gauge",
        "How long applications waited for reads that reached the daemon, at most; exact to a factor of two, NaN without reads.",
    );
    for (window, reads) in windows {
        for (percent, part) in [("50", 0.5), ("99", 0.99)] {
            let seconds = percentile(&reads.waits, part).unwrap_or(f64::NAN);
            out.sample(&[("percentile", percent), ("window", *window)], seconds);
        }
    }
}

fn time_saved(out: &mut Exposition, saved: &TimeSaved) {
    out.family(
        "interceptor_time_saved_seconds",
        "gauge",
        "Estimate: how much longer readers would have waited had everything come over HTTP; NaN until something did.",
    )
    .sample(&[], saved.seconds.unwrap_or(f64::NAN));
}

fn filers(out: &mut Exposition, filers: &[FilerHealth]) {
    out.family("interceptor_filers", "gauge", "Filers that the mount was told of.").sample(&[], filers.len());
    out.family(
        "interceptor_filers_silent",
        "gauge",
        "Of these, those that have left calls unanswered for a second or cannot be connected to.",
    )
    .sample(&[], filers.iter().filter(|filer| filer.is_silent).count());
}

fn volume_servers(out: &mut Exposition, servers: &[VolumeServerHealth]) {
    let count = |is: &dyn Fn(&VolumeServerHealth) -> bool| servers.iter().filter(|server| is(server)).count();
    out.family(
        "interceptor_volume_servers",
        "gauge",
        "Volume servers that were ever asked, by what is asked first of each at present.",
    );
    for source in Source::ALL.iter().filter(|source| !source.is_memory()) {
        out.sample(&[("source", source.label())], count(&|server| server.source == source.label()));
    }
    out.family("interceptor_volume_servers_silent", "gauge", "Of these, those that seem to have stopped.")
        .sample(&[], count(&|server| server.is_silent));
    out.family(
        "interceptor_volume_servers_slow",
        "gauge",
        "Of these, those that take 30 ms or more to begin an answer, and four times as long as usual.",
    )
    .sample(&[], count(&|server| server.slow.is_some()));
    out.family("interceptor_engines", "gauge", "Engines that may be asked, by whether they are there.");
    for state in EngineState::ALL {
        let is = |server: &VolumeServerHealth| server.engine.as_ref().is_some_and(|e| e.state == state);
        out.sample(&[("state", state.label())], count(&is));
    }
}

fn reads(out: &mut Exposition, totals: &Totals, kernel: Option<&KernelCounts>) {
    out.family("interceptor_reads_total", "counter", "Reads of applications that reached the daemon.");
    for (source, flow) in by_source(&totals.reads) {
        out.sample(&[source], flow.count());
    }
    out.family(
        "interceptor_cache_found_bytes_total",
        "counter",
        "Bytes that reads found in blocks of the cache, by the source that had brought these.",
    );
    for source in Source::ALL.into_iter().filter(|source| source.is_origin()) {
        out.sample(&[("source", source.label())], totals.found_in_cache[source as usize]);
    }
    out.family("interceptor_reads_failed_total", "counter", "Reads that were answered with an error.")
        .sample(&[], totals.failed_reads.count());
    out.family("interceptor_read_bytes_total", "counter", "Bytes that reads were answered with.");
    for (source, flow) in by_source(&totals.reads) {
        out.sample(&[source], flow.bytes);
    }
    if let Some(bytes) = kernel.and_then(|counts| counts.page_cache_bytes) {
        out.sample(&[("source", "page_cache")], bytes);
    }
    if let Some(reads) = kernel.and_then(|counts| counts.reads.get("passthrough")) {
        out.sample(&[("source", "resident")], reads.bytes);
    }
    out.family(
        "interceptor_read_seconds",
        "histogram",
        "Time from a read reaching the daemon to its answer.",
    );
    for (source, flow) in by_source(&totals.reads) {
        histogram(out, &[source], flow);
    }
}

fn slow_reads(out: &mut Exposition, slow_reads: &SlowReads) {
    out.family("interceptor_slow_reads_total", "counter", "Reads that took longer than --slow-read.")
        .sample(&[], slow_reads.total());
    let waiting = slow_reads.waiting();
    out.family("interceptor_reads_waiting", "gauge", "Reads that wait for a fetch.")
        .sample(&[], waiting.count);
    out.family("interceptor_oldest_read_seconds", "gauge", "How long the oldest of these has waited.")
        .sample(&[], waiting.oldest_seconds);
}

fn fetches(out: &mut Exposition, totals: &Totals) {
    let origins = |(source, _): &(Source, &FlowTotal)| source.is_origin();
    let flows = || Source::ALL.into_iter().zip(&totals.fetches).filter(origins);

    out.family("interceptor_fetch_bytes_total", "counter", "Bytes brought from outside this host's cache.");
    for (source, flow) in flows() {
        out.sample(&[("source", source.label())], flow.bytes);
    }
    out.family("interceptor_fetch_seconds", "histogram", "Time of a fetch, its retries included.");
    for (source, flow) in flows() {
        histogram(out, &[("source", source.label())], flow);
    }
    out.family("interceptor_fetch_errors_total", "counter", "Failed attempts to fetch.");
    for ((source, reason), count) in &totals.fetch_errors {
        out.sample(&[("source", source.label()), ("reason", reason)], count);
    }
    out.family("interceptor_fallbacks_total", "counter", "Fetches that left a failed source for another.");
    for ((from, to), count) in &totals.fallbacks {
        out.sample(&[("from", from.label()), ("to", to.label())], count);
    }
    out.family(
        "interceptor_hedges_sent_total",
        "counter",
        "Second requests for what a server was slow to send.",
    )
    .sample(&[], totals.hedges_sent);
    out.family("interceptor_hedges_won_total", "counter", "Second requests that were answered first.")
        .sample(&[], totals.hedges_won);
    out.family(
        "interceptor_page_cache_pushed_bytes_total",
        "counter",
        "Bytes that were given to the page cache of the mount because they are hot.",
    )
    .sample(&[], totals.pushed_bytes);
    out.family(
        "interceptor_awake_seconds_total",
        "counter",
        "Time for which the CPUs of the host were kept awake for small requests.",
    )
    .sample(&[], totals.awake.as_secs_f64());
    out.family(
        "interceptor_panics_total",
        "counter",
        "Faults of the program itself; each cost the request or task that met it.",
    )
    .sample(&[], daemon::panics::total());
    out.family(
        "interceptor_integrity_failures_total",
        "counter",
        "Fetched bytes that were refused: wrong length, checksum or authentication.",
    );
    for (source, _) in flows() {
        let count = totals.integrity_failures.get(&source).copied().unwrap_or_default();
        out.sample(&[("source", source.label())], count);
    }
}

fn prefetches(out: &mut Exposition, totals: &Totals) {
    out.family(
        "interceptor_prefetch_fetched_bytes_total",
        "counter",
        "Bytes fetched ahead; without those of which the outcome is known, what waits in the cache to be read.",
    );
    for (trigger, bytes) in Trigger::ALL.iter().zip(totals.fetched_ahead) {
        if bytes > 0 || *trigger == Trigger::Sequential {
            out.sample(&[("trigger", trigger.label())], bytes);
        }
    }
    out.family("interceptor_prefetch_bytes_total", "counter", "Bytes fetched ahead, by what became of them.");
    for (trigger, outcomes) in Trigger::ALL.iter().zip(totals.prefetched) {
        // A trigger that has never fired may not exist in this build or on this host.
        if outcomes == [0; Outcome::ALL.len()] && *trigger != Trigger::Sequential {
            continue;
        }
        for (outcome, bytes) in Outcome::ALL.iter().zip(outcomes) {
            out.sample(&[("trigger", trigger.label()), ("outcome", outcome.label())], bytes);
        }
    }
}

fn opens(out: &mut Exposition, totals: &Totals) {
    // If the kernel does not ask the daemon at open, nothing is counted.
    if totals.opens == [0; OpenMode::ALL.len()] {
        return;
    }
    out.family(
        "interceptor_opens_total",
        "counter",
        "Files opened, by the way in which the kernel reads them.",
    );
    for (way, count) in OpenMode::ALL.iter().zip(totals.opens) {
        out.sample(&[("way", way.label())], count);
    }
}

fn kernel(out: &mut Exposition, counts: &KernelCounts, totals: &Totals) {
    out.family(
        "interceptor_kernel_reads_total",
        "counter",
        "Reads of applications, as the kernel sees them, by how they were served.",
    );
    for (way, reads) in &counts.reads {
        out.sample(&[("way", way)], reads.count);
    }
    out.family("interceptor_kernel_read_bytes_total", "counter", "Bytes that these reads wanted.");
    for (way, reads) in &counts.reads {
        out.sample(&[("way", way)], reads.bytes);
    }
    out.family(
        "interceptor_kernel_request_seconds",
        "histogram",
        "Time from a request being queued for the daemon to its answer, measured in the kernel.",
    );
    for (request, flow) in &counts.requests {
        histogram(out, &[("request", request)], flow);
    }
    let events = || KernelEventKind::ALL.iter().zip(&totals.kernel_events);
    out.family("interceptor_ebpf_events_total", "counter", "Events of eBPF that the daemon has acted on.");
    for (kind, flow) in events() {
        out.sample(&[("kind", kind.label())], flow.count());
    }
    out.family(
        "interceptor_ebpf_reaction_seconds",
        "histogram",
        "Time from a read that causes an event to the daemon having acted on it.",
    );
    for (kind, flow) in events() {
        histogram(out, &[("kind", kind.label())], flow);
    }
    out.family("interceptor_ebpf_lost_total", "counter", "Events that were lost because something was full.");
    for (kind, count) in &counts.lost {
        out.sample(&[("kind", kind)], count);
    }
}

fn levels(out: &mut Exposition, levels: &Levels) {
    if let Some(cache) = &levels.cache {
        self::cache(out, cache);
    }
    if let Some(disk) = &levels.disk_cache {
        disk_cache(out, disk);
    }
    if let Some(live) = levels.subscription_live {
        out.family(
            "interceptor_subscription_live",
            "gauge",
            "1 while changes of the filer are heard, else 0.",
        )
        .sample(&[], u8::from(live));
    }
    if let Some(takeovers) = levels.takeovers {
        out.family(
            "interceptor_takeovers_total",
            "counter",
            "How often another process took the mount over, after a crash or for a restart.",
        )
        .sample(&[], takeovers);
    }
    if let Some(nodes) = levels.nodes {
        out.family("interceptor_nodes", "gauge", "Files and directories that the kernel remembers.")
            .sample(&[], nodes);
    }
}

fn cache(out: &mut Exposition, cache: &CacheUsage) {
    out.family("interceptor_cache_bytes", "gauge", "The cache: its capacity, and how it is used.")
        .sample(&[("state", "capacity")], cache.capacity)
        .sample(&[("state", "used")], cache.used)
        .sample(&[("state", "resident")], cache.resident)
        .sample(&[("state", "withheld")], cache.withheld)
        .sample(&[("state", "pinned")], cache.pinned)
        .sample(&[("state", "rdma")], cache.rdma)
        .sample(&[("state", "allocated")], cache.allocated);
    out.family(
        "interceptor_cache_prefaulting",
        "gauge",
        "Whether memory of the cache is being touched ahead of its use.",
    )
    .sample(&[], u64::from(cache.prefaulting));
    let ResidentFiles { ready, waiting, promoted, failed, displaced, retired } = cache.resident_files;
    out.family("interceptor_resident_files", "gauge", "Files that the kernel reads by itself.")
        .sample(&[("state", "ready")], ready)
        .sample(&[("state", "waiting")], waiting);
    out.family(
        "interceptor_resident_events_total",
        "counter",
        "What became of files that the kernel was to read by itself.",
    )
    .sample(&[("event", "promoted")], promoted)
    .sample(&[("event", "failed")], failed)
    .sample(&[("event", "displaced")], displaced)
    .sample(&[("event", "retired")], retired);
    out.family(
        "interceptor_cache_class_bytes",
        "gauge",
        "The cache by size of slots: what slots in use take, and what only slots of this size can take.",
    );
    for class in &cache.classes {
        let slot = class.slot.to_string();
        out.sample(&[("slot", &slot), ("state", "used")], class.used);
        out.sample(&[("slot", &slot), ("state", "held")], class.held);
    }
    out.family(
        "interceptor_cache_info",
        "gauge",
        "Always 1; what the cache's memory is made of is in the label.",
    )
    .sample(&[("backing", &cache.backing)], 1);
}

fn disk_cache(out: &mut Exposition, disk: &DiskCacheUsage) {
    out.family("interceptor_disk_cache_bytes", "gauge", "The disk cache: its capacity, and how it is used.")
        .sample(&[("state", "capacity")], disk.capacity)
        .sample(&[("state", "used")], disk.used)
        .sample(&[("state", "queued")], disk.queued);
    out.family("interceptor_disk_cache_files", "gauge", "Files in the disk cache.").sample(&[], disk.files);
    out.family("interceptor_disk_cache_writer", "gauge", "1 if this daemon fills the disk cache, else 0.")
        .sample(&[], u8::from(disk.is_writer));
    out.family("interceptor_disk_cache_written_bytes_total", "counter", "Bytes written to the disk cache.")
        .sample(&[], disk.written);
    out.family(
        "interceptor_disk_cache_dropped_bytes_total",
        "counter",
        "Bytes that were to be written to the disk cache when the disk was too slow or had failed.",
    )
    .sample(&[], disk.dropped);
    out.family(
        "interceptor_disk_cache_evicted_files_total",
        "counter",
        "Files that left the disk cache for others.",
    )
    .sample(&[], disk.evicted_files);
}

/// How many of the daemon's own buckets are one of the collector's, which keeps a series for each.
const BUCKETS_IN_ONE: usize = 2;

/// All samples of a flow's histogram, durations in seconds.
fn histogram(out: &mut Exposition, labels: Labels, flow: &FlowTotal) {
    let seconds = |nanos| nanos as f64 / 1e9;
    let buckets = flow.buckets.chunks(BUCKETS_IN_ONE).enumerate().map(|(index, counts)| {
        let last = index * BUCKETS_IN_ONE + counts.len() - 1;
        (upper_bound(last).map(seconds), counts.iter().sum())
    });
    out.histogram(labels, buckets, seconds(flow.nanos));
}

/// The flow of each source, with the source as a label.
fn by_source(flows: &[FlowTotal]) -> impl Iterator<Item = ((&'static str, &'static str), &FlowTotal)> {
    Source::ALL.iter().zip(flows).map(|(source, flow)| (("source", source.label()), flow))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::super::kernel::KernelReads;
    use super::super::metrics::CacheClass;
    use super::*;

    fn everything_counted() -> String {
        let metrics = Metrics::new();
        metrics.read(Source::Cache, 300, Duration::from_micros(5));
        metrics.read(Source::Http, 100, Duration::from_millis(2));
        metrics.fetch(Source::Http, 4096, Duration::from_millis(1));
        metrics.fetch_error(Source::Http, "timeout");
        metrics.fallback(Source::Cache, Source::Http);
        metrics.hedge_sent();
        metrics.prefetch(Trigger::Hot, Outcome::Used, 1);
        metrics.set_cache_usage(Box::new(|| CacheUsage {
            capacity: 10,
            used: 5,
            resident: 2,
            withheld: 3,
            prefaulting: true,
            resident_files: ResidentFiles { ready: 4, waiting: 3, retired: 1, ..ResidentFiles::default() },
            pinned: 1,
            rdma: 4,
            allocated: 7,
            backing: "plain".into(),
            classes: vec![
                CacheClass { slot: 4096, used: 4096, held: 8192 },
                CacheClass { slot: 8192, used: 8192, held: 8192 },
            ],
        }));
        metrics.set_disk_cache(Box::new(|| DiskCacheUsage {
            capacity: 100,
            used: 60,
            files: 2,
            written: 70,
            is_writer: true,
            ..DiskCacheUsage::default()
        }));
        metrics.set_subscription_live(Box::new(|| true));
        metrics.set_nodes(Box::new(|| 3));
        metrics.set_takeovers(Box::new(|| 2));
        metrics.kernel_event_handled(KernelEventKind::Hot, Duration::from_millis(3));
        metrics.pushed(4096);
        metrics.found_in_cache(Source::Tcp, 77);
        metrics.kept_awake(Duration::from_millis(1500));
        let mut answered = FlowTotal { nanos: 1_000_000_000, ..FlowTotal::default() };
        answered.buckets[3] = 2;
        let counts = KernelCounts {
            reads: [("passthrough", KernelReads { count: 7, bytes: 700 })].into(),
            page_cache_bytes: Some(800),
            requests: [("read", answered)].into(),
            lost: [("ring", 1)].into(),
        };
        metrics.set_kernel(Box::new(move || Some(counts.clone())));
        let identity = MountIdentity {
            mount_point: "/mnt/\"a\"".into(),
            filer_path: "/buckets".into(),
            ..MountIdentity::default()
        };
        exposition(&metrics, &identity, true).finish()
    }

    #[test]
    fn every_counter_has_its_name_and_labels() {
        let text = everything_counted();
        for line in [
            &*format!(
                "interceptor_mount_info{{mount_point=\"/mnt/\\\"a\\\"\",filer_path=\"/buckets\",version=\"{}\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
            "interceptor_ready 1",
            "interceptor_reads_total{source=\"cache\"} 1",
            "interceptor_read_bytes_total{source=\"http\"} 100",
            "interceptor_cache_found_bytes_total{source=\"tcp\"} 77",
            "interceptor_read_seconds_count{source=\"http\"} 1",
            "interceptor_read_seconds_sum{source=\"http\"} 0.002",
            "interceptor_fetch_bytes_total{source=\"http\"} 4096",
            "interceptor_fetch_errors_total{source=\"http\",reason=\"timeout\"} 1",
            "interceptor_fallbacks_total{from=\"cache\",to=\"http\"} 1",
            "interceptor_hedges_sent_total 1",
            "interceptor_hedges_won_total 0",
            "interceptor_page_cache_pushed_bytes_total 4096",
            "interceptor_awake_seconds_total 1.5",
            "interceptor_integrity_failures_total{source=\"http\"} 0",
            "interceptor_prefetch_bytes_total{trigger=\"hot\",outcome=\"used\"} 1",
            "interceptor_cache_bytes{state=\"capacity\"} 10",
            "interceptor_cache_bytes{state=\"resident\"} 2",
            "interceptor_cache_bytes{state=\"withheld\"} 3",
            "interceptor_cache_prefaulting 1",
            "interceptor_cache_bytes{state=\"pinned\"} 1",
            "interceptor_cache_bytes{state=\"rdma\"} 4",
            "interceptor_resident_files{state=\"waiting\"} 3",
            "interceptor_resident_events_total{event=\"retired\"} 1",
            "interceptor_cache_class_bytes{slot=\"4096\",state=\"held\"} 8192",
            "interceptor_disk_cache_bytes{state=\"used\"} 60",
            "interceptor_disk_cache_writer 1",
            "interceptor_disk_cache_written_bytes_total 70",
            "interceptor_cache_info{backing=\"plain\"} 1",
            "interceptor_cache_hit_ratio{window=\"1m\"} 0.75",
            "interceptor_hit_ratio{layer=\"cache\",window=\"10m\"} 0.75",
            "interceptor_subscription_live 1",
            "interceptor_nodes 3",
            "interceptor_takeovers_total 2",
            "interceptor_read_bytes_total{source=\"page_cache\"} 800",
            "interceptor_read_bytes_total{source=\"resident\"} 700",
            "interceptor_kernel_reads_total{way=\"passthrough\"} 7",
            // Two in the fourth of the daemon's buckets, which ends at 2.048 us.
            "interceptor_kernel_request_seconds_bucket{request=\"read\",le=\"0.000000512\"} 0",
            "interceptor_kernel_request_seconds_bucket{request=\"read\",le=\"0.000002048\"} 2",
            "interceptor_kernel_request_seconds_bucket{request=\"read\",le=\"+Inf\"} 2",
            "interceptor_kernel_request_seconds_count{request=\"read\"} 2",
            "interceptor_ebpf_events_total{kind=\"hot\"} 1",
            "interceptor_ebpf_reaction_seconds_sum{kind=\"hot\"} 0.003",
            "interceptor_ebpf_lost_total{kind=\"ring\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in:\n{text}");
        }
        assert!(text.contains("\ninterceptor_time_saved_seconds -0.0019"), "waited longer than HTTP takes");
        assert!(!text.contains("next_file"), "no such trigger has fired");
    }

    /// The rules whose violation makes a collector reject a document.
    #[test]
    fn the_document_is_well_formed() {
        let text = everything_counted();
        assert!(text.ends_with('\n'));
        let (mut families, mut samples, mut family) = (BTreeSet::new(), BTreeSet::new(), "");
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help text");
                assert!(families.insert(name), "{name} appears twice");
                assert!(help.ends_with('.'), "{line}");
                family = name;
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert_eq!(name, family, "TYPE follows its HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(samples.insert(series), "{series} appears twice");
                let name = series.split('{').next().unwrap();
                let suffix = name.strip_prefix(family).expect("samples follow their family");
                assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            }
        }
    }
}
