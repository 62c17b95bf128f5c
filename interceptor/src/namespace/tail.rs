//! The rest of a directory behind a truncated listing.
//!
//! It is read from the filer in pages, each from the last name of the one before on, so that every
//! name which is there all the time comes exactly once. A handle keeps two pages, since the kernel
//! continues at any entry of its last reply. If a program seeks further back, the pages are read
//! and counted again.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;

use super::listing::{DirectoryListing, EntryBatch};
use super::{ChangeStamp, Namespace, NamespaceError, NodeId};
use crate::seaweed::entry::Entry;

/// The largest number of entries in a page.
const MAX_PAGE_ENTRIES: usize = 512;
/// The memory of entries, in bytes, at which a page is full.
const MAX_PAGE_BYTES: usize = 512 << 10;
/// How many pages a handle keeps.
const MAX_PAGES: usize = 2;

/// The rest of a directory, for one handle.
pub(crate) struct ListingTail {
    directory: NodeId,
    start: PageStart,
    pages: VecDeque<Page>,
}

/// Where a page starts.
#[derive(Clone)]
struct PageStart {
    index: usize,
    /// The name of the entry before.
    after: String,
}

struct Page {
    start: PageStart,
    entries: Vec<Arc<Entry>>,
    /// Where the next page starts, if there is one.
    next: Option<PageStart>,
    stamp: Option<ChangeStamp>,
}

impl ListingTail {
    /// The entries behind `listing` of `directory`.
    pub(crate) fn new(directory: NodeId, listing: &DirectoryListing) -> Self {
        let start = PageStart { index: listing.len(), after: listing.last_name().unwrap_or_default() };
        Self { directory, start, pages: VecDeque::new() }
    }

    /// The entries from `index` on, if they are in memory.
    pub(crate) fn try_batch(&self, index: usize) -> Option<EntryBatch> {
        let found = self.pages.iter().find_map(|page| {
            let rest = page.entries.get(index.checked_sub(page.start.index)?..)?;
            (!rest.is_empty()).then(|| EntryBatch { entries: rest.to_vec(), stamp: page.stamp })
        });
        if found.is_some() {
            return found;
        }
        let last = self.pages.back().filter(|page| page.next.is_none())?;
        (index >= last.start.index + last.entries.len())
            .then_some(EntryBatch { entries: Vec::new(), stamp: None })
    }

    /// The same, but asks the filer if necessary.
    pub(crate) async fn batch(
        &mut self,
        namespace: &Namespace,
        index: usize,
    ) -> Result<EntryBatch, NamespaceError> {
        loop {
            if let Some(batch) = self.try_batch(index) {
                return Ok(batch);
            }
            if self.pages.front().is_some_and(|page| index < page.start.index) {
                self.pages.clear();
            }
            let start = self.pages.back().and_then(|page| page.next.clone());
            let page = namespace.page(self.directory, start.unwrap_or_else(|| self.start.clone())).await?;
            if self.pages.len() == MAX_PAGES {
                self.pages.pop_front();
            }
            self.pages.push_back(page);
        }
    }
}

impl Namespace {
    async fn page(&self, directory: NodeId, start: PageStart) -> Result<Page, NamespaceError> {
        let (path, stamp) = {
            let mut state = self.state.lock();
            (state.nodes.path(directory), state.directory_stamp(directory))
        };
        let mut found = self.filer.list(&path, &start.after, MAX_PAGE_ENTRIES);
        let mut page = Page { entries: Vec::new(), next: None, stamp, start };
        let (mut count, mut bytes, mut after) = (0, 0, None);
        while let Some(entry) = found.next().await {
            let entry = entry.map_err(NamespaceError::Filer)?;
            count += 1;
            bytes += entry.memory();
            after = Some(entry.name.clone());
            if !self.is_hidden(directory, &entry.name) {
                page.entries.push(Arc::new(entry));
            }
            if bytes >= MAX_PAGE_BYTES {
                break;
            }
        }
        if count == MAX_PAGE_ENTRIES || bytes >= MAX_PAGE_BYTES {
            let index = page.start.index + page.entries.len();
            page.next = after.map(|after| PageStart { index, after });
        }
        Ok(page)
    }
}

#[cfg(test)]
impl ListingTail {
    /// The number of entries in memory.
    pub(super) fn entries(&self) -> usize {
        self.pages.iter().map(|page| page.entries.len()).sum()
    }
}
