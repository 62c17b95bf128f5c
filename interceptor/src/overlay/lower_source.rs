//! Versions of files whose only source is the mount below, by what it tells of them.
//!
//! An open for reading asks the mount below afresh, after what programs have mapped and changed there was written back: which file it is, its size, its times of modification and
//! change. If these are [settled](super::content), so that another change would show in them, they are the name of the bytes, as a file id of SeaweedFS is: whatever was read under
//! a name, and found to be under the same name still when it had been read, is right under that name for ever. So a version is made like a
//! file of a cluster, of pieces that never change, and the rest is that of [`reader`](crate::read)s: blocks, streams, hot ranges. [`Opened`] brings the bytes.
//!
//! A name has also how often the file was written by way of this layer: a daemon below may let programs set all times.
//! For the same reason, a file of such a daemon has other names once the kernel has forgotten and found it again; one whose times of change a kernel sets keeps its name.
//!
//! Left to the mount below are files without bytes by their size, whose content a daemon may make up as it is read; larger ones than
//! [`LARGEST`]; and for as long as they keep their attributes those of which less could be read than these promise.
//!
//! Files of the mount below that are open for reading, as the source of what is kept of them.
//!
//! What is read is believed if, when it has been read, the file has still the attributes under which it was named, asked afresh, and nothing has changed it by way of this layer: a
//! change shows in the attributes before it shows in the bytes. Else the read fails, and who waits for it is answered by the mount below.
//!
//! Any handle of a file may bring its bytes, whoever opened it: each was opened with its owner's rights, and the bytes are the same. Nothing is kept open for this
//! alone, so that a file is closed below when it is closed above.
//!
//! **A mount below that hangs** must hold up nobody else. Each read has a thread of its own while it waits, up to [`AT_ONCE`] of them, and what is read ahead
//! may take a part of them only. The memory that is read into goes with the read: who gives up does not wait for it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdma_engine::client::Destination;
use ring::digest::{Context, SHA256};
use rustix::fs::FileType;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attributes::{Attributes, Stamp};
use super::content::{Basis, Quiet, Served};
use super::inodes::Node;
use super::lower::{AttachError, Keeping, Lower};
use super::open_file::OpenFile;
use super::version_source::{VersionSource, Whom};
use crate::arrival::Arrival;
use crate::cache::{Cache, ObjectId};
use crate::priority::{Priority, Urgency};
use crate::read::{FileLayout, FileVersion, Object, ObjectEncoding, Origin, OriginError, ReadError, Reader};
use crate::telemetry::{Metrics, Source};
use crate::write_target::WriteTarget;

/// Files are cut into pieces of this size, which are fetched whole for who reads front to back.
const PIECE: u64 = 4 << 20;

/// The most pieces of a file: those of a larger one are larger, too.
const MOST_PIECES: u64 = 1 << 14;

/// Larger files are left alone. The pieces of this one are of 1 GiB.
const LARGEST: u64 = MOST_PIECES << 30;

/// Finds versions, and reads them.
pub(super) struct Kept {
    reader: Arc<Reader>,
    runtime: Handle,
    opened: Arc<Opened>,
    /// Whether programs cannot set the times of change of the files below.
    has_change_times: bool,
}

impl VersionSource for Kept {
    fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn serves_direct(&self) -> bool {
        false
    }

    fn find(&self, file: &Arc<OpenFile>, attributes: &Attributes, quiet: Quiet, _: Whom) -> Option<Served> {
        let (node, stamp) = (&file.node, attributes.stamp());
        let has_bytes =
            attributes.file_type() == FileType::RegularFile && (1..=LARGEST).contains(&stamp.size);
        if !has_bytes || !node.content.is_settled(attributes) || !node.content.is_fit(stamp) {
            return None;
        }
        let name = self.name(node, attributes, quiet);
        let version = match node.content.served() {
            // What is known of it, such as how it is read, is worth keeping.
            Some(Served { version, basis: Basis::Stamp(before) }) if before == stamp => version,
            _ => FileVersion::with_layout(&node.shown_path().unwrap_or_default(), layout(name, stamp.size)),
        };
        self.opened.add(name, file, State { number: attributes.number(), stamp, quiet });
        Some(Served { version, basis: Basis::Stamp(stamp) })
    }
}

