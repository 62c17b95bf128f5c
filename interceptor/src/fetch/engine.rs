//! The sources above HTTP: the engine beside a volume server.
//!
//! An [`Engine`] is asked only while there is a connection to it, so a reader does not wait for an
//! engine that is not there. The first reader of a server waits a moment for the first connection;
//! later ones are made in the background. After an engine with a connection has missed a deadline,
//! it is not asked for a while (back-off).
//!
//! Any program may listen on the port of an engine. An engine that does not prove that it belongs
//! to the volume server is sent no file id and no token, and asked for nothing (`dial` in
//! `rdma_engine::client` decides, by [`Trust`]); the log and the status say so.
//!
//! An engine sends needles as they are stored. A whole needle is verified by its checksum,
//! unpacked and decrypted here. A range is taken as it is, so ranges of compressed needles are
//! left to the volume server, which unpacks. So are chunk manifests, whose length is not known
//! beforehand: they are few.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdma_engine::client::{
    Client, ClientOptions, Delivered, ReadError, ReadTarget, RegistrationCache, Trust,
};
use rdma_engine::proof::ProofKey;
use rdma_engine::protocol::{MAX_READ, Transport};
use rustls::ClientConfig;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

use super::must_fetch_whole;
use super::read_request::ReadRequest;
use crate::seaweed::entry::Chunk;
use crate::seaweed::volume::{MAX_NEEDLE_OVERHEAD, VolumeError, unpack};
use crate::telemetry::Source;
use crate::telemetry::health::{EngineHealth, EngineState, LastError};
use crate::timeline::{StepKind, Timeline};
use crate::write_target::WriteTarget;

/// The port at which engines listen by default.
pub const ENGINE_PORT: u16 = 18515;

/// How long the first reader of a server waits for the connection to its engine.
const FIRST_CONNECT_WAIT: Duration = Duration::from_millis(300);
/// How often, at most, a connection is tried to an engine that has none.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
/// How long connecting may take. No reader waits for it, and RDMA takes a while if it is emulated
/// or memory is short.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an engine may take for one needle: longer than its disk should ever take, and short
/// enough that the reader, which turns to the volume server next, is still there.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an engine is not asked that has missed a deadline, at first and at most.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Which engines there are, and how they are reached.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The transports that may be used, the best first. If empty, no engine is asked.
    pub transports: Vec<Transport>,
    /// The port of engines on the hosts of their volume servers.
    pub port: u16,
    /// Engines with another address: their `host:port` by the `host:port` of the volume server.
    pub addresses: HashMap<String, String>,
    /// The memory that RDMA devices may write to: the cache's.
    pub memory: Option<Arc<RegistrationCache>>,
    /// TLS for engines over the network. If set, an engine must speak it.
    pub tls: Option<Arc<ClientConfig>>,
    /// The key by which engines prove that they have the cluster's `security.toml`, if that has
    /// one.
    pub proof_key: Option<Arc<ProofKey>>,
}

impl Default for EngineConfig {
    /// No engines.
    fn default() -> Self {
        let (transports, addresses) = (Vec::new(), HashMap::new());
        Self { transports, port: ENGINE_PORT, addresses, memory: None, tls: None, proof_key: None }
    }
}

impl EngineConfig {
    /// Whether engines on other hosts are discovered, besides those that have an address here.
    pub fn discovers_remote(&self) -> bool {
        self.transports.iter().any(|&transport| transport != Transport::Local)
    }

    /// A client of the engine beside the volume server at `authority`; `None` if engines are not
    /// used.
    pub fn client(&self, authority: &str, connect: Duration) -> Option<Client> {
        if self.transports.is_empty() {
            return None;
        }
        let named = self.addresses.get(authority);
        let address = match named {
            Some(address) => address.clone(),
            None => format!("{}:{}", authority.rsplit_once(':')?.0, self.port),
        };
        let trust = Trust {
            named: named.is_some(),
            key: self.proof_key.clone(),
            volume_server: Some(authority.to_owned()),
        };
        let options = ClientOptions {
            transports: self.transports.clone(),
            connect,
            name: format!("interceptor {}", env!("CARGO_PKG_VERSION")),
            tls: self.tls.clone(),
            trust,
        };
        Some(Client::new(address, options))
    }

