//! Single flight: whoever misses a block that is being fetched waits for that fetch.
//!
//! A fetch runs as a task of its own, so it goes on when the reader that started it gives up. Everyone who waits gets
//! its outcome, the error too; once it is over, the next miss starts anew.
//!
//! A fetch that was started on speculation becomes a demand when a reader joins it ([`Priority`]). One that was given up cannot
//! be joined any more, even while it is being wound up: the reader starts another.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::runtime::Handle;

use super::sync::Mutex;
use crate::arrival::Arrival;
use crate::priority::{Priority, Urgency};

/// Runs fetches.
pub trait Spawn: Clone + Send + Sync + 'static {
    /// Runs `task` to its end, whether or not anybody waits for the result. None if it panicked or was cut off.
    fn spawn<T: Send + 'static>(&self, task: BoxFuture<'static, T>) -> BoxFuture<'static, Option<T>>;
}

impl Spawn for Handle {
    fn spawn<T: Send + 'static>(&self, task: BoxFuture<'static, T>) -> BoxFuture<'static, Option<T>> {
        let task = Handle::spawn(self, task);
        async move { task.await.ok() }.boxed()
    }
}

/// Resolves for everyone who waits for a fetch when that is over.
pub type Outcome<V, E> = Shared<BoxFuture<'static, Result<V, E>>>;

/// Fetches in flight, by what they fetch.
pub struct Flights<K, V, E, S = Handle> {
    flights: Board<K, V, E>,
    runtime: S,
}

/// The flights that everybody can see, and that each takes itself off.
type Board<K, V, E> = Arc<Mutex<HashMap<K, Flight<V, E>>>>;

struct Flight<V, E> {
    priority: Priority,
    outcome: Outcome<V, E>,
}

impl<K, V, E, S> Flights<K, V, E, S>
where
    S: Spawn,
    K: Eq + Hash + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<Interrupted> + 'static,
{
    /// No flight yet; fetches will run on `runtime`.
    pub fn new(runtime: S) -> Self {
        Self { flights: Arc::new(Mutex::new(HashMap::new())), runtime }
    }

    /// Joins the fetch of `key`, or starts it, for a reader that comes now or on speculation.
    pub fn join<F>(
        &self,
        key: K,
        urgency: Urgency,
        landed: impl FnOnce() -> Option<V>,
        fetch: impl FnOnce(Priority) -> F,
    ) -> Joined<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let arrival = (urgency == Urgency::Demand).then(Arrival::now);
        self.join_for(key, arrival, landed, fetch)
    }

    /// Joins the fetch of `key`, or starts it, for a reader that came at `arrival`, or on speculation; `fetch` is given its priority. `landed` is asked under the lock, before anything is started, whether the
    /// value is there by now: a fetch makes its value visible to `landed` before it ends, so nothing is fetched twice.
    pub fn join_for<F>(
        &self,
        key: K,
        arrival: Option<Arrival>,
        landed: impl FnOnce() -> Option<V>,
        fetch: impl FnOnce(Priority) -> F,
    ) -> Joined<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        if let Some(Flight { priority, outcome }) = flights.get(&key)
            && arrival.is_none_or(|arrival| priority.raise(arrival))
        {
            return Joined::Waiting(outcome.clone());
        }
        if let Some(value) = landed() {
            return Joined::Landed(value);
        }
        let priority = arrival.map_or_else(|| Priority::new(Urgency::Speculative), Priority::demand);
        let fetch = fetch(priority.clone());
        let departure = Departure { flights: self.flights.clone(), key, priority: priority.clone() };
        let task = async move {
            let _departure = departure;
            fetch.await
        };
        let task = self.runtime.spawn(task.boxed());
        let outcome = async move { task.await.unwrap_or_else(|| Err(Interrupted.into())) }.boxed().shared();
        flights.insert(key, Flight { priority, outcome: outcome.clone() });
        Joined::Waiting(outcome)
    }

    /// The fetch of `key` that is under way, if there is one.
    pub fn outcome(&self, key: &K) -> Option<Outcome<V, E>> {
        self.flights.lock().get(key).map(|flight| flight.outcome.clone())
    }

    /// Whether `key` is being fetched.
    pub fn contains(&self, key: &K) -> bool {
        self.flights.lock().contains_key(key)
    }
}

/// What became of an attempt to join a fetch.
pub enum Joined<V, E> {
    /// The value is there.
    Landed(V),
    /// It will be, or not.
    Waiting(Outcome<V, E>),
}

/// The fetch ended without an outcome, because it panicked, was given up, or the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was interrupted")]
pub struct Interrupted;

/// Takes a flight off the board when its task ends, however that happens.
struct Departure<K: Eq + Hash, V, E> {
    flights: Board<K, V, E>,
    key: K,
    priority: Priority,
}

