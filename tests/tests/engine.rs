//! The `rdma-engine` program beside the real volume server, with the faults that clients must
//! survive.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rdma_engine::client::{Client, ClientOptions, ReadError, ReadTarget, Trust};
use rdma_engine::protocol::{
    self, Capabilities, Choose, ClientMessage, FrameHeader, Hello, MessageKind, Transport, VERSION, frame,
};
use rdma_engine::settings::SecuritySettings;
use rdma_engine::{FileId, Refusal};
use tests::memory::MemoryGroup;
use tests::needles::Assigned;
use tests::process::{Process, undrained_pipe, with_stderr};
use tests::{Cluster, Engine, Needles, Pattern, StatusPage, eventually, host};
use tokio::runtime::Runtime;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Local];

fn fid(assigned: &Assigned) -> FileId {
    assigned.fid.parse().unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn client(engine: &Engine, transport: Transport) -> Client {
    let trust = Trust { named: true, ..Trust::default() };
    Client::new(
        engine.address(),
        ClientOptions { transports: vec![transport], trust, ..ClientOptions::default() },
    )
}

/// A client for blocking tests.
struct Reader<'a> {
    runtime: &'a Runtime,
    client: Client,
}

impl Reader<'_> {
    fn read(&self, fid: FileId, length: usize, token: Option<&str>) -> Result<Vec<u8>, ReadError> {
        self.read_within(fid, length, token, WAIT_TIMEOUT)
    }

    fn read_within(
        &self,
        fid: FileId,
        length: usize,
        token: Option<&str>,
        limit: Duration,
    ) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; length];
        let target = ReadTarget { fid, offset: 0, token };
        let deadline = tokio::time::Instant::now() + limit;
        let outcome = self.runtime.block_on(async { self.client.read(target, &mut bytes, deadline).await });
        outcome.map(|delivered| {
            bytes.truncate(delivered.needle.length as usize);
            bytes
        })
    }
}

