//! What a directory holds behind the place where its listing was cut off.
//!
//! It is read from the filer in pages, each of which goes on after the last name of the one before, so that every name that is
//! there all the time comes exactly once. A handle keeps two pages: the kernel goes on at any entry of the last reply. A
//! program that goes further back has the pages read again, and counted.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;

use super::listing::{Batch, Listing};
use super::{ChangeStamp, Namespace, NamespaceError, NodeId};
use crate::seaweed::entry::Entry;

/// The most entries of a page.
const PAGE_ENTRIES: usize = 512;
/// The memory at which a page is full.
const PAGE_BYTES: usize = 512 << 10;
/// How many pages are kept.
const PAGES: usize = 2;

/// The rest of a directory for one handle.
pub(crate) struct Tail {
    directory: NodeId,
    start: Position,
    pages: VecDeque<Page>,
}

/// Where a page begins.
#[derive(Clone)]
struct Position {
    index: usize,
    /// The name of the entry before.
    after: String,
}

struct Page {
    start: Position,
    entries: Vec<Arc<Entry>>,
    /// Where the next page begins, if there is one.
    next: Option<Position>,
    stamp: Option<ChangeStamp>,
}

impl Tail {
    /// What comes after `listing` of `directory`.
    pub(crate) fn new(directory: NodeId, listing: &Listing) -> Self {
        let start = Position { index: listing.len(), after: listing.last_name().unwrap_or_default() };
        Self { directory, start, pages: VecDeque::new() }
    }

    /// The entries from `index` on, if they are there.
    pub(crate) fn try_batch(&self, index: usize) -> Option<Batch> {
        let found = self.pages.iter().find_map(|page| {
            let rest = page.entries.get(index.checked_sub(page.start.index)?..)?;
            (!rest.is_empty()).then(|| Batch { entries: rest.to_vec(), stamp: page.stamp })
        });
        if found.is_some() {
            return found;
        }
        let last = self.pages.back().filter(|page| page.next.is_none())?;
        (index >= last.start.index + last.entries.len()).then_some(Batch { entries: Vec::new(), stamp: None })
    }

    /// The same, having the filer asked.
    pub(crate) async fn batch(
        &mut self,
        namespace: &Namespace,
        index: usize,
    ) -> Result<Batch, NamespaceError> {
        loop {
            if let Some(batch) = self.try_batch(index) {
                return Ok(batch);
            }
            if self.pages.front().is_some_and(|page| index < page.start.index) {
                self.pages.clear();
            }
            let start = self.pages.back().and_then(|page| page.next.clone());
            let page = namespace.page(self.directory, start.unwrap_or_else(|| self.start.clone())).await?;
            if self.pages.len() == PAGES {
                self.pages.pop_front();
            }
            self.pages.push_back(page);
        }
    }
}

impl Namespace {
    async fn page(&self, directory: NodeId, start: Position) -> Result<Page, NamespaceError> {
        let (path, stamp) = {
            let mut state = self.state.lock();
            (state.nodes.path(directory), state.directory_stamp(directory))
        };
        let mut found = self.filer.list(&path, &start.after, PAGE_ENTRIES);
        let mut page = Page { entries: Vec::new(), next: None, stamp, start };
        let (mut count, mut bytes, mut after) = (0, 0, None);
        while let Some(entry) = found.next().await {
            let entry = entry.map_err(NamespaceError::Filer)?;
            count += 1;
            bytes += entry.memory();
            after = Some(entry.name.clone());
            if !self.hidden(directory, &entry.name) {
                page.entries.push(Arc::new(entry));
            }
            if bytes >= PAGE_BYTES {
                break;
            }
        }
        if count == PAGE_ENTRIES || bytes >= PAGE_BYTES {
            let index = page.start.index + page.entries.len();
            page.next = after.map(|after| Position { index, after });
        }
        Ok(page)
    }
}

#[cfg(test)]
impl Tail {
    /// How many entries it keeps.
    pub(super) fn entries(&self) -> usize {
        self.pages.iter().map(|page| page.entries.len()).sum()
    }
}
