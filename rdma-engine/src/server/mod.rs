//! The engine: serves the needles of a volume server's directories to clients.
//!
//! ```text
//!  TcpListener ─┐               ┌─ Session: tokens, limits, look-up; the same for every transport
//!               ├─ bootstrap ───┤
//!  UnixListener ┘               └─ RequestHandler: requests in, answers out
//!                                    over the stream (tcp, local)
//!                                    as messages of the queue pair (verbs)
//! ```
//!
//! A connection first has to introduce itself and to choose a transport, within a few seconds
//! (`bootstrap`). Then requests come. For each of them the session finds the data and checks that
//! the client may read it, and the transport brings it to the client: `tcp` sends it from the file
//! into the socket, `local` hands the file over, and `verbs` stages it in registered memory
//! (`rdma`), from where the client fetches it.
//!
//! A request that can be answered from the page cache is answered by the thread that took it. A
//! request that has to wait for a disk waits on another thread, and later requests overtake it.
//!
//! There are limits on sessions in all and per peer, on requests in progress and their length, on
//! the memory of answers that wait, and on the time without reads ([`EngineOptions`],
//! `admission`). A client that does not take its answers is disconnected.

mod admission;
mod bootstrap;
#[cfg(feature = "verbs")]
mod rdma;
mod rdma_session;
mod request_handler;
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
use admission::{Admission, AdmissionLimits, Peer};
use rdma_session::RdmaHost;

/// How often the store looks for files that were replaced or removed.
const STORE_CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

/// The backoff after a connection could not be accepted, most likely for want of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The limits and features of an engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Sessions at a time; further connections are refused, unless an idle session can be ended.
    pub sessions: usize,
    /// Sessions of one peer, an address of the network or a user of this host.
    pub sessions_of_peer: usize,
    /// Bytes of answers that wait for their clients, of all sessions; further answers are sent
    /// from their files.
    pub waiting: u64,
    /// Requests of a session that may be unanswered at a time.
    pub in_flight: u32,
    /// Bytes that one request may ask for, up to 64 MiB.
    pub read: u32,
    /// How long a session may be without requests.
    pub idle: Duration,
    /// Whether processes of this host that could open the volumes' files themselves may have their
    /// descriptors.
    pub local: bool,
    /// Whether clients may use RDMA, if this host has a device for it.
    pub verbs: bool,
    /// The one RDMA device to use, by its name in the kernel; `None` for any.
    pub device: Option<String>,
    /// Staging memory of each session over verbs, in bytes: everything that is granted at a time
    /// lies in it. Data for which there is no room goes in line.
    pub staging: usize,
    /// Bytes of staging memory in all; if there is none left for another session, verbs is
    /// refused.
    pub all_staging: u64,
    /// How long a client may take to fetch what was granted.
    pub lease: Duration,
    /// TLS for clients over the network, if they have to use it, most likely with certificates of
    /// their own. Data that is fetched by RDMA is not encrypted.
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
struct EngineState {
    store: Arc<Store>,
    verifier: Option<ReadVerifier>,
    metrics: Arc<Metrics>,
    limits: SessionLimits,
    instance: u128,
    /// The name of the Unix socket in the abstract namespace, if there is one.
    socket: Option<Vec<u8>>,
    /// The RDMA devices, if there are any and they may be used.
    rdma: Option<Arc<dyn RdmaHost>>,
    admission: Arc<Admission>,
    tls: Option<Arc<ServerConfig>>,
    proof: Option<Arc<ProofKey>>,
}

/// An engine that listens and does not answer yet.
pub struct Engine {
    state: Arc<EngineState>,
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

impl Engine {
    /// Listens at `listen` (port 0 for any free one). If there is a `verifier`, reads need tokens
    /// that it accepts.
    ///
    /// # Errors
    /// When the address is not available.
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
                // A name that no other engine has. Every client is told it, so it proves nothing.
                let name = format!("rdma-engine-{instance:032x}").into_bytes();
                let address = std::os::unix::net::SocketAddr::from_abstract_name(&name)?;
                let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
                listener.set_nonblocking(true)?;
                (Some(UnixListener::from_std(listener)?), Some(name))
            }
            false => (None, None),
        };
        let admission = Admission::new(AdmissionLimits {
            connections: options.sessions,
            connections_per_peer: options.sessions_of_peer,
            memory: options.waiting,
            staging: options.all_staging,
        });
        let rdma = if options.verbs { find_rdma(options, &metrics) } else { None };
        let limits = options.limits(rdma.is_some());
        let (tls, proof) = (options.tls.clone(), options.proof.clone());
        let state =
            EngineState { store, verifier, metrics, limits, instance, socket, rdma, admission, tls, proof };
        Ok(Self { state: Arc::new(state), tcp, unix })
    }

    /// The address at which it listens.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until the future is dropped; with it all sessions end.
    pub async fn serve(self) {
        let mut sessions = JoinSet::new();
        let mut cleanup = tokio::time::interval(STORE_CLEANUP_INTERVAL);
        cleanup.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = self.tcp.accept() => accepted.map(|(stream, peer)| {
                    // Without it, an answer would wait until the one before it is acknowledged.
                    let _ = stream.set_nodelay(true);
                    (Socket::Tcp(stream), Peer::at(peer.ip()), peer.to_string())
                }),
                accepted = accept_unix(self.unix.as_ref()) => accepted,
                _ = cleanup.tick() => {
                    let store = self.state.store.clone();
                    // Not awaited: listing directories may take long.
                    sessions.spawn_blocking(move || store.close_unused());
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
                    sessions.spawn(bootstrap::run(socket, peer, name, self.state.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

/// The RDMA devices of this host, or `None` if there are none.
#[cfg(feature = "verbs")]
fn find_rdma(options: &EngineOptions, metrics: &Arc<Metrics>) -> Option<Arc<dyn RdmaHost>> {
    let found = rdma::RdmaDevices::find(options, metrics);
    let found = found.inspect_err(|reason| tracing::info!(%reason, "not offering RDMA"));
    found.ok().map(|devices| Arc::new(devices) as _)
}

#[cfg(not(feature = "verbs"))]
fn find_rdma(_: &EngineOptions, _: &Arc<Metrics>) -> Option<Arc<dyn RdmaHost>> {
    tracing::info!(reason = "this program was built without verbs", "not offering RDMA");
    None
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
