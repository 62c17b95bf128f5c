//! Hot files that the kernel reads by itself: right bytes, no request, and never an EIO, even if
//! the file changes.
//!
//! The tests recognise a passthrough file from outside: its pages are dropped, it is opened as one
//! and read, and the daemon's counter of reads stays as it was. That counter alone says too little:
//! of a file that was read often, the daemon stores pages into the page cache after they were
//! dropped, and is not asked for them then either.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tests::{Cluster, Mount, Pattern, Shared, data, eventually, host, reading};

/// Longest wait for a file to become resident.
const PROMOTION_TIMEOUT: Duration = Duration::from_secs(30);

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

/// What the mount says that it goes without instead of passthrough, if so.
fn lost(mount: &Mount) -> Option<String> {
    let (_, status) = mount.status("/api/v1/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    let lost = status["lost"].as_array().unwrap();
    let found = lost.iter().find(|lost| lost["ability"] == "FUSE passthrough")?;
    Some(found["reason"].as_str().unwrap().to_owned())
}

/// A mount that passes reads through, unless this machine cannot, which the test then says.
fn mount(args: &[&str]) -> Option<Mount> {
    if !host::can_mount() {
        return None;
    }
    let mount = Mount::interceptor(&cluster().filer_addresses()).args(args).start().unwrap();
    if let Some(reason) = lost(&mount) {
        host::skipped(&reason);
        return None;
    }
    Some(mount)
}

fn reads(mount: &Mount) -> f64 {
    mount.metric("interceptor_reads_total", &[]).unwrap()
}

/// How often a file was opened for the kernel to read it by itself. A mount whose opens the kernel
/// does not tell counts none.
fn opens_passed_through(mount: &Mount) -> f64 {
    mount.metric("interceptor_opens_total", &["way=\"passthrough\""]).unwrap_or(0.0)
}

/// Reads a file whose pages were dropped; returns whether the daemon served any of it.
fn asks(mount: &Mount, path: &Path, expected: &[u8]) -> bool {
    reading::forget(path).unwrap();
    let before = reads(mount);
    data::assert_same(&path.display().to_string(), &fs::read(path).unwrap(), expected);
    reads(mount) > before
}

/// Reads the file again and again, until the kernel reads it by itself.
#[track_caller]
fn make_resident(mount: &Mount, path: &Path, expected: &[u8]) {
    let resident = || {
        let before = opens_passed_through(mount);
        (!asks(mount, path, expected) && opens_passed_through(mount) > before).then_some(())
    };
    if let Err(error) = eventually("passthrough", PROMOTION_TIMEOUT, resident) {
        panic!("{}: {error}\n{}", path.display(), mount.log().unwrap());
    }
}

/// A shared mapping of a whole file.
struct Mapping {
    start: std::ptr::NonNull<std::ffi::c_void>,
    len: usize,
}

impl Mapping {
    fn new(path: &Path) -> Mapping {
        let file = File::open(path).unwrap();
        let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let size = len.try_into().expect("a file with content");
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file.as_fd(), 0) };
        Mapping { start: start.unwrap(), len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped for reading as long as `self` lives; the file's bytes
        // never change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        unsafe { munmap(self.start, self.len) }.unwrap();
    }
}

