//! The state of the daemon beyond its counters: the identity of the mount, the subscription to the
//! filer's changes, missing capabilities, readiness.
//!
//! Other modules report changes of state here, which never blocks. Readiness is not stored: each
//! check runs on request, under a deadline, so that a mount that hangs is not reported as ready.

use std::collections::BTreeMap;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;

use super::activity::Activity;
use super::followed_call::CallSource;
use super::health::{FilerHealth, Health};
use super::history::bytes_by_source;
use super::kernel::CapabilityReport;
use super::metrics::{Gauge, Metrics, Outcome, Source, Trigger};
use super::miss_ratio::MissRatioCurve;
use super::ratios::{TimeSaved, origin_bytes_saved};
use super::report::{
    API_VERSION, ApiAccess, Fallbacks, FetchErrors, FlowReport, Hedges, KernelReport, LostAbility,
    Prefetched, StatusReport, Subscription, Verdict,
};
use super::verdict::verdict;
use super::window::WindowReads;

/// A readiness check that takes longer has failed. Longer than a mount takes to answer `statfs` by
/// itself when the filer does not answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// The activity is computed at most once in this interval; requests in between share a result.
const MIN_ACTIVITY_INTERVAL: Duration = Duration::from_secs(2);
/// The interval is at least this multiple of the time that the computation takes, which is some
/// milliseconds for every ten thousand granules with heat. It so uses at most a hundredth of one
/// CPU.
const ACTIVITY_INTERVAL_FACTOR: u32 = 100;

/// Checks whether a part of the daemon works. The error says in one line what does not.
pub type ReadinessCheck = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The identity of the mount, which never changes.
#[derive(Debug, Clone, Default)]
pub struct MountIdentity {
    /// The mount point.
    pub mount_point: String,
    /// The configured filers, as `host:port`.
    pub filers: Vec<String>,
    /// The directory of the filer that is mounted.
    pub filer_path: String,
    /// Options in effect, by long name. Holds no secrets.
    pub options: BTreeMap<String, String>,
}

