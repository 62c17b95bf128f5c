//! Volumes of seaweedfs-csi-driver: the calls of its mount service, replayed against the program
//! under the name `weed` and a real SeaweedFS; and the manifests for Kubernetes.

mod manifests;
mod mount_service;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use tests::{BindMount, Cluster, Pattern, Shared, eventually, host, reading, tools};

use mount_service::{MountService, is_mount_point, mounted_types};

static CLUSTER: Shared<Cluster> = Shared::new();

const FILE_LEN: usize = 3_000_000;

/// The types of file systems by which a volume is served.
const MOUNT: &str = "fuse.interceptor";
const LAYER: &str = "fuse.interceptor-attach";
const REAL: &str = "fuse.seaweedfs";

/// Longest wait for what must happen soon.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().start().unwrap())
}

fn content(volume: &str) -> Vec<u8> {
    Pattern::new(volume.bytes().map(u64::from).sum()).bytes(0, FILE_LEN)
}

/// A mount service, and a cluster in which each of these volumes has a file.
fn service(volumes: &[&str]) -> MountService {
    let cluster = cluster();
    for volume in volumes {
        cluster.filer().put(&format!("/volumes/{volume}/file"), &content(volume), "").unwrap();
    }
    MountService::new(&cluster.filer_addresses())
}

#[track_caller]
fn assert_has_the_file(path: &Path, volume: &str) {
    reading::verify(&path.join("file"), &content(volume));
}

/// The processes with `text` in their command line, without this one.
fn processes_with(text: &str) -> Vec<Pid> {
    let named = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let is_it = String::from_utf8_lossy(&line).contains(text);
        (is_it && pid.cast_unsigned() != std::process::id()).then_some(Pid::from_raw(pid))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(named).collect()
}

/// The children of a process, and theirs.
fn descendants(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|text| text.parse().ok()).map(Pid::from_raw);
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until none of these runs any more.
#[track_caller]
fn await_end(processes: &[Pid]) {
    let are_gone = || processes.iter().all(|&pid| !is_running(pid)).then_some(());
    eventually("the end of all processes", WAIT_TIMEOUT, are_gone).unwrap();
}

/// Where else the file system at `path` is mounted.
fn private_mount_point(path: &Path) -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let fields = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let (here, others): (Vec<_>, Vec<_>) = fields.partition(|fields| fields[4] == path.to_str().unwrap());
    let device = here.last()?[2];
    others.iter().find(|fields| fields[2] == device).map(|fields| fields[4].into())
}

fn unmount_private(place: &Option<PathBuf>) {
    if let Some(place) = place {
        while umount2(place, MntFlags::MNT_DETACH).is_ok() {}
        fs::remove_dir(place).unwrap();
    }
}

