//! A fuzzer of raw FUSE requests: plays the kernel to a whole file system.
//!
//! ```text
//!  RequestGenerator ── requests ──► SOCK_SEQPACKET ──► fuser sessions ──► file system under test
//!      ▲                                 │
//!      └──── nodes, handles ◄── replies, each checked
//! ```
//!
//! Requests look like a kernel's, with numbers, names and lengths that a kernel never sends
//! ([`requests`]). They come in bursts, so that several threads answer at once. It checks that
//! each request is answered once, in time, by a message that the kernel would accept; that nothing
//! panics except where [`FuzzRequest::may_panic`] allows it; that memory stays bounded; that at the
//! end an untouched file is read right; and that nothing is held once all handles are released and
//! all nodes are forgotten.
//!
//! `FUZZ_SECONDS` sets how long each file system is tried, `FUZZ_SEED` repeats a run. `cargo xtask
//! fuzz` sets the first.

mod clock;
pub(crate) mod requests;

use std::collections::HashMap;
use std::env;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use fuser::{Filesystem, SessionACL};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Runtime;

use self::clock::FuzzInstant;
use self::requests::{FuzzRequest, RequestGenerator, opcode};
use super::session::{FuseConnection, RunningSession};

/// How long each file system is tried by default.
const DEFAULT_SECONDS: u64 = 3;

/// How long a request may take. Far longer than any takes, for busy hosts. Times of the fuzzer are
/// those of its own clock ([`clock`]), which stands still while the process gets no CPU.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How much the process may grow, in bytes. The simulated kernel forgets few nodes, so what is
/// known to it grows to its bounds: 256 MiB of nodes and 200,000 absent names, and as much of both
/// in the ledger.
const MAX_MEMORY_GROWTH: u64 = 3 << 29;

/// How long a malformed request that has no reply is given to end its session.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(20);

/// How much later such a request may panic or be answered, on a busy host, which keeps its thread
/// from running while others handle thousands of requests.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Request threads.
const THREADS: usize = 4;

/// The largest number of requests that are sent before their answers are awaited.
const MAX_BURST: usize = 8;

/// Panics of threads that answer requests: location and message.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Serializes runs, since panics are recorded for the whole process.
static RUN_LOCK: Mutex<()> = Mutex::new(());

/// The flags that the simulated kernel offers: every one that fuser knows.
const ALL_FLAGS: u64 = u64::MAX;

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = thread::current().name().unwrap_or_default().to_owned();
            if thread.starts_with("fuser-") || thread.starts_with("fuse-") || thread == IO_THREAD {
                let location = info.location().map(ToString::to_string).unwrap_or_default();
                let text = info.payload_as_str().unwrap_or_default().to_owned();
                PANICS.lock().push(format!("{location}: {text} [{thread}]"));
            } else {
                before(info);
            }
        }));
    });
}

/// The name of the threads of a run's runtime.
const IO_THREAD: &str = "fuzz-io";

/// One run of the fuzzer.
pub(crate) struct FuzzRun {
    /// The runtime of the file system under test.
    pub(crate) runtime: Runtime,
    pub(crate) seed: u64,
    duration: Duration,
    // Dropped last, so that panics on the runtime are recorded for this run.
    _alone: MutexGuard<'static, ()>,
}

impl FuzzRun {
    /// Waits for other runs to end.
    pub(crate) fn begin() -> Self {
        let alone = RUN_LOCK.lock();
        note_panics();
        PANICS.lock().clear();
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).thread_name(IO_THREAD).enable_all().build().unwrap();
        Self {
            _alone: alone,
            runtime,
            seed: number("FUZZ_SEED").unwrap_or_else(rand::random),
            duration: Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS)),
        }
    }

    /// Sends requests to `filesystem` until the time is over. `plain` is called at the end; it
    /// makes a file in the root, and returns its name and content. `held` counts what requests have
    /// opened or looked up and not given back.
    pub(crate) fn fuzz<F: Filesystem + Clone>(
        &self,
        filesystem: F,
        vocabulary: &[&str],
        plain: impl FnOnce() -> (String, Vec<u8>),
        held: impl Fn() -> usize,
    ) {
        println!("FUZZ_SEED={} for {} s", self.seed, self.duration.as_secs());
        let mut kernel = SimulatedKernel::new(filesystem, RequestGenerator::new(self.seed, vocabulary));
        let (begun, before) = (FuzzInstant::now(), resident());
        while begun.elapsed() < self.duration {
            kernel.burst();
        }
        let (name, content) = plain();
        assert_eq!(kernel.read_whole(&name), content, "a plain file is not read right any more");
        let grown = resident().saturating_sub(before);
        println!("{} requests, {} MiB more memory; {}", kernel.sent, grown >> 20, kernel.summary());
        assert!(grown < MAX_MEMORY_GROWTH, "{grown} bytes more memory");
        kernel.release_all();
        // Forgetting has no answer.
        let begun = FuzzInstant::now();
        while held() > 0 {
            assert!(begun.elapsed() < ANSWER_TIMEOUT, "{} things are held without a name", held());
            thread::yield_now();
        }
        kernel.end();
    }
}

