//! Walks through large trees on a real kernel, beside little memory for nodes.

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
use crate::fuse::{device, unmount};
use crate::namespace::{ClusterUsage, Filer, FilerFailure, Namespace, NamespaceOptions};
use crate::seaweed::entry::{Attributes, Content, Entry, Kind};
use crate::seaweed::filer::FoundEntry;

/// The memory for nodes, and for listings.
const LIMIT: usize = 1 << 20;

fn entry(name: String, kind: Kind, inode: u64) -> Entry {
    let [mtime, ctime, crtime]: [SystemTime; 3] = [UNIX_EPOCH; 3];
    let (perm, uid, gid, size, nlink, rdev) = (0o755, 0, 0, 0, 1, 0);
    let attr = Attributes { kind, perm, uid, gid, size, mtime, ctime, crtime, nlink, rdev, inode };
    Entry { name, attr, content: Content::None, xattrs: Arc::from([]), hard_link: None, expires: None }
}

/// A filer whose root has so many files, and as many directories as are asked for, with nothing in
/// them.
struct Wide {
    files: u64,
    directories: u64,
}

impl Wide {
    fn entries(&self) -> impl Iterator<Item = Entry> + Send + use<> {
        // In the order of the names.
        let directories =
            (0..self.directories).map(|n| entry(format!("d{n:06}"), Kind::Directory, 500_000 + n));
        let files = (0..self.files).map(|n| entry(format!("f{n:06}"), Kind::File, 100_000 + n));
        directories.chain(files)
    }
}

impl Filer for Wide {
    fn lookup(
        &self,
        at: &str,
        name: &str,
        _: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
        let number = || name.get(1..)?.parse::<u64>().ok();
        let found = number().filter(|_| at == "/").and_then(|n| match name.as_bytes()[0] {
            b'd' if n < self.directories => Some(entry(name.to_owned(), Kind::Directory, 500_000 + n)),
            b'f' if n < self.files => Some(entry(name.to_owned(), Kind::File, 100_000 + n)),
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

    fn space(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
        std::future::ready(Ok(ClusterUsage::default())).boxed()
    }
}

/// A mount for the time of a test.
struct Mounted {
    at: MountInfo,
    namespace: Arc<Namespace>,
    prunes: bool,
    _place: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount::detach(&self.at);
    }
}

/// `None`, and a line that says why, if nothing can be mounted here.
fn mount(filer: Wide) -> Option<Mounted> {
    let place = tempfile::tempdir().unwrap();
    let device = match device::mount(place.path(), "interceptor:test", false) {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    };
    let at = MountInfo::topmost(place.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let filer: Arc<dyn Filer> = Arc::new(filer);
    let options = NamespaceOptions {
        node_bytes: LIMIT,
        listing_bytes: LIMIT,
        cached_bytes: LIMIT,
        ..NamespaceOptions::default()
    };
    let root = entry(String::new(), Kind::Directory, 1);
    let (namespace, queue) = Namespace::new(filer.clone(), root, options, runtime.handle().clone());
    namespace.connected();
    let context = context(namespace.clone(), filer, runtime.handle().clone());
    let options = MountOptions { threads: Some(2), ..MountOptions::new(place.path()) };
    let (_session, _) = start_session(&options, device, context, queue).unwrap();
    let prunes = namespace.kernel_features().prunes;
    Some(Mounted { at, namespace, prunes, _place: place, _runtime: runtime })
}

fn is_soon(mut what: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !what() {
        if begun.elapsed() > Duration::from_secs(60) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// The numbers and names of a directory. `each` is called after each of them.
fn list(path: &Path, mut each: impl FnMut()) -> Vec<(u64, String)> {
    let entries = fs::read_dir(path).unwrap().map(|entry| {
        each();
        let entry = entry.unwrap();
        (entry.ino(), entry.file_name().into_string().unwrap())
    });
    entries.collect()
}

#[test]
fn listing_a_directory_keeps_within_the_memory_for_nodes() {
    const FILES: u64 = 60_000;
    let Some(mount) = mount(Wide { files: FILES, directories: 0 }) else { return };
    for _ in 0..2 {
        let mut most = 0;
        let listed = list(&mount.at.path, || most = most.max(mount.namespace.node_bytes()));
        assert_eq!(listed.len() as u64, FILES);
        for (n, (number, name)) in (0..).zip(listed) {
            assert_eq!((number, name), (100_000 + n, format!("f{n:06}")));
        }
        println!("at most {most} bytes of nodes");
        assert!(most <= LIMIT + 2000, "{most}");
        assert!(
            is_soon(|| mount.namespace.uncounted_lookups() == 0),
            "the kernel forgets what it was not told of"
        );
    }
    for n in (0..FILES).step_by(500) {
        assert_eq!(fs::metadata(mount.at.path.join(format!("f{n:06}"))).unwrap().ino(), 100_000 + n);
    }
}

#[test]
fn a_walk_through_many_directories_keeps_within_the_memory_for_nodes() {
    const DIRECTORIES: u64 = 20_000;
    let Some(mount) = mount(Wide { files: 0, directories: DIRECTORIES }) else { return };
    if !mount.prunes {
        println!("skipped: this kernel does not forget directories when it is asked to");
        return;
    }
    let inside = mount.at.path.join("d000007");
    let held = fs::File::open(&inside).unwrap();
    let listed = list(&mount.at.path, || ());
    assert_eq!(listed.len() as u64, DIRECTORIES);
    let mut most = 0;
    for (number, name) in &listed {
        let path = mount.at.path.join(name);
        assert!(list(&path, || ()).is_empty());
        assert_eq!(fs::metadata(&path).unwrap().ino(), *number);
        // Names that the kernel remembers not to be there keep a directory in use.
        assert!(!path.join("none").exists());
        most = most.max(mount.namespace.node_bytes());
    }
    println!("at most {most} bytes of nodes");
    assert!(most <= 2 * LIMIT, "{most}");
    // How much there may be before the kernel is asked again.
    let bound = LIMIT + LIMIT / 8 + 2000;
    assert!(is_soon(|| mount.namespace.node_bytes() <= bound), "{}", mount.namespace.node_bytes());
    let shown = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held))).unwrap();
    assert_eq!(shown, inside, "what is in use keeps its name");
}
