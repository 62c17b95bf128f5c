//! Who is asked for a needle, and what becomes of it if nobody delivers. The rung of the ladder that always exists is the volume servers'
//! HTTP interface.

use std::sync::Arc;
use std::time::Duration;

use rdma_engine::FileId;
use tokio::time::{Instant, sleep_until};

use super::attempts::{Attempts, LEAST_TIME, Next, Verdict, longer};
use super::error::FetchError;
use super::gate::Load;
use super::hedge::Hedges;
use super::job::Job;
use super::race::{Errand, Progress};
use super::servers::{Server, Servers};
use super::{Access, Options};
use crate::priority::Priority;
use crate::seaweed::entry::Chunk;
use crate::seaweed::http1::Deadlines;
use crate::seaweed::locations::{Location, Locations, LookupError, VolumeLookup};
use crate::seaweed::security::Security;
use crate::seaweed::volume::{Class, Place, VolumeClient, VolumeError};
use crate::telemetry::{Metrics, Source};

/// How often a busy server is asked again before the next one is, and the first pause before that.
const BUSY_RETRIES: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// Volume servers, asked for whole needles or parts of them.
pub(super) struct Sources {
    pub(super) volumes: VolumeClient,
    pub(super) locations: Locations,
    pub(super) hedges: Hedges,
    pub(super) metrics: Arc<Metrics>,
    pub(super) servers: Arc<Servers>,
    options: Options,
}

/// A server to ask.
pub(super) struct Candidate {
    pub(super) place: Place,
    /// The name under which a failure of it is noted.
    pub(super) name: String,
    pub(super) server: Arc<Server>,
}

/// Whom to ask in one pass.
struct Candidates {
    /// What they were made from; none for a filer that passes requests on.
    locations: Option<Arc<[Location]>>,
    /// In the order to be asked in.
    servers: Vec<Candidate>,
    /// Whether they were looked up just now.
    fresh: bool,
}

impl Sources {
    pub(super) fn new(
        lookup: Arc<dyn VolumeLookup>,
        security: Arc<Security>,
        metrics: Arc<Metrics>,
        options: Options,
    ) -> Self {
        Self {
            volumes: VolumeClient::new(security, options.limits.clone()),
            locations: Locations::new(lookup, options.data_center.clone()),
            hedges: Hedges::new(),
            servers: Arc::new(Servers::new(
                Load { requests: options.requests_per_server, bytes: options.bytes_per_server },
                options.engines.clone(),
            )),
            metrics,
            options,
        }
    }

    /// Does `job` and says where the bytes came from, or why no server could.
    pub(super) async fn fetch(
        &self,
        chunk: &Chunk,
        job: &mut Job<'_>,
        priority: &Priority,
    ) -> Result<Source, FetchError> {
        let fid = chunk.fid;
        let mut attempts = Attempts::new(self.options.retry_time);
        let mut stale = None;
        let mut servers;
        let mut reason = String::new();
        loop {
            attempts.servers_silent(self.locations.lookup_silent_since());
            let found = self.locate_in_time(fid.volume, stale.as_ref(), priority, &attempts).await;
            let located = found.is_ok();
            let candidates = found.unwrap_or_else(|error| {
                self.metrics.fetch_error(Source::Http, "lookup");
                reason = error.to_string();
                // Without an answer from the filer, servers that were known before may still come back.
                self.candidates(stale.take(), true)
            });
            if located && candidates.servers.is_empty() {
                reason = "no server holds the volume".to_owned();
            }
            if !candidates.servers.is_empty() {
                attempts.servers_silent(candidates.silent_since());
            }
            let mut answers = Vec::with_capacity(candidates.servers.len());
            let errand = Errand { chunk, priority, attempts: &attempts };
            let mut next = candidates.servers.iter();
            while let Some(first) = next.next() {
                let race = self.race(first, next.as_slice().first(), &errand, job).await;
                for (candidate, error) in race.failures {
                    reason = format!("{}: {error}", candidate.place.authority());
                    answers.push(self.note(candidate, fid, &error));
                }
                if let Some(source) = race.won {
                    return Ok(source);
                }
                if race.hedged {
                    next.next();
                }
            }
            servers = candidates.names();
            let fresh = candidates.fresh;
            let verdict = if located { Verdict::of(&answers) } else { Verdict::Open };
            match attempts.failed(verdict, fresh, priority.demanded_at(), Instant::now()) {
                Next::Pass(pause) => {
                    stale = candidates.locations;
                    tokio::time::sleep(pause).await;
                }
                Next::GiveUp => {
                    if verdict == Verdict::Open && priority.demanded_at().is_some() {
                        let now = Instant::now();
                        // One that answers with errors does not keep silent.
                        let is_silent =
                            |candidate: &&Candidate| !candidate.server.was_heard_within(LEAST_TIME);
                        let silent = candidates.servers.iter().filter(is_silent);
                        silent.for_each(|candidate| self.unanswering(candidate, now));
                    }
                    let passes = attempts.passes();
                    // Whoever reads the file that the chunk is of says so where people read it.
                    tracing::debug!(%fid, %servers, passes, last = %reason, "cannot read a chunk from any server");
                    return Err(match verdict {
                        Verdict::Missing => FetchError::Gone { fid, servers },
                        Verdict::Refused => FetchError::Refused { fid, reason },
                        Verdict::Damaged => FetchError::Damaged { fid, servers, reason },
                        Verdict::Open => FetchError::Unreachable { fid, passes, servers, reason },
                    });
                }
            }
        }
    }

