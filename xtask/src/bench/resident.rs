//! The resident files of `interceptor`, seen from outside: when promotion has settled, and how
//! fast their memory can be read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::StatusPage;
use anyhow::{Result, ensure};

use super::data::LargeFile;
use super::reader;
use super::sample::{Sample, throughput};
use crate::interrupt;

/// How often to look.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Longest wait.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Waits until the daemon has no promotion under way. Returns at once without a status page.
pub(super) fn settle(status: Option<&StatusPage>) -> Result<()> {
    let Some(status) = status else { return Ok(()) };
    let started = Instant::now();
    while status.metric("interceptor_resident_files", &["state=\"waiting\""])? > 0.0 {
        ensure!(started.elapsed() < SETTLE_TIMEOUT, "resident files do not settle");
        interrupt::check()?;
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The samples of `pass`, and the rate at which `readers` threads read the resident file with the
/// content of `large` straight from its tmpfs, through the daemon's descriptor. The rate is taken
/// before and after the pass, because the speed of the machine changes in between. Without such a
/// file, only the samples of `pass`.
pub(super) fn beside_direct(
    daemon: i32,
    large: &LargeFile,
    readers: u64,
    pass: impl FnOnce() -> Result<Vec<Sample>>,
) -> Result<Vec<Sample>> {
    let Some(path) = find(daemon, large.size)? else { return pass() };
    let before = reader::together(&path, large, readers)?;
    let mut samples = pass()?;
    let after = reader::together(&path, large, readers)?;
    let bytes = (2 * readers * large.size) as f64;
    samples.push(Sample { figure: "directly", ..throughput(bytes, before + after) });
    Ok(samples)
}

/// The file of `size` bytes without a name that the daemon has open.
fn find(daemon: i32, size: u64) -> Result<Option<PathBuf>> {
    for descriptor in fs::read_dir(format!("/proc/{daemon}/fd"))? {
        let path = descriptor?.path();
        // Closed meanwhile, or without metadata.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_file() && meta.len() == size && meta.nlink() == 0 {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
