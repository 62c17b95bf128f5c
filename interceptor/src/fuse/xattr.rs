//! Replies to `getxattr(2)` and `listxattr(2)`, and the attribute that names the status API.

use std::net::SocketAddr;

use fuser::{Errno, ReplyXattr};

/// An unlisted attribute of every file and directory of a mount: the address of the status API of
/// its daemon, `HOST:PORT`, or `none`. It leads from any path to the daemon, whatever is mounted
/// where. The kernel lets every user read attributes of the `system` name space.
pub const STATUS_XATTR: &str = "system.interceptor.status";

/// The value of [`STATUS_XATTR`].
pub(crate) fn status_value(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "none".into(), |address| address.to_string())
}

/// The answer to a caller whose buffer has `size` bytes; 0 asks for the size only.
#[derive(Debug, PartialEq, Eq)]
enum XattrAnswer<'a> {
    Size(u32),
    Data(&'a [u8]),
    TooSmall,
    None,
    TooBig,
}

fn answer_for(size: u32, value: Option<&[u8]>) -> XattrAnswer<'_> {
    let Some(value) = value else { return XattrAnswer::None };
    match u32::try_from(value.len()) {
        Err(_) => XattrAnswer::TooBig,
        Ok(len) if size == 0 => XattrAnswer::Size(len),
        Ok(len) if len > size => XattrAnswer::TooSmall,
        Ok(_) => XattrAnswer::Data(value),
    }
}

pub(crate) fn reply(reply: ReplyXattr, size: u32, value: Option<&[u8]>) {
    match answer_for(size, value) {
        XattrAnswer::Size(len) => reply.size(len),
        XattrAnswer::Data(value) => reply.data(value),
        XattrAnswer::TooSmall => reply.error(Errno::ERANGE),
        XattrAnswer::None => reply.error(Errno::ENODATA),
        XattrAnswer::TooBig => reply.error(Errno::E2BIG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_depends_on_the_callers_buffer() {
        assert_eq!(answer_for(0, Some(b"four")), XattrAnswer::Size(4));
        assert_eq!(answer_for(3, Some(b"four")), XattrAnswer::TooSmall);
        assert_eq!(answer_for(4, Some(b"four")), XattrAnswer::Data(b"four"));
        assert_eq!(answer_for(9, None), XattrAnswer::None);
        assert_eq!(answer_for(0, Some(b"")), XattrAnswer::Size(0));
        assert_eq!(answer_for(8, Some(b"")), XattrAnswer::Data(b""));
    }
}
