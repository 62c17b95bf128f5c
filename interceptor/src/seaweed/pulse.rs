//! Whether a filer answers.
//!
//! A filer that hangs keeps its connections open, and HTTP/2 pings do not find that out in time: filers end the connections of
//! clients that send them more often than every 20 s. So a task per filer ([`watch`]) makes the cheapest call there is, `Ping`,
//! every [`PING_INTERVAL`], over the connection of the subscription, whose loss is thereby noticed as well. A filer is
//! **silent** when it has left a `Ping` unanswered for [`MAX_SILENCE`] and nothing else has come from it in that time, or
//! when it cannot be connected to; it answers again with the first message that comes from it.
//!
//! Each answer brings the time of the filer's clock, by which the subscription judges how old events are.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::failover::{FILER_TIMEOUT, Failure, Filer, within};
use super::pb;

/// From the answer to one `Ping` to the next.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// How long a `Ping` may take, if nothing else comes from the filer either.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// A filer does not answer.
#[derive(Debug, Clone)]
pub(super) struct Silence {
    /// When it was heard last, or first asked.
    pub(super) since: Instant,
    /// Whether it was ever heard.
    pub(super) was_heard: bool,
    /// What is wrong, for people.
    pub(super) reason: Arc<str>,
}

/// What is known of a filer's life.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When the filer was heard last, or first asked, and whether it was heard.
    heard: Mutex<(Instant, bool)>,
    silence: watch::Sender<Option<Silence>>,
    /// The time of its clock, in ns since the epoch, and when that was.
    clock: Mutex<Option<(i64, Instant)>>,
}

impl Pulse {
    /// That of a filer that was not asked anything yet; it counts as one that answers.
    pub(super) fn new() -> Self {
        Self {
            heard: Mutex::new((Instant::now(), false)),
            silence: watch::Sender::new(None),
            clock: Mutex::new(None),
        }
    }

    /// Something has come from the filer.
    pub(super) fn heard(&self) {
        *self.heard.lock() = (Instant::now(), true);
        self.silence.send_if_modified(|silence| silence.take().is_some());
    }

    /// The filer does not answer.
    pub(super) fn silent(&self, reason: String) {
        let (since, was_heard) = *self.heard.lock();
        self.silence.send_if_modified(|silence| {
            let begins = silence.is_none();
            *silence = Some(Silence { since, was_heard, reason: reason.into() });
            begins
        });
    }

    /// Whether it does not answer.
    pub(super) fn is_silent(&self) -> bool {
        self.silence.borrow().is_some()
    }

    /// Since when and why it does not answer.
    pub(super) fn silence(&self) -> Option<Silence> {
        self.silence.borrow().clone()
    }

    /// Waits until it does not answer.
    pub(super) async fn lost(&self) -> Silence {
        let mut changes = self.silence.subscribe();
        loop {
            if let Some(silence) = &*changes.borrow_and_update() {
                return silence.clone();
            }
            // Cannot fail: the sender is this value's own.
            let _ = changes.changed().await;
        }
    }

    /// What its clock shows now, in ns since the epoch, once it has told.
    pub(super) fn filer_time(&self) -> Option<i64> {
        let (then, at) = (*self.clock.lock())?;
        Some(then.saturating_add(at.elapsed().as_nanos() as i64))
    }

    /// Its clock shows this now.
    pub(super) fn tells_time(&self, now_ns: i64) {
        *self.clock.lock() = Some((now_ns, Instant::now()));
    }

    fn learn(&self, filer: &Filer, answer: Result<pb::PingResponse, Failure>) {
        match answer {
            Ok(answer) => {
                self.tells_time(answer.start_time_ns);
                self.heard();
            }
            Err(failure) if failure.is_answer() => self.heard(),
            Err(Failure::Silent(_)) if self.heard.lock().0.elapsed() < MAX_SILENCE => {}
            Err(failure) => {
                filer.note(&failure);
                self.silent(failure.to_string());
            }
        }
    }
}

#[cfg(test)]
impl Pulse {
    /// It has not answered since then.
    pub(super) fn silent_since(&self, since: Instant) {
        *self.heard.lock() = (since, true);
        self.silent("test".into());
    }
}

/// Asks a filer for a sign of life again and again, until it is dropped.
pub(super) async fn watch(filer: Weak<Filer>) {
    let mut was_silent = false;
    loop {
        let Some(filer) = filer.upgrade() else { return };
        let ping = async || {
            let mut stub = filer.events();
            let mut asking = std::pin::pin!(stub.ping(pb::PingRequest {}));
            let answer = within(MAX_SILENCE, asking.as_mut()).await;
            if matches!(answer, Err(Failure::Silent(_))) {
                filer.pulse().learn(&filer, Err(Failure::Silent(MAX_SILENCE)));
                // A slow filer is not a dead one. What it says of the time is too old to judge events by.
                if within(FILER_TIMEOUT, asking).await.is_ok() {
                    filer.pulse().heard();
                }
            }
            answer
        };
        let mut answer = ping().await;
        // A connection that broke, as idle ones may, is replaced by the next call.
        if matches!(&answer, Err(failure @ Failure::Status(_)) if !failure.is_answer()) {
            answer = ping().await;
        }
        if !matches!(answer, Err(Failure::Silent(_))) {
            filer.pulse().learn(&filer, answer.map(tonic::Response::into_inner));
        }
        let silence = filer.pulse().silence();
        match &silence {
            Some(Silence { reason, .. }) if !was_silent => {
                tracing::warn!(filer = %filer.address, %reason, "a filer does not answer");
            }
            None if was_silent => tracing::info!(filer = %filer.address, "a filer answers again"),
            _ => {}
        }
        was_silent = silence.is_some();
        drop(filer);
        sleep(PING_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::super::filer::FilerClient;
    use super::super::pb;
    use super::super::scripted_filer::{self, Reply};

    async fn answers(client: &FilerClient, expected: bool) {
        let begun = Instant::now();
        while client.answering().is_ok() != expected {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is never seen to answer: {expected}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_filer_that_answers_late_is_slow_and_not_dead() {
        let filer = scripted_filer::start(|call, _| match call {
            "Ping" => Reply::Late(super::MAX_SILENCE * 3 / 2, Box::new(Reply::pong())),
            _ => Reply::message(&pb::GetFilerConfigurationResponse::default()),
        });
        let client = scripted_filer::client(vec![filer.await]).await;
        for _ in 0..2 {
            answers(&client, false).await;
            answers(&client, true).await;
        }
    }
}
