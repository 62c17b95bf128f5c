//! Fetches from several servers of which some misbehave.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use futures::FutureExt;
use futures::future::BoxFuture;
use rdma_engine::FileId;
use rdma_engine::checksum::crc32c;

use super::*;
use crate::seaweed::locations::{Location, LookupError};
use crate::seaweed::scripted::{Scripted, Step, answer, send};

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

/// Each lookup gives the next list of servers. When there are no more, it gives the last again or fails.
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

fn fetcher(lists: &[&[&Scripted]]) -> (Fetcher, Arc<Lists>) {
    fetcher_with(lists, false, Duration::from_secs(60))
}

fn fetcher_with(lists: &[&[&Scripted]], then_fails: bool, retry_time: Duration) -> (Fetcher, Arc<Lists>) {
    let addresses = |list: &&[&Scripted]| list.iter().map(|s| s.address().to_owned()).collect();
    let lists = lists.iter().map(addresses).collect();
    let lists = Arc::new(Lists { lists, then_fails, lookups: AtomicUsize::new(0) });
    let options = Options { retry_time, ..Options::default() };
    (Fetcher::new(lists.clone(), Arc::default(), Metrics::new(), options), lists)
}

async fn read(fetcher: &Fetcher) -> Result<Vec<u8>, FetchError> {
    let mut dst = vec![0; DATA.len()];
    fetcher.read_chunk(&chunk(), 0, &mut dst).await?;
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
        let (bad, good) = (Scripted::always(bad), Scripted::always(good()));
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
        Scripted::start(|nth, _| if nth == 0 { good() } else { send(404, &[], b"") }),
        Scripted::always(good()),
    );
    let (fetcher, lists) = fetcher(&[&[&old], &[&new]]);
    for _ in 0..3 {
        assert_eq!(read(&fetcher).await.unwrap(), DATA);
    }
    assert_eq!(lists.lookups.load(SeqCst), 2);
    assert_eq!((old.requests().len(), new.requests().len()), (2, 2));
}

#[tokio::test]
async fn a_needle_that_nobody_has_is_gone_after_a_second_look() {
    let server = Scripted::always(send(404, &[], b""));
    let (fetcher, lists) = fetcher(&[&[&server]]);
    let error = read(&fetcher).await.unwrap_err();
    assert!(matches!(error, FetchError::Gone { .. }), "{error}");
    assert!(error.to_string().contains(server.address()), "{error}");
    assert_eq!((lists.lookups.load(SeqCst), server.requests().len()), (2, 2));
}

#[tokio::test]
async fn damage_everywhere_is_reported_and_never_returned() {
    let server = Scripted::always(damaged());
    let (fetcher, _) = fetcher(&[&[&server]]);
    assert!(matches!(read(&fetcher).await, Err(FetchError::Damaged { .. })));
    assert!(matches!(fetcher.read_needle(&chunk()).await, Err(FetchError::Damaged { .. })));
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    let server = Scripted::always(send(401, &[], b"wrong jwt"));
    let (fetcher, _) = fetcher(&[&[&server]]);
    let error = read(&fetcher).await.unwrap_err();
    assert!(matches!(error, FetchError::Refused { .. }));
    assert!(error.to_string().contains("wrong jwt"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_busy_server_is_asked_again() {
    let server = Scripted::start(|nth, _| if nth < 2 { send(503, &[], b"") } else { good() });
    let (fetcher, lists) = fetcher(&[&[&server]]);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert_eq!((lists.lookups.load(SeqCst), server.requests().len()), (1, 3));
}

#[tokio::test]
async fn a_server_that_comes_back_is_waited_for() {
    let server = Scripted::start(|nth, _| if nth < 3 { vec![Step::Close] } else { good() });
    let (fetcher, _) = fetcher(&[&[&server]]);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
}

#[tokio::test]
async fn servers_known_before_are_asked_again_while_the_filer_is_away() {
    let server = Scripted::start(|nth, _| if nth < 3 { send(500, &[], b"") } else { good() });
    let (fetcher, lists) = fetcher_with(&[&[&server]], true, Duration::from_secs(60));
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert!(lists.lookups.load(SeqCst) > 1);
}

#[tokio::test]
async fn waiting_for_servers_has_an_end() {
    let server = Scripted::always(send(500, &[], b""));
    for lists in [&[&[&server][..]][..], &[&[]], &[]] {
        let (fetcher, _) = fetcher_with(lists, false, Duration::from_millis(200));
        let error = read(&fetcher).await.unwrap_err();
        assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn part_of_a_chunk_is_asked_for_as_a_range_unless_it_must_be_whole() {
    let server = Scripted::start(|_, request| match request.contains("\r\nRange: bytes=4-8\r\n") {
        true => send(206, &[("Content-Range", "bytes 4-8/19")], &DATA[4..9]),
        false => good(),
    });
    let (fetcher, _) = fetcher(&[&[&server]]);
    let mut dst = [0; 5];
    fetcher.read_chunk(&chunk(), 4, &mut dst).await.unwrap();
    assert_eq!(dst, DATA[4..9]);
    let compressed = Chunk { is_compressed: true, ..chunk() };
    assert!(must_fetch_whole(&compressed) && !must_fetch_whole(&chunk()));
    fetcher.read_chunk(&compressed, 4, &mut dst).await.unwrap();
    assert_eq!(dst, DATA[4..9]);
    assert!(!server.requests()[1].contains("Range"));
    assert_eq!(fetcher.read_needle(&chunk()).await.unwrap(), DATA);
}

#[tokio::test]
async fn nothing_is_asked_for_beyond_a_chunk() {
    let server = Scripted::always(good());
    let (fetcher, _) = fetcher(&[&[&server]]);
    for (offset, length) in [(0, DATA.len() + 1), (DATA.len() as u64, 1), (u64::MAX, 2)] {
        let outcome = fetcher.read_chunk(&chunk(), offset, &mut vec![0; length]).await;
        assert!(matches!(outcome, Err(FetchError::BeyondChunk { .. })));
    }
    fetcher.read_chunk(&chunk(), DATA.len() as u64, &mut []).await.unwrap();
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_filer_passes_requests_on() {
    let filer = Scripted::always(good());
    let address = filer.address().to_owned();
    let lists = Arc::new(Lists { lists: Vec::new(), then_fails: true, lookups: AtomicUsize::new(0) });
    let access = Access::FilerProxy(Arc::new(move || address.clone()));
    let options = Options { access, ..Options::default() };
    let fetcher = Fetcher::new(lists.clone(), Arc::default(), Metrics::new(), options);
    assert_eq!(read(&fetcher).await.unwrap(), DATA);
    assert!(filer.requests()[0].starts_with("GET /?proxyChunkId=3,01637037d6&readDeleted=true "));
    assert_eq!(lists.lookups.load(SeqCst), 0);
}

/// Fetches move between the threads of a runtime.
#[test]
fn a_fetch_can_be_sent() {
    fn sendable<T: Send>(_: T) {}
    let (fetcher, _) = fetcher(&[]);
    sendable(fetcher.read_chunk(&chunk(), 0, &mut []));
    sendable(fetcher.read_needle(&chunk()));
}
