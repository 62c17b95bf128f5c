//! Following the filer's metadata events, on behalf of a file system.

use tokio::sync::mpsc;

use crate::namespace::Namespace;
use crate::seaweed::subscribe::{EntryChange, Notice};

/// A file system that follows a filer's events.
pub(crate) trait NoticeHandler {
    /// Logged when events arrive.
    const LIVE_MESSAGE: &'static str;
    /// Logged when events cease to arrive.
    const LOST_MESSAGE: &'static str;

    /// The names that the events are about.
    fn namespace(&self) -> &Namespace;

    /// Events arrive from now on; the namespace already knows.
    fn on_live(&self) {}

    /// Events may be missed from now on; the namespace already knows.
    fn on_lost(&self) {}

    /// Something changed on the filer. The handler [applies](Namespace::apply) the change to the
    /// namespace.
    fn on_change(&self, change: &EntryChange);
}

/// Handles notices until their sender is gone; then events count as lost.
pub(crate) async fn follow<H: NoticeHandler>(handler: &H, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Live => {
                tracing::info!("{}", H::LIVE_MESSAGE);
                handler.namespace().connected();
                handler.on_live();
            }
            // The subscription has logged why its stream broke.
            Notice::Lost { .. } => {
                tracing::info!("{}", H::LOST_MESSAGE);
                handler.namespace().disconnected();
                handler.on_lost();
            }
            Notice::Change(change) => handler.on_change(&change),
        }
    }
    handler.namespace().disconnected();
    handler.on_lost();
}
