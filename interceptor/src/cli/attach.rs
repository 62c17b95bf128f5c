//! `interceptor attach`: mounts a layer, keeps it running, and removes it on every way out.
//!
//! The process that the user starts only supervises; a child serves (see
//! [`crate::fuse::supervisor`]). When the layer answers, `attached PATH` is printed. A first
//! signal detaches: open files are served until they are closed or `--grace` is over; a second
//! signal ends that wait. The same grace begins if another process unmounts the layer, above all a
//! successor started with `--restart`; the status API then makes room for the successor's.

mod status_api;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, Args, ValueEnum, ValueHint};
use daemon::address::StatusAddress;
use daemon::size::ByteSize;
use daemon::{duration, logs, output, service};

use self::status_api::StatusApi;
use super::options::{
    ConfigurationOptions, FetchOptions, Filers, LogOptions, OptionError, StatusAccessOptions, filer_path,
};
use super::reload::Reloadable;
use super::signals::Signals;
use super::status_place::StatusPlace;
use super::{CommandFailure, host, kernel_watcher, mount, mount_address, mounts_api};
use crate::fuse::supervisor::{Supervision, SupervisorLink, supervise};
use crate::overlay::{self, Cluster, Overlay, OverlayOptions, ReadSource};
use crate::seaweed::address::ServerAddress;
use crate::seaweed::permissions::PermissionRules;
use crate::seaweed::security::Security;
use crate::telemetry::status::MountIdentity;
use crate::telemetry::{Metrics, Status, peer};
use crate::vital::{self, VitalPartFailed};
use crate::warmup::{self, JobRegistry, WarmupMount};

/// Mounts a layer over an existing mount, and unmounts it on a signal.
#[derive(Debug, Clone, Args)]
pub(super) struct AttachOptions {
    /// The mount point of a mount that exists
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    path: PathBuf,

    /// How it is configured.
    #[command(flatten)]
    configuration: ConfigurationOptions,

    /// Filers of the cluster that is mounted; files are then read from the cluster itself where
    /// that is certain to be the same
    #[arg(long, value_name = "HOST:PORT[,…]", value_parser = Filers::from_str)]
    filer: Option<Filers>,

    /// The filer's directory that is mounted [default: what the mount says of itself, else /]
    #[arg(long, value_name = "PATH", requires = "filer", value_parser = filer_path)]
    filer_path: Option<String>,

    /// Whether what was read is kept in memory; off: every read goes to the mount below. auto: not
    /// for file systems of local disks, whose files the kernel keeps in memory as well
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    read_cache: ReadCache,

    /// Take over from an `interceptor attach` that is there, with this program and these options:
    /// no open or read fails, and files that are open are served by the old one for its --grace.
    /// Takes Linux 6.5
    #[arg(long)]
    restart: bool,

    /// How long files that are open when the layer is taken away are still served
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    grace: Duration,

    /// Threads that answer the kernel; each can wait for the mount below [default: two for each
    /// CPU, from 16 to 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// How far the kernel reads ahead of a sequential reader, in KiB; 0 for not at all
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=65536))]
    readahead_kb: u32,

    /// Keep the CPUs from deep sleep while a program makes small requests one after another;
    /// without it each of them waits for CPUs to wake up. --no-keep-awake turns it off [default:
    /// true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    keep_awake: bool,

    /// Watch with eBPF what the kernel reads; without it the daemon does not know what is hot in
    /// the page cache. --no-ebpf turns it off [default: true]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, default_value = "true", hide_default_value = true)]
    ebpf: bool,

    /// Where the status API listens, `none` for nowhere; port 0 takes a free port, and so does the
    /// default if another program has its port
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9650", value_parser = StatusAddress::from_str)]
    status_addr: StatusAddress,

    /// Whether that address is the default, not one that was asked for.
    #[arg(skip)]
    pub(super) is_default_status_addr: bool,

    /// Who may read the status API.
    #[command(flatten)]
    status_access: StatusAccessOptions,

    /// How content is fetched and kept.
    #[command(flatten)]
    fetch: FetchOptions,

    /// How to log.
    #[command(flatten)]
    log: LogOptions,
}

