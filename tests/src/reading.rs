//! The ways in which applications read a file, each of which takes another path through the
//! kernel.
//!
//! [`verify`] reads a file in all of them. Between two ways the file's pages are dropped, so that
//! the daemon, and not the page cache, answers each time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::data::assert_same;

/// Reads `path` in every way and compares with `expected`.
///
/// # Panics
/// When a read fails or gives other bytes.
#[track_caller]
pub fn verify(path: &Path, expected: &[u8]) {
    let name = path.display();
    let length = fs::metadata(path).unwrap_or_else(|error| panic!("stat of {name}: {error}")).len();
    assert_eq!(length, expected.len() as u64, "size of {name}");
    let read = |way: &str, bytes: io::Result<Vec<u8>>| {
        let bytes = bytes.unwrap_or_else(|error| panic!("{name} {way}: {error}"));
        assert_same(&format!("{name} {way}"), &bytes, expected);
        forget(path).unwrap_or_else(|error| panic!("forgetting {name}: {error}"));
    };
    read("whole", fs::read(path));
    read("in odd pieces", in_pieces(path, 7919));
    read("mapped", mapped(path));
    read("with O_DIRECT", direct(path));
    random(path, expected, expected.len() as u64, 60);
}

/// Reads `count` ranges of random offset and length, a few beyond the end, and compares them with
/// `expected`.
///
/// # Panics
/// When a read fails or gives other bytes.
#[track_caller]
pub fn random(path: &Path, expected: &[u8], seed: u64, count: usize) {
    let name = path.display();
    let file = File::open(path).unwrap_or_else(|error| panic!("opening {name}: {error}"));
    let mut dice = StdRng::seed_from_u64(seed);
    let mut buffer = vec![0; 300_000];
    for _ in 0..count {
        let offset = dice.random_range(0..expected.len() + 2);
        let longest = if dice.random_bool(0.5) { 5000 } else { buffer.len() };
        let length = dice.random_range(1..=longest);
        let end = (offset + length).min(expected.len());
        let wanted = &expected[offset.min(end)..end];
        let count = read_full(&file, &mut buffer[..length], offset as u64)
            .unwrap_or_else(|error| panic!("{name} at {offset}+{length}: {error}"));
        assert_same(&format!("{name} at {offset}+{length}"), &buffer[..count], wanted);
    }
}

/// The error number of a read of the whole file that must fail.
///
/// # Panics
/// When it succeeds.
#[track_caller]
pub fn error_of(path: &Path) -> i32 {
    match fs::read(path) {
        Ok(bytes) => panic!("{}: {} bytes were read instead of an error", path.display(), bytes.len()),
        Err(error) => error.raw_os_error().unwrap_or_else(|| panic!("{}: {error}", path.display())),
    }
}

/// Reads at `offset` until the buffer is full or the file ends; the number of bytes read.
///
/// # Errors
/// Those of the file.
pub fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// The content, read with buffers of `piece` bytes.
fn in_pieces(path: &Path, piece: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; piece];
    let mut bytes = Vec::new();
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

/// The content, through a mapping.
pub fn mapped(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let Some(length) = NonZeroUsize::new(usize::try_from(file.metadata()?.len()).expect("a small file"))
    else {
        return Ok(Vec::new());
    };
    // SAFETY: a new private mapping of `length` bytes; the suites do not truncate a file while it
    // is mapped, and the slice is copied before the mapping goes.
    unsafe {
        let start = mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, file.as_fd(), 0)?;
        let bytes = std::slice::from_raw_parts(start.as_ptr().cast::<u8>(), length.get()).to_vec();
        munmap(start, length.get())?;
        Ok(bytes)
    }
}

/// The content, past the page cache.
fn direct(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Asks the kernel to drop the pages of a file.
///
/// # Errors
/// When the file cannot be opened.
pub fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}
