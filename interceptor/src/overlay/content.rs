//! Coherence of one file: until when the version that was found at an open answers its reads, and
//! how long the kernel keeps its pages.
//!
//! All handles of a file share the kernel's pages of it, and every request for it passes the
//! overlay. So what one handle writes another reads, mapped or not, whichever source answers: the
//! lower mount, or the overlay's reader with the version that a [source](super::version_source)
//! found. The kernel locks pages while it reads them: a write waits for a read that is under way,
//! and then overwrites what was read.
//!
//! **The reader answers** only while the lower mount would answer the same. An open for reading
//! finds the version, and [`ContentState`] makes sure that nothing came between. The lower mount
//! answers from the moment in which the file is opened for writing, truncated, or reported
//! changed. It does so until an open finds a version again while no handle is open for writing.
//! Each such moment counts as a change, and a version that was found before a change
//! ([`ChangeToken`]) is discarded.
//!
//! **Pages are kept** across opens if the file's fingerprint is the one that they were read under,
//! and it was settled then, so that a later change would show. They are never kept over tmpfs,
//! where a mapping changes a file without changing its times.
//!
//! **A fingerprint is settled** if another change would change it. By this host's clock that holds
//! for a change two seconds ago, however coarse times are stored. A server's clock may be behind.
//! So what outlives an open must have changed long ago, or have been observed unchanged for two
//! seconds.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::attributes::{Attributes, SETTLE_INTERVAL, StatFingerprint};
use crate::read::FileVersion;
use crate::seaweed::entry::Entry;

/// Which source answers reads of one file, and what decides it.
#[derive(Default)]
pub(super) struct ContentState(Mutex<ContentRecord>);

#[derive(Default)]
struct ContentRecord {
    /// The fingerprint under which the kernel last dropped its pages, if that was settled.
    pages_fingerprint: Option<StatFingerprint>,
    /// Open handles that can write.
    writers: u32,
    changes: u64,
    /// The changes among these that were made through the overlay.
    changes_here: u64,
    served: Option<ServedVersion>,
    /// The fingerprint that was last observed, and when it was observed first.
    observed: Option<(StatFingerprint, Instant)>,
    /// The fingerprint under which a read ended before the file's size.
    short_read: Option<StatFingerprint>,
}

/// The version that answers reads instead of the lower mount.
#[derive(Clone)]
pub(super) struct ServedVersion {
    pub(super) version: Arc<FileVersion>,
    pub(super) basis: VersionBasis,
}

/// The condition under which the version is still that of the lower file.
#[derive(Clone)]
pub(super) enum VersionBasis {
    /// The lower attributes match the filer's entry.
    FilerEntry(Arc<Entry>),
    /// The lower file has the fingerprint under which its bytes were, or will be, read.
    Fingerprint(StatFingerprint),
}

/// A moment in which no handle was open for writing; see [`ContentState::change_token`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ChangeToken {
    changes: u64,
    /// How many changes were made through the overlay before.
    pub(super) changes_here: u64,
}

impl ContentState {
    /// Whether the kernel may keep its pages of the file, which is opened with attributes `now`.
    /// `is_local_clock` says whether this host's clock sets the times. `false` makes the kernel
    /// drop its pages; `now`, if settled, is recorded for the next open.
    pub(super) fn may_keep_pages(&self, now: &Attributes, is_local_clock: bool) -> bool {
        let mut state = self.0.lock();
        let since = state.observed_since(now.fingerprint());
        if state.pages_fingerprint == Some(now.fingerprint()) {
            return true;
        }
        let is_settled = if is_local_clock { now.is_settled() } else { is_settled(now, since) };
        state.pages_fingerprint = is_settled.then(|| now.fingerprint());
        false
    }

    /// Whether the next change would get another fingerprint, whichever clock sets the times.
    /// `false` at the first look at a file that has changed lately.
    pub(super) fn is_settled(&self, now: &Attributes) -> bool {
        let since = self.0.lock().observed_since(now.fingerprint());
        is_settled(now, since)
    }

    /// A read under `fingerprint` ended before the file's size.
    pub(super) fn mark_short_read(&self, fingerprint: StatFingerprint) {
        self.0.lock().short_read = Some(fingerprint);
    }

    /// Whether no read under `fingerprint` ended before the file's size.
    pub(super) fn reads_in_full(&self, fingerprint: StatFingerprint) -> bool {
        self.0.lock().short_read != Some(fingerprint)
    }

    /// To be called before a handle is opened for writing.
    pub(super) fn add_writer(&self) {
        self.0.lock().writers += 1;
        self.mark_changed_here();
    }

