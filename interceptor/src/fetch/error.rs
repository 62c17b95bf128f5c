//! Why bytes could not be brought.

use rdma_engine::FileId;

/// Why a fetch failed, after all that could be tried was tried.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The caller asked for bytes that the chunk does not have.
    #[error("{length} bytes at {offset} are not within chunk {fid} of {size} bytes")]
    BeyondChunk {
        /// The chunk's needle.
        fid: FileId,
        /// What was asked for, in bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// The size of the chunk in bytes.
        size: u64,
    },
    /// No server that holds the volume has the needle.
    #[error("no server has {fid} any more; asked {servers}")]
    Gone {
        /// The needle.
        fid: FileId,
        /// Who was asked.
        servers: String,
    },
    /// The servers do not let this client read it.
    #[error("reading {fid} was refused: {reason}")]
    Refused {
        /// The needle.
        fid: FileId,
        /// Who refused last, and how.
        reason: String,
    },
    /// No server has a copy that passes its checks.
    #[error("every copy of {fid} is damaged; asked {servers}; last: {reason}")]
    Damaged {
        /// The needle.
        fid: FileId,
        /// Who was asked.
        servers: String,
        /// Who answered last, and what was wrong with it.
        reason: String,
    },
    /// No server answered usefully in time.
    #[error("cannot read {fid} after {passes} passes; asked {servers}; last: {reason}")]
    Unreachable {
        /// The needle.
        fid: FileId,
        /// How often all locations were tried.
        passes: u32,
        /// Who was asked.
        servers: String,
        /// What failed last, and how.
        reason: String,
    },
}
