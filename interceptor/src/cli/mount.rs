//! `interceptor mount`: puts the parts together, keeps them running, and unmounts on every way
//! out (a mount that another one covers stays).
//!
//! The process that the user starts only supervises; a child serves, and another one in its stead
//! if it dies (see [`crate::fuse::supervisor`]).
//!
//! First come the checks that can fail: options, the status API's address, keys, filers and the
//! directory to mount. Then the mount answers, `mounted MOUNTPOINT` is printed, and the process
//! waits for a signal or for an `umount` by another process. A first signal unmounts, giving open
//! files [`OPEN_FILES_GRACE`]; a second one ends that wait. A panic of this thread unwinds through
//! the mount, which unmounts it too, as does one of a thread or task that the mount [cannot do
//! without](crate::vital).

pub(super) mod disk;
pub(super) mod health;
mod memory_pressure;
mod slow_servers;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::logs::{self, LogFormat};
use daemon::size::ByteSize;
use daemon::{output, service};
use nix::mount::MsFlags;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::host::{self, go_without};
use super::http;
use super::options::{
    CachePrefault, FetchOptions, MountBehaviour, MountOptions, OptionError, VolumeServerAccess,
};
use super::reload::{Reloadable, RunningCommandLine};
use super::signals::Signals;
use super::status_place::{PlacedStatus, StatusPlace};
use super::{kernel_watcher, mount_address, mounts_api};
use crate::cache::arena::ArenaError;
use crate::cache::{Cache, Prefault};
use crate::fetch::{self, Fetcher, VolumeServerRoute};
use crate::fuse::handover::{self, FixedOptions};
use crate::fuse::supervisor::{Supervision, SupervisorLink, supervise};
use crate::mount::{self, Mount, PassthroughUnavailable};
use crate::read::{ClusterOrigin, Reader};
use crate::seaweed::address::ServerAddress;
use crate::seaweed::filer::FilerClient;
use crate::seaweed::permissions::PermissionRules;
use crate::seaweed::security::Security;
use crate::seaweed::subscribe::{Notice, subscribe};
use crate::telemetry::access::ApiSecrets;
use crate::telemetry::server::StatusServer;
use crate::telemetry::status::{MountIdentity, ReadinessCheck};
use crate::telemetry::{Metrics, Status, peer, window};
use crate::vital;
use crate::warmup::{self, JobRegistry};

/// How long files that are open when the mount is taken away can still be read.
const OPEN_FILES_GRACE: Duration = Duration::from_secs(5);

/// The exit code of a process that cannot go on; its supervisor starts another one.
const VITAL_PART_FAILED: i32 = 3;

/// Changes of the filer that may wait to be handled before its stream is slowed down.
const NOTICE_CAPACITY: usize = 1024;

/// What a mount in the background does when it answers. An error ends the mount.
type OnMounted = Box<dyn FnOnce() -> anyhow::Result<()>>;

/// Keys, certificates and tokens.
struct Secrets {
    security: Security,
    api: ApiSecrets,
}

impl Secrets {
    fn load(options: &MountOptions) -> anyhow::Result<Self> {
        Ok(Self { security: security(&options.fetch)?, api: options.status_access.load()? })
    }
}

/// Options that have been found to be possible.
pub(super) struct MountPlan {
    options: MountOptions,
    filers: Vec<ServerAddress>,
    cache_size: ByteSize,
    identity: MountIdentity,
    /// The command line, for what is read anew.
    typed: Vec<OsString>,
    secrets: Option<Secrets>,
    /// In the place of lines on standard output.
    on_mounted: Option<OnMounted>,
}

impl MountPlan {
    /// Checks everything that needs no other host. `in_effect` is for the status API.
    pub(super) fn new(
        options: MountOptions,
        in_effect: BTreeMap<String, String>,
        typed: Vec<OsString>,
    ) -> Result<Self, OptionError> {
        let filers = options.filers()?;
        let cache_size = options.cache_size()?;
        options.fetch.check_disk_cache()?;
        options.status_access.check()?;
        let identity = MountIdentity {
            mount_point: super::shown_path(&options.mountpoint).display().to_string(),
            filers: filers.iter().map(ToString::to_string).collect(),
            filer_path: options.filer_path.clone(),
            options: in_effect,
        };
        Ok(Self { options, filers, cache_size, identity, typed, secrets: None, on_mounted: None })
    }

