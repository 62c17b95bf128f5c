//! Acting as the user who asked.
//!
//! The kernel has checked by attributes and access control lists what a caller may do before it asks us. What is left is whose a new
//! file shall be: for that a thread takes on the caller's ids for file systems, and keeps its capabilities, without which it would be
//! checked a second time and without the caller's supplementary groups, of which a request does not tell. Where the daemon
//! of the mount below checks rights itself, a thread takes on the ids for everything it asks, since they are what that daemon is told.
//!
//! Ids, capabilities and, after [`own_umask`], the umask are those of one thread: other threads are not concerned.

use std::cell::Cell;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) user: u32,
    pub(super) group: u32,
}

/// While it lives, its thread acts as a caller.
pub(super) struct Acting {
    is_root: bool,
}

impl Caller {
    /// The calling thread acts as this user from now on, with the capabilities it had.
    pub(super) fn act(self) -> Acting {
        let is_root = (self.user, self.group) == (0, 0);
        if !is_root {
            // In this order: the right to take on a group goes with the user.
            setfsgid(Gid::from_raw(self.group));
            setfsuid(Uid::from_raw(self.user));
            keep_capabilities();
        }
        Acting { is_root }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if !self.is_root {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
    }
}

/// With another user's id the kernel withdraws the capabilities that concern files; they are still permitted.
fn keep_capabilities() {
    let raised = capabilities(None)
        .and_then(|sets| set_capabilities(None, CapabilitySets { effective: sets.permitted, ..sets }));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot keep capabilities; what the caller may do can be refused");
    }
}

/// Has the calling thread create files with this umask.
pub(super) fn own_umask(mask: u32) {
    thread_local! {
        static IS_OWN: Cell<bool> = const { Cell::new(false) };
    }
    IS_OWN.with(|is_own| {
        if !is_own.get() {
            match unshare(CloneFlags::CLONE_FS) {
                Ok(()) => is_own.set(true),
                Err(error) => tracing::warn!(%error, "threads share their umask"),
            }
        }
    });
    umask(Mode::from_bits_truncate(mask & 0o777));
}
