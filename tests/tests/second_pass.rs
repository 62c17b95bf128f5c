//! Whatever fits into the cache is fetched once: a second and a third pass over it, begun at once,
//! take nothing from the cluster.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use tests::{Cluster, Mount, Pattern, Shared, data, host, reading};

const MIB: usize = 1 << 20;

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(4).start().unwrap())
}

/// In which order a first pass reads a file.
#[derive(Clone, Copy)]
enum FirstPass {
    Forward,
    /// In steps of this many bytes.
    Backward(usize),
}

/// How many readers a pass has.
#[derive(Clone, Copy)]
enum Readers {
    One,
    OneForEachFile,
}

impl FirstPass {
    fn read(self, path: &Path) -> Vec<u8> {
        let Self::Backward(step) = self else { return fs::read(path).unwrap() };
        let file = File::open(path).unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        for (number, part) in bytes.chunks_mut(step).enumerate().rev() {
            file.read_exact_at(part, (number * step) as u64).unwrap();
        }
        bytes
    }
}

/// Reads `count` files of `size` bytes four times, past what the kernel has of them.
#[track_caller]
fn check(name: &str, count: u64, size: usize, first: FirstPass, readers: Readers, options: &[&str]) {
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
    let mut fetched_before = None;
    for pass in 1..=4 {
        let read = |number| {
            let path = mount.file(&path(number));
            reading::forget(&path).unwrap();
            let order = if pass == 1 { first } else { FirstPass::Forward };
            let found = order.read(&path);
            data::assert_same(&path.display().to_string(), &found, &pattern(number).bytes(0, size));
        };
        match readers {
            Readers::One => (0..count).for_each(read),
            Readers::OneForEachFile => thread::scope(|scope| {
                (0..count).for_each(|number| _ = scope.spawn(move || read(number)));
            }),
        }
        let fetched = fetched();
        assert!(fetched >= (count as usize * size) as f64);
        let before = *fetched_before.get_or_insert(fetched);
        if pass == 2 && matches!(first, FirstPass::Backward(_)) {
            // Some chunks that were begun for the first reader may come while this one reads.
            assert!(fetched - before <= size as f64 / 4.0, "pass 2 fetched {} bytes", fetched - before);
            fetched_before = Some(fetched);
        } else {
            assert_eq!(fetched, before, "{options:?}: pass {pass} fetched bytes");
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_large_file_is_fetched_once() {
    check("large", 1, 100 * MIB, FirstPass::Forward, Readers::One, &[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_large_file_is_fetched_once_without_passthrough() {
    check("answered", 1, 100 * MIB, FirstPass::Forward, Readers::One, &["--no-passthrough"]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_of_some_chunks_are_fetched_once() {
    check("medium", 12, 8 * MIB + 17, FirstPass::Forward, Readers::One, &[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn small_files_are_fetched_once() {
    check("small", 200, 300_000, FirstPass::Forward, Readers::One, &[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_was_read_backward_is_fetched_once() {
    for (name, step) in [("backward", MIB), ("slowly", MIB / 8)] {
        check(name, 1, 40 * MIB + 4321, FirstPass::Backward(step), Readers::One, &[]);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_that_are_read_at_once_and_nearly_fill_the_cache_are_fetched_once() {
    check("together", 6, 27 * MIB, FirstPass::Forward, Readers::OneForEachFile, &[]);
}
