//! The inodes that the kernel references, by the number it knows them by.
//!
//! An [`Inode`] is one file of the lower mount. It keeps the file's [handle](FileHandle) for as
//! long as the kernel may name the inode, and a [descriptor](InodeFd) while the file is in use.
//! All hard links of a file share one inode. Its number is the file's own inode number, so that
//! `stat` shows what the lower mount shows. A number from [`FIRST_SYNTHETIC_ID`] on takes its
//! place if the file is on another device, or if a lower daemon has given the number to two files.
//!
//! The kernel may reuse a number once it has forgotten the inode. State that outlives a request
//! therefore refers to the [`Inode`] and not to its number.
//!
//! **Descriptors** are opened with `O_PATH`. Each one keeps a deleted file's space allocated and
//! the lower file pinned in the kernel's memory, and their number is limited. So an idle inode
//! loses its own:
//!
//! * Over a local file system, after [`IDLE_TIMEOUT`]. The file is reopened by its handle, which
//!   no other file gets.
//! * Over a FUSE mount, only directories, and only when descriptors run short. They are reopened
//!   by name, since a FUSE mount resolves handles only of files that it has in memory anyway.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::attributes::{Attributes, FileHandle, proc_path};
use super::content::ContentState;
use crate::telemetry::log_limit::LogLimit;
use crate::warmup::ticket::NodeInstance;

/// How long the descriptor of an unused inode stays open over a local file system.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A descriptor of a lower file (`O_PATH`). [`FdRegistry`] counts it while it is open.
pub(super) struct InodeFd {
    file: OwnedFd,
    fds: Arc<FdRegistry>,
}

impl InodeFd {
    pub(super) fn new(file: OwnedFd, fds: &Arc<FdRegistry>) -> Arc<Self> {
        fds.count.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { file, fds: fds.clone() })
    }
}

