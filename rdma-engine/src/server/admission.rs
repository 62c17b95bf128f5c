//! Which connections are let in, and how much memory their answers may take.
//!
//! A connection takes a [`Seat`] from its first byte on. There are so many seats in all, and so many for one peer: an
//! address of the network, or a user of this host. When they are taken, the connection that has been idle for longest
//! makes room, so that whoever holds seats without reading does not keep readers out.
//!
//! Small answers lie in memory until their client takes them. All of that comes from one budget, of which one peer has
//! a quarter at most ([`Seat::reserve`]); an answer that finds no room is sent from its file when its turn comes.

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

/// For how long a session must have been without reads to make room for another one.
const MIN_IDLE: Duration = Duration::from_secs(10);

/// The same for a connection that has not introduced itself; a client does so within milliseconds.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// One peer may have this part of the memory for answers, and of staging memory.
const PART_OF_MEMORY: u64 = 4;
const PART_OF_STAGING: u64 = 2;

/// Whose connections count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// An IPv4 address, or the upper half of an IPv6 address, which is a network that one host may have for itself.
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

/// What there is to give.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capacity {
    pub(super) seats: usize,
    pub(super) seats_of_peer: usize,
    /// Bytes of answers that wait for their clients.
    pub(super) memory: u64,
    /// Bytes of staging memory.
    pub(super) staging: u64,
}

/// See the module.
pub(super) struct Admission {
    capacity: Capacity,
    memory: AtomicU64,
    seats: Mutex<Seats>,
    began: Instant,
}

#[derive(Default)]
struct Seats {
    next: u64,
    taken: HashMap<u64, Taken>,
    peers: HashMap<Peer, Arc<Usage>>,
}

struct Taken {
    peer: Peer,
    activity: Arc<Activity>,
}

/// What one peer has.
#[derive(Default)]
struct Usage {
    seats: AtomicUsize,
    memory: AtomicU64,
    staging: AtomicU64,
}

/// What a connection does.
struct Activity {
    /// Milliseconds from the start of the engine to the last read, or to the beginning.
    last: AtomicU64,
    has_introduced_itself: AtomicBool,
    in_progress: AtomicUsize,
    evicted: Notify,
}

impl Activity {
    /// Whether the connection may be ended for another one, `now` milliseconds from the start.
    fn makes_room(&self, now: u64) -> bool {
        let least = if self.has_introduced_itself.load(Ordering::Relaxed) { MIN_IDLE } else { MIN_SILENCE };
        let idle = Duration::from_millis(now.saturating_sub(self.last.load(Ordering::Relaxed)));
        self.in_progress.load(Ordering::Relaxed) == 0 && idle >= least
    }
}

impl Admission {
    pub(super) fn new(capacity: Capacity) -> Arc<Self> {
        let (memory, seats) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { capacity, memory, seats, began: Instant::now() })
    }

    /// A seat for a connection of `peer`.
    ///
    /// # Errors
    /// [`Refusal::TooManySessions`] if there is none and nobody makes room.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Result<Seat, Refusal> {
        let now = self.now();
        let mut seats = self.seats.lock();
        let of_peer = seats.peers.get(&peer).map_or(0, |usage| usage.seats.load(Ordering::Relaxed));
        let has_room = match () {
            () if of_peer >= self.capacity.seats_of_peer => seats.make_room(Some(peer), now),
            () if seats.taken.len() >= self.capacity.seats => seats.make_room(None, now),
            () => true,
        };
        if !has_room {
            return Err(Refusal::TooManySessions);
        }
        let activity = Arc::new(Activity {
            last: AtomicU64::new(now),
            has_introduced_itself: AtomicBool::new(false),
            in_progress: AtomicUsize::new(0),
            evicted: Notify::new(),
        });
        seats.next += 1;
        let number = seats.next;
        let usage = seats.peers.entry(peer).or_default().clone();
        usage.seats.fetch_add(1, Ordering::Relaxed);
        seats.taken.insert(number, Taken { peer, activity: activity.clone() });
        drop(seats);
        Ok(Seat { admission: self.clone(), number, activity, usage })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Seats {
    /// Ends the connection, of `peer` or of any, that can be spared: of the peer with the most, the one that has been
    /// idle for longest. Its seat is free at once. Returns whether there was one.
    fn make_room(&mut self, peer: Option<Peer>, now: u64) -> bool {
        let count = |peer| self.peers.get(peer).map_or(0, |usage| usage.seats.load(Ordering::Relaxed));
        let spare = self.taken.iter().filter(|(_, taken)| {
            peer.is_none_or(|peer| taken.peer == peer) && taken.activity.makes_room(now)
        });
        let last = |taken: &Taken| taken.activity.last.load(Ordering::Relaxed);
        let first = spare.min_by_key(|(_, taken)| (Reverse(count(&taken.peer)), last(taken)));
        let Some(number) = first.map(|(&number, _)| number) else { return false };
        if let Some(evicted) = self.leave(number) {
            tracing::info!(peer = %evicted.peer, "an idle session makes room for another one");
            evicted.activity.evicted.notify_one();
        }
        true
    }

    fn leave(&mut self, number: u64) -> Option<Taken> {
        let taken = self.taken.remove(&number)?;
        let usage = self.peers.get(&taken.peer)?;
        if usage.seats.fetch_sub(1, Ordering::Relaxed) == 1 {
            // What its last connections still hold is theirs to give back.
            self.peers.remove(&taken.peer);
        }
        Some(taken)
    }
}

