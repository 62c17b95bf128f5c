//! Brings bytes of chunks from the best source that works.
//!
//! Sources form a ladder. For each server its engine comes first (`engine`: over RDMA, through files of the same host, or over TCP), if
//! there is one, then the volume server itself over HTTP. Where a needle cannot be had at one server the next is asked: every location
//! of the volume, fresh locations, and all again after a pause (`attempts`). Bytes are good only
//! after the source's check of length, checksum and encoding; bytes that fail it are counted, dropped, and asked for elsewhere.
//!
//! Each server has a gate (`gate`), which bounds what is asked of it at a time and lets fetches that readers wait for go before
//! speculation; a fetch's [`Priority`] can be raised while it is under way. When a reader's server is late another is asked too
//! (`hedge` says when, `race` how).
//!
//! A fetch goes into memory of the caller's, whose content is undefined until the fetch has succeeded. A fetch may be dropped at any
//! point. When it fails, after every server was given its chances, the error says what was asked of whom.
//!
//! Chunks that are encrypted or that their writer compressed can only be fetched as a whole ([`must_fetch_whole`]); a part of one
//! costs as much as all of it, so callers should ask for all.

mod attempts;
mod engine;
mod error;
mod gate;
mod hedge;
mod job;
mod pace;
mod race;
mod servers;
mod sources;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::arrival::Arrival;
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::Limits;
use crate::seaweed::locations::VolumeLookup;
use crate::seaweed::security::Security;
use crate::telemetry::health::VolumeServerHealth;
use crate::telemetry::{Metrics, Source};
use crate::write_target::WriteTarget;
pub use engine::{ENGINE_PORT, Engines};
pub use error::FetchError;
use job::Job;
use sources::Sources;

/// The most that [`Fetcher::read_needle`] brings, in bytes. A manifest of 10,000 chunks has less than 2 MB.
const MAX_GATHERED: u64 = 16 << 20;

/// How many bytes one server is asked for at a time. The half of it that speculation may have, 32 MiB, is the widest window of
/// a stream, so that one stream alone is never held up here: it keeps a link of 100 Gbit/s busy while the server takes
/// 2.5 ms to answer. All of it takes 50 ms over 10 Gbit/s, which is as long as a reader shall have to wait for what
/// others have asked for.
const BYTES_PER_SERVER: u64 = 64 << 20;

/// What came of a fetch that succeeded.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Where the bytes came from.
    pub source: Source,
    /// How long it took from the request to the last byte, retries included.
    pub elapsed: Duration,
}

/// Which address of a volume server is used.
#[derive(Clone, Default)]
pub enum Access {
    /// The one that the cluster uses itself.
    #[default]
    Direct,
    /// The one for clients outside.
    PublicUrl,
    /// None: the filer passes requests on. The function says which filer to ask now, as `host:port`.
    FilerProxy(Arc<dyn Fn() -> String + Send + Sync>),
}

/// How a [`Fetcher`] goes about it.
#[derive(Clone)]
pub struct Options {
    /// Which address of a volume server is used.
    pub access: Access,
    /// The data centre whose servers are preferred.
    pub data_center: Option<String>,
    /// How long a reader waits for servers that say nothing, and fetches are tried again.
    pub retry_time: Duration,
    /// How long a reader waits for what comes in, and for its turn at a server that answers others.
    pub request_deadline: Duration,
    /// How many requests one server is given at a time; the others wait.
    pub requests_per_server: usize,
    /// How many bytes one server is asked for at a time; the others wait. Speculation has half of either.
    pub bytes_per_server: u64,
    /// Limits of the connections.
    pub limits: Limits,
    /// Which engines may be asked.
    pub engines: Engines,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            access: Access::Direct,
            data_center: None,
            retry_time: Duration::from_secs(6),
            request_deadline: Duration::from_secs(30),
            requests_per_server: 64,
            bytes_per_server: BYTES_PER_SERVER,
            limits: Limits::default(),
            engines: Engines::default(),
        }
    }
}

/// Whether any part of `chunk` costs as much as all of it.
pub fn must_fetch_whole(chunk: &Chunk) -> bool {
    chunk.cipher_key.is_some() || chunk.is_compressed
}

/// Brings bytes of chunks.
pub struct Fetcher {
    sources: Sources,
    metrics: Arc<Metrics>,
}

impl Fetcher {
    /// A fetcher that finds volumes by `lookup`.
    pub fn new(
        lookup: Arc<dyn VolumeLookup>,
        security: Arc<Security>,
        metrics: Arc<Metrics>,
        options: Options,
    ) -> Self {
        Self { sources: Sources::new(lookup, security, metrics.clone(), options), metrics }
    }

    /// Fetches the logical bytes `[offset, offset + dst.length())` of `chunk` into `dst`; they must lie within the chunk. What `dst`
    /// has after an error is undefined. As long as `priority` is speculative, this may wait at the server for any time.
    pub async fn read_chunk(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        priority: &Priority,
    ) -> Result<Fetched, FetchError> {
        let length = dst.length() as u64;
        if offset.checked_add(length).is_none_or(|end| end > chunk.size) {
            return Err(FetchError::BeyondChunk { fid: chunk.fid, offset, length, size: chunk.size });
        }
        let start = Instant::now();
        // No bytes come from nowhere in particular.
        let mut source = Source::Http;
        if length > 0 {
            let mut job = if length == chunk.size || must_fetch_whole(chunk) {
                Job::Whole { offset, dst }
            } else {
                Job::Range { offset, dst }
            };
            source = self.sources.fetch(chunk, &mut job, priority).await?;
        }
        Ok(self.fetched(source, length, start))
    }

    /// Fetches the whole needle of `chunk`, verified and decoded, whatever the chunk's size says: for a manifest, that is the size
    /// of what it lists. Needles of more than 16 MiB are refused. For a request that arrived at `arrival`.
    pub async fn read_needle(&self, chunk: &Chunk, arrival: Arrival) -> Result<Bytes, FetchError> {
        let start = Instant::now();
        let mut bytes = Vec::new();
        let mut job = Job::Gather { limit: MAX_GATHERED, bytes: &mut bytes };
        let source = self.sources.fetch(chunk, &mut job, &Priority::demand(arrival)).await?;
        self.fetched(source, bytes.len() as u64, start);
        Ok(bytes.into())
    }

    /// A function that tells how the servers that were ever asked are doing. Does not block.
    pub fn health(&self) -> impl Fn() -> Vec<VolumeServerHealth> + Send + Sync + use<> {
        let servers = self.sources.servers.clone();
        move || servers.health()
    }

    fn fetched(&self, source: Source, bytes: u64, start: Instant) -> Fetched {
        let fetched = Fetched { source, elapsed: start.elapsed() };
        self.metrics.fetch(fetched.source, bytes, fetched.elapsed);
        fetched
    }
}

#[cfg(test)]
mod tests;
