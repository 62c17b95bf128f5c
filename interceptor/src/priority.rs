//! Whether anybody waits for a fetch, which may change while it is under way.
//!
//! A block that is fetched ahead begins as speculation. A reader who misses it joins that fetch rather than starting another,
//! and from then on it is a demand wherever it stands: in a server's queue, or on its way. The other way out is to be given up,
//! because whoever the block was meant for is gone. Both are final and only one of them happens, so a reader never waits for a
//! fetch that has been given up: [`Priority::raise`] tells it to start anew.

use std::sync::Arc;

use tokio::sync::watch;

use crate::arrival::Arrival;

/// Whether somebody waits for what is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A reader waits.
    Demand,
    /// Nobody has asked for it yet.
    Speculative,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For the first of the readers that wait, which came then.
    Demand(Arrival),
    Speculative,
    GivenUp,
}

/// The urgency of one fetch, shared by the fetch and those who may raise it. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Priority(Arc<watch::Sender<State>>);

impl Priority {
    /// That of a new fetch; a demand is one of now.
    pub fn new(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Demand => Self::demand(Arrival::now()),
            Urgency::Speculative => Self(Arc::new(watch::Sender::new(State::Speculative))),
        }
    }

    /// That of a new fetch for a reader that came at `arrival`.
    pub fn demand(arrival: Arrival) -> Self {
        Self(Arc::new(watch::Sender::new(State::Demand(arrival))))
    }

    /// What it is now.
    pub fn urgency(&self) -> Urgency {
        match *self.0.borrow() {
            State::Demand(_) => Urgency::Demand,
            State::Speculative | State::GivenUp => Urgency::Speculative,
        }
    }

    /// When the reader came that waits, or the first of them; `None` while none does.
    pub fn demanded(&self) -> Option<Arrival> {
        match *self.0.borrow() {
            State::Demand(arrival) => Some(arrival),
            State::Speculative | State::GivenUp => None,
        }
    }

    /// Makes a demand of it, because a reader waits that came at `arrival`. False if it was given up before: it will not be
    /// completed.
    pub fn raise(&self, arrival: Arrival) -> bool {
        self.leave_speculation(State::Demand(arrival));
        self.demanded().is_some()
    }

    /// Gives it up, unless somebody waits for it. Returns whether it is given up.
    pub fn give_up(&self) -> bool {
        self.leave_speculation(State::GivenUp);
        *self.0.borrow() == State::GivenUp
    }

    /// Waits until it is a demand; for ever, if it never becomes one.
    pub async fn raised(&self) {
        // Cannot fail: the sender is this value's own.
        let _ = self.0.subscribe().wait_for(|state| matches!(state, State::Demand(_))).await;
    }

    /// Whether both are the same one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn leave_speculation(&self, to: State) {
        self.0.send_if_modified(|state| {
            let speculative = *state == State::Speculative;
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
    fn what_is_raised_is_not_given_up_and_the_other_way_round() {
        let raised = Priority::new(Urgency::Speculative);
        assert!(raised.raised().now_or_never().is_none());
        let arrival = Arrival::now();
        assert!(raised.raise(arrival) && raised.raise(Arrival::now()));
        assert_eq!(raised.demanded(), Some(arrival), "the first reader's");
        assert!(!raised.give_up());
        assert_eq!(raised.urgency(), Urgency::Demand);
        assert!(raised.raised().now_or_never().is_some());

        let given_up = Priority::new(Urgency::Speculative);
        assert!(given_up.give_up());
        assert!(!given_up.raise(arrival));
        assert!(given_up.raised().now_or_never().is_none());

        let demand = Priority::new(Urgency::Demand);
        assert!(demand.raise(arrival) && !demand.give_up());
    }
}
