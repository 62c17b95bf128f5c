//! The layout of a version, resolved once for all of its readers.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::ReadError;
use super::layout::FileLayout;
use crate::arrival::Arrival;

/// A request that has waited for at most so much less than another shares its failure: it would
/// have about a second left.
const MAX_REMAINING_TIME: Duration = Duration::from_secs(1);

/// A layout that is resolved at most once, and how the last attempt has failed.
#[derive(Debug, Default)]
pub(super) struct LayoutCell {
    layout: OnceCell<FileLayout>,
    failure: Mutex<Option<Failure>>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    /// How long the request had waited by then.
    waited: Duration,
    error: ReadError,
}

impl LayoutCell {
    /// The layout, if it is known.
    pub(super) fn get(&self) -> Option<&FileLayout> {
        self.layout.get()
    }

    /// The layout, which is `layout` from now on. If another thread was faster, its layout, which
    /// is the same.
    pub(super) fn set(&self, layout: FileLayout) {
        let _ = self.layout.set(layout);
    }

    /// The layout, for a request that arrived at `arrival`. Is resolved by one request; the others
    /// wait for it. `shares_failure` tells that all of them share its failure however long they
    /// have waited.
    pub(super) async fn get_or_resolve(
        &self,
        arrival: Arrival,
        shares_failure: bool,
        resolve: impl AsyncFnOnce() -> Result<FileLayout, ReadError>,
    ) -> Result<&FileLayout, ReadError> {
        self.layout
            .get_or_try_init(async || {
                if let Some(error) = self.failure_for(arrival, shares_failure) {
                    return Err(error);
                }
                let resolved = resolve().await;
                if let Err(error) = &resolved {
                    self.fail(Instant::now(), arrival, error.clone());
                }
                resolved
            })
            .await
    }

    /// The failure of another request, if this one was waiting for the same layout then, and about
    /// as long; else it has time left to try by itself.
    fn failure_for(&self, arrival: Arrival, shares_failure: bool) -> Option<ReadError> {
        let failure = self.failure.lock();
        let failure = failure.as_ref().filter(|failure| failure.at >= arrival.deadline(Duration::ZERO))?;
        let has_waited = shares_failure || arrival.elapsed() + MAX_REMAINING_TIME >= failure.waited;
        has_waited.then(|| failure.error.clone())
    }

    /// Notes that a request that arrived at `arrival` has failed.
    fn fail(&self, at: Instant, arrival: Arrival, error: ReadError) {
        let waited = at - arrival.deadline(Duration::ZERO);
        *self.failure.lock() = Some(Failure { at, waited, error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_time_left_tries_by_itself() {
        let cell = LayoutCell::default();
        let now = Instant::now();
        let arrived = |ago: u64| Arrival::at(now - Duration::from_secs(ago));
        cell.fail(now, arrived(10), ReadError::NoRoom);
        let shares = |arrival, always| cell.failure_for(arrival, always).is_some();
        assert!(shares(arrived(10), false) && shares(arrived(9), false));
        assert!(!shares(arrived(2), false), "it may wait as long");
        assert!(!shares(Arrival::at(now + Duration::from_millis(1)), true), "it came later");
        assert!(shares(arrived(2), true), "another attempt would take as long again");
    }
}
