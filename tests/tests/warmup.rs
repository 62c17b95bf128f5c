//! `interceptor warmup`: files and trees are loaded into the cache of a running mount, counted
//! there, and evicted again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use interceptor::warmup::ticket::READ_TICKET_XATTR;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::user::{NOBODY, as_nobody, xattr};
use tests::{Cluster, Fault, Filer, Mount, Pattern, Shared, data, eventually, host};

static CLUSTER: Shared<Cluster> = Shared::new();

const MIB: usize = 1 << 20;
/// Files of the tree below `/tree`, with their sizes.
const TREE: [(&str, usize); 5] = [
    ("/tree/a/empty", 0),
    ("/tree/a/small", 5000),
    ("/tree/a/b/medium", 3 * MIB + 77),
    ("/tree/a/b/c/other", MIB),
    ("/tree/large", 9 * MIB + 1),
];
/// Their sizes together.
const TREE_BYTES: u64 = 13 * MIB as u64 + 5078;
/// No run of the program may take longer.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| {
        let cluster = Cluster::builder().max_mb(1).start().unwrap();
        put_files(&cluster.filer());
        cluster
    })
}

/// A cluster of a test's own, whose volume server can be held up.
fn breakable() -> Cluster {
    let cluster = Cluster::builder().max_mb(1).proxied().start().unwrap();
    put_files(&cluster.filer());
    cluster
}

fn put_files(filer: &Filer) {
    TREE.iter().for_each(|(path, size)| put(filer, path, *size));
    (0..12).for_each(|number| put(filer, &format!("/eights/{number:02}"), 8 * MIB));
}

fn put(filer: &Filer, path: &str, size: usize) {
    filer.put(path, &content(path, size), "").unwrap();
}

fn content(path: &str, size: usize) -> Vec<u8> {
    Pattern::new(path.bytes().map(u64::from).sum()).bytes(0, size)
}

fn mount(cluster: &Cluster, cache: &str) -> Mount {
    let access = ["--volume-server-access", "publicUrl", "--read-retry-time", "1s", "--cache-size", cache];
    // What eBPF sees would bring more than is counted here.
    Mount::interceptor(&cluster.filer_addresses()).args(access).arg("--no-ebpf").start().unwrap()
}

fn fetched(mount: &Mount) -> f64 {
    mount.metric("interceptor_fetch_bytes_total", &["source=\"http\""]).unwrap()
}

/// A run of `interceptor warmup` that has begun.
struct WarmupProcess {
    process: Process,
    home: TempDir,
}

impl WarmupProcess {
    fn start(mut command: Command) -> WarmupProcess {
        let home = tempfile::tempdir().unwrap();
        command.current_dir("/");
        let log = home.path().join("log");
        let process = Process::start(command, &log, Duration::from_secs(5), Signal::SIGTERM).unwrap();
        WarmupProcess { process, home }
    }

    /// The exit code and all that was said.
    #[track_caller]
    fn end(mut self) -> (i32, String) {
        let status = self.process.wait(WAIT_TIMEOUT).unwrap();
        let said = fs::read_to_string(self.home.path().join("log")).unwrap();
        assert!(!said.contains("panicked"), "{said}");
        (status.code().unwrap(), said)
    }
}

fn command(args: &[&str], paths: &[PathBuf]) -> Command {
    let mut command = Command::new(interceptor_program().unwrap());
    command.arg("warmup").args(args).args(paths);
    command
}

#[track_caller]
fn warmup(args: &[&str], paths: &[PathBuf]) -> (i32, String) {
    WarmupProcess::start(command(args, paths)).end()
}

