//! The files of a job.

use std::any::Any;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};

use super::wire::FileProblem;
use crate::read::FileVersion;

/// A file of a job, which stays the same file if it is renamed or replaced meanwhile.
pub trait WarmupFile: Send + Sync {
    /// Resolves the version of the file that can be read.
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>>;
}

/// A version, and what keeps it readable.
pub struct PinnedVersion {
    /// The version of the file.
    pub version: Arc<FileVersion>,
    /// An object that must live while the version is read, such as the open file that it reads
    /// from.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

impl WarmupFile for Arc<FileVersion> {
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>> {
        ready(Ok(PinnedVersion { version: self.clone(), pin: None })).boxed()
    }
}
