//! What came of a run, per argument and in all.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use daemon::size::ByteSize;
use serde::Serialize;

use super::walk::WalkTotals;
use crate::cli::untrusted::plain;
use crate::warmup::wire::{FileProblem, FileResult, WarmupAction};

/// Problems that are printed one by one; further ones are only counted.
const MAX_TOLD_PROBLEMS: usize = 20;

/// See the module's documentation.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    action: WarmupAction,
    #[serde(skip)]
    force: bool,
    /// Files that were seen to.
    #[serde(flatten)]
    total: CacheTally,
    /// Bytes that were fetched, or given up.
    moved_bytes: u64,
    /// Files and directories that could not be used.
    problems: usize,
    /// Files that were deleted or replaced meanwhile.
    vanished: usize,
    /// Whether the cache had no room.
    full: bool,
    arguments: Vec<ArgumentTally>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct CacheTally {
    files: u64,
    /// Of these, files that are in the cache to the last byte.
    cached_files: u64,
    bytes: u64,
    cached_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ArgumentTally {
    path: String,
    #[serde(flatten)]
    tally: CacheTally,
    /// What of it could not be used.
    problems: usize,
}

impl CacheTally {
    fn add(&mut self, result: &FileResult) {
        self.files += 1;
        self.cached_files += u64::from(result.cached >= result.size);
        self.bytes += result.size;
        self.cached_bytes += result.cached;
    }

    /// Of nothing there is no share.
    fn line(&self, name: &str, problems: usize) -> String {
        // A file without content is always there.
        let share = if self.bytes == 0 { 1.0 } else { self.cached_bytes as f64 / self.bytes as f64 };
        let (cached, all) = (ByteSize(self.cached_bytes).to_string(), ByteSize(self.bytes).to_string());
        let files = format!("{} of {}", self.cached_files, self.files);
        // Rounded down, so that 100 % is all.
        let percent = match self.files {
            0 => "-".to_owned(),
            _ => format!("{:.1} %", (share * 1000.0).floor() / 10.0),
        };
        let unknown = match problems {
            0 => String::new(),
            _ => format!("  ({problems} could not be looked at)"),
        };
        format!("{percent:>7}  {cached:>10} of {all:>10}  {files:>16} files  {name}{unknown}\n")
    }
}

impl Summary {
    /// Nothing has been done for these arguments.
    pub(super) fn new(action: WarmupAction, force: bool, arguments: &[PathBuf]) -> Self {
        let named = |path: &PathBuf| ArgumentTally {
            path: plain(&path.display().to_string()),
            tally: CacheTally::default(),
            problems: 0,
        };
        Self {
            action,
            force,
            total: CacheTally::default(),
            moved_bytes: 0,
            problems: 0,
            vanished: 0,
            full: false,
            arguments: arguments.iter().map(named).collect(),
        }
    }

    /// A file was seen to.
    pub(super) fn file(&mut self, argument: usize, result: &FileResult) {
        self.total.add(result);
        if let Some(argument) = self.arguments.get_mut(argument) {
            argument.tally.add(result);
        }
        self.full |= result.problem == Some(FileProblem::Full);
    }

    /// Files of a job that did not end.
    pub(super) fn unfinished(&mut self, files: u64, bytes: u64, moved: u64) {
        self.total.files += files;
        self.total.cached_files += files;
        self.total.bytes += bytes;
        self.total.cached_bytes += bytes;
        self.moved_bytes += moved;
    }

    /// So many bytes were fetched or given up.
    pub(super) fn moved(&mut self, bytes: u64) {
        self.moved_bytes += bytes;
    }

    /// A file is not there any more.
    pub(super) fn vanished(&mut self) {
        self.vanished += 1;
    }

    /// Counts a file or directory that cannot be used. Returns the line to print, if it is one of
    /// the first.
    pub(super) fn problem(&mut self, argument: usize, path: &str, reason: &str) -> Option<String> {
        self.problems += 1;
        if let Some(argument) = self.arguments.get_mut(argument) {
            argument.problems += 1;
        }
        match self.problems {
            ..=MAX_TOLD_PROBLEMS => Some(format!("{path}: {reason}")),
            number if number == MAX_TOLD_PROBLEMS + 1 => Some("(further problems are only counted)".into()),
            _ => None,
        }
    }

    /// Files that were seen to, and how many bytes of them are done with.
    pub(super) fn seen(&self) -> (u64, u64) {
        let bytes = match self.action {
            WarmupAction::Fetch | WarmupAction::FetchToDisk => self.total.cached_bytes,
            WarmupAction::Check | WarmupAction::Evict => self.total.bytes,
        };
        (self.total.files, bytes)
    }

    /// Whether the cache had no room.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Whether everything is as it was asked for.
    pub(super) fn is_good(&self) -> bool {
        self.problems == 0 && !self.full
    }

    /// All of it as JSON.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The whole summary as text. `stopped`: by Ctrl-C. `found`: the files and bytes found so far.
    pub(super) fn text(&self, stopped: bool, found: &WalkTotals) -> String {
        let CacheTally { files, cached_files, bytes, cached_bytes } = self.total;
        let (bytes, cached, moved) = (ByteSize(bytes), ByteSize(cached_bytes), ByteSize(self.moved_bytes));
        let mut text = String::new();
        match self.action {
            WarmupAction::Check => {
                for argument in &self.arguments {
                    text += &argument.tally.line(&argument.path, argument.problems);
                }
                if self.arguments.len() != 1 {
                    text += &self.total.line("in total", self.problems);
                }
            }
            WarmupAction::Fetch if self.full => {
                let all =
                    (found.files.load(Ordering::Relaxed), ByteSize(found.bytes.load(Ordering::Relaxed)));
                let more = if found.complete.load(Ordering::Relaxed) { "" } else { " or more" };
                let _ = writeln!(
                    text,
                    "the cache has no room left: {cached_files} of {}{more} files and {cached} of {}{more} are in it \
                     ({moved} fetched)",
                    all.0, all.1
                );
                text += match self.force {
                    true => {
                        "what was asked for is more than the cache can hold (seven eighths of --cache-size)\n"
                    }
                    false => "--force makes room by pushing out what is used least\n",
                };
            }
            WarmupAction::Fetch => {
                let _ = writeln!(
                    text,
                    "{cached_files} of {files} files are in the cache: {cached} of {bytes} ({moved} fetched)"
                );
            }
            WarmupAction::FetchToDisk => {
                let _ = writeln!(text, "{cached_files} of {files} files are on disk: {cached} of {bytes}");
            }
            WarmupAction::Evict => {
                let _ = writeln!(text, "given up: {moved} of {files} files");
            }
        }
        if stopped {
            text += "stopped before the end\n";
        }
        if self.vanished > 0 {
            let _ = writeln!(text, "deleted or replaced meanwhile: {} files", self.vanished);
        }
        if self.problems > 0 {
            let _ = writeln!(text, "problems: {}", self.problems);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(size: u64, cached: u64, problem: Option<FileProblem>) -> FileResult {
        FileResult { size, cached, problem }
    }

    #[test]
    fn shares_are_per_argument_and_in_total() {
        let mut summary = Summary::new(WarmupAction::Check, false, &["/m/a".into(), "/m/b".into()]);
        summary.file(0, &result(1 << 20, 1 << 20, None));
        summary.file(1, &result(3 << 20, 0, None));
        let text = summary.text(false, &WalkTotals::default());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("100.0 %") && lines[0].ends_with("1 of 1 files  /m/a"), "{text}");
        assert!(lines[1].starts_with("  0.0 %") && lines[1].ends_with("0 of 1 files  /m/b"), "{text}");
        assert!(lines[2].starts_with(" 25.0 %") && lines[2].ends_with("1 of 2 files  in total"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&summary.json()).unwrap();
        assert_eq!(
            (&json["cached_bytes"], &json["arguments"][1]["bytes"]),
            (&(1 << 20).into(), &(3 << 20).into())
        );
    }

    #[test]
    fn what_could_not_be_looked_at_is_no_share() {
        let mut summary = Summary::new(WarmupAction::Check, false, &["/m/a".into(), "/m/b".into()]);
        summary.problem(0, "/m/a", "Permission denied").unwrap();
        summary.file(1, &result(1 << 20, 1 << 20, None));
        let text = summary.text(false, &WalkTotals::default());
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].trim_start().starts_with("- ") && lines[0].ends_with("/m/a  (1 could not be looked at)"),
            "{text}"
        );
        assert!(lines[1].starts_with("100.0 %") && lines[1].ends_with("/m/b"), "{text}");
        assert!(!summary.is_good());
    }

    #[test]
    fn nearly_all_is_not_all() {
        let mut summary = Summary::new(WarmupAction::Check, false, &["/m".into()]);
        summary.file(0, &result(1_000_000, 999_999, None));
        assert!(
            summary.text(false, &WalkTotals::default()).starts_with(" 99.9 %"),
            "{}",
            summary.text(false, &WalkTotals::default())
        );
    }

    #[test]
    fn a_full_cache_says_what_to_do() {
        for (force, advice) in [(false, "--force"), (true, "--cache-size")] {
            let mut summary = Summary::new(WarmupAction::Fetch, force, &["/m".into()]);
            summary.file(0, &result(10, 10, None));
            summary.file(0, &result(10, 3, Some(FileProblem::Full)));
            assert!(summary.is_full() && !summary.is_good());
            let found = WalkTotals { files: 9.into(), bytes: 90.into(), complete: false.into() };
            let text = summary.text(false, &found);
            assert!(
                text.contains("1 of 9 or more files and 13 B of 90 B or more") && text.contains(advice),
                "{text}"
            );
        }
    }

    #[test]
    fn many_problems_are_counted_and_not_all_told() {
        let mut summary = Summary::new(WarmupAction::Fetch, false, &[]);
        let told = (0..100).filter(|_| summary.problem(0, "/m/x", "is bad").is_some()).count();
        assert_eq!(told, MAX_TOLD_PROBLEMS + 1);
        assert!(!summary.is_good() && summary.text(false, &WalkTotals::default()).contains("problems: 100"));
    }
}
