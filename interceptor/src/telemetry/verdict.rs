//! One sentence that says how a mount is doing, and what is wrong with it, the worst first.
//!
//! Dashboard, `interceptor status` and `interceptor top` begin with it. It is derived from the rest
//! of the status document, so it never contradicts the figures below it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use daemon::size::ByteSize;

use super::health::{EngineHealth, EngineState, Slowness};
use super::report::{Severity, StatusReport, Verdict, VerdictFinding};
use super::slow_reads::MAX_KEPT;
use crate::timeline::StepKind;

/// A read that waits for longer than this is trouble, whatever `--slow-read` says.
const STUCK_READ_SECONDS: f64 = 5.0;
/// Slow reads count for so long.
const RECENT_SECONDS: f64 = 60.0;
/// What a larger cache must bring to be recommended: a share of all reads.
const MIN_CACHE_GAIN: f64 = 0.2;
/// A cache is large enough if a larger one would bring no more than this.
const MAX_MISSED_GAIN: f64 = 0.01;
/// Sampled reads without which no cache is recommended.
const MIN_SAMPLED_READS: u64 = 1000;

/// What `report` amounts to.
pub(super) fn verdict(report: &StatusReport) -> Verdict {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    verdict_at(report, now.as_secs_f64())
}

fn verdict_at(report: &StatusReport, now: f64) -> Verdict {
    let mut findings = Vec::new();
    let mut add = |severity, text: String, advice: &str| {
        findings.push(VerdictFinding { severity, text, advice: advice.to_owned() });
    };
    servers(report, &mut add);
    reads(report, now, &mut add);
    cache(report, &mut add);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));

    let severity = findings.first().map_or(Severity::Good, |worst| worst.severity);
    let ratios = report.hit_ratios.get("1m").copied().unwrap_or_default();
    let mut text = match ratios.overall.or(ratios.cache) {
        _ if severity == Severity::Bad => "Readers wait or fail".to_owned(),
        // Rounded down: only all of it is 100 %.
        Some(ratio) => format!("Serving {:.0} % from memory", (100.0 * ratio).floor()),
        // What the kernel reads by itself is not seen everywhere.
        None => "No read came to the daemon in the last minute".to_owned(),
    };
    if let Some(worst) = findings.first() {
        text += &format!("; {}", worst.text);
    }
    match findings.len() {
        0 | 1 => {}
        more => text += &format!(", and {} more", more - 1),
    }
    Verdict { severity, text, findings }
}

fn servers(report: &StatusReport, add: &mut impl FnMut(Severity, String, &str)) {
    for server in &report.health.volume_servers {
        let address = &server.address;
        let asked = server.engine.as_ref().filter(|engine| engine.state == EngineState::Connected);
        if let Some(engine) = asked.filter(|_| server.keeps_readers_waiting) {
            add(
                Severity::Bad,
                format!("engine {} beside volume server {address} keeps readers waiting", engine.address),
                "Look whether rdma-engine runs; after three seconds its bytes come over HTTP.",
            );
        } else if server.keeps_readers_waiting {
            add(
                Severity::Bad,
                format!("volume server {address} keeps readers waiting"),
                "Look whether it runs, and at its disks.",
            );
        } else if server.is_silent {
            add(
                Severity::Degraded,
                format!("volume server {address} is silent"),
                "Other servers are asked first; look whether it runs.",
            );
        } else if let Some(Slowness { p50_seconds, usual_p50_seconds }) = server.slow {
            let most = server.latency.map_or(p50_seconds, |latency| latency.p99_seconds);
            let [half, most, usual] = [p50_seconds, most, usual_p50_seconds].map(Duration::from_secs_f64);
            add(
                Severity::Degraded,
                format!("volume server {address} is slow: p99 {most:.0?}"),
                &format!(
                    "Half of its answers take {half:.0?} or more to begin, those of others {usual:.1?}; look at its \
                     load, its disks and the network to it."
                ),
            );
        }
    }
    engines(report, add);
    let filers = &report.health.filers;
    if !filers.is_empty() && filers.iter().all(|filer| filer.is_silent) {
        let addresses: Vec<_> = filers.iter().map(|filer| filer.address.as_str()).collect();
        add(
            Severity::Bad,
            format!("no filer answers ({})", addresses.join(", ")),
            "Look whether it runs. Files that are open can be read; in a mount nothing else can be found or opened, on \
             an attached path the mount below is asked.",
        );
    } else {
        for filer in filers.iter().filter(|filer| filer.is_silent) {
            add(
                Severity::Degraded,
                format!("filer {} is silent", filer.address),
                "Another one is asked; look whether it runs.",
            );
        }
    }
    if !report.subscription.live && !report.filers.is_empty() {
        add(
            Severity::Degraded,
            "changes of the filer are not heard".to_owned(),
            "Names and sizes are asked for anew after a second, which slows down whatever opens files.",
        );
    }
    let damaged = match report.damaged_fetches.get("10m") {
        None | Some(0) => None,
        Some(1) => Some("a fetch was refused as damaged in the last ten minutes".to_owned()),
        Some(many) => Some(format!("{many} fetches were refused as damaged in the last ten minutes")),
    };
    if let Some(damaged) = damaged {
        add(Severity::Degraded, damaged, "Readers got other copies, or errors; the log names the servers.");
    }
}