/// The place of one connection.
pub(super) struct Seat {
    admission: Arc<Admission>,
    number: u64,
    activity: Arc<Activity>,
    usage: Arc<Usage>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.admission.seats.lock().leave(self.number);
    }
}

impl Seat {
    /// Waits until the connection has to make room for another one.
    pub(super) async fn evicted(&self) {
        self.activity.evicted.notified().await;
    }

    /// The connection is a session from now on.
    pub(super) fn introduced(&self) {
        self.activity.has_introduced_itself.store(true, Ordering::Relaxed);
        self.touch();
    }

    /// Something is read.
    pub(super) fn touch(&self) {
        self.activity.last.store(self.admission.now(), Ordering::Relaxed);
    }

    /// A request begins.
    pub(super) fn begin(&self) {
        self.activity.in_progress.fetch_add(1, Ordering::Relaxed);
    }

    /// A request has ended.
    pub(super) fn end(&self) {
        self.activity.in_progress.fetch_sub(1, Ordering::Relaxed);
    }

    /// For how long the session may go on if nothing is read; none if nothing was read for `limit`. A request in progress
    /// counts as reading once more as long, and no longer: the next one that is refused may follow it at once.
    pub(super) fn left(&self, limit: Duration) -> Option<Duration> {
        let since = self.admission.now().saturating_sub(self.activity.last.load(Ordering::Relaxed));
        let is_busy = self.activity.in_progress.load(Ordering::Relaxed) > 0;
        let limit = if is_busy { limit * 2 } else { limit };
        limit.checked_sub(Duration::from_millis(since)).filter(|left| !left.is_zero())
    }

    /// Memory for an answer, if there is room for it.
    pub(super) fn reserve(&self, bytes: u32) -> Option<Reservation> {
        let (bytes, most) = (u64::from(bytes), self.admission.capacity.memory);
        if !take(&self.usage.memory, bytes, most / PART_OF_MEMORY) {
            return None;
        }
        if !take(&self.admission.memory, bytes, most) {
            self.usage.memory.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        Some(Reservation { admission: self.admission.clone(), usage: self.usage.clone(), bytes })
    }

    /// The peer's part of staging memory, if there are `bytes` left of it.
    #[cfg_attr(not(feature = "verbs"), expect(dead_code, reason = "nothing is staged without verbs"))]
    pub(super) fn stage(&self, bytes: u64) -> Option<StagingShare> {
        let most = (self.admission.capacity.staging / PART_OF_STAGING).max(bytes);
        let usage = self.usage.clone();
        take(&usage.staging, bytes, most).then(|| StagingShare { usage, bytes })
    }
}

/// Adds to a sum, unless it would be more than `most`.
fn take(sum: &AtomicU64, bytes: u64, most: u64) -> bool {
    let more = |sum: u64| sum.checked_add(bytes).filter(|&sum| sum <= most);
    sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}

/// Memory that an answer takes.
pub(super) struct Reservation {
    admission: Arc<Admission>,
    usage: Arc<Usage>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.admission.memory.fetch_sub(self.bytes, Ordering::Relaxed);
        self.usage.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Staging memory that a peer's session takes.
pub(super) struct StagingShare {
    usage: Arc<Usage>,
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

