//! What a test needs of the machine, and how a test that lacks it is skipped.
//!
//! A test that needs something carries `cfg_attr(not(CONDITION), ignore)`; the conditions are
//! looked up when the suites are built (`build.rs`). They are a first guess: programs may be
//! missing later, and a suite may run in a virtual machine. So each test checks again when it
//! runs. libtest has no "skipped" result and hides what a passing test prints. A test that cannot
//! run therefore writes `skipped: NAME: REASON` straight to standard error, where `cargo xtask
//! test` counts the lines, and returns.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Disk, engine, mount, tools};

/// Whether this machine can run clusters and mounts: it needs `weed`, `interceptor`, `/dev/fuse`
/// and the right to mount. If not, the running test is reported as skipped and must return.
#[must_use]
pub fn can_mount() -> bool {
    let lack = if let Err(error) = tools::weed() {
        Some(format!("{error:#}"))
    } else if let Err(error) = mount::interceptor_program() {
        Some(format!("{error:#}"))
    } else if !Path::new("/dev/fuse").exists() {
        Some("there is no /dev/fuse".to_owned())
    } else if !nix::unistd::geteuid().is_root() {
        Some("mounting needs root here".to_owned())
    } else {
        None
    };
    match lack {
        None => true,
        Some(reason) => {
            skipped(&reason);
            false
        }
    }
}

/// Whether this machine can run clusters and engines: it needs `weed` and `rdma-engine`. Reports
/// as [`can_mount`] does.
#[must_use]
pub fn can_serve() -> bool {
    let lack = tools::weed().and_then(|_| engine::program()).err();
    if let Some(error) = &lack {
        skipped(&format!("{error:#}"));
    }
    lack.is_none()
}

/// Whether this machine has `bindfs`, a foreign FUSE file system. Reports as [`can_mount`] does.
#[must_use]
pub fn has_bindfs() -> bool {
    let there = std::process::Command::new("bindfs").arg("--version").output().is_ok();
    if !there {
        skipped("there is no bindfs; `cargo xtask setup` installs it");
    }
    there
}

/// Whether this machine has Chromium. Reports as [`can_mount`] does.
#[must_use]
pub fn has_browser() -> bool {
    let there = tools::browser().is_some();
    if !there {
        skipped("there is no Chromium; `cargo xtask setup` installs it");
    }
    there
}

/// Whether this machine has `program`, which is run with `arguments`. Reports as [`can_mount`]
/// does.
#[must_use]
pub fn has_program(program: &str, arguments: &[&str]) -> bool {
    let there = std::process::Command::new(program).args(arguments).output().is_ok();
    if !there {
        skipped(&format!("there is no {program}; `cargo xtask setup` installs it"));
    }
    there
}

/// A new ext4 of 512 MiB for the running test, if this machine can mount one. Reports as
/// [`can_mount`] does.
#[must_use]
pub fn disk() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    Disk::mount(512 << 20).inspect_err(|error| skipped(&format!("no ext4 in a file: {error:#}"))).ok()
}

/// The same, with listings that do not contain the types of entries.
#[must_use]
pub fn disk_without_types() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    let disk = Disk::without_types(64 << 20);
    disk.inspect_err(|error| skipped(&format!("no ext4 in a file: {error:#}"))).ok()
}

/// A new XFS of 512 MiB for the running test, if this machine can mount one. Reports as
/// [`can_mount`] does.
#[must_use]
pub fn xfs_disk() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    Disk::xfs(512 << 20).inspect_err(|error| skipped(&format!("no XFS in a file: {error:#}"))).ok()
}

/// A new NTFS of 64 MiB for the running test, served by a FUSE daemon, if this machine can mount
/// one. Reports as [`can_mount`] does.
#[must_use]
pub fn ntfs_disk() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    Disk::ntfs(64 << 20).inspect_err(|error| skipped(&format!("no NTFS in a file: {error:#}"))).ok()
}

/// Whether the public suites for file systems are here. Reports as [`can_mount`] does.
#[must_use]
pub fn has_posix_suites() -> bool {
    let lack = ["pjdfstest", "fsx"].into_iter().find(|name| tools::posix_suite(name).is_none());
    if let Some(name) = lack {
        skipped(&format!("there is no {name}; `cargo xtask test` brings it"));
    }
    lack.is_none()
}

/// The transports that engines and mounts of this machine have in common, unless `MOUNT_ENGINES`
/// names the only one to be tested. RDMA needs a device, which the virtual machine has.
#[must_use]
pub fn transports() -> Vec<String> {
    if let Ok(only) = std::env::var("MOUNT_ENGINES") {
        return vec![only];
    }
    let all = ["local", "tcp", "verbs"];
    all[..if has_rdma_link() { 3 } else { 2 }].iter().map(|&name| name.to_owned()).collect()
}

/// Whether this machine can do RDMA. Reports as [`can_mount`] does.
#[must_use]
pub fn has_rdma() -> bool {
    let there = has_rdma_link();
    if !there {
        skipped("there is no RDMA device");
    }
    there
}

/// Whether a port of an RDMA device is up, by the kernel's own files: this crate is built before
/// the headers of libibverbs are installed.
fn has_rdma_link() -> bool {
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    entries("/sys/class/infiniband".into())
        .flat_map(|device| entries(device.path().join("ports")))
        .any(|port| fs::read_to_string(port.path().join("state")).is_ok_and(|state| state.contains("ACTIVE")))
}

/// Aborts the connection of the FUSE mount at `path`, as an administrator does with one that
/// hangs. Needs root.
///
/// # Panics
/// When the kernel does not do it.
pub fn abort_connection(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path).expect("a mount that answers").dev();
    // In containers the kernel's control files may be missing at their usual place.
    let place = tempfile::tempdir().expect("a scratch directory");
    let (kind, none) = (Some("fusectl"), None::<&str>);
    nix::mount::mount(kind, place.path(), kind, nix::mount::MsFlags::empty(), none).expect("fusectl");
    let control = place.path().join(nix::sys::stat::minor(device).to_string()).join("abort");
    let aborted = fs::write(control, "1");
    nix::mount::umount(place.path()).expect("fusectl is unmounted");
    aborted.expect("the connection can be aborted");
}

/// Reports the running test as skipped.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", thread.name().unwrap_or("main"));
}