impl Kept {
    /// Whether what is read from the mount below is to be kept: where that is of use, or wanted `always`.
    pub(super) fn is_wanted(lower: &Lower, always: bool) -> Result<bool, AttachError> {
        match lower.keeping {
            Keeping::Worthwhile => Ok(true),
            Keeping::Needless => Ok(always),
            Keeping::Wrong if always => {
                let (path, fs_type) = (lower.path.clone(), lower.fs_type.clone());
                Err(AttachError::NotKept { path, fs_type })
            }
            Keeping::Wrong => Ok(false),
        }
    }

    /// What is read from the mount below is kept in `cache`.
    pub(super) fn new(
        cache: Arc<Cache>,
        has_change_times: bool,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let opened = Opened::new(metrics.clone());
        let reader = Reader::new(cache, opened.clone(), metrics, runtime.clone());
        Arc::new(Self { reader, runtime, opened, has_change_times })
    }

    fn name(&self, node: &Node, attributes: &Attributes, quiet: Quiet) -> Name {
        let identity = match self.has_change_times {
            true => Identity::File(node.key.bytes()),
            false => Identity::Node(node.generation),
        };
        Name::new(identity, attributes.number(), attributes.stamp(), quiet.written)
    }
}

/// What tells a file from others with the same numbers.
#[derive(Debug, Clone, Copy)]
enum Identity<'a> {
    /// Itself, as long as it exists.
    File(&'a [u8]),
    /// That it is what the kernel knows by this number, until it is forgotten.
    Node(u64),
}

/// The name of the bytes of a file in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    high: u64,
    low: u64,
}

impl Name {
    fn new(identity: Identity<'_>, number: (u64, u64), stamp: Stamp, written: u64) -> Self {
        let Stamp { size, mtime, ctime } = stamp;
        let mut digest = Context::new(&SHA256);
        for number in [number.0, number.1, size, written] {
            digest.update(&number.to_le_bytes());
        }
        for (seconds, nanoseconds) in [mtime, ctime] {
            digest.update(&seconds.to_le_bytes());
            digest.update(&nanoseconds.to_le_bytes());
        }
        // Last, as the only part whose length is not always the same.
        match identity {
            Identity::File(key) => {
                digest.update(b"file");
                digest.update(key);
            }
            Identity::Node(generation) => {
                digest.update(b"node");
                digest.update(&generation.to_le_bytes());
            }
        }
        let digest = digest.finish();
        let mut words = digest.as_ref().chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut word = || words.next().unwrap_or_default();
        Self { high: word(), low: word() }
    }

    /// The id of the object for the piece at `offset`.
    fn object(self, offset: u64) -> ObjectId {
        ObjectId(u128::from(self.high) << 64 | u128::from(self.low.wrapping_add(offset)))
    }

    /// The name of the file that `piece` is of.
    fn of(piece: &Object) -> Self {
        let ObjectId(id) = piece.id;
        Self { high: (id >> 64) as u64, low: (id as u64).wrapping_sub(piece.offset) }
    }
}

/// A version without bytes.
pub(super) fn empty(attributes: &Attributes) -> Arc<FileVersion> {
    FileVersion::with_layout("", layout(Name { high: 0, low: 0 }, attributes.stamp().size))
}

/// The layout of a file of `size` bytes: its pieces, in order.
fn layout(name: Name, size: u64) -> FileLayout {
    let piece = size.div_ceil(MOST_PIECES).next_power_of_two().max(PIECE);
    let piece_at = |index: u64| {
        let offset = index * piece;
        let size = (size - offset).min(piece);
        Object { id: name.object(offset), offset, size, encoding: ObjectEncoding::default() }
    };
    FileLayout::objects_in_order((0..size.div_ceil(piece)).map(piece_at).collect(), size)
}

/// A small file with these attributes, as the only piece of itself.
#[cfg(test)]
fn one_piece(attributes: &Attributes) -> Object {
    let name = Name::new(Identity::Node(1), attributes.number(), attributes.stamp(), 0);
    layout(name, attributes.stamp().size).objects()[0].clone()
}

/// How many reads may wait for the mount below.
const AT_ONCE: usize = 64;

