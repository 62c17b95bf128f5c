//! Tests of the inode table: reopening, closing idle descriptors, reuse of numbers and handles.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::sync_channel;

use super::*;

fn open(path: &std::path::Path) -> (OwnedFd, Attributes) {
    let file: OwnedFd = File::open(path).unwrap().into();
    let attributes = Attributes::of(&file).unwrap();
    (file, attributes)
}

/// The inodes of a directory, and one found in it.
fn inodes_of(dir: &std::path::Path, is_local: bool, name: &str) -> (InodeTable, Arc<Inode>) {
    let (root, attributes) = open(dir);
    let signal = sync_channel(1).0;
    let inodes = InodeTable::new(root, &attributes, is_local, FdLimits::of(u64::MAX), signal).unwrap();
    let inode = find(&inodes, &inodes.get(ROOT).unwrap(), dir, name);
    (inodes, inode)
}

fn find(inodes: &InodeTable, parent: &Arc<Inode>, dir: &std::path::Path, name: &str) -> Arc<Inode> {
    let (file, attributes) = open(&dir.join(name));
    inodes.insert((parent, OsStr::new(name)), file, &attributes).unwrap()
}

#[test]
fn idle_directories_of_a_fuse_mount_are_reopened_by_name_or_fail_with_estale() {
    let dir = tempfile::tempdir().unwrap();
    let outer = dir.path().join("outer");
    fs::create_dir_all(outer.join("inner")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (inodes, inode) = inodes_of(dir.path(), false, "outer");
    let inner = find(&inodes, &inode, &outer, "inner").id;
    let file = find(&inodes, &inodes.get(ROOT).unwrap(), dir.path(), "file").id;
    let inode = { inode }.id;
    let names = inodes.close_idle(usize::MAX);
    assert_eq!(names.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["file"]);
    drop(names);
    assert_eq!(inodes.fds.count(), 2, "the root, and the file until the kernel forgets it");
    inodes.forget(file, 1);
    assert_eq!(inodes.fds.count(), 1);

    let inner = inodes.get(inner).unwrap();
    let found = Attributes::of(&*inner.fd().unwrap()).unwrap();
    assert_eq!(found.dev_ino(), open(&outer.join("inner")).1.dev_ino());
    assert!(inodes.get(inode).unwrap().has_fd(), "reopened on the way");
    drop(inner);
    inodes.close_idle(usize::MAX);
    fs::rename(&outer, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&outer).unwrap();
    let error = inodes.get(inode).unwrap().fd().err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "another has its name");
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn idle_files_of_a_local_file_system_are_closed_and_reopened_after_a_rename() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (inodes, inode) = inodes_of(dir.path(), true, "file");
    if inodes.fds.open_by_handle(&inode.handle).is_none() {
        return crate::skipped("to open files by handle takes CAP_DAC_READ_SEARCH");
    }
    let id = inode.id;
    inodes.close_idle_fds();
    assert!(inode.has_fd(), "it was used just now");
    let long_ago = Instant::now() - 2 * IDLE_TIMEOUT;
    inode.slot.lock().last_used = long_ago;
    let open = inode.clone();
    inodes.close_idle_fds();
    assert!(inode.has_fd(), "a handle is open");
    drop((open, inode));
    inodes.close_idle_fds();
    assert!(!inodes.get(id).unwrap().has_fd());
    fs::rename(dir.path().join("file"), dir.path().join("renamed")).unwrap();
    let found = Attributes::of(&*inodes.get(id).unwrap().fd().unwrap()).unwrap();
    assert_eq!(found.dev_ino(), open_at(dir.path(), "renamed"));
    inodes.close_idle(usize::MAX);
    fs::remove_file(dir.path().join("renamed")).unwrap();
    let error = inodes.get(id).unwrap().fd().err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
}

fn open_at(dir: &std::path::Path, name: &str) -> (u64, u64) {
    open(&dir.join(name)).1.dev_ino()
}

#[test]
fn an_evictable_dentry_keeps_its_directorys_number() {
    let dir = tempfile::tempdir().unwrap();
    let outer = dir.path().join("outer");
    fs::create_dir(&outer).unwrap();
    fs::write(outer.join("file"), "").unwrap();
    let (inodes, inode) = inodes_of(dir.path(), false, "outer");
    find(&inodes, &inode, &outer, "file");
    let id = { inode }.id;
    let names = inodes.close_idle(usize::MAX);
    assert_eq!((names.len(), names[0].directory), (1, id));
    inodes.forget(id, 1);
    assert!(inodes.get(id).is_some(), "its number may not become another's yet");
    drop(names);
    assert!(inodes.get(id).is_none());
    assert!(inodes.close_idle(usize::MAX).is_empty(), "the number may be another's");
}

#[test]
fn hard_links_share_one_inode_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, "").unwrap();
    std::fs::hard_link(&a, &b).unwrap();
    let (root, attributes) = open(dir.path());
    let inodes = InodeTable::of_one(root, &attributes);
    let find = |path: &std::path::Path| {
        let (file, attributes) = open(path);
        inodes.insert((&inodes.get(ROOT).unwrap(), path.file_name().unwrap()), file, &attributes).unwrap()
    };
    let first = find(&a);
    assert_eq!(first.id, open(&a).1.dev_ino().1, "the file number is the inode's");
    assert_eq!(find(&b).id, first.id);
    assert_eq!(first.path().unwrap(), ["b"]);
    let root = inodes.get(ROOT).unwrap();
    assert_eq!(inodes.relocate(&first.handle, (&root, "c".as_ref())).unwrap().id, first.id);
    assert_eq!(first.path().unwrap(), ["c"]);
    inodes.forget(first.id, 1);
    assert!(inodes.get(first.id).is_some());
    inodes.forget(first.id, 1);
    assert!(inodes.get(first.id).is_none());
    assert_eq!(inodes.len(), 1);
    assert!(find(&a).generation > first.generation);
    inodes.forget(ROOT, 100);
    assert!(inodes.get(ROOT).is_some());
}

