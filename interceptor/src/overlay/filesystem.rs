//! The FUSE requests, translated into calls on the lower mount.
//!
//! A request thread answers each request itself, and blocks on the lower mount for as long as that
//! takes. There are enough threads ([`super::OverlayOptions::threads`]) for a slow reply not to
//! delay others. Only a read that a version answers may move to the runtime.
//!
//! Locks are left to the kernel. All programs of this host, in any container, meet in the file
//! that the overlay shows, so POSIX locks and `flock` hold between them. Were locks passed on, a
//! waiting program would be deaf to signals, since fuser does not deliver `FUSE_INTERRUPT`.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{self, Attributes};
use super::content::ServedVersion;
use super::credentials::Caller;
use super::inodes::ROOT;
use super::open_directory::{AddOutcome, DirectoryEntry, OpenDirectory};
use super::open_file::OpenFile;
use super::tree::{AttributeChange, CreateMode, FoundInode, LowerTree, NewEntry, XattrReply};
use super::version_source::{OpenIntent, VersionSource};
use crate::fuse::STATUS_XATTR;
use crate::fuse::handles::Handles;
use crate::fuse::killed::unless_killed;
use crate::fuse::request_tracker::{InFlightGuard, RequestTracker};
use crate::fuse::{capabilities, session, xattr};
use crate::read::ReadReply;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Source;
use crate::telemetry::request_profile::ProfiledRequest;
use crate::warmup::ticket::{READ_TICKET_XATTR, ReadTicket, TicketIssuer};

/// How long the kernel may cache names and attributes; most lower mounts grant the same. Changes
/// through the overlay show at once, so this concerns changes that bypass it.
const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

/// The most bytes that one request copies. A program is told how many were copied, and asks for
/// the rest; meanwhile the thread is free for other requests.
const MAX_COPY: u64 = 32 << 20;

/// The overlay as a FUSE file system. Each request thread has a clone of the same overlay.
#[derive(Clone)]
pub(super) struct OverlayFs {
    pub(super) tree: Arc<LowerTree>,
    pub(super) files: Arc<Handles<OpenFile>>,
    pub(super) directories: Arc<Handles<OpenDirectory>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) has_acls: bool,
    /// Whether every change of a lower file shows in its attributes.
    pub(super) shows_changes: bool,
    /// Finds versions that answer reads; `None` if the lower mount answers all.
    pub(super) source: Option<Arc<dyn VersionSource>>,
    /// The address of the status API, once it is known.
    pub(super) status_api: Arc<OnceLock<SocketAddr>>,
    /// Issues the values of [`READ_TICKET_XATTR`].
    pub(super) tickets: Arc<TicketIssuer>,
    pub(super) requests: Arc<RequestTracker>,
    /// Set before the first request.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
}

thread_local! {
    /// Data read from the lower mount on its way to the kernel.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn caller(request: &Request) -> Caller {
    Caller { user: request.uid(), group: request.gid(), thread: request.pid() }
}

/// The error number of a reply.
fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        // `ENOSYS` would tell the kernel never to send such a request again.
        Some(libc::ENOSYS) => Errno::EOPNOTSUPP,
        Some(number) => Errno::from_i32(number),
        None => Errno::EIO,
    }
}

fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

