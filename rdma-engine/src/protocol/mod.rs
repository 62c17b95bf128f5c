//! The messages of client and engine; `doc/PROTOCOL.md` has their layouts byte by byte.
//!
//! A session begins with a **bootstrap** over a stream, TCP or a Unix socket: [`Hello`],
//! [`Welcome`] with the transports on offer, [`Choose`], [`Ready`]. The requests after it are the
//! same for every transport; only the data travels differently:
//!
//! | transport | a read is answered with | the data |
//! |---|---|---|
//! | `tcp` | [`EngineMessage::Data`] | follows in the stream |
//! | `local` | [`EngineMessage::File`] | is read from the `.dat` by its descriptor |
//! | `verbs` | [`EngineMessage::Data`], if small | comes in the message |
//! | | else [`EngineMessage::Grant`] | is fetched from staging memory by RDMA READ |
//!
//! [`ClientMessage::Done`] gives a grant back.
//!
//! Every message is a [frame](frame): a header of sixteen bytes (length, kind, and the request
//! that it belongs to) and a body. The client numbers its requests and may send them without
//! waiting. Each is answered exactly once, in any order. Every field has a limit; a message that
//! exceeds one, or is not understood, ends the session with a reason.

mod bootstrap;
pub mod frame;
mod message;
mod verbs;
mod wire;

pub use bootstrap::{
    Capabilities, Choose, EngineProof, Hello, Offer, Ready, SessionLimits, Transport, Welcome,
};
pub use frame::{FrameHeader, MessageKind};
pub use message::{ClientMessage, EngineMessage, Grant, NeedleInfo, ReadRequest};
pub use verbs::{
    MAX_ANSWER_SIZE, MAX_INLINE_DATA, MAX_REQUEST_SIZE, MESSAGE_WINDOW, QueuePairEnd, VerbsOffer,
};

/// The one version of the protocol that this program speaks.
pub const VERSION: u16 = 1;

/// The port where an engine is looked for.
pub const DEFAULT_PORT: u16 = 18515;

/// The longest token of a read request, in bytes.
pub const MAX_TOKEN: usize = 2048;

/// The most data that one request may bring, in bytes; an engine may allow less.
pub const MAX_READ: u32 = 64 << 20;

/// Why bytes are no message of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first bytes are not those of a hello.
    #[error("the first bytes are not this protocol's")]
    Magic,
    /// The message ends within a field.
    #[error("a message ends too early")]
    Short,
    /// There are bytes behind the last field.
    #[error("a message has bytes behind its end")]
    Long,
    /// A field, or the message, is larger than allowed.
    #[error("a message exceeds a limit")]
    Limit,
    /// A field that must be text is not UTF-8.
    #[error("a message has text that is none")]
    Text,
    /// A kind of message that is not known, or that may not come at this point.
    #[error("a message of kind {0} is not known here")]
    Kind(u8),
    /// A field has a value that means nothing.
    #[error("a message has a field of no meaning")]
    Value,
}

#[cfg(test)]
mod tests;
