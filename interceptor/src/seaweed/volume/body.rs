//! A body on its way to its destination, counted and summed up as it passes.

use rdma_engine::checksum;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::answer::etag_checksum;
use super::{Begun, VolumeError};
use crate::seaweed::http1::{Head, HttpError, Response};

/// What is not wanted is read into this much memory.
const SCRATCH: usize = 64 << 10;

/// How much memory a body is given before any of it has come, whatever length it claims, in bytes.
const MAX_TRUST: u64 = 16 << 20;

/// Held by the one body of this process that is gathered though it is longer than its chunk lets expect. Servers are
/// asked for a bounded number of expected bytes at a time; whatever lengths they claim, it is these and one body more.
static UNEXPECTED: Semaphore = Semaphore::const_new(1);

/// A body that was gathered.
pub(super) struct Gathered {
    pub(super) bytes: Vec<u8>,
    /// Held as long as the bytes are.
    _unexpected: Option<SemaphorePermit<'static>>,
}

pub(super) struct Body<'a> {
    response: Response,
    begun: &'a Begun,
    total: u64,
    /// The checksum of what was read so far.
    crc: Option<u32>,
}

impl<'a> Body<'a> {
    /// A body whose checksum is wanted.
    pub(super) fn summed(response: Response, begun: &'a Begun) -> Self {
        Self { response, begun, total: 0, crc: Some(0) }
    }

    /// A body whose checksum says nothing.
    pub(super) fn unsummed(response: Response, begun: &'a Begun) -> Self {
        Self { response, begun, total: 0, crc: None }
    }

    pub(super) fn head(&self) -> &Head {
        self.response.head()
    }

    /// How many bytes were read so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Reads until `dst` is full or the body over; returns how many bytes.
    pub(super) async fn fill(&mut self, dst: &mut [u8]) -> Result<usize, VolumeError> {
        let mut filled = 0;
        while filled < dst.len() {
            let count = self.response.read(&mut dst[filled..]).await?;
            if count == 0 {
                break;
            }
            self.begun.now();
            // Right after the read the bytes are still in the processor's cache.
            self.crc = self.crc.map(|crc| checksum::crc32c_append(crc, &dst[filled..][..count]));
            self.total += count as u64;
            filled += count;
        }
        Ok(filled)
    }

    /// Reads over the next `count` bytes, or to the end of the body.
    pub(super) async fn skip(&mut self, mut count: u64) -> Result<(), VolumeError> {
        let mut scratch = Vec::new();
        while count > 0 && !self.response.is_over() {
            scratch.resize(SCRATCH, 0);
            let most = usize::try_from(count).map_or(SCRATCH, |count| count.min(SCRATCH));
            match self.fill(&mut scratch[..most]).await? {
                0 => break,
                skipped => count -= skipped as u64,
            }
        }
        Ok(())
    }

    /// Reads all of the body, which may have `limit` bytes at most; with more than `expected` it waits until no other
    /// such body is in memory.
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
        let (mut bytes, mut unexpected) = (Vec::new(), None);
        let mut room = announced.unwrap_or(SCRATCH as u64).min(MAX_TRUST) as usize;
        while !self.response.is_over() {
            let filled = bytes.len();
            if unexpected.is_none() && filled as u64 > expected {
                let permit = timeout_at(deadline, UNEXPECTED.acquire()).await;
                unexpected = permit.map_err(|_| HttpError::Deadline)?.ok();
            }
            bytes.resize(filled + room, 0);
            let count = self.fill(&mut bytes[filled..]).await?;
            bytes.truncate(filled + count);
            if self.total > limit {
                return Err(VolumeError::TooLarge(limit));
            }
            room = bytes.len().clamp(SCRATCH, MAX_TRUST as usize);
        }
        Ok(Gathered { bytes, _unexpected: unexpected })
    }

    /// Compares the checksum of all that was read with the one in the `ETag`, if there is one.
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
