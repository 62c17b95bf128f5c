//! A filer entry in the terms of a file system: its attributes, and where its content is.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use rdma_engine::FileId;
use serde::{Deserialize, Serialize};

/// What kind of file an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// The attributes of an entry, as `stat` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// FileKind of the file.
    pub kind: FileKind,
    /// Permission bits including set-uid, set-gid and sticky (`07777`).
    pub perm: u16,
    /// Owner, already mapped to this host's ids.
    pub uid: u32,
    /// Group, already mapped to this host's ids.
    pub gid: u32,
    /// Size in bytes. For a symbolic link, the length of its target.
    pub size: u64,
    /// Last change of the content.
    #[serde(with = "any_time")]
    pub mtime: SystemTime,
    /// Last change of content or attributes.
    #[serde(with = "any_time")]
    pub ctime: SystemTime,
    /// Creation.
    #[serde(with = "any_time")]
    pub crtime: SystemTime,
    /// Number of names.
    pub nlink: u32,
    /// Device number of a device file, in the kernel's encoding.
    pub rdev: u32,
    /// SeaweedFS's inode number, 0 if it keeps none for this entry.
    pub inode: u64,
}

/// One chunk record of a file: which bytes of the file a needle has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The needle.
    pub fid: FileId,
    /// Where in the file the chunk begins, in bytes.
    pub offset: u64,
    /// How many bytes of the file it covers. The needle may have more, which are no part of the
    /// file.
    pub size: u64,
    /// When it was written, in ns since the epoch. Of overlapping chunks the newest counts.
    pub modified_ts_ns: i64,
    /// The AES-256-GCM key of the needle, if that is encrypted.
    pub cipher_key: Option<Box<[u8; 32]>>,
    /// Whether the writer compressed the data. The needle may be compressed even where this is
    /// false.
    pub is_compressed: bool,
    /// Whether the needle has a list of chunks instead of data.
    pub is_manifest: bool,
}

/// The state of an object on remote storage that an entry stands for. Objects are replaced under
/// their names, and two states of equal size need not have the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteObject {
    /// The name of the storage in the cluster.
    pub storage: String,
    /// The ETag of the state; empty if the storage has none.
    pub etag: String,
    /// When the object last changed at the storage, in s since the epoch.
    pub mtime: i64,
    /// Its size there, in bytes.
    pub size: i64,
    /// Its content encoding, if the storage has one.
    pub encoding: Option<String>,
    /// When the content of the entry last changed in the cluster. A write through a mount changes
    /// only this field.
    #[serde(with = "any_time")]
    pub changed: SystemTime,
}

/// Where the content of an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// No content: a directory, a device, an empty file.
    None,
    /// In the entry itself. The file is zero beyond it, up to its size.
    Inline(Bytes),
    /// In chunks, in the filer's order, manifests not expanded. The file is zero where there is no
    /// chunk, up to its size.
    Chunks(Arc<[Chunk]>),
    /// On a remote storage; the cluster has not copied it yet.
    Remote(Arc<RemoteObject>),
    /// The target of a symbolic link.
    Target(String),
    /// Encrypted by the S3 gateway, with a key that only the gateway or its user has. Reading is
    /// an error.
    Encrypted {
        /// Why it counts as encrypted, for the log.
        reason: Box<str>,
    },
    /// Unknown, because the entry is malformed. Reading is an I/O error.
    Damaged {
        /// What is wrong, for the log.
        reason: Box<str>,
    },
}

/// An entry of the filer: a name in a directory, with its attributes and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name within its directory.
    pub name: String,
    /// The attributes.
    pub attr: Attributes,
    /// Where the content is.
    pub content: Content,
    /// Extended attributes as users see them (`user.…`), sorted by name.
    pub xattrs: Arc<[(Box<str>, Bytes)]>,
    /// The key that all names of a hard-linked file share.
    pub hard_link: Option<Bytes>,
    /// When the entry expires (TTL).
    #[serde(with = "any_time::optional")]
    pub expires: Option<SystemTime>,
}

/// Times as whole seconds since the epoch, rounded down, and nanoseconds: serde itself takes none
/// before the epoch.
mod any_time {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Parts = (i64, u32);

    fn parts(time: SystemTime) -> Parts {
        let whole = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (whole(after.as_secs()), after.subsec_nanos()),
            Err(error) => {
                let before = error.duration();
                match before.subsec_nanos() {
                    0 => (-whole(before.as_secs()), 0),
                    nanos => ((-whole(before.as_secs())).saturating_sub(1), 1_000_000_000 - nanos),
                }
            }
        }
    }

    fn time((seconds, nanos): Parts) -> Option<SystemTime> {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let second = match seconds < 0 {
            true => UNIX_EPOCH.checked_sub(whole),
            false => UNIX_EPOCH.checked_add(whole),
        };
        second?.checked_add(Duration::from_nanos(nanos.into()))
    }

    pub(super) fn serialize<S: Serializer>(value: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        parts(*value).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let out_of_range = || serde::de::Error::custom("a time out of range");
        time(Parts::deserialize(from)?).ok_or_else(out_of_range)
    }

    pub(super) mod optional {
        use super::*;

        pub(in super::super) fn serialize<S: Serializer>(
            value: &Option<SystemTime>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            value.map(parts).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<SystemTime>, D::Error> {
            let out_of_range = || serde::de::Error::custom("a time out of range");
            Option::<Parts>::deserialize(from)?.map(|parts| time(parts).ok_or_else(out_of_range)).transpose()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn times_come_back() {
            let nanos = |nanos: i64| match u64::try_from(nanos) {
                Ok(after) => UNIX_EPOCH + Duration::from_nanos(after),
                Err(_) => UNIX_EPOCH - Duration::from_nanos(nanos.unsigned_abs()),
            };
            for value in [0, 1, -1, 999_999_999, -1_500_000_000, -2_000_000_000, i64::MAX, i64::MIN + 1] {
                assert_eq!(time(parts(nanos(value))), Some(nanos(value)), "{value}");
            }
            let earliest = UNIX_EPOCH.checked_sub(Duration::from_secs(i64::MAX as u64)).unwrap();
            assert_eq!(time(parts(earliest)), Some(earliest));
        }
    }
}

impl Entry {
    /// Its size in memory in bytes, approximately.
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

    /// Whether both entries have the same bytes, so that a reader of one may go on with the other.
    pub fn same_content(&self, other: &Entry) -> bool {
        self.attr.kind == other.attr.kind
            && self.attr.size == other.attr.size
            && self.content == other.content
    }
}