fn reply_entry(reply: ReplyEntry, found: io::Result<FoundInode>) {
    match found {
        Ok((inode, attributes)) => {
            reply.entry(&CACHE_TIMEOUT, &attributes.reply(inode.id), Generation(inode.generation));
        }
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, done: io::Result<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_attributes(reply: ReplyAttr, id: INodeNo, attributes: io::Result<Attributes>) {
    match attributes {
        // Programs see the inode number of the lower mount's root, not that of the protocol.
        Ok(attributes) if id.0 == ROOT => {
            reply.attr(&CACHE_TIMEOUT, &attributes::reply_for_root(&attributes))
        }
        Ok(attributes) => reply.attr(&CACHE_TIMEOUT, &attributes.reply(id.0)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_xattr(reply: ReplyXattr, value: io::Result<XattrReply>) {
    match value {
        Ok(XattrReply::Size(size)) => reply.size(size.try_into().unwrap_or(u32::MAX)),
        Ok(XattrReply::Data(data)) => reply.data(&data),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_written(reply: ReplyWrite, written: io::Result<usize>) {
    match written {
        // The request's size fits into 32 bits.
        Ok(written) => reply.written(written.try_into().unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(&error)),
    }
}

/// A read without a reply yet.
struct PendingRead {
    caller: u32,
    begun: Instant,
    in_flight: InFlightGuard,
    reply: ReplyData,
}

/// Answers a read from the lower mount. Blocks.
fn read_lower(metrics: &Metrics, file: &OpenFile, offset: u64, len: usize, pending: PendingRead) {
    let PendingRead { begun, mut in_flight, reply, .. } = pending;
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let read = file.read(&mut buffer[..len], offset);
        in_flight.transferred(*read.as_ref().unwrap_or(&0));
        drop(in_flight);
        match read {
            Ok(read) => {
                metrics.read(Source::Lower, read as u64, begun.elapsed());
                reply.data(&buffer[..read]);
            }
            Err(error) => {
                metrics.read_failed(begun.elapsed());
                reply.error(errno(&error));
            }
        }
    });
}

impl OverlayFs {
    /// Answers a read with a version, and if that fails from the lower mount.
    fn read_served(
        &self,
        source: &dyn VersionSource,
        served: ServedVersion,
        file: Arc<OpenFile>,
        offset: u64,
        len: usize,
        mut pending: PendingRead,
    ) {
        // Prefetch spawns tasks.
        let _runtime = source.runtime().enter();
        match source.reader().read(&served.version, offset, len, pending.caller) {
            ReadReply::Ready(data) => {
                pending.in_flight.transferred(data.len());
                drop(pending.in_flight);
                pending.reply.data(&data);
            }
            ReadReply::Pending(data) => {
                let (metrics, runtime) = (self.metrics.clone(), source.runtime().clone());
                source.runtime().spawn(async move {
                    match unless_killed(pending.caller, data).await {
                        None => {
                            drop(pending.in_flight);
                            pending.reply.error(Errno::EINTR);
                        }
                        Some(Ok(data)) => {
                            pending.in_flight.transferred(data.len());
                            drop(pending.in_flight);
                            pending.reply.data(&data);
                        }
                        Some(Err(error)) => {
                            let path = served.version.path();
                            tracing::debug!(path, offset, len, %error, "the mount below answers instead");
                            file.inode.content.mark_changed();
                            runtime.spawn_blocking(move || {
                                read_lower(&metrics, &file, offset, len, pending);
                            });
                        }
                    }
                });
            }
        }
    }

    /// Runs `work` for a request, which is counted as in flight meanwhile. The caller then
    /// replies.
    fn track<T>(&self, request: &Request, profiled: ProfiledRequest, work: impl FnOnce() -> T) -> T {
        let _in_flight = self.requests.begin(request.pid(), 0, profiled);
        work()
    }

    /// A request for `inode`, for profiles.
    fn profile(&self, request: &Request, operation: &'static str, inode: INodeNo) -> ProfiledRequest {
        let path = || Some(self.profiled_path(&self.tree.inodes().get(inode.0)?.shown_path()?));
        self.metrics.profilers().begin(operation, request.pid(), path)
    }

    /// A request for the entry `name` of the directory `parent`, for profiles.
    fn profile_entry(
        &self,
        request: &Request,
        operation: &'static str,
        parent: INodeNo,
        name: &OsStr,
    ) -> ProfiledRequest {
        let path = || {
            let directory = self.tree.inodes().get(parent.0)?.shown_path()?;
            Some(self.profiled_path(&format!("{directory}/{}", name.to_string_lossy())))
        };
        self.metrics.profilers().begin(operation, request.pid(), path)
    }

    /// The path of a file as `interceptor trace` shows it, from that below the overlay's root.
    fn profiled_path(&self, path: &str) -> String {
        let path = self.metrics.slow_reads().followers().path_of(path);
        if path.is_empty() { "/".into() } else { path }
    }

    /// A ticket for a caller who may read the file `inode`.
    fn read_ticket(&self, inode: u64, caller: Caller) -> io::Result<String> {
        let (file, owner) = self.tree.readable_file(inode, caller)?;
        let (user, is_owner) = (caller.user, caller.user == owner);
        Ok(self.tickets.issue(&ReadTicket { file, user, is_owner }))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<OpenFile>> {
        self.files.get(handle.0).ok_or_else(bad_handle)
    }

    fn directory(&self, handle: FileHandle) -> io::Result<Arc<OpenDirectory>> {
        self.directories.get(handle.0).ok_or_else(bad_handle)
    }

    /// The source that may answer reads of a handle with `flags`.
    fn source_for(&self, flags: i32) -> Option<&dyn VersionSource> {
        self.source.as_deref().filter(|source| source.serves(flags))
    }

    /// Opens the lower file, looks for a version of it, and decides how the kernel treats its
    /// pages.
    fn open_lower(&self, inode: u64, flags: i32, caller: Caller) -> io::Result<(Arc<OpenFile>, FopenFlags)> {
        let inode = self.tree.inode_to_open(inode, caller)?;
        let file = {
            let _credentials = self.tree.impersonate_if_lower_checks(caller);
            Arc::new(self.tree.open(&inode, flags)?)
        };
        let attributes = match self.source_for(flags) {
            Some(source) => source.resolve(&file, OpenIntent::Read),
            None => Attributes::fresh(&file),
        };
        let mut how = self.page_flags(&file, attributes);
        if file.is_append_only() {
            how |= FopenFlags::FOPEN_DIRECT_IO;
        }
        // A handle that cannot write has nothing to flush.
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            how |= FopenFlags::FOPEN_NOFLUSH;
        }
        Ok((file, how))
    }

    /// Whether the kernel keeps its pages of a file at an open that found these attributes. If
    /// not, its cached attributes are invalidated as well, so that the open shows the file as it
    /// is.
    fn page_flags(&self, file: &OpenFile, attributes: io::Result<Attributes>) -> FopenFlags {
        match attributes {
            Ok(attributes)
                if self.shows_changes
                    && file.inode.content.may_keep_pages(&attributes, self.tree.is_local()) =>
            {
                FopenFlags::FOPEN_KEEP_CACHE
            }
            _ => {
                if let Some(notifier) = self.notifier.get() {
                    // A negative offset stands for the attributes alone. The kernel takes no lock
                    // for it that an open holds.
                    let _ = notifier.inval_inode(INodeNo(file.inode.id), -1, 0);
                }
                FopenFlags::empty()
            }
        }
    }
}

impl Filesystem for OverlayFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // A change below drops the pages of open files as soon as the attributes show it.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ];
        if self.has_acls {
            wanted.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        // A lower daemon may replace a symbolic link under the same inode.
        if self.tree.is_local() {
            wanted.push(InitFlags::FUSE_CACHE_SYMLINKS);
        }
        // Where the lower daemon checks rights, a listed name may not be open to lookups.
        if self.tree.kernel_checks() {
            wanted.extend([InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO]);
        }
        capabilities::negotiate(config, &wanted);
        // [`StatFingerprint`](super::attributes::StatFingerprint)s are compared to the nanosecond.
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let profiled = self.profile_entry(request, "lookup", parent, name);
        reply_entry(
            reply,
            self.track(request, profiled, || self.tree.lookup(parent.0, name, caller(request))),
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.tree.inodes().forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let profiled = self.profile(request, "getattr", ino);
        let attributes = self.track(request, profiled, || self.tree.attributes(ino.0, caller(request)));
        reply_attributes(reply, ino, attributes);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let open = handle.and_then(|handle| self.files.get(handle.0));
        let change = AttributeChange { mode, user, group, size, accessed, modified };
        let profiled = self.profile(request, "setattr", ino);
        let changed = self.track(request, profiled, || {
            self.tree.set_attributes(ino.0, change, open.as_deref(), caller(request))
        });
        reply_attributes(reply, ino, changed);
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let _profiled = self.profile(request, "readlink", ino);
        match self.tree.link_target(ino.0, caller(request)) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let new = NewEntry { parent: parent.0, name, caller: caller(request) };
        let profiled = self.profile_entry(request, "mknod", parent, name);
        reply_entry(
            reply,
            self.track(request, profiled, || self.tree.mknod(new, CreateMode { mode, umask }, device)),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = NewEntry { parent: parent.0, name, caller: caller(request) };
        let profiled = self.profile_entry(request, "mkdir", parent, name);
        reply_entry(
            reply,
            self.track(request, profiled, || self.tree.make_directory(new, CreateMode { mode, umask })),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let profiled = self.profile_entry(request, "unlink", parent, name);
        reply_empty(
            reply,
            self.track(request, profiled, || self.tree.remove(parent.0, name, false, caller(request))),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let profiled = self.profile_entry(request, "rmdir", parent, name);
        reply_empty(
            reply,
            self.track(request, profiled, || self.tree.remove(parent.0, name, true, caller(request))),
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = NewEntry { parent: parent.0, name, caller: caller(request) };
        let profiled = self.profile_entry(request, "symlink", parent, name);
        reply_entry(reply, self.track(request, profiled, || self.tree.make_symlink(new, target)));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        let profiled = self.profile_entry(request, "rename", parent, name);
        reply_empty(
            reply,
            self.track(request, profiled, || self.tree.rename(from, to, flags.bits(), caller(request))),
        );
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let new = NewEntry { parent: new_parent.0, name: new_name, caller: caller(request) };
        let profiled = self.profile_entry(request, "link", new_parent, new_name);
        reply_entry(reply, self.track(request, profiled, || self.tree.hard_link(ino.0, new)));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let profiled = self.profile(request, "open", ino);
        match self.track(request, profiled, || self.open_lower(ino.0, flags.0, caller(request))) {
            Ok((file, how)) => reply.opened(FileHandle(self.files.insert(file)), how),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let new = NewEntry { parent: parent.0, name, caller: caller(request) };
        let profiled = self.profile_entry(request, "create", parent, name);
        match self.track(request, profiled, || self.tree.create(new, CreateMode { mode, umask }, flags)) {
            Ok((file, attributes)) => {
                let (attr, generation) = (attributes.reply(file.inode.id), Generation(file.inode.generation));
                let handle = FileHandle(self.files.insert(Arc::new(file)));
                reply.created(&CACHE_TIMEOUT, &attr, generation, handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if size > session::MAX_READ {
            return reply.error(Errno::EINVAL);
        }
        let profiled = self.profile(request, "read", ino);
        let (begun, in_flight) = (Instant::now(), self.requests.begin(request.pid(), size, profiled));
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(&error)),
        };
        file.update_flags(flags.0);
        let (len, pending) = (size as usize, PendingRead { caller: request.pid(), begun, in_flight, reply });
        match (self.source_for(flags.0), file.inode.content.served()) {
            (Some(source), Some(served)) => self.read_served(source, served, file, offset, len, pending),
            _ => read_lower(&self.metrics, &file, offset, len, pending),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let profiled = self.profile(request, "write", ino);
        // The kernel cuts a large write into small requests to the lower daemon, one after
        // another.
        let mut in_flight = self.requests.begin(request.pid(), 0, profiled);
        let written = self.file(handle).and_then(|file| file.write(data, offset, flags.0, mapped));
        in_flight.transferred(*written.as_ref().unwrap_or(&0));
        drop(in_flight);
        reply_written(reply, written);
    }

    fn flush(&self, request: &Request, ino: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let profiled = self.profile(request, "flush", ino);
        reply_empty(reply, self.track(request, profiled, || self.file(handle)?.flush()));
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "release", ino);
        // Before the reply: a program that waits for it finds the lower file closed.
        drop(self.files.remove(handle.0));
        reply.ok();
    }

    fn fsync(&self, request: &Request, ino: INodeNo, handle: FileHandle, only_data: bool, reply: ReplyEmpty) {
        let _profiled = self.profile(request, "fsync", ino);
        reply_empty(reply, self.file(handle).and_then(|file| file.sync(only_data)));
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _profiled = self.profile(request, "opendir", ino);
        let opened = self.tree.inode(ino.0).and_then(|inode| {
            let _credentials = self.tree.impersonate_if_lower_checks(caller(request));
            self.tree.open_directory(&inode)
        });
        match opened {
            Ok(directory) => {
                let handle = FileHandle(self.directories.insert(Arc::new(directory)));
                reply.opened(handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _profiled = self.profile(request, "readdir", ino);
        let done = self.directory(handle).and_then(|directory| {
            directory.read(offset, |entry| {
                let kind = match attributes::kind(entry.file_type) {
                    Some(kind) => kind,
                    // FUSE has a value for an unknown type, fuser has not.
                    None => match self.tree.type_of(&directory.inode, entry) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(AddOutcome::Gone),
                        kind => kind?,
                    },
                };
                let is_full = reply.add(INodeNo(entry.ino), entry.next_offset, kind, &entry.name);
                Ok(if is_full { AddOutcome::Full } else { AddOutcome::Added })
            })
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _profiled = self.profile(request, "readdirplus", ino);
        let (caller, mut added) = (caller(request), false);
        let done = self.directory(handle).and_then(|directory| {
            directory.read(offset, |entry| {
                if added && self.tree.inodes().is_over_limit() {
                    return Ok(AddOutcome::Full);
                }
                let taken = self.add_with_attributes(&directory, entry, caller, &mut reply)?;
                added |= taken == AddOutcome::Added;
                Ok(taken)
            })
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "releasedir", ino);
        drop(self.directories.remove(handle.0));
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        only_data: bool,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "fsyncdir", ino);
        reply_empty(reply, self.directory(handle).and_then(|directory| directory.sync(only_data)));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _profiled = self.profile(request, "statfs", ino);
        match self.tree.statfs(ino.0) {
            Ok(space) => reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                space.f_bsize as u32,
                space.f_namemax as u32,
                space.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "setxattr", ino);
        reply_empty(reply, self.tree.set_xattr(ino.0, name, value, flags, caller(request)));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _profiled = self.profile(request, "getxattr", ino);
        // Without a source, files are the lower mount's, whose own daemon may know them; the root
        // leads to this daemon all the same.
        if name == STATUS_XATTR && (self.source.is_some() || ino == INodeNo::ROOT) {
            let value = xattr::status_value(self.status_api.get().copied());
            return xattr::reply(reply, size, Some(value.as_bytes()));
        }
        if name == READ_TICKET_XATTR && self.source.is_some() {
            return match self.read_ticket(ino.0, caller(request)) {
                Ok(ticket) => xattr::reply(reply, size, Some(ticket.as_bytes())),
                Err(error) => reply.error(errno(&error)),
            };
        }
        reply_xattr(reply, self.tree.get_xattr(ino.0, name, size, caller(request)));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _profiled = self.profile(request, "listxattr", ino);
        match self.tree.list_xattrs(ino.0, caller(request)) {
            Ok(names) => xattr::reply(reply, size, Some(&names)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _profiled = self.profile(request, "removexattr", ino);
        reply_empty(reply, self.tree.remove_xattr(ino.0, name, caller(request)));
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _profiled = self.profile(request, "access", ino);
        reply_empty(reply, self.tree.access(ino.0, mask.bits(), caller(request)));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "fallocate", ino);
        reply_empty(reply, self.file(handle).and_then(|file| file.allocate(mode, offset, length)));
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _profiled = self.profile(request, "lseek", ino);
        let found = u64::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))
            .and_then(|offset| self.file(handle)?.seek(offset, whence));
        match found {
            Ok(place) => reply.offset(place as i64),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let mut profiled = self.profile(request, "copy_file_range", ino);
        let copied = self.file(from).and_then(|from| {
            let (to, len) = (self.file(to)?, len.min(MAX_COPY) as usize);
            from.copy_to(from_offset, &to, to_offset, len)
        });
        profiled.transferred(*copied.as_ref().unwrap_or(&0));
        drop(profiled);
        reply_written(reply, copied);
    }

    /// Calls of devices and file systems outside POSIX are not passed on.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: fuser::IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Regular files are always ready. After `ENOSYS` the kernel does not ask again.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}

impl OverlayFs {
    /// Adds an entry with attributes to a reply, which counts as a lookup.
    fn add_with_attributes(
        &self,
        directory: &OpenDirectory,
        entry: &DirectoryEntry,
        caller: Caller,
        reply: &mut ReplyDirectoryPlus,
    ) -> io::Result<AddOutcome> {
        if entry.is_dots() {
            // `.` and `..` count as no lookup.
            let (id, generation, attr) =
                (INodeNo(entry.ino), Generation(0), attributes::dot_entry(entry.ino));
            let is_full = reply.add(id, entry.next_offset, &entry.name, &Duration::ZERO, &attr, generation);
            return Ok(if is_full { AddOutcome::Full } else { AddOutcome::Added });
        }
        let (inode, attributes) = match self.tree.lookup(directory.inode.id, &entry.name, caller) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(AddOutcome::Gone),
            found => found?,
        };
        let (attr, generation) = (attributes.reply(inode.id), Generation(inode.generation));
        let is_full =
            reply.add(INodeNo(inode.id), entry.next_offset, &entry.name, &CACHE_TIMEOUT, &attr, generation);
        if is_full {
            self.tree.inodes().forget(inode.id, 1);
            return Ok(AddOutcome::Full);
        }
        Ok(AddOutcome::Added)
    }
}
