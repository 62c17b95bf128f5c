//! Listing a directory, page by page.
//!
//! A task asks for the pages and hands the entries over through a bounded channel: the next page is requested as soon
//! as the last entry of the one before arrived, while the consumer still works. A consumer that goes away ends the
//! task. When a filer fails in the middle, the next one goes on after the last name that came: the order of names is
//! the same on all of them.

use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::entry::Entry;
use super::failover::{Failure, Filer, FilerError, within};
use super::filer::{FilerClient, PATIENCE};
use super::pb;

/// The most entries of a request. The filer has a limit of its own, 100,000 unless configured otherwise.
const PAGE: usize = 4096;
/// How long the next entry may take. A filer may have to skip many expired ones.
const IDLE_DEADLINE: Duration = Duration::from_secs(15);
/// Entries that may wait for the consumer.
const AHEAD: usize = 1024;

type Item = Result<Entry, FilerError>;

/// At most `limit` entries of `directory` that come after the name `after`. Fewer are all.
pub(super) fn list(
    client: FilerClient,
    directory: String,
    after: String,
    limit: usize,
) -> impl Stream<Item = Item> + Send + Unpin + use<> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let listing = Listing { client, directory, after, limit, sender };
        listing.run().await;
    });
    ReceiverStream::new(receiver)
}

struct Listing {
    client: FilerClient,
    directory: String,
    /// The last name that came.
    after: String,
    /// How many entries are still to come.
    limit: usize,
    sender: mpsc::Sender<Item>,
}

/// How a page ended.
enum Page {
    Full,
    Short,
    /// No more are wanted.
    Enough,
    /// Nobody takes the entries any more.
    Abandoned,
}

impl Listing {
    async fn run(mut self) {
        let client = self.client.clone();
        let mut attempts = client.filers().attempts("ListEntries", PATIENCE);
        loop {
            let before = self.after.clone();
            let page = self.page(attempts.filer()).await;
            let advanced = self.after != before;
            if advanced {
                attempts.progressed();
            }
            let outcome = match page {
                Ok(Page::Full) if advanced => Ok(()),
                Ok(Page::Full) => Err(attempts.refused("the same page came again".into())),
                Ok(Page::Short | Page::Enough | Page::Abandoned) => return,
                Err(failure) => attempts.failed(failure).await,
            };
            if let Err(error) = outcome {
                // A consumer that is gone does not miss the error.
                let _ = self.sender.send(Err(error)).await;
                return;
            }
        }
    }

    async fn page(&mut self, filer: &Filer) -> Result<Page, Failure> {
        let page = self.limit.min(PAGE);
        let request = pb::ListEntriesRequest {
            directory: self.directory.clone(),
            start_from_file_name: self.after.clone(),
            inclusive_start_from: false,
            limit: page as u32,
        };
        let mut stub = filer.calls();
        let mut entries = within(IDLE_DEADLINE, stub.list_entries(request)).await?.into_inner();
        let mut count = 0;
        while let Some(message) = within(IDLE_DEADLINE, entries.message()).await? {
            let Some(raw) = message.entry else { continue };
            count += 1;
            self.after.clone_from(&raw.name);
            let Some(entry) = self.client.living(&self.directory, Some(raw)) else { continue };
            if self.sender.send(Ok(entry)).await.is_err() {
                return Ok(Page::Abandoned);
            }
            self.limit -= 1;
            if self.limit == 0 {
                return Ok(Page::Enough);
            }
        }
        Ok(if count < page { Page::Short } else { Page::Full })
    }
}
