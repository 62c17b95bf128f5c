//! Which files there are, which objects are in them, and which file leaves next.
//!
//! Files leave in the order in which they came, but one that was read since it was last considered
//! stays for another round, up to [`MAX_ROUNDS`] times (CLOCK with a counter). Nothing better is
//! needed: what is read once does not come here at all.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::format::FileHeader;
use super::name::DiskName;

/// For how many rounds uses are remembered.
const MAX_ROUNDS: u8 = 3;
/// Files at most: their descriptions take some 200 MB.
pub(super) const MAX_FILES: usize = 1 << 20;

#[derive(Debug)]
struct IndexedFile {
    /// Bytes of the disk that it takes.
    bytes: u64,
    /// The rounds that it stays for.
    rounds: u8,
    /// Tells its entry in the order from one of an earlier file of the same name.
    serial: u64,
    /// The objects in it, if these are several or have other names than the file.
    members: Box<[DiskName]>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct FileIndex {
    files: HashMap<DiskName, IndexedFile, RandomState>,
    /// The files that objects are in which have no file of their own.
    members: HashMap<DiskName, (DiskName, usize), RandomState>,
    /// The files, the next to leave first; entries of files that have left remain for a while.
    order: VecDeque<(DiskName, u64)>,
    used: u64,
    serial: u64,
}

impl FileIndex {
    /// Bytes of the disk that all files take.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// How many files there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is a file of this name.
    pub(super) fn contains(&self, file: &DiskName) -> bool {
        self.files.contains_key(file)
    }

    /// Adds a file that takes `bytes`. Replaces one of the same name.
    pub(super) fn insert(&mut self, header: &FileHeader, bytes: u64) {
        self.remove(&header.name);
        let is_single = matches!(&*header.members, [member] if member.name == header.name);
        let members: Box<[_]> = if is_single {
            Box::default()
        } else {
            header.members.iter().map(|member| member.name).collect()
        };
        for (number, member) in members.iter().enumerate() {
            self.members.insert(*member, (header.name, number));
        }
        self.serial += 1;
        self.order.push_back((header.name, self.serial));
        let file = IndexedFile { bytes, rounds: 0, serial: self.serial, members };
        self.files.insert(header.name, file);
        self.used += bytes;
    }

    /// Removes a file. Returns whether it was there.
    pub(super) fn remove(&mut self, file: &DiskName) -> bool {
        let Some(removed) = self.files.remove(file) else { return false };
        for member in &removed.members {
            if self.members.get(member).is_some_and(|(holder, _)| holder == file) {
                self.members.remove(member);
            }
        }
        self.used -= removed.bytes;
        if self.order.len() > 2 * self.files.len() + 16 {
            let files = &self.files;
            self.order.retain(|(name, serial)| files.get(name).is_some_and(|file| file.serial == *serial));
        }
        true
    }

    /// Notes that a file takes `bytes` now.
    pub(super) fn resize(&mut self, file: &DiskName, bytes: u64) {
        if let Some(file) = self.files.get_mut(file) {
            self.used = self.used - file.bytes + bytes;
            file.bytes = bytes;
        }
    }

    /// The file that an object is in, and the number of the object there.
    pub(super) fn find(&self, object: &DiskName) -> Option<(DiskName, usize)> {
        let is_single = self.files.get(object).is_some_and(|file| file.members.is_empty());
        if is_single { Some((*object, 0)) } else { self.members.get(object).copied() }
    }

    /// Notes that a file was read.
    pub(super) fn touch(&mut self, file: &DiskName) {
        if let Some(file) = self.files.get_mut(file) {
            file.rounds = (file.rounds + 1).min(MAX_ROUNDS);
        }
    }

    /// The file that is to leave next, except those that `is_spared`; `None` if there is no other.
    /// Does not remove it.
    pub(super) fn victim(&mut self, is_spared: impl Fn(&DiskName) -> bool) -> Option<DiskName> {
        let mut passed = 0;
        while passed <= self.files.len() * (usize::from(MAX_ROUNDS) + 2) {
            let (name, serial) = self.order.pop_front()?;
            let Some(file) = self.files.get_mut(&name).filter(|file| file.serial == serial) else { continue };
            self.order.push_back((name, serial));
            passed += 1;
            match file.rounds.checked_sub(1) {
                Some(left) => file.rounds = left,
                None if !is_spared(&name) => return Some(name),
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::Member;
    use super::*;
    use proptest::prelude::*;

    fn name(byte: u8) -> DiskName {
        DiskName([byte; 32])
    }

    fn single(byte: u8) -> FileHeader {
        FileHeader::of_object(Member { name: name(byte), len: 1 })
    }

    fn of_members(byte: u8, members: &[u8]) -> FileHeader {
        let members = members.iter().map(|byte| Member { name: name(*byte), len: 1 }).collect();
        FileHeader { name: name(byte), members }
    }

    #[test]
    fn what_was_read_stays_for_another_round() {
        let mut index = FileIndex::default();
        (0..3).for_each(|byte| index.insert(&single(byte), 10));
        index.touch(&name(0));
        assert_eq!(index.victim(|_| false), Some(name(1)));
        index.remove(&name(1));
        assert_eq!(
            index.victim(|file| *file == name(2)),
            Some(name(0)),
            "one is spared, and the other had its round"
        );
        assert_eq!(index.used(), 20);
    }

    #[test]
    fn an_object_is_found_in_a_file_of_its_own_before_one_of_many() {
        let mut index = FileIndex::default();
        index.insert(&of_members(100, &[1, 2]), 5);
        index.insert(&single(2), 5);
        assert_eq!(index.find(&name(1)), Some((name(100), 0)));
        assert_eq!(index.find(&name(2)), Some((name(2), 0)));
        index.remove(&name(2));
        assert_eq!(index.find(&name(2)), Some((name(100), 1)));
        index.remove(&name(100));
        assert_eq!(index.find(&name(1)), None);
    }

    proptest! {
        /// Against the list of what should be there.
        #[test]
        fn sizes_and_members_are_those_of_the_files_that_are_there(
            steps in prop::collection::vec((0u8..4, 0u8..12, 1u64..100), 0..200),
        ) {
            let mut index = FileIndex::default();
            let mut model: HashMap<u8, u64> = HashMap::new();
            for (step, byte, bytes) in steps {
                match step {
                    0 => {
                        index.insert(&single(byte), bytes);
                        model.insert(byte, bytes);
                    }
                    1 => prop_assert_eq!(index.remove(&name(byte)), model.remove(&byte).is_some()),
                    2 => {
                        index.resize(&name(byte), bytes);
                        model.entry(byte).and_modify(|known| *known = bytes);
                    }
                    _ => {
                        index.touch(&name(byte));
                        let victim = index.victim(|_| false);
                        prop_assert_eq!(victim.is_some(), !model.is_empty());
                        prop_assert!(victim.is_none_or(|victim| model.contains_key(&victim.0[0])));
                    }
                }
                prop_assert_eq!(index.used(), model.values().sum::<u64>());
                prop_assert_eq!(index.len(), model.len());
                for byte in 0..12 {
                    prop_assert_eq!(index.find(&name(byte)).is_some(), model.contains_key(&byte));
                }
                prop_assert!(index.order.len() <= 2 * model.len() + 40);
            }
        }
    }
}
