//! A layer that caches what it has read from the mount below: at every open the bytes are those
//! below.

mod changes;
mod failures;
mod policy;
mod reads;
mod warmup;

use std::fs::{File, FileTimes};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tests::{BindMount, Bindfs, Disk, Layer, Pattern, eventually, host};

const NO_OPTIONS: [&str; 0] = [];

/// Longer than it takes until what has changed is known to be settled.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A mount below a layer.
enum LowerMount {
    Fuse(Bindfs),
    /// A FUSE mount, too, of another kind by its name.
    Ntfs(Disk, BindMount),
    Disk(Disk, BindMount),
}

impl LowerMount {
    /// A FUSE mount, what is kept without being asked for.
    fn fuse() -> Option<Self> {
        (host::can_mount() && host::has_bindfs()).then(|| Self::Fuse(Bindfs::start().unwrap()))
    }

    fn disk() -> Option<Self> {
        let disk = host::disk()?;
        let beside = BindMount::of(&disk.path()).unwrap();
        Some(Self::Disk(disk, beside))
    }

    fn ntfs() -> Option<Self> {
        let disk = host::ntfs_disk()?;
        let beside = BindMount::of(&disk.path()).unwrap();
        Some(Self::Ntfs(disk, beside))
    }

    fn all() -> impl Iterator<Item = Self> {
        [Self::fuse, Self::ntfs, Self::disk].into_iter().filter_map(|below| below())
    }

    /// Where the layer will be.
    fn path(&self) -> PathBuf {
        match self {
            Self::Fuse(bindfs) => bindfs.path(),
            Self::Ntfs(disk, _) | Self::Disk(disk, _) => disk.path(),
        }
    }

    /// The same files, past the layer.
    fn beside(&self) -> PathBuf {
        match self {
            Self::Fuse(bindfs) => bindfs.source(),
            Self::Ntfs(_, beside) | Self::Disk(_, beside) => beside.path(),
        }
    }

    fn attach(self) -> LayerOverMount {
        let layer = match &self {
            Self::Fuse(_) | Self::Ntfs(..) => Layer::over(&self.path(), NO_OPTIONS),
            Self::Disk(..) => Layer::over(&self.path(), ["--read-cache", "on"]),
        };
        LayerOverMount { layer: layer.unwrap(), below: self }
    }
}

/// A layer and what is below.
struct LayerOverMount {
    // In the order in which they are taken down.
    layer: Layer,
    below: LowerMount,
}

impl LayerOverMount {
    fn file(&self, name: &str) -> PathBuf {
        self.below.path().join(name)
    }

    /// The same file, past the layer.
    fn beside(&self, name: &str) -> PathBuf {
        self.below.beside().join(name)
    }

    /// Bytes that the layer has given, by their source.
    fn read(&self, source: &str) -> f64 {
        self.layer.read_bytes(source).unwrap()
    }

    /// Bytes that were read below to be kept.
    fn fetched(&self) -> f64 {
        self.layer.status_page().metric("interceptor_fetch_bytes_total", &["source=\"lower\""]).unwrap()
    }

    /// Opens a file again and again until reads of it are served from the cache; each read must
    /// give `bytes`.
    fn await_cached(&self, name: &str, bytes: &[u8]) {
        let kept = || {
            let before = self.read("cache");
            assert!(uncached(&self.file(name)) == bytes, "{name} has other bytes");
            (self.read("cache") > before).then_some(())
        };
        eventually("reads of what is kept", SETTLE_TIMEOUT, kept).unwrap();
    }
}

/// Has the kernel forget its pages of a file.
fn drop_pages(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// What a file has, past the pages that the kernel keeps.
fn uncached(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    drop_pages(&file);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn content(seed: u64, size: usize) -> Vec<u8> {
    Pattern::new(seed).bytes(0, size)
}

/// Rewrites a file in place and gives it back the time of modification that it had.
fn rewrite_as_if_nothing_was(path: &Path, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    // Both, since bindfs sets no single one.
    file.set_times(FileTimes::new().set_accessed(modified).set_modified(modified)).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), modified);
}
