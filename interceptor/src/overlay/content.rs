//! Where the bytes of a file may come from, and how long the kernel may keep them.
//!
//! All handles of a file share the pages that the kernel keeps of it, and all requests of a file come through this layer, so that what one handle
//! writes another reads, mapped or not, whoever answers: the mount below, or our own reader for the version of the file that the filer
//! describes, or that was read from the mount below before. Pages being read are locked, so a write waits for a read that is under way and then overwrites what it brought.
//!
//! **Our reader answers** only while that is what the mount below would answer. A [`decider`](super::version_source) finds out at each open for reading which version of
//! the file that is; here it is made sure that nothing came between: from the moment in which a file is opened for writing,
//! truncated, or reported changed, the mount below answers, until an open finds a version again, with no handle open for writing. Each of
//! these moments counts as a change, and what was found out before a change is not taken.
//!
//! **Pages are kept** from one open to the next if the attributes of the file are those of the open that the pages were
//! read under, and these were settled then, so that a change since would show. Never over tmpfs, where a mapping changes a file without changing its times.
//!
//! **Settled** is a state of a file if another change would give it another time. By the clock of this host a change of two seconds ago has that, however coarse times
//! are kept. But a server's clock may be behind; so what is to be remembered beyond an open has to have changed long ago, or to have been seen unchanged for
//! two seconds.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::attributes::{Attributes, SETTLING, Stamp};
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
    /// Those of the changes that were made by way of this layer.
    written: u64,
    served: Option<Served>,
    /// What the file was like when it was looked at last, and since when.
    seen: Option<(Stamp, Instant)>,
    /// What the file is like when reads of it do not give what its attributes promise.
    unfit: Option<Stamp>,
}

/// What is served instead of the file below.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) version: Arc<FileVersion>,
    pub(super) basis: Basis,
}

/// What has to go on being so for a version to be that of the file below.
#[derive(Clone)]
pub(super) enum Basis {
    /// The attributes are those of the filer's entry.
    Entry(Arc<Entry>),
    /// They are those under which its bytes were, or will be, read from the mount below.
    Stamp(Stamp),
}

/// A moment in which no handle was open for writing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    changes: u64,
    /// How often the file was changed by way of this layer before.
    pub(super) written: u64,
}

impl Content {
    /// The file is opened while its attributes are `now`, whose times are by the clock of this host or not. Returns
    /// whether the kernel may keep the pages it has.
    pub(super) fn keeps_pages(&self, now: &Attributes, by_this_clock: bool) -> bool {
        let mut state = self.0.lock();
        let since = state.seen_since(now.stamp());
        if state.pages_of == Some(now.stamp()) {
            return true;
        }
        let is_settled = if by_this_clock { now.is_settled() } else { is_settled(now, since) };
        state.pages_of = is_settled.then(|| now.stamp());
        false
    }

    /// Whether a change after one that gave the file these attributes would show, whatever the clock of who gives it its times. The first look at a file that has changed lately
    /// does not tell.
    pub(super) fn is_settled(&self, now: &Attributes) -> bool {
        let since = self.0.lock().seen_since(now.stamp());
        is_settled(now, since)
    }

    /// Reads of the file in the state `stamp` do not give what its attributes promise.
    pub(super) fn is_unfit(&self, stamp: Stamp) {
        self.0.lock().unfit = Some(stamp);
    }

    /// Whether reads of the file in the state `stamp` give what its attributes promise, as far as is known.
    pub(super) fn is_fit(&self, stamp: Stamp) -> bool {
        self.0.lock().unfit != Some(stamp)
    }

    /// A handle is about to be opened for writing.
    pub(super) fn writer_opens(&self) {
        self.0.lock().writers += 1;
        self.written();
    }

    /// The file is changed by way of this layer.
    pub(super) fn written(&self) {
        self.0.lock().written += 1;
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

    /// The beginning of finding out which version the file is; `None` while that is of no use.
    pub(super) fn quiet(&self) -> Option<Quiet> {
        let state = self.0.lock();
        (state.writers == 0).then_some(Quiet { changes: state.changes, written: state.written })
    }

    /// Whether nothing has changed since `quiet`.
    pub(super) fn is_quiet_since(&self, quiet: Quiet) -> bool {
        self.0.lock().is_quiet_since(quiet)
    }

    /// What was found out since `quiet` comes into effect, unless something changed meanwhile.
    pub(super) fn serve(&self, served: Option<Served>, quiet: Quiet) {
        let mut state = self.0.lock();
        if state.is_quiet_since(quiet) {
            state.served = served;
        }
    }

    /// What answers reads now, if it is not the mount below.
    pub(super) fn served(&self) -> Option<Served> {
        self.0.lock().served.clone()
    }

    /// The mount below shows these attributes. If they are not those of what is served, something there has changed.
    pub(super) fn seen(&self, attributes: &Attributes) {
        let is_same = |served: Served| match served.basis {
            Basis::Entry(entry) => agree(&entry, attributes),
            Basis::Stamp(stamp) => stamp == attributes.stamp(),
        };
        self.is_like(attributes);
        if self.served().is_some_and(|served| !is_same(served)) {
            self.changes();
        }
    }

    /// The file was found with these attributes.
    pub(super) fn is_like(&self, attributes: &Attributes) {
        self.0.lock().seen_since(attributes.stamp());
    }
}

fn is_settled(now: &Attributes, seen_since: Instant) -> bool {
    now.is_settled() && (now.is_old() || seen_since.elapsed() > SETTLING)
}

impl State {
    /// Since when the file has been seen in the state `stamp`, in which it is now.
    fn seen_since(&mut self, stamp: Stamp) -> Instant {
        match self.seen {
            Some((seen, since)) if seen == stamp => since,
            _ => {
                let now = Instant::now();
                self.seen = Some((stamp, now));
                now
            }
        }
    }