/// How many of these may be for what nobody has asked for yet.
const AHEAD_AT_ONCE: usize = 16;

/// Why the mount below did not bring the bytes of a version.
#[derive(Debug, thiserror::Error)]
enum NotRead {
    #[error("nobody has it open any more")]
    Closed,
    #[error("it has changed")]
    Changed,
    #[error("its bytes end before its size")]
    Short,
    #[error("{0}")]
    Failed(#[from] io::Error),
    #[error("there is no such thing in a mount that is read as it is")]
    Foreign,
}

/// The state of a file when it was opened.
#[derive(Debug, Clone, Copy)]
struct State {
    /// Device and inode number.
    number: (u64, u64),
    stamp: Stamp,
    /// Before these were asked for.
    quiet: Quiet,
}

/// The files, by the names of what is in them.
struct Opened {
    files: Mutex<Files>,
    turns: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Files {
    by_name: HashMap<Name, Vec<OriginHandle>>,
    /// The number of names at which those without a file are dropped.
    sweep_at: usize,
}

struct OriginHandle {
    file: Weak<OpenFile>,
    state: State,
}

impl OriginHandle {
    fn is_open(&self) -> bool {
        self.file.strong_count() > 0
    }
}

impl Opened {
    fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            files: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
            metrics,
        })
    }

    /// `file` was opened for reading in a state in which its bytes have this name.
    fn add(&self, name: Name, file: &Arc<OpenFile>, state: State) {
        let mut files = self.files.lock();
        if files.by_name.len() >= files.sweep_at {
            files.by_name.retain(|_, handles| handles.iter().any(OriginHandle::is_open));
            files.sweep_at = (2 * files.by_name.len()).max(1024);
        }
        let handles = files.by_name.entry(name).or_default();
        // Before it would grow, so that each is looked at no more than a few times.
        if handles.len() == handles.capacity() {
            handles.retain(OriginHandle::is_open);
        }
        handles.push(OriginHandle { file: Arc::downgrade(file), state });
    }

    /// An open file whose bytes have this name, if they are still what they were when it was opened.
    fn find(&self, name: Name) -> Result<(Arc<OpenFile>, State), NotRead> {
        let mut files = self.files.lock();
        let handles = files.by_name.get_mut(&name).ok_or(NotRead::Closed)?;
        while let Some(OriginHandle { file, state }) = handles.last() {
            // The latest knows the most: if there was a change since it was opened, there was one since all others were.
            if let Some(file) = file.upgrade() {
                return Ok((file, *state));
            }
            handles.pop();
        }
        Err(NotRead::Closed)
    }

    /// Waits until another read may wait for the mount below.
    async fn turn(&self, priority: &Priority) -> Result<Turn, NotRead> {
        let closed = |_| NotRead::Closed;
        let ahead = match priority.urgency() {
            Urgency::Demand => None,
            Urgency::Speculative => tokio::select! {
                biased;
                () = priority.raised() => None,
                ahead = self.ahead.clone().acquire_owned() => Some(ahead.map_err(closed)?),
            },
        };
        let turn = self.turns.clone().acquire_owned().await.map_err(closed)?;
        Ok(Turn { _turn: turn, _ahead: ahead })
    }

    async fn read(
        &self,
        piece: &Object,
        offset: u64,
        dst: &mut dyn WriteTarget,
        priority: &Priority,
    ) -> Result<(), NotRead> {
        let turn = self.turn(priority).await?;
        let (file, state) = self.find(Name::of(piece))?;
        let from = piece.offset + offset;
        let begun = Instant::now();
        let memory = Lent::of(dst);
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut memory = memory;
            let read = fill(&file, state, from, memory.bytes());
            (memory, read)
        });
        let (memory, read) = reading.await.map_err(io::Error::other)?;
        memory.give_back(dst);
        read?;
        self.metrics.fetch(Source::Lower, dst.length() as u64, begun.elapsed());
        Ok(())
    }
}

/// The right of one read to wait for the mount below, and, if nobody has asked for it yet, of one of those.
struct Turn {
    _turn: OwnedSemaphorePermit,
    _ahead: Option<OwnedSemaphorePermit>,
}

