//! Negotiation of capabilities with the kernel (`FUSE_INIT`).

use std::sync::Once;

use fuser::{InitFlags, KernelConfig};

/// How many background requests (readahead, writeback) the kernel may have in flight. Its default
/// of 12 starves readahead.
const MAX_BACKGROUND: u16 = 256;

/// Requests the capabilities that a file system can do without, logs those that the kernel lacks,
/// and sets the limits of background requests.
///
/// `FUSE_ABORT_ERROR` is always requested: it tells an abort of the connection from an unmount.
pub(crate) fn negotiate(config: &mut KernelConfig, wanted: &[InitFlags]) {
    let mut missing = InitFlags::empty();
    for flag in wanted.iter().chain([&InitFlags::FUSE_ABORT_ERROR]) {
        if config.add_capabilities(*flag).is_err() {
            missing |= *flag;
        }
    }
    // Each request thread negotiates with the same kernel, so one line is enough.
    static LOGGED: Once = Once::new();
    if !missing.is_empty() {
        LOGGED.call_once(|| {
            tracing::info!(?missing, "this kernel lacks FUSE capabilities; going on without them");
        });
    }
    // Neither call fails for a number above zero.
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);
}
