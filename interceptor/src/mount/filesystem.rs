//! Translates FUSE requests into calls of the namespace and the reader.
//!
//! The request thread answers what is in memory. A request that has to wait moves, with its reply,
//! into a task. A reply that is dropped without an answer answers EIO, so no request stays open.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    Version, WriteFlags,
};

use super::attr::{self, MIN_CHECKING_MINOR, errno, file_attr, no_attr};
use super::context::MountContext;
use super::directory::{DirectoryHandle, ReaddirRequest};
use super::handle_records::OpenKind;
use super::opens::Opens;
use super::passthrough::{self, BackingFile};
use super::statfs::{self, MAX_NAME_LEN};
use crate::fuse::handles::Handles;
use crate::fuse::killed::unless_killed;
use crate::fuse::{capabilities, session, xattr};
use crate::ledger::StoredRecord;
use crate::namespace::{FilerFailure, LookupResult, Namespace, NamespaceError, NodeId, NodeStat, NowOrLater};
use crate::read::{self, CompleteFile, FileVersion, MAX_SMALL_FILE_SIZE, ReadError};
use crate::seaweed::entry::Content;
use crate::telemetry::log_limit::LogLimit;
use crate::telemetry::metrics::OpenMode;
use crate::telemetry::request_profile::ProfiledRequest;
use crate::warmup::ticket::READ_TICKET_XATTR;

/// The FUSE side of a mount. All copies are the same mount.
#[derive(Clone)]
pub(super) struct SeaweedFilesystem {
    context: Arc<MountContext>,
    directories: Arc<Handles<DirectoryHandle>>,
}

fn reply_entry(reply: ReplyEntry, found: Result<LookupResult, NamespaceError>) {
    match found {
        Ok(LookupResult::Node(stat)) => reply.entry_with_ttls(
            &stat.attr_timeout,
            &stat.entry_timeout,
            &file_attr(stat.id, &stat.entry),
            Generation(stat.generation.into()),
        ),
        Ok(LookupResult::Absent(Duration::ZERO)) => reply.error(Errno::ENOENT),
        Ok(LookupResult::Absent(timeout)) => {
            reply.entry_with_ttls(&Duration::ZERO, &timeout, &no_attr(), Generation(0));
        }
        Err(error) => reply.error(errno(&error)),
    }
}

fn log_failed_lookup(namespace: &Namespace, parent: NodeId, name: &str, error: &FilerFailure) {
    static LIMIT: LogLimit = LogLimit::new();
    if let Some(left_out) = LIMIT.admit(name) {
        let directory = namespace.path(parent);
        tracing::warn!(directory, name, %error, left_out = left_out.field(), "lookup failed");
    }
}

fn log_failed_read(error: &ReadError, version: &FileVersion, offset: u64, len: usize) {
    static LIMIT: LogLimit = LogLimit::new();
    static REFUSAL_LIMIT: LogLimit = LogLimit::new();
    let path = version.path();
    // A refusal holds until the file is opened again, so it is logged once for a file.
    if let ReadError::Encrypted(_) | ReadError::Replaced(_) = error {
        if version.activity().is_first_refusal()
            && let Some(left_out) = REFUSAL_LIMIT.admit(path)
        {
            tracing::warn!(path, %error, left_out = left_out.field(), "cannot be read");
        }
    } else if let Some(left_out) = LIMIT.admit(path) {
        tracing::warn!(path, offset, len, %error, left_out = left_out.field(), "read failed");
    }
}

/// Answers requests that would change something. On a read-only mount the kernel itself stops most
/// of them.
macro_rules! read_only {
    ($($name:ident($($argument:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::EROFS);
        })*
    };
}

/// Answers requests that the kernel handles better by itself: after ENOSYS it sends no more of a
/// kind.
macro_rules! left_to_kernel {
    ($($name:ident($($argument:ty),*) -> $reply:ty;)*) => {
        $(fn $name(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::ENOSYS);
        })*
    };
}

impl SeaweedFilesystem {
    pub(super) fn new(context: Arc<MountContext>) -> Self {
        Self { context, directories: Arc::new(Handles::new()) }
    }

