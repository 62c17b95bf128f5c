//! Panics in long-lived threads and tasks.
//!
//! If the next piece of work does not depend on the one that panicked, only that one is lost
//! ([`contained`], [`contained_task`]). If it does, the panic ends the daemon and the mount
//! ([`thread`], [`task`], [`failed`]). An invalidation is such work: without it the kernel would
//! go on showing stale data, and a mount that works in part is worse than none. In both cases the
//! panic hook has counted and logged the panic before (`daemon::panics`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};

use futures::FutureExt;
use tokio::sync::watch;

/// The name of the first vital part that panicked.
static FAILED: LazyLock<watch::Sender<Option<&'static str>>> = LazyLock::new(|| watch::Sender::new(None));

/// Runs a piece of work. Returns `None` if it panics. Later pieces must not depend on state that a
/// panic leaves inconsistent.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// As [`contained`], for a future.
pub(crate) async fn contained_task<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

/// Starts a vital thread: a panic in it ends the daemon.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(move || report(name, catch_unwind(AssertUnwindSafe(work))))
}

/// Runs the work of a vital task: a panic in it ends the daemon.
pub(crate) async fn task<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    report(name, AssertUnwindSafe(work).catch_unwind().await)
}

/// Resolves to the name of the first vital thread or task that panics.
pub(crate) async fn failed() -> &'static str {
    let mut failed = FAILED.subscribe();
    let name = failed.wait_for(Option::is_some).await.ok().and_then(|name| *name);
    // The sender is static, so waiting cannot fail.
    name.unwrap_or("unknown")
}

/// A vital part has panicked, and the daemon ends.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` has panicked, without which this program cannot go on; the mount was removed. The log says where: please report it"
)]
pub(crate) struct VitalPartFailed(pub(crate) &'static str);

/// The outcome of the work of a vital part. If it has panicked, its name is recorded and the panic
/// goes on. Work that is dropped because something else panics is not recorded.
fn report<T>(name: &'static str, outcome: thread::Result<T>) -> T {
    outcome.unwrap_or_else(|panic| {
        FAILED.send_if_modified(|failed| failed.replace(failed.unwrap_or(name)).is_none());
        resume_unwind(panic)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test for everything that involves `FAILED`, which is static and keeps the first name.
    #[tokio::test]
    async fn contained_panics_are_survived_and_vital_ones_reported() {
        assert_eq!(contained(|| 7), Some(7));
        assert_eq!(contained(|| -> u32 { panic!("test") }), None);
        assert_eq!(contained_task(async { 7 }).await, Some(7));
        assert_eq!(contained_task(async { panic!("test") }).await, None::<u32>);
        assert!(thread("ends", || ()).unwrap().join().is_ok());
        tokio::spawn(task("ends as well", async {})).await.unwrap();
        let aborted = tokio::spawn(task("is ended", std::future::pending::<()>()));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        let dropped_by_a_panic = contained(|| {
            let mut work = Box::pin(task("is dropped", std::future::pending::<()>()));
            assert!(work.as_mut().now_or_never().is_none());
            panic!("test")
        });
        assert_eq!(
            (dropped_by_a_panic, failed().now_or_never()),
            (None::<u32>, None),
            "none of these panicked"
        );

        tokio::spawn(task("panics", async { panic!("test") })).await.unwrap_err();
        assert_eq!(failed().now_or_never(), Some("panics"));
        thread("panics later", || panic!("test")).unwrap().join().unwrap_err();
        assert_eq!(failed().await, "panics", "the first");
    }
}
