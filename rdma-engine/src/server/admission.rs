//! Limits the connections of an engine, and the memory of their answers.
//!
//! A connection takes a [`ConnectionPermit`] from its first byte on. The permits are limited, in
//! all and for one peer: an address of the network, or a user of this host. When none is left, the
//! connection that has been idle for longest is evicted, so that connections that do not read
//! cannot keep readers out.
//!
//! Small answers lie in memory until their client takes them. That memory is one budget, of which
//! one peer has at most a quarter ([`ConnectionPermit::reserve`]). An answer for which there is no
//! room is sent from its file when it is written.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Refusal;

/// For how long a session must have been without reads before it can be evicted for another one.
const MIN_IDLE: Duration = Duration::from_secs(10);

/// The same for a connection that has not introduced itself: clients do so within milliseconds.
const MIN_INTRODUCTION_TIME: Duration = Duration::from_secs(1);

/// One peer may have at most these fractions (1/N) of the memory for answers, and of staging
/// memory.
const MEMORY_DIVISOR: u64 = 4;
const STAGING_DIVISOR: u64 = 2;

/// The owner of connections that count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// An IPv4 address, or the upper half of an IPv6 address, which is a network that one host may
    /// have for itself.
    Host(IpAddr),
    /// A user of this host.
    User(u32),
}

impl Peer {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Host(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                IpAddr::V6(Ipv6Addr::from(network))
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::User(user) => write!(f, "user {user}"),
        }
    }
}

/// What all connections may have together.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdmissionLimits {
    pub(super) connections: usize,
    pub(super) connections_per_peer: usize,
    /// Bytes of answers that wait for their clients.
    pub(super) memory: u64,
    /// Bytes of staging memory.
    pub(super) staging: u64,
}

/// Admits connections; see the module.
pub(super) struct Admission {
    limits: AdmissionLimits,
    memory: AtomicU64,
    connections: Mutex<Connections>,
    started: Instant,
}

#[derive(Default)]
struct Connections {
    next: u64,
    admitted: HashMap<u64, AdmittedConnection>,
    peers: HashMap<Peer, Arc<PeerUsage>>,
}

struct AdmittedConnection {
    peer: Peer,
    activity: Arc<ConnectionActivity>,
}

/// What one peer uses.
#[derive(Default)]
struct PeerUsage {
    connections: AtomicUsize,
    memory: AtomicU64,
    staging: AtomicU64,
}

/// When a connection was last used.
struct ConnectionActivity {
    /// Milliseconds from the start of the engine to the last read, or to the connection's start.
    last: AtomicU64,
    has_introduced_itself: AtomicBool,
    in_progress: AtomicUsize,
    evicted: Notify,
}

impl ConnectionActivity {
    /// Whether the connection may be ended for another one, `now` milliseconds after the start.
    fn can_be_evicted(&self, now: u64) -> bool {
        let least =
            if self.has_introduced_itself.load(Ordering::Relaxed) { MIN_IDLE } else { MIN_INTRODUCTION_TIME };
        let idle = Duration::from_millis(now.saturating_sub(self.last.load(Ordering::Relaxed)));
        self.in_progress.load(Ordering::Relaxed) == 0 && idle >= least
    }
}

