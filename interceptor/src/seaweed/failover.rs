//! Several filers of one cluster, of which one is current.
//!
//! All calls and the metadata subscription use the current filer. Filers with stores of their own
//! copy changes from each other with a delay, so an answer of one filer must not be judged by the
//! events of another. The next filer becomes current, for all calls, when a call to the current
//! one fails, when it is [down](super::liveness) while another is up, or when others were faster
//! [`MAX_LOST_RACES`] times in a row. Answers that are errors are answers: they change nothing.
//!
//! [`Filers::call`] makes one call. If the current filer leaves it unanswered for a moment, the
//! next one is asked as well, and the first answer is taken. An answer that does not come from the
//! current filer is marked, because no event will say when it becomes outdated.
//!
//! A call that no filer answers is repeated, so that a filer may be restarted under a mount. It
//! fails when its deadline is over, or when no filer has answered for [`FILER_TIMEOUT`]. From then
//! on a call may take [`MIN_CALL_TIMEOUT`], and calls that come within as much time after such a
//! one has failed are refused at once, so that a request that needs many calls fails soon as well.
//! As soon as a filer answers a call or a [ping](super::ping), no call is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::address::ServerAddress;
use super::endpoint::FilerEndpoint;
use super::liveness::Outage;
use super::ping;
use super::rpc::{CallFailure, FILER_TIMEOUT, Stub};
use crate::arrival::Arrival;
use crate::telemetry::health::FilerHealth;
use crate::vital;

/// How long a call may take that is made when no filer has answered for [`FILER_TIMEOUT`].
const MIN_CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// First and longest back-off after all filers have failed in turn.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// After so many calls in a row that another filer has answered first, the current one is left.
const MAX_LOST_RACES: u32 = 3;
/// How often a call that waits checks whether its filers still answer.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FilerError {
    /// No filer answered.
    #[error("no filer answers {rpc}: {}; check that a filer runs there, that its gRPC port is open to this host, and that security.toml fits", Reasons(.tried))]
    Unreachable {
        /// The call.
        rpc: &'static str,
        /// Every filer that was asked, and why it failed last.
        tried: Vec<(ServerAddress, String)>,
    },
    /// A filer answered with an error.
    #[error("filer {filer} refuses {rpc}: {message}; its log says more")]
    Refused {
        /// The filer.
        filer: ServerAddress,
        /// The call.
        rpc: &'static str,
        /// What it said.
        message: String,
    },
    /// An address cannot be used.
    #[error("`{0}` is not a usable filer address")]
    Address(ServerAddress),
    /// No filer was named.
    #[error("no filer is named; give at least one HOST:PORT")]
    NoFiler,
}

struct Reasons<'a>(&'a [(ServerAddress, String)]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (filer, reason)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{filer} (gRPC port {}): {reason}", filer.grpc_port)?;
        }
        Ok(())
    }
}

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallOptions {
    /// The name of the call.
    pub(super) rpc: &'static str,
    /// When it must be over.
    pub(super) deadline: Instant,
    /// After how long without an answer the next filer is asked as well; `None`: never.
    pub(super) hedge_after: Option<Duration>,
    /// Whether the filer that answers becomes the current one.
    pub(super) follow_winner: bool,
    /// Whether to repeat the call after every filer has failed once.
    pub(super) repeat: bool,
}

impl CallOptions {
    /// A short call for a request.
    pub(super) fn new(rpc: &'static str, arrival: Arrival) -> Self {
        Self {
            rpc,
            deadline: arrival.deadline(FILER_TIMEOUT),
            hedge_after: Some(Duration::from_millis(500)),
            follow_winner: false,
            repeat: true,
        }
    }
}

/// An answer, and the filer that gave it.
#[derive(Debug)]
pub(super) struct FilerAnswer<T> {
    pub(super) value: T,
    /// The index of the filer.
    pub(super) index: usize,
    /// Whether that is the filer whose events are followed.
    pub(super) is_followed: bool,
}

/// The filers of a cluster; see the module.
pub(super) struct Filers {
    all: Vec<Arc<FilerEndpoint>>,
    current: watch::Sender<usize>,
    /// When a call last failed because no filer answered.
    last_failure: Mutex<Option<Instant>>,
}