    /// Takes what a predecessor had open. To be called before the first request.
    pub(super) fn restore_handles(&self, records: &[StoredRecord]) {
        let context = &self.context;
        let Some(device) = context.device.get() else { return };
        // Those that nothing has open are closed at the end.
        let backing = BackingFile::restore(records, device, &context.ledger);
        for handle in context.handles.restore(records) {
            let file = match handle.kind {
                OpenKind::Directory => {
                    match DirectoryHandle::open(context, handle.node) {
                        Ok((opened, _)) => self.directories.insert_as(handle.number, Arc::new(opened)),
                        Err(_) => _ = context.handles.closed(handle.number),
                    }
                    continue;
                }
                OpenKind::Cached => None,
                OpenKind::PassedThrough(number) => backing.get(&number).cloned(),
            };
            let (Some(opens), Ok(version)) = (context.opens.get(), context.namespace.version(handle.node))
            else {
                context.handles.closed(handle.number);
                continue;
            };
            context.reader.opened(&version);
            opens.open(handle.node, &version, file, || true);
        }
    }

    /// A request for `node`, for profiles.
    fn profile(&self, request: &Request, operation: &'static str, node: INodeNo) -> ProfiledRequest {
        let path = || Some(self.context.namespace.path(node.0));
        self.context.metrics.profilers().begin(operation, request.pid(), path)
    }

    /// Before an OPEN that the kernel sends again is answered: undoes what the predecessor did for
    /// it.
    fn undo_open(&self, request: &Request, node: INodeNo) {
        if let Some(handle) = self.context.handles.opened_before(request.unique().0) {
            match self.directories.remove(handle) {
                Some(directory) => {
                    self.context.handles.closed(handle);
                    drop(directory);
                }
                None => self.release_handle(node, handle),
            }
        }
    }

    /// Sends a reply as soon as the answer is known, or when the caller is being killed. An answer
    /// that comes after that is passed to `late`.
    fn answer<T: Send + 'static>(
        &self,
        request: &Request,
        answer: NowOrLater<Result<T, NamespaceError>>,
        reply: impl FnOnce(Result<T, NamespaceError>) + Send + 'static,
        late: impl FnOnce(T) + Send + 'static,
    ) {
        let mut result = match answer {
            NowOrLater::Now(result) => return reply(result),
            NowOrLater::Later(result) => result,
        };
        let caller = request.pid();
        self.context.spawn(async move {
            match unless_killed(caller, &mut result).await {
                Some(result) => reply(result),
                None => {
                    reply(Err(NamespaceError::Killed));
                    // Other requests may wait for the same answer, and it updates the namespace.
                    if let Ok(result) = result.await {
                        late(result);
                    }
                }
            }
        });
    }

    fn with_attributes(
        &self,
        request: &Request,
        node: NodeId,
        reply: impl FnOnce(Result<NodeStat, NamespaceError>) + Send + 'static,
    ) {
        self.answer(request, self.context.namespace.attributes(node), reply, drop);
    }

    /// Opens a handle of a node. Returns the version that it is a handle of, and the file to pass
    /// through.
    fn open_handle(
        &self,
        opens: &Opens<FileVersion, BackingFile>,
        node: INodeNo,
        flags: OpenFlags,
    ) -> Result<(Arc<FileVersion>, Option<BackingFile>), Errno> {
        let version = self.context.namespace.version(node.0).map_err(|error| errno(&error))?;
        if let Some(error) = version.refusal() {
            log_failed_read(&error, &version, 0, 0);
            return Err(Errno::from_i32(error.errno()));
        }
        // A disk takes direct reads at whole sectors only; the daemon takes all that come.
        let is_direct = flags.0 & libc::O_DIRECT != 0;
        let complete = self.context.reader.opened(&version);
        let complete = complete.filter(|file| !is_direct || matches!(file, CompleteFile::Resident(_)));
        let complete = complete.and_then(|file| {
            let registered =
                BackingFile::register(file.clone(), self.context.device.get()?, &self.context.ledger);
            let log_refusal = |error: &std::io::Error| match file {
                CompleteFile::Resident(_) => {
                    tracing::warn!(path = version.path(), %error, "the kernel does not take a resident file");
                }
                CompleteFile::OnDisk(_) => {
                    tracing::warn!(%error, "the kernel does not take files of the disk cache");
                    self.context.reader.disk_passthrough_refused();
                }
            };
            registered.inspect_err(log_refusal).ok()
        });
        let is_current =
            || self.context.namespace.version(node.0).is_ok_and(|now| Arc::ptr_eq(&now, &version));
        let backing = opens.open(node.0, &version, complete, is_current);
        Ok((version, backing))
    }

    /// Releases a handle of a node, unless that has been done.
    fn release_handle(&self, node: INodeNo, handle: u64) {
        if !self.context.handles.closed(handle) {
            return;
        }
        if let Some(version) = self.context.opens.get().and_then(|opens| opens.release(node.0)) {
            self.context.reader.closed(&version);
        }
    }
}

