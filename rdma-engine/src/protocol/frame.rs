//! The envelope of every message.
//!
//! ```text
//!  0  length u32    of the body, in bytes, at most [`MAX_BODY`]; without data behind the body
//!  4  kind u8
//!  5  0 u8, 0 u16
//!  8  request u64   the client's number of the request; 0 where there is none
//! 16  body
//! ```

use bytes::{BufMut, BytesMut};

use super::ProtocolError;

/// Bytes of a frame's header.
pub const HEADER: usize = 16;

/// The longest body, in bytes. More than the longest message, as room for later versions.
pub const MAX_BODY: u32 = 16 << 10;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal;)+) => {
        /// The kind of a message.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum MessageKind {
            $($(#[doc = $doc])+ $name = $code,)+
        }

        impl MessageKind {
            fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

kinds! {
    /// The client's first message.
    Hello = 1;
    /// The engine's answer to it.
    Welcome = 2;
    /// The transport that the client takes.
    Choose = 3;
    /// The transport is ready.
    Ready = 4;
    /// The engine does not serve this: a request, or, with request number 0, the connection.
    Refused = 5;
    /// A request for data.
    Read = 16;
    /// The client has fetched what was granted.
    Done = 17;
    /// The client no longer waits for the answer.
    Cancel = 18;
    /// Asks for a pong.
    Ping = 19;
    /// The answer's data is in line.
    Data = 32;
    /// The answer's data can be fetched by RDMA READ.
    Grant = 33;
    /// The answer's data can be read from a file.
    File = 34;
    /// The answer to a ping.
    Pong = 35;
    /// A file that was handed over has been replaced or removed.
    Forget = 36;
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The kind of message in the body.
    pub kind: MessageKind,
    /// Bytes of the body.
    pub length: u32,
    /// The request that the message belongs to.
    pub request: u64,
}

impl FrameHeader {
    /// Parses a header.
    ///
    /// # Errors
    /// When the kind is unknown or the body too long.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, ProtocolError> {
        let [l0, l1, l2, l3, kind, _, _, _, r @ ..] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        let kind = MessageKind::from_code(kind).ok_or(ProtocolError::Kind(kind))?;
        if length > MAX_BODY {
            return Err(ProtocolError::Limit);
        }
        Ok(Self { kind, length, request: u64::from_be_bytes(r) })
    }
}

/// Appends a whole frame to `out`; `body` writes what is in it.
pub(super) fn put(out: &mut BytesMut, kind: MessageKind, request: u64, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    out.put_u8(kind as u8);
    out.put_bytes(0, 3);
    out.put_u64(request);
    body(out);
    let length = u32::try_from(out.len() - start - HEADER).expect("every message is far shorter");
    debug_assert!(length <= MAX_BODY);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}
