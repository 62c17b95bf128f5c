//! CPU affinity of the request threads: they run on the CPU that a lone reader is bound to, and
//! anywhere otherwise.
//!
//! A request that crosses CPUs costs two wake-ups of another CPU, which is most of the time of a
//! small request. A reader with one request in flight sleeps until the answer comes, so its own
//! CPU is free to answer. If such a reader is bound to one CPU (`taskset`, a job scheduler that
//! assigns CPUs), the request threads are bound to the same CPU. They are unbound as soon as
//! another process sends a request, a request comes while another is in flight (readahead, several
//! threads of one program), or a large request comes: then several CPUs can work at the same time.
//!
//! A reader that may run on several CPUs is not followed. When it wakes up, its CPU is still busy
//! with the thread that answered, so the scheduler moves the reader to an idle CPU: each step
//! towards the reader drives it away, and every request crosses CPUs. On two CPUs a read of 4 KiB
//! took 53 us that way, 20 us with the scheduler left to itself, and 11 us with a bound reader.
//!
//! Without this the row `small-again-bound` of the benchmark is 22 % slower.
//!
//! [`AffinityHeuristic`] decides; [`ThreadAffinity`] counts requests and binds threads. It uses
//! only CPUs that the process was allowed to use when it started, and binds only request threads.
//! It cannot fail a request: if a system call fails, the threads stay where they are.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

/// Consecutive small requests after which a reader counts as alone. A program that opens and reads
/// one small file makes fewer, so a shell loop over files does not move the threads back and
/// forth.
const MIN_SEQUENTIAL_REQUESTS: u32 = 16;
/// The shortest time between two probes at the reader's affinity, which changes seldom and takes a
/// system call to read.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// What the heuristic considers of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestSample {
    /// The thread that sent the request; 0 for one of a process namespace that this process cannot
    /// see.
    pub(super) reader: u32,
    /// Whether no other request was in flight when it came.
    pub(super) is_only_one: bool,
    /// Whether wake-ups are most of its time.
    pub(super) is_small: bool,
}

/// What to do with the request threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AffinityAction {
    Keep,
    Unbind,
    /// Read the reader's affinity, and bind the threads to its CPU if it has only one.
    Probe,
}

/// Decides from the sequence of requests whether the mount has a lone reader.
#[derive(Debug, Default)]
struct AffinityHeuristic {
    reader: u32,
    sequential: u32,
    /// Whether the threads may be bound to a CPU now.
    may_be_bound: bool,
    probed_at: Option<Instant>,
}

impl AffinityHeuristic {
    fn observe(&mut self, sample: RequestSample, now: Instant) -> AffinityAction {
        // Requests from other process namespaces come with thread number 0.
        if sample.reader != self.reader || sample.reader == 0 || !sample.is_only_one || !sample.is_small {
            self.reader = sample.reader;
            self.sequential = 0;
            return if std::mem::take(&mut self.may_be_bound) {
                AffinityAction::Unbind
            } else {
                AffinityAction::Keep
            };
        }
        self.sequential = self.sequential.saturating_add(1);
        let due = self.probed_at.is_none_or(|probed_at| now.duration_since(probed_at) >= PROBE_INTERVAL);
        if self.sequential < MIN_SEQUENTIAL_REQUESTS || !due {
            return AffinityAction::Keep;
        }
        self.probed_at = Some(now);
        self.may_be_bound = true;
        AffinityAction::Probe
    }
}

/// The CPU affinity of a mount's request threads.
pub(crate) struct ThreadAffinity {
    /// The CPUs that the process was allowed to use when it started; `None` if the threads stay
    /// unbound.
    allowed: Option<CpuSet>,
    heuristic: Mutex<AffinityHeuristic>,
    threads: Mutex<ThreadSet>,
}

/// The live request threads, and the CPU that they are bound to.
#[derive(Default)]
struct ThreadSet {
    ids: Vec<Pid>,
    bound_to: Option<usize>,
}

/// Keeps a thread in the set until the thread ends.
struct EnrolledThread {
    affinity: Arc<ThreadAffinity>,
    id: Pid,
}

impl Drop for EnrolledThread {
    fn drop(&mut self) {
        // The kernel may reuse the number of a thread that has ended, so it must not be bound any
        // more.
        self.affinity.threads.lock().ids.retain(|id| *id != self.id);
    }
}

thread_local! {
    static ENROLLED: OnceCell<EnrolledThread> = const { OnceCell::new() };
}

impl ThreadAffinity {
    /// Follows a lone reader if `wanted` and if the process may run on more than one CPU.
    pub(crate) fn new(wanted: bool) -> Arc<Self> {
        let several = |allowed: &CpuSet| cpus(allowed).nth(1).is_some();
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok().filter(|allowed| wanted && several(allowed));
        Arc::new(Self { allowed, heuristic: Mutex::default(), threads: Mutex::default() })
    }

    /// Notes a request that the calling thread has received.
    pub(super) fn observe(self: &Arc<Self>, sample: RequestSample) {
        let Some(allowed) = &self.allowed else { return };
        self.enrol();
        // If the lock is held, two requests are in flight, which the next request will show.
        let Some(mut heuristic) = self.heuristic.try_lock() else { return };
        match heuristic.observe(sample, Instant::now()) {
            AffinityAction::Keep => {}
            AffinityAction::Unbind => self.threads.lock().bind(None, allowed),
            AffinityAction::Probe => {
                let cpu = only_cpu(sample.reader).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
                self.threads.lock().bind(cpu, allowed);
            }
        }
    }

