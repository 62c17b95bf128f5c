//! The ledger: records in memory that outlive the process that writes them.
//!
//! A daemon that takes over a connection to the kernel must know what its predecessor has told the
//! kernel: which node a number is, and what is open. The predecessor may have been killed at any
//! instruction. So it keeps that in a memfd, of which another process holds a descriptor, and
//! writes each change before the kernel can learn of it.
//!
//! ```text
//!  page 0          span 1            span 2            span 3 …
//!  ┌────────────┬─────────────────┬─────────────────┬──────────────────────────┐
//!  │ magic      │ head, blocks of │ head, blocks of │ head, one record that is │
//!  │ format     │ 64 bytes        │ 256 bytes       │ longer than a span       │
//!  │ generation │                 │                 │                          │
//!  └────────────┴─────────────────┴─────────────────┴──────────────────────────┘
//! ```
//!
//! A block has one record: a head of [`HEAD`] bytes and the payload. The length in the head is
//! written last, and zeroed first, as one atomic word: a record is there as a whole or not at all.
//! A record is replaced by writing another with a higher sequence number, and removing the first
//! one; a reader that finds both takes the later. Checksums tell a damaged record from a good one,
//! which writing in this order should never leave.
//!
//! Each record has a counter, the only part that changes in place. The counters of a span stand
//! side by side in its head, because every lookup changes one: a walk through known files touches
//! a line of the CPU's cache for eight of them.
//!
//! Its size is bounded. A ledger that is full, or that meets an error, says of itself that it is
//! incomplete, and no process takes over from it ([`LedgerError::Incomplete`]).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// `ICLEDGER` in ASCII, the first word of a ledger.
const MAGIC: u64 = u64::from_le_bytes(*b"ICLEDGER");

/// Changes with the layout of the ledger or of any record in it.
const FORMAT: u64 = 2;

/// Where the words of page 0 are.
const MAGIC_AT: usize = 0;
const FORMAT_AT: usize = 8;
const GENERATION_AT: usize = 16;
const INCOMPLETE_AT: usize = 24;

/// The unit in which the memfd is divided, in bytes.
const SPAN: usize = 64 << 10;

/// Where the counters of a span are. Before them is a word that has the size of its blocks in the
/// lower half, and in the upper half how many spans there are in this one.
const COUNTERS_AT: usize = 8;

/// Where the record of a run of spans is, after its one counter.
const LONG_RECORD_OFFSET: usize = RecordId::UNIT;

/// Sizes of blocks in bytes, heads included. A span of blocks of size 0 is one record.
const BLOCK_SIZES: [usize; 13] = [64, 96, 128, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096, 8192];

/// The head of a record: length and kind, checksum, sequence number.
const HEAD: usize = 24;
const LENGTH_AT: usize = 0;
const CHECKSUM_AT: usize = 8;
const SEQUENCE_AT: usize = 16;

/// What a record is about. Who writes a kind knows its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum RecordKind {
    /// What was agreed with the kernel when the file system was mounted.
    Mount = 1,
    /// A node that the kernel knows; the counter is its lookups.
    Node = 2,
    /// A name that the kernel may have cached as absent.
    Absent = 3,
    /// A name that the kernel must still be told to drop.
    Invalidation = 4,
    /// A number that the kernel got without a node; the counter is how often.
    Uncounted = 5,
    /// An open file or directory.
    Handle = 6,
    /// A file that was registered for the kernel to read by itself.
    Backing = 7,
}

