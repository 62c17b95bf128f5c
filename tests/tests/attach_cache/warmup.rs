//! Warm-up of files of the mount below, and the rights that it takes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use interceptor::warmup::ticket::READ_TICKET_XATTR;
use tests::eventually;
use tests::mount::interceptor_program;
use tests::user::{as_nobody, xattr};

use crate::{LowerMount, SETTLE_TIMEOUT, content};

/// What `interceptor warmup` with these words says, as JSON.
fn warmup(words: &[&str], path: &Path) -> serde_json::Value {
    let output = Command::new(interceptor_program().unwrap())
        .arg("warmup")
        .args(words)
        .arg("--json")
        .arg(path)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_tree_is_brought_to_memory_before_it_is_read() {
    let sizes = [1, 4096, 100_000, 5_000_000, 9_000_001];
    for below in LowerMount::all() {
        let tree = below.beside().join("tree");
        fs::create_dir_all(tree.join("inner")).unwrap();
        for size in sizes {
            fs::write(tree.join("inner").join(size.to_string()), content(size as u64, size)).unwrap();
        }
        fs::write(tree.join("empty"), "").unwrap();
        let stage = below.attach();
        let tree = stage.file("tree");
        let total = sizes.iter().sum::<usize>() as u64;
        // What has changed lately is left alone at first.
        let all = || (warmup(&[], &tree)["cached_bytes"] == total).then_some(());
        eventually("all of the tree", SETTLE_TIMEOUT, all).unwrap();
        let (lower, fetched) = (stage.read("lower"), stage.fetched());
        for size in sizes {
            let path = tree.join("inner").join(size.to_string());
            assert!(fs::read(path).unwrap() == content(size as u64, size), "{size}");
        }
        assert_eq!((stage.read("lower"), stage.fetched()), (lower, fetched));

        assert_eq!(warmup(&["--evict"], &tree)["cached_bytes"], 0);
        assert_eq!(warmup(&["--check"], &tree)["cached_bytes"], 0, "to ask brings nothing");
        // By now it is settled.
        fs::write(stage.beside("tree/inner/4096"), content(7, 4096)).unwrap();
        let told = warmup(&[], &tree);
        assert_eq!(
            (&told["cached_bytes"], &told["bytes"]),
            (&(total - 4096).into(), &total.into()),
            "{told}"
        );
        assert_eq!((&told["cached_files"], &told["problems"]), (&5.into(), &1.into()), "{told}");
        assert!(fs::read(tree.join("inner/4096")).unwrap() == content(7, 4096));
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_ticket_for_warming_a_file_takes_the_right_to_read_it() {
    for below in LowerMount::all() {
        let beside = below.beside();
        for (name, mode) in [("open", 0o644), ("closed", 0o600)] {
            fs::write(beside.join(name), name).unwrap();
            fs::set_permissions(beside.join(name), Permissions::from_mode(mode)).unwrap();
        }
        let has_modes = fs::metadata(beside.join("closed")).unwrap().mode() & 0o777 == 0o600;
        let stage = below.attach();
        let everybody = Permissions::from_mode(0o755);
        fs::set_permissions(stage.file("").parent().unwrap(), everybody).unwrap();
        let ticket = |name: &str| xattr(&stage.file(name), READ_TICKET_XATTR);
        assert!(as_nobody(|| ticket("open")).is_ok());
        if has_modes {
            assert_eq!(as_nobody(|| ticket("closed")), Err(libc::EACCES));
        }
        assert!(ticket("closed").is_ok());
        assert_eq!(ticket(""), Err(libc::ENODATA), "a directory is not read");
        assert_eq!(stage.layer.detach().unwrap().code(), Some(0));
    }
}
