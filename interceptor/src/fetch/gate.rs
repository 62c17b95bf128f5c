//! Bounds what one server is asked for at a time, and decides which request goes first.
//!
//! A request holds a [`Permit`] from before it is sent until its response has been read. The
//! number and the bytes of requests in flight are bounded ([`Load`]); further requests queue in
//! the order of their arrival, in two lanes:
//!
//! * a **demand**, for which a reader waits, goes as soon as it fits, after the demands before it;
//! * **speculation** goes only when no demand waits, and has half of the bound at most, so that a
//!   demand that comes finds room.
//!
//! Speculation that a reader joins changes lanes: in the queue it goes before the demands that
//! came after it, and in flight it counts as a demand from then on, which makes room for other
//! speculation. Sustained demand starves speculation, by design.
//!
//! A request that is larger than the bound goes when nothing else is in flight, so none waits for
//! ever.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::priority::{Priority, Urgency};

/// An amount of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Their number.
    pub(super) requests: usize,
    /// The bytes that they ask for.
    pub(super) bytes: u64,
}

impl Load {
    /// With `self` as the bound: whether a request for `bytes` fits beside those in flight.
    fn fits(self, inflight: Load, bytes: u64) -> bool {
        inflight.requests == 0
            || (inflight.requests < self.requests && inflight.bytes.saturating_add(bytes) <= self.bytes)
    }

    /// With `self` as the bound: the part of it that speculation may have.
    fn half(self) -> Self {
        Self { requests: (self.requests / 2).max(1), bytes: self.bytes / 2 }
    }

    fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: u64) {
        self.requests -= 1;
        self.bytes -= bytes;
    }
}

/// The queue in front of one server.
#[derive(Debug)]
pub(super) struct Gate {
    bound: Load,
    queue: Mutex<QueueState>,
}

/// The requests that are in flight, and those that wait.
#[derive(Debug, Default)]
struct QueueState {
    demand: Lane,
    speculation: Lane,
    /// How many requests have come so far.
    tickets: u64,
}

#[derive(Debug, Default)]
struct Lane {
    inflight: Load,
    /// By ticket, that is in the order of arrival.
    waiting: BTreeMap<u64, QueuedRequest>,
}

#[derive(Debug)]
struct QueuedRequest {
    bytes: u64,
    admit: oneshot::Sender<()>,
}

impl Gate {
    /// A gate that never has more than `bound` in flight, except for a single larger request.
    pub(super) fn new(bound: Load) -> Arc<Self> {
        Arc::new(Self { bound, queue: Mutex::default() })
    }

    /// Waits until a request for `bytes` may be sent.
    pub(super) async fn acquire(self: &Arc<Self>, priority: &Priority, bytes: u64) -> Permit {
        let (mut permit, admitted) = self.admit_or_queue(priority.urgency(), bytes);
        let Some(mut admitted) = admitted else { return permit };
        if permit.urgency == Urgency::Speculative {
            tokio::select! {
                biased;
                // The sender is dropped only when this permit is.
                _ = &mut admitted => return permit,
                () = priority.raised() => permit.raise(),
            }
        }
        let _ = admitted.await;
        permit
    }

    /// A permit for a demand for `bytes`, if it need not wait.
    pub(super) fn try_acquire(self: &Arc<Self>, bytes: u64) -> Option<Permit> {
        let mut queue = self.queue.lock();
        queue.admits_now(self.bound, Urgency::Demand, bytes).then(|| {
            queue.lane(Urgency::Demand).inflight.add(bytes);
            let ticket = queue.next_ticket();
            Permit { gate: self.clone(), ticket, urgency: Urgency::Demand, bytes }
        })
    }

    /// How many requests are in flight, and how many wait.
    pub(super) fn load(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        let waiting = queue.demand.waiting.len() + queue.speculation.waiting.len();
        (queue.inflight().requests as u64, waiting as u64)
    }

