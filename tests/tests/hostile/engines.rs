//! An engine that is not the volume server's, and one that is named and lies.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nix::sys::signal::Signal;
use rdma_engine::protocol::{EngineMessage, MessageKind, ReadRequest};
use tests::{Bindfs, Cluster, Mount, Pattern, eventually, host, mount};

use super::fake::{Connection, DescriptorSource, FakeEngine, Lie, NOBODY, needle};
use super::{WAIT_TIMEOUT, assert_bounded, resident_mib};

const SIZE: usize = 3_000_000;

/// An unprivileged user that owns no files.
const STRANGER_UID: u32 = 23_456;

/// All that was asked for, with the checksum that belongs to it.
fn forged(number: u64, read: &ReadRequest) -> Vec<u8> {
    let data = vec![b'!'; read.length as usize];
    let mut needle = needle(read, read.length);
    needle.checksum = rdma_engine::checksum::crc32c(&data);
    let mut bytes = BytesMut::new();
    EngineMessage::Data(needle).encode(number, &mut bytes);
    bytes.extend_from_slice(&data);
    bytes.to_vec()
}

/// What makes a descriptor, for an engine.
fn handing(make: impl Fn() -> OwnedFd + Send + Sync + 'static) -> DescriptorSource {
    Arc::new(make)
}

fn dev_zero() -> OwnedFd {
    File::open("/dev/zero").unwrap().into()
}

