//! Why a read from one volume server failed, and what a caller can do about it.

use crate::seaweed::codec::CodecError;
use crate::seaweed::http1::HttpError;

/// Why a read from one volume server failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// There is no complete response.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server does not have the volume, or not the key, or not with that cookie.
    #[error("the server does not have it")]
    NotFound,
    /// The server is overloaded or starting.
    #[error("the server is busy (status {0})")]
    Busy(u16),
    /// The server will not answer this request, now or later.
    #[error("the server refused (status {status}{}{message})", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The status code.
        status: u16,
        /// The beginning of the response's text.
        message: String,
    },
    /// The server failed at reading the needle.
    #[error("the server failed (status {0})")]
    Server(u16),
    /// The response does not fit the request.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// The needle has fewer bytes than its chunk, or the response not as many as were asked for.
    #[error("wrong length: {found} bytes where {needed} are needed")]
    Length {
        /// How many are needed.
        needed: u64,
        /// How many there are.
        found: u64,
    },
    /// The needle has more bytes than the caller allows.
    #[error("the needle has more than {0} bytes")]
    TooLarge(u64),
    /// The bytes are not those that were stored.
    #[error("wrong checksum: {computed:08x} where {stored:08x} was stored")]
    Checksum {
        /// The checksum that the server has stored.
        stored: u32,
        /// The checksum of the bytes that came.
        computed: u32,
    },
    /// The stored bytes cannot be decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// What a caller can do about a [`VolumeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// Another server may have it.
    Missing,
    /// The same server may have time later.
    Busy,
    /// It would be refused elsewhere too.
    Refused,
    /// The bytes must not be used. Another server may have a good copy.
    Damaged,
    /// Another server may work, or this one later.
    Failed,
}

impl VolumeError {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound => ErrorClass::Missing,
            Self::Busy(_) => ErrorClass::Busy,
            Self::Refused { .. } => ErrorClass::Refused,
            Self::Http(_) | Self::Server(_) => ErrorClass::Failed,
            Self::Protocol(_)
            | Self::Length { .. }
            | Self::TooLarge(_)
            | Self::Checksum { .. }
            | Self::Codec(_) => ErrorClass::Damaged,
        }
    }

    /// The label of metrics: one of a handful of words.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Http(HttpError::Connect(_)) => "connect",
            Self::Http(HttpError::Stalled(_) | HttpError::Deadline) => "timeout",
            Self::Http(HttpError::Io(_) | HttpError::Closed(_)) => "connection",
            Self::Http(_) | Self::Protocol(_) => "protocol",
            Self::NotFound => "not_found",
            Self::Busy(_) => "busy",
            Self::Refused { .. } => "refused",
            Self::Server(_) => "server",
            Self::Length { .. } | Self::TooLarge(_) | Self::Checksum { .. } | Self::Codec(_) => "integrity",
        }
    }
}
