//! Files of every interesting size, read in every way.
//!
//! The filer cuts at 1 MiB here, so that three chunks are small enough to try all boundaries.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;

use tests::{Cluster, Mount, Pattern, Shared, data, host, reading};

const CHUNK: usize = 1 << 20;

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> std::sync::Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn every_size_around_a_boundary_reads_right_in_every_way() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let mut sizes = vec![0, 1, 2, 7, 511, 512, 513, CHUNK / 2, CHUNK + CHUNK / 2, 2 * CHUNK + 12_345];
    for boundary in [4096, 65_536, 131_072, 262_144, CHUNK, 2 * CHUNK, 3 * CHUNK] {
        sizes.extend([
            boundary - 4096,
            boundary - 4095,
            boundary - 1,
            boundary,
            boundary + 1,
            boundary + 4096,
        ]);
    }
    sizes.sort_unstable();
    sizes.dedup();
    for size in &sizes {
        filer.put(&format!("/sizes/{size}"), &Pattern::new(*size as u64).bytes(0, *size), "").unwrap();
    }
    let chunks = filer.chunks(&format!("/sizes/{}", 3 * CHUNK)).unwrap();
    assert_eq!(chunks.len(), 3, "the filer cuts at 1 MiB");

    let mount = Mount::builder(&cluster).start().unwrap();
    for size in sizes {
        let expected = Pattern::new(size as u64).bytes(0, size);
        reading::verify(&mount.file(&format!("/sizes/{size}")), &expected);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_of_one_gibibyte_reads_right_in_order_and_by_four_readers() {
    const SIZE: u64 = 1 << 30;
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let pattern = Pattern::new(30);
    cluster.filer().put_reader("/large", pattern.reader(SIZE), "maxMB=4").unwrap();
    let expected = data::sum_reader(pattern.reader(SIZE)).unwrap();

    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/large");
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
    assert_eq!(data::sum_file(&path).unwrap(), expected);

    reading::forget(&path).unwrap();
    thread::scope(|scope| {
        for reader in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let (mut read, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
                for step in 0..SIZE / 4 / CHUNK as u64 {
                    let offset = reader * (SIZE / 4) + step * CHUNK as u64;
                    file.read_exact_at(&mut read, offset).unwrap();
                    pattern.fill(offset, &mut expected);
                    data::assert_same(&format!("/large at {offset}"), &read, &expected);
                }
            });
        }
    });
    drop(mount);
    cluster.filer().delete("/large").unwrap();
}
