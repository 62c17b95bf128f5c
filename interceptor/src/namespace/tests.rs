//! The namespace between a model of a filer and a kernel that the tests play.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use rdma_engine::FileId;
use tokio::sync::Semaphore;

use super::growth::{GrowthHandle, GrowthQueue};
use super::invalidate::{Invalidation, InvalidationQueue};
use super::listing::ListingBudget;
use super::tail::ListingTail;
use super::*;
use crate::arrival::Arrival;
use crate::seaweed::entry::{Attributes, Chunk, Content, FileKind};
use crate::seaweed::filer::FoundEntry;
use crate::seaweed::subscribe::{EntryChange, EntryRef};

pub(super) fn file(name: &str, inode: u64, content: &[u8]) -> Entry {
    let attr = Attributes {
        kind: FileKind::File,
        perm: 0o644,
        uid: 0,
        gid: 0,
        size: content.len() as u64,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        nlink: 1,
        rdev: 0,
        inode,
    };
    Entry {
        name: name.into(),
        attr,
        content: Content::Inline(Bytes::copy_from_slice(content)),
        xattrs: Arc::from([]),
        hard_link: None,
        expires: None,
    }
}

pub(super) fn directory(name: &str, inode: u64) -> Entry {
    let mut entry = file(name, inode, b"");
    entry.attr.kind = FileKind::Directory;
    entry.content = Content::None;
    entry
}

/// A filer that has what the tests put, and can hold its replies back.
struct FilerModel {
    entries: Mutex<BTreeMap<(String, String), Entry>>,
    replies: Semaphore,
    is_followed: AtomicBool,
    lookups: AtomicUsize,
    lists: AtomicUsize,
}

impl FilerModel {
    fn new() -> Self {
        Self {
            entries: Mutex::default(),
            replies: Semaphore::new(1 << 20),
            is_followed: AtomicBool::new(true),
            lookups: AtomicUsize::new(0),
            lists: AtomicUsize::new(0),
        }
    }

    fn put(&self, dir: &str, entry: Entry) -> Option<Entry> {
        self.entries.lock().insert((dir.into(), entry.name.clone()), entry)
    }
    fn remove(&self, dir: &str, name: &str) -> Entry {
        self.entries.lock().remove(&(dir.into(), name.into())).expect("the test put it there")
    }
    fn hold_replies(&self) {
        self.replies.forget_permits(usize::MAX >> 4);
    }
    fn let_reply(&self) {
        self.replies.add_permits(1 << 20);
    }
    fn lookups(&self) -> usize {
        self.lookups.load(SeqCst)
    }
}

struct ModelFiler(Arc<FilerModel>);

/// A filer without entries.
pub(super) fn empty_filer() -> Arc<dyn Filer> {
    Arc::new(ModelFiler(Arc::new(FilerModel::new())))
}

impl Filer for ModelFiler {
    fn lookup(
        &self,
        dir: &str,
        name: &str,
        _: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
        self.0.lookups.fetch_add(1, SeqCst);
        let entry = self.0.entries.lock().get(&(dir.to_owned(), name.to_owned())).cloned();
        let model = self.0.clone();
        async move {
            drop(model.replies.acquire().await);
            Ok(FoundEntry { entry, is_followed: model.is_followed.load(SeqCst) })
        }
        .boxed()
    }

    fn list(&self, dir: &str, after: &str, limit: usize) -> BoxStream<'static, Result<Entry, FilerFailure>> {
        self.0.lists.fetch_add(1, SeqCst);
        let entries = self.0.entries.lock();
        let inside = entries.iter().filter(|((parent, name), _)| parent == dir && name.as_str() > after);
        let list: Vec<_> = inside.map(|(_, entry)| Ok(entry.clone())).take(limit).collect();
        let model = self.0.clone();
        let start = async move { drop(model.replies.acquire().await) };
        futures::stream::once(start).flat_map(move |()| futures::stream::iter(list.clone())).boxed()
    }

    fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
        async { Ok(ClusterUsage::default()) }.boxed()
    }
}

struct Fixture {
    model: Arc<FilerModel>,
    namespace: Arc<Namespace>,
    queue: InvalidationQueue,
    growths: Mutex<GrowthQueue>,
}

fn fixture_with(options: NamespaceOptions) -> Fixture {
    let model = Arc::new(FilerModel::new());
    let runtime = tokio::runtime::Handle::current();
    let filer = Arc::new(ModelFiler(model.clone()));
    let (namespace, queue) = Namespace::new(filer, directory("", 0), options, runtime);
    let growths = Mutex::new(namespace.enable_growth());
    namespace.connected();
    let fixture = Fixture { model, namespace, queue, growths };
    fixture.invalidations();
    fixture
}

fn fixture() -> Fixture {
    fixture_with(NamespaceOptions { prefetch_after: u32::MAX, ..NamespaceOptions::default() })
}

impl Namespace {
    /// The approximate memory of all nodes in bytes.
    pub(crate) fn node_bytes(&self) -> usize {
        self.state.lock().nodes.bytes
    }

    pub(crate) fn kernel_features(&self) -> KernelFeatures {
        self.state.lock().kernel_features
    }

    /// How many names the kernel got without a node and has not forgotten.
    pub(crate) fn uncounted_lookups(&self) -> u64 {
        self.state.lock().nodes.uncounted_lookups()
    }
}

async fn wait<T>(answer: NowOrLater<T>) -> T {
    match answer {
        NowOrLater::Now(result) => result,
        NowOrLater::Later(result) => result.await,
    }
}

impl Fixture {
    async fn find(&self, parent: NodeId, name: &str) -> NodeStat {
        match wait(self.namespace.lookup(parent, name)).await {
            Ok(LookupResult::Node(stat)) => stat,
            other => panic!("{name}: {other:?}"),
        }
    }