    /// Reads keys, certificates and tokens. A process that takes over later has these, if its own
    /// attempt fails.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(super) fn load_secrets(&mut self) -> anyhow::Result<()> {
        self.secrets = Some(Secrets::load(&self.options)?);
        Ok(())
    }

    /// The plan of a mount that calls `on_mounted` when it answers, and prints nothing.
    pub(super) fn in_background(self, on_mounted: OnMounted) -> Self {
        Self { on_mounted: Some(on_mounted), ..self }
    }

    /// What a restart cannot change.
    fn fixed(&self) -> FixedOptions {
        let (options, behaviour) = (&self.options, &self.options.mount);
        let shown = |is_on: bool| if is_on { "on" } else { "off" }.to_owned();
        // Nodes keep their attributes, and so does the kernel.
        let rules = permissions(behaviour);
        let values = [
            ("--filer-path", options.filer_path.clone()),
            ("--allow-other", shown(options.allow_other())),
            ("--noexec", shown(behaviour.noexec)),
            ("--nosymfollow", shown(behaviour.nosymfollow)),
            ("--map-uid", format!("\"{}\"", rules.users)),
            ("--map-gid", format!("\"{}\"", rules.groups)),
            ("--uid", shown_or_unset(rules.uid)),
            ("--gid", shown_or_unset(rules.gid)),
            ("--file-mode", shown_or_unset(rules.file_mode)),
            ("--dir-mode", shown_or_unset(rules.dir_mode)),
            ("--umask", rules.umask.to_string()),
        ];
        let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        FixedOptions { values, filers: self.identity.filers.clone() }
    }

    /// Whether a mount that is there is to be taken over by this program with these options.
    pub(super) fn is_restart(&self) -> bool {
        self.options.restart && !handover::is_continued()
    }

    /// Has the mount that is there taken over, and returns when it answers.
    ///
    /// # Errors
    /// When there is none, or it goes on as it was.
    pub(super) fn restart(&self, arguments: &[OsString]) -> anyhow::Result<()> {
        let at = mount_address::mount_at(&self.options.mountpoint).context("leave out --restart")?;
        let shown = at.path.display();
        if let Some(name) = self.options.mount.fsname.as_ref().filter(|name| **name != at.source) {
            anyhow::bail!(
                "--restart cannot change --fsname, which is {} and would be {name}: unmount, then mount",
                at.source
            );
        }
        handover::request(&at, self.fixed(), arguments)
            .with_context(|| format!("{shown} goes on as it was"))?;
        output::print(format_args!("restarted {shown}\n"))?;
        Ok(())
    }

    pub(super) fn log_format(&self) -> LogFormat {
        self.options.log.log_format
    }
}

/// Runs a mount under a supervisor. Returns the exit code when the mount is gone; does not return
/// in the processes that serve, where `fail` tells of an error. Events are logged without a thread
/// so far.
///
/// # Safety
/// The process must have no other thread.
///
/// # Errors
/// When no process can be started.
pub(super) unsafe fn supervised(
    plan: MountPlan,
    own_group: bool,
    on_serving: &mut dyn FnMut() -> io::Result<()>,
    fail: impl FnOnce(&anyhow::Error),
) -> anyhow::Result<ExitCode> {
    let (format, fixed) = (plan.log_format(), Some(plan.fixed()));
    let how = Supervision {
        replaces: None,
        own_group,
        fixed,
        begin_worker: &|| logs::start_thread(format),
        on_serving,
    };
    let serve = |supervisor| match run(plan, supervisor) {
        Ok(()) => 0,
        Err(error) => {
            fail(&error);
            1
        }
    };
    // SAFETY: the caller promises what is asked for, and nothing since has started a thread.
    let supervised = unsafe { supervise(how, serve) };
    supervised.context("cannot watch over the process that serves")
}

