//! Single flight: whoever misses a block that is being fetched waits for that fetch.
//!
//! A fetch runs as a task of its own, so it goes on when the reader that started it gives up. Everyone who waits gets
//! its outcome, the error too; once it is over, the next miss starts anew.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::runtime::Handle;

use super::sync::Mutex;

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
type Board<K, V, E> = Arc<Mutex<HashMap<K, Outcome<V, E>>>>;

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

    /// Joins the fetch of `key`, or starts it. `landed` is asked under the lock, before anything is started, whether the
    /// value is there by now: a fetch makes its value visible to `landed` before it ends, so nothing is fetched twice.
    pub fn join<F>(
        &self,
        key: K,
        landed: impl FnOnce() -> Option<V>,
        fetch: impl FnOnce() -> F,
    ) -> Joined<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        if let Some(outcome) = flights.get(&key) {
            return Joined::Waiting(outcome.clone());
        }
        if let Some(value) = landed() {
            return Joined::Landed(value);
        }
        let fetch = fetch();
        let departure = Departure { flights: self.flights.clone(), key };
        let task = async move {
            let _departure = departure;
            fetch.await
        };
        let task = self.runtime.spawn(task.boxed());
        let outcome = async move { task.await.unwrap_or_else(|| Err(Interrupted.into())) }.boxed().shared();
        flights.insert(key, outcome.clone());
        Joined::Waiting(outcome)
    }

    /// The fetch of `key` that is under way, if there is one.
    pub fn outcome(&self, key: &K) -> Option<Outcome<V, E>> {
        self.flights.lock().get(key).cloned()
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

/// The fetch ended without an outcome, because it panicked or the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was interrupted")]
pub struct Interrupted;

/// Takes a flight off the board when its task ends, however that happens.
struct Departure<K: Eq + Hash, V, E> {
    flights: Board<K, V, E>,
    key: K,
}

impl<K: Eq + Hash, V, E> Drop for Departure<K, V, E> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
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
                    || None,
                    || async move {
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
        let first = board.join(1, || None, || async { Err(Failed::Refused) });
        let second = board.join(1, || None, || async { Ok(0) });
        assert_eq!(wait(first).await, Err(Failed::Refused));
        assert_eq!(wait(second).await, Err(Failed::Refused));
        assert!(!board.contains(&1));
        assert_eq!(wait(board.join(1, || None, || async { Ok(7) })).await, Ok(7));
    }

    #[tokio::test]
    async fn a_fetch_outlives_the_reader_that_started_it() {
        let board = Fetches::new(Handle::current());
        let (release, gate) = oneshot::channel::<()>();
        drop(board.join(
            1,
            || None,
            || async move {
                gate.await.ok();
                Ok(5)
            },
        ));
        let second = board.join(1, || None, || async { Err(Failed::Refused) });
        release.send(()).unwrap();
        assert_eq!(wait(second).await, Ok(5));
    }

    #[tokio::test]
    async fn a_panicking_fetch_is_an_error_and_leaves_the_board() {
        let board = Fetches::new(Handle::current());
        let joined = board.join(1, || None, || async { panic!("on purpose") });
        assert_eq!(wait(joined).await, Err(Failed::Interrupted));
        assert!(!board.contains(&1));
    }

    #[tokio::test]
    async fn what_landed_meanwhile_is_not_fetched() {
        let board = Fetches::new(Handle::current());
        assert!(matches!(board.join(1, || Some(9), || async { Ok(0) }), Joined::Landed(9)));
        assert!(!board.contains(&1));
    }
}