    async fn absent(&self, parent: NodeId, name: &str) -> Duration {
        match wait(self.namespace.lookup(parent, name)).await {
            Ok(LookupResult::Absent(timeout)) => timeout,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Attaches an entry of a listing.
    fn show(&self, directory: NodeId, entry: &Arc<Entry>, stamp: Option<ChangeStamp>) -> NodeStat {
        match self.namespace.attach(directory, entry, stamp) {
            Some(ListedEntry::Node(stat)) => stat,
            other => panic!("{}: {other:?}", entry.name),
        }
    }

    async fn stat(&self, node: NodeId) -> NodeStat {
        wait(self.namespace.attributes(node)).await.expect("is known")
    }

    fn event(&self, old: Option<(&str, &Entry)>, new: Option<(&str, &Entry)>) {
        let side = |(directory, entry): (&str, &Entry)| EntryRef {
            directory: directory.into(),
            entry: entry.clone(),
        };
        self.namespace.apply(&EntryChange { ts_ns: 0, old: old.map(side), new: new.map(side) });
    }

    /// Changes the filer and sends the event.
    fn write(&self, dir: &str, entry: Entry) {
        let old = self.model.put(dir, entry.clone());
        self.event(old.as_ref().map(|old| (dir, old)), Some((dir, &entry)));
    }

    fn delete(&self, dir: &str, name: &str) {
        let old = self.model.remove(dir, name);
        self.event(Some((dir, &old)), None);
    }

    fn rename(&self, from: (&str, &str), to: (&str, &str)) {
        let old = self.model.remove(from.0, from.1);
        let new = Entry { name: to.1.into(), ..old.clone() };
        self.model.put(to.0, new.clone());
        self.event(Some((from.0, &old)), Some((to.0, &new)));
    }

    fn invalidations(&self) -> Vec<Invalidation> {
        self.queue.try_iter().map(|queued| queued.invalidation).collect()
    }

    async fn list(&self, node: NodeId) -> (Arc<listing::DirectoryListing>, Vec<String>) {
        let listing = self.namespace.listing(node).expect("is a directory");
        let mut names = Vec::new();
        loop {
            let batch = batch(listing.batch(names.len()).await);
            if batch.entries.is_empty() {
                return (listing, names);
            }
            names.extend(batch.entries.iter().map(|entry| entry.name.clone()));
        }
    }
}

fn batch(listed: Result<listing::ListingRead, NamespaceError>) -> listing::EntryBatch {
    match listed.expect("the model can list") {
        listing::ListingRead::Batch(batch) => batch,
        listing::ListingRead::Truncated => panic!("there is memory for the listing"),
    }
}

fn entry_dropped(parent: NodeId, name: &str) -> Invalidation {
    Invalidation::Entry { parent, name: name.into() }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_changed_file_is_another_node_and_an_open_one_stays_what_it_was() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"old"));
    let old = f.find(ROOT, "a").await;
    assert_eq!((old.id, old.entry_timeout), (7, LONG));
    let opened = f.namespace.version(old.id).expect("is known");

    f.write("/", file("a", 7, b"new bytes"));
    assert!(f.invalidations().contains(&entry_dropped(ROOT, "a")));
    let new = f.find(ROOT, "a").await;
    assert_ne!(new.id, old.id);
    assert_eq!(new.entry.attr.size, 9);
    assert_eq!(opened.size(), 3);
    let still = f.stat(old.id).await;
    assert_eq!((still.id, still.entry.attr.size), (old.id, 3));

    // Once nothing holds the old version, its number is free for the next one.
    f.namespace.forget(old.id, 1);
    f.namespace.forget(new.id, 1);
    assert_eq!(f.find(ROOT, "a").await.id, 7);
}

#[tokio::test]
async fn a_number_is_not_reused_while_its_node_is_pinned() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"old"));
    f.find(ROOT, "a").await;
    let pin = f.namespace.pin(7).expect("there is such a node");
    f.delete("/", "a");
    // The kernel forgets the file by itself, and looks up another, before it is told of the
    // deletion.
    f.namespace.forget(7, 1);
    f.write("/", file("a", 7, b"other"));
    let other = f.find(ROOT, "a").await;
    assert_ne!(other.id, 7);
    drop(pin);
    f.namespace.forget(other.id, 1);
    let other = f.find(ROOT, "a").await;
    assert_ne!(other.id, 7, "the kernel has not been told of the deletion");
    f.namespace.forget(other.id, 1);
    assert!(f.invalidations().contains(&Invalidation::Deleted { parent: ROOT, child: 7, name: "a".into() }));
    assert_eq!(f.find(ROOT, "a").await.id, 7);
}

#[tokio::test]
async fn changed_attributes_keep_the_node_and_its_name() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"same"));
    let before = f.find(ROOT, "a").await;
    let mut changed = file("a", 7, b"same");
    changed.attr.perm = 0o600;
    f.write("/", changed);
    assert_eq!(f.invalidations(), [Invalidation::Attributes(7)]);
    let after = f.stat(before.id).await;
    assert_eq!((after.entry.attr.perm, after.attr_timeout), (0o600, LONG));
    assert_eq!(f.find(ROOT, "a").await.id, before.id);
}

#[tokio::test]
async fn a_reply_that_an_event_overtook_is_not_cached() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"old"));
    f.model.hold_replies();
    let NowOrLater::Later(slow) = f.namespace.lookup(ROOT, "a") else { panic!("nothing is known yet") };
    let slow = tokio::spawn(slow);
    while f.model.lookups() == 0 {
        tokio::task::yield_now().await;
    }
    f.write("/", file("a", 7, b"newer"));
    f.model.let_reply();
    let Ok(Ok(LookupResult::Node(stale))) = slow.await else { panic!("there is such a file") };
    assert_eq!(stale.entry.attr.size, 3);
    assert_eq!((stale.entry_timeout, stale.attr_timeout), (Duration::ZERO, Duration::ZERO));
    let fresh = f.find(ROOT, "a").await;
    assert_eq!((fresh.entry.attr.size, fresh.entry_timeout), (5, LONG));
}

