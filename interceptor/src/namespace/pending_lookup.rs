//! Lookups that wait for the filer, shared by all requests for the same name.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::{BoxFuture, Shared};

use super::{ChangeStamp, NamespaceError};
use crate::seaweed::entry::Entry;

/// A lookup that waits for the filer.
pub(super) struct PendingLookup {
    pub(super) reply: Shared<BoxFuture<'static, FilerReply>>,
    /// Set if an event for the name came after the request was sent.
    overtaken: Arc<AtomicBool>,
}

/// What the filer said of a name.
#[derive(Clone)]
pub(super) struct FilerReply {
    pub(super) entry: Result<Option<Arc<Entry>>, NamespaceError>,
    /// The state of the namespace that the reply is current for. `None` if an event overtook the
    /// reply, or if no event will tell when it changes.
    pub(super) stamp: Option<ChangeStamp>,
}

impl PendingLookup {
    /// A lookup whose reply sees `overtaken`.
    pub(super) fn new(reply: Shared<BoxFuture<'static, FilerReply>>, overtaken: Arc<AtomicBool>) -> Self {
        Self { reply, overtaken }
    }

    /// Marks the reply as possibly older than what is known by now.
    pub(super) fn overtake(&self) {
        self.overtaken.store(true, Ordering::Relaxed);
    }
}
