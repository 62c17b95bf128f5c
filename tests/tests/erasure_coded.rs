//! Files whose volume was turned into an erasure-coded one, before and while they are read.

use std::collections::HashSet;
use std::fs::{self, File};

use tests::{Cluster, Mount, Pattern, data, host, reading};

const FILES: u64 = 24;
const SIZE: usize = 1_300_000;

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn files_of_erasure_coded_volumes() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let content = |index: u64| match index % 3 {
        0 => data::text(index, SIZE),
        _ => Pattern::new(index).bytes(0, SIZE),
    };
    let mut volumes = HashSet::new();
    for index in 0..FILES {
        let path = format!("/coded/{index}");
        filer.put(&path, &content(index), "").unwrap();
        for chunk in filer.chunks(&path).unwrap() {
            volumes.insert(chunk["file_id"].as_str().unwrap().split_once(',').unwrap().0.to_owned());
        }
    }
    // One mount knows the volumes from before and has a file open, the other comes after.
    let before = Mount::builder(&cluster).start().unwrap();
    reading::verify(&before.file("/coded/1"), &content(1));
    let open = File::open(before.file("/coded/2")).unwrap();
    let mut head = vec![0; 4096];
    reading::read_full(&open, &mut head, 0).unwrap();
    data::assert_same("the first block", &head, &content(2)[..4096]);

    let volumes = volumes.into_iter().collect::<Vec<_>>().join(",");
    let encode = format!("ec.encode -volumeIds={volumes} -force -fullPercent=0 -quietFor=0s");
    let told = cluster.shell(&["lock", &encode, "unlock"]).unwrap();
    assert!(told.contains("Successfully completed EC encoding"), "{told}");
    let left = fs::read_dir(cluster.volume_servers()[0].directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| volumes.split(',').any(|volume| *name == format!("{volume}.dat")))
        .count();
    assert_eq!(left, 0, "the volumes are no longer plain ones: {told}");

    let mut whole = vec![0; SIZE];
    reading::read_full(&open, &mut whole, 0).unwrap();
    data::assert_same("an open file", &whole, &content(2));
    let after = Mount::builder(&cluster).start().unwrap();
    for index in 0..FILES {
        let path = format!("/coded/{index}");
        reading::verify(&after.file(&path), &content(index));
        data::assert_same(&path, &fs::read(before.file(&path)).unwrap(), &content(index));
    }
}