#[tokio::test]
async fn replies_of_an_unfollowed_filer_are_not_cached() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    f.model.is_followed.store(false, SeqCst);
    let stat = f.find(ROOT, "a").await;
    assert_eq!((stat.entry_timeout, stat.attr_timeout), (Duration::ZERO, Duration::ZERO));
    let Ok(LookupResult::Absent(Duration::ZERO)) = wait(f.namespace.lookup(ROOT, "b")).await else {
        panic!("no event will tell of its creation");
    };
    f.model.is_followed.store(true, SeqCst);
    assert_eq!(f.find(ROOT, "a").await.entry_timeout, LONG);
    assert_eq!(f.model.lookups(), 3);
}

#[tokio::test]
async fn lookups_at_the_same_time_are_one_call() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    let (one, two) = tokio::join!(f.find(ROOT, "a"), f.find(ROOT, "a"));
    assert_eq!((one.id, two.id, f.model.lookups()), (7, 7, 1));
    f.namespace.forget(7, 1);
    assert_eq!(f.stat(7).await.id, 7, "one of two lookups is left");
    f.namespace.forget(7, 1);
    assert!(wait(f.namespace.attributes(7)).await.is_err());
}

#[tokio::test]
async fn a_renamed_directory_keeps_its_node_and_what_is_in_it() {
    let f = fixture();
    f.model.put("/", directory("d", 5));
    f.model.put("/", directory("e", 6));
    f.model.put("/d", file("a", 7, b"x"));
    let d = f.find(ROOT, "d").await;
    let e = f.find(ROOT, "e").await;
    f.find(d.id, "a").await;
    let old = f.model.remove("/", "d");
    let child = f.model.remove("/d", "a");
    let new = Entry { name: "moved".into(), ..old.clone() };
    f.model.put("/e", new.clone());
    f.model.put("/e/moved", child.clone());
    f.event(Some(("/", &old)), Some(("/e", &new)));
    let sent = f.invalidations();
    assert!(sent.contains(&entry_dropped(ROOT, "d")) && sent.contains(&entry_dropped(e.id, "moved")));
    f.event(Some(("/d", &child)), Some(("/e/moved", &child)));
    assert_eq!(f.find(e.id, "moved").await.id, d.id);
    assert_eq!(f.find(d.id, "a").await.id, 7);
    assert_eq!(f.namespace.version(7).expect("is known").path(), "/e/moved/a");
    f.absent(ROOT, "d").await;
}

#[tokio::test]
async fn a_directory_that_comes_back_has_what_is_in_it_now() {
    let f = fixture();
    f.model.put("/", directory("d", 5));
    f.model.put("/d", directory("below", 6));
    f.model.put("/d", file("file", 7, b"old"));
    let d = f.find(ROOT, "d").await;
    let below = f.find(d.id, "below").await;
    f.find(d.id, "file").await;
    f.absent(d.id, "a").await;
    f.absent(below.id, "b").await;
    f.delete("/", "d");
    f.model.hold_replies();
    let NowOrLater::Later(slow) = f.namespace.lookup(below.id, "c") else { panic!("nothing is known of it") };
    let slow = tokio::spawn(slow);
    while f.model.lookups() < 6 {
        tokio::task::yield_now().await;
    }
    // A filer gives the same inode number to a directory that is made again in the same second.
    f.write("/", directory("d", 5));
    f.write("/d", directory("a", 8));
    f.write("/d", file("file", 7, b"newer"));
    f.write("/d/below", directory("b", 9));
    f.write("/d/below", directory("c", 10));
    f.invalidations();
    let again = tokio::spawn({
        let NowOrLater::Later(again) = f.namespace.lookup(ROOT, "d") else { panic!("it has changed") };
        again
    });
    while f.model.lookups() < 7 {
        tokio::task::yield_now().await;
    }
    f.model.let_reply();
    assert!(matches!(again.await, Ok(Ok(LookupResult::Node(stat))) if stat.id == d.id));
    let _ = slow.await;
    let sent = f.invalidations();
    let names = [(d.id, "a"), (d.id, "file"), (below.id, "b")];
    assert!(names.iter().all(|(parent, name)| sent.contains(&entry_dropped(*parent, name))), "{sent:?}");
    assert!(
        sent.contains(&Invalidation::Attributes(below.id)) && !sent.contains(&entry_dropped(d.id, "below"))
    );
    assert_eq!(f.find(d.id, "a").await.id, 8);
    assert_eq!(f.find(d.id, "file").await.entry.attr.size, 5);
    assert_eq!(f.find(below.id, "b").await.id, 9);
    assert_eq!(f.find(below.id, "c").await.id, 10, "the earlier answer is not remembered");
    assert_eq!(f.stat(below.id).await.attr_timeout, LONG, "it was asked for again");
}

#[tokio::test]
async fn a_directory_cannot_move_into_itself() {
    let f = fixture();
    f.model.put("/", directory("d", 5));
    f.model.put("/d", directory("e", 6));
    let d = f.find(ROOT, "d").await;
    f.find(d.id, "e").await;
    let entry = directory("d", 5);
    f.event(Some(("/", &entry)), Some(("/d/e", &entry)));
    assert_eq!(f.namespace.version(6).expect("is known").path(), "/d/e");
}

#[tokio::test]
async fn a_renamed_file_keeps_its_node() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    let before = f.find(ROOT, "a").await;
    f.rename(("/", "a"), ("/", "b"));
    assert_eq!(f.find(ROOT, "b").await.id, before.id);
    f.absent(ROOT, "a").await;
}

#[tokio::test]
async fn hard_links_share_a_node_and_change_together() {
    let f = fixture();
    let linked = |name: &str, content: &[u8]| Entry {
        hard_link: Some(Bytes::from_static(b"key")),
        ..file(name, 7, content)
    };
    f.model.put("/", linked("a", b"x"));
    f.model.put("/", linked("b", b"x"));
    assert_eq!(f.find(ROOT, "a").await.id, f.find(ROOT, "b").await.id);
    f.model.put("/", linked("b", b"yy"));
    f.write("/", linked("a", b"yy"));
    let sent = f.invalidations();
    assert!(sent.contains(&entry_dropped(ROOT, "a")) && sent.contains(&entry_dropped(ROOT, "b")));
    let (a, b) = (f.find(ROOT, "a").await, f.find(ROOT, "b").await);
    assert_eq!((a.id, a.entry.attr.size), (b.id, 2));
}

