//! Decodes the filer's file modes, which are those of Go's `os.FileMode` and not those of `stat`.

use crate::seaweed::entry::FileKind;

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const NAMED_PIPE: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHAR_DEVICE: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const IRREGULAR: u32 = 1 << 19;
const TYPE: u32 = DIR | SYMLINK | DEVICE | NAMED_PIPE | SOCKET | CHAR_DEVICE | IRREGULAR;

/// The kind of file. As in `weed mount`, the type bits count as one value, and any other value is
/// a regular file.
pub(super) fn kind(mode: u32) -> FileKind {
    match mode & TYPE {
        DIR => FileKind::Directory,
        SYMLINK => FileKind::Symlink,
        NAMED_PIPE => FileKind::NamedPipe,
        SOCKET => FileKind::Socket,
        DEVICE => FileKind::BlockDevice,
        CHAR_DEVICE => FileKind::CharDevice,
        _ => FileKind::File,
    }
}

/// The permission bits of `stat` (`07777`): those of Go, and those that `chmod` on a mount leaves
/// in the low twelve bits.
pub(super) fn permissions(mode: u32) -> u16 {
    let low = (mode & 0o7777) as u16;
    let go = [(SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000)];
    go.iter().filter(|(bit, _)| mode & bit != 0).fold(low, |perm, (_, posix)| perm | posix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_bits_are_one_value() {
        assert_eq!(kind(DIR | 0o755), FileKind::Directory);
        assert_eq!(kind(SYMLINK | 0o777), FileKind::Symlink);
        assert_eq!(kind(NAMED_PIPE), FileKind::NamedPipe);
        assert_eq!(kind(SOCKET), FileKind::Socket);
        assert_eq!(kind(DEVICE), FileKind::BlockDevice);
        assert_eq!(kind(CHAR_DEVICE), FileKind::CharDevice);
        assert_eq!(kind(0o100644), FileKind::File);
        assert_eq!(kind(DEVICE | CHAR_DEVICE), FileKind::File);
        assert_eq!(kind(DIR | SETGID | STICKY), FileKind::Directory);
    }

    #[test]
    fn set_id_and_sticky_bits_of_go_and_of_stat_both_count() {
        assert_eq!(permissions(SETUID | 0o755), 0o4755);
        assert_eq!(permissions(SETGID | STICKY | 0o700), 0o3700);
        assert_eq!(permissions(DIR | 0o1777), 0o1777);
        assert_eq!(permissions(0o100644), 0o644);
    }
}
