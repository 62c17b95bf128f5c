//! What the status API knows beyond the counters: which mount this is, how the filer's stream of changes fares, what
//! is missing on this host, and whether the mount answers.
//!
//! Whoever learns something tells it here; nobody waits here. Readiness is asked for, not remembered: each check runs
//! when somebody asks, under a deadline, so that a mount that hangs is told from one that works.

use std::collections::BTreeMap;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;

use super::activity::Activity;
use super::health::{FilerHealth, Health};
use super::history::bytes_by_source;
use super::kernel::{CapabilityReport, KernelReport};
use super::metrics::{Gauge, Metrics, Outcome, Source, Trigger};
use super::miss_ratio::MissRatioCurve;
use super::ratios::TimeSaved;
use super::report::{
    API_VERSION, ApiAccess, Fallbacks, FetchErrors, FlowReport, Hedges, LostAbility, Prefetched,
    StatusReport, Subscription,
};

/// How long a check of readiness may take before it counts as failed. Longer than a mount takes to answer `statfs` on its
/// own when the filer does not.
const CHECK_DEADLINE: Duration = Duration::from_secs(3);

/// How old what is told of activity may be, at least: who ask together share an answer.
const ACTIVITY_AGE: Duration = Duration::from_secs(2);
/// The same as a multiple of the time that it took to find out, which is some milliseconds for every ten thousand granules that are warm: one
/// CPU is not kept busy with it for more than a hundredth of the time, however much is warm and however many look.
const ACTIVITY_PAUSE: u32 = 100;

/// Finds out whether something works at this moment; the error says what does not, in one line.
pub type ReadinessCheck = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Which mount this is: known at the start, never changing.
#[derive(Debug, Clone)]
pub struct MountIdentity {
    /// Where it is mounted.
    pub mount_point: String,
    /// The filers it was told of, as `host:port`.
    pub filers: Vec<String>,
    /// The directory of the filer that is mounted.
    pub filer_path: String,
    /// Options in effect, by long name. Holds no secrets.
    pub options: BTreeMap<String, String>,
}

/// All that the status API tells.
pub struct Status {
    started: Instant,
    identity: MountIdentity,
    metrics: Arc<Metrics>,
    changes: AtomicU64,
    reported: Mutex<ReportedState>,
    checks: Mutex<Vec<(&'static str, Arc<ReadinessCheck>)>>,
    activity: Mutex<CachedActivity>,
}

/// What goes on, as it was found out last.
#[derive(Default)]
struct CachedActivity {
    gauge: Option<Gauge<Option<Activity>>>,
    last: Option<Activity>,
    /// Until when `last` will do.
    good_until: Option<Instant>,
}

/// What others reported.
#[derive(Default)]
struct ReportedState {
    subscription: Subscription,
    miss_ratio_curve: Option<Gauge<Option<MissRatioCurve>>>,
    access: ApiAccess,
    lost: Vec<LostAbility>,
    capabilities: Vec<CapabilityReport>,
}

impl Status {
    /// A daemon that has just started: not ready until a check has been added and passes.
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

    /// The counters that belong to this daemon.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// From now on `gauge` tells how the filers are doing.
    pub fn set_filers(&self, gauge: Gauge<Vec<FilerHealth>>) {
        self.metrics.set_filers(gauge);
    }

    /// From now on `gauge` tells what is hot and who reads, or nothing once it cannot be told any more. It may take some milliseconds.
    pub fn set_activity(&self, gauge: Gauge<Option<Activity>>) {
        *self.activity.lock() = CachedActivity { gauge: Some(gauge), ..CachedActivity::default() };
    }

    /// From now on `gauge` tells what more or less cache would bring, once that is known.
    pub fn set_miss_ratio_curve(&self, gauge: Gauge<Option<MissRatioCurve>>) {
        self.reported.lock().miss_ratio_curve = Some(gauge);
    }

    /// Who can read all this.
    pub(super) fn set_access(&self, access: ApiAccess) {
        self.reported.lock().access = access;
    }

    /// Changes of the filer are heard from now on.
    pub fn subscription_live(&self) {
        self.reported.lock().subscription.live = true;
    }

    /// Changes of the filer are not heard any more, because of `reason`.
    pub fn subscription_lost(&self, reason: String) {
        let subscription = &mut self.reported.lock().subscription;
        subscription.losses += u64::from(subscription.live);
        subscription.live = false;
        subscription.last_loss = Some(reason);
    }

    /// Whether changes of the filer are heard.
    pub fn is_subscription_live(&self) -> bool {
        self.reported.lock().subscription.live
    }

    /// A change of the filer was acted on.
    pub fn change_handled(&self) {
        self.changes.fetch_add(1, Relaxed);
    }

    /// This mount goes without something.
    pub fn lost(&self, ability: LostAbility) {
        self.reported.lock().lost.push(ability);
    }

    /// What eBPF sees of this mount, and what not.
    pub fn set_capabilities(&self, capabilities: Vec<CapabilityReport>) {
        self.reported.lock().capabilities = capabilities;
    }

    /// The daemon is ready only if `check` passes, too.
    pub fn add_check(&self, name: &'static str, check: ReadinessCheck) {
        self.checks.lock().push((name, Arc::new(check)));
    }

    /// Whether reads can be expected to work now; the error names everything that does not. Takes three seconds at most.
    pub async fn ready(&self) -> Result<(), String> {
        self.ready_within(CHECK_DEADLINE).await
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
        let mut recent = self.activity.lock();
        let begun = Instant::now();
        if recent.good_until.is_none_or(|until| until <= begun) {
            let activity = recent.gauge.as_ref()?();
            let pause = ACTIVITY_AGE.max(begun.elapsed() * ACTIVITY_PAUSE);
            *recent = CachedActivity {
                gauge: recent.gauge.take(),
                last: activity,
                good_until: Some(begun + pause),
            };
        }
        recent.last.clone()
    }

    /// Everything at this moment. May take some milliseconds.
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
        let hit_ratios = self.metrics.hit_ratios(Instant::now());
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
        StatusReport {
            api_version: API_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            mount_point: self.identity.mount_point.clone(),
            filers: self.identity.filers.clone(),
            current_filer,
            filer_path: self.identity.filer_path.clone(),
            subscription,
            cache: levels.cache,
            nodes: levels.nodes,
            reads: Source::ALL
                .into_iter()
                .map(|source| (label(source), FlowReport::from(&totals.reads[source as usize])))
                .collect(),
            fetches: origins()
                .map(|source| (label(source), FlowReport::from(&totals.fetches[source as usize])))
                .collect(),
            bytes_by_source: bytes_by_source(&totals, kernel.as_ref())
                .into_iter()
                .map(|(source, bytes)| (source.to_owned(), bytes))
                .collect(),
            hit_ratio: hit_ratios.map(|(window, ratios)| (window.to_owned(), ratios.registered)).into(),
            hit_ratios: hit_ratios.map(|(window, ratios)| (window.to_owned(), ratios)).into(),
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
            kernel: kernel.map(|counts| KernelReport::new(capabilities, counts, &totals)),
            health: Health { filers, volume_servers: self.metrics.volume_servers().unwrap_or_default() },
            activity,
            miss_ratio_curve,
            access,
            options: self.identity.options.clone(),
            lost,
        }
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
    fn who_ask_together_share_what_was_found_out() {
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
    fn losses_are_counted_once_each() {
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
    async fn ready_is_what_every_check_says() {
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
