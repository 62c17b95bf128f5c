//! Reads a volume server's files beside the running server.
//!
//! A volume is a `.dat` file of needle records, to which the server only appends, and an `.idx` file that logs where each needle was
//! written. [`Store`] keeps the index of every volume that is read in memory (`index`), takes in what the server
//! appends to it at every look-up, and hands out [`NeedleRecord`]s: where a needle's data is, in which open file,
//! after the record's own header was compared with what was asked for.
//!
//! ```text
//!  FileId ─► Store ─► Volume ─► Opened ─► Index ─► Record ─► pread, sendfile, a descriptor passed on
//!            which     over      one pair  key →    examined:
//!            files     time      of files  offset   key, cookie, size, flags, checksum
//! ```
//!
//! The server does as it likes meanwhile: it compacts a volume (two files are replaced, one after the other), moves or
//! deletes it, converts it to shards, sends it to a remote tier, truncates what it failed to write. All of that ends in a
//! [`Refusal`], after which the client asks the volume server itself, or in files being opened anew; never in
//! other bytes than those of the needle. What makes that hold:
//! * Nothing in a `.dat` file is ever overwritten, so an open file and an index read from its own log stay right together.
//! * A pair of files is used only while both have their names (`opened`), so what is written later is not missed.
//! * Whatever the index says, the record must agree.
//!
//! Looking up costs four small system calls when the record is in the page cache. A caller that must not wait for a disk
//! says so with [`ReadMode::CachedOnly`] and tries again elsewhere when told [`StoreError::WouldBlock`].
//!
//! Format and behaviour follow SeaweedFS 4.44 (`weed/storage`).

mod data;
mod directory;
mod entry;
mod index;
mod opened;
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
pub use data::{DataFile, ReadMode};
pub(crate) use data::{Residency, read_exact_at};
use directory::{Directories, Listing};
pub use entry::{IndexChange, OffsetWidth, RecordPosition, parse_entry};
pub use index::{IndexBuilder, IndexEntry, NeedleIndex};
pub use record::NeedleRecord;
pub use superblock::Superblock;
pub use vif::VolumeInfo;
use volume::Volume;

/// Files of volumes that nobody has read for so long are closed.
const IDLE: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Answering would mean to wait for a disk or to read an index; the caller said that it must not wait.
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
    state: RwLock<State>,
    /// Counts indexes that were read as a whole.
    index_reads: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    listing: Listing,
    volumes: HashMap<u32, Arc<Volume>>,
}

impl Store {
    /// The volumes in the data directories `data` (`weed volume -dir`), whose indexes may be in a directory of their own (`-dir.idx`).
    ///
    /// # Errors
    /// When one of the directories cannot be listed.
    pub fn new(data: Vec<PathBuf>, index: Option<PathBuf>) -> io::Result<Self> {
        let directories = Directories::new(data, index);
        let listing = directories.list()?;
        let state = RwLock::new(State { listing, volumes: HashMap::new() });
        Ok(Self { directories, state, index_reads: Arc::default() })
    }

    /// Finds a needle as of now: whatever the server has finished writing before the call is seen. Deleted needles are found
    /// until their volume is compacted.
    ///
    /// # Errors
    /// See [`StoreError`]. With [`ReadMode::Blocking`] it is never [`StoreError::WouldBlock`].
    pub fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let volume = self.volume(fid.volume, mode)?;
        volume.touch();
        let outcome = volume.locate(fid, mode);
        if outcome.as_ref().err() == Some(&StoreError::Refused(Refusal::NoVolume)) {
            // Its files are gone. They may have come back elsewhere.
            self.list_again()?;
        }
        outcome
    }

    /// How many volumes there are in the directories.
    pub fn volumes(&self) -> usize {
        self.state.read().listing.volumes.len()
    }

    /// How many volumes are open, and how many needles their indexes have.
    pub fn open_volumes(&self) -> (usize, usize) {
        let volumes: Vec<_> = self.state.read().volumes.values().cloned().collect();
        let needles: Vec<_> = volumes.iter().filter_map(|volume| volume.needles()).collect();
        (needles.len(), needles.iter().sum())
    }

    /// How often the whole index of a volume was read: when it was opened, and whenever its files
    /// were replaced or did not fit each other.
    pub fn index_reads(&self) -> u64 {
        self.index_reads.load(Ordering::Relaxed)
    }

    /// Gives up what is not needed: files that were replaced or removed, volumes that nobody reads. To be called about once a
    /// second by a thread that may wait.
    pub fn tend(&self) {
        let volumes: Vec<_> = self.state.read().volumes.values().cloned().collect();
        for volume in volumes {
            volume.tend(IDLE);
        }
        if self.directories.changed_since(&self.state.read().listing) {
            // What it could not list now, it lists at the next call.
            let _ = self.list_again();
        }
    }

    fn volume(&self, id: u32, mode: ReadMode) -> Result<Arc<Volume>, StoreError> {
        {
            let state = self.state.read();
            if let Some(volume) = state.volumes.get(&id) {
                return Ok(volume.clone());
            }
            if !state.listing.volumes.contains_key(&id) {
                if mode == ReadMode::CachedOnly {
                    return Err(StoreError::WouldBlock);
                }
                if !self.directories.changed_since(&state.listing) {
                    return Err(Refusal::NoVolume.into());
                }
            }
        }
        if !self.state.read().listing.volumes.contains_key(&id) {
            self.list_again()?;
        }
        let mut state = self.state.write();
        let State { listing, volumes } = &mut *state;
        let files = listing.volumes.get(&id).ok_or(Refusal::NoVolume)?;
        let new = || Arc::new(Volume::new(id, files.clone(), self.index_reads.clone()));
        Ok(volumes.entry(id).or_insert_with(new).clone())
    }

    fn list_again(&self) -> Result<(), Refusal> {
        let listing = self.directories.list().map_err(|error| {
            tracing::warn!(%error, "cannot list the data directories");
            Refusal::Io
        })?;
        let mut state = self.state.write();
        state.volumes.retain(|id, volume| listing.volumes.get(id) == Some(volume.files()));
        state.listing = listing;
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod generated;
#[cfg(test)]
mod tests;
