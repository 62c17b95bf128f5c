//! The JSON messages between `interceptor warmup` and the daemon. Version 1: fields are only
//! added to answers; a request with an unknown field is refused.

use serde::{Deserialize, Serialize};

/// The path to POST new jobs to. A job is at this path, a slash and its id.
pub const API_PATH: &str = "/api/v1/warmup";

/// A header that every request must have. A browser sends it to another site only after a
/// preflight, which the daemon refuses.
pub const REQUEST_HEADER: (&str, &str) = ("x-interceptor", "warmup");

/// Files in one job.
pub const MAX_FILES: usize = 1024;

/// Bytes of a request's body: [`MAX_FILES`] tickets, each with quotes and a comma, and the other
/// fields.
pub const MAX_BODY_BYTES: usize = 96 << 10;

/// The time that a request can wait for the end of a job, milliseconds.
pub const MAX_WAIT_MS: u64 = 5000;

/// The action of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupAction {
    /// Fetch the files into the cache.
    Fetch,
    /// Fetch the files to the disk cache.
    FetchToDisk,
    /// Count the bytes that are in the cache.
    Check,
    /// Evict the files from the cache.
    Evict,
}

/// The request for a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The action.
    pub action: WarmupAction,
    /// The device number of the mount, `MAJOR:MINOR`. The daemon of another mount refuses the
    /// request.
    pub device: String,
    /// A [read ticket](super::ticket) of each file, at most [`MAX_FILES`], all of one user.
    pub tickets: Vec<String>,
    /// Fetch: whether other files may be evicted from the cache.
    #[serde(default)]
    pub force: bool,
    /// Fetch with force: bytes that earlier jobs of the same run have cached, which must not be
    /// evicted.
    #[serde(default)]
    pub held_bytes: u64,
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It runs.
    Running,
    /// All files are processed; each has its result.
    Done,
    /// It was cancelled, on request or because its lease ran out.
    Cancelled,
}

/// The progress of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobReport {
    /// The id of the job.
    pub id: String,
    /// The state.
    pub state: JobState,
    /// Files that are processed.
    pub files_done: u64,
    /// Fetch: bytes of the files that are in the cache, or need not be.
    pub bytes_done: u64,
    /// Bytes fetched or evicted.
    pub bytes_moved: u64,
    /// The results in the order of the request, when the job is done.
    #[serde(default)]
    pub results: Vec<FileResult>,
}

/// The result of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileResult {
    /// The size of the file, bytes.
    pub size: u64,
    /// Bytes of it that can be read without a fetch.
    pub cached: u64,
    /// Why the action did not succeed for the file.
    pub problem: Option<FileProblem>,
}

/// Why an action did not succeed for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileProblem {
    /// The daemon does not know the node.
    Gone,
    /// The cache has no space for it.
    Full,
    /// A block of it takes more than a quarter of the cache.
    TooLarge,
    /// It cannot be read. The daemon's log has the reason.
    Unreadable,
    /// The S3 gateway has encrypted it, with a key that the daemon does not have.
    Encrypted,
    /// On an attached path: the file system below serves its reads.
    NotServed,
    /// Evict: another user owns the file.
    NotPermitted,
    /// To disk: the daemon fills no disk cache.
    NoDisk,
    /// To disk: the disk has no room, fails, or the file is encrypted in the cluster.
    NotKept,
}

/// The body of every refusal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The reason, in one sentence.
    pub error: String,
}
