//! Reads needles from an engine.
//!
//! A [`Client`] is for one engine. It connects when it is first asked for something, takes the best transport that both sides
//! have, and connects again after a loss; while an engine does not answer, reads fail at once, and it is tried again after a pause that
//! doubles. Every error says what the caller does next, which is always the same: take the next source.
//!
//! ```text
//!  read ─► Connection ─ request ─►        one task owns the reading side. It reads frames, and hands the whole
//!            ▲                            reading side to the request whose data comes next; that one reads into
//!            └─ answer ◄─ demultiplexer   its caller's memory and hands it back.
//! ```
//! So the data goes from the socket into the caller's memory without a copy, and nobody but the caller's own future writes to that
//! memory: dropping the future is safe at any point, and what is left of the data is read and thrown away. The
//! price: a read that is neither polled nor dropped holds up the others of its engine.
//!
//! Over `local`, data does not come through the socket: the client reads the volume's file itself, through a descriptor that the
//! engine handed over (`volume_file`). Over `verbs` it is fetched by RDMA READ from the engine's memory, straight into memory that was registered
//! ([`Client::register`], [`Client::read_owned`]), or by way of the connection's own.
//!
//! An engine that listens where one is looked for may be anybody's. Before it is told a file id or a
//! token it has to prove itself ([`Trust`]), once for each connection.
//!
//! A needle that is read as a whole is verified by its checksum; a range cannot be. The record's header is compared with
//! the file id in any case.

mod connection;
mod demultiplexer;
mod destination;
mod dial;
mod error;
mod lease;
#[cfg(feature = "verbs")]
mod rdma;
#[cfg(not(feature = "verbs"))]
#[path = "without_rdma.rs"]
mod rdma;
mod volume_file;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use crate::FileId;
use crate::proof::ProofKey;
use crate::protocol::{NeedleInfo, Transport};
use connection::Connection;
pub use destination::Destination;
pub use error::ReadError;
pub use rdma::RegistrationCache;

/// The first pause after an engine could not be reached, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// For how long other transports are taken after RDMA did not lead to an engine that offered it: a network that is set up wrong stays so for a while.
const VERBS_REST: Duration = Duration::from_secs(60);

/// The same for files, after an engine handed over what cannot be one of a volume's.
const LOCAL_REST: Duration = Duration::from_secs(60);

/// How a client goes about it.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The transports that may be used, the best first.
    pub transports: Vec<Transport>,
    /// How long connecting may take, in all; half of it is for RDMA, where another transport is left.
    pub connect: Duration,
    /// What the client calls itself in the engine's log.
    pub name: String,
    /// TLS for engines over the network, if the cluster has it. Then none is spoken to without; what is fetched by RDMA is not encrypted.
    pub tls: Option<Arc<ClientConfig>>,
    /// What makes an engine one that may be asked.
    pub trust: Trust,
}

/// What makes an engine trusted, beside a certificate of the cluster's authority. An engine that
/// none of it holds for is told no file id and no token, and none of its bytes are taken.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The user has named this very address.
    pub named: bool,
    /// The key by which an engine proves that it has the cluster's `security.toml`.
    pub key: Option<Arc<ProofKey>>,
    /// `host:port` of the volume server that the engine is beside. On the same host, an engine of
    /// the same user as that server's is trusted, as those of root and of this process's user are.
    pub volume_server: Option<String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        // On the same host nothing beats reading the file.
        let transports = vec![Transport::Local, Transport::Verbs, Transport::Tcp];
        let (connect, name) = (Duration::from_secs(2), "rdma-engine".to_owned());
        Self { transports, connect, name, tls: None, trust: Trust::default() }
    }
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct ReadTarget<'a> {
    /// The needle.
    pub fid: FileId,
    /// Where to begin, in bytes of the data as it is stored, compressed or not.
    pub offset: u32,
    /// The token that allows it, where the cluster asks for one.
    pub token: Option<&'a str>,
}

/// What came of a read.
#[derive(Debug, Clone, Copy)]
pub struct Delivered {
    /// What the engine says of the needle. [`NeedleInfo::length`] bytes were read: all that was asked for, or up to the needle's end.
    pub needle: NeedleInfo,
    /// Whether that was the whole needle, and its checksum right.
    pub verified: bool,
    /// How the bytes came.
    pub transport: Transport,
}

/// A client of one engine. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    address: String,
    options: ClientOptions,
    link: Mutex<Link>,
    memory: Mutex<Vec<Arc<RegistrationCache>>>,
    /// Held by the one that connects.
    dialing: tokio::sync::Mutex<()>,
}

struct Link {
    connection: Option<Arc<Connection>>,
    /// No attempt before.
    next: Instant,
    pause: Duration,
    reason: String,
    /// Why the engine was not trusted when it was last connected to.
    distrust: Option<String>,
    /// No attempt over verbs before, if there is another way.
    verbs: Instant,
    /// The same for files.
    local: Instant,
}

