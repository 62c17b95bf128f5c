//! `interceptor doctor` against a real cluster: what it measures, the faults that it finds, and the
//! archive that it writes.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::mount::interceptor_program;
use tests::process::Process;
use tests::{Cluster, Fault, Mount, Pattern, host};

const KEY: &str = "a secret between servers";

/// A directory to run in, which has a `security.toml`.
struct WorkingDirectory {
    directory: tempfile::TempDir,
}

impl WorkingDirectory {
    /// With the cluster's keys.
    fn of(cluster: &Cluster) -> WorkingDirectory {
        WorkingDirectory::with(&fs::read_to_string(cluster.directory().join("security.toml")).unwrap())
    }

    fn with(security: &str) -> WorkingDirectory {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("security.toml"), security).unwrap();
        WorkingDirectory { directory }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, args: &[&str]) -> Process {
        let mut command = Command::new(interceptor_program().unwrap());
        command
            .arg("doctor")
            .args(args)
            .current_dir(self.directory.path())
            .env("HOME", self.directory.path());
        let _ = fs::remove_file(self.at("log"));
        Process::start(command, &self.at("log"), Duration::from_secs(5), Signal::SIGTERM).unwrap()
    }

    /// Runs it to its end; returns the exit code and what it said.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let status = self.start(args).wait(Duration::from_secs(90)).unwrap();
        let said = fs::read_to_string(self.at("log")).unwrap();
        assert!(!said.contains("panicked"), "{said}");
        (status.code(), said)
    }

    fn json(&self, args: &[&str]) -> (Option<i32>, Value) {
        let (code, said) = self.run(&[args, &["--json"]].concat());
        let document = serde_json::from_str(&said);
        (code, document.unwrap_or_else(|error| panic!("{error}: {said}")))
    }
}

