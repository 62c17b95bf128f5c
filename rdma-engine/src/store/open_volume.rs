//! The current files of one volume: `.dat` and `.idx`, opened together and followed as they grow.
//!
//! A server that compacts a volume writes two new files and renames them over the old ones, one
//! after the other, while a marker (`.cpc`) exists. An old pair that is open stays readable and
//! consistent, but does not grow any more. So a pair is used only while both files have a name,
//! and [`OpenVolume::open`] takes a pair only if, after both were opened, both paths still lead to
//! them and there is no marker.
//!
//! Every position from the index is checked against the record itself (key, size and cookie)
//! before a byte is returned. So an index that is behind, or was changed in some unforeseen way,
//! leads to a refusal and never to other bytes.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;

use super::StoreError;
use super::data::{self, DataFile, ReadMode};
use super::directory::VolumeFiles;
use super::entry::{IndexChange, OffsetWidth, parse_entry};
use super::index::{IndexBuilder, NeedleIndex};
use super::record::{self, NeedleRecord};
use super::superblock::{self, Superblock};
use super::vif::VolumeInfo;
use crate::FileId;
use crate::needle::Version;
use crate::refusal::Refusal;

/// How much of an index is read at once, in bytes; a multiple of both lengths of an entry.
const READ_SIZE: usize = 16 * 17 * 4096;

/// How many new bytes of an index may be applied by a caller that must not wait.
const MAX_CACHED_UPDATE: u64 = 64 << 10;

/// How many entries of an index are compared with their records to determine its width.
const WIDTH_SAMPLES: usize = 16;

/// The open files of a volume and its index.
#[derive(Debug)]
pub(super) struct OpenVolume {
    data: Arc<DataFile>,
    version: Version,
    index_file: File,
    width: Option<OffsetWidth>,
    log: RwLock<IndexLog>,
    pub(super) opened_at: Instant,
}

/// The part of the index file that was read.
struct IndexLog {
    index: NeedleIndex,
    /// Its length in bytes; whole entries only.
    read: u64,
}

impl std::fmt::Debug for IndexLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexLog").field("needles", &self.index.len()).field("read", &self.read).finish()
    }
}

impl OpenVolume {
    /// Opens the files of volume `id` and reads its index.
    pub(super) fn open(id: u32, files: &VolumeFiles) -> Result<Self, Refusal> {
        let io = |path: PathBuf| {
            move |error: io::Error| {
                tracing::warn!(volume = id, path = %path.display(), %error, "cannot read a volume");
                Refusal::Io
            }
        };
        let unknown = |reason: &str| {
            tracing::warn!(volume = id, reason, "a volume is not understood");
            Refusal::UnknownFormat
        };
        if files.ambiguous {
            return Err(unknown("two data directories have a volume of this number"));
        }
        let (data_path, index_path) = (files.data(".dat"), files.index(".idx"));
        let info = volume_info(files).map_err(|reason| unknown(&reason))?;
        if info.is_remote {
            return Err(Refusal::Remote);
        }
        let Some(data_file) = data::open(&data_path).map_err(io(data_path.clone()))? else {
            let shards = files.index(".ecx").exists() || files.data(".ecx").exists();
            return Err(if shards { Refusal::ErasureCoded } else { Refusal::NoVolume });
        };
        let Some(index_file) = data::open(&index_path).map_err(io(index_path.clone()))? else {
            return Err(Refusal::Incomplete);
        };
        if files.data(".note").exists() {
            return Err(Refusal::Incomplete);
        }
        let both_named = data::is_same(&data_path, &data_file).map_err(io(data_path.clone()))?
            && data::is_same(&index_path, &index_file).map_err(io(index_path.clone()))?;
        if files.data(".cpc").exists() || !both_named {
            return Err(Refusal::Compacting);
        }

        let mut head = [0; superblock::LENGTH];
        match data_file.read_exact_at(&mut head, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Refusal::Incomplete),
            other => other.map_err(io(data_path))?,
        }
        let superblock = Superblock::parse(&head).ok_or_else(|| unknown("the version of its superblock"))?;
        let data = Arc::new(DataFile::new(data_file, id, superblock.revision));
        let size = index_file.metadata().map_err(io(index_path.clone()))?.len();
        let width = width(&data, superblock.version, &index_file, size, info.offset_width)
            .map_err(io(index_path.clone()))?
            .map_err(|()| unknown("its index does not fit its data"))?;
        let volume = Self {
            data,
            version: superblock.version,
            index_file,
            width,
            log: RwLock::new(IndexLog { index: NeedleIndex::default(), read: 0 }),
            opened_at: Instant::now(),
        };
        if let Some(width) = width {
            let entries = usize::try_from(size).unwrap_or(0) / width.entry_length();
            let mut builder = IndexBuilder::with_capacity(entries);
            let push = |key, change| builder.push(key, change);
            let read = volume.read_log(0, size, width, push).map_err(io(index_path))?;
            *volume.log.write() = IndexLog { index: builder.build(), read };
        }
        Ok(volume)
    }

    /// Whether both files still have their names. If not, they do not grow any more and must be
    /// opened again.
    pub(super) fn is_current(&self) -> bool {
        self.index_file.metadata().is_ok_and(|index| self.have_names(&index))
    }

    fn have_names(&self, index: &Metadata) -> bool {
        index.nlink() > 0 && !self.data.is_unlinked()
    }

    /// How many needles the index has.
    pub(super) fn needles(&self) -> usize {
        self.log.read().index.len()
    }

    /// Applies what was appended to the index file.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if the files are not [current](Self::is_current), or the index file has
    /// shrunk: they must be opened anew.
    pub(super) fn catch_up(&self, mode: ReadMode) -> Result<(), StoreError> {
        let failed = |error: io::Error| {
            tracing::warn!(volume = self.data.volume(), %error, "cannot read a volume's index");
            Refusal::Io
        };
        // Before the file's size is read: otherwise another thread could apply more than that size
        // in between, and the file would seem to have shrunk.
        let read = self.log.read().read;
        let metadata = self.index_file.metadata().map_err(failed)?;
        if !self.have_names(&metadata) {
            return Err(Refusal::Stale.into());
        }
        let size = metadata.len();
        let Some(width) = self.width else {
            return if size == 0 { Ok(()) } else { Err(Refusal::Stale.into()) };
        };
        let whole = size - size % width.entry_length() as u64;
        if whole == read {
            return Ok(());
        }
        if size < read {
            return Err(Refusal::Stale.into());
        }
        if mode == ReadMode::CachedOnly && whole - read > MAX_CACHED_UPDATE {
            return Err(StoreError::WouldBlock);
        }
        let IndexLog { index, read } = &mut *self.log.write();
        *read = self.read_log(*read, whole, width, |key, change| index.apply(key, change)).map_err(failed)?;
        Ok(())
    }

    /// Finds and examines the record of `fid`.
    pub(super) fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let found = self.log.read().index.get(fid.key).ok_or(Refusal::NoNeedle)?;
        record::examine(&self.data, self.version, fid, found, mode)
    }

    /// Reads the whole entries between the bytes `from` and `end`. Returns where the last one
    /// ends.
    fn read_log(
        &self,
        from: u64,
        end: u64,
        width: OffsetWidth,
        mut take: impl FnMut(u64, IndexChange),
    ) -> io::Result<u64> {
        let end = end - end % width.entry_length() as u64;
        let mut at = from;
        let size = usize::try_from(end.saturating_sub(at)).unwrap_or(READ_SIZE).min(READ_SIZE);
        let mut piece = vec![0; size];
        while at < end {
            let length = piece.len().min(usize::try_from(end - at).unwrap_or(piece.len()));
            self.index_file.read_exact_at(&mut piece[..length], at)?;
            for entry in piece[..length].chunks_exact(width.entry_length()) {
                let (key, change) = parse_entry(width, entry);
                take(key, change);
            }
            at += length as u64;
        }
        Ok(at)
    }
}

