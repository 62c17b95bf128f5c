//! Test data: reproducible, checkable at any offset, and checksums of it.
//!
//! A [`Pattern`] is an endless stream of random bytes of which every part can be computed by
//! itself, so that a read at any offset is checked without keeping the file. It does not compress;
//! [`text`] does, very well.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Random bytes, a function of seed and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Pattern {
        Pattern { seed }
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        let skip = usize::try_from(offset % 8).expect("below 8");
        let mut word = offset / 8;
        let (head, rest) = buffer.split_at_mut(if skip == 0 { 0 } else { (8 - skip).min(buffer.len()) });
        if !head.is_empty() {
            head.copy_from_slice(&self.word(word)[skip..skip + head.len()]);
            word += 1;
        }
        for piece in rest.chunks_mut(8) {
            piece.copy_from_slice(&self.word(word)[..piece.len()]);
            word += 1;
        }
    }

    /// `length` bytes from `offset` on.
    #[must_use]
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(offset, &mut bytes);
        bytes
    }

    /// The first `length` bytes as a reader, for big uploads.
    #[must_use]
    pub fn reader(&self, length: u64) -> PatternReader {
        PatternReader { pattern: *self, offset: 0, length }
    }

    /// One word of SplitMix64, which needs no state but its index.
    fn word(&self, index: u64) -> [u8; 8] {
        let mut z = self.seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

/// See [`Pattern::reader`].
#[derive(Clone, Debug)]
pub struct PatternReader {
    pattern: Pattern,
    offset: u64,
    length: u64,
}

impl Read for PatternReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.offset).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.pattern.fill(self.offset, &mut buffer[..count]);
        self.offset += count as u64;
        Ok(count)
    }
}

/// `length` bytes of log-like text, different for each seed.
#[must_use]
pub fn text(seed: u64, length: usize) -> Vec<u8> {
    const WORDS: [&str; 8] = ["volume", "needle", "read", "offset", "cookie", "chunk", "filer", "served"];
    let pattern = Pattern::new(seed);
    let mut bytes = Vec::with_capacity(length + 64);
    let mut line = 0;
    while bytes.len() < length {
        let choice = pattern.word(line);
        bytes.extend_from_slice(format!("{line:08} ").as_bytes());
        for index in choice {
            bytes.extend_from_slice(WORDS[usize::from(index % 8)].as_bytes());
            bytes.push(b' ');
        }
        bytes.push(b'\n');
        line += 1;
    }
    bytes.truncate(length);
    bytes
}

/// The sha256 of bytes, in hex.
#[must_use]
pub fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The sha256 of everything that `reader` gives, in hex.
///
/// # Errors
/// Those of the reader.
pub fn sum_reader(mut reader: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The sha256 of a file's content, in hex.
///
/// # Errors
/// Those of opening and reading.
pub fn sum_file(path: &Path) -> io::Result<String> {
    sum_reader(File::open(path)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Fails with the place of the first difference, instead of printing two megabytes.
///
/// # Panics
/// When the two differ.
#[track_caller]
pub fn assert_same(what: &str, read: &[u8], expected: &[u8]) {
    if read == expected {
        return;
    }
    let place = read.iter().zip(expected).position(|(left, right)| left != right);
    match place {
        Some(at) => {
            let end = (at + 16).min(read.len()).min(expected.len());
            panic!(
                "{what}: {} bytes read, {} expected, first difference at {at}: {:02x?} instead of {:02x?}",
                read.len(),
                expected.len(),
                &read[at..end],
                &expected[at..end]
            )
        }
        None => panic!("{what}: {} bytes read, {} expected, equal up to there", read.len(), expected.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_pattern_equals_that_part_of_the_whole() {
        let pattern = Pattern::new(7);
        let whole = pattern.bytes(0, 200);
        for start in 0..40 {
            for end in start..200 {
                assert_eq!(pattern.bytes(start as u64, end - start), whole[start..end], "{start}..{end}");
            }
        }
        let mut read = Vec::new();
        pattern.reader(199).read_to_end(&mut read).unwrap();
        assert_eq!(read, whole[..199]);
    }

    #[test]
    fn the_sum_is_sha256() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sum(b"abc"), expected);
        assert_eq!(sum_reader(&b"abc"[..]).unwrap(), expected);
    }
}
