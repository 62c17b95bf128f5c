//! Walks through large trees on a real kernel, with little memory for nodes.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use super::fuzz::context;
use super::{MountOptions, start_session};
use crate::arrival::Arrival;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::supervisor::SupervisorLink;
use crate::fuse::{device, unmount};
use crate::namespace::{ClusterUsage, Filer, FilerFailure, Namespace, NamespaceOptions};
use crate::seaweed::entry::{Attributes, Content, Entry, FileKind};
use crate::seaweed::filer::FoundEntry;

/// The memory for nodes, and for listings, in bytes.
const LIMIT: usize = 1 << 20;

fn entry(name: String, kind: FileKind, inode: u64) -> Entry {
    let [mtime, ctime, crtime]: [SystemTime; 3] = [UNIX_EPOCH; 3];
    let (perm, uid, gid, size, nlink, rdev) = (0o755, 0, 0, 0, 1, 0);
    let attr = Attributes { kind, perm, uid, gid, size, mtime, ctime, crtime, nlink, rdev, inode };
    Entry { name, attr, content: Content::None, xattrs: Arc::from([]), hard_link: None, expires: None }
}

/// A filer whose root has this many files and empty directories.
struct WideFiler {
    files: u64,
    directories: u64,
}

impl WideFiler {
    fn entries(&self) -> impl Iterator<Item = Entry> + Send + use<> {
        // Sorted by name.
        let directories =
            (0..self.directories).map(|n| entry(format!("d{n:06}"), FileKind::Directory, 500_000 + n));
        let files = (0..self.files).map(|n| entry(format!("f{n:06}"), FileKind::File, 100_000 + n));
        directories.chain(files)
    }
}

impl Filer for WideFiler {
    fn lookup(
        &self,
        at: &str,
        name: &str,
        _: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
        let number = || name.get(1..)?.parse::<u64>().ok();
        let found = number().filter(|_| at == "/").and_then(|n| match name.as_bytes()[0] {
            b'd' if n < self.directories => Some(entry(name.to_owned(), FileKind::Directory, 500_000 + n)),
            b'f' if n < self.files => Some(entry(name.to_owned(), FileKind::File, 100_000 + n)),
            _ => None,
        });
        std::future::ready(Ok(FoundEntry { entry: found, is_followed: true })).boxed()
    }

    fn list(&self, at: &str, after: &str, limit: usize) -> BoxStream<'static, Result<Entry, FilerFailure>> {
        let limit = if at == "/" { limit } else { 0 };
        let after = after.to_owned();
        let rest = self.entries().filter(move |entry| entry.name > after);
        futures::stream::iter(rest.take(limit).map(Ok)).boxed()
    }

    fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
        std::future::ready(Ok(ClusterUsage::default())).boxed()
    }
}

/// A mount for the duration of a test.
struct TestMount {
    at: MountInfo,
    namespace: Arc<Namespace>,
    prunes: bool,
    _mountpoint: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for TestMount {
    fn drop(&mut self) {
        unmount::detach(&self.at);
    }
}

/// `None` if nothing can be mounted here; then the test is reported as skipped.
fn mount(filer: WideFiler) -> Option<TestMount> {
    let mountpoint = tempfile::tempdir().unwrap();
    let device = match device::mount(mountpoint.path(), "interceptor:test", false) {
        Ok(device) => device,
        Err(error) => {
            crate::skipped(error);
            return None;
        }
    };
    let at = MountInfo::topmost(mountpoint.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let filer: Arc<dyn Filer> = Arc::new(filer);
    let options = NamespaceOptions {
        node_bytes: LIMIT,
        listing_bytes: LIMIT,
        cached_bytes: LIMIT,
        ..NamespaceOptions::default()
    };
    let root = entry(String::new(), FileKind::Directory, 1);
    let (namespace, queue) = Namespace::new(filer.clone(), root, options, runtime.handle().clone());
    namespace.connected();
    let context = context(namespace.clone(), filer, runtime.handle().clone());
    let options = MountOptions { threads: Some(2), ..MountOptions::new(mountpoint.path()) };
    let (_session, _) =
        start_session(&options, device, context, queue, Arc::new(SupervisorLink::unheard())).unwrap();
    let prunes = namespace.kernel_features().prunes;
    Some(TestMount { at, namespace, prunes, _mountpoint: mountpoint, _runtime: runtime })
}

fn is_soon(mut what: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !what() {
        if start.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// The numbers and names in a directory. Calls `each` after each of them.
fn list(path: &Path, mut each: impl FnMut()) -> Vec<(u64, String)> {
    let entries = fs::read_dir(path).unwrap().map(|entry| {
        each();
        let entry = entry.unwrap();
        (entry.ino(), entry.file_name().into_string().unwrap())
    });
    entries.collect()
}

#[test]
fn listing_a_large_directory_stays_within_the_node_memory() {
    const FILES: u64 = 60_000;
    let Some(mount) = mount(WideFiler { files: FILES, directories: 0 }) else { return };
    for _ in 0..2 {
        let mut peak = 0;
        let listed = list(&mount.at.path, || peak = peak.max(mount.namespace.node_bytes()));
        assert_eq!(listed.len() as u64, FILES);
        for (n, (number, name)) in (0..).zip(listed) {
            assert_eq!((number, name), (100_000 + n, format!("f{n:06}")));
        }
        println!("at most {peak} bytes of nodes");
        assert!(peak <= LIMIT + 2000, "{peak}");
        assert!(
            is_soon(|| mount.namespace.uncounted_lookups() == 0),
            "the kernel forgets names that it got without a node"
        );
    }
    for n in (0..FILES).step_by(500) {
        assert_eq!(fs::metadata(mount.at.path.join(format!("f{n:06}"))).unwrap().ino(), 100_000 + n);
    }
}

#[test]
fn walking_many_directories_stays_within_the_node_memory() {
    const DIRECTORIES: u64 = 20_000;
    let Some(mount) = mount(WideFiler { files: 0, directories: DIRECTORIES }) else { return };
    if !mount.prunes {
        return crate::skipped("this kernel does not forget directories when it is asked to");
    }
    let inside = mount.at.path.join("d000007");
    let open_directory = fs::File::open(&inside).unwrap();
    let listed = list(&mount.at.path, || ());
    assert_eq!(listed.len() as u64, DIRECTORIES);
    let mut peak = 0;
    // The kernel is asked again when nodes have grown by an eighth. It may not forget a directory
    // that is in use while it is asked.
    let bound = LIMIT + 2 * (LIMIT / 8) + 2000;
    for (number, name) in &listed {
        let path = mount.at.path.join(name);
        assert!(list(&path, || ()).is_empty());
        assert_eq!(fs::metadata(&path).unwrap().ino(), *number);
        // Negative dentries keep a directory in use.
        assert!(!path.join("none").exists());
        let bytes = mount.namespace.node_bytes();
        peak = peak.max(bytes);
        // How soon the kernel forgets depends on how busy the CPUs are.
        assert!(bytes <= 2 * LIMIT || is_soon(|| mount.namespace.node_bytes() <= bound), "{bytes}");
    }
    println!("at most {peak} bytes of nodes");
    assert!(is_soon(|| mount.namespace.node_bytes() <= bound), "{}", mount.namespace.node_bytes());
    let shown =
        fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open_directory))).unwrap();
    assert_eq!(shown, inside, "a directory in use keeps its name");
}
