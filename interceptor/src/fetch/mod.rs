//! Brings bytes of chunks from the best source that works.
//!
//! A cold read, from the top down:
//!
//! ```text
//! Fetcher::fetch        passes over all replicas until one delivers; back-off   attempts
//!   Replicas            where the volume is, and which replica to ask first     replicas
//!   Hedger::race        asks a replica, and the next too if the first is late   hedge
//!     Replica::read     waits at the server's gate, sends the request           replica
//!       Gate            bounds what a server is asked for; readers go first     gate
//!       Engine          RDMA, files of the same host, or TCP                    engine
//!       VolumeClient    HTTP                                                    seaweed::volume
//!     ServerState       a server's gate, latencies, errors, engine              servers
//! ```
//!
//! Bytes are good only after the source's check of length, checksum and encoding. Bytes that fail
//! it are counted, dropped, and asked for at another replica. If every replica fails, the replicas
//! are looked up again and asked again after a pause; `attempts` says for how long. The error of a
//! fetch that failed says which servers were asked and what they answered.
//!
//! A fetch writes to memory of the caller ([`WriteTarget`]), whose content is undefined until the
//! fetch has succeeded. A fetch may be dropped at any point. Its [`Priority`] can be raised while
//! it is under way, when a reader joins it.
//!
//! Chunks that are encrypted, or that their writer compressed, can only be fetched as a whole
//! ([`must_fetch_whole`]). A part of such a chunk costs as much as all of it, so callers should
//! ask for all.

mod attempts;
mod config;
mod engine;
mod error;
mod gate;
mod hedge;
mod latency;
mod read_request;
mod replica;
mod replicas;
mod servers;
mod slowness;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::arrival::Arrival;
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::locations::VolumeLookup;
use crate::seaweed::security::Security;
use crate::seaweed::volume::{ErrorClass, VolumeClient, VolumeError};
use crate::telemetry::health::VolumeServerHealth;
use crate::telemetry::{Metrics, Source};
use crate::timeline::{StepKind, Timeline};
use crate::write_target::WriteTarget;
use attempts::{Attempts, MIN_REQUEST_TIMEOUT, NextStep, PassOutcome};
pub use config::{FetcherConfig, VolumeServerRoute};
pub use engine::{ENGINE_PORT, EngineConfig};
pub use error::FetchError;
use hedge::Hedger;
use read_request::ReadRequest;
use replica::{FetchContext, Replica};
use replicas::{ReplicaList, Replicas};

/// The most that [`Fetcher::read_needle`] brings, in bytes. A manifest of 10,000 chunks has less
/// than 2 MB.
const MAX_NEEDLE_SIZE: u64 = 16 << 20;

/// The result of a fetch that succeeded.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Where the bytes came from.
    pub source: Source,
    /// How long it took from the request to the last byte, retries included.
    pub elapsed: Duration,
}

/// Whether any part of `chunk` costs as much as all of it.
pub fn must_fetch_whole(chunk: &Chunk) -> bool {
    chunk.cipher_key.is_some() || chunk.is_compressed
}

/// Brings bytes of chunks.
pub struct Fetcher {
    replicas: Replicas,
    volumes: VolumeClient,
    hedger: Hedger,
    metrics: Arc<Metrics>,
    retry_time: Duration,
    request_timeout: Duration,
}

impl Fetcher {
    /// A fetcher that finds volumes by `lookup`.
    pub fn new(
        lookup: Arc<dyn VolumeLookup>,
        security: Arc<Security>,
        metrics: Arc<Metrics>,
        config: FetcherConfig,
    ) -> Self {
        Self {
            replicas: Replicas::new(lookup, &config),
            volumes: VolumeClient::new(security, config.timeouts),
            hedger: Hedger::new(),
            metrics,
            retry_time: config.retry_time,
            request_timeout: config.request_timeout,
        }
    }

