//! Reads of what the layer keeps: from memory, and right.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{eventually, host, posix};

use crate::{LowerMount, SETTLE_TIMEOUT, content, drop_pages, uncached};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_read_again_comes_from_memory() {
    let sizes = [1, 4096, 100_000, 5_000_000, 9_000_001];
    for below in LowerMount::all() {
        for size in sizes {
            fs::write(below.beside().join(size.to_string()), content(size as u64, size)).unwrap();
        }
        let stage = below.attach();
        for size in sizes {
            stage.await_cached(&size.to_string(), &content(size as u64, size));
        }
        // All of it is cached now.
        for size in sizes {
            assert!(uncached(&stage.file(&size.to_string())) == content(size as u64, size), "{size}");
        }
        let (lower, cache) = (stage.read("lower"), stage.read("cache"));
        for size in sizes {
            assert!(uncached(&stage.file(&size.to_string())) == content(size as u64, size), "{size}");
        }
        assert_eq!(stage.read("lower"), lower);
        let total = sizes.iter().sum::<usize>() as f64;
        assert!(stage.read("cache") - cache >= total);

        let mut random = StdRng::seed_from_u64(1);
        for size in sizes {
            let name = size.to_string();
            let (file, own) =
                (File::open(stage.file(&name)).unwrap(), File::open(stage.beside(&name)).unwrap());
            for _ in 0..50 {
                let (offset, len) =
                    (random.random_range(0..=size as u64 + 10), random.random_range(1..300_000));
                let (mut here, mut there) = (vec![0; len], vec![0; len]);
                drop_pages(&file);
                let (read, expected) =
                    (file.read_at(&mut here, offset).unwrap(), own.read_at(&mut there, offset).unwrap());
                assert!(read == expected && here == there, "{len} bytes at {offset} of {size}");
            }
        }
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn random_reads_of_a_sparse_file_bring_what_they_ask_for() {
    let Some(below) = LowerMount::disk() else { return };
    const SIZE: u64 = 1 << 40;
    let islands = [0, 1 << 20, (7 << 30) + 12_345, (1 << 39) - 5, SIZE - 100];
    let beside = File::create(below.beside().join("file")).unwrap();
    beside.set_len(SIZE).unwrap();
    for at in islands {
        beside.write_all_at(&content(at, 100), at).unwrap();
    }
    drop(beside);
    let stage = below.attach();
    let own = File::open(stage.beside("file")).unwrap();
    let check = || {
        let open = File::open(stage.file("file")).unwrap();
        drop_pages(&open);
        for at in islands {
            let (from, mut here, mut there) = (at.saturating_sub(4000), vec![1; 4200], vec![2; 4200]);
            let read = open.read_at(&mut here, from).unwrap();
            assert_eq!(read, own.read_at(&mut there, from).unwrap());
            assert!(here[..read] == there[..read], "at {at}");
            let gap = (at - from) as usize;
            assert!(here[gap..gap + 100] == content(at, 100), "at {at}");
        }
    };
    let kept = || {
        let before = stage.read("cache");
        check();
        (stage.read("cache") > before).then_some(())
    };
    eventually("reads of what is kept", SETTLE_TIMEOUT, kept).unwrap();
    // A reader of a few pages is not given terabytes.
    let used = stage.layer.status_page().metric("interceptor_cache_bytes", &["state=\"used\""]).unwrap();
    assert!(used < 256e6, "{used}");
}

#[test]
#[cfg_attr(not(all(can_mount, has_posix_suites)), ignore = "needs mounts, pjdfstest and fsx")]
fn random_runs_of_fsx_pass_over_what_is_kept() {
    let Some(below) = LowerMount::disk().filter(|_| host::has_posix_suites()) else { return };
    let stage = below.attach();
    for seed in 1..=3 {
        assert_eq!(
            posix::fsx(&stage.below.path(), seed, 3000, &posix::FSX_WITH_HOLES).unwrap(),
            None,
            "seed {seed}"
        );
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn readers_see_each_write_whole_while_others_read() {
    for below in LowerMount::all() {
        let path = below.path();
        tests::readers::put_files(&below.beside());
        let stage = below.attach();
        for number in 0..8 {
            stage.await_cached(&format!("file-{number}"), &tests::readers::content(number));
        }
        tests::readers::read_under(&path, || {
            for round in 0..30 {
                // The same content in a new file, where a rename is one step, and in place in a
                // file that no other thread reads.
                if let LowerMount::Disk(..) = stage.below {
                    let (new, name) = (path.join("new"), path.join(format!("file-{}", round % 8)));
                    fs::write(&new, tests::readers::content(round % 8)).unwrap();
                    fs::rename(&new, &name).unwrap();
                }
                let own = path.join("own");
                fs::write(&own, content(round, 500_000)).unwrap();
                assert!(fs::read(&own).unwrap() == content(round, 500_000));
            }
        });
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_passes_the_pages_by_is_read_below() {
    let Some(below) = LowerMount::disk() else { return };
    fs::write(below.beside().join("file"), content(1, 1 << 20)).unwrap();
    let stage = below.attach();
    stage.await_cached("file", &content(1, 1 << 20));
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(stage.file("file")).unwrap();
    let (lower, cache) = (stage.read("lower"), stage.read("cache"));
    let mut bytes = vec![0; 65_536];
    direct.read_exact_at(&mut bytes, 65_536).unwrap();
    assert!(bytes == content(1, 1 << 20)[65_536..131_072]);
    assert_eq!((stage.read("lower") - lower, stage.read("cache") - cache), (65_536.0, 0.0));
}
