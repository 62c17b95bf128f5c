//! One replica of a needle is asked for it: the engine beside its server first, then the server.
//!
//! [`Replica::read`] waits for its turn at the server's [gate](super::gate), sends the request to
//! the engine if there is one that can be asked, and to the server over HTTP if there is none or
//! it does not deliver. Meanwhile a server that sends nothing to a waiting reader is marked
//! unresponsive, and probed until it answers again.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::attempts::{Attempts, next_backoff};
use super::engine::Engine;
use super::gate::Permit;
use super::read_request::ReadRequest;
use super::servers::ServerState;
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::{Deadlines, HttpError};
use crate::seaweed::volume::{ErrorClass, NeedleEndpoint, ResponseProgress, VolumeClient, VolumeError};
use crate::telemetry::{Metrics, Source};
use crate::timeline::{StepKind, Timeline};

/// How often a busy server is asked again before the next replica is, and the first back-off.
const MAX_BUSY_RETRIES: u32 = 3;
const BUSY_BACKOFF: Duration = Duration::from_millis(100);

/// After so long without a byte, while a reader waits, a server counts as unresponsive.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(1);

/// What all requests of one fetch have in common.
pub(super) struct FetchContext<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) priority: &'a Priority,
    pub(super) attempts: &'a Attempts,
    pub(super) timeline: &'a Timeline,
    pub(super) volumes: &'a VolumeClient,
    pub(super) metrics: &'a Metrics,
    /// How long a request may take while its response comes in.
    pub(super) request_timeout: Duration,
}

impl FetchContext<'_> {
    /// When a request that is sent now must be over.
    pub(super) fn deadlines(&self) -> Deadlines {
        self.attempts.deadlines(self.priority.demanded_at(), Instant::now(), self.request_timeout)
    }
}

/// How far a request has come.
pub(super) struct RequestProgress {
    sent: OnceLock<Instant>,
    pub(super) response: ResponseProgress,
}

impl RequestProgress {
    /// It was not sent yet.
    pub(super) fn new(cx: &FetchContext<'_>) -> Self {
        Self { sent: OnceLock::new(), response: ResponseProgress::of(cx.timeline.clone()) }
    }
}

/// A copy of a needle, at a server that can be asked for it.
pub(super) struct Replica {
    pub(super) endpoint: NeedleEndpoint,
    /// The server's name in [`Locations`](crate::seaweed::locations::Locations), where its
    /// failures are noted.
    pub(super) name: String,
    pub(super) server: Arc<ServerState>,
}

impl Replica {
    /// Reads from the server, again after a pause if that is busy. What the memory of `request`
    /// has after an error is undefined.
    pub(super) async fn read(
        &self,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        progress: &RequestProgress,
    ) -> Result<Source, VolumeError> {
        let mut backoff = BUSY_BACKOFF;
        for _ in 0..MAX_BUSY_RETRIES {
            match self.read_once(cx, request, progress).await {
                Err(error) if error.class() == ErrorClass::Busy => {
                    cx.metrics.fetch_error(Source::Http, error.reason());
                    let waiting = cx.timeline.begin_at(StepKind::Backoff, self.endpoint.authority());
                    tokio::time::sleep(backoff).await;
                    waiting.end();
                    backoff = next_backoff(backoff);
                }
                outcome => return outcome,
            }
        }
        self.read_once(cx, request, progress).await
    }

    /// Waits for its turn at the server's gate and sends the request.
    async fn read_once(
        &self,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        progress: &RequestProgress,
    ) -> Result<Source, VolumeError> {
        let queued = cx.timeline.begin_at(StepKind::Queue, self.endpoint.authority());
        let acquired = self.acquire_permit(cx, request.bytes(cx.chunk)).await;
        queued.end_with(&acquired);
        let (permit, deadlines) = acquired?;
        permit.run(cx.priority, self.send(cx, request, progress, deadlines)).await
    }

    /// Waits at the server's gate. Returns the permit and when the request must be over.
    /// Speculation may wait for any time.
    async fn acquire_permit(
        &self,
        cx: &FetchContext<'_>,
        bytes: u64,
    ) -> Result<(Permit, Deadlines), VolumeError> {
        let too_late = async {
            cx.priority.raised().await;
            let Deadlines { silence, end } = cx.deadlines();
            sleep_until(silence).await;
            // A server that is only busy goes on answering others.
            while self.server.responded_within(2 * UNRESPONSIVE_AFTER) && Instant::now() < end {
                sleep_until((Instant::now() + UNRESPONSIVE_AFTER).min(end)).await;
            }
        };
        tokio::select! {
            biased;
            permit = self.server.gate().acquire(cx.priority, bytes) => Ok((permit, cx.deadlines())),
            () = too_late => Err(HttpError::Deadline.into()),
        }
    }

