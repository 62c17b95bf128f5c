//! Complete files, which the kernel can read without the daemon.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use foldhash::fast::RandomState;

use super::file::CacheFile;
use super::name::DiskName;

/// Complete files that are held open at most, beyond those that are in use.
const MAX_UNUSED_FILES: usize = 1024;

/// A file that has all of its bytes, each of which was verified by this process. They never
/// change: nothing is written to a complete file. The space of a file that was removed is free
/// again when this is dropped and the kernel has neither a descriptor nor a mapping of it.
#[derive(Debug)]
pub struct CompleteFile {
    /// Dropped before the file is closed.
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
    file: Arc<CacheFile>,
}

impl CompleteFile {
    pub(super) fn new(file: Arc<CacheFile>) -> Self {
        Self { attachment: OnceLock::new(), file }
    }

    /// The value that was [attached](Self::attach).
    pub fn attachment(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.attachment.get().map(AsRef::as_ref)
    }

    /// Keeps `value`, such as the kernel's backing id of the file, as long as this lives. Returns
    /// the value that is attached, which is another one if another thread was faster.
    pub fn attach(&self, value: Box<dyn Any + Send + Sync>) -> &(dyn Any + Send + Sync) {
        self.attachment.get_or_init(|| value).as_ref()
    }
}

impl AsFd for CompleteFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.data()
    }
}

/// The complete files that are open.
#[derive(Debug, Default)]
pub(super) struct CompleteFiles(HashMap<DiskName, (Arc<CompleteFile>, Instant), RandomState>);

impl CompleteFiles {
    /// The file under `name`, if it is open.
    pub(super) fn get(&mut self, name: &DiskName) -> Option<Arc<CompleteFile>> {
        let (file, last_used) = self.0.get_mut(name)?;
        *last_used = Instant::now();
        Some(file.clone())
    }

    /// Holds a file open. Returns one that is closed for it, which must be dropped without locks.
    #[must_use]
    pub(super) fn insert(&mut self, name: DiskName, file: CompleteFile) -> Option<Arc<CompleteFile>> {
        let unused = self.0.iter().filter(|(_, (file, _))| Arc::strong_count(file) == 1);
        let unused: Vec<_> = unused.map(|(name, (_, last_used))| (*last_used, *name)).collect();
        let oldest = unused.iter().min().filter(|_| unused.len() >= MAX_UNUSED_FILES).map(|(_, name)| *name);
        self.0.entry(name).or_insert_with(|| (Arc::new(file), Instant::now()));
        oldest.and_then(|oldest| self.remove(&oldest))
    }

    /// Whether a handle has the file open.
    pub(super) fn is_in_use(&self, name: &DiskName) -> bool {
        self.0.get(name).is_some_and(|(file, _)| Arc::strong_count(file) > 1)
    }

    /// Lets no later open find files that have no name any more. Returns them, to be dropped
    /// without locks.
    #[must_use]
    pub(super) fn take_removed(&mut self) -> Vec<Arc<CompleteFile>> {
        let is_removed = |_: &DiskName, (file, _): &mut (Arc<CompleteFile>, Instant)| file.file.is_removed();
        self.0.extract_if(is_removed).map(|(_, (file, _))| file).collect()
    }

    /// Lets no later open find the file. Returns it, to be dropped without locks.
    #[must_use]
    pub(super) fn remove(&mut self, name: &DiskName) -> Option<Arc<CompleteFile>> {
        self.0.remove(name).map(|(file, _)| file)
    }
}