/// Names engines that were there, or are there and not used.
fn engines(report: &StatusReport, add: &mut impl FnMut(Severity, String, &str)) {
    // Several volume servers may share one, of which each finds out by itself how it does.
    let mut engines: BTreeMap<(&str, &str), (&EngineHealth, Vec<&str>)> = BTreeMap::new();
    for server in &report.health.volume_servers {
        if let Some(engine) = &server.engine {
            let key = (engine.address.as_str(), engine.state.label());
            let (_, servers) = engines.entry(key).or_insert((engine, Vec::new()));
            servers.push(&server.address);
        }
    }
    for ((address, _), (engine, servers)) in engines {
        let engine_text = match servers[..] {
            [server] => format!("engine {address} beside volume server {server}"),
            _ => format!("engine {address} beside {} volume servers", servers.len()),
        };
        match engine.state {
            EngineState::Lost => add(
                Severity::Degraded,
                format!("{engine_text} is lost"),
                "Its bytes come over HTTP until it answers again; look whether rdma-engine runs there.",
            ),
            EngineState::Unproved => {
                let why = engine.distrust.as_deref().unwrap_or("trust is missing");
                add(
                    Severity::Degraded,
                    format!("{engine_text} is there and not used"),
                    &format!("Its bytes come over HTTP: {why}."),
                );
            }
            EngineState::Connected | EngineState::Absent => {}
        }
    }
}

fn reads(report: &StatusReport, now: f64, add: &mut impl FnMut(Severity, String, &str)) {
    let failed = match report.failed_reads.get("1m") {
        None | Some(0) => None,
        Some(1) => Some("one read failed in the last minute".to_owned()),
        Some(failed) => Some(format!("{failed} reads failed in the last minute")),
    };
    if let Some(failed) = failed {
        add(
            Severity::Bad,
            failed,
            "The log says of each which servers were asked and why they did not deliver.",
        );
    }
    let waiting = &report.waiting_reads;
    if let Some(path) = waiting.oldest_path.as_ref().filter(|_| waiting.oldest_seconds > STUCK_READ_SECONDS) {
        let text = format!("a read of {path} has waited for {:.0} s", waiting.oldest_seconds);
        let is_explained = report.health.volume_servers.iter().any(|server| server.keeps_readers_waiting);
        let advice = if is_explained {
            "It waits for the server that is named here."
        } else {
            "No server is known to hang; the cluster may be fetching a remote object."
        };
        add(Severity::Bad, text, advice);
    }
    let recent: Vec<_> = report.slow_reads.iter().filter(|read| now - read.at < RECENT_SECONDS).collect();
    if recent.is_empty() {
        return;
    }
    let mut seconds: BTreeMap<&str, f64> = BTreeMap::new();
    // These are parts of a request.
    let is_part = |step: &str| [StepKind::Connect, StepKind::Unpack].iter().any(|part| part.label() == step);
    for step in recent.iter().flat_map(|read| &read.steps).filter(|step| !is_part(&step.step)) {
        *seconds.entry(step.server.as_deref().unwrap_or(&step.step)).or_default() += step.seconds;
    }
    let most = seconds.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let at = most.map_or(String::new(), |(place, _)| format!(", most of that at {place}"));
    let reads = match recent.len() {
        1 => "one read was".to_owned(),
        // There may have been more.
        MAX_KEPT => format!("{MAX_KEPT} reads or more were"),
        some => format!("{some} reads were"),
    };
    let text = format!("{reads} slow in the last minute{at}");
    add(Severity::Degraded, text, "The dashboard and `interceptor status` list the steps of each.");
}

