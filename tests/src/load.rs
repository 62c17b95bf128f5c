//! Applications that read a mount until they are stopped.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::process::Process;

/// Reading programs; they end with this value.
#[derive(Debug)]
pub struct Load {
    _readers: Vec<Process>,
    _logs: TempDir,
}

impl Load {
    /// Starts a shell for each of `lines`, which runs it again and again with pauses of a tenth of
    /// a second; `$1` is the file.
    ///
    /// # Errors
    /// When no shell can be started.
    pub fn start(lines: &[(&str, &Path)]) -> anyhow::Result<Load> {
        let logs = tempfile::Builder::new().prefix("interceptor-load-").tempdir()?;
        let reader = |(index, (line, file)): (usize, &(&str, &Path))| {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("while :; do {line}; sleep 0.1; done"), "reader"]).arg(file);
            let log = logs.path().join(index.to_string());
            Process::start(command, &log, Duration::from_secs(2), Signal::SIGKILL)
        };
        let readers = lines.iter().enumerate().map(reader).collect::<anyhow::Result<_>>()?;
        Ok(Load { _readers: readers, _logs: logs })
    }
}

/// Reads the whole file through the page cache.
pub const SEQUENTIAL: &str = "cat \"$1\" >/dev/null";
/// Reads the whole file round the page cache.
pub const DIRECT: &str = "dd if=\"$1\" of=/dev/null bs=1M iflag=direct 2>/dev/null";
/// Reads the whole file after its pages were dropped from the page cache.
pub const FORGETFUL: &str =
    "dd if=\"$1\" iflag=nocache count=0 2>/dev/null; dd if=\"$1\" of=/dev/null bs=256k 2>/dev/null";
/// Reads eight MiB from somewhere in a file of 256 MiB.
pub const SOMEWHERE: &str = "dd if=\"$1\" of=/dev/null bs=1M count=8 iflag=direct \
                             skip=$(awk 'BEGIN { srand(); print int(rand() * 248) }') 2>/dev/null";