#[tokio::test]
async fn absent_names_are_cached_until_they_are_created() {
    let f = fixture();
    assert_eq!(f.absent(ROOT, "a").await, LONG);
    assert_eq!(f.absent(ROOT, "a").await, LONG);
    assert_eq!(f.model.lookups(), 1);
    f.write("/", file("a", 7, b"x"));
    assert!(f.invalidations().contains(&entry_dropped(ROOT, "a")));
    f.find(ROOT, "a").await;
    f.delete("/", "a");
    assert_eq!(f.invalidations(), [Invalidation::Deleted { parent: ROOT, child: 7, name: "a".into() }]);
    f.absent(ROOT, "a").await;
}

#[tokio::test]
async fn without_events_nothing_is_trusted_for_long() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    f.find(ROOT, "a").await;
    f.absent(ROOT, "b").await;
    f.namespace.disconnected();
    let sent = f.invalidations();
    for taken_back in [entry_dropped(ROOT, "a"), entry_dropped(ROOT, "b"), Invalidation::Attributes(7)] {
        assert!(sent.contains(&taken_back), "{taken_back:?}");
    }
    // A change without an event.
    f.model.put("/", file("a", 7, b"abc"));
    f.model.put("/", file("b", 8, b"x"));
    let a = f.find(ROOT, "a").await;
    assert_eq!((a.entry.attr.size, a.entry_timeout), (3, Duration::from_secs(1)));
    f.find(ROOT, "b").await;
    let asked = f.model.lookups();
    f.find(ROOT, "b").await;
    assert_eq!(f.model.lookups(), asked + 1);
    f.namespace.connected();
    assert_eq!(f.find(ROOT, "a").await.entry_timeout, LONG);
}

#[tokio::test]
async fn a_directory_in_which_files_are_opened_one_by_one_is_read_at_once() {
    let window = Duration::from_secs(3600);
    let f = fixture_with(NamespaceOptions { prefetch_window: window, ..NamespaceOptions::default() });
    f.model.put("/", directory("d", 5));
    for i in 0..50 {
        f.model.put("/d", file(&format!("f{i:02}"), 100 + i, b"x"));
    }
    let d = f.find(ROOT, "d").await.id;
    for i in 0..4 {
        f.find(d, &format!("f{i:02}")).await;
    }
    // Lets the listing start.
    tokio::task::yield_now().await;
    assert_eq!(f.model.lists.load(SeqCst), 1);
    f.list(d).await;
    let asked = f.model.lookups();
    for i in 0..50 {
        assert_eq!(f.find(d, &format!("f{i:02}")).await.entry_timeout, LONG);
    }
    assert_eq!(f.absent(d, "none").await, LONG);
    assert_eq!((f.model.lookups(), f.model.lists.load(SeqCst)), (asked, 1));
    // A changed name is looked up again, the others are still known.
    f.write("/d", file("f03", 103, b"changed"));
    f.write("/d", file("none", 200, b"x"));
    assert_eq!(f.find(d, "f03").await.entry.attr.size, 7);
    f.find(d, "none").await;
    f.find(d, "f04").await;
    assert_eq!(f.model.lookups(), asked + 2);
}

#[tokio::test]
async fn a_listing_that_an_event_overtook_is_not_cached() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    f.model.hold_replies();
    let listing = f.namespace.listing(ROOT).expect("is a directory");
    while f.model.lists.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    f.write("/", file("b", 8, b"x"));
    f.model.let_reply();
    listing.batch(0).await.expect("the model can list");
    let (second, names) = f.list(ROOT).await;
    assert_eq!(names, ["a", "b"]);
    f.invalidations();
    f.namespace.listing_read_to_end(ROOT, &listing);
    assert_eq!(
        f.invalidations(),
        [Invalidation::Listing(ROOT)],
        "the kernel's copy of the first is outdated"
    );
    f.namespace.listing_read_to_end(ROOT, &second);
    assert_eq!(f.invalidations(), []);
    f.write("/", file("c", 9, b"x"));
    assert!(f.invalidations().contains(&Invalidation::Listing(ROOT)));
    assert_eq!(f.list(ROOT).await.1, ["a", "b", "c"]);
}

/// All names of a directory from `index` on, as a handle reads them.
async fn names_from(
    f: &Fixture,
    listing: &listing::DirectoryListing,
    tail: &mut ListingTail,
    index: usize,
) -> Vec<String> {
    let mut names = Vec::new();
    loop {
        let at = index + names.len();
        let batch = match listing.batch(at).await.expect("the model can list") {
            listing::ListingRead::Batch(batch) => batch,
            listing::ListingRead::Truncated => {
                tail.batch(&f.namespace, at).await.expect("the model can list")
            }
        };
        if batch.entries.is_empty() {
            return names;
        }
        names.extend(batch.entries.iter().map(|entry| entry.name.clone()));
    }
}

