//! Files that grow while they are followed: a follower gets each byte once and right, whichever
//! way the kernel reads.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, Shared, data, eventually, host};

/// Longest wait for what is appended to be seen, on a machine that is busy.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

/// The ways in which a mount may have a file read.
const READ_PATHS: [(&str, &[&str]); 2] = [("passthrough", &[]), ("page-cache", &["--no-passthrough"])];

fn mount(args: &[&str]) -> Mount {
    let mount = Mount::interceptor(&cluster().filer_addresses()).args(args).start().unwrap();
    // A rename without an event to the mount looks like the end of the file.
    mount.log_with("the filer's events arrive").unwrap();
    mount
}

/// A `tail` that runs until it is dropped, and what it prints.
struct TailProgram {
    child: Child,
    output: PathBuf,
}

impl TailProgram {
    fn start(directory: &Path, how: &str, path: &Path) -> TailProgram {
        let output = directory.join(format!("tail{how}"));
        let child = Command::new("tail")
            .args(["-n", "+1", "-s", "0.1", how])
            .arg(path)
            .stdout(File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        TailProgram { child, output }
    }

    #[track_caller]
    fn prints(&self, expected: &[u8]) {
        let printed = || fs::read(&self.output).unwrap();
        let is_there = || (printed().len() >= expected.len()).then_some(());
        let waited = eventually("tail", APPEND_TIMEOUT, is_there);
        data::assert_same(&format!("{}: {waited:?}", self.output.display()), &printed(), expected);
    }
}

impl Drop for TailProgram {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a file until the kernel reads it by itself.
fn make_resident(mount: &Mount, path: &Path) {
    let opens = || mount.metric("interceptor_opens_total", &["way=\"passthrough\""]).unwrap_or(0.0);
    let resident = || {
        let before = opens();
        fs::read(path).unwrap();
        (opens() > before).then_some(())
    };
    eventually("passthrough", APPEND_TIMEOUT, resident).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn tail_prints_each_append_once() {
    if !host::can_mount() {
        return;
    }
    for (way, args) in READ_PATHS {
        let filer = cluster().filer();
        let mount = mount(args);
        let can_pass_through = mount.log_with("hot files are read by the kernel itself").is_ok();
        for (name, size) in [("empty", 0), ("line", 7), ("page", 4096), ("large", 3_000_001)] {
            let (directory, path) = (tempfile::tempdir().unwrap(), format!("/tail-{way}/{name}"));
            let mut expected = Pattern::new(size as u64 + 1).bytes(0, size);
            filer.put(&path, &expected, "").unwrap();
            let file = mount.file(&path);
            eventually("the file", APPEND_TIMEOUT, || file.exists().then_some(())).unwrap();
            let inode = fs::metadata(&file).unwrap().ino();
            if size > 0 && way == "passthrough" && can_pass_through {
                make_resident(&mount, &file);
            }
            let tails = ["-f", "-F"].map(|how| TailProgram::start(directory.path(), how, &file));
            tails.iter().for_each(|tail| tail.prints(&expected));
            for more in [1, 100, 4096, 70_000, 5] {
                let more = Pattern::new(expected.len() as u64).bytes(0, more);
                filer.append(&path, &more, "").unwrap();
                expected.extend(more);
                tails.iter().for_each(|tail| tail.prints(&expected));
                assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "{path}: another file");
            }
            data::assert_same(&path, &fs::read(&file).unwrap(), &expected);
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn tail_prints_what_a_mount_appends() {
    if !host::can_mount() {
        return;
    }
    let writer = Mount::weed(&cluster()).start().unwrap();
    let mount = mount(&[]);
    let (directory, path) = (tempfile::tempdir().unwrap(), "/tail-mount/log");
    fs::create_dir(writer.file("/tail-mount")).unwrap();
    let mut expected = b"first\n".to_vec();
    fs::write(writer.file(path), &expected).unwrap();
    let file = mount.file(path);
    eventually("the file", APPEND_TIMEOUT, || {
        fs::read(&file).is_ok_and(|read| read == expected).then_some(())
    })
    .unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let tails = ["-f", "-F"].map(|how| TailProgram::start(directory.path(), how, &file));
    let mut log = File::options().append(true).open(writer.file(path)).unwrap();
    for size in [10, 5000, 1, 300_000, 77, 2_500_000] {
        let more = Pattern::new(size as u64).bytes(0, size);
        log.write_all(&more).unwrap();
        // Other clients do not see it before.
        log.sync_all().unwrap();
        expected.extend(more);
        tails.iter().for_each(|tail| tail.prints(&expected));
    }
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "another file");
    data::assert_same(path, &fs::read(&file).unwrap(), &expected);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn who_has_a_log_open_sees_what_comes_after_its_rotation() {
    if !host::can_mount() {
        return;
    }
    for (way, args) in READ_PATHS {
        let (filer, directory) = (cluster().filer(), format!("/rotated-{way}"));
        let (path, rotated) = (format!("{directory}/log"), format!("{directory}/log.1"));
        filer.put(&path, b"first", "").unwrap();
        let mount = mount(args);
        let file = File::open(mount.file(&path)).unwrap();
        assert_eq!(fs::read(mount.file(&path)).unwrap(), b"first");
        filer.rename(&path, &rotated).unwrap();
        filer.append(&rotated, b" and last", "").unwrap();
        // The new name is not looked up.
        let grown = || (file.metadata().unwrap().len() == 14).then_some(());
        eventually("the end of the old log", APPEND_TIMEOUT, grown).unwrap();
        let mut bytes = [0; 20];
        let read = file.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes[..read], b"first and last", "{way}");
    }
}

/// Reads near the end of an open file, as much as its size says that there is, until `over`.
fn read_ends(path: &Path, flags: i32, pattern: &Pattern, seed: u64, over: &AtomicBool) -> u64 {
    let file = File::options().read(true).custom_flags(flags).open(path).unwrap();
    let (mut random, mut reads, mut seen) = (StdRng::seed_from_u64(seed), 0, 0);
    while !over.load(Ordering::Relaxed) {
        let size = file.metadata().unwrap().len();
        assert!(size >= seen, "{size} after {seen}: it became shorter");
        seen = size;
        let most = [1, 100, 5000, 100_000][random.random_range(0..4)];
        let back = random.random_range(1..=size.min(most));
        let mut bytes = vec![0; random.random_range(1..=back as usize)];
        let offset = size - back;
        let read = file.read_at(&mut bytes, offset).unwrap();
        assert_eq!(read, bytes.len(), "at {offset} of {size}");
        data::assert_same(&format!("at {offset} of {size}"), &bytes, &pattern.bytes(offset, read));
        reads += 1;
    }
    reads
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn readers_of_the_end_never_see_what_is_not_there() {
    if !host::can_mount() {
        return;
    }
    const APPENDS: usize = 150;
    for (way, args) in READ_PATHS {
        let (filer, path, pattern) = (cluster().filer(), format!("/ends-{way}"), Pattern::new(7));
        let mut size = 10_000;
        filer.put(&path, &pattern.bytes(0, size), "").unwrap();
        let mount = mount(args);
        let file = mount.file(&path);
        let inode = fs::metadata(&file).unwrap().ino();
        if way == "passthrough" {
            make_resident(&mount, &file);
        }
        let held = File::open(&file).unwrap();
        let over = AtomicBool::new(false);
        let reads: Vec<u64> = thread::scope(|scope| {
            let readers: Vec<_> = [0, 0, libc::O_DIRECT, 0]
                .into_iter()
                .enumerate()
                .map(|(seed, flags)| {
                    let (file, pattern, over) = (&file, &pattern, &over);
                    scope.spawn(move || read_ends(file, flags, pattern, seed as u64, over))
                })
                .collect();
            let mut random = StdRng::seed_from_u64(size as u64);
            for _ in 0..APPENDS {
                let most = [10, 3000, 20_000][random.random_range(0..3)];
                let more = random.random_range(1..most);
                filer.append(&path, &pattern.bytes(size as u64, more), "").unwrap();
                size += more;
                if readers.iter().any(|reader| reader.is_finished()) {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
            readers.into_iter().map(|reader| reader.join().unwrap()).collect()
        });
        println!("{way}: {reads:?} reads of {APPENDS} sizes up to {size}");
        let grown = || (held.metadata().unwrap().len() == size as u64).then_some(());
        eventually("the last size", APPEND_TIMEOUT, grown).unwrap();
        data::assert_same(&path, &fs::read(&file).unwrap(), &pattern.bytes(0, size));
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "{way}: another file");
    }
}
