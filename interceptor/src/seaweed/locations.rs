//! Which servers hold a volume, and in what order to ask them.
//!
//! The locations of a volume are looked up once and cached. They do not expire, because a server
//! that does not have the volume any more says so. A fetch that finds that none of them works asks
//! for a fresh lookup ([`Locations::refresh`]). One lookup per volume is under way at a time, for
//! all fetches that need it. If a fresh lookup fails, the locations that were known stay.
//!
//! Servers of the preferred data centre come first. Within a group the order is random for each
//! fetch, which spreads the load. A server that failed lately comes last, whatever its data
//! centre.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;
use rand::seq::SliceRandom;

/// How long a server that failed is asked last.
const FAILURE_PENALTY: Duration = Duration::from_secs(10);

/// A volume server that holds a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `host:port` of its HTTP interface, as the servers of the cluster reach it.
    pub url: String,
    /// `host:port` as clients outside of the cluster reach it; may be empty.
    pub public_url: String,
    /// Its data centre; may be empty.
    pub data_center: String,
    /// The port of its gRPC interface; 0 means the HTTP port plus 10000.
    pub grpc_port: u32,
}

/// Why a lookup failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot look up volume {volume}: {reason}")]
pub struct LookupError {
    /// The volume.
    pub volume: u32,
    /// The error of the server that was asked, or why there was no answer.
    pub reason: String,
}

/// A service that knows where volumes are: a filer, or a master.
pub trait VolumeLookup: Send + Sync {
    /// The servers that hold `volume` now; none if the cluster has lost it. Must return in bounded
    /// time.
    fn lookup(&self, volume: u32) -> BoxFuture<'_, Result<Vec<Location>, LookupError>>;

    /// Since when no server answers lookups; `None` if one does.
    fn down_since(&self) -> Option<tokio::time::Instant> {
        None
    }
}

type PendingLookup = BoxFuture<'static, Result<Arc<[Location]>, LookupError>>;
type Lookup = Shared<PendingLookup>;

#[derive(Default)]
struct VolumeEntry {
    known: Option<Arc<[Location]>>,
    /// The lookup under way. It is dropped when no fetch waits for it any more.
    pending: Option<WeakShared<PendingLookup>>,
}

/// A cache of the locations of volumes.
pub struct Locations {
    lookup: Arc<dyn VolumeLookup>,
    data_center: Option<String>,
    volumes: Mutex<HashMap<u32, VolumeEntry>>,
    /// When servers failed, by `url`.
    failures: Mutex<HashMap<String, Instant>>,
}

impl Locations {
    /// An empty cache in front of `lookup`. Servers of `data_center` are preferred.
    pub fn new(lookup: Arc<dyn VolumeLookup>, data_center: Option<String>) -> Self {
        Self { lookup, data_center, volumes: Mutex::default(), failures: Mutex::default() }
    }

    /// The locations of `volume`, and whether they were looked up for this call.
    pub async fn get(&self, volume: u32) -> Result<(Arc<[Location]>, bool), LookupError> {
        let pending = {
            let mut volumes = self.volumes.lock();
            let entry = volumes.entry(volume).or_default();
            match &entry.known {
                Some(known) => return Ok((known.clone(), false)),
                None => self.join(volume, entry),
            }
        };
        self.finish(volume, pending).await.map(|found| (found, true))
    }

    /// Since when no server answers lookups; `None` if one does.
    pub fn lookup_down_since(&self) -> Option<tokio::time::Instant> {
        self.lookup.down_since()
    }

    /// The locations of `volume` after those in `stale` turned out not to work. They are looked up
    /// again, unless another fetch has done so since.
    pub async fn refresh(
        &self,
        volume: u32,
        stale: &Arc<[Location]>,
    ) -> Result<Arc<[Location]>, LookupError> {
        let pending = {
            let mut volumes = self.volumes.lock();
            let entry = volumes.entry(volume).or_default();
            match &entry.known {
                Some(known) if !Arc::ptr_eq(known, stale) => return Ok(known.clone()),
                _ => self.join(volume, entry),
            }
        };
        self.finish(volume, pending).await
    }

    /// `locations` in the order in which to ask them.
    pub fn order(&self, locations: &[Location]) -> Vec<Location> {
        let mut ordered = locations.to_vec();
        ordered.shuffle(&mut rand::rng());
        let failures = self.failures.lock();
        let failed = |url: &str| failures.get(url).is_some_and(|at| at.elapsed() < FAILURE_PENALTY);
        let remote = |l: &Location| self.data_center.as_ref().is_some_and(|own| *own != l.data_center);
        ordered.sort_by_cached_key(|location| (failed(&location.url), remote(location)));
        ordered
    }

