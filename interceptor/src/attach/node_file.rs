//! What a descriptor made with `O_PATH` cannot do by itself is done through its name in `/proc`.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// A path that leads to the file itself, whatever its name has become; links are not followed further.
pub(super) fn proc_path(file: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}
