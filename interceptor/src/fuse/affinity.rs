//! Where the request threads run: on the CPU that a lone reader is bound to, anywhere otherwise.
//!
//! A request across CPUs costs two wake-ups of another CPU, which is most of the time that a small one takes. A reader that
//! asks one thing at a time waits while it is answered, so its own CPU is free to answer. If such a reader may run on
//! one CPU only (`taskset`, a job scheduler that hands out CPUs), the request threads are moved there. As soon as another
//! process asks, or something is asked while an answer is under way (readahead, several threads of one program), or much is
//! asked at once, they may run anywhere again, because then the CPUs can work at the same time.
//!
//! A reader that may run elsewhere is not followed. When it is woken its CPU is still busy with the thread that answered,
//! so the scheduler moves the reader to another one if that is idle: each step after it drives it away, and every request
//! crosses CPUs. On two CPUs a read of 4 KiB took 53 us so, 20 us if the scheduler was left to itself, and 11 us with a
//! reader that was bound.
//!
//! [`AffinityHeuristic`] decides; [`ThreadAffinity`] counts, looks and moves. Only CPUs on which the process was allowed to run when it
//! started are used, and only the threads that read requests are moved. Nothing here can fail a request: where the kernel does
//! not tell or refuses, the threads stay where they are.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use parking_lot::Mutex;

/// Small requests in a row from which a reader counts as alone. A program that opens and reads one small file and ends
/// makes fewer, so that a shell loop over files does not have the threads moved back and forth.
const MIN_SEQUENTIAL_REQUESTS: u32 = 16;
/// How often, at most, to look where a reader may run. That changes seldom, and a look is a system call.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);

/// One request, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestSample {
    /// The thread that asks.
    pub(super) reader: u32,
    /// No other request was under way when it came.
    pub(super) is_only_one: bool,
    /// Its time is that of its wake-ups.
    pub(super) is_small: bool,
}

/// What to do about the threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AffinityAction {
    Keep,
    Unbind,
    /// Find out whether the reader is bound to a CPU, and go there.
    Probe,
}

/// How the mount is being read.
#[derive(Debug, Default)]
struct AffinityHeuristic {
    reader: u32,
    sequential: u32,
    /// Whether the threads may be bound to a CPU.
    may_be_bound: bool,
    probed_at: Option<Instant>,
}