#[tokio::test]
async fn a_directory_that_is_too_large_for_memory_is_read_page_by_page() {
    const FILES: usize = 50_000;
    const LIMIT: usize = 1 << 20;
    let f = fixture_with(NamespaceOptions {
        cached_bytes: LIMIT,
        listing_bytes: LIMIT,
        ..NamespaceOptions::default()
    });
    let all: Vec<_> = (0..FILES).map(|number| format!("{number:06}")).collect();
    for (number, name) in all.iter().enumerate() {
        f.model.put("/", file(name, 100 + number as u64, b"x"));
    }
    let mut handles = Vec::new();
    for _ in 0..4 {
        let listing = f.namespace.listing(ROOT).expect("is a directory");
        // A truncated listing does not grow any more.
        while !matches!(listing.try_batch(FILES), Some(Ok(listing::ListingRead::Truncated))) {
            tokio::task::yield_now().await;
        }
        let mut tail = ListingTail::new(ROOT, &listing);
        assert_eq!(names_from(&f, &listing, &mut tail, 0).await, all);
        // Seeking back, a little and far.
        for index in [FILES - 1, FILES - 1000, FILES / 2, 1, FILES] {
            assert_eq!(names_from(&f, &listing, &mut tail, index).await, all[index..]);
        }
        handles.push((listing, tail));
        let state = f.namespace.state.lock();
        assert!(state.nodes.cached_bytes <= LIMIT, "{}", state.nodes.cached_bytes);
        // At most one portion more than the limit.
        assert!(state.listings.used() <= LIMIT + LIMIT / 4, "{}", state.listings.used());
    }
    let held: usize = handles.iter().map(|(_, tail)| tail.entries()).sum();
    assert!(held <= 4 * 2048, "{held}");
    drop(handles);
    assert_eq!(f.namespace.state.lock().listings.used(), 0);
}

#[tokio::test]
async fn when_the_kernel_knows_too_many_files_it_is_asked_to_forget_some() {
    const FILES: u64 = 2000;
    let (prefetch_after, node_bytes) = (u32::MAX, 1 << 20);
    let f = fixture_with(NamespaceOptions { prefetch_after, node_bytes, ..NamespaceOptions::default() });
    f.model.put("/", directory("d", 5));
    let d = f.find(ROOT, "d").await.id;
    let mut peak = 0;
    for number in 0..FILES {
        let name = format!("f{number:04}");
        f.model.put("/d", file(&name, 100 + number, b"x"));
        let node = f.find(d, &name).await.id;
        if number == 0 {
            f.namespace.version(node).expect("is known");
        }
        peak = peak.max(f.namespace.state.lock().nodes.bytes);
        // The kernel forgets what it is asked to.
        for sent in f.invalidations() {
            let Invalidation::Entry { parent, name } = sent else { panic!("{sent:?}") };
            assert!(parent == d && *name != *"f0000", "a directory, or a file that is read: {name}");
            let child = f.namespace.state.lock().nodes.child(d, &name);
            f.namespace.forget(child.expect("is known"), 1);
        }
    }
    assert!(peak <= (1 << 20) + 2000, "{peak}");
    assert!(f.namespace.size().0 > 500, "no more are forgotten than need be");
}

#[tokio::test]
async fn while_nodes_take_too_much_memory_names_are_listed_without_nodes() {
    const FILES: u64 = 3000;
    const LIMIT: usize = 1 << 20;
    let (prefetch_after, node_bytes) = (u32::MAX, LIMIT);
    let f = fixture_with(NamespaceOptions { prefetch_after, node_bytes, ..NamespaceOptions::default() });
    f.namespace.set_kernel_features(KernelFeatures {
        accepts_entries_without_node: true,
        ..KernelFeatures::default()
    });
    for number in 0..FILES {
        f.model.put("/", file(&format!("f{number:04}"), 100 + number, b"x"));
    }
    let (listing, names) = f.list(ROOT).await;
    assert_eq!(names.len() as u64, FILES);
    let mut alone = Vec::new();
    for entry in listing.range(0..names.len()) {
        match f.namespace.attach(ROOT, &entry, None).expect("the root is live") {
            ListedEntry::Node(stat) => assert_eq!(stat.id, entry.attr.inode),
            ListedEntry::Name(number) => {
                assert_eq!(number, entry.attr.inode);
                alone.push(entry);
            }
        }
        assert!(f.namespace.node_bytes() <= LIMIT + 2000, "{}", f.namespace.node_bytes());
    }
    let known = f.namespace.size().0;
    assert!(known > 500 && alone.len() as u64 + known as u64 == FILES + 1, "{known} and {}", alone.len());
    assert!(!f.invalidations().is_empty(), "room is made for others");
    // One of them is looked up before the kernel has forgotten the uncounted lookup.
    let asked = alone.pop().expect("there are some");
    assert_eq!(f.find(ROOT, &asked.name).await.id, asked.attr.inode);
    f.namespace.forget(asked.attr.inode, 1);
    assert!(f.namespace.version(asked.attr.inode).is_ok(), "the kernel knows it from the lookup");
    f.namespace.forget(asked.attr.inode, 1);
    assert!(f.namespace.version(asked.attr.inode).is_err());
    alone.iter().for_each(|entry| f.namespace.forget(entry.attr.inode, 1));
    assert_eq!((f.namespace.size().0, f.namespace.uncounted_lookups()), (known, 0));
}

#[tokio::test]
async fn directories_that_nothing_uses_are_forgotten_after_files() {
    const DIRECTORIES: u64 = 2000;
    const LIMIT: usize = 1 << 20;
    let (prefetch_after, node_bytes) = (u32::MAX, LIMIT);
    let f = fixture_with(NamespaceOptions { prefetch_after, node_bytes, ..NamespaceOptions::default() });
    f.namespace.set_kernel_features(KernelFeatures { prunes: true, ..KernelFeatures::default() });
    for (name, inode) in [("parent", 5), ("open", 6), ("probed", 7)] {
        f.model.put("/", directory(name, inode));
        f.find(ROOT, name).await;
    }
    f.model.put("/parent", file("child", 8, b"x"));
    f.find(5, "child").await;
    f.namespace.version(8).expect("is known");
    let opened = f.namespace.open_directory(6).expect("is a directory");
    f.absent(7, "no").await;
    let (mut peak, mut forgotten) = (0, Vec::new());
    for number in 0..DIRECTORIES {
        let name = format!("d{number:04}");
        f.model.put("/", directory(&name, 100 + number));
        f.find(ROOT, &name).await;
        peak = peak.max(f.namespace.node_bytes());
        for sent in f.invalidations() {
            match sent {
                Invalidation::Unused(node) => {
                    f.namespace.forget(node, 1);
                    forgotten.push(node);
                }
                // Negative dentries are invalidated before the directory is to go.
                sent => assert!(sent == entry_dropped(7, "no") && !forgotten.contains(&7), "{sent:?}"),
            }
        }
    }
    assert!(peak <= LIMIT + 2000, "{peak}");
    assert!(f.namespace.size().0 > 300, "no more are forgotten than need be");
    let position = |node| forgotten.iter().position(|other| *other == node);
    assert!(position(8) < position(5) && position(8).is_some(), "a directory goes once it holds nothing");
    assert!(position(7).is_some() && position(6).is_none(), "what is open stays");
    drop(opened);
}

