//! Counting results in the output of test programs.
//!
//! Tests that were ignored when they were built run as well. The harness reports a test that
//! lacked something on the host as passed. Such a test prints a line `skipped: NAME: reason`, and
//! is counted as skipped here. A program that ends without its closing line counts as one failure.

/// Results of one test program, or of several.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
    /// Tests that passed, by name, to tell which of them were skipped.
    names: Vec<String>,
    /// `NAME: reason`.
    skipped: Vec<String>,
    /// What failed, for the end.
    failures: Vec<String>,
    /// The harness said how it ended.
    closed: bool,
    section: OutputSection,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum OutputSection {
    #[default]
    Results,
    /// The output of tests that passed: only scanned for skips.
    Successes,
}

impl Tally {
    /// Takes one line of output; says whether a reader wants to see it.
    pub(super) fn line(&mut self, line: &str) -> bool {
        if let Some(skip) = line.trim().strip_prefix("skipped: ") {
            let new = !self.skipped.iter().any(|known| known == skip);
            if new {
                self.skipped.push(skip.to_owned());
            }
            return new;
        }
        match line {
            "successes:" => self.section = OutputSection::Successes,
            "failures:" => self.section = OutputSection::Results,
            _ => {}
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            self.section = OutputSection::Results;
            self.closed = true;
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.ignored += count(result, "ignored");
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            match outcome {
                "ok" => self.names.push(name.to_owned()),
                "FAILED" => self.failures.push(name.to_owned()),
                _ => {}
            }
        }
        self.section != OutputSection::Successes && !line.is_empty()
    }

    /// Adds the results of a program called `program`, which exited with 0 or not.
    pub(super) fn add(&mut self, program: &str, mut other: Tally, exited_well: bool) {
        // A skip may also be one case of a test; only a whole test that was skipped did not pass.
        let whole = other.skipped.iter().filter(|skip| {
            let name = skip.split(": ").next().unwrap_or(skip);
            other.names.iter().any(|passed| passed == name || passed.ends_with(&format!("::{name}")))
        });
        self.passed += other.passed.saturating_sub(whole.count());
        self.ignored += other.ignored;
        self.skipped.append(&mut other.skipped);
        if other.failed == 0 && (!exited_well || !other.closed) {
            other.failed = 1;
            other.failures.push("the program ended before its tests did".to_owned());
        }
        self.failed += other.failed;
        self.failures.extend(other.failures.iter().map(|name| format!("{program}: {name}")));
    }

    /// What was skipped and what failed, a line each.
    pub(super) fn report(&self) -> String {
        let skipped = self.skipped.iter().map(|skip| format!("skipped: {skip}\n"));
        let failed = self.failures.iter().map(|failure| format!("FAILED: {failure}\n"));
        std::iter::once("\n".to_owned()).chain(skipped).chain(failed).collect()
    }

    /// `N passed, N failed, N skipped`.
    pub(super) fn closing_line(&self) -> String {
        let skipped = self.skipped.len() + self.ignored;
        format!("{} passed, {} failed, {skipped} skipped", self.passed, self.failed)
    }

    /// Whether nothing failed.
    pub(super) fn succeeded(&self) -> bool {
        self.failed == 0
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; 1 ignored; …`.
fn count(result: &str, word: &str) -> usize {
    let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> (Tally, Vec<&str>) {
        let mut tally = Tally::default();
        let shown = output.lines().filter(|line| tally.line(line)).collect();
        (tally, shown)
    }

    const PASSING: &str = "\nrunning 3 tests
test a::reads ... ok
test a::mounts ... ok
test a::long ... ignored, slow

successes:

---- a::mounts stdout ----
skipped: mounts: no /dev/fuse
chatter of a test that passed

successes:
    a::mounts

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s
";

    #[test]
    fn a_test_that_skips_itself_has_not_passed() {
        let mut total = Tally::default();
        let (one, shown) = tally(PASSING);
        total.add("x", one, true);
        assert_eq!(total.closing_line(), "1 passed, 0 failed, 2 skipped");
        assert!(total.succeeded());
        assert!(total.report().contains("skipped: mounts: no /dev/fuse"));
        assert!(!shown.contains(&"chatter of a test that passed"));
        assert!(shown.contains(&"test a::reads ... ok"));
    }

    #[test]
    fn a_skipped_case_leaves_its_test_passed() {
        let mut total = Tally::default();
        total.add("x", tally(&PASSING.replace("skipped: mounts", "skipped: mounts over TLS")).0, true);
        assert_eq!(total.closing_line(), "2 passed, 0 failed, 2 skipped");
    }

    #[test]
    fn failures_are_shown_and_counted() {
        let (one, shown) = tally(
            "test b ... FAILED\n\nfailures:\n\n---- b stdout ----\nwhat went wrong\n\n\
             test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        );
        assert!(shown.contains(&"what went wrong"));
        let mut total = Tally::default();
        total.add("suite", one, false);
        assert_eq!(total.closing_line(), "7 passed, 1 failed, 0 skipped");
        assert!(total.report().contains("FAILED: suite: b"));
        assert!(!total.succeeded());
    }

    #[test]
    fn a_program_that_crashes_has_failed() {
        for (output, exited_well) in [("test a ... ok\nabort", false), ("test a ... ok", true), ("", false)] {
            let mut total = Tally::default();
            total.add("x", tally(output).0, exited_well);
            assert_eq!(total.closing_line(), "0 passed, 1 failed, 0 skipped");
        }
    }
}
