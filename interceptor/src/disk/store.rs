//! The files of a directory: found, read, filled and removed. Blocks; [`super`] keeps that away
//! from readers.
//!
//! No lock is held while the disk works.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use super::complete::{CompleteFile, CompleteFiles};
use super::directory::{CacheDirectory, DirectoryError};
use super::file::{CacheFile, CacheFileError};
use super::format::{FileHeader, MAX_FILE_SIZE, Member, size_on_disk};
use super::index::{FileIndex, MAX_FILES};
use super::name::DiskName;

/// Files that are held open at most, and the memory that their checksums take.
const MAX_OPEN_FILES: usize = 512;
const MAX_OPEN_MEMORY: usize = 32 << 20;
/// A file takes one in so many bytes of the capacity at most.
const MAX_FILE_DIVISOR: u64 = 2;
/// For how long a file is held open that is not read. As long can the space of a file stay taken
/// that another daemon has removed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DiskStore {
    parent: PathBuf,
    /// The device of the directory: another one that appears under its path is left alone.
    device: u64,
    capacity: u64,
    place: RwLock<Arc<DiskPlace>>,
    index: Mutex<FileIndex>,
    open: Mutex<OpenFiles>,
    complete: Mutex<CompleteFiles>,
    evicted: AtomicU64,
}

/// The directory in use, and what may be done with it.
#[derive(Debug)]
struct DiskPlace {
    directory: CacheDirectory,
    /// The right to write; while it is empty, another daemon has it.
    lock: OnceLock<OwnedFd>,
    /// Whether what is not in the index is not there.
    is_indexed: AtomicBool,
}

impl DiskPlace {
    fn open(parent: &Path) -> Result<Self, DirectoryError> {
        let place = Self {
            directory: CacheDirectory::open(parent)?,
            lock: OnceLock::new(),
            is_indexed: AtomicBool::new(false),
        };
        let locked = place.try_lock();
        locked.map_err(|source| DirectoryError::Io { path: place.directory.path().into(), source })?;
        Ok(place)
    }

    /// Tries to become the daemon that writes. Returns whether that has just succeeded.
    fn try_lock(&self) -> io::Result<bool> {
        if self.is_writer() {
            return Ok(false);
        }
        Ok(self.directory.try_lock()?.is_some_and(|lock| self.lock.set(lock).is_ok()))
    }

    fn is_writer(&self) -> bool {
        self.lock.get().is_some()
    }
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<DiskName, OpenFile, RandomState>,
    memory: usize,
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<CacheFile>,
    last_used: Instant,
}

impl OpenFiles {
    fn get(&mut self, name: &DiskName) -> Option<Arc<CacheFile>> {
        let open = self.files.get_mut(name)?;
        open.last_used = Instant::now();
        Some(open.file.clone())
    }

    /// Holds `file` open, unless there is one of its name: that one counts.
    fn insert(&mut self, file: CacheFile) -> Arc<CacheFile> {
        let name = file.header().name;
        if let Some(known) = self.get(&name) {
            return known;
        }
        while self.files.len() >= MAX_OPEN_FILES || self.memory > MAX_OPEN_MEMORY {
            let unused = self.files.iter().filter(|(_, open)| Arc::strong_count(&open.file) == 1);
            let Some(oldest) = unused.min_by_key(|(_, open)| open.last_used).map(|(name, _)| *name) else {
                break;
            };
            self.remove(&oldest);
        }
        self.memory += file.memory();
        let file = Arc::new(file);
        self.files.insert(name, OpenFile { file: file.clone(), last_used: Instant::now() });
        file
    }

    fn remove(&mut self, name: &DiskName) {
        if let Some(removed) = self.files.remove(name) {
            self.memory -= removed.file.memory();
        }
    }

    /// Closes what nothing has used for a while. There is one instance of a file at most, which
    /// knows what was written last; so what is in use stays.
    fn close_idle(&mut self, idle: Duration) {
        let is_idle =
            |open: &OpenFile| Arc::strong_count(&open.file) == 1 && open.last_used.elapsed() >= idle;
        let idle: Vec<_> =
            self.files.iter().filter(|(_, open)| is_idle(open)).map(|(name, _)| *name).collect();
        idle.iter().for_each(|name| self.remove(name));
    }
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StoreUsage {
    pub(super) used: u64,
    pub(super) files: u64,
    pub(super) evicted: u64,
    pub(super) is_writer: bool,
}

impl DiskStore {
    /// Opens the directory in `parent` for files of up to `capacity` bytes.
    /// [`scan`](Self::scan) finds what is there.
    pub(super) fn open(parent: &Path, capacity: u64) -> Result<Self, DirectoryError> {
        let place = DiskPlace::open(parent)?;
        Ok(Self {
            parent: parent.to_owned(),
            device: place.directory.device(),
            capacity,
            place: RwLock::new(Arc::new(place)),
            index: Mutex::default(),
            open: Mutex::default(),
            complete: Mutex::default(),
            evicted: AtomicU64::new(0),
        })
    }

