//! Everything at once: eight readers at random offsets, files that are replaced all the time, and
//! a cache that is far too small.
//!
//! A read must give bytes of one version of the file, which was current between the open and the
//! end of the read.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Filer, Mount, Pattern, data, host, reading};

const DURATION: Duration = Duration::from_secs(60);
const READERS: u64 = 8;
const FILES: u64 = 4;
/// What `doc/SEMANTICS.md` allows between a change and the first look that must see it.
const MAX_STALENESS: Duration = Duration::from_secs(1);
const MIB: usize = 1 << 20;
/// The files, about 18 MiB each, and this one do not fit into the cache of 64 MiB.
const BYSTANDER_SIZE: usize = 96 * MIB;
const MAX_READ: usize = 600_000;

/// A version of one of the files: its number, then random bytes. Sizes differ.
#[derive(Clone, Copy)]
struct Content {
    file: u64,
    version: u64,
}

impl Content {
    fn size(self) -> usize {
        12 * MIB + (self.file * 1_000_003 + self.version * 777_777) as usize % (12 * MIB)
    }

    fn at(self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = Pattern::new(self.file << 32 | self.version).bytes(offset as u64, length);
        for (at, byte) in (offset..8).zip(&mut bytes) {
            *byte = self.version.to_le_bytes()[at];
        }
        bytes
    }
}

/// The versions of a file that a current read may still give.
#[derive(Default)]
struct VersionHistory {
    /// When the writing of each version began.
    begun: Vec<Instant>,
    /// When each version was certainly there.
    done: Vec<Instant>,
}

impl VersionHistory {
    fn replace(this: &Mutex<Self>, filer: &Filer, file: u64) {
        let version = {
            let mut history = this.lock().unwrap();
            history.begun.push(Instant::now());
            history.begun.len() as u64 - 1
        };
        let content = Content { file, version };
        filer.put(&format!("/stress/{file}"), &content.at(0, content.size()), "").unwrap();
        this.lock().unwrap().done.push(Instant::now());
    }

    /// Whether `version` was current at some time between `opened` and now.
    fn was_current(&self, version: usize, opened: Instant) -> bool {
        let superseded = self.done.get(version + 1);
        version < self.begun.len() && superseded.is_none_or(|done| *done + MAX_STALENESS >= opened)
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn readers_get_current_versions_with_passthrough() {
    stress(&[]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn readers_get_current_versions_without_passthrough() {
    stress(&["--no-passthrough"]);
}

fn stress(options: &[&str]) {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(2).start().unwrap();
    let filer = cluster.filer();
    let histories: Vec<_> = (0..FILES).map(|_| Mutex::new(VersionHistory::default())).collect();
    for (file, history) in (0..).zip(&histories) {
        VersionHistory::replace(history, &filer, file);
    }
    let bystander = Pattern::new(99).bytes(0, BYSTANDER_SIZE);
    filer.put("/stress/bystander", &bystander, "").unwrap();
    let mut mount = Mount::builder(&cluster).args(["--cache-size", "64MiB"]).args(options).start().unwrap();

    let ends = Instant::now() + DURATION;
    let (opens, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let over = || Instant::now() >= ends || failed.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let (mount, bystander, histories, opens, over) = (&mount, &bystander, &histories, &opens, &over);
        let mut readers = Vec::new();
        for reader in 0..READERS {
            readers.push(scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(reader);
                let mut buffer = vec![0; MAX_READ];
                while !over() {
                    if dice.random_ratio(1, 6) {
                        let path = mount.file("/stress/bystander");
                        reading::random(&path, bystander, dice.random(), 8);
                        continue;
                    }
                    let file = dice.random_range(0..FILES);
                    check_one_open(mount, &histories[file as usize], file, &mut dice, &mut buffer);
                    opens.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let writer = scope.spawn(move || {
            let mut dice = StdRng::seed_from_u64(READERS);
            while !over() {
                let file = dice.random_range(0..FILES);
                let before = opens.load(Ordering::Relaxed);
                VersionHistory::replace(&histories[file as usize], &filer, file);
                // Readers set the pace: a version that is never opened tests nothing.
                while opens.load(Ordering::Relaxed) < before + READERS as usize && !over() {
                    thread::yield_now();
                }
            }
        });
        for thread in readers.into_iter().chain([writer]) {
            if let Err(panic) = thread.join() {
                failed.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
    let versions: usize = histories.iter().map(|history| history.lock().unwrap().begun.len()).sum();
    println!("{opens:?} opens of {versions} versions");
    assert!(versions > 20 && opens.into_inner() > 200, "hardly anything happened");
    assert!(mount.is_running());
    let used = mount.metric("interceptor_cache_bytes", &["state=\"used\""]).unwrap();
    assert!(used <= (64 * MIB) as f64, "the cache holds {used} bytes");
}

/// Opens a file once and reads it at some places.
fn check_one_open(
    mount: &Mount,
    history: &Mutex<VersionHistory>,
    file: u64,
    dice: &mut StdRng,
    buffer: &mut [u8],
) {
    let opened = Instant::now();
    let handle = File::open(mount.file(&format!("/stress/{file}"))).unwrap();
    reading::read_full(&handle, &mut buffer[..8], 0).unwrap();
    let version = u64::from_le_bytes(buffer[..8].try_into().unwrap());
    {
        let history = history.lock().unwrap();
        assert!(
            history.was_current(version as usize, opened),
            "file {file} gave version {version}, {:?} after the next one was there; the newest is {}",
            opened - history.done[version as usize + 1],
            history.begun.len() - 1
        );
    }
    let content = Content { file, version };
    for _ in 0..dice.random_range(1..16) {
        let offset = dice.random_range(0..content.size() + 4096);
        let read = &mut buffer[..dice.random_range(1..MAX_READ)];
        let count = reading::read_full(&handle, read, offset as u64).unwrap();
        let expected = content.at(offset, read.len().min(content.size().saturating_sub(offset)));
        let what = format!("file {file}, version {version} at {offset}+{}", read.len());
        data::assert_same(&what, &read[..count], &expected);
    }
}
