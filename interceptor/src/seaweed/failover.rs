//! Several filers of one cluster, of which one is in use.
//!
//! All calls and the metadata subscription use the same filer, the current one: filers with stores of their own copy
//! changes from each other with a delay, so an answer of one filer must not be judged by the events of another. The next
//! filer becomes current, for everyone, when a call to the current one fails, when it [falls silent](super::pulse) while
//! another answers, or when others were faster [`MAX_LOST_RACES`] times in a row. Answers that are errors are answers: they
//! change nothing.
//!
//! [`Filers::call`] makes one call. If the current filer leaves it unanswered for a moment, the next one is asked as well, and the
//! first answer is taken. One that does not come from the current filer is marked, because no events will tell when it
//! ceases to be right. A call that no filer answers is repeated, so that a filer may be restarted under a mount, until the
//! call's time is over or the filers have not answered for [`FILER_TIMEOUT`], whichever is first. After
//! that a call is given [`LEAST_PATIENCE`], and those that come within as much time after it has
//! failed are refused at once, so that what depends on many calls fails soon as well. As soon as a
//! filer is heard, by a call or by its [pulse](super::pulse), none is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::address::ServerAddress;
use super::channel;
use super::message::MAX_MESSAGE;
use super::pb::seaweed_filer_client::SeaweedFilerClient;
use super::pulse::{self, Pulse, Silence};
use crate::arrival::Arrival;
use crate::telemetry::health::{FilerHealth, LastError};
use crate::vital;

/// How long filers that do not answer are asked again and again, counted from when one was last heard.
pub const FILER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call may take that is made later than that.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// First and longest pause after all filers failed in turn.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After how many calls in a row that another filer answered first the current one is left.
const MAX_LOST_RACES: u32 = 3;
/// How often a call that waits looks whether its filers still answer.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A stub of the filer's service.
pub(super) type Stub = SeaweedFilerClient<Channel>;

/// Why a filer did not do what it was asked for.
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

/// What can go wrong with one call of one filer.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error came back, from the filer or from the transport.
    Status(Status),
    /// Nothing came for this long.
    Silent(Duration),
    /// The filer does not answer calls.
    Dead(Silence),
}

impl From<Silence> for Failure {
    fn from(silence: Silence) -> Self {
        Failure::Dead(silence)
    }
}

impl Failure {
    /// Whether the filer itself said so: another one would say the same.
    pub(super) fn is_answer(&self) -> bool {
        use std::error::Error;
        match self {
            Failure::Silent(_) | Failure::Dead(_) => false,
            // The transport's errors have a source; `Unavailable` and `Cancelled` also come from a filer that stops.
            // `Unknown` without a source is what Go makes of any error, but also a stream that was cut off.
            Failure::Status(status) => {
                let stopping =
                    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded);
                let cut = status.code() == Code::Unknown && status.message().contains("missing grpc-status");
                !stopping && !cut && status.source().is_none()
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::error::Error;
        let status = match self {
            Failure::Silent(limit) => return write!(f, "no answer within {:.1} s", limit.as_secs_f32()),
            Failure::Dead(silence) => return f.write_str(&silence.reason),
            Failure::Status(status) => status,
        };
        // Each layer repeats the text of those below it.
        let mut text = status.message().to_owned();
        let mut source = status.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) && cause_text != "transport error" {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

/// Waits for a call or for the next message of a stream, no longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Failure::Status),
        Err(_) => Err(Failure::Silent(limit)),
    }
}

/// One filer. Calls and the subscription have a connection each: events that nobody takes fill the receive window of
/// their connection, and calls would wait behind them.
pub(super) struct Filer {
    pub(super) address: ServerAddress,
    calls: Stub,
    events: Stub,
    pulse: Pulse,
    /// Calls in a row that another filer has answered first.
    lost_races: AtomicU32,
    trouble: LastError,
}

impl Filer {
    /// A stub for calls and listings.
    pub(super) fn calls(&self) -> Stub {
        self.calls.clone()
    }

    /// A stub for the subscription.
    pub(super) fn events(&self) -> Stub {
        self.events.clone()
    }