    /// A permit that is valid now, or one in the queue with the receiver that says when it is
    /// valid.
    fn admit_or_queue(
        self: &Arc<Self>,
        urgency: Urgency,
        bytes: u64,
    ) -> (Permit, Option<oneshot::Receiver<()>>) {
        let mut queue = self.queue.lock();
        let ticket = queue.next_ticket();
        let permit = Permit { gate: self.clone(), ticket, urgency, bytes };
        if queue.admits_now(self.bound, urgency, bytes) {
            queue.lane(urgency).inflight.add(bytes);
            return (permit, None);
        }
        let (admit, admitted) = oneshot::channel();
        queue.lane(urgency).waiting.insert(ticket, QueuedRequest { bytes, admit });
        (permit, Some(admitted))
    }
}

impl QueueState {
    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn lane(&mut self, urgency: Urgency) -> &mut Lane {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Speculative => &mut self.speculation,
        }
    }

    fn inflight(&self) -> Load {
        let (demand, speculation) = (self.demand.inflight, self.speculation.inflight);
        Load { requests: demand.requests + speculation.requests, bytes: demand.bytes + speculation.bytes }
    }

    /// Whether a request that comes now may go at once.
    fn admits_now(&self, bound: Load, urgency: Urgency, bytes: u64) -> bool {
        self.demand.waiting.is_empty()
            && match urgency {
                Urgency::Demand => bound.fits(self.inflight(), bytes),
                Urgency::Speculative => {
                    self.speculation.waiting.is_empty() && self.fits_speculation(bound, bytes)
                }
            }
    }

    fn fits_speculation(&self, bound: Load, bytes: u64) -> bool {
        bound.fits(self.inflight(), bytes) && bound.half().fits(self.speculation.inflight, bytes)
    }

    /// Admits the waiting requests for which there is room now.
    fn admit_waiting(&mut self, bound: Load) {
        while let Some((_, first)) = self.demand.waiting.first_key_value()
            && bound.fits(self.inflight(), first.bytes)
        {
            self.demand.admit_first();
        }
        while self.demand.waiting.is_empty()
            && let Some((_, first)) = self.speculation.waiting.first_key_value()
            && self.fits_speculation(bound, first.bytes)
        {
            self.speculation.admit_first();
        }
    }
}

impl Lane {
    fn admit_first(&mut self) {
        if let Some((_, first)) = self.waiting.pop_first() {
            self.inflight.add(first.bytes);
            // Fails only for a request that is being dropped, whose permit gives the room back.
            let _ = first.admit.send(());
        }
    }
}

/// The right to ask a server for so many bytes, or a place in the queue for that. Dropping it
/// gives back either.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    ticket: u64,
    urgency: Urgency,
    bytes: u64,
}

impl Permit {
    /// Does `work`, for which the permit was acquired, and drops the permit. The permit becomes
    /// one of a demand as soon as `priority` is raised.
    pub(super) async fn run<T>(mut self, priority: &Priority, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if self.urgency == Urgency::Speculative {
            tokio::select! {
                biased;
                outcome = &mut work => return outcome,
                () = priority.raised() => self.raise(),
            }
        }
        work.await
    }

    /// Moves the permit from the speculative lane to that of demands, in the queue or in flight.
    fn raise(&mut self) {
        self.urgency = Urgency::Demand;
        let mut queue = self.gate.queue.lock();
        match queue.speculation.waiting.remove(&self.ticket) {
            Some(request) => {
                queue.demand.waiting.insert(self.ticket, request);
            }
            None => {
                queue.speculation.inflight.remove(self.bytes);
                queue.demand.inflight.add(self.bytes);
            }
        }
        queue.admit_waiting(self.gate.bound);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut queue = self.gate.queue.lock();
        let lane = queue.lane(self.urgency);
        if lane.waiting.remove(&self.ticket).is_none() {
            lane.inflight.remove(self.bytes);
        }
        queue.admit_waiting(self.gate.bound);
    }
}

#[cfg(test)]
mod tests;