impl Drop for InodeFd {
    fn drop(&mut self) {
        self.fds.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for InodeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Descriptors that no request may take. A user who holds all others must not keep the daemon from
/// answering, among others, his `close`: a request thread takes a new clone of the connection
/// after a panic.
const MAX_RESERVED_FDS: usize = 256;

/// How many descriptors may be open.
#[derive(Debug, Clone, Copy)]
pub(super) struct FdLimits {
    /// Those of inodes. The others are for open files, and for lookups until the kernel has
    /// dropped dentries.
    pub(super) inodes: usize,
    /// The number that a descriptor must not reach if a request opens it. The system gives a new
    /// descriptor the lowest number that is free, so as many are open then.
    pub(super) requests: usize,
}

impl FdLimits {
    /// The limits of a process that may have `process_limit` descriptors.
    pub(super) fn of(process_limit: u64) -> Self {
        let all = usize::try_from(process_limit).unwrap_or(usize::MAX);
        Self { inodes: all / 2, requests: all - MAX_RESERVED_FDS.min(all / 4) }
    }
}

/// Counts the descriptors of all inodes, and reopens files by handle.
pub(super) struct FdRegistry {
    /// Whether the lower mount is a file system of this host's kernel.
    pub(super) is_local: bool,
    /// The `mount_fd` of `open_by_handle_at`; `None` where that call does not work.
    handle_mount: Option<OwnedFd>,
    count: AtomicUsize,
    limits: FdLimits,
    /// Inodes whose descriptor is to be closed once it is idle, in the order in which they got it.
    idle_queue: Mutex<VecDeque<Weak<Inode>>>,
}

impl FdRegistry {
    /// `root` is the root of the lower mount.
    pub(super) fn new(root: BorrowedFd<'_>, is_local: bool, limits: FdLimits) -> Arc<Self> {
        let handle_mount = if is_local { open_handle_mount(root).ok() } else { None };
        let (count, idle_queue) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { is_local, handle_mount, count, limits, idle_queue })
    }

    /// Passes on what a request has opened, unless that took one of the last descriptors.
    ///
    /// # Errors
    /// `EMFILE`, as if the process had no more.
    fn admit<T: AsFd>(&self, opened: T) -> io::Result<T> {
        let number = opened.as_fd().as_raw_fd() as usize;
        if number < self.limits.requests { Ok(opened) } else { Err(Errno::MFILE.into()) }
    }

    /// How many descriptors are open.
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether files can be reopened by handle. If not, as in a container without
    /// `CAP_DAC_READ_SEARCH`, descriptors stay open: by the time of a reopen the name may lead to
    /// another file.
    pub(super) fn can_open_by_handle(&self) -> bool {
        self.handle_mount.is_some()
    }

    /// Opens a file by its handle; `None` where that does not work.
    pub(super) fn open_by_handle(&self, handle: &FileHandle) -> Option<io::Result<OwnedFd>> {
        Some(handle.open(self.handle_mount.as_ref()?))
    }

    /// Queues `inode`, which has just got a descriptor, to be closed when idle.
    pub(super) fn track(&self, inode: &Arc<Inode>) {
        if self.can_open_by_handle() {
            self.idle_queue.lock().push_back(Arc::downgrade(inode));
        }
    }

    /// Closes the descriptors of inodes that have not been used for [`IDLE_TIMEOUT`].
    pub(super) fn close_idle_fds(&self) {
        let count = self.idle_queue.lock().len();
        for _ in 0..count {
            let Some(next) = self.idle_queue.lock().pop_front() else { return };
            let Some(inode) = next.upgrade() else { continue };
            if !inode.close_idle_fd() && inode.has_fd() {
                self.idle_queue.lock().push_back(next);
            }
        }
    }
}

/// The `mount_fd` for `open_by_handle_at` on the mount with this root. Fails if the process may
/// not make that call.
fn open_handle_mount(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::open(proc_path(root), flags, Mode::empty())?;
    FileHandle::of(root)?.open(&mount)?;
    Ok(mount)
}

/// The number of the root (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;

/// Synthetic numbers are the free ones from here on.
const FIRST_SYNTHETIC_ID: u64 = 1 << 63;

/// One file of the lower mount.
pub(super) struct Inode {
    pub(super) id: u64,
    /// Distinguishes successive inodes of the same number.
    pub(super) generation: u64,
    pub(super) file_type: FileType,
    pub(super) handle: FileHandle,
    /// Device and inode number below.
    dev_ino: (u64, u64),
    slot: Mutex<FdSlot>,
    fds: Arc<FdRegistry>,
    /// Where the file was last found: the directory, and the name in it.
    dentry: Mutex<(Weak<Inode>, OsString)>,
    /// Whether an open has already failed with `ESTALE` because the name leads to another file.
    staleness_reported: AtomicBool,
    /// Whether a name of the file was removed through the overlay.
    removed_here: AtomicBool,
    /// Which source answers reads of a regular file.
    pub(super) content: ContentState,
}

struct FdSlot {
    fd: Option<Arc<InodeFd>>,
    /// When the descriptor was last asked for.
    last_used: Instant,
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

impl Inode {
    /// This inode, as distinct from earlier and later ones of the same number.
    pub(super) fn instance(&self) -> NodeInstance {
        NodeInstance { node: self.id, serial: self.generation }
    }

    fn new(
        (id, generation): (u64, u64),
        handle: FileHandle,
        attributes: &Attributes,
        dentry: (Weak<Inode>, OsString),
        fds: &Arc<FdRegistry>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            generation,
            file_type: attributes.file_type(),
            handle,
            dev_ino: attributes.dev_ino(),
            slot: Mutex::new(FdSlot { fd: None, last_used: Instant::now() }),
            fds: fds.clone(),
            dentry: Mutex::new(dentry),
            staleness_reported: AtomicBool::new(false),
            removed_here: AtomicBool::new(false),
            content: ContentState::default(),
        })
    }

    /// A descriptor of the file, open as long as the caller keeps the reference.
    ///
    /// # Errors
    /// `ESTALE` if no descriptor was open and the file is gone or cannot be reopened. The
    /// kernel then repeats the path lookup of a caller that came by a path.
    pub(super) fn fd(self: &Arc<Self>) -> io::Result<Arc<InodeFd>> {
        if let Some(file) = self.cached_fd() {
            return Ok(file);
        }
        // Without the lock, because the lower mount may be slow.
        let file = match self.fds.open_by_handle(&self.handle) {
            Some(opened) => opened?,
            None => self.reopen_by_path()?,
        };
        Ok(self.store_fd(self.fds.admit(file)?))
    }