/// Runs with `--json`, must succeed.
#[track_caller]
fn json(args: &[&str], paths: &[PathBuf]) -> Value {
    let (code, said) = warmup(&[args, &["--json"]].concat(), paths);
    assert_eq!(code, 0, "{said}");
    serde_json::from_str(said.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[track_caller]
fn cached(mount: &Mount, path: &str) -> u64 {
    json(&["--check"], &[mount.file(path)])["cached_bytes"].as_u64().unwrap()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_warm_tree_is_read_without_a_fetch() {
    if !host::can_mount() {
        return;
    }
    let mount = mount(&cluster(), "64MiB");
    let tree = [mount.file("/tree")];
    let before = json(&["--check"], &tree);
    assert_eq!((&before["files"], &before["bytes"]), (&5.into(), &TREE_BYTES.into()), "{before}");
    assert_eq!(before["cached_bytes"], 0, "{before}");
    assert_eq!(fetched(&mount), 0.0, "asking fetches nothing");

    let warm = json(&[], &tree);
    assert_eq!((&warm["cached_files"], &warm["cached_bytes"]), (&5.into(), &TREE_BYTES.into()), "{warm}");
    assert_eq!((&warm["moved_bytes"], &warm["problems"]), (&TREE_BYTES.into(), &0.into()), "{warm}");
    let brought = fetched(&mount);
    assert!(brought >= TREE_BYTES as f64, "{brought}");

    // Twice, and past the page cache: what has been read once stays too.
    for round in 0..2 {
        for (path, size) in TREE {
            let at = mount.file(path);
            data::assert_same(path, &fs::read(&at).unwrap(), &content(path, size));
            tests::reading::forget(&at).unwrap();
        }
        assert_eq!(fetched(&mount), brought, "round {round}");
    }
    let outcome = |outcome: &str| {
        let labels = ["trigger=\"warmup\"", outcome];
        mount.metric("interceptor_prefetch_bytes_total", &labels).unwrap()
    };
    assert_eq!(outcome("outcome=\"used\""), TREE_BYTES as f64);
    assert_eq!(outcome("outcome=\"wasted\""), 0.0);
    assert_eq!(json(&[], &tree)["moved_bytes"], 0, "nothing is fetched twice");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn shares_are_told_for_each_argument_and_given_up_again() {
    if !host::can_mount() {
        return;
    }
    let mount = mount(&cluster(), "64MiB");
    let (large, below) = (mount.file("/tree/large"), mount.file("/tree/a"));
    let (code, said) = warmup(&[], std::slice::from_ref(&large));
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("1 of 1 files are in the cache: 9 MiB of 9 MiB (9 MiB fetched)"), "{said}");
    let (code, said) = warmup(&["--check"], &[large.clone(), below.clone()]);
    assert_eq!(code, 0, "{said}");
    let line =
        |end: &str| said.lines().find(|line| line.ends_with(end)).unwrap_or_else(|| panic!("{end}: {said}"));
    assert!(line("/tree/large").starts_with("100.0 %"), "{said}");
    // Of the four files one is empty, and so always there.
    assert!(line("/tree/a").starts_with("  0.0 %") && line("/tree/a").contains("1 of 4 files"), "{said}");
    assert!(line("in total").starts_with(" 69.2 %"), "{said}");

    // A reader brings in what it reads, and that counts.
    fs::read(mount.file("/tree/a/b/c/other")).unwrap();
    assert_eq!(cached(&mount, "/tree/a"), MIB as u64);

    let given_up = json(&["--evict"], &[mount.file("/tree")]);
    assert_eq!((&given_up["cached_bytes"], &given_up["moved_bytes"]), (&0.into(), &(10 * MIB + 1).into()));
    assert_eq!(cached(&mount, "/tree"), 0);
    let wasted = ["trigger=\"warmup\"", "outcome=\"wasted\""];
    assert_eq!(mount.metric("interceptor_prefetch_bytes_total", &wasted).unwrap(), (9 * MIB + 1) as f64);
    data::assert_same("large", &fs::read(&large).unwrap(), &content("/tree/large", 9 * MIB + 1));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_full_cache_takes_nothing_more_but_by_force() {
    if !host::can_mount() {
        return;
    }
    let mount = mount(&cluster(), "64MiB");
    let eights = |numbers: std::ops::Range<usize>| -> Vec<PathBuf> {
        numbers.map(|number| mount.file(&format!("/eights/{number:02}"))).collect()
    };
    json(&[], &eights(0..6));
    // An eighth of the cache stays free: one more fits.
    let (code, said) = warmup(&[], &eights(6..10));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no room left: 1 of 4 files") && said.contains("--force"), "{said}");
    let first = json(&["--check"], &eights(0..6));
    assert_eq!(first["cached_bytes"], 48 * MIB, "nothing has left: {first}");

    let forced = json(&["--force"], &eights(7..12));
    assert_eq!((&forced["cached_files"], &forced["full"]), (&5.into(), &false.into()), "{forced}");
    let left = json(&["--check"], &eights(0..6));
    assert!(left["cached_bytes"].as_u64().unwrap() < 48 << 20, "{left}");
    // More than the cache can hold is not pushed through it.
    let (code, said) = warmup(&["--force"], &eights(0..12));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("of 12 files") && said.contains("--cache-size"), "{said}");
    for path in eights(0..12) {
        let name = format!("/eights/{}", path.file_name().unwrap().to_str().unwrap());
        data::assert_same(&name, &fs::read(&path).unwrap(), &content(&name, 8 * MIB));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn lists_are_taken_from_standard_input() {
    if !host::can_mount() {
        return;
    }
    let mount = mount(&cluster(), "64MiB");
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("list");
    let listed = |args: &str, end: char| {
        let names = ["/tree/a/small", "/tree/large"].map(|path| mount.file(path).display().to_string());
        fs::write(&list, names.join(&end.to_string())).unwrap();
        let mut command = Command::new("sh");
        let script = format!("exec \"$0\" warmup {args} --json - < \"$1\"");
        command.args(["-c", &script]).arg(interceptor_program().unwrap()).arg(&list);
        let (code, said) = WarmupProcess::start(command).end();
        assert_eq!(code, 0, "{said}");
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()
    };
    assert_eq!(listed("", '\n')["cached_bytes"], 9 * MIB + 5001);
    let check = listed("--check -0", '\0');
    assert_eq!((&check["cached_files"], &check["arguments"][0]["path"]), (&2.into(), &"-".into()), "{check}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_file_that_is_deleted_or_replaced_meanwhile_is_left_out() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).proxied().start().unwrap();
    let filer = cluster.filer();
    let names = ["/m/deleted", "/m/kept", "/m/replaced"];
    names.iter().for_each(|path| put(&filer, path, MIB));
    let mount = mount(&cluster, "64MiB");
    let proxy = &cluster.proxies()[0];
    proxy.set(Fault::StallAfter(0));
    let run = WarmupProcess::start(command(&["--json"], &[mount.file("/m")]));
    let under_way = || (proxy.accepted() > 0).then_some(());
    eventually("the job", WAIT_TIMEOUT, under_way).unwrap();
    filer.delete("/m/deleted").unwrap();
    put(&filer, "/m/replaced", 2 * MIB);
    let gone = || (!mount.file("/m/deleted").exists()).then_some(());
    eventually("the deletion", WAIT_TIMEOUT, gone).unwrap();
    let size = || fs::metadata(mount.file("/m/replaced")).ok().map(|meta| meta.len());
    eventually("the replacement", WAIT_TIMEOUT, || (size()? == 2 << 20).then_some(())).unwrap();
    proxy.set(Fault::None);
    let (code, said) = run.end();
    let outcome: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    // Whether SeaweedFS still had the old chunks when they were asked for is up to it.
    assert_eq!((code, &outcome["problems"]), (0, &0.into()), "{said}");
    assert_eq!(cached(&mount, "/m/kept"), MIB as u64);
    data::assert_same("kept", &fs::read(mount.file("/m/kept")).unwrap(), &content("/m/kept", MIB));
    let replaced = fs::read(mount.file("/m/replaced")).unwrap();
    data::assert_same("replaced", &replaced, &content("/m/replaced", 2 * MIB));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn ctrl_c_stops_the_daemon_as_well() {
    if !host::can_mount() {
        return;
    }
    let cluster = breakable();
    let mount = mount(&cluster, "64MiB");
    let proxy = &cluster.proxies()[0];
    let before = proxy.accepted();
    proxy.set(Fault::StallAfter(0));
    let mut run = WarmupProcess::start(command(&[], &[mount.file("/eights")]));
    eventually("the job", WAIT_TIMEOUT, || (proxy.accepted() > before).then_some(())).unwrap();
    run.process.signal(Signal::SIGINT);
    let (code, said) = run.end();
    proxy.set(Fault::None);
    assert_eq!(code, 130, "{said}");
    assert!(said.contains("stopped before the end"), "{said}");
    // What was on its way comes in, or is given up after the retries; the rest is not begun.
    assert!(cached(&mount, "/eights") <= 8 << 20);
    assert_eq!(json(&[], &[mount.file("/tree")])["cached_bytes"], TREE_BYTES);
    assert!(cached(&mount, "/eights") <= 8 << 20);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_mount_is_found_by_its_paths_and_everything_else_is_refused() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let (first, second) = (mount(&cluster, "64MiB"), mount(&cluster, "64MiB"));
    let both = json(&[], &[first.file("/tree/large"), second.file("/tree/a")]);
    assert_eq!(both["cached_bytes"], TREE_BYTES, "{both}");
    assert_eq!(
        (cached(&first, "/tree"), cached(&second, "/tree")),
        (9 * MIB as u64 + 1, 4 * MIB as u64 + 5077)
    );

    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("file");
    fs::write(&file, "x").unwrap();
    let refused = |args: &[&str], path: &Path, words: &[&str]| {
        let (code, said) = warmup(args, &[path.to_owned()]);
        assert_eq!(code, 1, "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "no {word:?}: {said}"));
    };
    refused(&[], &file, &[file.to_str().unwrap(), "not in a mount of interceptor"]);
    refused(&["--check"], &outside.path().join("none"), &["No such file"]);
    // The right path at the wrong daemon.
    let address = second.status_url().unwrap().trim_start_matches("http://").to_owned();
    refused(&["--status-addr", &address], &first.file("/tree/large"), &["refuses", "device"]);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_is_said_of_what_could_not_be_looked_at() {
    const NOBODY: u32 = 65534;
    if !host::can_mount() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("below")).unwrap();
    fs::write(outside.path().join("below/file"), "x").unwrap();
    for args in [&["--check"][..], &[]] {
        let (code, said) = warmup(args, &[outside.path().to_owned()]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("not in a mount of interceptor") && !said.contains('%'), "{said}");
        // It was not walked.
        assert!(!said.contains("below"), "{said}");
    }

    let cluster = cluster();
    cluster.filer().put("/closed/file", &content("/closed/file", 1000), "mode=0600").unwrap();
    let mount = mount(&cluster, "64MiB");
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("interceptor");
    fs::copy(interceptor_program().unwrap(), &program).unwrap();
    for path in [home.path(), mount.path().parent().unwrap()] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(&program);
    command.args(["warmup", "--check"]).arg(mount.file("/closed")).uid(NOBODY).gid(NOBODY);
    let (code, said) = WarmupProcess::start(command).end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("(1 could not be looked at)") && !said.contains('%'), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mount_without_a_status_api_says_so() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["mount", "--status-addr", "none", "--filer", &cluster.filer_addresses()]).arg(home.path());
    let mut run = WarmupProcess::start(command);
    let log = run.home.path().join("log");
    let mounted = || fs::read_to_string(&log).ok()?.contains("mounted /").then_some(());
    eventually("the mount", WAIT_TIMEOUT, mounted).unwrap();
    let (code, said) = warmup(&[], &[home.path().join("tree")]);
    run.process.signal(Signal::SIGTERM);
    assert_eq!((code, run.end().0), (1, 0));
    assert!(said.contains("no status API"), "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_that_is_gone_is_called_that() {
    if !host::can_mount() {
        return;
    }
    let cluster = breakable();
    let mut dead = mount(&cluster, "64MiB");
    dead.kill();
    let (code, said) = warmup(&[], &[dead.path().to_owned()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("the daemon of this mount is gone"), "{said}");

    // In the middle of a job.
    let mut dying = mount(&cluster, "64MiB");
    let proxy = &cluster.proxies()[0];
    let before = proxy.accepted();
    proxy.set(Fault::StallAfter(0));
    let run = WarmupProcess::start(command(&[], &[dying.file("/eights")]));
    eventually("the job", WAIT_TIMEOUT, || (proxy.accepted() > before).then_some(())).unwrap();
    dying.kill();
    proxy.set(Fault::None);
    let (code, said) = run.end();
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("does not answer") || said.contains("is gone"), "{said}");
}

/// A mount whose path all users may walk.
fn open_mount(cluster: &Cluster, args: &[&str]) -> Mount {
    let builder = Mount::interceptor(&cluster.filer_addresses());
    let mount = builder.args(["--cache-size", "64MiB", "--no-ebpf"]).args(args).start().unwrap();
    let mode = Permissions::from_mode(0o755);
    fs::set_permissions(mount.path().parent().unwrap(), mode).unwrap();
    mount
}

/// Runs `interceptor warmup` as an unprivileged user.
fn warmup_by_nobody(args: &[&str], path: &Path) -> (i32, String) {
    // A copy where all users can run it.
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("interceptor");
    fs::copy(interceptor_program().unwrap(), &program).unwrap();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.arg("warmup").args(args).arg(path).uid(NOBODY).gid(NOBODY);
    WarmupProcess::start(command).end()
}

fn put_with_mode(filer: &Filer, path: &str, mode: &str) {
    filer.put(path, &content(path, 10_000), &format!("mode={mode}")).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn everybody_may_ask_for_what_he_may_read() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    put_with_mode(&filer, "/users/open", "0644");
    put_with_mode(&filer, "/users/closed", "0600");
    let mount = open_mount(&cluster, &[]);
    let mode = fs::metadata(mount.file("/users/closed")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the filer takes the mode");
    let (code, said) = warmup_by_nobody(&["--json"], &mount.file("/users"));
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("/users/closed: EACCES") || said.contains("/users/closed: Permission denied"),
        "{said}"
    );
    assert_eq!(cached(&mount, "/users/open"), 10_000);
    assert_eq!(cached(&mount, "/users/closed"), 0);

    // It serves others as well, and pushes nothing of theirs out.
    let (code, said) = warmup_by_nobody(&["--evict"], &mount.file("/users/open"));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("only its owner, root"), "{said}");
    let (code, said) = warmup_by_nobody(&["--force"], &mount.file("/users/open"));
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("only root"), "{said}");
    assert_eq!(cached(&mount, "/users/open"), 10_000);
    assert_eq!(json(&["--evict"], &[mount.file("/users/open")])["cached_bytes"], 0, "root may");
    // What is root's in the filer is this user's here.
    let own = open_mount(&cluster, &["--map-uid", &format!("{NOBODY}:0")]);
    assert_eq!(warmup_by_nobody(&[], &own.file("/users/open")).0, 0);
    let (code, said) = warmup_by_nobody(&["--evict"], &own.file("/users/open"));
    assert_eq!(code, 0, "{said}");
    assert_eq!(cached(&own, "/users/open"), 0);
}

/// Attempts of a local user that knows the API, the numbers of all files and the tickets of the
/// files that it may read.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn nothing_is_done_or_told_about_files_that_a_user_may_not_read() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    put_with_mode(&filer, "/secrets/open", "0644");
    put_with_mode(&filer, "/secrets/group", "0640");
    put_with_mode(&filer, "/secrets/closed", "0600");
    let mount = open_mount(&cluster, &["--map-gid", &format!("{NOBODY}:0")]);
    let parent = mount.path().parent().unwrap();
    let ticket = |path: &str| xattr(&mount.file(path), READ_TICKET_XATTR);
    let hostile = |path: &str| as_nobody(|| ticket(path));
    let open = String::from_utf8(hostile("/secrets/open").unwrap()).unwrap();
    assert!(hostile("/secrets/group").is_ok(), "the kernel knows the group");
    assert_eq!(hostile("/secrets/closed"), Err(libc::EACCES));
    assert_eq!(hostile("/secrets"), Err(libc::ENODATA), "a directory is not read");
    // A mode that lets all users read is of no use behind a closed directory.
    fs::set_permissions(parent, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(hostile("/secrets/open"), Err(libc::EACCES));
    fs::set_permissions(parent, Permissions::from_mode(0o755)).unwrap();

    let closed = fs::metadata(mount.file("/secrets/closed")).unwrap();
    let device = format!("{}:{}", libc::major(closed.dev()), libc::minor(closed.dev()));
    let ask = |field: &str, value: Value| {
        let body = json!({ "action": "fetch", "device": device, field: [value] }).to_string();
        let url = format!("{}/api/v1/warmup", mount.status_url().unwrap());
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let request = ureq::Agent::new_with_config(config).post(url).header("X-Interceptor", "warmup");
        let mut answer = request.content_type("application/json").send(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    };
    assert_eq!(ask("nodes", closed.ino().into()).0, 400);
    // The ticket begins with the number of the file, which a client can exchange.
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let mut forged = engine.decode(&open).unwrap();
    assert_eq!(forged[..8], fs::metadata(mount.file("/secrets/open")).unwrap().ino().to_le_bytes());
    forged[..8].copy_from_slice(&closed.ino().to_le_bytes());
    for ticket in [engine.encode(&forged), closed.ino().to_string(), String::new()] {
        let (status, said) = ask("tickets", ticket.into());
        assert_eq!(status, 403, "{said}");
        assert!(!said.contains("10000") && !said.contains("closed"), "{said}");
    }
    assert_eq!(fetched(&mount), 0.0);
    assert_eq!(ask("tickets", open.into()).0, 201, "what he may read");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_daemon_with_a_token_asks_for_it() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let token = token.to_str().unwrap();
    let mount = open_mount(&cluster, &["--status-token-file", token]);
    let file = [mount.file("/tree/a/small")];
    let (code, said) = warmup(&[], &file);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("--status-token-file"), "{said}");
    assert_eq!(json(&["--status-token-file", token], &file)["cached_bytes"], 5000);
}
