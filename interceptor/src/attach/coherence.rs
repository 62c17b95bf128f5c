//! Where the bytes of a file may come from, and how long the kernel may keep them.
//!
//! All handles of a file share the pages that the kernel keeps of it, and all requests of a file come through this layer, so that what one handle
//! writes another reads, mapped or not, whoever answers: the mount below, or our own reader for the version of the file that the filer
//! describes. Pages being read are locked, so a write waits for a read that is under way and then overwrites what it brought.
//!
//! **Our reader answers** only while that is what the mount below would answer. [`entries`](super::entries) finds out at each open for reading whether the filer's
//! entry and the mount below agree; here it is made sure that nothing came between: from the moment in which a file is opened for writing,
//! truncated, or reported changed, the mount below answers, until an open finds agreement again, with no handle open for writing. Each of
//! these moments counts as a change, and what was found out before a change is not taken.
//!
//! **Pages are kept** from one open to the next if the attributes of the file are those of the open that the pages were read under, and these were
//! settled then, so that a change since would show.

use std::sync::Arc;

use parking_lot::Mutex;

use super::attributes::{Attributes, Stamp};
use crate::read::FileVersion;
use crate::seaweed::entry::Entry;

/// What is known of the bytes of a file.
#[derive(Default)]
pub(super) struct Content(Mutex<State>);

#[derive(Default)]
struct State {
    /// What the file was like when the kernel's pages of it were last dropped, if that was no moment of change.
    pages_of: Option<Stamp>,
    /// Handles that are open for writing.
    writers: u32,
    changes: u64,
    served: Option<Served>,
}

/// What is served instead of the file below.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) version: Arc<FileVersion>,
    pub(super) entry: Arc<Entry>,
}

/// A moment in which no handle was open for writing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet(u64);

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

    /// A handle is about to be opened for writing.
    pub(super) fn writer_opens(&self) {
        self.0.lock().writers += 1;
        self.changes();
    }

    /// A handle that was open for writing is closed, below as well.
    pub(super) fn writer_closed(&self) {
        self.0.lock().writers -= 1;
    }

    /// The file changes now, or has changed, or that cannot be excluded.
    pub(super) fn changes(&self) {
        let mut state = self.0.lock();
        state.changes += 1;
        state.served = None;
    }

    /// The beginning of finding out whether filer and mount below agree; `None` while that is of no use.
    pub(super) fn quiet(&self) -> Option<Quiet> {
        let state = self.0.lock();
        (state.writers == 0).then_some(Quiet(state.changes))
    }

    /// What was found out since `quiet` comes into effect, unless something changed meanwhile.
    pub(super) fn serve(&self, served: Option<Served>, quiet: Quiet) {
        let mut state = self.0.lock();
        if state.writers == 0 && state.changes == quiet.0 {
            state.served = served;
        }
    }

    /// What answers reads now, if it is not the mount below.
    pub(super) fn served(&self) -> Option<Served> {
        self.0.lock().served.clone()
    }

    /// The mount below shows these attributes. If they are not those of what is served, something there has changed.
    pub(super) fn seen(&self, attributes: &Attributes) {
        if self.served().is_some_and(|served| !agree(&served.entry, attributes)) {
            self.changes();
        }
    }
}

/// Whether an entry of the filer and what the mount below shows are the same state of a file.
pub(super) fn agree(entry: &Entry, attributes: &Attributes) -> bool {
    let same_file = entry.attr.inode == 0 || entry.attr.inode == attributes.number().1;
    same_file && entry.attr.size == attributes.stamp().size && entry.attr.mtime == attributes.modified()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::seaweed::entry::{self, Kind};

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
        let writer = File::options().write(true).open(&path).unwrap();
        writer.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        assert!(!content.keeps_pages(&attributes()), "another time of modification");
    }

    fn served(attributes: &Attributes) -> Served {
        let epoch = SystemTime::UNIX_EPOCH;
        let attr = entry::Attributes {
            kind: Kind::File,
            perm: 0o644,
            uid: 0,
            gid: 0,
            size: attributes.stamp().size,
            mtime: attributes.modified(),
            ctime: epoch,
            crtime: epoch,
            nlink: 1,
            rdev: 0,
            inode: attributes.number().1,
        };
        let entry = Arc::new(Entry {
            name: "file".into(),
            attr,
            content: entry::Content::None,
            xattrs: Arc::new([]),
            hard_link: None,
            expires: None,
        });
        Served { version: FileVersion::new("/file", entry.clone()), entry }
    }

    #[test]
    fn what_was_found_out_before_a_change_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let attributes = Attributes::of(File::open(&path).unwrap()).unwrap();
        let content = Content::default();

        let quiet = content.quiet().unwrap();
        content.changes();
        content.serve(Some(served(&attributes)), quiet);
        assert!(content.served().is_none(), "an event came between");

        let quiet = content.quiet().unwrap();
        content.writer_opens();
        assert!(content.quiet().is_none());
        content.serve(Some(served(&attributes)), quiet);
        assert!(content.served().is_none(), "a handle is open for writing");
        content.writer_closed();
        content.serve(Some(served(&attributes)), quiet);
        assert!(content.served().is_none(), "one was");

        content.serve(Some(served(&attributes)), content.quiet().unwrap());
        assert!(content.served().is_some());
        content.seen(&attributes);
        assert!(content.served().is_some());
        fs::write(&path, "other").unwrap();
        content.seen(&Attributes::of(File::open(&path).unwrap()).unwrap());
        assert!(content.served().is_none(), "the mount below shows another size");
    }

    #[test]
    fn agreement_takes_the_same_file_size_and_time_to_the_nanosecond() {
        let file = tempfile::tempfile().unwrap();
        let attributes = Attributes::of(&file).unwrap();
        let entry = (*served(&attributes).entry).clone();
        assert!(agree(&entry, &attributes));
        let differs = |change: fn(&mut entry::Attributes)| {
            let mut other = entry.clone();
            change(&mut other.attr);
            !agree(&other, &attributes)
        };
        assert!(differs(|attr| attr.size += 1));
        assert!(differs(|attr| attr.inode += 1));
        assert!(differs(|attr| attr.mtime += Duration::from_nanos(1)));
        assert!(!differs(|attr| attr.inode = 0), "the filer keeps none");
    }
}
