//! Engine and client together, with generated volumes. The end-to-end suites `store` and `engine`
//! have those of the real volume server.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::TcpStream as StdStream;
use std::os::fd::AsFd;
use std::time::Duration;

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::client::{self, Client, Delivered, ReadError, ReadTarget};
use crate::needle::Version;
use crate::protocol::{self, Capabilities, Choose, ClientMessage, Hello, MessageKind, Transport, VERSION};
use crate::store::OffsetWidth;
use crate::store::generated::GeneratedVolume;
use crate::token::ReadSigner;
use crate::{FileId, Refusal};

mod proof;

const COOKIE: u32 = 0xfeed_beef;
const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Local];

struct Fixture {
    _directory: TempDir,
    volume: GeneratedVolume,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    engine: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.engine.abort();
    }
}

/// The content of a key's needle.
fn content(key: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u64 * 31 + key * 17 + (at as u64 >> 9)) as u8).collect()
}

fn fid(key: u64) -> FileId {
    FileId { volume: 1, key, cookie: COOKIE }
}

async fn start(options: EngineOptions, key: Option<&[u8]>) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let volume = GeneratedVolume::new(directory.path(), 1, Version::V3, OffsetWidth::Four);
    let store = Arc::new(Store::new(vec![directory.path().into()], None).unwrap());
    let metrics = Arc::new(Metrics::default());
    let listen = "127.0.0.1:0".parse().unwrap();
    let verifier = key.map(ReadVerifier::new);
    let engine = Engine::bind(listen, store, verifier, metrics.clone(), &options).await.unwrap();
    let address = engine.address().unwrap();
    Fixture { _directory: directory, volume, address, metrics, engine: tokio::spawn(engine.serve()) }
}

impl Fixture {
    fn client(&self, transport: Transport) -> Client {
        let options =
            client::ClientOptions { transports: vec![transport], trust: named(), ..Default::default() };
        Client::new(self.address.to_string(), options)
    }
}

