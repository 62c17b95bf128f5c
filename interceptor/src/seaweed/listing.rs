//! Listing a directory, page by page.
//!
//! A task asks for the pages and hands the entries over through a bounded channel: the next page is requested as soon
//! as the last entry of the one before arrived, while the consumer still works. A consumer that goes away ends the
//! task. When a filer fails in the middle, or falls silent while another answers, the next one goes on after the last
//! name that came: the order of names is the same on all of them.

use std::time::Duration;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::entry::Entry;
use super::failover::{Answered, CallOptions, FILER_TIMEOUT, FilerError, Stub, within};
use super::filer::FilerClient;
use super::pb;
use crate::arrival::Arrival;

/// The call, for people.
const RPC: &str = "ListEntries";
/// The most entries of a request. The filer has a limit of its own, 100,000 unless configured otherwise.
const PAGE: usize = 4096;
/// How long a filer may take to begin a page before the next one is asked for it: it may have to skip many expired entries.
const SLOW_PAGE: Duration = Duration::from_secs(2);
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
    /// The limit was reached, or the filer failed in the middle.
    More,
    /// With the directory.
    Last,
    /// No more are wanted.
    Enough,
    /// Nobody takes the entries any more.
    Abandoned,
}

impl Listing {
    async fn run(mut self) {
        loop {
            let before = self.after.clone();
            match self.page().await {
                Ok(Page::More) if self.after != before => {}
                Ok(Page::Last | Page::Enough | Page::Abandoned) => return,
                outcome => {
                    let filers = self.client.filers();
                    let same = || filers.refused(RPC, filers.current().0, "the same page came again".into());
                    // A consumer that is gone does not miss the error.
                    let _ = self.sender.send(Err(outcome.err().unwrap_or_else(same))).await;
                    return;
                }
            }
        }
    }

    /// Brings a page, or what one filer sends of it before it fails.
    async fn page(&mut self) -> Result<Page, FilerError> {
        let page = self.limit.min(PAGE);
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
            hedge_after: Some(SLOW_PAGE),
            // All pages shall be of one filer, and what they say is remembered.
            follow_winner: true,
            ..CallOptions::new(RPC, Arrival::now())
        };
        let client = self.client.clone();
        let filers = client.filers();
        let Answered { value: (mut next, mut entries), index, .. } = filers.call(options, open).await?;
        let mut count = 0;
        while let Some(message) = next {
            if let Some(raw) = message.entry {
                count += 1;
                self.after.clone_from(&raw.name);
                if let Some(entry) = self.client.living(&self.directory, Some(raw)) {
                    if self.sender.send(Ok(entry)).await.is_err() {
                        return Ok(Page::Abandoned);
                    }
                    self.limit -= 1;
                    if self.limit == 0 {
                        return Ok(Page::Enough);
                    }
                }
            }
            let message = tokio::select! {
                biased;
                message = within(FILER_TIMEOUT, entries.message()) => message,
                silence = filers.replaceable(index) => Err(silence.into()),
            };
            next = match message {
                Ok(message) => message,
                Err(failure) => {
                    filers.leave(index, &failure);
                    return Ok(Page::More);
                }
            };
        }
        Ok(if count < page { Page::Last } else { Page::More })
    }
}
