//! An engine over verbs that lies. It takes an RDMA device, as there is in the virtual machine.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rdma_engine::client::{Client, ClientOptions, ReadError, ReadTarget, Trust};
use rdma_engine::protocol::{
    Choose, EngineMessage, Grant, MAX_ANSWER_SIZE, MessageKind, NeedleInfo, QueuePairEnd, ReadRequest,
    Transport,
};
use rdma_engine::{FileId, Refusal, checksum};
use tests::{Cluster, Mount, Pattern, eventually, host};

use super::fake::{Connection, NOBODY, needle};
use super::fake_verbs::{Script, Session, VerbsEngine, message};
use super::{WAIT_TIMEOUT, assert_bounded, resident_mib};

const SIZE: usize = 3_000_000;

/// More files, for engines that were not found by the time that the first one was read.
const MORE: u64 = 30;

fn more(index: u64) -> Vec<u8> {
    Pattern::new(100 + index).bytes(0, 50_000)
}

/// A cluster with files, if this machine can have one and an engine over verbs.
fn cluster(content: &[u8]) -> Option<Cluster> {
    if !(host::can_mount() && host::has_rdma()) {
        return None;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", content, "").unwrap();
    for index in 0..MORE {
        cluster.filer().put(&format!("/more{index}"), &more(index), "").unwrap();
    }
    Some(cluster)
}

/// Reads one file after another until `is_done`, which follows from an engine being found.
fn read_on(mount: &Mount, what: &str, is_done: impl Fn() -> bool) {
    let found = (0..MORE).any(|index| {
        let bytes = fs::read(mount.file(&format!("/more{index}"))).unwrap();
        assert!(bytes == more(index), "{what}");
        eventually(what, Duration::from_secs(1), || is_done().then_some(())).is_ok()
    });
    assert!(found, "{what}: not within {MORE} files");
}

/// A needle with the checksum of bytes that are not its own, which only a proof tells from the
/// true one.
fn forged(read: &ReadRequest) -> (NeedleInfo, Vec<u8>) {
    let data = vec![b'!'; read.length as usize];
    let mut needle = needle(read, read.length);
    needle.checksum = checksum::crc32c(&data);
    (needle, data)
}

/// Grants what `change` makes of a grant of forged bytes, which are there.
fn granted(session: &mut Session, number: u64, read: &ReadRequest, change: impl FnOnce(&mut Grant)) {
    let (needle, data) = forged(read);
    let mut grant = session.stage(&data);
    change(&mut grant);
    session.say(number, &EngineMessage::Grant(needle, grant), &[]);
}

fn honestly(session: &mut Session, own: QueuePairEnd) -> Choose {
    session.connect();
    Choose::Verbs(own)
}

/// What an engine does that has nothing to hide but the bytes.
fn granting(session: &mut Session, number: u64, read: &ReadRequest) {
    granted(session, number, read, |_| {});
}

/// A lie, and the request that comes before it is found out.
struct Lie {
    what: &'static str,
    script: Script,
    until: (Connection, MessageKind),
}

/// A lie that the queue pair is not what it was said to be.
fn about_the_end(
    what: &'static str,
    ready: fn(&mut Session, QueuePairEnd) -> Choose,
    until: MessageKind,
) -> Lie {
    Lie { what, script: Script { messages: false, ready, answer: granting }, until: (Connection::Tcp, until) }
}

/// A lie in answer to a read over the stream.
fn in_answer(what: &'static str, answer: fn(&mut Session, u64, &ReadRequest)) -> Lie {
    let script = Script { messages: false, ready: honestly, answer };
    Lie { what, script, until: (Connection::Tcp, MessageKind::Read) }
}

/// A lie in answer to a read that came as a message.
fn by_message(what: &'static str, answer: fn(&mut Session, u64, &ReadRequest)) -> Lie {
    let script = Script { messages: true, ready: honestly, answer };
    Lie { what, script, until: (Connection::QueuePair, MessageKind::Read) }
}

fn lies() -> Vec<Lie> {
    vec![
        about_the_end(
            "a queue pair of nobody",
            |session, own| {
                session.connect();
                Choose::Verbs(QueuePairEnd { number: own.number ^ 0x7f_ff00, ..own })
            },
            MessageKind::Read,
        ),
        about_the_end("a queue pair that is not connected", |_, own| Choose::Verbs(own), MessageKind::Read),
        about_the_end(
            "a queue pair that serves no READ",
            |session, own| {
                session.connect();
                Choose::Verbs(QueuePairEnd { reads: 0, ..own })
            },
            MessageKind::Choose,
        ),
        about_the_end(
            "packets of no size",
            |_, own| Choose::Verbs(QueuePairEnd { mtu: 7, ..own }),
            MessageKind::Choose,
        ),
        about_the_end("another transport", |_, _| Choose::Tcp, MessageKind::Choose),
        in_answer("silence", |_, _, _| {}),
        in_answer("a wrong key", |session, number, read| {
            granted(session, number, read, |grant| grant.rkey ^= 0x0100_0001);
        }),
        in_answer("an address behind the end", |session, number, read| {
            granted(session, number, read, |grant| grant.address += 1 << 20);
        }),
        in_answer("an address at the end of all", |session, number, read| {
            granted(session, number, read, |grant| grant.address = u64::MAX - 10);
        }),
        in_answer("revoked memory", |session, number, read| {
            granted(session, number, read, |_| {});
            session.staged.clear();
        }),
        in_answer("a queue pair that goes", |session, number, read| {
            session.pair = None;
            granted(session, number, read, |_| {});
        }),
        in_answer("a lease that was over", |session, number, read| {
            granted(session, number, read, |grant| grant.lease_ms = 0);
        }),
        in_answer("another checksum", |session, number, read| {
            let grant = session.stage(&vec![b'!'; read.length as usize]);
            session.say(number, &EngineMessage::Grant(needle(read, read.length), grant), &[]);
        }),
        in_answer("another needle", |session, number, read| {
            let mut other = read.clone();
            other.fid.cookie ^= 1;
            granted(session, number, &other, |_| {});
        }),
        in_answer("more than was asked for", |session, number, read| {
            let (needle, data) = forged(&ReadRequest { length: read.length * 2, ..read.clone() });
            let grant = session.stage(&data);
            session.say(number, &EngineMessage::Grant(needle, grant), &[]);
        }),
        in_answer("less than was asked for", |session, number, read| {
            let (mut needle, data) = forged(read);
            needle.length /= 2;
            let grant = session.stage(&data);
            session.say(number, &EngineMessage::Grant(needle, grant), &[]);
        }),
        in_answer("a needle of 4 GiB", |session, number, read| {
            let (mut needle, data) = forged(read);
            needle.data_size = 0xffff_fff0;
            let grant = session.stage(&data);
            session.say(number, &EngineMessage::Grant(needle, grant), &[]);
        }),
        in_answer("a refusal", |session, number, _| {
            session.say(number, &EngineMessage::Refused(Refusal::NotAllowed), &[]);
        }),
        in_answer("a file", |session, number, read| {
            let needle = needle(read, read.length);
            let file = EngineMessage::File { needle, file: 1, record: 0, position: 0, attached: true };
            session.say(number, &file, &[]);
        }),
        in_answer("grants that nobody asked for", |session, number, read| {
            let (needle, data) = forged(read);
            let grant = session.stage(&data);
            for other in 0..20_000 {
                session.say(number.wrapping_add(1 << 40 | other), &EngineMessage::Grant(needle, grant), &[]);
            }
        }),
        by_message("a grant with a wrong key by message", |session, number, read| {
            let (needle, data) = forged(read);
            let mut grant = session.stage(&data);
            grant.rkey ^= 0x0100_0001;
            session.send(&message(number, &EngineMessage::Grant(needle, grant), &[]));
        }),
        by_message("bytes that are no message", |session, _, _| {
            session.send(&[0xff; 64]);
        }),
        by_message("half a header", |session, _, _| {
            session.send(&[0; 7]);
        }),
        by_message("less data than the message says", |session, number, read| {
            let (needle, _) = forged(read);
            session.send(&message(number, &EngineMessage::Data(needle), b"!!"));
        }),
        by_message("a message that there is no room for", |session, _, _| {
            session.send(&[0; MAX_ANSWER_SIZE + 1]);
        }),
        by_message("more messages than there is room for", |session, number, _| {
            let pong = message(number.wrapping_add(1 << 40), &EngineMessage::Pong, &[]);
            while session.send(&pong) {}
        }),
    ]
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_an_engine_over_verbs_cannot_prove_is_fetched_elsewhere() {
    let content = Pattern::new(1).bytes(0, SIZE);
    let Some(cluster) = cluster(&content) else { return };
    let server = cluster.volume_servers()[0].address();
    for Lie { what, script, until } in lies() {
        let engine = VerbsEngine::start(0, script);
        let named = format!("--engine={server}={}", engine.address());
        // Without the engines that a condition of the tests asks for.
        let mount = Mount::interceptor(&cluster.filer_addresses());
        let mount = mount.args([&named, "--cache-size=64MiB"]).start().unwrap();
        let own = std::process::id();
        let (before, engines, began) = (resident_mib(mount.pid()), resident_mib(own), Instant::now());
        assert!(fs::read(mount.file("/file")).unwrap() == content, "{what}");
        read_on(&mount, what, || engine.heard().contains(&until));
        let took = began.elapsed();
        assert!(took < 4 * WAIT_TIMEOUT, "{what} took {took:?}");
        println!("{what}: {} ms, {:?}", took.as_millis(), engine.heard().len());
        assert_bounded(what, mount.pid(), before);
        assert_bounded("the engine", own, engines);
        let taken = mount.metric("interceptor_fetch_bytes_total", &["source=\"verbs\""]).unwrap();
        assert!(taken == 0.0, "{what}: {taken} bytes are believed");
        let began = Instant::now();
        assert!(mount.stop().unwrap().success(), "{what}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_engine_over_verbs_of_any_user_is_told_nothing_and_not_believed() {
    let content = Pattern::new(2).bytes(0, SIZE);
    let Some(cluster) = cluster(&content) else { return };
    let script = Script { messages: true, ready: honestly, answer: granting };
    let engine = VerbsEngine::start(NOBODY, script);
    let port = engine.address().port().to_string();
    let mount = Mount::interceptor(&cluster.filer_addresses()).args(["--rdma-port", &port]).start().unwrap();
    assert!(fs::read(mount.file("/file")).unwrap() == content);
    read_on(&mount, "a word about it", || {
        let heard = engine.heard();
        assert!(heard.iter().all(|(_, kind)| *kind == MessageKind::Hello), "{heard:?}");
        !heard.is_empty() && mount.log().unwrap().contains("an engine is not asked")
    });
}

/// How long the engine of the tests of leases lets the client read.
const LEASE: Duration = Duration::from_millis(200);

/// Bytes of a range of a needle that is longer: no checksum tells whether they are right.
const RANGE: usize = 70_000;

/// Grants right bytes of a range for as long as the lease says.
fn lease(session: &mut Session, number: u64, read: &ReadRequest, lease: Duration) {
    let grant = session.stage(&vec![b'?'; read.length as usize]);
    let grant = Grant { lease_ms: lease.as_millis() as u32, ..grant };
    let needle = NeedleInfo { data_size: 1 << 20, ..needle(read, read.length) };
    session.say(number, &EngineMessage::Grant(needle, grant), &[]);
}

/// Reads a range twice from this engine, which the client has been told of, over verbs alone.
fn read_twice(engine: &VerbsEngine) -> [Result<Vec<u8>, ReadError>; 2] {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let trust = Trust { named: true, ..Trust::default() };
    let options = ClientOptions {
        transports: vec![Transport::Verbs],
        connect: WAIT_TIMEOUT,
        trust,
        ..ClientOptions::default()
    };
    let client = Client::new(engine.address().to_string(), options);
    let fid = FileId { volume: 1, key: 2, cookie: 3 };
    [1, 2].map(|_| {
        let mut bytes = vec![0; RANGE];
        let target = ReadTarget { fid, offset: 5, token: None };
        let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
        let outcome = runtime.block_on(async { client.read(target, &mut bytes, deadline).await });
        outcome.map(|delivered| {
            assert_eq!((delivered.transport, delivered.verified), (Transport::Verbs, false));
            bytes
        })
    })
}

#[test]
#[cfg_attr(not(has_rdma), ignore = "needs an RDMA device")]
fn an_engine_that_serves_no_read_is_asked_for_nothing() {
    if !host::has_rdma() {
        return;
    }
    let ready = |session: &mut Session, own| {
        session.connect();
        Choose::Verbs(QueuePairEnd { reads: 0, ..own })
    };
    let engine = VerbsEngine::start(0, Script { messages: false, ready, answer: granting });
    let [first, _] = read_twice(&engine);
    assert!(matches!(first, Err(ReadError::Lost(_))), "{first:?}");
    assert!(!engine.heard().contains(&(Connection::Tcp, MessageKind::Read)), "{:?}", engine.heard());
}

const LEASE_EXPIRED: ReadError = ReadError::Damaged("the lease was over before the bytes had come");

#[test]
#[cfg_attr(not(has_rdma), ignore = "needs an RDMA device")]
fn a_grant_that_comes_after_its_lease_is_not_taken() {
    if !host::has_rdma() {
        return;
    }
    let answer = |session: &mut Session, number, read: &ReadRequest| {
        let is_first = session.staged.is_empty();
        if is_first {
            // When the engine began to count the client cannot know, but it knows when it asked.
            thread::sleep(LEASE + LEASE / 2);
        }
        lease(session, number, read, if is_first { LEASE } else { WAIT_TIMEOUT });
    };
    let script = Script { messages: false, ready: honestly, answer };
    let engine = VerbsEngine::start(0, script);
    assert_eq!(read_twice(&engine), [Err(LEASE_EXPIRED), Ok(vec![b'?'; RANGE])]);
}

#[test]
#[cfg_attr(not(has_rdma), ignore = "needs an RDMA device")]
fn bytes_that_come_from_memory_that_was_used_again_are_not_taken() {
    if !host::has_rdma() {
        return;
    }
    let answer = |session: &mut Session, number, read: &ReadRequest| {
        if session.pair.is_none() {
            lease(session, number, read, LEASE);
            // The client's device asks again and again, as it does where packets are lost; it is
            // heard when the memory has become another needle's.
            thread::sleep(LEASE + LEASE / 2);
            session.staged[0].fill(b'!');
            session.connect();
        } else {
            lease(session, number, read, WAIT_TIMEOUT);
        }
    };
    let script = Script { messages: false, ready: |_, own| Choose::Verbs(own), answer };
    let engine = VerbsEngine::start(0, script);
    assert_eq!(read_twice(&engine), [Err(LEASE_EXPIRED), Ok(vec![b'?'; RANGE])]);
}
