//! One volume's files while they are what the volume consists of: `.dat` and `.idx`, opened together and followed as they grow.
//!
//! A server that compacts a volume writes two new files and renames them over the old ones, one after the other, under a marker
//! (`.cpc`). The old pair stays readable and consistent for whoever has it open, but gets no news any more: so a pair is used
//! as long as both files have a name, and [`Opened::open`] takes a pair only if, after both were opened, both
//! paths still lead to them and no marker is there.
//!
//! Whatever the index says is checked against the record itself, key, size and cookie, before a byte is given out. So an
//! index that is behind, or was changed in some way not foreseen here, leads to a refusal and never to other bytes.

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
const PIECE: usize = 16 * 17 * 4096;

/// How much news of an index may be taken in by a caller that must not wait, in bytes.
const LITTLE: u64 = 64 << 10;

/// How many entries of an index are compared with their records before it is believed.
const SAMPLES: usize = 16;

/// The open files of a volume and its index.
#[derive(Debug)]
pub(super) struct Opened {
    data: Arc<DataFile>,
    version: Version,
    index_file: File,
    width: Option<OffsetWidth>,
    log: RwLock<Log>,
    /// When the files were opened.
    pub(super) since: Instant,
}

/// What was read of the index so far.
struct Log {
    index: NeedleIndex,
    /// Bytes; whole entries only.
    read: u64,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("needles", &self.index.len()).field("read", &self.read).finish()
    }
}

impl Opened {
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
        let opened = Self {
            data,
            version: superblock.version,
            index_file,
            width,
            log: RwLock::new(Log { index: NeedleIndex::default(), read: 0 }),
            since: Instant::now(),
        };
        if let Some(width) = width {
            let entries = usize::try_from(size).unwrap_or(0) / width.entry_length();
            let mut builder = IndexBuilder::with_capacity(entries);
            let push = |key, change| builder.push(key, change);
            let read = opened.read_log(0, size, width, push).map_err(io(index_path))?;
            *opened.log.write() = Log { index: builder.build(), read };
        }
        Ok(opened)
    }

    /// Whether both files still have their names. If not, they get no news and must be opened again.
    pub(super) fn is_current(&self) -> bool {
        self.index_file.metadata().is_ok_and(|index| self.have_names(&index))
    }

    fn have_names(&self, index: &Metadata) -> bool {
        index.nlink() > 0 && !self.data.is_unlinked()
    }

    /// How many needles the index knows.
    pub(super) fn needles(&self) -> usize {
        self.log.read().index.len()
    }

    /// Takes in what was appended to the index.
    ///
    /// # Errors
    /// [`Refusal::Stale`] if the files are not [current](Self::is_current), or the index is not one that only grew: they must be opened anew.
    pub(super) fn catch_up(&self, mode: ReadMode) -> Result<(), StoreError> {
        let failed = |error: io::Error| {
            tracing::warn!(volume = self.data.volume(), %error, "cannot read a volume's index");
            Refusal::Io
        };
        // Before the size is asked for: another thread may take in more than what this one then sees, and the index would
        // seem to have shrunk.
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
        if mode == ReadMode::CachedOnly && whole - read > LITTLE {
            return Err(StoreError::WouldBlock);
        }
        let Log { index, read } = &mut *self.log.write();
        *read = self.read_log(*read, whole, width, |key, change| index.apply(key, change)).map_err(failed)?;
        Ok(())
    }

    /// Finds the record of `fid` and what it says of itself.
    pub(super) fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let found = self.log.read().index.get(fid.key).ok_or(Refusal::NoNeedle)?;
        record::examine(&self.data, self.version, fid, found, mode)
    }

    /// Reads the entries from `from` up to `end` (bytes), but no partial one. Returns where the last one ends.
    fn read_log(
        &self,
        from: u64,
        end: u64,
        width: OffsetWidth,
        mut take: impl FnMut(u64, IndexChange),
    ) -> io::Result<u64> {
        let end = end - end % width.entry_length() as u64;
        let mut at = from;
        let mut piece = vec![0; PIECE.min(usize::try_from(end.saturating_sub(at)).unwrap_or(PIECE))];
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

/// What the `.vif` says, which a server may have put beside the data or beside the index.
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

/// How wide the offsets of an index are: the width, of those possible, with which entries lead to records of their keys. None if
/// there is no entry to tell by and nobody said it.
fn width(
    data: &DataFile,
    version: Version,
    index: &File,
    size: u64,
    told: Option<OffsetWidth>,
) -> io::Result<Result<Option<OffsetWidth>, ()>> {
    let mut head = vec![0; usize::try_from(size).unwrap_or(PIECE).min(PIECE)];
    index.read_exact_at(&mut head, 0)?;
    let candidates = match told {
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
        for (key, position) in written.take(SAMPLES) {
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
    Ok(if undecided { Ok(told) } else { Err(()) })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::store::directory::Directories;
    use crate::store::generated::Generated;

    /// Waits until the thread sleeps.
    fn until_asleep(thread: rustix::thread::Pid) {
        let began = Instant::now();
        let status = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
        let sleeps = || std::fs::read_to_string(&status).is_ok_and(|text| text.contains(") S "));
        while !sleeps() {
            assert!(began.elapsed() < Duration::from_secs(20));
            thread::yield_now();
        }
    }

    #[test]
    fn an_index_does_not_shrink_because_another_thread_saw_more_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut volume = Generated::new(directory.path(), 1, Version::V3, OffsetWidth::Four);
        volume.put(1, 7, b"one");
        let directories = Directories::new(vec![directory.path().into()], None);
        let listing = directories.list().unwrap();
        let opened = Opened::open(1, &listing.volumes[&1]).unwrap();
        // Another thread is taking in news while this one looks for them.
        let mut log = opened.log.write();
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            let opened = &opened;
            let looks = scope.spawn(move || {
                tell.send(rustix::thread::gettid()).unwrap();
                opened.catch_up(ReadMode::Blocking)
            });
            until_asleep(told.recv().unwrap());
            volume.put(2, 7, b"two");
            log.read = std::fs::metadata(volume.path("idx")).unwrap().len();
            drop(log);
            assert_eq!(looks.join().unwrap(), Ok(()));
        });
    }
}
