//! Reads a volume server's files beside the running server.
//!
//! A volume is a `.dat` file of needle records, to which the server only appends, and an `.idx`
//! file that logs where each needle was written. [`Store`] keeps the index of every volume in use
//! in memory (`index`) and updates it from the log at every look-up. It returns [`NeedleRecord`]s:
//! where a needle's data is, in which open file, after the record's own header was compared with
//! the file id.
//!
//! ```text
//!  FileId ─► Store ─► Volume ─► OpenVolume ─► NeedleIndex ─► NeedleRecord ─► pread, sendfile,
//!            which     over      one pair      key →          key, cookie,     or descriptor
//!            files     time      of files      offset         size checked     passed on
//! ```
//!
//! Meanwhile the server may compact a volume (it replaces two files, one after the other), move or
//! delete it, convert it to shards, send it to a remote tier, or truncate a failed write. The
//! outcome is a [`Refusal`], after which the client asks the volume server itself, or the files
//! are opened anew; it is never bytes of another needle. The reasons:
//! * Nothing in a `.dat` file is ever overwritten, so an open file and an index read from its own
//!   log stay consistent.
//! * A pair of files is used only while both have their names (`open_volume`), so later writes are
//!   not missed.
//! * The record must agree with the index.
//!
//! A look-up costs four small system calls if the record is in the page cache. A caller that must
//! not wait for a disk passes [`ReadMode::CachedOnly`], and tries again on another thread after
//! [`StoreError::WouldBlock`].
//!
//! Format and behaviour follow SeaweedFS 4.44 (`weed/storage`).

mod data;
mod directory;
mod entry;
mod index;
mod open_volume;
mod record;
mod superblock;
mod vif;
mod volume;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use crate::FileId;
use crate::refusal::Refusal;
pub(crate) use data::{CacheProbe, read_exact_at};
pub use data::{DataFile, ReadMode};
use directory::{Directories, DirectoryListing};
pub use entry::{IndexChange, OffsetWidth, RecordPosition, parse_entry};
pub use index::{IndexBuilder, IndexEntry, NeedleIndex};
pub use record::NeedleRecord;
pub use superblock::Superblock;
pub use vif::VolumeInfo;
use volume::Volume;

/// Files of volumes that were not read for this long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// Why a needle was not found or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The caller must not wait, and the call would have to wait for a disk or to read an index.
    #[error("it would have to wait for a disk")]
    WouldBlock,
    /// The needle cannot be served from here.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The volumes of one volume server.
#[derive(Debug)]
pub struct Store {
    directories: Directories,
    table: RwLock<VolumeTable>,
    /// Counts indexes that were read as a whole.
    index_reads: Arc<AtomicU64>,
}

#[derive(Debug)]
struct VolumeTable {
    listing: DirectoryListing,
    volumes: HashMap<u32, Arc<Volume>>,
}

impl Store {
    /// The volumes in the data directories `data` (`weed volume -dir`). Their indexes may be in a
    /// directory of their own, `index` (`-dir.idx`).
    ///
    /// # Errors
    /// When one of the directories cannot be listed.
    pub fn new(data: Vec<PathBuf>, index: Option<PathBuf>) -> io::Result<Self> {
        let directories = Directories::new(data, index);
        let listing = directories.list()?;
        let table = RwLock::new(VolumeTable { listing, volumes: HashMap::new() });
        Ok(Self { directories, table, index_reads: Arc::default() })
    }

    /// Finds a needle in the current state: every write that the server has finished before the
    /// call is seen. Deleted needles are found until their volume is compacted.
    ///
    /// # Errors
    /// See [`StoreError`]. With [`ReadMode::Blocking`] it is never [`StoreError::WouldBlock`].
    pub fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let volume = self.volume(fid.volume, mode)?;
        volume.record_use();
        let outcome = volume.locate(fid, mode);
        if outcome.as_ref().err() == Some(&StoreError::Refused(Refusal::NoVolume)) {
            // Its files are gone; they may be in another directory now.
            self.list_again()?;
        }
        outcome
    }

    /// How many volumes there are in the directories.
    pub fn volumes(&self) -> usize {
        self.table.read().listing.volumes.len()
    }

    /// How many volumes are open, and how many needles their indexes have.
    pub fn open_volumes(&self) -> (usize, usize) {
        let volumes: Vec<_> = self.table.read().volumes.values().cloned().collect();
        let needles: Vec<_> = volumes.iter().filter_map(|volume| volume.needles()).collect();
        (needles.len(), needles.iter().sum())
    }

    /// How often the whole index of a volume was read: when it was opened, and whenever its files
    /// were replaced or did not fit each other.
    pub fn index_reads(&self) -> u64 {
        self.index_reads.load(Ordering::Relaxed)
    }

    /// Closes files that were replaced or removed, and those of volumes that are not in use. To be
    /// called about once a second by a thread that may wait.
    pub fn close_unused(&self) {
        let volumes: Vec<_> = self.table.read().volumes.values().cloned().collect();
        for volume in volumes {
            volume.close_unused(IDLE_TIMEOUT);
        }
        if self.directories.changed_since(&self.table.read().listing) {
            // If that fails, the next call lists again.
            let _ = self.list_again();
        }
    }

    fn volume(&self, id: u32, mode: ReadMode) -> Result<Arc<Volume>, StoreError> {
        {
            let table = self.table.read();
            if let Some(volume) = table.volumes.get(&id) {
                return Ok(volume.clone());
            }
            if !table.listing.volumes.contains_key(&id) {
                if mode == ReadMode::CachedOnly {
                    return Err(StoreError::WouldBlock);
                }
                if !self.directories.changed_since(&table.listing) {
                    return Err(Refusal::NoVolume.into());
                }
            }
        }
        if !self.table.read().listing.volumes.contains_key(&id) {
            self.list_again()?;
        }
        let mut table = self.table.write();
        let VolumeTable { listing, volumes } = &mut *table;
        let files = listing.volumes.get(&id).ok_or(Refusal::NoVolume)?;
        let new = || Arc::new(Volume::new(id, files.clone(), self.index_reads.clone()));
        Ok(volumes.entry(id).or_insert_with(new).clone())
    }

    fn list_again(&self) -> Result<(), Refusal> {
        let listing = self.directories.list().map_err(|error| {
            tracing::warn!(%error, "cannot list the data directories");
            Refusal::Io
        })?;
        let mut table = self.table.write();
        table.volumes.retain(|id, volume| listing.volumes.get(id) == Some(volume.files()));
        table.listing = listing;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod generated;
#[cfg(test)]
mod tests;
