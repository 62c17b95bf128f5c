//! The directory of the filer that a mount shows as its root.

use std::sync::Arc;
use std::time::Instant;

use super::{Filer, FilerFailure, Namespace, NamespaceError, NodeStat, ROOT};
use crate::arrival::Arrival;
use crate::seaweed::entry::{Entry, FileKind};
use crate::seaweed::subscribe::EntryRef;

/// Why a directory of the filer cannot be the root of a mount.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The filer has no such directory.
    #[error("the filer has no directory {path}; create it or choose another with --filer-path")]
    Missing {
        /// The path on the filer.
        path: String,
    },
    /// The filer has a file there.
    #[error("{path} on the filer is not a directory; only directories can be mounted")]
    NotDirectory {
        /// The path on the filer.
        path: String,
    },
    /// The filer did not answer.
    #[error("{0}")]
    Filer(FilerFailure),
}

/// The entry of the directory `path`, to start a namespace with.
pub(crate) async fn find_root(filer: &dyn Filer, path: &str) -> Result<Entry, RootError> {
    let (parent, name) = parent_and_name(path);
    match filer.lookup(parent, name, Arrival::now()).await.map_err(RootError::Filer)?.entry {
        Some(entry) if entry.attr.kind == FileKind::Directory => Ok(entry),
        Some(_) => Err(RootError::NotDirectory { path: path.into() }),
        None => Err(RootError::Missing { path: path.into() }),
    }
}

/// The directory that holds `path`, and the name in it. That of `/` is empty.
fn parent_and_name(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/').unwrap_or(("", path)) {
        ("", name) => ("/", name),
        other => other,
    }
}

impl Namespace {
    /// Whether an event is about the root itself.
    pub(super) fn is_root(&self, entry: &EntryRef) -> bool {
        let (parent, name) = parent_and_name(&self.options.root_path);
        let is_parent = entry.directory.trim_end_matches('/') == parent.trim_end_matches('/');
        is_parent && !name.is_empty() && entry.entry.name == name
    }

    /// Asks the filer for the attributes of the root.
    pub(super) async fn refresh_root(self: Arc<Self>, arrival: Arrival) -> Result<NodeStat, NamespaceError> {
        let (epoch, changes) = {
            let state = self.state.lock();
            (state.epoch, state.root_changes)
        };
        let (parent, name) = parent_and_name(&self.options.root_path);
        let found = self.filer.lookup(parent, name, arrival).await.map_err(NamespaceError::Filer)?;
        // If the directory does not exist, the mount is empty and shows the last known attributes.
        // They are not cached: filers do not announce a directory that is moved to this path to
        // subscribers of the path alone.
        let entry = found.entry.filter(|entry| entry.attr.kind == FileKind::Directory);
        let mut state = self.state.lock();
        let current =
            entry.is_some() && found.is_followed && (state.epoch, state.root_changes) == (epoch, changes);
        if let Some(entry) = entry {
            state.nodes.update(ROOT, &Arc::new(entry));
        }
        if let Some(node) = state.nodes.get_mut(ROOT) {
            node.stale = !current;
            node.verified = (epoch, Instant::now());
        }
        state.stat(ROOT).ok_or(NamespaceError::Stale)
    }
}
