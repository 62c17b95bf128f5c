//! The rungs above HTTP: the engine beside a volume server.
//!
//! An [`Engine`] is asked only while there is a connection to it, so that a reader never waits for one that is not there. It is
//! looked for when its server is first asked for something, which that reader waits a moment for, and from then on in the
//! background. One that had a connection and did not answer in time is left alone for a while.
//!
//! Anybody may listen where an engine is looked for. One that does not prove that it is the volume
//! server's ([`Trust`]) is told nothing and asked for nothing; the log and the status say so.
//!
//! What an engine sends is what is stored. A whole needle is verified by its checksum, unpacked and decrypted here; a
//! range is taken as it is, so ranges of compressed needles are left to the volume server, which unpacks. Lists of chunks, whose
//! length nobody knows beforehand, are left to it too: they are few.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdma_engine::client::{Client, Delivered, Options, ReadError, RegistrationCache, Target, Trust};
use rdma_engine::proof::ProofKey;
use rdma_engine::protocol::{MAX_READ, Transport};
use rustls::ClientConfig;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::job::Job;
use super::must_fetch_whole;
use crate::seaweed::entry::Chunk;
use crate::seaweed::volume::{OVERHEAD, VolumeError, unpack};
use crate::telemetry::Source;
use crate::telemetry::health::{EngineHealth, EngineState, LastError};
use crate::write_target::WriteTarget;

/// The port at which engines listen unless told otherwise.
pub const ENGINE_PORT: u16 = 18515;

/// How long the first reader of a server waits for its engine.
const FIRST_LOOK: Duration = Duration::from_millis(300);
/// How often, at most, an engine that is not there is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long connecting may take. No reader waits for it, and RDMA takes a while where it is emulated or memory is short.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an engine may take for one needle: longer than its disk ever should, and short enough that the reader, who then turns
/// to the volume server, is still there.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one that did not answer is left alone at first, and at most.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Which engines there are, and how they may be talked to.
#[derive(Debug, Clone)]
pub struct Engines {
    /// The transports that may be used, the best first. None: no engine is asked.
    pub transports: Vec<Transport>,
    /// The port of engines on the hosts of their volume servers.
    pub port: u16,
    /// Engines that are elsewhere: `host:port` by the `host:port` of the volume server.
    pub elsewhere: HashMap<String, String>,
    /// Where RDMA devices may write by themselves: the cache's memory.
    pub memory: Option<Arc<RegistrationCache>>,
    /// TLS, which engines over the network have to speak then.
    pub tls: Option<Arc<ClientConfig>>,
    /// The key by which engines prove that they have the cluster's `security.toml`, if it has one.
    pub proof: Option<Arc<ProofKey>>,
}

impl Default for Engines {
    /// None.
    fn default() -> Self {
        let (transports, elsewhere) = (Vec::new(), HashMap::new());
        Self { transports, port: ENGINE_PORT, elsewhere, memory: None, tls: None, proof: None }
    }
}

impl Engines {
    /// Whether engines on other hosts are looked for that nobody has named.
    pub fn are_looked_for(&self) -> bool {
        self.transports.iter().any(|&transport| transport != Transport::Local)
    }

    /// A client of the engine beside the volume server at `authority`, if it may have one.
    pub fn client(&self, authority: &str, connect: Duration) -> Option<Client> {
        if self.transports.is_empty() {
            return None;
        }
        let named = self.elsewhere.get(authority);
        let address = match named {
            Some(address) => address.clone(),
            None => format!("{}:{}", authority.rsplit_once(':')?.0, self.port),
        };
        let trust = Trust {
            named: named.is_some(),
            key: self.proof.clone(),
            volume_server: Some(authority.to_owned()),
        };
        let options = Options {
            transports: self.transports.clone(),
            connect,
            name: format!("interceptor {}", env!("CARGO_PKG_VERSION")),
            tls: self.tls.clone(),
            trust,
        };
        Some(Client::new(address, options))
    }

    /// The engine beside the volume server at `authority`, if it may have one.
    pub(super) fn beside(&self, authority: &str) -> Option<Arc<Engine>> {
        let client = self.client(authority, CONNECT)?;
        if let Some(memory) = &self.memory {
            client.register(memory.clone());
        }
        Some(Arc::new(Engine {
            client,
            first_look: OnceCell::new(),
            health: Mutex::new(Health {
                next_look: Instant::now(),
                rests_until: None,
                rest: FIRST_REST,
                announced: None,
                was_connected: false,
                distrusted: None,
            }),
            trouble: Arc::default(),
        }))
    }
}

