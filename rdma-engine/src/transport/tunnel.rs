//! TLS between a side of the protocol and its peer.
//!
//! Either side works on a plain socket: it writes at once or not at all, and sends from files. So where a cluster has TLS, a task has the TCP connection, and
//! passes what is inside of it on through a pair of Unix sockets, whose other end is the side's.
//!
//! ```text
//!  session ═ Unix sockets ═ task ═ TLS over TCP ═ peer
//! ```
//! Whichever of the two ends, the other one ends with it.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, sink, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::socket::STALL;

/// Bytes that are passed on at a time.
const PIECE: usize = 64 << 10;

/// How long the peer may take to be told that this was all.
const GOODBYE: Duration = Duration::from_secs(1);

/// A side's end of a connection under TLS.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(super) stream: UnixStream,
    /// The address that the connection has on this host.
    pub(super) near: IpAddr,
    /// Why it has ended, if that was no orderly end.
    failure: Arc<OnceLock<String>>,
}

impl Tunnel {
    /// The engine's end of a connection to a client that has begun to speak TLS.
    ///
    /// # Errors
    /// When the client does not finish, or has no certificate of the cluster's authority.
    pub(crate) async fn accept(stream: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let near = stream.local_addr()?.ip();
        match TlsAcceptor::from(config.clone()).accept(stream).into_fallible().await {
            Ok(tls) => Self::begin(tls, near),
            Err((error, stream)) => {
                see_off(stream).await;
                Err(error)
            }
        }
    }

    /// A client's end. The engine's certificate is asked for its address, as far as the configuration asks for names.
    ///
    /// # Errors
    /// When the engine does not speak TLS, or has no certificate of the cluster's authority. That it does not like ours shows later, when something is read.
    pub(crate) async fn connect(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let near = stream.local_addr()?.ip();
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        let tls = TlsConnector::from(config.clone()).connect(name, stream).await.map_err(explained)?;
        Self::begin(tls, near)
    }

    fn begin(tls: impl AsyncRead + AsyncWrite + Send + 'static, near: IpAddr) -> io::Result<Self> {
        let (stream, far) = UnixStream::pair()?;
        let failure = Arc::<OnceLock<String>>::default();
        tokio::spawn(pass(far, tls, failure.clone()));
        Ok(Self { stream, near, failure })
    }

    /// What came of reading or writing. What ends with TLS ends for the reason that TLS had.
    pub(super) fn outcome(&self, outcome: io::Result<usize>) -> io::Result<usize> {
        match (outcome, self.failure.get()) {
            (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            (Ok(0) | Err(_), Some(failure)) => Err(io::Error::other(failure.clone())),
            (outcome, _) => outcome,
        }
    }
}

/// Passes bytes on in both directions until one of them ends.
async fn pass(far: UnixStream, tls: impl AsyncRead + AsyncWrite, failure: Arc<OnceLock<String>>) {
    let (mut from_us, mut to_us) = far.into_split();
    let (mut from_peer, mut to_peer) = split(tls);
    let out = async {
        let outcome = copy(&mut from_us, &mut to_peer, STALL).await;
        // Whether the peer hears it is its own affair.
        let _ = timeout(GOODBYE, to_peer.shutdown()).await;
        outcome
    };
    // Our side may take its time: it holds no more than it asked for.
    let back = copy(&mut from_peer, &mut to_us, Duration::MAX);
    let outcome = tokio::select! {
        // What the peer says of our certificate comes before the trouble of writing to it.
        biased;
        outcome = back => outcome,
        outcome = out => outcome,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection under TLS has ended");
        let _ = failure.set(format!("TLS: {error}"));
    }
}

/// Waits a moment until the peer has gone: what it still sends would be answered with a reset, and that can overtake what it was told.
async fn see_off(mut stream: TcpStream) {
    let gone = async {
        stream.shutdown().await?;
        copy(&mut stream, &mut sink(), GOODBYE).await
    };
    // Whether it heard is its own affair.
    let _ = timeout(GOODBYE, gone).await;
}

/// Copies until the end of `from`. Each piece must be taken within `patience`.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    patience: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let piece = async {
            to.write_all(&buffer[..count]).await?;
            to.flush().await
        };
        let stalled = |_| io::Error::new(io::ErrorKind::TimedOut, "the other side takes nothing");
        timeout(patience, piece).await.map_err(stalled)??;
    }
}

/// What an engine without TLS answers is no TLS, which is worth clearer words.
fn explained(error: io::Error) -> io::Error {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => io::Error::other(
            "the engine does not speak TLS: its security.toml has no [grpc.volume] certificate",
        ),
        _ => io::Error::new(error.kind(), format!("TLS: {error}")),
    }
}
