//! Versions of files whose only source is the lower mount, and the reads of their bytes.
//!
//! **Versions.** An open for reading fetches the file's attributes anew, after mapped changes were
//! written back. If its fingerprint is [settled](super::content), so that another change would
//! show, the [`ContentKey`] made from it names the bytes, as a file id does in SeaweedFS. Data is
//! cached under a key only if the fingerprint is unchanged after the read. So a version is made
//! like a file of a cluster, from pieces that never change. A [`Reader`] does the rest: blocks,
//! streams, hot ranges.
//!
//! A key includes how often the file was written through the overlay, since a lower daemon may let
//! programs set all times. For the same reason a file of such a daemon gets another key once the
//! kernel has forgotten its inode. A file whose ctime a kernel sets keeps its key.
//!
//! The lower mount answers alone for files of size 0, whose content a daemon may generate on read,
//! for files above [`MAX_FILE_SIZE`], and for files of which a read ended before their size.
//!
//! **Reads** ([`LowerOrigin`]). After a read, the attributes are fetched anew and the overlay's
//! count of changes is compared: a change shows in the attributes before it shows in the bytes. If
//! anything differs, the read fails, and the lower mount answers the program. Any open handle of a
//! file may be used: each was opened with its owner's rights, and the bytes are the same. No file
//! is kept open for this, so a file that is closed above is closed below.
//!
//! **A hanging lower mount** must not block other reads. Each read blocks a thread of its own, of
//! [`MAX_CONCURRENT_READS`] at most, of which prefetch may take [`MAX_SPECULATIVE_READS`]. The
//! thread owns the memory that it reads into: a cancelled fetch does not wait for it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use ring::digest::{Context, SHA256};
use rustix::fs::FileType;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attributes::{Attributes, StatFingerprint};
use super::content::{ChangeToken, ServedVersion, VersionBasis};
use super::error::AttachError;
use super::inodes::Inode;
use super::lower::{CachePolicy, LowerMount};
use super::open_file::OpenFile;
use super::version_source::{OpenIntent, VersionSource};
use crate::arrival::Arrival;
use crate::cache::{Cache, ObjectId};
use crate::priority::{Priority, Urgency};
use crate::read::{
    FileLayout, FileVersion, Object, ObjectEncoding, ObjectList, Origin, OriginError, ReadError, Reader,
};
use crate::telemetry::{Metrics, Source};
use crate::timeline::{StepKind, Timeline};
use crate::write_target::{DetachedBuffer, WriteTarget};

/// The smallest piece, in bytes. A sequential reader has pieces fetched whole.
const MIN_PIECE_SIZE: u64 = 4 << 20;

/// The largest number of pieces. Those of a larger file are larger, too.
const MAX_PIECES: u64 = 1 << 14;

/// The largest file that is cached, in bytes. Its pieces are of 1 GiB.
const MAX_FILE_SIZE: u64 = MAX_PIECES << 30;

/// Finds versions by the fingerprints of lower files.
pub(super) struct LowerSource {
    reader: Arc<Reader>,
    runtime: Handle,
    origin: Arc<LowerOrigin>,
    /// Whether a kernel sets the ctime of the lower files, so that no program can.
    has_kernel_ctime: bool,
}

impl VersionSource for LowerSource {
    fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// `O_DIRECT` asks for the lower mount's bytes, and not for a copy in memory.
    fn serves_direct(&self) -> bool {
        false
    }

    fn find(
        &self,
        file: &Arc<OpenFile>,
        attributes: &Attributes,
        token: ChangeToken,
        _: OpenIntent,
    ) -> Option<ServedVersion> {
        let (inode, fingerprint) = (&file.inode, attributes.fingerprint());
        let has_bytes = attributes.file_type() == FileType::RegularFile
            && (1..=MAX_FILE_SIZE).contains(&fingerprint.size);
        if !has_bytes || !inode.content.is_settled(attributes) || !inode.content.reads_in_full(fingerprint) {
            return None;
        }
        let key = self.key(inode, attributes, token);
        let version = match inode.content.served() {
            // Keeps the version that was served before, with what is known of how it is read.
            Some(ServedVersion { version, basis: VersionBasis::Fingerprint(before) })
                if before == fingerprint =>
            {
                version
            }
            _ => FileVersion::with_layout(
                &inode.shown_path().unwrap_or_default(),
                layout(key, fingerprint.size),
            ),
        };
        self.origin.register(key, file, OpenSnapshot { dev_ino: attributes.dev_ino(), fingerprint, token });
        Some(ServedVersion { version, basis: VersionBasis::Fingerprint(fingerprint) })
    }
}