/// Why an engine did not do a job.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// It did not deliver.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What it delivered does not give the bytes of the chunk.
    #[error(transparent)]
    Content(#[from] VolumeError),
    /// What it delivered cannot be used, and nothing is wrong with it.
    #[error("{0}")]
    Unsuited(&'static str),
}

impl EngineError {
    /// One word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Read(error) => error.label(),
            Self::Content(error) => error.reason(),
            Self::Unsuited(_) => "unsuited",
        }
    }

    /// Whether bytes came that are not those of the needle.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Read(ReadError::Damaged(_)) | Self::Content(_))
    }
}

/// One engine.
pub(super) struct Engine {
    client: Client,
    first_look: OnceCell<()>,
    health: Mutex<Health>,
    trouble: Arc<LastError>,
}

struct Health {
    next_look: Instant,
    rests_until: Option<Instant>,
    rest: Duration,
    /// What the log says that its bytes come from.
    announced: Option<Source>,
    /// Whether there ever was a connection.
    was_connected: bool,
    /// Why the log says that it is not trusted.
    distrusted: Option<String>,
}

impl Engine {
    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        self.client.address()
    }

    /// The source that its bytes would come from, if it can be asked now.
    pub(super) async fn source(&self) -> Option<Source> {
        let first_look = async || {
            // Dropped when the time is over, connecting is taken up again by the next look.
            if let Ok(Err(error)) = timeout(FIRST_LOOK, self.client.ping(Instant::now() + CONNECT)).await {
                self.trouble.note(&error);
            }
        };
        self.first_look.get_or_init(first_look).await;
        let connected = self.connected();
        if connected.is_some() {
            return connected;
        }
        if self.health.lock().look_is_due() {
            // It connects by itself, and whether that works is seen at the next request.
            let (client, trouble) = (self.client.clone(), self.trouble.clone());
            tokio::spawn(async move {
                if let Err(error) = client.ping(Instant::now() + CONNECT).await {
                    trouble.note(&error);
                }
            });
        }
        None
    }

    fn connected(&self) -> Option<Source> {
        let mut health = self.health.lock();
        let source = self.client.transport().map(source).filter(|_| !health.rests());
        if source != health.announced {
            let engine = self.address();
            match source {
                Some(source) => {
                    tracing::info!(engine, transport = source.label(), "an engine is asked first")
                }
                None => tracing::info!(engine, "an engine does not answer; its volume server is asked"),
            }
            health.announced = source;
        }
        let distrust = self.client.distrust();
        if distrust != health.distrusted {
            if let Some(reason) = &distrust {
                tracing::warn!(engine = self.address(), reason, "an engine is not asked");
            }
            health.distrusted = distrust;
        }
        health.was_connected |= source.is_some();
        source
    }

    /// How it is doing, for people.
    pub(super) fn health(&self) -> EngineHealth {
        let source = self.connected();
        let state = match source {
            Some(_) => EngineState::Connected,
            None => self.health.lock().without_connection(),
        };
        EngineHealth {
            address: self.address().to_owned(),
            state,
            source: source.map(|source| source.label().to_owned()),
            last_error: self.trouble.told(),
        }
    }

    /// Whether this is a job for an engine at all.
    pub(super) fn is_for(job: &Job<'_>) -> bool {
        !matches!(job, Job::Gather { .. })
    }

    /// Does `job`. What its memory has after an error is undefined.
    pub(super) async fn read(
        &self,
        chunk: &Chunk,
        job: &mut Job<'_>,
        token: Option<&str>,
        deadline: Instant,
    ) -> Result<Source, EngineError> {
        // What is left of the reader's time is shared with the volume server.
        let now = Instant::now();
        let deadline = now + PATIENCE.min(deadline.saturating_duration_since(now) / 2);
        let outcome = match job {
            Job::Range { offset, dst } => self.range(chunk, *offset, &mut **dst, token, deadline).await,
            Job::Whole { offset, dst } => self.whole(chunk, *offset, &mut **dst, token, deadline).await,
            Job::Gather { .. } => Err(EngineError::Unsuited("lists are left to the volume server")),
        };
        if let Err(error) = &outcome {
            self.trouble.note(error);
        }
        self.health.lock().learn(outcome.as_ref().err());
        outcome
    }

    /// Reads into `dst`: over RDMA without a copy, if a device may write there.
    async fn fill(
        &self,
        target: Target<'_>,
        dst: &mut dyn WriteTarget,
        deadline: Instant,
    ) -> Result<Delivered, ReadError> {
        let over_rdma = self.client.transport() == Some(Transport::Verbs);
        let Some(memory) = over_rdma.then(|| dst.detach()).flatten() else {
            return self.client.read(target, dst.bytes(), deadline).await;
        };
        let (outcome, memory) = self.client.read_owned(target, memory, deadline).await;
        if let Some(memory) = memory {
            dst.reattach(memory);
        }
        outcome
    }

    async fn range(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        token: Option<&str>,
        deadline: Instant,
    ) -> Result<Source, EngineError> {
        let offset = u32::try_from(offset).map_err(|_| EngineError::Unsuited("longer than any needle"))?;
        let delivered = self.fill(Target { fid: chunk.fid, offset, token }, dst, deadline).await?;
        check_flags(chunk, &delivered)?;
        if delivered.needle.flags.is_gzip() {
            return Err(EngineError::Unsuited("a range of compressed bytes"));
        }
        check_length(dst.length() as u64, delivered.needle.length)?;
        Ok(source(delivered.transport))
    }

    async fn whole(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        token: Option<&str>,
        deadline: Instant,
    ) -> Result<Source, EngineError> {
        let target = Target { fid: chunk.fid, offset: 0, token };
        if !must_fetch_whole(chunk) && dst.length() as u64 == chunk.size {
            let delivered = self.fill(target, dst, deadline).await?;
            // Of a needle that is longer than its chunk, or compressed, this was not what is wanted.
            if delivered.verified && !delivered.needle.flags.is_gzip() {
                check_length(chunk.size, delivered.needle.length)?;
                return Ok(source(delivered.transport));
            }
        }
        // More than what was asked for is not given memory, whatever size the engine names: a needle that is longer than
        // its chunk (a file was truncated) is read from the volume server, which needs no memory for what is skipped.
        let room = chunk.size.saturating_add(OVERHEAD);
        if room > self.client.longest_read().unwrap_or(MAX_READ).into() {
            return Err(EngineError::Unsuited("longer than an engine brings at a time"));
        }
        let mut stored = vec![0; room as usize];
        let delivered = self.client.read(target, &mut stored, deadline).await?;
        if delivered.needle.data_size > delivered.needle.length {
            return Err(EngineError::Unsuited("longer than its chunk"));
        }
        check_flags(chunk, &delivered)?;
        if !delivered.verified {
            return Err(EngineError::Unsuited("not all of the needle"));
        }
        stored.truncate(delivered.needle.length as usize);
        unpack(&mut stored, delivered.needle.flags.is_gzip(), chunk, offset, dst.bytes())?;
        Ok(source(delivered.transport))
    }
}

