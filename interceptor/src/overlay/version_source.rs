//! Who finds out, at each open for reading, which version of a file is served instead of the file below.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::attributes::Attributes;
use super::content::{Quiet, Served};
use super::open_file::OpenFile;
use crate::read::Reader;

/// Who a file was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// A program, which will read it, and may read others after it.
    Program,
    /// Nobody who reads it soon.
    Nobody,
}

/// Decides what is served.
pub(super) trait VersionSource: Send + Sync {
    /// Reads what is served.
    fn reader(&self) -> &Arc<Reader>;

    /// Where that is done.
    fn runtime(&self) -> &Handle;

    /// Whether the filer's events arrive. Without a filer there are none.
    fn is_live(&self) -> bool {
        false
    }

    /// Whether what is served are the bytes that who passes the kernel's pages by wants.
    fn serves_direct(&self) -> bool;

    /// What can be served instead of a file with these attributes, if it has not changed since `quiet`.
    fn find(&self, file: &Arc<OpenFile>, attributes: &Attributes, quiet: Quiet, whom: Whom)
    -> Option<Served>;

    /// Whether a handle that was opened with `flags` may be served. Who passes the kernel's pages by wants the bytes of the mount below, unless they are the cluster's anyway.
    fn serves(&self, flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDONLY && (flags & libc::O_DIRECT == 0 || self.serves_direct())
    }

    /// `file` was opened for reading: finds out who is to answer its reads from now on. Waits for the mount below and for a filer.
    /// Returns what the mount below shows.
    fn resolve(&self, file: &Arc<OpenFile>, whom: Whom) -> io::Result<Attributes> {
        let content = &file.node.content;
        let quiet = content.quiet();
        let attributes = file.written_back()?;
        if let Some(quiet) = quiet {
            content.serve(self.find(file, &attributes, quiet, whom), quiet);
        }
        if whom == Whom::Program
            && let Some(Served { version, .. }) = content.served()
            && version.is_small_and_unread()
        {
            let _runtime = self.runtime().enter();
            self.reader().prefetch_opened(&version);
        }
        Ok(attributes)
    }
}
