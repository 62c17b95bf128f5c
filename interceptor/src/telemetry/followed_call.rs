//! The read calls of applications, which those who follow reads may ask for.
//!
//! The daemon sees only the requests that the kernel sends. What the page cache and passthrough
//! answer, and how long an application waited in all, the eBPF programs see, which are behind a
//! [`CallSource`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Begins to trace calls, until what it returns is dropped. Blocks for up to a second.
/// The error says which calls are not seen, and why.
pub type CallSource = Arc<dyn Fn() -> Result<Arc<dyn CallTracing>, String> + Send + Sync>;

/// Calls are traced. They come to the [`ReadFollowers`](super::read_followers::ReadFollowers).
pub trait CallTracing: Send + Sync {
    /// Which calls cannot be seen on this host, and why.
    fn unseen(&self) -> Option<String>;

    /// How many calls did not come to the followers, since tracing began.
    fn lost(&self) -> u64;
}

/// A call that has returned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FollowedCall {
    /// When it was reported, in seconds since 1970.
    pub at: f64,
    /// The path of the file.
    pub path: String,
    /// The first byte, rounded down to a page if the page cache was read.
    pub offset: u64,
    /// How many bytes were read.
    pub len: u64,
    /// The process that called; 0 if it is in another PID namespace than the daemon.
    pub process: u32,
    /// Its thread, likewise.
    pub caller: u32,
    /// The name of the thread.
    pub caller_name: String,
    /// Seconds from the system call to its return.
    pub seconds: f64,
    /// How many requests the kernel sent to the daemon during the call, readahead included.
    pub requests: u32,
    /// Whether the kernel read a backing file (passthrough).
    pub passthrough: bool,
    /// What the application got, if not the bytes.
    pub error: Option<String>,
}

impl FollowedCall {
    /// A call that is reported now.
    pub fn reported_now(path: String, took: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: now.as_secs_f64(), path, seconds: took.as_secs_f64(), ..Self::default() }
    }
}
