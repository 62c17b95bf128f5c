//! A layer over a mount: programs find through it what they found without it, and do not notice
//! when it comes or goes.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use rustix::fs::XattrFlags;
use tests::mount::interceptor_program;
use tests::process::{Process, undrained_pipe, with_stderr};
use tests::readers::{content, put_files, read_under};
use tests::{BindMount, Bindfs, Cluster, Layer, Mount, eventually, host, posix};

const NO_OPTIONS: [&str; 0] = [];

/// Runs `interceptor attach PATH`, which must end by itself; gives its exit code and what it said.
fn attach(path: &Path) -> (Option<i32>, String) {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("log");
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["attach", "--status-addr", "none"]).arg(path).current_dir(home.path());
    let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
    let status = process.wait(Duration::from_secs(30)).unwrap();
    (status.code(), fs::read_to_string(log).unwrap())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_cannot_work_is_refused_and_nothing_is_covered() {
    let Some(disk) = host::disk() else { return };
    let refused = |path: &Path, words: &[&str]| {
        let (code, said) = attach(path);
        assert_eq!(code, Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{path:?}: no {word:?} in {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    };
    let path = disk.path();
    refused(&path.join("missing"), &["does not exist"]);
    fs::create_dir(path.join("directory")).unwrap();
    refused(&path.join("directory"), &["not a mount point"]);
    refused(Path::new("/proc"), &["proc", "ext4"]);
    assert!(!Layer::is_at(&path));

    // Something is mounted in it.
    let inner = path.join("directory");
    nix::mount::mount(Some("tmpfs"), &inner, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    refused(&path, &["covered", "directory"]);
    nix::mount::umount(&inner).unwrap();

    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    refused(&path, &["already attached"]);
    fs::write(path.join("file"), "still there").unwrap();
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    assert_eq!(fs::read(path.join("file")).unwrap(), b"still there");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn logs_that_cannot_be_written_leave_no_dead_layer() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("file"), "there").unwrap();
    let home = tempfile::tempdir().unwrap();
    let (fifo, _undrained) = undrained_pipe(home.path()).unwrap();
    for redirection in [">/dev/full", ">&-", &format!(">{}", fifo.display())] {
        for killed in [false, true] {
            let wrapper = with_stderr(redirection);
            let mut layer =
                Layer::started_by(&wrapper.each_ref().map(String::as_str), &path, ["--log-level", "trace"])
                    .unwrap();
            layer.signal(Signal::SIGHUP);
            assert_eq!(fs::read(path.join("file")).unwrap(), b"there");
            let code = if killed {
                layer.kill_daemon().unwrap();
                1
            } else {
                layer.signal(Signal::SIGTERM);
                0
            };
            assert_eq!(layer.wait().unwrap().code(), Some(code), "{redirection}, killed: {killed}");
            assert!(!Layer::is_at(&path), "{redirection}, killed: {killed}");
            assert_eq!(fs::read(path.join("file")).unwrap(), b"there");
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_done_through_the_layer_is_done_to_the_mount_below() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("before"), "before").unwrap();
    let below = fs::metadata(path.join("before")).unwrap();
    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let above = fs::metadata(path.join("before")).unwrap();
    assert_ne!(above.dev(), below.dev());
    assert_eq!(
        (above.ino(), above.mode(), above.mtime_nsec()),
        (below.ino(), below.mode(), below.mtime_nsec())
    );

    let file = path.join("file");
    let mut appending = File::options().create_new(true).read(true).append(true).open(&file).unwrap();
    appending.write_all(b"one ").unwrap();
    let other = File::options().append(true).open(&file).unwrap();
    (&other).write_all(b"two ").unwrap();
    appending.write_all(b"three").unwrap();
    let mut text = String::new();
    appending.seek(SeekFrom::Start(0)).unwrap();
    appending.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two three");

    let script = path.join("script");
    fs::write(&script, "#!/bin/sh\necho ran").unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(Command::new(&script).output().unwrap().stdout, b"ran\n");

    let error = File::options().write(true).custom_flags(libc::O_TMPFILE).open(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");

    fs::rename(&file, path.join("renamed")).unwrap();
    fs::hard_link(path.join("renamed"), path.join("linked")).unwrap();
    fs::remove_file(path.join("renamed")).unwrap();
    appending.write_all(b"!").unwrap();
    assert_eq!(fs::metadata(path.join("linked")).unwrap().nlink(), 1);
    drop((appending, other));
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    assert_eq!(fs::read_to_string(path.join("linked")).unwrap(), "one two three!");
    assert!(!path.join("renamed").exists());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn names_that_are_listed_without_a_type_are_what_they_are() {
    let Some(disk) = host::disk_without_types() else { return };
    let path = disk.path();
    // Of a long directory the kernel asks for the beginning with attributes, and for the rest
    // without.
    for number in 0..1500 {
        fs::create_dir(path.join(format!("directory-{number}"))).unwrap();
    }
    fs::write(path.join("directory-0/file"), "").unwrap();
    std::os::unix::fs::symlink("directory-0", path.join("symlink")).unwrap();
    nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    // By the types of a listing, where it tells them.
    let found = || {
        let output = Command::new("find").arg(&path).args(["-printf", "%y %p\\n"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut found: Vec<_> = output.stdout.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        found.sort();
        found
    };
    let bare = found();
    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let attached = found();
    assert_eq!(attached.len(), bare.len());
    assert!(attached == bare, "the types differ");
    fs::remove_dir_all(path.join("directory-0")).unwrap();
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

/// What `work` gives in a thread of a user without rights, in this group only.
fn as_another<T: Send>(group: u32, work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        let none = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_thread_groups(&[]).unwrap();
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(group));
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        let sets = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, sets).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_an_attribute_does_depends_on_who_sets_and_lists_it() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    let acl = |entries: &[(u16, u16, u32)]| {
        let entries = entries.iter().flat_map(|(tag, rights, id)| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes()[..], &id.to_le_bytes()[..]].concat()
        });
        2_u32.to_le_bytes().into_iter().chain(entries).collect::<Vec<_>>()
    };
    let none = u32::MAX;
    let minimal = acl(&[(1, 7, none), (4, 5, none), (0x20, 5, none)]);
    let named = acl(&[(1, 7, none), (2, 7, 1005), (4, 5, none), (0x10, 7, none), (0x20, 5, none)]);
    let outcome = |name: &str| {
        let file = path.join(name);
        fs::write(&file, "").unwrap();
        let mut modes = Vec::new();
        let set = |value: &[u8]| {
            let name = c"system.posix_acl_access";
            rustix::fs::setxattr(&file, name, value, XattrFlags::empty()).unwrap();
        };
        for value in [&minimal, &named] {
            for who in [None, Some(2002), Some(1001)] {
                std::os::unix::fs::chown(&file, Some(65_534), Some(2002)).unwrap();
                fs::set_permissions(&file, Permissions::from_mode(0o2755)).unwrap();
                match who {
                    None => set(value),
                    Some(group) => as_another(group, || set(value)),
                }
                modes.push(fs::metadata(&file).unwrap().mode() & 0o7000);
            }
        }
        for name in [c"trusted.secret", c"user.shown"] {
            rustix::fs::setxattr(&file, name, b"value", XattrFlags::empty()).unwrap();
        }
        let list = || {
            let mut names = vec![0; 4096];
            let length = rustix::fs::listxattr(&file, &mut names[..]).unwrap();
            assert_eq!(rustix::fs::listxattr_query(&file).unwrap(), length);
            String::from_utf8_lossy(&names[..length]).into_owned()
        };
        (modes, list(), as_another(1001, list))
    };
    let bare = outcome("bare");
    assert_eq!(bare.0, [0o2000, 0o2000, 0, 0o2000, 0o2000, 0]);
    assert!(bare.1.contains("trusted.secret") && !bare.2.contains("trusted.secret"));
    let _layer = Layer::over(&path, NO_OPTIONS).unwrap();
    assert_eq!(outcome("layered"), bare);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn appending_is_what_a_handle_does_now_and_what_a_file_allows() {
    let Some(disk) = host::disk() else { return };
    let (path, beside) = (disk.path(), BindMount::of(&disk.path()).unwrap());
    fs::write(path.join("log"), "one ").unwrap();
    let attribute = |change: &str| {
        let log = beside.path().join("log");
        assert!(Command::new("chattr").arg(change).arg(log).status().unwrap().success());
    };
    attribute("+a");
    let _layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let open =
        |name: &str, append| File::options().create(true).append(append).write(true).open(path.join(name));
    let below = |name: &str| fs::read_to_string(beside.path().join(name)).unwrap();

    let mut file = open("cleared", true).unwrap();
    file.write_all(b"hello").unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    assert_eq!(below("cleared"), "Xello");
    let mut file = open("set", false).unwrap();
    file.write_all(b"hello").unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    assert_eq!(below("set"), "helloX");

    let mut log = open("log", true).unwrap();
    log.write_all(b"two ").unwrap();
    log.write_all(b"three").unwrap();
    assert_eq!(below("log"), "one two three");
    assert_eq!(fs::read_to_string(path.join("log")).unwrap(), "one two three");
    let refused = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
    refused(open("log", false).unwrap_err());
    refused(log.set_len(0).unwrap_err());
    fcntl(&log, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    refused(log.write_all_at(b"X", 0).unwrap_err());
    assert_eq!(below("log"), "one two three");
    attribute("-a");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn links_are_not_followed_where_the_mount_below_forbids_it() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("file"), "").unwrap();
    std::os::unix::fs::symlink("file", path.join("symlink")).unwrap();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::from_bits_retain(libc::MS_NOSYMFOLLOW);
    mount(None::<&str>, &path, None::<&str>, flags, None::<&str>).unwrap();
    let follow = || File::open(path.join("symlink")).map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(follow(), Err(Some(libc::ELOOP)));
    let _layer = Layer::over(&path, NO_OPTIONS).unwrap();
    assert_eq!(follow(), Err(Some(libc::ELOOP)));
    assert_eq!(fs::read_link(path.join("symlink")).unwrap(), Path::new("file"));
    File::open(path.join("file")).unwrap();
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn a_link_that_is_replaced_below_leads_where_it_should() {
    if !host::can_mount() || !host::has_bindfs() {
        return;
    }
    let below = Bindfs::start().unwrap();
    let (link, source) = (below.path().join("link"), below.source().join("link"));
    let _layer = Layer::over(&below.path(), NO_OPTIONS).unwrap();
    std::os::unix::fs::symlink("one", &source).unwrap();
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("one"));
    fs::remove_file(&source).unwrap();
    std::os::unix::fs::symlink("two", &source).unwrap();
    eventually("the new target", Duration::from_secs(10), || {
        (fs::read_link(&link).unwrap() == Path::new("two")).then_some(())
    })
    .unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_deleted_another_way_gives_its_space_back() {
    let Some(disk) = host::disk() else { return };
    let (path, beside) = (disk.path(), BindMount::of(&disk.path()).unwrap());
    let _layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let free = || {
        let space = rustix::fs::statvfs(beside.path()).unwrap();
        space.f_bfree * space.f_frsize
    };
    let large = vec![7; 64 << 20];
    fs::write(path.join("large"), &large).unwrap();
    fs::write(path.join("open"), &large).unwrap();
    assert!(fs::metadata(path.join("large")).unwrap().is_file());
    let mut open = File::open(path.join("open")).unwrap();
    let before = free();
    for name in ["large", "open"] {
        fs::remove_file(beside.path().join(name)).unwrap();
    }
    eventually("the space of a deleted file", Duration::from_secs(20), || {
        (free() >= before + (large.len() as u64 * 9 / 10)).then_some(())
    })
    .unwrap();
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == large, "an open file stays");
    assert_eq!(open.metadata().unwrap().nlink(), 0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_removed_stays_what_it_is_for_who_is_in_it() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let names = ["removed", "replaced"];
    let within = names.map(|name| {
        fs::create_dir(path.join(name)).unwrap();
        Command::new("sh")
            .args(["-c", "read line && ls -a . && stat -c %h ."])
            .current_dir(path.join(name))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    let descriptors = format!("/proc/{}/fd", layer.daemon().unwrap());
    eventually("the end of what is held of idle directories", Duration::from_secs(20), || {
        let held =
            fs::read_dir(&descriptors).unwrap().flatten().filter_map(|held| fs::read_link(held.path()).ok());
        let is_held = held.into_iter().any(|held| names.iter().any(|name| held.ends_with(name)));
        (!is_held).then_some(())
    })
    .unwrap();
    fs::remove_dir(path.join("removed")).unwrap();
    fs::create_dir(path.join("other")).unwrap();
    fs::rename(path.join("other"), path.join("replaced")).unwrap();
    for mut within in within {
        within.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let output = within.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"0\n");
    }
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn more_directories_are_known_than_there_are_descriptors() {
    const DESCRIPTORS: u64 = 400;
    if !host::can_mount() || !host::has_bindfs() {
        return;
    }
    let (Some(disk), fuse) = (host::disk(), Bindfs::start().unwrap()) else { return };
    for path in [disk.path(), fuse.path()] {
        let directory = |number: u64| path.join(format!("directory-{number}"));
        for number in 0..3 * DESCRIPTORS {
            fs::create_dir(directory(number)).unwrap();
            fs::write(directory(number).join("file"), number.to_string()).unwrap();
        }
        let layer = Layer::with_descriptors(DESCRIPTORS, &path, ["--read-cache", "off"]).unwrap();
        let mut within = Command::new("sh")
            .args(["-c", "read line && cat file"])
            .current_dir(directory(0))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        for number in 0..3 * DESCRIPTORS {
            assert_eq!(fs::read_dir(directory(number)).unwrap().count(), 1);
            assert_eq!(fs::read_to_string(directory(number).join("file")).unwrap(), number.to_string());
        }
        // With the files' own, half of the limit.
        let files = (0..DESCRIPTORS / 4).map(|number| File::open(directory(number).join("file")).unwrap());
        let files: Vec<_> = files.collect();
        let daemon = layer.daemon().unwrap();
        let held = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count() as u64;
        assert!(held <= DESCRIPTORS, "{held}");
        drop(files);
        within.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let output = within.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"0", "{output:?}");
        assert_eq!(layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_large_copy_is_made_in_parts() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    const SIZE: u64 = 70 << 20;
    File::create(path.join("from")).unwrap().set_len(SIZE).unwrap();
    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let (from, to) = (File::open(path.join("from")).unwrap(), File::create(path.join("to")).unwrap());
    let mut copied = Vec::new();
    while copied.iter().sum::<usize>() < SIZE as usize {
        let (from, to, here) = (from.as_raw_fd(), to.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: both descriptors are open, and without offsets no memory is involved.
        let part = unsafe { libc::copy_file_range(from, here, to, here, SIZE as usize, 0) };
        copied.push(nix::errno::Errno::result(part).unwrap() as usize);
    }
    assert!(copied.len() > 2 && copied.iter().all(|part| *part <= 32 << 20), "{copied:?}");
    assert_eq!(to.metadata().unwrap().len(), SIZE);
    drop((from, to));
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

/// Sets both times of a file, as programs may: with any number of seconds.
fn set_times(path: &Path, seconds: i64, nanoseconds: i64) -> nix::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let times = [libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }; 2];
    // SAFETY: the path ends with a zero, and there are two times.
    let set = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) };
    nix::errno::Errno::result(set).map(drop)
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn times_are_kept_and_those_that_cannot_be_cost_only_their_request() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    let (bare, file) = (path.join("bare"), path.join("file"));
    fs::write(&bare, "bare").unwrap();
    fs::write(&file, "content").unwrap();
    const TIMES: [(i64, i64); 6] =
        [(-2, 500_000_000), (-1, 999_999_999), (-1, 0), (-1 << 31, 1), (0, 1), (1 << 33, 5)];
    let times = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.mtime(), found.mtime_nsec(), found.atime(), found.atime_nsec())
    };
    let below: Vec<_> = TIMES
        .iter()
        .map(|(seconds, nanoseconds)| {
            set_times(&bare, *seconds, *nanoseconds).unwrap();
            times(&bare)
        })
        .collect();

    let layer = Layer::over(&path, NO_OPTIONS).unwrap();
    for ((seconds, nanoseconds), below) in TIMES.iter().zip(&below) {
        set_times(&file, *seconds, *nanoseconds).unwrap();
        assert_eq!(times(&file), *below, "{seconds} s and {nanoseconds} ns");
    }
    // More often than there are threads, of which none may be lost.
    let panics = || layer.status_page().metric("interceptor_panics_total", &[]).unwrap();
    let mut refused = 0.0;
    for _ in 0..100 {
        refused += if set_times(&file, i64::MIN, 1).is_err() { 1.0 } else { 0.0 };
        assert_eq!(fs::read(&file).unwrap(), b"content");
    }
    assert_eq!(panics(), refused, "all are counted");
    let log = layer.log().unwrap();
    assert!(log.matches("ERROR panic: ").count() <= 1, "a user floods the log: {log}");
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

/// Each request that panics costs a clone of the connection, for which there must be descriptors.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn whoever_has_opened_all_that_he_may_can_still_close_it() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    let (file, directory) = (path.join("file"), path.join("directory"));
    fs::write(&file, "content").unwrap();
    fs::create_dir(&directory).unwrap();
    let layer = Layer::with_descriptors(512, &path, NO_OPTIONS).unwrap();
    let mut held: Vec<File> = (0..512).map_while(|_| File::open(&file).ok()).collect();
    assert!(held.len() > 100 && held.len() < 512, "{}", held.len());
    let make_directory = || fs::create_dir(path.join("new")).map(|()| File::open(&file).unwrap());
    for refused in
        [File::open(&file), File::open(&directory), File::create_new(path.join("new")), make_directory()]
    {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EMFILE));
    }
    assert!(!path.join("new").exists(), "what was refused was made");
    for _ in 0..100 {
        assert!(set_times(&file, i64::MIN, 1).is_err());
        held.pop();
        // The kernel does not wait until the layer has closed what a program has closed.
        held.push(
            eventually("room for another", Duration::from_secs(20), || File::open(&file).ok()).unwrap(),
        );
    }
    assert!(layer.status_page().metric("interceptor_panics_total", &[]).unwrap() >= 100.0);
    drop(held);
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_aborted_connection_is_a_failure_and_leaves_no_layer() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("file"), "below").unwrap();
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let open = File::open(path.join("file")).unwrap();
    host::abort_connection(&path);
    assert_eq!(layer.wait().unwrap().code(), Some(1));
    assert!(!Layer::is_at(&path), "a dead layer is left");
    assert!(layer.log().unwrap().contains("aborted"));
    drop(open);
    assert_eq!(fs::read(path.join("file")).unwrap(), b"below");
}

/// Makes files and directories in `place` as another user, and returns their owners and modes.
fn made_by_another(place: &Path) -> String {
    use std::os::unix::process::CommandExt;
    let script = "umask 027 && touch file && mkdir -m 2777 group && touch group/file && mkdir group/inner \
                  && mkfifo fifo && ln -s file link && touch acl/file && mkdir acl/inner \
                  && stat -c '%n %A %u %g' file group group/file group/inner fifo link acl/file acl/inner";
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(place).uid(1).gid(2);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A directory that all users may write to, with another group than its maker's, and a directory
/// in it that has a default access control list.
fn place_for_another(path: &Path) {
    fs::create_dir(path).unwrap();
    fs::create_dir(path.join("acl")).unwrap();
    std::os::unix::fs::chown(path, Some(0), Some(12)).unwrap();
    for path in [path.to_owned(), path.join("acl")] {
        fs::set_permissions(path, Permissions::from_mode(0o2777)).unwrap();
    }
    // Version 2; then tag, permissions and id of owner (rwx), group (rwx) and others (none).
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1u16, 7u16), (4, 7), (0x20, 0)] {
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(u32::MAX.to_le_bytes());
    }
    let path = std::ffi::CString::new(path.join("acl").to_str().unwrap()).unwrap();
    let (name, value) = (c"system.posix_acl_default", list.as_ptr().cast());
    // SAFETY: both strings end with a zero, and `value` has as many bytes as is said.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value, list.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_is_made_belongs_to_its_maker() {
    let Some(disk) = host::disk() else { return };
    let (bare, layered) = (disk.path().join("bare"), disk.path().join("layered"));
    place_for_another(&bare);
    let expected = made_by_another(&bare);
    assert!(expected.contains("acl/file -rw-rw----"), "the list counts and not the umask: {expected}");
    let _layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    place_for_another(&layered);
    assert_eq!(made_by_another(&layered), expected);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mapping_and_plain_calls_see_each_others_bytes() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path().join("file");
    fs::write(&path, vec![b'.'; 10_000]).unwrap();
    let layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let reader = File::open(&path).unwrap();
    // SAFETY: the mapping is of a file that keeps its size, and is used below by plain reads and
    // writes within it.
    let map = unsafe {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 10_000, prot, flags, file.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    let map = map.cast::<u8>();
    let mut byte = [0];
    reader.write_at(b"x", 0).unwrap_err();
    // SAFETY: all places are within the mapping, which lives until the end of the test.
    unsafe {
        map.add(5000).write_volatile(b'm');
        reader.read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, *b"m", "what was mapped is read");
        file.write_all_at(b"w", 7000).unwrap();
        assert_eq!(map.add(7000).read_volatile(), b'w', "what was written is mapped");
    }
    drop(file);
    drop(reader);
    // SAFETY: it was mapped above with this length.
    assert_eq!(unsafe { libc::munmap(map.cast(), 10_000) }, 0);
    assert_eq!(layer.detach().unwrap().code(), Some(0));
    let bytes = fs::read(&path).unwrap();
    assert_eq!((bytes[5000], bytes[7000], bytes.len()), (b'm', b'w', 10_000));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn programs_read_on_while_a_layer_comes_and_goes() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    put_files(&path);
    read_under(&path, || {
        for _ in 0..3 {
            let layer = Layer::over(&path, NO_OPTIONS).unwrap();
            let open = File::open(path.join("file-0")).unwrap();
            let detaching = thread::spawn(move || layer.detach().unwrap());
            eventually("the mount below", Duration::from_secs(5), || (!Layer::is_at(&path)).then_some(()))
                .unwrap();
            // What was opened by way of the layer is served until it is closed.
            let mut bytes = vec![0; 100_000];
            open.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == content(0));
            drop(open);
            assert_eq!(detaching.join().unwrap().code(), Some(0));
        }
    });
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_killed_daemon_leaves_the_mount_below() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("file"), "below").unwrap();
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let open = File::open(path.join("file")).unwrap();
    let writer = {
        let path = path.clone();
        // Under load; it meets an error when the daemon dies, and ends.
        thread::spawn(move || -> std::io::Error {
            let mut file = File::create(path.join("written")).unwrap();
            loop {
                if let Err(error) = file.write_all(&[7; 65_536]).and_then(|()| file.set_len(0)) {
                    return error;
                }
            }
        })
    };
    let written = || fs::metadata(path.join("written")).ok();
    eventually("writes", Duration::from_secs(10), written).unwrap();
    let killed = Instant::now();
    layer.kill_daemon().unwrap();
    let below = || {
        let text = fs::read_to_string(path.join("file")).ok()?;
        (!Layer::is_at(&path)).then_some(text)
    };
    let text = eventually("the mount below", Duration::from_secs(10), below).unwrap();
    let took = killed.elapsed();
    assert_eq!(text, "below");
    println!("the mount below was there again after {took:?}");
    let error = writer.join().unwrap();
    // The last, if it died while it was taking over the request.
    let ended = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].map(Some);
    assert!(ended.contains(&error.raw_os_error()), "{error}");
    // The kernel may still have the page; nothing can be asked.
    assert_eq!(open.metadata().map(|found| found.len()).unwrap_or(5), 5);
    assert_eq!(layer.wait().unwrap().code(), Some(1));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_its_watcher_the_daemon_detaches_in_order() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path();
    fs::write(path.join("file"), "below").unwrap();
    let mut layer = Layer::over(&path, NO_OPTIONS).unwrap();
    let open = File::open(path.join("file")).unwrap();
    layer.signal(Signal::SIGKILL);
    eventually("the mount below", Duration::from_secs(10), || (!Layer::is_at(&path)).then_some(())).unwrap();
    let mut bytes = [0; 5];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"below");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "below");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_umount_by_somebody_else_ends_the_layer() {
    let Some(disk) = host::disk() else { return };
    let mut layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    nix::mount::umount2(&disk.path(), nix::mount::MntFlags::empty()).unwrap();
    assert_eq!(layer.wait().unwrap().code(), Some(0));
    assert!(!Layer::is_at(&disk.path()));
    fs::write(disk.path().join("file"), "").unwrap();
}

