//! The requests of the kernel, translated.
//!
//! All of them are answered by the thread that read them, which waits for the mount below as long as that takes: there are enough
//! threads ([`super::AttachOptions::threads`]) for a slow answer not to hold up the others.
//!
//! Locks are left to the kernel: programs of this host, in whatever container, meet in the one file that this layer shows, so
//! POSIX locks and `flock` hold between them. To pass them on would make a waiting program deaf to signals, as the library under this module
//! does not hear of interrupted requests.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::{self, Attributes};
use super::content::Served;
use super::credentials::Caller;
use super::inodes::ROOT;
use super::open_directory::{DirectoryEntry, OpenDirectory, Taken};
use super::open_file::OpenFile;
use super::tree::{Change, Found, Modes, New, Tree, Xattr};
use super::version_source::{VersionSource, Whom};
use crate::fuse::STATUS_XATTR;
use crate::fuse::handles::Handles;
use crate::fuse::killed::unless_killed;
use crate::fuse::request_tracker::{InFlightGuard, RequestTracker};
use crate::fuse::{capabilities, session, xattr};
use crate::read::ReadReply;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Source;
use crate::warmup::ticket::{READ_TICKET_XATTR, ReadTicket, TicketIssuer};

/// How long the kernel may keep names and attributes, as most mounts below do, too. What goes through this layer shows at once; this is for what others
/// change.
const VALID: Duration = Duration::from_secs(1);

/// The most that one request copies. A program is told how much was copied and asks for the rest, and
/// meanwhile others have the thread.
const MAX_COPY: u64 = 32 << 20;

/// The layer's side of the protocol. All copies of it are one layer.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) tree: Arc<Tree>,
    pub(super) files: Arc<Handles<OpenFile>>,
    pub(super) directories: Arc<Handles<OpenDirectory>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) has_acls: bool,
    /// Whether what changes a file below shows in its attributes.
    pub(super) shows_changes: bool,
    /// Finds out what is served, if anything can be.
    pub(super) source: Option<Arc<dyn VersionSource>>,
    /// Where the status API is, once that is known.
    pub(super) status_api: Arc<std::sync::OnceLock<SocketAddr>>,
    /// Issues the values of [`READ_TICKET_XATTR`].
    pub(super) tickets: Arc<TicketIssuer>,
    pub(super) arrivals: Arc<RequestTracker>,
    /// There before the first request.
    pub(super) notifier: Arc<std::sync::OnceLock<Notifier>>,
}

thread_local! {
    /// What is read from the mount below, on its way to the kernel.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn caller(request: &Request) -> Caller {
    Caller { user: request.uid(), group: request.gid(), thread: request.pid() }
}

/// What a refusal of the kernel is for who asked.
fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        // That would tell the kernel never to ask again.
        Some(libc::ENOSYS) => Errno::EOPNOTSUPP,
        Some(number) => Errno::from_i32(number),
        None => Errno::EIO,
    }
}

fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