/// A chunk whose writer compressed it is marked so at its needle as well; where it is not, only the volume server knows why.
fn check_flags(chunk: &Chunk, delivered: &Delivered) -> Result<(), EngineError> {
    let unmarked = chunk.is_compressed && chunk.cipher_key.is_none() && !delivered.needle.flags.is_gzip();
    if unmarked { Err(EngineError::Unsuited("compressed and not marked so")) } else { Ok(()) }
}

fn check_length(needed: u64, found: u32) -> Result<(), EngineError> {
    let found = u64::from(found);
    if found == needed { Ok(()) } else { Err(VolumeError::Length { needed, found }.into()) }
}

fn source(transport: Transport) -> Source {
    match transport {
        Transport::Verbs => Source::Verbs,
        Transport::Local => Source::Local,
        Transport::Tcp => Source::Tcp,
    }
}

impl Health {
    fn without_connection(&self) -> EngineState {
        match (&self.distrusted, self.was_connected) {
            (Some(_), _) => EngineState::Unproved,
            (None, true) => EngineState::Lost,
            (None, false) => EngineState::Absent,
        }
    }

    fn rests(&mut self) -> bool {
        let rests = self.rests_until.is_some_and(|until| Instant::now() < until);
        if !rests {
            self.rests_until = None;
        }
        rests
    }

    fn look_is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.next_look;
        if is_due {
            self.next_look = now + LOOK_EVERY;
        }
        is_due
    }

    /// Draws conclusions from a request. A refusal is about a needle and not about the engine.
    fn learn(&mut self, error: Option<&EngineError>) {
        match error {
            None => self.rest = FIRST_REST,
            Some(EngineError::Read(ReadError::Deadline)) => {
                self.rests_until = Some(Instant::now() + self.rest);
                self.rest = (self.rest * 2).min(LONGEST_REST);
            }
            Some(_) => {}
        }
    }
}