impl Admission {
    pub(super) fn new(limits: AdmissionLimits) -> Arc<Self> {
        let (memory, connections) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { limits, memory, connections, started: Instant::now() })
    }

    /// A permit for a connection of `peer`.
    ///
    /// # Errors
    /// [`Refusal::TooManySessions`] if there is none left and no connection can be evicted.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Result<ConnectionPermit, Refusal> {
        let now = self.now();
        let mut connections = self.connections.lock();
        let of_peer =
            connections.peers.get(&peer).map_or(0, |usage| usage.connections.load(Ordering::Relaxed));
        let has_room = match () {
            () if of_peer >= self.limits.connections_per_peer => connections.evict_one(Some(peer), now),
            () if connections.admitted.len() >= self.limits.connections => connections.evict_one(None, now),
            () => true,
        };
        if !has_room {
            return Err(Refusal::TooManySessions);
        }
        let activity = Arc::new(ConnectionActivity {
            last: AtomicU64::new(now),
            has_introduced_itself: AtomicBool::new(false),
            in_progress: AtomicUsize::new(0),
            evicted: Notify::new(),
        });
        connections.next += 1;
        let number = connections.next;
        let usage = connections.peers.entry(peer).or_default().clone();
        usage.connections.fetch_add(1, Ordering::Relaxed);
        connections.admitted.insert(number, AdmittedConnection { peer, activity: activity.clone() });
        drop(connections);
        Ok(ConnectionPermit { admission: self.clone(), number, activity, usage })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Connections {
    /// Evicts one connection that is idle, of `peer` or of any: of the peer with the most
    /// connections, the one that has been idle for longest. Its permit is free at once. Returns
    /// whether there was one.
    fn evict_one(&mut self, peer: Option<Peer>, now: u64) -> bool {
        let count = |peer| self.peers.get(peer).map_or(0, |usage| usage.connections.load(Ordering::Relaxed));
        let spare = self.admitted.iter().filter(|(_, admitted)| {
            peer.is_none_or(|peer| admitted.peer == peer) && admitted.activity.can_be_evicted(now)
        });
        let last = |admitted: &AdmittedConnection| admitted.activity.last.load(Ordering::Relaxed);
        let first = spare.min_by_key(|(_, admitted)| (Reverse(count(&admitted.peer)), last(admitted)));
        let Some(number) = first.map(|(&number, _)| number) else { return false };
        if let Some(evicted) = self.leave(number) {
            tracing::info!(peer = %evicted.peer, "an idle session makes room for another one");
            evicted.activity.evicted.notify_one();
        }
        true
    }

    fn leave(&mut self, number: u64) -> Option<AdmittedConnection> {
        let admitted = self.admitted.remove(&number)?;
        let usage = self.peers.get(&admitted.peer)?;
        if usage.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Its last connections share the usage until they have given back what they hold.
            self.peers.remove(&admitted.peer);
        }
        Some(admitted)
    }
}

/// The right to have one connection, until this is dropped.
pub(super) struct ConnectionPermit {
    admission: Arc<Admission>,
    number: u64,
    activity: Arc<ConnectionActivity>,
    usage: Arc<PeerUsage>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.admission.connections.lock().leave(self.number);
    }
}

impl ConnectionPermit {
    /// Waits until the connection is evicted for another one.
    pub(super) async fn evicted(&self) {
        self.activity.evicted.notified().await;
    }

    /// The connection is a session from now on.
    pub(super) fn introduced(&self) {
        self.activity.has_introduced_itself.store(true, Ordering::Relaxed);
        self.record_read();
    }

    /// Notes that data is read.
    pub(super) fn record_read(&self) {
        self.activity.last.store(self.admission.now(), Ordering::Relaxed);
    }