    fn is_quiet_since(&self, quiet: Quiet) -> bool {
        self.writers == 0 && self.changes == quiet.changes
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
    use crate::seaweed::entry::{self, FileKind};

    #[test]
    fn pages_are_kept_while_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let file = File::open(&path).unwrap();
        let content = Content::default();
        let attributes = || Attributes::of(&file).unwrap();
        let keeps_pages = |attributes: &Attributes| content.keeps_pages(attributes, true);
        assert!(!keeps_pages(&attributes()));
        assert!(!keeps_pages(&attributes()), "it has only just changed and may change again unseen");

        // The time of change cannot be set; as if it were long ago.
        content.0.lock().pages_of = Some(attributes().stamp());
        assert!(keeps_pages(&attributes()));
        let writer = File::options().write(true).open(&path).unwrap();
        writer.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        assert!(!keeps_pages(&attributes()), "another time of modification");
    }

    #[test]
    fn pages_are_not_kept_by_the_times_of_a_clock_that_may_be_behind() {
        let file = tempfile::tempfile().unwrap();
        let ago = |seconds| Attributes::of(&file).unwrap().as_if_changed(Duration::from_secs(seconds));
        let content = Content::default();
        let now = ago(10);
        assert!(!content.keeps_pages(&now, false));
        assert!(
            !content.keeps_pages(&now, false),
            "it may have changed again in the same second of a server"
        );
        let state = || content.0.lock();
        state().seen = Some((now.stamp(), Instant::now() - Duration::from_secs(3)));
        assert!(!content.keeps_pages(&now, false), "the pages may be older than what was seen");
        assert!(content.keeps_pages(&now, false));
        let content = Content::default();
        let old = ago(1000);
        assert!(!content.keeps_pages(&old, false));
        assert!(content.keeps_pages(&old, false), "no clock is that far behind");
    }

    fn served(attributes: &Attributes) -> Served {
        let epoch = SystemTime::UNIX_EPOCH;
        let attr = entry::Attributes {
            kind: FileKind::File,
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
        Served { version: FileVersion::new("/file", entry.clone()), basis: Basis::Entry(entry) }
    }

    fn entry(attributes: &Attributes) -> Entry {
        match served(attributes).basis {
            Basis::Entry(entry) => (*entry).clone(),
            Basis::Stamp(_) => unreachable!("it is made of an entry"),
        }
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
    fn changes_by_way_of_the_layer_are_counted_apart() {
        let content = Content::default();
        let first = content.quiet().unwrap();
        assert!(content.is_quiet_since(first));
        content.changes();
        assert!(!content.is_quiet_since(first));
        assert_eq!(
            content.quiet().unwrap().written,
            first.written,
            "the bytes under the same attributes are the same"
        );
        content.writer_opens();
        content.writer_closed();
        let after = content.quiet().unwrap();
        assert!(after.written > first.written);
        content.writer_opens();
        assert!(!content.is_quiet_since(after));
    }

    #[test]
    fn what_has_changed_lately_is_settled_when_it_was_seen_unchanged_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let attributes = Attributes::of(File::open(&path).unwrap()).unwrap();
        let content = Content::default();
        assert!(!content.is_settled(&attributes), "it has just changed");
        let long_ago = Instant::now() - Duration::from_secs(3);
        content.0.lock().seen = Some((attributes.stamp(), long_ago));
        assert!(
            !content.is_settled(&attributes),
            "by this clock it has just changed, however long it is known"
        );
        // The clock goes on, and a server's clock may be behind it.
        let later = attributes.as_if_changed(Duration::from_secs(10));
        assert!(!content.is_settled(&later), "seen for the first time");
        content.0.lock().seen = Some((later.stamp(), long_ago));
        assert!(content.is_settled(&later));
        let old = attributes.as_if_changed(Duration::from_secs(1000));
        assert!(Content::default().is_settled(&old), "no clock is that far behind");
    }

    #[test]
    fn agreement_takes_the_same_file_size_and_time_to_the_nanosecond() {
        let file = tempfile::tempfile().unwrap();
        let attributes = Attributes::of(&file).unwrap();
        let entry = entry(&attributes);
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
