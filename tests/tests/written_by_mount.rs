//! Files that `weed mount` wrote piece by piece: many chunks, overlapping, with holes, cut short.
//!
//! A generated sequence of operations is applied to a file in a `weed mount` and to a plain local
//! file. What `interceptor mount` then reads must be the local file. The sequences are functions
//! of their seed, which every failure names.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, Shared, data, host, reading};

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

/// Chunks of 1 MiB make a small file have several.
fn writer(cluster: &Cluster) -> Mount {
    Mount::weed(cluster).arg("-chunkSizeLimitMB=1").start().unwrap()
}

#[derive(Debug)]
enum Operation {
    Write { offset: u64, length: usize, seed: u64 },
    Append { length: usize, seed: u64 },
    Truncate { size: u64 },
    Flush,
    Reopen,
}

fn operations(seed: u64) -> Vec<Operation> {
    let mut dice = StdRng::seed_from_u64(seed);
    let length = |dice: &mut StdRng| match dice.random_range(0..4) {
        0 => dice.random_range(1..200),
        1 => 4096 * dice.random_range(1..20),
        2 => dice.random_range(1..100_000),
        _ => dice.random_range(1..1_500_000),
    };
    (0..dice.random_range(8..40))
        .map(|_| match dice.random_range(0..20) {
            0..=8 => Operation::Write {
                offset: dice.random_range(0..4 << 20),
                length: length(&mut dice),
                seed: dice.random(),
            },
            9..=12 => Operation::Append { length: length(&mut dice), seed: dice.random() },
            13..=14 => Operation::Truncate { size: dice.random_range(0..5 << 20) },
            15..=17 => Operation::Flush,
            _ => Operation::Reopen,
        })
        .collect()
}

fn apply(path: &Path, operations: &[Operation]) -> std::io::Result<()> {
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open()?;
    for operation in operations {
        match operation {
            Operation::Write { offset, length, seed } => {
                file.write_all_at(&Pattern::new(*seed).bytes(0, *length), *offset)?;
            }
            Operation::Append { length, seed } => {
                let end = file.metadata()?.len();
                file.write_all_at(&Pattern::new(*seed).bytes(0, *length), end)?;
            }
            Operation::Truncate { size } => file.set_len(*size)?,
            Operation::Flush => file.sync_all()?,
            Operation::Reopen => {
                drop(file);
                file = open()?;
            }
        }
    }
    file.sync_all()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn generated_sequences_of_writes() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let writer = writer(&cluster);
    let local = tempfile::tempdir().unwrap();
    fs::create_dir(writer.file("/generated")).unwrap();
    let seeds = 0..24;
    for seed in seeds.clone() {
        let operations = operations(seed);
        for path in [local.path().join(seed.to_string()), writer.file(&format!("/generated/{seed}"))] {
            apply(&path, &operations).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
    drop(writer);
    let mount = Mount::builder(&cluster).start().unwrap();
    for seed in seeds {
        let expected = fs::read(local.path().join(seed.to_string())).unwrap();
        reading::verify(&mount.file(&format!("/generated/{seed}")), &expected);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_is_all_hole_and_one_with_a_late_byte() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let writer = writer(&cluster);
    File::create(writer.file("/hole")).unwrap().set_len(3_000_000).unwrap();
    File::create(writer.file("/late")).unwrap().write_all_at(b"!", 70 << 20).unwrap();
    drop(writer);
    let mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/hole"), &vec![0; 3_000_000]);
    let late = fs::read(mount.file("/late")).unwrap();
    assert_eq!(late.len(), (70 << 20) + 1);
    assert_eq!(late.last(), Some(&b'!'));
    assert!(late[..70 << 20].iter().all(|byte| *byte == 0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn renames_hard_links_and_symlinks() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let writer = writer(&cluster);
    let content = Pattern::new(9).bytes(0, 1_700_000);
    fs::create_dir_all(writer.file("/links/below")).unwrap();
    fs::write(writer.file("/links/first"), &content).unwrap();
    fs::rename(writer.file("/links/first"), writer.file("/links/below/renamed")).unwrap();
    fs::hard_link(writer.file("/links/below/renamed"), writer.file("/links/second name")).unwrap();
    fs::hard_link(writer.file("/links/below/renamed"), writer.file("/links/third name")).unwrap();
    symlink("below/renamed", writer.file("/links/soft")).unwrap();
    symlink("nowhere", writer.file("/links/dangling")).unwrap();
    let more = Pattern::new(10).bytes(0, 5000);
    File::options()
        .write(true)
        .open(writer.file("/links/second name"))
        .unwrap()
        .write_all_at(&more, 1000)
        .unwrap();
    drop(writer);
    let mut expected = content;
    expected[1000..6000].copy_from_slice(&more);

    let mount = Mount::builder(&cluster).start().unwrap();
    assert!(!mount.file("/links/first").exists());
    for name in ["below/renamed", "second name", "third name", "soft"] {
        reading::verify(&mount.file("/links").join(name), &expected);
    }
    let stat = |name: &str| fs::metadata(mount.file("/links").join(name)).unwrap();
    assert_eq!(stat("second name").nlink(), 3);
    assert_eq!(stat("second name").ino(), stat("below/renamed").ino());
    assert_eq!(fs::read_link(mount.file("/links/soft")).unwrap(), Path::new("below/renamed"));
    let dangling = mount.file("/links/dangling");
    assert_eq!(fs::symlink_metadata(&dangling).unwrap().len(), "nowhere".len() as u64);
    assert_eq!(fs::read(&dangling).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert_eq!(data::sum_file(&mount.file("/links/soft")).unwrap(), data::sum(&expected));
}
