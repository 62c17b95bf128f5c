//! Files that are replaced while they are open: each open reads one version and no byte of
//! another.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::{Cluster, Mount, Pattern, S3, data, eventually, host, reading};

const BLOCK: usize = 4096;
const VERSIONS: u64 = 80;

/// A version's content: every block of 4 KiB names its version. Sizes differ, so that ends do too.
fn content(version: u64) -> Vec<u8> {
    let size = 400_000 + usize::try_from(version * 37_777 % 2_000_000).unwrap();
    let mut bytes = Pattern::new(version).bytes(0, size);
    for block in bytes.chunks_mut(BLOCK) {
        let length = block.len().min(8);
        block[..length].copy_from_slice(&version.to_le_bytes()[..length]);
    }
    bytes
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn every_open_reads_one_version() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().max_mb(1).start().unwrap();
    let filer = cluster.filer();
    let versions: Vec<_> = (0..VERSIONS).map(content).collect();
    filer.put("/replaced", &versions[0], "").unwrap();
    let mut mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/replaced");
    let done = AtomicBool::new(false);
    let (opens, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for reader in 0..4 {
            let (path, versions, done, opens, changes) = (&path, &versions, &done, &opens, &changes);
            scope.spawn(move || {
                let mut dice = StdRng::seed_from_u64(reader);
                let mut buffer = vec![0; 40 * BLOCK];
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let file = File::open(path).unwrap();
                    reading::read_full(&file, &mut buffer[..BLOCK], 0).unwrap();
                    let version = u64::from_le_bytes(buffer[..8].try_into().unwrap());
                    let expected =
                        versions.get(usize::try_from(version).unwrap()).expect("a version that was written");
                    for _ in 0..dice.random_range(1..12) {
                        let offset = dice.random_range(0..expected.len() + BLOCK);
                        let length = dice.random_range(1..buffer.len());
                        let read = &mut buffer[..length];
                        let count = reading::read_full(&file, read, offset as u64).unwrap();
                        let (from, to) = (offset.min(expected.len()), (offset + length).min(expected.len()));
                        data::assert_same(
                            &format!("version {version} at {offset}+{length}"),
                            &read[..count],
                            &expected[from..to],
                        );
                    }
                    assert!(version >= last, "version {version} after version {last}");
                    changes.fetch_add(usize::from(version > last), Ordering::Relaxed);
                    opens.fetch_add(1, Ordering::Relaxed);
                    last = version;
                }
            });
        }
        for version in &versions[1..] {
            filer.put("/replaced", version, "").unwrap();
            // Readers set the pace: each version must be opened by some of them. If one has
            // failed, the others go on.
            let before = opens.load(Ordering::Relaxed);
            let met = || (opens.load(Ordering::Relaxed) >= before + 6).then_some(());
            let _ = eventually("an encounter", Duration::from_secs(1), met);
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{opens:?} opens, {changes:?} of them of a newer version than the one before");
    assert!(changes.into_inner() > 20, "the readers hardly ever met a new version");
    assert!(mount.is_running());
}

/// The whole content as an open file gives it, or why it gives none.
fn read(file: &File) -> Result<Vec<u8>, i32> {
    let mut content = vec![0; 4 << 20];
    let length = reading::read_full(file, &mut content, 0).map_err(|error| error.raw_os_error().unwrap())?;
    content.truncate(length);
    Ok(content)
}

fn await_content(path: &Path, expected: &[u8]) {
    let found = || (fs::read(path).ok()? == expected).then_some(());
    eventually(&format!("the content of {}", path.display()), Duration::from_secs(20), found).unwrap();
}

/// That the remote storage `origin` is found at `address`.
fn origin_at(address: &str) -> String {
    let (access, secret) = (S3::ACCESS_KEY, S3::SECRET_KEY);
    format!(
        "remote.configure -name=origin -type=s3 -s3.access_key={access} -s3.secret_key={secret} \
         -s3.region=us-east-1 -s3.endpoint=http://{address} -s3.force_path_style=true"
    )
}

/// Mounts a bucket in a directory of the cluster; only what is read of it is copied into the
/// cluster.
fn mount_bucket(cluster: &Cluster, bucket: &str) {
    let s3 = cluster.s3();
    s3.make_bucket(bucket).unwrap();
    let storage = origin_at(s3.address());
    cluster.shell(&[&storage, &format!("remote.mount -dir=/remote -remote=origin/{bucket}")]).unwrap();
}

/// A file that is only in remote storage, which cannot be reached, is an error with a line in the
/// log, and read as soon as it can be brought in.
#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_remote_object_that_cannot_be_brought_in_is_an_error_that_is_logged() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    mount_bucket(&cluster, "far");
    let content = Pattern::new(3).bytes(0, 100_000);
    cluster.s3().put("far/away", &content, &[]).unwrap();
    cluster.shell(&["remote.meta.sync -dir=/remote"]).unwrap();
    let mount = Mount::builder(&cluster).start().unwrap();
    let path = mount.file("/remote/away");
    // One request to the mount, which the kernel does not repeat.
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    // A port without a listener.
    cluster.shell(&[&origin_at("127.0.0.1:1")]).unwrap();
    let error = file.read_at(&mut [0; 4096], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = mount.log_with("/remote/away").unwrap();
    let told: Vec<_> = log.lines().filter(|line| line.contains("/remote/away")).collect();
    println!("{told:?}");
    assert_eq!(told.len(), 1, "{log}");
    assert!(told[0].contains("read failed") && told[0].contains("CacheRemoteObjectToLocalCluster"), "{log}");

    cluster.shell(&[&origin_at(cluster.s3().address())]).unwrap();
    await_content(&path, &content);
}

#[test]
#[cfg_attr(not(can_mount), ignore = "needs mounts")]
fn a_remote_object_that_is_replaced_before_it_is_read_is_not_mixed_with_the_new_one() {
    if !host::can_mount() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    mount_bucket(&cluster, "objects");
    let (s3, filer) = (cluster.s3(), cluster.filer());
    let put = |name: &str, content: &[u8]| s3.put(&format!("objects/{name}"), content, &[]).unwrap();
    let sync = || drop(cluster.shell(&["remote.meta.sync -dir=/remote"]).unwrap());
    let old = |size| Pattern::new(1).bytes(0, size);
    let sizes = [("same", 1 << 20), ("shorter", 300_000), ("longer", 3 << 20)];
    let gone = ["renamed", "deleted", "renamed-and-made-again"];
    for name in sizes.map(|(name, _)| name).into_iter().chain(gone).chain(["kept"]) {
        put(name, &old(1 << 20));
    }
    sync();

    let mount = Mount::builder(&cluster).start().unwrap();
    let path = |name: &str| mount.file(&format!("/remote/{name}"));
    let open = |name: &str| {
        let file = File::open(path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20, "{name}");
        assert!(
            filer.chunks(&format!("/remote/{name}")).unwrap().is_empty(),
            "{name} is in the cluster already"
        );
        file
    };
    let handles = sizes.map(|(name, _)| open(name));
    let handles_of_gone = gone.map(open);
    let kept = open("kept");
    for (name, size) in sizes {
        put(name, &Pattern::new(2).bytes(0, size));
    }
    filer.rename("/remote/renamed", "/remote/moved").unwrap();
    filer.rename("/remote/renamed-and-made-again", "/remote/moved-too").unwrap();
    put("renamed-and-made-again", &Pattern::new(2).bytes(0, 1 << 20));
    filer.delete("/remote/deleted").unwrap();
    sync();

    // Some kernels report only EIO for an error while pages are filled.
    let is_error = |result: Result<Vec<u8>, i32>| matches!(result, Err(libc::ESTALE | libc::EIO));
    for ((name, size), handle) in sizes.iter().zip(&handles) {
        assert!(is_error(read(handle)), "{name}: it reads as something");
        // The new version is in the cluster now.
        assert!(is_error(read(handle)), "{name}: it reads as something");
        await_content(&path(name), &Pattern::new(2).bytes(0, *size));
    }
    for (name, handle) in gone.iter().zip(&handles_of_gone) {
        // The storage still has a file that was only renamed, so it is found again under its old
        // name.
        let found_again = |result: &Result<Vec<u8>, i32>| *name == "renamed" && *result == Ok(old(1 << 20));
        let result = read(handle);
        assert!(found_again(&result) || is_error(result), "{name}: it reads as something else");
    }
    await_content(&path("renamed-and-made-again"), &Pattern::new(2).bytes(0, 1 << 20));
    data::assert_same("kept", &read(&kept).unwrap(), &old(1 << 20));
    // The log names a renamed file by the name that it had when it was read, as far as that was
    // known.
    for names in
        [&["same"][..], &["shorter"], &["longer"], &["deleted"], &["renamed-and-made-again", "moved-too"]]
    {
        let told = |line: &&str| {
            names.iter().any(|name| line.contains(&format!("/remote/{name}: the object on remote storage")))
        };
        let log = || mount.log().ok().filter(|log| log.lines().any(|line| told(&line)));
        let log = eventually("a line in the log", Duration::from_secs(10), log).unwrap();
        assert_eq!(log.lines().filter(told).count(), 1, "{names:?}:\n{log}");
    }
}
