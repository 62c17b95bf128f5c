//! A layer that keeps what it has read from a mount below of whatever kind: the same bytes as below, at every open.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use interceptor::warmup::ticket::READ_TICKET_XATTR;
use nix::fcntl::{AT_FDCWD, PosixFadviseAdvice, RenameFlags, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::user::{as_nobody, xattr};
use tests::{Beside, Bindfs, Disk, Layer, Pattern, eventually, host, posix};

const NONE: [&str; 0] = [];

/// Longer than it takes until what has changed is known to be settled.
const SETTLED: Duration = Duration::from_secs(30);

/// A mount below a layer.
enum Below {
    Fuse(Bindfs),
    /// A FUSE mount, too, of another kind by its name.
    Ntfs(Disk, Beside),
    Disk(Disk, Beside),
}

impl Below {
    /// A FUSE mount, what is kept without being asked for.
    fn fuse() -> Option<Self> {
        (host::can_mount() && host::has_bindfs()).then(|| Self::Fuse(Bindfs::start().unwrap()))
    }

    fn disk() -> Option<Self> {
        let disk = host::disk()?;
        let beside = Beside::of(&disk.path()).unwrap();
        Some(Self::Disk(disk, beside))
    }

    fn ntfs() -> Option<Self> {
        let disk = host::ntfs_disk()?;
        let beside = Beside::of(&disk.path()).unwrap();
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

    fn attach(self) -> Stage {
        let layer = match &self {
            Self::Fuse(_) | Self::Ntfs(..) => Layer::over(&self.path(), NONE),
            Self::Disk(..) => Layer::over(&self.path(), ["--read-cache", "on"]),
        };
        Stage { layer: layer.unwrap(), below: self }
    }
}

/// A layer and what is below.
struct Stage {
    // In the order in which they are taken down.
    layer: Layer,
    below: Below,
}

impl Stage {
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

    /// Opens a file again and again until reads of it come from what is kept; what is read is `bytes` every time.
    fn await_kept(&self, name: &str, bytes: &[u8]) {
        let kept = || {
            let before = self.read("registered");
            assert!(uncached(&self.file(name)) == bytes, "{name} has other bytes");
            (self.read("registered") > before).then_some(())
        };
        eventually("reads of what is kept", SETTLED, kept).unwrap();
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

/// Has two names change places.
fn exchange(one: &Path, other: &Path) {
    nix::fcntl::renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
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

#[test]
fn what_is_read_again_comes_from_memory() {
    let sizes = [1, 4096, 100_000, 5_000_000, 9_000_001];
    for below in Below::all() {
        for size in sizes {
            fs::write(below.beside().join(size.to_string()), content(size as u64, size)).unwrap();
        }
        let stage = below.attach();
        for size in sizes {
            stage.await_kept(&size.to_string(), &content(size as u64, size));
        }
        // All of it is there by now.
        for size in sizes {
            assert!(uncached(&stage.file(&size.to_string())) == content(size as u64, size), "{size}");
        }
        let (lower, registered) = (stage.read("lower"), stage.read("registered"));
        for size in sizes {
            assert!(uncached(&stage.file(&size.to_string())) == content(size as u64, size), "{size}");
        }
        assert_eq!(stage.read("lower"), lower);
        let total = sizes.iter().sum::<usize>() as f64;
        assert!(stage.read("registered") - registered >= total);

        let mut random = StdRng::seed_from_u64(1);
        for size in sizes {
            let name = size.to_string();
            let (file, own) =
                (File::open(stage.file(&name)).unwrap(), File::open(stage.beside(&name)).unwrap());
            for _ in 0..50 {
                let (offset, len) =
                    (random.random_range(0..=size as u64 + 10), random.random_range(1..300_000));
                let (mut here, mut there) = (vec![0; len], vec![0; len]);
                drop_pages(&file);
                let (read, expected) =
                    (file.read_at(&mut here, offset).unwrap(), own.read_at(&mut there, offset).unwrap());
                assert!(read == expected && here == there, "{len} bytes at {offset} of {size}");
            }
        }
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
fn random_reads_of_a_sparse_file_bring_what_they_ask_for() {
    let Some(below) = Below::disk() else { return };
    const SIZE: u64 = 1 << 40;
    let islands = [0, 1 << 20, (7 << 30) + 12_345, (1 << 39) - 5, SIZE - 100];
    let beside = File::create(below.beside().join("file")).unwrap();
    beside.set_len(SIZE).unwrap();
    for at in islands {
        beside.write_all_at(&content(at, 100), at).unwrap();
    }
    drop(beside);
    let stage = below.attach();
    let own = File::open(stage.beside("file")).unwrap();
    let check = || {
        let open = File::open(stage.file("file")).unwrap();
        drop_pages(&open);
        for at in islands {
            let (from, mut here, mut there) = (at.saturating_sub(4000), vec![1; 4200], vec![2; 4200]);
            let read = open.read_at(&mut here, from).unwrap();
            assert_eq!(read, own.read_at(&mut there, from).unwrap());
            assert!(here[..read] == there[..read], "at {at}");
            let gap = (at - from) as usize;
            assert!(here[gap..gap + 100] == content(at, 100), "at {at}");
        }
    };
    let kept = || {
        let before = stage.read("registered");
        check();
        (stage.read("registered") > before).then_some(())
    };
    eventually("reads of what is kept", SETTLED, kept).unwrap();
    // A reader of a few pages is not given terabytes.
    let used = stage.layer.status_page().metric("interceptor_cache_bytes", &["state=\"used\""]).unwrap();
    assert!(used < 256e6, "{used}");
}

#[test]
fn what_changes_below_shows_at_the_next_open() {
    const SIZE: usize = 3_000_000;
    for below in Below::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        let (file, beside) = (stage.file("file"), stage.beside("file"));
        stage.await_kept("file", &content(1, SIZE));

        rewrite_as_if_nothing_was(&beside, &content(2, SIZE));
        assert!(fs::read(&file).unwrap() == content(2, SIZE), "rewritten in place");
        stage.await_kept("file", &content(2, SIZE));

        fs::write(stage.beside("other"), content(3, SIZE)).unwrap();
        let times = FileTimes::new().set_modified(fs::metadata(&beside).unwrap().modified().unwrap());
        File::options().write(true).open(stage.beside("other")).unwrap().set_times(times).unwrap();
        fs::rename(stage.beside("other"), &beside).unwrap();
        assert!(fs::read(&file).unwrap() == content(3, SIZE), "replaced");
        stage.await_kept("file", &content(3, SIZE));

        File::options().write(true).open(&beside).unwrap().set_len(1000).unwrap();
        assert!(fs::read(&file).unwrap() == content(3, 1000), "truncated");
        stage.await_kept("file", &content(3, 1000));
        File::options().append(true).open(&beside).unwrap().write_all(b"more").unwrap();
        assert!(fs::read(&file).unwrap() == [content(3, 1000), b"more".to_vec()].concat(), "appended to");
    }
}

/// The kernel remembers for a second where a name leads, also one that it has moved itself.
#[test]
fn what_was_moved_here_and_is_replaced_below_shows_at_the_next_open() {
    for below in Below::all() {
        let stage = below.attach();
        let replace = |name: &str, bytes: &[u8]| {
            fs::write(stage.beside("other"), bytes).unwrap();
            fs::rename(stage.beside("other"), stage.beside(name)).unwrap();
        };
        fs::write(stage.file("new"), "moved").unwrap();
        fs::rename(stage.file("new"), stage.file("file")).unwrap();
        replace("file", b"other");
        assert_eq!(fs::read(stage.file("file")).unwrap(), b"other");

        // Moved below, and so given another name here; then that is another file's, too.
        fs::rename(stage.beside("file"), stage.beside("again")).unwrap();
        replace("file", b"third");
        assert_eq!(fs::read(stage.file("file")).unwrap(), b"third");
        assert_eq!(fs::read(stage.file("again")).unwrap(), b"other");
        replace("again", b"fourth");
        assert_eq!(fs::read(stage.file("again")).unwrap(), b"fourth");

        if !matches!(stage.below, Below::Disk(..)) {
            continue;
        }
        exchange(&stage.file("file"), &stage.file("again"));
        replace("file", b"fifth");
        replace("again", b"sixth");
        assert_eq!(fs::read(stage.file("file")).unwrap(), b"fifth");
        assert_eq!(fs::read(stage.file("again")).unwrap(), b"sixth");
    }
}

#[test]
fn what_changes_below_while_it_is_read_shows_before_long() {
    const SIZE: usize = 3_000_000;
    for below in Below::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        stage.await_kept("file", &content(1, SIZE));
        let open = File::open(stage.file("file")).unwrap();
        rewrite_as_if_nothing_was(&stage.beside("file"), &content(2, SIZE));
        let shows = || {
            let mut bytes = vec![0; SIZE];
            drop_pages(&open);
            open.read_exact_at(&mut bytes, 0).unwrap();
            (bytes == content(2, SIZE)).then_some(())
        };
        eventually("the new bytes in the old handle", Duration::from_secs(10), shows).unwrap();

        // What was there by the size at the open is not made up when it is gone.
        stage.await_kept("file", &content(2, SIZE));
        let open = File::open(stage.file("file")).unwrap();
        File::options().write(true).open(stage.beside("file")).unwrap().set_len(0).unwrap();
        let ends = || {
            drop_pages(&open);
            (open.read_at(&mut [0; 10], 0).unwrap() == 0).then_some(())
        };
        eventually("the new end in the old handle", Duration::from_secs(10), ends).unwrap();
    }
}

#[test]
fn what_is_written_here_is_read_here_at_once() {
    const SIZE: usize = 3_000_000;
    for below in Below::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        let path = stage.file("file");
        let mut expected = content(1, SIZE);
        stage.await_kept("file", &expected);
        let reader = File::open(&path).unwrap();
        let check = |expected: &[u8], what: &str| {
            let mut read = vec![0; expected.len() + 10];
            let mut len = 0;
            while let count @ 1.. = reader.read_at(&mut read[len..], len as u64).unwrap() {
                len += count;
            }
            assert!(&read[..len] == expected, "a handle that was open before: {what}");
            assert!(uncached(&path) == expected, "a new handle: {what}");
        };
        check(&expected, "before");
        let writer = File::options().write(true).open(&path).unwrap();
        writer.write_all_at(b"in place", 1_000_000).unwrap();
        expected[1_000_000..1_000_008].copy_from_slice(b"in place");
        check(&expected, "written");
        writer.set_len(2_000_000).unwrap();
        expected.truncate(2_000_000);
        check(&expected, "truncated");
        drop(writer);
        check(&expected, "closed");
        stage.await_kept("file", &expected);
        rewrite_as_if_nothing_was(&path, &content(4, 2_000_000));
        expected = content(4, 2_000_000);
        check(&expected, "rewritten, with the time that it had");
        stage.await_kept("file", &expected);
        nix::unistd::truncate(&path, 5).unwrap();
        check(&expected[..5], "truncated by its name");
    }
}

/// Files by way of the layer, and what they should have.
struct Model {
    stage: Stage,
    files: Vec<Vec<u8>>,
    random: StdRng,
}

impl Model {
    fn name(number: usize) -> String {
        format!("file-{number}")
    }

    /// Where something is done next: by way of the layer, or past it.
    fn place(&mut self, number: usize) -> PathBuf {
        match self.random.random_bool(0.5) {
            true => self.stage.file(&Self::name(number)),
            false => self.stage.beside(&Self::name(number)),
        }
    }

    fn change(&mut self, number: usize) {
        let (path, seed) = (self.place(number), self.random.random());
        let len = self.files[number].len();
        match self.random.random_range(0..5) {
            0 => {
                let size = self.random.random_range(1..2_000_000);
                self.files[number] = content(seed, size);
                fs::write(&path, &self.files[number]).unwrap();
            }
            1 => {
                self.files[number] = content(seed, len);
                rewrite_as_if_nothing_was(&path, &self.files[number]);
            }
            2 => {
                let size = self.random.random_range(1..2_000_000);
                self.files[number] = content(seed, size);
                let new = path.with_file_name("new");
                fs::write(&new, &self.files[number]).unwrap();
                fs::rename(&new, &path).unwrap();
            }
            3 => {
                let size = self.random.random_range(1..=len);
                self.files[number].truncate(size);
                File::options().write(true).open(&path).unwrap().set_len(size as u64).unwrap();
            }
            _ => {
                let at = self.random.random_range(0..=len);
                let bytes = content(seed, self.random.random_range(1..100_000));
                let size = len.max(at + bytes.len());
                self.files[number].resize(size, 0);
                self.files[number][at..at + bytes.len()].copy_from_slice(&bytes);
                File::options().write(true).open(&path).unwrap().write_all_at(&bytes, at as u64).unwrap();
            }
        }
    }

    fn check(&mut self, number: usize) {
        let (expected, path) = (&self.files[number], self.stage.file(&Self::name(number)));
        let file = File::open(&path).unwrap();
        if self.random.random_bool(0.7) {
            drop_pages(&file);
        }
        let from = self.random.random_range(0..expected.len());
        let mut bytes = vec![0; self.random.random_range(1..500_000)];
        let read = file.read_at(&mut bytes, from as u64).unwrap();
        let end = (from + bytes.len()).min(expected.len());
        assert_eq!(read, end - from, "{path:?} from {from}");
        assert!(bytes[..read] == expected[from..end], "{path:?} from {from} to {end}");
    }
}

#[test]
fn an_open_finds_the_bytes_of_the_last_change_wherever_it_was_made() {
    for below in Below::all() {
        let mut model = Model { stage: below.attach(), files: Vec::new(), random: StdRng::seed_from_u64(6) };
        for number in 0..8 {
            model.files.push(content(number as u64, 1_000_000));
            fs::write(model.stage.file(&Model::name(number)), &model.files[number]).unwrap();
        }
        let begun = Instant::now();
        let mut changed = begun;
        // Seldom enough that files are left alone for a while and kept, then changed.
        while begun.elapsed() < Duration::from_secs(15) {
            if changed.elapsed() > Duration::from_millis(500) {
                changed = Instant::now();
                let number = model.random.random_range(0..8);
                model.change(number);
                model.check(number);
            }
            let number = model.random.random_range(0..8);
            model.check(number);
        }
        assert!(model.stage.read("registered") > 0.0, "nothing was kept");
    }
}

#[test]
fn random_runs_of_fsx_pass_over_what_is_kept() {
    let Some(below) = Below::disk().filter(|_| host::has_posix_suites()) else { return };
    let stage = below.attach();
    for seed in 1..=3 {
        assert_eq!(
            posix::fsx(&stage.below.path(), seed, 3000, &posix::FSX_WITH_HOLES).unwrap(),
            None,
            "seed {seed}"
        );
    }
}

#[test]
fn readers_see_each_write_whole_while_others_read() {
    for below in Below::all() {
        let path = below.path();
        tests::readers::put_files(&below.beside());
        let stage = below.attach();
        for number in 0..8 {
            stage.await_kept(&format!("file-{number}"), &tests::readers::content(number));
        }
        tests::readers::read_under(&path, || {
            for round in 0..30 {
                // The same content in a file of its own, where a rename is one step, and a file that nobody else reads, in place.
                if let Below::Disk(..) = stage.below {
                    let (new, name) = (path.join("new"), path.join(format!("file-{}", round % 8)));
                    fs::write(&new, tests::readers::content(round % 8)).unwrap();
                    fs::rename(&new, &name).unwrap();
                }
                let own = path.join("own");
                fs::write(&own, content(round, 500_000)).unwrap();
                assert!(fs::read(&own).unwrap() == content(round, 500_000));
            }
        });
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
fn what_passes_the_pages_by_is_read_below() {
    let Some(below) = Below::disk() else { return };
    fs::write(below.beside().join("file"), content(1, 1 << 20)).unwrap();
    let stage = below.attach();
    stage.await_kept("file", &content(1, 1 << 20));
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(stage.file("file")).unwrap();
    let (lower, registered) = (stage.read("lower"), stage.read("registered"));
    let mut bytes = vec![0; 65_536];
    direct.read_exact_at(&mut bytes, 65_536).unwrap();
    assert!(bytes == content(1, 1 << 20)[65_536..131_072]);
    assert_eq!((stage.read("lower") - lower, stage.read("registered") - registered), (65_536.0, 0.0));
}

/// Opens a file again and again for so long that it would be kept if it were to be; what is read is `bytes` every time.
fn read_for_a_while(path: &Path, bytes: &[u8]) {
    let changed = fs::metadata(path).unwrap().ctime();
    let later = || {
        assert!(uncached(path) == bytes);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now.as_secs() as i64 > changed + 6).then_some(())
    };
    eventually("some seconds", SETTLED, later).unwrap();
}

#[test]
fn nothing_is_kept_where_that_is_not_wanted() {
    for below in Below::all() {
        let path = below.path();
        fs::write(below.beside().join("file"), content(1, 100_000)).unwrap();
        let layer = match &below {
            Below::Fuse(_) | Below::Ntfs(..) => Layer::over(&path, ["--read-cache", "off"]),
            // By itself the kernel keeps what is on a disk as well.
            Below::Disk(..) => Layer::over(&path, NONE),
        };
        let stage = Stage { layer: layer.unwrap(), below };
        read_for_a_while(&stage.file("file"), &content(1, 100_000));
        assert_eq!(stage.read("registered"), 0.0);
        assert!(stage.read("lower") >= 100_000.0);
    }
}

/// A tmpfs; gone with this value.
struct InMemory(tempfile::TempDir);

impl InMemory {
    fn mount() -> Self {
        let home = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), home.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(home)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_mapping_of_a_file_in_memory_shows_at_the_next_open() {
    if !host::can_mount() {
        return;
    }
    let below = InMemory::mount();
    let path = below.0.path().join("file");
    fs::write(&path, content(1, 4096)).unwrap();
    let before = File::options().read(true).write(true).open(&path).unwrap();
    // SAFETY: the page lies within the file, which keeps its size while it is mapped; nobody else uses the memory.
    let page = unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 4096, protection, flags, before.as_raw_fd(), 0)
    };
    assert_ne!(page, libc::MAP_FAILED);
    let store = |byte: u8| {
        // SAFETY: the page is mapped until the end of the test.
        unsafe { page.cast::<u8>().write_volatile(byte) }
    };
    // From here on stores are seen by nobody.
    store(0);
    let layer = Layer::over(below.0.path(), NONE).unwrap();
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
fn what_cannot_be_right_is_refused() {
    if !host::can_mount() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let below = InMemory::mount();
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

/// What `interceptor warmup` with these words says, as JSON.
fn warmup(words: &[&str], path: &Path) -> serde_json::Value {
    let output = Command::new(interceptor_program().unwrap())
        .arg("warmup")
        .args(words)
        .arg("--json")
        .arg(path)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_tree_is_brought_to_memory_before_it_is_read() {
    let sizes = [1, 4096, 100_000, 5_000_000, 9_000_001];
    for below in Below::all() {
        let tree = below.beside().join("tree");
        fs::create_dir_all(tree.join("inner")).unwrap();
        for size in sizes {
            fs::write(tree.join("inner").join(size.to_string()), content(size as u64, size)).unwrap();
        }
        fs::write(tree.join("empty"), "").unwrap();
        let stage = below.attach();
        let tree = stage.file("tree");
        let total = sizes.iter().sum::<usize>() as u64;
        // What has changed lately is left alone at first.
        let all = || (warmup(&[], &tree)["cached_bytes"] == total).then_some(());
        eventually("all of the tree", SETTLED, all).unwrap();
        let (lower, fetched) = (stage.read("lower"), stage.fetched());
        for size in sizes {
            let path = tree.join("inner").join(size.to_string());
            assert!(fs::read(path).unwrap() == content(size as u64, size), "{size}");
        }
        assert_eq!((stage.read("lower"), stage.fetched()), (lower, fetched));

        assert_eq!(warmup(&["--evict"], &tree)["cached_bytes"], 0);
        assert_eq!(warmup(&["--check"], &tree)["cached_bytes"], 0, "to ask brings nothing");
        // By now it is settled.
        fs::write(stage.beside("tree/inner/4096"), content(7, 4096)).unwrap();
        let told = warmup(&[], &tree);
        assert_eq!(
            (&told["cached_bytes"], &told["bytes"]),
            (&(total - 4096).into(), &total.into()),
            "{told}"
        );
        assert_eq!((&told["cached_files"], &told["problems"]), (&5.into(), &1.into()), "{told}");
        assert!(fs::read(tree.join("inner/4096")).unwrap() == content(7, 4096));
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
fn a_ticket_for_warming_a_file_takes_the_right_to_read_it() {
    for below in Below::all() {
        let beside = below.beside();
        for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
            fs::write(beside.join(name), name).unwrap();
            fs::set_permissions(beside.join(name), Permissions::from_mode(mode)).unwrap();
        }
        let has_modes = fs::metadata(beside.join("closed")).unwrap().mode() & 0o777 == 0o600;
        let stage = below.attach();
        let everybody = Permissions::from_mode(0o755);
        fs::set_permissions(stage.file("").parent().unwrap(), everybody).unwrap();
        let ticket = |name: &str| xattr(&stage.file(name), READ_TICKET_XATTR);
        assert!(as_nobody(|| ticket("open")).is_ok());
        if has_modes {
            assert_eq!(as_nobody(|| ticket("closed")), Err(libc::EACCES));
        }
        assert!(ticket("closed").is_ok());
        assert_eq!(ticket(""), Err(libc::ENODATA), "a directory is not read");
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
fn a_mount_below_that_hangs_holds_up_who_asks_it() {
    let Some(Below::Fuse(below)) = Below::fuse() else { return };
    below.put("file", &content(1, 5_000_000)).unwrap();
    below.put("other", &content(2, 9_000_000)).unwrap();
    let mut stage = Below::Fuse(below).attach();
    stage.await_kept("file", &content(1, 5_000_000));
    // A large file is fetched when it is read.
    let other = File::open(stage.file("other")).unwrap();
    let Below::Fuse(bindfs) = &mut stage.below else { unreachable!("it is a FUSE mount") };
    bindfs.signal(Signal::SIGSTOP);
    let reading = std::thread::spawn(move || {
        let mut bytes = vec![0; 9_000_000];
        other.read_exact_at(&mut bytes, 0).map(|()| bytes)
    });
    let opening = std::thread::spawn({
        let path = stage.file("file");
        move || fs::read(path)
    });
    // The daemon tells of itself meanwhile, and has not answered these.
    for _ in 0..20 {
        stage.read("lower");
    }
    assert!(!reading.is_finished() && !opening.is_finished());
    let Below::Fuse(bindfs) = &mut stage.below else { unreachable!("it is a FUSE mount") };
    bindfs.signal(Signal::SIGCONT);
    assert!(reading.join().unwrap().unwrap() == content(2, 9_000_000));
    assert!(opening.join().unwrap().unwrap() == content(1, 5_000_000));
    assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
}

#[test]
fn a_mount_below_that_dies_gives_its_own_error() {
    let Some(Below::Fuse(below)) = Below::fuse() else { return };
    below.put("file", &content(1, 100_000)).unwrap();
    below.put("other", &content(2, 9_000_000)).unwrap();
    let stage = Below::Fuse(below).attach();
    stage.await_kept("file", &content(1, 100_000));
    let other = File::open(stage.file("other")).unwrap();
    let Stage { layer, below: Below::Fuse(mut below) } = stage else { unreachable!("it is a FUSE mount") };
    below.kill_daemon();
    let error = File::open(below.path().join("file")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    let error = other.read_at(&mut [0; 10], 5_000_000).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "{error}");
    drop(other);
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}
