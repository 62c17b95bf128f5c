//! Growing files, towards the kernel.
//!
//! 1. Of a file that is passed through, the resident file is appended to.
//! 2. The kernel drops the pages from the shorter version's end on, and waits for those that are being filled from it.
//! 3. The longer version's attributes are told to who asks.
//! 4. If the file is open, the kernel is given the last byte, by which it learns the size. From then on
//!    it takes answers to what it asked before, which may tell of the shorter version, for outdated.
//!    Did it learn the size from an answer, another could take it back.
//!
//! If that takes long or fails, the node stays as it was, and the file gets another.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::context::MountContext;
use super::opens::Opens;
use crate::namespace::growth::{GrowthHandle, GrowthQueue};
use crate::namespace::{NodeId, NowOrLater};

/// How long it may take until the kernel has dropped the old end.
const GROWTH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the new size is kept back while a reader may hold a page that was dropped. Between finding a page and looking at the
/// size the kernel executes some ten instructions.
const SIZE_DELAY: Duration = Duration::from_millis(50);

/// Pages that are larger lie on more of the file than need be dropped.
const MIN_PAGE_SIZE: u64 = 4096;

/// Has nodes grow as they come. Ends with the mount, which it does not keep.
pub(super) async fn follow(mut growths: GrowthQueue, context: Weak<MountContext>, notifier: Notifier) {
    while let Some(pin) = growths.recv().await {
        let (Some(growing), Some(context)) = (GrowthHandle::new(pin), context.upgrade()) else { continue };
        // A panic drops the growth, which gives it up.
        tokio::spawn(grow(context, notifier.clone(), growing));
    }
}

/// Looks at a file that is said to have been appended to if it is passed through: the kernel does not ask about such a file
/// because somebody reads to its end.
pub(super) fn refresh(context: &MountContext, node: NodeId) {
    let is_passed_through = context.opens.get().is_some_and(|opens| opens.passed_through(node).is_some());
    if is_passed_through && let NowOrLater::Later(stat) = context.namespace.attributes(node) {
        context.runtime.spawn(stat);
    }
}

/// The same for all of them, as nobody has told what was appended to them.
pub(super) fn refresh_all(context: &MountContext) {
    for node in context.opens.get().map(Opens::all_passed_through).unwrap_or_default() {
        refresh(context, node);
    }
}

async fn grow(context: Arc<MountContext>, notifier: Notifier, mut growing: GrowthHandle) {
    let (node, version) = (growing.node(), growing.version().clone());
    let last = match tokio::time::timeout(GROWTH_TIMEOUT, prepare(&context, &notifier, &growing)).await {
        Ok(Ok(last)) => last,
        Ok(Err(error)) => return tracing::debug!(path = version.path(), %error, "a file does not grow"),
        Err(_) => return tracing::debug!(path = version.path(), "a file takes too long to grow"),
    };
    // Who was interrupted while copying from a page that is dropped looks at the size when he goes on.
    if context.opens.get().is_none_or(|opens| opens.is_open(node)) {
        tokio::time::sleep(SIZE_DELAY).await;
    }
    growing.publish();
    if let Some(last) = last {
        let end = version.size() - 1;
        if let Err(error) = blocking(move || notifier.store(INodeNo(node), end, &[last])).await {
            tracing::debug!(%error, "the kernel learns of the new end of a file when it asks");
        }
    }
    drop(growing);
    // What was appended meanwhile was not looked at.
    refresh(&context, node);
}

/// Brings about that nothing is read any more at the end of the shorter version. Returns the last byte of the longer one if
/// anybody may have the file open.
async fn prepare(
    context: &Arc<MountContext>,
    notifier: &Notifier,
    growing: &GrowthHandle,
) -> io::Result<Option<u8>> {
    let (node, before, version) = (growing.node(), growing.before(), growing.version());
    let passed_through = context.opens.get().and_then(|opens| opens.passed_through(node));
    let is_open = context.opens.get().is_none_or(|opens| opens.is_open(node));
    let last = match is_open {
        true => Some(context.reader.last_byte(version).await.map_err(io::Error::other)?),
        false => None,
    };
    let extension = match &passed_through {
        Some(backing) => {
            let handles = {
                let (context, before) = (context.clone(), before.clone());
                move || context.opens.get().map_or(0, |opens| opens.handles(node, &before))
            };
            let extension = context.reader.extend(backing.file().clone(), handles, before, version).await;
            Some(extension.ok_or_else(|| io::Error::other("what was appended cannot be passed through"))?)
        }
        None => None,
    };
    let (context, notifier, size) = (context.clone(), notifier.clone(), before.size());
    // Gone if this takes too long.
    let waiting = Arc::new(());
    let is_waited_for = Arc::downgrade(&waiting);
    blocking(move || {
        // May be the last to hold the file.
        let _passed_through = passed_through;
        if let Some(page_cache) = context.page_cache.get() {
            page_cache.wait_until_idle(node);
        }
        let page = (size / MIN_PAGE_SIZE * MIN_PAGE_SIZE).try_into().map_err(io::Error::other)?;
        notifier.inval_inode(INodeNo(node), page, 0)?;
        match extension.filter(|_| is_waited_for.strong_count() > 0) {
            Some(extension) => extension.complete(),
            None => Ok(()),
        }
    })
    .await?;
    Ok(last)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten()
}