    /// Adds the calling thread to the set.
    fn enrol(self: &Arc<Self>) {
        ENROLLED.with(|enrolled| {
            enrolled.get_or_init(|| {
                let id = gettid();
                let mut threads = self.threads.lock();
                threads.ids.push(id);
                threads.bound_to = None;
                EnrolledThread { affinity: self.clone(), id }
            });
        });
    }
}

impl ThreadSet {
    /// Binds the threads to `cpu`, or lets them run on all CPUs that are `allowed`.
    fn bind(&mut self, cpu: Option<usize>, allowed: &CpuSet) {
        if cpu == self.bound_to {
            return;
        }
        self.bound_to = cpu;
        let mut mask = CpuSet::new();
        let one = cpu.and_then(|cpu| mask.set(cpu).ok());
        for id in &self.ids {
            // Fails if the process may no longer use the CPU; then the thread keeps its affinity.
            let _ = sched_setaffinity(*id, one.map_or(allowed, |()| &mask));
        }
    }
}

/// The CPU that a thread is bound to, if it is bound to exactly one.
fn only_cpu(thread: u32) -> Option<usize> {
    let mask = sched_getaffinity(Pid::from_raw(thread.try_into().ok()?)).ok()?;
    let mut cpus = cpus(&mask);
    cpus.next().filter(|_| cpus.next().is_none())
}

/// The CPUs of a mask.
fn cpus(mask: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|cpu| mask.is_set(*cpu) == Ok(true))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Simulation {
        heuristic: AffinityHeuristic,
        now: Instant,
    }

    impl Simulation {
        fn new() -> Self {
            Self { heuristic: AffinityHeuristic::default(), now: Instant::now() }
        }

        /// The actions for requests that come a millisecond apart.
        fn observe(&mut self, count: usize, sample: RequestSample) -> Vec<AffinityAction> {
            let mut actions = Vec::new();
            for _ in 0..count {
                self.now += Duration::from_millis(1);
                actions.push(self.heuristic.observe(sample, self.now));
            }
            actions
        }
    }

    const LONE: RequestSample = RequestSample { reader: 7, is_only_one: true, is_small: true };

    #[test]
    fn the_affinity_of_a_lone_reader_is_read_once_per_interval() {
        let mut simulation = Simulation::new();
        let actions = simulation.observe(116, LONE);
        let probes: Vec<_> = (0..116).filter(|i| actions[*i] == AffinityAction::Probe).collect();
        assert_eq!(probes, (16..116).step_by(10).collect::<Vec<_>>());
        assert!(!actions.contains(&AffinityAction::Unbind));
    }

    #[test]
    fn another_reader_a_large_request_or_an_overlap_unbinds_once() {
        for other in [
            RequestSample { reader: 8, ..LONE },
            RequestSample { reader: 0, ..LONE },
            RequestSample { is_only_one: false, ..LONE },
            RequestSample { is_small: false, ..LONE },
        ] {
            let mut simulation = Simulation::new();
            simulation.observe(100, LONE);
            assert_eq!(
                simulation.observe(2, other),
                [AffinityAction::Unbind, AffinityAction::Keep],
                "{other:?}"
            );
            assert!(
                simulation
                    .observe(MIN_SEQUENTIAL_REQUESTS as usize - 1, LONE)
                    .iter()
                    .all(|v| *v == AffinityAction::Keep)
            );
        }
    }

    #[test]
    fn alternating_readers_are_not_followed() {
        let mut simulation = Simulation::new();
        for reader in [7, 8].into_iter().cycle().take(200) {
            let actions =
                simulation.observe(MIN_SEQUENTIAL_REQUESTS as usize, RequestSample { reader, ..LONE });
            assert!(actions.iter().all(|action| *action == AffinityAction::Keep));
        }
    }

    #[test]
    fn threads_follow_a_bound_reader_and_are_unbound_again() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let affinity = ThreadAffinity::new(true);
        if affinity.allowed.is_none() {
            return;
        }
        let one = cpus(&before).last().unwrap();
        // A reader that stays bound until the test ends it.
        let (id, reader) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let bound = std::thread::spawn(move || {
            let mut mask = CpuSet::new();
            mask.set(one).unwrap();
            sched_setaffinity(Pid::from_raw(0), &mask).unwrap();
            id.send(gettid().as_raw() as u32).unwrap();
            let _ = ended.recv();
        });
        let bound_reader = reader.recv().unwrap();
        let free_reader = gettid().as_raw() as u32;
        let server = std::thread::spawn(move || {
            let mask = || sched_getaffinity(Pid::from_raw(0)).unwrap();
            let ask = |reader| {
                (0..=MIN_SEQUENTIAL_REQUESTS).for_each(|_| affinity.observe(RequestSample { reader, ..LONE }))
            };
            ask(bound_reader);
            assert_eq!(cpus(&mask()).collect::<Vec<_>>(), [one]);
            affinity.observe(RequestSample { reader: bound_reader, is_small: false, ..LONE });
            assert_eq!(mask(), before);
            affinity.heuristic.lock().probed_at = None;
            ask(free_reader);
            assert_eq!(mask(), before, "a reader that may run anywhere is not followed");
            assert_eq!(affinity.threads.lock().bound_to, None);
        });
        server.join().unwrap();
        end.send(()).unwrap();
        bound.join().unwrap();
    }

    #[test]
    fn a_thread_that_ended_is_no_longer_bound() {
        let affinity = ThreadAffinity::new(true);
        if affinity.allowed.is_none() {
            return;
        }
        let served = affinity.clone();
        std::thread::spawn(move || served.observe(LONE)).join().unwrap();
        assert!(affinity.threads.lock().ids.is_empty());
    }
}
