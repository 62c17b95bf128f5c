//! What the kernel says is mounted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount, by its place and its device number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountedAt {
    pub(crate) path: PathBuf,
    /// `MAJOR:MINOR`, by which the kernel's settings for it are found.
    pub(crate) device: String,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    /// How this place is mounted, such as `rw`, `nosuid`, `relatime`.
    pub(crate) options: Vec<String>,
    /// What the file system itself was told, such as `allow_other`.
    pub(crate) super_options: Vec<String>,
}

impl MountedAt {
    /// The mount that is seen at `path`, if that is a mount point. Asks the kernel's table and not the path, which
    /// might not answer.
    pub(crate) fn topmost(path: &Path) -> Option<Self> {
        let table = std::fs::read("/proc/self/mountinfo").ok()?;
        topmost_in(&table, path)
    }

    /// The mounts below `path`, whether they can be seen or not.
    pub(crate) fn below(path: &Path) -> Vec<Self> {
        let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return Vec::new() };
        let is_below = |mount: &Self| mount.path != path && mount.path.starts_with(path);
        table.split(|byte| *byte == b'\n').filter_map(parse_line).filter(is_below).collect()
    }

    /// Whether it is still what is seen at its place.
    pub(crate) fn is_there(&self) -> bool {
        Self::topmost(&self.path).is_some_and(|other| other.device == self.device)
    }

    /// Has the kernel read ahead further than it does by itself.
    pub(crate) fn set_read_ahead(&self, kib: u32) {
        let setting = format!("/sys/class/bdi/{}/read_ahead_kb", self.device);
        if let Err(error) = std::fs::write(&setting, kib.to_string()) {
            tracing::warn!(
                %error,
                "cannot set the kernel's readahead, sequential reads are slower; as root: echo {kib} > {setting}"
            );
        }
    }
}

fn topmost_in(table: &[u8], path: &Path) -> Option<MountedAt> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).rfind(|mount| mount.path == path)
}

/// One line: `36 35 98:0 /root /place options [fields] - type source superoptions`.
fn parse_line(line: &[u8]) -> Option<MountedAt> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let options = |field: &[u8]| text(field).split(',').map(str::to_owned).collect();
    Some(MountedAt {
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        device: text(fields.get(2)?),
        fs_type: text(fields.get(separator + 1)?),
        source: text(fields.get(separator + 2)?),
        options: options(fields.get(5)?),
        super_options: options(fields.get(separator + 3)?),
    })
}

/// The kernel writes blanks, tabs, newlines and backslashes as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        90 22 0:50 / /mnt/a\\040b rw,nosuid - fuse.other x:1/y rw,user_id=0\n\
        91 90 0:51 / /mnt/a\\040b ro,nosuid shared:7 master:2 - fuse.interceptor interceptor:h:1/ ro\n\
        broken line\n";

    #[test]
    fn the_last_mount_at_a_place_is_the_one_seen() {
        let mount = topmost_in(TABLE, Path::new("/mnt/a b")).expect("is in the table");
        assert_eq!((mount.device.as_str(), mount.fs_type.as_str()), ("0:51", "fuse.interceptor"));
        assert_eq!(mount.source, "interceptor:h:1/");
        assert_eq!(
            (mount.options, mount.super_options),
            (vec!["ro".into(), "nosuid".into()], vec!["ro".into()])
        );
        assert_eq!(topmost_in(TABLE, Path::new("/mnt/a")), None);
    }

    proptest::proptest! {
        #[test]
        fn any_table_is_read(table: Vec<u8>) {
            let _ = topmost_in(&table, Path::new("/"));
        }
    }
}
