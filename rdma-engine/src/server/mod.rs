//! The engine: serves the needles of a volume server's directories to clients.
//!
//! ```text
//!  TcpListener ─┐             ┌ session: tokens, limits, look-up ─ the same for every transport
//!               ├─ bootstrap ─┤
//!  UnixListener ┘             └ requests in, answers out: over the stream (tcp, local), as messages of the queue pair (verbs)
//! ```
//!
//! A connection is first asked who it is and what it wants (`bootstrap`), within a few seconds. Then requests come. For each of them the
//! [`Session`] says what may be read and where it is, and the transport brings it to the client: `tcp` sends it
//! from the file into the socket, `local` hands the file over, and `verbs` stages it in registered memory (`rdma`), from where the client
//! fetches it.
//!
//! A request that can be answered from the page cache is answered by the thread that took it; one that has to wait for a disk
//! waits on a thread of its own, and later requests overtake it.
//!
//! Sessions in all and of each peer, requests in progress, the length of each, the memory of answers that wait, and the time without
//! reads are limited ([`EngineOptions`], `admission`). A client that does not take its answers is given up.

mod admission;
mod bootstrap;
#[cfg(feature = "verbs")]
mod rdma;
#[cfg(not(feature = "verbs"))]
#[path = "without_rdma.rs"]
mod rdma;
mod requests;
mod session;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::metrics::Metrics;
use crate::proof::ProofKey;
use crate::protocol::{MAX_READ, SessionLimits};
use crate::store::Store;
use crate::token::ReadVerifier;
use crate::transport::Socket;
use admission::{Admission, Capacity, Peer};
pub(crate) use session::Session;

/// How often files that were replaced or removed are looked for.
const TEND: Duration = Duration::from_secs(1);

/// Rest after a connection could not be accepted, for want of descriptors most likely.
const REST: Duration = Duration::from_millis(100);

/// What an engine allows.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Sessions at a time; further connections are refused, unless an idle one can make room.
    pub sessions: usize,
    /// Sessions of one peer, an address of the network or a user of this host.
    pub sessions_of_peer: usize,
    /// Bytes of answers that wait for their clients, of all sessions; further ones are sent from their files.
    pub waiting: u64,
    /// Requests of a session that may be unanswered at a time.
    pub in_flight: u32,
    /// Bytes that one request may ask for, up to 64 MiB.
    pub read: u32,
    /// How long a session may be without requests.
    pub idle: Duration,
    /// Whether processes of this host that could open the volumes' files themselves may have their descriptors.
    pub local: bool,
    /// Whether clients may come by RDMA, where this host has a device for it.
    pub verbs: bool,
    /// The one RDMA device to use, by its name in the kernel; `None` for any.
    pub device: Option<String>,
    /// Memory that is registered for each session over verbs, in bytes: what is granted at a time lies in it. What finds no room goes in line.
    pub staging: usize,
    /// Bytes of such memory in all; without room for another session's, verbs is refused.
    pub all_staging: u64,
    /// How long a client may take to fetch what was granted.
    pub lease: Duration,
    /// What clients over the network have to speak, if anything: TLS, most likely with certificates of their own. What is fetched by RDMA is not encrypted.
    pub tls: Option<Arc<ServerConfig>>,
    /// The key by which the engine proves itself to clients that ask, and clients to it.
    pub proof: Option<Arc<ProofKey>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            sessions: 1024,
            sessions_of_peer: 256,
            waiting: 64 << 20,
            in_flight: 256,
            read: MAX_READ,
            idle: Duration::from_secs(300),
            local: true,
            verbs: true,
            device: None,
            staging: 32 << 20,
            all_staging: 1 << 30,
            lease: Duration::from_secs(10),
            tls: None,
            proof: None,
        }
    }
}

impl EngineOptions {
    fn limits(&self, grants: bool) -> SessionLimits {
        SessionLimits {
            in_flight: self.in_flight.max(1),
            read: self.read.clamp(1, MAX_READ),
            idle_ms: u32::try_from(self.idle.as_millis()).unwrap_or(u32::MAX),
            lease_ms: if grants { u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX) } else { 0 },
        }
    }
}

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) verifier: Option<ReadVerifier>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: SessionLimits,
    instance: u128,
    /// The name of the Unix socket in the abstract namespace, if there is one.
    socket: Option<Vec<u8>>,
    /// The RDMA devices, if there are any and they may be used.
    fabric: Option<rdma::Fabric>,
    admission: Arc<Admission>,
    tls: Option<Arc<ServerConfig>>,
    proof: Option<Arc<ProofKey>>,
}

/// An engine that listens and does not answer yet.
pub struct Engine {
    shared: Arc<Shared>,
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

impl Engine {
    /// Takes `listen` (port 0 for any free one). Where a `verifier` is given, reads need tokens that it accepts.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn bind(
        listen: SocketAddr,
        store: Arc<Store>,
        verifier: Option<ReadVerifier>,
        metrics: Arc<Metrics>,
        options: &EngineOptions,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind(listen).await?;
        let instance: u128 = rand::random();
        let (unix, socket) = match options.local {
            true => {
                // A name that no other engine has. It is told to every client, so it proves nothing.
                let name = format!("rdma-engine-{instance:032x}").into_bytes();
                let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
                let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
                listener.set_nonblocking(true)?;
                (Some(UnixListener::from_std(listener)?), Some(name))
            }
            false => (None, None),
        };
        let admission = Admission::new(Capacity {
            seats: options.sessions,
            seats_of_peer: options.sessions_of_peer,
            memory: options.waiting,
            staging: options.all_staging,
        });
        let fabric = match options.verbs {
            true => rdma::Fabric::find(options, &metrics)
                .inspect_err(|reason| tracing::info!(%reason, "not offering RDMA"))
                .ok(),
            false => None,
        };
        let limits = options.limits(fabric.is_some());
        let (tls, proof) = (options.tls.clone(), options.proof.clone());
        let shared =
            Shared { store, verifier, metrics, limits, instance, socket, fabric, admission, tls, proof };
        Ok(Self { shared: Arc::new(shared), tcp, unix })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket does not know.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until the future is dropped; with it all sessions end.
    pub async fn serve(self) {
        let mut sessions = JoinSet::new();
        let mut tend = tokio::time::interval(TEND);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted.map(|(stream, peer)| {
                    // Without it, answers would wait for each other's acknowledgements.
                    let _ = stream.set_nodelay(true);
                    (Socket::Tcp(stream), Peer::at(peer.ip()), peer.to_string())
                }),
                accepted = accept_unix(self.unix.as_ref()) => accepted,
                _ = tend.tick() => {
                    let store = self.shared.store.clone();
                    // Not awaited: reading directories may take long, and the next tick comes after it.
                    sessions.spawn_blocking(move || store.tend());
                    continue;
                }
                Some(ended) = sessions.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a session panicked");
                    }
                    continue;
                }
            };
            match accepted {
                Ok((socket, peer, name)) => {
                    sessions.spawn(bootstrap::run(socket, peer, name, self.shared.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<(Socket, Peer, String)> {
    match listener {
        Some(listener) => {
            let (stream, _) = listener.accept().await?;
            let credentials = stream.peer_cred()?;
            let process = credentials.pid().unwrap_or(0);
            Ok((Socket::Unix(stream), Peer::User(credentials.uid()), format!("process {process}")))
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
