//! The limit on open descriptors. Our own few lines over `setrlimit`: a crate for it (`rlimit`,
//! `fdlimit`) raises the soft limit alone, and a supervisor of many mounts needs the kernel's
//! maximum.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of this process as far as its hard limit. Returns the limit then;
/// `u64::MAX` means none.
pub fn raise_limit() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum;
    // If it cannot be raised, the old limit stays.
    let _ = set_limit(hard);
    limit()
}

/// Raises the limit to the most that the kernel allows any process, or, without the right to that
/// (`CAP_SYS_RESOURCE`), as far as the hard limit. Returns the limit then; `u64::MAX` means none.
pub fn raise_hard_limit() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum;
    let kernel = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    if let Err(error) = set_limit(kernel.or(hard)).or_else(|_| set_limit(hard)) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    limit()
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn set_limit(limit: Option<u64>) -> io::Result<()> {
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert_eq!(raise_limit(), hard);
        assert!(raise_hard_limit() >= hard);
    }
}