    /// Asks one server, again if it is busy.
    pub(super) async fn ask(
        &self,
        candidate: &Candidate,
        errand: &Errand<'_>,
        job: &mut Job<'_>,
        progress: &Progress,
    ) -> Result<Source, VolumeError> {
        let mut pause = BUSY_PAUSE;
        for _ in 0..BUSY_RETRIES {
            match self.ask_once(candidate, errand, job, progress).await {
                Err(error) if error.class() == Class::Busy => {
                    self.metrics.fetch_error(Source::Http, error.reason());
                    tokio::time::sleep(pause).await;
                    pause = longer(pause);
                }
                outcome => return outcome,
            }
        }
        self.ask_once(candidate, errand, job, progress).await
    }

    /// By when a request that is sent now must be over.
    pub(super) fn deadlines(&self, attempts: &Attempts, priority: &Priority) -> Deadlines {
        attempts.deadlines(priority.demanded_at(), Instant::now(), self.options.request_deadline)
    }

    /// [`locate`](Self::locate), for no longer than the reader waits if one does.
    async fn locate_in_time(
        &self,
        volume: u32,
        stale: Option<&Arc<[Location]>>,
        priority: &Priority,
        attempts: &Attempts,
    ) -> Result<Candidates, LookupError> {
        let late = async {
            priority.raised().await;
            sleep_until(self.deadlines(attempts, priority).silence).await;
        };
        tokio::select! {
            biased;
            located = self.locate(volume, stale) => located,
            () = late => Err(LookupError { volume, reason: "no filer has said in time where it is".to_owned() }),
        }
    }

    /// Counts a failure and remembers a server that is in trouble.
    fn note(&self, candidate: &Candidate, fid: FileId, error: &VolumeError) -> Class {
        let server = candidate.name.as_str();
        candidate.server.failed(error);
        tracing::debug!(%fid, server, %error, "a server did not deliver");
        self.metrics.fetch_error(Source::Http, error.reason());
        let class = error.class();
        match class {
            Class::Damaged => self.metrics.integrity_failure(Source::Http),
            Class::Failed | Class::Busy => self.locations.failed(server),
            Class::Missing | Class::Refused => {}
        }
        class
    }

    /// Whom to ask for needles of `volume`, others than those that were made from `stale` if there are any.
    async fn locate(&self, volume: u32, stale: Option<&Arc<[Location]>>) -> Result<Candidates, LookupError> {
        if let Access::FilerProxy(filer) = &self.options.access {
            let filer = filer();
            let servers = vec![self.candidate(Place::Filer(filer.clone()), filer)];
            return Ok(Candidates { locations: None, servers, fresh: true });
        }
        let (locations, fresh) = match stale {
            None => self.locations.get(volume).await?,
            Some(stale) => (self.locations.refresh(volume, stale).await?, true),
        };
        Ok(self.candidates(Some(locations), fresh))
    }

    fn candidates(&self, locations: Option<Arc<[Location]>>, fresh: bool) -> Candidates {
        let place = |location: Location| {
            let address = match &self.options.access {
                Access::PublicUrl if !location.public_url.is_empty() => location.public_url,
                _ => location.url.clone(),
            };
            self.candidate(Place::Volume(address), location.url)
        };
        let ordered = locations.as_ref().map(|locations| self.locations.order(locations));
        let servers = ordered.into_iter().flatten().map(place).collect();
        Candidates { locations, servers, fresh }
    }

    fn candidate(&self, place: Place, name: String) -> Candidate {
        let server = self.servers.at(&place);
        Candidate { place, name, server }
    }
}

impl Candidates {
    /// Since when all of them have left readers waiting, if they have.
    fn silent_since(&self) -> Option<Instant> {
        let since = self.servers.iter().map(|candidate| candidate.server.silent_since());
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.servers.iter().map(|candidate| candidate.place.authority()).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    }
}
