//! `interceptor trace`: reads of a file or tree while they are answered.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::unistd::gettid;
use serde_json::Value;
use tempfile::TempDir;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::readers::{content, put_files};
use tests::{Cluster, Layer, Mount, Pattern, eventually, host, reading};

const SIZE: usize = 300_000;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running `interceptor trace`, which prints JSON.
struct Trace {
    process: Process,
    _home: TempDir,
}

impl Trace {
    /// Starts it, and waits until reads are followed.
    fn of(path: &Path) -> Self {
        Self::with(&[], path)
    }

    fn with(options: &[&str], path: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(interceptor_program().unwrap());
        command.args(["trace", "--json", "--for", "60m"]).args(options).arg(path);
        let process = Process::start(command, &home.path().join("log"), TIMEOUT, Signal::SIGTERM).unwrap();
        let trace = Self { process, _home: home };
        eventually("reads to be followed", TIMEOUT, || trace.log().contains("following").then_some(()))
            .unwrap();
        trace
    }

    fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap()
    }

    /// Whether the daemon cannot see the calls of applications.
    fn sees_no_calls(&self) -> bool {
        // It says so before reads are followed.
        self.log().contains("not shown: calls, as") || self.log().contains("not shown: calls (")
    }

    /// The reads so far.
    fn reads(&self) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == "read").collect()
    }

    /// The calls so far.
    fn calls(&self) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == "call").collect()
    }

    fn events(&self) -> Vec<Value> {
        let log = self.log();
        let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
        whole
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits for the first call of this process that is as wanted.
    fn call_that(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let is_own = |call: &Value| call["process"] == std::process::id();
        let call = || self.calls().into_iter().find(|call| is_own(call) && is_wanted(call));
        eventually(what, TIMEOUT, call).unwrap()
    }

    /// Waits for the first read that is as wanted.
    fn read_that(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, TIMEOUT, || self.reads().into_iter().find(&is_wanted)).unwrap()
    }
}

/// A bind mount, until it is dropped.
struct Bound(PathBuf);

