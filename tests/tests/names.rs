//! The tree: large directories, odd names, every kind of entry, attributes, and files that expire.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use tests::user::{NOBODY, as_nobody, xattr};
use tests::{Cluster, Mount, Pattern, Shared, eventually, host, reading};

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().inline_below(4096).start().unwrap())
}

/// Owner, group and permissions of a path.
fn shown(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.uid(), stat.gid(), stat.mode() & 0o7777)
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn owners_and_permissions_are_those_that_are_asked_for() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    filer.put("/asked/private", b"content", "mode=0600").unwrap();
    let plain = Mount::builder(&cluster).start().unwrap();
    assert_eq!(shown(&plain.file("/asked/private")), (0, 0, 0o600));
    assert!(as_nobody(|| fs::read(plain.file("/asked/private"))).is_err());

    let id = |name: &str| format!("--{name}={NOBODY}");
    let options = [id("uid"), id("gid"), "--file-mode=0640".into(), "--dir-mode=0750".into()];
    let own = Mount::builder(&cluster).args(&options).start().unwrap();
    // The filer has no entry for its root.
    for directory in ["/", "/asked"] {
        assert_eq!(shown(&own.file(directory)), (NOBODY, NOBODY, 0o750), "{directory}");
    }
    assert_eq!(shown(&own.file("/asked/private")), (NOBODY, NOBODY, 0o640));
    assert_eq!(as_nobody(|| fs::read(own.file("/asked/private"))).unwrap(), b"content");
    // So has what comes later: known by its event, or listed.
    filer.put("/asked/private", b"other content", "mode=0644").unwrap();
    filer.put("/asked/new", b"new", "mode=0600").unwrap();
    let changed = || {
        let content = as_nobody(|| fs::read(own.file("/asked/private"))).ok()?;
        (content == b"other content").then_some(())
    };
    eventually("the change", Duration::from_secs(10), changed).unwrap();
    for entry in fs::read_dir(own.file("/asked")).unwrap() {
        assert_eq!(shown(&entry.unwrap().path()), (NOBODY, NOBODY, 0o640));
    }

    let masked = Mount::builder(&cluster).args([&*format!("--map-uid={NOBODY}:0"), "--uid=1", "--umask=044"]);
    let masked = masked.start().unwrap();
    assert_eq!(shown(&masked.file("/asked/private")), (NOBODY, 0, 0o600));
    assert!(as_nobody(|| fs::read(masked.file("/asked/new"))).is_ok(), "a map goes before the user of all");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn ten_thousand_files_in_one_directory() {
    const FILES: usize = 10_000;
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    // Some are empty, some lie in their entry, some in a chunk.
    let content = |index: usize| format!("content of file {index}").repeat(index % 7 * 50);
    thread::scope(|scope| {
        for worker in 0..4 {
            let filer = cluster.filer();
            scope.spawn(move || {
                for index in (worker..FILES).step_by(4) {
                    filer.put(&format!("/many/file {index}"), content(index).as_bytes(), "").unwrap();
                }
            });
        }
    });
    let mount = Mount::builder(&cluster).start().unwrap();
    for _ in 0..2 {
        let listed: BTreeMap<_, _> = fs::read_dir(mount.file("/many"))
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                assert!(entry.file_type().unwrap().is_file());
                (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
            })
            .collect();
        let expected: BTreeMap<_, _> =
            (0..FILES).map(|index| (format!("file {index}"), content(index).len() as u64)).collect();
        assert_eq!(listed.len(), FILES);
        assert!(listed == expected, "a listed name or size is wrong");
    }
    for index in 0..FILES {
        let read = fs::read(mount.file(&format!("/many/file {index}"))).unwrap();
        assert_eq!(read, content(index).as_bytes(), "file {index}");
    }
    assert!(!mount.file("/many/file 10000").exists());
}