#[tokio::test]
async fn entries_behind_a_truncated_listing_are_current_until_something_changes() {
    let f = fixture_with(NamespaceOptions { listing_bytes: 0, ..NamespaceOptions::default() });
    f.model.put("/", file("a", 7, b"x"));
    let listing = f.namespace.listing(ROOT).expect("is a directory");
    assert!(matches!(listing.batch(1).await, Ok(listing::ListingRead::Truncated)));
    let mut tail = ListingTail::new(ROOT, &listing::DirectoryListing::new(1, ListingBudget::new(0)));
    let batch = tail.batch(&f.namespace, 0).await.expect("the model can list");
    let show = || f.show(ROOT, &batch.entries[0], batch.stamp);
    assert_eq!(show().entry_timeout, LONG);
    f.write("/", file("b", 8, b"x"));
    assert_eq!(show().entry_timeout, Duration::ZERO);
}

#[tokio::test]
async fn unread_listings_make_room_for_new_ones() {
    let (prefetch_after, listing_bytes) = (u32::MAX, 64 << 10);
    let options = NamespaceOptions { prefetch_after, listing_bytes, ..NamespaceOptions::default() };
    let f = fixture_with(options);
    for directory_number in 0..20u64 {
        let (name, path) = (format!("d{directory_number}"), format!("/d{directory_number}"));
        f.model.put("/", directory(&name, 1000 + directory_number));
        (0..50).for_each(|number| drop(f.model.put(&path, file(&format!("{number}"), 0, b"x"))));
        let node = f.find(ROOT, &name).await.id;
        assert_eq!(f.list(node).await.1.len(), 50);
        assert!(f.namespace.state.lock().listings.used() <= 80 << 10);
    }
}

#[tokio::test]
async fn entries_of_a_listing_count_as_lookups() {
    let f = fixture();
    f.model.put("/", file("a", 7, b"x"));
    let (listing, _) = f.list(ROOT).await;
    let entry = batch(listing.batch(0).await).entries[0].clone();
    let stat = f.show(ROOT, &entry, None);
    assert_eq!((stat.id, stat.entry_timeout), (7, LONG));
    f.write("/", file("a", 7, b"changed"));
    let stale = f.show(ROOT, &entry, None);
    assert_eq!(stale.entry_timeout, Duration::ZERO);
    f.namespace.forget(7, 2);
    assert_eq!(f.namespace.size().0, 1);
}

#[tokio::test]
async fn timeouts_end_when_an_entry_expires() {
    let f = fixture();
    let at = SystemTime::now() + Duration::from_secs(60);
    f.model.put("/", Entry { expires: Some(at), ..file("a", 7, b"x") });
    let stat = f.find(ROOT, "a").await;
    assert!(stat.entry_timeout <= Duration::from_secs(60) && stat.attr_timeout > Duration::ZERO);
    f.model.put("/", Entry { expires: Some(UNIX_EPOCH), ..file("b", 8, b"x") });
    assert_eq!(f.find(ROOT, "b").await.entry_timeout, Duration::ZERO);
    let asked = f.model.lookups();
    f.find(ROOT, "b").await;
    assert_eq!(f.model.lookups(), asked + 1);
}

#[tokio::test]
async fn the_filers_own_directories_are_hidden() {
    let f = fixture();
    f.model.put("/", directory("topics", 5));
    f.model.put("/", directory("topic", 6));
    f.absent(ROOT, "topics").await;
    assert_eq!(f.list(ROOT).await.1, ["topic"]);
}

/// Readers and a writer on several threads: after the last event every name shows the last
/// content, and no node is left when all lookups are forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_stress_the_last_change_wins() {
    let f = fixture_with(NamespaceOptions {
        cached_bytes: 8000,
        listing_bytes: 8000,
        ..NamespaceOptions::default()
    });
    f.model.put("/", directory("d", 5));
    let d = f.find(ROOT, "d").await.id;
    let held = Arc::new(Mutex::new(vec![d]));
    let readers: Vec<_> = (0..4u64)
        .map(|reader| {
            let (f, held) = (f.namespace.clone(), held.clone());
            tokio::spawn(async move {
                for turn in 0..500u64 {
                    let name = format!("f{}", (turn * 7 + reader) % 30);
                    if let Ok(LookupResult::Node(stat)) = wait(f.lookup(d, &name)).await {
                        let _ = wait(f.attributes(stat.id)).await;
                        if turn % 3 == 0 { held.lock().push(stat.id) } else { f.forget(stat.id, 1) }
                    }
                    if turn % 50 == reader {
                        let _ = f.listing(d);
                    }
                }
            })
        })
        .collect();
    for turn in 0..2000u64 {
        let (name, inode) = (format!("f{}", turn % 30), 100 + turn % 30);
        let known = f.model.entries.lock().contains_key(&("/d".into(), name.clone()));
        match turn % 11 {
            0 if known => f.delete("/d", &name),
            _ => f.write("/d", file(&name, inode, &turn.to_le_bytes())),
        }
        if turn % 400 == 399 {
            f.namespace.disconnected();
            f.namespace.connected();
        }
        tokio::task::yield_now().await;
    }
    for reader in readers {
        reader.await.expect("no reader panics");
    }
    let last: Vec<_> =
        f.model.entries.lock().iter().filter(|(key, _)| key.0 == "/d").map(|(_, e)| e.clone()).collect();
    for entry in last {
        let stat = f.find(d, &entry.name).await;
        held.lock().push(stat.id);
        assert!(stat.entry.same_content(&entry), "{} shows an older version", entry.name);
    }
    let held = std::mem::take(&mut *held.lock());
    held.iter().rev().for_each(|id| f.namespace.forget(*id, 1));
    // Queued deletions pin nodes.
    f.invalidations();
    assert_eq!(f.namespace.size().0, 1, "only the root is left");
}

