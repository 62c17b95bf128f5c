//! The disk between memory and the origin, in the terms of this room: which blocks are kept there,
//! and under which names.
//!
//! A block is kept when it is used a second time: fetched again, or read again while it is in
//! memory. A file whose objects follow each other without holes or overlaps is kept as a whole when
//! it is opened again, from the objects that are on disk, or from memory if it is resident. The
//! kernel can read it then. An object that is encrypted in the cluster is not kept at all, because
//! its decrypted bytes must not lie on a disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use super::FileVersion;
use super::layout::{FileLayout, Object};
use crate::cache::PinnedBlock;
use crate::cache::resident::ResidentFile;
use crate::disk::{ClusterIdentity, CompleteFile, DiskCache, DiskName, DiskObject, FileSource};
use crate::write_target::WriteTarget;

/// Tells uses of files from those of blocks: no block begins there.
const FILE_USE: u64 = u64::MAX;

/// Files that are kept by request at the same time.
const MAX_WARMUPS: usize = 4;

/// A disk cache that keeps blocks of one cluster.
#[derive(Debug)]
pub struct DiskTier {
    disk: Arc<DiskCache>,
    cluster: ClusterIdentity,
    /// Whether the kernel takes files of this disk, as far as is known.
    passes_through: AtomicBool,
    /// Held by files that are kept by request.
    warmups: Semaphore,
}

impl DiskTier {
    /// Keeps blocks of `cluster` on `disk`.
    pub fn new(disk: Arc<DiskCache>, cluster: ClusterIdentity) -> Self {
        Self { disk, cluster, passes_through: AtomicBool::new(true), warmups: Semaphore::new(MAX_WARMUPS) }
    }

    /// Fills `dst` with the bytes of `object` from `offset` on, if they are there. What `dst` has
    /// otherwise is undefined.
    pub(super) async fn read(&self, object: &Object, offset: u64, dst: &mut dyn WriteTarget) -> bool {
        match self.object(object) {
            Some(object) => self.disk.read(&object, offset, dst).await,
            None => false,
        }
    }

    /// Notes that a block of `object`, which begins at `offset`, was fetched.
    pub(super) fn fetched(&self, object: &Object, offset: u64, block: &PinnedBlock) {
        if let Some(object) = self.object(object)
            && self.disk.is_second_use(&object, offset)
        {
            self.disk.offer(object, offset, block.clone());
        }
    }

    /// Notes that a block of `object`, which begins at `offset`, was read again.
    pub(super) fn read_again(&self, object: &Object, offset: u64, block: &PinnedBlock) {
        if let Some(object) = self.object(object) {
            self.disk.offer(object, offset, block.clone());
        }
    }

    /// Notes that a handle of `version` is opened, whose resident file is `resident`, if it has
    /// one. Returns the file on disk for the kernel to read, if it is there and there is no
    /// resident one. Never blocks.
    pub(super) fn opened(
        &self,
        version: &FileVersion,
        resident: Option<&Arc<ResidentFile>>,
    ) -> Option<Arc<CompleteFile>> {
        let layout = version.layout_now()?;
        let name = self.file_name(version, layout)?;
        if resident.is_none()
            && self.passes_through.load(Ordering::Relaxed)
            && let Some(complete) = self.disk.opened(&name)
        {
            return Some(complete);
        }
        if self.disk.is_second_use(&DiskObject { name, len: version.size() }, FILE_USE)
            && self.disk.wants_file(&name, version.size())
            && let Some(objects) = self.objects(layout)
        {
            let source = match resident.cloned() {
                Some(file) => FileSource::Reader(Box::new(move |offset, bytes| file.read_at(bytes, offset))),
                None if self.disk.has_all(&objects) => FileSource::Disk,
                None => return None,
            };
            // Nothing waits for it.
            drop(self.disk.keep_file(name, objects, source));
        }
        None
    }

    /// Whether files can be written to the disk.
    pub(super) fn is_writer(&self) -> bool {
        self.disk.is_writer()
    }

    /// Keeps all of `version`: as one file, or, if its objects do not follow each other, each
    /// object by itself. `source` makes the source of bytes of such objects. Returns whether all of
    /// it is on disk then.
    pub(super) async fn keep(
        &self,
        version: &FileVersion,
        layout: &FileLayout,
        source: impl Fn(Vec<Object>) -> FileSource,
    ) -> bool {
        // The semaphore is never closed.
        let Ok(_permit) = self.warmups.acquire().await else { return false };
        let whole = || Some((self.file_name(version, layout)?, self.objects(layout)?));
        if let Some((name, objects)) = whole() {
            let source = source(layout.objects_in_file_order());
            return self.disk.keep_file(name, objects, source).await.unwrap_or(false);
        }
        for object in layout.objects_in_file_order() {
            let Some(kept) = self.object(&object) else { return false };
            let source = source(vec![object]);
            if !self.disk.keep_file(kept.name, Box::new([kept]), source).await.unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Whether the kernel can read the file of `version` from the disk.
    pub(super) fn has_complete(&self, version: &FileVersion) -> bool {
        let name = || self.file_name(version, version.layout_now()?);
        self.passes_through.load(Ordering::Relaxed) && name().is_some_and(|name| self.disk.is_complete(&name))
    }

    /// Notes that the kernel does not read files of this disk by itself: none is handed to it any
    /// more.
    pub(super) fn passthrough_refused(&self) {
        self.passes_through.store(false, Ordering::Relaxed);
    }

    /// The name of the file with the bytes of `version`. A file of one object is that object.
    fn file_name(&self, version: &FileVersion, layout: &FileLayout) -> Option<DiskName> {
        match layout.object_count() {
            0 => None,
            1 => {
                let object = layout.object(0);
                (object.size == version.size()).then(|| self.object(&object))?.map(|object| object.name)
            }
            _ => Some(self.cluster.name("file", &[&version.content_id()?.0])),
        }
    }

    /// The objects of a file, if they follow each other without holes or overlaps, and all of them
    /// may be on disk.
    fn objects(&self, layout: &FileLayout) -> Option<Box<[DiskObject]>> {
        layout.whole_objects()?.map(|object| self.object(&object)).collect()
    }

    /// The name and length of an object on disk; `None` if it must not be there. The time of its
    /// writing is a part of the name: should a cluster that was restored from a backup give out a
    /// file id again, the bytes under it are another object.
    fn object(&self, object: &Object) -> Option<DiskObject> {
        if object.encoding.cipher_key.is_some() {
            return None;
        }
        let name = self.cluster.name(
            "object",
            &[
                &object.id.0.to_le_bytes(),
                &object.size.to_le_bytes(),
                &object.modified_ts_ns.to_le_bytes(),
                &[object.encoding.is_compressed.into()],
            ],
        );
        Some(DiskObject { name, len: object.size })
    }
}
