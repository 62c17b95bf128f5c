//! Whether what was read is what was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ::tests::Pattern;
use anyhow::{Context, Result, bail, ensure};

/// How far apart [`probe`] looks: a word in every page.
const PROBE_STRIDE: usize = 4096;

/// Compares one word in each page of `data`, which was read at `offset`, a multiple of 8: cheap
/// enough to be done while a clock runs. The position in the page changes from read to read. A
/// misplaced block and a page of zeros are always detected.
pub(super) fn probe(pattern: Pattern, path: &str, offset: u64, data: &[u8]) -> Result<()> {
    let whole = data.len() & !7;
    let turn = (offset >> 12) as usize + data.len();
    let mut word = [0; 8];
    for at in (turn * 8 % PROBE_STRIDE.min(whole.max(8))..whole).step_by(PROBE_STRIDE) {
        pattern.fill(offset + at as u64, &mut word);
        ensure!(data[at..at + 8] == word, "WRONG BYTES in {path} at offset {}", offset + at as u64);
    }
    Ok(())
}

/// Fails unless the file has exactly the bytes of the pattern.
pub(super) fn compare(root: &Path, path: &str, size: u64, pattern: Pattern) -> Result<()> {
    let handle = File::open(root.join(path)).with_context(|| format!("cannot open {path}"))?;
    let (mut found, mut expected) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let count = handle.read_at(&mut found, at).with_context(|| format!("{path} at {at}"))?;
        if count == 0 {
            break;
        }
        pattern.fill(at, &mut expected[..count]);
        if let Some(wrong) =
            found[..count].iter().zip(&expected).position(|(found, expected)| found != expected)
        {
            bail!("WRONG BYTES in {path} at offset {}", at + wrong as u64);
        }
        at += count as u64;
    }
    ensure!(at == size, "{path} has {at} bytes, not {size}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong_at(pattern: Pattern, offset: u64, data: &[u8]) -> Option<String> {
        probe(pattern, "f", offset, data).err().map(|error| error.to_string())
    }

    #[test]
    fn right_bytes_pass_at_any_length() {
        let pattern = Pattern::new(5);
        for (offset, len) in [(0, 0), (0, 3), (8, 8), (4096, 4096), (8192, 70_001), (1 << 30, 1 << 20)] {
            assert_eq!(wrong_at(pattern, offset, &pattern.bytes(offset, len)), None);
        }
    }

    #[test]
    fn a_block_from_elsewhere_and_a_page_of_zeros_are_seen() {
        let pattern = Pattern::new(5);
        let mut data = pattern.bytes(4096, 16 * 4096);
        assert!(wrong_at(pattern, 8192, &data).unwrap().contains("WRONG BYTES in f at offset 8"));
        assert!(wrong_at(Pattern::new(6), 4096, &data).is_some());
        for page in 0..16 {
            data[page * 4096..(page + 1) * 4096].fill(0);
            assert!(wrong_at(pattern, 4096, &data).is_some(), "page {page}");
            pattern.fill(4096 + page as u64 * 4096, &mut data[page * 4096..(page + 1) * 4096]);
        }
    }

    #[test]
    fn a_single_wrong_bit_and_a_wrong_length_are_seen_by_a_comparison() {
        let directory = tempfile::tempdir().unwrap();
        let pattern = Pattern::new(9);
        let mut data = pattern.bytes(0, (1 << 20) + 77);
        let write = |data: &[u8]| std::fs::write(directory.path().join("f"), data).unwrap();
        let outcome = |size| compare(directory.path(), "f", size, pattern).map_err(|error| error.to_string());
        let size = data.len() as u64;
        write(&data);
        assert_eq!(outcome(size), Ok(()));
        assert!(outcome(size + 1).unwrap_err().contains("not 1048654"));
        data[(1 << 20) + 5] ^= 1;
        write(&data);
        assert!(outcome(size).unwrap_err().contains("at offset 1048581"));
    }
}
