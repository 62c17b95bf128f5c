//! `cargo xtask rooms`: no files import from each other in a circle, and each room uses only those
//! below it.
//!
//! A room is a module at the top of the crate `interceptor`; [`ROOMS`] is the one place that says
//! which stands above which. The tests of this module run the same checks in `cargo xtask test`.

mod imports;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use self::imports::{Import, imports_of};

/// The crate whose modules are rooms.
const LAYERED: &str = "interceptor/src/lib.rs";

/// The rooms, the uppermost first. Rooms of one line do not use each other.
const ROOMS: [&[&str]; 15] = [
    &["cli"],
    &["mount", "overlay"],
    &["fuse"],
    &["warmup"],
    &["namespace"],
    &["read"],
    &["cache"],
    &["disk"],
    &["fetch"],
    &["seaweed"],
    &["ebpf"],
    &["prefetch"],
    &["telemetry"],
    &["priority", "write_target"],
    &["arrival", "ledger", "timeline", "vital"],
];

/// The root module of each library and program.
const CRATE_ROOTS: [&str; 7] = [
    "interceptor-ebpf/src/lib.rs",
    "interceptor-ebpf/src/main.rs",
    LAYERED,
    "rdma-engine/daemon/src/lib.rs",
    "rdma-engine/src/lib.rs",
    "tests/src/lib.rs",
    "xtask/src/main.rs",
];

/// The verb: prints each cycle and each upward use with the imports that make it.
pub(crate) fn command() -> Result<()> {
    let (cycles, upward_uses) = (cycles()?, upward_uses()?);
    for imports in cycles.values() {
        println!("cycle of imports:");
        imports.iter().for_each(print_import);
    }
    for ((user, used), imports) in &upward_uses {
        println!("{user} uses {used}, which is not below it:");
        imports.iter().for_each(print_import);
    }
    let (cycles, upward_uses) = (cycles.len(), upward_uses.len());
    ensure!(cycles + upward_uses == 0, "{cycles} cycles and {upward_uses} upward uses to undo");
    println!("no cycles of imports, and no room that uses one above it");
    Ok(())
}

fn print_import(import: &Import) {
    println!("  {} uses {}", import.from.file, import.to.file);
}

/// The cycles of all crates: their files, and the imports between these.
fn cycles() -> Result<BTreeMap<Vec<String>, Vec<Import>>> {
    let mut cycles = BTreeMap::new();
    for root in CRATE_ROOTS {
        let imports = imports_of(source_tree(), root)?;
        for files in circles(&imports) {
            let inside = |import: &&Import| {
                files.contains(&import.from.file.as_str()) && files.contains(&import.to.file.as_str())
            };
            let imports = imports.iter().filter(inside).cloned().collect();
            cycles.insert(files.iter().map(|&file| file.to_owned()).collect(), imports);
        }
    }
    Ok(cycles)
}

/// The largest sets of more than one file that all import each other, directly or through others.
fn circles(imports: &BTreeSet<Import>) -> BTreeSet<Vec<&str>> {
    let mut used_by: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Import { from, to } in imports {
        used_by.entry(&from.file).or_default().push(&to.file);
    }
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for &start in used_by.keys() {
        let files = reached.entry(start).or_default();
        let mut left = vec![start];
        while let Some(file) = left.pop() {
            left.extend(used_by.get(file).into_iter().flatten().filter(|file| files.insert(**file)));
        }
    }
    let circle_of = |start: &str| -> Vec<&str> {
        let leads_back = |file: &&&str| reached.get(**file).is_some_and(|files| files.contains(start));
        reached[start].iter().filter(leads_back).copied().collect()
    };
    reached.keys().map(|start| circle_of(start)).filter(|files| files.len() > 1).collect()
}

type UpwardUses = BTreeMap<(String, String), Vec<Import>>;

/// The rooms that use one that is not below them, and the imports that do.
fn upward_uses() -> Result<UpwardUses> {
    let mut found = UpwardUses::new();
    let level = |room: &str| {
        let level = ROOMS.iter().position(|rooms| rooms.contains(&room));
        level.with_context(|| format!("the module {room} is in no line of ROOMS"))
    };
    for import in imports_of(source_tree(), LAYERED)? {
        let (user, used) = (&import.from.module[0], &import.to.module[0]);
        if user != used && level(user)? >= level(used)? {
            found.entry((user.clone(), used.clone())).or_default().push(import);
        }
    }
    Ok(found)
}

fn source_tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_files_import_from_each_other() {
        let cycles: Vec<_> = cycles().unwrap().into_keys().collect();
        assert!(cycles.is_empty(), "{cycles:?}; see `cargo xtask rooms`");
    }

    #[test]
    fn each_room_uses_only_those_below_it() {
        let uses: Vec<_> = upward_uses().unwrap().into_keys().collect();
        assert!(uses.is_empty(), "{uses:?}; see `cargo xtask rooms`");
    }

    fn import(from: &str, to: &str) -> Import {
        let module = |name: &str| imports::FileModule { module: vec![name.into()], file: name.into() };
        Import { from: module(from), to: module(to) }
    }

    #[test]
    fn a_circle_has_all_files_that_lead_back_to_each_other_and_no_more() {
        let pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "e"), ("f", "g"), ("g", "f")];
        let imports = pairs.into_iter().map(|(from, to)| import(from, to)).collect();
        assert_eq!(circles(&imports), BTreeSet::from([vec!["a", "b", "c"], vec!["f", "g"]]));
    }
}
