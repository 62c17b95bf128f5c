//! The files that `interceptor` keeps resident, seen from outside: when they have settled, and how fast they can be read at most.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ::tests::StatusPage;
use anyhow::{Result, ensure};

use super::data::Large;
use super::reader;
use super::workloads::{Sample, throughput};
use crate::interrupt;

/// How often to look.
const LOOKS: Duration = Duration::from_millis(50);
/// Longest wait.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the daemon has made resident what it wants to. There is nothing to wait for without a status page.
pub(super) fn settle(status: Option<&StatusPage>) -> Result<()> {
    let Some(status) = status else { return Ok(()) };
    let started = Instant::now();
    while status.metric("interceptor_resident_files", &["state=\"waiting\""])? > 0.0 {
        ensure!(started.elapsed() < PATIENCE, "resident files do not settle");
        interrupt::check()?;
        thread::sleep(LOOKS);
    }
    Ok(())
}

/// What `pass` gives, and how fast `readers` at once read the resident file with the content of `large` as any process may read a file on a
/// tmpfs, by way of the daemon's descriptor: before and after the pass, because the machine changes in between. Only the pass if the daemon has no such file.
pub(super) fn beside_direct(
    daemon: i32,
    large: &Large,
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
        // Closed meanwhile, or none that can be looked at.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_file() && meta.len() == size && meta.nlink() == 0 {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