/// Fills `bytes` with those of the file from `from` on, in this state.
fn fill(file: &OpenFile, state: State, from: u64, bytes: &mut [u8]) -> Result<(), NotRead> {
    let content = &file.node.content;
    let read = file.read(bytes, from)?;
    // In this order: whoever changes it by way of this layer says so first.
    let now = Attributes::fresh(file)?;
    if now.number() != state.number || now.stamp() != state.stamp || !content.is_quiet_since(state.quiet) {
        return Err(NotRead::Changed);
    }
    if read < bytes.len() {
        content.is_unfit(state.stamp);
        return Err(NotRead::Short);
    }
    Ok(())
}

/// Memory that is being read into, which outlasts who wanted it read.
enum Lent {
    /// That of the cache.
    Given(Box<dyn Destination>),
    /// A stand-in.
    Own(Vec<u8>),
}

impl Lent {
    fn of(target: &mut dyn WriteTarget) -> Self {
        match target.detach() {
            Some(memory) => Self::Given(memory),
            None => Self::Own(vec![0; target.length()]),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as long as the value lives its range is mapped, has been written to, and is referred to by nobody but its owner, which is borrowed exclusively.
            Self::Given(memory) => unsafe { std::slice::from_raw_parts_mut(memory.start(), memory.length()) },
            Self::Own(bytes) => bytes,
        }
    }

    /// Gives `target`, which it was lent by, what has been read.
    fn give_back(self, target: &mut dyn WriteTarget) {
        match self {
            Self::Given(memory) => target.reattach(memory),
            Self::Own(bytes) => target.bytes().copy_from_slice(&bytes),
        }
    }
}

impl Origin for Opened {
    fn resolve<'a>(&'a self, _: &'a FileVersion, _: Arrival) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        async { Err(ReadError::Origin(Arc::new(NotRead::Foreign))) }.boxed()
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        priority: &'a Priority,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        let read = self.read(object, offset, dst, priority);
        read.map(|read| read.map(|()| Source::Lower).map_err(|error| Arc::new(error) as OriginError)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use tokio::runtime::Runtime;

    use super::*;

    fn stamp(size: u64, mtime: (i64, u32), ctime: (i64, u32)) -> Stamp {
        Stamp { size, mtime, ctime }
    }

    proptest! {
        /// Whatever of a file is different gives its bytes another name.
        #[test]
        fn names_differ_if_anything_differs(
            number in any::<(u64, u64)>(),
            size: u64,
            mtime in any::<(i64, u32)>(),
            ctime in any::<(i64, u32)>(),
            written: u64,
            key in prop::collection::vec(any::<u8>(), 0..40),
            generation: u64,
        ) {
            let of = |number, stamp, written| Name::new(Identity::File(&key), number, stamp, written);
            let name = of(number, stamp(size, mtime, ctime), written);
            prop_assert_eq!(name, of(number, stamp(size, mtime, ctime), written));
            let longer = [&key[..], &[0]].concat();
            let others = [
                of((number.0 ^ 1, number.1), stamp(size, mtime, ctime), written),
                of((number.0, number.1 ^ 1), stamp(size, mtime, ctime), written),
                of(number, stamp(size ^ 1, mtime, ctime), written),
                of(number, stamp(size, (mtime.0 ^ 1, mtime.1), ctime), written),
                of(number, stamp(size, (mtime.0, mtime.1 ^ 1), ctime), written),
                of(number, stamp(size, mtime, (ctime.0 ^ 1, ctime.1)), written),
                of(number, stamp(size, mtime, (ctime.0, ctime.1 ^ 1)), written),
                of(number, stamp(size, mtime, ctime), written ^ 1),
                Name::new(Identity::File(&longer), number, stamp(size, mtime, ctime), written),
                Name::new(Identity::Node(generation), number, stamp(size, mtime, ctime), written),
                Name::new(Identity::Node(generation ^ 1), number, stamp(size, mtime, ctime), written),
            ];
            let different: HashSet<_> = others.iter().chain([&name]).collect();
            prop_assert_eq!(different.len(), others.len() + 1);
        }

        /// The pieces of a file are all of it, each under an id of its own that leads back to the file.
        #[test]
        fn pieces_are_all_of_a_file(name in any::<(u64, u64)>(), size in 1..=LARGEST) {
            let name = Name { high: name.0, low: name.1 };
            let layout = layout(name, size);
            let pieces = layout.objects();
            prop_assert!(pieces.len() as u64 <= MOST_PIECES);
            let mut end = 0;
            for piece in pieces.iter() {
                prop_assert_eq!(piece.offset, end);
                prop_assert!(piece.size > 0 && piece.size <= 1 << 30);
                prop_assert_eq!(Name::of(piece), name);
                end += piece.size;
            }
            prop_assert_eq!(end, size);
            let ids: HashSet<_> = pieces.iter().map(|piece| piece.id).collect();
            prop_assert_eq!(ids.len(), pieces.len());
        }
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    }

    /// A file that is open, as the only piece of itself.
    fn add(opened: &Opened, path: &Path) -> (Arc<OpenFile>, Object) {
        let file = Arc::new(OpenFile::at(path, libc::O_RDONLY));
        let attributes = Attributes::of(&*file).unwrap();
        let (stamp, quiet) = (attributes.stamp(), file.node.content.quiet().unwrap());
        let piece = one_piece(&attributes);
        opened.add(Name::of(&piece), &file, State { number: attributes.number(), stamp, quiet });
        (file, piece)
    }

    fn read(opened: &Opened, piece: &Object, len: usize) -> Result<Vec<u8>, NotRead> {
        let (mut bytes, priority) = (vec![0; len], Priority::new(Urgency::Demand));
        runtime().block_on(opened.read(piece, 1, &mut bytes, &priority))?;
        Ok(bytes)
    }

    #[test]
    fn bytes_are_those_of_the_state_that_was_named_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let opened = Opened::new(Metrics::new());
        let (file, piece) = add(&opened, &path);
        assert_eq!(read(&opened, &piece, 6).unwrap(), b"ontent");

        file.node.content.changes();
        assert!(matches!(read(&opened, &piece, 6), Err(NotRead::Changed)), "whatever the attributes say");
        let (_again, piece) = add(&opened, &path);
        assert_eq!(read(&opened, &piece, 6).unwrap(), b"ontent", "as it was opened again");
        fs::write(&path, "CONTENT").unwrap();
        assert!(matches!(read(&opened, &piece, 6), Err(NotRead::Changed)), "by another way");
    }

