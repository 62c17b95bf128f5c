//! Warnings that the programs log where they take a branch that should be rare.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::mount::interceptor_program;
use tests::{Bindfs, host};

use crate::{PAGE, can_observe};

/// The offset from which on the programs leave out read requests.
const LEFT_OUT_FROM: u64 = 1 << 62;

/// A tmpfs, which has files of any size; unmounted with this value.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The lines that `interceptor observe` logs at a level about many read requests that its programs
/// leave out.
fn logged_about_far_reads(level: &str) -> Vec<String> {
    let bindfs = Bindfs::start().unwrap();
    let tmpfs = Tmpfs::mount(bindfs.source().join("tmpfs"));
    File::create(tmpfs.0.join("far")).unwrap().set_len(i64::MAX as u64).unwrap();
    let far = bindfs.path().join("tmpfs/far");
    let far = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(far).unwrap();
    let mut observe = Command::new(interceptor_program().unwrap())
        .args(["observe", "--json", "--interval", "100ms"])
        .arg(bindfs.path())
        .env("RUST_LOG", level)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reports = BufReader::new(observe.stdout.take().unwrap()).lines();
    // The mount is watched from the first report on.
    reports.next().unwrap().unwrap();
    let mut buffer = vec![0; 2 * PAGE as usize];
    let aligned = buffer.as_ptr().align_offset(PAGE as usize);
    for _ in 0..100 {
        let page = &mut buffer[aligned..aligned + PAGE as usize];
        assert_eq!(far.read_at(page, LEFT_OUT_FROM).unwrap(), PAGE as usize);
    }
    // Between two reports, the log of the programs is flushed.
    for _ in 0..3 {
        reports.next().unwrap().unwrap();
    }
    observe.kill().unwrap();
    let log = String::from_utf8(observe.wait_with_output().unwrap().stderr).unwrap();
    log.lines().filter(|line| line.contains(&LEFT_OUT_FROM.to_string())).map(str::to_owned).collect()
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn a_frequent_warning_is_logged_once() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let lines = logged_about_far_reads("warn");
    assert!(matches!(&lines[..], [line] if line.contains("WARN")), "{lines:?}");
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn no_warning_is_logged_at_level_error() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    assert_eq!(logged_about_far_reads("error"), Vec::<String>::new());
}