/// When what was read is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReadCache {
    /// Where that is of use.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl AttachOptions {
    fn threads(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from);
        self.threads.map_or_else(|| (2 * cpus()).clamp(16, 64), usize::from)
    }

    fn filers(&self) -> &[ServerAddress] {
        self.filer.as_ref().map_or(&[], |Filers(addresses)| addresses)
    }

    fn overlay(&self) -> OverlayOptions {
        OverlayOptions {
            path: self.path.clone(),
            restart: self.restart,
            threads: self.threads(),
            read_ahead_kib: self.readahead_kb,
            keep_awake: self.keep_awake,
        }
    }

    /// Whether the options fit together. Returns how much memory the cache may take.
    pub(super) fn check(&self) -> Result<ByteSize, OptionError> {
        let cache_size = self.fetch.cache_size()?;
        if self.read_cache == ReadCache::Off && self.filer.is_some() {
            return Err(OptionError::UselessFiler);
        }
        self.fetch.check_disk_cache()?;
        if self.fetch.disk_cache.is_some() && self.filer.is_none() {
            return Err(OptionError::DiskCacheWithoutFiler);
        }
        self.status_access.check()?;
        Ok(cache_size)
    }

    /// Reads the files with keys, certificates and tokens, to see whether they can be used.
    pub(super) fn check_secrets(&self) -> anyhow::Result<()> {
        self.status_access.load()?;
        if !self.filers().is_empty() {
            mount::security(&self.fetch)?;
        }
        Ok(())
    }
}

/// Attaches with a cache of `cache_size`, and returns when the layer is gone.
///
/// # Safety
/// The process must have no other thread.
pub(super) unsafe fn run(
    options: &AttachOptions,
    cache_size: ByteSize,
    in_effect: BTreeMap<String, String>,
) -> Result<ExitCode, CommandFailure> {
    let filter = logs::filter(options.log.log_level.as_deref()).map_err(CommandFailure::usage)?;
    logs::start_without_thread(options.log.log_format, filter);
    let how = Supervision {
        replaces: Some(overlay::FS_TYPE),
        own_group: true,
        fixed: None,
        begin_worker: &|| logs::start_thread(options.log.log_format),
        on_serving: &mut || Ok(()),
    };
    let serve = |supervisor| match serve(options, cache_size, in_effect, Arc::new(supervisor)) {
        Ok(()) => 0,
        Err(error) => {
            output::error(format_args!("{error:#}"));
            1
        }
    };
    // SAFETY: the caller promises what is asked for, and nothing since has started a thread.
    let supervised = unsafe { supervise(how, serve) };
    Ok(supervised.context("cannot watch over the process that serves")?)
}

fn serve(
    options: &AttachOptions,
    cache_size: ByteSize,
    in_effect: BTreeMap<String, String>,
    supervisor: Arc<SupervisorLink>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("interceptor-io")
        .build()
        .context("cannot start threads")?;
    let outcome = runtime.block_on(attach(options, cache_size, in_effect, supervisor));
    runtime.shutdown_background();
    outcome
}

