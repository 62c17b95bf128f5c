//! Engine and client over verbs: the right bytes by RDMA READ, nothing without a grant, and all
//! resources freed.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rdma_engine::client::{self, Client, Delivered, Destination, ReadError, ReadTarget, RegistrationCache};
use rdma_engine::metrics::Metrics;
use rdma_engine::protocol::{ClientMessage, Transport};
use rdma_engine::server::{Engine, EngineOptions};
use rdma_engine::store::Store;
use rdma_engine::verbs::{Memory, Pages, WorkError};
use rdma_engine::{Refusal, checksum};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::client::{Brought, ByHand};
use crate::leaks::resources;
use crate::volume::{content, fid, write};
use crate::{DEADLINE, Numbers, Turn, turn};

/// Lengths of the needles: in line, just above, of several slots of the bounce memory.
pub(crate) const LENGTHS: [usize; 7] = [100, 8 << 10, (8 << 10) + 1, 70_000, 512 << 10, 700_000, 1_300_000];

/// The needle of the last.
const LONGEST: (u64, usize) = (LENGTHS.len() as u64, LENGTHS[LENGTHS.len() - 1]);

/// A turn that waits at its end until all resources of the test are freed: a client's device is
/// closed a moment after its last connection.
pub(crate) struct Quiet {
    before: String,
    _turn: Turn,
}

pub(crate) fn quiet_turn() -> Option<Quiet> {
    turn().map(|turn| Quiet { before: resources(), _turn: turn })
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let started = Instant::now();
        while resources() != self.before {
            if started.elapsed() > DEADLINE {
                // Not a second panic.
                assert!(std::thread::panicking(), "left behind: {}\n{}", self.before, resources());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) struct Served {
    _directory: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) runtime: Runtime,
}

pub(crate) fn serve(lengths: &[usize], options: EngineOptions) -> Served {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), lengths);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Arc::new(Store::new(vec![directory.path().into()], None).unwrap());
    let metrics = Arc::new(Metrics::default());
    let listen = "127.0.0.1:0".parse().unwrap();
    let engine = runtime.block_on(Engine::bind(listen, store, None, metrics.clone(), &options)).unwrap();
    let address = engine.address().unwrap();
    runtime.spawn(engine.serve());
    Served { _directory: directory, address, metrics, runtime }
}

pub(crate) fn client(address: SocketAddr) -> Client {
    let options = client::ClientOptions {
        transports: vec![Transport::Verbs],
        connect: DEADLINE,
        trust: client::Trust { named: true, ..client::Trust::default() },
        ..client::ClientOptions::default()
    };
    Client::new(address.to_string(), options)
}

pub(crate) fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + DEADLINE
}

/// The value of a line of the metrics.
pub(crate) fn metric(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.exposition().finish();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}

