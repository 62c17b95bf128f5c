//! Where the bytes of a file may come from, and how long the kernel may keep them.
//!
//! All handles of a file share the pages that the kernel keeps of it, and all requests of a file come through this layer, so that what one handle
//! writes another reads, mapped or not, whoever answers. What has to be decided at an open is whether pages that were read
//! before are still what the mount below has: if the file's attributes are those of the open that these pages were read under, and these were
//! settled then.

use parking_lot::Mutex;

use super::attributes::{Attributes, Stamp};

/// What is known of the bytes of a file.
#[derive(Default)]
pub(super) struct Content(Mutex<State>);

#[derive(Default)]
struct State {
    /// What the file was like when the kernel's pages of it were last dropped, if that was no moment of change.
    pages_of: Option<Stamp>,
}

impl Content {
    /// The file is opened while its attributes are `now`. Returns whether the kernel may keep the pages it has.
    pub(super) fn keeps_pages(&self, now: &Attributes) -> bool {
        let mut state = self.0.lock();
        if state.pages_of == Some(now.stamp()) {
            return true;
        }
        state.pages_of = now.is_settled().then(|| now.stamp());
        false
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn pages_are_kept_while_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let content = Content::default();
        let attributes = || Attributes::of(&file).unwrap();
        assert!(!content.keeps_pages(&attributes()));
        assert!(!content.keeps_pages(&attributes()), "it has only just changed and may change again unseen");

        // The time of change cannot be set; as if it were long ago.
        content.0.lock().pages_of = Some(attributes().stamp());
        assert!(content.keeps_pages(&attributes()));
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::now() - Duration::from_secs(60))
            .unwrap();
        assert!(!content.keeps_pages(&attributes()), "another time of modification");
    }
}
