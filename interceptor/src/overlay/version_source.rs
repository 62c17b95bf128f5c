//! Where versions come from. At each open for reading, a [`VersionSource`] looks for a version of
//! the file that can answer reads instead of the lower mount.
//!
//! ```text
//! open ─► OverlayFs::open_lower ─► VersionSource::resolve ─► find      filer_source, lower_source
//!              flags of the reply ◄─ attributes ◄┘    └─► ContentState::install
//! read ─► ContentState::served ─► Reader::read, else the lower file
//! ```

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::attributes::Attributes;
use super::content::{ChangeToken, ServedVersion};
use super::open_file::OpenFile;
use crate::read::Reader;

/// Why a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenIntent {
    /// A program reads the file, and may open others of the directory next.
    Read,
    /// Its version is looked up; it need not be read soon.
    Probe,
}

/// Finds versions of lower files, and reads them.
pub(super) trait VersionSource: Send + Sync {
    /// Reads the versions that the source finds.
    fn reader(&self) -> &Arc<Reader>;

    /// The runtime on which reads and lookups run.
    fn runtime(&self) -> &Handle;

    /// Whether the filer's events arrive; `false` for a source without a filer.
    fn is_live(&self) -> bool {
        false
    }

    /// Whether handles with `O_DIRECT` may be served.
    fn serves_direct(&self) -> bool;

    /// The version that can answer reads of `file`, which has `attributes` and has not changed
    /// since `token`. Blocks.
    fn find(
        &self,
        file: &Arc<OpenFile>,
        attributes: &Attributes,
        token: ChangeToken,
        intent: OpenIntent,
    ) -> Option<ServedVersion>;

    /// Whether a handle with `flags` may be served.
    fn serves(&self, flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDONLY && (flags & libc::O_DIRECT == 0 || self.serves_direct())
    }

    /// Looks for the version of `file`, which was opened for reading, and has it answer reads from
    /// now on. Blocks on the lower mount and on a filer. Returns the attributes that the lower
    /// mount shows.
    fn resolve(&self, file: &Arc<OpenFile>, intent: OpenIntent) -> io::Result<Attributes> {
        let content = &file.inode.content;
        let token = content.change_token();
        let attributes = file.write_back_and_stat()?;
        if let Some(token) = token {
            content.install(self.find(file, &attributes, token, intent), token);
        }
        if intent == OpenIntent::Read
            && let Some(ServedVersion { version, .. }) = content.served()
            && version.is_small_and_unread()
        {
            let _runtime = self.runtime().enter();
            self.reader().prefetch_opened(&version);
        }
        Ok(attributes)
    }
}
