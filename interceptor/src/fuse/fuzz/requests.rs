//! Generated requests: mostly such as a kernel sends, so that they get far, with one part made
//! wrong.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::FuzzReply;
use crate::fuse::STATUS_XATTR;
use crate::fuse::session::MAX_READ;
use crate::warmup::ticket::READ_TICKET_XATTR;

pub(crate) const ROOT: u64 = 1;

/// Opcodes of the protocol.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const BMAP: u32 = 37;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const STATX: u32 = 52;
    pub(crate) const CUSE_INIT: u32 = 4096;
    /// Opcodes up to this one are generated; some are unknown.
    pub(crate) const LAST: u32 = 60;
}

/// The largest reply in bytes that fits into one message of the socket. The kernel asks for no
/// more than its page limit at once, and fuser allocates the size of a listing before it calls the
/// file system.
const MAX_REPLY: u32 = 256 << 10;

/// Open handles from which on handles are released more often.
const MAX_HANDLES: usize = 150;

/// The largest number of nodes that are remembered.
const MAX_NODES: usize = 300;

/// More lookups than a node gets.
const ALL_LOOKUPS: u64 = 1 << 40;

/// Nodes that wait to be forgotten, from which on they are forgotten more often.
const MAX_DROPPED: usize = 50;

/// As many nodes wait to be forgotten at most: more than a file system may remember at a time. One
/// listing makes more nodes known than as many requests forget one by one.
const MAX_UNFORGOTTEN: usize = 300_000;

/// Nodes that are then forgotten at once.
const FORGET_BATCH: usize = 200;

/// A request without its number.
#[derive(Clone)]
pub(crate) struct FuzzRequest {
    pub(crate) opcode: u32,
    pub(crate) node: u64,
    pub(crate) body: Vec<u8>,
    user: u32,
    group: u32,
    process: u32,
    /// The length in the header, if it is a wrong one.
    length: Option<u32>,
    /// Whether the kernel waits for an answer.
    pub(crate) wants_reply: bool,
    /// Whether fuser fails at arithmetic with its numbers, which programs can choose.
    pub(crate) may_panic: bool,
    /// Whether a length in it is wrong. The kernel sends no such request; fuser may answer it,
    /// drop it, or end the session of the thread, which is replaced.
    pub(crate) has_wrong_length: bool,
}

impl FuzzRequest {
    /// Whether its reply may be too large for the contiguous memory that a socket's message takes.
    /// A device has no such limit.
    pub(crate) fn may_lose_its_reply(&self) -> bool {
        const SURE: u32 = 32 << 10;
        let size = self.body.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        self.opcode == opcode::READ && size.is_some_and(|size| size > SURE)
    }
}

impl fmt::Debug for FuzzRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String = self.body.iter().take(200).map(|byte| format!("{byte:02x}")).collect();
        let Self { opcode, node, user, process, .. } = self;
        write!(f, "opcode {opcode} node {node} user {user} process {process} ")?;
        write!(f, "body of {} bytes {hex}", self.body.len())
    }
}

/// A request body under construction.
#[derive(Default)]
struct RequestBody(Vec<u8>);

impl RequestBody {
    fn u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }
    fn u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }
    fn name(mut self, name: &[u8]) -> Self {
        self.0.extend_from_slice(name);
        self.0.push(0);
        self
    }
    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self
    }
}

impl FuzzRequest {
    pub(crate) fn new(opcode: u32, node: u64, body: Vec<u8>) -> Self {
        let wants_reply = !matches!(
            opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY
        );
        Self {
            opcode,
            node,
            body,
            user: 0,
            group: 0,
            process: 0,
            length: None,
            wants_reply,
            may_panic: false,
            has_wrong_length: false,
        }
    }

    pub(crate) fn lookup(parent: u64, name: &str) -> Self {
        Self::new(opcode::LOOKUP, parent, RequestBody::default().name(name.as_bytes()).0)
    }

    pub(crate) fn open(node: u64, flags: i32) -> Self {
        Self::new(opcode::OPEN, node, RequestBody::default().u32(flags as u32).u32(0).0)
    }

