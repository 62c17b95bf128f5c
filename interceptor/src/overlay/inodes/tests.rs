//! What the table of inodes keeps, closes and finds again.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc::sync_channel;

use super::*;

fn open(path: &std::path::Path) -> (OwnedFd, Attributes) {
    let file: OwnedFd = File::open(path).unwrap().into();
    let attributes = Attributes::of(&file).unwrap();
    (file, attributes)
}

/// The nodes of a directory, and one that has been found in it.
fn nodes_of(dir: &std::path::Path, is_local: bool, name: &str) -> (Nodes, Arc<Node>) {
    let (root, attributes) = open(dir);
    let alarm = sync_channel(1).0;
    let nodes = Nodes::new(root, &attributes, is_local, usize::MAX, alarm).unwrap();
    let node = find(&nodes, &nodes.get(ROOT).unwrap(), dir, name);
    (nodes, node)
}

fn find(nodes: &Nodes, parent: &Arc<Node>, dir: &std::path::Path, name: &str) -> Arc<Node> {
    let (file, attributes) = open(&dir.join(name));
    nodes.found((parent, OsStr::new(name)), file, &attributes).unwrap()
}

#[test]
fn idle_directories_of_a_fuse_mount_are_found_again_by_name_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let outer = dir.path().join("outer");
    fs::create_dir_all(outer.join("inner")).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (nodes, node) = nodes_of(dir.path(), false, "outer");
    let inner = find(&nodes, &node, &outer, "inner").id;
    let file = find(&nodes, &nodes.get(ROOT).unwrap(), dir.path(), "file").id;
    let node = { node }.id;
    let names = nodes.close_idle(usize::MAX);
    assert_eq!(names.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["file"]);
    drop(names);
    assert_eq!(nodes.descriptors.count(), 2, "the root, and the file until the kernel forgets it");
    nodes.forget(file, 1);
    assert_eq!(nodes.descriptors.count(), 1);

    let inner = nodes.get(inner).unwrap();
    let found = Attributes::of(&*inner.file().unwrap()).unwrap();
    assert_eq!(found.number(), open(&outer.join("inner")).1.number());
    assert!(nodes.get(node).unwrap().has_file(), "on the way");
    drop(inner);
    nodes.close_idle(usize::MAX);
    fs::rename(&outer, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&outer).unwrap();
    let error = nodes.get(node).unwrap().file().err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "another has its name");
}

#[test]
fn idle_files_of_a_local_file_system_are_closed_and_found_wherever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let (nodes, node) = nodes_of(dir.path(), true, "file");
    if nodes.descriptors.open_by_handle(&node.key).is_none() {
        return;
    }
    let id = node.id;
    nodes.close_unused();
    assert!(node.has_file(), "it was used just now");
    let long_ago = Instant::now() - 2 * IDLE_TIMEOUT;
    node.held.lock().used = long_ago;
    let open = node.clone();
    nodes.close_unused();
    assert!(node.has_file(), "somebody has it open");
    drop((open, node));
    nodes.close_unused();
    assert!(!nodes.get(id).unwrap().has_file());
    fs::rename(dir.path().join("file"), dir.path().join("renamed")).unwrap();
    let found = Attributes::of(&*nodes.get(id).unwrap().file().unwrap()).unwrap();
    assert_eq!(found.number(), open_at(dir.path(), "renamed"));
    nodes.close_idle(usize::MAX);
    fs::remove_file(dir.path().join("renamed")).unwrap();
    let error = nodes.get(id).unwrap().file().err().unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
}

fn open_at(dir: &std::path::Path, name: &str) -> (u64, u64) {
    open(&dir.join(name)).1.number()
}

#[test]
fn a_name_to_be_forgotten_is_of_the_directory_that_had_it() {
    let dir = tempfile::tempdir().unwrap();
    let outer = dir.path().join("outer");
    fs::create_dir(&outer).unwrap();
    fs::write(outer.join("file"), "").unwrap();
    let (nodes, node) = nodes_of(dir.path(), false, "outer");
    find(&nodes, &node, &outer, "file");
    let id = { node }.id;
    let names = nodes.close_idle(usize::MAX);
    assert_eq!((names.len(), names[0].directory), (1, id));
    nodes.forget(id, 1);
    assert!(nodes.get(id).is_some(), "its number may not become another's yet");
    drop(names);
    assert!(nodes.get(id).is_none());
    assert!(nodes.close_idle(usize::MAX).is_empty(), "the number may be another's");
}

