//! The one place where a read is answered: a range of a file's version becomes blocks of chunks, taken from the cache
//! or fetched into it.

use std::ops::Deref;
use std::sync::Arc;

use crate::seaweed::entry::Entry;

/// One immutable version of a file's content.
pub struct FileVersion {}

/// An open handle: a version, and what is known of how it is read.
pub struct OpenFile {}

/// The bytes of a read, held in the cache (pinned) or gathered; dropping it gives them up.
pub struct Data {}

impl Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}

/// Why a read could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// (more to come)
    #[error("…")]
    Todo,
}

impl ReadError {
    /// The error number an application is given.
    pub fn errno(&self) -> i32 {
        libc::EIO
    }
}

/// Answers reads of all files of a mount.
pub struct Reader {}

impl Reader {
    /// The version that `entry` describes. `path` is for log lines and for remote-only entries. Does no I/O: manifests
    /// are expanded at the first read.
    pub fn version(self: &Arc<Self>, _path: &str, _entry: &Arc<Entry>) -> Arc<FileVersion> {
        unimplemented!()
    }

    /// A handle on a version, for one open of it. Does no I/O by itself, but may start fetching.
    pub fn open(self: &Arc<Self>, _version: &Arc<FileVersion>) -> OpenFile {
        unimplemented!()
    }
}

impl OpenFile {
    /// The bytes at `offset`, up to `len` of them, fewer only at the end of the file; `None` if anything must be
    /// fetched first. Never blocks.
    pub fn try_read(&self, _offset: u64, _len: usize) -> Option<Data> {
        unimplemented!()
    }

    /// Like [`try_read`](Self::try_read), waiting for what must be fetched.
    pub async fn read(&self, _offset: u64, _len: usize) -> Result<Data, ReadError> {
        unimplemented!()
    }
}