/// Mounts, and returns when the mount is gone.
fn run(plan: MountPlan, supervisor: SupervisorLink) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("interceptor-io")
        .build()
        .context("cannot start threads")?;
    let outcome = runtime.block_on(serve(plan, Arc::new(supervisor)));
    // Unless a second signal cut the wait short, no reader waits for the tasks under way.
    runtime.shutdown_background();
    outcome
}

async fn serve(mut plan: MountPlan, supervisor: Arc<SupervisorLink>) -> anyhow::Result<()> {
    let mut signals = Signals::of_watched_daemon().context("cannot catch signals")?;
    let (takes_over, status_before) = (supervisor.has_kept(), supervisor.status_before());
    let metrics = Metrics::new();
    metrics.slow_reads().followers().set_root(&plan.options.filer_path);
    let status = Status::new(plan.identity.clone(), metrics.clone());
    plan.options.log.begin_reports(&status)?;
    tokio::spawn(vital::task("windows of the hit ratio", keep_windows(metrics.clone())));
    // Of these two the mount itself will tell.
    let mut left_out = vec![host::PASSTHROUGH, host::EBPF];
    if !plan.options.mount.keep_awake {
        left_out.push(host::AWAKE);
    }
    for finding in host::findings().iter().filter(|finding| !left_out.contains(&finding.ability)) {
        go_without(finding, &status);
    }
    // Takes a while, which the mount need not wait for.
    let programs = plan.options.mount.ebpf.then(kernel_watcher::load);
    let jobs = JobRegistry::new();
    let Secrets { security, api } = secrets(&mut plan, takes_over)?;
    let place = StatusPlace {
        address: plan.options.status_addr.clone(),
        is_default: plan.options.is_default_status_addr,
        takes_over,
        predecessor: status_before,
    };
    let serve_status = {
        let status = status.clone();
        let routes = warmup::api::router(jobs.clone()).merge(mounts_api::router(&plan.options.status_access));
        move |server: StatusServer| server.serve(status, routes)
    };
    // What files of the mount name; empty until it is known.
    let status_api = Arc::<OnceLock<SocketAddr>>::default();
    let serve_at = {
        let (status_api, supervisor) = (status_api.clone(), supervisor.clone());
        move |server: StatusServer| {
            let at = server.address();
            supervisor.status_at(at);
            let _ = status_api.set(peer::reachable(at));
            (at, serve_status(server))
        }
    };
    let status_at = match place.bind(api.clone()).await? {
        PlacedStatus::Nowhere => None,
        PlacedStatus::Bound(server) => {
            let (at, serving) = serve_at(server);
            tokio::spawn(vital::task("status API", serving));
            Some(at)
        }
        // A predecessor that is stuck has it until its mount answers.
        PlacedStatus::Awaited(awaited) => {
            let later = async move {
                match awaited.bind_when_free().await {
                    Ok(server) => serve_at(server).1.await,
                    Err(error) => tracing::error!("going without: {error}"),
                }
            };
            tokio::spawn(vital::task("status API", later));
            None
        }
    };
    let security = Arc::new(security);
    let reloadable = Reloadable {
        security: Some(security.clone()),
        security_file: plan.options.fetch.security.clone(),
        api,
        api_files: plan.options.status_access.clone(),
        command_line: Some(RunningCommandLine {
            typed: plan.typed.clone(),
            in_effect: plan.identity.options.clone(),
        }),
    };
    reload_on_hangup(&mut signals, reloadable, &supervisor);
    let filer = tokio::select! {
        connected = connect(plan.filers.clone(), &security, permissions(&plan.options.mount)) => connected?,
        signal = signals.next() => {
            tracing::info!(signal, "stopped before mounting");
            return Ok(());
        }
    };
    // Not to be given up half-way, or the mount would be left behind; its steps have deadlines.
    let (mount, reader) = mount(&plan, &filer, security, &status, status_api, &supervisor).await?;
    // Dropped at the end, whichever that is.
    let _watcher = kernel_watcher::watch(programs, &mount, Some(reader.clone()), &status).await;
    take_requests(&jobs, &mount, reader);
    health::watch(&status, &mount, &filer, &plan.options.mountpoint);
    let announced = match takes_over {
        true => {
            tracing::info!("took over the mount of a process that has died");
            service::ready(&format!("mounted {}", plan.identity.mount_point));
            Ok(())
        }
        false => restrict(&plan).and_then(|()| announce(&mut plan, &filer, status_at)),
    };
    if let Err(error) = announced.and_then(|()| Ok(supervisor.serving()?)) {
        mount.unmount(OPEN_FILES_GRACE).await?;
        return Err(error);
    }
    watch_over(health::mount_answers(&plan.options.mountpoint));

    tokio::select! {
        end = mount.wait() => {
            service::stopping();
            // After an abort the mount is still there, and dead.
            mount.unmount(OPEN_FILES_GRACE).await?;
            end.outcome()?;
            tracing::info!("unmounted by somebody else");
        }
        name = vital::failed() => {
            tracing::error!("`{name}` has panicked, without which this process cannot go on: please report it");
            output::flush();
            // The mount stays, for another process to take over.
            std::process::exit(VITAL_PART_FAILED);
        }
        signal = signals.next() => {
            tracing::info!(signal, "unmounting");
            service::stopping();
            tokio::select! {
                unmounted = mount.unmount(OPEN_FILES_GRACE) => unmounted?,
                signal = signals.next() => tracing::warn!(signal, "not waiting for open files"),
            }
        }
    }
    Ok(())
}