impl Filers {
    /// Prepares the channels without connecting them.
    pub(super) fn new(
        addresses: Vec<ServerAddress>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, FilerError> {
        if addresses.is_empty() {
            return Err(FilerError::NoFiler);
        }
        let filer = |address: ServerAddress| match FilerEndpoint::new(address.clone(), tls.as_ref()) {
            Ok(filer) => Ok(Arc::new(filer)),
            Err(_) => Err(FilerError::Address(address)),
        };
        let all = addresses.into_iter().map(filer).collect::<Result<_, _>>()?;
        Ok(Self { all, current: watch::Sender::new(0), last_failure: Mutex::new(None) })
    }

    /// Pings all filers as long as this value exists.
    pub(super) fn ping_all(&self) {
        for filer in &self.all {
            tokio::spawn(vital::task("ping of a filer", ping::ping(Arc::downgrade(filer))));
        }
    }

    /// The current filer and its index.
    pub(super) fn current(&self) -> (usize, &FilerEndpoint) {
        let index = *self.current.borrow();
        (index, &self.all[index])
    }

    /// Receives the index of each filer that becomes current.
    pub(super) fn watch_current(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Makes the next filer that is up current, or the next one if none is, unless `index` is not
    /// current any more.
    pub(super) fn leave(&self, index: usize, reason: &dyn fmt::Display) {
        self.all[index].record_error(reason);
        let others = || self.after(index).skip(1);
        let next = others().find(|&i| !self.all[i].liveness.is_down()).or_else(|| others().next());
        if let Some(next) = next {
            self.move_on(index, next, reason);
        }
    }

    fn move_on(&self, from: usize, to: usize, reason: &dyn fmt::Display) {
        let moved = self.current.send_if_modified(|current| {
            let leaving = *current == from && to != from;
            if leaving {
                *current = to;
            }
            leaving
        });
        if moved {
            let (from, to) = (&self.all[from].address, &self.all[to].address);
            tracing::warn!(%from, %to, %reason, "filer left");
        }
    }

    /// If the current filer is down and another one is up, makes that one current.
    pub(super) fn leave_if_down(&self) {
        let index = self.current().0;
        if let Some(outage) = self.all[index].liveness.outage()
            && self.is_another_up(index)
        {
            self.leave(index, &outage.reason);
        }
    }

    /// Completes when the current filer is up. Another one that is up becomes current.
    pub(super) async fn current_up(&self) {
        loop {
            self.leave_if_down();
            if !self.current().1.liveness.is_down() {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Completes when the filer is down while another one is up.
    pub(super) async fn replaceable(&self, index: usize) -> Outage {
        loop {
            let outage = self.all[index].liveness.down().await;
            if self.is_another_up(index) {
                return outage;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether a filer other than this one is up.
    fn is_another_up(&self, index: usize) -> bool {
        self.after(index).skip(1).any(|i| !self.all[i].liveness.is_down())
    }

    /// Whether a filer is down that was up within `limit`.
    pub(super) fn lost_one_within(&self, limit: Duration) -> bool {
        let outages = self.all.iter().filter_map(|filer| filer.liveness.outage());
        outages.into_iter().any(|outage| outage.was_up && outage.since.elapsed() < limit)
    }

    /// Ok if a filer is up; otherwise the error says why none is.
    pub(super) fn answering(&self) -> Result<(), String> {
        let outages: Option<Vec<_>> = self.all.iter().map(|filer| filer.liveness.outage()).collect();
        let Some(outages) = outages else { return Ok(()) };
        let reasons = self.all.iter().zip(outages).map(|(filer, outage)| {
            let seconds = outage.since.elapsed().as_secs_f32();
            format!("{} has not answered for {seconds:.1} s: {}", filer.address, outage.reason)
        });
        Err(reasons.collect::<Vec<_>>().join("; "))
    }

    /// How each of them does, for the status API.
    pub(super) fn health(&self) -> Vec<FilerHealth> {
        let current = self.current().0;
        let health = |(index, filer): (usize, &Arc<FilerEndpoint>)| FilerHealth {
            address: filer.address.to_string(),
            is_current: index == current,
            is_silent: filer.liveness.is_down(),
            last_error: filer.last_error.latest(),
        };
        self.all.iter().enumerate().map(health).collect()
    }

    /// All indices, in the order in which filers are asked if `first` is the first.
    fn after(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.all.len();
        (0..count).map(move |i| (first + i) % count)
    }

    /// Since when all of them are down; `None` if one is up.
    pub(super) fn down_since(&self) -> Option<Instant> {
        let since = self.all.iter().map(|filer| Some(filer.liveness.outage()?.since));
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// When a call must be over that began at `start` and may take until `deadline`.
    fn call_deadline(&self, start: Instant, deadline: Instant) -> Instant {
        match self.down_since() {
            Some(since) => deadline.min((since + FILER_TIMEOUT).max(start + MIN_CALL_TIMEOUT)),
            None => deadline,
        }
    }

    /// The error of a call that begins at `start` and is not tried, because no filer has answered
    /// for long and another call has just failed.
    fn fail_fast(&self, rpc: &'static str, start: Instant) -> Option<FilerError> {
        let since = self.down_since()?;
        let last_failure = (*self.last_failure.lock())?;
        if start < since + FILER_TIMEOUT || start >= last_failure + MIN_CALL_TIMEOUT {
            return None;
        }
        let reason = |filer: &Arc<FilerEndpoint>| {
            Some((filer.address.clone(), filer.liveness.outage()?.reason.to_string()))
        };
        Some(FilerError::Unreachable { rpc, tried: self.all.iter().filter_map(reason).collect() })
    }

    /// Makes a call; see the module. `ask` makes it to one filer.
    pub(super) async fn call<T, F>(
        &self,
        options: CallOptions,
        ask: impl Fn(Stub) -> F,
    ) -> Result<FilerAnswer<T>, FilerError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let attempt = |index: usize| {
            let answer = ask(self.all[index].calls());
            async move { (index, answer.await) }
        };
        self.leave_if_down();
        let start = Instant::now();
        if let Some(error) = self.fail_fast(options.rpc, start) {
            return Err(error);
        }
        let first = self.current().0;
        let mut running = FuturesUnordered::from_iter([attempt(first)]);
        let mut asked = vec![first];
        let mut last_asked = start;
        let mut backoff = FIRST_BACKOFF;
        // How each filer has failed, by its index.
        let mut failures: BTreeMap<usize, CallFailure> = BTreeMap::new();
        let mut asks_next_now = false;
        loop {
            let now = Instant::now();
            let limit = self.call_deadline(start, options.deadline);
            if now >= limit {
                return Err(self.unreachable(options.rpc, start, &asked, failures));
            }
            let next = self.after(first).find(|i| !asked.contains(i) && !self.all[*i].liveness.is_down());
            let next = next.or_else(|| self.after(first).find(|i| !asked.contains(i) && running.is_empty()));
            let hedge_at = options.hedge_after.map(|after| last_asked + after);
            let all_down = asked.iter().all(|i| self.all[*i].liveness.is_down());
            let is_due = asks_next_now || all_down || hedge_at.is_some_and(|at| now >= at);
            asks_next_now = false;
            if let Some(index) = next.filter(|_| is_due) {
                running.push(attempt(index));
                asked.push(index);
                last_asked = now;
            } else if running.is_empty() {
                // Every filer has failed.
                if let Some(message) = failures.values().find(|failure| failure.is_answer()) {
                    let message = message.to_string();
                    return Err(self.refused(options.rpc, asked[0], message));
                }
                if !options.repeat || now + backoff > limit {
                    return Err(self.unreachable(options.rpc, start, &asked, failures));
                }
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
                asked.clear();
                asks_next_now = true;
                continue;
            }
            let next_poll = (now + POLL_INTERVAL).max(hedge_at.unwrap_or(now).min(limit)).min(limit);
            let done = tokio::select! {
                biased;
                done = running.next() => done,
                () = sleep_until(next_poll) => None,
            };
            match done {
                Some((index, Ok(value))) => {
                    self.all[index].liveness.mark_up();
                    self.record_winner(index, &asked, options.follow_winner);
                    let is_followed = index == self.current().0;
                    return Ok(FilerAnswer { value, index, is_followed });
                }
                Some((index, Err(status))) => {
                    let failure = CallFailure::Status(status);
                    if failure.is_answer() {
                        self.all[index].liveness.mark_up();
                        self.all[index].record_error(&failure);
                        if running.is_empty() {
                            return Err(self.refused(options.rpc, index, failure.to_string()));
                        }
                    } else {
                        self.leave(index, &failure);
                    }
                    failures.insert(index, failure);
                    asks_next_now = true;
                }
                None => {}
            }
        }
    }

    /// Updates which filer is current after `winner` has answered first of those that were asked.
    fn record_winner(&self, winner: usize, asked: &[usize], is_followed: bool) {
        self.all[winner].lost_races.store(0, Relaxed);
        let (current, filer) = self.current();
        if winner == current || !asked.contains(&current) {
            return;
        }
        let lost = filer.lost_races.fetch_add(1, Relaxed) + 1;
        if is_followed || filer.liveness.is_down() || lost >= MAX_LOST_RACES {
            filer.lost_races.store(0, Relaxed);
            self.move_on(current, winner, &"another filer is faster");
        }
    }

    fn unreachable(
        &self,
        rpc: &'static str,
        start: Instant,
        asked: &[usize],
        mut failures: BTreeMap<usize, CallFailure>,
    ) -> FilerError {
        *self.last_failure.lock() = Some(Instant::now());
        for &index in asked {
            failures.entry(index).or_insert_with(|| CallFailure::Timeout(start.elapsed()));
        }
        let named =
            failures.into_iter().map(|(i, failure)| (self.all[i].address.clone(), failure.to_string()));
        FilerError::Unreachable { rpc, tried: named.collect() }
    }

    /// The error for an answer that cannot be used.
    pub(super) fn refused(&self, rpc: &'static str, index: usize, message: String) -> FilerError {
        FilerError::Refused { filer: self.all[index].address.clone(), rpc, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    fn filers(count: u16) -> Filers {
        let address = |i| ServerAddress { host: "127.0.0.1".into(), http_port: i, grpc_port: i };
        Filers::new((1..=count).map(address).collect(), None).unwrap()
    }

    fn options() -> CallOptions {
        CallOptions::new("Test", Arrival::now())
    }

    /// Makes a call whose n-th attempt has the n-th of `outcomes`; `None`: no answer.
    async fn call(
        filers: &Filers,
        options: CallOptions,
        outcomes: &[Option<Result<u32, Status>>],
    ) -> Result<FilerAnswer<u32>, FilerError> {
        let outcomes = Mutex::new(outcomes.iter().cloned());
        filers
            .call(options, |_| {
                let outcome = outcomes.lock().next().flatten();
                async { if let Some(outcome) = outcome { outcome } else { pending().await } }
            })
            .await
    }

    fn broken() -> Status {
        Status::unavailable("broken")
    }

    #[tokio::test]
    async fn a_filer_that_fails_is_left_for_the_next() {
        let filers = filers(2);
        let answer = call(&filers, options(), &[Some(Err(broken())), Some(Ok(7))]).await.unwrap();
        assert_eq!((answer.value, answer.index, answer.is_followed), (7, 1, true));
        assert_eq!(filers.current().0, 1);
    }

    #[tokio::test]
    async fn each_filer_that_fails_is_named() {
        let filers = filers(2);
        let once = CallOptions { repeat: false, ..options() };
        let failed = call(&filers, once, &[Some(Err(broken())), Some(Err(broken()))]).await.unwrap_err();
        let FilerError::Unreachable { tried, .. } = failed else { panic!("not unreachable") };
        assert_eq!(tried.iter().map(|(filer, _)| filer.http_port).collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn an_answer_that_is_an_error_ends_the_call_and_changes_no_current_filer() {
        let filers = filers(2);
        let refusal = Some(Err(Status::unknown("store is down")));
        let error = call(&filers, options(), &[refusal]).await.unwrap_err();
        assert!(matches!(error, FilerError::Refused { .. }), "{error}");
        assert_eq!(filers.current().0, 0);
    }

    #[tokio::test]
    async fn while_one_filer_does_not_answer_the_next_is_asked_and_its_answer_is_marked() {
        let filers = filers(2);
        let options = || CallOptions { hedge_after: Some(Duration::from_millis(10)), ..options() };
        let answer = call(&filers, options(), &[None, Some(Ok(7))]).await.unwrap();
        assert_eq!((answer.value, answer.is_followed), (7, false));
        assert_eq!(filers.current().0, 0, "it may have been slow only once");
        for _ in 1..MAX_LOST_RACES {
            call(&filers, options(), &[None, Some(Ok(7))]).await.unwrap();
        }
        assert_eq!(filers.current().0, 1);
    }

    #[tokio::test]
    async fn a_filer_that_is_known_to_be_down_is_not_asked() {
        let filers = filers(3);
        for down in [0, 1] {
            filers.all[down].liveness.mark_down("test".into());
        }
        let answer = call(&filers, options(), &[Some(Ok(7))]).await.unwrap();
        assert_eq!((answer.index, filers.current().0), (2, 2));
    }

    #[tokio::test]
    async fn a_call_ends_at_its_deadline_and_earlier_once_no_filer_has_answered_for_long() {
        let filers = filers(2);
        let soon = CallOptions { deadline: Instant::now() + Duration::from_millis(300), ..options() };
        let error = call(&filers, soon, &[]).await.unwrap_err();
        assert!(matches!(error, FilerError::Unreachable { .. }), "{error}");

        let start = Instant::now();
        assert_eq!(filers.call_deadline(start, start + 2 * FILER_TIMEOUT), start + 2 * FILER_TIMEOUT);
        for filer in &filers.all {
            filer.liveness.mark_down("test".into());
        }
        let since = filers.all.iter().filter_map(|filer| Some(filer.liveness.outage()?.since)).max().unwrap();
        assert_eq!(
            filers.call_deadline(start, start + 2 * FILER_TIMEOUT),
            since + FILER_TIMEOUT,
            "as long as they may restart"
        );
        let later = since + 2 * FILER_TIMEOUT;
        assert_eq!(filers.call_deadline(later, later + FILER_TIMEOUT), later + MIN_CALL_TIMEOUT);
        filers.all[1].liveness.mark_up();
        assert_eq!(filers.call_deadline(later, later + FILER_TIMEOUT), later + FILER_TIMEOUT);
    }

    #[tokio::test]
    async fn once_no_filer_has_answered_for_long_one_call_a_second_is_tried() {
        const CALLS: u32 = 20;
        let filers = filers(2);
        let long_ago = Instant::now() - 2 * FILER_TIMEOUT;
        for filer in &filers.all {
            filer.liveness.mark_down_since(long_ago);
        }
        let start = Instant::now();
        for _ in 0..CALLS {
            let FilerError::Unreachable { tried, .. } = call(&filers, options(), &[]).await.unwrap_err()
            else {
                panic!("not unreachable");
            };
            assert!(!tried.is_empty());
        }
        let took = start.elapsed();
        assert!(took >= MIN_CALL_TIMEOUT, "the first is tried");
        assert!(took < CALLS * MIN_CALL_TIMEOUT / 2, "{took:?}, as if each had its own time");
        assert!(
            filers.fail_fast("Test", Instant::now() + MIN_CALL_TIMEOUT).is_none(),
            "the next is tried again"
        );
        filers.all[1].liveness.mark_up();
        assert_eq!(call(&filers, options(), &[Some(Ok(7))]).await.unwrap().value, 7);
    }

    #[tokio::test]
    async fn calls_are_tried_as_long_as_filers_may_restart() {
        let filers = filers(1);
        filers.all[0].liveness.mark_down("test".into());
        *filers.last_failure.lock() = Some(Instant::now());
        assert!(filers.fail_fast("Test", Instant::now()).is_none());
        assert_eq!(call(&filers, options(), &[Some(Ok(7))]).await.unwrap().value, 7);
    }

    #[tokio::test]
    async fn a_filer_that_comes_back_answers_the_call_that_waits_for_it() {
        let filers = filers(1);
        let failed = || Some(Err(broken()));
        let answer = call(&filers, options(), &[failed(), failed(), failed(), Some(Ok(7))]).await.unwrap();
        assert_eq!(answer.value, 7);
    }

    #[tokio::test]
    async fn only_the_current_filer_can_be_left() {
        let filers = filers(3);
        filers.leave(2, &"test");
        assert_eq!(filers.current().0, 0);
        filers.leave(0, &"test");
        assert_eq!(filers.current().0, 1);
    }
}