    const LONG: u64 = 3_600_000;

    fn capacity(seats: usize, seats_of_peer: usize) -> Capacity {
        Capacity { seats, seats_of_peer, memory: 1000, staging: 1000 }
    }

    fn peer(text: &str) -> Peer {
        Peer::at(text.parse().unwrap())
    }

    /// Lets time pass for a seat.
    fn rest(seat: &Seat) {
        seat.activity.last.store(0, Ordering::Relaxed);
    }

    fn is_evicted(seat: &Seat) -> bool {
        futures_poll(seat.evicted())
    }

    fn futures_poll(future: impl Future<Output = ()>) -> bool {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.as_mut().poll(&mut context).is_ready()
    }

    /// An engine that has run for an hour.
    fn admission(capacity: Capacity) -> Arc<Admission> {
        let mut admission = Admission::new(capacity);
        let began = Instant::now().checked_sub(Duration::from_millis(LONG)).unwrap_or_else(Instant::now);
        Arc::get_mut(&mut admission).unwrap().began = began;
        admission
    }

    #[test]
    fn one_peer_has_its_part_of_the_seats_and_no_more() {
        let admission = admission(capacity(4, 2));
        let (one, other) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let held = [admission.admit(one).unwrap(), admission.admit(one).unwrap()];
        assert_eq!(admission.admit(one).err(), Some(Refusal::TooManySessions));
        let others = [admission.admit(other).unwrap(), admission.admit(other).unwrap()];
        assert!(admission.admit(Peer::User(7)).is_err(), "no seat is left");
        drop(held);
        admission.admit(one).unwrap();
        admission.admit(Peer::User(7)).unwrap();
        drop(others);
        assert!(admission.seats.lock().peers.is_empty() && admission.seats.lock().taken.is_empty());
    }

    #[test]
    fn who_sits_idle_makes_room_and_who_reads_does_not() {
        let admission = admission(capacity(4, 3));
        let (crowd, reader) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let seats: Vec<_> = (0..3).map(|_| admission.admit(crowd).unwrap()).collect();
        let reading = admission.admit(reader).unwrap();
        for seat in seats.iter().chain([&reading]) {
            seat.introduced();
        }
        assert!(admission.admit(Peer::User(1)).is_err(), "all have read just now");
        for seat in seats.iter().chain([&reading]) {
            rest(seat);
        }
        seats[0].begin();
        // Of the peer with the most, though another's has rested as long.
        let next = admission.admit(Peer::User(1)).unwrap();
        assert!(!is_evicted(&seats[0]) && !is_evicted(&reading));
        assert!(is_evicted(&seats[1]) != is_evicted(&seats[2]));
        seats[0].end();
        let another = [admission.admit(Peer::User(2)).unwrap(), admission.admit(Peer::User(3)).unwrap()];
        assert_eq!(admission.seats.lock().taken.len(), 4);
        // Leaving after an eviction frees nothing twice.
        drop((seats, reading, next, another));
        assert!(admission.seats.lock().peers.is_empty() && admission.seats.lock().taken.is_empty());
    }

    #[test]
    fn memory_for_answers_is_one_budget_with_a_part_for_each_peer() {
        let admission = admission(capacity(100, 100));
        let seats: Vec<_> = (0..5).map(|n| admission.admit(Peer::User(n)).unwrap()).collect();
        let again = admission.admit(Peer::User(0)).unwrap();
        let held = seats[0].reserve(150).unwrap();
        assert!(again.reserve(101).is_none(), "a quarter is 250");
        let more = again.reserve(100).unwrap();
        let others: Vec<_> = seats[1..4].iter().map(|seat| seat.reserve(250).unwrap()).collect();
        assert!(seats[4].reserve(1).is_none(), "all of it is taken");
        drop(held);
        let last = seats[4].reserve(150).unwrap();
        drop((more, others, last));
        assert_eq!(admission.memory.load(Ordering::Relaxed), 0);
        assert_eq!(seats[0].usage.memory.load(Ordering::Relaxed), 0);
        let staging = [seats[0].stage(300), again.stage(200), again.stage(1)];
        assert_eq!(staging.map(|share| share.is_some()), [true, true, false]);
    }

    #[test]
    fn one_host_has_many_addresses_of_version_6_and_one_of_version_4() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1:2:3"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
    }
}
