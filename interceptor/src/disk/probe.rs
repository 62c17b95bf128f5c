//! Asks the disk now and then whether it still gives bytes.
//!
//! The kernel reads complete files without the daemon, which would not learn that their disk has
//! begun to fail or hang: each program that opens such a file would get the disk's errors. So opens
//! have a sector read from the disk itself, past the page cache, and while that fails no file is
//! handed to the kernel; reads of the daemon find another source.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::format::SECTOR;

/// For how long an answer of the disk counts.
const ANSWER_LIFETIME: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Where memory and files have to begin for reads past the page cache: that of all common disks.
const DIRECT_ALIGNMENT: usize = 4096;

/// What is known of a disk.
#[derive(Debug)]
pub(super) struct DiskProbe(Mutex<ProbeState>);

#[derive(Debug)]
struct ProbeState {
    /// When the question was asked that is not answered yet.
    asked: Option<Instant>,
    /// When the last answer came.
    answered: Option<Instant>,
    /// Whether the last answer was an error.
    has_failed: bool,
}

impl DiskProbe {
    /// Nothing is known yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(ProbeState { asked: None, answered: None, has_failed: false }))
    }

    /// Whether the disk gives bytes, as far as is known.
    pub(super) fn answers(&self) -> bool {
        let state = self.0.lock();
        !state.has_failed && state.asked.is_none_or(|asked| asked.elapsed() < ANSWER_TIMEOUT)
    }

    /// Whether it is time to ask again. If so, the caller asks, and has it [noted](Self::note).
    pub(super) fn is_due(&self) -> bool {
        let mut state = self.0.lock();
        let is_due = state.asked.is_none()
            && state.answered.is_none_or(|answered| answered.elapsed() >= ANSWER_LIFETIME);
        if is_due {
            state.asked = Some(Instant::now());
        }
        is_due
    }

    /// Notes what the disk has answered.
    pub(super) fn note(&self, is_good: bool) {
        *self.0.lock() = ProbeState { asked: None, answered: Some(Instant::now()), has_failed: !is_good };
    }
}

/// Reads a sector of `file`, drawn by lot, from the disk itself. A file system without reads past
/// the page cache is taken to be in memory. Blocks.
pub(super) fn ask(file: impl AsFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    match opened.and_then(|file| read_any_sector(&file)) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        read => read,
    }
}

fn read_any_sector(file: &File) -> io::Result<()> {
    let sector = rand::random_range(0..file.metadata()?.len().div_ceil(SECTOR).max(1));
    let mut memory = vec![0; SECTOR as usize + DIRECT_ALIGNMENT];
    let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
    file.read_at(&mut memory[start..start + SECTOR as usize], sector * SECTOR)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_or_does_not_answer_is_left_alone_until_it_answers() {
        let probe = DiskProbe::new();
        assert!(probe.answers() && probe.is_due() && !probe.is_due() && probe.answers());
        probe.note(false);
        assert!(!probe.answers() && !probe.is_due());
        probe.note(true);
        assert!(probe.answers());
        let long_ago = Instant::now() - ANSWER_TIMEOUT;
        probe.0.lock().asked = Some(long_ago);
        assert!(!probe.answers() && !probe.is_due());
        probe.note(true);
        assert!(probe.answers());
    }

    #[test]
    fn a_file_is_read_wherever_it_ends() {
        for len in [0, 1, SECTOR - 1, SECTOR, 5 * SECTOR + 7] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(len).unwrap();
            ask(&file).unwrap();
        }
    }
}
