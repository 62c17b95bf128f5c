//! Passes over the same files that begin at once after each other: what a mount keeps of what it
//! has just read, and what its keeping costs the next reader.

use anyhow::Result;

use super::data::SmallFile;
use super::mount_under_test::MountUnderTest;
use super::reader;
use super::sample::{Sample, Unit, throughput};

const PASSES: [&str; 3] = ["pass 1", "pass 2", "pass 3"];

/// Three passes over `files`, with the mount's pages of them dropped after each; and what was
/// fetched in the second and third together.
pub(super) fn dropped(site: &MountUnderTest, files: &[SmallFile]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut fetched = None;
    for figure in PASSES {
        let seconds = reader::whole(&site.root, files)?;
        let bytes = files.iter().map(|file| file.size).sum::<u64>() as f64;
        samples.push(Sample { figure, ..throughput(bytes, seconds) });
        if fetched.is_none() {
            fetched = fetched_bytes(site)?;
        }
        reader::drop_pages(&site.root, files.iter().map(|file| file.path.as_str()))?;
    }
    if let (Some(before), Some(after)) = (fetched, fetched_bytes(site)?) {
        let value = (after - before) / 1e6;
        samples.push(Sample { figure: "fetched again", unit: Unit::Megabytes, value });
    }
    Ok(samples)
}

/// Three more passes over the large file after a first one.
pub(super) fn warm(site: &MountUnderTest) -> Result<Vec<Sample>> {
    let large = &site.data.large;
    reader::sequential(&site.root, large)?;
    let mut seconds = 0.0;
    for _ in PASSES {
        seconds += reader::sequential(&site.root, large)?;
    }
    Ok(vec![throughput((PASSES.len() as u64 * large.size) as f64, seconds)])
}

/// Bytes that the mount has fetched from the cluster so far, if it tells.
pub(super) fn fetched_bytes(site: &MountUnderTest) -> Result<Option<f64>> {
    site.status.as_ref().map(|status| status.metric("interceptor_fetch_bytes_total", &[])).transpose()
}
