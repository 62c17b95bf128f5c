//! Mounts below the layer that hang or die.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;

use crate::{LayerOverMount, LowerMount, content};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_below_that_hangs_holds_up_who_asks_it() {
    let Some(LowerMount::Fuse(below)) = LowerMount::fuse() else { return };
    below.put("file", &content(1, 5_000_000)).unwrap();
    below.put("other", &content(2, 9_000_000)).unwrap();
    let mut stage = LowerMount::Fuse(below).attach();
    stage.await_cached("file", &content(1, 5_000_000));
    // A large file is fetched when it is read.
    let other = File::open(stage.file("other")).unwrap();
    let LowerMount::Fuse(bindfs) = &mut stage.below else { unreachable!("it is a FUSE mount") };
    bindfs.signal(Signal::SIGSTOP);
    let reading = std::thread::spawn(move || {
        let mut bytes = vec![0; 9_000_000];
        other.read_exact_at(&mut bytes, 0).map(|()| bytes)
    });
    let opening = std::thread::spawn({
        let path = stage.file("file");
        move || fs::read(path)
    });
    // The status API answers meanwhile; these two are not answered.
    for _ in 0..20 {
        stage.read("lower");
    }
    assert!(!reading.is_finished() && !opening.is_finished());
    let LowerMount::Fuse(bindfs) = &mut stage.below else { unreachable!("it is a FUSE mount") };
    bindfs.signal(Signal::SIGCONT);
    assert!(reading.join().unwrap().unwrap() == content(2, 9_000_000));
    assert!(opening.join().unwrap().unwrap() == content(1, 5_000_000));
    assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_below_that_dies_gives_its_own_error() {
    let Some(LowerMount::Fuse(below)) = LowerMount::fuse() else { return };
    below.put("file", &content(1, 100_000)).unwrap();
    below.put("other", &content(2, 9_000_000)).unwrap();
    let stage = LowerMount::Fuse(below).attach();
    stage.await_cached("file", &content(1, 100_000));
    let other = File::open(stage.file("other")).unwrap();
    let LayerOverMount { layer, below: LowerMount::Fuse(mut below) } = stage else {
        unreachable!("it is a FUSE mount")
    };
    below.kill_daemon();
    let error = File::open(below.path().join("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let error = other.read_at(&mut [0; 10], 5_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    drop(other);
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}
