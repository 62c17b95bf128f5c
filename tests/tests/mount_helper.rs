//! `mount.interceptor`, alone and run by mount(8), `interceptor list` and `interceptor unmount`,
//! and what a service manager hears: everything that makes a mount one of Linux's own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::{Cluster, Layer, Mount, Pattern, Shared, engine, eventually, host};

static CLUSTER: Shared<Cluster> = Shared::new();

const FILE_LEN: usize = 1_000_000;

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| {
        let cluster = Cluster::builder().start().unwrap();
        cluster.filer().put("/dir/file", &Pattern::new(1).bytes(0, FILE_LEN), "").unwrap();
        cluster
    })
}

fn source() -> String {
    format!("{}:/dir", cluster().filer_addresses())
}

/// The options of the mount at `path` and its source, as the kernel has them.
fn mounted(path: &Path) -> Option<(String, String)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == path.to_str())?;
    let (place, kind) = line.split_once(" - ")?;
    Some((place.split(' ').nth(5)?.to_owned(), kind.split(' ').nth(1)?.to_owned()))
}

#[track_caller]
fn assert_has_the_file(mount: &Path) {
    let read = fs::read(mount.join("file")).unwrap();
    assert!(read == Pattern::new(1).bytes(0, FILE_LEN), "{} bytes, and not those", read.len());
}

/// The processes whose command line has `text` in it.
fn processes_with(text: &str) -> Vec<i32> {
    let named = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(text).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(named).collect()
}

/// A place to mount on, and programs under the names that they have when they are installed.
struct Installation {
    directory: tempfile::TempDir,
}

impl Installation {
    fn new() -> Installation {
        let directory = tempfile::tempdir().unwrap();
        for name in ["mnt", "sbin"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        for name in ["mount.interceptor", "mount.fuse.interceptor"] {
            symlink(interceptor_program().unwrap(), directory.path().join("sbin").join(name)).unwrap();
        }
        Installation { directory }
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn run(&self, program: &Path, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.directory.path()).env("HOME", self.directory.path());
        let log = self.directory.path().join("log");
        let _ = fs::remove_file(&log);
        let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
        let status =
            process.wait(Duration::from_secs(60)).unwrap_or_else(|error| panic!("{args:?}: {error}"));
        (status.code(), fs::read_to_string(log).unwrap())
    }

    fn interceptor(&self, args: &[&str]) -> (Option<i32>, String) {
        self.run(&interceptor_program().unwrap(), args)
    }

    /// Runs the helper of mount(8) with these options.
    fn helper(&self, source: &str, options: &str) -> (Option<i32>, String) {
        let at = self.mount_point();
        let args = [source, at.to_str().unwrap(), "-o", options];
        self.run(&self.directory.path().join("sbin/mount.interceptor"), &args)
    }

    #[track_caller]
    fn mounts(&self, options: &str) {
        let (code, said) = self.helper(&source(), options);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{options}");
        assert!(mounted(&self.mount_point()).is_some());
    }

    #[track_caller]
    fn refuses(&self, code: i32, source: &str, options: &str, words: &[&str]) {
        let (ended, said) = self.helper(source, options);
        assert_eq!(ended, Some(code), "{options} said: {said}");
        assert!(said.starts_with("mount.interceptor: "), "{said}");
        for word in words {
            assert!(said.contains(word), "{options} does not say {word:?}: {said}");
        }
        assert_eq!(mounted(&self.mount_point()), None, "{options} left a mount");
    }

    /// What `interceptor list` says of the mount here.
    fn listed(&self) -> Option<Value> {
        let (code, said) = self.interceptor(&["list", "--json"]);
        assert_eq!(code, Some(0), "{said}");
        let all: Vec<Value> = serde_json::from_str(&said).unwrap();
        all.into_iter().find(|mount| mount["mount_point"] == self.mount_point().to_str().unwrap())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // The daemon notices and ends.
        let _ = umount2(&self.mount_point(), MntFlags::MNT_DETACH);
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_helper_returns_when_the_mount_is_there() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    let at = here.mount_point();
    here.mounts("rw,cache-size=64MiB,_netdev,nofail,x-systemd.automount,status-addr=127.0.0.1:0");
    assert_has_the_file(&at);
    let (options, shown_source) = mounted(&at).unwrap();
    assert!(options.contains("ro") && options.contains("nosuid"), "{options}");
    assert_eq!(shown_source, source(), "mount -a knows a mount by its source");

    let listed = here.listed().expect("the mount is listed");
    assert_eq!((listed["kind"].as_str(), listed["source"].as_str()), (Some("mount"), Some(&*source())));
    let pid = listed["pid"].as_i64().expect("its daemon answers");
    let (code, said) = here.interceptor(&["list"]);
    assert!(code == Some(0) && said.contains(at.to_str().unwrap()) && said.contains("64 MiB"), "{said}");
    let dashboard = listed["dashboard"].as_str().expect("a URL");
    assert!(dashboard.starts_with("http://127.0.0.1:") && said.contains(dashboard), "{said}");
    let (code, said) = here.interceptor(&["status", at.to_str().unwrap()]);
    assert!(code == Some(0) && said.contains(&format!("{pid}, version")), "{said}");
    assert!(said.contains(&format!(", {dashboard}\n")), "{said}");

    let (code, said) = here.helper(&source(), "cache-size=64MiB");
    assert!(code == Some(32) && said.contains("is already mounted"), "{code:?} {said}");

    // The daemon has no terminal, and a session of its own.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string());
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));

