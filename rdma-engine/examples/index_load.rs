//! How long the index of a volume with many needles takes to load, and what memory it takes.
//!
//! `cargo run --release -p rdma-engine --example index_load [NEEDLES]` writes the files of such a
//! volume (sparse: the data is all holes but for the few records that are compared) and opens it
//! as an engine does.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rdma_engine::needle::{Header, Version};
use rdma_engine::store::{ReadMode, Store};
use rdma_engine::{FileId, Refusal};

/// The size of every needle, as in its header: 4 bytes of length, the data, 1 byte of flags.
const SIZE: u32 = 4 + 3000 + 1;
const COOKIE: u32 = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let needles: u64 = std::env::args().nth(1).map_or(Ok(10_000_000), |text| text.parse())?;
    for order in ["ascending keys", "every key written twice", "keys in no order"] {
        let directory = tempfile::tempdir()?;
        write(directory.path(), needles, order)?;
        let before = resident();
        let store = Store::new(vec![directory.path().into()], None)?;
        let began = Instant::now();
        let first = store.locate(FileId { volume: 1, key: u64::MAX, cookie: COOKIE }, ReadMode::Blocking);
        assert_eq!(first.unwrap_err(), Refusal::NoNeedle.into());
        let took = began.elapsed();
        let (_, known) = store.open_volumes();
        let bytes = resident().saturating_sub(before);
        println!(
            "{order}: {known} needles loaded in {:.2} s, {:.1} bytes of memory each",
            took.as_secs_f64(),
            bytes as f64 / known as f64,
        );
    }
    Ok(())
}

fn write(directory: &std::path::Path, needles: u64, order: &str) -> std::io::Result<()> {
    let dat = File::create(directory.join("1.dat"))?;
    dat.write_all_at(&[3, 0, 0, 0, 0, 0, 0, 0], 0)?;
    let mut idx = BufWriter::new(File::create(directory.join("1.idx"))?);
    let rounds = if order.contains("twice") { 2 } else { 1 };
    let length = Version::V3.record_length(SIZE);
    for step in 0..needles * rounds {
        let key = if order.contains("no order") { scatter(step, needles) } else { step % needles };
        // Offsets of 4 bytes end at 32 GiB; behind that nothing would be compared anyway.
        let offset = 8 + step * length % (30 << 30) / 8 * 8;
        if step < 64 {
            dat.write_all_at(&Header { cookie: COOKIE, key, size: SIZE.cast_signed() }.to_bytes(), offset)?;
        }
        idx.write_all(&key.to_be_bytes())?;
        idx.write_all(&u32::try_from(offset / 8).expect("below 32 GiB").to_be_bytes())?;
        idx.write_all(&SIZE.to_be_bytes())?;
    }
    dat.set_len(31 << 30)?;
    idx.flush()
}

/// A number below `count` that jumps about: steps of a large odd number.
fn scatter(step: u64, count: u64) -> u64 {
    step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % count
}

/// The resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
