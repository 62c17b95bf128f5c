//! A volume of needles whose bytes are known, written the way a volume server writes it (version
//! 3, offsets of four bytes).

use std::fs;
use std::path::Path;

use rdma_engine::FileId;
use rdma_engine::checksum::crc32c;
use rdma_engine::needle::{Header, Version};

pub(crate) const VOLUME: u32 = 1;
pub(crate) const COOKIE: u32 = 0xfeed_beef;

pub(crate) fn fid(key: u64) -> FileId {
    FileId { volume: VOLUME, key, cookie: COOKIE }
}

/// The bytes of a needle.
pub(crate) fn content(key: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u64 * 31 + key * 17 + (at as u64 >> 9)) as u8).collect()
}

/// Writes a volume with needles of these lengths, of the keys from 1 on.
pub(crate) fn write(directory: &Path, lengths: &[usize]) {
    let mut dat = vec![3, 0, 0, 0, 0, 0, 0, 0];
    let mut idx = Vec::new();
    for (key, &length) in (1..).zip(lengths) {
        let data = content(key, length);
        let mut body = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        body.extend_from_slice(&data);
        body.push(0);
        let size = i32::try_from(body.len()).unwrap();
        idx.extend_from_slice(&key.to_be_bytes());
        idx.extend_from_slice(&u32::try_from(dat.len() / 8).unwrap().to_be_bytes());
        idx.extend_from_slice(&size.to_be_bytes());
        let end = dat.len() + Version::V3.record_length(size.cast_unsigned()) as usize;
        dat.extend_from_slice(&Header { cookie: COOKIE, key, size }.to_bytes());
        dat.extend_from_slice(&body);
        dat.extend_from_slice(&crc32c(&data).to_be_bytes());
        dat.extend_from_slice(&0u64.to_be_bytes());
        dat.resize(end, 0);
    }
    fs::write(directory.join(format!("{VOLUME}.dat")), dat).unwrap();
    fs::write(directory.join(format!("{VOLUME}.idx")), idx).unwrap();
}
