//! The data set of the benchmark: one large file and many small ones, random throughout.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};

use crate::interrupt;
use crate::pattern::Pattern;
use crate::upload::{Stream, Uploader};

/// Small files in one directory.
const FILES_PER_DIRECTORY: usize = 100;
/// The smallest and the largest small file, bytes.
const SMALL_SIZES: (u64, u64) = (4 << 10, 128 << 10);

/// The large file.
#[derive(Debug, Clone)]
pub(super) struct Large {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

/// One of the small files.
#[derive(Debug, Clone)]
pub(super) struct Small {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

/// Everything that is read.
#[derive(Debug)]
pub(super) struct DataSet {
    pub(super) large: Large,
    /// In the order of their names.
    pub(super) small: Vec<Small>,
}

impl DataSet {
    /// The directory of the filer that is mounted.
    pub(super) const ROOT: &str = "/bench";
    /// The directory of the small files, relative to the mount point.
    pub(super) const SMALL: &str = "small";

    /// A data set of these sizes.
    pub(super) fn new(large: u64, small: usize) -> Self {
        let path = "large.bin".to_owned();
        let small = (0..small)
            .map(|number| {
                let path = format!("{}/d{:03}/f{number:06}.bin", Self::SMALL, number / FILES_PER_DIRECTORY);
                let span = SMALL_SIZES.1 - SMALL_SIZES.0 + 1;
                let mut spread = [0; 8];
                Pattern::of(&path).fill(0, &mut spread);
                let size = SMALL_SIZES.0 + u64::from_le_bytes(spread) % span;
                Small { pattern: Pattern::of(&path), path, size }
            })
            .collect();
        Self { large: Large { pattern: Pattern::of(&path), path, size: large }, small }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.large.size + self.small.iter().map(|file| file.size).sum::<u64>()
    }

    /// Writes all files; `progress` is told of bytes as they go out.
    pub(super) fn write(&self, uploader: &Uploader, progress: impl Fn(u64) + Sync) -> Result<()> {
        let put = |uploader: &Uploader, path: &str, pattern, size| {
            let stream = Stream::new(pattern, size, |part| progress(part.len() as u64));
            uploader.put(&format!("{}/{path}", Self::ROOT), size, stream)
        };
        put(uploader, &self.large.path, self.large.pattern, self.large.size)?;
        uploader.each(&self.small, |uploader, file| put(uploader, &file.path, file.pattern, file.size))
    }
}

/// Reads every file below `directory` once, so that the page cache beneath the volume server holds them.
pub(super) fn warm(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        interrupt::check()?;
        if entry.file_type()?.is_dir() {
            warm(&entry.path())?;
        } else if entry.file_type()?.is_file() {
            io::copy(&mut File::open(entry.path())?, &mut io::sink())?;
        }
    }
    Ok(())
}
