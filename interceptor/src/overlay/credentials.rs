//! Impersonation: a request thread takes on the ids of the calling program.
//!
//! The kernel has checked the caller's rights by mode bits and access control lists before it
//! sends a request. What is left is the owner of a new file. For that a thread sets the caller's
//! `fsuid` and `fsgid` and keeps its own capabilities; else rights would be checked a second time,
//! without the caller's supplementary groups, which a request does not carry. Where the lower
//! daemon checks rights, a thread impersonates the caller in every call, since the daemon is told
//! these ids.
//!
//! Ids, capabilities and, after [`own_umask`], the umask belong to one thread and do not affect
//! others.

use std::cell::Cell;
use std::fs;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getgroups, setfsgid, setfsuid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups};

/// The calling program, as a request names it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) user: u32,
    pub(super) group: u32,
    /// The thread that waits for the reply; 0 if it is in another pid namespace.
    pub(super) thread: u32,
}

/// What `/proc` tells of the caller beyond its request.
#[derive(Debug, PartialEq, Eq)]
struct ThreadCredentials {
    groups: Vec<u32>,
    /// Effective capabilities, if they hold in this user namespace.
    capabilities: CapabilitySet,
}

/// Resets the thread's ids when dropped.
pub(super) struct ScopedCredentials {
    is_root: bool,
}

impl Caller {
    /// Sets the thread's `fsuid` and `fsgid` to the caller's. Capabilities stay.
    pub(super) fn impersonate(self) -> ScopedCredentials {
        let is_root = (self.user, self.group) == (0, 0);
        if !is_root {
            // The group first: with another `fsuid` the thread may not set it.
            setfsgid(Gid::from_raw(self.group));
            setfsuid(Uid::from_raw(self.user));
            restore_capabilities();
        }
        ScopedCredentials { is_root }
    }

    /// As [`impersonate`](Self::impersonate), with the caller's supplementary groups, and without
    /// those of the capabilities `checked` that the caller lacks. For what the lower mount decides
    /// by them and the kernel has not decided before.
    pub(super) fn impersonate_restricted(self, checked: CapabilitySet) -> RestrictedCredentials {
        // The groups of this thread, which belong to none of its callers.
        let groups = getgroups().unwrap_or_default();
        let credentials = self.thread_credentials();
        let groups_of_caller =
            credentials.groups.iter().map(|group| rustix::fs::Gid::from_raw(*group)).collect::<Vec<_>>();
        if let Err(error) = set_thread_groups(&groups_of_caller) {
            tracing::warn!(%error, "cannot take on the groups of a caller");
        }
        let acting = self.impersonate();
        set_effective(|permitted| permitted - (checked - credentials.capabilities));
        RestrictedCredentials { _credentials: acting, groups }
    }

    /// The caller's groups and capabilities; none if its thread cannot be inspected.
    fn thread_credentials(self) -> ThreadCredentials {
        let of_thread = format!("/proc/{}", self.thread);
        let status = fs::read_to_string(format!("{of_thread}/status")).unwrap_or_default();
        let mut credentials = ThreadCredentials::of(&status);
        // Capabilities in another user namespace do not hold for this host's files.
        let namespace = |of: &str| fs::read_link(format!("{of}/ns/user")).ok();
        if namespace(&of_thread).is_none_or(|its| namespace("/proc/self") != Some(its)) {
            credentials.capabilities = CapabilitySet::empty();
        }
        credentials
    }
}

impl ThreadCredentials {
    /// Parses `/proc/TID/status`.
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

/// Resets the thread's ids, groups and capabilities when dropped.
pub(super) struct RestrictedCredentials {
    _credentials: ScopedCredentials,
    groups: Vec<Gid>,
}

impl Drop for RestrictedCredentials {
    fn drop(&mut self) {
        set_effective(|permitted| permitted);
        let groups = self.groups.iter().map(|group| rustix::fs::Gid::from_raw(group.as_raw()));
        if let Err(error) = set_thread_groups(&groups.collect::<Vec<_>>()) {
            tracing::warn!(%error, "cannot leave the groups of a caller");
        }
    }
}

impl Drop for ScopedCredentials {
    fn drop(&mut self) {
        if !self.is_root {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
    }
}

/// Makes the permitted capabilities effective again: `setfsuid` drops those that concern files.
fn restore_capabilities() {
    set_effective(|permitted| permitted);
}

/// Sets the thread's effective capabilities to a function of the permitted ones.
fn set_effective(of_permitted: impl Fn(CapabilitySet) -> CapabilitySet) {
    let set = capabilities(None).and_then(|sets| {
        set_capabilities(None, CapabilitySets { effective: of_permitted(sets.permitted), ..sets })
    });
    if let Err(error) = set {
        tracing::warn!(%error, "cannot set capabilities; what the caller may do can be refused");
    }
}

/// Gives the thread a umask of its own, and sets it.
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
        assert_eq!(
            ThreadCredentials::of(status),
            ThreadCredentials { groups: vec![4, 24, 1000], capabilities }
        );
        let nothing = ThreadCredentials { groups: Vec::new(), capabilities: CapabilitySet::empty() };
        let caller = |thread| Caller { user: 1, group: 1, thread };
        assert_eq!(caller(0).thread_credentials(), nothing, "of another process namespace");
        let own = ThreadCredentials::of(&fs::read_to_string("/proc/thread-self/status").unwrap());
        assert_eq!(caller(nix::unistd::gettid().as_raw() as u32).thread_credentials(), own);
    }
}