impl RecordKind {
    fn from_number(number: u32) -> Option<Self> {
        use RecordKind::*;
        [Mount, Node, Absent, Invalidation, Uncounted, Handle, Backing]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Where a record is: its distance from the beginning of the memfd in units of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RecordId(u32);

impl RecordId {
    const UNIT: usize = 32;

    fn at(offset: usize) -> Self {
        Self((offset / Self::UNIT) as u32)
    }

    fn offset(self) -> usize {
        self.0 as usize * Self::UNIT
    }
}

/// A record that a predecessor has left.
#[derive(Debug)]
pub(crate) struct StoredRecord {
    pub(crate) id: RecordId,
    pub(crate) kind: RecordKind,
    /// Larger for what was written later.
    pub(crate) sequence: u64,
    pub(crate) counter: u64,
    payload: Vec<u8>,
}

impl StoredRecord {
    /// Its payload as a value. `None` if it has another form.
    pub(crate) fn value<T: DeserializeOwned>(&self) -> Option<T> {
        postcard::from_bytes(&self.payload).ok()
    }
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("it was written by another version of this program")]
    OtherFormat,
    #[error("it is incomplete, since there was no room")]
    Incomplete,
    #[error("a record in it is damaged")]
    Damaged,
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// The records of a mount, or none: then every call does nothing. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Ledger(Option<Arc<Mutex<Heap>>>);

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("is_kept", &self.is_kept()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// A ledger that keeps nothing, for a file system that is not taken over.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// A new ledger of at most `limit` bytes. Memory is used as records come.
    pub(crate) fn create(limit: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(c"interceptor-ledger", MFdFlags::MFD_CLOEXEC)?);
        let limit = limit.next_multiple_of(SPAN).clamp(2 * SPAN, u32::MAX as usize * RecordId::UNIT / 2);
        file.set_len(limit as u64)?;
        let heap = Heap::map(file)?;
        heap.word(FORMAT_AT).store(FORMAT, Ordering::Release);
        heap.word(MAGIC_AT).store(MAGIC, Ordering::Release);
        Ok(Self(Some(Arc::new(Mutex::new(heap)))))
    }

    /// The ledger that a predecessor has left, and its records in the order of their sequence
    /// numbers. The predecessor must have ended.
    ///
    /// # Errors
    /// When it cannot be trusted. Then no process can take over.
    pub(crate) fn open(memfd: OwnedFd) -> Result<(Self, Vec<StoredRecord>), LedgerError> {
        let mut heap = Heap::map(File::from(memfd))?;
        if [MAGIC_AT, FORMAT_AT].map(|at| heap.word(at).load(Ordering::Acquire)) != [MAGIC, FORMAT] {
            return Err(LedgerError::OtherFormat);
        }
        if heap.word(INCOMPLETE_AT).load(Ordering::Acquire) != 0 {
            return Err(LedgerError::Incomplete);
        }
        let records = heap.scan()?;
        heap.word(GENERATION_AT).fetch_add(1, Ordering::AcqRel);
        Ok((Self(Some(Arc::new(Mutex::new(heap)))), records))
    }

    /// Whether there is one.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// How often the ledger has been taken over.
    pub(crate) fn generation(&self) -> u64 {
        self.0.as_ref().map_or(0, |heap| heap.lock().word(GENERATION_AT).load(Ordering::Acquire))
    }

    /// Whether it has everything, so that a successor could take over.
    #[cfg(test)]
    pub(crate) fn is_complete(&self) -> bool {
        self.0.as_ref().is_some_and(|heap| heap.lock().word(INCOMPLETE_AT).load(Ordering::Acquire) == 0)
    }

    /// A descriptor of its memory, for the process that outlives this one.
    pub(crate) fn descriptor(&self) -> Option<io::Result<OwnedFd>> {
        self.0.as_ref().map(|heap| heap.lock().file.as_fd().try_clone_to_owned())
    }

    /// Adds a record.
    pub(crate) fn insert(&self, kind: RecordKind, counter: u64, value: &impl Serialize) -> Option<RecordId> {
        self.0.as_ref()?.lock().write(kind, counter, value)
    }

    /// Puts `value` in the place of a record, if there is one, and returns the new one.
    pub(crate) fn replace(
        &self,
        old: Option<RecordId>,
        kind: RecordKind,
        counter: u64,
        value: &impl Serialize,
    ) -> Option<RecordId> {
        let mut heap = self.0.as_ref()?.lock();
        let new = heap.write(kind, counter, value);
        if let Some(old) = old {
            heap.remove(old);
        }
        new
    }

    /// Changes the counter of a record.
    pub(crate) fn count(&self, id: Option<RecordId>, counter: u64) {
        if let (Some(heap), Some(id)) = (&self.0, id) {
            heap.lock().counter(id).store(counter, Ordering::Release);
        }
    }

    /// Removes a record.
    pub(crate) fn remove(&self, id: Option<RecordId>) {
        if let (Some(heap), Some(id)) = (&self.0, id) {
            heap.lock().remove(id);
        }
    }
}

/// The memory of a ledger, and what of it is free.
struct Heap {
    file: File,
    memory: MmapRaw,
    /// Free blocks, by the index of their size.
    free: [Vec<RecordId>; BLOCK_SIZES.len()],
    /// Free spans: the first of a run, and how many.
    free_spans: BTreeMap<usize, usize>,
    /// The first span that was never used.
    next_span: usize,
    sequence: u64,
    /// The last payload, kept for its capacity.
    buffer: Vec<u8>,
}

impl Heap {
    fn map(file: File) -> io::Result<Self> {
        let memory = MmapOptions::new().map_raw(&file)?;
        if memory.len() < 2 * SPAN {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self {
            file,
            memory,
            free: Default::default(),
            free_spans: BTreeMap::new(),
            next_span: 1,
            sequence: 0,
            buffer: Vec::new(),
        })
    }

