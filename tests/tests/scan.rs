//! A long scan beside files that are read again and again: the cache keeps what will be read
//! again.
//!
//! The scan reads with `O_DIRECT`. The daemon serves it as any sequential reader, but no readahead
//! of the kernel is under way when it stops, so that what the daemon counts until it goes on comes
//! from the other reader alone.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use tests::{Cluster, Mount, Pattern, data, host, reading};

const MIB: usize = 1 << 20;
/// Of the mount's cache.
const CACHE: usize = 64 * MIB;
/// What the scan reads before the hot files are read again.
const STEP: usize = 32 * MIB;

/// Half of it in files of one chunk, half in small ones.
fn hot_files() -> Vec<(String, Pattern, usize)> {
    let large = (0..4).map(|i| (format!("/hot/large{i}"), 4 * MIB));
    let small = (0..128).map(|i| (format!("/hot/small{i}"), 128 * 1024));
    let all = large.chain(small).enumerate();
    all.map(|(i, (path, size))| (path, Pattern::new(100 + i as u64), size)).collect()
}

/// Bytes that the daemon was asked for, and how many of them it had.
fn answered(mount: &Mount) -> (f64, f64) {
    let bytes = |labels: &[&str]| mount.metric("interceptor_read_bytes_total", labels).unwrap();
    (bytes(&[]), bytes(&["source=\"cache\""]))
}

/// Reads all hot files, past what the kernel has of them.
fn read_hot(mount: &Mount, files: &[(String, Pattern, usize)]) -> (f64, f64) {
    let before = answered(mount);
    for (path, pattern, size) in files {
        let path = mount.file(path);
        reading::forget(&path).unwrap();
        let found = std::fs::read(&path).unwrap();
        data::assert_same(&path.display().to_string(), &found, &pattern.bytes(0, *size));
    }
    let after = answered(mount);
    (after.0 - before.0, after.1 - before.1)
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_scan_of_four_times_the_cache_leaves_a_hot_set_of_half_of_it_alone() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(4).start().unwrap();
    let filer = cluster.filer();
    let hot = hot_files();
    assert_eq!(hot.iter().map(|(_, _, size)| size).sum::<usize>(), CACHE / 2);
    for (path, pattern, size) in &hot {
        filer.put(path, &pattern.bytes(0, *size), "").unwrap();
    }
    let scanned = Pattern::new(1);
    filer.put_reader("/scanned", scanned.reader(4 * CACHE as u64), "").unwrap();
    let mount = Mount::interceptor(&cluster.filer_addresses())
        .security(&cluster.directory().join("security.toml"))
        .args(["--cache-size", &CACHE.to_string()])
        // All reads shall be the daemon's to answer, which counts them.
        .arg("--no-passthrough")
        // And they alone shall say what is hot.
        .arg("--no-ebpf")
        .start()
        .unwrap();

    // What is read twice is hot.
    for _ in 0..3 {
        read_hot(&mount, &hot);
    }

    let scan = File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.file("/scanned")).unwrap();
    let (mut found, mut expected) = (vec![0; MIB], vec![0; MIB]);
    let (mut asked, mut had) = (0.0, 0.0);
    for step in 0..4 * CACHE / STEP {
        for at in (step * STEP..(step + 1) * STEP).step_by(MIB) {
            scan.read_exact_at(&mut found, at as u64).unwrap();
            scanned.fill(at as u64, &mut expected);
            data::assert_same(&format!("/scanned at {at}"), &found, &expected);
        }
        let (bytes, hits) = read_hot(&mount, &hot);
        println!("after {} MiB: {:.3} of the hot set was there", (step + 1) * STEP / MIB, hits / bytes);
        asked += bytes;
        had += hits;
    }
    println!("hit ratio of the hot set: {:.3}", had / asked);
    assert!(asked >= (4 * CACHE / STEP * CACHE / 2) as f64, "the kernel answered some of it: {asked}");
    assert!(had / asked > 0.9, "hit ratio of the hot set: {:.3}", had / asked);

    let fetched_ahead = mount.metric("interceptor_prefetch_fetched_bytes_total", &[]).unwrap();
    let wasted = mount.metric("interceptor_prefetch_bytes_total", &["outcome=\"wasted\""]).unwrap();
    println!("{fetched_ahead} bytes were fetched ahead, {wasted} of them wasted");
    assert!(fetched_ahead > 2.0 * CACHE as f64, "the scan was fetched ahead");
    assert!(wasted < 0.1 * fetched_ahead, "{wasted} of {fetched_ahead} bytes wasted");
}
