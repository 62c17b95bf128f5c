//! Where bytes come from when they are not in the cache.

use futures::future::BoxFuture;

use super::error::{OriginError, ReadError};
use super::layout::{FileLayout, Object};
use super::version::FileVersion;
use crate::arrival::Arrival;
use crate::priority::Priority;
use crate::telemetry::Source;
use crate::timeline::Timeline;
use crate::write_target::WriteTarget;

/// A store of files: tells in which objects a version's bytes are, and reads these.
pub trait Origin: Send + Sync + 'static {
    /// Resolves where the bytes of `file` are, for a request that arrived at `arrival`. Called for
    /// versions whose layout takes a fetch.
    fn resolve<'a>(
        &'a self,
        file: &'a FileVersion,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<FileLayout, ReadError>>;

    /// Fills `dst` with the decoded bytes of `object` from `offset` on, for the part of it that
    /// belongs to the file. How urgent that is may change meanwhile. What is done goes to
    /// `timeline`.
    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        priority: &'a Priority,
        timeline: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>>;
}