impl Filesystem for SeaweedFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_HAS_RESEND,
        ];
        capabilities::negotiate(config, &wanted);
        let checks_attributes = config.kernel_abi() >= Version(7, MIN_CHECKING_MINOR);
        self.context.checks_attributes.store(checks_attributes, Ordering::Relaxed);
        if self.context.wants_passthrough {
            self.context.passthrough_offered.store(passthrough::negotiate(config), Ordering::Relaxed);
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name.len() > MAX_NAME_LEN as usize {
            return reply.error(Errno::ENAMETOOLONG);
        }
        // The filer's names are UTF-8: no other name exists.
        let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
        let path = || Some(format!("{}/{name}", self.context.namespace.path(parent.0).trim_end_matches('/')));
        let profiled = self.context.metrics.profilers().begin("lookup", request.pid(), path);
        let guard = self.context.requests.begin(request.pid(), 0, profiled);
        let (namespace, name) = (self.context.namespace.clone(), name.to_owned());
        let answer = namespace.lookup(parent.0, &name);
        let late = {
            let namespace = namespace.clone();
            move |found| {
                // The kernel was not told of the node, so its lookup is undone.
                if let LookupResult::Node(stat) = found {
                    namespace.forget(stat.id, 1);
                }
            }
        };
        let reply = move |found| {
            drop(guard);
            if let Err(NamespaceError::Filer(failure)) = &found {
                log_failed_lookup(&namespace, parent.0, &name, failure);
            }
            reply_entry(reply, found);
        };
        self.answer(request, answer, reply, late);
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.context.namespace.forget(node.0, lookups);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let profiled = self.profile(request, "getattr", node);
        let guard = self.context.requests.begin(request.pid(), 0, profiled);
        self.with_attributes(request, node.0, move |stat| {
            drop(guard);
            match stat {
                Ok(stat) => reply.attr(&stat.attr_timeout, &file_attr(stat.id, &stat.entry)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let profiled = self.profile(request, "readlink", node);
        self.with_attributes(request, node.0, move |stat| {
            drop(profiled);
            match stat.map(|stat| stat.entry.content.clone()) {
                Ok(Content::Target(target)) => reply.data(target.as_bytes()),
                Ok(_) => reply.error(Errno::EINVAL),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // Without passthrough an open has nothing to choose: a node is one version of a file, so a
        // read needs no handle. After ENOSYS the kernel sends no OPEN or RELEASE again.
        let Some(opens) = self.context.opens.get() else { return reply.error(Errno::ENOSYS) };
        let profiled = self.profile(request, "open", node);
        let guard = self.context.requests.begin(request.pid(), 0, profiled);
        self.undo_open(request, node);
        let (version, backing) = match self.open_handle(opens, node, flags) {
            Ok(entered) => entered,
            Err(errno) => return reply.error(errno),
        };
        let kind = backing.as_ref().map_or(OpenKind::Cached, |file| OpenKind::PassedThrough(file.number()));
        let handle = self.context.handles.opened(node.0, kind, request.unique().0);
        if let Some(backing) = backing {
            self.context.metrics.opened(OpenMode::Passthrough);
            drop(guard);
            return backing.reply(handle, reply);
        }
        let first_time = version.is_small_and_unread();
        if first_time {
            let _runtime = self.context.runtime.enter();
            self.context.reader.prefetch_opened(&version);
        }
        self.context.metrics.opened(OpenMode::Cached);
        drop(guard);
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        if first_time {
            self.context.next_files.follow_walk(&self.context.namespace, &self.context.reader, node.0);
        }
    }

    fn release(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "release", node);
        // Before the answer, after which the kernel may forget the node and its number may be
        // reused.
        self.release_handle(node, handle.0);
        reply.ok();
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if size > session::MAX_READ {
            return reply.error(Errno::EINVAL);
        }
        let profiled = self.profile(request, "read", node);
        let mut guard = self.context.requests.begin(request.pid(), size, profiled);
        let version = match self.context.namespace.version(node.0) {
            Ok(version) => version,
            Err(error) => return reply.error(errno(&error)),
        };
        let len = size as usize;
        let begins_small_file = offset == 0 && version.size() <= MAX_SMALL_FILE_SIZE;
        // Readahead starts tasks.
        let _runtime = self.context.runtime.enter();
        let answer = self.context.reader.read(&version, offset, len, request.pid());
        let (size, hit) = (version.size(), matches!(answer, read::ReadReply::Ready(_)));
        match answer {
            read::ReadReply::Ready(data) => {
                guard.transferred(data.len());
                drop(guard);
                reply.data(&data);
            }
            read::ReadReply::Pending(data) => {
                let version = version.clone();
                let caller = request.pid();
                let (metrics, begun) = (self.context.metrics.clone(), Instant::now());
                self.context.spawn(async move {
                    let data = unless_killed(caller, data).await;
                    if let Some(Ok(data)) = &data {
                        guard.transferred(data.len());
                    }
                    drop(guard);
                    match data {
                        None => reply.error(Errno::EINTR),
                        Some(Ok(data)) => reply.data(&data),
                        Some(Err(error)) => {
                            metrics.read_failed(begun.elapsed());
                            log_failed_read(&error, &version, offset, len);
                            reply.error(Errno::from_i32(error.errno()));
                        }
                    }
                });
            }
        }
        if let Some(page_cache) = self.context.page_cache.get() {
            page_cache.on_read(node.0, &version, offset, flags);
        }
        if begins_small_file {
            self.context.prefetch_next_files(node.0, size, hit);
        }
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let _profiled = self.profile(request, "opendir", node);
        self.undo_open(request, node);
        match DirectoryHandle::open(&self.context, node.0) {
            Ok((handle, flags)) => {
                let number =
                    match self.context.handles.opened(node.0, OpenKind::Directory, request.unique().0) {
                        0 => self.directories.insert(Arc::new(handle)),
                        number => {
                            self.directories.insert_as(number, Arc::new(handle));
                            number
                        }
                    };
                reply.opened(FileHandle(number), flags);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let profiled = self.profile(request, "readdir", node);
        match self.directories.get(handle.0) {
            Some(handle) => handle.read(ReaddirRequest::of(request, &self.context, profiled), offset, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    fn readdirplus(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let profiled = self.profile(request, "readdirplus", node);
        match self.directories.get(handle.0) {
            Some(handle) => handle.read(ReaddirRequest::of(request, &self.context, profiled), offset, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    fn releasedir(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let _profiled = self.profile(request, "releasedir", node);
        self.context.handles.closed(handle.0);
        drop(self.directories.remove(handle.0));
        reply.ok();
    }

    fn statfs(&self, request: &Request, node: INodeNo, reply: ReplyStatfs) {
        let profiled = self.profile(request, "statfs", node);
        let usage = self.context.usage.clone();
        match usage.latest() {
            NowOrLater::Now(usage) => statfs::reply(usage, reply),
            NowOrLater::Later(usage) => self.context.spawn(async move {
                let usage = usage.await;
                drop(profiled);
                statfs::reply(usage, reply);
            }),
        }
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let profiled = self.profile(request, "getxattr", node);
        let Some(name) = name.to_str().map(str::to_owned) else { return reply.error(Errno::ENODATA) };
        if name == xattr::STATUS_XATTR {
            let value = xattr::status_value(self.context.status_api.get().copied());
            return xattr::reply(reply, size, Some(value.as_bytes()));
        }
        if name == READ_TICKET_XATTR {
            let ticket = self.context.read_ticket(node.0, request.uid());
            return xattr::reply(reply, size, ticket.as_deref().map(str::as_bytes));
        }
        self.with_attributes(request, node.0, move |stat| {
            drop(profiled);
            match stat {
                Ok(stat) => xattr::reply(reply, size, attr::xattr(&stat.entry.xattrs, &name)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let profiled = self.profile(request, "listxattr", node);
        self.with_attributes(request, node.0, move |stat| {
            drop(profiled);
            match stat {
                Ok(stat) => xattr::reply(reply, size, Some(&attr::xattr_names(&stat.entry.xattrs))),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn access(&self, _: &Request, _: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (`default_permissions`).
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

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

    read_only! {
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>) -> ReplyWrite;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, fuser::CopyFileRangeFlags) -> ReplyWrite;
    }

    left_to_kernel! {
        flush(INodeNo, FileHandle, LockOwner) -> ReplyEmpty;
        fsync(INodeNo, FileHandle, bool) -> ReplyEmpty;
        fsyncdir(INodeNo, FileHandle, bool) -> ReplyEmpty;
        bmap(INodeNo, u32, u64) -> ReplyBmap;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags) -> ReplyPoll;
        lseek(INodeNo, FileHandle, i64, i32) -> ReplyLseek;
    }
}
