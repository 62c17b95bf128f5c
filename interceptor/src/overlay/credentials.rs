//! Acting as the user who asked.
//!
//! The kernel has checked by attributes and access control lists what a caller may do before it asks us. What is left is whose a new
//! file shall be: for that a thread takes on the caller's ids for file systems, and keeps its capabilities, without which it would be
//! checked a second time and without the caller's supplementary groups, of which a request does not tell. Where the daemon
//! of the mount below checks rights itself, a thread takes on the ids for everything it asks, since they are what that daemon is told.
//!
//! Ids, capabilities and, after [`own_umask`], the umask are those of one thread: other threads are not concerned.

use std::cell::Cell;
use std::fs;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups};

/// Who asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) user: u32,
    pub(super) group: u32,
    /// The number of the thread, which waits for the answer; 0 if it has none here.
    pub(super) thread: u32,
}

/// What a request does not tell of its caller.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    groups: Vec<u32>,
    /// Capabilities that hold for the files of this host.
    capabilities: CapabilitySet,
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

impl Caller {
    /// As [`act`](Self::act), in the caller's groups and with those of the capabilities `own` only that the caller has
    /// itself: for what depends on them below and the kernel has not decided before.
    pub(super) fn act_within(self, own: CapabilitySet) -> ActingWithin {
        // The thread's, and so those of none of its callers.
        let groups = getgroups().unwrap_or_default();
        let standing = self.standing();
        let given = standing.groups.iter().map(|group| rustix::fs::Gid::from_raw(*group)).collect::<Vec<_>>();
        if let Err(error) = set_thread_groups(&given) {
            tracing::warn!(%error, "cannot take on the groups of a caller");
        }
        let acting = self.act();
        set_effective(|permitted| permitted - (own - standing.capabilities));
        ActingWithin { _acting: acting, groups }
    }

    /// Of a thread that cannot be looked at: nothing.
    fn standing(self) -> Standing {
        let of_thread = format!("/proc/{}", self.thread);
        let status = fs::read_to_string(format!("{of_thread}/status")).unwrap_or_default();
        let mut standing = Standing::of(&status);
        // In another user namespace they are for the files of that.
        let namespace = |of: &str| fs::read_link(format!("{of}/ns/user")).ok();
        if namespace(&of_thread).is_none_or(|its| namespace("/proc/self") != Some(its)) {
            standing.capabilities = CapabilitySet::empty();
        }
        standing
    }
}

impl Standing {
    /// Of a thread with this `/proc/TID/status`.
    fn of(status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let groups = field("Groups:").unwrap_or_default();
        let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        Self {
            groups: groups.split_whitespace().filter_map(|group| group.parse().ok()).collect(),
            capabilities: CapabilitySet::from_bits_retain(effective.unwrap_or_default()),
        }
    }
}

/// While it lives, its thread acts as a caller without all of its own capabilities.
pub(super) struct ActingWithin {
    _acting: Acting,
    groups: Vec<Gid>,
}

impl Drop for ActingWithin {
    fn drop(&mut self) {
        set_effective(|permitted| permitted);
        let groups = self.groups.iter().map(|group| rustix::fs::Gid::from_raw(group.as_raw()));
        if let Err(error) = set_thread_groups(&groups.collect::<Vec<_>>()) {
            tracing::warn!(%error, "cannot leave the groups of a caller");
        }
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
    set_effective(|permitted| permitted);
}

/// Gives the calling thread those of the capabilities it may have.
fn set_effective(of_permitted: impl Fn(CapabilitySet) -> CapabilitySet) {
    let set = capabilities(None).and_then(|sets| {
        set_capabilities(None, CapabilitySets { effective: of_permitted(sets.permitted), ..sets })
    });
    if let Err(error) = set {
        tracing::warn!(%error, "cannot set capabilities; what the caller may do can be refused");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_in_its_groups_with_its_capabilities() {
        let status = "Name:\tsh\nGroups:\t4 24 1000 \nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000200010\n";
        let capabilities = CapabilitySet::SYS_ADMIN | CapabilitySet::FSETID;
        assert_eq!(Standing::of(status), Standing { groups: vec![4, 24, 1000], capabilities });
        let nothing = Standing { groups: Vec::new(), capabilities: CapabilitySet::empty() };
        let caller = |thread| Caller { user: 1, group: 1, thread };
        assert_eq!(caller(0).standing(), nothing, "of another process namespace");
        let own = Standing::of(&fs::read_to_string("/proc/thread-self/status").unwrap());
        assert_eq!(caller(nix::unistd::gettid().as_raw() as u32).standing(), own);
    }
}
