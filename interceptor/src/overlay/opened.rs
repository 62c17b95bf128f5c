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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::attributes::{Attributes, Stamp};
use super::coherence::Quiet;
use super::files::OpenFile;
use super::kept::Name;
use crate::arrival::Arrival;
use crate::priority::{Priority, Urgency};
use crate::read::{FileLayout, FileVersion, Object, Origin, OriginError, ReadError};
use crate::telemetry::{Metrics, Source};
use crate::write_target::WriteTarget;

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
pub(super) struct State {
    /// Device and inode number.
    pub(super) number: (u64, u64),
    pub(super) stamp: Stamp,
    /// Before these were asked for.
    pub(super) quiet: Quiet,
}

/// The files, by the names of what is in them.
pub(super) struct Opened {
    files: Mutex<Files>,
    turns: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Files {
    by_name: HashMap<Name, Vec<Handle>>,
    /// The number of names at which those without a file are dropped.
    sweep_at: usize,
}

struct Handle {
    file: Weak<OpenFile>,
    state: State,
}

impl Handle {
    fn is_open(&self) -> bool {
        self.file.strong_count() > 0
    }
}

impl Opened {
    pub(super) fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            files: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            ahead: Arc::new(Semaphore::new(AHEAD_AT_ONCE)),
            metrics,
        })
    }

    /// `file` was opened for reading in a state in which its bytes have this name.
    pub(super) fn add(&self, name: Name, file: &Arc<OpenFile>, state: State) {
        let mut files = self.files.lock();
        if files.by_name.len() >= files.sweep_at {
            files.by_name.retain(|_, handles| handles.iter().any(Handle::is_open));
            files.sweep_at = (2 * files.by_name.len()).max(1024);
        }
        let handles = files.by_name.entry(name).or_default();
        // Before it would grow, so that each is looked at no more than a few times.
        if handles.len() == handles.capacity() {
            handles.retain(Handle::is_open);
        }
        handles.push(Handle { file: Arc::downgrade(file), state });
    }

    /// An open file whose bytes have this name, if they are still what they were when it was opened.
    fn find(&self, name: Name) -> Result<(Arc<OpenFile>, State), NotRead> {
        let mut files = self.files.lock();
        let handles = files.by_name.get_mut(&name).ok_or(NotRead::Closed)?;
        while let Some(Handle { file, state }) = handles.last() {
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
    fn of(fillable: &mut dyn WriteTarget) -> Self {
        match fillable.detach() {
            Some(memory) => Self::Given(memory),
            None => Self::Own(vec![0; fillable.length()]),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as long as the value lives its range is mapped, has been written to, and is referred to by nobody but its owner, which is borrowed exclusively.
            Self::Given(memory) => unsafe { std::slice::from_raw_parts_mut(memory.start(), memory.length()) },
            Self::Own(bytes) => bytes,
        }
    }

    /// Gives `fillable`, which it was lent by, what has been read.
    fn give_back(self, fillable: &mut dyn WriteTarget) {
        match self {
            Self::Given(memory) => fillable.reattach(memory),
            Self::Own(bytes) => fillable.bytes().copy_from_slice(&bytes),
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
    use std::fs;
    use std::path::Path;

    use tokio::runtime::Runtime;

    use super::super::kept::one_piece;
    use super::*;

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