    fn spans(&self) -> usize {
        self.memory.len() / SPAN
    }

    /// The word at `offset`, which is a multiple of eight.
    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.memory.len());
        // SAFETY: the word lies within the mapping, which lives as long as `self` and begins at a
        // page. Whatever reads or writes it does so as an atomic.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(offset).cast()) }
    }

    /// The counter of a record.
    fn counter(&self, id: RecordId) -> &AtomicU64 {
        let at = id.offset();
        let span = at / SPAN * SPAN;
        let (block, _) = span_parts(self.word(span).load(Ordering::Relaxed));
        let index = (at - span - first_block_at(block)).checked_div(block).unwrap_or(0);
        self.word(span + COUNTERS_AT + 8 * index)
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        assert!(offset + len <= self.memory.len());
        // SAFETY: the range lies within the mapping. Nothing writes to it meanwhile: this process
        // needs `&mut self` for that, and of other processes only one that has ended has written.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(offset), len) }
    }

    fn bytes_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset + len <= self.memory.len());
        // SAFETY: as for `bytes`, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(offset), len) }
    }

    fn write(&mut self, kind: RecordKind, counter: u64, value: &impl Serialize) -> Option<RecordId> {
        let mut payload = std::mem::take(&mut self.buffer);
        payload.clear();
        let written = postcard::to_io(value, &mut payload).map(drop);
        let id = written.ok().and_then(|()| self.allocate(HEAD + payload.len()));
        if let Some(id) = id {
            self.sequence += 1;
            let (at, sequence) = (id.offset(), self.sequence);
            self.bytes_mut(at + HEAD, payload.len()).copy_from_slice(&payload);
            let length = length_word(kind, payload.len());
            self.word(at + CHECKSUM_AT).store(checksum(length, sequence, &payload), Ordering::Relaxed);
            self.word(at + SEQUENCE_AT).store(sequence, Ordering::Relaxed);
            self.counter(id).store(counter, Ordering::Relaxed);
            self.word(at + LENGTH_AT).store(length, Ordering::Release);
        } else if self.word(INCOMPLETE_AT).swap(1, Ordering::AcqRel) == 0 {
            tracing::warn!("too much is known to the kernel: if this process dies, its mount is taken away");
        }
        self.buffer = payload;
        id
    }

    fn remove(&mut self, id: RecordId) {
        let at = id.offset();
        self.word(at + LENGTH_AT).store(0, Ordering::Release);
        let first = at / SPAN;
        let (block, spans) = span_parts(self.word(first * SPAN).load(Ordering::Relaxed));
        match BLOCK_SIZES.iter().position(|size| *size == block) {
            Some(index) => self.free[index].push(id),
            None => self.release_spans(first, spans),
        }
    }

    /// A free block for `len` bytes. `None` if there is no room.
    fn allocate(&mut self, len: usize) -> Option<RecordId> {
        let Some(index) = BLOCK_SIZES.iter().position(|size| *size >= len) else {
            let spans = (LONG_RECORD_OFFSET + len).div_ceil(SPAN);
            let first = self.take_spans(spans)?;
            self.word(first * SPAN + LONG_RECORD_OFFSET + LENGTH_AT).store(0, Ordering::Release);
            self.word(first * SPAN).store(span_word(0, spans), Ordering::Release);
            return Some(RecordId::at(first * SPAN + LONG_RECORD_OFFSET));
        };
        if self.free[index].is_empty() {
            let (size, first) = (BLOCK_SIZES[index], self.take_spans(1)?);
            let blocks: Vec<_> = blocks_of(first, size).collect();
            for at in &blocks {
                self.word(at + LENGTH_AT).store(0, Ordering::Relaxed);
            }
            self.word(first * SPAN).store(span_word(size, 1), Ordering::Release);
            self.free[index].extend(blocks.into_iter().rev().map(RecordId::at));
        }
        self.free[index].pop()
    }

    /// A run of free spans, whose first word the caller sets.
    fn take_spans(&mut self, count: usize) -> Option<usize> {
        let found = self.free_spans.iter().find(|(_, len)| **len >= count);
        if let Some((first, len)) = found.map(|(first, len)| (*first, *len)) {
            self.free_spans.remove(&first);
            if len > count {
                // Of use only once the first word of the run is changed.
                self.mark_free(first + count, len - count);
            }
            return Some(first);
        }
        let first = self.next_span;
        self.next_span = first.checked_add(count).filter(|end| *end <= self.spans())?;
        Some(first)
    }

    fn release_spans(&mut self, first: usize, count: usize) {
        let after = self.free_spans.remove(&(first + count)).unwrap_or(0);
        self.mark_free(first, count + after);
    }

    fn mark_free(&mut self, first: usize, count: usize) {
        self.word(first * SPAN + LONG_RECORD_OFFSET + LENGTH_AT).store(0, Ordering::Release);
        self.word(first * SPAN).store(span_word(0, count), Ordering::Release);
        self.free_spans.insert(first, count);
    }

    /// Finds all records, and what is free.
    fn scan(&mut self) -> Result<Vec<StoredRecord>, LedgerError> {
        let mut records = Vec::new();
        while self.next_span < self.spans() {
            let first = self.next_span;
            let (block, count) = span_parts(self.word(first * SPAN).load(Ordering::Acquire));
            if count == 0 {
                break;
            }
            if count > self.spans() - first {
                return Err(LedgerError::Damaged);
            }
            self.next_span = first + count;
            if block == 0 {
                let at = first * SPAN + LONG_RECORD_OFFSET;
                match self.stored(at, count * SPAN - LONG_RECORD_OFFSET)? {
                    Some(record) => records.push(record),
                    None => _ = self.free_spans.insert(first, count),
                }
                continue;
            }
            let index = BLOCK_SIZES.iter().position(|size| *size == block).ok_or(LedgerError::Damaged)?;
            for at in blocks_of(first, block) {
                match self.stored(at, block)? {
                    Some(record) => records.push(record),
                    None => self.free[index].push(RecordId::at(at)),
                }
            }
        }
        records.sort_unstable_by_key(|record| record.sequence);
        self.sequence = records.last().map_or(0, |record| record.sequence);
        Ok(records)
    }

    fn stored(&self, at: usize, size: usize) -> Result<Option<StoredRecord>, LedgerError> {
        let [length, sum, sequence] =
            [LENGTH_AT, CHECKSUM_AT, SEQUENCE_AT].map(|word| self.word(at + word).load(Ordering::Acquire));
        if length == 0 {
            return Ok(None);
        }
        let kind = RecordKind::from_number((length >> 32) as u32).ok_or(LedgerError::Damaged)?;
        let len = (length as u32 as usize).checked_sub(1).ok_or(LedgerError::Damaged)?;
        if len > size - HEAD {
            return Err(LedgerError::Damaged);
        }
        let payload = self.bytes(at + HEAD, len).to_vec();
        if checksum(length, sequence, &payload) != sum {
            return Err(LedgerError::Damaged);
        }
        let id = RecordId::at(at);
        let counter = self.counter(id).load(Ordering::Acquire);
        Ok(Some(StoredRecord { id, kind, sequence, counter, payload }))
    }
}

