//! One gRPC channel to one filer, over TCP or mutual TLS.
//!
//! A channel connects when it is first used, and again when its connection broke. TCP notices a
//! dead peer, by keep-alive probes and a limit on unacknowledged data. HTTP/2 pings alone would
//! not do: filers end the connections of clients that ping more often than once a minute.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::address::ServerAddress;

/// For the TCP connection and the TLS handshake together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Filers count pings that are less than a minute apart against the client.
const PING_INTERVAL: Duration = Duration::from_secs(70);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// When TCP first probes an idle connection, and how often from then on, in seconds.
const TCP_KEEPALIVE_IDLE: u32 = 10;
const TCP_KEEPALIVE_INTERVAL: u32 = 5;
/// How long sent data or probes may stay unacknowledged, in ms (`TCP_USER_TIMEOUT`).
const TCP_USER_TIMEOUT: u32 = 15_000;
/// The receive window of one call, in bytes: a few pages of a directory listing.
const STREAM_WINDOW: u32 = 4 << 20;
/// The receive window of a connection, in bytes: sixteen listings with slow consumers do not stop
/// the other calls.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// A byte stream, with or without TLS.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A channel to the gRPC interface of `address`, not connected yet. Fails only if the host is not
/// one.
pub(super) fn open(
    address: &ServerAddress,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Channel, tonic::transport::Error> {
    let authority = address.grpc_authority();
    let scheme = if tls.is_some() { "https" } else { "http" };
    // The endpoint itself is always "http": TLS is done here, and tonic must not do its own.
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let endpoint = match format!("{scheme}://{authority}").parse() {
        Ok(origin) => endpoint.origin(origin),
        Err(_) => endpoint,
    };
    let target = Arc::new((address.host.clone(), address.grpc_port));
    let tls = tls.map(|config| {
        let mut config = (*config).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    });
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_| {
        let (target, tls) = (Arc::clone(&target), tls.clone());
        async move {
            let connecting = connect(&target.0, target.1, tls);
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s");
            tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?.map(TokioIo::new)
        }
    })))
}

async fn connect(host: &str, port: u16, tls: Option<TlsConnector>) -> io::Result<Box<dyn ByteStream>> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &TCP_KEEPALIVE_IDLE)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &TCP_KEEPALIVE_INTERVAL)?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT)?;
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(tls.connect(name, stream).await?))
}