    /// The descriptor, if one is open.
    pub(super) fn cached_fd(&self) -> Option<Arc<InodeFd>> {
        let mut slot = self.slot.lock();
        slot.last_used = Instant::now();
        slot.fd.clone()
    }

    pub(super) fn has_fd(&self) -> bool {
        self.slot.lock().fd.is_some()
    }

    /// Stores `file`, unless there is a descriptor already. Returns the stored one.
    fn store_fd(self: &Arc<Self>, file: OwnedFd) -> Arc<InodeFd> {
        let file = {
            let mut slot = self.slot.lock();
            slot.last_used = Instant::now();
            if let Some(slot) = &slot.fd {
                return slot.clone();
            }
            let file = InodeFd::new(file, &self.fds);
            slot.fd = Some(file.clone());
            file
        };
        self.fds.track(self);
        file
    }

    /// Reopens the file by its name, and parent directories without a descriptor by theirs.
    fn reopen_by_path(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let mut path = vec![(self.clone(), OsString::new())];
        let mut directory = loop {
            let last = path.len() - 1;
            let (parent, name) = path[last].0.dentry();
            path[last].1 = name;
            let parent = parent.filter(|_| path.len() <= MAX_PATH_DEPTH).ok_or_else(stale)?;
            match parent.cached_fd() {
                Some(file) => break file,
                None => path.push((parent, OsString::new())),
            }
        };
        while let Some((inode, name)) = path.pop() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match openat(&*directory, &name, flags, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(stale()),
                opened => opened?,
            };
            if !inode.is_same_file(&file)? {
                return Err(stale());
            }
            if path.is_empty() {
                return Ok(file);
            }
            directory = inode.store_fd(self.fds.admit(file)?);
        }
        Err(stale())
    }

    /// Whether `file` is this inode's file. A lower FUSE mount that has forgotten a directory may
    /// give it another handle afterwards.
    fn is_same_file(&self, file: &OwnedFd) -> io::Result<bool> {
        let has_handle = FileHandle::of(file)? == self.handle;
        if self.fds.is_local || self.file_type != FileType::Directory {
            return Ok(has_handle);
        }
        // With its descriptor closed, the directory may also have lost its handle to another file.
        let found = Attributes::of(file)?;
        Ok(found.file_type() == self.file_type && found.dev_ino() == self.dev_ino)
    }

    /// Closes the descriptor if it is idle. Returns whether it did.
    pub(super) fn close_idle_fd(self: &Arc<Self>) -> bool {
        // Only the table and the caller refer to an idle inode.
        let is_idle =
            |slot: &FdSlot| Arc::strong_count(self) <= 2 && slot.last_used.elapsed() >= IDLE_TIMEOUT;
        let Some(file) = Some(self.slot.lock()).filter(|slot| is_idle(slot)).and_then(|slot| slot.fd.clone())
        else {
            return false;
        };
        // A file without a name cannot be reopened by handle, so its descriptor stays. A deleted
        // directory takes next to no space, and the kernel forgets a file deleted through the
        // overlay as soon as it is unused. Other deleted files are closed, to free their space.
        let stays = (self.file_type == FileType::Directory || self.is_removed_here())
            && Attributes::of(&*file).is_ok_and(|attributes| attributes.link_count() == 0);
        drop(file);
        if stays {
            return false;
        }
        let closed = {
            let mut slot = self.slot.lock();
            // Check and close under one lock: a concurrent `fd()` finds the descriptor open or
            // gone.
            if is_idle(&slot) { slot.fd.take() } else { None }
        };
        closed.is_some()
    }

    /// A name of the file was removed through the overlay.
    pub(super) fn mark_removed_here(&self) {
        self.removed_here.store(true, Ordering::Relaxed);
    }

    fn is_removed_here(&self) -> bool {
        self.removed_here.load(Ordering::Relaxed)
    }

    /// Where the file was last found: the directory, unless the kernel has forgotten it, and the
    /// name.
    pub(super) fn dentry(&self) -> (Option<Arc<Inode>>, OsString) {
        let dentry = self.dentry.lock();
        (dentry.0.upgrade(), dentry.1.clone())
    }

    /// The names from the root to the file, as far as is known. A rename that bypasses the overlay
    /// shows at the next lookup.
    pub(super) fn path(&self) -> Option<Vec<OsString>> {
        let mut names = Vec::new();
        let (mut id, mut dentry) = (self.id, self.dentry());
        while id != ROOT {
            // Renames may have left a cycle in the recorded dentries.
            if names.len() > MAX_PATH_DEPTH {
                return None;
            }
            names.push(dentry.1);
            let parent = dentry.0?;
            id = parent.id;
            dentry = parent.dentry();
        }
        names.reverse();
        Some(names)
    }

    /// The path in lossy UTF-8, for logs and status pages.
    pub(super) fn shown_path(&self) -> Option<String> {
        Some(self.path()?.iter().fold(String::new(), |path, name| path + "/" + &name.to_string_lossy()))
    }

    /// Whether the file's name now leads to `other`, and this has not been reported since the last
    /// lookup.
    pub(super) fn is_newly_replaced_by(&self, other: &FileHandle) -> bool {
        self.handle != *other && !self.staleness_reported.swap(true, Ordering::Relaxed)
    }

    fn set_dentry(&self, parent: &Arc<Inode>, name: &OsStr) {
        if self.id != ROOT {
            *self.dentry.lock() = (Arc::downgrade(parent), name.to_owned());
            self.staleness_reported.store(false, Ordering::Relaxed);
        }
    }
}

