//! The data set of the benchmark: one large file and many small ones, random throughout; for rows
//! that read them, also files of some chunks, and files of one.

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

/// Bytes of a file of some chunks, and of a file of one.
const MEDIUM_SIZE: u64 = 8 << 20;
const CHUNK_SIZE: u64 = 1 << 20;

/// The large file.
#[derive(Debug, Clone)]
pub(super) struct LargeFile {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

/// One of many files.
#[derive(Debug, Clone)]
pub(super) struct SmallFile {
    /// Relative to the mount point.
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) pattern: Pattern,
}

impl LargeFile {
    /// The same among others.
    pub(super) fn as_file(&self) -> SmallFile {
        SmallFile { path: self.path.clone(), size: self.size, pattern: self.pattern }
    }
}

/// Everything that is read.
#[derive(Debug)]
pub(super) struct DataSet {
    pub(super) large: LargeFile,
    /// In the order of their names.
    pub(super) small: Vec<SmallFile>,
    /// Files of some chunks, together about as large as the large file. Empty if no row reads
    /// them.
    pub(super) medium: Vec<SmallFile>,
    /// The same of files of one chunk.
    pub(super) chunks: Vec<SmallFile>,
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
            medium: Vec::new(),
            chunks: Vec::new(),
        }
    }

    /// The same, with files of some chunks and of one.
    pub(super) fn with_medium(mut self) -> Self {
        let files = |directory: &str, size: u64| {
            let file = |number| SmallFile {
                path: format!("{directory}/f{number:05}.bin"),
                size,
                pattern: Pattern::new(size + number),
            };
            (0..self.large.size.div_ceil(size)).map(file).collect()
        };
        self.medium = files("medium", MEDIUM_SIZE);
        self.chunks = files("chunks", CHUNK_SIZE);
        self
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let others = self.medium.iter().chain(&self.chunks);
        self.large.size + self.small_bytes() + others.map(|file| file.size).sum::<u64>()
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
        [&self.small, &self.medium, &self.chunks]
            .into_iter()
            .try_for_each(|files| upload::each(files, |file| put(&file.path, file.pattern, file.size)))
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