impl Bound {
    fn to(path: &Path, target: &Path) -> Self {
        mount(Some(target), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn is_of(read: &Value, path: &str) -> bool {
    read["path"] == path && read["offset"] == 0
}

fn has_steps(read: &Value) -> bool {
    !read["steps"].as_array().unwrap().is_empty()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(interceptor_program().unwrap()).arg("trace").args(arguments).output().unwrap()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_read_of_a_tree_is_shown_with_what_it_waited_for() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(1).bytes(0, SIZE);
    const FILE: &str = "/data/tree/inner/file";
    for path in [FILE, "/data/tree-of-others/file"] {
        cluster.filer().put(path, &content, "").unwrap();
    }
    // Or the kernel would read the file by itself.
    let mount = Mount::builder(&cluster).filer_path("/data").arg("--no-passthrough").start().unwrap();
    let mut trace = Trace::of(&mount.path().join("tree"));
    let (file, of_others) = (mount.path().join("tree/inner/file"), mount.path().join("tree-of-others/file"));
    reading::verify(&of_others, &content);
    reading::verify(&file, &content);
    let server = cluster.volume_servers()[0].address();
    let fetched = trace.read_that("a read that was fetched", |read| is_of(read, FILE) && has_steps(read));
    let steps = fetched["steps"].as_array().unwrap();
    let is_request =
        |step: &Value| step["source"] == "http" && step["server"] == *server && step["error"].is_null();
    assert!(steps.iter().any(is_request), "{fetched}");
    assert!(fetched["error"].is_null() && fetched["seconds"].as_f64().unwrap() > 0.0, "{fetched}");

    reading::forget(&file).unwrap();
    reading::verify(&file, &content);
    trace.read_that("a read from memory", |read| is_of(read, FILE) && !has_steps(read));
    let others = trace.reads().into_iter().filter(|read| !is_in_tree(read)).collect::<Vec<_>>();
    assert!(others.is_empty(), "{others:?}");

    trace.process.signal(Signal::SIGINT);
    assert_eq!(trace.process.wait(TIMEOUT).unwrap().code(), Some(130));
    assert!(trace.log().contains("answered from memory, 0 failed"), "{}", trace.log());
}

fn is_in_tree(read: &Value) -> bool {
    read["path"].as_str().unwrap().starts_with("/data/tree/")
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn calls_are_shown_from_the_system_call_to_its_end() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(3).bytes(0, SIZE);
    for path in ["/data/tree/file", "/data/other"] {
        cluster.filer().put(path, &content, "").unwrap();
    }
    let mount = Mount::builder(&cluster).filer_path("/data").arg("--no-passthrough").start().unwrap();
    let (file, other) = (mount.path().join("tree/file"), mount.path().join("other"));
    let trace = Trace::of(&mount.path().join("tree"));
    if trace.sees_no_calls() {
        return host::skipped("eBPF programs cannot be attached to system calls");
    }
    let quiet = Trace::with(&["--no-calls"], &mount.path().join("tree"));
    reading::verify(&other, &content);
    let opened = File::open(&file).unwrap();
    let read_at = |offset: usize, len: usize| {
        let mut buffer = vec![0; len];
        opened.read_exact_at(&mut buffer, offset as u64).unwrap();
        assert!(buffer == content[offset..][..len]);
    };
    let is_at = |call: &Value, offset: usize| call["path"] == "/data/tree/file" && call["offset"] == offset;

    read_at(8192, 4096);
    let asked = trace.call_that("a call that asks the daemon", |call| is_at(call, 8192));
    assert!(asked["requests"].as_u64() >= Some(1) && asked["len"] == 4096, "{asked}");
    let events = trace.events();
    let first = |kind: &str| events.iter().position(|event| event["kind"] == kind).unwrap();
    assert!(first("read") < first("call"), "what a call waited for comes before it: {events:?}");
    let (whole, part) =
        (asked["seconds"].as_f64().unwrap(), events[first("read")]["seconds"].as_f64().unwrap());
    assert!(whole >= part, "the call took {whole} s, its request {part} s");

    // The kernel has the pages of the first read.
    read_at(9000, 3000);
    let cached = |call: &Value| is_at(call, 8192) && call["len"] == 3000;
    let cached = trace.call_that("a call that the page cache answers", cached);
    assert_eq!((&cached["requests"], &cached["passthrough"]), (&0.into(), &false.into()), "{cached}");
    assert_eq!((&cached["error"], &cached["caller"]), (&Value::Null, &gettid().as_raw().into()), "{cached}");
    assert!(!cached["caller_name"].as_str().unwrap().is_empty(), "{cached}");

    // By another system call.
    let mut out = tempfile::tempfile().unwrap();
    let copied = std::io::copy(&mut File::open(&file).unwrap(), &mut out).unwrap();
    assert_eq!(copied, SIZE as u64);
    trace.call_that("a copy within the kernel", |call| is_at(call, 0) && call["len"] == SIZE);
    let calls = trace.calls();
    assert!(calls.iter().all(|call| call["path"] == "/data/tree/file"), "{calls:?}");
    assert!(quiet.calls().is_empty() && !quiet.reads().is_empty());
}

/// The kernel reads ahead meanwhile, and asks for pages far behind those of a call before it says
/// which ones the call has.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_call_is_shown_where_it_reads() {
    // One that batches of pages fit into, and one that they do not.
    const STEPS: [usize; 2] = [16 << 10, 100 << 10];
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(4).bytes(0, 1 << 20);
    for step in STEPS {
        cluster.filer().put(&format!("/{step}"), &content, "").unwrap();
    }
    let mount = Mount::builder(&cluster).arg("--no-passthrough").start().unwrap();
    let attached = programs_of(&mount);
    let traces = [Trace::of(mount.path()), Trace::of(mount.path())];
    if traces[0].sees_no_calls() {
        return host::skipped("eBPF programs cannot be attached to system calls");
    }
    for step in STEPS {
        let path = format!("/{step}");
        let mut file = File::open(mount.file(&path)).unwrap();
        let mut buffer = vec![0; step];
        for part in content.chunks(step) {
            let read = &mut buffer[..part.len()];
            file.read_exact(read).unwrap();
            assert!(read == part);
        }
        let expected: Vec<_> = (0..content.len()).step_by(step).collect();
        for trace in &traces {
            let is_of_file = |call: &Value| call["path"] == path;
            let last = *expected.last().unwrap();
            trace.call_that("the last call", |call| is_of_file(call) && call["offset"] == last);
            let own = trace.calls().into_iter().filter(|call| call["process"] == std::process::id());
            let offsets = own.filter(is_of_file).map(|call| call["offset"].as_u64().unwrap() as usize);
            assert_eq!(Vec::from_iter(offsets), expected, "calls of {step} bytes");
        }
    }
    let [first, second] = traces;
    drop(first);
    assert!(programs_of(&mount) > attached, "the programs stay for the second");
    drop(second);
    let detached = || (programs_of(&mount) == attached).then_some(());
    eventually("the programs to be detached", TIMEOUT, detached).unwrap();
}

/// The kernel reads such a file by itself, with neither a page of the mount nor a request.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn calls_that_are_passed_through_are_shown() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(5).bytes(0, SIZE);
    cluster.filer().put("/file", &content, "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    if mount.log_with("hot files are read by the kernel itself").is_err() {
        return host::skipped("there is no passthrough here");
    }
    let trace = Trace::of(mount.path());
    if trace.sees_no_calls() || trace.log().contains("calls that passthrough answers") {
        return host::skipped("eBPF programs cannot be attached to what passthrough does");
    }
    let path = mount.file("/file");
    let opens = || mount.metric("interceptor_opens_total", &["way=\"passthrough\""]).unwrap_or(0.0);
    let resident = || {
        let before = opens();
        reading::verify(&path, &content);
        (opens() > before).then_some(())
    };
    eventually("passthrough", TIMEOUT, resident).unwrap();

    let passed = |call: &Value, offset: usize, len: usize| {
        let is_there = call["path"] == "/file" && call["offset"] == offset && call["len"] == len;
        is_there && call["passthrough"] == true && call["requests"] == 0
    };
    let mut buffer = [0; 5000];
    File::open(&path).unwrap().read_exact_at(&mut buffer, 12_345).unwrap();
    assert!(buffer == content[12_345..][..buffer.len()]);
    trace.call_that("a call", |call| passed(call, 12_345, buffer.len()));
    let mut out = tempfile::tempfile().unwrap();
    assert_eq!(std::io::copy(&mut File::open(&path).unwrap(), &mut out).unwrap(), SIZE as u64);
    trace.call_that("a copy within the kernel", |call| passed(call, 0, SIZE));
}

/// How many eBPF programs the process of a mount has open.
fn programs_of(mount: &Mount) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", mount.pid())).into_iter().flatten().flatten();
    open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:bpf-prog")).count()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn links_and_bind_mounts_lead_to_the_file() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(2).bytes(0, SIZE);
    cluster.filer().put("/tree/inner/file", &content, "").unwrap();
    let mounted = Mount::builder(&cluster).arg("--no-passthrough").start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (link, bound) = (home.path().join("link"), home.path().join("bound"));
    symlink(mounted.file("/tree"), &link).unwrap();
    fs::create_dir(&bound).unwrap();
    let bound_file = home.path().join("file");
    fs::write(&bound_file, "").unwrap();
    let _bound = [
        Bound::to(&bound, &mounted.file("/tree/inner")),
        Bound::to(&bound_file, &mounted.file("/tree/inner/file")),
    ];
    for path in [link.join("inner/../inner/file"), bound.clone(), bound.join("file"), bound_file] {
        let trace = Trace::of(&path);
        reading::forget(&mounted.file("/tree/inner/file")).unwrap();
        reading::verify(&mounted.file("/tree/inner/file"), &content);
        trace.read_that("a read", |read| is_of(read, "/tree/inner/file"));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_attached_path_is_followed_as_well() {
    let Some(disk) = host::disk() else { return };
    put_files(&disk.path());
    let layer = Layer::over(&disk.path(), ["--read-cache", "on"]).unwrap();
    let trace = Trace::of(&disk.path());
    let file = disk.path().join("file-0");
    // What was written a moment ago is not kept yet, and read from the file system below.
    let followed = eventually("a read of the layer", TIMEOUT, || {
        reading::forget(&file).unwrap();
        assert!(fs::read(&file).unwrap() == content(0));
        trace.reads().into_iter().find(|read| is_of(read, "/file-0"))
    });
    followed.unwrap();
    if !trace.sees_no_calls() {
        trace.call_that("a call", |call| call["path"] == "/file-0" && call["len"] == content(0).len());
    }
    drop(trace);
    layer.detach().unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn it_ends_by_itself_and_says_what_cannot_be_followed() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.path().to_str().unwrap();
    let ended = run(&["--for", "1s", path]);
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success() && said.contains("0 reads of 0 B"), "{said}");
    assert!(ended.stdout.is_empty());

    let missing = format!("{path}/missing");
    for (arguments, told) in [
        (&["--for", "1s", "/proc/version"][..], "/proc/version is not in a mount of interceptor"),
        (&["--for", "1s", &missing], "No such file"),
        (&["--for", "61m", path], "to 60m"),
    ] {
        let refused = run(arguments);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(told), "{arguments:?}: {said}");
    }
}
