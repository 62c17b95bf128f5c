//! One server is asked, and if it is late, the next one as well.
//!
//! To ask a server means to ask the engine beside it, and the server itself if that has none or does not deliver.
//!
//! The destination belongs to the first request for as long as that lives. The second one fills memory of its own, and
//! what it brought is copied only after the first was dropped; dropping a request closes its connection, so that bytes that
//! come late are nobody's. Closing costs a new connection some time later; reading the rest to keep the connection would
//! cost the very transfer that the server is slow at.

use std::pin::pin;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::attempts::Attempts;
use super::engine::Engine;
use super::gate::Pass;
use super::job::Job;
use super::sources::{Candidate, Sources};
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::{Deadlines, HttpError};
use crate::seaweed::volume::{Begun, VolumeError};
use crate::telemetry::Source;

/// How long a server may say nothing to a request that a reader waits for before it counts as one that does not answer.
const UNANSWERED_AFTER: Duration = Duration::from_secs(1);

/// What all requests of one fetch have in common.
pub(super) struct Errand<'a> {
    pub(super) chunk: &'a Chunk,
    pub(super) priority: &'a Priority,
    pub(super) attempts: &'a Attempts,
}

/// How far a request has come.
#[derive(Default)]
pub(super) struct Progress {
    sent: OnceLock<Instant>,
    begun: Begun,
}

/// What came of asking one server or two.
#[derive(Default)]
pub(super) struct Race<'c> {
    /// Where the bytes came from, if the job is done.
    pub(super) won: Option<Source>,
    /// Whether the second server was asked.
    pub(super) hedged: bool,
    /// Who answered otherwise, and how.
    pub(super) failures: Vec<(&'c Candidate, VolumeError)>,
}

impl<'c> Race<'c> {
    fn alone(candidate: &'c Candidate, outcome: Result<Source, VolumeError>) -> Self {
        let mut race = Self::default();
        race.finish(candidate, outcome);
        race
    }

    fn finish(&mut self, candidate: &'c Candidate, outcome: Result<Source, VolumeError>) {
        match outcome {
            Ok(source) => self.won = Some(source),
            Err(error) => self.failures.push((candidate, error)),
        }
    }

    fn is_over(&self) -> bool {
        self.won.is_some() || self.failures.len() == 2
    }
}

