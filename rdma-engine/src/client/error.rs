//! Why an engine did not deliver.

use crate::Refusal;

/// Why a read failed. Whatever it is, the caller takes the next source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The engine does not serve this needle. It may serve others.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The engine could not be reached a moment ago and is not tried yet again; the last reason is given.
    #[error("the engine is left alone for a while: {0}")]
    Unavailable(String),
    /// The connection could not be made, or ended before the answer was there.
    #[error("no connection: {0}")]
    Lost(String),
    /// The engine has not shown that it is the volume server's, so it is not asked for anything.
    #[error(
        "not trusted: {0}; give it and its clients one security.toml with jwt.signing.key or [grpc] \
         certificates, or name it with --engine"
    )]
    Unproved(String),
    /// The time was over.
    #[error("not within the deadline")]
    Deadline,
    /// What came is not what was asked for: another needle's header, or bytes that do not have their checksum.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl ReadError {
    /// One word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::Unavailable(_) => "unavailable",
            Self::Lost(_) => "lost",
            Self::Unproved(_) => "unproved",
            Self::Deadline => "deadline",
            Self::Damaged(_) => "damaged",
        }
    }
}
