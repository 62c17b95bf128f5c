//! What findings amount to, in one line.

use super::test_read::READING;
use crate::cli::host::{Finding, FindingState};

/// The verdict.
pub(super) fn verdict(findings: &[Finding]) -> String {
    let of = |state| findings.iter().filter(move |finding| finding.state == state);
    let obstacles = obstacles(findings);
    if !obstacles.is_empty() {
        return format!("A mount is not possible: {}", reasons(&obstacles));
    }
    if let Some(unreadable) = of(FindingState::Missing).next() {
        return format!("A mount would work, but no file could be read: {}", unreadable.found);
    }
    let lost: Vec<_> = of(FindingState::Lost).collect();
    match lost[..] {
        [] => match of(FindingState::Untested).next() {
            Some(one) => format!("Nothing is missing; {} is untested: {}", one.ability, one.found),
            None => "Everything is there".to_owned(),
        },
        [one] => format!("A mount would work; {} is missing: {}", one.ability, one.found),
        _ => format!("A mount would work; missing: {}", names(&lost)),
    }
}

/// The findings for which there is no mount.
pub(super) fn obstacles(findings: &[Finding]) -> Vec<&Finding> {
    let is_one = |finding: &&Finding| finding.state == FindingState::Missing && finding.ability != READING;
    findings.iter().filter(is_one).collect()
}

fn reasons(findings: &[&Finding]) -> String {
    let reasons = findings.iter().map(|finding| format!("{}: {}", finding.ability, finding.found));
    reasons.collect::<Vec<_>>().join("; ")
}

/// The names of the abilities, each once. The lines above the verdict have the reasons.
fn names(findings: &[&Finding]) -> String {
    let mut names: Vec<_> = findings.iter().map(|finding| finding.ability).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(findings: &[(&'static str, FindingState)]) -> String {
        let finding = |(ability, state): &(&'static str, FindingState)| Finding {
            ability,
            state: *state,
            found: format!("found of {ability}"),
            lost: "a",
            remedy: "b",
        };
        verdict(&findings.iter().map(finding).collect::<Vec<_>>())
    }

    #[test]
    fn the_verdict_is_that_of_the_worst_finding() {
        use FindingState::{Lost, Missing, Ok, Untested};
        assert_eq!(found(&[("FUSE", Ok), (READING, Ok)]), "Everything is there");
        assert_eq!(
            found(&[("FUSE", Ok), (READING, Untested)]),
            "Nothing is missing; reading over http is untested: found of reading over http"
        );
        assert_eq!(
            found(&[("FUSE", Ok), ("RDMA", Lost)]),
            "A mount would work; RDMA is missing: found of RDMA"
        );
        assert_eq!(
            found(&[("engine", Lost), ("RDMA", Lost), ("engine", Lost)]),
            "A mount would work; missing: engine, RDMA"
        );
        assert_eq!(
            found(&[("RDMA", Lost), (READING, Missing)]),
            "A mount would work, but no file could be read: found of reading over http"
        );
        assert_eq!(
            found(&[("FUSE", Missing), (READING, Missing), ("filer", Missing)]),
            "A mount is not possible: FUSE: found of FUSE; filer: found of filer"
        );
    }
}