    fn place(&self) -> Arc<DiskPlace> {
        self.place.read().clone()
    }

    pub(super) fn usage(&self) -> StoreUsage {
        let index = self.index.lock();
        StoreUsage {
            used: index.used(),
            files: index.len() as u64,
            evicted: self.evicted.load(Ordering::Relaxed),
            is_writer: self.place().is_writer(),
        }
    }

    /// Whether bytes of an object may be there, as far as that is known without asking the disk.
    pub(super) fn may_have(&self, object: &DiskName, offset: u64, len: u64) -> bool {
        let place = self.place();
        let Some((file, member)) = self.index.lock().find(object) else {
            return !place.is_indexed.load(Ordering::Acquire);
        };
        let open = self.open.lock().get(&file);
        // Where another daemon writes, what is known of a file may be old.
        open.is_none_or(|open| !place.is_writer() || open.has(member, offset, len))
    }

    /// Whether bytes of an object may be written, as far as that is known without asking the disk.
    pub(super) fn wants(&self, object: &DiskName, offset: u64, len: u64) -> bool {
        let is_kept = |(file, member): (DiskName, usize)| {
            self.open.lock().get(&file).is_some_and(|open| open.has(member, offset, len))
        };
        let found = self.index.lock().find(object);
        self.place().is_writer() && !found.is_some_and(is_kept)
    }

    /// Fills `bytes` with those of an object from `offset` on. A file with damaged bytes is
    /// removed. What `bytes` has after an error is undefined.
    pub(super) fn read(
        &self,
        object: &DiskName,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), CacheFileError> {
        let place = self.place();
        let (file, member) = self.find(&place, object)?;
        let mut read = file.read(member, offset, bytes);
        if matches!(read, Err(CacheFileError::Absent)) && !place.is_writer() {
            read = file.refresh().and_then(|()| file.read(member, offset, bytes));
        }
        match &read {
            Ok(()) => self.index.lock().touch(&file.header().name),
            Err(CacheFileError::Absent) => {}
            Err(CacheFileError::Damaged | CacheFileError::Io(_)) => {
                self.drop_file(&place, &file.header().name)
            }
        }
        read
    }

    /// The file that an object is in, and the number of the object there.
    fn find(&self, place: &DiskPlace, object: &DiskName) -> Result<(Arc<CacheFile>, usize), CacheFileError> {
        let found = self.index.lock().find(object);
        let (name, member) = match found {
            Some(found) => found,
            None if place.is_indexed.load(Ordering::Acquire) => return Err(CacheFileError::Absent),
            None => (*object, 0),
        };
        Ok((self.open_file(place, &name)?, member))
    }

    fn open_file(&self, place: &DiskPlace, name: &DiskName) -> Result<Arc<CacheFile>, CacheFileError> {
        if let Some(open) = self.open.lock().get(name) {
            return Ok(open);
        }
        match CacheFile::open(&place.directory, name, place.is_writer()) {
            Ok(opened) => {
                let bytes = opened.disk_bytes();
                let mut index = self.index.lock();
                if !index.contains(name) {
                    // It has left since it was looked up.
                    if place.is_indexed.load(Ordering::Acquire) {
                        return Err(CacheFileError::Absent);
                    }
                    index.insert(opened.header(), bytes);
                }
                drop(index);
                Ok(self.open.lock().insert(opened))
            }
            Err(error) => {
                self.drop_file(place, name);
                // Another daemon may be in the middle of making it.
                let is_new = matches!(error, CacheFileError::Damaged) && !place.is_writer();
                Err(if is_new { CacheFileError::Absent } else { error })
            }
        }
    }

