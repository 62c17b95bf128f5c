//! Servers that die while they are needed: copies elsewhere, the same server back again, filers.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tests::{Cluster, Mount, Pattern, data, eventually, host, reading};

const PIECE: usize = 256 << 10;
/// Longest time for a read, whichever servers die; the mount retries for six seconds, twice if it
/// looked up locations in between.
const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

/// Reads the file in pieces and calls `in_between` with each one's number; retries an EIO until
/// the timeout. Returns how many EIOs there were.
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
            assert!(started.elapsed() < WAIT_TIMEOUT, "no byte at {offset} for {WAIT_TIMEOUT:?}");
        }
        pattern.fill(offset, &mut expected);
        data::assert_same(&format!("at {offset}"), &read, &expected);
        in_between(piece);
    }
    errors
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
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
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
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

    // While no server has the volume a read fails, in time, and only until the server is back.
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/only");
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    cluster.volume_servers()[0].kill();
    let started = Instant::now();
    assert_eq!(reading::error_of(&path), libc::EIO);
    assert!(started.elapsed() < WAIT_TIMEOUT, "EIO came after {:?}", started.elapsed());
    assert!(mount.is_running());
    cluster.restart_volume_server(0).unwrap();
    let sum = || data::sum_file(&path).ok();
    let sum = eventually("a good read", WAIT_TIMEOUT, sum).unwrap();
    assert_eq!(sum, data::sum_reader(pattern.reader(SIZE)).unwrap());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
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
    assert!(started.elapsed() < WAIT_TIMEOUT, "a lookup without a filer took {:?}", started.elapsed());
    // The name may have been listed along with its neighbours; unknown names must not be reported
    // as absent.
    if let Err(error) = lookup {
        assert_ne!(error.kind(), ErrorKind::NotFound, "{error}");
    }
    assert!(mount.is_running());

    cluster.restart_filer(0).unwrap();
    filer.put("/here/changing", &changed, "").unwrap();
    filer.put("/here/new", b"new", "").unwrap();
    filer.delete("/here/unknown").unwrap();
    let seen = || (fs::read(mount.file("/here/changing")).ok()? == changed).then_some(());
    eventually("the change", WAIT_TIMEOUT, seen).unwrap();
    eventually("the new file", WAIT_TIMEOUT, || {
        fs::read(mount.file("/here/new")).ok().filter(|new| new == b"new")
    })
    .unwrap();
    eventually("the end of a file", WAIT_TIMEOUT, || fs::metadata(mount.file("/here/unknown")).err())
        .unwrap();
    reading::verify(&mount.file("/here/cached"), &content);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn one_of_two_filers_dies() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().filers(2).start().unwrap();
    let content = Pattern::new(6).bytes(0, 3_000_000);
    let second = tests::Filer::new(&cluster.filers()[1].address());
    cluster.filer().put("/two/first", &content, "").unwrap();
    let copied = || second.entry("/two/first").unwrap().filter(|entry| entry["FileSize"] == content.len());
    eventually("the exchange between the filers", WAIT_TIMEOUT, copied).unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/two/first"), &content);
    assert!(!mount.file("/two/second").exists());

    cluster.filers()[0].kill();
    second.put("/two/second", b"written through the other filer", "").unwrap();
    second.put("/two/first", b"changed", "").unwrap();
    let seen = || fs::read(mount.file("/two/second")).ok();
    let read = eventually("a file of the other filer", WAIT_TIMEOUT, seen).unwrap();
    assert_eq!(read, b"written through the other filer");
    let seen = || fs::read(mount.file("/two/first")).ok().filter(|read| read == b"changed");
    eventually("a change of the other filer", WAIT_TIMEOUT, seen).unwrap();
    assert!(mount.is_running());
}

/// A program that hangs in a request to a mount for `path`.
fn hanging(program: &str, path: &Path) -> Child {
    let mut command = Command::new(program);
    let child = command.arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut before = String::new();
    let hangs = || {
        // One and the same system call, with its arguments, two looks long.
        thread::sleep(Duration::from_millis(300));
        let now = fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
        let same = now == before && now.trim() != "running";
        before = now;
        same.then_some(())
    };
    eventually("a request that hangs", WAIT_TIMEOUT, hangs).unwrap();
    child
}

/// Kills a program that hangs; it must be gone well before servers are given up.
fn ends_at_once(mut child: Child) {
    let started = Instant::now();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    let took = started.elapsed();
    println!("killed and gone after {took:?}");
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(took < Duration::from_secs(3), "it took {took:?} to die");
}

