//! The sources above HTTP: engines beside the volume servers, over each transport that this host
//! has, and reads while they fail.

use std::fs::{self, File};
use std::time::Duration;

use nix::sys::signal::Signal;
use tests::mount::Kind;
use tests::{Cluster, Mount, Pattern, data, eventually, host, reading};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
const LARGE: u64 = 24 << 20;

fn fetched(mount: &Mount, source: &str) -> f64 {
    mount.metric("interceptor_fetch_bytes_total", &[&format!("source=\"{source}\"")]).unwrap()
}

fn fallbacks(mount: &Mount) -> f64 {
    mount.metric("interceptor_fallbacks_total", &["to=\"http\""]).unwrap()
}

/// Requests that engines did not answer in time.
fn missed_deadlines(mount: &Mount) -> f64 {
    mount.metric("interceptor_fetch_errors_total", &["reason=\"deadline\""]).unwrap()
}

/// Whether mounts here are ours: `weed mount` asks no engines.
fn is_ours(cluster: &Cluster) -> bool {
    host::can_mount() && Mount::builder(cluster).kind() == Kind::Interceptor
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn bytes_come_from_engines_and_are_those_of_the_filer() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().volume_servers(2).start().unwrap();
    if !is_ours(&cluster) {
        return;
    }
    let filer = cluster.filer();
    let large = Pattern::new(1);
    filer.put_reader("/large", large.reader(LARGE), "").unwrap();
    for size in [1, 100, 4096, 70_000] {
        filer.put(&format!("/small/{size}"), &Pattern::new(size).bytes(0, size as usize), "").unwrap();
    }
    // Compressed by the filer, so it has to be unpacked here.
    let text = data::text(5, 3_000_000);
    filer.put_as("/text", &text, "", &[("Content-Type", "text/plain")]).unwrap();

    let mut first = 0..;
    for transport in &host::transports() {
        // A busy host may emulate RDMA so slowly that an engine misses its deadline, and then the
        // volume servers are asked. That is another test's.
        const ATTEMPTS: usize = 10;
        let is_by_engines_alone = (0..ATTEMPTS).any(|_| {
            let mount = Mount::builder(&cluster).engines(&cluster, transport).start().unwrap();
            // A read does not wait for an engine that takes long to connect, as emulated RDMA does.
            // Each server has one.
            for server in 1..=2 {
                let asked_first = "an engine is asked first";
                eventually("every engine to be connected", WAIT_TIMEOUT, || {
                    // In a directory of its own, so that no prefetch has brought it.
                    let file = format!("/first/{}/x", first.next().unwrap());
                    filer.put(&file, b"hello", "").unwrap();
                    let read = eventually("a new file", WAIT_TIMEOUT, || fs::read(mount.file(&file)).ok());
                    assert_eq!(read.unwrap(), b"hello");
                    (mount.log().unwrap().matches(asked_first).count() >= server).then_some(())
                })
                .unwrap();
            }
            let before = [fetched(&mount, transport), fetched(&mount, "http"), fallbacks(&mount)];
            let file = File::open(mount.file("/large")).unwrap();
            // Here and there first, which brings ranges, and then all of it.
            for (offset, len) in [(5, 10), (4 << 20, 4096), ((8 << 20) - 3, 70_000), (LARGE - 100, 100)] {
                let mut read = vec![0; len];
                assert_eq!(reading::read_full(&file, &mut read, offset).unwrap(), len);
                data::assert_same(&format!("{transport} at {offset}"), &read, &large.bytes(offset, len));
            }
            data::assert_same(
                transport,
                &fs::read(mount.file("/large")).unwrap(),
                &large.bytes(0, LARGE as usize),
            );
            for size in [1, 100, 4096, 70_000] {
                let read = fs::read(mount.file(&format!("/small/{size}"))).unwrap();
                data::assert_same(transport, &read, &Pattern::new(size).bytes(0, size as usize));
            }
            data::assert_same(transport, &fs::read(mount.file("/text")).unwrap(), &text);
            if missed_deadlines(&mount) > 0.0 {
                println!("an engine over {transport} was too slow: once more");
                return false;
            }
            let after = [fetched(&mount, transport), fetched(&mount, "http"), fallbacks(&mount)];
            assert!(after[0] - before[0] >= (LARGE as usize + text.len()) as f64, "{before:?} {after:?}");
            assert_eq!(after[1..], before[1..], "nothing was left to the volume servers");
            // RDMA brings it into the cache itself.
            let shown = mount.metric("interceptor_cache_bytes", &["state=\"rdma\""]).unwrap();
            assert_eq!(shown > 0.0, *transport == "verbs", "{shown}");
            true
        });
        assert!(is_by_engines_alone, "engines over {transport} miss deadlines each time");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn reads_survive_engines_that_end_and_use_them_again() {
    const FILES: u64 = 2000;
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    if !is_ours(&cluster) {
        return;
    }
    let content = |file| Pattern::new(file).bytes(0, 20_000);
    for file in 0..FILES {
        cluster.filer().put(&format!("/{}/{file}", file % 40), &content(file), "").unwrap();
    }
    let server = &cluster.volume_servers()[0];
    for transport in &host::transports() {
        let mut engine = cluster.start_engine(server).unwrap();
        let pair = format!("--engine={}={}", server.address(), engine.address());
        let mount = Mount::builder(&cluster).args(["--transport", transport]).arg(pair).start().unwrap();
        let mut files = 0..FILES;
        let mut read = |count: usize| {
            for file in files.by_ref().take(count) {
                let read = fs::read(mount.file(&format!("/{}/{file}", file % 40))).unwrap();
                data::assert_same(&format!("file {file} by {transport}"), &read, &content(file));
            }
        };
        eventually("an engine to be found", WAIT_TIMEOUT, || {
            read(1);
            (fetched(&mount, transport) > 0.0).then_some(())
        })
        .unwrap();
        // One that is gone.
        engine.kill();
        read(50);
        assert!(fetched(&mount, "http") > 0.0, "somebody must have sent the bytes");
        engine.restart().unwrap();
        let before = fetched(&mount, transport);
        eventually("an engine to be found again", WAIT_TIMEOUT, || {
            read(1);
            (fetched(&mount, transport) > before).then_some(())
        })
        .unwrap();
        // One that is silent. With `local` only what was located before can be read without it.
        engine.signal(Signal::SIGSTOP);
        let before = fallbacks(&mount);
        eventually("a read that goes around a silent engine", WAIT_TIMEOUT, || {
            read(1);
            (fallbacks(&mount) > before).then_some(())
        })
        .unwrap();
        engine.signal(Signal::SIGCONT);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_no_engine_does_no_harm() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    if !is_ours(&cluster) {
        return;
    }
    cluster.filer().put("/file", &Pattern::new(7).bytes(0, 300_000), "").unwrap();
    let server = cluster.volume_servers()[0].address();
    // A program that speaks HTTP, and a port without a listener.
    for engine in [cluster.master().address(), "127.0.0.1:1".to_owned()] {
        let pair = format!("--engine={server}={engine}");
        let mount = Mount::builder(&cluster).args(["--transport", "tcp,http"]).arg(pair).start().unwrap();
        let read = fs::read(mount.file("/file")).unwrap();
        data::assert_same(&engine, &read, &Pattern::new(7).bytes(0, 300_000));
        assert_eq!(fetched(&mount, "http"), 300_000.0);
    }
}
