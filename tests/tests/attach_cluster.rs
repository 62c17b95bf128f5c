//! A layer that reads files of the mount below from the cluster: the same bytes, at every moment.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::mount::interceptor_program;
use tests::{BindMount, Cluster, Layer, Mount, Pattern, eventually, host};

/// A cluster, a `weed mount` of it, and a layer over that which knows the cluster.
struct AttachedCluster {
    // In the order in which they are taken down.
    layer: Layer,
    below: Mount,
    cluster: Cluster,
}

impl AttachedCluster {
    fn set(before: impl FnOnce(&Cluster, &Mount)) -> Option<AttachedCluster> {
        if !host::can_mount() {
            return None;
        }
        let cluster = Cluster::builder().start().unwrap();
        let below = Mount::weed(&cluster).start().unwrap();
        before(&cluster, &below);
        let layer = attach(&cluster, &below);
        Some(AttachedCluster { layer, below, cluster })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.below.path().join(name)
    }

    /// Bytes that the layer has given, by their source.
    fn read(&self, source: &str) -> f64 {
        self.layer.read_bytes(source).unwrap()
    }

    fn read_from_cluster(&self) -> f64 {
        self.read("http") + self.read("cache")
    }
}

fn attach(cluster: &Cluster, below: &Mount) -> Layer {
    let layer = Layer::over(below.path(), ["--filer", &cluster.filer_addresses()]).unwrap();
    let live = || {
        let live = layer.status_page().metric("interceptor_subscription_live", &[]).ok()?;
        (live == 1.0).then_some(())
    };
    eventually("the filer's events", Duration::from_secs(20), live).unwrap();
    layer
}

