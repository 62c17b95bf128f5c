//! Why a fetch failed.

use rdma_engine::FileId;

/// Why a fetch failed, after everything that could be tried was tried.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The caller asked for bytes that the chunk does not have.
    #[error("{length} bytes at {offset} are not within chunk {fid} of {size} bytes")]
    BeyondChunk {
        /// The chunk's needle.
        fid: FileId,
        /// Where the range that was asked for begins in the chunk, in bytes.
        offset: u64,
        /// The length of the range, in bytes.
        length: u64,
        /// The size of the chunk, in bytes.
        size: u64,
    },
    /// No server that holds the volume has the needle.
    #[error("no server has {fid} any more; asked {servers}")]
    Gone {
        /// The needle.
        fid: FileId,
        /// The servers that were asked.
        servers: String,
    },
    /// The servers do not let this client read the needle.
    #[error("reading {fid} was refused: {reason}")]
    Refused {
        /// The needle.
        fid: FileId,
        /// The server that refused last, and its answer.
        reason: String,
    },
    /// No server has a copy that passes its checks.
    #[error("every copy of {fid} is damaged; asked {servers}; last: {reason}")]
    Damaged {
        /// The needle.
        fid: FileId,
        /// The servers that were asked.
        servers: String,
        /// The server that answered last, and what was wrong with its copy.
        reason: String,
    },
    /// No server answered usefully in time.
    #[error("cannot read {fid} (attempts: {passes}); asked {servers}; last: {reason}")]
    Unreachable {
        /// The needle.
        fid: FileId,
        /// How often all replicas were asked.
        passes: u32,
        /// The servers that were asked.
        servers: String,
        /// What failed last, and how.
        reason: String,
    },
}
