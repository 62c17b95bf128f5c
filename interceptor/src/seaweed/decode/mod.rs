//! From the filer's messages to the types of [`entry`](super::entry).
//!
//! Decoding an entry never fails as a whole. If its content cannot be understood, that becomes
//! [`Content::Damaged`]: the name stays visible in its directory, `stat` works, and only reading
//! fails. Attributes have no illegal values. `chunks` decodes chunk records and manifests, `mode`
//! Go's file modes, and this file the entry.

mod chunks;
mod mode;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use chunks::{ChunkError, ChunkFault, manifest};

use super::entry::{Attributes, Content, Entry, FileKind, RemoteObject};
use super::pb;
use chunks::MAX_FILE_SIZE;

/// The prefix of the keys of extended attributes. Other keys are the filer's own and the S3
/// gateway's.
const XATTR_PREFIX: &str = "xattr-";
/// Linux's limit of an extended attribute's name, in bytes.
const XATTR_NAME_MAX: usize = 255;
/// If an entry has this key, its TTL counts from the last change instead of the creation.
const EXPIRES_S3: &str = "X-Seaweedfs-Expires-S3";
/// The key of the S3 gateway's versions of an object. The filer does not expire these by their
/// last change.
const S3_VERSION_ID: &str = "Seaweed-X-Amz-Version-Id";
/// Prefixes, in any case of letters, of the keys in which the S3 gateway records that it encrypted
/// an object, and how. Gateways of some versions record it nowhere else.
const SSE_PREFIXES: [&str; 2] = ["x-amz-server-side-encryption", "x-seaweedfs-sse-"];
/// Go's zero time, in s since the epoch.
const GO_ZERO_TIME: i64 = -62_135_596_800;

/// What is wrong with the content of an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A chunk record is malformed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// The entry has inline content, and chunks that reach beyond it. Which bytes count is not
    /// defined.
    #[error("it has both {inline} bytes of inline content and chunks up to {end}")]
    TwoContents {
        /// Length of the inline content in bytes.
        inline: usize,
        /// Where the last chunk ends, in bytes.
        end: u64,
    },
    /// The content is encrypted with a key that no filer has.
    #[error("its attribute `{0}` says that the S3 gateway has encrypted it")]
    Encrypted(String),
    /// The size is larger than a file can be.
    #[error("its size of {0} bytes is larger than a file can be")]
    Size(u64),
}

impl ContentError {
    fn is_encrypted(&self) -> bool {
        match self {
            Self::Chunk(error) => error.is_encrypted(),
            Self::Encrypted(_) => true,
            Self::TwoContents { .. } | Self::Size(_) => false,
        }
    }
}

/// The entry that a message describes, owners and permissions as the filer has them.
pub(super) fn entry(raw: pb::Entry) -> Entry {
    let attributes = raw.attributes.unwrap_or_default();
    let kind = if raw.is_directory { FileKind::Directory } else { mode::kind(attributes.file_mode) };
    let mtime = time(attributes.mtime, attributes.mtime_ns);
    let crtime = time(attributes.crtime, attributes.crtime_ns);
    let remote = raw.remote_entry.map(|remote| remote_state(remote, mtime));

    let fields = ContentFields {
        inline: raw.content,
        chunks: raw.chunks,
        file_size: attributes.file_size,
        remote_is_newer: remote.as_ref().is_some_and(|remote| remote.mtime > attributes.mtime),
        remote,
        sse_key: raw.extended.keys().filter(|key| is_sse_key(key)).min().cloned(),
    };
    let (size, content) = match kind {
        FileKind::File => fields.resolve(),
        FileKind::Symlink => {
            (attributes.symlink_target.len() as u64, Content::Target(attributes.symlink_target))
        }
        _ => (0, Content::None),
    };
    let nlink = match kind {
        FileKind::Directory => 2,
        _ if raw.hard_link_id.is_empty() => 1,
        _ => u32::try_from(raw.hard_link_counter).unwrap_or(1).max(1),
    };
    // A directory with two names could be made its own ancestor.
    let is_linked = kind != FileKind::Directory && !raw.hard_link_id.is_empty();
    Entry {
        name: raw.name,
        attr: Attributes {
            kind,
            perm: mode::permissions(attributes.file_mode),
            uid: attributes.uid,
            gid: attributes.gid,
            size,
            mtime,
            ctime: if is_unset(attributes.ctime) {
                mtime
            } else {
                time(attributes.ctime, attributes.ctime_ns)
            },
            crtime,
            nlink,
            rdev: attributes.rdev,
            inode: attributes.inode,
        },
        content,
        expires: expiry(
            attributes.ttl_sec,
            if is_unset(attributes.mtime) { crtime } else { mtime },
            crtime,
            &raw.extended,
        ),
        xattrs: xattrs(raw.extended),
        hard_link: is_linked.then(|| Bytes::from(raw.hard_link_id)),
    }
}

/// The state of the remote object that an entry stands for, if it stands for one, whether the
/// cluster has a copy or not.
pub(super) fn remote_object(raw: &pb::Entry) -> Option<RemoteObject> {
    let attributes = raw.attributes.clone().unwrap_or_default();
    Some(remote_state(raw.remote_entry.clone()?, time(attributes.mtime, attributes.mtime_ns)))
}