#[test]
#[cfg_attr(not(all(can_mount, has_bindfs)), ignore = "needs mounts and bindfs")]
fn a_mount_below_that_dies_gives_its_own_error() {
    if !host::can_mount() || !host::has_bindfs() {
        return;
    }
    let mut below = tests::Bindfs::start().unwrap();
    below.put("file", b"content").unwrap();
    let layer = Layer::over(&below.path(), NO_OPTIONS).unwrap();
    assert_eq!(fs::read(below.path().join("file")).unwrap(), b"content");
    let path = below.path();
    // Ends the daemon below; its mount stays, dead, under the layer.
    below.kill_daemon();
    let error = fs::read_dir(&path).and_then(|mut entries| entries.next().transpose()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(layer.detach().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn locks_hold_between_programs() {
    let Some(disk) = host::disk() else { return };
    let path = disk.path().join("file");
    fs::write(&path, "").unwrap();
    let _layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.lock().unwrap();
    let other = File::options().write(true).open(&path).unwrap();
    assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
    file.unlock().unwrap();
    other.try_lock().unwrap();
}

/// The cases that do not turn out alike.
fn differences(bare: &BTreeMap<String, String>, layered: &BTreeMap<String, String>) -> Vec<String> {
    let cases = bare.keys().chain(layered.keys());
    let differs = |case: &&String| bare.get(*case) != layered.get(*case);
    let mut cases: Vec<_> = cases.filter(differs).cloned().collect();
    cases.dedup();
    // The C library knows the largest number of links by the kind of file system, and does not
    // know FUSE's.
    cases.retain(|case| case != "link::link_count_max");
    cases
}

#[test]
#[cfg_attr(not(all(can_mount, has_posix_suites)), ignore = "needs mounts, pjdfstest and fsx")]
fn posix_over_ext4_is_what_ext4_makes_of_it() {
    let Some(disk) = host::disk().filter(|_| host::has_posix_suites()) else { return };
    let bare = posix::pjdfstest(&disk.path()).unwrap();
    let _layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    let layered = posix::pjdfstest(&disk.path()).unwrap();
    assert_eq!(differences(&bare, &layered), NO_OPTIONS);
    for seed in 1..=4 {
        assert_eq!(
            posix::fsx(&disk.path(), seed, 3000, &posix::FSX_WITH_HOLES).unwrap(),
            None,
            "seed {seed}"
        );
    }
}

#[test]
#[cfg_attr(not(all(can_mount, has_posix_suites)), ignore = "needs mounts, pjdfstest and fsx")]
fn posix_over_weed_mount_is_what_weed_mount_makes_of_it() {
    if !host::can_mount() || !host::has_posix_suites() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let mount = Mount::weed(&cluster).start().unwrap();
    let parent = mount.path().parent().unwrap();
    for path in [parent, mount.path()] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let bare = posix::pjdfstest(mount.path()).unwrap();
    // Not all seeds pass on the bare mount, so what is compared is how they end.
    let fsx = |seed| posix::fsx(mount.path(), seed, 600, &[]).unwrap();
    let seeds = [1, 2, 3, 4];
    let bare_fsx = seeds.map(fsx);
    let _layer = Layer::over(mount.path(), ["--filer", &cluster.filer_addresses()]).unwrap();
    let layered = posix::pjdfstest(mount.path()).unwrap();
    let worse = |case: &String| bare.get(case).is_some_and(|result| result == "ok");
    let differences = differences(&bare, &layered);
    assert_eq!(differences.into_iter().filter(worse).collect::<Vec<_>>(), NO_OPTIONS);
    assert_eq!(seeds.map(fsx), bare_fsx);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_full_disk_is_told_to_who_writes() {
    let Some(disk) = host::disk() else { return };
    let _layer = Layer::over(&disk.path(), NO_OPTIONS).unwrap();
    // More than there is room for: the error is the mount below's.
    let mut file = File::create(disk.path().join("large")).unwrap();
    let block = vec![1; 1 << 20];
    let error = (0..1024).find_map(|_| file.write_all(&block).err()).expect("512 MiB cannot hold a GiB");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    drop(file);
    fs::remove_file(disk.path().join("large")).unwrap();
    fs::write(disk.path().join("small"), "fits").unwrap();
}