fn cache(report: &StatusReport, add: &mut impl FnMut(Severity, String, &str)) {
    let Some(cache) = &report.cache else { return };
    if cache.withheld > 0 {
        let text = format!("memory is short: {} of the cache are given back", ByteSize(cache.withheld));
        add(Severity::Degraded, text, "They return when the host or its control group has memory again.");
        return;
    }
    let Some(curve) =
        report.miss_ratio_curve.as_ref().filter(|curve| curve.sampled_reads >= MIN_SAMPLED_READS)
    else {
        return;
    };
    let Some((larger, fewer)) = curve.enough(MAX_MISSED_GAIN) else { return };
    let Some(misses) = curve.miss_ratio(cache.capacity) else { return };
    // The page cache may already hold what the daemon's cache is too small for.
    let served = report.hit_ratios.get("10m").and_then(|ratios| ratios.overall).unwrap_or(0.0);
    if (misses - fewer).min(1.0 - fewer - served) >= MIN_CACHE_GAIN {
        let (size, share) = (ByteSize(larger), 100.0 * (1.0 - fewer));
        let text =
            format!("the cache is small for what is read: {size} would serve {share:.0} % from memory");
        add(Severity::Degraded, text, "Raise --cache-size, or add --disk-cache.");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::answered_read::{AnsweredRead, ReadStep};
    use crate::telemetry::health::{FilerHealth, RecentLatency, VolumeServerHealth};
    use crate::telemetry::metrics::CacheUsage;
    use crate::telemetry::slow_reads::WaitingReads;
    use crate::telemetry::status::tests::some_status;
    use crate::telemetry::{MissRatioCurve, MissRatioPoint};

    const NOW: f64 = 1e9;

    fn healthy() -> StatusReport {
        let mut report = some_status().report();
        report.subscription.live = true;
        report
    }

    fn server(address: &str) -> VolumeServerHealth {
        VolumeServerHealth { address: address.into(), source: "http".into(), ..VolumeServerHealth::default() }
    }

    fn slow(at: f64, server: &str, seconds: f64, error: Option<&str>) -> AnsweredRead {
        let step = ReadStep {
            step: "request".into(),
            server: Some(server.into()),
            source: Some("http".into()),
            begun: 0.0,
            seconds,
            first_byte: None,
            error: None,
            note: None,
        };
        AnsweredRead {
            at,
            path: "/file".into(),
            offset: 0,
            len: 1,
            caller: 1,
            caller_name: "cat".into(),
            seconds,
            error: error.map(Into::into),
            steps: vec![step],
        }
    }

    /// The severity and the sentence after `change`.
    fn verdict(change: impl FnOnce(&mut StatusReport)) -> (Severity, String) {
        let mut report = healthy();
        change(&mut report);
        let Verdict { severity, text, .. } = verdict_at(&report, NOW);
        (severity, text)
    }

    #[test]
    fn a_healthy_mount_says_how_much_comes_from_memory() {
        let ratio =
            |ratio| move |report: &mut StatusReport| report.hit_ratios.get_mut("1m").unwrap().overall = ratio;
        assert_eq!(verdict(ratio(Some(0.923))), (Severity::Good, "Serving 92 % from memory".into()));
        let idle = verdict(|report| report.hit_ratios.clear());
        assert_eq!(idle, (Severity::Good, "No read came to the daemon in the last minute".into()));
    }

    #[test]
    fn the_worst_finding_is_in_the_sentence() {
        let (severity, text) = verdict(|report| {
            let slow = VolumeServerHealth { is_silent: true, ..server("slow:1") };
            let hung =
                VolumeServerHealth { is_silent: true, keeps_readers_waiting: true, ..server("hung:1") };
            report.health.volume_servers = vec![slow, hung, server("good:1")];
            report.subscription.live = false;
        });
        assert_eq!(severity, Severity::Bad);
        assert_eq!(text, "Readers wait or fail; volume server hung:1 keeps readers waiting, and 2 more");
    }

    #[test]
    fn an_engine_that_hangs_is_named_rather_than_its_server() {
        let engine = EngineHealth {
            address: "e:1".into(),
            state: EngineState::Connected,
            source: Some("tcp".into()),
            distrust: None,
            last_error: None,
        };
        let of = |address, is_silent| VolumeServerHealth {
            is_silent,
            keeps_readers_waiting: is_silent,
            engine: Some(engine.clone()),
            ..server(address)
        };
        let (_, text) = verdict(|report| report.health.volume_servers = vec![of("a:1", true)]);
        assert!(text.ends_with("; engine e:1 beside volume server a:1 keeps readers waiting"), "{text}");
        // One engine of two servers is one finding.
        let (_, text) = verdict(|report| {
            report.health.volume_servers = ["a:1", "b:1"].map(|address| of(address, false)).into();
            for server in &mut report.health.volume_servers {
                server.engine.as_mut().unwrap().state = EngineState::Lost;
            }
        });
        let (_, one_of_two) = verdict(|report| {
            report.health.volume_servers = ["a:1", "b:1"].map(|address| of(address, false)).into();
            report.health.volume_servers[1].engine.as_mut().unwrap().state = EngineState::Lost;
        });
        assert!(one_of_two.ends_with("engine e:1 beside volume server b:1 is lost"), "{one_of_two}");
        assert!(text.ends_with("; engine e:1 beside 2 volume servers is lost"), "{text}");
    }

    #[test]
    fn slow_reads_name_the_server_that_took_the_most_time() {
        let (severity, text) = verdict(|report| {
            report.slow_reads = vec![
                slow(NOW - 1.0, "b:1", 2.0, None),
                slow(NOW - 2.0, "a:1", 1.5, None),
                slow(NOW - 61.0, "a:1", 9.0, Some("long ago")),
            ];
        });
        assert_eq!(severity, Severity::Degraded);
        assert!(text.ends_with("2 reads were slow in the last minute, most of that at b:1"), "{text}");
        let (_, text) = verdict(|report| {
            let mut read = slow(NOW, "a:1", 1.0, None);
            read.steps.push(ReadStep { step: "connect".into(), ..read.steps[0].clone() });
            report.slow_reads = vec![read, slow(NOW, "b:1", 1.5, None)];
        });
        assert!(text.ends_with("most of that at b:1"), "connecting is a part of the request: {text}");
        let (_, text) = verdict(|report| report.slow_reads = vec![slow(NOW, "a:1", 2.0, None); MAX_KEPT]);
        assert!(text.contains("32 reads or more were slow"), "{text}");
        let (severity, text) = verdict(|report| {
            report.failed_reads = [("1m".to_owned(), 3)].into();
            report.slow_reads = vec![slow(NOW, "a:1", 6.0, Some("EIO"))];
        });
        assert_eq!(severity, Severity::Bad);
        assert_eq!(text, "Readers wait or fail; 3 reads failed in the last minute, and 1 more");
    }

    #[test]
    fn a_server_much_slower_than_the_others_is_named() {
        let slow = VolumeServerHealth {
            latency: Some(RecentLatency { requests: 20, p50_seconds: 0.002, p99_seconds: 0.3 }),
            slow: Some(Slowness { p50_seconds: 0.2, usual_p50_seconds: 0.002 }),
            ..server("b:1")
        };
        let mut report = healthy();
        report.health.volume_servers = vec![server("a:1"), slow];
        let Verdict { severity, text, findings } = verdict_at(&report, NOW);
        assert_eq!(severity, Severity::Degraded);
        assert!(text.ends_with("; volume server b:1 is slow: p99 300ms"), "{text}");
        let advice = &findings[0].advice;
        assert!(
            advice.starts_with("Half of its answers take 200ms or more to begin, those of others 2.0ms;")
        );
    }

    #[test]
    fn each_trouble_has_its_finding() {
        let engine = |state| EngineHealth {
            address: "e:1".into(),
            state,
            source: None,
            distrust: None,
            last_error: None,
        };
        let with_engine = |state| {
            move |report: &mut StatusReport| {
                report.health.volume_servers =
                    vec![VolumeServerHealth { engine: Some(engine(state)), ..server("a:1") }];
            }
        };
        assert!(
            verdict(with_engine(EngineState::Lost)).1.contains("engine e:1 beside volume server a:1 is lost")
        );
        let unproved = verdict(with_engine(EngineState::Unproved)).1;
        assert!(unproved.contains("engine e:1 beside volume server a:1 is there and not used"), "{unproved}");
        for state in [EngineState::Absent, EngineState::Connected] {
            assert_eq!(verdict(with_engine(state)).0, Severity::Good);
        }
        let filer = |is_current, is_silent| FilerHealth {
            address: "f:1".into(),
            is_current,
            is_silent,
            last_error: None,
        };
        let no_filer = verdict(|report| report.health.filers = vec![filer(true, true)]);
        assert_eq!((no_filer.0, no_filer.1.contains("no filer answers")), (Severity::Bad, true));
        let one_filer = verdict(|report| report.health.filers = vec![filer(true, false), filer(false, true)]);
        assert_eq!((one_filer.0, one_filer.1.contains("filer f:1 is silent")), (Severity::Degraded, true));
        let stuck = WaitingReads { count: 1, oldest_seconds: 12.3, oldest_path: Some("/x".into()) };
        let (severity, text) = verdict(|report| report.waiting_reads = stuck);
        assert!(severity == Severity::Bad && text.contains("a read of /x has waited for 12 s"), "{text}");
        let old = verdict(|report| report.integrity_failures = [("http".to_owned(), 3)].into());
        assert_eq!(old.0, Severity::Good, "it was long ago");
        let damaged = verdict(|report| report.damaged_fetches = [("10m".to_owned(), 3)].into());
        assert!(damaged.1.contains("3 fetches were refused as damaged"), "{}", damaged.1);
    }

    #[test]
    fn a_larger_cache_is_recommended_where_it_brings_much() {
        let gib = 1u64 << 30;
        let with_curve = |misses: [f64; 2], sampled_reads| {
            move |report: &mut StatusReport| {
                report.cache = Some(CacheUsage { capacity: gib, ..CacheUsage::default() });
                let points = [gib, 4 * gib].into_iter().zip(misses);
                let points = points.map(|(bytes, miss_ratio)| MissRatioPoint { bytes, miss_ratio }).collect();
                report.miss_ratio_curve = Some(MissRatioCurve { granule_bytes: 1, sampled_reads, points });
            }
        };
        let (severity, text) = verdict(with_curve([0.6, 0.1], 5000));
        assert_eq!(severity, Severity::Degraded);
        assert!(text.contains("4 GiB would serve 90 % from memory"), "{text}");
        let (_, text) = verdict(|report| {
            with_curve([0.6, 0.1], 5000)(report);
            report.cache.as_mut().unwrap().withheld = gib / 2;
        });
        assert!(text.ends_with("; memory is short: 512 MiB of the cache are given back"), "{text}");
        assert_eq!(verdict(with_curve([0.6, 0.5], 5000)).0, Severity::Good, "it would bring little");
        let (severity, text) = verdict(|report| {
            with_curve([0.6, 0.1], 5000)(report);
            report.hit_ratios.get_mut("10m").unwrap().overall = Some(0.95);
        });
        assert_eq!(severity, Severity::Good, "the page cache has it: {text}");
        assert_eq!(verdict(with_curve([0.6, 0.1], 10)).0, Severity::Good, "too few reads are known");
    }
}
