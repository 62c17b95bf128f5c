//! The process that serves a mount is killed, and another one takes over: no program that uses the
//! mount sees an error or a wrong byte.
//!
//! `TAKEOVERS` sets how often a load survives it, `KNOWN_FILES` how many files are known at once;
//! without them there are few. Where the kernel cannot send requests again (before Linux 6.9),
//! those in flight may fail.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, Shared, eventually, host, reading};

/// How often the load survives the death of the daemon, unless `TAKEOVERS` says otherwise.
const TAKEOVERS: usize = 12;
const SMALL_FILES: u64 = 120;
const LARGE_SIZE: usize = 24 << 20;
/// How much the supervisor may grow, in KiB.
const MAX_SUPERVISOR_GROWTH: u64 = 4096;
/// A daemon that has served for longer than this may die as often as it likes.
const STABLE_AFTER: Duration = Duration::from_millis(1100);
/// Longest wait for another process to serve.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(30);

static CLUSTER: Shared<Cluster> = Shared::new();

fn large() -> Vec<u8> {
    Pattern::new(1 << 40).bytes(0, LARGE_SIZE)
}

fn small(number: u64) -> Vec<u8> {
    Pattern::new(number).bytes(0, 500 + number as usize * 321)
}

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| {
        let cluster = Cluster::builder().max_mb(2).start().unwrap();
        let filer = cluster.filer();
        filer.put("/data/large", &large(), "").unwrap();
        filer.put("/data/program", &fs::read("/bin/true").unwrap(), "mode=0755").unwrap();
        for number in 0..SMALL_FILES {
            filer.put(&format!("/data/small/{number}"), &small(number), "").unwrap();
        }
        cluster
    })
}

/// Waits until another process than `before` serves the mount.
fn await_successor(mount: &Mount, before: u32) -> u32 {
    let serves = || {
        let now = mount.pid();
        (now != before && now != mount.watcher()).then_some(now)
    };
    eventually("a successor", TAKEOVER_TIMEOUT, serves)
        .unwrap_or_else(|error| panic!("{error}\n{}", mount.log().unwrap()))
}

/// How many daemons have said that they took the mount over.
fn takeovers(mount: &Mount) -> usize {
    mount.log().unwrap().matches("took over the mount").count()
}

/// Waits until more daemons than `before` have taken over, and the last one has served for long
/// enough that its death is not counted as a failure.
fn await_stable(mount: &Mount, before: usize) {
    let more = || (takeovers(mount) > before).then_some(());
    eventually("a takeover", TAKEOVER_TIMEOUT, more)
        .unwrap_or_else(|error| panic!("{error}\n{}", mount.log().unwrap()));
    thread::sleep(STABLE_AFTER);
}

fn take_over(mount: &Mount) {
    let before = mount.pid();
    mount.kill_daemon().unwrap();
    await_successor(mount, before);
    statvfs(mount.path()).unwrap();
}