impl Client {
    /// A client of the engine at `address` (`host:port`). Does not connect yet.
    pub fn new(address: impl Into<String>, options: ClientOptions) -> Self {
        let link = Link {
            connection: None,
            next: Instant::now(),
            pause: FIRST_PAUSE,
            reason: String::new(),
            distrust: None,
            verbs: Instant::now(),
            local: Instant::now(),
        };
        let inner = Inner {
            address: address.into(),
            options,
            link: Mutex::new(link),
            memory: Mutex::default(),
            dialing: Default::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The engine's address, as it was given.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// The transport in use, if there is a connection.
    pub fn transport(&self) -> Option<Transport> {
        self.inner.current().map(|connection| connection.transport())
    }

    /// Why the engine may not be asked, if it was there and has not proved itself.
    pub fn distrust(&self) -> Option<String> {
        self.inner.link.lock().distrust.clone()
    }

    /// Reads the bytes from [`ReadTarget::offset`] on into `destination`, as many as it takes or the needle has. What `destination`
    /// has after an error, and behind the bytes that were read, is undefined. May be dropped at any point.
    ///
    /// # Errors
    /// See [`ReadError`]; none is worth asking the same engine again at once.
    pub async fn read(
        &self,
        target: ReadTarget<'_>,
        destination: &mut [u8],
        deadline: Instant,
    ) -> Result<Delivered, ReadError> {
        let connection = self.inner.connection(deadline).await?;
        let outcome = connection.read(target, destination, deadline).await;
        self.inner.learn(&connection, outcome.as_ref().err());
        outcome
    }

    /// As [`read`](Self::read), into memory that the read owns meanwhile. Over verbs, what lies in memory that may be [registered](Self::register) is
    /// written by the device itself, without a copy.
    ///
    /// The memory comes back with the outcome. Only after an error it may not: then the device still had it, and it is dropped
    /// when the device is done. The same if the future is dropped.
    ///
    /// # Errors
    /// See [`ReadError`]; none is worth asking the same engine again at once.
    pub async fn read_owned<D: Destination>(
        &self,
        target: ReadTarget<'_>,
        memory: D,
        deadline: Instant,
    ) -> (Result<Delivered, ReadError>, Option<D>) {
        let connection = match self.inner.connection(deadline).await {
            Ok(connection) => connection,
            Err(error) => return (Err(error), Some(memory)),
        };
        let (outcome, memory) = connection.read_owned(target, memory, deadline).await;
        self.inner.learn(&connection, outcome.as_ref().err());
        (outcome, memory)
    }

    /// Lets RDMA devices write into `memory` from the next connection on, for [`read_owned`](Self::read_owned). Where the system refuses (the limit on locked
    /// memory, `ulimit -l`), bytes are copied there.
    pub fn register(&self, memory: Arc<RegistrationCache>) {
        self.inner.memory.lock().push(memory);
    }

    /// Asks the engine whether it is there, and connects if need be. Returns how long its answer took, connecting not included.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn ping(&self, deadline: Instant) -> Result<Duration, ReadError> {
        let connection = self.inner.connection(deadline).await?;
        let outcome = connection.ping(deadline).await;
        self.inner.learn(&connection, outcome.as_ref().err());
        outcome
    }

    /// The most bytes that one read may ask for, if there is a connection.
    pub fn max_read_size(&self) -> Option<u32> {
        self.inner.current().map(|connection| connection.limits().read)
    }
}

impl Inner {
    fn current(&self) -> Option<Arc<Connection>> {
        self.link.lock().connection.clone().filter(|connection| connection.is_open())
    }

    async fn connection(&self, deadline: Instant) -> Result<Arc<Connection>, ReadError> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        self.may_dial()?;
        let _dialing = timeout_at(deadline, self.dialing.lock()).await.map_err(|_| ReadError::Deadline)?;
        // Another reader may have been here.
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        self.may_dial()?;
        let limit = deadline.min(Instant::now() + self.options.connect);
        match timeout_at(limit, dial::dial(self)).await {
            Ok(Ok(connection)) => {
                let (address, transport) = (&self.address, connection.transport().name());
                tracing::debug!(address, transport, "connected to an engine");
                let mut link = self.link.lock();
                (link.connection, link.distrust) = (Some(connection.clone()), None);
                Ok(connection)
            }
            Ok(Err(error)) => Err(self.failed(error)),
            // That the caller is in a hurry says nothing about the engine.
            Err(_) if limit == deadline => Err(ReadError::Deadline),
            Err(_) => Err(self.failed(ReadError::Lost("connecting took too long".to_owned()))),
        }
    }

    /// The transports to try now.
    fn transports(&self) -> Vec<Transport> {
        let mut transports = self.options.transports.clone();
        let link = self.link.lock();
        for (resting, until) in [(Transport::Verbs, link.verbs), (Transport::Local, link.local)] {
            if transports.len() > 1 && Instant::now() < until {
                transports.retain(|&transport| transport != resting);
            }
        }
        transports
    }

    /// Takes other transports than RDMA for a while, if there are any.
    fn rest_verbs(&self) {
        self.link.lock().verbs = Instant::now() + VERBS_REST;
    }

    fn may_dial(&self) -> Result<(), ReadError> {
        let link = self.link.lock();
        if Instant::now() < link.next { Err(ReadError::Unavailable(link.reason.clone())) } else { Ok(()) }
    }

    /// Notes that the engine could not be reached.
    fn failed(&self, error: ReadError) -> ReadError {
        let mut link = self.link.lock();
        link.rest(&error);
        link.distrust = matches!(error, ReadError::Unproved(_)).then(|| error.to_string());
        tracing::debug!(address = self.address, %error, "cannot connect to an engine");
        error
    }

    /// Draws conclusions from the outcome of a request.
    fn learn(&self, connection: &Arc<Connection>, error: Option<&ReadError>) {
        let mut link = self.link.lock();
        let current = link.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection));
        if current && connection.is_open() && error.is_none() {
            link.pause = FIRST_PAUSE;
        } else if current && !connection.is_open() {
            let reason = connection.end().unwrap_or_default();
            tracing::debug!(address = self.address, reason, "lost an engine");
            if connection.is_unreachable() {
                link.verbs = Instant::now() + VERBS_REST;
            }
            if connection.has_unfit_files() {
                link.local = Instant::now() + LOCAL_REST;
            }
            link.connection = None;
            link.rest(&ReadError::Lost(reason));
        }
    }
}

impl Link {
    fn rest(&mut self, error: &ReadError) {
        self.reason = error.to_string();
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}
