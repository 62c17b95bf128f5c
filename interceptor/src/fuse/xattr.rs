//! Extended attributes, by the rules of `getxattr(2)`.

use bytes::Bytes;
use fuser::{Errno, ReplyXattr};

/// An attribute that every file and directory of a mount has, although no list shows it: where the status API of the mount's
/// daemon is, as `HOST:PORT`, or `none`. So the daemon of any path can be found, whatever is mounted where. The kernel lets
/// everybody read attributes of this name space.
pub const STATUS_XATTR: &str = "system.interceptor.status";

/// The value of an attribute. `xattrs` is sorted by name.
pub(crate) fn get<'a>(xattrs: &'a [(Box<str>, Bytes)], name: &str) -> Option<&'a [u8]> {
    let at = xattrs.binary_search_by(|(other, _)| (**other).cmp(name)).ok()?;
    Some(&xattrs[at].1)
}

/// All names, each ended by a zero.
pub(crate) fn list(xattrs: &[(Box<str>, Bytes)]) -> Vec<u8> {
    xattrs.iter().flat_map(|(name, _)| name.bytes().chain([0])).collect()
}

/// What to answer a caller whose buffer has `size` bytes; with 0 it asks for the size only.
#[derive(Debug, PartialEq, Eq)]
enum Verdict<'a> {
    Size(u32),
    Data(&'a [u8]),
    TooSmall,
    None,
    TooBig,
}

fn judge(size: u32, value: Option<&[u8]>) -> Verdict<'_> {
    let Some(value) = value else { return Verdict::None };
    match u32::try_from(value.len()) {
        Err(_) => Verdict::TooBig,
        Ok(len) if size == 0 => Verdict::Size(len),
        Ok(len) if len > size => Verdict::TooSmall,
        Ok(_) => Verdict::Data(value),
    }
}

pub(crate) fn reply(reply: ReplyXattr, size: u32, value: Option<&[u8]>) {
    match judge(size, value) {
        Verdict::Size(len) => reply.size(len),
        Verdict::Data(value) => reply.data(value),
        Verdict::TooSmall => reply.error(Errno::ERANGE),
        Verdict::None => reply.error(Errno::ENODATA),
        Verdict::TooBig => reply.error(Errno::E2BIG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_names_follow_the_buffer() {
        let xattrs: Vec<(Box<str>, Bytes)> =
            vec![("user.a".into(), Bytes::from_static(b"1")), ("user.b".into(), Bytes::from_static(b"four"))];
        assert_eq!(judge(0, get(&xattrs, "user.b")), Verdict::Size(4));
        assert_eq!(judge(3, get(&xattrs, "user.b")), Verdict::TooSmall);
        assert_eq!(judge(4, get(&xattrs, "user.b")), Verdict::Data(b"four"));
        assert_eq!(judge(9, get(&xattrs, "user.c")), Verdict::None);
        assert_eq!(list(&xattrs), b"user.a\0user.b\0");
        assert_eq!(judge(0, Some(&list(&[]))), Verdict::Size(0));
        assert_eq!(judge(8, Some(&list(&[]))), Verdict::Data(b""));
    }
}
