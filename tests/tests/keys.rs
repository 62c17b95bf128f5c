//! A cluster whose volume servers ask readers for a token signed with a key.

use std::fs;

use tests::mount::Kind;
use tests::{Cluster, Mount, Pattern, host, reading};

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn reads_need_the_right_key() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().read_key("a secret between servers").max_mb(1).start().unwrap();
    let content = Pattern::new(1).bytes(0, 2_500_000);
    let filer = cluster.filer();
    filer.put("/guarded", &content, "").unwrap();
    let fid = filer.chunks("/guarded").unwrap()[0]["file_id"].as_str().unwrap().to_owned();
    let refused = cluster.volume_servers()[0].get(&format!("/{fid}")).unwrap_err();
    assert!(format!("{refused:#}").contains("401"), "the server asks for a token: {refused:#}");

    let right = Mount::builder(&cluster).start().unwrap();
    reading::verify(&right.file("/guarded"), &content);

    let by_environment = Mount::builder(&cluster)
        .no_security()
        .env("WEED_JWT_SIGNING_READ_KEY", "a secret between servers")
        .start()
        .unwrap();
    reading::verify(&by_environment.file("/guarded"), &content);

    // The filer signs requests that go through it.
    let through_filer = Mount::builder(&cluster).no_security();
    let through_filer = match through_filer.kind() {
        Kind::Interceptor => through_filer.args(["--volume-server-access", "filerProxy"]),
        Kind::Weed => through_filer.arg("-volumeServerAccess=filerProxy"),
    };
    let through_filer = through_filer.start().unwrap();
    reading::verify(&through_filer.file("/guarded"), &content);

    let wrong =
        Mount::builder(&cluster).no_security().env("WEED_JWT_SIGNING_READ_KEY", "guessed").start().unwrap();
    let none = Mount::builder(&cluster).no_security().start().unwrap();
    for (what, mut mount) in [("a wrong key", wrong), ("no key", none)] {
        assert_eq!(fs::metadata(mount.file("/guarded")).unwrap().len(), 2_500_000, "{what}");
        assert_eq!(reading::error_of(&mount.file("/guarded")), libc::EIO, "{what}");
        assert!(mount.is_running(), "{what}");
    }
}
