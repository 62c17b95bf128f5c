//! Changes of files, below the layer and through it: the next open has their bytes.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::eventually;

use crate::{LayerOverMount, LowerMount, content, drop_pages, rewrite_as_if_nothing_was, uncached};

/// Has two names change places.
fn exchange(one: &Path, other: &Path) {
    nix::fcntl::renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_changes_below_shows_at_the_next_open() {
    const SIZE: usize = 3_000_000;
    for below in LowerMount::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        let (file, beside) = (stage.file("file"), stage.beside("file"));
        stage.await_cached("file", &content(1, SIZE));

        rewrite_as_if_nothing_was(&beside, &content(2, SIZE));
        assert!(fs::read(&file).unwrap() == content(2, SIZE), "rewritten in place");
        stage.await_cached("file", &content(2, SIZE));

        fs::write(stage.beside("other"), content(3, SIZE)).unwrap();
        let times = FileTimes::new().set_modified(fs::metadata(&beside).unwrap().modified().unwrap());
        File::options().write(true).open(stage.beside("other")).unwrap().set_times(times).unwrap();
        fs::rename(stage.beside("other"), &beside).unwrap();
        assert!(fs::read(&file).unwrap() == content(3, SIZE), "replaced");
        stage.await_cached("file", &content(3, SIZE));

        File::options().write(true).open(&beside).unwrap().set_len(1000).unwrap();
        assert!(fs::read(&file).unwrap() == content(3, 1000), "truncated");
        stage.await_cached("file", &content(3, 1000));
        File::options().append(true).open(&beside).unwrap().write_all(b"more").unwrap();
        assert!(fs::read(&file).unwrap() == [content(3, 1000), b"more".to_vec()].concat(), "appended to");
    }
}

/// The kernel remembers for a second where a name leads, also one that it has moved itself.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_was_moved_here_and_is_replaced_below_shows_at_the_next_open() {
    for below in LowerMount::all() {
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

        if !matches!(stage.below, LowerMount::Disk(..)) {
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
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_changes_below_while_it_is_read_shows_before_long() {
    const SIZE: usize = 3_000_000;
    for below in LowerMount::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        stage.await_cached("file", &content(1, SIZE));
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
        stage.await_cached("file", &content(2, SIZE));
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
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_written_here_is_read_here_at_once() {
    const SIZE: usize = 3_000_000;
    for below in LowerMount::all() {
        fs::write(below.beside().join("file"), content(1, SIZE)).unwrap();
        let stage = below.attach();
        let path = stage.file("file");
        let mut expected = content(1, SIZE);
        stage.await_cached("file", &expected);
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
        stage.await_cached("file", &expected);
        rewrite_as_if_nothing_was(&path, &content(4, 2_000_000));
        expected = content(4, 2_000_000);
        check(&expected, "rewritten, with the time that it had");
        stage.await_cached("file", &expected);
        nix::unistd::truncate(&path, 5).unwrap();
        check(&expected[..5], "truncated by its name");
    }
}

/// Files by way of the layer, and what they should have.
struct Model {
    stage: LayerOverMount,
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
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_open_finds_the_bytes_of_the_last_change_wherever_it_was_made() {
    for below in LowerMount::all() {
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
        assert!(model.stage.read("cache") > 0.0, "nothing was kept");
    }
}
