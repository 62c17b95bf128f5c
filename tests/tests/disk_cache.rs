//! The disk cache: restarts and other mounts go on with what is there, and whatever happens to the
//! disk, reads give the right bytes.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tests::mount::interceptor_program;
use tests::{Cluster, Disk, Layer, Mount, Pattern, Shared, data, eventually, host, reading};

const MIB: usize = 1 << 20;
/// Some chunks, the last of them not full.
const SIZE: usize = 9 * MIB + 12_345;
/// Longest wait for the thread that writes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(2).start().unwrap())
}

/// A file of the cluster.
struct Sample {
    name: String,
    content: Vec<u8>,
}

impl Sample {
    /// Puts a file of `size` bytes at `/name`.
    fn put(cluster: &Cluster, name: &str, size: usize) -> Self {
        let seed = name.bytes().fold(size as u64, |seed, byte| seed.rotate_left(7) ^ u64::from(byte));
        let content = Pattern::new(seed).bytes(0, size);
        cluster.filer().put(&format!("/{name}"), &content, "").unwrap();
        Self { name: name.to_owned(), content }
    }

    /// Reads the file, without the help of the page cache.
    #[track_caller]
    fn read(&self, tree: &Path) {
        let path = tree.join(&self.name);
        reading::forget(&path).unwrap();
        data::assert_same(&self.name, &fs::read(&path).unwrap(), &self.content);
    }
}

/// A mount with a disk cache in `directory`. The page cache and resident files would answer what
/// this suite asks of the disk.
fn mount(cluster: &Cluster, directory: &Path, size: &str) -> Mount {
    let arguments = ["--no-passthrough", "--no-ebpf", "--cache-size", "64MiB", "--disk-cache-size", size];
    Mount::builder(cluster).args(arguments).arg("--disk-cache").arg(directory).start().unwrap()
}

fn fetched(mount: &Mount, source: &str) -> u64 {
    let label = format!("source=\"{source}\"");
    mount.metric("interceptor_fetch_bytes_total", &[&label]).unwrap() as u64
}

/// Bytes that came from the cluster.
fn from_cluster(mount: &Mount) -> u64 {
    ["verbs", "local", "tcp", "http"].iter().map(|source| fetched(mount, source)).sum()
}

fn written(mount: &Mount) -> u64 {
    mount.metric("interceptor_disk_cache_written_bytes_total", &[]).unwrap() as u64
}

fn damaged(mount: &Mount) -> u64 {
    mount.metric("interceptor_integrity_failures_total", &["source=\"disk\""]).unwrap() as u64
}

/// Bytes of the disk that the cache takes.
fn used(mount: &Mount) -> u64 {
    mount.metric("interceptor_disk_cache_bytes", &["state=\"used\""]).unwrap() as u64
}

/// Reads a file of which nothing is on disk again and again, until all of it is.
#[track_caller]
fn keep(mount: &Mount, sample: &Sample) {
    let before = used(mount);
    let is_kept = || {
        sample.read(mount.path());
        (used(mount) >= before + sample.content.len() as u64).then_some(())
    };
    eventually("the file on disk", WRITE_TIMEOUT, is_kept).unwrap_or_else(|error| {
        panic!("{error}: {}", mount.log().unwrap());
    });
}