/// Reads a file of the cluster through a mount, and gives it with the mount.
fn read(mount: &Mount, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(mount.file(path)).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// More files, for engines that were not found by the time that the first one was read.
const MORE: u64 = 30;

fn put_more(cluster: &Cluster) {
    for index in 0..MORE {
        cluster.filer().put(&format!("/more{index}"), &Pattern::new(index).bytes(0, 50_000), "").unwrap();
    }
}

/// Reads one file after another until `is_done`, which follows from an engine being found.
fn read_on(mount: &Mount, what: &str, is_done: impl Fn() -> bool) {
    let found = (0..MORE).any(|index| {
        let right = Pattern::new(index).bytes(0, 50_000);
        assert!(read(mount, &format!("/more{index}")) == right, "{what}");
        eventually(what, Duration::from_secs(1), || is_done().then_some(())).is_ok()
    });
    assert!(found, "{what}: not within {MORE} files");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_engine_of_any_user_is_told_nothing_and_not_believed() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(1).bytes(0, SIZE);
    for builder in [Cluster::builder(), Cluster::builder().read_key("a secret of the cluster's servers")] {
        let cluster = builder.max_mb(1).start().unwrap();
        cluster.filer().put("/file", &content, "").unwrap();
        put_more(&cluster);
        for user in [NOBODY, STRANGER_UID] {
            let engine = FakeEngine::start(user, forged, user, handing(dev_zero));
            let port = engine.port().to_string();
            let mount = Mount::builder(&cluster).args(["--rdma-port", &port]).start().unwrap();
            assert!(read(&mount, "/file") == content, "forged bytes of user {user}");
            read_on(&mount, "a word about it", || {
                let heard = engine.heard();
                assert!(heard.iter().all(|(_, kind)| *kind == MessageKind::Hello), "{heard:?}");
                !heard.is_empty() && mount.log().unwrap().contains("an engine is not asked")
            });
            let address = mount.status_url().unwrap().trim_start_matches("http://");
            let status = Command::new(mount::interceptor_program().unwrap())
                .args(["status", "--status-addr", address])
                .output()
                .unwrap();
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            let line = status.lines().find(|line| line.starts_with("engine "));
            let line = line.unwrap_or_else(|| panic!("no engine in\n{status}"));
            for part in ["unproved", "not trusted", "--engine"] {
                assert!(line.contains(part), "no {part} in {line}");
            }
            let address = engine.address();
            assert!(status.contains(&format!("engine {address} beside")), "no {address} in\n{status}");
            assert!(mount.metric("interceptor_engines", &["state=\"unproved\""]).unwrap() == 1.0);
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_socket_name_that_somebody_has_taken_is_left_alone() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(2).bytes(0, SIZE);
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", &content, "").unwrap();
    put_more(&cluster);
    // The engine is trusted, and the name of its socket is one that another user has.
    let engine = FakeEngine::start(0, hung_up, STRANGER_UID, handing(dev_zero));
    let mount = with(&cluster, &engine);
    assert!(read(&mount, "/file") == content);
    read_on(&mount, "a read", || engine.heard().contains(&(Connection::Tcp, MessageKind::Read)));
    let heard = engine.heard();
    assert!(heard.iter().all(|(way, _)| *way == Connection::Tcp), "{heard:?}");
}

/// A mount that is given this engine by name.
fn with(cluster: &Cluster, engine: &FakeEngine) -> Mount {
    let server = cluster.volume_servers()[0].address();
    let named = format!("--engine={server}={}", engine.address());
    Mount::builder(cluster).args([&named, "--cache-size=64MiB"]).start().unwrap()
}

/// Nothing, which is followed by whatever the next read gets.
fn silence(_: u64, _: &ReadRequest) -> Vec<u8> {
    Vec::new()
}

/// The beginning of an answer.
fn hung_up(number: u64, read: &ReadRequest) -> Vec<u8> {
    let mut bytes = forged(number, read);
    // What comes next is no frame, so the client hangs up.
    bytes.truncate(bytes.len() / 2);
    bytes.extend_from_slice(&[0xff; 4096]);
    bytes
}

fn another_checksum(number: u64, read: &ReadRequest) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    EngineMessage::Data(needle(read, read.length)).encode(number, &mut bytes);
    bytes.resize(bytes.len() + read.length as usize, b'!');
    bytes.to_vec()
}

fn another_needle(number: u64, read: &ReadRequest) -> Vec<u8> {
    let mut other = read.clone();
    other.fid.cookie ^= 1;
    forged(number, &other)
}

/// A needle of nearly 4 GiB, of which this is the beginning.
fn huge(number: u64, read: &ReadRequest) -> Vec<u8> {
    let data = vec![b'!'; read.length as usize];
    let mut needle = needle(read, read.length);
    needle.data_size = 0xffff_fff0;
    let mut bytes = BytesMut::new();
    EngineMessage::Data(needle).encode(number, &mut bytes);
    bytes.extend_from_slice(&data);
    bytes.to_vec()
}

/// More data than was asked for.
fn too_much(number: u64, read: &ReadRequest) -> Vec<u8> {
    forged(number, &ReadRequest { length: read.length * 2, ..read.clone() })
}

/// Many unsolicited messages.
fn flood(number: u64, _: &ReadRequest) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for other in 0..200_000 {
        EngineMessage::Forget { file: other }.encode(number.wrapping_add(u64::from(other)), &mut bytes);
    }
    bytes.to_vec()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_a_named_engine_cannot_prove_is_fetched_elsewhere() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(3).bytes(0, SIZE);
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", &content, "").unwrap();
    put_more(&cluster);
    let lies: [(&str, Lie); 7] = [
        ("silence", silence),
        ("half an answer", hung_up),
        ("another checksum", another_checksum),
        ("another needle", another_needle),
        ("a huge needle", huge),
        ("too much", too_much),
        ("a flood", flood),
    ];
    for (what, lie) in lies {
        let engine = FakeEngine::start(0, lie, STRANGER_UID, handing(dev_zero));
        let mount = with(&cluster, &engine);
        let (before, began) = (resident_mib(mount.pid()), Instant::now());
        assert!(read(&mount, "/file") == content, "{what}");
        assert!(began.elapsed() < 4 * WAIT_TIMEOUT, "{what} took {:?}", began.elapsed());
        read_on(&mount, what, || engine.heard().contains(&(Connection::Tcp, MessageKind::Read)));
        assert_bounded(what, mount.pid(), before);
    }
}

/// The reading end of a pipe that is never written to.
fn pipe() -> OwnedFd {
    let (reader, writer) = std::io::pipe().unwrap();
    // Stays open for as long as the test program runs, so that a read would wait.
    std::mem::forget(writer);
    reader.into()
}

fn directory() -> OwnedFd {
    File::open("/").unwrap().into()
}

/// A file that is shorter than the needle that is said to be in it.
fn short_file() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_descriptor_that_is_no_volume_is_not_read() {
    if !host::can_mount() {
        return;
    }
    let content = Pattern::new(4).bytes(0, SIZE);
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", &content, "").unwrap();
    put_more(&cluster);
    for (what, handed) in
        [("a pipe", pipe as fn() -> OwnedFd), ("a device", dev_zero), ("a directory", directory)]
    {
        assert_unread(&cluster, &content, what, handing(handed), UNFIT_MESSAGE);
    }
    assert_unread(&cluster, &content, "a short file", handing(short_file), "");
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn a_descriptor_over_fuse_is_not_read_and_not_waited_for() {
    if !(host::can_mount() && host::has_bindfs()) {
        return;
    }
    let content = Pattern::new(4).bytes(0, SIZE);
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    cluster.filer().put("/file", &content, "").unwrap();
    put_more(&cluster);
    let mut bindfs = Bindfs::start().unwrap();
    let file = File::open(bindfs.put("1.dat", &vec![b'!'; SIZE]).unwrap()).unwrap();
    let handed = handing(move || file.try_clone().unwrap().into());
    assert_unread(&cluster, &content, "a file over FUSE", handed.clone(), UNFIT_MESSAGE);
    // What it is can only be asked of a process that does not answer.
    bindfs.signal(Signal::SIGSTOP);
    assert_unread(&cluster, &content, "a file over FUSE whose server hangs", handed, UNFIT_MESSAGE);
    bindfs.signal(Signal::SIGCONT);
}

/// What the log says of a descriptor that cannot be a volume's file.
const UNFIT_MESSAGE: &str = "an engine hands over what is no volume's file";

/// Mounts with an engine that hands over this descriptor; checks that nothing of it is read or
/// waited for, and what the log says.
fn assert_unread(cluster: &Cluster, content: &[u8], what: &str, handed: DescriptorSource, said: &str) {
    let engine = FakeEngine::start(0, silence, 0, handed);
    let mount = with(cluster, &engine);
    let (before, began) = (resident_mib(mount.pid()), Instant::now());
    assert!(read(&mount, "/file") == content, "{what}");
    assert!(began.elapsed() < 4 * WAIT_TIMEOUT, "{what} took {:?}", began.elapsed());
    read_on(&mount, what, || engine.heard().contains(&(Connection::Unix, MessageKind::Read)));
    assert_bounded(what, mount.pid(), before);
    mount.log_with(said).unwrap();
    // Nothing of it holds up the daemon's end.
    let began = Instant::now();
    assert!(mount.stop().unwrap().success(), "{what}");
    assert!(began.elapsed() < Duration::from_secs(10), "{what}");
}