fn some_needles(needles: &Needles, count: u64, size: usize) -> Vec<Assigned> {
    (0..count)
        .map(|index| {
            let at = needles.assign("").unwrap();
            needles.put(&at, &Pattern::new(index).bytes(0, size), "", &[]).unwrap();
            at
        })
        .collect()
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_engine_goes_on_without_a_terminal_and_a_log() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (fifo, _undrained) = undrained_pipe(home.path()).unwrap();
    for redirection in [">/dev/full", ">&-", &format!(">{}", fifo.display())] {
        let wrapper = with_stderr(redirection);
        let mut command = Command::new(&wrapper[0]);
        command
            .args(&wrapper[1..])
            .arg(tests::engine::program().unwrap())
            .args(["serve", "--log-level=trace"]);
        command.args(["--listen", "localhost:0", "--status-addr", "localhost:0", "--volume-dir"]);
        command
            .arg(cluster.volume_servers()[0].directory())
            .current_dir(home.path())
            .env("HOME", home.path());
        let log = home.path().join("log");
        fs::write(&log, "").unwrap();
        let mut engine = Process::start(command, &log, WAIT_TIMEOUT, Signal::SIGKILL).unwrap();
        let lines = || {
            let text = fs::read_to_string(&log).ok()?;
            let line = |word| text.lines().find_map(|line| line.strip_prefix(word)).map(str::to_owned);
            line("serving ").zip(line("status ")).filter(|_| text.ends_with('\n'))
        };
        let (address, status) = eventually("the engine", WAIT_TIMEOUT, lines).unwrap();
        engine.signal(Signal::SIGHUP);
        let client = Client::new(&address, ClientOptions::default());
        runtime().block_on(client.ping(tokio::time::Instant::now() + WAIT_TIMEOUT)).unwrap();
        if redirection == ">/dev/full" {
            let lost = || {
                let page = StatusPage::at(status.clone());
                (page.metric("rdma_engine_log_lines_lost_total", &[]).ok()? > 0.0).then_some(())
            };
            eventually("lost lines", WAIT_TIMEOUT, lost).unwrap();
        }
        engine.ensure_running().unwrap();
        engine.signal(Signal::SIGTERM);
        assert!(engine.wait(WAIT_TIMEOUT).unwrap().success(), "{redirection}");
    }
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_engine_starts_with_its_defaults_where_memory_is_small() {
    if !host::can_serve() {
        return;
    }
    // Less than what the engine takes for answers elsewhere.
    let small = match MemoryGroup::new("small-engine", 48 << 20) {
        Ok(small) => small,
        Err(error) => return host::skipped(&format!("no control group with a limit: {error:#}")),
    };
    let (_inner, door) = small.nested().unwrap();
    let enter = format!("echo 0 > {} && exec \"$0\" \"$@\"", door.display());
    let wrapper = ["sh".to_owned(), "-c".to_owned(), enter];
    let cluster = Cluster::builder().start().unwrap();
    let written = some_needles(&Needles::new(&cluster), 1, 100_000).remove(0);
    let mut engine = cluster.start_engine_through(&wrapper, &cluster.volume_servers()[0]).unwrap();
    let output = engine.run(&["read", engine.address(), &written.fid, "--transport", "tcp"]).unwrap();
    assert!(output.stdout == Pattern::new(0).bytes(0, 100_000), "{output:?}");
    // The group goes after the last process in it.
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().unwrap());
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn the_program_serves_pings_reads_measures_and_ends() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let mut engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    let written = some_needles(&needles, 4, 5_000_000);
    let address = engine.address().to_owned();

    for transport in ["local", "tcp", "auto"] {
        let output = engine.run(&["read", &address, &written[1].fid, "--transport", transport]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == Pattern::new(1).bytes(0, 5_000_000), "{transport}");
    }
    let part =
        engine.run(&["read", &address, &written[1].fid, "--offset", "1MiB", "--length", "4KiB"]).unwrap();
    assert!(part.stdout == Pattern::new(1).bytes(1 << 20, 4096));
    let wrong = engine.run(&["read", &address, "1,01ffffffff"]).unwrap();
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("refused"), "{wrong:?}");
    let usage = engine.run(&["read", &address, "nonsense"]).unwrap();
    assert_eq!(usage.status.code(), Some(2));

    let ping = engine.run(&["ping", &address, "--count", "2", "--transport", "tcp"]).unwrap();
    assert_eq!(String::from_utf8_lossy(&ping.stdout).matches("over tcp").count(), 2, "{ping:?}");
    let bench = engine.run(&[
        "bench",
        &address,
        &written[0].fid,
        &written[1].fid,
        "--seconds",
        "1",
        "--sizes",
        "64KiB",
    ]);
    let bench = String::from_utf8_lossy(&bench.unwrap().stdout).into_owned();
    assert_eq!(bench.lines().count(), 5, "{bench}");
    println!("{bench}");

    assert_eq!(engine.get("/healthz").unwrap(), "ok\n");
    for transport in ["local", "tcp"] {
        assert!(engine.metric(&format!("rdma_engine_reads_total{{transport=\"{transport}\"}}")).unwrap() > 2);
        let bytes = engine.metric(&format!("rdma_engine_bytes_total{{transport=\"{transport}\"}}")).unwrap();
        assert!(bytes > 10_000_000, "{bytes}");
        eventually("the end of all sessions", WAIT_TIMEOUT, || {
            let sessions = engine.metric(&format!("rdma_engine_connections{{transport=\"{transport}\"}}"));
            (sessions.unwrap() == 0).then_some(())
        })
        .unwrap();
        assert_eq!(
            engine.metric(&format!("rdma_engine_staging_bytes{{transport=\"{transport}\"}}")).unwrap(),
            0
        );
    }

    engine.signal(Signal::SIGINT);
    assert!(engine.wait().unwrap(), "Ctrl-C is a clean end");
    let gone = engine.run(&["ping", &address]).unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no answer from"), "{gone:?}");
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn ten_thousand_random_ranges_are_those_of_http() {
    const NEEDLES: u64 = 600;
    const READS: u64 = 10_000;
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    // Numbers that look random and are the same at every run (a linear congruential generator,
    // Knuth's MMIX).
    let mut state = 7u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let mut held = Vec::new();
    for number in 0..NEEDLES {
        let at = needles.assign("").unwrap();
        // Most are small, as most needles are; some take several READs, or several pieces of them.
        let size = 1 + below(if number % 20 == 0 { 1_500_000 } else { 40_000 });
        needles.put(&at, &Pattern::new(number).bytes(0, size), "", &[]).unwrap();
        let bytes = needles.get(&at).unwrap().expect("it was just written");
        assert_eq!(bytes.len(), size);
        held.push((fid(&at), bytes));
    }
    let held = Arc::new(held);
    let engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    let runtime = runtime();
    for name in host::transports() {
        let transport = match name.as_str() {
            "verbs" => Transport::Verbs,
            "local" => Transport::Local,
            _ => Transport::Tcp,
        };
        let client = client(&engine, transport);
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let ranges: Vec<_> = (0..READS / 16)
                .map(|_| {
                    let index = below(held.len());
                    let whole = held[index].1.len();
                    (index, below(whole), 1 + below(whole))
                })
                .collect();
            let (client, held) = (client.clone(), held.clone());
            readers.spawn_on(
                async move {
                    for (index, offset, length) in ranges {
                        let (fid, whole) = &held[index];
                        let mut bytes = vec![0xee; length];
                        let target = ReadTarget { fid: *fid, offset: offset as u32, token: None };
                        let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
                        let delivered = client.read(target, &mut bytes, deadline).await.unwrap();
                        let end = whole.len().min(offset + length);
                        assert_eq!(delivered.needle.length as usize, end - offset);
                        assert!(bytes[..end - offset] == whole[offset..end], "{fid} from {offset} to {end}");
                    }
                },
                runtime.handle(),
            );
        }
        runtime.block_on(async {
            while let Some(outcome) = readers.join_next().await {
                outcome.unwrap();
            }
        });
        let counted = engine.metric(&format!("rdma_engine_reads_total{{transport=\"{name}\"}}")).unwrap();
        assert_eq!(counted, READS, "all of them by {name}");
    }
}