impl LowerSource {
    /// Whether reads of this lower mount are cached: where that helps, or if `always` is set.
    ///
    /// # Errors
    /// [`AttachError::CacheUnsafe`] if caching is asked for and cannot be right.
    pub(super) fn is_wanted(lower: &LowerMount, always: bool) -> Result<bool, AttachError> {
        match lower.cache_policy {
            CachePolicy::Useful => Ok(true),
            CachePolicy::Redundant => Ok(always),
            CachePolicy::Unsafe if always => {
                let (path, fs_type) = (lower.path.clone(), lower.fs_type.clone());
                Err(AttachError::CacheUnsafe { path, fs_type })
            }
            CachePolicy::Unsafe => Ok(false),
        }
    }

    /// A source that keeps what it reads in `cache`.
    pub(super) fn new(
        cache: Arc<Cache>,
        has_kernel_ctime: bool,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let origin = LowerOrigin::new(metrics.clone());
        let reader = Reader::new(cache, origin.clone(), metrics, runtime.clone());
        Arc::new(Self { reader, runtime, origin, has_kernel_ctime })
    }

    fn key(&self, inode: &Inode, attributes: &Attributes, token: ChangeToken) -> ContentKey {
        let identity = match self.has_kernel_ctime {
            true => FileIdentity::File(inode.handle.bytes()),
            false => FileIdentity::Inode(inode.generation),
        };
        ContentKey::new(identity, attributes.dev_ino(), attributes.fingerprint(), token.changes_here)
    }
}

/// Distinguishes files with the same device and inode number.
#[derive(Debug, Clone, Copy)]
enum FileIdentity<'a> {
    /// The bytes of its handle, which no later file gets.
    File(&'a [u8]),
    /// The generation of its inode, until the kernel forgets it.
    Inode(u64),
}

/// Names the bytes of one file under one fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ContentKey {
    high: u64,
    low: u64,
}

impl ContentKey {
    fn new(
        identity: FileIdentity<'_>,
        dev_ino: (u64, u64),
        fingerprint: StatFingerprint,
        changes_here: u64,
    ) -> Self {
        let StatFingerprint { size, mtime, ctime } = fingerprint;
        let mut digest = Context::new(&SHA256);
        for number in [dev_ino.0, dev_ino.1, size, changes_here] {
            digest.update(&number.to_le_bytes());
        }
        for (seconds, nanoseconds) in [mtime, ctime] {
            digest.update(&seconds.to_le_bytes());
            digest.update(&nanoseconds.to_le_bytes());
        }
        // Last, because it is the only part of variable length.
        match identity {
            FileIdentity::File(key) => {
                digest.update(b"file");
                digest.update(key);
            }
            FileIdentity::Inode(generation) => {
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

    /// The key of the file that `piece` belongs to.
    fn of(piece: &Object) -> Self {
        let ObjectId(id) = piece.id;
        Self { high: (id >> 64) as u64, low: (id as u64).wrapping_sub(piece.offset) }
    }
}

/// A version of size 0.
pub(super) fn empty_version(attributes: &Attributes) -> Arc<FileVersion> {
    FileVersion::with_layout("", layout(ContentKey { high: 0, low: 0 }, attributes.fingerprint().size))
}

/// The layout of a file of `size` bytes: its pieces, in order.
fn layout(key: ContentKey, size: u64) -> FileLayout {
    let piece = size.div_ceil(MAX_PIECES).next_power_of_two().max(MIN_PIECE_SIZE);
    FileLayout::in_order(Pieces { key, size, piece }, size)
}

/// The pieces of a file of `size` bytes: each but the last has `piece` bytes.
#[derive(Debug)]
struct Pieces {
    key: ContentKey,
    size: u64,
    piece: u64,
}

impl ObjectList for Pieces {
    fn count(&self) -> usize {
        self.size.div_ceil(self.piece) as usize
    }

    fn object(&self, index: usize) -> Object {
        let (offset, size) = self.span(index);
        Object {
            id: self.key.object(offset),
            offset,
            size,
            modified_ts_ns: 0,
            encoding: ObjectEncoding::default(),
        }
    }

    fn span(&self, index: usize) -> (u64, u64) {
        let offset = index as u64 * self.piece;
        (offset, (self.size - offset).min(self.piece))
    }
}

/// The one piece of a small file with these attributes.
#[cfg(test)]
fn single_piece(attributes: &Attributes) -> Object {
    let key = ContentKey::new(FileIdentity::Inode(1), attributes.dev_ino(), attributes.fingerprint(), 0);
    layout(key, attributes.fingerprint().size).object(0)
}

/// How many reads may block on the lower mount at once.
const MAX_CONCURRENT_READS: usize = 64;

/// How many of these may be prefetch.
const MAX_SPECULATIVE_READS: usize = 16;

/// Why a read of the lower mount failed.
#[derive(Debug, thiserror::Error)]
enum LowerReadError {
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
struct OpenSnapshot {
    /// Device and inode number.
    dev_ino: (u64, u64),
    fingerprint: StatFingerprint,
    /// Taken before the attributes were fetched.
    token: ChangeToken,
}

/// Reads pieces through the handles that are open on their files.
struct LowerOrigin {
    files: Mutex<HandlesByKey>,
    permits: Arc<Semaphore>,
    speculative_permits: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct HandlesByKey {
    by_key: HashMap<ContentKey, Vec<OriginHandle>>,
    /// The number of keys at which those without an open handle are dropped.
    sweep_threshold: usize,
}

struct OriginHandle {
    file: Weak<OpenFile>,
    snapshot: OpenSnapshot,
}

impl OriginHandle {
    fn is_open(&self) -> bool {
        self.file.strong_count() > 0
    }
}

impl LowerOrigin {
    fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            files: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CONCURRENT_READS)),
            speculative_permits: Arc::new(Semaphore::new(MAX_SPECULATIVE_READS)),
            metrics,
        })
    }

