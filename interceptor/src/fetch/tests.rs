//! Fetches from several servers of which some misbehave.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use ::bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use rdma_engine::FileId;
use rdma_engine::checksum::crc32c;
use rdma_engine::needle::{Flags, Header};
use rdma_engine::protocol::frame::HEADER;
use rdma_engine::protocol::{
    Capabilities, Choose, ClientMessage, EngineMessage, FrameHeader, MAX_READ, MessageKind, NeedleInfo,
    Offer, SessionLimits, Transport, VERSION, Welcome,
};

use super::*;
use crate::arrival::Arrival;
use crate::priority::Urgency;
use crate::seaweed::locations::{Location, LookupError};
use crate::seaweed::scripted::{ScriptedServer, Step, answer, send};

const FID: FileId = FileId { volume: 3, key: 1, cookie: 0x6370_37d6 };
const DATA: &[u8] = b"the quick brown fox";

fn chunk() -> Chunk {
    Chunk {
        fid: FID,
        offset: 0,
        size: DATA.len() as u64,
        modified_ts_ns: 0,
        cipher_key: None,
        is_compressed: false,
        is_manifest: false,
    }
}

/// Each lookup returns the next list of servers; when there are no more, the last one again or an
/// error.
struct Lists {
    lists: Vec<Vec<String>>,
    then_fails: bool,
    lookups: AtomicUsize,
}

impl VolumeLookup for Lists {
    fn lookup(&self, volume: u32) -> BoxFuture<'_, Result<Vec<Location>, LookupError>> {
        let nth = self.lookups.fetch_add(1, SeqCst);
        let list = self.lists.get(nth).or(self.lists.last().filter(|_| !self.then_fails));
        let location = |url: &String| Location {
            url: url.clone(),
            public_url: String::new(),
            data_center: String::new(),
            grpc_port: 0,
        };
        let answer = match list {
            Some(list) => Ok(list.iter().map(location).collect()),
            None => Err(LookupError { volume, reason: "the filer is away".to_owned() }),
        };
        async { answer }.boxed()
    }
}

fn fetcher(lists: &[&[&ScriptedServer]]) -> (Fetcher, Arc<Lists>) {
    fetcher_with(lists, false, Duration::from_secs(60))
}

fn fetcher_with(
    lists: &[&[&ScriptedServer]],
    then_fails: bool,
    retry_time: Duration,
) -> (Fetcher, Arc<Lists>) {
    let addresses = |list: &&[&ScriptedServer]| list.iter().map(|s| s.address().to_owned()).collect();
    let lists = lists.iter().map(addresses).collect();
    let lists = Arc::new(Lists { lists, then_fails, lookups: AtomicUsize::new(0) });
    let config = FetcherConfig { retry_time, ..FetcherConfig::default() };
    (Fetcher::new(lists.clone(), Arc::default(), Metrics::new(), config), lists)
}

fn demand() -> Priority {
    Priority::new(Urgency::Demand)
}

async fn read(fetcher: &Fetcher) -> Result<Vec<u8>, FetchError> {
    let mut dst = vec![0; DATA.len()];
    fetcher.read_chunk(&chunk(), 0, &mut dst, &demand(), &Timeline::default()).await?;
    Ok(dst)
}

fn good() -> Vec<Step> {
    send(200, &[("ETag", &format!("\"{:08x}\"", crc32c(DATA)))], DATA)
}

fn damaged() -> Vec<Step> {
    send(200, &[("ETag", &format!("\"{:08x}\"", crc32c(DATA) ^ 1))], DATA)
}

