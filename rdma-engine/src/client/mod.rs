//! Reads needles from an engine.
//!
//! A [`Client`] is for one engine. It connects when it is first asked for something, takes the
//! best transport that both sides have, and connects again after a loss (`link`). After every
//! error the caller takes its next source.
//!
//! ```text
//!  Client ─► EngineLink ─► EngineConnection ── request ──► engine
//!                             │    ▲
//!                             │    └── answer ── demultiplexer ◄── stream
//!                             ▼
//!                          DataPath::read_into ──► the reader's memory
//! ```
//! The demultiplexer task owns the reading side of the stream. It reads frames, and hands the
//! whole reading side to the request whose data comes next; the request reads into its caller's
//! memory and hands the reading side back. So data goes from the socket into the caller's memory
//! without a copy, and only the caller's own future writes there: dropping the future is safe at
//! any point, and the rest of its data is read and discarded. The price: a read that is neither
//! polled nor dropped holds up the other reads of its engine.
//!
//! What differs between transports is their [data path](data_path): data in the stream (`tcp`), in
//! the volume's own file (`local`), or in the engine's staging memory, from which it is fetched by
//! RDMA READ (`verbs`), straight into memory that is registered ([`Client::register`],
//! [`Client::read_owned`]) or by way of bounce buffers.
//!
//! Any process may listen where an engine is looked for. An engine has to prove itself, once for
//! each connection, before it is sent a file id or a token: [`dial`] decides, by what [`Trust`]
//! accepts.
//!
//! A whole needle is verified by its checksum; a range has none. The record's header is compared
//! with the file id in any case.

mod answer;
mod connection;
mod data_path;
mod demultiplexer;
#[cfg_attr(not(feature = "verbs"), allow(dead_code, reason = "only devices borrow a read's memory"))]
mod destination;
mod dial;
mod error;
#[cfg_attr(not(feature = "verbs"), allow(dead_code, reason = "only grants have leases"))]
mod lease;
mod link;
mod local;
mod registration_cache;
#[cfg(feature = "verbs")]
mod verbs;
mod verification;
mod volume_file;

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::Instant;

pub use self::destination::Destination;
use self::destination::OwnedMemory;
pub use self::error::ReadError;
use self::link::EngineLink;
pub use self::registration_cache::RegistrationCache;
use crate::FileId;
use crate::proof::ProofKey;
use crate::protocol::{NeedleInfo, Transport};

/// How a client connects.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The transports that may be used, the best first.
    pub transports: Vec<Transport>,
    /// How long connecting may take, in all. RDMA gets half of it if another transport is left.
    pub connect: Duration,
    /// The client's name in the engine's log.
    pub name: String,
    /// TLS for engines over the network, if the cluster has it. Then no engine is spoken to
    /// without TLS; the data that is fetched by RDMA is not encrypted.
    pub tls: Option<Arc<ClientConfig>>,
    /// Which engines are trusted.
    pub trust: Trust,
}

/// What makes an engine trusted, besides a certificate of the cluster's authority. An engine for
/// which none of it holds is sent no file id and no token, and none of its bytes are taken.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The user has named this very address.
    pub named: bool,
    /// The key by which an engine proves that it has the cluster's `security.toml`.
    pub key: Option<Arc<ProofKey>>,
    /// `host:port` of the volume server that the engine is beside. On the same host, an engine of
    /// that server's user is trusted, as are those of root and of this process's user.
    pub volume_server: Option<String>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        // On the same host nothing is faster than reading the file.
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
    /// The token that allows the read, where the cluster asks for one.
    pub token: Option<&'a str>,
}

/// The outcome of a successful read.
#[derive(Debug, Clone, Copy)]
pub struct Delivered {
    /// The needle as the engine describes it. [`NeedleInfo::length`] bytes were read: as many as
    /// were asked for, or up to the needle's end.
    pub needle: NeedleInfo,
    /// Whether that was the whole needle, and its checksum right.
    pub verified: bool,
    /// How the bytes came.
    pub transport: Transport,
}

/// A client of one engine. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Client {
    link: Arc<EngineLink>,
}

impl Client {
    /// A client of the engine at `address` (`host:port`). Does not connect yet.
    pub fn new(address: impl Into<String>, options: ClientOptions) -> Self {
        Self { link: Arc::new(EngineLink::new(address.into(), options)) }
    }

    /// The engine's address, as it was given.
    pub fn address(&self) -> &str {
        self.link.address()
    }

    /// The transport in use, if there is a connection.
    pub fn transport(&self) -> Option<Transport> {
        self.link.current().map(|connection| connection.path().transport())
    }

    /// Why the engine is not trusted, or does not trust this host, if it was there.
    pub fn distrust(&self) -> Option<String> {
        self.link.distrust()
    }

    /// Reads the bytes from [`ReadTarget::offset`] on into `destination`, as many as it takes or
    /// the needle has. The content of `destination` is undefined after an error, and behind the
    /// bytes that were read. The future may be dropped at any point.
    ///
    /// # Errors
    /// See [`ReadError`]; after none of them is it worth asking the same engine again at once.
    pub async fn read(
        &self,
        target: ReadTarget<'_>,
        mut destination: &mut [u8],
        deadline: Instant,
    ) -> Result<Delivered, ReadError> {
        let connection = self.link.connection(deadline).await?;
        let outcome = connection.read(target, &mut destination, deadline).await;
        self.link.learn(&connection, outcome.as_ref().err());
        outcome
    }

    /// As [`read`](Self::read), into memory that the read owns meanwhile. Over verbs, the device
    /// writes directly into memory that may be [registered](Self::register), without a copy.
    ///
    /// The memory comes back with the outcome, unless the device still had it when the read
    /// failed: then it is dropped when the device is done. The same holds if the future is
    /// dropped.
    ///
    /// # Errors
    /// See [`ReadError`]; after none of them is it worth asking the same engine again at once.
    pub async fn read_owned<D: Destination>(
        &self,
        target: ReadTarget<'_>,
        memory: D,
        deadline: Instant,
    ) -> (Result<Delivered, ReadError>, Option<D>) {
        let connection = match self.link.connection(deadline).await {
            Ok(connection) => connection,
            Err(error) => return (Err(error), Some(memory)),
        };
        let mut memory = OwnedMemory::new(memory);
        let outcome = connection.read(target, &mut memory, deadline).await;
        self.link.learn(&connection, outcome.as_ref().err());
        (outcome, memory.into_inner())
    }

    /// Lets RDMA devices write into `memory` from the next connection on, for
    /// [`read_owned`](Self::read_owned). If the system refuses (the limit on locked memory,
    /// `ulimit -l`), bytes are copied there.
    pub fn register(&self, memory: Arc<RegistrationCache>) {
        self.link.register(memory);
    }

    /// Asks the engine whether it is there, and connects if need be. Returns how long its answer
    /// took, without the time for connecting.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn ping(&self, deadline: Instant) -> Result<Duration, ReadError> {
        let connection = self.link.connection(deadline).await?;
        let outcome = connection.ping(deadline).await;
        self.link.learn(&connection, outcome.as_ref().err());
        outcome
    }

    /// The most bytes that one read may ask for, if there is a connection.
    pub fn max_read_size(&self) -> Option<u32> {
        self.link.current().map(|connection| connection.limits().read)
    }
}