fn reply_entry(reply: ReplyEntry, found: io::Result<Found>) {
    match found {
        Ok((node, attributes)) => {
            reply.entry(&VALID, &attributes.reply(node.id), Generation(node.generation));
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
        // The root's own number is that of the protocol; what programs see is the mount below's.
        Ok(attributes) if id.0 == ROOT => reply.attr(&VALID, &attributes::reply_for_root(&attributes)),
        Ok(attributes) => reply.attr(&VALID, &attributes.reply(id.0)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_xattr(reply: ReplyXattr, value: io::Result<Xattr>) {
    match value {
        Ok(Xattr::Size(size)) => reply.size(size.try_into().unwrap_or(u32::MAX)),
        Ok(Xattr::Data(data)) => reply.data(&data),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_written(reply: ReplyWrite, written: io::Result<usize>) {
    match written {
        // No more was asked for than fits.
        Ok(written) => reply.written(written.try_into().unwrap_or(u32::MAX)),
        Err(error) => reply.error(errno(&error)),
    }
}

/// A read that has come.
struct Asked {
    caller: u32,
    begun: Instant,
    turn: InFlightGuard,
    reply: ReplyData,
}

/// Has the mount below answer a read.
fn read_below(metrics: &Metrics, file: &OpenFile, offset: u64, len: usize, asked: Asked) {
    let Asked { begun, turn, reply, .. } = asked;
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let read = file.read(&mut buffer[..len], offset);
        drop(turn);
        match read {
            Ok(read) => {
                metrics.read(Source::Lower, read as u64, begun.elapsed());
                reply.data(&buffer[..read]);
            }
            Err(error) => reply.error(errno(&error)),
        }
    });
}

impl Layer {
    /// Answers a read from memory or from where what is served comes from, and if that fails from the mount below.
    fn read_served(
        &self,
        source: &dyn VersionSource,
        served: Served,
        file: Arc<OpenFile>,
        offset: u64,
        len: usize,
        asked: Asked,
    ) {
        // Reading ahead starts tasks.
        let _runtime = source.runtime().enter();
        match source.reader().read(&served.version, offset, len) {
            ReadReply::Ready(data) => {
                drop(asked.turn);
                asked.reply.data(&data);
            }
            ReadReply::Pending(data) => {
                let (metrics, runtime) = (self.metrics.clone(), source.runtime().clone());
                source.runtime().spawn(async move {
                    match unless_killed(asked.caller, data).await {
                        None => {
                            drop(asked.turn);
                            asked.reply.error(Errno::EINTR);
                        }
                        Some(Ok(data)) => {
                            drop(asked.turn);
                            asked.reply.data(&data);
                        }
                        Some(Err(error)) => {
                            let path = served.version.path();
                            tracing::debug!(path, offset, len, %error, "the mount below answers instead");
                            file.node.content.changes();
                            runtime.spawn_blocking(move || {
                                read_below(&metrics, &file, offset, len, asked);
                            });
                        }
                    }
                });
            }
        }
    }

    /// Does what a request of `len` bytes asks for, which the caller then answers.
    fn serve<T>(&self, request: &Request, len: usize, work: impl FnOnce() -> T) -> T {
        let _turn = self.arrivals.begin(request.pid(), len.try_into().unwrap_or(u32::MAX));
        work()
    }

    /// A ticket for a caller who may read the file.
    fn read_ticket(&self, node: u64, caller: Caller) -> io::Result<String> {
        let (file, owner) = self.tree.readable_file(node, caller)?;
        let (user, is_owner) = (caller.user, caller.user == owner);
        Ok(self.tickets.issue(&ReadTicket { file, user, is_owner }))
    }

    fn file(&self, handle: FileHandle) -> io::Result<Arc<OpenFile>> {
        self.files.get(handle.0).ok_or_else(bad_handle)
    }

    fn directory(&self, handle: FileHandle) -> io::Result<Arc<OpenDirectory>> {
        self.directories.get(handle.0).ok_or_else(bad_handle)
    }

    /// What may answer reads of a handle with these flags.
    fn source_for(&self, flags: i32) -> Option<&dyn VersionSource> {
        self.source.as_deref().filter(|source| source.serves(flags))
    }

    /// Opens the file `node` below, and finds what the kernel is to do about its pages.
    fn open_below(&self, node: u64, flags: i32, caller: Caller) -> io::Result<(Arc<OpenFile>, FopenFlags)> {
        let node = self.tree.node_to_open(node, caller)?;
        let file = {
            let _acting = self.tree.asking(caller);
            Arc::new(self.tree.open(&node, flags)?)
        };
        let attributes = match self.source_for(flags) {
            Some(source) => source.resolve(&file, Whom::Program),
            None => Attributes::fresh(&file),
        };
        let mut how = self.keep(&file, attributes);
        if file.only_appends() {
            how |= FopenFlags::FOPEN_DIRECT_IO;
        }
        // Who cannot write leaves nothing to be flushed.
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            how |= FopenFlags::FOPEN_NOFLUSH;
        }
        Ok((file, how))
    }

    /// Whether a handle that was just opened of a file with these attributes lets the kernel keep the pages it has of it. If not, what it thinks of size and times
    /// is taken back, too, so that an open shows the file as it is.
    fn keep(&self, file: &OpenFile, attributes: io::Result<Attributes>) -> FopenFlags {
        match attributes {
            Ok(attributes)
                if self.shows_changes && file.node.content.keeps_pages(&attributes, self.tree.is_local()) =>
            {
                FopenFlags::FOPEN_KEEP_CACHE
            }
            _ => {
                if let Some(notifier) = self.notifier.get() {
                    // A negative offset means the attributes alone. The kernel takes no lock for it that an open would hold.
                    let _ = notifier.inval_inode(INodeNo(file.node.id), -1, 0);
                }
                FopenFlags::empty()
            }
        }
    }
}

impl Filesystem for Layer {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // What changes below shows in the pages of files that are open as soon as it shows in their attributes.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ];
        if self.has_acls {
            wanted.extend([InitFlags::FUSE_POSIX_ACL, InitFlags::FUSE_DONT_MASK]);
        }
        // A daemon below may replace a link and show it as the same file.
        if self.tree.is_local() {
            wanted.push(InitFlags::FUSE_CACHE_SYMLINKS);
        }
        // Where a daemon below checks rights, a name may be listed that may not be looked at.
        if self.tree.kernel_checks() {
            wanted.extend([InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO]);
        }
        capabilities::negotiate(config, &wanted);
        // Stamps of a node's content are compared to the nanosecond.
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.serve(request, 0, || self.tree.lookup(parent.0, name, caller(request))));
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.tree.nodes().forget(node.0, lookups);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attributes = self.serve(request, 0, || self.tree.attributes(node.0, caller(request)));
        reply_attributes(reply, node, attributes);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
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
        let change = Change { mode, user, group, size, accessed, modified };
        let changed =
            self.serve(request, 0, || self.tree.change(node.0, change, open.as_deref(), caller(request)));
        reply_attributes(reply, node, changed);
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        match self.tree.link_target(node.0, caller(request)) {
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
        let new = New { parent: parent.0, name, caller: caller(request) };
        reply_entry(
            reply,
            self.serve(request, 0, || self.tree.make_node(new, Modes { mode, umask }, device)),
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
        let new = New { parent: parent.0, name, caller: caller(request) };
        reply_entry(reply, self.serve(request, 0, || self.tree.make_directory(new, Modes { mode, umask })));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            reply,
            self.serve(request, 0, || self.tree.remove(parent.0, name, false, caller(request))),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(
            reply,
            self.serve(request, 0, || self.tree.remove(parent.0, name, true, caller(request))),
        );
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = New { parent: parent.0, name, caller: caller(request) };
        reply_entry(reply, self.serve(request, 0, || self.tree.make_link(new, target)));
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
        reply_empty(
            reply,
            self.serve(request, 0, || self.tree.rename(from, to, flags.bits(), caller(request))),
        );
    }

    fn link(
        &self,
        request: &Request,
        node: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let new = New { parent: new_parent.0, name: new_name, caller: caller(request) };
        reply_entry(reply, self.serve(request, 0, || self.tree.hard_link(node.0, new)));
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.serve(request, 0, || self.open_below(node.0, flags.0, caller(request))) {
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
        let new = New { parent: parent.0, name, caller: caller(request) };
        match self.serve(request, 0, || self.tree.create(new, Modes { mode, umask }, flags)) {
            Ok((file, attributes)) => {
                let (attr, generation) = (attributes.reply(file.node.id), Generation(file.node.generation));
                let handle = FileHandle(self.files.insert(Arc::new(file)));
                reply.created(&VALID, &attr, generation, handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
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
        let (begun, turn) = (Instant::now(), self.arrivals.begin(request.pid(), size));
        let file = match self.file(handle) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(&error)),
        };
        file.follow(flags.0);
        let (len, asked) = (size as usize, Asked { caller: request.pid(), begun, turn, reply });
        match (self.source_for(flags.0), file.node.content.served()) {
            (Some(source), Some(served)) => self.read_served(source, served, file, offset, len, asked),
            _ => read_below(&self.metrics, &file, offset, len, asked),
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = || self.file(handle).and_then(|file| file.write(data, offset, flags.0, mapped));
        // However much it is, a daemon below is given it in small pieces, one after another.
        reply_written(reply, self.serve(request, 0, write));
    }

    fn flush(&self, request: &Request, _: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let flush = || {
            let file = self.file(handle)?;
            self.tree.nodes().with_descriptor(|| file.flush())
        };
        reply_empty(reply, self.serve(request, 0, flush));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        // Before the answer, so that who waits for it finds the handle below closed.
        drop(self.files.remove(handle.0));
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, only_data: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.file(handle).and_then(|file| file.sync(only_data)));
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.tree.node(node.0).and_then(|node| {
            let _acting = self.tree.asking(caller(request));
            self.tree.open_directory(&node)
        });
        match opened {
            Ok(directory) => {
                let handle = FileHandle(self.directories.insert(Arc::new(directory)));
                reply.opened(handle, FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let done = self.directory(handle).and_then(|directory| {
            directory.read(offset, |entry| {
                let kind = match attributes::kind(entry.file_type) {
                    Some(kind) => kind,
                    // The protocol has a word for that, the library under this module has not.
                    None => match self.tree.type_of(&directory.node, entry) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Taken::Gone),
                        kind => kind?,
                    },
                };
                let is_full = reply.add(INodeNo(entry.inode), entry.next, kind, &entry.name);
                Ok(if is_full { Taken::Full } else { Taken::Added })
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
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (caller, mut added) = (caller(request), false);
        let done = self.directory(handle).and_then(|directory| {
            directory.read(offset, |entry| {
                if added && self.tree.nodes().is_crowded() {
                    return Ok(Taken::Full);
                }
                let taken = self.add_with_attributes(&directory, entry, caller, &mut reply)?;
                added |= taken == Taken::Added;
                Ok(taken)
            })
        });
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        drop(self.directories.remove(handle.0));
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, handle: FileHandle, only_data: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.directory(handle).and_then(|directory| directory.sync(only_data)));
    }

    fn statfs(&self, _: &Request, node: INodeNo, reply: ReplyStatfs) {
        match self.tree.space(node.0) {
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
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.tree.set_attribute(node.0, name, value, flags, caller(request)));
    }

    fn getxattr(&self, request: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if name == STATUS_XATTR && self.source.is_some() {
            let value = xattr::status_value(self.status_api.get().copied());
            return xattr::reply(reply, size, Some(value.as_bytes()));
        }
        if name == READ_TICKET_XATTR && self.source.is_some() {
            return match self.read_ticket(node.0, caller(request)) {
                Ok(ticket) => xattr::reply(reply, size, Some(ticket.as_bytes())),
                Err(error) => reply.error(errno(&error)),
            };
        }
        reply_xattr(reply, self.tree.attribute(node.0, name, size, caller(request)));
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        match self.tree.attribute_names(node.0, caller(request)) {
            Ok(names) => xattr::reply(reply, size, Some(&names)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn removexattr(&self, request: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.tree.remove_attribute(node.0, name, caller(request)));
    }

    fn access(&self, request: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        reply_empty(reply, self.tree.access(node.0, mask.bits(), caller(request)));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.file(handle).and_then(|file| file.allocate(mode, offset, length)));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
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
        _: &Request,
        _: INodeNo,
        from: FileHandle,
        from_offset: u64,
        _: INodeNo,
        to: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copied = self.file(from).and_then(|from| {
            let (to, len) = (self.file(to)?, len.min(MAX_COPY) as usize);
            from.copy_to(from_offset, &to, to_offset, len)
        });
        reply_written(reply, copied);
    }

    /// What a device or file system does beside the calls of POSIX is not passed on.
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

    /// Files are always ready; so told once, the kernel does not ask again.
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

impl Layer {
    /// Adds an entry and what it is like to a reply, which counts as a lookup of it.
    fn add_with_attributes(
        &self,
        directory: &OpenDirectory,
        entry: &DirectoryEntry,
        caller: Caller,
        reply: &mut ReplyDirectoryPlus,
    ) -> io::Result<Taken> {
        if entry.is_dots() {
            // These count as no lookup.
            let (id, generation, attr) = (INodeNo(entry.inode), Generation(0), attributes::dots(entry.inode));
            let is_full = reply.add(id, entry.next, &entry.name, &Duration::ZERO, &attr, generation);
            return Ok(if is_full { Taken::Full } else { Taken::Added });
        }
        let (node, attributes) = match self.tree.lookup(directory.node.id, &entry.name, caller) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Taken::Gone),
            found => found?,
        };
        let (attr, generation) = (attributes.reply(node.id), Generation(node.generation));
        let is_full = reply.add(INodeNo(node.id), entry.next, &entry.name, &VALID, &attr, generation);
        if is_full {
            self.tree.nodes().forget(node.id, 1);
            return Ok(Taken::Full);
        }
        Ok(Taken::Added)
    }
}