/// A directory whose names take more memory than there is beside a small cache: each name is
/// listed once all the same.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_that_is_too_large_for_memory_is_listed_whole() {
    const FILES: usize = 9_000;
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let name = |index: usize| format!("{index:0240}");
    thread::scope(|scope| {
        for worker in 0..4 {
            let filer = cluster.filer();
            scope.spawn(move || {
                for index in (worker..FILES).step_by(4) {
                    filer.put(&format!("/wide/{}", name(index)), b"", "").unwrap();
                }
            });
        }
    });
    let mount = Mount::builder(&cluster).args(["--cache-size", "64MiB"]).start().unwrap();
    let expected: Vec<_> = (0..FILES).map(name).collect();
    for with_attributes in [false, true, false] {
        let found = fs::read_dir(mount.file("/wide")).unwrap().map(|entry| {
            let entry = entry.unwrap();
            if with_attributes {
                assert_eq!(entry.metadata().unwrap().len(), 0);
            }
            entry.file_name().into_string().unwrap()
        });
        let mut found: Vec<_> = found.collect();
        found.sort();
        assert!(found == expected, "{} of {FILES} names", found.len());
    }
    // What has been listed is not all remembered, and what changes behind the cut shows.
    cluster.filer().delete(&format!("/wide/{}", name(FILES - 1))).unwrap();
    let gone = || (fs::read_dir(mount.file("/wide")).unwrap().count() == FILES - 1).then_some(());
    eventually("the deletion", Duration::from_secs(30), gone).unwrap();
    assert!(mount.file(&format!("/wide/{}", name(FILES - 2))).exists());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn odd_names_and_deep_directories() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let mut names: Vec<String> = [
        "with space",
        " leading and trailing ",
        "ünïcödé",
        "日本語のファイル",
        "\u{1f980}\u{1f980}",
        "e\u{301} decomposed",
        ".hidden",
        "...",
        "-rf",
        "percent%20sign",
        "question?mark",
        "hash#tag",
        "and&plus+semicolon;",
        "quote\"'`",
        "back\\slash",
        "star*[glob]",
        "new\nline",
        "tab\tstop",
        "colon:comma,",
    ]
    .map(String::from)
    .into();
    names.push("x".repeat(255));
    names.push("ü".repeat(127));
    let deep = (0..60).map(|level| format!("/level {level}")).collect::<String>();
    // SeaweedFS cleans some names that come in URLs, so they are made through a mount.
    let writer = Mount::weed(&cluster).start().unwrap();
    fs::create_dir(writer.file("/odd")).unwrap();
    for name in &names {
        fs::write(writer.file("/odd").join(name), name).unwrap();
    }
    drop(writer);
    filer.put(&format!("{deep}/bottom"), b"deep", "").unwrap();

    let mount = Mount::builder(&cluster).start().unwrap();
    let mut listed: Vec<_> = fs::read_dir(mount.file("/odd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.sort();
    for name in &names {
        assert_eq!(fs::read(mount.file("/odd").join(name)).unwrap(), name.as_bytes(), "{name:?}");
    }
    names.sort();
    assert_eq!(listed, names);
    assert_eq!(fs::read(mount.file(&format!("{deep}/bottom"))).unwrap(), b"deep");
    let too_long = fs::metadata(mount.file("/odd").join("y".repeat(256))).unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(libc::ENAMETOOLONG));
    let through_file = fs::metadata(mount.file("/odd/.hidden/below")).unwrap_err();
    assert_eq!(through_file.raw_os_error(), Some(libc::ENOTDIR));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_subtree_can_be_mounted() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    cluster.filer().put("/sub/tree/with/file", b"inside", "").unwrap();
    cluster.filer().put("/sub/outside", b"outside", "").unwrap();
    let mount = Mount::builder(&cluster).filer_path("/sub/tree").start().unwrap();
    assert_eq!(fs::read(mount.file("/with/file")).unwrap(), b"inside");
    let names: Vec<_> = fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["with"]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn inline_and_empty_files() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let content = Pattern::new(1).bytes(0, 4000);
    filer.put("/small/inline", &content, "").unwrap();
    filer.put("/small/empty", b"", "").unwrap();
    filer.mkdir("/small/nothing in it").unwrap();
    assert!(filer.chunks("/small/inline").unwrap().is_empty(), "the content is in the entry");
    let mount = Mount::builder(&cluster).start().unwrap();
    reading::verify(&mount.file("/small/inline"), &content);
    reading::verify(&mount.file("/small/empty"), b"");
    assert_eq!(fs::read_dir(mount.file("/small/nothing in it")).unwrap().count(), 0);
}