#[tokio::test]
async fn a_root_that_is_gone_is_an_empty_directory_until_there_is_one_again() {
    let options =
        NamespaceOptions { root_path: "/data".into(), prefetch_after: u32::MAX, ..Default::default() };
    let f = fixture_with(options);
    f.write("/", directory("data", 7));
    f.write("/data", file("a", 2, b"1"));
    f.find(ROOT, "a").await;
    f.absent(ROOT, "b").await;
    assert!(!f.stat(ROOT).await.attr_timeout.is_zero());
    f.invalidations();

    // No event tells of its content.
    f.model.remove("/data", "a");
    f.delete("/", "data");
    let sent = f.invalidations();
    assert!(sent.contains(&entry_dropped(ROOT, "a")) && sent.contains(&entry_dropped(ROOT, "b")), "{sent:?}");
    let root = f.stat(ROOT).await;
    assert_eq!((root.entry.attr.kind, root.attr_timeout), (FileKind::Directory, Duration::ZERO));
    f.absent(ROOT, "a").await;
    assert!(f.list(ROOT).await.1.is_empty());

    f.write("/", file("data", 9, b"in its place"));
    assert_eq!(f.stat(ROOT).await.entry.attr.kind, FileKind::Directory);
    f.delete("/", "data");

    // A directory is moved to the path: there are events only for its content.
    f.model.put("/", directory("data", 8));
    f.write("/data", file("a", 3, b"2"));
    let root = f.stat(ROOT).await;
    assert_eq!((root.entry.attr.inode, root.attr_timeout.is_zero()), (8, false));
    assert_eq!(f.find(ROOT, "a").await.entry.attr.inode, 3);
    assert_eq!(f.list(ROOT).await.1, ["a"]);
}

impl Fixture {
    /// The next node in the growth queue.
    fn growing(&self) -> Option<GrowthHandle> {
        self.growths.lock().try_recv().ok().and_then(GrowthHandle::new)
    }

    /// Gets the attributes of a file that grows, and passes the growth to `finish`.
    async fn stat_grown(&self, id: NodeId, finish: impl FnOnce(GrowthHandle)) -> NodeStat {
        let (stat, ()) = tokio::join!(self.stat(id), async {
            let growing = loop {
                match self.growing() {
                    Some(growing) => break growing,
                    None => tokio::task::yield_now().await,
                }
            };
            finish(growing);
        });
        stat
    }
}

fn grow(mut growing: GrowthHandle) {
    growing.publish();
}

#[tokio::test]
async fn a_file_that_is_appended_to_keeps_its_node() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b"first"));
    let found = fixture.find(ROOT, "f").await;
    let first = fixture.namespace.version(found.id).unwrap();
    for content in [b"first and".as_slice(), b"first and last"] {
        fixture.invalidations();
        fixture.write("/", file("f", 7, content));
        let names = fixture.invalidations();
        assert!(!names.contains(&Invalidation::Entry { parent: ROOT, name: "f".into() }), "{names:?}");
        let before = fixture.namespace.version(found.id).unwrap();
        let grown = fixture
            .stat_grown(found.id, |mut growing| {
                assert_eq!(growing.node(), found.id);
                assert_eq!(growing.before().size(), before.size());
                let version = fixture.namespace.version(found.id).unwrap();
                assert!(Arc::ptr_eq(&version, growing.version()), "reads are answered first");
                assert_eq!(version.size(), content.len() as u64);
                let shown = |namespace: &Namespace| namespace.state.lock().stat(found.id).unwrap();
                let as_it_was = shown(&fixture.namespace);
                assert_eq!(
                    (as_it_was.entry.attr.size, as_it_was.attr_timeout),
                    (before.size(), Duration::ZERO)
                );
                growing.publish();
                assert_eq!(shown(&fixture.namespace).entry.attr.size, content.len() as u64);
            })
            .await;
        assert_eq!((grown.id, grown.entry.attr.size), (found.id, content.len() as u64));
        assert_eq!(fixture.stat(found.id).await.attr_timeout, NamespaceOptions::default().long_timeout);
    }
    assert_eq!(first.size(), 5, "a version does not change");
}

#[tokio::test]
async fn a_lookup_does_not_wait_for_growth() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b""));
    let found = fixture.find(ROOT, "f").await;
    fixture.write("/", file("f", 7, b"more"));
    let as_it_was = fixture.find(ROOT, "f").await;
    assert_eq!((as_it_was.id, as_it_was.entry.attr.size), (found.id, 0));
    assert_eq!((as_it_was.entry_timeout, as_it_was.attr_timeout), (Duration::ZERO, Duration::ZERO));
    let pin = fixture.namespace.pin(found.id).unwrap();
    let version = fixture.namespace.version(found.id).unwrap();
    assert!(!pin.stands_for(&version), "it is not settled");
    // A change that is no continuation is another file at once.
    fixture.write("/", file("f", 7, b"other"));
    assert!(fixture.invalidations().contains(&Invalidation::Entry { parent: ROOT, name: "f".into() }));
    assert_ne!(fixture.find(ROOT, "f").await.id, found.id);
    grow(fixture.growing().unwrap());
    assert!(pin.stands_for(&version));
    assert_eq!(fixture.namespace.state.lock().stat(found.id).unwrap().entry.attr.size, 4);
}

