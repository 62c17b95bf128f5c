//! What a workload is given: a fresh mount, its daemon, and the files to read.

use std::path::PathBuf;
use std::sync::Arc;

use ::tests::StatusPage;

use super::data::DataSet;
use super::disk_directory::DiskDirectory;

/// A fresh mount to measure.
#[derive(Clone)]
pub(super) struct MountUnderTest {
    /// The mount point.
    pub(super) root: PathBuf,
    /// The daemon that serves it.
    pub(super) daemon: i32,
    /// Where it tells what it does; only ours does.
    pub(super) status: Option<StatusPage>,
    pub(super) data: Arc<DataSet>,
    /// What it has on disk, in the rows about that.
    pub(super) disk: Option<DiskDirectory>,
    /// The directories of the volume servers.
    pub(super) volumes: Vec<PathBuf>,
    /// Random reads of a workload.
    pub(super) reads: usize,
    /// The same for both mounts in one repetition, another in the next: where random readers read.
    pub(super) seed: u64,
}
