//! Whether a reader waits for a fetch. This may change while the fetch is under way.
//!
//! A block that is fetched ahead starts as speculation. A reader that misses the block joins the
//! fetch instead of starting another. From then on the fetch is a demand, wherever it is: in a
//! server's queue, or in flight. The alternative is that speculation is cancelled, because the
//! reader that it was meant for is gone. Either is final, and they exclude each other, so a reader
//! never waits for a cancelled fetch: [`Priority::raise`] tells it to start a new one.

use std::sync::Arc;

use tokio::sync::watch;

use crate::arrival::Arrival;

/// Whether a reader waits for what is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A reader waits.
    Demand,
    /// No reader has asked for it yet.
    Speculative,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PriorityState {
    /// A reader waits; the first one arrived at this time.
    Demand(Arrival),
    Speculative,
    Cancelled,
}

/// The urgency of one fetch, shared by the fetch and those that may raise or cancel it. Clones
/// share one state.
#[derive(Debug, Clone)]
pub struct Priority(Arc<watch::Sender<PriorityState>>);

impl Priority {
    /// The priority of a new fetch. A demand counts from now.
    pub fn new(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Demand => Self::demand(Arrival::now()),
            Urgency::Speculative => Self(Arc::new(watch::Sender::new(PriorityState::Speculative))),
        }
    }

    /// The priority of a new fetch for a reader whose request arrived at `arrival`.
    pub fn demand(arrival: Arrival) -> Self {
        Self(Arc::new(watch::Sender::new(PriorityState::Demand(arrival))))
    }

    /// The urgency now. A cancelled fetch counts as speculation.
    pub fn urgency(&self) -> Urgency {
        match self.demanded_at() {
            Some(_) => Urgency::Demand,
            None => Urgency::Speculative,
        }
    }

    /// When the first reader that waits arrived; `None` while no reader waits.
    pub fn demanded_at(&self) -> Option<Arrival> {
        match *self.0.borrow() {
            PriorityState::Demand(arrival) => Some(arrival),
            PriorityState::Speculative | PriorityState::Cancelled => None,
        }
    }

    /// Makes the fetch a demand, for a reader that arrived at `arrival`. Returns false if the
    /// fetch is cancelled, and will not complete.
    pub fn raise(&self, arrival: Arrival) -> bool {
        self.leave_speculation(PriorityState::Demand(arrival));
        self.demanded_at().is_some()
    }

    /// Cancels the fetch, unless a reader waits for it. Returns whether it is cancelled.
    pub fn try_cancel(&self) -> bool {
        self.leave_speculation(PriorityState::Cancelled);
        *self.0.borrow() == PriorityState::Cancelled
    }

    /// Completes when the fetch is a demand; never, if it does not become one.
    pub async fn raised(&self) {
        // Cannot fail: this value holds the sender.
        let _ = self.0.subscribe().wait_for(|state| matches!(state, PriorityState::Demand(_))).await;
    }

    /// Whether both are the priority of the same fetch.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn leave_speculation(&self, to: PriorityState) {
        self.0.send_if_modified(|state| {
            let speculative = *state == PriorityState::Speculative;
            if speculative {
                *state = to;
            }
            speculative
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_raised_fetch_cannot_be_cancelled_nor_a_cancelled_one_raised() {
        let raised = Priority::new(Urgency::Speculative);
        assert!(raised.raised().now_or_never().is_none());
        let arrival = Arrival::now();
        assert!(raised.raise(arrival) && raised.raise(Arrival::now()));
        assert_eq!(raised.demanded_at(), Some(arrival), "the first reader's");
        assert!(!raised.try_cancel());
        assert_eq!(raised.urgency(), Urgency::Demand);
        assert!(raised.raised().now_or_never().is_some());

        let cancelled = Priority::new(Urgency::Speculative);
        assert!(cancelled.try_cancel());
        assert!(!cancelled.raise(arrival));
        assert!(cancelled.raised().now_or_never().is_none());

        let demand = Priority::new(Urgency::Demand);
        assert!(demand.raise(arrival) && !demand.try_cancel());
    }
}
