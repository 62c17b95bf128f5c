//! Decodes entries of the filer and gives them owners and permissions of this host. Drops those
//! whose name a file system cannot have, and logs each dropped or damaged entry once.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::decode;
use super::entry::{Content, Entry};
use super::pb;
use super::permissions::PermissionRules;

/// How many warnings are kept. When there are more, all are forgotten and may be logged again.
const MAX_KEPT_WARNINGS: usize = 4096;

/// The longest name that the kernel takes from a FUSE file system, in bytes.
const MAX_NAME: usize = 1024;

/// The longest warning, in bytes: names and reasons come from the server.
const MAX_WARNING_LENGTH: usize = 512;

/// Decodes entries; see the module.
pub(super) struct EntryFilter {
    permissions: PermissionRules,
    warned: Mutex<HashSet<String>>,
}

impl EntryFilter {
    pub(super) fn new(permissions: PermissionRules) -> Self {
        Self { permissions, warned: Mutex::default() }
    }

    /// The entry of `directory` that a message describes; `None` if its name is illegal.
    pub(super) fn entry(&self, directory: &str, raw: pb::Entry) -> Option<Entry> {
        // The record of the root, which filers make when a file is written through a mount of it.
        if raw.name.is_empty() && directory == "/" {
            return None;
        }
        if !is_legal(&raw.name) {
            let name = raw.name;
            self.warn_once(format!(
                "entry {name:?} of {directory:?} is left out: no file can have this name"
            ));
            return None;
        }
        let entry = self.on_this_host(decode::entry(raw));
        if let Content::Damaged { reason } = &entry.content {
            self.warn_once(format!("{:?} of {directory:?} cannot be read: {reason}", entry.name));
        }
        Some(entry)
    }

    /// The entry with the owner and the permissions that it has here.
    pub(super) fn on_this_host(&self, mut entry: Entry) -> Entry {
        self.permissions.apply(&mut entry.attr);
        entry
    }

    fn warn_once(&self, mut warning: String) {
        warning.truncate(warning.floor_char_boundary(MAX_WARNING_LENGTH));
        let mut warned = self.warned.lock();
        if warned.len() >= MAX_KEPT_WARNINGS {
            warned.clear();
        }
        if !warned.contains(&warning) {
            tracing::warn!("{warning}");
            warned.insert(warning);
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
        let filter = EntryFilter::new(PermissionRules::default());
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
            assert_eq!(filter.entry("/d", raw).map(|e| e.name), legal.then(|| name.to_owned()), "{name:?}");
        }
        assert_eq!(filter.warned.lock().len(), 6);
        assert!(filter.warned.lock().iter().all(|warning| warning.len() <= MAX_WARNING_LENGTH));
    }

    #[test]
    fn a_damaged_entry_is_logged_once() {
        let filter = EntryFilter::new(PermissionRules::default());
        for _ in 0..2 {
            let chunks = vec![pb::FileChunk::default()];
            let raw = pb::Entry { name: "f".into(), chunks, ..Default::default() };
            let entry = filter.entry("/d", raw).unwrap();
            assert!(matches!(entry.content, Content::Damaged { .. }));
        }
        assert_eq!(filter.warned.lock().len(), 1);
    }
}