    /// Makes `file` available to reads of `key`, which names its bytes as of `snapshot`.
    fn register(&self, key: ContentKey, file: &Arc<OpenFile>, snapshot: OpenSnapshot) {
        let mut files = self.files.lock();
        if files.by_key.len() >= files.sweep_threshold {
            files.by_key.retain(|_, handles| handles.iter().any(OriginHandle::is_open));
            files.sweep_threshold = (2 * files.by_key.len()).max(1024);
        }
        let handles = files.by_key.entry(key).or_default();
        // Before the list grows, so that the cost of each handle stays constant.
        if handles.len() == handles.capacity() {
            handles.retain(OriginHandle::is_open);
        }
        handles.push(OriginHandle { file: Arc::downgrade(file), snapshot });
    }

    /// An open handle of the file that `key` names.
    fn find(&self, key: ContentKey) -> Result<(Arc<OpenFile>, OpenSnapshot), LowerReadError> {
        let mut files = self.files.lock();
        let handles = files.by_key.get_mut(&key).ok_or(LowerReadError::Closed)?;
        while let Some(OriginHandle { file, snapshot }) = handles.last() {
            // The latest: a change since it was opened is also one since all others were.
            if let Some(file) = file.upgrade() {
                return Ok((file, *snapshot));
            }
            handles.pop();
        }
        Err(LowerReadError::Closed)
    }

    /// Waits for a permit to block on the lower mount.
    async fn permit(&self, priority: &Priority) -> Result<ReadPermit, LowerReadError> {
        let closed = |_| LowerReadError::Closed;
        let ahead = match priority.urgency() {
            Urgency::Demand => None,
            Urgency::Speculative => tokio::select! {
                biased;
                () = priority.raised() => None,
                ahead = self.speculative_permits.clone().acquire_owned() => Some(ahead.map_err(closed)?),
            },
        };
        let permit = self.permits.clone().acquire_owned().await.map_err(closed)?;
        Ok(ReadPermit { _permit: permit, _speculative: ahead })
    }

    async fn read(
        &self,
        piece: &Object,
        offset: u64,
        dst: &mut dyn WriteTarget,
        priority: &Priority,
    ) -> Result<(), LowerReadError> {
        let permit = self.permit(priority).await?;
        let (file, snapshot) = self.find(ContentKey::of(piece))?;
        let from = piece.offset + offset;
        let begun = Instant::now();
        let memory = DetachedBuffer::of(dst);
        let reading = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut memory = memory;
            let read = fill(&file, snapshot, from, memory.bytes());
            (memory, read)
        });
        let (memory, read) = reading.await.map_err(io::Error::other)?;
        memory.reattach(dst);
        read?;
        self.metrics.fetch(Source::Lower, dst.length() as u64, begun.elapsed());
        Ok(())
    }
}

