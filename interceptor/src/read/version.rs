//! One version of a file.

use std::sync::{Arc, OnceLock};

use super::ReadError;
use super::activity::FileActivity;
use super::layout::FileLayout;
use super::layout_cell::LayoutCell;
use super::seaweedfs::chunks::known_layout;
use super::seaweedfs::content_id::content_id;
use crate::cache::resident::ContentId;
use crate::seaweed::entry::{Content, Entry};

/// Files up to this size, in bytes, are fetched whole when their turn seems to come.
pub const MAX_SMALL_FILE_SIZE: u64 = 1 << 20;

/// One version of a file: what a name stood for at one moment. Reads of it give the same bytes for
/// ever, whatever happens to the name. What its readers do is its [`FileActivity`].
#[derive(Debug)]
pub struct FileVersion {
    path: Box<str>,
    size: u64,
    /// What the filer says of a file of SeaweedFS; `None` if the layout was known from the start.
    entry: Option<Arc<Entry>>,
    content_id: OnceLock<Option<ContentId>>,
    layout: LayoutCell,
    activity: FileActivity,
}

impl FileVersion {
    /// The version that a filer's `entry` describes, found at its `path` (for remote-only files
    /// and log lines). Does no I/O: what must be fetched to know where the content is, is fetched
    /// at the first read.
    pub fn new(path: &str, entry: Arc<Entry>) -> Arc<Self> {
        Self::make(path, entry.attr.size, Some(entry))
    }

    /// A version whose `layout` is known, found at `path` (for log lines).
    pub fn with_layout(path: &str, layout: FileLayout) -> Arc<Self> {
        let version = Self::make(path, layout.size(), None);
        version.layout.set(layout);
        version
    }

    fn make(path: &str, size: u64, entry: Option<Arc<Entry>>) -> Arc<Self> {
        Arc::new(Self {
            path: path.into(),
            size,
            entry,
            content_id: OnceLock::new(),
            layout: LayoutCell::default(),
            activity: FileActivity::new(size),
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The path at which this version was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What its readers have done.
    pub fn activity(&self) -> &FileActivity {
        &self.activity
    }

    /// Whether it is a small file that is about to be read for the first time: none of it is in
    /// the page cache, and reads will come.
    pub(crate) fn is_small_and_unread(&self) -> bool {
        !self.activity.was_read() && self.size <= MAX_SMALL_FILE_SIZE
    }

    /// Why no byte of it can be read, if that is known without a fetch.
    pub(crate) fn refusal(&self) -> Option<ReadError> {
        match self.content() {
            Content::Encrypted { reason } => Some(ReadError::Encrypted(format!("{}: {reason}", self.path))),
            _ => None,
        }
    }

    /// What the filer says of the content.
    pub(super) fn content(&self) -> &Content {
        self.entry.as_ref().map_or(&Content::None, |entry| &entry.content)
    }

    /// Identifies its bytes, if the entry says which they are.
    pub(super) fn content_id(&self) -> Option<ContentId> {
        *self.content_id.get_or_init(|| content_id(self.entry.as_ref()?))
    }

    /// Whether no chunk of it is in the cluster, as far as is known.
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.content(), Content::Remote(_)) && self.layout.get().is_none()
    }

    /// The layout, if it is known or follows from the entry alone.
    pub(super) fn layout_now(&self) -> Option<&FileLayout> {
        if self.layout.get().is_none() {
            self.layout.set(known_layout(self.entry.as_ref()?)?);
        }
        self.layout.get()
    }

    /// The cell of the layout, for the [`Reader`](super::Reader) to resolve.
    pub(super) fn layout(&self) -> &LayoutCell {
        &self.layout
    }
}
