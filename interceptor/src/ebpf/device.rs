//! Device numbers, which identify mounts in the kernel.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The device number of a mounted file system in the kernel's encoding: 12 bits of major number,
/// 20 of minor. `stat` encodes the same two numbers differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber(u32);

impl DeviceNumber {
    /// The device number of the file system of `path`. Blocks until the daemon answers if that is
    /// a FUSE mount.
    ///
    /// # Errors
    /// If `stat` of the path fails.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_stat(fs::metadata(path)?.dev()))
    }

    /// From the `st_dev` of a file of the mount.
    pub fn from_stat(dev: u64) -> Self {
        Self::new(libc::major(dev), libc::minor(dev))
    }

    /// From major and minor number, as in `/proc/self/mountinfo`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self(major << 20 | minor & 0xf_ffff)
    }

    /// From `MAJOR:MINOR`, which [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self::new(major.parse().ok()?, minor.parse().ok()?))
    }

    /// In the kernel's encoding (`super_block.s_dev`).
    pub(super) const fn in_kernel(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 20, self.0 & 0xf_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_kernel_and_text_encodings_agree() {
        for (major, minor) in [(0, 0), (0, 57), (0, 300), (0, 70_000), (259, 3)] {
            let device = DeviceNumber::new(major, minor);
            assert_eq!(DeviceNumber::from_stat(libc::makedev(major, minor)), device);
            assert_eq!(device.to_string(), format!("{major}:{minor}"));
            assert_eq!(DeviceNumber::parse(&device.to_string()), Some(device));
        }
    }
}
