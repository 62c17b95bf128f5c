//! `interceptor mount` as a program: refusals and their texts, every way in which it ends, and
//! what it reports of itself.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::memory::MemoryGroup;
use tests::mount::interceptor_program;
use tests::process::{Process, undrained_pipe, with_stderr};
use tests::{Cluster, Mount, Pattern, Shared, eventually, host, reading};

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| {
        let cluster = Cluster::builder().start().unwrap();
        cluster.filer().put("/dir/file", &Pattern::new(1).bytes(0, 1_000_000), "").unwrap();
        cluster
    })
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// A place to mount on and to run in.
struct MountDirectory {
    directory: tempfile::TempDir,
}

impl MountDirectory {
    fn new() -> MountDirectory {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("mnt")).unwrap();
        fs::write(directory.path().join("security.toml"), "").unwrap();
        MountDirectory { directory }
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Runs `interceptor` with these arguments; returns the exit code and all output. It must end
    /// by itself.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(interceptor_program().unwrap());
        command.args(args).current_dir(self.directory.path()).env("HOME", self.directory.path());
        let log = self.directory.path().join("log");
        let _ = fs::remove_file(&log);
        let mut process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
        let status =
            process.wait(Duration::from_secs(30)).unwrap_or_else(|error| panic!("{args:?}: {error}"));
        (status.code(), fs::read_to_string(log).unwrap())
    }

    /// `interceptor mount ARGS` must fail with this code and say all of `words`.
    #[track_caller]
    fn refuses(&self, code: i32, args: &[&str], words: &[&str]) {
        let args = [&["mount", "--status-addr", "127.0.0.1:0"], args].concat();
        let (status, said) = self.run(&args);
        assert_eq!(status, Some(code), "{args:?} said: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
        }
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!(!is_mounted(&self.mount_point()), "{args:?} left a mount");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn bad_options_are_refused_as_usage_errors() {
    if !host::can_mount() {
        return;
    }
    let bench = MountDirectory::new();
    let mount_point = bench.mount_point();
    let at = mount_point.to_str().unwrap();
    bench.refuses(2, &[], &["MOUNTPOINT"]);
    bench.refuses(2, &[at], &["--filer"]);
    bench.refuses(2, &["--filer", "127.0.0.1:8888", "--no-such-option", at], &["--no-such-option"]);
    for size in ["banana", "-1", "1XB", ""] {
        bench.refuses(
            2,
            &["--filer", "127.0.0.1:8888", &format!("--cache-size={size}"), at],
            &["--cache-size"],
        );
    }
    bench.refuses(2, &["--filer", "127.0.0.1:8888", "--cache-size", "1KiB", at], &["--cache-size"]);
    for force in ["--force=false", "--force"] {
        let args = ["--filer", "127.0.0.1:8888", "--cache-size", "900TiB", force, at];
        bench.refuses(2, &args, &["--cache-size", "900 TiB", "memory"]);
    }
    for filer in ["", "nonsense", "127.0.0.1:99999", "127.0.0.1:8888,nonsense", "http://127.0.0.1:8888"] {
        bench.refuses(2, &[&format!("--filer={filer}"), at], &["--filer"]);
    }
    bench.refuses(2, &["--filer", "127.0.0.1:8888", "--volume-server-access", "maybe", at], &["filerProxy"]);
    bench.refuses(2, &["--filer", "127.0.0.1:8888", "--read-retry-time", "soon", at], &["--read-retry-time"]);
    assert_eq!(bench.run(&["no-such-command"]).0, Some(2));
    assert_eq!(bench.run(&["--version"]).0, Some(0));
    assert_eq!(bench.run(&["mount", "--help"]).0, Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_memory_of_an_outer_control_group_is_all_there_is() {
    if !host::can_mount() {
        return;
    }
    let Ok(group) = MemoryGroup::new("interceptor-lifecycle", 200 << 20) else {
        return host::skipped("no control groups that limit memory");
    };
    let (_nested, door) = group.nested().unwrap();
    let entering =
        ["sh", "-c", &format!("echo 0 > {} && exec \"$@\"", door.display()), "sh"].map(String::from);
    let cluster = cluster();
    let mounted = |args: &[&str]| {
        Mount::interceptor(&cluster.filer_addresses()).wrapped_in(entering.clone()).args(args).start()
    };
    let mount = mounted(&[]).unwrap();
    let status: Value = serde_json::from_str(&mount.status("/api/v1/status").unwrap().1).unwrap();
    assert_eq!(status["options"]["cache-size"], "100 MiB", "{status}");
    drop(mount);
    for (size, words) in [("180MiB", "80 %"), ("250MiB", "more than all the memory")] {
        let error = format!("{:#}", mounted(&["--cache-size", size]).unwrap_err());
        assert!(error.contains(words) && error.contains("200 MiB"), "{error}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn check_tells_of_rdma_and_of_each_volume_server() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let bench = MountDirectory::new();
    let (code, said) = bench.run(&["check", "--filer", &cluster.filer_addresses()]);
    assert_eq!(code, Some(0), "{said}");
    let server = format!("{} answers", cluster.volume_servers()[0].address());
    for word in ["RDMA ", "locked memory ", "volume server ", &server, "engine ", ":18515"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn check_looks_for_engines_where_a_mount_with_these_options_does() {
    if !host::can_mount() || !host::can_serve() {
        return;
    }
    let cluster = cluster();
    let server = &cluster.volume_servers()[0];
    let engine = cluster.start_engine(server).unwrap();
    let bench = MountDirectory::new();
    let filer = cluster.filer_addresses();
    let port = engine.address().rsplit_once(':').unwrap().1;
    let named = format!("{}={}", server.address(), engine.address());
    let unknown = format!("127.0.0.1:1={}", engine.address());
    let with_filer: &[&str] = &["--filer", &filer];
    type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);
    let cases: [Case; 7] = [
        (with_filer, &["--rdma-port", port], &["is reached over local and has proved itself"]),
        (
            with_filer,
            &["--rdma-port", port, "--transport", "tcp"],
            &["is reached and has not proved itself: security.toml has nothing", "jwt.signing.key"],
        ),
        (
            with_filer,
            &["--engine", &named, "--transport", "tcp"],
            &["is reached over tcp and is named by --engine"],
        ),
        (with_filer, &["--engine", &unknown], &["127.0.0.1:1 is no volume server of this cluster"]),
        (with_filer, &["--rdma-port", "1"], &[" is not reached: "]),
        (&[], &["--engine", &named, "--transport", "tcp"], &["is reached over tcp and is named by --engine"]),
        (with_filer, &["--volume-server-access", "filerProxy"], &["all is fetched through the filer"]),
    ];
    for (filer, options, expected) in cases {
        let (_, said) = bench.run(&[&["check"], filer, options].concat());
        for words in expected {
            assert!(said.contains(words), "{options:?}: no {words:?} in {said}");
        }
    }
    for options in [["--volume-server-access", "filerProxy"], ["--transport", "http"]] {
        let (_, said) = bench.run(&[&["check"], with_filer, &options].concat());
        assert!(!said.lines().any(|line| line.starts_with("engine ")), "no engine is asked: {said}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_point_is_told_by_its_whole_path() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let bench = MountDirectory::new();
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["mount", "--status-addr", "none", "--filer", &cluster.filer_addresses(), "./mnt"]);
    command.current_dir(bench.directory.path());
    let log = bench.directory.path().join("log");
    let mut process = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
    let line = format!("mounted {}", bench.mount_point().display());
    let mounted = || fs::read_to_string(&log).ok()?.lines().any(|said| said == line).then_some(());
    eventually("the whole path", Duration::from_secs(30), mounted).unwrap();
    process.signal(Signal::SIGTERM);
    assert!(process.wait(Duration::from_secs(10)).unwrap().success());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_unfit_mount_point_is_refused() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer_addresses();
    let bench = MountDirectory::new();
    let refused = |path: &Path, words: &[&str]| {
        let path = path.to_str().unwrap();
        bench.refuses(1, &["--filer", &filer, path], &[&[path], words].concat());
    };
    refused(&bench.directory.path().join("missing"), &["does not exist"]);
    let file = bench.directory.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&file, &["not a directory"]);
    let full = bench.directory.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("something"), "").unwrap();
    refused(&full, &["not empty"]);

    let mount = Mount::interceptor(&filer).start().unwrap();
    refused(mount.path(), &["already mounted", "umount"]);
    assert_eq!(fs::read(mount.file("/dir/file")).unwrap().len(), 1_000_000);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_cluster_that_cannot_be_mounted_is_refused() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer_addresses();
    let bench = MountDirectory::new();
    let mount_point = bench.mount_point();
    let at = mount_point.to_str().unwrap();
    let nobody = tests::ports::PortLease::take().unwrap();
    bench.refuses(1, &["--filer", &nobody.address(), at], &[&nobody.address()]);
    bench.refuses(1, &["--filer", "no-such-host.invalid:8888", at], &["no-such-host.invalid"]);
    bench.refuses(1, &["--filer", &filer, "--filer-path", "/no/such/path", at], &["/no/such/path"]);
    bench.refuses(1, &["--filer", &filer, "--filer-path", "/dir/file", at], &["/dir/file"]);
    // A volume server speaks HTTP and gRPC too, and is no filer.
    let volume = cluster.volume_servers()[0].address();
    bench.refuses(1, &["--filer", &volume, at], &[&volume, "is a volume server of SeaweedFS", "8888"]);
    let missing = "/no/such/security.toml";
    bench.refuses(
        1,
        &["--filer", &filer, "--security", missing, at],
        &["there is no", missing, "--security"],
    );
    // Also if there is something at the path that is asked for.
    for content in [None, Some("good morning"), Some("{\"status\": \"ok\"}")] {
        if let Some(content) = content {
            cluster.filer().put("/api/v1/status", content.as_bytes(), "").unwrap();
        }
        for form in [&["status"][..], &["status", "--json"]] {
            let (code, said) = bench.run(&[form, &["--status-addr", &filer]].concat());
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("is a filer of SeaweedFS and not the status API"), "{said}");
        }
    }
    cluster.filer().delete("/api").unwrap();

    let settings = bench.directory.path().join("security.toml");
    fs::write(&settings, "[jwt.signing.read\nkey = ").unwrap();
    bench.refuses(1, &["--filer", &filer, at], &["security.toml"]);
    fs::write(
        &settings,
        "[grpc]\nca = \"/no/ca.pem\"\n[grpc.client]\ncert = \"/no/c.pem\"\nkey = \"/no/k.pem\"\n",
    )
    .unwrap();
    bench.refuses(1, &["--filer", &filer, at], &["/no/"]);
    fs::write(&settings, "").unwrap();

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let (status, said) = bench.run(&["mount", "--filer", &filer, "--status-addr", &taken, at]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&taken), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn refused_huge_pages_are_said_at_the_start() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let bench = MountDirectory::new();
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["mount", "--status-addr", "none", "--filer", &cluster.filer_addresses()]);
    command.arg(bench.mount_point()).current_dir(bench.directory.path());
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| Ok(nix::sys::prctl::set_thp_disable(true)?)) };
    let log = bench.directory.path().join("log");
    let mut process = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
    let mounted = || fs::read_to_string(&log).ok()?.contains("mounted /").then_some(());
    eventually("the mount", Duration::from_secs(30), mounted).unwrap();
    assert_eq!(fs::read(bench.mount_point().join("dir/file")).unwrap().len(), 1_000_000);
    process.signal(Signal::SIGTERM);
    assert!(process.wait(Duration::from_secs(10)).unwrap().success());
    let said = fs::read_to_string(&log).unwrap();
    for words in ["going without: switched off for this process", "in 4 KiB pages"] {
        assert!(said.contains(words), "no {words:?}: {said}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn signals_unmount_and_the_exit_is_clean() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    for (signal, hold) in [(Signal::SIGTERM, false), (Signal::SIGINT, false), (Signal::SIGTERM, true)] {
        let mut mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
        // A terminal that is closed takes no mount with it.
        mount.signal(Signal::SIGHUP);
        let reloaded = || mount.log().ok()?.contains("reloaded: ").then_some(());
        eventually("a line about SIGHUP", Duration::from_secs(10), reloaded).unwrap();
        let path = mount.path().to_owned();
        let held = hold.then(|| File::open(mount.file("/dir/file")).unwrap());
        assert!(is_mounted(&path));
        mount.signal(signal);
        let status = mount.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal} with {held:?} open");
        assert!(!is_mounted(&path), "{signal}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn logs_that_cannot_be_written_are_counted_and_nothing_else_happens() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let home = tempfile::tempdir().unwrap();
    let (fifo, pipe) = undrained_pipe(home.path()).unwrap();
    let mut pipe = Some(pipe);
    for redirection in [">/dev/full", &format!(">{}", fifo.display())] {
        let mut mount = Mount::interceptor(&cluster.filer_addresses())
            .wrapped_in(with_stderr(redirection))
            .start()
            .unwrap();
        if redirection != ">/dev/full" {
            // The reader goes away: what is written from now on fails.
            drop(pipe.take());
        }
        let path = mount.path().to_owned();
        assert_eq!(fs::read(mount.file("/dir/file")).unwrap().len(), 1_000_000);
        mount.signal(Signal::SIGHUP);
        let lost = || (mount.metric("interceptor_log_lines_lost_total", &[]).ok()? > 0.0).then_some(());
        eventually("a lost line", Duration::from_secs(10), lost).unwrap();
        assert_eq!(fs::read(mount.file("/dir/file")).unwrap().len(), 1_000_000);
        mount.signal(Signal::SIGTERM);
        assert_eq!(mount.wait().unwrap().code(), Some(0), "{redirection}");
        assert!(!is_mounted(&path), "{redirection}");
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_log_that_nobody_drains_holds_nothing_up() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let home = tempfile::tempdir().unwrap();
    let (fifo, mut pipe) = undrained_pipe(home.path()).unwrap();
    let mut mount = Mount::interceptor(&cluster.filer_addresses())
        .wrapped_in(with_stderr(&format!(">{}", fifo.display())))
        .args(["--log-level", "trace,h2=trace,hyper=trace,tonic=trace,tower=trace"])
        .start()
        .unwrap();
    let path = mount.path().to_owned();
    let mut asked = 0;
    let lost = || {
        asked += 1;
        // Each asks the filer, which makes many lines.
        assert!(!mount.file(&format!("/dir/none-{asked}")).exists());
        (mount.metric("interceptor_log_lines_lost_total", &[]).ok()? > 0.0).then_some(())
    };
    eventually("more lines than can wait", Duration::from_secs(60), lost).unwrap();
    assert_eq!(fs::read(mount.file("/dir/file")).unwrap().len(), 1_000_000);
    assert_eq!(mount.status("/healthz").unwrap().0, 200);

    let mut log = Vec::new();
    let mut part = vec![0; 1 << 16];
    let told = || match pipe.read(&mut part) {
        Ok(length) => {
            log.extend_from_slice(&part[..length]);
            String::from_utf8_lossy(&log).contains(" log lines were lost").then_some(())
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            // Lost lines are counted in the next line that can be written.
            let _ = mount.file("/dir/one-more").exists();
            None
        }
    };
    eventually("a line that tells of the losses", Duration::from_secs(60), told).unwrap();
    // The pipe is full again, and is not drained any more.
    mount.signal(Signal::SIGTERM);
    assert_eq!(mount.wait().unwrap().code(), Some(0));
    assert!(!is_mounted(&path));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn output_that_cannot_be_written_is_a_failure_and_no_panic() {
    if !host::can_mount() {
        return;
    }
    let programs = [interceptor_program().unwrap(), tests::engine::program().unwrap()];
    let commands: [(usize, &[&str]); 6] = [
        (0, &["check", "--json"]),
        (0, &["check"]),
        (0, &["status", "--schema"]),
        (0, &["mount", "--help"]),
        (1, &["serve", "--help"]),
        (1, &["--version"]),
    ];
    for (program, args) in commands {
        let run = |stdout: Stdio, stderr: Stdio| {
            let mut command = Command::new(&programs[program]);
            let child = command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
            let output = child.unwrap().wait_with_output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let (code, said) = run(full(), Stdio::piped());
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let (code, said) = run(closed.into(), Stdio::piped());
        assert_eq!((code, said.as_str()), (Some(1), ""), "{args:?}");
        // An error that cannot be printed.
        assert_eq!(run(full(), full()).0, Some(1), "{args:?}");
    }
    let mut command = Command::new(&programs[0]);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let status = command.args(["mount", "/"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_umount_by_somebody_else_ends_the_daemon() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mut mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    umount2(mount.path(), MntFlags::empty()).unwrap();
    assert_eq!(mount.wait().unwrap().code(), Some(0));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_killed_daemon_leaves_a_dead_mount_that_the_next_start_explains() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer_addresses();
    let mut mount = Mount::interceptor(&filer).start().unwrap();
    let path = mount.path().to_owned();
    mount.kill();
    // What the kernel still remembers it answers by itself.
    let error = fs::metadata(path.join("never asked for")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));

    let bench = MountDirectory::new();
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["mount", "--status-addr", "none", "--filer", &filer]).arg(&path);
    let log = bench.directory.path().join("next");
    let mut next = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
    let mounted = format!("mounted {}", path.display());
    let outcome = eventually("a mount or an explanation", Duration::from_secs(20), || {
        let said = fs::read_to_string(&log).ok()?;
        let ended = next.exited();
        (ended.is_some() || said.lines().any(|line| line == mounted)).then_some((ended, said))
    });
    match outcome.unwrap() {
        (Some(status), said) => {
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(said.contains("dead") && said.contains("umount"), "{said}");
        }
        (None, _) => assert_eq!(fs::read(path.join("dir/file")).unwrap().len(), 1_000_000),
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_aborted_connection_is_a_failure_and_leaves_no_mount() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mut mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let path = mount.path().to_owned();
    let open = File::open(mount.file("/dir/file")).unwrap();
    host::abort_connection(&path);
    assert_eq!(mount.wait().unwrap().code(), Some(1));
    assert!(!is_mounted(&path), "a dead mount is left");
    assert!(mount.log().unwrap().contains("aborted"));
    drop(open);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn without_a_descriptor_left_a_mount_is_removed() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$@\"", "sh"];
    let mut mount = Mount::interceptor(&cluster.filer_addresses()).wrapped_in(limited).start().unwrap();
    let path = mount.path().to_owned();
    let open = File::open(mount.file("/dir/file")).unwrap();
    let address = mount.status_url().unwrap().trim_start_matches("http://").trim_end_matches('/').to_owned();
    // Where there are no more descriptors, what is connected waits to be accepted.
    let ask = |_| {
        let mut connection = TcpStream::connect(&address).unwrap();
        connection.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        connection
    };
    let connections: Vec<_> = (0..128).map(ask).collect();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap().count();
    eventually("all descriptors", Duration::from_secs(20), || (descriptors() >= 64).then_some(())).unwrap();
    mount.signal(Signal::SIGTERM);
    assert!(mount.wait().unwrap().success());
    mount.log_with("files are open; detaching the mount").unwrap();
    assert!(!is_mounted(&path), "a dead mount is left");
    drop((open, connections));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_is_removed_from_where_it_is_by_then() {
    if !host::can_mount() {
        return;
    }
    let (cluster, home) = (cluster(), tempfile::tempdir().unwrap());
    let (old, new) = (home.path().join("old"), home.path().join("new"));
    fs::create_dir_all(old.join("mnt")).unwrap();
    let on = |path: &Path| Mount::interceptor(&cluster.filer_addresses()).mount_point(path).start().unwrap();
    let mount = on(&old.join("mnt"));
    fs::rename(&old, &new).unwrap();
    assert!(mount.stop().unwrap().success());
    assert!(!is_mounted(&new.join("mnt")), "a dead mount is left");

    let mut covered = on(&new.join("mnt"));
    nix::mount::mount(
        Some("none"),
        &new.join("mnt"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    covered.signal(Signal::SIGTERM);
    assert_eq!(covered.wait().unwrap().code(), Some(1));
    covered.log_with("something else is mounted over").unwrap();
    for _ in 0..2 {
        nix::mount::umount2(&new.join("mnt"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// A mount namespace in which every user may open `/dev/fuse`, as on most hosts.
struct OpenFuse(Process);

impl OpenFuse {
    fn new(bench: &MountDirectory) -> Self {
        let script = "mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse && echo open && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script]);
        command.current_dir(bench.directory.path());
        let log = bench.directory.path().join("namespace");
        let holder = Process::start(command, &log, Duration::from_secs(5), Signal::SIGKILL).unwrap();
        let open = || fs::read_to_string(&log).ok()?.contains("open").then_some(());
        eventually("a namespace", Duration::from_secs(20), open).unwrap();
        Self(holder)
    }

    /// Runs `interceptor mount` as an ordinary user, and gives it back when it answers.
    fn mount(&self, bench: &MountDirectory, filer: &str, log: &str) -> Process {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--setuid=1", "--setgid=1", "--target", &self.0.pid().to_string()]);
        command.arg(interceptor_program().unwrap());
        command.args(["mount", "--status-addr", "none", "--filer", filer]).arg(bench.mount_point());
        let settings = bench.directory.path().join("security.toml");
        command.arg("--security").arg(settings).env("HOME", "/");
        let log = bench.directory.path().join(log);
        let mut process = Process::start(command, &log, Duration::from_secs(10), Signal::SIGTERM).unwrap();
        let mounted = || {
            process.ensure_running().unwrap();
            fs::read_to_string(&log).ok()?.contains("mounted /").then_some(())
        };
        eventually("the mount", Duration::from_secs(30), mounted).unwrap();
        process
    }

    /// How many mounts of ours are at a place, seen from there.
    fn mounts_at(&self, path: &Path) -> usize {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", self.0.pid())).unwrap();
        let here = table.lines().filter(|line| line.split(' ').nth(4) == path.to_str());
        here.filter(|line| line.contains(" fuse.interceptor ")).count()
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_user_who_mounts_again_has_a_dead_mount_removed() {
    if !host::can_mount() || !host::has_program("fusermount3", &["--version"]) {
        return;
    }
    let (cluster, bench) = (cluster(), MountDirectory::new());
    let filer = cluster.filer_addresses();
    std::os::unix::fs::chown(bench.mount_point(), Some(1), Some(1)).unwrap();
    fs::set_permissions(bench.directory.path(), Permissions::from_mode(0o755)).unwrap();
    let namespace = OpenFuse::new(&bench);
    let mut first = namespace.mount(&bench, &filer, "first");
    first.kill_with_worker();
    let mounts = || namespace.mounts_at(&bench.mount_point());
    assert_eq!(mounts(), 1, "a dead mount is left");
    let mut second = namespace.mount(&bench, &filer, "second");
    assert_eq!(mounts(), 1);
    second.signal(Signal::SIGTERM);
    assert!(second.wait(Duration::from_secs(10)).unwrap().success());
    assert_eq!(mounts(), 0);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_can_be_written() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let (file, new) = (mount.file("/dir/file"), mount.file("/dir/new"));
    let attempts = [
        ("create", File::create(&new).map(drop)),
        ("open for writing", File::options().write(true).open(&file).map(drop)),
        ("open for appending", File::options().append(true).open(&file).map(drop)),
        ("truncate", File::options().write(true).truncate(true).open(&file).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(mount.file("/dir"))),
        ("rename", fs::rename(&file, &new)),
        ("link", fs::hard_link(&file, &new)),
        ("symlink", symlink("file", &new)),
        ("chmod", fs::set_permissions(&file, Permissions::from_mode(0o777))),
        ("chown", std::os::unix::fs::chown(&file, Some(1), Some(1))),
    ];
    for (what, result) in attempts {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem, "{what}");
    }
    assert_eq!(fs::read(&file).unwrap().len(), 1_000_000);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_status_page_tells_what_happens() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/dir/file", &Pattern::new(1).bytes(0, 1_000_000), "").unwrap();
    let mut mount = Mount::interceptor(&cluster.filer_addresses()).start().unwrap();
    let ready = |mount: &Mount| mount.status("/readyz").map(|(status, _)| status);
    assert_eq!(mount.status("/healthz").unwrap().0, 200);
    eventually("readiness", Duration::from_secs(10), || (ready(&mount).ok()? == 200).then_some(())).unwrap();
    assert_eq!(mount.metric("interceptor_read_bytes_total", &[]).unwrap(), 0.0);

    reading::verify(&mount.file("/dir/file"), &Pattern::new(1).bytes(0, 1_000_000));
    let http = mount.metric("interceptor_read_bytes_total", &["source=\"http\""]).unwrap();
    let memory = mount.metric("interceptor_read_bytes_total", &["source=\"cache\""]).unwrap();
    assert!(http > 0.0 && http + memory >= 1_000_000.0, "{http} bytes from servers, {memory} from memory");
    assert!(mount.metric("interceptor_reads_total", &[]).unwrap() >= 1.0);
    assert!(mount.metric("interceptor_read_seconds_count", &[]).unwrap() >= 1.0);
    assert!(mount.metric("interceptor_cache_bytes", &["state=\"capacity\""]).unwrap() >= 1_000_000.0);
    // Blocks become a file that the kernel reads by itself, at any moment.
    let kept = |state: &str| mount.metric("interceptor_cache_bytes", &[state]).unwrap();
    let known = || (kept("state=\"used\"") + kept("state=\"resident\"") >= 1_000_000.0).then_some(());
    eventually("the file in the cache", Duration::from_secs(10), known).unwrap();
    let unpinned = || (kept("state=\"pinned\"") == 0.0).then_some(());
    eventually("the end of the reads", Duration::from_secs(10), unpinned).unwrap();
    assert_eq!(mount.metric("interceptor_cache_info", &["backing="]).unwrap(), 1.0);

    let (status, text) = mount.status("/api/v1/status").unwrap();
    assert_eq!(status, 200);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["pid"], mount.pid(), "{text}");
    assert_eq!(report["mount_point"], mount.path().to_str().unwrap(), "{text}");
    assert_eq!(report["filers"][0], cluster.filer_addresses(), "{text}");
    let (status, page) = mount.status("/").unwrap();
    assert!(status == 200 && page.contains("<html"), "{page}");
    assert_eq!(mount.status("/no/such/page").unwrap().0, 404);

    cluster.filers()[0].kill();
    let unready = || (ready(&mount).ok()? == 503).then_some(());
    eventually("unreadiness without a filer", Duration::from_secs(30), unready).unwrap();
    assert_eq!(mount.status("/healthz").unwrap().0, 200);
    cluster.restart_filer(0).unwrap();
    let ready = || (ready(&mount).ok()? == 200).then_some(());
    eventually("readiness again", Duration::from_secs(40), ready).unwrap();
    assert!(mount.is_running());
}