/// The number of the connection, by which the kernel has its controls.
fn waiting_requests(path: &Path) -> u64 {
    let device = nix::sys::stat::stat(path).unwrap().st_dev;
    let connection = format!("/sys/fs/fuse/connections/{}/waiting", nix::sys::stat::minor(device));
    fs::read_to_string(connection).map_or(0, |waiting| waiting.trim().parse().unwrap())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_open_goes_on() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    for options in [&[][..], &["--no-passthrough"], &["--no-ebpf", "--threads=1"]] {
        let mount = Mount::builder(&cluster).filer_path("/data").args(options).start().unwrap();
        let path = mount.file("/large");
        let mut file = File::open(&path).unwrap();
        let mut piece = vec![0; 1 << 20];
        file.read_exact(&mut piece).unwrap();
        assert!(piece == large()[..1 << 20]);
        let inode = file.metadata().unwrap().ino();
        let directory = File::open(mount.file("/small")).unwrap();
        let mut listing = fs::read_dir(mount.file("/small")).unwrap();
        let first = listing.next().unwrap().unwrap().file_name();

        take_over(&mount);
        reading::forget(&path).unwrap();
        file.read_exact(&mut piece).unwrap();
        assert!(piece == large()[1 << 20..2 << 20], "{options:?}");
        assert_eq!(file.metadata().unwrap().ino(), inode);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "the node is the same");
        let below = format!("/proc/self/fd/{}/7", std::os::fd::AsRawFd::as_raw_fd(&directory));
        assert!(fs::read(below).unwrap() == small(7), "an open directory is what it was");
        let mut names: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
        names.push(first);
        names.sort();
        let mut expected: Vec<_> =
            (0..SMALL_FILES).map(|number| std::ffi::OsString::from(number.to_string())).collect();
        expected.sort();
        assert_eq!(names, expected, "a listing that was half read has each name once");

        drop((file, directory));
        take_over(&mount);
        reading::verify(&path, &large());
        let log = mount.log().unwrap();
        assert_eq!(log.matches("another process takes over").count(), 2, "{log}");
        assert!(mount.stop().unwrap().success());
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_changes_meanwhile_is_seen() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let put = |name: &str, content: &[u8]| filer.put(&format!("/changes/{name}"), content, "").unwrap();
    let names = ["kept", "replaced", "deleted", "grown"];
    names.iter().for_each(|name| put(name, name.repeat(1000).as_bytes()));
    let mount = Mount::builder(&cluster).filer_path("/changes").start().unwrap();
    for name in names {
        assert_eq!(fs::read_to_string(mount.file(name)).unwrap(), name.repeat(1000));
    }
    assert!(fs::metadata(mount.file("absent")).is_err());
    assert!(!mount.path().join("absent").exists());
    let open = File::open(mount.file("replaced")).unwrap();

    // The supervisor sleeps, so that the changes come while no daemon serves.
    kill(Pid::from_raw(mount.watcher().cast_signed()), Signal::SIGSTOP).unwrap();
    let before = mount.pid();
    mount.kill_daemon().unwrap();
    put("replaced", b"other");
    put("absent", b"there now");
    filer.append("/changes/grown", b" and more", "").unwrap();
    filer.delete("/changes/deleted").unwrap();
    kill(Pid::from_raw(mount.watcher().cast_signed()), Signal::SIGCONT).unwrap();
    await_successor(&mount, before);

    let content = |name: &str| fs::read_to_string(mount.file(name)).ok();
    let grown = format!("{} and more", "grown".repeat(1000));
    for (name, expected) in [
        ("kept", Some("kept".repeat(1000))),
        ("replaced", Some("other".into())),
        ("deleted", None),
        ("grown", Some(grown)),
        ("absent", Some("there now".into())),
    ] {
        let seen = || (content(name) == expected).then_some(());
        eventually(name, Duration::from_secs(10), seen)
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", content(name), mount.log().unwrap()));
    }
    let mut listed: Vec<_> =
        fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    listed.sort();
    assert_eq!(listed, ["absent", "grown", "kept", "replaced"]);
    // The chunks of the old version may be gone by now; other bytes than its own never come.
    let mut old = vec![0; 8000];
    match open.read_at(&mut old, 0) {
        Ok(len) => assert_eq!(&old[..len], "replaced".repeat(1000).as_bytes()),
        Err(error) => assert!([libc::EIO, libc::ESTALE].contains(&error.raw_os_error().unwrap()), "{error}"),
    }
}

/// The child of a process that is not `before`, once there is one.
fn await_child(parent: u32, before: Option<u32>) -> Option<u32> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let other = || {
        let children = fs::read_to_string(&children).unwrap_or_default();
        let mut found = children.split_whitespace().map(|child| child.parse::<u32>().unwrap());
        found.find(|child| Some(*child) != before)
    };
    eventually("a child", TAKEOVER_TIMEOUT, other).ok()
}

fn kill_process(process: u32) {
    // It may have ended by itself.
    let _ = kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL);
}

