//! Hedged requests: a second replica is asked for what the first one is slow to send.
//!
//! A request that a reader waits for is late when nothing of its response has come after the time
//! that [`Pace`](super::pace) gives its server. The next replica is then asked as well, and the first
//! complete and verified response is taken. Hedging must not become a load of its own when every
//! server is slow:
//!
//! * of all requests that could be hedged, [`EARNED`] in a thousand are, and a burst after a quiet
//!   time;
//! * a hedge does not queue: it is sent only if its server has room for it now;
//! * all hedges together hold no more than [`MEMORY`] bytes.
//!
//! A server that lost several races in a row without sending a byte has stopped rather than being
//! slow. A hedge of a request to such a server costs nothing, because there is no second response to
//! pay for.
//!
//! The destination belongs to the first request for as long as that lives. The hedge fills memory of
//! its own, which is copied to the destination only after the first request was dropped. Dropping a
//! request closes its connection, so bytes that come late reach no memory. Closing costs a new
//! connection later; reading the rest in order to keep the connection would cost the very transfer
//! that the server is slow at.

use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::gate::Pass;
use super::job::Job;
use super::replica::{FetchContext, Progress, Replica};
use crate::seaweed::volume::VolumeError;
use crate::telemetry::Source;

/// How many of a thousand requests are hedged in the long run.
const EARNED: u32 = 30;
/// A hedge, in the unit of [`EARNED`].
const PRICE: u32 = 1000;
/// How many hedges may come at once after a quiet time: one for each reader of a busy host.
const SAVED: u32 = 16 * PRICE;
/// What all hedges may hold in bytes, beyond the cache. Requests for more are not hedged.
const MEMORY: u32 = 32 << 20;

/// Sends hedges, within a budget.
#[derive(Debug)]
pub(super) struct Hedges {
    savings: Mutex<u32>,
    memory: Arc<Semaphore>,
}

/// The permission for a hedge: room at its server, and memory for its response.
#[derive(Debug)]
struct Permit {
    _pass: Pass,
    _memory: OwnedSemaphorePermit,
}

/// The outcome of asking one replica or two.
#[derive(Default)]
pub(super) struct Race<'r> {
    /// Where the bytes came from, if the request is done.
    pub(super) won: Option<Source>,
    /// Whether the second replica was asked.
    pub(super) hedged: bool,
    /// The replicas that failed, and how.
    pub(super) failures: Vec<(&'r Replica, VolumeError)>,
    /// A replica that was overtaken once too often without having sent a byte.
    pub(super) stopped: Option<&'r Replica>,
}

impl<'r> Race<'r> {
    fn alone(replica: &'r Replica, outcome: Result<Source, VolumeError>) -> Self {
        let mut race = Self::default();
        race.finish(replica, outcome);
        race
    }

    fn finish(&mut self, replica: &'r Replica, outcome: Result<Source, VolumeError>) {
        match outcome {
            Ok(source) => self.won = Some(source),
            Err(error) => self.failures.push((replica, error)),
        }
    }

    fn is_over(&self) -> bool {
        self.won.is_some() || self.failures.len() == 2
    }
}

impl Hedges {
    pub(super) fn new() -> Self {
        Self { savings: Mutex::new(SAVED), memory: Arc::new(Semaphore::new(MEMORY as usize)) }
    }

    /// Asks `first`, and `second` too if there is one and `first` is late. When this returns, only the
    /// caller writes to the memory of `job`.
    pub(super) async fn race<'r>(
        &self,
        first: &'r Replica,
        second: Option<&'r Replica>,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
    ) -> Race<'r> {
        let progress = Progress::default();
        let Some(second) = second else {
            return Race::alone(first, first.read(cx, job, &progress).await);
        };
        let (bytes, outline) = (job.bytes(cx.chunk), job.outline());
        let mut memory = Vec::new();
        let mut race = Race::default();
        let mut overtaken = false;
        {
            let mut asking = pin!(first.read(cx, job, &progress));
            let _permit = tokio::select! {
                biased;
                outcome = &mut asking => return Race::alone(first, outcome),
                permit = self.permit_when_late(first, second, cx, &progress, bytes) => permit,
            };
            cx.metrics.hedge_sent();
            race.hedged = true;
            let mut twin = outline.job(&mut memory);
            let hedge = Progress::default();
            let mut hedging = pin!(second.send(cx, &mut twin, &hedge, cx.deadlines()));
            let (mut first_over, mut second_over) = (false, false);
            while !race.is_over() {
                tokio::select! {
                    biased;
                    outcome = &mut asking, if !first_over => {
                        first_over = true;
                        race.finish(first, outcome);
                    }
                    outcome = &mut hedging, if !second_over => {
                        second_over = true;
                        overtaken = outcome.is_ok();
                        race.finish(second, outcome);
                    }
                }
            }
            if overtaken && !first_over && first.overtaken(&progress, bytes) {
                race.stopped = Some(first);
            }
        }
        if overtaken {
            cx.metrics.hedge_won();
            job.accept(memory);
        }
        race
    }

    /// Completes when a request for `bytes`, which is under way to `first`, should be sent to `second`
    /// as well. Never, if no reader waits, if the response begins to come, or if there is no room.
    async fn permit_when_late(
        &self,
        first: &Replica,
        second: &Replica,
        cx: &FetchContext<'_>,
        progress: &Progress,
        bytes: u64,
    ) -> Permit {
        let start = Instant::now();
        cx.priority.raised().await;
        self.earn();
        let patience = first.server.patience(bytes);
        let mut late = start + patience;
        loop {
            sleep_until(late).await;
            if progress.begun.at().is_some() {
                std::future::pending::<()>().await;
            }
            if let Some(permit) = self.permit(first, second, bytes) {
                return permit;
            }
            late = Instant::now() + patience;
        }
    }

    fn permit(&self, first: &Replica, second: &Replica, bytes: u64) -> Option<Permit> {
        let memory = u32::try_from(bytes).ok()?;
        let memory = self.memory.clone().try_acquire_many_owned(memory).ok()?;
        let pass = second.server.gate().try_enter(bytes)?;
        (first.server.is_silent() || self.spend()).then_some(Permit { _pass: pass, _memory: memory })
    }

    fn earn(&self) {
        let mut savings = self.savings.lock();
        *savings = (*savings + EARNED).min(SAVED);
    }

    fn spend(&self) -> bool {
        let mut savings = self.savings.lock();
        let left = savings.checked_sub(PRICE);
        *savings = left.unwrap_or(*savings);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_stay_a_few_percent_of_all_requests() {
        let hedges = Hedges::new();
        let sent = (0..100_000)
            .filter(|_| {
                hedges.earn();
                hedges.spend()
            })
            .count();
        let saved = (SAVED / PRICE) as usize;
        let share = 100_000 * EARNED as usize / PRICE as usize;
        assert!((share..=share + saved).contains(&sent), "{sent}");
    }

    #[test]
    fn a_burst_of_hedges_is_bounded() {
        let hedges = Hedges::new();
        (0..100_000).for_each(|_| hedges.earn());
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), (SAVED / PRICE) as usize);
    }
}
