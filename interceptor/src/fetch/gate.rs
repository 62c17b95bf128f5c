//! How much one server is asked for at a time, and who goes first.
//!
//! A request has a [`Pass`] from before it is sent until its answer has been read. So many requests for so many bytes may be
//! inside at a time ([`Load`]); the others wait, in the order in which they came:
//!
//! * a **demand**, for which a reader waits, enters as soon as it fits, after the demands before it;
//! * **speculation** enters only when no demand waits, and fills half of the room at most, so that a demand that comes finds some.
//!
//! Speculation that a reader joins becomes a demand where it stands: in the queue it goes before the demands that came after it,
//! and inside it counts as a demand from then on, which makes room for other speculation. Demands that never cease to wait keep
//! speculation out: that is what is meant by yielding.
//!
//! A request for more than fits enters when it is alone, so nothing waits for what cannot be.

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
    /// As a bound: whether a request for `bytes` may come to `inside`.
    fn takes(self, inside: Load, bytes: u64) -> bool {
        inside.requests == 0
            || (inside.requests < self.requests && inside.bytes.saturating_add(bytes) <= self.bytes)
    }

    /// As a bound: the part of it that speculation may fill.
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

/// The way to one server.
#[derive(Debug)]
pub(super) struct Gate {
    bound: Load,
    book: Mutex<Book>,
}

/// Who is inside and who waits.
#[derive(Debug, Default)]
struct Book {
    demand: Side,
    speculation: Side,
    /// How many have come so far.
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Side {
    inside: Load,
    /// By number of arrival.
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    turn: oneshot::Sender<()>,
}

impl Gate {
    /// A gate that never lets in more than `bound`.
    pub(super) fn new(bound: Load) -> Arc<Self> {
        Arc::new(Self { bound, book: Mutex::default() })
    }

    /// Waits for the turn of a request for `bytes`.
    pub(super) async fn enter(self: &Arc<Self>, priority: &Priority, bytes: u64) -> Pass {
        let (mut pass, turn) = self.arrive(priority.urgency(), bytes);
        let Some(mut turn) = turn else { return pass };
        if pass.urgency == Urgency::Speculative {
            tokio::select! {
                biased;
                // The other end is dropped only by this pass.
                _ = &mut turn => return pass,
                () = priority.raised() => pass.raise(),
            }
        }
        let _ = turn.await;
        pass
    }

    /// Lets a demand for `bytes` in, if it need not wait.
    pub(super) fn try_enter(self: &Arc<Self>, bytes: u64) -> Option<Pass> {
        let mut book = self.book.lock();
        book.admits(self.bound, Urgency::Demand, bytes).then(|| {
            book.side(Urgency::Demand).inside.add(bytes);
            let number = book.arrival();
            Pass { gate: self.clone(), number, urgency: Urgency::Demand, bytes }
        })
    }

    /// How many requests are inside, and how many wait.
    pub(super) fn load(&self) -> (u64, u64) {
        let book = self.book.lock();
        let waiting = book.demand.waiting.len() + book.speculation.waiting.len();
        (book.inside().requests as u64, waiting as u64)
    }

    /// A pass that is inside already, or that waits for its turn.
    fn arrive(self: &Arc<Self>, urgency: Urgency, bytes: u64) -> (Pass, Option<oneshot::Receiver<()>>) {
        let mut book = self.book.lock();
        let number = book.arrival();
        let pass = Pass { gate: self.clone(), number, urgency, bytes };
        if book.admits(self.bound, urgency, bytes) {
            book.side(urgency).inside.add(bytes);
            return (pass, None);
        }
        let (turn, called) = oneshot::channel();
        book.side(urgency).waiting.insert(number, Waiting { bytes, turn });
        (pass, Some(called))
    }
}

impl Book {
    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn side(&mut self, urgency: Urgency) -> &mut Side {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Speculative => &mut self.speculation,
        }
    }

    fn inside(&self) -> Load {
        let (demand, speculation) = (self.demand.inside, self.speculation.inside);
        Load { requests: demand.requests + speculation.requests, bytes: demand.bytes + speculation.bytes }
    }

    /// Whether one that comes now may go in at once.
    fn admits(&self, bound: Load, urgency: Urgency, bytes: u64) -> bool {
        self.demand.waiting.is_empty()
            && match urgency {
                Urgency::Demand => bound.takes(self.inside(), bytes),
                Urgency::Speculative => {
                    self.speculation.waiting.is_empty() && self.takes_speculation(bound, bytes)
                }
            }
    }

    fn takes_speculation(&self, bound: Load, bytes: u64) -> bool {
        bound.takes(self.inside(), bytes) && bound.half().takes(self.speculation.inside, bytes)
    }

    /// Calls in those whose turn it is.
    fn call(&mut self, bound: Load) {
        while let Some((_, first)) = self.demand.waiting.first_key_value()
            && bound.takes(self.inside(), first.bytes)
        {
            self.demand.call_first();
        }
        while self.demand.waiting.is_empty()
            && let Some((_, first)) = self.speculation.waiting.first_key_value()
            && self.takes_speculation(bound, first.bytes)
        {
            self.speculation.call_first();
        }
    }
}

impl Side {
    fn call_first(&mut self) {
        if let Some((_, first)) = self.waiting.pop_first() {
            self.inside.add(first.bytes);
            // Whoever waits has taken itself off the list before it stops listening.
            let _ = first.turn.send(());
        }
    }
}

/// The right to ask a server for so many bytes, or a place in the queue for that; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    number: u64,
    urgency: Urgency,
    bytes: u64,
}

impl Pass {
    /// Does what it takes the pass for, and gives it back. Becomes a demand as soon as `priority` is one.
    pub(super) async fn during<T>(mut self, priority: &Priority, work: impl Future<Output = T>) -> T {
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

    /// Makes a demand of speculation, in the queue or inside.
    fn raise(&mut self) {
        self.urgency = Urgency::Demand;
        let mut book = self.gate.book.lock();
        match book.speculation.waiting.remove(&self.number) {
            Some(waiting) => {
                book.demand.waiting.insert(self.number, waiting);
            }
            None => {
                book.speculation.inside.remove(self.bytes);
                book.demand.inside.add(self.bytes);
            }
        }
        book.call(self.gate.bound);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut book = self.gate.book.lock();
        let side = book.side(self.urgency);
        if side.waiting.remove(&self.number).is_none() {
            side.inside.remove(self.bytes);
        }
        book.call(self.gate.bound);
    }
}

#[cfg(test)]
mod tests;
