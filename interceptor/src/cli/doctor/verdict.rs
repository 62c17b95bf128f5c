//! What findings amount to, in one line.

use super::test_read::READING;
use crate::cli::host::{Finding, FindingState};

/// The verdict.
pub(super) fn verdict(findings: &[Finding]) -> String {
    let of = |state| findings.iter().filter(move |finding| finding.state == state);
    let is_read = |finding: &&Finding| finding.ability == READING;
    let obstacles: Vec<_> = of(FindingState::Missing).filter(|finding| !is_read(finding)).collect();
    if !obstacles.is_empty() {
        return format!("A mount is not possible: {}", reasons(&obstacles));
    }
    if let Some(unreadable) = of(FindingState::Missing).next() {
        return format!("A mount would work, but no file could be read: {}", unreadable.found);
    }
    let lost: Vec<_> = of(FindingState::Lost).collect();
    match lost[..] {
        [] => "Everything is there".to_owned(),
        [one] => format!("A mount would work; {} is missing: {}", one.ability, one.found),
        _ => format!("A mount would work; missing: {}", names(&lost)),
    }
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
        use FindingState::{Lost, Missing, Ok};
        assert_eq!(found(&[("FUSE", Ok), (READING, Ok)]), "Everything is there");
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
