//! A file of so many chunks that SeaweedFS folds them into chunk manifests.
//!
//! `weed mount` makes a chunk of every run of bytes that was written between two flushes, and
//! folds 10,000 chunks at a time. Short writes with gaps between them therefore make the smallest
//! such file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tests::{Cluster, Mount, Pattern, eventually, host, reading};

const PIECE: usize = 64;
const STRIDE: u64 = 512;
const PIECES: u64 = 10_300;

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_of_more_than_ten_thousand_chunks_and_its_overwrite() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let writer = Mount::weed(&cluster).start().unwrap();
    let local = tempfile::NamedTempFile::new().unwrap();
    let write = |file: &File, from: u64, pieces: u64, seed: u64| {
        for piece in from..from + pieces {
            let bytes = Pattern::new(seed).bytes(piece * 64, PIECE);
            file.write_all_at(&bytes, piece * STRIDE).unwrap();
        }
    };
    let remote = File::create(writer.file("/many")).unwrap();
    for file in [&remote, local.as_file()] {
        write(file, 0, PIECES, 1);
    }
    remote.sync_all().unwrap();
    drop(remote);
    let filer = cluster.filer();
    let manifests = || {
        let chunks = filer.chunks("/many").unwrap();
        chunks.iter().filter(|chunk| chunk["is_chunk_manifest"] == true).count()
    };
    assert!(manifests() > 0, "no chunk manifest was made of {} chunks", filer.chunks("/many").unwrap().len());

    let mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/many"), &fs::read(local.path()).unwrap());

    let remote = File::options().write(true).open(writer.file("/many")).unwrap();
    for file in [&remote, local.as_file()] {
        write(file, 5000, 300, 2);
        file.write_all_at(&Pattern::new(3).bytes(0, 150_000), 1_000_001).unwrap();
        file.write_all_at(&Pattern::new(4).bytes(0, 5000), PIECES * STRIDE + 100_000).unwrap();
    }
    remote.sync_all().unwrap();
    drop(remote);
    assert!(manifests() > 0, "the manifest stays under the new chunks");
    let expected = fs::read(local.path()).unwrap();
    let size = || fs::metadata(mount.file("/many")).ok().filter(|stat| stat.len() == expected.len() as u64);
    eventually("the new size", std::time::Duration::from_secs(5), size).unwrap();
    reading::verify(&mount.file("/many"), &expected);

    drop(mount);
    let fresh = Mount::builder(&cluster).start().unwrap();
    reading::verify(&fresh.file("/many"), &expected);
}
