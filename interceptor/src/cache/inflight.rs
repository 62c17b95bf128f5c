//! Single flight: a reader that misses a block in flight waits for the fetch that runs.
//!
//! A fetch runs as a task of its own, so it goes on if the reader that started it gives up. All
//! readers that wait get its result, an error too; the next miss after that starts another fetch.
//!
//! A speculative fetch becomes a demand when a reader joins it ([`Priority`]). A cancelled fetch
//! cannot be joined any more, even while it is still winding up: the reader starts another.

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
    /// Runs `task` to its end, even if the returned future is dropped. None if the task panicked
    /// or was aborted.
    fn spawn<T: Send + 'static>(&self, task: BoxFuture<'static, T>) -> BoxFuture<'static, Option<T>>;
}

impl Spawn for Handle {
    fn spawn<T: Send + 'static>(&self, task: BoxFuture<'static, T>) -> BoxFuture<'static, Option<T>> {
        let task = Handle::spawn(self, task);
        async move { task.await.ok() }.boxed()
    }
}

/// Resolves with the result of a fetch, for every reader that waits for it.
pub type SharedFetch<V, E> = Shared<BoxFuture<'static, Result<V, E>>>;

/// Fetches in flight, by what they fetch.
pub struct InflightMap<K, V, E, S = Handle> {
    fetches: Fetches<K, V, E>,
    runtime: S,
}

/// Shared with the tasks, each of which removes its own fetch.
type Fetches<K, V, E> = Arc<Mutex<HashMap<K, InflightFetch<V, E>>>>;

struct InflightFetch<V, E> {
    priority: Priority,
    result: SharedFetch<V, E>,
}

impl<K, V, E, S> InflightMap<K, V, E, S>
where
    S: Spawn,
    K: Eq + Hash + Copy + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + From<FetchInterrupted> + 'static,
{
    /// An empty map; fetches will run on `runtime`.
    pub fn new(runtime: S) -> Self {
        Self { fetches: Arc::new(Mutex::new(HashMap::new())), runtime }
    }

    /// Joins the fetch of `key`, or starts it, on speculation or for a reader that arrives now.
    /// See [`join_at`](Self::join_at).
    pub fn join<F>(
        &self,
        key: K,
        urgency: Urgency,
        lookup: impl FnOnce() -> Option<V>,
        fetch: impl FnOnce(Priority) -> F,
    ) -> Joined<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let arrival = (urgency == Urgency::Demand).then(Arrival::now);
        self.join_at(key, arrival, lookup, fetch)
    }

    /// Joins the fetch of `key`, or starts it, on speculation or for a reader that came at
    /// `arrival`.
    ///
    /// Calls `lookup` under the lock before it starts a fetch. A fetch makes its value visible to
    /// `lookup` before it ends, so nothing is fetched twice. `fetch` is given its priority.
    pub fn join_at<F>(
        &self,
        key: K,
        arrival: Option<Arrival>,
        lookup: impl FnOnce() -> Option<V>,
        fetch: impl FnOnce(Priority) -> F,
    ) -> Joined<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut fetches = self.fetches.lock();
        if let Some(InflightFetch { priority, result }) = fetches.get(&key)
            && arrival.is_none_or(|arrival| priority.raise(arrival))
        {
            return Joined::InFlight(result.clone());
        }
        if let Some(value) = lookup() {
            return Joined::Cached(value);
        }
        let priority = arrival.map_or_else(|| Priority::new(Urgency::Speculative), Priority::demand);
        let fetch = fetch(priority.clone());
        let guard = InflightGuard { fetches: self.fetches.clone(), key, priority: priority.clone() };
        let task = async move {
            let _guard = guard;
            fetch.await
        };
        let task = self.runtime.spawn(task.boxed());
        let result =
            async move { task.await.unwrap_or_else(|| Err(FetchInterrupted.into())) }.boxed().shared();
        fetches.insert(key, InflightFetch { priority, result: result.clone() });
        Joined::InFlight(result)
    }

    /// The fetch of `key`, if one is in flight.
    pub fn get(&self, key: &K) -> Option<SharedFetch<V, E>> {
        self.fetches.lock().get(key).map(|fetch| fetch.result.clone())
    }

    /// Whether a fetch of `key` is in flight.
    pub fn contains(&self, key: &K) -> bool {
        self.fetches.lock().contains_key(key)
    }
}

/// The result of joining a fetch.
pub enum Joined<V, E> {
    /// The value is available; no fetch was needed.
    Cached(V),
    /// A fetch is in flight that will bring the value, or fail.
    InFlight(SharedFetch<V, E>),
}

/// The fetch ended without a result: it panicked, was cancelled, or the daemon is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the fetch was interrupted")]
pub struct FetchInterrupted;