#[tokio::test]
async fn any_one_good_copy_is_enough() {
    let mut begun = answer(200, &[], DATA);
    begun.truncate(begun.len() - 4);
    for bad in [
        damaged(),
        send(404, &[], b""),
        send(500, &[], b""),
        send(401, &[], b""),
        send(200, &[], b"short"),
        vec![Step::Close],
        vec![Step::Send(begun), Step::Reset],
        vec![Step::Send(b"rubbish\r\n\r\n".to_vec())],
    ] {
        let (bad, good) = (ScriptedServer::always(bad), ScriptedServer::always(good()));
        // Servers are asked in random order, so it may take a while until the bad one comes first.
        while bad.requests().is_empty() {
            let (fetcher, lists) = fetcher(&[&[&bad, &good]]);
            assert_eq!(read(&fetcher).await.unwrap(), DATA);
            assert_eq!(lists.lookups.load(SeqCst), 1);
        }
    }
}

#[tokio::test]
async fn a_volume_that_moved_is_found_by_a_fresh_lookup() {
    let (old, new) = (
        ScriptedServer::start(|nth, _| if nth == 0 { good() } else { send(404, &[], b"") }),
        ScriptedServer::always(good()),
    );
    let (fetcher, lists) = fetcher(&[&[&old], &[&new]]);
    for _ in 0..3 {
        assert_eq!(read(&fetcher).await.unwrap(), DATA);
    }
    assert_eq!(lists.lookups.load(SeqCst), 2);
    assert_eq!((old.requests().len(), new.requests().len()), (2, 2));
}

#[tokio::test]
async fn a_needle_that_no_server_has_is_gone_after_a_second_pass() {
    let server = ScriptedServer::always(send(404, &[], b""));
    let (fetcher, lists) = fetcher(&[&[&server]]);
    let error = read(&fetcher).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone { .. }), "{error}");
    assert!(error.to_string().contains(server.address()), "{error}");
    assert_eq!((lists.lookups.load(SeqCst), server.requests().len()), (2, 2));
}