/// Successors die at one moment after another, from the fork until they serve: while they are told
/// what there is, while they take it over, while they send requests again.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_that_dies_in_mid_takeover_is_followed_by_another() {
    const STEP: Duration = Duration::from_millis(16);
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mut mount = Mount::builder(&cluster).filer_path("/data").start().unwrap();
    let path = mount.file("/large");
    let file = File::open(&path).unwrap();
    let (mut died_early, mut step) = (0, 0);
    // Until three in a row have served before they were killed.
    let mut served_in_a_row = 0;
    while served_in_a_row < 3 {
        let (before, served) = (mount.pid(), takeovers(&mount));
        mount.kill_daemon().unwrap();
        let successor = await_child(mount.watcher(), Some(before)).unwrap();
        thread::sleep(STEP * step);
        kill_process(successor);
        let served_now = takeovers(&mount);
        let has_served = served_now > served;
        served_in_a_row = if has_served { served_in_a_row + 1 } else { 0 };
        died_early += u32::from(!has_served);

        // In flight, or sent to the next one.
        let mut piece = vec![0; 100_000];
        let at = 1_000_003 * u64::from(step) % (LARGE_SIZE as u64 - 100_000);
        file.read_exact_at(&mut piece, at).unwrap();
        assert!(piece == large()[at as usize..at as usize + 100_000], "step {step}");
        let number = u64::from(step) % SMALL_FILES;
        assert!(fs::read(mount.file(&format!("/small/{number}"))).unwrap() == small(number), "step {step}");
        reading::forget(&path).unwrap();
        await_stable(&mount, served_now);
        step += 1;
    }
    println!("{died_early} of {step} successors died before they served");
    assert!(died_early >= 3, "{died_early} of {step}");
    assert!(mount.is_running());
    assert!(mount.stop().unwrap().success());
}

/// The first daemon dies at one moment after another. Nothing has used the mount so far, so it may
/// be given up, but not be left dead.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_that_dies_at_the_start_leaves_a_mount_or_none() {
    const STEP: Duration = Duration::from_millis(6);
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let directory = tempfile::tempdir().unwrap();
    let mount_point = directory.path().join("mnt");
    fs::create_dir(&mount_point).unwrap();
    let below = fs::metadata(&mount_point).unwrap().dev();
    fs::write(directory.path().join("security.toml"), "").unwrap();
    let (mut step, mut given_up, mut mounted) = (0, 0, 0);
    while mounted < 3 {
        let log = directory.path().join(format!("log-{step}"));
        let mut command = Command::new(tests::mount::interceptor_program().unwrap());
        command.args(["mount", "--filer", &cluster.filer_addresses(), "--filer-path=/data"]);
        command.args(["--status-addr=none"]).arg(&mount_point).current_dir(directory.path());
        command.stdout(File::create(&log).unwrap()).stderr(File::options().append(true).open(&log).unwrap());
        let mut supervisor = command.spawn().unwrap();
        if let Some(worker) = await_child(supervisor.id(), None) {
            thread::sleep(STEP * step);
            kill_process(worker);
        }
        // Either another one has taken over and says so, or the supervisor ends.
        let said = || fs::read_to_string(&log).unwrap();
        let outcome = || {
            let ended = supervisor.try_wait().unwrap();
            let is_mounted = said().contains("took over the mount");
            (ended.is_some() || is_mounted).then_some(ended)
        };
        let ended = eventually("an end", TAKEOVER_TIMEOUT, outcome)
            .unwrap_or_else(|error| panic!("step {step}: {error}\n{}", said()));
        if let Some(ended) = ended {
            given_up += 1;
            assert!(!ended.success() && said().contains("ERROR"), "step {step}: {ended} {}", said());
        } else {
            mounted += 1;
            assert!(fs::read(mount_point.join("small/5")).unwrap() == small(5), "step {step}");
            kill(Pid::from_raw(supervisor.id().cast_signed()), Signal::SIGTERM).unwrap();
            assert!(supervisor.wait().unwrap().success(), "step {step}: {}", said());
        }
        assert_eq!(fs::metadata(&mount_point).unwrap().dev(), below, "step {step}: {}", said());
        step += 1;
    }
    println!("{given_up} of {step} mounts were given up");
    assert!(given_up >= 2, "{given_up} of {step}");
}

