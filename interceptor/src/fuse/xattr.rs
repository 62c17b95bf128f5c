//! Extended attributes, by the rules of `getxattr(2)`.

use std::net::SocketAddr;

use fuser::{Errno, ReplyXattr};

/// An attribute that every file and directory of a mount has, although no list shows it: where the status API of the mount's
/// daemon is, as `HOST:PORT`, or `none`. So the daemon of any path can be found, whatever is mounted where. The kernel lets
/// everybody read attributes of this name space.
pub const STATUS_XATTR: &str = "system.interceptor.status";

/// The value of [`STATUS_XATTR`].
pub(crate) fn status_value(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "none".into(), |address| address.to_string())
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
    fn an_answer_depends_on_the_callers_buffer() {
        assert_eq!(judge(0, Some(b"four")), Verdict::Size(4));
        assert_eq!(judge(3, Some(b"four")), Verdict::TooSmall);
        assert_eq!(judge(4, Some(b"four")), Verdict::Data(b"four"));
        assert_eq!(judge(9, None), Verdict::None);
        assert_eq!(judge(0, Some(b"")), Verdict::Size(0));
        assert_eq!(judge(8, Some(b"")), Verdict::Data(b""));
    }
}