    pub(crate) fn read(node: u64, handle: u64, offset: u64, size: u32) -> Self {
        let body = RequestBody::default().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        Self::new(opcode::READ, node, body.0)
    }

    /// The bytes that a read of the device returns.
    pub(crate) fn message(&self, unique: u64) -> Vec<u8> {
        let len = 40 + self.body.len() as u32;
        let header = RequestBody::default().u32(self.length.unwrap_or(len)).u32(self.opcode).u64(unique);
        let header = header.u64(self.node).u32(self.user).u32(self.group).u32(self.process).u32(0);
        header.data(&self.body).0
    }

    /// A number in the body.
    fn number(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.body.get(at..at + 4)?.try_into().ok()?))
    }

    /// Limits the size of the reply that is asked for, if a reply of that size could be made but
    /// not be sent here, or if fuser would allocate that much memory.
    fn bound_reply(&mut self) {
        let size = self.number(16).unwrap_or(0);
        let is_sent = match self.opcode {
            opcode::READ => size <= MAX_REPLY || size > MAX_READ,
            opcode::READDIR | opcode::READDIRPLUS => size <= MAX_REPLY,
            _ => true,
        };
        if !is_sent {
            self.body[16..20].copy_from_slice(&MAX_REPLY.to_ne_bytes());
        }
    }

    /// Whether the kernel would accept `reply` for this request.
    pub(crate) fn check(&self, reply: &FuzzReply) -> Result<(), &'static str> {
        if reply.error != 0 {
            return Ok(());
        }
        let len = reply.body.len();
        let limit = |at: usize| self.number(at).unwrap_or(0) as usize;
        let fits = match self.opcode {
            opcode::LOOKUP | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => len == 128,
            opcode::GETATTR | opcode::SETATTR => len == 104,
            opcode::OPEN | opcode::OPENDIR => len == 16,
            opcode::CREATE => len == 144,
            opcode::WRITE | opcode::COPY_FILE_RANGE | opcode::LSEEK => len == 8,
            opcode::STATFS => len == 80,
            opcode::READ => len <= limit(16),
            opcode::READDIR | opcode::READDIRPLUS => len <= limit(16) && self.entries(reply).is_some(),
            // The size of the value, or at most as many bytes as the buffer has.
            opcode::GETXATTR | opcode::LISTXATTR if limit(0) == 0 => len == 8,
            opcode::GETXATTR | opcode::LISTXATTR => len <= limit(0),
            opcode::READLINK => (1..=4096).contains(&len),
            opcode::UNLINK | opcode::RMDIR | opcode::RENAME | opcode::RENAME2 | opcode::RELEASE => len == 0,
            opcode::RELEASEDIR | opcode::FSYNC | opcode::FSYNCDIR | opcode::FLUSH => len == 0,
            opcode::SETXATTR | opcode::REMOVEXATTR | opcode::ACCESS | opcode::FALLOCATE => len == 0,
            // No other request succeeds.
            _ => false,
        };
        if fits { Ok(()) } else { Err("not an answer to this request") }
    }

    /// The node and the next offset of each entry of a listing; `None` if the reply is not a
    /// listing.
    fn entries(&self, reply: &FuzzReply) -> Option<Vec<(u64, u64)>> {
        let attributes = if self.opcode == opcode::READDIRPLUS { 128 } else { 0 };
        let (mut rest, mut found) = (&reply.body[..], Vec::new());
        while !rest.is_empty() {
            let number = |at: usize| Some(u64::from_ne_bytes(rest.get(at..at + 8)?.try_into().ok()?));
            let node = number(0)?;
            let (next, name_len) = (number(attributes + 8)?, number(attributes + 16)? as u32 as usize);
            let name = rest.get(attributes + 24..attributes + 24 + name_len)?;
            if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
                return None;
            }
            found.push((node, next));
            rest = rest.get((attributes + 24 + name_len).next_multiple_of(8)..)?;
        }
        Some(found)
    }
}