    /// Records that the server at `url` failed.
    pub fn failed(&self, url: &str) {
        let mut failures = self.failures.lock();
        failures.retain(|_, at| at.elapsed() < FAILURE_PENALTY);
        failures.insert(url.to_owned(), Instant::now());
    }

    /// Joins the lookup under way, or starts one.
    fn join(&self, volume: u32, entry: &mut VolumeEntry) -> Lookup {
        if let Some(pending) = entry.pending.as_ref().and_then(WeakShared::upgrade) {
            return pending;
        }
        let lookup = self.lookup.clone();
        let pending = async move { lookup.lookup(volume).await.map(Arc::from) }.boxed().shared();
        entry.pending = pending.downgrade();
        pending
    }

    /// Waits for a lookup. The first waiter that sees its result caches that. An empty result is
    /// not cached: the next fetch looks up again.
    async fn finish(&self, volume: u32, pending: Lookup) -> Result<Arc<[Location]>, LookupError> {
        let found = pending.clone().await;
        let mut volumes = self.volumes.lock();
        let entry = volumes.entry(volume).or_default();
        let current = entry.pending.as_ref().and_then(WeakShared::upgrade);
        if current.is_some_and(|current| current.ptr_eq(&pending)) {
            entry.pending = None;
            if let Ok(found) = &found {
                entry.known = (!found.is_empty()).then(|| found.clone());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Semaphore;

    fn location(url: &str, data_center: &str) -> Location {
        Location { url: url.into(), public_url: String::new(), data_center: data_center.into(), grpc_port: 0 }
    }

    /// Returns the number of the call as a location; one call for each permit of `gate`.
    struct Counting {
        calls: AtomicU32,
        gate: Semaphore,
        fails: bool,
    }

    impl VolumeLookup for Counting {
        fn lookup(&self, volume: u32) -> BoxFuture<'_, Result<Vec<Location>, LookupError>> {
            async move {
                self.gate.acquire().await.unwrap().forget();
                let call = self.calls.fetch_add(1, Relaxed);
                match self.fails && call > 0 {
                    true => Err(LookupError { volume, reason: "down".into() }),
                    false => Ok(vec![location(&format!("server{call}"), "")]),
                }
            }
            .boxed()
        }
    }

    fn counting(permits: usize, fails: bool) -> (Arc<Counting>, Locations) {
        let lookup = Arc::new(Counting { calls: AtomicU32::new(0), gate: Semaphore::new(permits), fails });
        (lookup.clone(), Locations::new(lookup, None))
    }

    #[tokio::test]
    async fn concurrent_misses_share_one_lookup() {
        let (lookup, locations) = counting(0, false);
        let release = async { lookup.gate.add_permits(10) };
        let (a, b, c, ()) = tokio::join!(locations.get(7), locations.get(7), locations.get(8), release);
        assert_eq!(lookup.calls.load(Relaxed), 2);
        assert!(Arc::ptr_eq(&a.unwrap().0, &b.unwrap().0));
        c.unwrap();
        assert!(!locations.get(7).await.unwrap().1, "known now");
        assert_eq!(lookup.calls.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn refreshes_of_the_same_locations_share_one_lookup() {
        let (lookup, locations) = counting(10, false);
        let (old, looked_up) = locations.get(7).await.unwrap();
        assert!(looked_up);
        let new = locations.refresh(7, &old).await.unwrap();
        assert_eq!(new[0].url, "server1");
        assert!(Arc::ptr_eq(&new, &locations.refresh(7, &old).await.unwrap()));
        assert_eq!(lookup.calls.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn a_failed_refresh_keeps_the_known_locations() {
        let (_, locations) = counting(10, true);
        let (old, _) = locations.get(7).await.unwrap();
        assert!(locations.refresh(7, &old).await.is_err());
        assert!(Arc::ptr_eq(&old, &locations.get(7).await.unwrap().0));
    }

    #[tokio::test]
    async fn a_lookup_without_waiters_is_dropped_and_started_again() {
        let (lookup, locations) = counting(0, false);
        assert!(locations.get(7).now_or_never().is_none());
        lookup.gate.add_permits(1);
        assert_eq!(locations.get(7).await.unwrap().0[0].url, "server0");
    }

    #[test]
    fn servers_of_the_own_data_centre_come_first_and_failed_ones_last() {
        let (lookup, _) = counting(0, false);
        let locations = Locations::new(lookup, Some("east".into()));
        let servers =
            [location("a", "west"), location("b", "east"), location("c", "east"), location("d", "")];
        let urls = || locations.order(&servers).into_iter().map(|l| l.url).collect::<Vec<_>>();
        let order = urls();
        assert!(order[..2].iter().all(|url| url == "b" || url == "c"), "{order:?}");
        locations.failed("b");
        let order = urls();
        assert_eq!((order[0].as_str(), order[3].as_str()), ("c", "b"));
    }
}