    /// Whether it answers.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Remembers a failure for the status API.
    pub(super) fn note(&self, failure: &dyn fmt::Display) {
        self.trouble.note(failure);
    }
}

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallOptions {
    /// The call, for people.
    pub(super) rpc: &'static str,
    /// When it must be over.
    pub(super) deadline: Instant,
    /// How long a filer may leave it unanswered before the next one is asked as well; never, if it is `None`.
    pub(super) hedge_after: Option<Duration>,
    /// Whether the filer that answers becomes the current one.
    pub(super) follow_winner: bool,
    /// Whether to go on after every filer has failed once.
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

/// An answer and whose it is.
#[derive(Debug)]
pub(super) struct Answered<T> {
    pub(super) value: T,
    /// The filer that gave it.
    pub(super) index: usize,
    /// Whether that is the filer whose events are followed.
    pub(super) is_followed: bool,
}

/// The filers of a cluster; see the module.
pub(super) struct Filers {
    all: Vec<Arc<Filer>>,
    current: watch::Sender<usize>,
    /// When a call failed last because none of them answered.
    gave_up: Mutex<Option<Instant>>,
}

impl Filers {
    /// Prepares channels, connects none.
    pub(super) fn new(
        addresses: Vec<ServerAddress>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, FilerError> {
        if addresses.is_empty() {
            return Err(FilerError::NoFiler);
        }
        let stub = |address: &ServerAddress| match channel::open(address, tls.clone()) {
            Ok(channel) => Ok(Stub::new(channel).max_decoding_message_size(MAX_MESSAGE)),
            Err(_) => Err(FilerError::Address(address.clone())),
        };
        let filer = |address| {
            Ok(Arc::new(Filer {
                calls: stub(&address)?,
                events: stub(&address)?,
                pulse: Pulse::new(),
                lost_races: AtomicU32::new(0),
                trouble: LastError::default(),
                address,
            }))
        };
        let all = addresses.into_iter().map(filer).collect::<Result<_, _>>()?;
        Ok(Self { all, current: watch::Sender::new(0), gave_up: Mutex::new(None) })
    }

    /// Finds out, from now on and as long as this value exists, which of the filers answer.
    pub(super) fn watch_pulses(&self) {
        for filer in &self.all {
            tokio::spawn(vital::task("pulse of a filer", pulse::watch(Arc::downgrade(filer))));
        }
    }

    /// The filer in use and its index.
    pub(super) fn current(&self) -> (usize, &Filer) {
        let index = *self.current.borrow();
        (index, &self.all[index])
    }

    /// Tells when another filer becomes current.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Makes the next filer that answers current, or the next one if none does, unless `index` is not current any more.
    pub(super) fn leave(&self, index: usize, reason: &dyn fmt::Display) {
        self.all[index].note(reason);
        let others = || self.after(index).skip(1);
        let next = others().find(|&i| !self.all[i].pulse.is_silent()).or_else(|| others().next());
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

    /// If the current filer is silent and another one answers, makes that one current.
    pub(super) fn leave_silent(&self) {
        let index = self.current().0;
        if let Some(silence) = self.all[index].pulse.silence()
            && self.is_any_other_alive(index)
        {
            self.leave(index, &silence.reason);
        }
    }

    /// Waits until the current filer is not silent; another one becomes current if that answers.
    pub(super) async fn any_answers(&self) {
        loop {
            self.leave_silent();
            if !self.current().1.pulse.is_silent() {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until this filer is silent while another one answers.
    pub(super) async fn replaceable(&self, index: usize) -> Silence {
        loop {
            let silence = self.all[index].pulse.lost().await;
            if self.is_any_other_alive(index) {
                return silence;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Whether a filer other than this one answers.
    fn is_any_other_alive(&self, index: usize) -> bool {
        self.after(index).skip(1).any(|i| !self.all[i].pulse.is_silent())
    }

    /// Whether a filer that was heard within `limit` does not answer now.
    pub(super) fn has_lost_one_within(&self, limit: Duration) -> bool {
        let silences = self.all.iter().filter_map(|filer| filer.pulse.silence());
        silences.into_iter().any(|silence| silence.was_heard && silence.since.elapsed() < limit)
    }

    /// Whether a filer answers now; else why none does.
    pub(super) fn answering(&self) -> Result<(), String> {
        let silent: Option<Vec<_>> = self.all.iter().map(|filer| filer.pulse.silence()).collect();
        let Some(silent) = silent else { return Ok(()) };
        let reasons = self.all.iter().zip(silent).map(|(filer, silence)| {
            let seconds = silence.since.elapsed().as_secs_f32();
            format!("{} has not answered for {seconds:.1} s: {}", filer.address, silence.reason)
        });
        Err(reasons.collect::<Vec<_>>().join("; "))
    }

    /// How each of them is doing.
    pub(super) fn health(&self) -> Vec<FilerHealth> {
        let current = self.current().0;
        let health = |(index, filer): (usize, &Arc<Filer>)| FilerHealth {
            address: filer.address.to_string(),
            is_current: index == current,
            is_silent: filer.pulse.is_silent(),
            last_error: filer.trouble.told(),
        };
        self.all.iter().enumerate().map(health).collect()
    }

    /// All indices, in the order in which they are asked if `first` is the first.
    fn after(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        let count = self.all.len();
        (0..count).map(move |i| (first + i) % count)
    }

    /// Since when none of them answers, if that is so.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let since = self.all.iter().map(|filer| Some(filer.pulse.silence()?.since));
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// When a call must be over that was begun at `start` and may take until `deadline`.
    fn limit(&self, start: Instant, deadline: Instant) -> Instant {
        match self.silent_since() {
            Some(since) => deadline.min((since + FILER_TIMEOUT).max(start + LEAST_PATIENCE)),
            None => deadline,
        }
    }

    /// Why a call that begins at `start` is not tried: no filer has answered for long, and the
    /// last call has just found that out.
    fn refusal(&self, rpc: &'static str, start: Instant) -> Option<FilerError> {
        let since = self.silent_since()?;
        let gave_up = (*self.gave_up.lock())?;
        if start < since + FILER_TIMEOUT || start >= gave_up + LEAST_PATIENCE {
            return None;
        }
        let reason =
            |filer: &Arc<Filer>| Some((filer.address.clone(), filer.pulse.silence()?.reason.to_string()));
        Some(FilerError::Unreachable { rpc, tried: self.all.iter().filter_map(reason).collect() })
    }

    /// Makes a call; see the module. `ask` makes it at one filer.
    pub(super) async fn call<T, F>(
        &self,
        options: CallOptions,
        ask: impl Fn(Stub) -> F,
    ) -> Result<Answered<T>, FilerError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let attempt = |index: usize| {
            let answer = ask(self.all[index].calls());
            async move { (index, answer.await) }
        };
        self.leave_silent();
        let start = Instant::now();
        if let Some(error) = self.refusal(options.rpc, start) {
            return Err(error);
        }
        let first = self.current().0;
        let mut running = FuturesUnordered::from_iter([attempt(first)]);
        let mut asked = vec![first];
        let mut last_asked = start;
        let mut pause = FIRST_PAUSE;
        // Why each filer failed that has.
        let mut failures: BTreeMap<usize, Failure> = BTreeMap::new();
        let mut asks_next_now = false;
        loop {
            let now = Instant::now();
            let limit = self.limit(start, options.deadline);
            if now >= limit {
                return Err(self.unreachable(options.rpc, start, &asked, failures));
            }
            let next = self.after(first).find(|i| !asked.contains(i) && !self.all[*i].pulse.is_silent());
            let next = next.or_else(|| self.after(first).find(|i| !asked.contains(i) && running.is_empty()));
            let hedge_at = options.hedge_after.map(|after| last_asked + after);
            let all_silent = asked.iter().all(|i| self.all[*i].pulse.is_silent());
            let is_due = asks_next_now || all_silent || hedge_at.is_some_and(|at| now >= at);
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
                if !options.repeat || now + pause > limit {
                    return Err(self.unreachable(options.rpc, start, &asked, failures));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                asked.clear();
                asks_next_now = true;
                continue;
            }
            let look_again = (now + LOOK_INTERVAL).max(hedge_at.unwrap_or(now).min(limit)).min(limit);
            let done = tokio::select! {
                biased;
                done = running.next() => done,
                () = sleep_until(look_again) => None,
            };
            match done {
                Some((index, Ok(value))) => {
                    self.all[index].pulse.heard();
                    self.won(index, &asked, options.follow_winner);
                    let is_followed = index == self.current().0;
                    return Ok(Answered { value, index, is_followed });
                }
                Some((index, Err(status))) => {
                    let failure = Failure::Status(status);
                    if failure.is_answer() {
                        self.all[index].pulse.heard();
                        self.all[index].note(&failure);
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

    /// Draws conclusions from which of the filers that were asked has answered first.
    fn won(&self, winner: usize, asked: &[usize], is_followed: bool) {
        self.all[winner].lost_races.store(0, Relaxed);
        let (current, filer) = self.current();
        if winner == current || !asked.contains(&current) {
            return;
        }
        let lost = filer.lost_races.fetch_add(1, Relaxed) + 1;
        if is_followed || filer.pulse.is_silent() || lost >= MAX_LOST_RACES {
            filer.lost_races.store(0, Relaxed);
            self.move_on(current, winner, &"another filer is faster");
        }
    }

    fn unreachable(
        &self,
        rpc: &'static str,
        start: Instant,
        asked: &[usize],
        mut failures: BTreeMap<usize, Failure>,
    ) -> FilerError {
        *self.gave_up.lock() = Some(Instant::now());
        for &index in asked {
            failures.entry(index).or_insert_with(|| Failure::Silent(start.elapsed()));
        }
        let named =
            failures.into_iter().map(|(i, failure)| (self.all[i].address.clone(), failure.to_string()));
        FilerError::Unreachable { rpc, tried: named.collect() }
    }

    /// The error for an answer that is of no use.
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

    /// Makes a call in which the n-th attempt comes to the n-th of `outcomes`; `None`: no answer.
    async fn call(
        filers: &Filers,
        options: CallOptions,
        outcomes: &[Option<Result<u32, Status>>],
    ) -> Result<Answered<u32>, FilerError> {
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
    async fn an_answer_that_is_an_error_ends_the_call_and_moves_nobody() {
        let filers = filers(2);
        let refusal = Some(Err(Status::unknown("store is down")));
        let error = call(&filers, options(), &[refusal]).await.unwrap_err();
        assert!(matches!(error, FilerError::Refused { .. }), "{error}");
        assert_eq!(filers.current().0, 0);
    }

    #[tokio::test]
    async fn while_one_filer_says_nothing_the_next_is_asked_and_its_answer_is_not_trusted_for_long() {
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
    async fn a_filer_that_is_known_to_be_silent_is_not_waited_for() {
        let filers = filers(3);
        for silent in [0, 1] {
            filers.all[silent].pulse.silent("test".into());
        }
        let answer = call(&filers, options(), &[Some(Ok(7))]).await.unwrap();
        assert_eq!((answer.index, filers.current().0), (2, 2));
    }

    #[tokio::test]
    async fn a_call_is_over_in_time_and_soon_once_nobody_has_answered_for_long() {
        let filers = filers(2);
        let soon = CallOptions { deadline: Instant::now() + Duration::from_millis(300), ..options() };
        let error = call(&filers, soon, &[]).await.unwrap_err();
        assert!(matches!(error, FilerError::Unreachable { .. }), "{error}");

        let start = Instant::now();
        assert_eq!(filers.limit(start, start + 2 * FILER_TIMEOUT), start + 2 * FILER_TIMEOUT);
        for filer in &filers.all {
            filer.pulse.silent("test".into());
        }
        let since = filers.all.iter().filter_map(|filer| Some(filer.pulse.silence()?.since)).max().unwrap();
        assert_eq!(
            filers.limit(start, start + 2 * FILER_TIMEOUT),
            since + FILER_TIMEOUT,
            "as long as they may restart"
        );
        let later = since + 2 * FILER_TIMEOUT;
        assert_eq!(filers.limit(later, later + FILER_TIMEOUT), later + LEAST_PATIENCE);
        filers.all[1].pulse.heard();
        assert_eq!(filers.limit(later, later + FILER_TIMEOUT), later + FILER_TIMEOUT);
    }

    #[tokio::test]
    async fn once_none_has_answered_for_long_one_call_a_second_finds_out() {
        const CALLS: u32 = 20;
        let filers = filers(2);
        let long_ago = Instant::now() - 2 * FILER_TIMEOUT;
        for filer in &filers.all {
            filer.pulse.silent_since(long_ago);
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
        assert!(took >= LEAST_PATIENCE, "the first is tried");
        assert!(took < CALLS * LEAST_PATIENCE / 2, "{took:?}, as if each had its own time");
        assert!(filers.refusal("Test", Instant::now() + LEAST_PATIENCE).is_none(), "the next is tried again");
        filers.all[1].pulse.heard();
        assert_eq!(call(&filers, options(), &[Some(Ok(7))]).await.unwrap().value, 7);
    }

    #[tokio::test]
    async fn a_call_is_tried_as_long_as_filers_may_restart() {
        let filers = filers(1);
        filers.all[0].pulse.silent("test".into());
        *filers.gave_up.lock() = Some(Instant::now());
        assert!(filers.refusal("Test", Instant::now()).is_none());
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
