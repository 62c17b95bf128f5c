//! Replays a recorded load, and computes what share of it the cache would have missed.
//!
//! A trace is a list of block ids in the order of their requests. It is replayed through the real
//! index, policy and arena with slots of one page. No slot is ever written to, so the arena takes
//! address space only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use super::arena::{Arena, ArenaError};
use super::block::BlockMemory;
use super::index::BlockIndex;
use super::key::{BlockKey, BlockPart, ObjectId};
use super::policy::{AdaptiveLirs, Lirs, LirsParams, Policy};
use super::writer::BlockWriter;

/// Bytes of the longest line that is read. A longer line is no id, and is refused before its end.
const MAX_LINE_LEN: u64 = 4096;
/// Bytes of the smallest slot.
const SLOT_SIZE: u64 = 4096;

/// Why a trace could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file could not be read.
    #[error("cannot read the trace: {0}")]
    Read(#[from] io::Error),
    /// A line is not a block id.
    #[error("line {line} of the trace is not a block id from 0 to 18446744073709551615: {text:?}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// There are no requests.
    #[error("the trace is empty")]
    Empty,
    /// There is no address space for a cache of that size.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// Requests of blocks, in their order.
pub struct Trace {
    requests: Vec<u64>,
    distinct: usize,
}

/// Miss ratios for one size of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MissRatio {
    /// Blocks that the cache held.
    pub slots: usize,
    /// Share of the requests that this cache missed.
    pub cache: f64,
    /// Share of the requests that the cache would have missed with the parameters that its policy
    /// begins with.
    pub lirs: f64,
    /// Share of the requests that evicting the least recently used block would have missed.
    pub lru: f64,
}

impl Trace {
    /// Reads one id a line, as text or compressed with gzip.
    pub fn open(path: &Path) -> Result<Self, ReplayError> {
        let mut file = BufReader::new(std::fs::File::open(path)?);
        if file.fill_buf()?.starts_with(&[0x1f, 0x8b]) {
            Self::read(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Self::read(file)
        }
    }

    /// Reads one id a line. Empty lines do not count.
    pub fn read(mut text: impl BufRead) -> Result<Self, ReplayError> {
        let mut requests = Vec::new();
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if text.by_ref().take(MAX_LINE_LEN).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let id = line.trim_ascii();
            if id.is_empty() {
                continue;
            }
            let parsed = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            requests.push(parsed.ok_or_else(|| ReplayError::Line {
                line: number,
                text: String::from_utf8_lossy(id).chars().take(80).collect(),
            })?);
        }
        Self::new(requests)
    }

    /// A trace of these requests.
    pub fn new(requests: Vec<u64>) -> Result<Self, ReplayError> {
        if requests.is_empty() {
            return Err(ReplayError::Empty);
        }
        let distinct = requests.iter().collect::<HashSet<_>>().len();
        Ok(Self { requests, distinct })
    }

    /// Number of requests.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// Number of different blocks.
    pub fn distinct(&self) -> usize {
        self.distinct
    }

    /// Replays the trace with a cache that holds `share` of its different blocks.
    pub fn miss_ratio(&self, share: f64) -> Result<MissRatio, ReplayError> {
        let slots = ((self.distinct as f64 * share) as usize).max(1);
        let ratio = |misses: usize| misses as f64 / self.requests.len() as f64;
        let capacity = slots as u64 * SLOT_SIZE;
        Ok(MissRatio {
            slots,
            cache: ratio(self.misses(capacity, Box::new(AdaptiveLirs::new(capacity)))?),
            lirs: ratio(self.misses(capacity, Box::new(Lirs::new(capacity, LirsParams::INITIAL)))?),
            lru: ratio(self.lru_misses(slots)),
        })
    }

    fn misses(&self, capacity: u64, policy: Box<dyn Policy<BlockKey>>) -> Result<usize, ReplayError> {
        let arena = Arena::reserve(capacity)?;
        let index = Arc::new(BlockIndex::new(arena, policy));
        let mut misses = 0;
        for &id in &self.requests {
            let object = ObjectId(id.into());
            let key = BlockKey { object, object_size: SLOT_SIZE, part: BlockPart::Whole };
            let block = index.get(&key).unwrap_or_else(|| {
                misses += 1;
                let slot =
                    index.allocate(SLOT_SIZE as usize).expect("no block is pinned, so one can be evicted");
                BlockWriter::new(key, BlockMemory::Slot(slot), None, index.clone(), None).publish()
            });
            block.mark_read(&(0..SLOT_SIZE as usize));
        }
        Ok(misses)
    }

    fn lru_misses(&self, slots: usize) -> usize {
        let mut last_use: HashMap<u64, usize> = HashMap::new();
        let mut by_age: BTreeMap<usize, u64> = BTreeMap::new();
        let mut misses = 0;
        for (now, &id) in self.requests.iter().enumerate() {
            match last_use.insert(id, now) {
                Some(before) => drop(by_age.remove(&before)),
                None => misses += 1,
            }
            by_age.insert(now, id);
            if by_age.len() > slots
                && let Some((_, oldest)) = by_age.pop_first()
            {
                last_use.remove(&oldest);
            }
        }
        misses
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace")
            .field("requests", &self.requests.len())
            .field("distinct", &self.distinct)
            .finish()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn text_and_gzip_give_the_same_trace() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"1\n2\r\n\n1\n").unwrap();
        let plain = Trace::open(file.path()).unwrap();
        assert_eq!((plain.requests(), plain.distinct()), (3, 2));
        let mut packed = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
        encoder.write_all(b"1\n2\r\n\n1\n").unwrap();
        encoder.finish().unwrap();
        assert_eq!(Trace::open(packed.path()).unwrap().requests, plain.requests);
    }

    #[test]
    fn damaged_traces_are_refused() {
        let error = Trace::read(&b"1\nx\n"[..]).unwrap_err();
        assert!(matches!(&error, ReplayError::Line { line: 2, text } if text == "x"), "{error}");
        let error = Trace::read(&b"\n\r\n18446744073709551615\n18446744073709551616"[..]).unwrap_err();
        assert!(error.to_string().starts_with("line 4 of the trace"), "{error}");
        let endless = BufReader::new(io::repeat(b'7'));
        assert!(matches!(Trace::read(endless), Err(ReplayError::Line { line: 1, text }) if text.len() == 80));
        assert!(matches!(Trace::read(&b"1 2\n"[..]), Err(ReplayError::Line { line: 1, .. })));
        assert!(matches!(Trace::read(&b"\xff\n"[..]), Err(ReplayError::Line { line: 1, .. })));
        assert!(matches!(Trace::read(&b"\n"[..]), Err(ReplayError::Empty)));
        let cut_off: &[u8] = &[0x1f, 0x8b, 8, 0];
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(cut_off).unwrap();
        assert!(matches!(Trace::open(file.path()), Err(ReplayError::Read(_))));
    }

    #[test]
    fn a_loop_slightly_larger_than_the_cache_defeats_lru_only() {
        let trace = Trace::new((0..20_000).map(|i| i % 1000).collect()).unwrap();
        let ratio = trace.miss_ratio(0.9).unwrap();
        assert_eq!((ratio.slots, ratio.lru), (900, 1.0));
        assert!(ratio.cache < 0.2 && ratio.lirs < 0.2, "{ratio:?}");
        assert_eq!(trace.miss_ratio(1.0).unwrap().cache, 1000.0 / 20_000.0);
    }
}