/// The first message on a connection.
pub(crate) fn init(flags: u64) -> Vec<u8> {
    let body =
        RequestBody::default().u32(7).u32(45).u32(128 << 10).u32(flags as u32).u32((flags >> 32) as u32);
    FuzzRequest::new(opcode::INIT, 0, body.data(&[0; 44]).0).message(1)
}

/// Generates requests, and learns nodes and handles from the answers.
pub(crate) struct RequestGenerator {
    random: StdRng,
    names: Vec<Vec<u8>>,
    nodes: Vec<u64>,
    /// Nodes that are not remembered any more, to be forgotten as a kernel would.
    dropped: Vec<u64>,
    /// How many of these the request that is being generated forgets at once.
    batch: usize,
    files: Vec<(u64, u64)>,
    directories: Vec<(u64, u64)>,
    /// Offsets in listings.
    offsets: Vec<u64>,
    /// Whether the request that is being generated has a wrong length.
    has_wrong_length: bool,
}

impl RequestGenerator {
    pub(crate) fn new(seed: u64, vocabulary: &[&str]) -> Self {
        let mut names: Vec<Vec<u8>> = vocabulary.iter().map(|name| name.as_bytes().to_vec()).collect();
        names.extend((0..12).map(|number| format!("name-{number}").into_bytes()));
        Self {
            random: StdRng::seed_from_u64(seed),
            names,
            nodes: vec![ROOT],
            dropped: Vec::new(),
            batch: 0,
            files: Vec::new(),
            directories: Vec::new(),
            offsets: vec![0],
            has_wrong_length: false,
        }
    }

    /// How many requests to send at once.
    pub(crate) fn burst(&mut self, max: usize) -> usize {
        self.random.random_range(1..=max)
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.random.random_ratio(1, one_in)
    }

    /// A plausible number, or one at the edge of an integer type.
    fn number(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            511,
            4095,
            4096,
            i32::MAX as u64,
            u32::MAX as u64,
            u32::MAX as u64 + 1,
            i64::MAX as u64 - 1,
            i64::MAX as u64,
            i64::MAX as u64 + 1,
            u64::MAX - 4095,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.random.random_range(0..10) {
            0..4 => self.random.random_range(0..1 << 16),
            4..6 => self.random.random_range(0..1 << 22),
            6 => self.random.random(),
            _ => *EDGES.choose(&mut self.random).unwrap(),
        }
    }

    fn number32(&mut self) -> u32 {
        match self.chance(2) {
            true => self.number() as u32,
            false => self.random.random_range(0..1 << 12),
        }
    }

    /// The length `truth`, or seldom a wrong one.
    fn length(&mut self, truth: usize) -> u32 {
        if self.chance(20) {
            self.has_wrong_length = true;
            return self.number32();
        }
        truth as u32
    }

    fn reply_size(&mut self) -> u32 {
        self.random.random_range(0..MAX_REPLY)
    }

    /// How much to read: a size that a reply can have, or seldom one that none can.
    fn read_size(&mut self) -> u32 {
        if self.chance(20) { self.random.random_range(MAX_READ + 1..=u32::MAX) } else { self.reply_size() }
    }

    fn node(&mut self) -> u64 {
        match self.random.random_range(0..20) {
            0 => self.number(),
            1..4 => ROOT,
            _ => *self.nodes.choose(&mut self.random).unwrap(),
        }
    }

