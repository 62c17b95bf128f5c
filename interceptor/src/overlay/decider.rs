//! Who finds out, at each open for reading, which version of a file is served instead of the file below.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::attributes::Attributes;
use super::coherence::{Quiet, Served};
use super::entries::Entries;
use super::files::OpenFile;
use super::kept::Kept;
use super::tree::Tree;
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
#[derive(Clone)]
pub(super) enum Decider {
    /// Versions of a cluster's filer.
    Entries(Arc<Entries>),
    /// Versions of the mount below itself, whose bytes are kept.
    Kept(Arc<Kept>),
}

impl Decider {
    /// Reads what is served.
    pub(super) fn reader(&self) -> &Arc<Reader> {
        match self {
            Self::Entries(entries) => &entries.reader,
            Self::Kept(kept) => &kept.reader,
        }
    }

    /// Where that is done.
    pub(super) fn runtime(&self) -> &Handle {
        match self {
            Self::Entries(entries) => &entries.runtime,
            Self::Kept(kept) => &kept.runtime,
        }
    }

    /// Whether the filer's events arrive. Without a filer there are none.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Entries(entries) if entries.is_live())
    }

    /// Whether a handle that was opened with `flags` may be served. Who passes the kernel's pages by wants the bytes of the mount below, unless they are the cluster's anyway.
    pub(super) fn serves(&self, flags: i32) -> bool {
        flags & libc::O_ACCMODE == libc::O_RDONLY
            && (flags & libc::O_DIRECT == 0 || matches!(self, Self::Entries(_)))
    }

    /// `file` was opened for reading: finds out who is to answer its reads from now on. Waits for the mount below and for a filer.
    /// Returns what the mount below shows.
    pub(super) fn decide(&self, tree: &Tree, file: &Arc<OpenFile>) -> io::Result<Attributes> {
        let attributes = self.look(tree, file, Whom::Program)?;
        if let Some(Served { version, .. }) = file.node.content.served()
            && version.is_small_and_unread()
        {
            let _runtime = self.runtime().enter();
            self.reader().prefetch_opened(&version);
        }
        Ok(attributes)
    }

    /// The same for a file that nobody need read soon.
    pub(super) fn find_out(&self, tree: &Tree, file: &Arc<OpenFile>) -> io::Result<Attributes> {
        self.look(tree, file, Whom::Nobody)
    }

    fn look(&self, tree: &Tree, file: &Arc<OpenFile>, whom: Whom) -> io::Result<Attributes> {
        let content = &file.node.content;
        let quiet = content.quiet();
        let attributes = file.written_back()?;
        if let Some(quiet) = quiet {
            content.serve(self.find(tree, file, &attributes, quiet, whom), quiet);
        }
        Ok(attributes)
    }

    /// What can be served instead of a file with these attributes, if it has not changed since `quiet`.
    fn find(
        &self,
        tree: &Tree,
        file: &Arc<OpenFile>,
        attributes: &Attributes,
        quiet: Quiet,
        whom: Whom,
    ) -> Option<Served> {
        match self {
            Self::Entries(entries) => entries.agreed(tree, &file.node, attributes, whom),
            Self::Kept(kept) => kept.version(tree, file, attributes, quiet),
        }
    }
}
