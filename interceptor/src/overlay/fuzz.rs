//! The overlay under raw requests, over a tmpfs that no path leads to.
//!
//! No request may touch anything outside: the tmpfs has no parent, device files do not work on it,
//! its size is bounded, and no invented name begins with a slash.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_string, fsmount, fsopen, fspick,
};

use super::filesystem::OverlayFs;
use super::inode_limit;
use super::inodes::FdLimits;
use super::lower::{CachePolicy, LowerMount};
use super::lower_source::LowerSource;
use super::tree::LowerTree;
use crate::cache::Cache;
use crate::fuse::affinity::ThreadAffinity;
use crate::fuse::cpu_latency::CpuLatencyQos;
use crate::fuse::fuzz::FuzzRun;
use crate::fuse::handles::Handles;
use crate::fuse::request_tracker::RequestTracker;
use crate::telemetry::Metrics;

/// The content that is read at the end.
const PLAIN: &[u8] = b"no request has named this";

/// A tmpfs to lay the overlay over; `None` without the right to mount.
fn small_tmpfs() -> Option<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    for (key, value) in [("size", "64m"), ("nr_inodes", "5000"), ("mode", "0755")] {
        fsconfig_set_string(&context, key, value).ok()?;
    }
    fsconfig_create(&context).ok()?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).ok()
}

fn enlarge(root: &OwnedFd) {
    let context = fspick(root, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC).unwrap();
    fsconfig_set_string(&context, "size", "80m").unwrap();
    fsconfig_set_string(&context, "nr_inodes", "6000").unwrap();
    fsconfig_reconfigure(&context).unwrap();
}

#[test]
#[cfg_attr(not(is_root), ignore = "needs root")]
fn an_overlay_survives_any_request() {
    let Some(root) = small_tmpfs() else {
        return crate::skipped("a tmpfs to try a layer on takes CAP_SYS_ADMIN");
    };
    let run = FuzzRun::begin();
    let metrics = Metrics::new();
    let lower = LowerMount {
        root: root.try_clone().unwrap(),
        path: "/nowhere".into(),
        source: "tmpfs".into(),
        fs_type: "tmpfs".into(),
        mount_id: 0,
        attributes: MountAttrFlags::empty(),
        allow_other: true,
        kernel_checks: true,
        is_local: run.seed.is_multiple_of(2),
        has_acls: true,
        cache_policy: CachePolicy::Useful,
        has_kernel_ctime: true,
    };
    let cache = Arc::new(Cache::new(16 << 20).unwrap());
    let kept = LowerSource::new(cache, true, metrics.clone(), run.runtime.handle().clone());
    let (over_limit, wakeups) = inode_limit::channel();
    let tree = Arc::new(LowerTree::new(&lower, FdLimits::of(1000), over_limit).unwrap());
    // In the place of the thread that also tells the kernel. It ends with the tree.
    let inodes = Arc::downgrade(tree.inodes());
    std::thread::spawn(move || {
        while let (Ok(()), Some(inodes)) = (wakeups.recv(), inodes.upgrade()) {
            drop(inodes.reclaim());
        }
    });
    let overlay = OverlayFs {
        tree,
        files: Arc::new(Handles::new()),
        directories: Arc::new(Handles::new()),
        metrics: metrics.clone(),
        has_acls: true,
        shows_changes: true,
        source: Some(kept),
        status_api: Arc::new(OnceLock::new()),
        tickets: Arc::default(),
        requests: Arc::new(RequestTracker::new(
            ThreadAffinity::new(false),
            CpuLatencyQos::new(false, &metrics),
        )),
        notifier: Arc::new(OnceLock::new()),
    };
    let (files, directories) = (overlay.files.clone(), overlay.directories.clone());
    let inodes = overlay.tree.inodes().clone();
    let plain = || {
        // Requests may have filled it.
        enlarge(&root);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&root, "fresh", flags, Mode::from_raw_mode(0o644)).unwrap();
        File::from(file).write_all(PLAIN).unwrap();
        ("fresh".into(), PLAIN.to_vec())
    };
    // The root stays.
    run.fuzz(overlay, &["plain"], plain, || files.len() + directories.len() + inodes.len() - 1);
}
