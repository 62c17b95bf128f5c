//! What `interceptor warmup` and the daemon say to each other, as JSON. Version 1: fields are only added to answers;
//! a request with a field that the daemon does not know is refused.

use serde::{Deserialize, Serialize};

/// Where jobs are begun, with POST; a job is at this path, a slash and its id.
pub const API_PATH: &str = "/api/v1/warmup";

/// A header that every request must have. A web page cannot send it to another site without asking that site first, and
/// the daemon does not agree.
pub const REQUEST_HEADER: (&str, &str) = ("x-interceptor", "warmup");

/// The most files in one job.
pub const MAX_FILES: usize = 1024;

/// The longest body, in bytes: as many tickets, each with quotes and a comma, and the rest.
pub const MAX_BODY_BYTES: usize = 96 << 10;

/// The longest time that an answer about a job can be delayed, in milliseconds.
pub const MAX_WAIT_MS: u64 = 5000;

/// What to do with the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupAction {
    /// Bring them into the cache.
    Fetch,
    /// Count what is in the cache.
    Check,
    /// Give up what is in the cache.
    Evict,
}

/// A job to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What to do.
    pub action: WarmupAction,
    /// The device number of the mount, `MAJOR:MINOR`, so that no other mount's daemon is asked.
    pub device: String,
    /// A [read ticket](super::ticket) of each file, at most [`MAX_FILES`], all of one user.
    pub tickets: Vec<String>,
    /// Fetch: whether others may be pushed out of the cache.
    #[serde(default)]
    pub force: bool,
    /// Fetch with force: how many bytes are in the cache by earlier jobs of the same run, which shall stay.
    #[serde(default)]
    pub held_bytes: u64,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It is being done.
    Running,
    /// All files have been seen to; each has its result.
    Done,
    /// It has been given up, on request or because nobody asked about it.
    Cancelled,
}

/// A job as it is at the moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobReport {
    /// Its name.
    pub id: String,
    /// How it stands.
    pub state: JobState,
    /// Files that have been seen to.
    pub files_done: u64,
    /// Fetch: bytes of files that are in the cache by now, or need not be.
    pub bytes_done: u64,
    /// Bytes that were fetched, or given up.
    pub bytes_moved: u64,
    /// What became of the files, in the order of the request; when the job is done.
    #[serde(default)]
    pub results: Vec<FileResult>,
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileResult {
    /// Its size in bytes.
    pub size: u64,
    /// How much of it can be read without a fetch, in bytes.
    pub cached: u64,
    /// Why it is not as it was asked for.
    pub problem: Option<FileProblem>,
}

/// Why a file is not as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileProblem {
    /// The daemon knows no such node.
    Gone,
    /// The cache has no room for it.
    Full,
    /// A block of it takes more than a quarter of the cache.
    TooLarge,
    /// It cannot be read. The daemon's log says why.
    Unreadable,
    /// The S3 gateway has encrypted it, with a key that the daemon does not have.
    Encrypted,
    /// Of an attached path: the mount below answers its reads.
    NotServed,
    /// Evict: the file is another user's.
    NotPermitted,
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, in one sentence.
    pub error: String,
}
