//! A replica that falls silent: the other one is asked before the silence counts as a failure.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use tests::mount::Kind;
use tests::{Cluster, Fault, Mount, Pattern, data, host, reading};

/// Time that a server may be silent before the mount asks another one. A read that takes less was
/// hedged.
const STALL: Duration = Duration::from_secs(5);
/// Accepts connections and requests, and says nothing.
const SILENT: Fault = Fault::StallAfter(0);

fn replicated() -> Cluster {
    Cluster::builder().volume_servers(2).replication("001").max_mb(1).proxied().start().unwrap()
}

/// A mount that reaches volume servers through their proxies; none for `weed mount`, which does
/// not hedge.
fn mount(cluster: &Cluster) -> Option<Mount> {
    let builder = Mount::builder(cluster);
    let ours = builder.kind() == Kind::Interceptor;
    // Only what reads ask for shall be fetched.
    let args = ["--volume-server-access", "publicUrl", "--no-ebpf"];
    ours.then(|| builder.args(args).start().unwrap())
}

fn counter(mount: &Mount, name: &str) -> u64 {
    let text = mount.status("/metrics").unwrap().1;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
}

/// Checks that second requests were sent and of use.
fn assert_hedged(mount: &Mount) {
    let sent = counter(mount, "interceptor_hedges_sent_total ");
    let won = counter(mount, "interceptor_hedges_won_total ");
    println!("{won} of {sent} second requests won");
    assert!(0 < won && won <= sent);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn small_files_are_read_past_a_silent_replica() {
    const FILES: u64 = 40;
    if !host::can_mount() {
        return;
    }
    let cluster = replicated();
    let content = |file| Pattern::new(file).bytes(0, 50_000);
    for file in 0..FILES {
        cluster.filer().put(&format!("/small/{file}"), &content(file), "").unwrap();
    }
    let Some(mut mount) = mount(&cluster) else { return };
    fs::metadata(mount.file("/small/0")).unwrap();
    cluster.proxies()[0].set(SILENT);
    let mut longest = Duration::ZERO;
    for file in 0..FILES {
        let started = Instant::now();
        let read = fs::read(mount.file(&format!("/small/{file}"))).unwrap();
        longest = longest.max(started.elapsed());
        data::assert_same(&format!("file {file}"), &read, &content(file));
    }
    println!("the longest read took {longest:?}");
    assert!(longest < STALL);
    assert_hedged(&mount);
    assert!(mount.is_running());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_stream_goes_on_when_its_replica_falls_silent() {
    const SIZE: u64 = 48 << 20;
    const PIECE: usize = 256 << 10;
    if !host::can_mount() {
        return;
    }
    let cluster = replicated();
    let patterns = [Pattern::new(1), Pattern::new(2)];
    for (victim, pattern) in patterns.iter().enumerate() {
        cluster.filer().put_reader(&format!("/stream/{victim}"), pattern.reader(SIZE), "").unwrap();
    }
    let Some(mut mount) = mount(&cluster) else { return };
    for (victim, pattern) in patterns.into_iter().enumerate() {
        let file = File::open(mount.file(&format!("/stream/{victim}"))).unwrap();
        let (mut read, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
        let mut longest = Duration::ZERO;
        for piece in 0..SIZE / PIECE as u64 {
            let (offset, started) = (piece * PIECE as u64, Instant::now());
            assert_eq!(reading::read_full(&file, &mut read, offset).unwrap(), PIECE);
            longest = longest.max(started.elapsed());
            pattern.fill(offset, &mut expected);
            data::assert_same(&format!("at {offset}"), &read, &expected);
            if piece == 8 {
                cluster.proxies()[victim].set(SILENT);
            }
        }
        println!("the longest read of {PIECE} bytes took {longest:?}");
        assert!(longest < STALL);
        cluster.proxies()[victim].set(Fault::None);
    }
    assert_hedged(&mount);
    assert!(mount.is_running());
}