/// Many threads read the beginning of a needle again and again until `has_ended`; each answer must
/// be `expected`. Returns how many answers came.
fn ask_on(engine: &str, fid: FileId, expected: &[u8], has_ended: &AtomicBool) -> u64 {
    const AT_ONCE: u64 = 64;
    let stream = TcpStream::connect(engine).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let mut bytes = bytes::BytesMut::new();
    let (capabilities, name) = (Capabilities::default(), "many".to_owned());
    Hello { oldest: VERSION, newest: VERSION, capabilities, name, nonce: None }.encode(&mut bytes);
    Choose::Tcp.encode(MessageKind::Choose, &mut bytes);
    (&stream).write_all(&bytes).unwrap();
    let mut answers = BufReader::new(&stream);
    let mut next = || {
        let mut header = [0; frame::HEADER];
        answers.read_exact(&mut header).unwrap();
        let header = FrameHeader::parse(&header).unwrap();
        let mut body = vec![0; header.length as usize];
        answers.read_exact(&mut body).unwrap();
        let mut data = vec![0; if header.kind == MessageKind::Data { expected.len() } else { 0 }];
        answers.read_exact(&mut data).unwrap();
        (header.kind, data)
    };
    assert_eq!((next().0, next().0), (MessageKind::Welcome, MessageKind::Ready));
    bytes.clear();
    for number in 1..=AT_ONCE {
        let read = protocol::ReadRequest { fid, offset: 0, length: expected.len() as u32, token: Vec::new() };
        ClientMessage::Read(read).encode(number, &mut bytes);
    }
    let mut answered = 0;
    while !has_ended.load(Ordering::Relaxed) {
        (&stream).write_all(&bytes).unwrap();
        for _ in 0..AT_ONCE {
            let (kind, data) = next();
            assert!(kind == MessageKind::Data && data == expected, "{kind:?}");
            answered += 1;
        }
    }
    answered
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_index_that_grows_under_many_readers_is_read_as_a_whole_once() {
    const WRITERS: u64 = 2;
    const NEEDLES: u64 = 2000;
    const READERS: usize = 12;
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let first = some_needles(&needles, 1, 1000).remove(0);
    let engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    // The keys are in no order, so that many of them come late.
    let at = |writer: u64, number: u64| {
        let key = (writer * NEEDLES + number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16 | 1 << 47;
        Assigned { fid: format!("{},{key:x}00000001", fid(&first).volume), server: first.server.clone() }
    };
    let expected = Pattern::new(0).bytes(0, 16);
    let has_ended = AtomicBool::new(false);
    let answers: u64 = std::thread::scope(|scope| {
        let ask = || ask_on(engine.address(), fid(&first), &expected, &has_ended);
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(ask)).collect();
        let write = |writer| {
            let (needles, at) = (&needles, &at);
            scope.spawn(move || {
                for number in 0..NEEDLES {
                    needles.put(&at(writer, number), &number.to_be_bytes(), "", &[]).unwrap();
                }
            })
        };
        let writers: Vec<_> = (0..WRITERS).map(write).collect();
        let written: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        has_ended.store(true, Ordering::Relaxed);
        written.into_iter().for_each(|outcome| outcome.unwrap());
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    println!("{answers} answers while {} needles were written", WRITERS * NEEDLES);
    let runtime = runtime();
    let reader = Reader { runtime: &runtime, client: client(&engine, Transport::Tcp) };
    for (writer, number) in (0..WRITERS).flat_map(|writer| (0..NEEDLES).map(move |number| (writer, number))) {
        let read = reader.read(fid(&at(writer, number)), 100, None).unwrap();
        assert!(read == number.to_be_bytes(), "{writer} {number}");
    }
    assert_eq!(engine.metric("rdma_engine_index_reads_total").unwrap(), 1);
    for reason in ["stale", "loading"] {
        let refused = engine.metric(&format!("rdma_engine_refusals_total{{reason=\"{reason}\"}}")).unwrap();
        assert_eq!(refused, 0, "{reason}");
    }
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_engine_that_is_killed_or_hangs_costs_a_typed_error() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let mut engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    let size = 8_000_000;
    let written = some_needles(&needles, 6, size);
    let runtime = runtime();
    for transport in TRANSPORTS {
        let reader = Reader { runtime: &runtime, client: client(&engine, transport) };
        assert!(reader.read(fid(&written[0]), size, None).unwrap() == Pattern::new(0).bytes(0, size));

        // Killed in the middle of many reads: each is either right or an error.
        let reads: Vec<_> = (0..64u64)
            .map(|index| {
                let (client, at) = (reader.client.clone(), fid(&written[index as usize % 6]));
                runtime.spawn(async move {
                    let mut bytes = vec![0; size];
                    let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
                    let target = ReadTarget { fid: at, offset: 0, token: None };
                    let outcome = client.read(target, &mut bytes, deadline).await;
                    outcome.map(|_| assert!(bytes == Pattern::new(index % 6).bytes(0, size)))
                })
            })
            .collect();
        engine.kill();
        for read in reads {
            if let Err(error) = runtime.block_on(read).unwrap() {
                assert!(matches!(error, ReadError::Lost(_) | ReadError::Unavailable(_)), "{error}");
            }
        }
        assert!(reader.read(fid(&written[0]), 10, None).is_err());
        engine.restart().unwrap();
        eventually("a read after the restart", WAIT_TIMEOUT, || {
            reader.read(fid(&written[0]), size, None).ok()
        })
        .unwrap();

        // Stopped: the first read takes its whole deadline, the next one no time at all.
        engine.signal(Signal::SIGSTOP);
        let outcome = reader.read_within(fid(&written[1]), size, None, Duration::from_millis(300));
        assert_eq!(outcome.unwrap_err(), ReadError::Deadline);
        let began = Instant::now();
        let error = reader.read(fid(&written[1]), size, None).unwrap_err();
        assert!(matches!(error, ReadError::Unavailable(_)), "{error}");
        assert!(began.elapsed() < WAIT_TIMEOUT / 2);
        engine.signal(Signal::SIGCONT);
        eventually("a read after it goes on", WAIT_TIMEOUT, || {
            reader.read(fid(&written[0]), size, None).ok()
        })
        .unwrap();
    }
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn cookies_and_tokens_guard_needles() {
    if !host::can_serve() {
        return;
    }
    let key = "a secret between servers";
    let cluster = Cluster::builder().read_key(key).start().unwrap();
    let needles = Needles::new(&cluster);
    let engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    let written = some_needles(&needles, 2, 1000);
    let signer = |key: &'static str| {
        let find = move |name: &str| (name == "WEED_JWT_SIGNING_READ_KEY").then(|| key.to_owned());
        SecuritySettings::read(None, find).unwrap().read_signer().unwrap().unwrap()
    };
    let right = signer("a secret between servers").token(fid(&written[0]));
    let forged = signer("guessed").token(fid(&written[0]));
    let runtime = runtime();
    for transport in TRANSPORTS {
        let reader = Reader { runtime: &runtime, client: client(&engine, transport) };
        let refused = |fid, token: Option<&str>| match reader.read(fid, 1000, token) {
            Err(ReadError::Refused(refusal)) => refusal,
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        };
        assert_eq!(refused(fid(&written[0]), None), Refusal::TokenMissing);
        assert_eq!(refused(fid(&written[0]), Some(&forged)), Refusal::TokenInvalid);
        assert_eq!(refused(fid(&written[1]), Some(&right)), Refusal::TokenInvalid);
        assert!(reader.read(fid(&written[0]), 1000, Some(&right)).unwrap() == Pattern::new(0).bytes(0, 1000));
        let guessed = FileId { cookie: fid(&written[0]).cookie ^ 1, ..fid(&written[0]) };
        let token = signer("a secret between servers").token(guessed);
        assert_eq!(refused(guessed, Some(&token)), Refusal::WrongCookie);
    }
    // The program finds the key in the cluster's security.toml.
    let output = engine.run(&["read", engine.address(), &written[1].fid]).unwrap();
    assert!(output.stdout == Pattern::new(1).bytes(0, 1000), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn garbage_on_the_port_and_in_the_volume() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let engine = cluster.start_engine(&cluster.volume_servers()[0]).unwrap();
    let written = some_needles(&needles, 3, 100_000);
    for garbage in
        [&b"GET /metrics HTTP/1.1\r\n\r\n"[..], &[0; 1000], &[0xff; 100_000], b"\x16\x03\x01\x02\x00\x01\x00"]
    {
        let mut stream = TcpStream::connect(engine.address()).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        // The engine may hang up before all is written.
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 32, "{answer:?}");
    }

    // A byte of the file flips under the server.
    let fid = fid(&written[1]);
    let directory = cluster.volume_servers()[0].directory();
    let path = directory.join(format!("{}.dat", fid.volume));
    let mut dat = fs::read(&path).unwrap();
    let content = Pattern::new(1).bytes(0, 100_000);
    let at = dat.windows(64).position(|window| window == &content[..64]).unwrap();
    dat[at + 50_000] ^= 0x10;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &dat[at + 50_000..=at + 50_000], at as u64 + 50_000)
        .unwrap();
    let runtime = runtime();
    for transport in TRANSPORTS {
        let reader = Reader { runtime: &runtime, client: client(&engine, transport) };
        let error = reader.read(fid, 100_000, None).unwrap_err();
        assert_eq!(error, ReadError::Damaged("the checksum"), "{transport:?}");
        assert!(reader.read(self::fid(&written[2]), 100_000, None).is_ok());
    }
    assert!(needles.get(&written[1]).is_err(), "the volume server finds it too");
}