fn own_pid(volume: &mount_service::MountedVolume) -> Pid {
    Pid::from_raw(volume.process.pid().cast_signed())
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn ten_volumes_are_mounted_used_and_unmounted() {
    if !host::can_mount() {
        return;
    }
    let names: Vec<String> = (0..10).map(|number| format!("ten-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let service = service(&names);
    let mut volumes = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let volume = service.mount(name, number % 2 == 0, &[]).unwrap();
        // A pod gets what is there when the mount point is.
        let pod = BindMount::of(&volume.path).unwrap();
        let expected = if number % 2 == 0 { MOUNT } else { LAYER };
        assert_eq!(mounted_types(&volume.path), [expected], "{name}");
        assert_eq!(mounted_types(&pod.path()), [expected], "{name}");
        volumes.push((name, volume, pod));
    }
    for (number, (name, volume, pod)) in volumes.iter().enumerate() {
        assert_has_the_file(&pod.path(), name);
        assert_eq!(volume.configure(if number % 2 == 0 { 100 } else { 0 }).unwrap(), "0", "{name}");
        let written = pod.path().join("written");
        if number % 2 == 0 {
            let error = fs::write(&written, b"x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{name}");
            continue;
        }
        let bytes = Pattern::new(number as u64).bytes(0, 700_000);
        fs::write(&written, &bytes).unwrap();
        assert_eq!(fs::read(&written).unwrap(), bytes, "{name}");
        let filer = cluster().filer();
        let is_there =
            || filer.get(&format!("/volumes/{name}/written")).ok().filter(|stored| *stored == bytes);
        eventually("the written file at the filer", WAIT_TIMEOUT, is_there).unwrap();
    }
    for (name, mut volume, pod) in volumes {
        drop(pod);
        let processes = descendants(own_pid(&volume));
        assert!(processes.len() >= 2, "{processes:?}");
        let status = volume.stop().unwrap();
        assert_eq!(status.code(), Some(0), "{name}: {}", service.log(name));
        assert!(!is_mount_point(&volume.path).unwrap(), "{name}");
        assert_eq!(mounted_types(&volume.path), [""; 0], "{name}");
        await_end(&processes);
    }
    assert!(processes_with(service.staging_path("ten-").to_str().unwrap()).is_empty());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_volume_ends_in_time_although_files_are_open() {
    if !host::can_mount() {
        return;
    }
    let service = service(&["open-read", "open-written"]);
    for (name, is_read_only) in [("open-read", true), ("open-written", false)] {
        let mut volume = service.mount(name, is_read_only, &[]).unwrap();
        let _read = File::open(volume.path.join("file")).unwrap();
        let written = (!is_read_only).then(|| {
            let mut file =
                OpenOptions::new().create(true).append(true).open(volume.path.join("log")).unwrap();
            file.write_all(b"a line\n").unwrap();
            file
        });
        let processes = descendants(own_pid(&volume));
        let started = Instant::now();
        volume.process.signal(Signal::SIGTERM);
        let status = volume.process.wait(Duration::from_secs(5)).unwrap();
        assert_eq!(status.code(), Some(0), "{}", service.log(name));
        println!("{name} with open files ended in {:?}", started.elapsed());
        assert!(!is_mount_point(&volume.path).unwrap(), "{name}");
        await_end(&processes);
        drop(written);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_killed_program_leaves_nothing_and_its_volume_is_mounted_anew() {
    if !host::can_mount() {
        return;
    }
    let service = service(&["killed-read", "killed-written"]);
    for (name, is_read_only) in [("killed-read", true), ("killed-written", false)] {
        let mut volume = service.mount(name, is_read_only, &[]).unwrap();
        let processes = descendants(own_pid(&volume));
        let private = private_mount_point(&volume.path);
        volume.process.kill();
        volume.clean_up().unwrap();
        await_end(&processes);
        unmount_private(&private);
        let mut volume = service.mount(name, is_read_only, &[]).unwrap();
        assert_eq!(mounted_types(&volume.path).len(), 1, "{name}");
        assert_has_the_file(&volume.path, name);
        assert_eq!(volume.configure(7).unwrap(), "0");
        volume.stop().unwrap();
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_volume_ends_with_the_real_mount_and_with_the_layer() {
    if !host::can_mount() {
        return;
    }
    let name = "parts";
    let service = service(&[name]);
    let real = tools::weed().unwrap().canonicalize().unwrap();
    let is_real = |pid: &Pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == real);

    let mut volume = service.mount(name, false, &[]).unwrap();
    let processes = descendants(own_pid(&volume));
    let weed = processes.iter().copied().find(is_real).unwrap();
    kill(weed, Signal::SIGKILL).unwrap();
    assert_eq!(volume.wait().unwrap().code(), Some(128 + 9), "{}", service.log(name));
    assert_eq!(mounted_types(&volume.path), [""; 0]);
    await_end(&processes);

    let mut volume = service.mount(name, false, &[]).unwrap();
    let processes = descendants(own_pid(&volume));
    for layer in processes.iter().filter(|pid| !is_real(pid)) {
        kill(*layer, Signal::SIGKILL).unwrap();
    }
    assert_eq!(volume.wait().unwrap().code(), Some(1), "{}", service.log(name));
    assert!(service.log(name).contains("the layer has ended"), "{}", service.log(name));
    assert_eq!(mounted_types(&volume.path), [""; 0]);
    await_end(&processes);

    let volume = service.mount(name, false, &[]).unwrap();
    assert_has_the_file(&volume.path, name);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn readers_do_not_notice_that_the_serving_process_dies() {
    if !host::can_mount() {
        return;
    }
    let name = "taken-over";
    let service = service(&[name]);
    let mut volume = service.mount(name, true, &[]).unwrap();
    let open = File::open(volume.path.join("file")).unwrap();
    // The last one is served by no other.
    let worker = *descendants(own_pid(&volume)).last().unwrap();
    kill(worker, Signal::SIGKILL).unwrap();
    assert_has_the_file(&volume.path, name);
    drop(open);
    assert!(volume.process.exited().is_none());
    assert_eq!(volume.stop().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_volume_that_is_unmounted_by_others_ends() {
    if !host::can_mount() {
        return;
    }
    let service = service(&["away-read", "away-written"]);
    for (name, is_read_only) in [("away-read", true), ("away-written", false)] {
        let mut volume = service.mount(name, is_read_only, &[]).unwrap();
        let processes = descendants(own_pid(&volume));
        // A daemon that has just begun asks its own mount, which is busy then.
        let unmount = || umount2(&volume.path, MntFlags::empty()).ok();
        eventually("the unmounting", WAIT_TIMEOUT, unmount).unwrap();
        assert_eq!(volume.wait().unwrap().code(), Some(0), "{}", service.log(name));
        await_end(&processes);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_service_starts_anew_over_what_a_killed_container_left() {
    if !host::can_mount() {
        return;
    }
    let service = service(&["left-read", "left-written"]);
    for (name, is_read_only) in [("left-read", true), ("left-written", false)] {
        let mut volume = service.mount(name, is_read_only, &[]).unwrap();
        let processes = descendants(own_pid(&volume));
        let private = private_mount_point(&volume.path);
        // A daemon asks its own mount as it begins; one that is stopped then cannot be killed.
        let has_begun = || service.log(name).contains("\nstatus http").then_some(());
        eventually("the daemon's last words", WAIT_TIMEOUT, has_begun).unwrap();
        // A container's end kills all of its processes: none can react to the end of another.
        for &process in processes.iter().chain([&own_pid(&volume)]) {
            kill(process, Signal::SIGSTOP).unwrap();
        }
        for &process in processes.iter().chain([&own_pid(&volume)]) {
            kill(process, Signal::SIGKILL).unwrap();
        }
        assert_eq!(volume.process.wait(WAIT_TIMEOUT).unwrap().signal(), Some(9));
        await_end(&processes);
        // `stat` may be answered from the kernel's cache.
        let is_dead = || (statvfs(&volume.path) == Err(Errno::ENOTCONN)).then_some(());
        eventually("a dead mount", WAIT_TIMEOUT, is_dead).unwrap();
        // With the container its own mounts are gone; here there is none.
        unmount_private(&private);
        if is_read_only {
            service.enter_container();
            assert!(!is_mount_point(&volume.path).unwrap(), "{name}");
        }
        let mut anew = service.mount(name, is_read_only, &[]).unwrap();
        assert_eq!(mounted_types(&anew.path).len(), 1, "{name}");
        assert_has_the_file(&anew.path, name);
        anew.stop().unwrap();
        assert_eq!(mounted_types(&volume.path), [""; 0], "{name}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_a_layer_the_real_mount_goes_on() {
    if !host::can_mount() {
        return;
    }
    let name = "plain";
    let service = service(&[name]).env("INTERCEPTOR_READ_CACHE", "perhaps");
    let mut volume = service.mount(name, false, &[]).unwrap();
    assert_eq!(mounted_types(&volume.path), [REAL]);
    assert!(service.log(name).contains("by `weed mount` alone"), "{}", service.log(name));
    assert_has_the_file(&volume.path, name);
    fs::write(volume.path.join("written"), b"some bytes").unwrap();
    assert_eq!(volume.configure(0).unwrap(), "0");
    assert_eq!(volume.stop().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_interceptor_mount_does_not_take_the_real_one_mounts() {
    if !host::can_mount() {
        return;
    }
    let service = service(&["refused"]);
    // The second one has no directory at the filer, which `weed mount` makes.
    for (name, more) in [("refused", &["-memprofile=/dev/null"][..]), ("not-there-yet", &[])] {
        let mut volume = service.mount(name, true, more).unwrap();
        assert_eq!(mounted_types(&volume.path), [LAYER], "{}", service.log(name));
        assert_eq!(fs::write(volume.path.join("x"), b"x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert!(fs::read_dir(&volume.path).is_ok());
        assert_eq!(volume.configure(7).unwrap(), "0");
        assert_eq!(volume.stop().unwrap().code(), Some(0));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn all_else_is_up_to_the_real_program() {
    if !host::can_mount() {
        return;
    }
    let service = service(&[]);
    let version = service.weed(&["version".into()]).output().unwrap();
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).contains("SeaweedFS") || !version.stdout.is_empty());

    let missing = service.env("INTERCEPTOR_WEED", "/no/such/weed");
    let version = missing.weed(&["version".into()]).output().unwrap();
    let said = String::from_utf8_lossy(&version.stderr).into_owned();
    assert!(version.status.code() == Some(1) && said.contains("INTERCEPTOR_WEED"), "{said}");
    let itself =
        missing.env("INTERCEPTOR_WEED", tests::mount::interceptor_program().unwrap().to_str().unwrap());
    let said =
        String::from_utf8_lossy(&itself.weed(&["version".into()]).output().unwrap().stderr).into_owned();
    assert!(said.contains("is interceptor"), "{said}");
}
