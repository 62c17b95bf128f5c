//! One version of a file.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use super::ReadError;
use super::activity::FileActivity;
use super::layout::FileLayout;
use super::layout_cell::LayoutCell;
use crate::cache::resident::ContentId;

/// Files up to this size, in bytes, are fetched whole when their turn seems to come.
pub const MAX_SMALL_FILE_SIZE: u64 = 1 << 20;

/// A version of a file, as its origin describes it; of SeaweedFS the filer's entry. The answers
/// never change. The origin gets its own type back to resolve the layout, hence [`Any`].
pub trait OriginFile: Any + Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Identifies the bytes, if it is known which they are. Takes time in proportion to the number
    /// of objects.
    fn content_id(&self) -> Option<ContentId>;

    /// The layout; `None` if it takes a fetch, or cannot be had.
    fn layout(&self) -> Option<FileLayout>;

    /// Whether the bytes are in no object yet: resolving the layout has the origin make objects of
    /// them.
    fn is_remote(&self) -> bool;

    /// Why no byte can be read, if the origin lacks the key of an encrypted file.
    fn encrypted(&self) -> Option<&str>;
}

/// One version of a file: what a name stood for at one moment. Reads of it give the same bytes for
/// ever, whatever happens to the name. What its readers do is its [`FileActivity`].
#[derive(Debug)]
pub struct FileVersion {
    path: Box<str>,
    size: u64,
    /// What the origin says of it; `None` if the layout was known from the start.
    origin_file: Option<Arc<dyn OriginFile>>,
    content_id: OnceLock<Option<ContentId>>,
    layout: LayoutCell,
    activity: FileActivity,
}

impl FileVersion {
    /// The version that `origin_file` describes, found at its `path` (for remote-only files and
    /// log lines). Does no I/O: what must be fetched to know where the content is, is fetched at
    /// the first read.
    pub fn new(path: &str, origin_file: Arc<dyn OriginFile>) -> Arc<Self> {
        Self::make(path, origin_file.size(), Some(origin_file))
    }

    /// A version whose `layout` is known, found at `path` (for log lines).
    pub fn with_layout(path: &str, layout: FileLayout) -> Arc<Self> {
        let version = Self::make(path, layout.size(), None);
        version.layout.set(layout);
        version
    }

    fn make(path: &str, size: u64, origin_file: Option<Arc<dyn OriginFile>>) -> Arc<Self> {
        Arc::new(Self {
            path: path.into(),
            size,
            origin_file,
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
        let reason = self.origin_file.as_ref()?.encrypted()?;
        Some(ReadError::Encrypted(format!("{}: {reason}", self.path)))
    }

    /// What the origin says of it, if that is a `T`.
    pub(super) fn origin_file<T: OriginFile>(&self) -> Option<&T> {
        let origin_file: &dyn Any = &**self.origin_file.as_ref()?;
        origin_file.downcast_ref()
    }

    /// Identifies its bytes, if the origin says which they are.
    pub(super) fn content_id(&self) -> Option<ContentId> {
        *self.content_id.get_or_init(|| self.origin_file.as_ref()?.content_id())
    }

    /// Whether none of its bytes are in an object yet, as far as is known.
    pub(super) fn is_remote(&self) -> bool {
        self.origin_file.as_ref().is_some_and(|file| file.is_remote()) && self.layout.get().is_none()
    }

    /// The layout, if it is known without a fetch.
    pub(super) fn layout_now(&self) -> Option<&FileLayout> {
        if self.layout.get().is_none() {
            self.layout.set(self.origin_file.as_ref()?.layout()?);
        }
        self.layout.get()
    }

    /// The cell of the layout, for the [`Reader`](super::Reader) to resolve.
    pub(super) fn layout(&self) -> &LayoutCell {
        &self.layout
    }
}
