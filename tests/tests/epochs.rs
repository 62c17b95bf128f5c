//! Jobs that read the same small files in every epoch, through a cache that cannot hold them.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tests::{Cluster, Mount, Pattern, data, host, reading};

const FILES: usize = 1500;
/// Of the mount's cache: about a third of the files.
const CACHE: usize = 32 << 20;

fn path(file: usize) -> String {
    format!("/set/class{:02}/{file:04}", file % 20)
}

/// From 52 to 64 KiB, which go into slots of one size. A cache as small as this has too few units
/// of 2 MiB for ten sizes of slots: emptying one for a size that has none evicts prefetched files
/// in it, however good the guess was.
fn size(file: usize) -> usize {
    (52 << 10) + file * 7919 % (12 << 10)
}

fn pattern(file: usize) -> Pattern {
    Pattern::new(1 + file as u64)
}

fn shuffled(seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..FILES).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

/// Reads every file, and has the kernel forget it.
fn epoch(mount: &Mount, order: &[usize]) {
    for file in order {
        let path = mount.file(&path(*file));
        let found = std::fs::read(&path).unwrap();
        data::assert_same(&path.display().to_string(), &found, &pattern(*file).bytes(0, size(*file)));
        reading::forget(&path).unwrap();
    }
}

/// Prefetched bytes of epochs: fetched and used; then those of all triggers: fetched and used.
fn fetched_ahead(mount: &Mount) -> [f64; 4] {
    let metric = |name, labels: &[&str]| mount.metric(name, labels).unwrap();
    let (epoch, used) = ("trigger=\"epoch\"", "outcome=\"used\"");
    [
        metric("interceptor_prefetch_fetched_bytes_total", &[epoch]),
        metric("interceptor_prefetch_bytes_total", &[epoch, used]),
        metric("interceptor_prefetch_fetched_bytes_total", &[]),
        metric("interceptor_prefetch_bytes_total", &[used]),
    ]
}

fn mounted(options: &[&str]) -> (Cluster, Mount) {
    let cluster = Cluster::builder().start().unwrap();
    for file in 0..FILES {
        cluster.filer().put(&path(file), &pattern(file).bytes(0, size(file)), "").unwrap();
    }
    let mount = Mount::interceptor(&cluster.filer_addresses())
        .security(&cluster.directory().join("security.toml"))
        .args(["--cache-size", &CACHE.to_string()])
        // What eBPF sees would bring more than is counted here.
        .arg("--no-ebpf")
        .args(options)
        .start()
        .unwrap();
    (cluster, mount)
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_order_that_repeats_is_fetched_ahead() {
    if !host::can_mount() {
        return;
    }
    // Files that have become resident need not be fetched; here all of them shall need it.
    let (_cluster, mount) = mounted(&["--no-passthrough"]);
    epoch(&mount, &shuffled(1));
    let before = fetched_ahead(&mount);
    assert_eq!(before[0], 0.0, "nothing is known in the first epoch");
    epoch(&mount, &shuffled(1));
    let after = fetched_ahead(&mount);
    let [fetched, used, ..] = [0, 1].map(|i| after[i] - before[i]);
    println!("{fetched} bytes fetched for the second epoch, {used} of them used");
    // What the cache still had of the first epoch need not be fetched.
    assert!(
        used > 0.4 * (0..FILES).map(size).sum::<usize>() as f64,
        "{used} bytes were there before they were asked for"
    );
    assert!(used > 0.9 * fetched, "{used} of {fetched} bytes were used");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn epochs_shuffled_anew_waste_less_than_a_quarter() {
    if !host::can_mount() {
        return;
    }
    let (_cluster, mount) = mounted(&[]);
    for seed in 1..5 {
        epoch(&mount, &shuffled(seed));
    }
    let [fetched, used, all_fetched, all_used] = fetched_ahead(&mount);
    println!(
        "{fetched} bytes fetched for epochs, {used} used; {all_fetched} for all reasons, {all_used} used"
    );
    assert!(fetched > 0.0, "the end of an epoch is fetched ahead");
    assert!(used > 0.75 * fetched, "{used} of {fetched} bytes were used");
    assert!(all_used > 0.75 * all_fetched, "{all_used} of {all_fetched} bytes were used");
}