/// How many blocks of this size, and their counters, fit into a span.
fn blocks_per_span(size: usize) -> usize {
    // The first word, and up to three that are not used, take as much as the unit of positions.
    (SPAN - RecordId::UNIT) / (size + 8)
}

/// Where in a span its first block is, after a counter for each; or its only record.
fn first_block_at(size: usize) -> usize {
    match size {
        0 => LONG_RECORD_OFFSET,
        size => (COUNTERS_AT + 8 * blocks_per_span(size)).next_multiple_of(RecordId::UNIT),
    }
}

/// Where the blocks of a span are.
fn blocks_of(span: usize, size: usize) -> impl Iterator<Item = usize> {
    let first = span * SPAN + first_block_at(size);
    (0..blocks_per_span(size)).map(move |index| first + index * size)
}

fn span_word(block: usize, spans: usize) -> u64 {
    (spans as u64) << 32 | block as u64
}

fn span_parts(word: u64) -> (usize, usize) {
    (word as u32 as usize, (word >> 32) as usize)
}

/// The length of a payload, plus one so that an empty one is not zero, and the kind.
fn length_word(kind: RecordKind, len: usize) -> u64 {
    u64::from(kind as u32) << 32 | (len as u64 + 1)
}

fn checksum(length: u64, sequence: u64, payload: &[u8]) -> u64 {
    let head = crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), &sequence.to_le_bytes());
    crc32c::crc32c_append(head, payload).into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn reopened(ledger: &Ledger) -> Result<(Ledger, Vec<StoredRecord>), LedgerError> {
        Ledger::open(ledger.descriptor().unwrap().unwrap())
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(usize),
        Replace(usize, usize),
        Count(usize, u64),
        Remove(usize),
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let len = || prop_oneof![4 => 0..300usize, 1 => 0..9000usize, 1 => 60_000..200_000usize];
        let step = prop_oneof![
            6 => len().prop_map(Step::Insert),
            2 => (any::<usize>(), len()).prop_map(|(which, len)| Step::Replace(which, len)),
            2 => (any::<usize>(), any::<u64>()).prop_map(|(which, to)| Step::Count(which, to)),
            4 => any::<usize>().prop_map(Step::Remove),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn a_successor_finds_what_was_written(steps in steps()) {
            let mut ledger = Ledger::create(64 << 20).unwrap();
            let mut model: HashMap<RecordId, (u64, Vec<u8>)> = HashMap::new();
            let mut made = 0u8;
            let mut content = |len: usize| {
                made = made.wrapping_add(1);
                vec![made; len]
            };
            let pick = |model: &HashMap<RecordId, _>, which: usize| {
                let mut known: Vec<_> = model.keys().copied().collect();
                known.sort_unstable_by_key(|id| id.0);
                (!known.is_empty()).then(|| known[which % known.len()])
            };
            for step in steps.into_iter().chain([Step::Reopen]) {
                match step {
                    Step::Insert(len) => {
                        let value = content(len);
                        let id = ledger.insert(RecordKind::Node, 7, &value).unwrap();
                        prop_assert!(model.insert(id, (7, value)).is_none(), "a block is used twice");
                    }
                    Step::Replace(which, len) => {
                        let Some(old) = pick(&model, which) else { continue };
                        let value = content(len);
                        let id = ledger.replace(Some(old), RecordKind::Node, 8, &value).unwrap();
                        model.remove(&old);
                        prop_assert!(model.insert(id, (8, value)).is_none(), "a block is used twice");
                    }
                    Step::Count(which, to) => {
                        let Some(id) = pick(&model, which) else { continue };
                        ledger.count(Some(id), to);
                        model.get_mut(&id).unwrap().0 = to;
                    }
                    Step::Remove(which) => {
                        let Some(id) = pick(&model, which) else { continue };
                        ledger.remove(Some(id));
                        model.remove(&id);
                    }
                    Step::Reopen => {
                        let generation = ledger.generation();
                        let (again, records) = reopened(&ledger).unwrap();
                        prop_assert_eq!(again.generation(), generation + 1);
                        prop_assert!(records.is_sorted_by_key(|record| record.sequence));
                        let found: HashMap<_, _> = records
                            .iter()
                            .map(|record| (record.id, (record.counter, record.value().unwrap())))
                            .collect();
                        prop_assert_eq!(&found, &model);
                        ledger = again;
                    }
                }
            }
        }
    }

    #[test]
    fn the_blocks_of_a_span_and_their_counters_lie_within_it() {
        for size in BLOCK_SIZES {
            let blocks: Vec<_> = blocks_of(1, size).collect();
            let counters_end = SPAN + COUNTERS_AT + 8 * blocks.len();
            assert!(counters_end <= blocks[0] && blocks[blocks.len() - 1] + size <= 2 * SPAN, "{size}");
            assert!(blocks.iter().all(|at| at.is_multiple_of(RecordId::UNIT)), "{size}");
        }
    }

    #[test]
    fn a_full_ledger_says_so() {
        let ledger = Ledger::create(1 << 20).unwrap();
        let first = ledger.insert(RecordKind::Absent, 0, &"kept");
        assert!(ledger.is_complete());
        while ledger.insert(RecordKind::Node, 0, &vec![0u8; 10_000]).is_some() {}
        assert!(!ledger.is_complete());
        ledger.remove(first);
        assert!(matches!(reopened(&ledger), Err(LedgerError::Incomplete)));
    }

    #[test]
    fn room_is_used_again() {
        let ledger = Ledger::create(1 << 20).unwrap();
        for round in 0..1000usize {
            let ids: Vec<_> = [10, 1000, 100_000, 300_000, 70_000]
                .map(|len| ledger.insert(RecordKind::Handle, 0, &vec![1u8; len + round % 7]))
                .into();
            ids.into_iter().for_each(|id| ledger.remove(id));
        }
        assert!(ledger.is_complete());
        assert!(reopened(&ledger).unwrap().1.is_empty());
    }

    #[test]
    fn a_damaged_record_is_noticed() {
        let ledger = Ledger::create(1 << 20).unwrap();
        let id = ledger.insert(RecordKind::Node, 0, &"payload").unwrap();
        assert_eq!(reopened(&ledger).unwrap().1[0].value::<String>().unwrap(), "payload");
        let heap = ledger.0.as_ref().unwrap();
        heap.lock().bytes_mut(id.offset() + HEAD, 4)[3] ^= 1;
        assert!(matches!(reopened(&ledger), Err(LedgerError::Damaged)));
        heap.lock().bytes_mut(id.offset() + HEAD, 4)[3] ^= 1;
        heap.lock().word(FORMAT_AT).store(FORMAT + 1, Ordering::Relaxed);
        assert!(matches!(reopened(&ledger), Err(LedgerError::OtherFormat)));
    }

    #[test]
    fn none_keeps_nothing() {
        let ledger = Ledger::none();
        assert!(ledger.insert(RecordKind::Node, 0, &1u8).is_none() && !ledger.is_complete());
        ledger.count(None, 1);
        ledger.remove(None);
        assert!(ledger.descriptor().is_none());
    }
}
