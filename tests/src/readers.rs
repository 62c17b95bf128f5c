//! Threads that read files of known content all the time, while a test changes the mount under
//! them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::{Pattern, eventually};

/// How many files there are.
const FILES: u64 = 8;

/// The content of file `number`, of about 100 kB.
#[must_use]
pub fn content(number: u64) -> Vec<u8> {
    Pattern::new(number).bytes(0, 100_000 + number as usize)
}

/// Makes the files in `path`, with the names `file-NUMBER`.
///
/// # Panics
/// When they cannot be written.
pub fn put_files(path: &Path) {
    for number in 0..FILES {
        fs::write(path.join(format!("file-{number}")), content(number)).expect("a file is written");
    }
}

/// Four threads open, read, compare and close the files in `path` before, while and after `during`
/// runs. Returns how many files were read.
///
/// # Panics
/// When an open or a read fails, or gives other bytes.
pub fn read_under(path: &Path, during: impl FnOnce()) -> u64 {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..4u64 {
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let number = (reader * 7 + round) % FILES;
                    let name = path.join(format!("file-{number}"));
                    let bytes = fs::read(&name).unwrap_or_else(|error| panic!("{name:?}: {error}"));
                    assert!(bytes == content(number), "{name:?} has other bytes");
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // The readers are stopped on every way out, or the scope would wait for them for ever.
        let stopped = Stop(&stop);
        let more = |than: u64| {
            let read = || (rounds.load(Ordering::Relaxed) > than + 50).then_some(());
            eventually("more reads", Duration::from_secs(30), read).expect("the readers go on");
        };
        more(0);
        during();
        more(rounds.load(Ordering::Relaxed));
        drop(stopped);
    });
    rounds.into_inner()
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