    assert_eq!(here.interceptor(&["unmount", at.to_str().unwrap()]), (Some(0), String::new()));
    assert_eq!(mounted(&at), None);
    // Its new parent may not have waited for it yet.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the daemon has ended: {state}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn mount_and_fstab_use_the_helper() {
    if !host::can_mount() {
        return;
    }
    for (program, args) in [("unshare", "--version"), ("mount", "--version"), ("findmnt", "--version")] {
        if !host::has_program(program, &[args]) {
            return;
        }
    }
    let here = Installation::new();
    let fstab = here.directory.path().join("fstab");
    let options = "ro,_netdev,nofail,x-systemd.requires=x.service,cache-size=64MiB,status-addr=none";
    let line = format!("{} {} interceptor {options} 0 0\n", source(), here.mount_point().display());
    fs::write(&fstab, line).unwrap();
    // Only this script sees the helper at the place where mount(8) looks for it.
    let script = here.directory.path().join("script");
    fs::write(
        &script,
        r#"set -eu
        mount --bind "$SBIN" /sbin
        read_and_unmount() { cmp "$MNT/file" "$EXPECTED"; findmnt --noheadings --output SOURCE,FSTYPE "$MNT"; umount "$MNT"; }
        mount -t interceptor "$SOURCE" "$MNT" -o cache-size=64MiB,ro,_netdev,noexec,status-addr=none
        read_and_unmount
        mount -t fuse.interceptor "$SOURCE" "$MNT" -o filer.path=/dir,status-addr=none 2>&1 && exit 3
        mount -t fuse.interceptor "$FILER" "$MNT" -o filer.path=/dir,cacheCapacityMB=64,status-addr=none
        read_and_unmount
        mount --fstab "$FSTAB" "$MNT"
        umount "$MNT"
        mount --fstab "$FSTAB" --all
        mount --fstab "$FSTAB" --all
        read_and_unmount
        if findmnt "$MNT"; then exit 3; fi
        mount -t interceptor "$SOURCE" "$MNT" -o cachesize=64MiB && exit 3
        mount --fake -t interceptor "$SOURCE" "$MNT" -o cache-size=64MiB
        if findmnt "$MNT"; then exit 3; fi
        echo all done
        "#,
    )
    .unwrap();
    let expected = here.directory.path().join("expected");
    fs::write(&expected, Pattern::new(1).bytes(0, FILE_LEN)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh"]).arg(&script);
    command.env("SBIN", here.directory.path().join("sbin")).env("MNT", here.mount_point());
    command.env("SOURCE", source()).env("FILER", cluster().filer_addresses());
    command.env("FSTAB", &fstab).env("EXPECTED", &expected).env("HOME", here.directory.path());
    let log = here.directory.path().join("log");
    let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
    let ended = process.wait(Duration::from_secs(120)).unwrap();
    let said = fs::read_to_string(log).unwrap();
    assert!(ended.success() && said.ends_with("all done\n"), "{ended}: {said}");
    assert!(said.contains("mount.fuse.interceptor: ") && said.contains("'--filer-path"), "{said}");
    assert!(said.contains("\"cachesize\"") && said.contains("nearest known one is \"cache-size\""), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_cannot_be_mounted_is_refused_with_the_reason() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    here.refuses(32, &format!("{nobody}:/dir"), "ro", &["no filer answers", &nobody.to_string()]);
    let filer = cluster().filer_addresses();
    here.refuses(32, &format!("{filer}:/no/such"), "ro", &["the filer has no directory"]);
    here.refuses(1, &source(), "cachsize=64MiB", &["\"cachsize\"", "\"cache-size\""]);
    here.refuses(1, &source(), "cache-size=big", &["--cache-size", "512MiB"]);
    here.refuses(1, &source(), "cache-size=1KiB", &["too small"]);
    here.refuses(1, &source(), "remount,ro", &["unmount it"]);
    here.refuses(1, &source(), "peer.enable", &["\"peer.enable\"", "rdma-engine"]);
    here.refuses(1, "filer", "ro", &["HOST:PORT:/PATH"]);
    here.refuses(1, "filer:/dir", "ro", &["HOST:PORT"]);
    fs::write(here.mount_point().join("x"), "").unwrap();
    here.refuses(32, &source(), "ro", &["is not empty", "nonempty"]);
    fs::remove_dir_all(here.mount_point()).unwrap();
    here.refuses(32, &source(), "ro", &["does not exist"]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_helper_that_is_stopped_leaves_no_daemon() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    // It takes connections and never answers.
    let filer = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(here.directory.path().join("sbin/mount.interceptor"));
    command.arg(format!("{}:/", filer.local_addr().unwrap())).arg(here.mount_point());
    let log = here.directory.path().join("log");
    let mut helper = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
    let at = here.mount_point().display().to_string();
    let limit = Duration::from_secs(30);
    // The one that was started, the supervisor and the one that serves.
    eventually("three processes", limit, || (processes_with(&at).len() == 3).then_some(())).unwrap();
    helper.terminate();
    eventually("no process", limit, || processes_with(&at).is_empty().then_some(())).unwrap();
    assert_eq!(mounted(&here.mount_point()), None);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn restrictions_of_mount_hold() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    here.mounts("noexec,nosymfollow,status-addr=none");
    let (options, _) = mounted(&here.mount_point()).unwrap();
    for option in ["noexec", "nosymfollow", "nosuid", "nodev", "ro"] {
        assert!(options.split(',').any(|found| found == option), "{option} is not in {options}");
    }
    let shown = here.listed().unwrap();
    assert!(shown["error"].as_str().unwrap().contains("no status API"), "{shown}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_default_address_that_is_taken_is_no_obstacle() {
    if !host::can_mount() {
        return;
    }
    let _taken = TcpListener::bind("127.0.0.1:9650");
    let here = Installation::new();
    here.mounts("cache-size=64MiB");
    assert!(here.listed().unwrap()["pid"].is_number());
    let other = Installation::new();
    let address = "127.0.0.1:9650";
    other.refuses(32, &source(), &format!("status-addr={address}"), &["Address already in use", address]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_in_use_is_taken_away_only_lazily() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    here.mounts("cache-size=64MiB,status-addr=127.0.0.1:0");
    let at = here.mount_point();
    let path = at.to_str().unwrap();
    let open = File::open(at.join("file")).unwrap();
    let (code, said) = here.interceptor(&["unmount", path]);
    assert!(code == Some(1) && said.contains("in use") && said.contains("--lazy"), "{said}");
    assert_eq!(here.interceptor(&["unmount", "--if-dead", path]), (Some(0), String::new()));
    assert!(mounted(&at).is_some());
    let (code, said) = here.interceptor(&["unmount", "--lazy", path]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(mounted(&at), None);
    drop(open);
    for (place, word) in [("/proc", "no mount of interceptor"), (path, "nothing is mounted")] {
        let (code, said) = here.interceptor(&["unmount", place]);
        assert!(code == Some(1) && said.contains(word), "{said}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn what_a_dead_daemon_left_is_removed_if_asked_for() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    here.mounts("cache-size=64MiB,status-addr=127.0.0.1:0");
    let at = here.mount_point();
    let pid = here.listed().unwrap()["pid"].as_i64().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let supervisor = stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    // Else it would have another process take over.
    kill(Pid::from_raw(supervisor), Signal::SIGSTOP).unwrap();
    for killed in [pid as i32, supervisor] {
        kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    }
    let is_dead = || fs::metadata(at.join("x")).err()?.raw_os_error().filter(|code| *code == libc::ENOTCONN);
    eventually("a dead mount", Duration::from_secs(10), is_dead).unwrap();
    assert!(here.listed().unwrap()["error"].as_str().unwrap().contains("gone"));
    assert_eq!(here.interceptor(&["unmount", "--if-dead", at.to_str().unwrap()]), (Some(0), String::new()));
    assert_eq!(mounted(&at), None);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_command_line_of_weed_mounts_the_same() {
    if !host::can_mount() {
        return;
    }
    let here = Installation::new();
    let at = here.mount_point();
    let mut command = Command::new(interceptor_program().unwrap());
    command.arg("mount").arg(format!("-filer={}", cluster().filer_addresses()));
    command.arg(["-dir=", at.to_str().unwrap()].concat());
    command.args(["-filer.path=/dir", "-cacheCapacityMB=64", "-readOnly", "-collection", "x"]);
    command.args(["-o", "noexec,x-systemd.automount", "--status-addr=none"]);
    command.current_dir(here.directory.path());
    let log = here.directory.path().join("daemon.log");
    let process = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
    eventually("the mount", Duration::from_secs(30), || mounted(&at)).unwrap();
    let is_there = || at.join("file").is_file().then_some(());
    eventually("its file", Duration::from_secs(10), is_there).unwrap();
    assert_has_the_file(&at);
    assert!(process.log_tail().contains("\"collection\" means nothing"), "{}", process.log_tail());
    drop(process);
    let (code, said) = here.interceptor(&["mount", "-filr=x", at.to_str().unwrap()]);
    assert!(code == Some(2) && said.contains("nearest known one is \"filer\""), "{said}");
}

/// A socket of a service manager.
struct NotifySocket {
    messages: Receiver<String>,
    path: PathBuf,
}

impl NotifySocket {
    fn new(directory: &Path) -> NotifySocket {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (sender, messages) = channel();
        // Few messages may wait in a socket, and others are lost: so they are taken at once.
        std::thread::spawn(move || {
            let mut message = [0; 1024];
            while let Ok(len) = socket.recv(&mut message) {
                if sender.send(String::from_utf8_lossy(&message[..len]).into_owned()).is_err() {
                    return;
                }
            }
        });
        NotifySocket { messages, path }
    }

    /// What a service gets: the socket, and that it is to say every 100 ms that it is alive.
    fn environment(&self) -> [(OsString, OsString); 2] {
        [("NOTIFY_SOCKET".into(), self.path.clone().into()), ("WATCHDOG_USEC".into(), "200000".into())]
    }

    /// Takes messages up to one that has `text` in it.
    #[track_caller]
    fn await_message(&self, text: &str) -> String {
        loop {
            let message = self.messages.recv_timeout(Duration::from_secs(60));
            let message = message.unwrap_or_else(|error| panic!("{text}: {error}"));
            if message.contains(text) {
                return message;
            }
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_service_manager_hears_of_a_mount() {
    if !host::can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let manager = NotifySocket::new(directory.path());
    let cluster = cluster();
    let mut builder = Mount::interceptor(&cluster.filer_addresses());
    for (name, value) in manager.environment() {
        builder = builder.env(name, value);
    }
    let mount = builder.start().unwrap();
    assert!(manager.await_message("READY=1").contains("STATUS=mounted "));
    manager.await_message("WATCHDOG=1");
    mount.stop().unwrap();
    manager.await_message("STOPPING=1");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_service_manager_hears_of_a_layer_and_of_an_engine() {
    let Some(disk) = host::disk() else { return };
    let directory = tempfile::tempdir().unwrap();
    let manager = NotifySocket::new(directory.path());
    let [socket, limit] = manager
        .environment()
        .map(|(name, value)| format!("{}={}", name.to_str().unwrap(), value.to_str().unwrap()));
    // The supervisor is the service's main process, and its child serves.
    let layer = Layer::started_by(&["env", &socket, &limit], &disk.path(), [""; 0]).unwrap();
    assert!(manager.await_message("READY=1").contains("STATUS=attached "));
    manager.await_message("WATCHDOG=1");
    layer.detach().unwrap();

    let mut command = Command::new(engine::program().unwrap());
    command.args(["serve", "--listen=127.0.0.1:0", "--status-addr=none", "--no-verbs", "--volume-dir"]);
    command.arg(directory.path()).envs(manager.environment()).current_dir(directory.path());
    let log = directory.path().join("log");
    let engine = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
    assert!(manager.await_message("READY=1").contains("STATUS=serving "));
    manager.await_message("WATCHDOG=1");
    drop(engine);
    manager.await_message("STOPPING=1");
}
