//! Hedged requests: a second replica is asked for what the first one is slow to send.
//!
//! A request that a reader waits for is late when nothing of its response has come after the time
//! that its server has by its recent [latency](super::latency). The next replica is then asked as
//! well, and the first complete and verified response is taken. Hedging must not become a load of
//! its own when every server is slow:
//!
//! * of all requests that could be hedged, [`TOKENS_PER_REQUEST`] in [`HEDGE_COST`] are, and a
//!   burst after a quiet time (a token bucket);
//! * a hedge does not queue: it is sent only if its server has room for it now;
//! * all hedges together hold no more than [`MAX_HEDGE_BYTES`] bytes.
//!
//! A server that lost several races in a row without sending a byte has stopped rather than being
//! slow. A hedge of a request to such a server costs nothing, because there is no second response
//! to pay for.
//!
//! The destination belongs to the first request for as long as that lives. The hedge fills memory
//! of its own, which is copied to the destination only after the first request was dropped.
//! Dropping a request closes its connection, so bytes that come late reach no memory. Closing
//! costs a new connection later; reading the rest in order to keep the connection would cost the
//! very transfer that the server is slow at.

use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::gate::Permit;
use super::read_request::ReadRequest;
use super::replica::{FetchContext, Replica, RequestProgress};
use crate::seaweed::volume::VolumeError;
use crate::telemetry::Source;

/// Tokens that each request earns which could be hedged.
const TOKENS_PER_REQUEST: u32 = 30;
/// Tokens that a hedge costs: 3 % of the requests are hedged in the long run.
const HEDGE_COST: u32 = 1000;
/// The most tokens that are kept: 16 hedges at once after a quiet time, one for each reader of a
/// busy host.
const BUCKET_CAPACITY: u32 = 16 * HEDGE_COST;
/// What all hedges together may hold, beyond the cache. Larger requests are not hedged.
const MAX_HEDGE_BYTES: u32 = 32 << 20;

/// Sends hedges, as many as a token bucket and their memory allow.
#[derive(Debug)]
pub(super) struct Hedger {
    tokens: Mutex<u32>,
    memory: Arc<Semaphore>,
}

/// The permission for a hedge: room at its server, and memory for its response.
#[derive(Debug)]
struct HedgePermit {
    _permit: Permit,
    _memory: OwnedSemaphorePermit,
}

/// The outcome of asking one replica or two.
#[derive(Default)]
pub(super) struct RaceOutcome<'r> {
    /// Where the bytes came from, if the request is done.
    pub(super) won: Option<Source>,
    /// Whether the second replica was asked.
    pub(super) hedged: bool,
    /// The replicas that failed, and how.
    pub(super) failures: Vec<(&'r Replica, VolumeError)>,
    /// A replica that was overtaken once too often without having sent a byte.
    pub(super) stopped: Option<&'r Replica>,
}

impl<'r> RaceOutcome<'r> {
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

impl Hedger {
    pub(super) fn new() -> Self {
        Self {
            tokens: Mutex::new(BUCKET_CAPACITY),
            memory: Arc::new(Semaphore::new(MAX_HEDGE_BYTES as usize)),
        }
    }

    /// Asks `first`, and `second` too if there is one and `first` is late. When this returns, only
    /// the caller writes to the memory of `request`.
    pub(super) async fn race<'r>(
        &self,
        first: &'r Replica,
        second: Option<&'r Replica>,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
    ) -> RaceOutcome<'r> {
        let progress = RequestProgress::new(cx);
        let Some(second) = second else {
            return RaceOutcome::alone(first, first.read(cx, request, &progress).await);
        };
        let (bytes, shape) = (request.bytes(cx.chunk), request.shape());
        let mut memory = Vec::new();
        let mut race = RaceOutcome::default();
        let mut overtaken = false;
        {
            let mut asking = pin!(first.read(cx, request, &progress));
            let _permit = tokio::select! {
                biased;
                outcome = &mut asking => return RaceOutcome::alone(first, outcome),
                permit = self.permit_when_late(first, second, cx, &progress, bytes) => permit,
            };
            cx.metrics.hedge_sent();
            race.hedged = true;
            let mut twin = shape.request(&mut memory);
            let hedge_progress = RequestProgress::new(cx);
            let mut hedging = pin!(second.send(cx, &mut twin, &hedge_progress, cx.deadlines()));
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
            if overtaken && !first_over && first.record_lost_race(&progress, bytes) {
                race.stopped = Some(first);
            }
        }
        if overtaken {
            cx.metrics.hedge_won();
            request.accept(memory);
        }
        race
    }

    /// Completes when a request for `bytes`, which is under way to `first`, should be sent to
    /// `second` as well. Never, if no reader waits, if the response begins to come, or if there is
    /// no room.
    async fn permit_when_late(
        &self,
        first: &Replica,
        second: &Replica,
        cx: &FetchContext<'_>,
        progress: &RequestProgress,
        bytes: u64,
    ) -> HedgePermit {
        let start = Instant::now();
        cx.priority.raised().await;
        self.earn();
        let delay = first.server.hedge_delay(bytes);
        let mut late = start + delay;
        loop {
            sleep_until(late).await;
            if progress.response.first_byte_at().is_some() {
                std::future::pending::<()>().await;
            }
            if let Some(permit) = self.permit(first, second, bytes) {
                return permit;
            }
            late = Instant::now() + delay;
        }
    }

    fn permit(&self, first: &Replica, second: &Replica, bytes: u64) -> Option<HedgePermit> {
        let memory = u32::try_from(bytes).ok()?;
        let memory = self.memory.clone().try_acquire_many_owned(memory).ok()?;
        let permit = second.server.gate().try_acquire(bytes)?;
        (first.server.has_stopped() || self.try_spend())
            .then_some(HedgePermit { _permit: permit, _memory: memory })
    }

    fn earn(&self) {
        let mut tokens = self.tokens.lock();
        *tokens = (*tokens + TOKENS_PER_REQUEST).min(BUCKET_CAPACITY);
    }

    fn try_spend(&self) -> bool {
        let mut tokens = self.tokens.lock();
        let left = tokens.checked_sub(HEDGE_COST);
        *tokens = left.unwrap_or(*tokens);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_stay_a_few_percent_of_all_requests() {
        let hedger = Hedger::new();
        let sent = (0..100_000)
            .filter(|_| {
                hedger.earn();
                hedger.try_spend()
            })
            .count();
        let burst = (BUCKET_CAPACITY / HEDGE_COST) as usize;
        let share = 100_000 * TOKENS_PER_REQUEST as usize / HEDGE_COST as usize;
        assert!((share..=share + burst).contains(&sent), "{sent}");
    }

    #[test]
    fn a_burst_of_hedges_is_bounded() {
        let hedger = Hedger::new();
        (0..100_000).for_each(|_| hedger.earn());
        assert_eq!((0..100).filter(|_| hedger.try_spend()).count(), (BUCKET_CAPACITY / HEDGE_COST) as usize);
    }
}
