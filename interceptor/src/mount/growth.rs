//! Brings the growth of a file to the kernel, step by step:
//!
//! 1. If the file is passed through, what was appended is written to the resident file.
//! 2. The kernel drops its pages from the end of the shorter version on, and waits for pages that
//!    are being read from it.
//! 3. Attributes are answered from the longer version.
//! 4. If the file is open, the last byte is stored into the kernel's page cache, which sets the
//!    size. From then on the kernel ignores answers to earlier requests, which may carry the size
//!    of the shorter version. A size that it had learned from an answer could be taken back by
//!    such an answer.
//!
//! If that takes too long or fails, the node stays as it was, and the name gets another node.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use super::context::MountContext;
use super::opens::Opens;
use crate::namespace::growth::{GrowthHandle, GrowthQueue};
use crate::namespace::{NodeId, NowOrLater};
use crate::read::CompleteFile;

/// How long the kernel may take to drop the end of the shorter version.
const GROWTH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the new size is held back while a reader may hold a dropped page. Between finding a
/// page and checking the size the kernel executes about ten instructions.
const SIZE_DELAY: Duration = Duration::from_millis(50);

/// The smallest page size in bytes. With larger pages, more than the page with the end is dropped.
const MIN_PAGE_SIZE: u64 = 4096;

/// Grows nodes as the namespace queues them. Ends with the mount, which it does not keep alive.
pub(super) async fn follow(mut growths: GrowthQueue, context: Weak<MountContext>, notifier: Notifier) {
    while let Some(pin) = growths.recv().await {
        let (Some(growing), Some(context)) = (GrowthHandle::new(pin), context.upgrade()) else { continue };
        // A panic drops the handle, which cancels the growth.
        tokio::spawn(grow(context, notifier.clone(), growing));
    }
}

/// Asks the filer for the attributes of a file that may have been appended to, if it is passed
/// through: the kernel does not ask when a reader reaches the end of such a file.
pub(super) fn refresh(context: &MountContext, node: NodeId) {
    let is_passed_through = context.opens.get().is_some_and(|opens| opens.passed_through(node).is_some());
    if is_passed_through && let NowOrLater::Later(stat) = context.namespace.attributes(node) {
        context.runtime.spawn(stat);
    }
}

/// The same for all files that are passed through, after events may have been missed.
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
    // A reader that was interrupted while copying from a dropped page checks the size when it
    // resumes.
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
    // What was appended during the growth has not been checked.
    refresh(&context, node);
}

/// Ensures that nothing at the end of the shorter version is read any more. Returns the last byte
/// of the longer version if the file may be open.
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
            let extension = match backing.file().cloned() {
                Some(CompleteFile::Resident(file)) => {
                    context.reader.extend_resident(file, handles, before, version).await
                }
                Some(CompleteFile::OnDisk(_)) | None => None,
            };
            Some(extension.ok_or_else(|| io::Error::other("what was appended cannot be passed through"))?)
        }
        None => None,
    };
    let (context, notifier, size) = (context.clone(), notifier.clone(), before.size());
    // Dropped when the time is over.
    let waiting = Arc::new(());
    let is_waited_for = Arc::downgrade(&waiting);
    blocking(move || {
        // This may be the last reference to the file.
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