/// The state that the status API serves.
pub struct Status {
    started: Instant,
    identity: MountIdentity,
    metrics: Arc<Metrics>,
    changes: AtomicU64,
    reported: Mutex<ReportedState>,
    checks: Mutex<Vec<(&'static str, Arc<ReadinessCheck>)>>,
    activity: Mutex<CachedActivity>,
}

/// The result of the last computation of the activity.
#[derive(Default)]
struct CachedActivity {
    gauge: Option<Gauge<Option<Activity>>>,
    last: Option<Activity>,
    /// The time until which `last` is valid.
    valid_until: Option<Instant>,
}

/// The state that other modules have reported.
#[derive(Default)]
struct ReportedState {
    subscription: Subscription,
    miss_ratio_curve: Option<Gauge<Option<MissRatioCurve>>>,
    calls: Option<CallSource>,
    access: ApiAccess,
    lost: Vec<LostAbility>,
    capabilities: Vec<CapabilityReport>,
}

impl Status {
    /// The state of a daemon that has just started. It is ready once a check has been added and
    /// passes.
    pub fn new(identity: MountIdentity, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            identity,
            metrics,
            changes: AtomicU64::new(0),
            reported: Mutex::default(),
            checks: Mutex::default(),
            activity: Mutex::default(),
        })
    }

    /// The counters of this daemon.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Sets the source of the filers' health.
    pub fn set_filers(&self, gauge: Gauge<Vec<FilerHealth>>) {
        self.metrics.set_filers(gauge);
    }

    /// Sets the source of the activity. It returns `None` once eBPF has ended, and may block for
    /// some milliseconds.
    pub fn set_activity(&self, gauge: Gauge<Option<Activity>>) {
        *self.activity.lock() = CachedActivity { gauge: Some(gauge), ..CachedActivity::default() };
    }

    /// Sets the source of the miss-ratio curve. It returns `None` as long as there is no curve.
    pub fn set_miss_ratio_curve(&self, gauge: Gauge<Option<MissRatioCurve>>) {
        self.reported.lock().miss_ratio_curve = Some(gauge);
    }

    /// Sets the source of the read calls of applications.
    pub fn set_call_source(&self, source: CallSource) {
        self.reported.lock().calls = Some(source);
    }

    /// The source of the read calls of applications, if eBPF programs may be loaded.
    pub(super) fn call_source(&self) -> Option<CallSource> {
        self.reported.lock().calls.clone()
    }

    /// Sets which clients can read the status API.
    pub(super) fn set_access(&self, access: ApiAccess) {
        self.reported.lock().access = access;
    }

    /// Records that the subscription to the filer's changes is live.
    pub fn subscription_live(&self) {
        self.reported.lock().subscription.live = true;
    }

    /// Records that the subscription was lost because of `reason`.
    pub fn subscription_lost(&self, reason: String) {
        let subscription = &mut self.reported.lock().subscription;
        subscription.losses += u64::from(subscription.live);
        subscription.live = false;
        subscription.last_loss = Some(reason);
    }

    /// Whether the subscription to the filer's changes is live.
    pub fn is_subscription_live(&self) -> bool {
        self.reported.lock().subscription.live
    }

    /// Counts a change of the filer that was applied.
    pub fn change_handled(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    /// Adds a capability that this mount lacks.
    pub fn lost(&self, ability: LostAbility) {
        self.reported.lock().lost.push(ability);
    }

    /// Sets the capabilities of eBPF, present and missing.
    pub fn set_capabilities(&self, capabilities: Vec<CapabilityReport>) {
        self.reported.lock().capabilities = capabilities;
    }

    /// Adds a check that must pass for the daemon to be ready.
    pub fn add_check(&self, name: &'static str, check: ReadinessCheck) {
        self.checks.lock().push((name, Arc::new(check)));
    }

    /// Which mount this is.
    pub fn identity(&self) -> &MountIdentity {
        &self.identity
    }

    /// Runs all readiness checks at once. The error names every check that failed. Takes at most
    /// three seconds.
    pub async fn ready(&self) -> Result<(), String> {
        self.ready_within(CHECK_TIMEOUT).await
    }

    async fn ready_within(&self, deadline: Duration) -> Result<(), String> {
        let checks = self.checks.lock().clone();
        if checks.is_empty() {
            return Err("starting: not mounted yet".into());
        }
        let outcomes = checks.iter().map(|(name, check)| async move {
            match tokio::time::timeout(deadline, check()).await {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(format!("{name}: {reason}")),
                Err(_) => Some(format!("{name}: no answer within {deadline:?}")),
            }
        });
        let failed: Vec<String> = join_all(outcomes).await.into_iter().flatten().collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    fn activity(&self) -> Option<Activity> {
        let mut cached = self.activity.lock();
        let begun = Instant::now();
        if cached.valid_until.is_none_or(|until| until <= begun) {
            let activity = cached.gauge.as_ref()?();
            let interval = MIN_ACTIVITY_INTERVAL.max(begun.elapsed() * ACTIVITY_INTERVAL_FACTOR);
            *cached = CachedActivity {
                gauge: cached.gauge.take(),
                last: activity,
                valid_until: Some(begun + interval),
            };
        }
        cached.last.clone()
    }

    /// The document at this moment. May block for some milliseconds.
    pub fn report(&self) -> StatusReport {
        let (totals, levels, kernel) = (self.metrics.totals(), self.metrics.levels(), self.metrics.kernel());
        let activity = self.activity();
        let filers = self.metrics.filers().unwrap_or_default();
        let (mut subscription, lost, capabilities, miss_ratio_curve, access) = {
            let reported = self.reported.lock();
            let curve = reported.miss_ratio_curve.as_ref().and_then(|curve| curve());
            (
                reported.subscription.clone(),
                reported.lost.clone(),
                reported.capabilities.clone(),
                curve,
                reported.access,
            )
        };
        let current_filer = filers.iter().find(|filer| filer.is_current).map(|filer| filer.address.clone());
        let windows = self.metrics.window_reads(Instant::now(), &totals, kernel.as_ref());
        subscription.changes = self.changes.load(Relaxed);
        if let Some(live) = levels.subscription_live {
            subscription.live = live;
        }
        let label = |source: Source| source.label().to_owned();
        let origins = || Source::ALL.into_iter().filter(|source| source.is_origin());
        let prefetched = |trigger: Trigger, outcome: Outcome| Prefetched {
            trigger: trigger.label().to_owned(),
            outcome: outcome.label().to_owned(),
            bytes: totals.prefetched[trigger as usize][outcome as usize],
        };
        fn each_window<T>(
            windows: &[(&'static str, WindowReads)],
            figure: impl Fn(&WindowReads) -> T,
        ) -> BTreeMap<String, T> {
            windows.iter().map(|(window, reads)| ((*window).to_owned(), figure(reads))).collect()
        }
        let mut report = StatusReport {
            api_version: API_VERSION,
            verdict: Verdict::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            mount_point: self.identity.mount_point.clone(),
            filers: self.identity.filers.clone(),
            current_filer,
            filer_path: self.identity.filer_path.clone(),
            subscription,
            cache: levels.cache,
            disk_cache: levels.disk_cache,
            nodes: levels.nodes,
            reads: Source::ALL
                .into_iter()
                .map(|source| (label(source), FlowReport::from(&totals.reads[source as usize])))
                .collect(),
            failed_reads: each_window(&windows, |reads| reads.failed),
            damaged_fetches: each_window(&windows, |reads| reads.damaged),
            fetches: origins()
                .map(|source| (label(source), FlowReport::from(&totals.fetches[source as usize])))
                .collect(),
            bytes_by_source: bytes_by_source(&totals, kernel.as_ref())
                .into_iter()
                .map(|(source, bytes)| (source.to_owned(), bytes))
                .collect(),
            found_in_cache: origins()
                .map(|source| (label(source), totals.found_in_cache[source as usize]))
                .filter(|(_, bytes)| *bytes > 0)
                .collect(),
            hit_ratio: each_window(&windows, |reads| reads.hit_ratios.cache),
            hit_ratios: each_window(&windows, |reads| reads.hit_ratios),
            read_waits: each_window(&windows, |reads| FlowReport::from(&reads.waits)),
            origin_bytes_saved: origin_bytes_saved(&totals, kernel.as_ref()),
            time_saved: TimeSaved::new(&totals, kernel.as_ref()),
            prefetch: Trigger::ALL
                .into_iter()
                .flat_map(|trigger| Outcome::ALL.map(|outcome| prefetched(trigger, outcome)))
                .filter(|prefetched| prefetched.bytes > 0)
                .collect(),
            prefetch_fetched: Trigger::ALL
                .into_iter()
                .zip(totals.fetched_ahead)
                .filter(|(_, bytes)| *bytes > 0)
                .map(|(trigger, bytes)| (trigger.label().to_owned(), bytes))
                .collect(),
            hedges: Hedges { sent: totals.hedges_sent, won: totals.hedges_won },
            fallbacks: totals
                .fallbacks
                .iter()
                .map(|((from, to), count)| Fallbacks { from: label(*from), to: label(*to), count: *count })
                .collect(),
            fetch_errors: totals
                .fetch_errors
                .iter()
                .map(|((source, reason), count)| FetchErrors {
                    source: label(*source),
                    reason: (*reason).to_owned(),
                    count: *count,
                })
                .collect(),
            integrity_failures: origins()
                .map(|source| (label(source), totals.integrity_failures.get(&source).copied().unwrap_or(0)))
                .collect(),
            waiting_reads: self.metrics.slow_reads().waiting(),
            slow_reads: self.metrics.slow_reads().last(),
            kernel: kernel.map(|counts| KernelReport::new(capabilities, counts, &totals)),
            health: Health { filers, volume_servers: self.metrics.volume_servers().unwrap_or_default() },
            activity,
            miss_ratio_curve,
            access,
            options: self.identity.options.clone(),
            lost,
        };
        report.verdict = verdict(&report);
        report
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn some_status() -> Arc<Status> {
        let identity = MountIdentity {
            mount_point: "/mnt/<data>".into(),
            filers: vec!["filer:8888".into()],
            filer_path: "/".into(),
            options: [("cache-size".to_owned(), "1GiB".to_owned())].into(),
        };
        Status::new(identity, Metrics::new())
    }

    #[test]
    fn concurrent_requests_share_one_computation_of_the_activity() {
        let status = some_status();
        let asked = Arc::new(AtomicU64::new(0));
        let counter = asked.clone();
        status.set_activity(Box::new(move || {
            counter.fetch_add(1, Relaxed);
            Some(Activity::default())
        }));
        assert!(status.report().activity.is_some() && status.report().activity.is_some());
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[test]
    fn a_loss_is_counted_once() {
        let status = some_status();
        status.subscription_lost("never connected".into());
        status.subscription_live();
        status.change_handled();
        status.subscription_lost("reset".into());
        status.subscription_lost("refused".into());
        let subscription = status.report().subscription;
        assert_eq!((subscription.live, subscription.losses, subscription.changes), (false, 1, 1));
        assert_eq!(subscription.last_loss.as_deref(), Some("refused"));
    }

    #[tokio::test]
    async fn ready_requires_every_check_to_pass() {
        let status = some_status();
        assert!(status.ready().await.unwrap_err().contains("not mounted yet"));
        status.add_check("mount", Box::new(|| Box::pin(async { Ok(()) })));
        assert_eq!(status.ready().await, Ok(()));
        status.add_check("filer", Box::new(|| Box::pin(async { Err("connection refused".into()) })));
        assert_eq!(status.ready().await, Err("filer: connection refused".into()));
    }

    #[tokio::test]
    async fn a_check_that_hangs_fails() {
        let status = some_status();
        status.add_check("mount", Box::new(|| Box::pin(std::future::pending())));
        assert_eq!(status.ready_within(Duration::ZERO).await, Err("mount: no answer within 0ns".into()));
    }

    #[test]
    fn the_report_survives_its_own_json() {
        let status = some_status();
        status.metrics().read(Source::Http, 10, Duration::from_millis(1));
        status.metrics().fetch_error(Source::Http, "timeout");
        let json = serde_json::to_string(&status.report()).unwrap();
        let report: StatusReport = serde_json::from_str(&json).unwrap();
        assert_eq!(report.reads["http"].bytes, 10);
        assert_eq!(report.fetch_errors[0].reason, "timeout");
        assert_eq!(report.hit_ratio["1m"], Some(0.0));
    }
}
