//! What a read of a file tells: how the file is being read, and what to fetch ahead.

use std::ops::Range;
use std::sync::Arc;

use super::stats::PrefetchStats;

/// How a read relates to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessPattern {
    /// In no order.
    Random,
    /// It continues a stream, so all bytes around it will be read.
    Sequential,
    /// It is one of many in equal steps.
    Strided {
        /// Bytes from the start of one read to the start of the next, whatever the direction.
        stride: u64,
    },
}

/// What one read tells.
#[derive(Debug)]
pub struct StreamAdvice {
    /// How it relates to the reads before it.
    pub pattern: AccessPattern,
    /// What to fetch ahead, if that is due.
    pub ahead: Option<ReadAhead>,
}

/// Ranges to fetch before the reader asks for them.
#[derive(Debug)]
pub struct ReadAhead {
    /// The stream or series that advises it.
    pub(super) stream: u64,
    /// Bytes of the file, in the order in which they will be read. Neither empty nor beyond the
    /// end of the file.
    pub ranges: Vec<Range<u64>>,
    /// Must be told what becomes of every byte that is fetched for this.
    pub stats: Arc<PrefetchStats>,
}
