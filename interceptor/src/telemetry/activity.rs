//! The hottest files and the readers of a mount, from eBPF. Shown to people, never used as labels
//! of a metric.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The current activity of a mount.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Activity {
    /// The files with the most heat, hottest first.
    pub hottest: Vec<HotFile>,
    /// The readers, highest rate first.
    pub readers: Vec<ReaderGroup>,
    /// The rates of `readers` are means over this many seconds.
    pub seconds: f64,
}

/// A file with heat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotFile {
    /// The path at the filer when the file was first read; `null` if the kernel no longer knows
    /// the node. Untrusted text: escape it before showing it.
    pub path: Option<String>,
    /// The FUSE node, which `stat` shows as the inode number.
    pub node: u64,
    /// The size in bytes; `null` like `path`.
    pub size: Option<u64>,
    /// Bytes read of it, which decay by half in a minute.
    pub bytes: u64,
    /// The same bytes by equal parts of the file, from its beginning.
    pub cells: Vec<u64>,
    /// Bytes of the file in each of `cells`; the last may have fewer.
    pub cell_bytes: u64,
}

/// The processes of one control group that run one command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReaderGroup {
    /// The command name, up to 15 bytes, which the process chooses. Untrusted text: escape it
    /// before showing it.
    pub command: String,
    /// The path of the control group; `id` and its number if the group is gone.
    pub cgroup: String,
    /// The number of processes, including those that have ended.
    pub processes: u64,
    /// Bytes read per second, over `seconds` of the [`Activity`].
    pub bytes_per_second: f64,
    /// Bytes read since the mount is watched.
    pub bytes: u64,
    /// The part of these that the kernel requested from the daemon.
    pub requested_bytes: u64,
}
