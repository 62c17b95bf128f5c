//! Changes in the filer while it is mounted: a new open or stat shows them within a second, an
//! open file never does, and none is missed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, Shared, data, eventually, host, reading};

/// The one latency that the mount promises.
const MAX_STALENESS: Duration = Duration::from_secs(1);

static CLUSTER: Shared<Cluster> = Shared::new();

fn cluster() -> Arc<Cluster> {
    CLUSTER.get(|| Cluster::builder().max_mb(1).start().unwrap())
}

/// Does `change`, then polls `seen` until it is true. The time from the end of the change must
/// keep the promise.
fn within_a_second(what: &str, change: impl FnOnce(), mut seen: impl FnMut() -> bool) {
    change();
    let started = Instant::now();
    eventually(what, Duration::from_secs(20), || seen().then_some(())).unwrap();
    let took = started.elapsed();
    println!("{what}: {took:?}");
    assert!(took < MAX_STALENESS, "{what} was seen after {took:?}");
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn each_kind_of_change_is_seen_within_a_second() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    filer.mkdir("/seen").unwrap();
    filer.put("/seen/file", b"version 0", "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let at = |name: &str| mount.file("/seen").join(name);
    for round in 1..=8_usize {
        // Everything is looked up before it changes, so that there is something to invalidate.
        assert_eq!(fs::read(at("file")).unwrap(), format!("version {}", round - 1).as_bytes());
        assert!(!at("new").exists());
        assert_eq!(names(&mount.file("/seen")), ["file"]);

        let content = format!("version {round}").into_bytes();
        within_a_second(
            "a change of the same size",
            || filer.put("/seen/file", &content, "").unwrap(),
            || fs::read(at("file")).unwrap() == content,
        );
        within_a_second(
            "a new file",
            || filer.put("/seen/new", &Pattern::new(1).bytes(0, 100_000 * round), "").unwrap(),
            || at("new").exists() && names(&mount.file("/seen")) == ["file", "new"],
        );
        within_a_second(
            "a longer file",
            || filer.append("/seen/new", b"more", "").unwrap(),
            || fs::metadata(at("new")).unwrap().len() == (100_000 * round + 4) as u64,
        );
        assert!(fs::read(at("new")).unwrap().ends_with(b"more"));
        within_a_second(
            "a rename",
            || filer.rename("/seen/new", "/seen/moved").unwrap(),
            || !at("new").exists() && names(&mount.file("/seen")) == ["file", "moved"],
        );
        assert!(fs::read(at("moved")).unwrap().ends_with(b"more"));
        within_a_second(
            "a deletion",
            || filer.delete("/seen/moved").unwrap(),
            || !at("moved").exists() && names(&mount.file("/seen")) == ["file"],
        );
        within_a_second(
            "a directory",
            || filer.put("/seen/directory/inside/file", &content, "").unwrap(),
            || fs::read(at("directory/inside/file")).is_ok(),
        );
        within_a_second(
            "a rename of a directory",
            || filer.rename("/seen/directory", "/seen/elsewhere").unwrap(),
            || !at("directory/inside/file").exists() && at("elsewhere/inside/file").exists(),
        );
        assert_eq!(fs::read(at("elsewhere/inside/file")).unwrap(), content);
        within_a_second(
            "a deletion of a directory",
            || filer.delete("/seen/elsewhere").unwrap(),
            || !at("elsewhere/inside").exists() && names(&mount.file("/seen")) == ["file"],
        );
    }
}

/// The filer gives a directory that is made again within a second the number that it had.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_directory_that_is_made_again_has_what_is_in_it_now() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    filer.mkdir("/again").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let at = |name: &str| mount.file("/again").join(name);
    let seen = |what: &str, seen: &dyn Fn() -> bool| {
        eventually(what, Duration::from_secs(20), || seen().then_some(())).unwrap();
    };
    for _ in 0..150 {
        assert!(!at("directory/inside/file").exists());
        filer.put("/again/directory/inside/file", b"content", "").unwrap();
        seen("a directory", &|| at("directory/inside/file").exists());
        filer.rename("/again/directory", "/again/elsewhere").unwrap();
        seen("a rename", &|| !at("directory/inside/file").exists() && at("elsewhere/inside/file").exists());
        filer.delete("/again/elsewhere").unwrap();
        seen("a deletion", &|| !at("elsewhere/inside").exists());
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn an_open_file_keeps_its_content_also_where_it_was_not_read_yet() {
    const SIZE: usize = 12_000_000;
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let (old, new) = (Pattern::new(1).bytes(0, SIZE), Pattern::new(2).bytes(0, SIZE));
    filer.put("/held", &old, "").unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/held");
    let held = File::open(&path).unwrap();
    let mut buffer = vec![0; SIZE];
    reading::read_full(&held, &mut buffer[..100_000], 0).unwrap();

    filer.put("/held", &new, "").unwrap();
    let reopened = || fs::read(&path).ok().filter(|read| read == &new).map(drop);
    eventually("the new content", Duration::from_secs(10), reopened).unwrap();
    assert_eq!(reading::read_full(&held, &mut buffer, 0).unwrap(), SIZE);
    data::assert_same("the open file", &buffer, &old);
    data::assert_same("the file opened anew", &fs::read(&path).unwrap(), &new);

    filer.delete("/held").unwrap();
    eventually("the deletion", Duration::from_secs(10), || fs::metadata(&path).err()).unwrap();
    assert_eq!(reading::read_full(&held, &mut buffer, 0).unwrap(), SIZE);
    data::assert_same("the open file after its deletion", &buffer, &old);
}

/// Every file below `root` with its content, every directory with none.
fn tree(root: &Path) -> std::io::Result<BTreeMap<String, Option<Vec<u8>>>> {
    fn walk(root: &Path, at: &Path, tree: &mut BTreeMap<String, Option<Vec<u8>>>) -> std::io::Result<()> {
        for entry in fs::read_dir(at)? {
            let entry = entry?;
            let path = entry.path();
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                tree.insert(name, None);
                walk(root, &path, tree)?;
            } else {
                tree.insert(name, Some(fs::read(&path)?));
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found)?;
    Ok(found)
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_thousand_changes_are_all_seen() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let directories = ["", "one/", "two/", "two/below/"];
    let mut model: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    for directory in directories {
        filer.mkdir(&format!("/thousand/{directory}")).unwrap();
        if let Some(name) = directory.strip_suffix('/') {
            model.insert(name.to_owned(), None);
        }
    }
    let mount = Mount::builder(&cluster).start().unwrap();
    let root = mount.file("/thousand");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Looks everything up all the time, so that the kernel and the daemon have cached what is
        // about to change.
        let looker = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let _ = tree(&root);
                rounds += 1;
            }
            rounds
        });
        let mut dice = StdRng::seed_from_u64(1);
        for change in 0..1000_u32 {
            let fresh = format!("{}file {}", directories[dice.random_range(0..4)], dice.random_range(0..60));
            let existing = model
                .iter()
                .filter(|(_, content)| content.is_some())
                .map(|(name, _)| name.clone())
                .choose(&mut dice);
            match (dice.random_range(0..10), existing) {
                (0..2, Some(name)) => {
                    filer.delete(&format!("/thousand/{name}")).unwrap();
                    model.remove(&name);
                }
                (2..4, Some(name)) if name != fresh && !model.contains_key(&fresh) => {
                    filer.rename(&format!("/thousand/{name}"), &format!("/thousand/{fresh}")).unwrap();
                    let content = model.remove(&name).unwrap();
                    model.insert(fresh, content);
                }
                (4..6, Some(name)) => {
                    // Same length, other bytes: nothing but the event tells.
                    let length = model[&name].as_ref().unwrap().len();
                    let content = Pattern::new(u64::from(change)).bytes(0, length);
                    filer.put(&format!("/thousand/{name}"), &content, "").unwrap();
                    model.insert(name, Some(content));
                }
                _ => {
                    let content = Pattern::new(u64::from(change)).bytes(0, dice.random_range(0..3000));
                    filer.put(&format!("/thousand/{fresh}"), &content, "").unwrap();
                    model.insert(fresh, Some(content));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        println!("looked at the tree {} times meanwhile", looker.join().unwrap());
    });
    let same = || tree(&root).ok().filter(|seen| *seen == model).map(drop);
    if let Err(error) = eventually("the end of all changes", Duration::from_secs(5), same) {
        let seen = tree(&root).unwrap();
        for name in seen.keys().chain(model.keys()) {
            if seen.get(name) != model.get(name) {
                let sizes =
                    [&seen, &model].map(|tree| tree.get(name).map(|file| file.as_ref().map(Vec::len)));
                let held = filer.entry(&format!("/thousand/{name}")).unwrap();
                println!("{name}: seen and expected size {sizes:?}, the filer has {held:?}");
            }
        }
        panic!("{error}");
    }
    for (name, content) in &model {
        if let Some(content) = content {
            assert_eq!(&filer.get(&format!("/thousand/{name}")).unwrap(), content, "{name} in the filer");
        }
    }
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_mounted_directory_that_is_deleted_is_empty_until_it_is_made_again() {
    if !host::can_mount() {
        return;
    }
    let cluster = cluster();
    let filer = cluster.filer();
    let put = |content: &[u8]| filer.put("/root/inner/file", content, "").unwrap();
    put(b"first");
    let mount = Mount::builder(&cluster).filer_path("/root").start().unwrap();
    let file = mount.path().join("inner/file");
    // Whatever is there, the mount point is a directory at every moment.
    let holds = |expected: &[&str]| {
        assert!(fs::metadata(mount.path()).unwrap().is_dir());
        names(mount.path()) == expected
    };
    let reads = |content: &[u8]| holds(&["inner"]) && fs::read(&file).is_ok_and(|read| read == content);
    let is_empty = || {
        let found = |path: &Path| fs::metadata(path).err().map(|error| error.kind());
        holds(&[]) && found(&file) == Some(ErrorKind::NotFound)
    };
    assert!(reads(b"first"));
    let open = File::open(&file).unwrap();

    within_a_second("the deletion of the root", || filer.delete("/root").unwrap(), is_empty);
    assert_eq!(io::read_to_string(&open).unwrap(), "first", "what is open stays");
    within_a_second("a file in its place", || filer.put("/root", b"no directory", "").unwrap(), is_empty);
    filer.delete("/root").unwrap();
    within_a_second("a new root", || put(b"second"), || reads(b"second"));
    within_a_second("its rename", || filer.rename("/root", "/elsewhere").unwrap(), is_empty);
    within_a_second("its return", || filer.rename("/elsewhere", "/root").unwrap(), || reads(b"second"));
    within_a_second("a change in it", || put(b"third"), || reads(b"third"));
}