/// Trust in an engine because it was named.
fn named() -> client::Trust {
    client::Trust { named: true, ..client::Trust::default() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn read(
    client: &Client,
    fid: FileId,
    offset: u32,
    length: usize,
) -> Result<(Vec<u8>, Delivered), ReadError> {
    let mut bytes = vec![0; length];
    let delivered = client.read(ReadTarget { fid, offset, token: None }, &mut bytes, soon()).await?;
    bytes.truncate(delivered.needle.length as usize);
    Ok((bytes, delivered))
}

async fn refusal(client: &Client, fid: FileId) -> Refusal {
    match read(client, fid, 0, 10).await {
        Err(ReadError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn needles_of_all_sizes_are_read_whole_and_in_ranges() {
    let mut fixture = start(EngineOptions::default(), None).await;
    let sizes = [0, 1, 100, 32 << 10, (32 << 10) + 1, 200_000, 5 << 20];
    for (key, size) in (1..).zip(sizes) {
        fixture.volume.put(key, COOKIE, &content(key, size));
    }
    for transport in BOTH {
        let client = fixture.client(transport);
        for (key, size) in (1..).zip(sizes) {
            let expected = content(key, size);
            let (bytes, delivered) = read(&client, fid(key), 0, size + 10).await.unwrap();
            assert!(bytes == expected, "{transport:?} {size}");
            assert_eq!(delivered.needle.data_size as usize, size);
            assert_eq!(delivered.transport, transport);
            assert_eq!(delivered.verified, size > 0);
            for (offset, length) in [(0, size / 2), (size / 3, size / 3), (size - size / 4, size), (size, 5)]
            {
                let (bytes, delivered) = read(&client, fid(key), offset as u32, length).await.unwrap();
                assert!(
                    bytes == expected[offset..size.min(offset + length)],
                    "{transport:?} {size} {offset}"
                );
                assert!(!delivered.verified || bytes.len() == size);
            }
        }
        assert_eq!(refusal(&client, FileId { key: 99, ..fid(1) }).await, Refusal::NoNeedle);
        assert_eq!(refusal(&client, FileId { cookie: 1, ..fid(2) }).await, Refusal::WrongCookie);
        assert_eq!(refusal(&client, FileId { volume: 2, ..fid(2) }).await, Refusal::NoVolume);
        let behind = read(&client, fid(2), 2, 1).await.unwrap_err();
        assert_eq!(behind, ReadError::Refused(Refusal::OutOfRange));
        let long = read(&client, fid(2), 0, (64 << 20) + 1).await.unwrap_err();
        assert_eq!(long, ReadError::Refused(Refusal::TooLong));
    }
    let text = fixture.metrics.exposition().finish();
    assert!(text.contains("rdma_engine_connections{transport=\"local\"}"), "{text}");
    assert!(!text.contains("rdma_engine_reads_total{transport=\"local\"} 0"), "{text}");
    assert!(text.contains("rdma_engine_refusals_total{reason=\"no_volume\"} 2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_reads_are_right_though_some_are_dropped() {
    let mut fixture = start(EngineOptions { in_flight: 16, ..EngineOptions::default() }, None).await;
    for key in 1..=64 {
        fixture.volume.put(key, COOKIE, &content(key, (key as usize * 7919) % 300_000));
    }
    for transport in BOTH {
        let client = fixture.client(transport);
        let mut readers = JoinSet::new();
        for reader in 0..8u64 {
            let client = client.clone();
            readers.spawn(async move {
                for step in 0..60u64 {
                    let key = (reader * 61 + step * 13) % 64 + 1;
                    let size = (key as usize * 7919) % 300_000;
                    if step % 5 == reader % 5 {
                        // Dropped somewhere between the request and the last byte.
                        let limit = Duration::from_micros(step * 20);
                        let _ = tokio::time::timeout(limit, read(&client, fid(key), 0, size + 1)).await;
                    }
                    let (bytes, _) = read(&client, fid(key), 0, size + 1).await.unwrap();
                    assert!(bytes == content(key, size), "{transport:?} {key}");
                }
            });
        }
        while let Some(done) = readers.join_next().await {
            done.unwrap();
        }
        assert_eq!(client.transport(), Some(transport), "the connection has lasted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_needed_once_for_each_needle_and_session() {
    let mut fixture = start(EngineOptions::default(), Some(b"secret")).await;
    fixture.volume.put(1, COOKIE, b"guarded");
    fixture.volume.put(2, COOKIE, b"as well");
    let token = ReadSigner::new(b"secret", 60).token(fid(1));
    let forged = ReadSigner::new(b"guessed", 60).token(fid(1));
    for transport in BOTH {
        let client = fixture.client(transport);
        let read = async |key, token: Option<&str>| {
            let mut bytes = [0; 7];
            let target = ReadTarget { fid: fid(key), offset: 0, token };
            client.read(target, &mut bytes, soon()).await.map(|_| bytes)
        };
        assert_eq!(read(1, None).await, Err(ReadError::Refused(Refusal::TokenMissing)));
        assert_eq!(read(1, Some(&forged)).await, Err(ReadError::Refused(Refusal::TokenInvalid)));
        assert_eq!(read(2, Some(&token)).await, Err(ReadError::Refused(Refusal::TokenInvalid)));
        assert_eq!(read(1, Some(&token)).await, Ok(*b"guarded"));
        assert_eq!(read(1, None).await, Ok(*b"guarded"));
        assert_eq!(read(2, None).await, Err(ReadError::Refused(Refusal::TokenMissing)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_byte_never_arrives_as_a_whole_needle() {
    let mut fixture = start(EngineOptions::default(), None).await;
    for (key, size) in [(1, 1000), (2, 100_000), (3, 1 << 20)] {
        fixture.volume.put(key, COOKIE, &content(key, size));
    }
    let path = fixture.volume.path("dat");
    let mut bytes = fs::read(&path).unwrap();
    for at in [500, 50_000, 500_000] {
        bytes[at] ^= 1;
    }
    OpenOptions::new().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
    for transport in BOTH {
        let client = fixture.client(transport);
        for (key, size) in [(1, 1000), (2, 100_000), (3, 1 << 20)] {
            let error = read(&client, fid(key), 0, size).await.unwrap_err();
            assert_eq!(error, ReadError::Damaged("the checksum"), "{transport:?} {key}");
        }
        assert_eq!(client.transport(), Some(transport), "the engine is fine otherwise");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_close_files_that_were_replaced() {
    let mut fixture = start(EngineOptions::default(), None).await;
    fixture.volume.put(1, COOKIE, b"one");
    let client = fixture.client(Transport::Local);
    read(&client, fid(1), 0, 3).await.unwrap();
    let compacted = fixture.volume.compact(&[(1, COOKIE, b"one".to_vec())]);
    fixture.volume.swap_data();
    fixture.volume.swap_index(compacted);
    let held = || {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let names = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let directory = fixture.volume.path("dat").to_string_lossy().into_owned();
        names.filter(|name| name.to_string_lossy() == format!("{directory} (deleted)")).count()
    };
    let began = Instant::now();
    while held() > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{} descriptors of the old file", held());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(read(&client, fid(1), 0, 3).await.unwrap().0, b"one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_gone_is_retried_after_a_backoff() {
    let mut fixture = start(EngineOptions::default(), None).await;
    fixture.volume.put(1, COOKIE, b"one");
    let client = fixture.client(Transport::Tcp);
    read(&client, fid(1), 0, 3).await.unwrap();
    fixture.engine.abort();
    let began = Instant::now();
    let error = loop {
        match read(&client, fid(1), 0, 3).await {
            Ok(_) => assert!(began.elapsed() < Duration::from_secs(20), "the sessions went on"),
            Err(error) => break error,
        }
    };
    // The end of the session may be noticed while a read ends well: then no read was lost.
    assert!(matches!(error, ReadError::Unavailable(_) | ReadError::Lost(_)), "{error}");
    let error = read(&client, fid(1), 0, 3).await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable(_) | ReadError::Lost(_)), "{error}");

    let directory = fixture.volume.path("dat").parent().unwrap().to_owned();
    let store = Arc::new(Store::new(vec![directory], None).unwrap());
    let metrics = fixture.metrics.clone();
    let engine =
        Engine::bind(fixture.address, store, None, metrics, &EngineOptions::default()).await.unwrap();
    fixture.engine = tokio::spawn(engine.serve());
    let began = Instant::now();
    while let Err(error) = read(&client, fid(1), 0, 3).await {
        assert!(matches!(error, ReadError::Unavailable(_) | ReadError::Lost(_)), "{error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_hangs_costs_one_deadline() {
    // Introduces itself, and then sends nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hanging = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let limits = SessionLimits { in_flight: 4, read: 1 << 20, idle_ms: 1000, lease_ms: 0 };
        let welcome = crate::protocol::Welcome {
            version: VERSION,
            capabilities: Capabilities::default(),
            instance: 1,
            limits,
            offers: vec![crate::protocol::Offer::Tcp],
            proof: None,
        };
        let mut bytes = BytesMut::new();
        welcome.encode(&mut bytes);
        Choose::Tcp.encode(MessageKind::Ready, &mut bytes);
        stream.write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        // Until the client gives up.
        let _ = stream.read_to_end(&mut rest);
    });
    let transports = vec![Transport::Tcp];
    let options = client::ClientOptions { transports, trust: named(), ..client::ClientOptions::default() };
    let client = Client::new(address, options);
    let mut bytes = [0; 10];
    let target = ReadTarget { fid: fid(1), offset: 0, token: None };
    let deadline = Instant::now() + Duration::from_millis(200);
    assert_eq!(client.read(target, &mut bytes, deadline).await.unwrap_err(), ReadError::Deadline);
    let error = client.read(target, &mut bytes, soon()).await.unwrap_err();
    assert!(matches!(error, ReadError::Unavailable(_)), "{error}");
    hanging.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_do_not_speak_the_protocol_are_disconnected() {
    let fixture =
        start(EngineOptions { idle: Duration::from_millis(300), ..EngineOptions::default() }, None).await;
    let address = fixture.address;
    let talk = move |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // A reset is an end too.
            let _ = stream.read_to_end(&mut answer);
            answer
        })
    };
    assert_eq!(talk(b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n").await.unwrap(), b"");
    assert_eq!(talk(&[0xff; 4096]).await.unwrap(), b"");
    let refused = |refusal: Refusal| {
        let mut bytes = BytesMut::new();
        crate::protocol::EngineMessage::Refused(refusal).encode(0, &mut bytes);
        bytes
    };
    let hello = |oldest, newest| {
        let mut bytes = BytesMut::new();
        let (capabilities, name) = (Capabilities(u64::MAX), "x".into());
        Hello { oldest, newest, capabilities, name, nonce: None }.encode(&mut bytes);
        bytes
    };
    assert_eq!(talk(&hello(2, 9)).await.unwrap(), refused(Refusal::Version));
    let mut choice = hello(1, 9);
    Choose::Local { proof: None }.encode(MessageKind::Choose, &mut choice);
    let answer = talk(&choice).await.unwrap();
    assert!(answer.ends_with(&refused(Refusal::NoTransport)), "{answer:?}");
    // An idle session is ended.
    let mut choice = hello(1, 1);
    Choose::Tcp.encode(MessageKind::Choose, &mut choice);
    let answer = talk(&choice).await.unwrap();
    assert_eq!(answer[answer.len() - 19..][4], MessageKind::Ready as u8);
    // So is one that sends a malformed message.
    choice.extend_from_slice(&hello(1, 1));
    talk(&choice).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_sessions_or_requests_than_allowed_are_refused() {
    let mut fixture =
        start(EngineOptions { sessions: 2, in_flight: 1, ..EngineOptions::default() }, None).await;
    fixture.volume.put(1, COOKIE, &content(1, 1 << 20));
    let clients =
        [fixture.client(Transport::Tcp), fixture.client(Transport::Tcp), fixture.client(Transport::Tcp)];
    for client in &clients[..2] {
        read(client, fid(1), 0, 10).await.unwrap();
    }
    assert_eq!(refusal(&clients[2], fid(1)).await, Refusal::TooManySessions);

    // A client that does not keep to the limit: forty requests at once.
    drop(clients);
    let address = fixture.address;
    let answers = tokio::task::spawn_blocking(move || {
        let mut bytes = BytesMut::new();
        let (capabilities, name) = (Capabilities(0), "x".into());
        Hello { oldest: 1, newest: 1, capabilities, name, nonce: None }.encode(&mut bytes);
        Choose::Tcp.encode(MessageKind::Choose, &mut bytes);
        for number in 1..=40 {
            let read =
                crate::protocol::ReadRequest { fid: fid(1), offset: 0, length: 1 << 20, token: vec![] };
            crate::protocol::ClientMessage::Read(read).encode(number, &mut bytes);
        }
        let began = std::time::Instant::now();
        let mut stream = loop {
            // The permits of ended sessions become free in a moment.
            let mut stream = StdStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut head = [0; 16];
            if stream.read_exact(&mut head).is_ok() && head[4] == MessageKind::Welcome as u8 {
                break stream;
            }
            assert!(began.elapsed() < Duration::from_secs(20));
        };
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        answers
    });
    let answers = answers.await.unwrap();
    let mut busy = BytesMut::new();
    crate::protocol::EngineMessage::Refused(Refusal::Busy).encode(40, &mut busy);
    // All were answered, and the metric counts those that were refused.
    assert!(answers.len() >= 1 << 20);
    assert!(!fixture.metrics.exposition().finish().contains("reason=\"busy\"} 0\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_short_sessions_leak_nothing() {
    let mut fixture = start(EngineOptions { sessions: 64, ..EngineOptions::default() }, None).await;
    fixture.volume.put(1, COOKIE, &content(1, 300_000));
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let connections = |fixture: &Fixture| {
        let text = fixture.metrics.exposition().finish();
        let lines = text.lines().filter(|line| line.starts_with("rdma_engine_connections{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    let mut before = 0;
    for round in 0..1000 {
        let client = fixture.client(BOTH[round % 2]);
        if round % 3 == 0 {
            // The client leaves in the middle of the answer.
            let limit = Duration::from_micros(round as u64);
            let _ = tokio::time::timeout(limit, read(&client, fid(1), 0, 300_000)).await;
        } else if let Err(error) = read(&client, fid(1), 0, 300_000).await {
            // Sessions that have just ended may still take all permits.
            assert_eq!(error, ReadError::Refused(Refusal::TooManySessions));
        }
        drop(client);
        if round == 50 {
            before = descriptors();
        }
    }
    let began = Instant::now();
    while connections(&fixture) > 0 || descriptors() > before {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{} sessions, {} descriptors instead of {before}",
            connections(&fixture),
            descriptors()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_rdma_the_next_transport_is_taken() {
    let mut fixture = start(EngineOptions { verbs: false, ..EngineOptions::default() }, None).await;
    fixture.volume.put(1, COOKIE, &content(1, 100_000));
    let transports = vec![Transport::Verbs, Transport::Tcp];
    let options = client::ClientOptions { transports, trust: named(), ..client::ClientOptions::default() };
    let client = Client::new(fixture.address.to_string(), options);
    let (bytes, delivered) = read(&client, fid(1), 0, 100_000).await.unwrap();
    assert!(bytes == content(1, 100_000));
    assert_eq!((delivered.transport, client.transport()), (Transport::Tcp, Some(Transport::Tcp)));
    // A client that accepts no other transport is refused.
    assert_eq!(refusal(&fixture.client(Transport::Verbs), fid(1)).await, Refusal::NoTransport);
}

fn hello() -> Hello {
    Hello { oldest: 1, newest: 1, capabilities: Capabilities(0), name: "x".into(), nonce: None }
}

/// A session over TCP by hand: introduced, with these requests sent.
fn session(address: SocketAddr, requests: impl IntoIterator<Item = (u64, ClientMessage)>) -> StdStream {
    let mut bytes = BytesMut::new();
    hello().encode(&mut bytes);
    Choose::Tcp.encode(MessageKind::Choose, &mut bytes);
    for (number, request) in requests {
        request.encode(number, &mut bytes);
    }
    let mut stream = StdStream::connect(address).unwrap();
    // Without a limit of ours, the buffer may grow until it takes all that is asked for.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 64 << 10).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(&bytes).unwrap();
    stream
}

fn small_reads(count: u64) -> impl Iterator<Item = (u64, ClientMessage)> {
    let read = protocol::ReadRequest { fid: fid(1), offset: 0, length: 32 << 10, token: vec![] };
    (1..=count).map(move |number| (number, ClientMessage::Read(read.clone())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_receive_fill_at_most_their_part_of_the_memory() {
    const PART: u64 = 1 << 20;
    let mut fixture = start(EngineOptions { waiting: 4 * PART, ..EngineOptions::default() }, None).await;
    fixture.volume.put(1, COOKIE, &content(1, 32 << 10));
    let waiting = || {
        let text = fixture.metrics.exposition().finish();
        let line = text.lines().find_map(|l| l.strip_prefix("rdma_engine_staging_bytes{transport=\"tcp\"} "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let address = fixture.address;
    let deaf = tokio::task::spawn_blocking(move || {
        (0..16).map(|_| session(address, small_reads(256))).collect::<Vec<_>>()
    });
    let mut deaf = deaf.await.unwrap();
    let began = Instant::now();
    // 128 MiB were asked for, of which the sockets have taken some.
    while waiting() + (32 << 10) <= PART {
        assert!(began.elapsed() < Duration::from_secs(20), "{} bytes wait", waiting());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Other clients are served meanwhile, and a client that receives late gets all answers.
    let client = fixture.client(Transport::Tcp);
    for _ in 0..50 {
        assert!(waiting() <= PART, "{} bytes wait", waiting());
        assert_eq!(read(&client, fid(1), 0, 32 << 10).await.unwrap().0, content(1, 32 << 10));
    }
    let mut late = deaf.pop().unwrap();
    let bytes = tokio::task::spawn_blocking(move || {
        let mut answers = vec![0; 256 * (32 << 10)];
        late.read_exact(&mut answers).map(|()| answers.len())
    });
    assert_eq!(bytes.await.unwrap().unwrap(), 8 << 20);
    drop(deaf);
    while waiting() > 0 {
        assert!(began.elapsed() < Duration::from_secs(40), "{} bytes are left", waiting());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_refused_reads_do_not_keep_a_session() {
    let fixture =
        start(EngineOptions { idle: Duration::from_millis(300), ..EngineOptions::default() }, None).await;
    let address = fixture.address;
    let missing = protocol::ReadRequest { fid: fid(404), offset: 0, length: 1, token: vec![] };
    for request in [ClientMessage::Ping, ClientMessage::Read(missing)] {
        let ends = tokio::task::spawn_blocking(move || {
            let mut stream = session(address, []);
            let (mut talking, began) = (stream.try_clone().unwrap(), std::time::Instant::now());
            std::thread::spawn(move || {
                let mut bytes = BytesMut::new();
                request.encode(1, &mut bytes);
                // The next request follows in no time, so the session is never quiet.
                while talking.write_all(&bytes).is_ok() && began.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let mut answers = Vec::new();
            // A reset is an end too.
            let _ = stream.read_to_end(&mut answers);
            began.elapsed()
        });
        assert!(ends.await.unwrap() < Duration::from_secs(15));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_peer_does_not_take_all_connections() {
    let options = EngineOptions { sessions: 8, sessions_of_peer: 2, ..EngineOptions::default() };
    let mut fixture = start(options, None).await;
    fixture.volume.put(1, COOKIE, b"one");
    let address = fixture.address;
    let crowd = [fixture.client(Transport::Tcp), fixture.client(Transport::Tcp)];
    for client in &crowd {
        read(client, fid(1), 0, 3).await.unwrap();
    }
    assert_eq!(refusal(&fixture.client(Transport::Tcp), fid(1)).await, Refusal::TooManySessions);
    // From another address of this host, which for the engine is another peer.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(address).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let welcomed = tokio::task::spawn_blocking(move || {
        let (mut stream, mut bytes) = (stream, BytesMut::new());
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        hello().encode(&mut bytes);
        stream.write_all(&bytes).unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).map(|()| head[4])
    });
    assert_eq!(welcomed.await.unwrap().unwrap(), MessageKind::Welcome as u8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_closes_descriptors_that_it_is_sent() {
    let fixture = start(EngineOptions::default(), None).await;
    let address = fixture.address;
    tokio::task::spawn_blocking(move || {
        let mut stream = session(address, []);
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes(head[..4].try_into().unwrap());
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).unwrap();
        let offers = protocol::Welcome::decode(&body).unwrap().offers;
        let name = offers.into_iter().find_map(|offer| match offer {
            protocol::Offer::Local { socket } => Some(socket),
            _ => None,
        });
        let name = std::os::unix::net::SocketAddr::from_abstract_name(name.unwrap()).unwrap();
        let unix = std::os::unix::net::UnixStream::connect_addr(&name).unwrap();
        let (reading, writing) = std::io::pipe().unwrap();
        let mut bytes = BytesMut::new();
        hello().encode(&mut bytes);
        let descriptors = [writing.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&unix, &[std::io::IoSlice::new(&bytes)], &mut control, flags).unwrap();
        drop(writing);
        // The other end is closed, though the engine has the message and the connection stays.
        let mut ended = [PollFd::new(&reading, PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(
            rustix::event::poll(&mut ended, Some(&limit)).unwrap(),
            1,
            "the engine holds what it was sent"
        );
        drop(unix);
    })
    .await
    .unwrap();
}
