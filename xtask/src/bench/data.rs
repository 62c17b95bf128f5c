//! The data set of the benchmark: one large file and many small ones, random throughout.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use ::tests::{Filer, Pattern};
use anyhow::{Context, Result};

use crate::interrupt;
use crate::upload::{self, TappedReader};

/// Small files in one directory.
const FILES_PER_DIRECTORY: usize = 100;
/// The smallest and the largest small file, bytes.
const SMALL_SIZES: (u64, u64) = (4 << 10, 128 << 10);

/// The large file.
#[derive(Debug, Clone)]
pub(super) struct LargeFile {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

/// One of the small files.
#[derive(Debug, Clone)]
pub(super) struct SmallFile {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

/// Everything that is read.
#[derive(Debug)]
pub(super) struct DataSet {
    pub(super) large: LargeFile,
    /// In the order of their names.
    pub(super) small: Vec<SmallFile>,
}

impl DataSet {
    /// The directory of the filer that is mounted.
    pub(super) const ROOT: &str = "/bench";
    /// The directory of the small files, relative to the mount point.
    pub(super) const SMALL: &str = "small";

    /// A data set of these sizes.
    pub(super) fn new(large: u64, small: usize) -> Self {
        let small = (0..small)
            .map(|number| {
                let path = format!("{}/d{:03}/f{number:06}.bin", Self::SMALL, number / FILES_PER_DIRECTORY);
                let pattern = Pattern::new(1 + number as u64);
                let mut spread = [0; 8];
                pattern.fill(0, &mut spread);
                let size = SMALL_SIZES.0 + u64::from_le_bytes(spread) % (SMALL_SIZES.1 - SMALL_SIZES.0 + 1);
                SmallFile { path, size, pattern }
            })
            .collect();
        Self {
            large: LargeFile { path: "large.bin".to_owned(), size: large, pattern: Pattern::new(0) },
            small,
        }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.large.size + self.small_bytes()
    }

    /// Bytes of the small files.
    pub(super) fn small_bytes(&self) -> u64 {
        self.small.iter().map(|file| file.size).sum()
    }

    /// Writes all files; calls `progress` with the number of bytes as they are sent.
    pub(super) fn write(&self, filer: &Filer, progress: impl Fn(u64) + Sync) -> Result<()> {
        let put = |path: &str, pattern: Pattern, size| {
            let seen = |part: &[u8]| progress(part.len() as u64);
            filer.put_reader(
                &format!("{}/{path}", Self::ROOT),
                TappedReader { inner: pattern.reader(size), seen },
                "",
            )
        };
        put(&self.large.path, self.large.pattern, self.large.size)?;
        upload::each(&self.small, |file| put(&file.path, file.pattern, file.size))
    }
}

/// Reads every file below `directory` once, so that they are in the page cache of the volume
/// server.
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
