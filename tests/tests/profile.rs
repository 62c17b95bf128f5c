//! `interceptor profile`: what is asked of a mount, by operation, file and process.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::readers::{content, put_files};
use tests::{Cluster, Layer, Mount, Pattern, Terminal, eventually, host, terminal};

const SIZE: usize = 300_000;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running `interceptor profile`, which prints JSON.
struct Profile {
    process: Process,
    _home: TempDir,
}

impl Profile {
    /// Starts it, and waits until requests are counted.
    fn of(path: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(interceptor_program().unwrap());
        command.args(["profile", "--json", "--for", "60m"]).arg(path);
        let process = Process::start(command, &home.path().join("log"), TIMEOUT, Signal::SIGTERM).unwrap();
        let profile = Self { process, _home: home };
        eventually("requests to be counted", TIMEOUT, || profile.log().contains("counting").then_some(()))
            .unwrap();
        profile
    }

    fn log(&self) -> String {
        fs::read_to_string(self.process.log()).unwrap()
    }

    /// Ends it by Ctrl-C. Returns the totals.
    fn end(mut self) -> Value {
        self.process.signal(Signal::SIGINT);
        assert_eq!(self.process.wait(TIMEOUT).unwrap().code(), Some(0), "{}", self.log());
        let log = self.log();
        serde_json::from_str(log.lines().find(|line| line.starts_with('{')).expect(&log)).unwrap()
    }
}

/// The row of a table with this name.
#[track_caller]
fn row<'a>(totals: &'a Value, table: &str, name: &str) -> &'a Value {
    let row = totals[table].as_array().unwrap().iter().find(|row| row["name"] == name);
    row.unwrap_or_else(|| panic!("no {name} in {totals:#}"))
}

/// Reads a file by a program, past the page cache. Returns its process.
fn read_direct(file: &Path) -> u32 {
    let mut command = Command::new("dd");
    let input = format!("if={}", file.display());
    let mut child =
        command.args([&input, "of=/dev/null", "bs=64k", "iflag=direct", "status=none"]).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(interceptor_program().unwrap()).arg("profile").args(arguments).output().unwrap()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn requests_of_a_mount_are_counted_by_operation_file_and_process() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let content = Pattern::new(1).bytes(0, SIZE);
    for path in ["/data/tree/file", "/data/tree-of-others/file"] {
        cluster.filer().put(path, &content, "").unwrap();
    }
    // Or the kernel would read the file by itself.
    let mount = Mount::builder(&cluster).filer_path("/data").arg("--no-passthrough").start().unwrap();
    let (all, tree) = (Profile::of(mount.path()), Profile::of(&mount.path().join("tree")));
    let reader = read_direct(&mount.path().join("tree/file"));
    read_direct(&mount.path().join("tree-of-others/file"));
    let listing = Command::new("ls").arg("-l").arg(mount.path().join("tree")).output().unwrap();
    assert!(listing.status.success());

    let totals = tree.end();
    let read = row(&totals, "operations", "read");
    // Five of 64 KiB, the last one short. The kernel may ask once more, at the end.
    assert!(read["count"].as_u64().unwrap() >= 5 && read["bytes"] == SIZE, "{totals:#}");
    assert!(read["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(row(&totals, "files", "/data/tree/file")["bytes"], SIZE);
    let process = row(&totals, "processes", "dd");
    assert_eq!((process["pid"].as_u64(), &process["bytes"]), (Some(reader.into()), &SIZE.into()));
    row(&totals, "operations", "lookup");
    row(&totals, "operations", "opendir");
    row(&totals, "processes", "ls");
    let files = totals["files"].as_array().unwrap();
    let is_of_tree = |file: &Value| {
        let name = file["name"].as_str().unwrap();
        name == "/data/tree" || name.starts_with("/data/tree/")
    };
    assert!(files.iter().all(is_of_tree), "{totals:#}");
    assert_eq!(totals["other_files"]["count"], 0);

    let totals = all.end();
    assert_eq!(row(&totals, "operations", "read")["bytes"], 2 * SIZE);
    assert_eq!(row(&totals, "files", "/data/tree-of-others/file")["bytes"], SIZE);
    let count = |table: &str| {
        let rows = totals[table].as_array().unwrap().iter();
        rows.map(|row| row["count"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(count("operations"), count("processes"));
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_attached_path_is_counted_as_well() {
    let Some(disk) = host::disk() else { return };
    put_files(&disk.path());
    let layer = Layer::over(&disk.path(), ["--read-cache", "on"]).unwrap();
    let profile = Profile::of(&disk.path());
    let reader = read_direct(&disk.path().join("file-0"));
    fs::write(disk.path().join("written"), vec![1; 5000]).unwrap();
    fs::remove_file(disk.path().join("written")).unwrap();
    let totals = profile.end();
    let size = content(0).len();
    assert_eq!(row(&totals, "operations", "read")["bytes"], size, "{totals:#}");
    assert_eq!(row(&totals, "files", "/file-0")["bytes"], size);
    assert_eq!(row(&totals, "processes", "dd")["pid"], reader);
    assert_eq!(row(&totals, "operations", "write")["bytes"], 5000);
    assert_eq!(row(&totals, "files", "/written")["bytes"], 5000);
    assert_eq!(row(&totals, "operations", "unlink")["count"], 1);
    layer.detach().unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_terminal_shows_it_live() {
    if !host::can_mount() || !host::has_program("tmux", &["-V"]) {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    cluster.filer().put("/file", &Pattern::new(1).bytes(0, SIZE), "").unwrap();
    let mount = Mount::builder(&cluster).arg("--no-passthrough").start().unwrap();
    let terminal = Terminal::open(100, 60).unwrap();
    let program = terminal::quoted(&interceptor_program().unwrap());
    let path = terminal::quoted(mount.path());
    terminal.type_text(&format!("{program} profile {path} --for 60m; echo code $?")).unwrap();
    terminal.press("Enter").unwrap();
    terminal.wait_until("an empty table", TIMEOUT, |screen| screen.contains("  process")).unwrap();
    read_direct(&mount.path().join("file"));
    let is_shown = |screen: &str| {
        ["  read", "  /file", "  dd["].iter().all(|name| screen.contains(name))
            && screen.matches("requests in").count() == 1
    };
    terminal.wait_until("what was read", TIMEOUT, is_shown).unwrap();
    terminal.press("C-c").unwrap();
    let is_left = |screen: &str| screen.contains("code 0") && is_shown(screen);
    terminal.wait_until("the end", TIMEOUT, is_left).unwrap();
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn it_ends_by_itself_and_says_what_cannot_be_counted() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.path().to_str().unwrap();
    let address = mount.status_url().unwrap().trim_start_matches("http://").to_owned();
    for which in [&[path][..], &["--status-addr", &address]] {
        let ended = run(&[&["--for", "1s", "--by", "operation"], which].concat());
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(ended.status.success() && said.contains(" requests in "), "{which:?}: {said}");
        assert!(said.contains("  operation\n") && !said.contains("process"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }

    let missing = format!("{path}/missing");
    for (arguments, code, told) in [
        (&["/proc/version"][..], 1, "/proc/version is not in a mount of interceptor"),
        (&[&missing], 1, "No such file"),
        (&["--for", "61m", path], 2, "to 60m"),
        (&["--by", "day", path], 2, "operation, file, process"),
    ] {
        let refused = run(arguments);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}
