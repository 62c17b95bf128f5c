//! The kernel's mount table, `/proc/thread-self/mountinfo`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The mounts that the calling thread sees.
const TABLE: &str = "/proc/thread-self/mountinfo";

/// The mount table, opened in advance: it can be read when no descriptor is left.
#[derive(Debug)]
pub(crate) struct MountTable(File);

impl MountTable {
    /// Opens the table of the mounts that the calling thread sees.
    pub(crate) fn open() -> io::Result<Self> {
        File::open(TABLE).map(Self)
    }

    /// Finds a mount by its ids; it may have been moved since. Also returns whether it is the
    /// topmost mount at its path.
    pub(crate) fn find(&self, mount: &MountInfo) -> io::Result<Option<(MountInfo, bool)>> {
        let table = self.read()?;
        let found = mounts(&table).find(|other| other.id == mount.id && other.device == mount.device);
        Ok(found.map(|found| {
            let is_topmost = topmost_in(&table, &found.path).is_some_and(|top| top.id == found.id);
            (found, is_topmost)
        }))
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut file = &self.0;
        file.rewind()?;
        let mut table = Vec::new();
        file.read_to_end(&mut table)?;
        Ok(table)
    }
}

/// A mount, as the mount table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountInfo {
    /// The mount id, unique among the mounts that exist.
    pub(crate) id: u64,
    /// The id of the mount that this one is mounted on.
    pub(crate) parent: u64,
    pub(crate) path: PathBuf,
    /// The directory of the file system that is mounted there: `/`, or what a bind mount shows.
    pub(crate) root: PathBuf,
    /// `MAJOR:MINOR`, which names the kernel's settings for the mount.
    pub(crate) device: String,
    pub(crate) fs_type: String,
    pub(crate) source: String,
    /// The options of the mount, such as `rw`, `nosuid`, `relatime`.
    pub(crate) options: Vec<String>,
    /// The options of the file system, such as `allow_other`.
    pub(crate) super_options: Vec<String>,
}

impl MountInfo {
    /// Whether root or the user of this process has made it, as the kernel says of FUSE.
    pub(crate) fn is_of_root_or_own(&self) -> bool {
        let users = [0, rustix::process::geteuid().as_raw()];
        users.iter().any(|user| self.super_options.contains(&format!("user_id={user}")))
    }

    /// The topmost mount at `path`, if that is a mount point. Reads the mount table and not the
    /// path, whose file system might not answer.
    pub(crate) fn topmost(path: &Path) -> Option<Self> {
        topmost_in(&std::fs::read(TABLE).ok()?, path)
    }

    /// Every mount, covered or not.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub(crate) fn all() -> io::Result<Vec<Self>> {
        Ok(mounts(&std::fs::read(TABLE)?).collect())
    }

    /// The mount with this id, covered or not.
    pub(crate) fn with_id(id: u64) -> Option<Self> {
        let table = std::fs::read(TABLE).ok()?;
        mounts(&table).find(|mount| mount.id == id)
    }

    /// The mount that covers this one at the same path.
    pub(crate) fn covered_by(&self) -> Option<Self> {
        let table = std::fs::read(TABLE).ok()?;
        mounts(&table).find(|mount| mount.parent == self.id && mount.path == self.path)
    }

    /// The mounts below `path`, covered or not.
    pub(crate) fn submounts(path: &Path) -> Vec<Self> {
        let Ok(table) = std::fs::read(TABLE) else { return Vec::new() };
        mounts(&table).filter(|mount| mount.path != path && mount.path.starts_with(path)).collect()
    }

    /// Whether this is still the topmost mount at its path.
    pub(crate) fn is_topmost(&self) -> bool {
        Self::topmost(&self.path).is_some_and(|other| other.id == self.id && other.device == self.device)
    }

    /// Opens its root (`O_PATH`), if it is the topmost mount at its path. Sends no request to the
    /// file system. The mount is busy until the descriptor is closed.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub(crate) fn open_root(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, &self.path, flags, Mode::empty())?;
        Ok((mount_id(&root)? == self.id).then_some(root))
    }

    /// Resolves when the file system is mounted nowhere any more, as far as this process sees.
    /// Files that are open are still served then.
    ///
    /// # Errors
    /// When the mount table cannot be watched.
    pub(crate) async fn wait_removed(&self) -> io::Result<()> {
        wait_until(|table| mounts(table).all(|mount| mount.device != self.device)).await
    }

    /// Resolves when this mount is gone, although its file system may be mounted elsewhere.
    ///
    /// # Errors
    /// When the mount table cannot be watched.
    pub(crate) async fn wait_unmounted(&self) -> io::Result<()> {
        let is_this = |mount: MountInfo| mount.id == self.id && mount.device == self.device;
        wait_until(|table| !mounts(table).any(is_this)).await
    }

    /// Resolves with the topmost mount at `path` as soon as that is a mount point.
    ///
    /// # Errors
    /// When the mount table cannot be watched.
    pub(crate) async fn wait_mounted(path: &Path) -> io::Result<Self> {
        loop {
            wait_until(|table| topmost_in(table, path).is_some()).await?;
            if let Some(mount) = Self::topmost(path) {
                return Ok(mount);
            }
        }
    }

    /// Sets how far the kernel reads ahead.
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