/// The files with contents in a disk cache.
fn contents(directory: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(directory.join("interceptor-cache-v1")).unwrap();
    let below = below.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = below.flat_map(|path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
    files.filter(|path| path.extension().is_none()).collect()
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_second_start_reads_from_the_disk_alone() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "again", SIZE));
    let first = mount(&cluster(), directory.path(), "1GiB");
    sample.read(first.path());
    assert_eq!(written(&first), 0, "what is read once is not kept");
    keep(&first, &sample);
    first.stop().unwrap();
    let second = mount(&cluster(), directory.path(), "1GiB");
    sample.read(second.path());
    assert_eq!(from_cluster(&second), 0);
    assert!(fetched(&second, "disk") >= SIZE as u64);
    assert!(second.metric("interceptor_read_bytes_total", &["source=\"disk\""]).unwrap() > 0.0);
    assert_eq!(written(&second), 0, "it is there");
    reading::verify(&second.path().join("again"), &sample.content);
    let (_, status) = second.status("/api/v1/status").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let used = status["disk_cache"]["used"].as_u64().unwrap();
    assert!((SIZE as u64..2 * SIZE as u64).contains(&used), "{status}");
    let root = directory.path().join("interceptor-cache-v1");
    assert_eq!(root.metadata().unwrap().mode() & 0o7777, 0o700);
    for file in contents(directory.path()) {
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        assert!(!file.display().to_string().contains("again"));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_killed_daemon_leaves_what_it_has_written() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "killed", SIZE));
    let mut first = mount(&cluster(), directory.path(), "1GiB");
    keep(&first, &sample);
    first.kill();
    drop(first);
    let second = mount(&cluster(), directory.path(), "1GiB");
    sample.read(second.path());
    assert_eq!((from_cluster(&second), damaged(&second)), (0, 0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn another_cluster_finds_nothing() {
    if !host::can_mount() {
        return;
    }
    let directory = directory();
    let sample = Sample::put(&cluster(), "same", SIZE);
    let first = mount(&cluster(), directory.path(), "1GiB");
    keep(&first, &sample);
    let other = Cluster::builder().max_mb(2).start().unwrap();
    let elsewhere = Sample { content: Pattern::new(77).bytes(0, SIZE), ..Sample::put(&other, "same", 1) };
    other.filer().put("/same", &elsewhere.content, "").unwrap();
    // At the same time, and then alone.
    let second = mount(&other, directory.path(), "1GiB");
    for _ in 0..3 {
        elsewhere.read(second.path());
    }
    assert_eq!(fetched(&second, "disk"), 0);
    drop(first);
    let writes = || (second.metric("interceptor_disk_cache_writer", &[]).ok()? == 1.0).then_some(());
    eventually("the second to write", WRITE_TIMEOUT, writes).unwrap();
    keep(&second, &elsewhere);
    drop(second);
    for (cluster, sample) in [(&*cluster(), &sample), (&other, &elsewhere)] {
        let mount = mount(cluster, directory.path(), "1GiB");
        sample.read(mount.path());
        assert_eq!(from_cluster(&mount), 0);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn flipped_bits_are_fetched_again_and_counted() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "flipped", SIZE));
    let first = mount(&cluster(), directory.path(), "1GiB");
    keep(&first, &sample);
    first.stop().unwrap();
    let files = contents(directory.path());
    for path in &files {
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let (mut byte, middle) = ([0], file.metadata().unwrap().len() / 2);
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 4], middle).unwrap();
    }
    let second = mount(&cluster(), directory.path(), "1GiB");
    sample.read(second.path());
    assert_eq!(damaged(&second), files.len() as u64);
    assert!(from_cluster(&second) >= SIZE as u64);
    keep(&second, &sample);
    second.stop().unwrap();
    let third = mount(&cluster(), directory.path(), "1GiB");
    sample.read(third.path());
    assert_eq!((from_cluster(&third), damaged(&third)), (0, 0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_that_is_removed_is_made_again() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "removed", SIZE));
    let mount = mount(&cluster(), directory.path(), "1GiB");
    keep(&mount, &sample);
    fs::remove_dir_all(directory.path()).unwrap();
    sample.read(mount.path());
    eventually("the directory", WRITE_TIMEOUT, || {
        sample.read(mount.path());
        (directory.path().exists() && !contents(directory.path()).is_empty()).then_some(())
    })
    .unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_full_disk_fails_no_read() {
    let Some(disk) = host::disk() else { return };
    let sample = Sample::put(&cluster(), "full", SIZE);
    let mount = mount(&cluster(), &disk.path(), "1GiB");
    fill(&disk);
    let full = || {
        sample.read(mount.path());
        let errors = mount.metric("interceptor_fetch_errors_total", &["source=\"disk\"", "reason=\"full\""]);
        (errors.ok()? > 0.0).then_some(())
    };
    eventually("a write that fails", WRITE_TIMEOUT, full).unwrap();
    sample.read(mount.path());
}