/// What a process holds: how many descriptors, and how much memory in KiB.
fn held(process: u32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (descriptors, memory.trim().trim_end_matches(" kB").parse().unwrap())
}

/// One kind of use of the mount. It panics at an error or a wrong byte.
type Use = fn(&Path, &mut StdRng);

fn read_in_sequence(root: &Path, _: &mut StdRng) {
    let (mut file, expected, mut piece) =
        (File::open(root.join("large")).unwrap(), large(), vec![0; 777_777]);
    let mut at = 0;
    loop {
        let len = file.read(&mut piece).unwrap();
        assert!(piece[..len] == expected[at..at + len], "wrong bytes at {at}");
        at += len;
        if len == 0 {
            break;
        }
    }
    assert_eq!(at, LARGE_SIZE);
    reading::forget(&root.join("large")).unwrap();
}

fn read_at_random(root: &Path, dice: &mut StdRng) {
    reading::random(&root.join("large"), &large(), dice.random(), 40);
}

fn read_directly(root: &Path, dice: &mut StdRng) {
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(root.join("large")).unwrap();
    let at = dice.random_range(0..LARGE_SIZE / 4096 - 16) * 4096;
    let layout = std::alloc::Layout::from_size_align(65536, 4096).unwrap();
    // SAFETY: the layout is not empty, and the memory is freed below, after its last use.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    // SAFETY: the memory was just made, of this size, and zeroed.
    let piece = unsafe { std::slice::from_raw_parts_mut(memory, 65536) };
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    let len = file.read(piece).unwrap();
    assert!(piece[..len] == large()[at..at + len], "wrong bytes at {at}");
    // SAFETY: made above with the same layout.
    unsafe { std::alloc::dealloc(memory, layout) };
}

fn read_small_files(root: &Path, dice: &mut StdRng) {
    for _ in 0..20 {
        let number = dice.random_range(0..SMALL_FILES);
        let path = root.join(format!("small/{number}"));
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        assert!(bytes == small(number), "{path:?} has other bytes");
        reading::forget(&path).unwrap();
    }
}

fn list(root: &Path, _: &mut StdRng) {
    let entries = fs::read_dir(root.join("small")).unwrap();
    let sizes = entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum::<u64>();
    assert_eq!(sizes, (0..SMALL_FILES).map(|number| small(number).len() as u64).sum::<u64>());
}

fn look(root: &Path, dice: &mut StdRng) {
    let number = dice.random_range(0..SMALL_FILES * 2);
    match fs::metadata(root.join(format!("small/{number}"))) {
        Ok(found) => assert_eq!(found.len(), small(number).len() as u64),
        Err(error) => {
            assert!(number >= SMALL_FILES && error.raw_os_error() == Some(libc::ENOENT), "{number}: {error}");
        }
    }
}

fn execute(root: &Path, _: &mut StdRng) {
    assert!(Command::new(root.join("program")).status().unwrap().success());
}