/// Removes a fetch from the map when its task ends, however it ends.
struct InflightGuard<K: Eq + Hash, V, E> {
    fetches: Fetches<K, V, E>,
    key: K,
    priority: Priority,
}

impl<K: Eq + Hash, V, E> Drop for InflightGuard<K, V, E> {
    fn drop(&mut self) {
        let mut fetches = self.fetches.lock();
        // After a cancellation another fetch of the same key may be in the map.
        if fetches.get(&self.key).is_some_and(|fetch| fetch.priority.ptr_eq(&self.priority)) {
            fetches.remove(&self.key);
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

    impl From<FetchInterrupted> for Failed {
        fn from(_: FetchInterrupted) -> Self {
            Self::Interrupted
        }
    }

    type Inflight = InflightMap<u32, u32, Failed>;

    async fn wait(joined: Joined<u32, Failed>) -> Result<u32, Failed> {
        match joined {
            Joined::Cached(value) => Ok(value),
            Joined::InFlight(outcome) => outcome.await,
        }
    }

    #[tokio::test]
    async fn many_readers_make_one_fetch() {
        let inflight = Inflight::new(Handle::current());
        let started = Arc::new(AtomicUsize::new(0));
        let (release, gate) = oneshot::channel::<()>();
        let mut gate = Some(gate);
        let waits: Vec<_> = (0..10)
            .map(|_| {
                let gate = gate.take();
                let started = started.clone();
                inflight.join(
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
    async fn all_waiters_get_the_error_and_the_next_miss_tries_again() {
        let inflight = Inflight::new(Handle::current());
        let first = inflight.join(1, Urgency::Demand, || None, |_| async { Err(Failed::Refused) });
        let second = inflight.join(1, Urgency::Demand, || None, |_| async { Ok(0) });
        assert_eq!(wait(first).await, Err(Failed::Refused));
        assert_eq!(wait(second).await, Err(Failed::Refused));
        assert!(!inflight.contains(&1));
        assert_eq!(wait(inflight.join(1, Urgency::Demand, || None, |_| async { Ok(7) })).await, Ok(7));
    }

    #[tokio::test]
    async fn a_fetch_outlives_the_reader_that_started_it() {
        let inflight = Inflight::new(Handle::current());
        let (release, gate) = oneshot::channel::<()>();
        drop(inflight.join(
            1,
            Urgency::Demand,
            || None,
            |_| async move {
                gate.await.ok();
                Ok(5)
            },
        ));
        let second = inflight.join(1, Urgency::Demand, || None, |_| async { Err(Failed::Refused) });
        release.send(()).unwrap();
        assert_eq!(wait(second).await, Ok(5));
    }

    #[tokio::test]
    async fn a_reader_that_joins_a_speculative_fetch_raises_its_priority() {
        let inflight = Inflight::new(Handle::current());
        let mut given = None;
        let fetch = |priority: Priority| {
            given = Some(priority.clone());
            async move {
                priority.raised().await;
                Ok(1)
            }
        };
        drop(inflight.join(1, Urgency::Speculative, || None, fetch));
        drop(inflight.join(1, Urgency::Speculative, || None, |_| async { Ok(2) }));
        assert_eq!(given.unwrap().urgency(), Urgency::Speculative);
        assert_eq!(wait(inflight.join(1, Urgency::Demand, || None, |_| async { Ok(3) })).await, Ok(1));
    }

    #[tokio::test]
    async fn a_cancelled_fetch_is_not_joined_and_does_not_remove_its_successor() {
        let inflight = Inflight::new(Handle::current());
        let (end, ended) = oneshot::channel::<()>();
        let fetch = |priority: Priority| {
            assert!(priority.try_cancel());
            async move {
                ended.await.ok();
                Err(Failed::Interrupted)
            }
        };
        let given_up = inflight.join(1, Urgency::Speculative, || None, fetch);
        let (release, gate) = oneshot::channel::<()>();
        let anew = inflight.join(
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
        assert!(inflight.contains(&1), "the second fetch is in flight");
        release.send(()).unwrap();
        assert_eq!(wait(anew).await, Ok(5));
        assert!(!inflight.contains(&1));
    }

    #[tokio::test]
    async fn a_panicking_fetch_is_an_error_and_leaves_the_map() {
        let inflight = Inflight::new(Handle::current());
        let joined = inflight.join(1, Urgency::Demand, || None, |_| async { panic!("on purpose") });
        assert_eq!(wait(joined).await, Err(Failed::Interrupted));
        assert!(!inflight.contains(&1));
    }

    #[tokio::test]
    async fn a_value_that_became_available_meanwhile_is_not_fetched() {
        let inflight = Inflight::new(Handle::current());
        assert!(matches!(
            inflight.join(1, Urgency::Demand, || Some(9), |_| async { Ok(0) }),
            Joined::Cached(9)
        ));
        assert!(!inflight.contains(&1));
    }
}
