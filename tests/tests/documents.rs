//! What packages have beside the programs: manual pages, completions, and units of systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::mount::interceptor_program;
use tests::{engine, host};

/// The manual pages and completions of both programs.
fn documents() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for program in [interceptor_program().unwrap(), engine::program().unwrap()] {
        let written = Command::new(&program).arg("documents").arg(directory.path()).status().unwrap();
        assert!(written.success(), "{}", program.display());
    }
    directory
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names(directory: &Path) -> Vec<String> {
    files(directory).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging")
}

/// Runs a command that must succeed and say nothing on standard error. Returns what it prints.
#[track_caller]
fn quiet(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{command:?}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_has_a_page_that_man_shows_without_a_warning() {
    let documents = documents();
    let pages = documents.path().join("man");
    let names = names(&pages);
    for page in ["interceptor.1", "interceptor-mount.1", "interceptor-unmount.1", "rdma-engine-serve.1"] {
        assert!(names.iter().any(|name| name == page), "{page} is not in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("documents")), "{names:?}");
    if !host::has_program("man", &["--version"]) {
        return;
    }
    for page in files(&pages).into_iter().chain(files(&packaging().join("man"))) {
        let mut man = Command::new("man");
        man.args(["--warnings", "--local-file"]).arg(&page).env("MANWIDTH", "100").env("LC_ALL", "C.UTF-8");
        let text = quiet(&mut man);
        assert!(text.contains("NAME") && text.contains("DESCRIPTION"), "{}: {text}", page.display());
    }
}

#[test]
fn completions_are_understood_by_their_shells() {
    let documents = documents();
    for shell in ["bash", "zsh", "fish"] {
        if !host::has_program(shell, &["--version"]) {
            continue;
        }
        for script in files(&documents.path().join(shell)) {
            quiet(Command::new(shell).arg("-n").arg(script));
        }
    }
}

#[test]
fn bash_completes_options_and_mount_points() {
    if !host::has_program("bash", &["--version"]) || !host::has_program("findmnt", &["--version"]) {
        return;
    }
    let documents = documents();
    let complete = |words: &str| {
        let script = format!(
            "source {}/bash/interceptor; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _interceptor_mount_points interceptor \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            documents.path().display()
        );
        quiet(Command::new("bash").args(["-c", &script]))
    };
    assert!(complete("interceptor unm").contains("unmount"));
    let options = complete("interceptor mount --cache");
    assert!(options.contains("--cache-size"), "{options}");
    let points = complete("interceptor attach /pr");
    assert!(points.lines().any(|line| line == "/proc"), "{points}");
    assert_eq!(complete("interceptor unmount /pr").trim(), "", "no mount of interceptor");
}

#[test]
fn units_are_what_systemd_takes() {
    if !host::has_program("systemd-analyze", &["--version"]) {
        return;
    }
    // Where they are installed, the programs are elsewhere.
    let directory = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for unit in files(&packaging().join("systemd")) {
        let text = fs::read_to_string(&unit).unwrap();
        let text = text.replace("/usr/bin/interceptor", interceptor_program().unwrap().to_str().unwrap());
        let text = text.replace("/usr/bin/rdma-engine", engine::program().unwrap().to_str().unwrap());
        let name = unit.file_name().unwrap().to_str().unwrap().replace('@', "@mnt-data");
        units.push(directory.path().join(name));
        fs::write(units.last().unwrap(), text).unwrap();
    }
    assert_eq!(units.len(), 3);
    let mut verify = Command::new("systemd-analyze");
    let output = verify.args(["verify", "--man=no"]).args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("mnt-data") && !said.contains("rdma-engine"), "{said}");
}

#[test]
fn the_version_names_commit_and_features() {
    for program in [interceptor_program().unwrap(), engine::program().unwrap()] {
        let text = quiet(Command::new(&program).arg("--version"));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("commit: ") && lines[2].starts_with("features: "), "{text}");
        assert!(lines[2].contains("verbs"), "{text}");
        assert_eq!(quiet(Command::new(&program).arg("-V")).trim_end(), lines[0]);
    }
}