    /// Notes that a request begins.
    pub(super) fn begin_request(&self) {
        self.activity.in_progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a request has ended.
    pub(super) fn end_request(&self) {
        self.activity.in_progress.fetch_sub(1, Ordering::Relaxed);
    }

    /// For how long the session may go on without reads; `None` if there was none for `limit`.
    /// While a request is in progress the limit is doubled, but not more: requests that are
    /// refused may follow each other at once.
    pub(super) fn idle_time_left(&self, limit: Duration) -> Option<Duration> {
        let since = self.admission.now().saturating_sub(self.activity.last.load(Ordering::Relaxed));
        let is_busy = self.activity.in_progress.load(Ordering::Relaxed) > 0;
        let limit = if is_busy { limit * 2 } else { limit };
        limit.checked_sub(Duration::from_millis(since)).filter(|left| !left.is_zero())
    }

    /// Reserves memory for an answer, if there is room.
    pub(super) fn reserve(&self, bytes: u32) -> Option<Reservation> {
        let (bytes, max) = (u64::from(bytes), self.admission.limits.memory);
        if !take(&self.usage.memory, bytes, max / MEMORY_DIVISOR) {
            return None;
        }
        if !take(&self.admission.memory, bytes, max) {
            self.usage.memory.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Reservation { admission: self.admission.clone(), usage: self.usage.clone(), bytes })
    }

    /// Reserves `bytes` of the peer's part of staging memory, if there are as many left.
    pub(super) fn stage(&self, bytes: u64) -> Option<StagingShare> {
        let max = (self.admission.limits.staging / STAGING_DIVISOR).max(bytes);
        let usage = self.usage.clone();
        take(&usage.staging, bytes, max).then(|| StagingShare { usage, bytes })
    }
}

/// Adds to a sum, unless it would exceed `max`.
fn take(sum: &AtomicU64, bytes: u64, max: u64) -> bool {
    let more = |sum: u64| sum.checked_add(bytes).filter(|&sum| sum <= max);
    sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// Memory that an answer takes, until this is dropped.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    usage: Arc<PeerUsage>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.memory.fetch_sub(self.bytes, Ordering::Relaxed);
        self.usage.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Staging memory that a session takes of its peer's part, until this is dropped.
pub(super) struct StagingShare {
    usage: Arc<PeerUsage>,
    bytes: u64,
}

impl Drop for StagingShare {
    fn drop(&mut self) {
        self.usage.staging.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE_UPTIME_MS: u64 = 3_600_000;

    fn limits(connections: usize, connections_per_peer: usize) -> AdmissionLimits {
        AdmissionLimits { connections, connections_per_peer, memory: 1000, staging: 1000 }
    }

    fn peer(text: &str) -> Peer {
        Peer::at(text.parse().unwrap())
    }

    /// Lets the connection have been idle since the start of the engine.
    fn make_idle(permit: &ConnectionPermit) {
        permit.activity.last.store(0, Ordering::Relaxed);
    }

    fn is_evicted(permit: &ConnectionPermit) -> bool {
        futures_poll(permit.evicted())
    }

    fn futures_poll(future: impl Future<Output = ()>) -> bool {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_ready()
    }

    /// An engine that has run for an hour.
    fn admission(limits: AdmissionLimits) -> Arc<Admission> {
        let mut admission = Admission::new(limits);
        let started =
            Instant::now().checked_sub(Duration::from_millis(ENGINE_UPTIME_MS)).unwrap_or_else(Instant::now);
        Arc::get_mut(&mut admission).unwrap().started = started;
        admission
    }

    #[test]
    fn one_peer_has_at_most_its_part_of_the_connections() {
        let admission = admission(limits(4, 2));
        let (one, other) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let held = [admission.admit(one).unwrap(), admission.admit(one).unwrap()];
        assert_eq!(admission.admit(one).err(), Some(Refusal::TooManySessions));
        let others = [admission.admit(other).unwrap(), admission.admit(other).unwrap()];
        assert!(admission.admit(Peer::User(7)).is_err(), "no permit is left");
        drop(held);
        admission.admit(one).unwrap();
        admission.admit(Peer::User(7)).unwrap();
        drop(others);
        assert!(
            admission.connections.lock().peers.is_empty() && admission.connections.lock().admitted.is_empty()
        );
    }

    #[test]
    fn idle_connections_are_evicted_and_reading_ones_are_not() {
        let admission = admission(limits(4, 3));
        let (crowd, reader) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let connections: Vec<_> = (0..3).map(|_| admission.admit(crowd).unwrap()).collect();
        let reading = admission.admit(reader).unwrap();
        for permit in connections.iter().chain([&reading]) {
            permit.introduced();
        }
        assert!(admission.admit(Peer::User(1)).is_err(), "all have read just now");
        for permit in connections.iter().chain([&reading]) {
            make_idle(permit);
        }
        connections[0].begin_request();
        // One of the peer with the most connections, though another's has been idle as long.
        let next = admission.admit(Peer::User(1)).unwrap();
        assert!(!is_evicted(&connections[0]) && !is_evicted(&reading));
        assert!(is_evicted(&connections[1]) != is_evicted(&connections[2]));
        connections[0].end_request();
        let another = [admission.admit(Peer::User(2)).unwrap(), admission.admit(Peer::User(3)).unwrap()];
        assert_eq!(admission.connections.lock().admitted.len(), 4);
        // Leaving after an eviction frees nothing twice.
        drop((connections, reading, next, another));
        assert!(
            admission.connections.lock().peers.is_empty() && admission.connections.lock().admitted.is_empty()
        );
    }

    #[test]
    fn memory_for_answers_is_one_budget_of_which_each_peer_has_a_part() {
        let admission = admission(limits(100, 100));
        let connections: Vec<_> = (0..5).map(|n| admission.admit(Peer::User(n)).unwrap()).collect();
        let again = admission.admit(Peer::User(0)).unwrap();
        let held = connections[0].reserve(150).unwrap();
        assert!(again.reserve(101).is_none(), "a quarter is 250");
        let more = again.reserve(100).unwrap();
        let others: Vec<_> = connections[1..4].iter().map(|permit| permit.reserve(250).unwrap()).collect();
        assert!(connections[4].reserve(1).is_none(), "all of it is taken");
        drop(held);
        let last = connections[4].reserve(150).unwrap();
        drop((more, others, last));
        assert_eq!(admission.memory.load(Ordering::Relaxed), 0);
        assert_eq!(connections[0].usage.memory.load(Ordering::Relaxed), 0);
        let staging = [connections[0].stage(300), again.stage(200), again.stage(1)];
        assert_eq!(staging.map(|share| share.is_some()), [true, true, false]);
    }

    #[test]
    fn addresses_of_one_ipv6_network_or_one_ipv4_host_are_one_peer() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1:2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }
}
