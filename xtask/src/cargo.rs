//! Building with Cargo, and what was built.
//!
//! Everything is built in the release profile and for the whole workspace at once, so that each
//! dependency is compiled with one set of features, and therefore once.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use crate::{process, programs};

/// A program that Cargo built.
#[derive(Debug, Clone)]
pub(crate) struct BuiltProgram {
    /// The crate it belongs to.
    pub(crate) package: String,
    /// The directory of that crate, where its tests expect to be run.
    pub(crate) directory: PathBuf,
    /// Name of the target: the library, program or suite.
    pub(crate) target: String,
    /// `lib`, `bin`, `test`, …
    pub(crate) kind: String,
    pub(crate) program: PathBuf,
    /// Whether it runs the tests of its target, rather than being what the target is for.
    pub(crate) is_test: bool,
}

/// Builds the eBPF programs and then the programs that operators run; returns `interceptor`.
pub(crate) fn build_interceptor() -> Result<PathBuf> {
    programs::build()?;
    let built = build(&["build", "--workspace", "--exclude", "xtask", "--bins"])?;
    let found = built.into_iter().find(|built| built.kind == "bin" && built.target == "interceptor");
    Ok(found.context("cargo built no program called interceptor")?.program)
}

/// Builds an example of the crate `interceptor`; returns the program.
pub(crate) fn build_example(name: &str) -> Result<PathBuf> {
    let built = build(&["build", "--workspace", "--exclude", "xtask", "--example", name])?;
    let found = built.into_iter().find(|built| built.kind == "example" && built.target == name);
    Ok(found.with_context(|| format!("cargo built no example called {name}"))?.program)
}

/// Builds the test programs of the whole workspace.
pub(crate) fn build_tests() -> Result<Vec<BuiltProgram>> {
    build(&["test", "--workspace", "--no-run"])
}

/// Builds the test programs and the examples of one package, for verbs that need nothing else.
pub(crate) fn build_tests_of(package: &str) -> Result<Vec<BuiltProgram>> {
    build(&["test", "--package", package, "--no-run"])
}

/// A Cargo command in the source tree, by the same Cargo that runs us.
pub(crate) fn cargo() -> Command {
    prepared(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())))
}

/// What git prints of the source tree; `None` without git, or where the sources are no clone.
pub(crate) fn git(arguments: &[&str]) -> Option<String> {
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new("git").arg("-C").arg(tree).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_owned())
}

/// The commit for `--version`, with a mark if files were changed since.
fn source_commit() -> String {
    let named = std::env::var("SOURCE_COMMIT").ok();
    let described = || git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]);
    named.or_else(described).unwrap_or_default()
}

/// Has a command that is Cargo, or runs Cargo, begin in the source tree and with the variables that
/// Cargo has when it is typed.
pub(crate) fn prepared(mut command: Command) -> Command {
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // The programs alone have it, so that a new commit has nothing else compiled.
    command.env("SOURCE_COMMIT", source_commit());
    // Cargo sets these variables for the package it runs, xtask. Build scripts that inherited them
    // would run again, with all that depends on them, after each build without xtask.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| PACKAGE_VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        {
            command.env_remove(name);
        }
    }
    command
}

/// How the variables begin that Cargo sets for the package it runs.
const PACKAGE_VARIABLE_PREFIXES: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_NAME"];

#[derive(Deserialize)]
struct CargoMessage {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<MessageTarget>,
    executable: Option<PathBuf>,
    profile: Option<MessageProfile>,
}

#[derive(Deserialize)]
struct MessageProfile {
    test: bool,
}

#[derive(Deserialize)]
struct MessageTarget {
    name: String,
    kind: Vec<String>,
}

/// Runs Cargo with its own progress on our terminal, and collects what it reports of programs.
fn build(arguments: &[&str]) -> Result<Vec<BuiltProgram>> {
    let mut command = cargo();
    command
        .args(arguments)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let reports = thread::spawn(|| {
        let lines = BufReader::new(output).lines().map_while(Result::ok);
        // Other lines are output of build programs that Cargo passes on.
        lines.filter_map(|line| serde_json::from_str::<CargoMessage>(&line).ok()?.into_built()).collect()
    });
    let status = process::wait(&mut child)?;
    ensure!(status.success(), "`cargo {}` failed", arguments[0]);
    reports.join().map_err(|_| anyhow!("the thread that listens to cargo panicked"))
}

impl CargoMessage {
    fn into_built(self) -> Option<BuiltProgram> {
        let target = self.target?;
        let directory = self.manifest_path?.parent()?.to_owned();
        (self.reason == "compiler-artifact").then_some(())?;
        Some(BuiltProgram {
            package: directory.file_name()?.to_str()?.to_owned(),
            directory,
            target: target.name,
            kind: target.kind.into_iter().next()?,
            program: self.executable?,
            is_test: self.profile.is_some_and(|profile| profile.test),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_other_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/a#0.1.0","manifest_path":"/w/a/Cargo.toml",
            "target":{"kind":["test"],"crate_types":["bin"],"name":"suite","src_path":"/w/a/tests/suite.rs"},
            "profile":{"test":true},"features":[],"filenames":["/t/suite-1"],"executable":"/t/suite-1","fresh":true}"#;
        let built = serde_json::from_str::<CargoMessage>(line).unwrap().into_built().unwrap();
        assert_eq!(
            (built.package.as_str(), built.target.as_str(), built.kind.as_str()),
            ("a", "suite", "test")
        );
        assert_eq!((built.program, built.is_test), (PathBuf::from("/t/suite-1"), true));
        let library = line.replace("\"/t/suite-1\",\"fresh\"", "null,\"fresh\"");
        assert!(serde_json::from_str::<CargoMessage>(&library).unwrap().into_built().is_none());
        let end = r#"{"reason":"build-finished","success":true}"#;
        assert!(serde_json::from_str::<CargoMessage>(end).unwrap().into_built().is_none());
    }
}