    /// The node and the number of a handle, mostly of an open one.
    fn handle(&mut self, of_directory: bool) -> (u64, u64) {
        let handles = if of_directory { &self.directories } else { &self.files };
        match handles.choose(&mut self.random).copied() {
            Some((node, handle)) if !self.chance(20) => (node, handle),
            _ => (self.node(), self.number()),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        let usual = self.names.choose(&mut self.random).unwrap().clone();
        match self.random.random_range(0..30) {
            0 => Vec::new(),
            1 => b".".to_vec(),
            2 => b"..".to_vec(),
            3 => [&usual[..], b"/", &usual].concat(),
            4 => b"a".repeat(self.random.random_range(250..5000)),
            5 => {
                let len = self.random.random_range(1..40);
                let bytes = (0..len).map(|_| self.random.random_range(1..=u8::MAX));
                // No name may lead out of the file system under test.
                OsString::from_vec(bytes.map(|byte| if byte == b'/' { 0xff } else { byte }).collect())
                    .as_bytes()
                    .to_vec()
            }
            6 => {
                // The next part of the body begins earlier than it should.
                self.has_wrong_length = true;
                [&usual[..], b"\0", &usual].concat()
            }
            _ => usual,
        }
    }

    fn attribute_name(&mut self) -> Vec<u8> {
        let own = [READ_TICKET_XATTR, STATUS_XATTR];
        if self.chance(10) {
            return own.choose(&mut self.random).unwrap().as_bytes().to_vec();
        }
        let prefixes: [&[u8]; 5] = [b"user.", b"security.", b"system.posix_acl_access", b"trusted.", b""];
        [prefixes.choose(&mut self.random).unwrap(), &self.name()[..]].concat()
    }

    fn data(&mut self) -> Vec<u8> {
        let len = match self.chance(8) {
            true => self.random.random_range(0..128 << 10),
            false => self.random.random_range(0..5000),
        };
        vec![self.random.random(); len]
    }

    fn open_flags(&mut self) -> u32 {
        let access = [libc::O_RDONLY, libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_ACCMODE];
        let others = [libc::O_APPEND, libc::O_DIRECT, libc::O_SYNC, libc::O_TRUNC, libc::O_NOATIME];
        let mut flags = *access.choose(&mut self.random).unwrap();
        if self.chance(3) {
            flags |= others.choose(&mut self.random).unwrap();
        }
        if self.chance(30) { self.random.random() } else { flags as u32 }
    }

    /// Generates a request.
    pub(crate) fn request(&mut self) -> FuzzRequest {
        let opcode = self.opcode();
        let mut request = self.plausible(opcode);
        (request.user, request.group) = match self.random.random_range(0..10) {
            0..6 => (0, 0),
            6..9 => (1000, 1000),
            _ => (self.random.random(), self.random.random()),
        };
        request.process = if self.chance(2) { std::process::id() } else { self.number() as u32 };
        request.has_wrong_length = std::mem::take(&mut self.has_wrong_length);
        if self.chance(40) {
            self.corrupt(&mut request);
            request.has_wrong_length = true;
            request.bound_reply();
        }
        if self.chance(200) {
            request.length = Some(self.number() as u32);
            request.has_wrong_length = true;
        }
        request.may_panic = request.opcode == opcode::SETATTR && has_extreme_time(&request);
        let is_whole = request.opcode == opcode::FORGET && !request.has_wrong_length;
        self.dropped.pop_if(|node| is_whole && *node == request.node);
        let forgotten = std::mem::take(&mut self.batch);
        if !request.has_wrong_length {
            self.dropped.truncate(self.dropped.len() - forgotten);
        }
        request
    }

    fn opcode(&mut self) -> u32 {
        use opcode::*;
        if self.files.len() + self.directories.len() > MAX_HANDLES && self.chance(2) {
            return if self.files.len() > self.directories.len() { RELEASE } else { RELEASEDIR };
        }
        if self.dropped.len() > MAX_UNFORGOTTEN {
            return BATCH_FORGET;
        }
        if self.dropped.len() > MAX_DROPPED && self.chance(2) {
            return FORGET;
        }
        const USUAL: [u32; 22] = [
            LOOKUP,
            LOOKUP,
            LOOKUP,
            LOOKUP,
            CREATE,
            CREATE,
            OPEN,
            OPEN,
            READ,
            READ,
            READ,
            WRITE,
            WRITE,
            MKDIR,
            OPENDIR,
            READDIR,
            READDIRPLUS,
            SETATTR,
            GETATTR,
            RENAME2,
            RELEASE,
            GETXATTR,
        ];
        match self.random.random_range(0..100) {
            0..60 => *USUAL.choose(&mut self.random).unwrap(),
            // The kernel sends DESTROY once and last, as the end of a run does.
            _ => match self.random.random_range(0..=LAST) {
                DESTROY => CUSE_INIT,
                opcode => opcode,
            },
        }
    }

    /// Truncates, extends or changes the body.
    fn corrupt(&mut self, request: &mut FuzzRequest) {
        let len = request.body.len();
        match self.random.random_range(0..3) {
            0 if len > 0 => request.body.truncate(self.random.random_range(0..len)),
            1 => request.body.extend((0..self.random.random_range(1..64)).map(|_| b'x')),
            _ if len > 0 => {
                let byte = self.random.random();
                let at = self.random.random_range(0..len);
                // See `name`.
                request.body[at] = if byte == b'/' { 0 } else { byte };
            }
            _ => {}
        }
    }

    fn plausible(&mut self, opcode: u32) -> FuzzRequest {
        use opcode::*;
        let body = RequestBody::default();
        let (mut node, body) = match opcode {
            LOOKUP | UNLINK | RMDIR => (self.node(), body.name(&self.name())),
            REMOVEXATTR => (self.node(), body.name(&self.attribute_name())),
            FORGET => match self.dropped.last() {
                Some(node) => (*node, body.u64(ALL_LOOKUPS)),
                None => (self.node(), body.u64(self.random.random_range(0..3))),
            },
            GETATTR => (self.node(), body.u32(self.number32() & 1).u32(0).u64(self.handle(false).1)),
            STATX => (self.node(), body.u64(1).u64(self.handle(false).1).u64(self.number())),
            SETATTR => self.set_attributes(),
            SYMLINK => (self.node(), body.name(&self.name()).name(&self.name())),
            MKNOD => {
                let kinds = [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK, 0];
                let mode = kinds.choose(&mut self.random).unwrap() | 0o644;
                let body = body.u32(mode).u32(self.number32()).u32(self.number32()).u32(0);
                (self.node(), body.name(&self.name()))
            }
            MKDIR => (self.node(), body.u32(0o755).u32(self.number32()).name(&self.name())),
            RENAME => (self.node(), body.u64(self.node()).name(&self.name()).name(&self.name())),
            RENAME2 => {
                let flags = if self.chance(4) { self.number32() } else { self.random.random_range(0..3) };
                let body = body.u64(self.node()).u32(flags).u32(0);
                (self.node(), body.name(&self.name()).name(&self.name()))
            }
            LINK => (self.node(), body.u64(self.node()).name(&self.name())),
            OPEN | OPENDIR => (self.node(), body.u32(self.open_flags()).u32(0)),
            READ => {
                let (node, handle) = self.handle(false);
                let body = body.u64(handle).u64(self.number()).u32(self.read_size()).u32(0).u64(0);
                (node, body.u32(self.open_flags()).u32(0))
            }
            READDIR | READDIRPLUS => {
                let (node, handle) = self.handle(true);
                let known = *self.offsets.choose(&mut self.random).unwrap();
                let offset = if self.chance(10) { self.number() } else { known };
                (node, body.u64(handle).u64(offset).u32(self.reply_size()).u32(0).u64(0).u64(0))
            }
            WRITE => {
                let (node, handle) = self.handle(false);
                let data = self.data();
                let size = self.length(data.len());
                let body = body.u64(handle).u64(self.number()).u32(size).u32(self.number32() & 7).u64(0);
                (node, body.u32(self.open_flags()).u32(0).data(&data))
            }
            RELEASE | RELEASEDIR => {
                let (node, handle) = self.handle(opcode == RELEASEDIR);
                (node, body.u64(handle).u32(0).u32(self.number32() & 3).u64(self.number()))
            }
            FSYNC | FSYNCDIR | FLUSH => {
                let (node, handle) = self.handle(opcode == FSYNCDIR);
                (node, body.u64(handle).u32(self.number32() & 1).u32(0).u64(0))
            }
            SETXATTR => {
                let value = self.data();
                let size = self.length(value.len());
                let body = body.u32(size).u32(self.number32() & 3).name(&self.attribute_name());
                (self.node(), body.data(&value))
            }
            GETXATTR => (self.node(), body.u32(self.number32()).u32(0).name(&self.attribute_name())),
            LISTXATTR => (self.node(), body.u32(self.number32()).u32(0)),
            INIT | CUSE_INIT => (0, body.u32(7).u32(45).u64(self.number()).data(&[0; 48])),
            GETLK | SETLK | SETLKW => {
                let (node, handle) = self.handle(false);
                let body = body.u64(handle).u64(self.number()).u64(self.number()).u64(self.number());
                (node, body.u32(self.number32() & 3).u32(1).u32(self.number32() & 1).u32(0))
            }
            ACCESS => (self.node(), body.u32(self.number32()).u32(0)),
            CREATE | TMPFILE => {
                let body = body.u32(self.open_flags()).u32(0o100_644).u32(self.number32()).u32(0);
                (self.node(), body.name(&self.name()))
            }
            INTERRUPT => (0, body.u64(self.number())),
            BMAP => (self.node(), body.u64(self.number()).u32(self.number32()).u32(0)),
            IOCTL => {
                let (node, handle) = self.handle(false);
                let data = self.data();
                let body = body.u64(handle).u32(self.number32() & 31).u32(self.number32()).u64(self.number());
                (node, body.u32(self.length(data.len())).u32(self.number32()).data(&data))
            }
            POLL => (self.handle(false).0, body.u64(self.handle(false).1).u64(self.number()).u64(1)),
            NOTIFY_REPLY => (self.node(), body.data(&[0; 40]).data(&self.data())),
            BATCH_FORGET if self.dropped.len() > MAX_UNFORGOTTEN => {
                self.batch = FORGET_BATCH;
                let nodes = &self.dropped[self.dropped.len() - FORGET_BATCH..];
                let body = body.u32(FORGET_BATCH as u32).u32(0);
                (0, nodes.iter().fold(body, |body, node| body.u64(*node).u64(ALL_LOOKUPS)))
            }
            BATCH_FORGET => {
                let count = self.random.random_range(0..5);
                let claimed = self.length(count as usize);
                let nodes = (0..count).map(|_| (self.node(), self.random.random_range(0..3)));
                let nodes: Vec<(u64, u64)> = nodes.collect();
                let body = body.u32(claimed).u32(0);
                (0, nodes.iter().fold(body, |body, (node, lookups)| body.u64(*node).u64(*lookups)))
            }
            FALLOCATE => {
                let (node, handle) = self.handle(false);
                let body = body.u64(handle).u64(self.number()).u64(self.number());
                (node, body.u32(self.number32() & 0x7f).u32(0))
            }
            LSEEK => {
                let (node, handle) = self.handle(false);
                (node, body.u64(handle).u64(self.number()).u32(self.number32() & 7).u32(0))
            }
            COPY_FILE_RANGE => {
                let ((from, from_handle), (to, to_handle)) = (self.handle(false), self.handle(false));
                let body = body.u64(from_handle).u64(self.number()).u64(to).u64(to_handle);
                (from, body.u64(self.number()).u64(self.number()).u64(self.number() & 1))
            }
            SYNCFS => (ROOT, body.u64(0)),
            _ => (self.node(), body.data(&self.data())),
        };
        if self.chance(100) {
            node = self.number();
        }
        FuzzRequest::new(opcode, node, body.0)
    }

    fn set_attributes(&mut self) -> (u64, RequestBody) {
        let (node, handle) = if self.chance(2) { self.handle(false) } else { (self.node(), 0) };
        let valid = if self.chance(4) { self.random.random() } else { 1 << self.random.random_range(0..9) };
        let body = RequestBody::default().u32(valid).u32(0).u64(handle).u64(self.number()).u64(0);
        let body = body.u64(self.seconds()).u64(self.seconds()).u64(self.seconds());
        let nanoseconds = |random: &mut StdRng| random.random_range(0..1_000_000_000);
        let body = body.u32(nanoseconds(&mut self.random)).u32(nanoseconds(&mut self.random)).u32(0);
        let ids = (self.random.random_range(0..3), self.number32());
        (node, body.u32(self.number32()).u32(0).u32(ids.0).u32(ids.1).u32(0))
    }

    fn seconds(&mut self) -> u64 {
        match self.random.random_range(0..50) {
            0 => i64::MIN as u64,
            1..10 => -(self.random.random_range(0..1i64 << 34)) as u64,
            10..13 => i64::MIN as u64 + 1,
            13..16 => i64::MAX as u64,
            _ => self.random.random_range(0..1 << 34),
        }
    }

    /// Remembers the nodes, handles and offsets in a reply.
    pub(crate) fn learn(&mut self, request: &FuzzRequest, reply: &FuzzReply) {
        use opcode::*;
        let number = |at: usize| Some(u64::from_ne_bytes(reply.body.get(at..at + 8)?.try_into().ok()?));
        let sent = |at: usize| Some(u64::from_ne_bytes(request.body.get(at..at + 8)?.try_into().ok()?));
        match -reply.error {
            0 => {}
            libc::ESTALE if request.node != ROOT => {
                self.nodes.retain(|node| *node != request.node);
                return self.dropped.push(request.node);
            }
            _ => return,
        }
        match request.opcode {
            RELEASE => self.files.retain(|(_, handle)| Some(*handle) != sent(0)),
            RELEASEDIR => self.directories.retain(|(_, handle)| Some(*handle) != sent(0)),
            LOOKUP | SYMLINK | MKNOD | MKDIR | LINK => self.add_node(number(0)),
            CREATE => {
                self.add_node(number(0));
                self.files.extend(number(0).zip(number(128)));
            }
            OPEN => self.files.extend(number(0).map(|handle| (request.node, handle))),
            OPENDIR => self.directories.extend(number(0).map(|handle| (request.node, handle))),
            READDIR | READDIRPLUS => {
                for (node, offset) in request.entries(reply).unwrap_or_default() {
                    self.offsets.push(offset);
                    if request.opcode == READDIRPLUS {
                        self.add_node(Some(node));
                    }
                }
                let surplus = self.offsets.len().saturating_sub(200);
                self.offsets.drain(..surplus);
            }
            _ => {}
        }
    }

    /// The next request of those that release all handles and forget all nodes.
    pub(crate) fn next_release(&mut self) -> Option<FuzzRequest> {
        let release = |opcode, (node, handle)| {
            FuzzRequest::new(opcode, node, RequestBody::default().u64(handle).u64(0).u64(0).0)
        };
        let file = self.files.pop().map(|handle| release(opcode::RELEASE, handle));
        let directory = || self.directories.pop().map(|handle| release(opcode::RELEASEDIR, handle));
        let next = file.or_else(directory);
        next.or_else(|| {
            self.dropped.extend(self.nodes.drain(..).filter(|node| *node != ROOT));
            let body = RequestBody::default().u64(ALL_LOOKUPS);
            Some(FuzzRequest::new(opcode::FORGET, self.dropped.pop()?, body.0))
        })
    }

    fn add_node(&mut self, node: Option<u64>) {
        self.nodes.extend(node.filter(|node| *node != 0));
        if self.nodes.len() > MAX_NODES {
            let at = self.random.random_range(1..self.nodes.len());
            self.dropped.push(self.nodes.swap_remove(at));
        }
    }
}

/// Whether fuser fails at arithmetic with a time of a SETATTR: the seconds have no positive
/// counterpart, or the nanoseconds overflow them.
fn has_extreme_time(request: &FuzzRequest) -> bool {
    let seconds = |at: usize| Some(i64::from_ne_bytes(request.body.get(at..at + 8)?.try_into().ok()?));
    let near_an_end =
        |at: usize| seconds(at).is_some_and(|seconds| !(i64::MIN + 8..=i64::MAX - 8).contains(&seconds));
    near_an_end(32) || near_an_end(40) || near_an_end(48)
}
