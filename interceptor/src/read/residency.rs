//! Which files the kernel can read without the daemon: those that are resident, complete in memory,
//! and those that are complete on disk.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::promote::Promoter;
use super::{FileVersion, OriginFile, Reader};
use crate::cache::resident::{ContentId, PromotionReason, ResidentError, ResidentFile, ResidentFiles};
use crate::disk;

/// A file with all bytes of a version, which the kernel can read by itself.
#[derive(Debug, Clone)]
pub enum CompleteFile {
    /// In memory. Bytes can be appended.
    Resident(Arc<ResidentFile>),
    /// On disk.
    OnDisk(Arc<disk::CompleteFile>),
}

impl CompleteFile {
    /// The value that was [attached](Self::attach).
    pub fn attachment(&self) -> Option<&(dyn Any + Send + Sync)> {
        match self {
            Self::Resident(file) => file.attachment(),
            Self::OnDisk(file) => file.attachment(),
        }
    }

    /// Keeps `value`, such as the kernel's backing id of the file, as long as the file lives.
    /// Returns the value that is attached, which is another one if another thread was faster.
    pub fn attach(&self, value: Box<dyn Any + Send + Sync>) -> &(dyn Any + Send + Sync) {
        match self {
            Self::Resident(file) => file.attach(value),
            Self::OnDisk(file) => file.attach(value),
        }
    }
}

impl AsFd for CompleteFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Resident(file) => file.as_fd(),
            Self::OnDisk(file) => file.as_fd(),
        }
    }
}

impl Reader {
    /// From now on, makes hot files resident. To be called by a file system that hands them to the
    /// kernel; before that, [`opened`](Self::opened) finds none.
    ///
    /// # Errors
    /// When this host or this cache has no room for such files. Everything else works without.
    pub fn keep_resident_files(self: &Arc<Self>) -> Result<(), ResidentError> {
        let residents = self.cache.residents()?;
        self.promoter.get_or_init(|| Promoter::start(residents.clone(), self, &self.runtime));
        Ok(())
    }

    /// Notes that a handle of `version` is opened, which counts as a use. Returns the file that the
    /// kernel can read, complete, if there is one. A resident file is not displaced by others
    /// before as many handles were [closed](Self::closed) as were opened. Never blocks.
    pub fn opened(&self, version: &FileVersion) -> Option<CompleteFile> {
        let (residents, content) = (self.residents()?, version.content_id()?);
        let resident = residents.opened(content);
        // Another version with the same content may have begun a draft.
        let known = resident.clone().or_else(|| Some(residents.find_draft(&content)?.file().clone()));
        known.inspect(|known| version.activity().note_resident(known));
        let on_disk = self.loader.disk().and_then(|disk| disk.opened(version, resident.as_ref()));
        resident.map(CompleteFile::Resident).or(on_disk.map(CompleteFile::OnDisk))
    }

    /// Notes that the kernel does not take files of the disk cache: [`opened`](Self::opened)
    /// returns none any more.
    pub fn disk_passthrough_refused(&self) {
        if let Some(disk) = self.loader.disk() {
            disk.passthrough_refused();
        }
    }

    /// Notes that a handle of `version` that was [opened](Self::opened) is closed.
    pub fn closed(&self, version: &FileVersion) {
        if let (Some(residents), Some(content)) = (self.residents(), version.content_id()) {
            residents.closed(&content);
        }
    }

    /// Notes that the origin has removed `old`, or put `new` in its place. If the bytes are others,
    /// later opens do not get the resident file of the old ones; handles that have it keep it.
    pub fn replaced(&self, old: &dyn OriginFile, new: Option<&dyn OriginFile>) {
        let Some(residents) = self.residents() else { return };
        if let Some(content) = old.content_id()
            && new.and_then(OriginFile::content_id) != Some(content)
        {
            residents.retire(&content);
        }
    }

    /// Has the file made resident if it is worth it. Returns whether it is resident or waits for
    /// that, or whether the kernel can read it from the disk.
    pub(super) fn consider(&self, file: &Arc<FileVersion>, worth: PromotionReason) -> bool {
        if self.loader.disk().is_some_and(|disk| disk.has_complete(file)) {
            return true;
        }
        self.promoter.get().is_some_and(|promoter| promoter.consider(file, worth))
    }

    /// The resident file of `version`. Does not count as a use.
    pub(super) fn resident(&self, version: &FileVersion) -> Option<Arc<ResidentFile>> {
        self.residents()?.find(&version.content_id()?)
    }

    pub(super) fn is_resident(&self, file: &dyn OriginFile) -> bool {
        let find = |residents: &Arc<ResidentFiles>| residents.find(&file.content_id()?);
        self.residents().and_then(find).is_some()
    }

    /// Whether there is a resident file of `content`, or a draft of one.
    pub(super) fn is_kept(&self, content: &ContentId) -> bool {
        // In this order: a draft becomes the resident file.
        let find = |residents: &Arc<ResidentFiles>| {
            residents.find_draft(content).is_some() || residents.find(content).is_some()
        };
        self.residents().is_some_and(find)
    }

    /// Lets no later open get the resident file of `version`. Returns its size in bytes, 0 if
    /// there is none.
    pub(super) fn retire(&self, version: &FileVersion) -> u64 {
        let retire = || Some(self.residents()?.retire(&version.content_id()?));
        retire().unwrap_or(0)
    }

    pub(super) fn residents(&self) -> Option<&Arc<ResidentFiles>> {
        self.promoter.get().map(Promoter::residents)
    }
}
