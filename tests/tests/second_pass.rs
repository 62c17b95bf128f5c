//! Whatever fits into the cache is fetched once: a second and a third pass over it, begun at once,
//! take nothing from the cluster.

use std::sync::Arc;

use tests::{Cluster, Mount, Pattern, Shared, data, host, reading};

const MIB: usize = 1 << 20;

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(4).start().unwrap())
}

/// Reads `count` files of `size` bytes three times, past what the kernel has of them.
#[track_caller]
fn check(name: &str, count: u64, size: usize, options: &[&str]) {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let pattern = |number| Pattern::new(size as u64 + number);
    let path = |number| format!("/{name}/{number}");
    for number in 0..count {
        cluster.filer().put_reader(&path(number), pattern(number).reader(size as u64), "").unwrap();
    }
    let mount = Mount::interceptor(&cluster.filer_addresses())
        .security(&cluster.directory().join("security.toml"))
        .args(["--cache-size", "192MiB"])
        .args(options)
        .start()
        .unwrap();
    let fetched = || mount.metric("interceptor_fetch_bytes_total", &[]).unwrap();
    let mut after_first_pass = None;
    for pass in 1..=3 {
        for number in 0..count {
            let path = mount.file(&path(number));
            reading::forget(&path).unwrap();
            let found = std::fs::read(&path).unwrap();
            data::assert_same(&path.display().to_string(), &found, &pattern(number).bytes(0, size));
        }
        let fetched = fetched();
        assert!(fetched >= (count as usize * size) as f64);
        let first = *after_first_pass.get_or_insert(fetched);
        assert_eq!(fetched, first, "{options:?}: pass {pass} fetched bytes");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_large_file_is_fetched_once() {
    check("large", 1, 100 * MIB, &[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_large_file_is_fetched_once_without_passthrough() {
    check("answered", 1, 100 * MIB, &["--no-passthrough"]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_of_some_chunks_are_fetched_once() {
    check("medium", 12, 8 * MIB + 17, &[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn small_files_are_fetched_once() {
    check("small", 200, 300_000, &[]);
}
