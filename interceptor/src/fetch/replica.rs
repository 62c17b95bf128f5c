//! One replica of a needle is asked for it: the engine beside its server first, then the server.
//!
//! [`Replica::read`] waits for its turn at the server's [gate](super::gate), sends the request to the
//! engine if there is one that can be asked, and to the server over HTTP if there is none or it does
//! not deliver. Meanwhile a server that sends nothing to a waiting reader is noted as one that does
//! not answer, and probed until it answers again.

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::attempts::{Attempts, longer};
use super::engine::Engine;
use super::gate::Pass;
use super::job::Job;
use super::servers::Server;
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::{Deadlines, HttpError};
use crate::seaweed::volume::{Begun, Class, Place, VolumeClient, VolumeError};
use crate::telemetry::{Metrics, Source};

/// How often a busy server is asked again before the next replica is, and the first pause before.
const BUSY_RETRIES: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// After so long without a byte, while a reader waits, a server counts as one that does not answer.
const UNANSWERED_AFTER: Duration = Duration::from_secs(1);

/// What all requests of one fetch have in common.
pub(super) struct FetchContext<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) priority: &'a Priority,
    pub(super) attempts: &'a Attempts,
    pub(super) volumes: &'a VolumeClient,
    pub(super) metrics: &'a Metrics,
    /// How long a request may take while its response comes in.
    pub(super) request_deadline: Duration,
}

impl FetchContext<'_> {
    /// When a request that is sent now must be over.
    pub(super) fn deadlines(&self) -> Deadlines {
        self.attempts.deadlines(self.priority.demanded_at(), Instant::now(), self.request_deadline)
    }
}

/// How far a request has come.
#[derive(Default)]
pub(super) struct Progress {
    sent: OnceLock<Instant>,
    pub(super) begun: Begun,
}

/// A copy of a needle, at a server that can be asked for it.
pub(super) struct Replica {
    pub(super) place: Place,
    /// The server's name in [`Locations`](crate::seaweed::locations::Locations), where its failures
    /// are noted.
    pub(super) name: String,
    pub(super) server: Arc<Server>,
}

impl Replica {
    /// Reads from the server, again after a pause if that is busy. What the memory of `job` has after
    /// an error is undefined.
    pub(super) async fn read(
        &self,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
    ) -> Result<Source, VolumeError> {
        let mut pause = BUSY_PAUSE;
        for _ in 0..BUSY_RETRIES {
            match self.read_once(cx, job, progress).await {
                Err(error) if error.class() == Class::Busy => {
                    cx.metrics.fetch_error(Source::Http, error.reason());
                    tokio::time::sleep(pause).await;
                    pause = longer(pause);
                }
                outcome => return outcome,
            }
        }
        self.read_once(cx, job, progress).await
    }

    /// Waits for its turn at the server's gate and sends the request.
    async fn read_once(
        &self,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
    ) -> Result<Source, VolumeError> {
        let (pass, deadlines) = self.enter(cx, job.bytes(cx.chunk)).await?;
        pass.during(cx.priority, self.send(cx, job, progress, deadlines)).await
    }

    /// Enters the server's gate, and says when the request must be over. Speculation may wait for any
    /// time.
    async fn enter(&self, cx: &FetchContext<'_>, bytes: u64) -> Result<(Pass, Deadlines), VolumeError> {
        let too_late = async {
            cx.priority.raised().await;
            let Deadlines { silence, end } = cx.deadlines();
            sleep_until(silence).await;
            // A server that is only busy goes on answering others.
            while self.server.was_heard_within(2 * UNANSWERED_AFTER) && Instant::now() < end {
                sleep_until((Instant::now() + UNANSWERED_AFTER).min(end)).await;
            }
        };
        tokio::select! {
            biased;
            pass = self.server.gate().enter(cx.priority, bytes) => Ok((pass, cx.deadlines())),
            () = too_late => Err(HttpError::Deadline.into()),
        }
    }