#[tokio::test]
async fn damage_everywhere_is_reported_and_never_returned() {
    let server = ScriptedServer::always(damaged());
    let (fetcher, _) = fetcher(&[&[&server]]);
    assert!(matches!(read(&fetcher).await, Err(FetchError::Damaged { .. })));
    assert!(matches!(fetcher.read_needle(&chunk(), Arrival::now()).await, Err(FetchError::Damaged { .. })));
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let server = ScriptedServer::always(send(401, &[], b"wrong jwt"));
    let (fetcher, _) = fetcher(&[&[&server]]);
    let error = read(&fetcher).await.unwrap_err();
    assert!(matches!(error, FetchError::Refused { .. }));
    assert!(error.to_string().contains("wrong jwt"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = ScriptedServer::start(|nth, _| if nth < 2 { send(503, &[], b"") } else { good() });
    let (fetcher, lists) = fetcher(&[&[&server]]);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert_eq!((lists.lookups.load(SeqCst), server.requests().len()), (1, 3));
}

#[tokio::test]
async fn a_server_that_comes_back_is_waited_for() {
    let server = ScriptedServer::start(|nth, _| if nth < 3 { vec![Step::Close] } else { good() });
    let (fetcher, _) = fetcher(&[&[&server]]);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
}

#[tokio::test]
async fn known_servers_are_asked_again_while_the_filer_is_down() {
    let server = ScriptedServer::start(|nth, _| if nth < 3 { send(500, &[], b"") } else { good() });
    let (fetcher, lists) = fetcher_with(&[&[&server]], true, Duration::from_secs(60));
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert!(lists.lookups.load(SeqCst) > 1);
}

#[tokio::test]
async fn a_fetch_fails_when_the_retry_time_is_over() {
    let server = ScriptedServer::always(send(500, &[], b""));
    for lists in [&[&[&server][..]][..], &[&[]], &[]] {
        let (fetcher, _) = fetcher_with(lists, false, Duration::from_millis(200));
        let error = read(&fetcher).await.unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_answers_with_errors_is_not_unresponsive() {
    for (server, is_silent) in [(send(500, &[], b""), false), (vec![Step::Hold], true)] {
        let server = ScriptedServer::always(server);
        let (fetcher, _) = fetcher_with(&[&[&server]], false, Duration::from_millis(200));
        read(&fetcher).await.unwrap_err();
        assert_eq!(fetcher.health()()[0].keeps_readers_waiting, is_silent);
    }
}

#[tokio::test]
async fn part_of_a_chunk_is_asked_for_as_a_range_unless_it_must_be_whole() {
    let server = ScriptedServer::start(|_, request| match request.contains("\r\nRange: bytes=4-8\r\n") {
        true => send(206, &[("Content-Range", "bytes 4-8/19")], &DATA[4..9]),
        false => good(),
    });
    let (fetcher, _) = fetcher(&[&[&server]]);
    let mut dst = vec![0; 5];
    fetcher.read_chunk(&chunk(), 4, &mut dst, &demand(), &Timeline::default()).await.unwrap();
    assert_eq!(dst, DATA[4..9]);
    let compressed = Chunk { is_compressed: true, ..chunk() };
    assert!(must_fetch_whole(&compressed) && !must_fetch_whole(&chunk()));
    fetcher.read_chunk(&compressed, 4, &mut dst, &demand(), &Timeline::default()).await.unwrap();
    assert_eq!(dst, DATA[4..9]);
    assert!(!server.requests()[1].contains("Range"));
    assert_eq!(fetcher.read_needle(&chunk(), Arrival::now()).await.unwrap(), DATA);
}

#[tokio::test]
async fn a_range_beyond_the_chunk_is_refused() {
    let server = ScriptedServer::always(good());
    let (fetcher, _) = fetcher(&[&[&server]]);
    for (offset, length) in [(0, DATA.len() + 1), (DATA.len() as u64, 1), (u64::MAX, 2)] {
        let outcome =
            fetcher.read_chunk(&chunk(), offset, &mut vec![0; length], &demand(), &Timeline::default()).await;
        assert!(matches!(outcome, Err(FetchError::BeyondChunk { .. })));
    }
    fetcher
        .read_chunk(&chunk(), DATA.len() as u64, &mut Vec::new(), &demand(), &Timeline::default())
        .await
        .unwrap();
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_filer_passes_requests_on() {
    let filer = ScriptedServer::always(good());
    let address = filer.address().to_owned();
    let lists = Arc::new(Lists { lists: Vec::new(), then_fails: true, lookups: AtomicUsize::new(0) });
    let route = VolumeServerRoute::FilerProxy(Arc::new(move || address.clone()));
    let config = FetcherConfig { route, ..FetcherConfig::default() };
    let fetcher = Fetcher::new(lists.clone(), Arc::default(), Metrics::new(), config);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert!(filer.requests()[0].starts_with("GET /?proxyChunkId=3,01637037d6&readDeleted=true "));
    assert_eq!(lists.lookups.load(SeqCst), 0);
}

/// Two servers, of which `near` is asked first: the other is in another data centre.
fn near_and_far(near: &ScriptedServer, far: &ScriptedServer) -> Fetcher {
    let lists = vec![vec![near.address().to_owned(), far.address().to_owned()]];
    let lists = Arc::new(Lists { lists, then_fails: false, lookups: AtomicUsize::new(0) });
    let near = near.address().to_owned();
    let lookup = Arc::new(Located { lists, near });
    let config = FetcherConfig { data_center: Some("near".to_owned()), ..FetcherConfig::default() };
    Fetcher::new(lookup, Arc::default(), Metrics::new(), config)
}

/// Lookups in `lists`, with the servers' data centres.
struct Located {
    lists: Arc<Lists>,
    near: String,
}

impl VolumeLookup for Located {
    fn lookup(&self, volume: u32) -> BoxFuture<'_, Result<Vec<Location>, LookupError>> {
        async move {
            let mut found = self.lists.lookup(volume).await?;
            for location in &mut found {
                location.data_center = if location.url == self.near { "near" } else { "far" }.to_owned();
            }
            Ok(found)
        }
        .boxed()
    }
}

fn hedges(fetcher: &Fetcher) -> (u64, u64) {
    let totals = fetcher.metrics.totals();
    (totals.hedges_sent, totals.hedges_won)
}

/// A server that sends nothing delays a read until it is hedged, and not until its request times
/// out.
#[tokio::test]
async fn a_server_that_sends_nothing_loses_races_and_is_then_asked_last() {
    let (silent, good) = (ScriptedServer::always(vec![Step::Hold]), ScriptedServer::always(good()));
    let fetcher = near_and_far(&silent, &good);
    let stall = crate::seaweed::http1::HttpTimeouts::default().stall;
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(read(&fetcher).await.unwrap(), DATA);
    }
    assert!(start.elapsed() < stall, "it was waited for");
    assert_eq!(silent.requests().len(), 3, "after three races without a word it is asked last");
    assert_eq!(hedges(&fetcher), (3, 3));
}

/// That a server is busy is no beginning of a response: the next is asked while it is waited for.
#[tokio::test]
async fn a_busy_server_that_then_sends_nothing_is_overtaken() {
    let busy = ScriptedServer::start(|nth, _| if nth == 0 { send(503, &[], b"") } else { vec![Step::Hold] });
    let good = ScriptedServer::always(good());
    let fetcher = near_and_far(&busy, &good);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert_eq!(hedges(&fetcher), (1, 1));
}

#[tokio::test]
async fn bytes_of_the_loser_never_reach_the_destination() {
    let wrong = [b'x'; DATA.len()];
    let late = ScriptedServer::start(move |_, _| {
        let answer = answer(200, &[("ETag", &format!("\"{:08x}\"", crc32c(&wrong)))], &wrong);
        let (head, body) = answer.split_at(answer.len() - 10);
        vec![Step::Pause(Duration::from_millis(300)), Step::Send(head.to_vec()), Step::Send(body.to_vec())]
    });
    let good = ScriptedServer::always(good());
    let fetcher = near_and_far(&late, &good);
    let mut dst = vec![0; DATA.len()];
    fetcher.read_chunk(&chunk(), 0, &mut dst, &demand(), &Timeline::default()).await.unwrap();
    assert_eq!(dst, DATA);
    // The loser's connection is closed before the memory is passed on.
    late.await_clients_gone();
    assert_eq!(dst, DATA);
    assert_eq!(fetcher.read_needle(&chunk(), Arrival::now()).await.unwrap(), DATA);
    assert_eq!(hedges(&fetcher), (2, 2));
}

#[tokio::test]
async fn a_failed_hedge_leaves_the_first_request_running() {
    let late = ScriptedServer::start(|_, _| {
        let mut steps = vec![Step::Pause(Duration::from_millis(400))];
        steps.extend(good());
        steps
    });
    for bad in [damaged(), send(404, &[], b""), vec![Step::Close]] {
        let bad = ScriptedServer::always(bad);
        let fetcher = near_and_far(&late, &bad);
        assert_eq!(read(&fetcher).await.unwrap(), DATA);
        assert_eq!(hedges(&fetcher), (1, 0));
        assert_eq!(bad.requests().len(), 1);
    }
}

#[tokio::test]
async fn no_replica_is_asked_twice_in_a_pass_after_both_fail_in_a_race() {
    let late = ScriptedServer::always(vec![Step::Pause(Duration::from_millis(300)), Step::Close]);
    let bad = ScriptedServer::always(send(404, &[], b""));
    let good = ScriptedServer::always(good());
    let lists = [&late, &bad, &good].map(|server| server.address().to_owned()).to_vec();
    let lists = Arc::new(Lists { lists: vec![lists], then_fails: false, lookups: AtomicUsize::new(0) });
    let fetcher = Fetcher::new(lists, Arc::default(), Metrics::new(), FetcherConfig::default());
    // Servers are asked in random order; all orders end well.
    for _ in 0..12 {
        assert_eq!(read(&fetcher).await.unwrap(), DATA);
    }
}

#[tokio::test]
async fn one_replica_and_speculation_are_never_hedged() {
    let late = || {
        let mut steps = vec![Step::Pause(Duration::from_millis(300))];
        steps.extend(good());
        ScriptedServer::always(steps)
    };
    let (only, other) = (late(), ScriptedServer::always(good()));
    let (fetcher, _) = fetcher(&[&[&only]]);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert_eq!(hedges(&fetcher), (0, 0));
    let fetcher = near_and_far(&only, &other);
    let mut dst = vec![0; DATA.len()];
    let speculative = Priority::new(Urgency::Speculative);
    fetcher.read_chunk(&chunk(), 0, &mut dst, &speculative, &Timeline::default()).await.unwrap();
    assert_eq!((dst.as_slice(), hedges(&fetcher)), (DATA, (0, 0)));
    assert!(other.requests().is_empty());
}

/// If all servers are slow, a few percent of the requests are hedged, after a first burst.
#[tokio::test]
async fn few_requests_are_hedged_when_all_servers_are_slow() {
    let late = || ScriptedServer::always([vec![Step::Pause(Duration::from_millis(150))], good()].concat());
    let (one, other) = (late(), late());
    let (fetcher, _) = fetcher(&[&[&one, &other]]);
    let reads = (0..400).map(|_| read(&fetcher));
    for data in futures::future::join_all(reads).await {
        assert_eq!(data.unwrap(), DATA);
    }
    let (sent, won) = hedges(&fetcher);
    // A server that got no CPU and lost three races counts as stopped; hedges of its requests are
    // not limited.
    assert!(sent <= 16 + 400 * 3 / 100 || won >= 3, "{sent} of 400, {won} won");
}

/// The speculative half of the server's gate is full for ever. A demand gets the other half, and
/// joined speculation does not queue behind the rest.
#[tokio::test]
async fn joined_speculation_goes_before_other_speculation() {
    let server = ScriptedServer::start(|nth, _| if nth == 0 { vec![Step::Hold] } else { good() });
    let lists = Lists {
        lists: vec![vec![server.address().to_owned()]],
        then_fails: false,
        lookups: AtomicUsize::new(0),
    };
    let config = FetcherConfig { requests_per_server: 2, ..FetcherConfig::default() };
    let fetcher = Fetcher::new(Arc::new(lists), Arc::default(), Metrics::new(), config);
    let speculate = async |priority: &Priority| {
        let mut dst = vec![0; DATA.len()];
        fetcher.read_chunk(&chunk(), 0, &mut dst, priority, &Timeline::default()).await.map(|_| dst)
    };
    let [held, second, joined] = [(); 3].map(|()| Priority::new(Urgency::Speculative));
    let mut held = std::pin::pin!(speculate(&held));
    let mut second = std::pin::pin!(speculate(&second));
    let mut raised = std::pin::pin!(speculate(&joined));
    // The first takes the whole share of speculation.
    while server.requests().is_empty() {
        assert!(futures::poll!(&mut held).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(futures::poll!(&mut second).is_pending());
    assert!(futures::poll!(&mut raised).is_pending());
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    joined.raise(Arrival::now());
    assert_eq!(raised.await.unwrap(), DATA);
    assert!(futures::poll!(&mut second).is_pending(), "no reader waits for it");
    assert_eq!(server.requests().len(), 3);
}

/// Fetches move between the threads of a runtime.
#[test]
fn a_fetch_can_be_sent() {
    fn sendable<T: Send>(_: T) {}
    let (fetcher, _) = fetcher(&[]);
    sendable(fetcher.read_chunk(&chunk(), 0, &mut Vec::new(), &demand(), &Timeline::default()));
    sendable(fetcher.read_needle(&chunk(), Arrival::now()));
}

#[tokio::test]
async fn an_unresponsive_server_shows_in_the_health_until_the_read_fails() {
    let server = ScriptedServer::start(|_, request| {
        if request.contains("/healthz") { send(200, &[], b"") } else { vec![Step::Hold] }
    });
    let (fetcher, _) = fetcher_with(&[&[&server]], false, Duration::from_secs(2));
    let start = Instant::now();
    let (outcome, seen) = tokio::join!(read(&fetcher), async {
        while !fetcher.health()().iter().any(|server| server.keeps_readers_waiting) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        start.elapsed()
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    let stall = crate::seaweed::http1::HttpTimeouts::default().stall;
    assert!(start.elapsed() < stall, "{:?}", start.elapsed());
    assert!(seen < start.elapsed());
    while fetcher.health()().iter().any(|server| server.keeps_readers_waiting) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An engine over TCP that claims that every needle has `data_size` bytes, and sends as many zeros
/// as were requested. Returns its address, and the most bytes that a request asked for.
fn lying_engine(data_size: u32) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let most = Arc::new(AtomicU32::new(0));
    let asked = most.clone();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; HEADER];
        // Until the client closes the connection.
        while stream.read_exact(&mut head).is_ok() {
            let header = FrameHeader::parse(&head).unwrap();
            let number = header.request;
            let mut body = vec![0; header.length as usize];
            stream.read_exact(&mut body).unwrap();
            let (mut out, mut data) = (BytesMut::new(), Vec::new());
            match header.kind {
                MessageKind::Hello => {
                    let limits = SessionLimits { in_flight: 8, read: MAX_READ, idle_ms: 60_000, lease_ms: 0 };
                    let (capabilities, offers) = (Capabilities::default(), vec![Offer::Tcp]);
                    let (version, instance, proof) = (VERSION, 1, None);
                    Welcome { version, capabilities, instance, limits, offers, proof }.encode(&mut out);
                }
                MessageKind::Choose => Choose::Tcp.encode(MessageKind::Ready, &mut out),
                _ => match ClientMessage::decode(header, &body).unwrap() {
                    ClientMessage::Read(read) => {
                        asked.fetch_max(read.length, SeqCst);
                        let length = read.length.min(data_size);
                        let header = Header { cookie: read.fid.cookie, key: read.fid.key, size: 0 };
                        let flags = Flags(1);
                        let needle =
                            NeedleInfo { header, data_size, checksum: 0, flags, deleted: false, length };
                        EngineMessage::Data(needle).encode(number, &mut out);
                        data.resize(length as usize, 0);
                    }
                    ClientMessage::Ping => EngineMessage::Pong.encode(number, &mut out),
                    ClientMessage::Cancel | ClientMessage::Done => {}
                },
            }
            if stream.write_all(&out).and_then(|()| stream.write_all(&data)).is_err() {
                return;
            }
        }
    });
    (address, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_for_a_needle_is_bounded_whatever_its_engine_claims() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(DATA).unwrap();
    let packed = encoder.finish().unwrap();
    let etag = format!("\"{:08x}\"", crc32c(&packed));
    let server = ScriptedServer::always(send(200, &[("ETag", &etag), ("Content-Encoding", "gzip")], &packed));
    for data_size in [32 << 20, u32::MAX] {
        let (address, most) = lying_engine(data_size);
        let engines = EngineConfig {
            transports: vec![Transport::Tcp],
            addresses: HashMap::from([(server.address().to_owned(), address)]),
            ..EngineConfig::default()
        };
        let lists = Lists {
            lists: vec![vec![server.address().to_owned()]],
            then_fails: false,
            lookups: AtomicUsize::new(0),
        };
        let config = FetcherConfig { engines, ..FetcherConfig::default() };
        let fetcher = Fetcher::new(Arc::new(lists), Arc::default(), Metrics::new(), config);
        let chunk = Chunk { is_compressed: true, ..chunk() };
        let mut dst = vec![0; DATA.len()];
        fetcher.read_chunk(&chunk, 0, &mut dst, &demand(), &Timeline::default()).await.unwrap();
        assert_eq!(dst, DATA);
        let most = most.load(SeqCst);
        assert!((1..=DATA.len() as u32 + 4096).contains(&most), "{most} bytes were asked for");
    }
}