    /// Fetches the logical bytes `[offset, offset + dst.length())` of `chunk` into `dst`. They
    /// must lie within the chunk. What `dst` has after an error is undefined. As long as
    /// `priority` is speculative, this may wait in a server's queue for any time. What is done
    /// goes to `timeline`.
    pub async fn read_chunk(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        priority: &Priority,
        timeline: &Timeline,
    ) -> Result<Fetched, FetchError> {
        let length = dst.length() as u64;
        if offset.checked_add(length).is_none_or(|end| end > chunk.size) {
            return Err(FetchError::BeyondChunk { fid: chunk.fid, offset, length, size: chunk.size });
        }
        let start = Instant::now();
        // An empty range has no source; any will do.
        let mut source = Source::Http;
        if length > 0 {
            let mut request = if length == chunk.size || must_fetch_whole(chunk) {
                ReadRequest::Whole { offset, dst }
            } else {
                ReadRequest::Range { offset, dst }
            };
            source = self.fetch(chunk, &mut request, priority, timeline).await?;
        }
        Ok(self.fetched(source, length, start))
    }

    /// Fetches the whole needle of `chunk`, verified and decoded, whatever the chunk's size says:
    /// for a manifest, that is the size of the chunks that it lists. Needles of more than 16 MiB
    /// are refused. `arrival` is that of the request that waits.
    pub async fn read_needle(&self, chunk: &Chunk, arrival: Arrival) -> Result<Bytes, FetchError> {
        let timeline = Timeline::default();
        let start = Instant::now();
        let mut bytes = Vec::new();
        let mut request = ReadRequest::Needle { limit: MAX_NEEDLE_SIZE, bytes: &mut bytes };
        let source = self.fetch(chunk, &mut request, &Priority::demand(arrival), &timeline).await?;
        self.fetched(source, bytes.len() as u64, start);
        Ok(bytes.into())
    }

    /// A function that returns how all servers are doing that were ever asked. It does not block.
    pub fn health(&self) -> impl Fn() -> Vec<VolumeServerHealth> + Send + Sync + use<> {
        let servers = self.replicas.servers().clone();
        move || servers.health()
    }

    fn fetched(&self, source: Source, bytes: u64, start: Instant) -> Fetched {
        let fetched = Fetched { source, elapsed: start.elapsed() };
        self.metrics.fetch(fetched.source, bytes, fetched.elapsed);
        fetched
    }

    /// Does `request` and returns where the bytes came from, or why no replica delivered.
    async fn fetch(
        &self,
        chunk: &Chunk,
        request: &mut ReadRequest<'_>,
        priority: &Priority,
        timeline: &Timeline,
    ) -> Result<Source, FetchError> {
        let mut attempts = Attempts::new(self.retry_time);
        let mut stale = None;
        let mut reason = String::new();
        loop {
            attempts.set_unresponsive_since(self.replicas.lookup_down_since());
            let looking = timeline.begin(StepKind::Lookup);
            let cx = self.context(chunk, priority, &attempts, timeline);
            let located = self.replicas.locate(stale.as_ref(), &cx).await;
            looking.end_with(&located);
            let is_located = located.is_ok();
            let found = located.unwrap_or_else(|error| {
                self.metrics.fetch_error(Source::Http, "lookup");
                reason = error.to_string();
                // Without an answer from the filer, servers that were known before may still come
                // back.
                self.replicas.at(stale.take(), true)
            });
            if is_located && found.replicas.is_empty() {
                reason = "no server holds the volume".to_owned();
            }
            if !found.replicas.is_empty() {
                attempts.set_unresponsive_since(found.unresponsive_since());
            }
            let cx = self.context(chunk, priority, &attempts, timeline);
            let answers = match self.ask_all(&found, &cx, request, &mut reason).await {
                Ok(source) => return Ok(source),
                Err(answers) => answers,
            };
            let outcome = if is_located { PassOutcome::of(&answers) } else { PassOutcome::Unanswered };
            match attempts.pass_failed(outcome, found.is_fresh, priority.demanded_at(), Instant::now()) {
                NextStep::Retry(backoff) => {
                    stale = found.locations;
                    let waiting = timeline.begin(StepKind::Backoff);
                    tokio::time::sleep(backoff).await;
                    waiting.end();
                }
                NextStep::GiveUp => {
                    if outcome == PassOutcome::Unanswered && priority.demanded_at().is_some() {
                        self.note_unresponsive(&found);
                    }
                    return Err(failure(chunk, outcome, &attempts, &found, reason));
                }
            }
        }
    }