struct InodeEntry {
    inode: Arc<Inode>,
    /// Lookups replied to the kernel, minus those it has forgotten.
    lookups: u64,
}

struct InodeIndex {
    by_id: HashMap<u64, InodeEntry>,
    handle_to_id: HashMap<FileHandle, u64>,
    /// The device of the root.
    device: u64,
    next_synthetic_id: u64,
    next_generation: u64,
}

/// All inodes.
pub(super) struct InodeTable {
    index: Mutex<InodeIndex>,
    fds: Arc<FdRegistry>,
    /// Signalled when inodes have more descriptors than they may.
    over_limit: SyncSender<()>,
    /// Held by the one thread that closes idle descriptors after `EMFILE`.
    reclaiming: Mutex<()>,
}

/// Whether there is no descriptor left.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// How many descriptors are closed after `EMFILE`.
const MAX_FDS_PER_RECLAIM: usize = 1024;

/// A dentry that the kernel should drop. It keeps a lookup of the directory, so that the
/// directory's number cannot be reused meanwhile.
pub(super) struct EvictableDentry<'a> {
    table: &'a InodeTable,
    pub(super) directory: u64,
    pub(super) name: OsString,
}

impl Drop for EvictableDentry<'_> {
    fn drop(&mut self) {
        self.table.forget(self.directory, 1);
    }
}

impl InodeTable {
    /// A table of the root alone, which is never forgotten. Signals `over_limit` when inodes have
    /// more descriptors than `limits` allow.
    ///
    /// # Errors
    /// The lower mount's, when it does not identify its root.
    pub(super) fn new(
        root: OwnedFd,
        attributes: &Attributes,
        is_local: bool,
        limits: FdLimits,
        over_limit: SyncSender<()>,
    ) -> io::Result<Self> {
        let handle = FileHandle::of(&root)?;
        let fds = FdRegistry::new(root.as_fd(), is_local, limits);
        let inode = Inode::new((ROOT, 0), handle.clone(), attributes, Default::default(), &fds);
        inode.slot.lock().fd = Some(InodeFd::new(root, &fds));
        let index = Mutex::new(InodeIndex {
            by_id: HashMap::from([(ROOT, InodeEntry { inode, lookups: 1 })]),
            handle_to_id: HashMap::from([(handle, ROOT)]),
            device: attributes.dev_ino().0,
            next_synthetic_id: FIRST_SYNTHETIC_ID,
            next_generation: 1,
        });
        Ok(Self { index, fds, over_limit, reclaiming: Mutex::new(()) })
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.index.lock().by_id.get(&id).map(|entry| entry.inode.clone())
    }