/// A permit for one read, and for prefetch one of the speculative permits as well.
struct ReadPermit {
    _permit: OwnedSemaphorePermit,
    _speculative: Option<OwnedSemaphorePermit>,
}

/// Fills `bytes` from offset `from` on, and checks that the file is still as in `snapshot`.
fn fill(file: &OpenFile, snapshot: OpenSnapshot, from: u64, bytes: &mut [u8]) -> Result<(), LowerReadError> {
    let content = &file.inode.content;
    let read = file.read(bytes, from)?;
    // After the read: a change through the overlay is counted before it is made.
    let now = Attributes::fresh(file)?;
    if now.dev_ino() != snapshot.dev_ino
        || now.fingerprint() != snapshot.fingerprint
        || !content.is_unchanged_since(snapshot.token)
    {
        return Err(LowerReadError::Changed);
    }
    if read < bytes.len() {
        content.mark_short_read(snapshot.fingerprint);
        return Err(LowerReadError::Short);
    }
    Ok(())
}

impl Origin for LowerOrigin {
    fn resolve<'a>(&'a self, _: &'a FileVersion, _: Arrival) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        async { Err(ReadError::Origin(Arc::new(LowerReadError::Foreign))) }.boxed()
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        priority: &'a Priority,
        timeline: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            let reading = timeline.begin(StepKind::Lower);
            let read = self.read(object, offset, dst, priority).await;
            reading.end_request(Source::Lower.label(), None, &read);
            read.map(|()| Source::Lower).map_err(|error| Arc::new(error) as OriginError)
        }
        .boxed()
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

    fn fingerprint(size: u64, mtime: (i64, u32), ctime: (i64, u32)) -> StatFingerprint {
        StatFingerprint { size, mtime, ctime }
    }

    proptest! {
        /// A difference in any part gives another key.
        #[test]
        fn keys_differ_if_any_part_differs(
            dev_ino in any::<(u64, u64)>(),
            size: u64,
            mtime in any::<(i64, u32)>(),
            ctime in any::<(i64, u32)>(),
            changes_here: u64,
            handle in prop::collection::vec(any::<u8>(), 0..40),
            generation: u64,
        ) {
            let of = |dev_ino, fingerprint, changes_here| ContentKey::new(FileIdentity::File(&handle), dev_ino, fingerprint, changes_here);
            let key = of(dev_ino, fingerprint(size, mtime, ctime), changes_here);
            prop_assert_eq!(key, of(dev_ino, fingerprint(size, mtime, ctime), changes_here));
            let longer = [&handle[..], &[0]].concat();
            let others = [
                of((dev_ino.0 ^ 1, dev_ino.1), fingerprint(size, mtime, ctime), changes_here),
                of((dev_ino.0, dev_ino.1 ^ 1), fingerprint(size, mtime, ctime), changes_here),
                of(dev_ino, fingerprint(size ^ 1, mtime, ctime), changes_here),
                of(dev_ino, fingerprint(size, (mtime.0 ^ 1, mtime.1), ctime), changes_here),
                of(dev_ino, fingerprint(size, (mtime.0, mtime.1 ^ 1), ctime), changes_here),
                of(dev_ino, fingerprint(size, mtime, (ctime.0 ^ 1, ctime.1)), changes_here),
                of(dev_ino, fingerprint(size, mtime, (ctime.0, ctime.1 ^ 1)), changes_here),
                of(dev_ino, fingerprint(size, mtime, ctime), changes_here ^ 1),
                ContentKey::new(FileIdentity::File(&longer), dev_ino, fingerprint(size, mtime, ctime), changes_here),
                ContentKey::new(FileIdentity::Inode(generation), dev_ino, fingerprint(size, mtime, ctime), changes_here),
                ContentKey::new(FileIdentity::Inode(generation ^ 1), dev_ino, fingerprint(size, mtime, ctime), changes_here),
            ];
            let different: HashSet<_> = others.iter().chain([&key]).collect();
            prop_assert_eq!(different.len(), others.len() + 1);
        }

        /// Pieces cover the file without gaps, and each has an id of its own that leads back to
        /// the key.
        #[test]
        fn pieces_are_all_of_a_file(key in any::<(u64, u64)>(), size in 1..=MAX_FILE_SIZE) {
            let key = ContentKey { high: key.0, low: key.1 };
            let layout = layout(key, size);
            let pieces: Vec<_> = layout.objects().collect();
            prop_assert!(pieces.len() as u64 <= MAX_PIECES);
            let mut end = 0;
            for piece in pieces.iter() {
                prop_assert_eq!(piece.offset, end);
                prop_assert!(piece.size > 0 && piece.size <= 1 << 30);
                prop_assert_eq!(ContentKey::of(piece), key);
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

    /// An open file, and its one piece.
    fn register(origin: &LowerOrigin, path: &Path) -> (Arc<OpenFile>, Object) {
        let file = Arc::new(OpenFile::at(path, libc::O_RDONLY));
        let attributes = Attributes::of(&*file).unwrap();
        let (fingerprint, token) = (attributes.fingerprint(), file.inode.content.change_token().unwrap());
        let piece = single_piece(&attributes);
        origin.register(
            ContentKey::of(&piece),
            &file,
            OpenSnapshot { dev_ino: attributes.dev_ino(), fingerprint, token },
        );
        (file, piece)
    }

    fn read(origin: &LowerOrigin, piece: &Object, len: usize) -> Result<Vec<u8>, LowerReadError> {
        let (mut bytes, priority) = (vec![0; len], Priority::new(Urgency::Demand));
        runtime().block_on(origin.read(piece, 1, &mut bytes, &priority))?;
        Ok(bytes)
    }

    #[test]
    fn reads_after_a_change_fail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let origin = LowerOrigin::new(Metrics::new());
        let (file, piece) = register(&origin, &path);
        assert_eq!(read(&origin, &piece, 6).unwrap(), b"ontent");

        file.inode.content.mark_changed();
        assert!(
            matches!(read(&origin, &piece, 6), Err(LowerReadError::Changed)),
            "whatever the attributes say"
        );
        let (_again, piece) = register(&origin, &path);
        assert_eq!(read(&origin, &piece, 6).unwrap(), b"ontent", "as it was opened again");
        fs::write(&path, "CONTENT").unwrap();
        assert!(matches!(read(&origin, &piece, 6), Err(LowerReadError::Changed)), "by another way");
    }

    #[test]
    fn a_closed_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "content").unwrap();
        let origin = LowerOrigin::new(Metrics::new());
        let (first, piece) = register(&origin, &path);
        let (second, _) = register(&origin, &path);
        drop(second);
        assert_eq!(read(&origin, &piece, 6).unwrap(), b"ontent", "the other is still open");
        drop(first);
        assert!(matches!(read(&origin, &piece, 6), Err(LowerReadError::Closed)));
    }

    #[test]
    fn a_file_that_ends_before_its_size_is_marked() {
        // Files of sysfs claim the size of a page, whatever they hold.
        let path = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
        let size = fs::metadata(path).map(|found| found.len());
        if size.is_err() || size.is_ok_and(|size| size != 4096) {
            return;
        }
        let origin = LowerOrigin::new(Metrics::new());
        let (file, piece) = register(&origin, path);
        let fingerprint = Attributes::of(&*file).unwrap().fingerprint();
        assert!(file.inode.content.reads_in_full(fingerprint));
        assert!(matches!(read(&origin, &piece, 4095), Err(LowerReadError::Short)));
        assert!(!file.inode.content.reads_in_full(fingerprint));
        assert!(
            file.inode.content.reads_in_full(StatFingerprint { size: 1, ..fingerprint }),
            "it has changed"
        );
    }

    #[test]
    fn prefetch_leaves_permits_to_demand_reads() {
        let origin = LowerOrigin::new(Metrics::new());
        runtime().block_on(async {
            let speculative = Priority::new(Urgency::Speculative);
            let mut permits = Vec::new();
            for _ in 0..MAX_SPECULATIVE_READS {
                permits.push(origin.permit(&speculative).await.unwrap());
            }
            assert!(origin.permit(&speculative).now_or_never().is_none());
            permits.push(origin.permit(&Priority::new(Urgency::Demand)).await.unwrap());
            let waiting = origin.permit(&speculative);
            speculative.raise(Arrival::now());
            permits.push(waiting.await.unwrap());
        });
    }
}