    fn context<'a>(
        &'a self,
        chunk: &'a Chunk,
        priority: &'a Priority,
        attempts: &'a Attempts,
        timeline: &'a Timeline,
    ) -> FetchContext<'a> {
        let Self { volumes, metrics, request_timeout, .. } = self;
        FetchContext {
            chunk,
            priority,
            attempts,
            timeline,
            volumes,
            metrics,
            request_timeout: *request_timeout,
        }
    }

    /// One pass: asks the replicas in turn until one delivers. Otherwise returns how each has
    /// failed, and says in `reason` how the last one did.
    async fn ask_all(
        &self,
        found: &ReplicaList,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        reason: &mut String,
    ) -> Result<Source, Vec<ErrorClass>> {
        let mut answers = Vec::with_capacity(found.replicas.len());
        let mut next = found.replicas.iter();
        while let Some(first) = next.next() {
            let race = self.hedger.race(first, next.as_slice().first(), cx, request).await;
            if let Some(stopped) = race.stopped {
                self.replicas.failed(stopped);
            }
            for (replica, error) in race.failures {
                *reason = format!("{}: {error}", replica.endpoint.authority());
                answers.push(self.note_failure(replica, cx.chunk, &error));
            }
            if let Some(source) = race.won {
                return Ok(source);
            }
            if race.hedged {
                next.next();
            }
        }
        Err(answers)
    }

    /// Counts a failure, and has a server that is in trouble asked last for a while.
    fn note_failure(&self, replica: &Replica, chunk: &Chunk, error: &VolumeError) -> ErrorClass {
        replica.server.record_error(error);
        tracing::debug!(fid = %chunk.fid, server = replica.name, %error, "a server did not deliver");
        self.metrics.fetch_error(Source::Http, error.reason());
        let class = error.class();
        match class {
            ErrorClass::Damaged => self.metrics.integrity_failure(Source::Http),
            ErrorClass::Failed | ErrorClass::Busy => self.replicas.failed(replica),
            ErrorClass::Missing | ErrorClass::Refused => {}
        }
        class
    }

    /// Notes that the servers that sent nothing lately leave a reader waiting. A server that
    /// answers with errors is not silent.
    fn note_unresponsive(&self, found: &ReplicaList) {
        let now = Instant::now();
        for replica in &found.replicas {
            if !replica.server.responded_within(MIN_REQUEST_TIMEOUT) {
                replica.watch_unresponsive(&self.volumes, now);
            }
        }
    }
}

fn failure(
    chunk: &Chunk,
    outcome: PassOutcome,
    attempts: &Attempts,
    found: &ReplicaList,
    reason: String,
) -> FetchError {
    let (fid, servers, passes) = (chunk.fid, found.names(), attempts.passes());
    // The reader of the file logs the failure for people.
    tracing::debug!(%fid, %servers, passes, last = %reason, "cannot read a chunk from any server");
    match outcome {
        PassOutcome::Missing => FetchError::Gone { fid, servers },
        PassOutcome::Refused => FetchError::Refused { fid, reason },
        PassOutcome::Damaged => FetchError::Damaged { fid, servers, reason },
        PassOutcome::Unanswered => FetchError::Unreachable { fid, passes, servers, reason },
    }
}

#[cfg(test)]
mod tests;
