//! One layer takes over from another: programs do not notice, and if the takeover fails, the old
//! layer stays.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::readers::{content, put_files, read_under};
use tests::{Cluster, Layer, Mount, eventually, host};

const NO_OPTIONS: [&str; 0] = [];

/// How many mounts the kernel knows at `path`.
fn mounts_at(path: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4) == path.to_str()).count()
}

/// Waits for an orderly end.
fn await_end(mut old: Process) {
    let status = old.wait(Duration::from_secs(30)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", old.log_tail());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn programs_read_on_while_one_takes_over_from_another() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    read_under(&path, || {
        for _ in 0..3 {
            let open = File::open(path.join("file-0")).unwrap();
            let mut written = File::create(path.join("written")).unwrap();
            written.write_all(b"before ").unwrap();
            let mut old = layer.restart(NO_OPTIONS).unwrap();
            assert_eq!(mounts_at(&path), 2, "the mount below and the new layer");
            assert_eq!(old.exited(), None, "files are open");
            let mut bytes = vec![0; 100_000];
            open.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == content(0));
            written.write_all(b"after").unwrap();
            assert_eq!(fs::read(path.join("written")).unwrap(), b"before after");
            drop((open, written));
            await_end(old);
        }
    });
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    assert_eq!(mounts_at(&path), 1);
    assert!(fs::read(path.join("file-1")).unwrap() == content(1));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_cluster_is_read_from_while_one_takes_over_from_another() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let below = Mount::weed(&cluster).start().unwrap();
    let path = below.path();
    put_files(path);
    let options = ["--filer", &cluster.filer_addresses()];
    let mut layer = Layer::over(path, options).unwrap();
    read_under(path, || {
        for _ in 0..2 {
            await_end(layer.restart(options).unwrap());
        }
    });
    // The one that came last reads from the cluster as the first did.
    let accelerated = || {
        let file = File::open(path.join("file-0")).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut bytes = vec![0; content(0).len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(0));
        let page = layer.status_page();
        let read = |source| page.metric("interceptor_read_bytes_total", &[source]).unwrap();
        (read("source=\"http\"") + read("source=\"cache\"") > 0.0).then_some(())
    };
    eventually("reads from the cluster", Duration::from_secs(20), accelerated).unwrap();
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    assert_eq!(mounts_at(path), 1);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_open_with_the_old_one_is_served_for_its_grace() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    let mut layer = Layer::over(&path, ["--grace", "1s"]).unwrap();
    let open = File::open(path.join("file-0")).unwrap();
    let old = layer.restart(NO_OPTIONS).unwrap();
    await_end(old);
    // Asked for itself, since the pages may still be there.
    let error = open.sync_all().unwrap_err();
    let ended = [libc::ENOTCONN, libc::ECONNABORTED].map(Some);
    assert!(ended.contains(&error.raw_os_error()), "{error}");
    assert!(fs::read(path.join("file-0")).unwrap() == content(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_status_api_moves_along() {
    let Some(disk) = host::disk() else { return };
    let mut layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    let address = layer.status_address().to_owned();
    let open = File::open(disk.path()).unwrap();
    let mut old = layer.restart(["--status-addr", &address]).unwrap();
    assert_eq!(old.exited(), None, "a directory is open");
    assert_eq!(layer.status_address(), address);
    layer.status_page().metric("interceptor_nodes", &[]).unwrap();
    drop(open);
    await_end(old);
    // Without being asked to, a successor takes the port that was free.
    let old = layer.restart(NO_OPTIONS).unwrap();
    assert_eq!(layer.status_address(), address);
    await_end(old);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_default_status_address_that_is_taken_is_no_obstacle() {
    let Some(disk) = host::disk() else { return };
    // If another program has it, it is taken as well.
    let _taken = TcpListener::bind("127.0.0.1:9650");
    // Leaves out the address that layers of tests are started with.
    let as_typed = ["sh", "-c", r#"shift 3; exec "$0" attach "$@""#];
    let mut layer = Layer::started_by(&as_typed, &disk.path(), NO_OPTIONS).unwrap();
    layer.status_page().metric("interceptor_nodes", &[]).unwrap();
    let address = layer.status_address().to_owned();
    // The path leads to it, although nothing of it is kept in memory.
    let mut status = Command::new(interceptor_program().unwrap());
    let status = status.arg("status").arg(disk.path()).output().unwrap();
    assert!(status.status.success(), "{status:?}");
    let old = layer.restart(NO_OPTIONS).unwrap();
    assert_eq!(layer.status_address(), address);
    await_end(old);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn one_that_cannot_start_leaves_the_other() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    read_under(&path, || {
        // A filer that is not there, and an address that is not this host's.
        for wrong in [["--filer", "127.0.0.1:9"], ["--status-addr", "192.0.2.1:1"]] {
            let error = format!("{:#}", layer.restart(wrong).unwrap_err());
            assert!(error.contains("ended early"), "{error}");
            assert!(!error.contains("panicked"), "{error}");
            assert_eq!(mounts_at(&path), 2);
        }
        // Something is mounted in the path: that would go with the old layer.
        fs::create_dir(path.join("inner")).unwrap();
        let inner = path.join("inner");
        mount(Some("tmpfs"), &inner, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let error = format!("{:#}", layer.restart(NO_OPTIONS).unwrap_err());
        assert!(error.contains("would be covered"), "{error}");
        umount2(&inner, MntFlags::empty()).unwrap();
    });
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    assert_eq!(mounts_at(&path), 1);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn with_nothing_attached_there_is_nothing_to_take_over_from() {
    let Some(disk) = host::disk() else { return };
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    for path in [disk.path(), home.path().to_owned()] {
        let mut command = Command::new(interceptor_program().unwrap());
        command.args(["attach", "--restart", "--status-addr", "none"]).arg(&path);
        let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
        assert_eq!(process.wait(Duration::from_secs(30)).unwrap().code(), Some(1));
        let said = fs::read_to_string(&log).unwrap();
        let expected = format!("nothing is attached at {}; leave out --restart", path.display());
        assert!(said.contains(&expected), "{said}");
    }
    assert_eq!(mounts_at(&disk.path()), 1);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_watcher_takes_only_its_own_layer_away() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let open = File::open(path.join("file-0")).unwrap();
    let daemon = layer.daemon().unwrap();
    let mut old = layer.restart(NO_OPTIONS).unwrap();
    // The old one is killed while it serves what is open: the new one stays.
    kill(daemon, Signal::SIGKILL).unwrap();
    assert_eq!(old.wait(Duration::from_secs(10)).unwrap().code(), Some(1));
    assert!(Layer::is_at(&path));
    assert!(fs::read(path.join("file-0")).unwrap() == content(0));
    drop(open);
    // The new one is killed: the mount below is back.
    layer.kill_daemon().unwrap();
    assert_eq!(layer.wait().unwrap().code(), Some(1));
    assert_eq!(mounts_at(&path), 1);
    assert!(fs::read(path.join("file-0")).unwrap() == content(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_dead_layer_can_be_replaced() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    // Both processes are killed, and the one that watches has no time to see it.
    let (daemon, watcher) = (layer.daemon().unwrap(), Pid::from_raw(layer.watcher().cast_signed()));
    kill(watcher, Signal::SIGSTOP).unwrap();
    kill(daemon, Signal::SIGKILL).unwrap();
    kill(watcher, Signal::SIGKILL).unwrap();
    let dead = || fs::read(path.join("file-0")).err();
    let error = eventually("the end of the daemon", Duration::from_secs(10), dead).unwrap();
    assert!(error.raw_os_error().is_some());
    layer.restart(NO_OPTIONS).unwrap();
    assert_eq!(mounts_at(&path), 2);
    assert!(fs::read(path.join("file-0")).unwrap() == content(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn other_namespaces_come_along() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    mount(None::<&str>, &path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    thread::scope(|scope| {
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let place = &path;
        // A container that has the path and follows what happens to it.
        scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
            tell.send(0).unwrap();
            for () in asked {
                assert!(fs::read(place.join("file-3")).unwrap() == content(3));
                let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                tell.send(table.lines().filter(|line| line.split(' ').nth(4) == place.to_str()).count())
                    .unwrap();
            }
        });
        told.recv().unwrap();
        let mounts = || {
            ask.send(()).unwrap();
            told.recv().unwrap()
        };
        assert_eq!(mounts(), 2);
        await_end(layer.restart(NO_OPTIONS).unwrap());
        assert_eq!(mounts(), 2);
        assert_eq!(layer.detach().unwrap().code(), Some(0));
        assert_eq!(mounts(), 1);
        drop(ask);
    });
}
