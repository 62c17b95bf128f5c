//! TLS between one side of the protocol and its peer.
//!
//! Both sides need a plain socket: they write without waiting, and send from files. So if a
//! cluster has TLS, a task owns the TCP connection and copies the plain text between it and a pair
//! of Unix sockets, whose other end the session uses.
//!
//! ```text
//!  session ═ Unix sockets ═ task ═ TLS over TCP ═ peer
//! ```
//! When one of the two connections ends, the other one ends with it.

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

/// A peer that takes no byte for this long is disconnected.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are copied at a time.
const COPY_SIZE: usize = 64 << 10;

/// How long the peer may take to receive the end of the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The kind and the text of what ended TLS.
type TlsFailure = (io::ErrorKind, String);

/// A side's end of a connection under TLS.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(super) stream: UnixStream,
    /// The connection's address on this host.
    pub(super) near: IpAddr,
    /// Why it has ended, if TLS has failed.
    failure: Arc<OnceLock<TlsFailure>>,
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
                wait_for_close(stream).await;
                Err(error)
            }
        }
    }

    /// A client's end. The engine's certificate is checked for its address, if the configuration
    /// checks names.
    ///
    /// # Errors
    /// When the engine does not speak TLS, or has no certificate of the cluster's authority. If
    /// the engine rejects the client's certificate, that shows later, on the first read.
    pub(crate) async fn connect(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let near = stream.local_addr()?.ip();
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        let tls = TlsConnector::from(config.clone()).connect(name, stream).await.map_err(explained)?;
        Self::begin(tls, near)
    }

    fn begin(tls: impl AsyncRead + AsyncWrite + Send + 'static, near: IpAddr) -> io::Result<Self> {
        let (stream, far) = UnixStream::pair()?;
        let failure = Arc::<OnceLock<TlsFailure>>::default();
        tokio::spawn(copy_both(far, tls, failure.clone()));
        Ok(Self { stream, near, failure })
    }

    /// The outcome of reading or writing. If TLS has failed, the error is that of TLS.
    pub(super) fn outcome(&self, outcome: io::Result<usize>) -> io::Result<usize> {
        match (outcome, self.failure.get()) {
            (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            (Ok(0) | Err(_), Some((kind, failure))) => Err(io::Error::new(*kind, failure.clone())),
            (outcome, _) => outcome,
        }
    }
}

/// Copies in both directions until one of them ends.
async fn copy_both(far: UnixStream, tls: impl AsyncRead + AsyncWrite, failure: Arc<OnceLock<TlsFailure>>) {
    let (mut from_us, mut to_us) = far.into_split();
    let (mut from_peer, mut to_peer) = split(tls);
    let out = async {
        let outcome = copy(&mut from_us, &mut to_peer, STALL_TIMEOUT).await;
        // If the peer does not receive it, the connection still ends.
        let _ = timeout(CLOSE_TIMEOUT, to_peer.shutdown()).await;
        outcome
    };
    // No limit towards this side: it has requested all data that it has not taken yet.
    let back = copy(&mut from_peer, &mut to_us, Duration::MAX);
    let outcome = tokio::select! {
        // The peer's alert about this side's certificate is a better reason than the failed write.
        biased;
        outcome = back => outcome,
        outcome = out => outcome,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection under TLS has ended");
        let _ = failure.set((error.kind(), format!("TLS: {error}")));
    }
}

/// Waits a moment until the peer has closed the connection: more data of the peer would be
/// answered with a reset, which can overtake the alert.
async fn wait_for_close(mut stream: TcpStream) {
    let gone = async {
        stream.shutdown().await?;
        copy(&mut stream, &mut sink(), CLOSE_TIMEOUT).await
    };
    // After the timeout the connection is closed anyway.
    let _ = timeout(CLOSE_TIMEOUT, gone).await;
}

/// Copies until the end of `from`. Each piece must be written within `limit`.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    limit: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_SIZE];
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
        timeout(limit, piece).await.map_err(stalled)??;
    }
}

/// Explains the error that an engine without TLS causes: its answer is no TLS record.
fn explained(error: io::Error) -> io::Error {
    let reason = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match reason {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => io::Error::new(
            error.kind(),
            "the engine does not speak TLS: its security.toml has no [grpc.volume] certificate",
        ),
        _ => io::Error::new(error.kind(), format!("TLS: {error}")),
    }
}
