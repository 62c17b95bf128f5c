//! What the tests of this module share.

use std::io::Write;

use super::tmpfs::{PrivateTmpfs, TmpfsError};

/// A file system of `size` bytes, or none, and the test is counted as skipped, where the right to make one is missing.
pub(super) fn private_tmpfs(size: u64) -> Option<PrivateTmpfs> {
    match PrivateTmpfs::new(size) {
        Ok(tmpfs) => Some(tmpfs),
        Err(error @ (TmpfsError::NotPermitted | TmpfsError::NotSupported)) => {
            let thread = std::thread::current();
            // Not by `eprintln!`, which the test harness keeps to itself.
            let name = thread.name().unwrap_or("main");
            writeln!(std::io::stderr(), "skipped: {name}: {error}").expect("standard error is open");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