/// What was read before there was a process that serves, or, in one that takes over, what the files
/// say now if they can be used.
fn secrets(plan: &mut MountPlan, takes_over: bool) -> anyhow::Result<Secrets> {
    let known = plan.secrets.take();
    match (known, takes_over) {
        (Some(known), false) => Ok(known),
        (known, _) => match (Secrets::load(&plan.options), known) {
            (Err(error), Some(known)) => {
                tracing::warn!("{error:#}; going on with what was there when the mount was made");
                Ok(known)
            }
            (loaded, _) => loaded,
        },
    }
}

/// Reads anew what may change whenever SIGHUP comes.
pub(super) fn reload_on_hangup(
    signals: &mut Signals,
    reloadable: Reloadable,
    supervisor: &Arc<SupervisorLink>,
) {
    let (reloadable, supervisor) = (Arc::new(reloadable), supervisor.clone());
    signals.on_hangup(move || {
        let (reloadable, supervisor) = (reloadable.clone(), supervisor.clone());
        // It reads files.
        tokio::task::spawn_blocking(move || reloadable.reload(&supervisor));
    });
}

/// Connects to the filers. If that fails, the error says what answers there instead.
pub(super) async fn connect(
    filers: Vec<ServerAddress>,
    security: &Security,
    permissions: PermissionRules,
) -> anyhow::Result<FilerClient> {
    let addresses: Vec<_> = filers.iter().map(ToString::to_string).collect();
    let error = match FilerClient::connect_as(filers, security, permissions).await {
        Ok(filer) => return Ok(filer),
        Err(error) => error,
    };
    let others = tokio::task::spawn_blocking(move || {
        let what = |address: String| Some(format!("{address} is {}", http::identify_server(&address)?));
        addresses.into_iter().filter_map(what).collect::<Vec<_>>().join(", ")
    });
    match others.await {
        Ok(others) if !others.is_empty() => {
            Err(anyhow::anyhow!("{error} ({others}; --filer takes the HTTP port of a filer, usually 8888)"))
        }
        _ => Err(error.into()),
    }
}

pub(super) fn security(options: &FetchOptions) -> anyhow::Result<Security> {
    super::reload::load(options.security.as_ref())
}

fn shown_or_unset(value: Option<impl Display>) -> String {
    value.map_or_else(|| "unset".to_owned(), |value| value.to_string())
}

fn permissions(options: &MountBehaviour) -> PermissionRules {
    PermissionRules {
        users: options.map_uid.clone().unwrap_or_default(),
        groups: options.map_gid.clone().unwrap_or_default(),
        uid: options.uid,
        gid: options.gid,
        file_mode: options.file_mode,
        dir_mode: options.dir_mode,
        umask: options.umask,
    }
}