/// Leaves some MiB of the disk, reserves for root and for metadata included.
fn fill(disk: &Disk) {
    let mut filler = fs::File::create(disk.path().join("filler")).unwrap();
    let mut len = 0;
    while filler.write_all(&[0; MIB]).is_ok() {
        len += MIB as u64;
    }
    filler.sync_all().unwrap();
    filler.set_len(len.saturating_sub(4 * MIB as u64)).unwrap();
    filler.sync_all().unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_disk_that_fails_fails_no_read() {
    let Some(disk) = host::disk() else { return };
    let sample = Sample::put(&cluster(), "failing", SIZE);
    let first = mount(&cluster(), &disk.path(), "1GiB");
    keep(&first, &sample);
    let second = mount(&cluster(), &disk.path(), "1GiB");
    sample.read(second.path());
    assert_eq!(from_cluster(&second), 0);
    drop(second);
    // One that knows all files, and has none of them in memory.
    drop(first);
    let mount = mount(&cluster(), &disk.path(), "1GiB");
    let files = || (mount.metric("interceptor_disk_cache_files", &[]).ok()? > 0.0).then_some(());
    eventually("the files", WRITE_TIMEOUT, files).unwrap();
    for path in contents(&disk.path()) {
        fs::File::open(&path).unwrap().sync_all().unwrap();
        reading::forget(&path).unwrap();
    }
    disk.cut().unwrap();
    sample.read(mount.path());
    assert!(from_cluster(&mount) > 0);
    // Loop devices of older kernels give zeros instead of errors.
    let errors = mount.metric("interceptor_fetch_errors_total", &["source=\"disk\""]).unwrap();
    assert!(errors > 0.0 || damaged(&mount) > 0);
    sample.read(mount.path());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn two_mounts_share_a_directory_and_one_of_them_writes() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "shared", SIZE));
    let mut first = mount(&cluster(), directory.path(), "1GiB");
    let second = mount(&cluster(), directory.path(), "1GiB");
    let writes = |mount: &Mount| mount.metric("interceptor_disk_cache_writer", &[]).unwrap() == 1.0;
    assert!(writes(&first) && !writes(&second));
    keep(&first, &sample);
    sample.read(second.path());
    assert_eq!(from_cluster(&second), 0);
    let more = Sample::put(&cluster(), "shared-more", SIZE);
    first.kill();
    drop(first);
    eventually("the second to write", WRITE_TIMEOUT, || writes(&second).then_some(())).unwrap();
    keep(&second, &more);
    sample.read(second.path());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_size_is_never_exceeded() {
    if !host::can_mount() {
        return;
    }
    let samples: Vec<_> =
        (0..12).map(|number| Sample::put(&cluster(), &format!("many-{number}"), SIZE)).collect();
    let directory = directory();
    let mount = mount(&cluster(), directory.path(), "64MiB");
    for sample in samples {
        let before = written(&mount);
        let is_kept = || {
            sample.read(mount.path());
            (written(&mount) >= before + SIZE as u64).then_some(())
        };
        eventually("the file on disk", WRITE_TIMEOUT, is_kept).unwrap();
        // One that leaves meanwhile takes nothing.
        let sizes = contents(directory.path()).into_iter().filter_map(|file| file.metadata().ok());
        let taken: u64 = sizes.map(|file| file.blocks() * 512).sum();
        assert!(taken <= 64 * MIB as u64, "{taken}");
    }
    assert!(mount.metric("interceptor_disk_cache_evicted_files_total", &[]).unwrap() > 0.0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_encrypted_in_the_cluster_is_not_kept() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(2).encrypt().start().unwrap();
    let (directory, sample) = (directory(), Sample::put(&cluster, "secret", SIZE));
    let mount = mount(&cluster, directory.path(), "1GiB");
    for _ in 0..4 {
        sample.read(mount.path());
    }
    let queued = mount.metric("interceptor_disk_cache_bytes", &["state=\"queued\""]).unwrap();
    assert_eq!((queued, written(&mount)), (0.0, 0));
    assert!(contents(directory.path()).is_empty());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_that_is_no_good_is_named_and_the_mount_goes_without() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "refused", SIZE));
    let own = directory.path().join("interceptor-cache-v1");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(1234), None).unwrap();
    let mount = mount(&cluster(), directory.path(), "1GiB");
    let log = mount.log_with("going without").unwrap();
    assert!(log.contains("belongs to user 1234"), "{log}");
    sample.read(mount.path());
    assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_attached_path_keeps_and_finds_blocks_too() {
    if !host::can_mount() {
        return;
    }
    let (directory, sample) = (directory(), Sample::put(&cluster(), "attached", SIZE));
    let first = mount(&cluster(), directory.path(), "1GiB");
    keep(&first, &sample);
    drop(first);
    let below = Mount::weed(&cluster()).start().unwrap();
    let filers = cluster().filer_addresses();
    let cache = directory.path().as_os_str();
    let arguments = ["--filer".as_ref(), filers.as_ref(), "--disk-cache".as_ref(), cache];
    let layer = Layer::over(below.path(), arguments).unwrap();
    sample.read(below.path());
    let page = layer.status_page();
    let from_disk = page.metric("interceptor_fetch_bytes_total", &["source=\"disk\""]).unwrap();
    assert!(from_disk >= SIZE as f64, "{from_disk}");
    let from_cluster = page.metric("interceptor_fetch_bytes_total", &["source=\"http\""]).unwrap();
    assert_eq!(from_cluster, 0.0);
}

