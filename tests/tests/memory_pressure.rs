//! A mount that shares a control group with a program that needs memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::memory::MemoryGroup;
use tests::{Cluster, Mount, Pattern, data, eventually, host, reading};

const MIB: u64 = 1 << 20;
/// What the group may use.
const LIMIT: u64 = 400 * MIB;
/// What is left of that before the program takes its next step.
const LEFT: u64 = 12 * MIB;
/// What the program needs in the end, in steps.
const NEEDED: u64 = 160 * MIB;
const STEP: u64 = 4 * MIB;
const FILES: u64 = 30;
const FILE_SIZE: usize = 8 << 20;
const TIMEOUT: Duration = Duration::from_secs(240);

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn the_cache_gives_way_to_other_memory_of_its_group_and_grows_again() {
    if !host::can_mount() {
        return;
    }
    let Ok(group) = MemoryGroup::new("interceptor-pressure", LIMIT) else {
        return host::skipped("no control groups that limit memory");
    };
    let (_nested, door) = group.nested().unwrap();
    let within = format!("echo 0 > {} && exec \"$@\"", door.display());
    let entering = ["sh", "-c", &within, "sh"].map(String::from);
    let cluster = Cluster::builder().max_mb(2).start().unwrap();
    let content = |number| Pattern::new(number).bytes(0, FILE_SIZE);
    for number in 0..FILES {
        cluster.filer().put(&format!("/{number}"), &content(number), "").unwrap();
    }
    let mount = Mount::interceptor(&cluster.filer_addresses()).wrapped_in(entering.clone());
    let mount = mount.args(["--cache-size", "256MiB", "--no-ebpf"]).start().unwrap();
    let read_all = || {
        for number in 0..FILES {
            let path = mount.path().join(number.to_string());
            data::assert_same(&number.to_string(), &fs::read(&path).unwrap(), &content(number));
            reading::forget(&path).unwrap();
        }
    };
    let withheld = || mount.metric("interceptor_cache_bytes", &["state=\"withheld\""]).unwrap() as u64;
    read_all();
    assert_eq!(withheld(), 0);

    // Files of a tmpfs are memory that cannot be dropped, of the group of who writes them.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = memory.path().join("program");
    for step in 1..=NEEDED / STEP {
        let has_room = || (group.bytes_in_use().unwrap() + LEFT <= LIMIT).then_some(());
        eventually("room for other memory", TIMEOUT, has_room).unwrap();
        append(&entering, &file);
        assert_eq!(fs::metadata(&file).unwrap().len(), step * STEP);
    }
    assert!(withheld() > 0);
    read_all();
    drop(memory);
    eventually("the whole cache again", TIMEOUT, || (withheld() == 0).then_some(())).unwrap();
    read_all();
    assert!(mount.log().unwrap().contains("memory is ample again"));
}

/// Has a process of the group append a step to `file`.
fn append(entering: &[String], file: &Path) {
    let mut command = Command::new(&entering[0]);
    command.args(&entering[1..]).args(["dd", "if=/dev/zero", "bs=4M", "count=1", "oflag=append"]);
    command.args(["conv=notrunc", "status=none"]).arg(format!("of={}", file.display()));
    assert!(command.status().unwrap().success());
}