    /// The inode of the file with this handle.
    pub(super) fn by_handle(&self, handle: &FileHandle) -> Option<Arc<Inode>> {
        let index = self.index.lock();
        Some(index.handle_to_id.get(handle).and_then(|id| index.by_id.get(id))?.inode.clone())
    }

    /// How many inodes there are.
    pub(super) fn len(&self) -> usize {
        self.index.lock().by_id.len()
    }

    /// The inode of a file that a lookup found as `name` in `parent`. Counts one lookup.
    pub(super) fn insert(
        &self,
        (parent, name): (&Arc<Inode>, &OsStr),
        file: OwnedFd,
        attributes: &Attributes,
    ) -> io::Result<Arc<Inode>> {
        let handle = FileHandle::of(&file)?;
        let inode = self.index.lock().look_up(handle, attributes, &self.fds);
        inode.set_dentry(parent, name);
        inode.store_fd(file);
        if self.is_over_limit() {
            // A full channel holds a signal already.
            let _ = self.over_limit.try_send(());
        }
        Ok(inode)
    }

    /// The kernel has moved the file to `name` in `parent` without a lookup. Returns its inode.
    pub(super) fn relocate(
        &self,
        handle: &FileHandle,
        (parent, name): (&Arc<Inode>, &OsStr),
    ) -> Option<Arc<Inode>> {
        let inode = self.by_handle(handle)?;
        inode.set_dentry(parent, name);
        Some(inode)
    }

    /// Whether inodes have more descriptors than they may.
    pub(super) fn is_over_limit(&self) -> bool {
        self.fds.count() > self.fds.limits.inodes
    }

    /// Runs `open` for a request. If there is no descriptor left for requests, closes idle ones and
    /// runs it again.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` if that did not help, and those of `open`.
    pub(super) fn with_fd_reclaim<T: AsFd>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let open = || open().and_then(|opened| self.fds.admit(opened));
        match open() {
            Err(error) if is_exhaustion(&error) => {
                let _ = self.over_limit.try_send(());
                // One thread at a time, and a bounded number: each pass scans the table.
                match self.reclaiming.try_lock() {
                    Some(_reclaiming) => drop(self.close_idle(MAX_FDS_PER_RECLAIM)),
                    None => drop(self.reclaiming.lock()),
                }
                open().inspect_err(|error| self.log_exhaustion(error))
            }
            opened => opened,
        }
    }

    fn log_exhaustion(&self, error: &io::Error) {
        static LIMIT: LogLimit = LogLimit::new();
        if is_exhaustion(error)
            && let Some(left_out) = LIMIT.admit("")
        {
            let (limit, left_out) = (self.fds.limits.requests, left_out.field());
            let remedy = "raise LimitNOFILE= of the unit, or `ulimit -n`";
            tracing::warn!(%error, limit, remedy, left_out, "open files take all descriptors");
        }
    }

    /// Fails if requests may open no more, for what must not be done unless its result can be
    /// opened. `opened` is any descriptor.
    pub(super) fn ensure_fd_left(&self, opened: &InodeFd) -> io::Result<()> {
        self.with_fd_reclaim(|| opened.as_fd().try_clone_to_owned()).map(drop)
    }

    /// Closes the least recently used idle descriptors, a quarter of all. Returns the dentries of
    /// files whose descriptors close only when the kernel forgets them.
    pub(super) fn reclaim(&self) -> Vec<EvictableDentry<'_>> {
        self.close_idle(self.fds.count() / 4)
    }

    /// As [`reclaim`](Self::reclaim), for up to `max` descriptors.
    fn close_idle(&self, max: usize) -> Vec<EvictableDentry<'_>> {
        let (mut closed, mut names) = (Vec::new(), Vec::new());
        {
            let mut index = self.index.lock();
            let is_idle = |inode: &Arc<Inode>| {
                inode.id != ROOT
                    && Arc::strong_count(inode) == 1
                    && inode.has_fd()
                    && !inode.is_removed_here()
            };
            let idle = index.by_id.values().map(|entry| &entry.inode).filter(|inode| is_idle(inode));
            let mut idle: Vec<_> =
                idle.map(|inode| (inode.slot.lock().last_used, inode.generation, inode.id)).collect();
            if max < idle.len() {
                idle.select_nth_unstable(max);
                idle.truncate(max);
            }
            for (_, _, id) in idle {
                let Some(InodeEntry { inode, .. }) = index.by_id.get(&id) else { continue };
                if self.fds.can_open_by_handle() || inode.file_type == FileType::Directory {
                    closed.push(inode.slot.lock().fd.take());
                    continue;
                }
                let (parent, name) = inode.dentry();
                let Some(parent) = parent else { continue };
                // If the kernel has forgotten the directory, its number may belong to another
                // inode by now.
                if let Some(entry) =
                    index.by_id.get_mut(&parent.id).filter(|it| Arc::ptr_eq(&it.inode, &parent))
                {
                    entry.lookups += 1;
                    names.push(EvictableDentry { table: self, directory: parent.id, name });
                }
            }
        }
        // Without the lock, because closing a descriptor may call the lower daemon.
        drop(closed);
        names
    }

    /// Closes descriptors that have been idle for [`IDLE_TIMEOUT`].
    pub(super) fn close_idle_fds(&self) {
        self.fds.close_idle_fds();
    }

    /// Whether [`close_idle_fds`](Self::close_idle_fds) has anything to do on this mount.
    pub(super) fn closes_idle_fds(&self) -> bool {
        self.fds.can_open_by_handle()
    }

    /// The kernel has forgotten `count` lookups.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let gone = {
            let mut index = self.index.lock();
            let Some(entry) = index.by_id.get_mut(&id) else { return };
            entry.lookups = entry.lookups.saturating_sub(count);
            if entry.lookups > 0 || id == ROOT {
                return;
            }
            let gone = index.by_id.remove(&id);
            if let Some(entry) = &gone
                && index.handle_to_id.get(&entry.inode.handle) == Some(&id)
            {
                index.handle_to_id.remove(&entry.inode.handle);
            }
            gone
        };
        // Without the lock, because closing a descriptor may call the lower daemon.
        drop(gone);
    }
}