#[tokio::test]
async fn bytes_appended_during_growth_are_another_growth() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b"a"));
    let found = fixture.find(ROOT, "f").await;
    fixture.write("/", file("f", 7, b"ab"));
    fixture.find(ROOT, "f").await;
    fixture.write("/", file("f", 7, b"abc"));
    let (stat, ()) = tokio::join!(fixture.stat(found.id), async {
        for _ in 0..2 {
            let growing = loop {
                match fixture.growing() {
                    Some(growing) => break growing,
                    None => tokio::task::yield_now().await,
                }
            };
            grow(growing);
        }
    });
    assert_eq!((stat.id, stat.entry.attr.size), (found.id, 3));
}

#[tokio::test]
async fn without_a_growth_queue_nothing_grows() {
    let mut fixture = fixture();
    fixture.write("/", file("f", 7, b"a"));
    let found = fixture.find(ROOT, "f").await;
    fixture.growths.get_mut().close();
    fixture.write("/", file("f", 7, b"ab"));
    assert_eq!(fixture.stat(found.id).await.entry.attr.size, 1);
    let other = fixture.find(ROOT, "f").await;
    assert_ne!(other.id, found.id);
    fixture.namespace.forget(found.id, found_lookups(&fixture, found.id));
    assert!(fixture.namespace.version(found.id).is_err(), "nothing holds it");
}

fn found_lookups(fixture: &Fixture, id: NodeId) -> u64 {
    fixture.namespace.state.lock().nodes.get(id).unwrap().lookups
}

#[tokio::test]
async fn a_file_that_is_open_grows_under_its_new_name() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b"first"));
    let found = fixture.find(ROOT, "f").await;
    fixture.rename(("/", "f"), ("/", "g"));
    fixture.write("/", file("g", 7, b"first and last"));
    // The new name has not been looked up yet.
    let grown = fixture.stat_grown(found.id, grow).await;
    assert_eq!((grown.id, grown.entry.attr.size), (found.id, 14));
    assert_eq!(fixture.find(ROOT, "g").await.id, found.id);
    fixture.absent(ROOT, "f").await;
}

#[tokio::test]
async fn a_file_that_cannot_grow_is_another_node_next_time() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b"first"));
    let found = fixture.find(ROOT, "f").await;
    fixture.write("/", file("f", 7, b"first and last"));
    let refused = fixture.stat_grown(found.id, drop).await;
    assert_eq!((refused.id, refused.entry.attr.size), (found.id, 5));
    assert!(fixture.invalidations().contains(&Invalidation::Entry { parent: ROOT, name: "f".into() }));
    let other = fixture.find(ROOT, "f").await;
    assert_ne!(other.id, found.id);
    assert_eq!(other.entry.attr.size, 14);
    assert_eq!(fixture.namespace.version(found.id).unwrap().size(), 5);
}

#[tokio::test]
async fn a_truncated_or_changed_file_is_another_node() {
    for (inode, content) in
        [(7, b"firs".as_slice()), (7, b"First and last"), (8, b"first and last"), (7, b"fisrt")]
    {
        let fixture = fixture();
        fixture.write("/", file("f", 7, b"first"));
        let found = fixture.find(ROOT, "f").await;
        fixture.write("/", file("f", inode, content));
        assert_ne!(fixture.find(ROOT, "f").await.id, found.id, "{inode} {content:?}");
        assert!(fixture.growing().is_none());
    }
}

#[tokio::test]
async fn a_reply_that_is_late_does_not_take_back_what_was_appended() {
    let fixture = fixture();
    fixture.write("/", file("f", 7, b"first"));
    let found = fixture.find(ROOT, "f").await;
    // An event marks the reply of the first lookup as outdated, and the second reply comes in
    // before it.
    fixture.event(None, Some(("/", &file("f", 7, b"first"))));
    fixture.model.hold_replies();
    let late = wait(fixture.namespace.lookup(ROOT, "f"));
    fixture.write("/", file("f", 7, b"first and last"));
    let newer = fixture.stat_grown(found.id, grow);
    fixture.model.let_reply();
    assert_eq!(newer.await.entry.attr.size, 14);
    match late.await {
        Ok(LookupResult::Node(stat)) => assert_eq!((stat.id, stat.entry.attr.size), (found.id, 14)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_appended_bytes_are_growth() {
    let chunk = |key, offset, size| Chunk {
        fid: FileId { volume: 1, key, cookie: 1 },
        offset,
        size,
        modified_ts_ns: key as i64,
        cipher_key: None,
        is_compressed: false,
        is_manifest: false,
    };
    let with = |size, chunks: &[Chunk]| {
        let mut entry = file("f", 7, b"");
        (entry.attr.size, entry.content) = (size, Content::Chunks(chunks.into()));
        entry
    };
    let (first, second, behind) = (chunk(1, 0, 10), chunk(2, 5, 10), chunk(3, 15, 5));
    let old = with(15, &[first.clone(), second.clone()]);
    let is = |size, chunks: &[Chunk]| growth::grows(&old, &with(size, chunks));
    assert!(is(20, &[first.clone(), second.clone(), behind.clone()]));
    assert!(
        is(20, &[first.clone(), behind.clone(), second.clone()]),
        "the order of those that do not meet is nothing"
    );
    assert!(is(16, &[first.clone(), second.clone()]), "zeros");
    assert!(!is(15, &[first.clone(), second.clone()]), "it is the same");
    assert!(
        !is(20, &[second.clone(), first.clone(), behind.clone()]),
        "another order may be another content"
    );
    assert!(!is(20, &[first.clone(), behind.clone()]), "one is gone");
    assert!(!is(20, &[first.clone(), second.clone(), chunk(4, 14, 6)]), "one reaches back");
    let manifest = Chunk { is_manifest: true, ..behind };
    assert!(!is(20, &[first, second, manifest]), "what a manifest lists is not known");
    let empty = with(0, &[]);
    assert!(
        growth::grows(&file("f", 7, b""), &file("f", 7, b"x")) && growth::grows(&empty, &file("f", 7, b"x"))
    );
    let mut remote = file("f", 7, b"x");
    remote.content = Content::Damaged { reason: "unknown".into() };
    assert!(!growth::grows(&empty, &remote));
    assert!(!growth::grows(&file("f", 7, b"ab"), &with(20, &[])));
}
