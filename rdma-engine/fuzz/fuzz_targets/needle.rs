//! A whole volume of arbitrary bytes, read through the store: superblock, index, `.vif`, records
//! and tails. Reading ends with data that has its checksum, or with a refusal, and takes memory in
//! proportion to the input.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rdma_engine::FileId;
use rdma_engine::needle::{Tail, Version};
use rdma_engine::store::{ReadMode, Store, VolumeInfo};
use rdma_engine_fuzz::bounded;

/// A listing, an index and the longest tail of a record.
const SPARE: usize = 512 << 10;

/// One directory for all runs of this process.
fn directory() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a temporary directory").keep())
}

fuzz_target!(|input: &[u8]| bounded(SPARE + 64 * input.len(), || {
    for version in [Version::V1, Version::V2, Version::V3] {
        let _ = Tail::parse(version, input);
    }
    let _ = VolumeInfo::parse(input);

    let Some((&[version, entries], rest)) = input.split_first_chunk() else { return };
    let (idx, dat) = rest.split_at((usize::from(entries) * 16).min(rest.len()));
    let directory = directory();
    let dat = [&[version % 4, 0, 0, 0, 0, 0, 0, 0], dat].concat();
    fs::write(directory.join("1.dat"), &dat).expect("writing");
    fs::write(directory.join("1.idx"), idx).expect("writing");
    let store = Store::new(vec![directory.clone()], None).expect("listing");
    for entry in idx.chunks_exact(16) {
        let key = u64::from_be_bytes(entry[..8].try_into().expect("eight bytes"));
        let at = u32::from_be_bytes(entry[8..12].try_into().expect("four bytes")) as usize * 8;
        let Some(cookie) = dat.get(at..).and_then(|record| record.first_chunk()) else { continue };
        let fid = FileId { volume: 1, key, cookie: u32::from_be_bytes(*cookie) };
        if let Ok(record) = store.locate(fid, ReadMode::Blocking) {
            assert!((record.data_size as usize) < dat.len());
            let mut data = vec![0; record.data_size as usize];
            let _ = record.read_into(0, &mut data, ReadMode::Blocking);
        }
    }
}));