fn is_ready(mount: &Mount) -> Result<(), String> {
    match mount.status("/readyz").unwrap() {
        (200, _) => Ok(()),
        (_, reason) => Err(reason),
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_filer_that_hangs_is_noticed_and_holds_nobody_for_long() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let filer = cluster.filer();
    let content = Pattern::new(7).bytes(0, 3_000_000);
    for name in ["known", "other", "directory/file"] {
        filer.put(&format!("/hung/{name}"), &content, "").unwrap();
    }
    let mut mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/hung/known"), &content);
    let open = File::open(mount.file("/hung/known")).unwrap();
    let not_read = File::open(mount.file("/hung/other")).unwrap();
    eventually("readiness", WAIT_TIMEOUT, || is_ready(&mount).ok()).unwrap();

    let frozen = Instant::now();
    cluster.filers()[0].freeze();
    let reason = eventually("a filer that is seen to hang", WAIT_TIMEOUT, || is_ready(&mount).err()).unwrap();
    let noticed = frozen.elapsed();
    println!("noticed after {noticed:?}: {reason}");
    assert!(reason.contains(&cluster.filers()[0].address()), "{reason}");
    assert!(noticed < Duration::from_secs(5), "noticed after {noticed:?}");
    assert_eq!(mount.metric("interceptor_filers_silent", &[]).unwrap(), 1.0);
    eventually("the end of the stream", WAIT_TIMEOUT, || {
        (mount.metric("interceptor_subscription_live", &[]).ok()? == 0.0).then_some(())
    })
    .unwrap();
    ends_at_once(hanging("stat", &mount.file("/hung/unknown")));
    ends_at_once(hanging("ls", &mount.file("/hung/directory")));
    // An open file is read as far as it is known where its chunks are.
    let mut read = vec![0; content.len()];
    assert_eq!(reading::read_full(&open, &mut read, 0).unwrap(), content.len());
    data::assert_same("without a filer", &read, &content);
    let started = Instant::now();
    if let Err(error) = not_read.read_exact_at(&mut [0; 4096], 0) {
        println!("{error} after {:?}", started.elapsed());
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());

    let error = fs::metadata(mount.file("/hung/unknown")).unwrap_err();
    println!("{error} {:?} after the filer hung", frozen.elapsed());
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(frozen.elapsed() < Duration::from_secs(20), "{:?}", frozen.elapsed());
    // Now that it has hung for long, nothing waits for it as long again.
    let started = Instant::now();
    fs::metadata(mount.file("/hung/directory/unknown")).unwrap_err();
    let took = started.elapsed();
    println!("a path of three names took {took:?}");
    assert!(took < Duration::from_secs(8), "a path of three names took {took:?}");

    cluster.filers()[0].thaw();
    eventually("readiness", WAIT_TIMEOUT, || is_ready(&mount).ok()).unwrap();
    filer.put("/hung/after", b"after", "").unwrap();
    eventually("a change", WAIT_TIMEOUT, || fs::read(mount.file("/hung/after")).ok()).unwrap();
    assert!(mount.is_running());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn changes_are_seen_while_one_of_two_filers_hangs() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().filers(2).start().unwrap();
    let filers = [0, 1].map(|i: usize| tests::Filer::new(&cluster.filers()[i].address()));
    for (followed, hangs) in [(0, 0), (0, 1)] {
        let path = format!("/two/{hangs}");
        filers[0].put(&path, b"before", "").unwrap();
        let copied = || filers[1].entry(&path).unwrap().filter(|entry| entry["FileSize"] == 6);
        eventually("the exchange between the filers", WAIT_TIMEOUT, copied).unwrap();
        let mount = Mount::builder(&cluster).start().unwrap();
        let page = mount.status("/api/v1/status").unwrap().1;
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        assert_eq!(page["current_filer"], cluster.filers()[followed].address(), "the first one is followed");
        assert_eq!(fs::read(mount.file(&path)).unwrap(), b"before");
        eventually("the events", WAIT_TIMEOUT, || {
            (mount.metric("interceptor_subscription_live", &[]).ok()? == 1.0).then_some(())
        })
        .unwrap();

        cluster.filers()[hangs].freeze();
        filers[1 - hangs].put(&path, b"changed", "").unwrap();
        let started = Instant::now();
        let seen = || fs::read(mount.file(&path)).ok().filter(|read| read == b"changed");
        eventually("the change", WAIT_TIMEOUT, seen).unwrap();
        let took = started.elapsed();
        println!("filer {followed} followed, {hangs} hangs: seen after {took:?}");
        assert!(took < Duration::from_secs(10), "seen after {took:?}");
        cluster.filers()[hangs].thaw();
        drop(mount);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_volume_server_that_hangs_is_noticed_and_holds_nobody_for_long() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let content = Pattern::new(8).bytes(0, 3_000_000);
    for name in ["killed", "late", "well"] {
        filer.put(&format!("/frozen/{name}"), &content, "").unwrap();
    }
    let mut mount = Mount::builder(&cluster).args(["--read-retry-time", "4s"]).start().unwrap();
    for name in ["killed", "late", "well"] {
        fs::metadata(mount.file(&format!("/frozen/{name}"))).unwrap();
    }
    eventually("readiness", WAIT_TIMEOUT, || is_ready(&mount).ok()).unwrap();
    cluster.volume_servers()[0].freeze();
    let killed = hanging("cat", &mount.file("/frozen/killed"));
    let asked = Instant::now();
    let reason =
        eventually("a server that is seen to hang", WAIT_TIMEOUT, || is_ready(&mount).err()).unwrap();
    println!("noticed after {:?}: {reason}", asked.elapsed());
    assert!(reason.contains(&cluster.volume_servers()[0].address()), "{reason}");
    assert!(asked.elapsed() < Duration::from_secs(4), "noticed after {:?}", asked.elapsed());
    ends_at_once(killed);

    let file = File::open(mount.file("/frozen/late")).unwrap();
    let started = Instant::now();
    let error = file.read_exact_at(&mut [0; 4096], 0).unwrap_err();
    let took = started.elapsed();
    println!("{error} after {took:?}");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(took < Duration::from_secs(8), "EIO after {took:?}, where the limit is four seconds");
    let line = || {
        mount
            .log()
            .ok()?
            .lines()
            .any(|line| line.contains("read failed") && line.contains("/frozen/late"))
            .then_some(())
    };
    eventually("a line in the log", WAIT_TIMEOUT, line).unwrap();

    cluster.volume_servers()[0].thaw();
    eventually("readiness", WAIT_TIMEOUT, || is_ready(&mount).ok()).unwrap();
    reading::verify(&mount.file("/frozen/well"), &content);
    assert!(mount.is_running());
}