async fn attach(
    options: &AttachOptions,
    cache_size: ByteSize,
    in_effect: BTreeMap<String, String>,
    supervisor: Arc<SupervisorLink>,
) -> anyhow::Result<()> {
    let mut signals = Signals::of_watched_daemon().context("cannot catch signals")?;
    let metrics = Metrics::new();
    let identity = MountIdentity {
        mount_point: super::shown_path(&options.path).display().to_string(),
        filers: options.filers().iter().map(ToString::to_string).collect(),
        filer_path: options.filer_path.clone().unwrap_or_default(),
        options: in_effect,
    };
    let status = Status::new(identity, metrics.clone());
    options.log.begin_reports(&status)?;
    tokio::spawn(vital::task("windows of the hit ratio", mount::keep_windows(metrics.clone())));
    if options.keep_awake {
        host::go_without(&host::waking_up(), &status);
    }
    // Takes a while, which the layer need not wait for.
    let programs = options.ebpf.then(kernel_watcher::load);
    let jobs = JobRegistry::new();
    let routes = warmup::api::router(jobs.clone()).merge(mounts_api::router(&options.status_access));
    let api_secrets = options.status_access.load()?;
    let security = match options.filers() {
        [] => None,
        _ => Some(Arc::new(mount::security(&options.fetch)?)),
    };
    let reloadable = Reloadable {
        security: security.clone(),
        security_file: options.fetch.security.clone(),
        api: api_secrets.clone(),
        api_files: options.status_access.clone(),
        command_line: None,
    };
    mount::reload_on_hangup(&mut signals, reloadable, &supervisor);
    let place = StatusPlace {
        address: options.status_addr.clone(),
        is_default: options.is_default_status_addr,
        takes_over: options.restart,
        predecessor: if options.restart { predecessor_api(&options.path).await } else { None },
    };
    let mut api = StatusApi::offer(place, api_secrets, &status, &routes).await?;
    let reads = match options.filers() {
        [] if options.read_cache == ReadCache::Off => ReadSource::Lower,
        [] => {
            let (always, metrics) = (options.read_cache == ReadCache::On, metrics.clone());
            let prefault = options.fetch.cache_prefault;
            let cache = Box::new(move || mount::cache(cache_size, prefault, &metrics));
            ReadSource::LowerCache { always, cache }
        }
        filers => tokio::select! {
            cluster = cluster(options, filers, security.unwrap_or_default(), cache_size, &status) => ReadSource::Cluster(cluster?),
            signal = signals.next() => {
                tracing::info!(signal, "stopped before attaching");
                return Ok(());
            }
        },
    };
    // Not to be given up half-way, or the layer would be left behind; its steps have deadlines.
    let attached = Arc::new(Overlay::start(options.overlay(), reads, metrics.clone(), supervisor).await?);
    let (known, live) = (Arc::downgrade(&attached), Arc::downgrade(&attached));
    metrics.set_nodes(Box::new(move || known.upgrade().map_or(0, |attached| attached.inode_count() as u64)));
    // Without a filer there is no subscription.
    if !options.filers().is_empty() {
        let is_live = move || live.upgrade().is_some_and(|attached| attached.is_live());
        metrics.set_subscription_live(Box::new(is_live));
    }
    // Dropped at the end, whichever that is.
    let _watcher = kernel_watcher::watch(programs, &attached, attached.reader().cloned(), &status).await;
    status.add_check("mount", mount::health::mount_answers(attached.path()));
    take_requests(&jobs, &attached);
    announce(&attached);
    api.take_over(&status, &routes).await;
    // What hangs below must not end the layer: the daemon itself is what is watched.
    mount::watch_over(Box::new(|| Box::pin(std::future::ready(Ok(())))));
    if let Some(address) = api.address() {
        attached.set_status_api(peer::reachable(address));
        output::announce(format_args!("status http://{address}/"));
    }
    let end = tokio::select! {
        biased;
        signal = signals.next() => {
            tracing::info!(signal, "detaching");
            None
        }
        () = attached.removed() => {
            tracing::info!("the layer was taken away; what is open is still served");
            api.stop();
            None
        }
        name = vital::failed() => {
            attached.detach(options.grace).await;
            return Err(VitalPartFailed(name).into());
        }
        end = attached.wait() => Some(end),
    };
    tokio::select! {
        // After an abort the layer is still there, and dead.
        () = attached.detach(options.grace) => {}
        signal = signals.next() => tracing::warn!(signal, "not waiting for open files"),
    }
    if let Some(end) = end {
        end.outcome()?;
        tracing::info!("unmounted by somebody else");
    }
    Ok(())
}

/// Where the daemon that is to be taken over has its status API, if it tells.
async fn predecessor_api(path: &Path) -> Option<SocketAddr> {
    let path = path.to_owned();
    let asked = move || mount_address::address_in_time(&mount_address::mount_at(&path).ok()?).ok();
    tokio::task::spawn_blocking(asked).await.ok()??.parse().ok()
}

async fn cluster(
    options: &AttachOptions,
    filers: &[ServerAddress],
    security: Arc<Security>,
    cache_size: ByteSize,
    status: &Arc<Status>,
) -> anyhow::Result<Cluster> {
    let filer = mount::connect(filers.to_vec(), &security, PermissionRules::default()).await?;
    let reader = mount::reader(&options.fetch, cache_size, &filer, security, status)?;
    let filers = filer.clone();
    status.set_filers(Box::new(move || filers.health()));
    let status = status.clone();
    let observe_notices = Box::new(move |heard| mount::noted(heard, status));
    Ok(Cluster { filer, filer_path: options.filer_path.clone(), reader, observe_notices })
}

/// Makes `jobs` take requests about files of the layer, if any can be served. Holds no strong
/// reference to the layer.
fn take_requests(jobs: &JobRegistry, attached: &Arc<Overlay>) {
    let Some(reader) = attached.reader().cloned() else { return };
    let known = Arc::downgrade(attached);
    let file = Box::new(move |file| known.upgrade()?.warmup_target(file));
    let tickets = attached.tickets().clone();
    jobs.set_mount(WarmupMount { device: attached.device().to_owned(), tickets, file, reader });
}

/// Reports that the layer answers: in the log, and on standard output for programs that wait for
/// the line.
fn announce(attached: &Overlay) {
    let (path, below) = (attached.path().display(), attached.lower());
    tracing::info!(below = below.source, fs_type = below.fs_type, "attached {path}");
    service::ready(&format!("attached {path}"));
    output::announce(format_args!("attached {path}"));
}
