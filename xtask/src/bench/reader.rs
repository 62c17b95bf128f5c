//! The application of the benchmark: plain loops of `pread` into a buffer that is used again.
//!
//! While the clock runs, one word in each page is compared with the data set, so that no speed of
//! wrong bytes is reported. That costs both mounts the same 1 to 3 percent at most.
//! [`verify::compare`](super::verify::compare) compares every byte, with no clock.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use ::tests::Pattern;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::buffer::Buffer;
use super::data::{LargeFile, SmallFile};
use super::verify::probe;

/// Size of the reads of a sequential reader.
const BLOCK: usize = 1 << 20;

/// Seconds that one pass over the whole file takes.
pub(super) fn sequential(root: &Path, file: &LargeFile) -> Result<f64> {
    part(&root.join(&file.path), file, 0, file.size)
}

/// Seconds that one pass over the whole of each file takes.
pub(super) fn whole(root: &Path, files: &[SmallFile]) -> Result<f64> {
    let mut buffer = Buffer::new(BLOCK);
    let started = Instant::now();
    for file in files {
        let handle = open(&root.join(&file.path))?;
        read_part(&handle, &mut buffer, &file.path, file.pattern, 0..file.size)?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds that `readers` threads, started together, take to read the whole file at `path`, which
/// has the content of `file`.
pub(super) fn together(path: &Path, file: &LargeFile, readers: u64) -> Result<f64> {
    concurrent((0..readers).map(|_| (0, file.size)), path, file)
}

/// Seconds until `readers` that start together have read the file between them, each its own part.
pub(super) fn divided(root: &Path, file: &LargeFile, readers: u64) -> Result<f64> {
    let share = file.size.div_ceil(readers).next_multiple_of(BLOCK as u64);
    concurrent(
        (0..readers).map(|i| ((i * share).min(file.size), ((i + 1) * share).min(file.size))),
        &root.join(&file.path),
        file,
    )
}

fn concurrent(ranges: impl Iterator<Item = (u64, u64)>, path: &Path, file: &LargeFile) -> Result<f64> {
    let started = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> =
            ranges.map(|(begin, end)| scope.spawn(move || part(path, file, begin, end))).collect();
        for reader in readers {
            reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
        }
        Ok(started.elapsed().as_secs_f64())
    })
}

fn part(path: &Path, file: &LargeFile, begin: u64, end: u64) -> Result<f64> {
    let mut buffer = Buffer::new(BLOCK);
    let started = Instant::now();
    let handle = open(path)?;
    read_part(&handle, &mut buffer, &file.path, file.pattern, begin..end)?;
    Ok(started.elapsed().as_secs_f64())
}

fn read_part(
    handle: &File,
    buffer: &mut Buffer,
    path: &str,
    pattern: Pattern,
    range: Range<u64>,
) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let want = BLOCK.min((range.end - at) as usize);
        let got = handle.read_at(&mut buffer[..want], at).with_context(|| format!("read at {at}"))?;
        ensure!(got > 0, "{path} ends at {at}, not at {}", range.end);
        probe(pattern, path, at, &buffer[..got])?;
        at += got as u64;
    }
    Ok(())
}

/// Seconds of each of `count` reads of `len` bytes at random multiples of `len`. The same `seed`
/// gives the same offsets.
pub(super) fn random(root: &Path, file: &LargeFile, len: usize, count: usize, seed: u64) -> Result<Vec<f64>> {
    let places = file.size / len as u64;
    ensure!(places > 0, "the file is smaller than one read");
    let mut dice = StdRng::seed_from_u64(seed);
    each(root, file, len, (0..count).map(|_| dice.random_range(0..places) * len as u64))
}

/// Seconds of each of the reads of `len` bytes at `offsets`, in their order.
pub(super) fn each(
    root: &Path,
    file: &LargeFile,
    len: usize,
    offsets: impl Iterator<Item = u64>,
) -> Result<Vec<f64>> {
    let mut buffer = Buffer::new(len);
    let handle = open(&root.join(&file.path))?;
    let mut seconds = Vec::new();
    for at in offsets {
        let started = Instant::now();
        handle.read_exact_at(&mut buffer, at).with_context(|| format!("read at {at}"))?;
        seconds.push(started.elapsed().as_secs_f64());
        probe(file.pattern, &file.path, at, &buffer)?;
    }
    Ok(seconds)
}

/// One pass over small files.
pub(super) struct SmallFilePass {
    /// Of the whole pass, seconds.
    pub(super) elapsed: f64,
    /// Of each file: open, read to the end, close.
    pub(super) each: Vec<f64>,
}

/// Opens, reads and closes each file.
pub(super) fn small<'a>(root: &Path, files: impl Iterator<Item = &'a SmallFile>) -> Result<SmallFilePass> {
    let mut buffer = Buffer::new(256 << 10);
    let mut each = Vec::new();
    let begun = Instant::now();
    for file in files {
        let started = Instant::now();
        let handle = open(&root.join(&file.path))?;
        let mut filled = 0;
        loop {
            let got =
                handle.read_at(&mut buffer[filled..], filled as u64).with_context(|| file.path.clone())?;
            if got == 0 {
                break;
            }
            filled += got;
        }
        drop(handle);
        each.push(started.elapsed().as_secs_f64());
        ensure!(filled as u64 == file.size, "{} has {filled} bytes, not {}", file.path, file.size);
        probe(file.pattern, &file.path, 0, &buffer[..filled])?;
    }
    Ok(SmallFilePass { elapsed: begun.elapsed().as_secs_f64(), each })
}

/// Seconds to list a tree and stat all its files, and the number of files.
pub(super) fn walk(root: &Path) -> Result<(f64, u64)> {
    fn descend(directory: &Path) -> Result<u64> {
        let mut files = 0;
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files += if meta.is_dir() { descend(&entry.path())? } else { 1 };
        }
        Ok(files)
    }
    let started = Instant::now();
    let files = descend(root)?;
    Ok((started.elapsed().as_secs_f64(), files))
}

/// Drops the pages that the kernel caches of these files of the mount, and no others: the daemon's
/// cache and the page cache of the volume server stay as they are.
pub(super) fn drop_pages<'a>(root: &Path, paths: impl Iterator<Item = &'a str>) -> Result<()> {
    for path in paths {
        let handle = open(&root.join(path))?;
        posix_fadvise(&handle, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .with_context(|| format!("cannot drop the pages of {path}"))?;
    }
    Ok(())
}

/// Drops the pages of all files below a directory.
pub(super) fn drop_pages_below(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // A file that the daemon removes meanwhile has no pages.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            drop_pages_below(&path)?;
        } else if let Ok(file) = File::open(&path) {
            file.sync_data()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}