    /// Sends the request, for which there is a permit. Records whether the server answers, and how
    /// long it takes to begin.
    pub(super) async fn send(
        &self,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        progress: &RequestProgress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let (bytes, sent) = (request.bytes(cx.chunk), Instant::now());
        let is_retry = progress.sent.set(sent).is_err();
        let unresponsive = async {
            cx.priority.raised().await;
            let raised = Instant::now();
            loop {
                let since = progress.response.last_byte_at().map_or(raised, |last| last.max(raised));
                if since.elapsed() >= UNRESPONSIVE_AFTER {
                    return since;
                }
                sleep_until(since + UNRESPONSIVE_AFTER).await;
            }
        };
        let reading = async {
            match self.read_from_engine(cx, request, progress, deadlines.silence).await {
                Some(source) => Ok(source),
                None => self.read_over_http(cx, request, progress, deadlines).await,
            }
        };
        let mut reading = pin!(reading);
        let outcome = tokio::select! {
            biased;
            outcome = &mut reading => outcome,
            since = unresponsive => {
                self.watch_unresponsive(cx.volumes, since);
                let _unanswered = self.server.count_unanswered();
                reading.await
            }
        };
        if let (Some(begun), false) = (progress.response.first_byte_at(), is_retry) {
            self.server.record_first_byte(bytes, begun - sent);
        }
        if let Some(last) = progress.response.last_byte_at().filter(|&last| last >= sent) {
            self.server.record_answer();
            if last.elapsed() < UNRESPONSIVE_AFTER {
                self.server.mark_responsive();
            }
        }
        outcome
    }

    /// Asks the engine beside the server. `None` if there is no engine, or it does not deliver.
    async fn read_from_engine(
        &self,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        progress: &RequestProgress,
        deadline: Instant,
    ) -> Option<Source> {
        let fid = cx.chunk.fid;
        let engine = self.server.engine().filter(|_| Engine::can_read(request))?;
        let source = engine.source_if_connected(cx.timeline).await?;
        let token = cx.volumes.read_token(fid);
        let asking = cx.timeline.begin_at(StepKind::Request, engine.address());
        let outcome = engine.read(cx.chunk, request, token.as_deref(), deadline, cx.timeline).await;
        asking.end_request(outcome.as_ref().map_or(source, |used| *used).label(), None, &outcome);
        match outcome {
            Ok(source) => {
                progress.response.record();
                Some(source)
            }
            Err(error) => {
                tracing::debug!(%fid, engine = engine.address(), %error, "an engine did not deliver");
                cx.metrics.fetch_error(source, error.reason());
                if error.is_damage() {
                    cx.metrics.integrity_failure(source);
                }
                cx.metrics.fallback(source, Source::Http);
                None
            }
        }
    }

    /// Asks the server over HTTP.
    async fn read_over_http(
        &self,
        cx: &FetchContext<'_>,
        request: &mut ReadRequest<'_>,
        progress: &RequestProgress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let (chunk, endpoint, begun) = (cx.chunk, &self.endpoint, &progress.response);
        let asking = cx.timeline.begin_at(StepKind::Request, endpoint.authority());
        let outcome = match request {
            ReadRequest::Range { offset, dst } => {
                cx.volumes.read_range(endpoint, chunk.fid, *offset, dst.bytes(), deadlines, begun).await
            }
            ReadRequest::Whole { offset, dst } => {
                cx.volumes.read_whole(endpoint, chunk, *offset, dst.bytes(), deadlines, begun).await
            }
            ReadRequest::Needle { limit, bytes } => {
                let read = cx.volumes.read_needle(endpoint, chunk, *limit, deadlines, begun).await;
                read.map(|read| **bytes = read)
            }
        };
        asking.end_request(Source::Http.label(), begun.first_byte_at(), &outcome);
        outcome.map(|()| Source::Http)
    }

    /// Marks the server, which has left a reader waiting since `since`, as unresponsive, and
    /// probes it in the background until it sends something again.
    pub(super) fn watch_unresponsive(&self, volumes: &VolumeClient, since: Instant) {
        self.server.mark_unresponsive(since);
        let Some(probe) = self.server.begin_probe() else { return };
        tracing::warn!(server = self.endpoint.authority(), "a volume server does not answer");
        let (endpoint, volumes) = (self.endpoint.clone(), volumes.clone());
        tokio::spawn(async move {
            while probe.is_needed() {
                let next = Instant::now() + UNRESPONSIVE_AFTER;
                if volumes.answers(&endpoint, next).await {
                    probe.server().mark_responsive();
                }
                sleep_until(next).await;
            }
            tracing::info!(
                server = endpoint.authority(),
                "a volume server answers again, or nobody waits for it"
            );
        });
    }

    /// Records that another replica has answered a request for `bytes` faster. Returns whether the
    /// server of this one seems to have stopped.
    pub(super) fn record_lost_race(&self, progress: &RequestProgress, bytes: u64) -> bool {
        // A server is not to blame for a request that still waits here, or whose response comes.
        let (Some(sent), None) = (progress.sent.get(), progress.response.last_byte_at()) else {
            return false;
        };
        self.server.record_lost_race(bytes, sent.elapsed());
        self.server.has_stopped()
    }
}