/// Waits until a metric has a value.
pub(crate) fn until(metrics: &Metrics, name: &str, value: u64) {
    let started = Instant::now();
    while metric(metrics, name) != value {
        assert!(started.elapsed() < DEADLINE, "{name} stays {}", metric(metrics, name));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A part of pages that a test has registered, with one owner at a time.
struct Part {
    pages: Arc<Pages>,
    offset: usize,
    length: usize,
}

// SAFETY: within the pages, which it shares the ownership of; the tests make no two of one range.
unsafe impl Destination for Part {
    fn start(&self) -> *mut u8 {
        // SAFETY: the offset lies within the pages.
        unsafe { self.pages.start().add(self.offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

impl Part {
    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and zeroed at first, and used by nothing else while this value exists.
        unsafe { std::slice::from_raw_parts(self.start(), self.length) }
    }
}

fn check(delivered: &Delivered, bytes: &[u8], key: u64, offset: usize) {
    static WHOLE: LazyLock<Vec<Vec<u8>>> =
        LazyLock::new(|| (1..).zip(LENGTHS).map(|(key, length)| content(key, length)).collect());
    let whole = &WHOLE[key as usize - 1];
    let end = whole.len().min(offset + bytes.len());
    assert_eq!(delivered.needle.length as usize, end - offset);
    assert!(bytes[..end - offset] == whole[offset..end], "key {key} from {offset}, {} bytes", end - offset);
    assert_eq!(delivered.verified, end - offset == whole.len());
    // Small needles come in the message, the others by RDMA READ.
    assert_eq!(delivered.transport, Transport::Verbs);
}

#[test]
#[ignore = "needs an RDMA device"]
fn random_needles_and_ranges_are_read_by_rdma_into_any_memory() {
    let Some(_turn) = quiet_turn() else {
        return;
    };
    let served = serve(&LENGTHS, EngineOptions::default());
    let client = client(served.address);
    let pages = Arc::new(Pages::new(8 << 20).unwrap());
    let registrations = RegistrationCache::new(pages.clone(), 64 << 10);
    client.register(registrations.clone());
    let mut numbers = Numbers(11);
    let (mut fetched, mut bytes_fetched) = (0, 0);
    for round in 0..200 {
        let key = 1 + numbers.below(LENGTHS.len());
        let whole = LENGTHS[key - 1];
        let (offset, length) = match round % 4 {
            0 => (0, whole + 1),
            _ => (numbers.below(whole), 1 + numbers.below(whole)),
        };
        let target = ReadTarget { fid: fid(key as u64), offset: offset as u32, token: None };
        let delivered = if round % 2 == 0 {
            let mut bytes = vec![0xee; length];
            let read = client.read(target, &mut bytes, soon());
            let delivered = served.runtime.block_on(read).unwrap();
            check(&delivered, &bytes, key as u64, offset);
            delivered
        } else {
            // At changing offsets, so that parts are registered, and replaced by larger ones.
            let offset_there = numbers.below(pages.length() - length);
            let part = Part { pages: pages.clone(), offset: offset_there, length };
            let read = client.read_owned(target, part, soon());
            let (delivered, part) = served.runtime.block_on(read);
            let delivered = delivered.unwrap();
            check(&delivered, part.unwrap().bytes(), key as u64, offset);
            delivered
        };
        if delivered.transport == Transport::Verbs {
            fetched += 1;
            bytes_fetched += u64::from(delivered.needle.length);
        }
    }
    assert_eq!(client.transport(), Some(Transport::Verbs));
    assert!(fetched > 100, "{fetched}");
    assert!(registrations.registered() > 1 << 20, "{}", registrations.registered());
    assert_eq!(metric(&served.metrics, "rdma_engine_reads_total{transport=\"verbs\"}"), fetched);
    assert_eq!(metric(&served.metrics, "rdma_engine_bytes_total{transport=\"verbs\"}"), bytes_fetched);
    // Ranges stay staged as long as there is room.
    assert!(metric(&served.metrics, "rdma_engine_staging_bytes{transport=\"verbs\"}") > 0);
    drop(client);
    until(&served.metrics, "rdma_engine_staging_bytes{transport=\"verbs\"}", 0);
}

#[test]
#[ignore = "needs an RDMA device"]
fn memory_whose_pages_were_replaced_is_registered_again() {
    let Some(_turn) = quiet_turn() else { return };
    let (key, length) = LONGEST;
    let served = serve(&LENGTHS, EngineOptions::default());
    let client = client(served.address);
    let pages = Arc::new(Pages::new(4 << 20).unwrap());
    let registrations = RegistrationCache::new(pages.clone(), 2 << 20);
    client.register(registrations.clone());
    for round in 0..3 {
        let part = Part { pages: pages.clone(), offset: 0, length };
        let target = ReadTarget { fid: fid(key), offset: 0, token: None };
        let (delivered, part) = served.runtime.block_on(client.read_owned(target, part, soon()));
        check(&delivered.unwrap(), part.unwrap().bytes(), key, 0);
        assert_eq!(registrations.registered(), 2 << 20, "round {round}");
        let start = std::ptr::NonNull::new(pages.start()).unwrap();
        // Without withdrawing, the device would go on writing to the replaced pages.
        let replaced = registrations.withdraw(start, 1 << 20, || {
            // SAFETY: private pages that nothing refers to; they read as zeros afterwards.
            unsafe { libc::madvise(start.as_ptr().cast(), 4 << 20, libc::MADV_DONTNEED) }
        });
        assert_eq!(replaced, Some(0));
        assert_eq!(registrations.registered(), 0);
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn many_readers_share_a_connection_though_some_reads_are_dropped() {
    let Some(_turn) = quiet_turn() else {
        return;
    };
    let served = serve(&LENGTHS, EngineOptions::default());
    let client = client(served.address);
    served.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for reader in 0..4u64 {
            let client = client.clone();
            readers.spawn(async move {
                let mut numbers = Numbers(reader);
                for _ in 0..20 {
                    let key = 1 + numbers.below(LENGTHS.len());
                    let mut bytes = vec![0xee; LENGTHS[key - 1]];
                    let target = ReadTarget { fid: fid(key as u64), offset: 0, token: None };
                    let read = client.read(target, &mut bytes, soon());
                    if numbers.below(4) == 0 {
                        // Dropped somewhere on its way.
                        let mut read = std::pin::pin!(read);
                        for _ in 0..numbers.below(3) {
                            let poll = std::future::poll_fn(|context| {
                                std::task::Poll::Ready(read.as_mut().poll(context).is_ready())
                            });
                            if poll.await {
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                    } else {
                        check(&read.await.unwrap(), &bytes, key as u64, 0);
                    }
                }
            });
        }
        while let Some(outcome) = readers.join_next().await {
            outcome.unwrap();
        }
    });
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_waiting_reader_is_always_woken_alone_or_among_others() {
    let Some(_turn) = quiet_turn() else { return };
    // A completion for which no thread is woken is found when the adapter thread checks, twice a
    // second.
    const FORGOTTEN: Duration = Duration::from_millis(400);
    let served = serve(&LENGTHS, EngineOptions::default());
    let client = client(served.address);
    let watch = StallWatch::start();
    let slow = served.runtime.block_on(async {
        let mut readers = JoinSet::new();
        for reader in 0..3u64 {
            let client = client.clone();
            readers.spawn(async move {
                let mut numbers = Numbers(reader);
                let mut slow = Vec::new();
                for _ in 0..300 {
                    // Four of these lengths come in line or by one READ.
                    let key = 1 + numbers.below(4);
                    let mut bytes = vec![0xee; LENGTHS[key - 1]];
                    let target = ReadTarget { fid: fid(key as u64), offset: 0, token: None };
                    let began = Instant::now();
                    let read = client.read(target, &mut bytes, soon());
                    if numbers.below(8) == 0 {
                        // Given up, most likely while it looks.
                        let _ = tokio::time::timeout(Duration::from_micros(100), read).await;
                    } else {
                        check(&read.await.unwrap(), &bytes, key as u64, 0);
                        if began.elapsed() > FORGOTTEN {
                            slow.push((began, Instant::now()));
                        }
                    }
                    if numbers.below(16) == 0 {
                        // Long enough for the others to be alone for a few reads.
                        tokio::time::sleep(Duration::from_millis(numbers.below(10) as u64)).await;
                    }
                }
                slow
            });
        }
        readers.join_all().await.concat()
    });
    // A guest stands still now and then, and its emulated device with it.
    let forgotten = watch.not_during_stalls(slow);
    assert!(forgotten < 3, "{forgotten} times a read took longer than {FORGOTTEN:?}");
}

/// From when to when.
type Span = (Instant, Instant);

/// Notes when this machine stands still: a thread that sleeps for a moment is late.
struct StallWatch {
    is_over: Arc<AtomicBool>,
    stalls: std::thread::JoinHandle<Vec<Span>>,
}

impl StallWatch {
    fn start() -> Self {
        const STALL: Duration = Duration::from_millis(100);
        let is_over = Arc::<AtomicBool>::default();
        let ends = is_over.clone();
        let watch = move || {
            let mut stalls = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                let before = Instant::now();
                std::thread::sleep(Duration::from_millis(10));
                if before.elapsed() > STALL {
                    stalls.push((before, Instant::now()));
                }
            }
            stalls
        };
        Self { is_over, stalls: std::thread::spawn(watch) }
    }

    /// How many of these times were outside of stalls; those that overlap are one.
    fn not_during_stalls(self, mut times: Vec<Span>) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        let stalls = self.stalls.join().unwrap();
        let overlap = |a: &Span, b: &Span| a.0 < b.1 && b.0 < a.1;
        times.retain(|time| !stalls.iter().any(|stall| overlap(time, stall)));
        times.sort();
        times.dedup_by(|later, earlier| {
            let is_same = overlap(earlier, later);
            earlier.1 = if is_same { earlier.1.max(later.1) } else { earlier.1 };
            is_same
        });
        times.len()
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_key_granted_to_another_session_opens_nothing() {
    let Some(_turn) = quiet_turn() else { return };
    const LENGTH: usize = 70_000;
    let served = serve(&[LENGTH], EngineOptions::default());
    let (mut honest, mut hostile) = (ByHand::connect(served.address), ByHand::connect(served.address));
    let theirs = honest.granted(1, 1, LENGTH as u32);
    let own = hostile.granted(1, 1, LENGTH as u32);
    let expected = content(1, LENGTH);
    assert!(hostile.fetch(&own, LENGTH).unwrap() == expected);
    assert_ne!(own.rkey, theirs.rkey);
    assert_eq!(hostile.fetch(&theirs, LENGTH), Err(WorkError::RemoteAccess));
    // Only the hostile session is broken.
    assert!(honest.fetch(&theirs, LENGTH).unwrap() == expected);
    // Not past the staging memory either.
    let staging = EngineOptions::default().staging as u64;
    let behind = rdma_engine::protocol::Grant { address: theirs.address + staging, ..theirs };
    assert_eq!(honest.fetch(&behind, LENGTH), Err(WorkError::RemoteAccess));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_grant_that_is_never_given_back_ends_with_its_lease() {
    let Some(_turn) = quiet_turn() else {
        return;
    };
    const LENGTH: usize = 60_000;
    let lease = Duration::from_secs(2);
    let options = EngineOptions { staging: 2 * LENGTH, in_flight: 3, lease, ..EngineOptions::default() };
    let served = serve(&[LENGTH; 4], options);
    let mut client = ByHand::connect(served.address);
    assert_eq!(client.limits.lease_ms, 2000);
    let first = client.granted(1, 1, LENGTH as u32);
    assert!(client.fetch(&first, LENGTH).unwrap() == content(1, LENGTH));
    let second = client.granted(2, 2, LENGTH as u32);
    // Without room the same bytes come in line.
    assert_eq!(client.ask(3, 3, LENGTH as u32), Brought::Data(content(3, LENGTH)));
    // A staged range serves another request of the session, from the same memory.
    let shared = client.granted(4, 2, LENGTH as u32);
    assert_eq!(shared.address, second.address);
    // Three are unanswered, as it were: the client has not said that it is done.
    assert_eq!(client.ask(5, 3, LENGTH as u32), Brought::Refused(Refusal::Busy));
    until(&served.metrics, "rdma_engine_leases_over_total", 3);
    let third = client.granted(6, 3, LENGTH as u32);
    assert!(client.fetch(&third, LENGTH).unwrap() == content(3, LENGTH));
    // One that is given back is room for the next at once.
    client.send(6, &ClientMessage::Done);
    for (number, key) in [(7, 4), (8, 1), (9, 2)] {
        let grant = client.granted(number, key, LENGTH as u32);
        assert_eq!(
            checksum::crc32c(&client.fetch(&grant, LENGTH).unwrap()),
            checksum::crc32c(&content(key, LENGTH))
        );
        client.send(number, &ClientMessage::Done);
    }
    assert_eq!(metric(&served.metrics, "rdma_engine_leases_over_total"), 3);
}

/// The engine's own program, killed (`kill -9`) when dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Program {
    pub(crate) fn start(directory: &std::path::Path, listen: SocketAddr) -> Self {
        Self::with(&[], directory, listen)
    }

    /// With further options.
    pub(crate) fn with(options: &[&str], directory: &std::path::Path, listen: SocketAddr) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdma-engine"));
        command.args(["serve", "--status-addr", "none", "--listen", &listen.to_string()]);
        command.args(options).arg("--volume-dir");
        let mut child = command.arg(directory).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("serving ").unwrap().parse().unwrap();
        Self { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Readers of the longest needle, over and over, each until its first error, when all of them have
/// read it.
pub(crate) async fn reading(client: &Client) -> JoinSet<ReadError> {
    const READERS: usize = 4;
    let mut readers = JoinSet::new();
    let (read, mut begun) = tokio::sync::mpsc::channel(READERS);
    for _ in 0..READERS {
        let (client, read) = (client.clone(), read.clone());
        readers.spawn(async move {
            let mut first = Some(read);
            loop {
                if let Err(error) = read_longest(&client).await {
                    return error;
                }
                if let Some(read) = first.take() {
                    read.send(()).await.unwrap();
                }
            }
        });
    }
    for _ in 0..READERS {
        begun.recv().await.unwrap();
    }
    readers
}

/// Reads until that works again.
pub(crate) async fn read_again(client: &Client) {
    let started = Instant::now();
    while let Err(error) = read_longest(client).await {
        assert!(started.elapsed() < DEADLINE, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Reads the longest needle, and compares.
async fn read_longest(client: &Client) -> Result<(), ReadError> {
    let mut bytes = vec![0xee; LONGEST.1];
    let target = ReadTarget { fid: fid(LONGEST.0), offset: 0, token: None };
    let delivered = client.read(target, &mut bytes, soon()).await?;
    check(&delivered, &bytes, LONGEST.0, 0);
    Ok(())
}

/// Relays connections to `engine`; of the first, nothing that the client sends after its greeting.
async fn first_falls_silent(engine: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(engine).await.unwrap();
            tokio::spawn(async move {
                if number > 0 {
                    return tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop);
                }
                let mut greeting = [0; 1024];
                let length = near.read(&mut greeting).await?;
                far.write_all(&greeting[..length]).await?;
                tokio::io::copy(&mut far, &mut near).await.map(drop)
            });
        }
    });
    address
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_engine_that_never_gets_ready_for_rdma_is_asked_over_tcp() {
    let Some(_turn) = quiet_turn() else { return };
    let served = serve(&LENGTHS, EngineOptions::default());
    served.runtime.block_on(async {
        let address = first_falls_silent(served.address).await;
        let options = client::ClientOptions {
            transports: vec![Transport::Verbs, Transport::Tcp],
            connect: DEADLINE / 3,
            trust: client::Trust { named: true, ..client::Trust::default() },
            ..client::ClientOptions::default()
        };
        let client = Client::new(address.to_string(), options);
        let mut bytes = vec![0; LONGEST.1];
        let target = ReadTarget { fid: fid(LONGEST.0), offset: 0, token: None };
        let delivered = client.read(target, &mut bytes, soon()).await.unwrap();
        assert_eq!((delivered.transport, delivered.verified), (Transport::Tcp, true));
        assert!(bytes == content(LONGEST.0, LONGEST.1));
    });
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_engine_killed_in_mid_read_is_an_error_in_time_and_leaves_nothing() {
    let Some(_turn) = quiet_turn() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), &LENGTHS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for _ in 0..2 {
        let engine = Program::start(directory.path(), "127.0.0.1:0".parse().unwrap());
        let client = client(engine.address);
        runtime.block_on(async {
            let mut readers = reading(&client).await;
            drop(engine);
            let killed = Instant::now();
            while let Some(error) = readers.join_next().await {
                let error = error.unwrap();
                assert!(matches!(error, ReadError::Lost(_) | ReadError::Unavailable(_)), "{error:?}");
            }
            println!("errors {} ms after the kill", killed.elapsed().as_millis());
            assert!(killed.elapsed() < DEADLINE / 2);
        });
        // A new engine at another address needs a new client; this client stays disconnected.
        assert_eq!(client.transport(), None);
    }
}