/// Makes the memory in which blocks are kept.
pub(super) fn cache(
    size: ByteSize,
    prefault: CachePrefault,
    metrics: &Metrics,
) -> Result<Arc<Cache>, ArenaError> {
    let cache = Arc::new(Cache::new(size.0)?);
    tracing::info!("cache of {size} in {}", cache.backing());
    health::watch_cache(metrics, &cache);
    memory_pressure::watch(&cache);
    let prefault = match prefault {
        CachePrefault::Auto => Some(Prefault::WhileSlow),
        CachePrefault::On => Some(Prefault::Always),
        CachePrefault::Off => None,
    };
    if let Some(Err(error)) = prefault.map(|prefault| cache.prefault(prefault)) {
        tracing::warn!(%error, "the cache's memory is not touched ahead of its use");
    }
    Ok(cache)
}

/// Builds the way of a byte, from the volume servers up.
pub(super) fn reader(
    options: &FetchOptions,
    cache_size: ByteSize,
    filer: &FilerClient,
    security: Arc<Security>,
    status: &Status,
) -> anyhow::Result<Arc<Reader>> {
    let metrics = status.metrics();
    let cache = cache(cache_size, options.cache_prefault, metrics)?;
    let disk = disk::tier(options, cache_size, filer, status);
    let engines = options.servers.engines(&security);
    if let Some(finding) = host::engine_proofs(&security).filter(|_| engines.discovers_remote()) {
        tracing::info!(remedy = finding.remedy, "{}: {}", finding.found, finding.lost);
    }
    let fetching = fetch::FetcherConfig {
        route: route(options.servers.volume_server_access, filer),
        data_center: options.data_center.clone(),
        retry_time: options.read_retry_time,
        requests_per_server: options.concurrent_readers.into(),
        engines: fetch::EngineConfig { memory: Some(cache.registrations().clone()), ..engines },
        ..fetch::FetcherConfig::default()
    };
    let fetcher = Fetcher::new(Arc::new(filer.clone()), security, metrics.clone(), fetching);
    metrics.set_volume_servers(Box::new(fetcher.health()));
    tokio::spawn(slow_servers::log_slow_servers(metrics.clone()));
    let cluster = Arc::new(ClusterOrigin::new(fetcher, filer.clone()));
    Ok(Reader::with_disk(cache, disk, cluster, metrics.clone(), Handle::current()))
}

/// Mounts on top of the way of a byte.
async fn mount(
    plan: &MountPlan,
    filer: &FilerClient,
    security: Arc<Security>,
    status: &Arc<Status>,
    status_api: Arc<OnceLock<SocketAddr>>,
    supervisor: &Arc<SupervisorLink>,
) -> anyhow::Result<(Arc<Mount>, Arc<Reader>)> {
    let options = &plan.options;
    let reader = reader(&options.fetch, plan.cache_size, filer, security, status)?;

    let (sender, heard) = mpsc::channel(NOTICE_CAPACITY);
    subscribe(filer.clone(), options.filer_path.clone(), sender);
    let mount_options = mount::MountOptions {
        mountpoint: options.mountpoint.clone(),
        filer_path: options.filer_path.clone(),
        allow_other: Some(options.allow_other()),
        nonempty: options.mount.nonempty,
        include_system_entries: options.mount.include_system_entries,
        threads: Some(options.threads()),
        read_ahead_kib: options.mount.readahead_kb,
        passthrough: options.mount.passthrough,
        placement: options.mount.placement,
        keep_awake: options.mount.keep_awake,
        status_api,
        source: options.mount.fsname.clone(),
    };
    let notices = noted(heard, status.clone());
    let supervisor = supervisor.clone();
    let mount = Mount::start(mount_options, filer.clone(), reader.clone(), notices, supervisor).await?;
    match mount.passthrough() {
        Ok(()) => tracing::info!("hot files are read by the kernel itself (passthrough)"),
        Err(reason @ PassthroughUnavailable::SwitchedOff) => {
            tracing::info!("hot files are served from the page cache of the mount: passthrough is {reason}");
        }
        Err(reason @ PassthroughUnavailable::NoFiles(_)) => {
            let remedy = "what the reason asks for: a larger --cache-size, more open files (ulimit -n), no pool of huge pages";
            go_without(&host::Finding { remedy, ..host::no_passthrough(reason.to_string()) }, status);
        }
        Err(reason) => go_without(&host::no_passthrough(reason.to_string()), status),
    }
    Ok((Arc::new(mount), reader))
}

