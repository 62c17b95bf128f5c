//! Reads of a file whose bytes are in no page cache: how much of what the disk below the volume
//! server gives arrives.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use super::buffer::Buffer;
use super::mount_under_test::MountUnderTest;
use super::reader;
use super::sample::{Sample, throughput};

/// Reads of the disk at the same time when it is read directly: enough for its queue.
const DEPTH: usize = 8;
/// Bytes of each of them.
const READ_SIZE: usize = 1 << 20;

/// One pass over the large file, and the same number of bytes of the volumes' files directly.
pub(super) fn pass(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let large = &site.data.large;
    drop_volumes(site)?;
    let seconds = reader::sequential(&site.root, large)?;
    let mut samples = vec![throughput(large.size as f64, seconds)];
    if site.status.is_some() && !site.volumes.is_empty() {
        drop_volumes(site)?;
        let (bytes, seconds) = read_directly(&site.volumes, large.size)?;
        samples.push(Sample { figure: "directly", ..throughput(bytes as f64, seconds) });
    }
    Ok(samples)
}

fn drop_volumes(site: &MountUnderTest) -> Result<()> {
    site.volumes.iter().try_for_each(|directory| reader::drop_pages_below(directory))
}

/// Reads up to `most` bytes of the largest files in `directories`, a few pieces at a time. Returns
/// how many bytes that were, and the seconds.
fn read_directly(directories: &[PathBuf], most: u64) -> Result<(u64, f64)> {
    let mut files =
        directories.iter().map(|directory| volumes_in(directory)).collect::<Result<Vec<_>>>()?.concat();
    files.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    let mut pieces = Vec::new();
    for (size, path) in files {
        let file = Arc::new(File::open(&path).with_context(|| path.display().to_string())?);
        let whole = size / READ_SIZE as u64;
        pieces.extend((0..whole).map(|number| (file.clone(), number * READ_SIZE as u64)));
    }
    pieces.truncate((most / READ_SIZE as u64) as usize);
    let (next, started) = (AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        let read = || -> Result<()> {
            let mut buffer = Buffer::new(READ_SIZE);
            while let Some((file, offset)) = pieces.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                file.read_exact_at(&mut buffer, *offset)?;
            }
            Ok(())
        };
        let readers: Vec<_> = (0..DEPTH).map(|_| scope.spawn(read)).collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(((pieces.len() * READ_SIZE) as u64, started.elapsed().as_secs_f64()))
}

/// The files of volumes below a directory, with their sizes.
fn volumes_in(directory: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(volumes_in(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "dat") {
            found.push((fs::metadata(&path)?.len(), path));
        }
    }
    Ok(found)
}