/// Resolves when the table of the mounts that the process sees is as wanted.
async fn wait_until(is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let table = File::open(TABLE)?;
    // SAFETY: a `File` has the same open descriptor for as long as it lives.
    let changes = unsafe { AsyncFd::register_with_interest(table, Interest::PRIORITY) }?;
    loop {
        if is_wanted(&std::fs::read(TABLE)?) {
            return Ok(());
        }
        changes.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

/// The id of the mount that a descriptor is in.
pub(crate) fn mount_id(file: impl AsFd) -> io::Result<u64> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))?;
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn mounts(table: &[u8]) -> impl DoubleEndedIterator<Item = MountInfo> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// The mount at `path` that no other covers. The order of the table does not tell: a mount can be
/// put beneath an older one.
fn topmost_in(table: &[u8], path: &Path) -> Option<MountInfo> {
    let here: Vec<_> = mounts(table).filter(|mount| mount.path == path).collect();
    let is_covered = |mount: &MountInfo| here.iter().any(|other| other.parent == mount.id);
    here.iter().rfind(|mount| !is_covered(mount)).cloned()
}

/// Parses a line: `36 35 98:0 /root /path options [fields] - type source superoptions`.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let options = |field: &[u8]| text(field).split(',').map(str::to_owned).collect();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    Some(MountInfo {
        id: number(fields.first()?)?,
        parent: number(fields.get(1)?)?,
        path: OsString::from_vec(unescape(fields.get(4)?)).into(),
        root: OsString::from_vec(unescape(fields.get(3)?)).into(),
        device: text(fields.get(2)?),
        fs_type: text(fields.get(separator + 1)?),
        source: text(fields.get(separator + 2)?),
        options: options(fields.get(5)?),
        super_options: options(fields.get(separator + 3)?),
    })
}

/// Decodes blanks, tabs, newlines and backslashes, which the kernel writes as a backslash and
/// three octal digits.
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

    const EXAMPLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        90 22 0:50 / /mnt/a\\040b rw,nosuid - fuse.other x:1/y rw,user_id=0\n\
        91 90 0:51 / /mnt/a\\040b ro,nosuid shared:7 master:2 - fuse.interceptor interceptor:h:1/ ro\n\
        broken line\n";

    #[test]
    fn the_topmost_mount_at_a_path_is_found() {
        let mount = topmost_in(EXAMPLE, Path::new("/mnt/a b")).expect("is in the table");
        assert_eq!((mount.device.as_str(), mount.fs_type.as_str()), ("0:51", "fuse.interceptor"));
        assert_eq!(mount.source, "interceptor:h:1/");
        assert_eq!(
            (mount.options, mount.super_options),
            (vec!["ro".into(), "nosuid".into()], vec!["ro".into()])
        );
        assert_eq!(topmost_in(EXAMPLE, Path::new("/mnt/a")), None);
    }

    #[test]
    fn a_mount_put_beneath_an_older_one_is_not_topmost() {
        let table = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n\
            90 92 0:50 / /mnt/a rw - fuse.old x rw\n\
            92 22 0:51 / /mnt/a rw - fuse.new x rw\n";
        let mount = topmost_in(table, Path::new("/mnt/a")).expect("is in the table");
        assert_eq!((mount.id, mount.parent, mount.device.as_str()), (90, 92, "0:50"));
    }

    proptest::proptest! {
        #[test]
        fn any_table_is_parsed(table: Vec<u8>) {
            let _ = topmost_in(&table, Path::new("/"));
        }
    }
}
