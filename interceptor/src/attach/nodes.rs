//! The files that the kernel knows, by the number it knows them by.
//!
//! A node is one file of the mount below: a descriptor of it (`O_PATH`), which keeps it from being freed, and its [key](FileKey) from becoming another's,
//! as long as the kernel may name it. All names of a file are one node. The number of a node is the inode number
//! of the file, so that `stat` shows what the mount below shows; where that cannot be (another device, a number taken
//! meanwhile by a daemon below that gave it to another file) it is one from above [`OWN`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use parking_lot::Mutex;
use rustix::fs::FileType;

use super::attributes::Attributes;
use super::coherence::Content;
use super::file_key::FileKey;
use crate::warmup::ticket::NodeInstance;

/// The number of the root.
pub(super) const ROOT: u64 = 1;

/// From here on numbers are our own.
const OWN: u64 = 1 << 63;

/// One file.
pub(super) struct Node {
    pub(super) id: u64,
    /// Tells it from others that had the number before.
    pub(super) generation: u64,
    pub(super) file_type: FileType,
    pub(super) key: FileKey,
    file: OwnedFd,
    /// Where it was found last: the number of the directory, and the name in it.
    home: Mutex<(u64, OsString)>,
    /// Whether an open was sent back because the name leads elsewhere.
    doubted: AtomicBool,
    /// What is known of its bytes, if it has some.
    pub(super) content: Content,
}

impl Node {
    /// This use of its number.
    pub(super) fn instance(&self) -> NodeInstance {
        NodeInstance { node: self.id, serial: self.generation }
    }

    /// Where it was found last: the number of the directory, and the name in it.
    pub(super) fn home(&self) -> (u64, OsString) {
        self.home.lock().clone()
    }

    /// Whether the file that has its name now is another, and nobody was told of that since it was found.
    pub(super) fn is_replaced_by(&self, other: &FileKey) -> bool {
        self.key != *other && !self.doubted.swap(true, Ordering::Relaxed)
    }

    fn is_at(&self, parent: u64, name: &OsStr) {
        *self.home.lock() = (parent, name.to_owned());
        self.doubted.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

struct Known {
    node: Arc<Node>,
    /// How often the kernel was told of it, less how often it has forgotten that.
    lookups: u64,
}

struct Table {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<FileKey, u64>,
    /// The device of the root.
    device: u64,
    next_own: u64,
    next_generation: u64,
}

/// All nodes.
pub(super) struct Nodes {
    table: Mutex<Table>,
    /// The number of nodes at which `crowded` is told.
    most: usize,
    crowded: SyncSender<()>,
}

impl Nodes {
    /// Only the root, which is never forgotten. When there are more than `most`, `crowded` is told.
    ///
    /// # Errors
    /// When the mount below does not tell which file its root is.
    pub(super) fn new(
        root: OwnedFd,
        attributes: &Attributes,
        most: usize,
        crowded: SyncSender<()>,
    ) -> io::Result<Self> {
        let key = FileKey::of(&root)?;
        let node = Arc::new(Node {
            id: ROOT,
            generation: 0,
            file_type: FileType::Directory,
            key: key.clone(),
            file: root,
            home: Mutex::new((ROOT, OsString::new())),
            doubted: AtomicBool::new(false),
            content: Content::default(),
        });
        let table = Mutex::new(Table {
            by_id: HashMap::from([(ROOT, Known { node, lookups: 1 })]),
            by_key: HashMap::from([(key, ROOT)]),
            device: attributes.number().0,
            next_own: OWN,
            next_generation: 1,
        });
        Ok(Self { table, most, crowded })
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.table.lock().by_id.get(&id).map(|known| known.node.clone())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.lock().by_id.len()
    }

    /// The node of a file that was found as `name` in the directory `parent`, counting one lookup of it.
    pub(super) fn found(
        &self,
        (parent, name): (u64, &OsStr),
        file: OwnedFd,
        attributes: &Attributes,
    ) -> io::Result<Arc<Node>> {
        let (key, file_type) = (FileKey::of(&file)?, attributes.file_type());
        let mut table = self.table.lock();
        let table = &mut *table;
        if let Some(known) = table.by_key.get(&key).and_then(|id| table.by_id.get_mut(id))
            && known.node.file_type == file_type
        {
            known.lookups += 1;
            if known.node.id != ROOT {
                known.node.is_at(parent, name);
            }
            return Ok(known.node.clone());
        }
        let id = table.free_id(attributes.number());
        let generation = table.next_generation;
        table.next_generation += 1;
        let home = Mutex::new((parent, name.to_owned()));
        let (doubted, content) = (AtomicBool::new(false), Content::default());
        let node = Node { id, generation, file_type, key: key.clone(), file, home, doubted, content };
        let node = Arc::new(node);
        table.by_id.insert(id, Known { node: node.clone(), lookups: 1 });
        table.by_key.insert(key, id);
        if table.by_id.len() > self.most {
            // Full: somebody has said so before.
            let _ = self.crowded.try_send(());
        }
        Ok(node)
    }

    /// The kernel knows the file by another name now, `name` in the directory `parent`, without having looked for it there. Returns its node.
    pub(super) fn moved(&self, key: &FileKey, (parent, name): (u64, &OsStr)) -> Option<Arc<Node>> {
        let table = self.table.lock();
        let node = &table.by_key.get(key).and_then(|id| table.by_id.get(id))?.node;
        node.is_at(parent, name);
        Some(node.clone())
    }

    /// Whether there are more than there should be.
    pub(super) fn is_crowded(&self) -> bool {
        self.len() > self.most
    }

    /// The names of the files that the kernel should forget: those that it has known longest, that nobody has open, a quarter of all.
    pub(super) fn long_known(&self) -> Vec<(u64, OsString)> {
        let table = self.table.lock();
        let idle = |known: &&Known| {
            known.node.file_type != FileType::Directory && Arc::strong_count(&known.node) == 1
        };
        let mut idle: Vec<_> = table.by_id.values().filter(idle).map(|known| &known.node).collect();
        let enough = (table.by_id.len() / 4).min(idle.len());
        if enough < idle.len() {
            idle.select_nth_unstable_by_key(enough, |node| node.generation);
        }
        idle[..enough].iter().map(|node| node.home()).collect()
    }

    /// The kernel forgot `count` of the lookups it was told of.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let gone = {
            let mut table = self.table.lock();
            let Some(known) = table.by_id.get_mut(&id) else { return };
            known.lookups = known.lookups.saturating_sub(count);
            if known.lookups > 0 || id == ROOT {
                return;
            }
            let gone = table.by_id.remove(&id);
            if let Some(known) = &gone
                && table.by_key.get(&known.node.key) == Some(&id)
            {
                table.by_key.remove(&known.node.key);
            }
            gone
        };
        // Closing a descriptor may ask the mount below, so not under the lock.
        drop(gone);
    }

