//! Servers that die while they are needed: copies elsewhere, the same server back again, filers.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use tests::{Cluster, Mount, Pattern, data, eventually, host, reading};

const PIECE: usize = 256 << 10;
/// No read may take longer, whatever dies; the mount retries for six seconds, twice if it looked up locations in between.
const PATIENCE: Duration = Duration::from_secs(40);

/// Reads the file in pieces and calls `in_between` with each one's number; an EIO is read again until patience is over. Gives
/// how many there were.
fn read_slowly(file: &File, size: u64, pattern: Pattern, mut in_between: impl FnMut(u64)) -> usize {
    let (mut read, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    let mut errors = 0;
    for piece in 0..size / PIECE as u64 {
        let offset = piece * PIECE as u64;
        let started = Instant::now();
        loop {
            match file.read_exact_at(&mut read, offset) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EIO) => errors += 1,
                Err(error) => panic!("reading at {offset}: {error}"),
            }
            assert!(started.elapsed() < PATIENCE, "no byte at {offset} for {PATIENCE:?}");
        }
        pattern.fill(offset, &mut expected);
        data::assert_same(&format!("at {offset}"), &read, &expected);
        in_between(piece);
    }
    errors
}

#[test]
fn one_of_two_copies_dies_in_mid_read_then_the_other() {
    const SIZE: u64 = 96 << 20;
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().volume_servers(2).replication("001").start().unwrap();
    let filer = cluster.filer();
    let patterns = [Pattern::new(1), Pattern::new(2)];
    for (victim, pattern) in patterns.iter().enumerate() {
        filer.put_reader(&format!("/copies/{victim}"), pattern.reader(SIZE), "").unwrap();
    }
    let mut mount = Mount::builder(&cluster).start().unwrap();
    for (victim, pattern) in patterns.into_iter().enumerate() {
        let file = File::open(mount.file(&format!("/copies/{victim}"))).unwrap();
        let errors = read_slowly(&file, SIZE, pattern, |piece| {
            if piece == 8 {
                cluster.volume_servers()[victim].kill();
            }
        });
        assert_eq!(errors, 0, "the other copy serves every read");
        cluster.restart_volume_server(victim).unwrap();
    }
    assert!(mount.is_running());
}

#[test]
fn the_only_volume_server_is_killed_and_comes_back_in_mid_read() {
    const SIZE: u64 = 96 << 20;
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let pattern = Pattern::new(3);
    cluster.filer().put_reader("/only", pattern.reader(SIZE), "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let file = File::open(mount.file("/only")).unwrap();
    thread::scope(|scope| {
        read_slowly(&file, SIZE, pattern, |piece| {
            if piece == 8 {
                cluster.volume_servers()[0].kill();
                scope.spawn(|| cluster.restart_volume_server(0).unwrap());
            }
        });
    });
    assert!(mount.is_running());
    drop(mount);

    // While nobody serves the volume a read fails, in time, and only until the server is back.
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/only");
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    cluster.volume_servers()[0].kill();
    let started = Instant::now();
    assert_eq!(reading::error_of(&path), libc::EIO);
    assert!(started.elapsed() < PATIENCE, "EIO came after {:?}", started.elapsed());
    assert!(mount.is_running());
    cluster.restart_volume_server(0).unwrap();
    let sum = || data::sum_file(&path).ok();
    let sum = eventually("a good read", PATIENCE, sum).unwrap();
    assert_eq!(sum, data::sum_reader(pattern.reader(SIZE)).unwrap());
}

#[test]
fn the_filer_is_killed_and_comes_back() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let filer = cluster.filer();
    let content = Pattern::new(4).bytes(0, 3_000_000);
    let changed = Pattern::new(5).bytes(0, 2_000_000);
    filer.put("/here/cached", &content, "").unwrap();
    filer.put("/here/changing", &content, "").unwrap();
    filer.put("/here/unknown", &content, "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    for name in ["cached", "changing"] {
        reading::verify(&mount.file(&format!("/here/{name}")), &content);
    }
    let open = File::open(mount.file("/here/cached")).unwrap();

    cluster.filers()[0].kill();
    let mut again = vec![0; content.len()];
    assert_eq!(reading::read_full(&open, &mut again, 0).unwrap(), content.len());
    data::assert_same("an open file without a filer", &again, &content);
    let started = Instant::now();
    let lookup = fs::metadata(mount.file("/here/unknown"));
    assert!(started.elapsed() < PATIENCE, "a lookup without a filer took {:?}", started.elapsed());
    // It may have been listed along with its neighbours; unknown names must not be told to be absent.
    if let Err(error) = lookup {
        assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    assert!(mount.is_running());

    cluster.restart_filer(0).unwrap();
    filer.put("/here/changing", &changed, "").unwrap();
    filer.put("/here/new", b"new", "").unwrap();
    filer.delete("/here/unknown").unwrap();
    let seen = || (fs::read(mount.file("/here/changing")).ok()? == changed).then_some(());
    eventually("the change", PATIENCE, seen).unwrap();
    eventually("the new file", PATIENCE, || {
        fs::read(mount.file("/here/new")).ok().filter(|new| new == b"new")
    })
    .unwrap();
    eventually("the end of a file", PATIENCE, || fs::metadata(mount.file("/here/unknown")).err()).unwrap();
    reading::verify(&mount.file("/here/cached"), &content);
}

#[test]
fn one_of_two_filers_dies() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().filers(2).start().unwrap();
    let content = Pattern::new(6).bytes(0, 3_000_000);
    let second = tests::Filer::new(&cluster.filers()[1].address());
    cluster.filer().put("/two/first", &content, "").unwrap();
    let copied = || second.entry("/two/first").unwrap().filter(|entry| entry["FileSize"] == content.len());
    eventually("the exchange between the filers", PATIENCE, copied).unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/two/first"), &content);
    assert!(!mount.file("/two/second").exists());

    cluster.filers()[0].kill();
    second.put("/two/second", b"written through the other filer", "").unwrap();
    second.put("/two/first", b"changed", "").unwrap();
    let seen = || fs::read(mount.file("/two/second")).ok();
    let read = eventually("a file of the other filer", PATIENCE, seen).unwrap();
    assert_eq!(read, b"written through the other filer");
    let seen = || fs::read(mount.file("/two/first")).ok().filter(|read| read == b"changed");
    eventually("a change of the other filer", PATIENCE, seen).unwrap();
    assert!(mount.is_running());
}
