//! What a test needs of the machine, and how one that lacks it says so.
//!
//! libtest has no "skipped" result and hides what a passing test prints. A test that cannot run here therefore writes
//! `skipped: NAME: REASON` straight to standard error, where a runner can count the lines, and returns.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Disk, engine, mount, posix, weed};

/// Whether this machine can run clusters and mounts: `weed`, `interceptor`, `/dev/fuse` and the right to mount. If not, says so in
/// the name of the running test and gives `false`: the test then returns.
#[must_use]
pub fn can_mount() -> bool {
    let lack = if let Err(error) = weed::find() {
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

/// Whether this machine can run clusters and engines: `weed` and `rdma-engine`. If not, says so like [`can_mount`].
#[must_use]
pub fn can_serve() -> bool {
    let lack = weed::find().and_then(|_| engine::program()).err();
    if let Some(error) = &lack {
        skipped(&format!("{error:#}"));
    }
    lack.is_none()
}

/// Whether this machine has `bindfs`, a FUSE file system of others. If not, says so as [`can_mount`] does.
#[must_use]
pub fn has_bindfs() -> bool {
    let there = std::process::Command::new("bindfs").arg("--version").output().is_ok();
    if !there {
        skipped("there is no bindfs; `cargo xtask setup` installs it");
    }
    there
}

/// Whether this machine has Chromium. If not, says so as [`can_mount`] does.
#[must_use]
pub fn has_browser() -> bool {
    let there = crate::browser::find().is_some();
    if !there {
        skipped("there is no Chromium; `cargo xtask setup` installs it");
    }
    there
}

/// Whether this machine has `program`, which answers to `arguments`. If not, says so as [`can_mount`] does.
#[must_use]
pub fn has_program(program: &str, arguments: &[&str]) -> bool {
    let there = std::process::Command::new(program).args(arguments).output().is_ok();
    if !there {
        skipped(&format!("there is no {program}; `cargo xtask setup` installs it"));
    }
    there
}

/// A new ext4 of 512 MiB for the running test. If this machine cannot have one, says so as [`can_mount`] does.
#[must_use]
pub fn disk() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    Disk::mount(512 << 20).inspect_err(|error| skipped(&format!("no ext4 in a file: {error:#}"))).ok()
}

/// The same, whose listings tell no types.
#[must_use]
pub fn disk_without_types() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    let disk = Disk::without_types(64 << 20);
    disk.inspect_err(|error| skipped(&format!("no ext4 in a file: {error:#}"))).ok()
}

/// A new NTFS of 64 MiB for the running test, of which a FUSE daemon takes care. If this machine cannot have one, says so as [`can_mount`] does.
#[must_use]
pub fn ntfs_disk() -> Option<Disk> {
    if !can_mount() {
        return None;
    }
    Disk::ntfs(64 << 20).inspect_err(|error| skipped(&format!("no NTFS in a file: {error:#}"))).ok()
}

/// Whether the suites of others are here. If not, says so as [`can_mount`] does.
#[must_use]
pub fn has_posix_suites() -> bool {
    let lack = ["pjdfstest", "fsx"].into_iter().find(|name| posix::program(name).is_none());
    if let Some(name) = lack {
        skipped(&format!("there is no {name}; `cargo xtask test` brings it"));
    }
    lack.is_none()
}

/// The transports that engines and mounts of this machine have between them, unless `MOUNT_ENGINES` names the only one to be tested.
/// RDMA takes a device, as there is in the virtual machine.
#[must_use]
pub fn transports() -> Vec<String> {
    if let Ok(only) = std::env::var("MOUNT_ENGINES") {
        return vec![only];
    }
    let all = ["local", "tcp", "verbs"];
    all[..if has_rdma_link() { 3 } else { 2 }].iter().map(|&name| name.to_owned()).collect()
}

/// Whether this machine can do RDMA. If not, says so as [`can_mount`] does.
#[must_use]
pub fn has_rdma() -> bool {
    let there = has_rdma_link();
    if !there {
        skipped("there is no RDMA device");
    }
    there
}

/// Whether a port of an RDMA device is up. Asked of the kernel's own files, because this crate is built before the headers of libibverbs
/// are installed.
fn has_rdma_link() -> bool {
    let entries = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    entries("/sys/class/infiniband".into())
        .flat_map(|device| entries(device.path().join("ports")))
        .any(|port| fs::read_to_string(port.path().join("state")).is_ok_and(|state| state.contains("ACTIVE")))
}

/// Ends the connection of the FUSE mount at `path`, as an administrator does with one that hangs. Takes root.
///
/// # Panics
/// When the kernel does not do it.
pub fn abort_connection(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    let device = fs::metadata(path).expect("a mount that answers").dev();
    // At their usual place the kernel's control files may be missing, as in containers.
    let place = tempfile::tempdir().expect("a scratch directory");
    let (kind, none) = (Some("fusectl"), None::<&str>);
    nix::mount::mount(kind, place.path(), kind, nix::mount::MsFlags::empty(), none).expect("fusectl");
    let control = place.path().join(nix::sys::stat::minor(device).to_string()).join("abort");
    let aborted = fs::write(control, "1");
    nix::mount::umount(place.path()).expect("fusectl is unmounted");
    aborted.expect("the connection can be aborted");
}

/// Writes the line that counts the running test as skipped.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", thread.name().unwrap_or("main"));
}
