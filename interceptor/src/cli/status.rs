//! `interceptor status`: asks the daemon's status API once and prints the answer: [`summary`] is a
//! screenful, [`details`] what `--all` adds.

mod details;
mod lines;
mod summary;

use clap::Args;
use daemon::output;

use super::http::StatusClient;
use crate::telemetry::report;
use summary::Summary;

/// Prints what a running mount says of itself.
#[derive(Debug, Clone, Args)]
pub(super) struct StatusOptions {
    /// Which daemon.
    #[command(flatten)]
    pub(super) daemon: StatusClient,

    /// Print details too: every server, remedies, memory, and what eBPF sees
    #[arg(long, conflicts_with = "json")]
    pub(super) all: bool,

    /// Print the daemon's JSON as it is
    #[arg(long)]
    pub(super) json: bool,

    /// Print the schema of that JSON; asks no daemon
    #[arg(long, conflicts_with_all = ["json", "all"])]
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
    let dashboard = daemon.dashboard()?;
    Ok(output::print(Summary { report: &report, dashboard: &dashboard, readiness, shows_all: options.all })?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::access::ApiSecrets;
    use crate::telemetry::health::{EngineHealth, EngineState, RecentLatency, Slowness, VolumeServerHealth};
    use crate::telemetry::report::{LostAbility, Verdict};
    use crate::telemetry::server::StatusServer;
    use crate::telemetry::status::MountIdentity;
    use crate::telemetry::{
        CacheUsage, CapabilityReport, DiskCacheUsage, KernelCounts, KernelReads, Metrics, Source, Status,
    };

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
            (daemon.dashboard().unwrap(), daemon.report().unwrap(), daemon.get("/readyz").unwrap())
        });
        let (dashboard, report, ready) = asked.await.unwrap();
        assert_eq!(ready.code, 503);
        let readiness = Some("mount: hangs");
        let mut text =
            Summary { report: &report, dashboard: &dashboard, readiness, shows_all: false }.to_string();
        assert!(!text.contains("eBPF") && !text.contains("verbs"), "{text}");
        let details =
            Summary { report: &report, dashboard: &dashboard, readiness, shows_all: true }.to_string();
        text += details.strip_prefix(&text).expect("details come below the rest");
        assert!(text.contains(&format!(", {dashboard}\n")), "{text}");
        for part in [
            "verdict       DEGRADED: Serving",
            "not ready     mount: hangs",
            "/mnt/data of no filer, /x",
            "a:8888, b:8888",
            "NOT heard",
            "hit ratio     1m  57.1 %  (page cache 80 %, resident -, cache 0 %)",
            "read waits    1m  p50 2.1 ms, p99 2.1 ms of 1 reads",
            "saved         7 MiB that no server was asked for",
            "page cache   4 MiB      -       -       -",
            "http         3 MiB      1  2.1 ms  2.1 ms",
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
        let text = Summary { report: &status.report(), dashboard: "", readiness: None, shows_all: false }
            .to_string();
        assert!(!text.contains("NOT heard") && text.contains("of the mount below"), "{text}");
    }

    #[test]
    fn a_healthy_mount_takes_a_screen() {
        let status = Status::new(identity(), Metrics::new());
        for source in Source::ALL {
            status.metrics().read(source, 3 << 30, Duration::from_millis(2));
            status.metrics().fetch(source, 3 << 30, Duration::from_millis(2));
        }
        let mut report = status.report();
        report.verdict = Verdict { text: "Serving 92 % from memory".into(), ..Verdict::default() };
        (report.cache, report.disk_cache) = (Some(CacheUsage::default()), Some(DiskCacheUsage::default()));
        let lost = LostAbility {
            ability: "passthrough reads".into(),
            reason: "the kernel refuses the program, as it is locked down, which hides these reads".into(),
            remedy: "boot it otherwise".into(),
        };
        report.lost = vec![lost];
        report.health.volume_servers = (0..9).map(volume_server).collect();
        let text = Summary {
            report: &report,
            dashboard: "http://127.0.0.1:9650/",
            readiness: None,
            shows_all: false,
        }
        .to_string();
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 80, "{widest} columns:\n{text}");
        assert!(text.contains("and 12 more: --all"), "{text}");
        let first = text.lines().find(|line| line.starts_with("volume server")).unwrap();
        assert!(first.contains("10.0.0.1:8080") && first.contains("SLOW, by verbs"), "{text}");
        let all = Summary {
            report: &report,
            dashboard: "http://127.0.0.1:9650/",
            readiness: None,
            shows_all: true,
        }
        .to_string();
        let healthy = text.lines().count() - 5;
        assert!(healthy <= 24, "{healthy} lines with one volume server and its engine:\n{text}");
        assert!(all.contains("10.0.0.8:8080") && all.contains("boot it otherwise"), "{all}");
    }

    fn volume_server(number: u8) -> VolumeServerHealth {
        VolumeServerHealth {
            address: format!("10.0.0.{number}:8080"),
            source: "verbs".into(),
            is_silent: false,
            keeps_readers_waiting: false,
            requests: 3,
            waiting: 0,
            latency: Some(RecentLatency { requests: 384, p50_seconds: 0.012, p99_seconds: 0.04 }),
            slow: (number == 1).then_some(Slowness { p50_seconds: 0.04, usual_p50_seconds: 0.001 }),
            last_error: None,
            engine: Some(EngineHealth {
                address: format!("10.0.0.{number}:18515"),
                state: EngineState::Connected,
                source: Some("verbs".into()),
                distrust: None,
                last_error: None,
            }),
        }
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_option() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let daemon = StatusClient::at(closed);
        let error = run(&StatusOptions { daemon, all: false, json: false, schema: false }).unwrap_err();
        assert!(error.to_string().contains("--status-addr"), "{error}");
    }
}
