//! The fixtures themselves, tested on SeaweedFS alone: `weed mount` shows what is written through
//! the filer, servers come back, and nothing is left behind.

use std::fs;

use tests::{Cluster, Mount, Pattern, data, host};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_cluster_stores_a_weed_mount_shows_and_nothing_stays() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let pattern = Pattern::new(1);
    filer.put_reader("/dir/random", pattern.reader(2_500_000), "").unwrap();
    assert_eq!(filer.chunks("/dir/random").unwrap().len(), 3);
    filer.append("/dir/random", b"tail", "").unwrap();
    filer.rename("/dir/random", "/dir/a new name").unwrap();
    let mut expected = pattern.bytes(0, 2_500_000);
    expected.extend_from_slice(b"tail");
    data::assert_same("over HTTP", &filer.get("/dir/a new name").unwrap(), &expected);

    let mount = Mount::weed(&cluster).start().unwrap();
    data::assert_same("through weed mount", &fs::read(mount.file("/dir/a new name")).unwrap(), &expected);
    let mount_point = mount.path().to_owned();
    drop(mount);
    assert!(!mount_point.exists());

    cluster.volume_servers()[0].kill();
    cluster.restart_volume_server(0).unwrap();
    cluster.filers()[0].kill();
    cluster.restart_filer(0).unwrap();
    data::assert_same("after a restart", &filer.get("/dir/a new name").unwrap(), &expected);

    filer.delete("/dir").unwrap();
    assert!(filer.entry("/dir/a new name").unwrap().is_none());
    assert!(cluster.shell(&["volume.list"]).unwrap().contains("DataNode"));
    let pid = cluster.filers()[0].pid().unwrap();
    let directory = cluster.directory().to_owned();
    drop(cluster);
    assert!(!directory.exists());
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}
