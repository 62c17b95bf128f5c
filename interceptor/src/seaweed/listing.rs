//! Listing a directory, page by page.
//!
//! A task requests the pages and sends the entries through a bounded channel. It requests the next
//! page as soon as the last entry of the page before has come, while the consumer still works. It
//! ends when the consumer drops the stream. If a filer fails in the middle of a page, or is down
//! while another is up, the next one goes on after the last name that came: all filers have the
//! same order of names.

use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::entry::Entry;
use super::failover::{CallOptions, FilerAnswer, FilerError};
use super::filer::FilerClient;
use super::pb;
use super::rpc::{FILER_TIMEOUT, Stub, within};
use crate::arrival::Arrival;

/// The name of the call.
const RPC: &str = "ListEntries";
/// The entries of a page. Filers have a limit of their own, 100,000 by default.
const PAGE_SIZE: usize = 4096;
/// After how long without an entry the next filer is asked for a page: a filer may have to skip
/// many expired entries first.
const PAGE_HEDGE_DELAY: Duration = Duration::from_secs(2);
/// Entries that are read ahead of the consumer.
const READ_AHEAD_CAPACITY: usize = 1024;

type Item = Result<Entry, FilerError>;

impl FilerClient {
    /// The first `limit` entries of `directory` after the name `after`, in the order of their
    /// names' bytes, with their chunks. A directory that does not exist has none. An error is the
    /// last item.
    pub fn list(
        &self,
        directory: &str,
        after: &str,
        limit: usize,
    ) -> impl Stream<Item = Item> + Send + Unpin + use<> {
        let (sender, receiver) = mpsc::channel(READ_AHEAD_CAPACITY);
        let (client, directory, after) = (self.clone(), directory.to_owned(), after.to_owned());
        tokio::spawn(async move {
            let task = ListingTask { client, directory, after, limit, sender };
            task.run().await;
        });
        ReceiverStream::new(receiver)
    }
}

struct ListingTask {
    client: FilerClient,
    directory: String,
    /// The last name that came.
    after: String,
    /// How many entries are still to come.
    limit: usize,
    sender: mpsc::Sender<Item>,
}

/// How a page ended.
enum PageEnd {
    /// More entries may follow: the page is full, or the filer failed in the middle.
    More,
    /// There are no more entries.
    Last,
    /// The limit of the listing is reached.
    Limit,
    /// The consumer has dropped the stream.
    Dropped,
}

impl ListingTask {
    async fn run(mut self) {
        loop {
            let before = self.after.clone();
            match self.page().await {
                Ok(PageEnd::More) if self.after != before => {}
                Ok(PageEnd::Last | PageEnd::Limit | PageEnd::Dropped) => return,
                outcome => {
                    let filers = self.client.filers();
                    let same = || filers.refused(RPC, filers.current().0, "the same page came again".into());
                    // Fails only if the consumer is gone.
                    let _ = self.sender.send(Err(outcome.err().unwrap_or_else(same))).await;
                    return;
                }
            }
        }
    }

    /// Reads a page, or the part that one filer sends of it before it fails.
    async fn page(&mut self) -> Result<PageEnd, FilerError> {
        let page = self.limit.min(PAGE_SIZE);
        let request = pb::ListEntriesRequest {
            directory: self.directory.clone(),
            start_from_file_name: self.after.clone(),
            inclusive_start_from: false,
            limit: page as u32,
        };
        let open = |mut stub: Stub| {
            let request = request.clone();
            async move {
                let mut entries = stub.list_entries(request).await?.into_inner();
                let first = entries.message().await?;
                Ok((first, entries))
            }
        };
        let options = CallOptions {
            hedge_after: Some(PAGE_HEDGE_DELAY),
            // All pages should come from one filer, and their entries are cached.
            follow_winner: true,
            ..CallOptions::new(RPC, Arrival::now())
        };
        let client = self.client.clone();
        let filers = client.filers();
        let FilerAnswer { value: (mut next, mut entries), index, .. } = filers.call(options, open).await?;
        let mut count = 0;
        while let Some(message) = next {
            if let Some(raw) = message.entry {
                count += 1;
                self.after.clone_from(&raw.name);
                if let Some(entry) = self.client.decode_living(&self.directory, Some(raw)) {
                    if self.sender.send(Ok(entry)).await.is_err() {
                        return Ok(PageEnd::Dropped);
                    }
                    self.limit -= 1;
                    if self.limit == 0 {
                        return Ok(PageEnd::Limit);
                    }
                }
            }
            let message = tokio::select! {
                biased;
                message = within(FILER_TIMEOUT, entries.message()) => message,
                outage = filers.replaceable(index) => Err(outage.into()),
            };
            next = match message {
                Ok(message) => message,
                Err(failure) => {
                    filers.leave(index, &failure);
                    return Ok(PageEnd::More);
                }
            };
        }
        Ok(if count < page { PageEnd::Last } else { PageEnd::More })
    }
}