/// From now on `jobs` takes requests about the mount's files. Does not keep the mount.
fn take_requests(jobs: &JobRegistry, mount: &Arc<Mount>, reader: Arc<Reader>) {
    let known = Arc::downgrade(mount);
    jobs.set_mount(warmup::WarmupMount {
        device: mount.device().to_owned(),
        tickets: mount.tickets().clone(),
        file: Box::new(move |file| Some(Arc::new(known.upgrade()?.version_of(file)?))),
        reader,
    });
}

/// How volume servers are reached, and by which filer if it is through one.
pub(super) fn route(access: VolumeServerAccess, filer: &FilerClient) -> VolumeServerRoute {
    match access {
        VolumeServerAccess::Direct => VolumeServerRoute::Direct,
        VolumeServerAccess::PublicUrl => VolumeServerRoute::PublicUrl,
        VolumeServerAccess::FilerProxy => {
            let filer = filer.clone();
            VolumeServerRoute::FilerProxy(Arc::new(move || filer.current().to_string()))
        }
    }
}

/// Passes on what the filer tells, and keeps account of it for the status API.
pub(super) fn noted(mut heard: mpsc::Receiver<Notice>, status: Arc<Status>) -> mpsc::Receiver<Notice> {
    let (sender, passed_on) = mpsc::channel(1);
    let passing_on = async move {
        while let Some(notice) = heard.recv().await {
            match &notice {
                Notice::Live => status.subscription_live(),
                Notice::Lost { reason } => status.subscription_lost(reason.clone()),
                Notice::Change(_) => status.change_handled(),
            }
            if sender.send(notice).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(vital::task("changes passed on", passing_on));
    passed_on
}

/// Takes from the mount what its options say: that programs can be run, or links be followed.
fn restrict(plan: &MountPlan) -> anyhow::Result<()> {
    let behaviour = &plan.options.mount;
    let mut taken = MsFlags::empty();
    taken.set(MsFlags::MS_NOEXEC, behaviour.noexec);
    taken.set(MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW), behaviour.nosymfollow);
    if taken.is_empty() {
        return Ok(());
    }
    // Those of the mount that are there would be lost if they were left out.
    let present = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | present | taken;
    let none = None::<&Path>;
    nix::mount::mount(none, &plan.options.mountpoint, none, flags, none)
        .context("cannot mount with noexec or nosymfollow, which takes root")
}

/// Tells the service manager as often as it asks for it that the daemon is `alive`. While the check
/// fails or hangs it hears nothing, and in the end starts the daemon anew.
pub(super) fn watch_over(alive: ReadinessCheck) {
    let Some(interval) = service::watchdog_interval() else { return };
    tokio::spawn(async move {
        // Several checks in each interval, so that a single slow one does no harm.
        let interval = interval / 4;
        loop {
            if matches!(tokio::time::timeout(interval, alive()).await, Ok(Ok(()))) {
                service::alive();
            }
            tokio::time::sleep(interval).await;
        }
    });
}

/// Reports that the mount answers: in the log, to the service manager, and on standard output for
/// programs that wait for the line, or to the process that mounts.
fn announce(plan: &mut MountPlan, filer: &FilerClient, status_at: Option<SocketAddr>) -> anyhow::Result<()> {
    let MountPlan { identity, cache_size, .. } = plan;
    tracing::info!(
        filer = %filer.current(),
        filer_version = filer.configuration().version,
        path = identity.filer_path,
        cache = %cache_size,
        status = status_at.map(tracing::field::display),
        "mounted {}",
        identity.mount_point
    );
    service::ready(&format!("mounted {}", identity.mount_point));
    if let Some(on_mounted) = plan.on_mounted.take() {
        return on_mounted();
    }
    output::announce(format_args!("mounted {}", identity.mount_point));
    if let Some(address) = status_at {
        output::announce(format_args!("status http://{address}/"));
    }
    Ok(())
}

/// Keeps the windows of the hit ratios moving.
pub(super) async fn keep_windows(metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(window::TICK);
    loop {
        ticks.tick().await;
        metrics.tick(Instant::now());
    }
}
