//! A layer over a FUSE mount whose daemon checks rights by itself, as it does without the option
//! `default_permissions`: what the attributes of a file allow is then of no account.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request, SessionACL,
};
use interceptor::warmup::ticket::READ_TICKET_XATTR;
use tests::user::{as_nobody, xattr};
use tests::{Layer, host};

/// When other users than root are turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Never,
    AtAccess,
    AtOpen,
}

/// Files with their modes, which say the opposite of what the daemon does.
const FILES: [(&str, u16, Refusal); 3] = [
    ("open", 0o600, Refusal::Never),
    ("closed", 0o644, Refusal::AtOpen),
    ("inaccessible", 0o644, Refusal::AtAccess),
];
const CONTENT: &[u8] = b"content";
const TTL: Duration = Duration::from_secs(1);

struct OwnRights;

impl OwnRights {
    fn attributes(node: INodeNo) -> Option<FileAttr> {
        let (kind, perm) = match node {
            INodeNo::ROOT => (FileType::Directory, 0o755),
            _ => (FileType::RegularFile, file(node)?.1),
        };
        let (uid, gid, rdev, flags, nlink) = (0, 0, 0, 0, 1);
        let [atime, mtime, ctime, crtime] = [UNIX_EPOCH; 4];
        let (size, blocks, blksize) = (CONTENT.len() as u64, 1, 512);
        Some(FileAttr {
            ino: node,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize,
            flags,
        })
    }
}

/// The file with this number: the first has the one after the root's.
fn file(node: INodeNo) -> Option<&'static (&'static str, u16, Refusal)> {
    FILES.get(usize::try_from(node.0).ok()?.checked_sub(2)?)
}

fn is_refused(request: &Request, node: INodeNo, at: Refusal) -> bool {
    request.uid() != 0 && file(node).is_some_and(|(.., refusal)| *refusal == at)
}

impl Filesystem for OwnRights {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let at = FILES.iter().position(|(known, ..)| name == *known);
        match at.and_then(|at| Self::attributes(INodeNo(at as u64 + 2))) {
            Some(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match Self::attributes(node) {
            Some(attributes) => reply.attr(&TTL, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn access(&self, request: &Request, node: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        match is_refused(request, node, Refusal::AtAccess) {
            true => reply.error(Errno::EACCES),
            false => reply.ok(),
        }
    }

    fn open(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match is_refused(request, node, Refusal::AtOpen) {
            true => reply.error(Errno::EACCES),
            false => reply.opened(FileHandle(0), FopenFlags::empty()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(CONTENT.get(offset as usize..).unwrap_or_default());
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_below_that_checks_rights_itself_decides_who_gets_a_ticket() {
    if !host::can_mount() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let path = home.path().join("mnt");
    fs::create_dir(&path).unwrap();
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    let below = fuser::spawn_mount(OwnRights, &path, &config).unwrap();
    let readable = || FILES.map(|(name, ..)| as_nobody(|| File::open(path.join(name))).is_ok());
    assert_eq!(readable(), [true, false, true], "below");

    let layer = Layer::over(&path, ["--read-cache", "on"]).unwrap();
    assert_eq!(readable(), [true, false, true]);
    let ticket = |name| xattr(&path.join(name), READ_TICKET_XATTR);
    for (name, _, refusal) in FILES {
        // Other users may read it too: the kernel may have cached the name by then.
        assert!(ticket(name).is_ok(), "root may read {name}");
        let of_nobody = as_nobody(|| ticket(name));
        match refusal {
            Refusal::Never => assert_ne!(of_nobody.unwrap(), ticket(name).unwrap(), "it names the user"),
            Refusal::AtAccess | Refusal::AtOpen => assert_eq!(of_nobody, Err(libc::EACCES), "{name}"),
        }
    }
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    below.umount_and_join().unwrap();
}