#[test]
fn names_of_a_file_are_one_node_until_it_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    std::fs::write(&a, "").unwrap();
    std::fs::hard_link(&a, &b).unwrap();
    let (root, attributes) = open(dir.path());
    let nodes = Nodes::of_one(root, &attributes);
    let find = |path: &std::path::Path| {
        let (file, attributes) = open(path);
        nodes.found((&nodes.get(ROOT).unwrap(), path.file_name().unwrap()), file, &attributes).unwrap()
    };
    let first = find(&a);
    assert_eq!(first.id, open(&a).1.number().1, "the inode number is the node's");
    assert_eq!(find(&b).id, first.id);
    assert_eq!(first.path().unwrap(), ["b"]);
    let root = nodes.get(ROOT).unwrap();
    assert_eq!(nodes.moved(&first.key, (&root, "c".as_ref())).unwrap().id, first.id);
    assert_eq!(first.path().unwrap(), ["c"]);
    nodes.forget(first.id, 1);
    assert!(nodes.get(first.id).is_some());
    nodes.forget(first.id, 1);
    assert!(nodes.get(first.id).is_none());
    assert_eq!(nodes.len(), 1);
    assert!(find(&a).generation > first.generation);
    nodes.forget(ROOT, 100);
    assert!(nodes.get(ROOT).is_some());
}

#[test]
fn a_number_that_became_another_kind_of_file_is_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let (root, attributes) = open(dir.path());
    let dir_again = File::open(dir.path()).unwrap();
    let nodes = Nodes::of_one(root, &attributes);
    std::fs::write(dir.path().join("file"), "").unwrap();
    let (file, of_file) = open(&dir.path().join("file"));
    let root = nodes.get(ROOT).unwrap();
    let node = nodes.found((&root, OsStr::new("file")), file, &of_file).unwrap();
    // A daemon below gave the number to a directory: as if the table knew the old file under the directory's key.
    let key = FileKey::of(dir_again).unwrap();
    {
        let mut table = nodes.table.lock();
        table.by_key.insert(key, node.id);
    }
    let (directory, of_directory) = open(dir.path());
    let other = nodes.found((&root, OsStr::new("directory")), directory, &of_directory).unwrap();
    assert_ne!(other.id, node.id);
    assert!(nodes.get(node.id).is_some(), "the kernel may still name it");
}

#[test]
fn when_there_are_many_those_go_that_nobody_has_used_for_longest() {
    let dir = tempfile::tempdir().unwrap();
    let (root, attributes) = open(dir.path());
    let (crowded, alarm) = sync_channel(1);
    let nodes = Nodes::new(root, &attributes, false, 10, crowded).unwrap();
    let (root, mut held) = (nodes.get(ROOT).unwrap(), Vec::new());
    for number in 0..20 {
        let name = format!("{number:02}");
        match number {
            0 => fs::create_dir(dir.path().join(&name)).unwrap(),
            _ => fs::write(dir.path().join(&name), "").unwrap(),
        }
        assert_eq!(alarm.try_recv().is_ok(), number > 9);
        let node = find(&nodes, &root, dir.path(), &name);
        // As an open file does.
        if number == 2 {
            held.push(node);
        }
    }
    let names = nodes.relieve();
    let mut names: Vec<_> = names.iter().map(|forgettable| &*forgettable.name).collect();
    names.sort();
    assert_eq!(names, ["01", "03", "04", "05"], "and the directory");
    assert_eq!(nodes.descriptors.count(), 20);
}

#[test]
fn where_files_are_not_found_by_handle_descriptors_stay() {
    // Another user for the file system, on this thread alone: it takes the right to open by
    // handles away.
    let nobody = nix::unistd::Uid::from_raw(65534);
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let mine = nix::unistd::setfsuid(nobody);
    let (nodes, node) = nodes_of(dir.path(), true, "file");
    nix::unistd::setfsuid(mine);
    assert!(!nodes.descriptors.finds_by_handle());
    node.held.lock().used = Instant::now() - 2 * IDLE_TIMEOUT;
    let id = { node }.id;
    nodes.close_unused();
    let names = nodes.close_idle(usize::MAX);
    assert_eq!(names.len(), 1, "the kernel can forget it");
    assert!(nodes.get(id).unwrap().has_file(), "its name may lead elsewhere by now");
}

#[test]
fn a_directory_without_a_descriptor_may_have_lost_its_key_to_another() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["old", "new"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let (nodes, old) = nodes_of(dir.path(), false, "old");
    let old = { old }.id;
    let key = FileKey::of(File::open(dir.path().join("new")).unwrap()).unwrap();
    // As if the daemon below had given it to the other one.
    nodes.table.lock().by_key.insert(key, old);
    nodes.close_idle(usize::MAX);
    assert!(!nodes.get(old).unwrap().has_file());
    let new = find(&nodes, &nodes.get(ROOT).unwrap(), dir.path(), "new");
    assert_ne!(new.id, old);
    assert_eq!(new.number, open_at(dir.path(), "new"));
}
