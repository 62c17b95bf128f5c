//! Reads the body of a response to its destination, counting it and computing its checksum.

use rdma_engine::checksum;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::response::etag_checksum;
use super::{ResponseProgress, VolumeError};
use crate::seaweed::http1::{Head, HttpError, Response};

/// The buffer for bytes that are skipped, in bytes.
const SCRATCH_SIZE: usize = 64 << 10;

/// The most memory that is allocated for a body before any of it has come, in bytes, whatever
/// length the response claims.
const MAX_PREALLOCATION: u64 = 16 << 20;

/// Held by the one body of this process that is gathered although it is longer than its chunk. The
/// gates bound the bytes that servers are asked for. Whatever lengths they claim, the memory for
/// bodies is bounded by those and one oversized body.
static OVERSIZED: Semaphore = Semaphore::const_new(1);

/// A body that was gathered.
pub(super) struct Gathered {
    pub(super) bytes: Vec<u8>,
    /// Held as long as the bytes.
    _unexpected: Option<SemaphorePermit<'static>>,
}

pub(super) struct BodyReader<'a> {
    response: Response,
    progress: &'a ResponseProgress,
    total: u64,
    /// The checksum of what was read so far, if it can be verified.
    crc: Option<u32>,
}

impl<'a> BodyReader<'a> {
    /// A body whose checksum will be verified.
    pub(super) fn with_checksum(response: Response, progress: &'a ResponseProgress) -> Self {
        Self { response, progress, total: 0, crc: Some(0) }
    }

    /// A body whose checksum cannot be verified.
    pub(super) fn without_checksum(response: Response, progress: &'a ResponseProgress) -> Self {
        Self { response, progress, total: 0, crc: None }
    }

    pub(super) fn head(&self) -> &Head {
        self.response.head()
    }

    /// How many bytes were read so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Reads until `dst` is full or the body ends. Returns how many bytes.
    pub(super) async fn fill(&mut self, dst: &mut [u8]) -> Result<usize, VolumeError> {
        let mut filled = 0;
        while filled < dst.len() {
            let count = self.response.read(&mut dst[filled..]).await?;
            if count == 0 {
                break;
            }
            self.progress.record();
            // Right after the read the bytes are still in the CPU's cache.
            self.crc = self.crc.map(|crc| checksum::crc32c_append(crc, &dst[filled..][..count]));
            self.total += count as u64;
            filled += count;
        }
        Ok(filled)
    }

    /// Skips the next `count` bytes, or all up to the end of the body.
    pub(super) async fn skip(&mut self, mut count: u64) -> Result<(), VolumeError> {
        let mut scratch = Vec::new();
        while count > 0 && !self.response.is_over() {
            scratch.resize(SCRATCH_SIZE, 0);
            let most = usize::try_from(count).map_or(SCRATCH_SIZE, |count| count.min(SCRATCH_SIZE));
            match self.fill(&mut scratch[..most]).await? {
                0 => break,
                skipped => count -= skipped as u64,
            }
        }
        Ok(())
    }

    /// Reads all of the body, which may have `limit` bytes at most. If it has more than
    /// `expected`, waits until no other such body is in memory.
    pub(super) async fn gather(
        &mut self,
        expected: u64,
        limit: u64,
        deadline: Instant,
    ) -> Result<Gathered, VolumeError> {
        let announced = self.head().content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(VolumeError::TooLarge(limit));
        }
        let (mut bytes, mut oversized) = (Vec::new(), None);
        let mut room = announced.unwrap_or(SCRATCH_SIZE as u64).min(MAX_PREALLOCATION) as usize;
        while !self.response.is_over() {
            let filled = bytes.len();
            if oversized.is_none() && filled as u64 > expected {
                let permit = timeout_at(deadline, OVERSIZED.acquire()).await;
                oversized = permit.map_err(|_| HttpError::Deadline)?.ok();
            }
            bytes.resize(filled + room, 0);
            let count = self.fill(&mut bytes[filled..]).await?;
            bytes.truncate(filled + count);
            if self.total > limit {
                return Err(VolumeError::TooLarge(limit));
            }
            room = bytes.len().clamp(SCRATCH_SIZE, MAX_PREALLOCATION as usize);
        }
        Ok(Gathered { bytes, _unexpected: oversized })
    }

    /// Compares the checksum of the body with the one in the `ETag`, if there is one.
    pub(super) fn verify(&self) -> Result<(), VolumeError> {
        let stored = self.head().etag.as_deref().and_then(etag_checksum);
        match (stored, self.crc) {
            (Some(stored), Some(computed)) if !checksum::matches(stored, computed) => {
                Err(VolumeError::Checksum { stored, computed })
            }
            _ => Ok(()),
        }
    }
}