    /// Sends the request, whose turn it is at the gate. Notes whether the server answers, and how long
    /// it takes to begin.
    pub(super) async fn send(
        &self,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let (bytes, sent) = (job.bytes(cx.chunk), Instant::now());
        let again = progress.sent.set(sent).is_err();
        let stopped = async {
            cx.priority.raised().await;
            let raised = Instant::now();
            loop {
                let heard = progress.begun.last().map_or(raised, |last| last.max(raised));
                if heard.elapsed() >= UNANSWERED_AFTER {
                    return heard;
                }
                sleep_until(heard + UNANSWERED_AFTER).await;
            }
        };
        let asking = async {
            match self.ask_engine(cx, job, progress, deadlines.silence).await {
                Some(source) => Ok(source),
                None => self.ask_server(cx, job, progress, deadlines).await,
            }
        };
        let mut asking = pin!(asking);
        let outcome = tokio::select! {
            biased;
            outcome = &mut asking => outcome,
            since = stopped => {
                self.unanswering(cx.volumes, since);
                let _unanswered = self.server.leaves_unanswered();
                asking.await
            }
        };
        if let (Some(begun), false) = (progress.begun.at(), again) {
            self.server.answered(bytes, begun - sent);
        }
        if progress.begun.last().is_some_and(|last| last >= sent && last.elapsed() < UNANSWERED_AFTER) {
            self.server.answers();
        }
        outcome
    }

    /// Asks the engine beside the server. `None` if there is no engine, or it does not deliver.
    async fn ask_engine(
        &self,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
        deadline: Instant,
    ) -> Option<Source> {
        let fid = cx.chunk.fid;
        let engine = self.server.engine().filter(|_| Engine::is_for(job))?;
        let source = engine.source().await?;
        let token = cx.volumes.read_token(fid);
        match engine.read(cx.chunk, job, token.as_deref(), deadline).await {
            Ok(source) => {
                progress.begun.now();
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
    async fn ask_server(
        &self,
        cx: &FetchContext<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let (chunk, place, begun) = (cx.chunk, &self.place, &progress.begun);
        match job {
            Job::Range { offset, dst } => {
                cx.volumes.read_range(place, chunk.fid, *offset, dst.bytes(), deadlines, begun).await?;
            }
            Job::Whole { offset, dst } => {
                cx.volumes.read_whole(place, chunk, *offset, dst.bytes(), deadlines, begun).await?;
            }
            Job::Gather { limit, bytes } => {
                **bytes = cx.volumes.read_needle(place, chunk, *limit, deadlines, begun).await?;
            }
        }
        Ok(Source::Http)
    }

    /// Notes that the server has left a reader waiting since `since`, and probes it in the background
    /// until it sends something again.
    pub(super) fn unanswering(&self, volumes: &VolumeClient, since: Instant) {
        if !self.server.unanswering(since) {
            return;
        }
        tracing::warn!(server = self.place.authority(), "a volume server does not answer");
        let (server, place, volumes) = (self.server.clone(), self.place.clone(), volumes.clone());
        tokio::spawn(async move {
            while server.is_unanswering() {
                let next = Instant::now() + UNANSWERED_AFTER;
                if volumes.answers(&place, next).await {
                    server.answers();
                }
                sleep_until(next).await;
            }
            tracing::info!(
                server = place.authority(),
                "a volume server answers again, or nobody waits for it"
            );
        });
    }

    /// Notes that another replica has answered a request for `bytes` faster. Returns whether the
    /// server of this one seems to have stopped.
    pub(super) fn overtaken(&self, progress: &Progress, bytes: u64) -> bool {
        // A server is not to blame for a request that still waits here, or whose response comes.
        let (Some(sent), None) = (progress.sent.get(), progress.begun.at()) else { return false };
        self.server.overtaken(bytes, sent.elapsed());
        self.server.is_silent()
    }
}
