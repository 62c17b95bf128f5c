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

use tokio::time::{Instant, sleep_until};

use super::attempts::Attempts;
use super::engine::Engine;
use super::gate::Pass;
use super::job::Job;
use super::priority::{Priority, Urgency};
use super::sources::{Candidate, Sources};
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::HttpError;
use crate::seaweed::volume::{Begun, VolumeError};
use crate::telemetry::Source;

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
            let (hedge, deadline) = (Progress::default(), self.deadline(errand.attempts));
            let mut hedging = pin!(self.request(second, errand, &mut twin, &hedge, deadline));
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
        let (pass, deadline) = self.enter(candidate, errand, job.bytes(errand.chunk)).await?;
        pass.during(errand.priority, self.request(candidate, errand, job, progress, deadline)).await
    }

    /// A pass, and by when the request must be over. While it is speculation it may wait for any time.
    async fn enter(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        bytes: u64,
    ) -> Result<(Pass, Instant), VolumeError> {
        let Errand { priority, attempts, .. } = errand;
        let demanded = (priority.urgency() == Urgency::Demand).then(|| self.deadline(attempts));
        let too_late = async {
            priority.raised().await;
            sleep_until(demanded.unwrap_or_else(|| self.deadline(attempts))).await;
        };
        tokio::select! {
            biased;
            pass = candidate.server.gate().enter(priority, bytes) => {
                Ok((pass, demanded.unwrap_or_else(|| self.deadline(attempts))))
            }
            () = too_late => Err(HttpError::Deadline.into()),
        }
    }

    /// Sends a request, and notes how long the server took to answer.
    async fn request(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
        deadline: Instant,
    ) -> Result<Source, VolumeError> {
        let bytes = job.bytes(errand.chunk);
        let again = progress.sent.set(Instant::now()).is_err();
        let outcome = match self.ask_engine(candidate, errand.chunk, job, progress, deadline).await {
            Some(source) => Ok(source),
            None => self.ask_server(candidate, errand.chunk, job, progress, deadline).await,
        };
        if let (Some(sent), Some(begun), false) = (progress.sent.get(), progress.begun.at(), again) {
            candidate.server.answered(bytes, begun - *sent);
        }
        outcome
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
        deadline: Instant,
    ) -> Result<Source, VolumeError> {
        let (place, begun) = (&candidate.place, &progress.begun);
        match job {
            Job::Range { offset, dst } => {
                self.volumes.read_range(place, chunk.fid, *offset, dst.bytes(), deadline, begun).await?;
            }
            Job::Whole { offset, dst } => {
                self.volumes.read_whole(place, chunk, *offset, dst.bytes(), deadline, begun).await?;
            }
            Job::Gather { limit, bytes } => {
                **bytes = self.volumes.read_needle(place, chunk, *limit, deadline, begun).await?;
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