#[test]
fn a_handle_reused_for_another_file_type_is_another_inode() {
    let dir = tempfile::tempdir().unwrap();
    let (root, attributes) = open(dir.path());
    let dir_again = File::open(dir.path()).unwrap();
    let inodes = InodeTable::of_one(root, &attributes);
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (file, of_file) = open(&dir.path().join("file"));
    let root = inodes.get(ROOT).unwrap();
    let inode = inodes.insert((&root, OsStr::new("file")), file, &of_file).unwrap();
    // As if a lower daemon had given the file's handle to a directory.
    let handle = FileHandle::of(dir_again).unwrap();
    {
        let mut index = inodes.index.lock();
        index.handle_to_id.insert(handle, inode.id);
    }
    let (directory, of_directory) = open(dir.path());
    let other = inodes.insert((&root, OsStr::new("directory")), directory, &of_directory).unwrap();
    assert_ne!(other.id, inode.id);
    assert!(inodes.get(inode.id).is_some(), "the kernel may still name it");
}

#[test]
fn above_the_limit_the_least_recently_used_idle_inodes_are_reclaimed() {
    let dir = tempfile::tempdir().unwrap();
    let (root, attributes) = open(dir.path());
    let (over_limit, signal) = sync_channel(1);
    let inodes =
        InodeTable::new(root, &attributes, false, FdLimits { inodes: 10, requests: usize::MAX }, over_limit)
            .unwrap();
    let (root, mut held) = (inodes.get(ROOT).unwrap(), Vec::new());
    for number in 0..20 {
        let name = format!("{number:02}");
        match number {
            0 => fs::create_dir(dir.path().join(&name)).unwrap(),
            _ => fs::write(dir.path().join(&name), "").unwrap(),
        }
        assert_eq!(signal.try_recv().is_ok(), number > 9);
        let inode = find(&inodes, &root, dir.path(), &name);
        // An open file keeps a reference, too.
        if number == 2 {
            held.push(inode);
        }
    }
    let names = inodes.reclaim();
    let mut names: Vec<_> = names.iter().map(|forgettable| &*forgettable.name).collect();
    names.sort();
    assert_eq!(names, ["01", "03", "04", "05"], "and the directory");
    assert_eq!(inodes.fds.count(), 20);
}

#[test]
fn descriptors_stay_open_where_handles_cannot_be_opened() {
    // Another file system uid, on this thread alone, takes `CAP_DAC_READ_SEARCH` away.
    let nobody = nix::unistd::Uid::from_raw(65534);
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let mine = nix::unistd::setfsuid(nobody);
    let (inodes, inode) = inodes_of(dir.path(), true, "file");
    nix::unistd::setfsuid(mine);
    assert!(!inodes.fds.can_open_by_handle());
    inode.slot.lock().last_used = Instant::now() - 2 * IDLE_TIMEOUT;
    let id = { inode }.id;
    inodes.close_idle_fds();
    let names = inodes.close_idle(usize::MAX);
    assert_eq!(names.len(), 1, "the kernel can forget it");
    assert!(inodes.get(id).unwrap().has_fd(), "its name may lead elsewhere by now");
}

#[test]
fn a_directory_without_a_descriptor_may_have_lost_its_handle() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["old", "new"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let (inodes, old) = inodes_of(dir.path(), false, "old");
    let old = { old }.id;
    let handle = FileHandle::of(File::open(dir.path().join("new")).unwrap()).unwrap();
    // As if the lower daemon had given the old directory's handle to the new one.
    inodes.index.lock().handle_to_id.insert(handle, old);
    inodes.close_idle(usize::MAX);
    assert!(!inodes.get(old).unwrap().has_fd());
    let new = find(&inodes, &inodes.get(ROOT).unwrap(), dir.path(), "new");
    assert_ne!(new.id, old);
    assert_eq!(new.dev_ino, open_at(dir.path(), "new"));
}

#[test]
fn requests_leave_the_last_descriptors_to_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (root, attributes) = open(dir.path());
    // None is left for requests.
    let limits = FdLimits { inodes: usize::MAX, requests: 0 };
    let inodes = InodeTable::new(root, &attributes, false, limits, sync_channel(1).0).unwrap();
    let opened = inodes.with_fd_reclaim(|| File::open(dir.path().join("file")));
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EMFILE));
    let file = find(&inodes, &inodes.get(ROOT).unwrap(), dir.path(), "file");
    inodes.close_idle(usize::MAX);
    file.slot.lock().fd = None;
    assert_eq!(file.fd().err().and_then(|error| error.raw_os_error()), Some(libc::EMFILE));
    assert!(!file.has_fd(), "it would keep the descriptor");
    for (process, inodes, requests) in [(64, 32, 48), (1024, 512, 768), (20_000, 10_000, 19_744)] {
        let limits = FdLimits::of(process);
        assert_eq!((limits.inodes, limits.requests), (inodes, requests));
    }
}