fn write(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// Puts `/many/000` and so on, `files` of them.
fn put_many(cluster: &Cluster, files: u64, content: impl Fn(u64) -> Vec<u8>) {
    for number in 0..files {
        cluster.filer().put(&format!("/many/{number:03}"), &content(number), "").unwrap();
    }
}

/// Opens a file again and again until reads of it are served from the cluster; each read must give
/// `bytes`.
fn await_acceleration(stage: &AttachedCluster, path: &Path, bytes: &[u8]) {
    let accelerated = || {
        let before = stage.read_from_cluster();
        // Past the pages that the kernel keeps.
        let file = File::open(path).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mut read = Vec::new();
        (&file).read_to_end(&mut read).unwrap();
        assert!(read == bytes, "{path:?} has other bytes");
        (stage.read_from_cluster() > before).then_some(())
    };
    eventually("reads from the cluster", Duration::from_secs(20), accelerated).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_the_mount_below_shows_is_read_from_the_cluster() {
    let sizes = [1, 4096, 100_000, 5_000_000, 9_000_001];
    let content = |size: usize| Pattern::new(size as u64).bytes(0, size);
    let before = |cluster: &Cluster, below: &Mount| {
        fs::create_dir_all(below.file("/a/b")).unwrap();
        for size in sizes {
            write(&below.file(&format!("/a/b/{size}")), &content(size));
        }
        cluster.filer().put("/a/put", &content(3_000_000), "").unwrap();
    };
    let Some(stage) = AttachedCluster::set(before) else { return };
    for size in sizes {
        assert!(fs::read(stage.file(&format!("a/b/{size}"))).unwrap() == content(size), "{size}");
    }
    assert!(fs::read(stage.file("a/put")).unwrap() == content(3_000_000));
    let total = (sizes.iter().sum::<usize>() + 3_000_000) as f64;
    // The kernel reads ahead, but reads nothing twice here.
    assert!(stage.read_from_cluster() >= total, "{} of {total}", stage.read_from_cluster());
    assert_eq!(stage.read("lower"), 0.0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_have_the_numbers_that_they_have_below() {
    const FILES: u64 = 40;
    let mut below = Vec::new();
    let number = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let name = |file: u64| format!("many/{file:03}");
    let stage = AttachedCluster::set(|cluster, mount| {
        put_many(cluster, FILES, |file| vec![file as u8; 10]);
        below = (0..FILES).map(|file| number(mount.path().join(name(file)))).collect();
    });
    let Some(stage) = stage else { return };
    // SeaweedFS has hashes for numbers.
    assert!(below.iter().any(|number| *number >= 1 << 63), "{below:?}");
    assert!((0..FILES).map(|file| number(stage.file(&name(file)))).eq(below));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn small_files_are_fetched_before_they_are_opened_in_turn() {
    const FILES: u64 = 200;
    let content = |number| Pattern::new(number).bytes(0, 10_000);
    let Some(stage) = AttachedCluster::set(|cluster, _| put_many(cluster, FILES, content)) else { return };
    for number in 0..FILES {
        assert!(fs::read(stage.file(&format!("many/{number:03}"))).unwrap() == content(number), "{number}");
    }
    assert_eq!(stage.read("lower"), 0.0);
    let page = stage.layer.status_page();
    let ahead = ["trigger=\"next_file\""];
    assert!(page.metric("interceptor_prefetch_fetched_bytes_total", &ahead).unwrap() > 0.0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_whose_files_are_opened_in_turn_is_known_below() {
    const FILES: u64 = 200;
    let content = |number| Pattern::new(number).bytes(0, 1000);
    let Some(stage) = AttachedCluster::set(|cluster, _| put_many(cluster, FILES, content)) else { return };
    for number in 0..FILES / 2 {
        assert!(fs::read(stage.file(&format!("many/{number:03}"))).unwrap() == content(number), "{number}");
    }
    // Without its filer the mount below knows only what it has cached, also of a name that was
    // never looked up.
    let mut names = FILES / 2..FILES;
    let known = || {
        stage.cluster.filers()[0].kill();
        let found = fs::metadata(stage.file(&format!("many/{:03}", names.next()?)));
        stage.cluster.restart_filer(0).unwrap();
        found.ok()
    };
    let found = eventually("names without a filer", Duration::from_secs(60), known).unwrap();
    assert_eq!(found.len(), 1000);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_tree_is_brought_to_memory_before_it_is_read() {
    let bytes = Pattern::new(1).bytes(0, 5_000_000);
    let before = |_: &Cluster, below: &Mount| {
        fs::create_dir(below.file("/tree")).unwrap();
        write(&below.file("/tree/file"), &bytes);
        write(&below.file("/tree/empty"), b"");
    };
    let Some(stage) = AttachedCluster::set(before) else { return };
    let mut warmup = Command::new(interceptor_program().unwrap());
    let output = warmup.args(["warmup", "--json"]).arg(stage.file("tree")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&told["cached_bytes"], &told["cached_files"]), (&5_000_000.into(), &2.into()), "{told}");
    assert!(fs::read(stage.file("tree/file")).unwrap() == bytes);
    assert_eq!((stage.read("http"), stage.read("lower")), (0.0, 0.0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_written_here_is_read_here_at_once() {
    let old = Pattern::new(1).bytes(0, 3_000_000);
    let Some(stage) = AttachedCluster::set(|_, below| write(&below.file("/file"), &old)) else { return };
    let path = stage.file("file");
    await_acceleration(&stage, &path, &old);
    let reader = File::open(&path).unwrap();
    let mut expected = old;
    let check = |expected: &[u8], what: &str| {
        let mut read = vec![0; expected.len() + 10];
        let mut len = 0;
        while let count @ 1.. = reader.read_at(&mut read[len..], len as u64).unwrap() {
            len += count;
        }
        assert!(&read[..len] == expected, "a handle that was open before: {what}");
        assert!(fs::read(&path).unwrap() == expected, "a new handle: {what}");
    };
    check(&expected, "before");

    let writer = File::options().read(true).write(true).open(&path).unwrap();
    writer.write_all_at(b"in place", 1_000_000).unwrap();
    expected[1_000_000..1_000_008].copy_from_slice(b"in place");
    check(&expected, "a write, not yet flushed");
    writer.set_len(2_000_000).unwrap();
    expected.truncate(2_000_000);
    check(&expected, "a truncation");
    // SAFETY: the page lies within the file, which keeps its size while it is mapped; nothing else
    // uses the memory.
    unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, writer.as_raw_fd(), 8192);
        assert_ne!(page, libc::MAP_FAILED);
        page.cast::<[u8; 6]>().write_volatile(*b"mapped");
        libc::munmap(page, 4096);
    }
    expected[8192..8198].copy_from_slice(b"mapped");
    check(&expected, "a write to a mapping");
    drop(writer);
    check(&expected, "closed");
    File::options().append(true).open(&path).unwrap().write_all(b"appended").unwrap();
    expected.extend_from_slice(b"appended");
    check(&expected, "appended");
    // And back to speed.
    await_acceleration(&stage, &path, &expected);
    check(&expected, "accelerated again");
    nix::unistd::truncate(&path, 5).unwrap();
    expected.truncate(5);
    check(&expected, "truncated by its name");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn large_writes_pass_the_pages_of_the_mount_below_by() {
    const SIZE: usize = 4 << 20;
    let mut expected = Pattern::new(1).bytes(0, SIZE);
    let mut before = None;
    let stage = AttachedCluster::set(|_, below| {
        write(&below.file("/file"), &expected);
        before = Some(File::options().read(true).write(true).open(below.file("/file")).unwrap());
    });
    let (Some(stage), Some(before)) = (stage, before) else { return };
    // The pages of the mount below, which only a handle shows that was there before the layer.
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: nothing is at the address that the kernel chooses, and the mapping is used within
    // the size that the file keeps.
    let pages = unsafe {
        let pages = libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, before.as_raw_fd(), 0);
        assert_ne!(pages, libc::MAP_FAILED);
        pages.cast::<u8>()
    };
    let in_memory = || {
        let mut pages_in_memory = vec![0_u8; SIZE / 4096];
        // SAFETY: the range is mapped, and there is a byte for each of its pages.
        assert_eq!(unsafe { libc::mincore(pages.cast(), SIZE, pages_in_memory.as_mut_ptr()) }, 0);
        pages_in_memory.iter().filter(|page| *page & 1 == 1).count()
    };

    let path = stage.file("file");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut written = Pattern::new(2).bytes(0, SIZE);
    file.write_all_at(&written, 0).unwrap();
    assert_eq!(in_memory(), 0, "what was written is in the pages of the layer alone");
    std::mem::swap(&mut expected, &mut written);

    // Large and small writes, whole pages and parts of them; in between, reads and changes of the
    // pages below.
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..200_u64 {
        let len = if random.random_bool(0.5) {
            random.random_range(1..20_000)
        } else {
            random.random_range(100_000..700_000)
        };
        let at = random.random_range(0..SIZE - len);
        let bytes = Pattern::new(round).bytes(0, len);
        file.write_all_at(&bytes, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(&bytes);
        let at = random.random_range(0..SIZE);
        // SAFETY: the byte lies within the mapping.
        unsafe {
            let below = pages.add(at);
            assert_eq!(below.read_volatile(), expected[at], "round {round}: {at} below");
            below.write_volatile(round as u8);
        }
        expected[at] = round as u8;
        if random.random_bool(0.1) {
            // Written back there, and read past the pages of the layer, which do not know.
            before.sync_all().unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .unwrap();
            let mut read = vec![0; SIZE];
            file.read_exact_at(&mut read, 0).unwrap();
            assert!(read == expected, "round {round}");
        }
    }
    drop(file);
    drop(before);
    // SAFETY: it was mapped above with this length, and is not used any more.
    assert_eq!(unsafe { libc::munmap(pages.cast(), SIZE) }, 0);
    assert!(fs::read(&path).unwrap() == expected);
    let stored = || (stage.cluster.filer().get("/file").ok()? == expected).then_some(());
    eventually("the same on the cluster", Duration::from_secs(20), stored).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_handle_that_was_open_before_is_noticed() {
    let old = Pattern::new(1).bytes(0, 500_000);
    let mut before = None;
    let stage = AttachedCluster::set(|_, below| {
        write(&below.file("/file"), &old);
        before = Some(File::options().read(true).write(true).open(below.file("/file")).unwrap());
    });
    let (Some(stage), Some(before)) = (stage, before) else { return };
    let path = stage.file("file");
    await_acceleration(&stage, &path, &old);
    // It writes past the layer, and the cluster does not know yet.
    before.write_all_at(b"past the layer", 100).unwrap();
    let mut expected = old;
    expected[100..114].copy_from_slice(b"past the layer");
    assert!(fs::read(&path).unwrap() == expected, "at the next open");
    drop(before);
    assert!(fs::read(&path).unwrap() == expected);
    await_acceleration(&stage, &path, &expected);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_a_filer_reads_are_what_the_mount_below_makes_of_them() {
    let content = Pattern::new(1).bytes(0, 500_000);
    let Some(stage) = AttachedCluster::set(|_, below| write(&below.file("/file"), &content)) else { return };
    let path = stage.file("file");
    await_acceleration(&stage, &path, &content);
    let open = File::open(&path).unwrap();
    stage.cluster.filers()[0].kill();
    let lost = || {
        let live = stage.layer.status_page().metric("interceptor_subscription_live", &[]).ok()?;
        (live == 0.0).then_some(())
    };
    eventually("the loss of events", Duration::from_secs(30), lost).unwrap();
    // Without its filer the mount below may refuse, too; if so the layer passes that on.
    let refused =
        |result: &std::io::Result<Vec<u8>>| result.as_ref().err().and_then(std::io::Error::raw_os_error);
    let read = fs::read(&path);
    assert!([None, Some(libc::EIO)].contains(&refused(&read)), "{read:?}");
    assert!(read.is_err() || read.is_ok_and(|read| read == content));
    let mut bytes = vec![0; 500_000];
    match open.read_exact_at(&mut bytes, 0) {
        Ok(()) => assert!(bytes == content),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
    }
    drop(open);
    stage.cluster.restart_filer(0).unwrap();
    let readable = || fs::read(&path).ok();
    let read = eventually("the mount below", Duration::from_secs(30), readable).unwrap();
    assert!(read == content);
    await_acceleration(&stage, &path, &content);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn two_hosts_see_each_others_files_as_the_mount_below_does() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let (here, there) = (Mount::weed(&cluster).start().unwrap(), Mount::weed(&cluster).start().unwrap());
    let beside = BindMount::of(here.path()).unwrap();
    let layer = attach(&cluster, &here);
    let mut random = StdRng::seed_from_u64(6);
    const FILES: usize = 5;
    let content = |version: u64| Pattern::new(version).bytes(0, 50_000 + 7 * version as usize);
    for version in 0..60u64 {
        let name = format!("file-{}", random.random_range(0..FILES));
        let bytes = content(version);
        let is_here = random.random_bool(0.5);
        let writer = if is_here { here.path() } else { there.path() };
        if random.random_bool(0.5) {
            write(&writer.join(&name), &bytes);
        } else {
            write(&writer.join("new"), &bytes);
            fs::rename(writer.join("new"), writer.join(&name)).unwrap();
        }
        let shows = |path: &Path| fs::read(path).is_ok_and(|read| read == bytes);
        if is_here {
            let read = fs::read(here.path().join(&name));
            let len = read.as_ref().map(Vec::len).map_err(ToString::to_string);
            assert!(
                read.is_ok_and(|read| read == bytes),
                "version {version} of {name}, written here: {len:?}"
            );
        }
        for place in [there.path(), &beside.path()] {
            let what = format!("version {version} of {name} in {}", place.display());
            eventually(&what, Duration::from_secs(15), || shows(&place.join(&name)).then_some(())).unwrap();
        }
        // What the mount below shows the layer shows at the next open.
        assert!(shows(&here.path().join(&name)), "version {version} of {name}, here {is_here}");
    }
    let served = |source: &str| layer.read_bytes(source).unwrap();
    assert!(served("http") + served("cache") > 0.0, "nothing came from the cluster");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_of_the_filer_that_is_deleted_and_made_again_is_served_again() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let filer = cluster.filer();
    let put = |content: &[u8]| filer.put("/root/file", content, "").unwrap();
    put(b"first");
    let below = Mount::weed(&cluster).filer_path("/root").start().unwrap();
    let layer =
        Layer::over(below.path(), ["--filer", &cluster.filer_addresses(), "--filer-path", "/root"]).unwrap();
    let stage = AttachedCluster { layer, below, cluster };
    let file = stage.file("file");
    await_acceleration(&stage, &file, b"first");
    filer.delete("/root").unwrap();
    let is_empty = || {
        assert!(fs::metadata(stage.below.path()).unwrap().is_dir());
        fs::read(&file).is_err().then_some(())
    };
    eventually("the deletion", Duration::from_secs(20), is_empty).unwrap();
    put(b"the second");
    let is_back = || fs::read(&file).is_ok_and(|read| read == b"the second").then_some(());
    eventually("the new directory", Duration::from_secs(20), is_back).unwrap();
    await_acceleration(&stage, &file, b"the second");
}
