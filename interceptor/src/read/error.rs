//! Why a read fails.

use std::sync::Arc;

use crate::cache::FetchInterrupted;

/// An error of an origin, shared by all reads that waited for it.
pub type OriginError = Arc<dyn std::error::Error + Send + Sync>;

/// Why a read could not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No source had the bytes.
    #[error("{0}")]
    Origin(OriginError),
    /// The list of chunks makes no sense.
    #[error("{0}")]
    Damaged(String),
    /// The object on remote storage that was opened is not there any more, and the cluster has no
    /// copy of it.
    #[error("{0}: the object on remote storage has been replaced, renamed or deleted since it was opened")]
    Replaced(String),
    /// The bytes are ciphertext of the S3 gateway, and the key is not to be had.
    #[error("{0}; only the S3 gateway can decrypt it")]
    Encrypted(String),
    /// The fetch panicked or the daemon is stopping.
    #[error("{0}")]
    Interrupted(#[from] FetchInterrupted),
    /// A speculative fetch found no room in the cache for long. Never the answer to a read.
    #[error("the cache has no room to fetch it to")]
    NoRoom,
}

impl ReadError {
    /// The error number that the application is given.
    pub fn errno(&self) -> i32 {
        match self {
            // What file systems that encrypt by themselves return when a key is missing (fscrypt).
            Self::Encrypted(_) => libc::ENOKEY,
            Self::Replaced(_) => libc::ESTALE,
            Self::Origin(_) | Self::Damaged(_) | Self::Interrupted(_) | Self::NoRoom => libc::EIO,
        }
    }
}
