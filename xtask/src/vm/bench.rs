//! `cargo xtask vm bench`: our reads beside perftest's, in one boot.
//!
//! A guest is slow and its speed changes from boot to boot, so only ratios mean something, and
//! only between programs that ran in turn in the same guest. A script there runs in turn
//! `ib_read_bw` or `ib_read_lat`, our own program for single reads (`one_sided`, an example of
//! rdma-engine), and `rdma-engine bench` against an engine. It prints a line for each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::equipment::Kernel;
use super::{GuestRun, GuestSetup};
use crate::cargo::{self, BuiltProgram};
use crate::{interrupt, setup};

/// Runs in the guest, with our programs and the number of repetitions; prints lines `ROW PROGRAM
/// VALUE`.
const SCRIPT: &str = include_str!("bench.sh");

/// What is wanted of ours, as a multiple of perftest's.
#[derive(Clone, Copy)]
enum RatioTarget {
    AtLeast(f64),
    AtMost(f64),
    Nothing,
}

/// The rows: name as the script has it, title, unit, target. Single reads have no target for
/// latency: the latency that counts is that of a whole needle.
const ROWS: [(&str, &str, &str, RatioTarget); 8] = [
    ("1m", "read 1 MiB, depth 16", "MiB/s", RatioTarget::AtLeast(0.9)),
    ("64k", "read 64 KiB, depth 16", "MiB/s", RatioTarget::AtLeast(0.85)),
    ("latency", "read 4 KiB, one by one", "us", RatioTarget::Nothing),
    ("events", "the same, perftest -e", "us", RatioTarget::Nothing),
    ("engine-1m", "engine, 1 MiB, depth 16", "MiB/s", RatioTarget::AtLeast(0.9)),
    ("engine-64k", "engine, 64 KiB, depth 16", "MiB/s", RatioTarget::AtLeast(0.85)),
    ("engine-4k", "engine, 4 KiB, one by one", "us", RatioTarget::AtMost(2.5)),
    ("trip-4k", "the same, two messages", "us", RatioTarget::Nothing),
];

/// The verb.
pub(super) fn command(kernel: Kernel, reps: usize) -> Result<()> {
    setup::ensure()?;
    let built = cargo::build_tests_of("rdma-engine")?;
    let program = |target: &str, kind: &str| {
        let is_it = |built: &&BuiltProgram| {
            !built.is_test && (built.target.as_str(), built.kind.as_str()) == (target, kind)
        };
        let found =
            built.iter().find(is_it).with_context(|| format!("cargo built no {kind} called {target}"))?;
        Ok::<_, anyhow::Error>(found.program.clone().into_os_string())
    };
    let programs = [program("one_sided", "example")?, program("rdma-engine", "bin")?];
    interrupt::check()?;
    let words = ["sh", "-c", SCRIPT].map(OsString::from);
    let command: Vec<OsString> =
        words.into_iter().chain(programs).chain([reps.max(1).to_string().into()]).collect();
    let mut text = Vec::new();
    let run = GuestRun { kernel, setup: GuestSetup::default(), deadline: Duration::from_secs(900) };
    let status = run.start(&command, |_, stdout, stderr| {
        text.extend_from_slice(stdout);
        eprint!("{}", String::from_utf8_lossy(stdout));
        eprint!("{}", String::from_utf8_lossy(stderr));
        Ok(())
    })?;
    ensure!(status == 0, "the measurements ended with {status}");
    let values = parse(&String::from_utf8_lossy(&text));

    println!("{:<26}{:>12}{:>12}{:>8}  kernel {kernel}, medians of {reps}", "", "perftest", "ours", "ratio");
    let mut missed = Vec::new();
    for (row, title, unit, target) in ROWS {
        let value =
            |program: &str| values.get(&(row.to_owned(), program.to_owned())).and_then(|list| median(list));
        let (theirs, ours) =
            value("perftest").zip(value("ours")).with_context(|| format!("{title}: no values"))?;
        let ratio = ours / theirs;
        let (wanted, reached) = match target {
            RatioTarget::AtLeast(least) => (format!(", at least {least} wanted"), ratio >= least),
            RatioTarget::AtMost(most) => (format!(", at most {most} wanted"), ratio <= most),
            RatioTarget::Nothing => (String::new(), true),
        };
        println!("{title:<26}{theirs:>12.2}{ours:>12.2}{ratio:>8.2}  {unit}{wanted}");
        if !reached {
            missed.push(title);
        }
    }
    ensure!(missed.is_empty(), "not reached: {}", missed.join("; "));
    Ok(())
}

/// Values by row and program.
fn parse(text: &str) -> BTreeMap<(String, String), Vec<f64>> {
    let mut values: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [row, program, value] = words[..]
            && let Ok(value) = value.parse()
        {
            values.entry((row.to_owned(), program.to_owned())).or_default().push(value);
        }
    }
    values
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_among_other_lines() {
        let values = parse("noise\n1m perftest 50.5\n1m ours 49\n1m ours broken\n1m ours 51\n1m ours 47\n");
        let ours = &values[&("1m".to_owned(), "ours".to_owned())];
        assert_eq!(median(ours), Some(49.0));
        assert_eq!(median(&values[&("1m".to_owned(), "perftest".to_owned())]), Some(50.5));
        assert_eq!(median(&[]), None);
    }
}