/// All attributes of everything under `root`, for comparison of two mounts.
fn describe(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, told: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let kind = stat.file_type();
            // A directory has no size of its own in SeaweedFS, and each mount makes one up.
            let size = if kind.is_dir() { 0 } else { stat.len() };
            let target = if kind.is_symlink() { fs::read_link(&path).unwrap() } else { Default::default() };
            told.insert(
                name,
                format!(
                    "mode {:o} uid {} gid {} size {size} mtime {}.{:09} nlink {} rdev {:x} target {target:?}",
                    stat.mode(),
                    stat.uid(),
                    stat.gid(),
                    stat.mtime(),
                    stat.mtime_nsec(),
                    stat.nlink(),
                    stat.rdev(),
                ),
            );
            if kind.is_dir() {
                walk(root, &path, told);
            }
        }
    }
    let mut told = BTreeMap::new();
    walk(root, root, &mut told);
    told
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn every_kind_of_entry_with_its_attributes() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let writer = Mount::weed(&cluster).start().unwrap();
    let root = writer.file("/kinds");
    fs::create_dir(&root).unwrap();
    for (index, mode) in [0o400, 0o644, 0o755, 0o000, 0o666].into_iter().enumerate() {
        let path = root.join(format!("file {mode:o}"));
        fs::write(&path, vec![b'.'; index]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(1000 + index as u32), Some(2000 + index as u32)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_500_000_000 + index as u64, 123_456_789);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    }
    fs::create_dir(root.join("directory")).unwrap();
    fs::set_permissions(root.join("directory"), Permissions::from_mode(0o750)).unwrap();
    chown(root.join("directory"), Some(7), Some(8)).unwrap();
    symlink("file 644", root.join("soft link")).unwrap();
    fs::hard_link(root.join("file 644"), root.join("directory/hard link")).unwrap();
    mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o620)).unwrap();
    mknod(&root.join("character"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3)).unwrap();
    mknod(&root.join("block"), SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), makedev(7, 99)).unwrap();
    mknod(&root.join("socket"), SFlag::S_IFSOCK, Mode::from_bits_truncate(0o600), 0).unwrap();
    drop(writer);

    let reference = Mount::weed(&cluster).start().unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let told = describe(&mount.file("/kinds"));
    assert_eq!(told.len(), 12, "{told:#?}");
    for (name, expected) in describe(&reference.file("/kinds")) {
        assert_eq!(told[&name], expected, "{name}");
    }
    let kind = |name: &str| fs::symlink_metadata(mount.file("/kinds").join(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("block").is_block_device() && kind("socket").is_socket());
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let name = CString::new(name).unwrap();
    // SAFETY: both strings end in NUL and the value is as long as told.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn xattr_names(path: &Path) -> Vec<String> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 65_536];
    // SAFETY: the string ends in NUL and the buffer is as long as told.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap());
    let mut names: Vec<_> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn extended_attributes() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let long = Pattern::new(5).bytes(0, 30_000);
    let writer = Mount::weed(&cluster).start().unwrap();
    fs::create_dir(writer.file("/attributes")).unwrap();
    fs::write(writer.file("/attributes/file"), b"with attributes").unwrap();
    fs::write(writer.file("/attributes/plain"), b"without").unwrap();
    set_xattr(&writer.file("/attributes/file"), "user.colour", b"green");
    set_xattr(&writer.file("/attributes/file"), "user.empty", b"");
    set_xattr(&writer.file("/attributes/file"), "user.long", &long);
    set_xattr(&writer.file("/attributes"), "user.of a directory", b"yes");
    drop(writer);
    // An HTTP header that SeaweedFS keeps beside them is no extended attribute.
    let header = [("Seaweed-Owner", "nobody")];
    cluster.filer().put_as("/attributes/headers", b"x", "", &header).unwrap();

    let mount = Mount::builder(&cluster).start().unwrap();
    let file = mount.file("/attributes/file");
    assert_eq!(xattr_names(&file), ["user.colour", "user.empty", "user.long"]);
    assert_eq!(xattr(&file, "user.colour").unwrap(), b"green");
    assert_eq!(xattr(&file, "user.empty").unwrap(), b"");
    assert_eq!(xattr(&file, "user.long").unwrap(), long);
    assert_eq!(xattr(&mount.file("/attributes"), "user.of a directory").unwrap(), b"yes");
    assert_eq!(xattr(&file, "user.none"), Err(libc::ENODATA));
    assert_eq!(xattr_names(&mount.file("/attributes/plain")), [""; 0]);
    assert_eq!(xattr_names(&mount.file("/attributes/headers")), [""; 0]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_with_a_time_to_live_vanish() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let content = Pattern::new(6).bytes(0, 100_000);
    let mount = Mount::builder(&cluster).start().unwrap();
    let writer = Mount::weed(&cluster).arg("-ttl=6").start().unwrap();
    fs::create_dir(writer.file("/fleeting")).unwrap();
    fs::write(writer.file("/fleeting/file"), &content).unwrap();
    drop(writer);
    assert_eq!(cluster.filer().entry("/fleeting/file").unwrap().unwrap()["TtlSec"], 6);
    let path = mount.file("/fleeting/file");
    reading::verify(&path, &content);
    let gone = || fs::metadata(&path).err().map(|error| error.kind());
    let kind = eventually("the end of the file", Duration::from_secs(20), gone).unwrap();
    assert_eq!(kind, std::io::ErrorKind::NotFound);
    let listed = || fs::read_dir(mount.file("/fleeting")).unwrap().count() == 0;
    eventually("its end in the listing", Duration::from_secs(10), || listed().then_some(())).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_size_of_the_file_system_is_told() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mount = Mount::builder(&cluster).start().unwrap();
    let told = nix::sys::statvfs::statvfs(mount.path()).unwrap();
    assert_eq!(told.name_max(), 255);
    assert!(told.blocks() > 0 && told.blocks_free() > 0 && told.blocks_free() <= told.blocks(), "{told:?}");
}