    /// The engine beside the volume server at `authority`; `None` if engines are not used.
    pub(super) fn engine(&self, authority: &str) -> Option<Arc<Engine>> {
        let client = self.client(authority, CONNECT_TIMEOUT)?;
        if let Some(memory) = &self.memory {
            client.register(memory.clone());
        }
        Some(Arc::new(Engine {
            client,
            first_connect: OnceCell::new(),
            availability: Mutex::new(Availability {
                next_connect: Instant::now(),
                backoff_until: None,
                backoff: FIRST_BACKOFF,
                announced: None,
                was_connected: false,
                distrusted: None,
            }),
            last_error: Arc::default(),
        }))
    }
}

/// Why an engine did not deliver.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// No bytes came.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bytes that came are not those of the chunk.
    #[error(transparent)]
    Content(#[from] VolumeError),
    /// The bytes that came, or would come, cannot be used, although nothing is wrong with them.
    #[error("{0}")]
    Unsuited(&'static str),
}

impl EngineError {
    /// The label of metrics.
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
    first_connect: OnceCell<()>,
    availability: Mutex<Availability>,
    last_error: Arc<LastError>,
}

/// Whether an engine can be asked.
struct Availability {
    /// When a connection may be tried again.
    next_connect: Instant,
    backoff_until: Option<Instant>,
    backoff: Duration,
    /// The source of its bytes as the log has said it last.
    announced: Option<Source>,
    /// Whether there ever was a connection.
    was_connected: bool,
    /// Why it is not trusted, as the log has said it last.
    distrusted: Option<String>,
}

impl Engine {
    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        self.client.address()
    }

    /// The source that its bytes would come from; `None` if it cannot be asked now. How long the
    /// first connection is waited for goes to `timeline`.
    pub(super) async fn source_if_connected(&self, timeline: &Timeline) -> Option<Source> {
        let first_connect = async || {
            // Dropped after the wait: the next attempt, in the background, goes on connecting.
            let ping = self.client.ping(Instant::now() + CONNECT_TIMEOUT);
            if let Ok(Err(error)) = timeout(FIRST_CONNECT_WAIT, ping).await {
                self.last_error.note(&error);
            }
        };
        if !self.first_connect.initialized() {
            let connecting = timeline.begin_at(StepKind::Connect, self.address());
            self.first_connect.get_or_init(first_connect).await;
            connecting.end();
        }
        let connected = self.connected();
        if connected.is_some() {
            return connected;
        }
        if self.availability.lock().connect_is_due() {
            // In the background: the next request sees whether there is a connection.
            let (client, last_error) = (self.client.clone(), self.last_error.clone());
            tokio::spawn(async move {
                if let Err(error) = client.ping(Instant::now() + CONNECT_TIMEOUT).await {
                    last_error.note(&error);
                }
            });
        }
        None
    }

    /// The source of its bytes if it can be asked now. Logs when that changes.
    fn connected(&self) -> Option<Source> {
        let mut availability = self.availability.lock();
        let source = self.client.transport().map(source).filter(|_| !availability.is_backing_off());
        if source != availability.announced {
            let engine = self.address();
            match source {
                Some(source) => {
                    tracing::info!(engine, transport = source.label(), "an engine is asked first")
                }
                None => tracing::info!(engine, "an engine does not answer; its volume server is asked"),
            }
            availability.announced = source;
        }
        let distrust = self.client.distrust();
        if distrust != availability.distrusted {
            if let Some(reason) = &distrust {
                tracing::warn!(engine = self.address(), reason, "an engine is not asked");
            }
            availability.distrusted = distrust;
        }
        availability.was_connected |= source.is_some();
        source
    }

    /// How it does, for the status API.
    pub(super) fn health(&self) -> EngineHealth {
        let source = self.connected();
        let (state, distrust) = match source {
            Some(_) => (EngineState::Connected, None),
            None => {
                let availability = self.availability.lock();
                (availability.state_without_connection(), availability.distrusted.clone())
            }
        };
        let mut last_error = self.last_error.latest();
        // While it is left alone for a reason, the failure does not say what to configure.
        if let (Some(last), Some(reason)) = (&mut last_error, &distrust) {
            last.text.clone_from(reason);
        }
        EngineHealth {
            address: self.address().to_owned(),
            state,
            source: source.map(|source| source.label().to_owned()),
            distrust,
            last_error,
        }
    }

    /// Whether an engine can be asked for this at all.
    pub(super) fn can_read(request: &ReadRequest<'_>) -> bool {
        !matches!(request, ReadRequest::Needle { .. })
    }

    /// Does `request`. What its memory has after an error is undefined. How long unpacking takes
    /// goes to `timeline`.
    pub(super) async fn read(
        &self,
        chunk: &Chunk,
        request: &mut ReadRequest<'_>,
        token: Option<&str>,
        deadline: Instant,
        timeline: &Timeline,
    ) -> Result<Source, EngineError> {
        // Half of the reader's time is left for the volume server.
        let now = Instant::now();
        let deadline = now + READ_TIMEOUT.min(deadline.saturating_duration_since(now) / 2);
        let outcome = match request {
            ReadRequest::Range { offset, dst } => {
                self.read_range(chunk, *offset, &mut **dst, token, deadline).await
            }
            ReadRequest::Whole { offset, dst } => {
                self.read_whole(chunk, *offset, &mut **dst, token, deadline, timeline).await
            }
            ReadRequest::Needle { .. } => Err(EngineError::Unsuited("lists are left to the volume server")),
        };
        if let Err(error) = &outcome {
            self.last_error.note(error);
        }
        self.availability.lock().update(outcome.as_ref().err());
        outcome
    }

    /// Reads to `dst`; over RDMA without a copy, if a device may write there.
    async fn fill(
        &self,
        target: ReadTarget<'_>,
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

    async fn read_range(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        token: Option<&str>,
        deadline: Instant,
    ) -> Result<Source, EngineError> {
        let offset = u32::try_from(offset).map_err(|_| EngineError::Unsuited("longer than any needle"))?;
        let delivered = self.fill(ReadTarget { fid: chunk.fid, offset, token }, dst, deadline).await?;
        check_flags(chunk, &delivered)?;
        if delivered.needle.flags.is_gzip() {
            return Err(EngineError::Unsuited("a range of compressed bytes"));
        }
        check_length(dst.length() as u64, delivered.needle.length)?;
        Ok(source(delivered.transport))
    }

    async fn read_whole(
        &self,
        chunk: &Chunk,
        offset: u64,
        dst: &mut dyn WriteTarget,
        token: Option<&str>,
        deadline: Instant,
        timeline: &Timeline,
    ) -> Result<Source, EngineError> {
        let target = ReadTarget { fid: chunk.fid, offset: 0, token };
        if !must_fetch_whole(chunk) && dst.length() as u64 == chunk.size {
            let delivered = self.fill(target, dst, deadline).await?;
            // Otherwise the needle is compressed or longer than its chunk: read it again, with
            // room for all of it.
            if delivered.verified && !delivered.needle.flags.is_gzip() {
                check_length(chunk.size, delivered.needle.length)?;
                return Ok(source(delivered.transport));
            }
        }
        // Memory is allocated for what was asked for, whatever size the engine names. A needle
        // that is longer than its chunk (of a truncated file) is read from the volume server,
        // where the rest is skipped without memory for it.
        let room = chunk.size.saturating_add(MAX_NEEDLE_OVERHEAD);
        if room > self.client.max_read_size().unwrap_or(MAX_READ).into() {
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
        let unpacking = timeline.begin_at(StepKind::Unpack, self.address());
        let unpacked = unpack(&mut stored, delivered.needle.flags.is_gzip(), chunk, offset, dst.bytes());
        unpacking.end_with(&unpacked);
        unpacked?;
        Ok(source(delivered.transport))
    }
}

/// A needle whose writer compressed it has a flag that says so. If it does not, only the volume
/// server knows how it is stored.
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

impl Availability {
    fn state_without_connection(&self) -> EngineState {
        match (&self.distrusted, self.was_connected) {
            (Some(_), _) => EngineState::Unproved,
            (None, true) => EngineState::Lost,
            (None, false) => EngineState::Absent,
        }
    }

    fn is_backing_off(&mut self) -> bool {
        let is_backing_off = self.backoff_until.is_some_and(|until| Instant::now() < until);
        if !is_backing_off {
            self.backoff_until = None;
        }
        is_backing_off
    }

    fn connect_is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.next_connect;
        if is_due {
            self.next_connect = now + RECONNECT_INTERVAL;
        }
        is_due
    }

    /// Updates the back-off after a request. A refusal is about a needle and not about the engine.
    fn update(&mut self, error: Option<&EngineError>) {
        match error {
            None => self.backoff = FIRST_BACKOFF,
            Some(EngineError::Read(ReadError::Deadline)) => {
                self.backoff_until = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            }
            Some(_) => {}
        }
    }
}