/// The kernel's side of a connection.
struct SimulatedKernel {
    socket: Arc<OwnedFd>,
    replies: Receiver<Vec<u8>>,
    session: RunningSession,
    generator: RequestGenerator,
    unique: u64,
    sent: u64,
    /// By opcode: how many requests succeeded, and how many failed.
    answered: HashMap<u32, (u64, u64)>,
    /// Requests without a reply that may get an error reply if they are malformed, and those whose
    /// reply may come late, each with the time until when.
    unawaited: HashMap<u64, (FuzzRequest, FuzzInstant)>,
    /// Panics that were allowed.
    contained: u64,
    /// Until when a request without a reply may still panic.
    late_until: Option<FuzzInstant>,
}

/// The part of a reply that all replies share.
#[derive(Debug)]
pub(crate) struct FuzzReply {
    pub(crate) error: i32,
    pub(crate) body: Vec<u8>,
}

/// How many sessions were started.
static SESSIONS: AtomicU64 = AtomicU64::new(0);

/// Another descriptor of the connection. For a socket, any duplicate will do.
fn duplicate(socket: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    SESSIONS.fetch_add(1, Ordering::SeqCst);
    socket.try_clone_to_owned()
}

impl SimulatedKernel {
    fn new<F: Filesystem + Clone>(filesystem: F, generator: RequestGenerator) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        for end in [&ours, &theirs] {
            // Without the privilege for it, large messages fail visibly.
            let _ = setsockopt(end, sockopt::SndBufForce, &(8 << 20));
        }
        let socket = Arc::new(ours);
        send(&socket, &requests::init(ALL_FLAGS));
        let (sender, replies) = channel();
        let reading = socket.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 2 << 20];
            while let Ok(len @ 1..) = recv(reading.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        let connection = FuseConnection::over(filesystem, theirs, SessionACL::All, duplicate).unwrap();
        let session = connection.serve(THREADS).unwrap();
        let kernel = Self {
            socket,
            replies,
            session,
            generator,
            unique: 1,
            sent: 0,
            answered: HashMap::new(),
            unawaited: HashMap::new(),
            contained: 0,
            late_until: None,
        };
        let init = kernel.receive(Duration::from_secs(60)).expect("an answer to INIT");
        assert_eq!(init.1.error, 0, "INIT is refused");
        kernel
    }

    /// Sends some requests and checks the answers.
    fn burst(&mut self) {
        let mut waiting = HashMap::new();
        for _ in 0..self.generator.burst(MAX_BURST) {
            let request = self.generator.request();
            if request.has_wrong_length || request.may_panic {
                // The effects of this request must be told from those of others.
                self.collect(&mut waiting);
                let sessions = SESSIONS.load(Ordering::SeqCst);
                self.send(request, &mut waiting);
                self.settle(sessions, &mut waiting);
            } else {
                self.send(request, &mut waiting);
            }
        }
        self.collect(&mut waiting);
    }

    fn send(&mut self, request: FuzzRequest, waiting: &mut HashMap<u64, FuzzRequest>) {
        self.unique += 2;
        let message = request.message(self.unique);
        send(&self.socket, &message);
        self.sent += 1;
        waiting.insert(self.unique, request);
    }

    /// Waits for the outcome of a request that may end its session: an answer, or a session beyond
    /// the first `sessions`, and the panic that caused it. Otherwise the next such request would
    /// take that session for its own.
    fn settle(&mut self, sessions: u64, waiting: &mut HashMap<u64, FuzzRequest>) {
        let begun = FuzzInstant::now();
        let timeout = match waiting.values().any(|request| request.wants_reply) {
            true => ANSWER_TIMEOUT,
            false => SETTLE_TIMEOUT,
        };
        let contained = self.contained;
        while SESSIONS.load(Ordering::SeqCst) == sessions {
            let is_over = waiting.is_empty() && self.contained == contained;
            let is_late = begun.elapsed() > if waiting.is_empty() { ANSWER_TIMEOUT } else { timeout };
            if is_over || is_late {
                break;
            }
            self.take_reply(Duration::from_millis(1), waiting);
            self.check_panics(waiting);
        }
        self.check_panics(waiting);
        if begun.elapsed() > ANSWER_TIMEOUT {
            self.fail("neither an answer nor another session", waiting.values());
        }
        if self.contained == contained && !waiting.is_empty() {
            self.late_until = Some(FuzzInstant::now() + MAX_DELAY);
        }
        self.await_no_longer(waiting.drain());
    }

    /// Accepts an answer to each of `requests` for a while.
    fn await_no_longer(&mut self, requests: impl IntoIterator<Item = (u64, FuzzRequest)>) {
        let now = FuzzInstant::now();
        self.unawaited.retain(|_, (_, until)| now < *until);
        let requests = requests.into_iter();
        self.unawaited.extend(requests.map(|(unique, request)| (unique, (request, now + MAX_DELAY))));
    }

    /// Receives answers until none is missing.
    fn collect(&mut self, waiting: &mut HashMap<u64, FuzzRequest>) {
        let begun = FuzzInstant::now();
        loop {
            self.check_panics(waiting);
            if !waiting.values().any(|request| request.wants_reply) {
                // Without an answer, nothing tells when these requests were handled.
                self.await_no_longer(waiting.drain());
                return;
            }
            let is_late = begun.elapsed() > ANSWER_TIMEOUT;
            if !self.take_reply(Duration::from_millis(50), waiting) && is_late {
                self.await_no_longer(waiting.extract_if(|_, request| request.may_lose_its_reply()));
                if !waiting.is_empty() {
                    self.fail("no answer", waiting.values());
                }
            }
        }
    }

    /// Receives the next answer, if one comes in time.
    fn take_reply(&mut self, timeout: Duration, waiting: &mut HashMap<u64, FuzzRequest>) -> bool {
        let Some((unique, reply)) = self.receive(timeout) else { return false };
        let request = waiting.remove(&unique).or_else(|| Some(self.unawaited.remove(&unique)?.0));
        let Some(request) = request else {
            panic!("a second answer, or one to nothing: {unique} of {}, {reply:?}", self.unique)
        };
        let count = self.answered.entry(request.opcode).or_default();
        if reply.error == 0 {
            count.0 += 1
        } else {
            count.1 += 1
        }
        if let Err(fault) = request.check(&reply) {
            self.fail(&format!("{fault}: {reply:?}"), [&request]);
        }
        self.generator.learn(&request, &reply);
        true
    }

    /// The next reply and the number of its request. Skips notifications.
    fn receive(&self, timeout: Duration) -> Option<(u64, FuzzReply)> {
        loop {
            let message = match self.replies.recv_timeout(timeout) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("the connection is gone"),
            };
            assert!(message.len() >= 16, "no reply has {} bytes", message.len());
            let number = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
            let unique = u64::from_ne_bytes(message[8..16].try_into().unwrap());
            let (len, error) = (number(0) as usize, number(4) as i32);
            assert_eq!(len, message.len(), "a reply of another length than it says");
            if unique == 0 {
                continue;
            }
            assert!((-511..=0).contains(&error), "{error} is no error of a reply");
            assert!(error == 0 || len == 16, "an error with data");
            return Some((unique, FuzzReply { error, body: message[16..].to_vec() }));
        }
    }

    /// Checks the panics since the last call. A request that may panic must do so in fuser. It
    /// then gets no answer: the kernel ends it when the descriptor is closed.
    fn check_panics(&mut self, waiting: &mut HashMap<u64, FuzzRequest>) {
        let panics = std::mem::take(&mut *PANICS.lock());
        for panic in panics {
            // The one request with whose numbers fuser does arithmetic, and the one whose length
            // it trusts.
            let is_time = panic.contains("/fuser-") && panic.contains("/src/time.rs:")
                || panic.contains("/std/src/time.rs:");
            let is_length = panic.contains("/fuser-") && panic.contains("/src/ll/request.rs:");
            let is_expected = waiting.len() == 1
                && waiting
                    .values()
                    .all(|request| is_time && request.may_panic || is_length && request.has_wrong_length);
            let is_in_doubt = self.late_until.is_some_and(|until| FuzzInstant::now() < until);
            let is_late = is_length && is_in_doubt;
            if is_late && !is_expected {
                self.contained += 1;
                continue;
            }
            if !is_expected {
                self.fail(&panic, waiting.values());
            }
            // The panic may be that of an earlier request; then this one is answered.
            match is_in_doubt {
                true => self.await_no_longer(waiting.drain()),
                false => waiting.clear(),
            }
            self.contained += 1;
        }
    }

    fn fail<'a>(&self, fault: &str, requests: impl IntoIterator<Item = &'a FuzzRequest>) -> ! {
        let requests: Vec<_> = requests.into_iter().map(|request| format!("\n{request:?}")).collect();
        let (requests, threads) = (requests.concat(), waiting_threads());
        panic!("{fault}{requests}\nafter {} requests; {}\n{threads}", self.sent, self.summary());
    }

    fn summary(&self) -> String {
        let mut answered: Vec<_> = self.answered.iter().collect();
        answered.sort_unstable();
        let shown: Vec<_> =
            answered.iter().map(|(opcode, (good, bad))| format!("{opcode}:{good}+{bad}")).collect();
        format!("{} contained, answered {}", self.contained, shown.join(" "))
    }

    /// Sends one request and waits for its reply.
    fn ask(&mut self, request: FuzzRequest) -> FuzzReply {
        let mut waiting = HashMap::new();
        self.send(request.clone(), &mut waiting);
        let begun = FuzzInstant::now();
        while begun.elapsed() < ANSWER_TIMEOUT {
            if let Some((unique, reply)) = self.receive(Duration::from_millis(50))
                && unique == self.unique
            {
                self.generator.learn(&request, &reply);
                return reply;
            }
        }
        self.fail("no answer", waiting.values())
    }

    fn read_whole(&mut self, name: &str) -> Vec<u8> {
        let number = |reply: &FuzzReply| u64::from_ne_bytes(reply.body[..8].try_into().unwrap());
        let found = self.ask(FuzzRequest::lookup(requests::ROOT, name));
        assert_eq!(found.error, 0, "the plain file is not found");
        let node = number(&found);
        assert_ne!(node, 0, "the plain file is absent");
        let opened = self.ask(FuzzRequest::open(node, libc::O_RDONLY));
        assert_eq!(opened.error, 0, "the plain file cannot be opened");
        let read = self.ask(FuzzRequest::read(node, number(&opened), 0, 64 << 10));
        assert_eq!(read.error, 0, "the plain file cannot be read");
        read.body
    }

    /// Releases all handles and forgets all nodes that replies have named.
    fn release_all(&mut self) {
        while let Some(request) = self.generator.next_release() {
            let mut waiting = HashMap::new();
            self.send(request, &mut waiting);
            self.collect(&mut waiting);
        }
    }

    /// Tells each thread that the file system is unmounted, and waits for the threads to end.
    fn end(mut self) {
        for _ in 0..THREADS {
            let reply = self.ask(FuzzRequest::new(opcode::DESTROY, requests::ROOT, Vec::new()));
            assert_eq!(reply.error, 0);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let end = runtime.block_on(async { tokio::time::timeout(ANSWER_TIMEOUT, self.session.wait()).await });
        assert_eq!(end.expect("the threads end"), super::SessionEnd::Unmounted);
        let _ = nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }
}

/// What each thread of this process waits for in the kernel, as far as we may see it.
fn waiting_threads() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let shown = tasks.map(|task| {
        let part = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack: Vec<_> = part("stack").lines().take(6).map(str::to_owned).collect();
        format!("{}: syscall {}; {}", part("comm").trim(), part("syscall").trim(), stack.join(", "))
    });
    shown.collect::<Vec<_>>().join("\n")
}

fn send(socket: &impl AsFd, message: &[u8]) {
    let (data, begun) = ([IoSlice::new(message)], FuzzInstant::now());
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &data, &[], MsgFlags::empty(), None) {
            // A message takes contiguous kernel memory, of which there may be none for a while.
            Err(Errno::ENOBUFS) if begun.elapsed() < ANSWER_TIMEOUT => thread::yield_now(),
            sent => {
                sent.expect("a request is sent");
                return;
            }
        }
    }
}

/// The resident memory of the process in bytes, without what the allocator keeps for later: each
/// session that a malformed request ends leaves buffers of 16 MiB to it, with small allocations in
/// between.
fn resident() -> u64 {
    // SAFETY: it changes free memory only, and takes no pointer.
    unsafe { libc::malloc_trim(0) };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
