//! Brings bytes of chunks from the best source that works.

use std::time::Duration;

use crate::telemetry::Source;

/// What came of a fetch that succeeded.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Where the bytes came from.
    pub source: Source,
    /// How long it took from the request to the last byte, retries included.
    pub elapsed: Duration,
}
