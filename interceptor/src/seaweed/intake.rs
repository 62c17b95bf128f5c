//! The gate through which entries of the filer come in: names that a file system cannot have are dropped, what is
//! damaged is told once.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::decode;
use super::entry::{Content, Entry};
use super::owners::OwnerMaps;
use super::pb;

/// How many complaints are remembered before the oldest may be repeated.
const REMEMBERED: usize = 4096;

/// The longest name that the kernel takes from a FUSE file system, in bytes.
const MAX_NAME: usize = 1024;

/// How much of a complaint is told, in bytes: names and reasons are the server's words.
const MAX_COMPLAINT: usize = 512;

/// See the module.
pub(super) struct Intake {
    owners: OwnerMaps,
    told: Mutex<HashSet<String>>,
}

impl Intake {
    pub(super) fn new(owners: OwnerMaps) -> Self {
        Self { owners, told: Mutex::default() }
    }

    /// The entry of `directory`, unless it has no legal name.
    pub(super) fn entry(&self, directory: &str, raw: pb::Entry) -> Option<Entry> {
        // The record of the root, which filers make when something is written through a mount of it.
        if raw.name.is_empty() && directory == "/" {
            return None;
        }
        if !is_legal(&raw.name) {
            let name = raw.name;
            self.tell(format!("entry {name:?} of {directory:?} is left out: no file can have this name"));
            return None;
        }
        let entry = decode::entry(raw, &self.owners);
        if let Content::Damaged { reason } = &entry.content {
            self.tell(format!("{:?} of {directory:?} cannot be read: {reason}", entry.name));
        }
        Some(entry)
    }

    fn tell(&self, mut complaint: String) {
        complaint.truncate(complaint.floor_char_boundary(MAX_COMPLAINT));
        let mut told = self.told.lock();
        if told.len() >= REMEMBERED {
            told.clear();
        }
        if !told.contains(&complaint) {
            tracing::warn!("{complaint}");
            told.insert(complaint);
        }
    }
}

fn is_legal(name: &str) -> bool {
    let is_plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    is_plain && name.len() <= MAX_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_names_are_left_out() {
        let intake = Intake::new(OwnerMaps::default());
        let long = "n".repeat(MAX_NAME + 1);
        for (name, legal) in [
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a\0", false),
            (long.as_str(), false),
            ("...", true),
        ] {
            let raw = pb::Entry { name: name.into(), ..Default::default() };
            assert_eq!(intake.entry("/d", raw).map(|e| e.name), legal.then(|| name.to_owned()), "{name:?}");
        }
        assert_eq!(intake.told.lock().len(), 6);
        assert!(intake.told.lock().iter().all(|complaint| complaint.len() <= MAX_COMPLAINT));
    }

    #[test]
    fn a_complaint_is_made_once() {
        let intake = Intake::new(OwnerMaps::default());
        for _ in 0..2 {
            let chunks = vec![pb::FileChunk::default()];
            let raw = pb::Entry { name: "f".into(), chunks, ..Default::default() };
            let entry = intake.entry("/d", raw).unwrap();
            assert!(matches!(entry.content, Content::Damaged { .. }));
        }
        assert_eq!(intake.told.lock().len(), 1);
    }
}
