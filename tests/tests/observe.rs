//! The hit ratio that `interceptor observe` predicts for a cache, against that of a real cache of
//! the size: the page cache of a reader with limited memory, on a real `weed mount`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use interceptor::ebpf::{DeviceNumber, Observer, ObserverSettings};
use interceptor::telemetry::MissRatioCurve;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::memory::MemoryGroup;
use tests::{Cluster, Mount, Pattern, eventually, host, mount, reading};

const PAGE: u64 = 4096;
const PAGES: u64 = 16 << 10;
const READS: usize = 150_000;

/// Offsets of pages, of which some are read much more often than others.
fn skewed(exponent: f64) -> Vec<u64> {
    let mut dice = StdRng::seed_from_u64(1);
    let sums: Vec<f64> = (1..=PAGES)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-exponent);
            Some(*sum)
        })
        .collect();
    let read = |_| {
        let point = dice.random::<f64>() * sums[sums.len() - 1];
        // The number of pages is a power of two, the factor is odd: ranks are scattered over the
        // file.
        sums.partition_point(|sum| *sum <= point) as u64 * 7919 % PAGES * PAGE
    };
    (0..READS).map(read).collect()
}

/// Reads them in a process of its own, which enters the group first. Nothing is allocated there.
fn read_in(group: &MemoryGroup, file: &File, offsets: &[u64]) {
    let mut door = group.door().unwrap();
    // SAFETY: the child makes only system calls: it writes to and reads from open files, and exits
    // without unwinding or cleaning up.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let mut page = [0; PAGE as usize];
            let entered = door.write_all(b"0").is_ok();
            let read = entered && offsets.iter().all(|&offset| file.read_exact_at(&mut page, offset).is_ok());
            // SAFETY: as above.
            unsafe { nix::libc::_exit(i32::from(!read)) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
}

/// `interceptor observe`, as it prints.
struct ObserveProcess {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl ObserveProcess {
    /// Returns when the mount is watched.
    fn start(mounted: &Mount) -> Self {
        Self::start_at(mounted.path())
    }

    fn start_at(path: &std::path::Path) -> Self {
        let mut process = Command::new(mount::interceptor_program().unwrap())
            .args(["observe", "--json", "--interval", "200ms"])
            .arg(path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut observing = Self { process, lines };
        observing.next();
        observing
    }

    fn next(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }

    /// The curve of all that was read until now.
    fn curve(&mut self) -> MissRatioCurve {
        // A report that had to be waited for is none of those that came during the reads, when this
        // machine may have stood still; if it has no reads itself, it covers all of them.
        const WAIT: Duration = Duration::from_millis(20);
        let mut is_new = false;
        loop {
            let asked = Instant::now();
            let report = self.next();
            is_new |= asked.elapsed() > WAIT;
            if is_new && report["reads_per_second"] == 0.0 {
                return serde_json::from_value(report["miss_ratio_curve"].clone()).unwrap();
            }
        }
    }
}

impl Drop for ObserveProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_cache_hits_as_often_as_observe_expects() {
    if !host::can_mount() {
        return;
    }
    let settings = ObserverSettings { sampled: None, ..ObserverSettings::default() };
    let observer = match Observer::start(&settings) {
        Ok((observer, _)) => observer,
        Err(error) => return host::skipped(&error.to_string()),
    };
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put_reader("/curve/file", Pattern::new(3).reader(PAGES * PAGE), "").unwrap();
    let mounted = Mount::weed(&cluster).start().unwrap();
    let (path, device) = (mounted.file("/curve/file"), DeviceNumber::of(mounted.path()).unwrap());
    let file = File::open(&path).unwrap();
    // What is asked for is what is read.
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
    let offsets = skewed(0.9);

    // With room for everything, whatever is read again is a hit; the curve tells of less room.
    let mut observing = ObserveProcess::start(&mounted);
    let mut page = [0; PAGE as usize];
    offsets.iter().for_each(|&offset| file.read_exact_at(&mut page, offset).unwrap());
    let curve = observing.curve();
    drop(observing);
    assert!(curve.granule_bytes == PAGE && curve.sampled_reads > 1000, "{curve:?}");

    let mut errors = Vec::new();
    for limit in [8 << 20, 16 << 20, 32 << 20] {
        let Ok(group) = MemoryGroup::new("interceptor-curve", limit) else {
            return host::skipped("no control groups that limit memory");
        };
        reading::forget(&path).unwrap();
        observer.unwatch(device).unwrap();
        observer.watch(device).unwrap();
        read_in(&group, &file, &offsets);
        let size = group.file_bytes().unwrap();
        let traffic = observer.traffic(device).unwrap();
        assert_eq!(traffic.cached_bytes, READS as u64 * PAGE, "{traffic:?}");
        let measured = 1.0 - traffic.fill_bytes as f64 / traffic.cached_bytes as f64;
        let expected = 1.0 - curve.miss_ratio(size).unwrap();
        println!(
            "{size} bytes of {limit}: {:.1} % expected, {:.1} % measured",
            expected * 100.0,
            measured * 100.0
        );
        errors.push(measured - expected);
    }
    // The sampled granules are chosen by chance, and the fewer of them fit into a cache, the
    // larger the error. A curve that is wrong by a factor of two is off by ten points everywhere.
    assert!(errors.iter().all(|error| error.abs() < 0.1), "{errors:?}");
    assert!((errors.iter().sum::<f64>() / errors.len() as f64).abs() < 0.06, "{errors:?}");
}

/// A mount at a place that is no text, for as long as the value lives.
struct NamelessMount(std::path::PathBuf);

impl NamelessMount {
    fn below(directory: &std::path::Path) -> Self {
        let path = directory.join(std::ffi::OsStr::from_bytes(b"not-\xff-text"));
        std::fs::create_dir(&path).unwrap();
        let mount = Self(path);
        let none = None::<&str>;
        nix::mount::mount(Some("tmpfs"), &mount.0, Some("tmpfs"), nix::mount::MsFlags::empty(), none)
            .unwrap();
        mount
    }
}

impl Drop for NamelessMount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_of_our_own_mounts_have_names_also_when_they_are_closed() {
    if !host::can_mount() {
        return;
    }
    if let Err(error) = Observer::start(&ObserverSettings::default()) {
        return host::skipped(&error.to_string());
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/dir/hot-file", &Pattern::new(3).bytes(0, 4 << 20), "").unwrap();
    let mounted = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let _nameless = NamelessMount::below(home.path());
    let link = home.path().join("link");
    std::os::unix::fs::symlink(mounted.path(), &link).unwrap();
    let mut observing = ObserveProcess::start_at(&link);
    let file = mounted.file("/dir/hot-file");
    let named = || {
        assert_eq!(std::fs::read(&file).unwrap().len(), 4 << 20);
        let report = observing.next();
        assert_eq!(report["mount_point"], mounted.path().to_str().unwrap(), "{report}");
        (report["hottest"][0]["path"] == file.to_str().unwrap()).then_some(())
    };
    eventually("the name of a file that is closed", std::time::Duration::from_secs(30), named).unwrap();
}