impl Sources {
    /// Asks `first`, and `second` too if there is one and `first` is late. Once this is over nobody else writes to the memory
    /// of `job`.
    pub(super) async fn race<'c>(
        &self,
        first: &'c Candidate,
        second: Option<&'c Candidate>,
        errand: &Errand<'_>,
        job: &mut Job<'_>,
    ) -> Race<'c> {
        let progress = Progress::default();
        let Some(second) = second else {
            return Race::alone(first, self.ask(first, errand, job, &progress).await);
        };
        let (bytes, outline) = (job.bytes(errand.chunk), job.outline());
        let mut memory = Vec::new();
        let mut race = Race::default();
        let mut overtaken = false;
        {
            let mut asking = pin!(self.ask(first, errand, job, &progress));
            let due = self.hedges.due(&first.server, &second.server, errand.priority, &progress.begun, bytes);
            let _permit = tokio::select! {
                biased;
                outcome = &mut asking => return Race::alone(first, outcome),
                permit = due => permit,
            };
            self.metrics.hedge_sent();
            race.hedged = true;
            let mut twin = outline.job(&mut memory);
            let hedge = Progress::default();
            let deadlines = self.deadlines(errand.attempts, errand.priority);
            let mut hedging = pin!(self.request(second, errand, &mut twin, &hedge, deadlines));
            let (mut first_over, mut second_over) = (false, false);
            while !race.is_over() {
                tokio::select! {
                    biased;
                    outcome = &mut asking, if !first_over => {
                        first_over = true;
                        race.finish(first, outcome);
                    }
                    outcome = &mut hedging, if !second_over => {
                        second_over = true;
                        overtaken = outcome.is_ok();
                        race.finish(second, outcome);
                    }
                }
            }
            if overtaken && !first_over {
                self.overtaken(first, &progress, bytes);
            }
        }
        if overtaken {
            self.metrics.hedge_won();
            job.accept(memory);
        }
        race
    }

    /// Waits for its turn at a server and sends it a request.
    pub(super) async fn ask_once(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
    ) -> Result<Source, VolumeError> {
        let (pass, deadlines) = self.enter(candidate, errand, job.bytes(errand.chunk)).await?;
        pass.during(errand.priority, self.request(candidate, errand, job, progress, deadlines)).await
    }

    /// A pass, and by when the request must be over. While it is speculation it may wait for any time.
    async fn enter(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        bytes: u64,
    ) -> Result<(Pass, Deadlines), VolumeError> {
        let Errand { priority, attempts, .. } = errand;
        let too_late = async {
            priority.raised().await;
            let Deadlines { silence, end } = self.deadlines(attempts, priority);
            sleep_until(silence).await;
            // A server that is only busy goes on answering others.
            while candidate.server.was_heard_within(2 * UNANSWERED_AFTER) && Instant::now() < end {
                sleep_until((Instant::now() + UNANSWERED_AFTER).min(end)).await;
            }
        };
        tokio::select! {
            biased;
            pass = candidate.server.gate().enter(priority, bytes) => Ok((pass, self.deadlines(attempts, priority))),
            () = too_late => Err(HttpError::Deadline.into()),
        }
    }

    /// Sends a request, and notes whether the server answers and how long it took.
    async fn request(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let Errand { chunk, priority, .. } = errand;
        let (bytes, sent) = (job.bytes(chunk), Instant::now());
        let again = progress.sent.set(sent).is_err();
        let stopped = async {
            priority.raised().await;
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
            match self.ask_engine(candidate, chunk, job, progress, deadlines.silence).await {
                Some(source) => Ok(source),
                None => self.ask_server(candidate, chunk, job, progress, deadlines).await,
            }
        };
        let mut asking = pin!(asking);
        let outcome = tokio::select! {
            biased;
            outcome = &mut asking => outcome,
            since = stopped => {
                self.unanswering(candidate, since);
                let _unanswered = candidate.server.leaves_unanswered();
                asking.await
            }
        };
        if let (Some(begun), false) = (progress.begun.at(), again) {
            candidate.server.answered(bytes, begun - sent);
        }
        if progress.begun.last().is_some_and(|last| last >= sent && last.elapsed() < UNANSWERED_AFTER) {
            candidate.server.answers();
        }
        outcome
    }

    /// Notes that a server has left a reader waiting since `since`, and finds out when it says something again.
    pub(super) fn unanswering(&self, candidate: &Candidate, since: Instant) {
        if !candidate.server.unanswering(since) {
            return;
        }
        tracing::warn!(server = candidate.place.authority(), "a volume server does not answer");
        let (server, place, volumes) =
            (candidate.server.clone(), candidate.place.clone(), self.volumes.clone());
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

    /// Asks the engine beside a server. Where there is none, or it does not deliver, the server itself is next.
    async fn ask_engine(
        &self,
        candidate: &Candidate,
        chunk: &Chunk,
        job: &mut Job<'_>,
        progress: &Progress,
        deadline: Instant,
    ) -> Option<Source> {
        let engine = candidate.server.engine().filter(|_| Engine::is_for(job))?;
        let source = engine.source().await?;
        let token = self.volumes.read_token(chunk.fid);
        match engine.read(chunk, job, token.as_deref(), deadline).await {
            Ok(source) => {
                progress.begun.now();
                Some(source)
            }
            Err(error) => {
                tracing::debug!(fid = %chunk.fid, engine = engine.address(), %error, "an engine did not deliver");
                self.metrics.fetch_error(source, error.reason());
                if error.is_damage() {
                    self.metrics.integrity_failure(source);
                }
                self.metrics.fallback(source, Source::Http);
                None
            }
        }
    }

    /// Asks a server over HTTP.
    async fn ask_server(
        &self,
        candidate: &Candidate,
        chunk: &Chunk,
        job: &mut Job<'_>,
        progress: &Progress,
        deadlines: Deadlines,
    ) -> Result<Source, VolumeError> {
        let (place, begun) = (&candidate.place, &progress.begun);
        match job {
            Job::Range { offset, dst } => {
                self.volumes.read_range(place, chunk.fid, *offset, dst.bytes(), deadlines, begun).await?;
            }
            Job::Whole { offset, dst } => {
                self.volumes.read_whole(place, chunk, *offset, dst.bytes(), deadlines, begun).await?;
            }
            Job::Gather { limit, bytes } => {
                **bytes = self.volumes.read_needle(place, chunk, *limit, deadlines, begun).await?;
            }
        }
        Ok(Source::Http)
    }

    /// Notes that another server was faster.
    fn overtaken(&self, loser: &Candidate, progress: &Progress, bytes: u64) {
        // One that is overtaken while its request still waits here is not to blame.
        if let (Some(sent), None) = (progress.sent.get(), progress.begun.at()) {
            loser.server.overtaken(bytes, sent.elapsed());
            if loser.server.is_silent() {
                self.locations.failed(&loser.name);
            }
        }
    }
}