/// Puts files of these sizes under `directory`, before the tree is mounted.
fn put(directory: &str, sizes: &[usize]) -> Vec<(String, Vec<u8>)> {
    let filer = cluster().filer();
    let file = |size: &usize| {
        let (name, content) = (format!("{directory}/{size}"), Pattern::new(*size as u64).bytes(0, *size));
        filer.put(&name, &content, "").unwrap();
        (name, content)
    };
    sizes.iter().map(file).collect()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_hot_file_is_read_without_the_daemon() {
    if !host::can_mount() {
        return;
    }
    let files = put("/hot", &[1, 4096, 100_001, 1 << 20, 5_300_003]);
    let Some(mount) = mount(&[]) else { return };
    for (name, content) in files {
        let path = mount.file(&name);
        reading::verify(&path, &content);
        make_resident(&mount, &path, &content);
        let before = reads(&mount);
        reading::verify(&path, &content);
        let mapping = Mapping::new(&path);
        data::assert_same("mapped", mapping.bytes(), &content);
        assert_eq!(reads(&mount), before, "{name}: the daemon was asked");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn with_and_without_the_bytes_are_the_same() {
    if !host::can_mount() {
        return;
    }
    let files = put("/both", &[0, 1, 4095, 65_537, 999_999, 3 << 20]);
    let Some(with) = mount(&[]) else { return };
    let without = Mount::interceptor(&cluster().filer_addresses()).arg("--no-passthrough").start().unwrap();
    without.log_with("--no-passthrough").unwrap();
    assert_eq!(lost(&without), None, "what the user does not want is not lost");
    for (name, content) in files {
        for _ in 0..3 {
            reading::verify(&with.file(&name), &content);
            reading::verify(&without.file(&name), &content);
        }
        if !content.is_empty() {
            make_resident(&with, &with.file(&name), &content);
            let asked = || asks(&without, &without.file(&name), &content).then_some(());
            eventually("a read that asks the daemon", PROMOTION_TIMEOUT, asked).unwrap();
            assert_eq!(opens_passed_through(&without), 0.0, "{name}: who read it?");
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_is_replaced_while_it_is_open_keeps_its_bytes() {
    let Some(mount) = mount(&[]) else { return };
    let filer = cluster().filer();
    let (old, new) = (Pattern::new(200).bytes(0, 700_000), Pattern::new(201).bytes(0, 800_000));
    filer.put("/replaced", &old, "").unwrap();
    let path = mount.file("/replaced");
    make_resident(&mount, &path, &old);
    let (handle, mapping) = (File::open(&path).unwrap(), Mapping::new(&path));
    filer.put("/replaced", &new, "").unwrap();
    let changed = || (fs::metadata(&path).unwrap().len() == new.len() as u64).then_some(());
    eventually("the change", Duration::from_secs(10), changed).unwrap();
    make_resident(&mount, &path, &new);
    for _ in 0..3 {
        let mut bytes = vec![0; old.len() + 1];
        let count = reading::read_full(&handle, &mut bytes, 0).unwrap();
        data::assert_same("the old handle", &bytes[..count], &old);
        data::assert_same("the old mapping", mapping.bytes(), &old);
        reading::verify(&path, &new);
    }
    drop(handle);
    data::assert_same("the old mapping alone", mapping.bytes(), &old);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_is_deleted_while_it_is_open_keeps_its_bytes() {
    let Some(mount) = mount(&[]) else { return };
    let filer = cluster().filer();
    let content = Pattern::new(300).bytes(0, 600_000);
    filer.put("/deleted", &content, "").unwrap();
    let path = mount.file("/deleted");
    make_resident(&mount, &path, &content);
    let (handle, mapping) = (File::open(&path).unwrap(), Mapping::new(&path));
    filer.delete("/deleted").unwrap();
    let gone = || File::open(&path).is_err().then_some(());
    eventually("the end of the name", Duration::from_secs(10), gone).unwrap();
    let before = reads(&mount);
    let mut bytes = vec![0; content.len()];
    reading::read_full(&handle, &mut bytes, 0).unwrap();
    data::assert_same("the handle", &bytes, &content);
    drop(handle);
    data::assert_same("the mapping", mapping.bytes(), &content);
    assert_eq!(reads(&mount), before, "the daemon was asked");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_handle_from_before_stays_good_and_decides_for_the_others() {
    let Some(mount) = mount(&[]) else { return };
    let filer = cluster().filer();
    let content = Pattern::new(400).bytes(0, 900_000);
    filer.put("/early", &content, "").unwrap();
    let path = mount.file("/early");
    let early = File::open(&path).unwrap();
    // As long as there is a handle through the page cache, every other goes the same way.
    for _ in 0..20 {
        asks(&mount, &path, &content);
        assert_eq!(opens_passed_through(&mount), 0.0);
        let mut bytes = vec![0; content.len()];
        reading::read_full(&early, &mut bytes, 0).unwrap();
        data::assert_same("the early handle", &bytes, &content);
    }
    drop(early);
    make_resident(&mount, &path, &content);
}

/// Four readers open, map, read and close files that take more than the cache, while some of them
/// are replaced. Handles overlap, files come and go.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn no_open_and_no_read_fails_while_files_come_and_go() {
    const FILES: u64 = 32;
    const ROUNDS: usize = 400;
    /// Opens of each kind that make the test worth while. Files become resident at the lowest
    /// priority, so a busy machine takes more rounds.
    const OPENS: f64 = 50.0;
    const WAIT_TIMEOUT: Duration = Duration::from_secs(120);
    let Some(mut mount) = mount(&["--cache-size", "32MiB"]) else { return };
    let filer = cluster().filer();
    // Each page of 4 KiB says of which file and version it is.
    let content = |file: u64, version: u64| {
        let mut bytes = Pattern::new(file).bytes(0, if file.is_multiple_of(2) { 2 << 20 } else { 200_000 });
        for page in bytes.chunks_mut(4096) {
            page[..8].copy_from_slice(&version.to_le_bytes());
        }
        bytes
    };
    let name = |file: u64| format!("/coming/{file}");
    (0..FILES).for_each(|file| filer.put(&name(file), &content(file, 0), "").unwrap());
    let check = |file: u64, bytes: &[u8]| {
        let version = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        data::assert_same(&format!("file {file}, version {version}"), bytes, &content(file, version));
    };
    let done = AtomicBool::new(false);
    let opens = AtomicUsize::new(0);
    let way = |way| mount.metric("interceptor_opens_total", &[&format!("way=\"{way}\"")]).unwrap();
    let begun = Instant::now();
    let enough = || ["cached", "passthrough"].into_iter().all(|name| way(name) > OPENS);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (mount, opens, check, name, enough) = (&mount, &opens, &check, &name, &enough);
                scope.spawn(move || {
                    let mut dice = StdRng::seed_from_u64(reader);
                    let mut held = Vec::new();
                    for round in 0.. {
                        if round % ROUNDS == 0 && round > 0 && (enough() || begun.elapsed() > WAIT_TIMEOUT) {
                            break;
                        }
                        // A few are asked for much more often than the others.
                        let among = if dice.random_bool(0.7) { 4 } else { FILES };
                        let file = dice.random_range(0..among);
                        let path = mount.file(&name(file));
                        opens.fetch_add(1, Ordering::Relaxed);
                        match dice.random_range(0..4) {
                            0 => check(file, Mapping::new(&path).bytes()),
                            1 => {
                                let handle = File::open(&path).unwrap();
                                let mut bytes = vec![0; 4096];
                                handle.read_exact_at(&mut bytes, 0).unwrap();
                                held.push((file, handle, Mapping::new(&path)));
                            }
                            _ => check(file, &fs::read(&path).unwrap()),
                        }
                        if held.len() > 3 {
                            let (file, handle, mapping) = held.swap_remove(dice.random_range(0..held.len()));
                            let mut bytes = vec![0; 2 << 20];
                            let count = reading::read_full(&handle, &mut bytes, 0).unwrap();
                            check(file, &bytes[..count]);
                            drop(handle);
                            check(file, mapping.bytes());
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut dice = StdRng::seed_from_u64(9);
            for version in 1.. {
                let before = opens.load(Ordering::Relaxed);
                let file = dice.random_range(0..FILES);
                filer.put(&name(file), &content(file, version), "").unwrap();
                // The pace is the readers'.
                let met = || (opens.load(Ordering::Relaxed) >= before + 20).then_some(());
                let _ = eventually("some opens", Duration::from_secs(1), met);
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let outcomes: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        done.store(true, Ordering::Relaxed);
        outcomes.into_iter().for_each(|outcome| outcome.unwrap());
    });
    let ways = ["cached", "passthrough"].map(|name| (name, way(name)));
    println!("opens: {ways:?}");
    assert!(ways.iter().all(|(_, opens)| *opens > OPENS), "hardly any open went one of the ways: {ways:?}");
    assert!(mount.is_running());
}

/// In a user namespace root has every capability and yet not this one.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_the_capability_the_page_cache_serves_and_the_mount_says_so() {
    if !host::can_mount() {
        return;
    }
    const UNSHARE: [&str; 4] = ["unshare", "--user", "--map-root-user", "--mount"];
    let possible = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return host::skipped("no user namespaces here");
    }
    let cluster = cluster();
    let content = Pattern::new(500).bytes(0, 300_000);
    cluster.filer().put("/plain", &content, "").unwrap();
    let mount = Mount::interceptor(&cluster.filer_addresses()).wrapped_in(UNSHARE).start().unwrap();
    let reason = lost(&mount).expect("something is lost");
    assert!(reason.contains("CAP_SYS_ADMIN"), "{reason}");
    let log = mount.log_with("FUSE passthrough").unwrap();
    assert!(log.contains("going without"), "{log}");
    // Only those within see the mount.
    let read = || {
        let target = format!("--target={}", mount.pid());
        let mut cat = Command::new("nsenter");
        let output =
            cat.args([&target, "--user", "--mount", "cat"]).arg(mount.file("/plain")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    data::assert_same("first", &read(), &content);
    let before = reads(&mount);
    assert!(before > 0.0);
    for _ in 0..5 {
        data::assert_same("again", &read(), &content);
    }
    assert_eq!(reads(&mount), before, "the page cache has it");
}