    #[test]
    fn what_nobody_has_open_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let opened = Opened::new(Metrics::new());
        let (first, piece) = add(&opened, &path);
        let (second, _) = add(&opened, &path);
        drop(second);
        assert_eq!(read(&opened, &piece, 6).unwrap(), b"ontent", "the other is still open");
        drop(first);
        assert!(matches!(read(&opened, &piece, 6), Err(NotRead::Closed)));
    }

    #[test]
    fn a_file_that_ends_before_its_size_is_left_alone() {
        // Files of sysfs have a size of a page, whatever they hold.
        let path = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
        let size = fs::metadata(path).map(|found| found.len());
        if size.is_err() || size.is_ok_and(|size| size != 4096) {
            return;
        }
        let opened = Opened::new(Metrics::new());
        let (file, piece) = add(&opened, path);
        let stamp = Attributes::of(&*file).unwrap().stamp();
        assert!(file.node.content.is_fit(stamp));
        assert!(matches!(read(&opened, &piece, 4095), Err(NotRead::Short)));
        assert!(!file.node.content.is_fit(stamp));
        assert!(file.node.content.is_fit(Stamp { size: 1, ..stamp }), "it has changed");
    }

    #[test]
    fn what_is_read_ahead_leaves_turns_to_others() {
        let opened = Opened::new(Metrics::new());
        runtime().block_on(async {
            let speculative = Priority::new(Urgency::Speculative);
            let mut turns = Vec::new();
            for _ in 0..AHEAD_AT_ONCE {
                turns.push(opened.turn(&speculative).await.unwrap());
            }
            assert!(opened.turn(&speculative).now_or_never().is_none());
            turns.push(opened.turn(&Priority::new(Urgency::Demand)).await.unwrap());
            let waiting = opened.turn(&speculative);
            speculative.raise(Arrival::now());
            turns.push(waiting.await.unwrap());
        });
    }
}