    /// The names that lead from the root to a file, as far as is known: of a rename by another way one hears at the next lookup.
    pub(super) fn path(&self, node: &Node) -> Option<Vec<OsString>> {
        let table = self.table.lock();
        let mut names = Vec::new();
        let (mut id, mut home) = (node.id, node.home());
        while id != ROOT {
            // Renames may have made a circle of what is remembered.
            if names.len() > DEEPEST {
                return None;
            }
            names.push(home.1);
            let parent = &table.by_id.get(&home.0)?.node;
            id = parent.id;
            home = parent.home();
        }
        names.reverse();
        Some(names)
    }
}

impl Nodes {
    /// The same for people.
    pub(super) fn shown_path(&self, node: &Node) -> Option<String> {
        let names = self.path(node)?;
        Some(names.iter().fold(String::new(), |path, name| path + "/" + &name.to_string_lossy()))
    }
}

/// Names in a path that is still looked at; `PATH_MAX` has room for as many.
const DEEPEST: usize = 2048;

impl Table {
    fn free_id(&mut self, (device, inode): (u64, u64)) -> u64 {
        if device == self.device && inode > ROOT && inode < OWN && !self.by_id.contains_key(&inode) {
            return inode;
        }
        self.next_own += 1;
        self.next_own
    }
}

#[cfg(test)]
impl Nodes {
    /// Without a bound.
    pub(super) fn of_one(root: OwnedFd, attributes: &Attributes) -> Self {
        Self::new(root, attributes, usize::MAX, super::remembered::alarm().0).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn open(path: &std::path::Path) -> (OwnedFd, Attributes) {
        let file: OwnedFd = File::open(path).unwrap().into();
        let attributes = Attributes::of(&file).unwrap();
        (file, attributes)
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
            nodes.found((ROOT, path.file_name().unwrap()), file, &attributes).unwrap()
        };
        let first = find(&a);
        assert_eq!(first.id, open(&a).1.number().1, "the inode number is the node's");
        assert_eq!(find(&b).id, first.id);
        assert_eq!(nodes.path(&first).unwrap(), ["b"]);
        assert_eq!(nodes.moved(&first.key, (ROOT, "c".as_ref())).unwrap().id, first.id);
        assert_eq!(nodes.path(&first).unwrap(), ["c"]);
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
        let node = nodes.found((ROOT, OsStr::new("file")), file, &of_file).unwrap();
        // A daemon below gave the number to a directory: as if the table knew the old file under the directory's key.
        let key = FileKey::of(dir_again).unwrap();
        {
            let mut table = nodes.table.lock();
            table.by_key.insert(key, node.id);
        }
        let (directory, of_directory) = open(dir.path());
        let other = nodes.found((ROOT, OsStr::new("directory")), directory, &of_directory).unwrap();
        assert_ne!(other.id, node.id);
        assert!(nodes.get(node.id).is_some(), "the kernel may still name it");
    }

    #[test]
    fn when_there_are_many_the_oldest_files_that_nobody_has_open_should_go() {
        let dir = tempfile::tempdir().unwrap();
        let (root, attributes) = open(dir.path());
        let (crowded, alarm) = crate::attach::remembered::alarm();
        let nodes = Nodes::new(root, &attributes, 10, crowded).unwrap();
        let mut held = Vec::new();
        for number in 0..20 {
            let path = dir.path().join(format!("{number:02}"));
            match number {
                0 => std::fs::create_dir(&path).unwrap(),
                _ => std::fs::write(&path, "").unwrap(),
            }
            assert_eq!(alarm.try_recv().is_ok(), number > 9);
            let (file, attributes) = open(&path);
            let node = nodes.found((ROOT, path.file_name().unwrap()), file, &attributes).unwrap();
            // As an open file does.
            if number == 2 {
                held.push(node);
            }
        }
        let mut names: Vec<_> = nodes.long_known().into_iter().map(|(_, name)| name).collect();
        names.sort();
        assert_eq!(names, ["01", "03", "04", "05", "06"]);
    }
}
