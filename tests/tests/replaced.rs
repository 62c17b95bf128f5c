//! Files that are replaced over and over while four readers read them at random.
//!
//! Every block of 4 KiB says which version it is of. Whoever opens the file gets one version and no byte of another.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, data, eventually, host, reading};

const BLOCK: usize = 4096;
const VERSIONS: u64 = 80;

/// A version's content; sizes differ, so that ends do too.
fn content(version: u64) -> Vec<u8> {
    let size = 400_000 + usize::try_from(version * 37_777 % 2_000_000).unwrap();
    let mut bytes = Pattern::new(version).bytes(0, size);
    for block in bytes.chunks_mut(BLOCK) {
        let length = block.len().min(8);
        block[..length].copy_from_slice(&version.to_le_bytes()[..length]);
    }
    bytes
}

#[test]
fn every_open_reads_one_version() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let versions: Vec<_> = (0..VERSIONS).map(content).collect();
    filer.put("/replaced", &versions[0], "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/replaced");
    let done = AtomicBool::new(false);
    let (opens, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for reader in 0..4 {
            let (path, versions, done, opens, changes) = (&path, &versions, &done, &opens, &changes);
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(reader);
                let mut buffer = vec![0; 40 * BLOCK];
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let file = File::open(path).unwrap();
                    reading::read_full(&file, &mut buffer[..BLOCK], 0).unwrap();
                    let version = u64::from_le_bytes(buffer[..8].try_into().unwrap());
                    let expected =
                        versions.get(usize::try_from(version).unwrap()).expect("a version that was written");
                    for _ in 0..dice.random_range(1..12) {
                        let offset = dice.random_range(0..expected.len() + BLOCK);
                        let length = dice.random_range(1..buffer.len());
                        let read = &mut buffer[..length];
                        let count = reading::read_full(&file, read, offset as u64).unwrap();
                        let (from, to) = (offset.min(expected.len()), (offset + length).min(expected.len()));
                        data::assert_same(
                            &format!("version {version} at {offset}+{length}"),
                            &read[..count],
                            &expected[from..to],
                        );
                    }
                    assert!(version >= last, "version {version} after version {last}");
                    changes.fetch_add(usize::from(version > last), Ordering::Relaxed);
                    opens.fetch_add(1, Ordering::Relaxed);
                    last = version;
                }
            });
        }
        for version in &versions[1..] {
            filer.put("/replaced", version, "").unwrap();
            // The pace is the readers': some of them shall meet each version. If one has failed, the others go on.
            let before = opens.load(Ordering::Relaxed);
            let met = || (opens.load(Ordering::Relaxed) >= before + 6).then_some(());
            let _ = eventually("an encounter", Duration::from_secs(1), met);
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{opens:?} opens, {changes:?} of them of a newer version than the one before");
    assert!(changes.into_inner() > 20, "the readers hardly ever met a new version");
    assert!(mount.is_running());
}