    /// The file is changed through the overlay.
    pub(super) fn mark_changed_here(&self) {
        self.0.lock().changes_here += 1;
        self.mark_changed();
    }

    /// To be called after a handle that could write is closed below.
    pub(super) fn remove_writer(&self) {
        self.0.lock().writers -= 1;
    }

    /// The file changes, or may have changed. The lower mount answers from now on.
    pub(super) fn mark_changed(&self) {
        let mut state = self.0.lock();
        state.changes += 1;
        state.served = None;
    }

    /// To be taken before a version is looked for; `None` while a handle is open for writing.
    pub(super) fn change_token(&self) -> Option<ChangeToken> {
        let state = self.0.lock();
        (state.writers == 0)
            .then_some(ChangeToken { changes: state.changes, changes_here: state.changes_here })
    }

    /// Whether nothing has changed since `token` was taken.
    pub(super) fn is_unchanged_since(&self, token: ChangeToken) -> bool {
        self.0.lock().is_unchanged_since(token)
    }

    /// Has `served` answer reads, unless something has changed since `token` was taken.
    pub(super) fn install(&self, served: Option<ServedVersion>, token: ChangeToken) {
        let mut state = self.0.lock();
        if state.is_unchanged_since(token) {
            state.served = served;
        }
    }

    /// The version that answers reads; `None` if the lower mount does.
    pub(super) fn served(&self) -> Option<ServedVersion> {
        self.0.lock().served.clone()
    }

    /// Compares the served version with attributes that the lower mount shows. If they differ, the
    /// file has changed below.
    pub(super) fn verify(&self, attributes: &Attributes) {
        let is_same = |served: ServedVersion| match served.basis {
            VersionBasis::FilerEntry(entry) => entry_matches(&entry, attributes),
            VersionBasis::Fingerprint(fingerprint) => fingerprint == attributes.fingerprint(),
        };
        self.observe(attributes);
        if self.served().is_some_and(|served| !is_same(served)) {
            self.mark_changed();
        }
    }

    /// Records the attributes that a lookup found.
    pub(super) fn observe(&self, attributes: &Attributes) {
        self.0.lock().observed_since(attributes.fingerprint());
    }
}

fn is_settled(now: &Attributes, observed_since: Instant) -> bool {
    now.is_settled() && (now.is_older_than_clock_skew() || observed_since.elapsed() > SETTLE_INTERVAL)
}

impl ContentRecord {
    /// When the file was first observed with `fingerprint`, which it has now.
    fn observed_since(&mut self, fingerprint: StatFingerprint) -> Instant {
        match self.observed {
            Some((seen, since)) if seen == fingerprint => since,
            _ => {
                let now = Instant::now();
                self.observed = Some((fingerprint, now));
                now
            }
        }
    }

    fn is_unchanged_since(&self, token: ChangeToken) -> bool {
        self.writers == 0 && self.changes == token.changes
    }
}

