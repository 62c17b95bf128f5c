//! Entries of the filer as FUSE attributes.

use bytes::Bytes;
use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::namespace::{NamespaceError, NodeId};
use crate::seaweed::entry::{Entry, FileKind};

/// `st_blksize`, which copying tools and stdio buffers follow: 256 KiB makes few requests of a
/// large file and wastes little on a small one.
const BLOCK_SIZE: u32 = 256 << 10;

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::NamedPipe => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
    }
}

pub(super) fn file_attr(id: NodeId, entry: &Entry) -> FileAttr {
    let attr = &entry.attr;
    FileAttr {
        ino: INodeNo(id),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.mtime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.crtime,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The attributes of a name that does not exist: node 0 makes the kernel cache a negative dentry.
pub(super) fn no_attr() -> FileAttr {
    let epoch = std::time::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Attributes that make READDIRPLUS return a name without a node. No file has this size, so the
/// kernel makes no node: it passes on the name, the number and the type, and sends a FORGET for
/// the node. (The number 0 has the same effect, but fuser would show programs the 0, too.)
pub(super) fn attr_without_node(number: NodeId, kind: FileKind) -> FileAttr {
    FileAttr { ino: INodeNo(number), kind: file_type(kind), size: u64::MAX, ..no_attr() }
}

/// The first minor version of the protocol, that of Linux 5.10, whose kernels all do so.
pub(super) const MIN_CHECKING_MINOR: u32 = 32;

pub(super) fn errno(error: &NamespaceError) -> Errno {
    match error {
        NamespaceError::Stale => Errno::ESTALE,
        NamespaceError::NotDirectory => Errno::ENOTDIR,
        NamespaceError::Killed => Errno::EINTR,
        NamespaceError::Filer(_) => Errno::EIO,
    }
}

/// The value of an extended attribute. `xattrs` is sorted by name.
pub(super) fn xattr<'a>(xattrs: &'a [(Box<str>, Bytes)], name: &str) -> Option<&'a [u8]> {
    let at = xattrs.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
    Some(&xattrs[at].1)
}

/// The names of extended attributes as `listxattr(2)` returns them, each ended by a zero.
pub(super) fn xattr_names(xattrs: &[(Box<str>, Bytes)]) -> Vec<u8> {
    xattrs.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_attributes_are_found_and_listed_by_name() {
        let xattrs: Vec<(Box<str>, Bytes)> =
            vec![("user.a".into(), Bytes::from_static(b"1")), ("user.b".into(), Bytes::from_static(b"four"))];
        assert_eq!(xattr(&xattrs, "user.b"), Some(&b"four"[..]));
        assert_eq!(xattr(&xattrs, "user.c"), None);
        assert_eq!(xattr_names(&xattrs), b"user.a\0user.b\0");
    }
}
