//! A filer entry in the terms of a file system: what `stat` shows and where the content is.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rdma_engine::FileId;

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; its target is the content.
    Symlink,
    /// A FIFO.
    NamedPipe,
    /// A Unix socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

/// What `stat` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// FileKind of the file.
    pub kind: FileKind,
    /// Permission bits including set-uid, set-gid and sticky (`07777`).
    pub perm: u16,
    /// Owner, already mapped to this host's ids.
    pub uid: u32,
    /// Group, already mapped to this host's ids.
    pub gid: u32,
    /// Size in bytes; of a symbolic link the length of its target.
    pub size: u64,
    /// Last change of the content.
    pub mtime: SystemTime,
    /// Last change of content or attributes.
    pub ctime: SystemTime,
    /// Creation.
    pub crtime: SystemTime,
    /// Number of names.
    pub nlink: u32,
    /// Device number of a device file, in the kernel's encoding.
    pub rdev: u32,
    /// SeaweedFS's inode number, 0 if it keeps none for this entry.
    pub inode: u64,
}

/// One chunk record of a file: which bytes of the file a needle holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The needle.
    pub fid: FileId,
    /// Where in the file the chunk begins, in bytes.
    pub offset: u64,
    /// How many bytes of the file it covers; the needle may hold more, which are then no part of the file.
    pub size: u64,
    /// When it was written, in ns since the epoch: of two chunks that overlap the newer one wins.
    pub modified_ts_ns: i64,
    /// The AES-256-GCM key of its needle, if that is encrypted.
    pub cipher_key: Option<Box<[u8; 32]>>,
    /// Whether the writer compressed the data. The needle may be compressed even where this is false.
    pub is_compressed: bool,
    /// Whether the needle holds a list of chunks instead of data.
    pub is_manifest: bool,
}

/// Which state of an object on remote storage an entry stands for. Objects are replaced under their names, and states of
/// equal size need not have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteObject {
    /// The cluster's name of the storage.
    pub storage: String,
    /// The storage's name of the state; empty if it gives none.
    pub etag: String,
    /// When the object was last changed at the storage, in s since the epoch.
    pub mtime: i64,
    /// Its size there, in bytes.
    pub size: i64,
    /// How the storage says that it is encoded; unknown to some storages.
    pub encoding: Option<String>,
    /// When the content of the entry last changed in the cluster: a write through a mount leaves all of the above.
    pub changed: SystemTime,
}

/// Where the content of an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// There is none: a directory, a device, an empty file.
    None,
    /// In the entry itself; what the size has beyond it are zeros.
    Inline(Bytes),
    /// In chunks, in the filer's order, manifests not expanded; what they leave out up to the size are zeros.
    Chunks(Arc<[Chunk]>),
    /// On a remote storage that the cluster has not read it from yet.
    Remote(Arc<RemoteObject>),
    /// The target of a symbolic link.
    Target(String),
    /// Encrypted by the S3 gateway, with a key that only the gateway or its user has: it is an error to read it.
    Encrypted {
        /// What says so, for the log.
        reason: Box<str>,
    },
    /// Unknown, because what the filer says about it makes no sense: reading it is an I/O error.
    Damaged {
        /// What is wrong, for the log.
        reason: Box<str>,
    },
}

/// An entry of the filer: a name in a directory with all that a reader may ask of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name within its directory.
    pub name: String,
    /// What `stat` shows.
    pub attr: Attributes,
    /// Where the content is.
    pub content: Content,
    /// Extended attributes as users see them (`user.…`), sorted by name.
    pub xattrs: Arc<[(Box<str>, Bytes)]>,
    /// The key that all names of a hard-linked file share.
    pub hard_link: Option<Bytes>,
    /// From when on the entry does not exist any more (TTL).
    pub expires: Option<SystemTime>,
}

impl Entry {
    /// About how many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        let content = match &self.content {
            Content::None => 0,
            Content::Remote(object) => {
                size_of::<RemoteObject>()
                    + object.storage.len()
                    + object.etag.len()
                    + object.encoding.as_ref().map_or(0, String::len)
            }
            Content::Inline(bytes) => bytes.len(),
            Content::Chunks(chunks) => size_of_val(&**chunks),
            Content::Target(target) => target.len(),
            Content::Encrypted { reason } | Content::Damaged { reason } => reason.len(),
        };
        let xattr =
            |(name, value): &(Box<str>, Bytes)| size_of::<(Box<str>, Bytes)>() + name.len() + value.len();
        size_of::<Self>() + self.name.len() + content + self.xattrs.iter().map(xattr).sum::<usize>()
    }

    /// Whether both entries have the same bytes: a reader of one may go on with the other.
    pub fn same_content(&self, other: &Entry) -> bool {
        self.attr.kind == other.attr.kind
            && self.attr.size == other.attr.size
            && self.content == other.content
    }
}