impl AffinityHeuristic {
    fn observe(&mut self, sample: RequestSample, now: Instant) -> AffinityAction {
        // Requests of other process namespaces come without a number.
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

/// The request threads of a mount.
pub(crate) struct ThreadAffinity {
    /// Where the process was allowed to run when it started. `None`: the threads are not to be moved.
    allowed: Option<CpuSet>,
    heuristic: Mutex<AffinityHeuristic>,
    threads: Mutex<ThreadSet>,
}

/// Threads that live, and the CPU that they are bound to.
#[derive(Default)]
struct ThreadSet {
    ids: Vec<Pid>,
    bound_to: Option<usize>,
}

/// Keeps a thread in the list of those that are moved, until it ends.
struct EnrolledThread {
    placement: Arc<ThreadAffinity>,
    id: Pid,
}

impl Drop for EnrolledThread {
    fn drop(&mut self) {
        // After this nobody moves the thread, so its number may be another's.
        self.placement.threads.lock().ids.retain(|id| *id != self.id);
    }
}

thread_local! {
    static ENROLLED: OnceCell<EnrolledThread> = const { OnceCell::new() };
}

impl ThreadAffinity {
    /// Threads that follow a lone reader if `wanted`, and if there is more than one CPU to run on.
    pub(crate) fn new(wanted: bool) -> Arc<Self> {
        let several = |allowed: &CpuSet| cpus(allowed).nth(1).is_some();
        let allowed = sched_getaffinity(Pid::from_raw(0)).ok().filter(|allowed| wanted && several(allowed));
        Arc::new(Self { allowed, heuristic: Mutex::default(), threads: Mutex::default() })
    }

    /// A request has come, on the calling thread.
    pub(super) fn observe(self: &Arc<Self>, sample: RequestSample) {
        let Some(allowed) = &self.allowed else { return };
        self.enrol();
        // Where threads meet at this lock the reader is not alone, which the next request will show.
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

    /// Takes the calling thread in among those that are moved.
    fn enrol(self: &Arc<Self>) {
        ENROLLED.with(|enrolled| {
            enrolled.get_or_init(|| {
                let id = gettid();
                let mut threads = self.threads.lock();
                threads.ids.push(id);
                threads.bound_to = None;
                EnrolledThread { placement: self.clone(), id }
            });
        });
    }
}

impl ThreadSet {
    /// Binds the threads to `cpu`, or lets them run on all that are `allowed`.
    fn bind(&mut self, cpu: Option<usize>, allowed: &CpuSet) {
        if cpu == self.bound_to {
            return;
        }
        self.bound_to = cpu;
        let mut mask = CpuSet::new();
        let one = cpu.and_then(|cpu| mask.set(cpu).ok());
        for id in &self.ids {
            // Refused if the CPU has been taken from the process meanwhile; then the thread stays where it may be.
            let _ = sched_setaffinity(*id, one.map_or(allowed, |()| &mask));
        }
    }
}

/// The CPU that a thread is bound to.
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

    struct Script {
        heuristic: AffinityHeuristic,
        now: Instant,
    }

    impl Script {
        fn new() -> Self {
            Self { heuristic: AffinityHeuristic::default(), now: Instant::now() }
        }

        /// The actions on requests that come a millisecond apart.
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
    fn a_lone_reader_is_looked_at_once_in_a_while() {
        let mut script = Script::new();
        let actions = script.observe(116, LONE);
        let looks: Vec<_> = (0..116).filter(|i| actions[*i] == AffinityAction::Probe).collect();
        assert_eq!(looks, (16..116).step_by(10).collect::<Vec<_>>());
        assert!(!actions.contains(&AffinityAction::Unbind));
    }

    #[test]
    fn company_a_large_request_and_overlap_let_loose_once() {
        for other in [
            RequestSample { reader: 8, ..LONE },
            RequestSample { reader: 0, ..LONE },
            RequestSample { is_only_one: false, ..LONE },
            RequestSample { is_small: false, ..LONE },
        ] {
            let mut script = Script::new();
            script.observe(100, LONE);
            assert_eq!(script.observe(2, other), [AffinityAction::Unbind, AffinityAction::Keep], "{other:?}");
            assert!(
                script
                    .observe(MIN_SEQUENTIAL_REQUESTS as usize - 1, LONE)
                    .iter()
                    .all(|v| *v == AffinityAction::Keep)
            );
        }
    }

    #[test]
    fn readers_that_take_turns_are_not_followed() {
        let mut script = Script::new();
        for reader in [7, 8].into_iter().cycle().take(200) {
            let actions = script.observe(MIN_SEQUENTIAL_REQUESTS as usize, RequestSample { reader, ..LONE });
            assert!(actions.iter().all(|action| *action == AffinityAction::Keep));
        }
    }

    #[test]
    fn threads_come_to_a_reader_that_is_bound_and_are_given_back() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let placement = ThreadAffinity::new(true);
        if placement.allowed.is_none() {
            return;
        }
        let one = cpus(&before).last().unwrap();
        // A reader that is bound, as long as nobody ends it.
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
                (0..=MIN_SEQUENTIAL_REQUESTS)
                    .for_each(|_| placement.observe(RequestSample { reader, ..LONE }))
            };
            ask(bound_reader);
            assert_eq!(cpus(&mask()).collect::<Vec<_>>(), [one]);
            placement.observe(RequestSample { reader: bound_reader, is_small: false, ..LONE });
            assert_eq!(mask(), before);
            placement.heuristic.lock().probed_at = None;
            ask(free_reader);
            assert_eq!(mask(), before, "a reader that may run anywhere is not followed");
            assert_eq!(placement.threads.lock().bound_to, None);
        });
        server.join().unwrap();
        end.send(()).unwrap();
        bound.join().unwrap();
    }

    #[test]
    fn a_thread_that_ended_is_not_moved() {
        let placement = ThreadAffinity::new(true);
        if placement.allowed.is_none() {
            return;
        }
        let served = placement.clone();
        std::thread::spawn(move || served.observe(LONE)).join().unwrap();
        assert!(placement.threads.lock().ids.is_empty());
    }
}