/// Whether the filer's entry and the lower attributes describe the same state of a file.
pub(super) fn entry_matches(entry: &Entry, attributes: &Attributes) -> bool {
    let same_file = entry.attr.inode == 0 || entry.attr.inode == attributes.dev_ino().1;
    same_file && entry.attr.size == attributes.fingerprint().size && entry.attr.mtime == attributes.modified()
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
        let content = ContentState::default();
        let attributes = || Attributes::of(&file).unwrap();
        let may_keep_pages = |attributes: &Attributes| content.may_keep_pages(attributes, true);
        assert!(!may_keep_pages(&attributes()));
        assert!(!may_keep_pages(&attributes()), "it has only just changed and may change again unseen");

        // A ctime cannot be set, so the test acts as if it were long ago.
        content.0.lock().pages_fingerprint = Some(attributes().fingerprint());
        assert!(may_keep_pages(&attributes()));
        let writer = File::options().write(true).open(&path).unwrap();
        writer.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        assert!(!may_keep_pages(&attributes()), "another time of modification");
    }

    #[test]
    fn pages_are_not_kept_by_recent_times_of_another_clock() {
        let file = tempfile::tempfile().unwrap();
        let ago = |seconds| Attributes::of(&file).unwrap().as_if_changed(Duration::from_secs(seconds));
        let content = ContentState::default();
        let now = ago(10);
        assert!(!content.may_keep_pages(&now, false));
        assert!(
            !content.may_keep_pages(&now, false),
            "it may have changed again in the same second of a server"
        );
        let state = || content.0.lock();
        state().observed = Some((now.fingerprint(), Instant::now() - Duration::from_secs(3)));
        assert!(!content.may_keep_pages(&now, false), "the pages may be older than what was seen");
        assert!(content.may_keep_pages(&now, false));
        let content = ContentState::default();
        let old = ago(1000);
        assert!(!content.may_keep_pages(&old, false));
        assert!(content.may_keep_pages(&old, false), "no clock is that far behind");
    }

    fn served(attributes: &Attributes) -> ServedVersion {
        let epoch = SystemTime::UNIX_EPOCH;
        let attr = entry::Attributes {
            kind: FileKind::File,
            perm: 0o644,
            uid: 0,
            gid: 0,
            size: attributes.fingerprint().size,
            mtime: attributes.modified(),
            ctime: epoch,
            crtime: epoch,
            nlink: 1,
            rdev: 0,
            inode: attributes.dev_ino().1,
        };
        let entry = Arc::new(Entry {
            name: "file".into(),
            attr,
            content: entry::Content::None,
            xattrs: Arc::new([]),
            hard_link: None,
            expires: None,
        });
        ServedVersion {
            version: FileVersion::new("/file", entry.clone()),
            basis: VersionBasis::FilerEntry(entry),
        }
    }

    fn entry(attributes: &Attributes) -> Entry {
        match served(attributes).basis {
            VersionBasis::FilerEntry(entry) => (*entry).clone(),
            VersionBasis::Fingerprint(_) => unreachable!("it is made of an entry"),
        }
    }

    #[test]
    fn a_version_found_before_a_change_is_not_installed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let attributes = Attributes::of(File::open(&path).unwrap()).unwrap();
        let content = ContentState::default();

        let token = content.change_token().unwrap();
        content.mark_changed();
        content.install(Some(served(&attributes)), token);
        assert!(content.served().is_none(), "an event came between");

        let token = content.change_token().unwrap();
        content.add_writer();
        assert!(content.change_token().is_none());
        content.install(Some(served(&attributes)), token);
        assert!(content.served().is_none(), "a handle is open for writing");
        content.remove_writer();
        content.install(Some(served(&attributes)), token);
        assert!(content.served().is_none(), "one was");

        content.install(Some(served(&attributes)), content.change_token().unwrap());
        assert!(content.served().is_some());
        content.verify(&attributes);
        assert!(content.served().is_some());
        fs::write(&path, "other").unwrap();
        content.verify(&Attributes::of(File::open(&path).unwrap()).unwrap());
        assert!(content.served().is_none(), "the mount below shows another size");
    }

    #[test]
    fn changes_through_the_overlay_are_counted_apart() {
        let content = ContentState::default();
        let first = content.change_token().unwrap();
        assert!(content.is_unchanged_since(first));
        content.mark_changed();
        assert!(!content.is_unchanged_since(first));
        assert_eq!(
            content.change_token().unwrap().changes_here,
            first.changes_here,
            "the bytes under the same attributes are the same"
        );
        content.add_writer();
        content.remove_writer();
        let after = content.change_token().unwrap();
        assert!(after.changes_here > first.changes_here);
        content.add_writer();
        assert!(!content.is_unchanged_since(after));
    }

    #[test]
    fn a_recent_change_is_settled_once_it_was_observed_unchanged_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "one").unwrap();
        let attributes = Attributes::of(File::open(&path).unwrap()).unwrap();
        let content = ContentState::default();
        assert!(!content.is_settled(&attributes), "it has just changed");
        let long_ago = Instant::now() - Duration::from_secs(3);
        content.0.lock().observed = Some((attributes.fingerprint(), long_ago));
        assert!(
            !content.is_settled(&attributes),
            "by this clock it has just changed, however long it is known"
        );
        // As if time had passed here, while a server's clock may be behind.
        let later = attributes.as_if_changed(Duration::from_secs(10));
        assert!(!content.is_settled(&later), "seen for the first time");
        content.0.lock().observed = Some((later.fingerprint(), long_ago));
        assert!(content.is_settled(&later));
        let old = attributes.as_if_changed(Duration::from_secs(1000));
        assert!(ContentState::default().is_settled(&old), "no clock is that far behind");
    }

    #[test]
    fn an_entry_matches_by_inode_size_and_mtime_to_the_nanosecond() {
        let file = tempfile::tempfile().unwrap();
        let attributes = Attributes::of(&file).unwrap();
        let entry = entry(&attributes);
        assert!(entry_matches(&entry, &attributes));
        let differs = |change: fn(&mut entry::Attributes)| {
            let mut other = entry.clone();
            change(&mut other.attr);
            !entry_matches(&other, &attributes)
        };
        assert!(differs(|attr| attr.size += 1));
        assert!(differs(|attr| attr.inode += 1));
        assert!(differs(|attr| attr.mtime += Duration::from_nanos(1)));
        assert!(!differs(|attr| attr.inode = 0), "the filer keeps none");
    }
}