fn remote_state(remote: pb::RemoteEntry, changed: SystemTime) -> RemoteObject {
    RemoteObject {
        storage: remote.storage_name,
        etag: remote.remote_e_tag,
        mtime: remote.remote_mtime,
        size: remote.remote_size,
        encoding: remote.remote_content_encoding,
        changed,
    }
}

/// The fields that determine the content of a regular file, and its size.
struct ContentFields {
    inline: Vec<u8>,
    chunks: Vec<pb::FileChunk>,
    file_size: u64,
    remote: Option<RemoteObject>,
    remote_is_newer: bool,
    /// The key of an attribute by which the S3 gateway records that it has encrypted the content.
    sse_key: Option<String>,
}

impl ContentFields {
    /// The size in bytes, at most what the kernel can express, and the content.
    fn resolve(self) -> (u64, Content) {
        let size = self.size();
        let content = if size > MAX_FILE_SIZE { Err(ContentError::Size(size)) } else { self.content(size) };
        let unreadable = |error: ContentError| match error.is_encrypted() {
            true => Content::Encrypted { reason: error.to_string().into() },
            false => Content::Damaged { reason: error.to_string().into() },
        };
        (size.min(MAX_FILE_SIZE), content.unwrap_or_else(unreadable))
    }

    /// Why the content counts as encrypted by the S3 gateway, if it does.
    fn encryption(&self) -> Option<ContentError> {
        let of_chunk = |(index, record)| {
            let fault = ChunkFault::Encrypted(chunks::encryption(record)?);
            Some(ChunkError::Record { index, fault }.into())
        };
        let of_chunks = self.chunks.iter().enumerate().find_map(of_chunk);
        of_chunks.or_else(|| self.sse_key.clone().map(ContentError::Encrypted))
    }

    fn remote_size(&self) -> u64 {
        self.remote.as_ref().and_then(|remote| u64::try_from(remote.size).ok()).unwrap_or(0)
    }

    fn is_remote_only(&self) -> bool {
        self.chunks.is_empty() && self.inline.is_empty() && self.remote_size() > 0
    }

    /// The largest of all sizes in the entry. That of the remote object counts if the object is
    /// newer, or if no other size is known.
    fn size(&self) -> u64 {
        let local = chunks::end(&self.chunks).max(self.file_size).max(self.inline.len() as u64);
        if self.remote_is_newer || (local == 0 && self.is_remote_only()) {
            local.max(self.remote_size())
        } else {
            local
        }
    }

    fn content(self, size: u64) -> Result<Content, ContentError> {
        // The bytes of each of these places would be ciphertext.
        if size > 0
            && let Some(error) = self.encryption()
        {
            return Err(error);
        }
        if self.is_remote_only()
            && let Some(remote) = self.remote
        {
            return Ok(Content::Remote(remote.into()));
        }
        if !self.inline.is_empty() {
            let (inline, end) = (self.inline.len(), chunks::end(&self.chunks));
            if end > inline as u64 {
                return Err(ContentError::TwoContents { inline, end });
            }
            return Ok(Content::Inline(self.inline.into()));
        }
        let chunks = chunks::list(self.chunks)?;
        Ok(if size == 0 { Content::None } else { Content::Chunks(chunks.into()) })
    }
}

fn is_sse_key(key: &str) -> bool {
    let start = |length: usize| key.get(..length).unwrap_or_default();
    SSE_PREFIXES.iter().any(|prefix| start(prefix.len()).eq_ignore_ascii_case(prefix))
}

/// Whether a time, in s since the epoch, is not set: 0, or Go's zero time in the year 1.
fn is_unset(seconds: i64) -> bool {
    seconds == 0 || seconds == GO_ZERO_TIME
}

/// A time of the filer. Nanoseconds out of range count as 0.
fn time(seconds: i64, nanoseconds: i32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let part = u32::try_from(nanoseconds).ok().filter(|&ns| ns < 1_000_000_000).unwrap_or(0);
    time.and_then(|t| t.checked_add(Duration::from_nanos(part.into()))).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn expiry(
    ttl_seconds: i32,
    changed: SystemTime,
    created: SystemTime,
    extended: &HashMap<String, Vec<u8>>,
) -> Option<SystemTime> {
    let ttl = Duration::from_secs(u64::try_from(ttl_seconds).ok().filter(|&ttl| ttl > 0)?);
    match (extended.contains_key(EXPIRES_S3), extended.contains_key(S3_VERSION_ID)) {
        (true, true) => None,
        (true, false) => changed.checked_add(ttl),
        (false, _) => created.checked_add(ttl),
    }
}

fn xattrs(extended: HashMap<String, Vec<u8>>) -> Arc<[(Box<str>, Bytes)]> {
    let legal = |name: &str| !name.is_empty() && name.len() <= XATTR_NAME_MAX && !name.contains('\0');
    let visible = extended.into_iter().filter_map(|(key, value)| {
        let name = key.strip_prefix(XATTR_PREFIX).filter(|name| legal(name))?;
        Some((Box::from(name), Bytes::from(value)))
    });
    let mut list: Vec<(Box<str>, Bytes)> = visible.collect();
    list.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    list.into()
}

#[cfg(test)]
mod tests;
