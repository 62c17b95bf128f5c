//! `interceptor observe`: what is read on any FUSE mount of this host, by which processes, and how
//! fast its daemon answers.
//!
//! Everything comes from the kernel; only our own daemons are asked, for names of files.
//! [`mounts`] lists the mounts, [`names`] finds the names of files, [`report`] computes figures
//! from two samples of the kernel's counters.

mod mounts;
mod names;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use daemon::logs::{self, LogFormat};
use daemon::{duration, output};

use super::options::POLL_INTERVAL_RANGE;
use super::signals::Signals;
use crate::ebpf::{Observer, ObserverSettings};
use mounts::FuseMount;
use names::DaemonNames;
use report::{KernelSample, MountReport};

/// Shows what is read on FUSE mounts, whosever they are.
#[derive(Debug, Clone, Args)]
pub(super) struct ObserveOptions {
    /// Mount points to watch; every FUSE mount of this host if none is named
    #[arg(value_name = "MOUNTPOINT")]
    mountpoints: Vec<PathBuf>,

    /// Print one JSON document a line, one for each mount and interval
    #[arg(long)]
    json: bool,

    /// End after this time; without it, at Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
    time: Option<Duration>,

    /// Print this often
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = |text: &str| duration::within(text, POLL_INTERVAL_RANGE))]
    interval: Duration,
}

/// Watches and prints until the time is over.
pub(super) fn run(options: &ObserveOptions) -> anyhow::Result<()> {
    logs::start(LogFormat::Human, logs::filter(None)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(observe(options));
    // A thread may still wait until standard output is drained.
    runtime.shutdown_background();
    outcome
}

async fn observe(options: &ObserveOptions) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot catch signals")?;
    let mounts = mounts::find(&options.mountpoints)?;
    // The kernel's counters and maps are enough; events are not received.
    let (observer, _) = Observer::start(&ObserverSettings::default())?;
    for probe in observer.probes().iter().filter(|probe| probe.attached_to.is_none()) {
        let reason = probe.reason.as_deref().unwrap_or("no reason");
        output::note(format_args!("not seen: {} ({reason})", probe.capability));
    }
    for mount in &mounts {
        observer.watch(mount.device)?;
    }
    let mut daemons: Vec<_> =
        mounts.iter().map(|mount| mount.is_ours.then(|| DaemonNames::of(mount))).collect();
    let end = options.time.map(|time| Instant::now() + time);
    let mut before = samples(&observer, &mounts)?;
    loop {
        let rest = end.map_or(options.interval, |end| end.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = tokio::time::sleep(options.interval.min(rest)) => {}
            _ = signals.next() => return Ok(()),
        }
        let now = samples(&observer, &mounts)?;
        let mut text = String::new();
        for (((mount, daemon), before), now) in mounts.iter().zip(&mut daemons).zip(&before).zip(&now) {
            text += &shown(&report::between(&observer, mount, before, now, daemon.as_mut())?, options.json)?;
        }
        // A pipe that is not drained must not keep a signal from ending this.
        tokio::select! {
            printed = tokio::task::spawn_blocking(move || output::print(text)) => printed??,
            _ = signals.next() => return Ok(()),
        }
        before = now;
        if end.is_some_and(|end| Instant::now() >= end) {
            return Ok(());
        }
    }
}

fn samples(observer: &Observer, mounts: &[FuseMount]) -> anyhow::Result<Vec<KernelSample>> {
    mounts.iter().map(|mount| KernelSample::at(observer, mount.device)).collect()
}

fn shown(report: &MountReport, json: bool) -> anyhow::Result<String> {
    Ok(if json { format!("{}\n", serde_json::to_string(report)?) } else { format!("{report}\n") })
}