/// Runs `interceptor warmup --to disk` on a file.
fn warm_to_disk(path: &Path) -> (bool, String) {
    let mut command = Command::new(interceptor_program().unwrap());
    let output = command.args(["warmup", "--to", "disk"]).arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), text.concat())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_was_warmed_to_disk_needs_no_cluster() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(2).start().unwrap();
    let (directory, sample) = (directory(), Sample::put(&cluster, "warmed", SIZE));
    let first = mount(&cluster, directory.path(), "1GiB");
    let (is_good, text) = warm_to_disk(&first.path().join("warmed"));
    assert!(is_good && text.contains("1 of 1 files are on disk"), "{text}");
    assert_eq!(contents(directory.path()).len(), 1, "it is one file");
    let bytes = from_cluster(&first);
    assert!((SIZE as u64..SIZE as u64 + MIB as u64).contains(&bytes), "{bytes}: fetched once");
    let (is_good, text) = warm_to_disk(&first.path().join("warmed"));
    assert!(is_good, "{text}");
    sample.read(first.path());
    assert_eq!(from_cluster(&first), bytes, "it is there");
    let second = mount(&cluster, directory.path(), "1GiB");
    let (is_good, text) = warm_to_disk(&second.path().join("warmed"));
    assert!(!is_good && text.contains("fills no disk cache"), "{text}");
    drop((first, second));
    let third = mount(&cluster, directory.path(), "1GiB");
    cluster.volume_servers().iter().for_each(|server| server.freeze());
    sample.read(third.path());
    reading::random(&third.path().join("warmed"), &sample.content, 7, 50);
    cluster.volume_servers().iter().for_each(|server| server.thaw());
    assert_eq!((from_cluster(&third), damaged(&third)), (0, 0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_kernel_reads_a_complete_file_by_itself() {
    if let Some(disk) = host::disk() {
        the_kernel_reads_a_complete_file_of(&disk, "complete");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_kernel_reads_a_complete_file_of_an_xfs() {
    if let Some(disk) = host::xfs_disk() {
        the_kernel_reads_a_complete_file_of(&disk, "on-xfs");
    }
}

fn the_kernel_reads_a_complete_file_of(disk: &Disk, name: &str) {
    // More than memory takes for files.
    let sample = Sample::put(&cluster(), name, 60 * MIB + 77);
    let mount = || {
        let arguments = ["--no-ebpf", "--cache-size", "64MiB", "--disk-cache-size", "400MiB"];
        Mount::builder(&cluster()).args(arguments).arg("--disk-cache").arg(disk.path()).start().unwrap()
    };
    let reads = |mount: &Mount| mount.metric("interceptor_reads_total", &[]).unwrap();
    let is_passed_through = |mount: &Mount| {
        let before = reads(mount);
        sample.read(mount.path());
        (reads(mount) == before).then_some(())
    };
    let first = mount();
    let (_, status) = first.status("/api/v1/status").unwrap();
    if status.contains("FUSE passthrough") {
        return host::skipped("there is no passthrough here");
    }
    let path = first.path().join(name);
    let (is_good, text) = warm_to_disk(&path);
    assert!(is_good, "{text}");
    eventually("passthrough", WRITE_TIMEOUT, || is_passed_through(&first)).unwrap();
    reading::verify(&path, &sample.content);
    assert!(first.metric("interceptor_opens_total", &["way=\"passthrough\""]).unwrap() > 0.0);
    drop(first);
    let second = mount();
    // It looks through the directory in the background.
    eventually("the index", WRITE_TIMEOUT, || (used(&second) > 0).then_some(())).unwrap();
    eventually("passthrough", WRITE_TIMEOUT, || is_passed_through(&second)).unwrap();
    assert_eq!(from_cluster(&second), 0);
    // An open handle keeps the file, whatever happens to the directory.
    let open = fs::File::open(second.path().join(name)).unwrap();
    fs::remove_dir_all(disk.path().join("interceptor-cache-v1")).unwrap();
    let mut bytes = vec![0; sample.content.len()];
    open.read_exact_at(&mut bytes, 0).unwrap();
    data::assert_same(name, &bytes, &sample.content);
    drop(open);
    sample.read(second.path());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn opens_leave_a_disk_that_fails() {
    let Some(disk) = host::disk() else { return };
    let sample = Sample::put(&cluster(), "dying", SIZE);
    let arguments = ["--no-ebpf", "--cache-size", "16MiB", "--disk-cache-size", "400MiB"];
    let mount =
        Mount::builder(&cluster()).args(arguments).arg("--disk-cache").arg(disk.path()).start().unwrap();
    let (_, status) = mount.status("/api/v1/status").unwrap();
    if status.contains("FUSE passthrough") {
        return host::skipped("there is no passthrough here");
    }
    let (is_good, text) = warm_to_disk(&mount.path().join("dying"));
    assert!(is_good, "{text}");
    let passed_through = || {
        sample.read(mount.path());
        mount.metric("interceptor_opens_total", &["way=\"passthrough\""]).unwrap()
    };
    let is_used = || (passed_through() > 0.0).then_some(());
    eventually("passthrough", WRITE_TIMEOUT, is_used).unwrap();
    for path in contents(&disk.path()) {
        fs::File::open(&path).unwrap().sync_all().unwrap();
        reading::forget(&path).unwrap();
    }
    disk.cut().unwrap();
    // Opens before the daemon has learnt of it may fail, or hit zeros on older kernels.
    eventually("reads from the cluster", WRITE_TIMEOUT, || {
        let path = mount.path().join("dying");
        reading::forget(&path).ok()?;
        fs::read(&path).is_ok_and(|bytes| bytes == sample.content).then_some(())
    })
    .unwrap();
    let before = passed_through();
    assert_eq!(passed_through(), before);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn damage_of_a_complete_file_is_found_before_the_kernel_reads_it() {
    let Some(disk) = host::disk() else { return };
    let sample = Sample::put(&cluster(), "rotten", SIZE);
    let first = mount(&cluster(), &disk.path(), "400MiB");
    let (is_good, text) = warm_to_disk(&first.path().join("rotten"));
    assert!(is_good, "{text}");
    drop(first);
    for path in contents(&disk.path()) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"rot", SIZE as u64 - 100).unwrap();
    }
    let arguments = ["--no-ebpf", "--cache-size", "64MiB", "--disk-cache-size", "400MiB"];
    let second =
        Mount::builder(&cluster()).args(arguments).arg("--disk-cache").arg(disk.path()).start().unwrap();
    for _ in 0..5 {
        sample.read(second.path());
    }
    assert!(damaged(&second) > 0);
}