    /// Keeps bytes of an object from `offset` on, for which older files leave if need be. Returns
    /// how many bytes were written: none if they are there, cannot have room, or if another daemon
    /// writes.
    pub(super) fn write(&self, object: Member, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        let place = self.place();
        if !place.is_writer() || object.len > MAX_FILE_SIZE {
            return Ok(0);
        }
        let (file, member) = match self.find(&place, &object.name) {
            Ok(found) => found,
            Err(CacheFileError::Absent | CacheFileError::Damaged) => {
                let header = FileHeader::of_object(object);
                if !self.make_room(
                    &place,
                    header.sums_bytes() + size_on_disk(bytes.len() as u64),
                    &object.name,
                ) {
                    return Ok(0);
                }
                (self.create(&place, header)?, 0)
            }
            Err(CacheFileError::Io(error)) => return Err(error),
        };
        self.write_to(&place, &file, member, offset, bytes)
    }

    fn create(&self, place: &DiskPlace, header: FileHeader) -> io::Result<Arc<CacheFile>> {
        let name = header.name;
        let file = match CacheFile::create(&place.directory, header) {
            Ok(file) => file,
            Err(error) => {
                self.drop_file(place, &name);
                return Err(error);
            }
        };
        self.index.lock().insert(file.header(), file.disk_bytes());
        Ok(self.open.lock().insert(file))
    }