fn map(root: &Path, dice: &mut StdRng) {
    let bytes = reading::mapped(&root.join("large")).unwrap();
    let at = dice.random_range(0..LARGE_SIZE - 9999);
    assert!(bytes[at..at + 9999] == large()[at..at + 9999]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_load_goes_on_however_often_the_daemon_is_killed() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mut mount =
        Mount::builder(&cluster).filer_path("/data").args(["--cache-size=96MiB"]).start().unwrap();
    let takeovers =
        std::env::var("TAKEOVERS").map_or(TAKEOVERS, |times| times.parse().expect("TAKEOVERS is a number"));
    let stop = AtomicBool::new(false);
    let uses: [(&str, Use); 11] = [
        ("sequential reads", read_in_sequence),
        ("random reads", read_at_random),
        ("direct reads", read_directly),
        ("small files", read_small_files),
        ("listings", list),
        ("listings", list),
        ("listings", list),
        ("listings", list),
        ("stat", look),
        ("programs", execute),
        ("mapped reads", map),
    ];
    let counts: Vec<_> = uses.iter().map(|_| AtomicU64::new(0)).collect();
    let pauses = Mutex::new(Vec::new());
    let held_before = held(mount.watcher());
    thread::scope(|scope| {
        let (stop, root, mount) = (&stop, mount.path(), &mount);
        let _stopped = StopAtEnd(stop);
        for (seed, ((_, action), count)) in uses.iter().zip(&counts).enumerate() {
            scope.spawn(move || {
                let _stopped = StopAtEnd(stop);
                let mut dice = StdRng::seed_from_u64(seed as u64);
                while !stop.load(Ordering::Relaxed) {
                    action(root, &mut dice);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut dice = StdRng::seed_from_u64(99);
        for _ in 0..takeovers {
            thread::sleep(Duration::from_millis(dice.random_range(0..2500)));
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let before = mount.pid();
            let killed = Instant::now();
            // It may have died in mid-takeover, before it was seen.
            if mount.kill_daemon().is_err() {
                continue;
            }
            // Each of these is a request.
            statvfs(root).unwrap();
            pauses.lock().unwrap().push(killed.elapsed());
            await_successor(mount, before);
        }
    });
    let mut pauses = pauses.into_inner().unwrap();
    pauses.sort_unstable();
    let counts: Vec<_> =
        uses.iter().zip(&counts).map(|((name, _), count)| format!("{name} {count:?}")).collect();
    let at = |share: f64| pauses[((pauses.len() - 1) as f64 * share) as usize];
    println!(
        "{} takeovers; pause p50 {:?}, p99 {:?}, longest {:?}; {}",
        pauses.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        counts.join(", ")
    );
    assert!(mount.is_running());
    assert!(pauses.len() >= takeovers / 2, "{pauses:?}");
    let held_after = held(mount.watcher());
    println!("descriptors and KiB of the supervisor: {held_before:?} before, {held_after:?} after");
    assert_eq!(held_before.0, held_after.0, "descriptors of the supervisor");
    assert!(held_after.1 < held_before.1 + MAX_SUPERVISOR_GROWTH, "memory of the supervisor");
    eventually("the end of all requests", TAKEOVER_TIMEOUT, || {
        (waiting_requests(mount.path()) == 0).then_some(())
    })
    .unwrap();
    assert!(mount.stop().unwrap().success());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn many_known_files_and_open_handles_are_taken_over() {
    const HANDLES: usize = 1000;
    const IN_A_DIRECTORY: usize = 1000;
    if !host::can_mount() {
        return;
    }
    let files = std::env::var("KNOWN_FILES").map_or(4000, |files| files.parse().expect("a number"));
    let name = |number: usize| format!("/known/{}/{number}", number / IN_A_DIRECTORY);
    let content = |number: usize| format!("content of file {number}");
    let cluster = Cluster::builder().inline_below(4096).start().unwrap();
    thread::scope(|scope| {
        for worker in 0..4 {
            let filer = cluster.filer();
            scope.spawn(move || {
                for number in (worker..files).step_by(4) {
                    filer.put(&name(number), content(number).as_bytes(), "").unwrap();
                }
            });
        }
    });
    let mount = Mount::builder(&cluster).start().unwrap();
    let inodes = || -> Vec<u64> {
        (0..files).map(|number| fs::metadata(mount.file(&name(number))).unwrap().ino()).collect()
    };
    let before = inodes();
    let open: Vec<_> = (0..HANDLES.min(files))
        .map(|number| (number, File::open(mount.file(&name(number))).unwrap()))
        .collect();
    let mut pauses = Vec::new();
    for served in 0..3 {
        let daemon = mount.pid();
        let killed = Instant::now();
        mount.kill_daemon().unwrap();
        statvfs(mount.path()).unwrap();
        pauses.push(killed.elapsed());
        await_successor(&mount, daemon);
        await_stable(&mount, served);
    }
    pauses.sort_unstable();
    println!("{files} known files and {} open ones: pauses {pauses:?}", open.len());
    for (number, file) in &open {
        let mut bytes = vec![0; 100];
        let len = file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..len], *content(*number).as_bytes());
    }
    assert!(inodes() == before, "the nodes are the same");
    assert!(mount.stop().unwrap().success());
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_that_cannot_begin_is_tried_again_until_it_can() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/file", &small(5), "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path: PathBuf = mount.file("/file");
    assert!(fs::read(&path).unwrap() == small(5));
    cluster.filers()[0].freeze();
    mount.kill_daemon().unwrap();
    let reader = thread::spawn(move || {
        reading::forget(&path).unwrap();
        fs::read(&path).unwrap()
    });
    mount.log_with("another process takes over").unwrap();
    cluster.filers()[0].thaw();
    assert!(reader.join().unwrap() == small(5));
}

/// Whether the thread of this name of a process waits in the kernel, where no signal reaches it.
fn is_stuck(process: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let read =
        |thread: &fs::DirEntry, file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
    threads
        .filter(|thread| read(thread, "comm").trim() == name)
        .any(|thread| read(&thread, "stat").rsplit(')').next().is_some_and(|rest| rest.starts_with(" D")))
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn threads_that_are_stuck_are_not_waited_for() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    for number in 0..3 {
        cluster.filer().put(&format!("/dir/{number}"), &small(number), "").unwrap();
    }
    let mut mount = Mount::builder(&cluster).start().unwrap();
    for number in 0..3 {
        assert!(fs::metadata(mount.file(&format!("/dir/{number}"))).is_ok());
    }
    // A lookup holds the lock of the directory for as long as the filer does not answer. When the
    // filer counts as lost, names in the directory are dropped, which takes the lock.
    cluster.filers()[0].freeze();
    let absent = mount.file("/dir/absent");
    let looking = thread::spawn(move || fs::metadata(absent));
    let daemon = mount.pid();
    eventually("a stuck thread", TAKEOVER_TIMEOUT, || is_stuck(daemon, "invalidate").then_some(())).unwrap();
    mount.kill_daemon().unwrap();
    mount.log_with("not waiting for them").unwrap();
    cluster.filers()[0].thaw();
    let found = looking.join().unwrap().unwrap_err();
    assert!([libc::ENOENT, libc::EIO].contains(&found.raw_os_error().unwrap()), "{found}");
    assert!(fs::read(mount.file("/dir/2")).unwrap() == small(2));
    // What was stuck has ended.
    let ended = || (!Path::new(&format!("/proc/{daemon}")).exists()).then_some(());
    eventually("the end of the first daemon", TAKEOVER_TIMEOUT, ended).unwrap();
    assert!(mount.is_running());
    assert!(mount.stop().unwrap().success());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_signal_ends_it_also_between_two_daemons() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mut mount = Mount::builder(&cluster).filer_path("/data").start().unwrap();
    let below = fs::metadata(mount.path().parent().unwrap()).unwrap().dev();
    assert_ne!(fs::metadata(mount.path()).unwrap().dev(), below);
    mount.kill_daemon().unwrap();
    mount.signal(Signal::SIGTERM);
    assert!(mount.wait().unwrap().success());
    assert_eq!(fs::metadata(mount.path()).unwrap().dev(), below, "nothing is left");
}

/// Runs `interceptor mount --restart` with these options. Returns the exit code and what it said.
fn restart(program: &Path, mount_point: &Path, options: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program);
    command.args(["mount", "--restart"]).args(options).arg(mount_point);
    let output = command.current_dir(mount_point.parent().unwrap()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

fn option_in_effect(mount: &Mount, name: &str) -> String {
    let (_, status) = mount.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["options"][name].as_str().unwrap_or_else(|| panic!("{name}: {status}")).to_owned()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn another_program_with_other_options_takes_over() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filers = cluster.filer_addresses();
    let mut mount =
        Mount::builder(&cluster).filer_path("/data").args(["--cache-size=64MiB"]).start().unwrap();
    let (started, served) = (mount.watcher(), mount.pid());
    // A newer version has another place, or takes that of the old one.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("interceptor");
    fs::copy(tests::mount::interceptor_program().unwrap(), &program).unwrap();
    let mut open = File::open(mount.file("/large")).unwrap();
    let common = ["--filer", &filers, "--filer-path", "/data", "--status-addr", "127.0.0.1:0"];
    let with = |options: &[&'static str]| -> Vec<String> {
        common.iter().copied().chain(options.iter().copied()).map(str::to_owned).collect()
    };
    let mount_point = mount.path().to_owned();
    let run = |options: Vec<String>| {
        restart(&program, &mount_point, &options.iter().map(String::as_str).collect::<Vec<_>>())
    };

    for (options, word) in [
        (vec!["--filer", &filers, "--filer-path=/data/small"], "--filer-path, which is /data"),
        (vec!["--filer", "127.0.0.1:1", "--filer-path=/data"], "another cluster"),
        (vec!["--filer", &filers, "--filer-path=/data", "--noexec"], "--noexec, which is off"),
        (vec!["--filer", &filers, "--filer-path=/data", "--uid=5"], "--uid, which is unset"),
        (vec!["--filer", &filers, "--filer-path=/data", "--cache-size=1"], "too small"),
        (vec!["--filer", &filers, "--filer-path=/data", "--security=/none"], "security.toml"),
        (vec!["--filer", &filers, "--filer-path=/data", "--fsname=other"], "--fsname, which is "),
    ] {
        let (code, said) = run(options.iter().map(|option| (*option).to_owned()).collect());
        assert!(code.is_some_and(|code| code != 0) && said.contains(word), "{options:?}: {code:?} {said}");
    }
    assert_eq!(mount.pid(), served, "it goes on as it was");

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stopped = StopAtEnd(&stop);
        for (seed, action) in [read_in_sequence as Use, read_small_files, list].into_iter().enumerate() {
            let (stop, root) = (&stop, mount.path());
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed as u64);
                while !stop.load(Ordering::Relaxed) {
                    action(root, &mut dice);
                }
            });
        }
        for (size, threads) in [("96MiB", "3"), ("80MiB", "2")] {
            let options =
                with(&[]).into_iter().chain([format!("--cache-size={size}"), format!("--threads={threads}")]);
            let before = mount.pid();
            let (code, said) = run(options.collect());
            assert!(
                code == Some(0) && said.contains("restarted /"),
                "{code:?} {said}\n{}",
                mount.log().unwrap()
            );
            await_successor(&mount, before);
            assert_eq!(option_in_effect(&mount, "threads"), threads);
        }
    });
    assert_eq!(mount.watcher(), started);
    let executed = fs::read_link(format!("/proc/{started}/exe")).unwrap();
    assert_eq!(executed, program, "the supervisor is the new program as well");
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == large());
    drop(open);
    take_over(&mount);
    reading::verify(&mount.file("/large"), &large());

    mount.signal(Signal::SIGTERM);
    assert!(mount.wait().unwrap().success());
    let (code, said) = run(with(&[]));
    assert!(code == Some(1) && said.contains("leave out --restart"), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_program_that_does_not_serve_gives_the_mount_back() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filers = cluster.filer_addresses();
    let mut mount = Mount::builder(&cluster).filer_path("/data").args(["--threads=3"]).start().unwrap();
    let mut open = File::open(mount.file("/large")).unwrap();
    let (started, before) = (mount.watcher(), mount.pid());
    // Only the process that serves finds out that this host has no such address.
    let options = ["--filer", &filers, "--filer-path=/data", "--threads=2", "--status-addr=192.0.2.1:9650"];
    let program = tests::mount::interceptor_program().unwrap();
    let (code, said) = restart(&program, mount.path(), &options);
    assert!(
        code == Some(1) && said.contains("does not serve") && said.contains("goes on"),
        "{code:?} {said}"
    );
    await_successor(&mount, before);
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == large());
    let threads = || mount.status("/api/v1/status").is_ok().then(|| option_in_effect(&mount, "threads"));
    assert_eq!(eventually("the status API", TAKEOVER_TIMEOUT, threads).unwrap(), "3");
    assert_eq!(mount.watcher(), started);
    mount.signal(Signal::SIGTERM);
    assert!(mount.wait().unwrap().success());
}