/// The findings of a name, each as its state and text.
fn findings(document: &Value, ability: &str) -> Vec<(String, String)> {
    let all = document["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let named = all.filter(|finding| finding["ability"] == ability);
    named.map(|finding| (text(&finding["state"]), text(&finding["found"]))).collect()
}

#[track_caller]
fn assert_found(document: &Value, ability: &str, state: &str, words: &[&str]) {
    let found = findings(document, ability);
    let is_told = |(is, text): &(String, String)| is == state && words.iter().all(|word| text.contains(word));
    assert!(found.iter().any(is_told), "{ability} is not {state} with {words:?}: {found:?}");
}

fn guarded_cluster() -> Cluster {
    let cluster = Cluster::builder().read_key(KEY).max_mb(1).start().unwrap();
    cluster.filer().put("/train/shards/large", &Pattern::new(1).bytes(0, 24 << 20), "").unwrap();
    cluster.filer().put("/train/shards/small", &Pattern::new(2).bytes(0, 5000), "").unwrap();
    cluster
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_source_is_measured() {
    if !host::can_mount() {
        return;
    }
    let cluster = guarded_cluster();
    let here = WorkingDirectory::of(&cluster);
    let filer = cluster.filer_addresses();
    let engine = &cluster.engines()[0];
    let pair = format!("{}={}", cluster.volume_servers()[0].address(), engine.address());
    let (code, document) = here.json(&["--filer", &filer, "--filer-path", "/train", "--engine", &pair]);
    assert_eq!(code, Some(0), "{document:#}");
    assert_eq!(document["mount_possible"], true);
    assert_found(&document, "filer's directory", "ok", &["/train can be listed"]);
    assert_found(&document, "volume server", "ok", &["answers"]);
    assert_found(&document, "engine", "ok", &["is reached"]);
    assert_eq!(findings(&document, "open files").len(), 1);
    assert_found(&document, "other users", "ok", &["root"]);
    for source in ["http".to_owned()].into_iter().chain(host::transports()) {
        let ability = format!("reading over {source}");
        assert_found(&document, &ability, "ok", &["MB/s", "/train/shards/large", "checksums are right"]);
        let reads = document["reads"].as_array().unwrap();
        let read = reads.iter().find(|read| read["source"] == source.as_str()).unwrap();
        println!("{read}");
        assert!(read["bytes"].as_u64().unwrap() > 0 && read["first_byte_seconds"].as_f64().unwrap() > 0.0);
    }
    let verdict = document["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("A mount would work") || verdict == "Everything is there", "{verdict}");

    let (code, said) = here.run(&["--filer", &filer, "--engine", &pair]);
    assert_eq!(code, Some(0), "{said}");
    println!("{said}");
    let last = said.lines().next_back().unwrap();
    assert!(last.starts_with("A mount would work") || last == "Everything is there", "{said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_wrong_key_and_a_missing_directory_are_found() {
    if !host::can_mount() {
        return;
    }
    let cluster = guarded_cluster();
    let filer = cluster.filer_addresses();
    let guessed = WorkingDirectory::with("[jwt.signing.read]\nkey = \"guessed by a guest\"\n");
    let (code, document) = guessed.json(&["--filer", &filer]);
    assert_eq!(code, Some(1), "{document:#}");
    assert_found(&document, "reading over http", "missing", &["refused", "401"]);
    let verdict = document["verdict"].as_str().unwrap();
    assert!(verdict.starts_with("A mount would work, but no file could be read"), "{verdict}");

    let here = WorkingDirectory::of(&cluster);
    let (code, said) = here.run(&["--filer", &filer, "--filer-path", "/none"]);
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().next_back().unwrap();
    assert!(last.starts_with("A mount is not possible: ") && last.contains("no directory /none"), "{said}");

    cluster.filer().put("/empty/.keep", b"", "").unwrap();
    let (code, document) = here.json(&["--filer", &filer, "--filer-path", "/empty"]);
    assert_eq!(code, Some(0), "{document:#}");
    assert_found(&document, "reading over http", "untested", &["no file"]);

    let (code, said) = WorkingDirectory::with("[jwt.signing.read]\nkey = \"half a key\n").run(&[]);
    assert!(code == Some(1) && said.contains("no valid TOML, line 2"), "{said}");
    assert!(!said.contains("half a key"), "an error shows the key: {said}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn volume_servers_that_are_cut_off_or_send_wrong_bytes_are_found() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().proxied().max_mb(4).start().unwrap();
    cluster.filer().put("/file", &Pattern::new(1).bytes(0, 3_000_000), "").unwrap();
    let here = WorkingDirectory::of(&cluster);
    let filer = cluster.filer_addresses();
    let proxy = &cluster.proxies()[0];
    let args = ["--filer", &filer, "--volume-server-access", "publicUrl", "--transport", "http"];

    proxy.set(Fault::Corrupt(1_000_000));
    let (code, document) = here.json(&args);
    assert_eq!(code, Some(1), "{document:#}");
    assert_found(&document, "reading over http", "missing", &["/file", "wrong bytes"]);
    assert_eq!(document["mount_possible"], true, "the volume server is at fault");

    proxy.set(Fault::Refuse);
    let (code, document) = here.json(&args);
    assert_eq!(code, Some(1), "{document:#}");
    assert_found(&document, "volume server", "lost", &[&proxy.address()]);
    assert_found(&document, "reading over http", "missing", &["/file", &proxy.address()]);
}

/// Unpacks an archive; returns the names and texts of its files.
fn unpacked(archive: &Path) -> Vec<(String, String)> {
    let directory = tempfile::tempdir().unwrap();
    let tar = |args: &[&str]| {
        let mut command = Command::new("tar");
        command.args(args).arg(archive).arg("-C").arg(directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    tar(&["-xzf"]);
    let read = |name: &str| (name.to_owned(), fs::read_to_string(directory.path().join(name)).unwrap());
    tar(&["-tzf"]).lines().map(read).collect()
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_bundle_has_the_status_of_mounts_and_no_secret() {
    const TOKEN: &str = "a-token-that-only-operators-have";
    if !host::can_mount() || !host::has_program("tar", &["--version"]) {
        return;
    }
    let cluster = guarded_cluster();
    let here = WorkingDirectory::of(&cluster);
    fs::write(here.at("token"), TOKEN).unwrap();
    let token = ["--status-token-file", here.at("token").to_str().unwrap()].map(str::to_owned);
    let mount = Mount::interceptor(&cluster.filer_addresses())
        .security(&cluster.directory().join("security.toml"))
        .args(token.clone())
        .start()
        .unwrap();
    let filer = cluster.filer_addresses();
    let bundle = here.at("report.tar.gz");
    let config = here.at("config.toml");
    fs::write(&config, format!("filer = \"{filer}\"\ncache-size = \"64MiB\"\n")).unwrap();
    let config = config.to_str().unwrap();
    let args = ["--config", config, "--bundle", "report.tar.gz"];
    let (code, said) = here.run(&[&args[..], &[&token[0], &token[1]]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);

    let texts = unpacked(&bundle);
    for (name, text) in &texts {
        assert!(said.contains(name.as_str()), "{name} is not named in {said}");
        for secret in [KEY, TOKEN] {
            assert!(!text.contains(secret), "{name} has {secret:?}: {text}");
        }
    }
    let text = |end: &str| {
        let found = texts.iter().find(|(name, _)| name == &format!("interceptor-doctor/{end}"));
        &found.unwrap_or_else(|| panic!("no {end} among {texts:?}")).1
    };
    let findings: Value = serde_json::from_str(text("findings.json")).unwrap();
    assert_eq!(findings["mount_possible"], true, "{findings:#}");
    assert!(text("version.txt").contains("features: "));
    assert!(text("configuration/mount.toml").contains("cache-size = \"64MiB\""));
    assert!(text("configuration/doctor.toml").contains(&format!("filer = \"{filer}\"")));
    assert!(text("configuration/security-keys.txt").contains("jwt.signing.read.key\n"));
    assert!(text("host/meminfo.txt").contains("MemTotal") && text("host/limits.txt").contains("open files"));
    let at = mount.path().to_str().unwrap();
    assert!(text("host/fuse-mounts.txt").contains(at) && text("host/kernel.txt").contains("Linux"));
    let of_mount = |(name, text): &&(String, String)| name.ends_with("mount.txt") && text.contains(at);
    let (name, _) = texts.iter().find(of_mount).unwrap();
    let number = name.trim_end_matches("/mount.txt").trim_start_matches("interceptor-doctor/");
    let status: Value = serde_json::from_str(text(&format!("{number}/status.json"))).unwrap();
    assert_eq!(status["mount_point"], at);
    assert!(text(&format!("{number}/metrics.txt")).contains("interceptor_reads_total"));

    // What is there stays, and is said so before anything is asked.
    let before = fs::read(&bundle).unwrap();
    let (code, said) = here.run(&args);
    assert!(code == Some(1) && said.contains("is there already"), "{said}");
    assert_eq!(fs::read(&bundle).unwrap(), before);

    // Without the token a mount tells nothing.
    let (code, said) = here.run(&["--bundle", "second.tar.gz"]);
    assert_eq!(code, Some(0), "{said}");
    let texts = unpacked(&here.at("second.tar.gz"));
    let (_, told) = texts.iter().find(of_mount).unwrap();
    assert!(told.contains("--status-token-file"), "{told}");
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_bundle_is_written_though_nobody_reads_what_is_printed() {
    if !host::can_mount() {
        return;
    }
    let here = WorkingDirectory::with("");
    let mut command = Command::new(interceptor_program().unwrap());
    command.args(["doctor", "--bundle", "report.tar.gz"]).current_dir(here.directory.path());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(command.stdout(full).status().unwrap().code(), Some(1));
    assert!(fs::exists(here.at("report.tar.gz")).unwrap());
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_interrupted_bundle_leaves_nothing() {
    if !host::can_mount() {
        return;
    }
    // Accepts connections, and never says anything.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let here = WorkingDirectory::with("");
    let filer = format!("{address}.{}", address.port());
    let mut process = here.start(&["--filer", &filer, "--bundle", "report.tar.gz"]);
    silent.accept().unwrap();
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait(Duration::from_secs(2)).unwrap().code(), None, "the signal ends it");
    let mut left: Vec<_> =
        fs::read_dir(here.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["log", "security.toml"]);
}
