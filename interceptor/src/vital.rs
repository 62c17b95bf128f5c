//! What becomes of a daemon when one of its long-lived threads or tasks panics.
//!
//! Where the next piece of work can be done without the one that panicked, that one is all that is
//! lost ([`contained`], [`contained_task`]). Where it cannot, as with an invalidation, without
//! which the kernel would go on showing what is not so any more, the panic ends the daemon
//! ([`thread`], [`task`], [`failed`]), and with it the mount: one that is half alive is worse than
//! none. Either way the panic has been counted and logged by the time (`daemon::panics`).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::thread::JoinHandle;

use futures::FutureExt;
use tokio::sync::watch;

/// The name of what has failed first.
static FAILED: LazyLock<watch::Sender<Option<&'static str>>> = LazyLock::new(|| watch::Sender::new(None));

/// Does a piece of work. `None` if it panics, which must leave nothing behind that the next piece
/// relies on.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The same for what has to be waited for.
pub(crate) async fn contained_task<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

/// Starts a thread without which the daemon is to end.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn thread(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let vital = Vital(name);
    std::thread::Builder::new().name(name.into()).spawn(move || {
        let _vital = vital;
        work();
    })
}

/// The work of a task without which the daemon is to end.
pub(crate) async fn task<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let _vital = Vital(name);
    work.await
}

/// Resolves when something has panicked without which the daemon is to end; with its name.
pub(crate) async fn failed() -> &'static str {
    let mut failed = FAILED.subscribe();
    let name = failed.wait_for(Option::is_some).await.ok().and_then(|name| *name);
    // The sender is there for ever.
    name.unwrap_or("unknown")
}

/// The daemon ends because of a panic.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` has panicked, without which this program cannot go on; the mount was removed. The log says where: please report it"
)]
pub(crate) struct VitalPartFailed(pub(crate) &'static str);

/// Tells when it is dropped by a panic.
struct Vital(&'static str);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            FAILED.send_if_modified(|failed| failed.replace(failed.unwrap_or(self.0)).is_none());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that has to do with `FAILED`, which is one for the process, and keeps the name of the
    /// first.
    #[tokio::test]
    async fn a_panic_costs_what_it_is_said_to() {
        assert_eq!(contained(|| 7), Some(7));
        assert_eq!(contained(|| -> u32 { panic!("test") }), None);
        assert_eq!(contained_task(async { 7 }).await, Some(7));
        assert_eq!(contained_task(async { panic!("test") }).await, None::<u32>);
        assert!(thread("ends", || ()).unwrap().join().is_ok());
        tokio::spawn(task("ends as well", async {})).await.unwrap();
        let aborted = tokio::spawn(task("is ended", std::future::pending::<()>()));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert_eq!(failed().now_or_never(), None, "all of these were to end");

        tokio::spawn(task("panics", async { panic!("test") })).await.unwrap_err();
        assert_eq!(failed().now_or_never(), Some("panics"));
        thread("panics later", || panic!("test")).unwrap().join().unwrap_err();
        assert_eq!(failed().await, "panics", "the first");
    }
}
