//! What is never kept, and what options are refused.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::{Layer, eventually, host};

use crate::{LayerOverMount, LowerMount, NO_OPTIONS, SETTLE_TIMEOUT, content, uncached};

/// Opens a file again and again, for so long that a layer with a cache would have cached it; each
/// read must give `bytes`.
fn read_for_a_while(path: &Path, bytes: &[u8]) {
    let changed = fs::metadata(path).unwrap().ctime();
    let later = || {
        assert!(uncached(path) == bytes);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now.as_secs() as i64 > changed + 6).then_some(())
    };
    eventually("some seconds", SETTLE_TIMEOUT, later).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_is_kept_where_that_is_not_wanted() {
    for below in LowerMount::all() {
        let path = below.path();
        fs::write(below.beside().join("file"), content(1, 100_000)).unwrap();
        let layer = match &below {
            LowerMount::Fuse(_) | LowerMount::Ntfs(..) => Layer::over(&path, ["--read-cache", "off"]),
            // By itself the kernel keeps what is on a disk as well.
            LowerMount::Disk(..) => Layer::over(&path, NO_OPTIONS),
        };
        let stage = LayerOverMount { layer: layer.unwrap(), below };
        read_for_a_while(&stage.file("file"), &content(1, 100_000));
        assert_eq!(stage.read("cache"), 0.0);
        assert!(stage.read("lower") >= 100_000.0);
    }
}

/// A tmpfs; gone with this value.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount() -> Self {
        let home = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), home.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(home)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mapping_of_a_file_in_memory_shows_at_the_next_open() {
    if !host::can_mount() {
        return;
    }
    let below = Tmpfs::mount();
    let path = below.0.path().join("file");
    fs::write(&path, content(1, 4096)).unwrap();
    let before = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: the page lies within the file, which keeps its size while it is mapped; nothing else
    // uses the memory.
    let page = unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 4096, protection, flags, before.as_raw_fd(), 0)
    };
    assert_ne!(page, libc::MAP_FAILED);
    let store = |byte: u8| {
        // SAFETY: the page is mapped until the end of the test.
        unsafe { page.cast::<u8>().write_volatile(byte) }
    };
    // The page is present and writable from here on, so the kernel does not see further stores.
    store(0);
    let layer = Layer::over(below.0.path(), NO_OPTIONS).unwrap();
    let changed = fs::metadata(&path).unwrap().ctime();
    let (mut byte, begun) = (0u8, Instant::now());
    while begun.elapsed() < Duration::from_secs(5) {
        byte = byte.wrapping_add(1);
        store(byte);
        assert_eq!(fs::read(&path).unwrap()[0], byte);
    }
    assert_eq!(fs::metadata(&path).unwrap().ctime(), changed);
    // SAFETY: it was mapped above with this length, and is not used any more.
    unsafe { libc::munmap(page, 4096) };
    drop(before);
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_cannot_be_right_is_refused() {
    if !host::can_mount() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let below = Tmpfs::mount();
    let at = below.0.path();
    for (options, code, words) in [
        (&["--read-cache", "on"][..], 1, "mapping changes in tmpfs"),
        (&["--read-cache", "off", "--filer", "localhost:1"], 2, "leave one of them out"),
    ] {
        let log = home.path().join("log");
        let mut command = Command::new(interceptor_program().unwrap());
        command.args(["attach", "--status-addr", "none"]).args(options).arg(at);
        let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
        let status = process.wait(Duration::from_secs(30)).unwrap();
        let said = fs::read_to_string(log).unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!Layer::is_at(at));
    }
}