/// The deepest path that is resolved; `PATH_MAX` has room for as many names.
const MAX_PATH_DEPTH: usize = 2048;

impl InodeIndex {
    /// The inode of the file with this handle. Counts one lookup.
    fn look_up(&mut self, handle: FileHandle, attributes: &Attributes, fds: &Arc<FdRegistry>) -> Arc<Inode> {
        if let Some(entry) = self.handle_to_id.get(&handle).and_then(|id| self.by_id.get_mut(id))
            && entry.inode.file_type == attributes.file_type()
            // While no descriptor is open, another file may have got the handle.
            && (entry.inode.has_fd() || entry.inode.dev_ino == attributes.dev_ino())
        {
            entry.lookups += 1;
            return entry.inode.clone();
        }
        let id = self.free_id(attributes.dev_ino());
        let generation = self.next_generation;
        self.next_generation += 1;
        let inode = Inode::new((id, generation), handle.clone(), attributes, Default::default(), fds);
        self.by_id.insert(id, InodeEntry { inode: inode.clone(), lookups: 1 });
        self.handle_to_id.insert(handle, id);
        inode
    }

    fn free_id(&mut self, (device, inode): (u64, u64)) -> u64 {
        if device == self.device && inode > ROOT && !self.by_id.contains_key(&inode) {
            return inode;
        }
        // Lower files may have numbers in this range, too.
        loop {
            self.next_synthetic_id = self.next_synthetic_id.checked_add(1).unwrap_or(FIRST_SYNTHETIC_ID);
            if !self.by_id.contains_key(&self.next_synthetic_id) {
                return self.next_synthetic_id;
            }
        }
    }
}

#[cfg(test)]
impl InodeTable {
    /// A table over a FUSE mount, without a limit.
    pub(super) fn of_one(root: OwnedFd, attributes: &Attributes) -> Self {
        Self::new(root, attributes, false, FdLimits::of(u64::MAX), std::sync::mpsc::sync_channel(1).0)
            .unwrap()
    }
}

#[cfg(test)]
mod tests;
