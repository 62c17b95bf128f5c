//! What is hot and who reads, as eBPF has seen: for people, and never in the labels of a metric.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What goes on in a mount at present.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Activity {
    /// The files that are read most, hottest first.
    pub hottest: Vec<HotFile>,
    /// Who reads most, the greatest first.
    pub readers: Vec<ReaderGroup>,
    /// Over how many seconds the rates of `readers` are means.
    pub seconds: f64,
}

/// A file that is read much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotFile {
    /// Its path at the filer when it was first read; `null` if the kernel has forgotten the file meanwhile. Names of files are whatever
    /// somebody chose: whoever shows this must escape it.
    pub path: Option<String>,
    /// The number of its node in this mount, which `stat` shows as the inode.
    pub node: u64,
    /// Its size in bytes; `null` like `path`.
    pub size: Option<u64>,
    /// Bytes that were read of it, of which half are forgotten in a minute.
    pub bytes: u64,
    /// The same by parts of the file, from its beginning to its end.
    pub cells: Vec<u64>,
    /// Bytes of the file that each of `cells` stands for; the last may have fewer.
    pub cell_bytes: u64,
}

/// Processes of one control group that run one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReaderGroup {
    /// The command, up to 15 bytes. Whatever a process calls itself: whoever shows this must escape it.
    pub command: String,
    /// The control group's path; `id` and its number if that cannot be told any more.
    pub cgroup: String,
    /// How many processes there were, those that have ended included.
    pub processes: u64,
    /// Bytes read at present.
    pub bytes_per_second: f64,
    /// Bytes that were read since the mount is watched.
    pub bytes: u64,
    /// Of these, bytes that the daemon had to be asked for.
    pub requested_bytes: u64,
}