    fn write_to(
        &self,
        place: &DiskPlace,
        file: &CacheFile,
        member: usize,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<u64> {
        let name = file.header().name;
        if file.has(member, offset, bytes.len() as u64)
            || !self.make_room(place, size_on_disk(bytes.len() as u64), &name)
        {
            return Ok(0);
        }
        let written = file.write(member, offset, bytes);
        match &written {
            Ok(_) => {
                self.index.lock().resize(&name, file.disk_bytes());
                // A damaged table may tell of more than was known of the file.
                if !self.make_room(place, 0, &name) {
                    self.drop_file(place, &name);
                }
            }
            Err(_) => self.drop_file(place, &name),
        }
        written
    }

    /// Begins, or goes on with, a file of the objects of `header`. `None` if it is there, cannot
    /// have room, or if another daemon writes.
    pub(super) fn begin(&self, header: FileHeader) -> io::Result<Option<Arc<CacheFile>>> {
        let place = self.place();
        let fits = header.data_len().is_some_and(|len| len <= self.capacity / MAX_FILE_DIVISOR);
        if !place.is_writer() || !fits {
            return Ok(None);
        }
        match self.open_file(&place, &header.name) {
            Ok(known) => Ok((known.header() == &header && !known.is_complete()).then_some(known)),
            Err(CacheFileError::Absent | CacheFileError::Damaged) => {
                let is_room = self.make_room(&place, header.sums_bytes(), &header.name);
                if is_room { self.create(&place, header).map(Some) } else { Ok(None) }
            }
            Err(CacheFileError::Io(error)) => Err(error),
        }
    }

    /// Adds bytes of a member to a file that was begun. Returns whether they are there now.
    pub(super) fn add(&self, file: &CacheFile, member: usize, offset: u64, bytes: &[u8]) -> io::Result<bool> {
        self.write_to(&self.place(), file, member, offset, bytes)?;
        Ok(file.has(member, offset, bytes.len() as u64))
    }

    /// Ends the filling of a file. If it is complete, files of its objects alone are removed;
    /// otherwise it is.
    pub(super) fn finish(&self, file: &CacheFile) {
        let (place, header) = (self.place(), file.header());
        if !file.is_complete() {
            return self.drop_file(&place, &header.name);
        }
        for member in header.members.iter().filter(|member| member.name != header.name) {
            let found = self.index.lock().find(&member.name);
            if found == Some((member.name, 0)) {
                self.drop_file(&place, &member.name);
            }
        }
    }

    /// Whether all of the objects are there, as far as the index tells.
    pub(super) fn has_all(&self, objects: &[Member]) -> bool {
        let index = self.index.lock();
        objects.iter().all(|object| index.find(&object.name).is_some())
    }

    /// Whether a file of `len` bytes may be made, as far as that is known without asking the disk.
    pub(super) fn wants_file(&self, name: &DiskName, len: u64) -> bool {
        len <= self.capacity / MAX_FILE_DIVISOR && self.place().is_writer() && !self.has_file(name)
    }

    /// Whether there is a file of this name, complete or not, as far as the index tells.
    pub(super) fn has_file(&self, name: &DiskName) -> bool {
        self.index.lock().contains(name)
    }

    /// Whether all bytes of a file are there.
    pub(super) fn is_kept(&self, name: &DiskName) -> bool {
        self.open_file(&self.place(), name).is_ok_and(|file| file.is_complete())
    }

    /// The file, if it is complete, was verified, and is open. Does not block.
    pub(super) fn complete(&self, name: &DiskName) -> Option<Arc<CompleteFile>> {
        let file = self.complete.lock().get(name)?;
        self.index.lock().touch(name);
        Some(file)
    }

    /// Verifies a complete file and holds it open. One with damaged bytes is removed.
    pub(super) fn prepare(&self, name: &DiskName) -> Result<(), CacheFileError> {
        let place = self.place();
        let file = self.open_file(&place, name)?;
        if !place.is_writer() {
            file.refresh()?;
        }
        match file.verify() {
            Ok(()) => {
                let closed = self.complete.lock().insert(*name, CompleteFile::new(file));
                drop(closed);
                self.close_removed();
                Ok(())
            }
            Err(CacheFileError::Absent) => Err(CacheFileError::Absent),
            Err(error) => {
                self.drop_file(&place, name);
                Err(error)
            }
        }
    }

    /// Closes complete files that have been removed, so that their space is free.
    fn close_removed(&self) {
        let closed = self.complete.lock().take_removed();
        drop(closed);
    }

    /// Removes files until there is room for `bytes` more. Returns whether there is.
    fn make_room(&self, place: &DiskPlace, bytes: u64, spared: &DiskName) -> bool {
        if bytes > self.capacity {
            return false;
        }
        loop {
            let victim = {
                let mut index = self.index.lock();
                if index.used().saturating_add(bytes) <= self.capacity && index.len() <= MAX_FILES {
                    return true;
                }
                let complete = self.complete.lock();
                index.victim(|file| file == spared || complete.is_in_use(file))
            };
            let Some(victim) = victim else { return false };
            self.drop_file(place, &victim);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn drop_file(&self, place: &DiskPlace, name: &DiskName) {
        self.index.lock().remove(name);
        self.open.lock().remove(name);
        let complete = self.complete.lock().remove(name);
        drop(complete);
        if place.is_writer() {
            place.directory.remove(name);
        }
    }

    /// Finds the files that are there, the oldest first. Removes remains of files, and what is
    /// beyond the capacity, if it may.
    pub(super) fn scan(&self) {
        let place = self.place();
        let mut found: Vec<(SystemTime, FileHeader, u64)> = Vec::new();
        for first in 0..=u8::MAX {
            for name in place.directory.list(first).unwrap_or_default() {
                match CacheFile::open(&place.directory, &name, place.is_writer()) {
                    Ok(file) => found.push((file.modified(), file.header().clone(), file.disk_bytes())),
                    Err(CacheFileError::Absent | CacheFileError::Damaged) if place.is_writer() => {
                        place.directory.remove(&name);
                    }
                    Err(_) => {}
                }
            }
        }
        found.sort_by_key(|(modified, ..)| *modified);
        {
            let mut index = self.index.lock();
            for (_, header, bytes) in &found {
                if !index.contains(&header.name) {
                    index.insert(header, *bytes);
                }
            }
        }
        if place.is_writer() {
            place.is_indexed.store(true, Ordering::Release);
            self.make_room(&place, 0, &DiskName([0; 32]));
        }
    }

    /// What is to be done now and then: closes idle files, opens the directory again if it was
    /// removed, and takes the right to write if the daemon that had it is gone.
    pub(super) fn maintain(&self) {
        self.close_removed();
        self.open.lock().close_idle(IDLE_TIMEOUT);
        let place = self.place();
        if !place.directory.is_in_place() {
            self.reopen();
        } else if place.try_lock().unwrap_or(false) {
            tracing::info!(path = %place.directory.path().display(), "this daemon fills the disk cache now");
            self.scan();
        }
    }

    /// Opens the directory anew, as it is now. If that fails, the old one stays, from which files
    /// that are open can be read.
    pub(super) fn reopen(&self) {
        match DiskPlace::open(&self.parent) {
            Ok(place) if place.directory.device() == self.device => {
                *self.place.write() = Arc::new(place);
                *self.index.lock() = FileIndex::default();
                *self.open.lock() = OpenFiles::default();
                let complete = std::mem::take(&mut *self.complete.lock());
                drop(complete);
                self.scan();
            }
            Ok(_) => tracing::debug!("the disk cache is on another device now; it stays unused"),
            Err(error) => tracing::debug!(%error, "the disk cache cannot be opened again"),
        }
    }
}