impl<K: Eq + Hash, V, E> Drop for Departure<K, V, E> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // After it was given up another may have taken its place.
        if flights.get(&self.key).is_some_and(|flight| flight.priority.ptr_eq(&self.priority)) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    #[derive(Debug, Clone, PartialEq)]
    enum Failed {
        Interrupted,
        Refused,
    }

    impl From<Interrupted> for Failed {
        fn from(_: Interrupted) -> Self {
            Self::Interrupted
        }
    }

    type Fetches = Flights<u32, u32, Failed>;

    async fn wait(joined: Joined<u32, Failed>) -> Result<u32, Failed> {
        match joined {
            Joined::Landed(value) => Ok(value),
            Joined::Waiting(outcome) => outcome.await,
        }
    }

    #[tokio::test]
    async fn many_readers_make_one_fetch() {
        let board = Fetches::new(Handle::current());
        let started = Arc::new(AtomicUsize::new(0));
        let (release, gate) = oneshot::channel::<()>();
        let mut gate = Some(gate);
        let waits: Vec<_> = (0..10)
            .map(|_| {
                let gate = gate.take();
                let started = started.clone();
                board.join(
                    1,
                    Urgency::Demand,
                    || None,
                    |_| async move {
                        started.fetch_add(1, Ordering::Relaxed);
                        gate.expect("only the first fetch runs").await.ok();
                        Ok(42)
                    },
                )
            })
            .collect();
        release.send(()).unwrap();
        for joined in waits {
            assert_eq!(wait(joined).await, Ok(42));
        }
        assert_eq!(started.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn everyone_gets_the_error_and_the_next_tries_anew() {
        let board = Fetches::new(Handle::current());
        let first = board.join(1, Urgency::Demand, || None, |_| async { Err(Failed::Refused) });
        let second = board.join(1, Urgency::Demand, || None, |_| async { Ok(0) });
        assert_eq!(wait(first).await, Err(Failed::Refused));
        assert_eq!(wait(second).await, Err(Failed::Refused));
        assert!(!board.contains(&1));
        assert_eq!(wait(board.join(1, Urgency::Demand, || None, |_| async { Ok(7) })).await, Ok(7));
    }

    #[tokio::test]
    async fn a_fetch_outlives_the_reader_that_started_it() {
        let board = Fetches::new(Handle::current());
        let (release, gate) = oneshot::channel::<()>();
        drop(board.join(
            1,
            Urgency::Demand,
            || None,
            |_| async move {
                gate.await.ok();
                Ok(5)
            },
        ));
        let second = board.join(1, Urgency::Demand, || None, |_| async { Err(Failed::Refused) });
        release.send(()).unwrap();
        assert_eq!(wait(second).await, Ok(5));
    }

    #[tokio::test]
    async fn a_reader_makes_a_demand_of_the_speculation_it_joins() {
        let board = Fetches::new(Handle::current());
        let mut given = None;
        let fetch = |priority: Priority| {
            given = Some(priority.clone());
            async move {
                priority.raised().await;
                Ok(1)
            }
        };
        drop(board.join(1, Urgency::Speculative, || None, fetch));
        drop(board.join(1, Urgency::Speculative, || None, |_| async { Ok(2) }));
        assert_eq!(given.unwrap().urgency(), Urgency::Speculative);
        assert_eq!(wait(board.join(1, Urgency::Demand, || None, |_| async { Ok(3) })).await, Ok(1));
    }

    #[tokio::test]
    async fn a_fetch_that_was_given_up_is_not_joined_and_does_not_take_its_successor_along() {
        let board = Fetches::new(Handle::current());
        let (end, ended) = oneshot::channel::<()>();
        let fetch = |priority: Priority| {
            assert!(priority.try_cancel());
            async move {
                ended.await.ok();
                Err(Failed::Interrupted)
            }
        };
        let given_up = board.join(1, Urgency::Speculative, || None, fetch);
        let (release, gate) = oneshot::channel::<()>();
        let anew = board.join(
            1,
            Urgency::Demand,
            || None,
            |_| async move {
                gate.await.ok();
                Ok(5)
            },
        );
        end.send(()).unwrap();
        assert_eq!(wait(given_up).await, Err(Failed::Interrupted));
        assert!(board.contains(&1), "the one that was started anew is under way");
        release.send(()).unwrap();
        assert_eq!(wait(anew).await, Ok(5));
        assert!(!board.contains(&1));
    }

    #[tokio::test]
    async fn a_panicking_fetch_is_an_error_and_leaves_the_board() {
        let board = Fetches::new(Handle::current());
        let joined = board.join(1, Urgency::Demand, || None, |_| async { panic!("on purpose") });
        assert_eq!(wait(joined).await, Err(Failed::Interrupted));
        assert!(!board.contains(&1));
    }

    #[tokio::test]
    async fn what_landed_meanwhile_is_not_fetched() {
        let board = Fetches::new(Handle::current());
        assert!(matches!(board.join(1, Urgency::Demand, || Some(9), |_| async { Ok(0) }), Joined::Landed(9)));
        assert!(!board.contains(&1));
    }
}