/// The content of the `.vif`, which may lie beside the data or beside the index.
fn volume_info(files: &VolumeFiles) -> Result<VolumeInfo, String> {
    for path in [files.data(".vif"), files.index(".vif")] {
        match std::fs::read(&path) {
            Ok(text) => {
                return VolumeInfo::parse(&text).map_err(|error| format!("{}: {error}", path.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    Ok(VolumeInfo::default())
}

/// The width of the offsets of an index: the one with which entries lead to records of their keys.
/// If there is no entry to check, it is the `configured` one, if there is that. The inner error
/// means that no width fits.
fn width(
    data: &DataFile,
    version: Version,
    index: &File,
    size: u64,
    configured: Option<OffsetWidth>,
) -> io::Result<Result<Option<OffsetWidth>, ()>> {
    let mut head = vec![0; usize::try_from(size).unwrap_or(READ_SIZE).min(READ_SIZE)];
    index.read_exact_at(&mut head, 0)?;
    let candidates = match configured {
        Some(width) => vec![width],
        None => vec![OffsetWidth::Four, OffsetWidth::Five],
    };
    let mut undecided = false;
    for width in candidates {
        let (mut agree, mut differ) = (0, 0);
        let entries = head.chunks_exact(width.entry_length()).map(|entry| parse_entry(width, entry));
        let written = entries.filter_map(|(key, change)| match change {
            IndexChange::Written(position) => Some((key, position)),
            IndexChange::Deleted => None,
        });
        for (key, position) in written.take(WIDTH_SAMPLES) {
            match record::is_at(data, version, key, position) {
                true => agree += 1,
                false => differ += 1,
            }
        }
        if agree > differ {
            return Ok(Ok(Some(width)));
        }
        undecided |= agree + differ == 0;
    }
    Ok(if undecided { Ok(configured) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::store::directory::Directories;
    use crate::store::generated::GeneratedVolume;

    /// Waits until the thread sleeps.
    fn wait_until_asleep(thread: rustix::thread::Pid) {
        let began = Instant::now();
        let status = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
        let sleeps = || std::fs::read_to_string(&status).is_ok_and(|text| text.contains(") S "));
        while !sleeps() {
            assert!(began.elapsed() < Duration::from_secs(20));
            thread::yield_now();
        }
    }

    #[test]
    fn an_index_that_another_thread_has_updated_further_is_not_taken_for_shrunk() {
        let directory = tempfile::tempdir().unwrap();
        let mut volume = GeneratedVolume::new(directory.path(), 1, Version::V3, OffsetWidth::Four);
        volume.put(1, 7, b"one");
        let directories = Directories::new(vec![directory.path().into()], None);
        let listing = directories.list().unwrap();
        let opened = OpenVolume::open(1, &listing.volumes[&1]).unwrap();
        // This thread applies new entries while another one is about to.
        let mut log = opened.log.write();
        thread::scope(|scope| {
            let (sender, thread_id) = mpsc::channel();
            let opened = &opened;
            let other = scope.spawn(move || {
                sender.send(rustix::thread::gettid()).unwrap();
                opened.catch_up(ReadMode::Blocking)
            });
            wait_until_asleep(thread_id.recv().unwrap());
            volume.put(2, 7, b"two");
            log.read = std::fs::metadata(volume.path("idx")).unwrap().len();
            drop(log);
            assert_eq!(other.join().unwrap(), Ok(()));
        });
    }
}
