//! Connects to an engine and takes the best transport on offer.

use std::os::linux::net::SocketAddrExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::connection::Connection;
use super::{Inner, Options, ReadError};
use crate::Refusal;
use crate::protocol::{
    Answer, Capabilities, Choose, Hello, Kind, Offer, ProtocolError, Ready, Transport, VERSION, Welcome,
};
use crate::transport::{Incoming, Socket, StreamError, Tunnel};

impl From<StreamError> for ReadError {
    fn from(error: StreamError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<ProtocolError> for ReadError {
    fn from(error: ProtocolError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// Connects over the first transport that works.
pub(super) async fn dial(client: &Inner) -> Result<Arc<Connection>, ReadError> {
    let Inner { address, options, .. } = client;
    let (mut tcp, mut welcome) = connect(address, options).await?;
    let mut reason = ReadError::Refused(Refusal::NoTransport);
    for transport in client.transports() {
        let mut offers = welcome.offers.iter().filter(|offer| offer.transport() == transport);
        match offers.next() {
            None => {}
            Some(Offer::Tcp) => return choose(tcp, &welcome, Choose::Tcp).await,
            Some(Offer::Local { socket }) => match local(socket, options).await {
                Ok(connection) => return Ok(connection),
                // Another host or network namespace, or another user: then the next transport.
                Err(error) => {
                    tracing::debug!(address, %error, "the engine's files cannot be read directly");
                    reason = error;
                }
            },
            Some(Offer::Verbs(_)) => match verbs::prepare(client, &tcp, &welcome).await {
                Ok(prepared) => {
                    // Only a part of the time, or none is left for another transport.
                    let attempt = timeout(options.connect / 2, verbs::choose(tcp, &welcome, prepared));
                    let late = |_| Err(ReadError::Lost("the engine did not get ready for RDMA".to_owned()));
                    match attempt.await.unwrap_or_else(late) {
                        Ok(connection) => return Ok(connection),
                        Err(error) => {
                            tracing::info!(address, %error, "the engine does not connect over RDMA");
                            client.rest_verbs();
                            reason = error;
                            // That connection has ended.
                            (tcp, welcome) = connect(address, options).await?;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(address, %error, "no RDMA to the engine");
                    reason = error;
                }
            },
        }
    }
    Err(reason)
}

async fn connect(address: &str, options: &Options) -> Result<(Incoming, Welcome), ReadError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let socket = match &options.tls {
        Some(config) => Socket::Tls(Tunnel::connect(stream, config).await?),
        None => Socket::Tcp(stream),
    };
    greet(socket, options).await
}

/// Connects to the engine's Unix socket, if it is on this host.
async fn local(socket: &[u8], options: &Options) -> Result<Arc<Connection>, ReadError> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(socket)?;
    // A Unix socket connects at once or not at all.
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    let (incoming, welcome) = greet(Socket::Unix(UnixStream::from_std(stream)?), options).await?;
    if !welcome.offers.iter().any(|offer| offer.transport() == Transport::Local) {
        return Err(ReadError::Refused(Refusal::NoTransport));
    }
    choose(incoming, &welcome, Choose::Local).await
}

async fn greet(socket: Socket, options: &Options) -> Result<(Incoming, Welcome), ReadError> {
    let mut incoming = Incoming::new(Arc::new(socket));
    let mut bytes = BytesMut::new();
    let name = options.name.clone();
    Hello { oldest: VERSION, newest: VERSION, capabilities: Capabilities::default(), name }
        .encode(&mut bytes);
    incoming.socket().write_all(&bytes, false).await?;
    let welcome = Welcome::decode(&expect(&mut incoming, Kind::Welcome).await?)?;
    if welcome.version != VERSION {
        return Err(ReadError::Refused(Refusal::Version));
    }
    Ok((incoming, welcome))
}

async fn choose(
    mut incoming: Incoming,
    welcome: &Welcome,
    choice: Choose,
) -> Result<Arc<Connection>, ReadError> {
    if ready(&mut incoming, &choice).await? != choice {
        return Err(ProtocolError::Value.into());
    }
    Ok(Connection::start(incoming, choice.transport(), None, welcome.limits))
}

/// Tells the engine the choice, and waits until it is ready for it.
async fn ready(incoming: &mut Incoming, choice: &Choose) -> Result<Ready, ReadError> {
    let mut bytes = BytesMut::new();
    choice.encode(Kind::Choose, &mut bytes);
    incoming.socket().write_all(&bytes, false).await?;
    Ok(Choose::decode(&expect(incoming, Kind::Ready).await?)?)
}

/// Queue pairs, if this program knows them.
#[cfg(feature = "verbs")]
mod verbs {
    use super::super::rdma::{self, Prepared};
    use super::*;

    pub(super) async fn prepare(
        client: &Inner,
        tcp: &Incoming,
        welcome: &Welcome,
    ) -> Result<Prepared, ReadError> {
        let near = tcp.socket().near().ok_or(ReadError::Refused(Refusal::NoTransport))?;
        let offers: Vec<_> = welcome
            .offers
            .iter()
            .filter_map(|offer| if let Offer::Verbs(verbs) = offer { Some(*verbs) } else { None })
            .collect();
        let memory = client.memory.lock().clone();
        let messages = welcome.capabilities.has(Capabilities::MESSAGES);
        // Registering memory may take a while.
        let prepared =
            tokio::task::spawn_blocking(move || rdma::prepare(near, &offers, memory, messages)).await;
        let lost = |error: String| ReadError::Lost(error);
        prepared.map_err(|error| lost(error.to_string()))?.map_err(|error| lost(error.to_string()))
    }

    pub(super) async fn choose(
        mut incoming: Incoming,
        welcome: &Welcome,
        prepared: Prepared,
    ) -> Result<Arc<Connection>, ReadError> {
        let Choose::Verbs(peer) = ready(&mut incoming, &Choose::Verbs(prepared.end())).await? else {
            return Err(ProtocolError::Value.into());
        };
        let rdma = prepared.connect(&peer)?;
        Ok(Connection::start(incoming, Transport::Verbs, Some(rdma), welcome.limits))
    }
}

/// Without verbs nobody is prepared for them.
#[cfg(not(feature = "verbs"))]
mod verbs {
    use std::convert::Infallible;

    use super::*;

    pub(super) async fn prepare(_: &Inner, _: &Incoming, _: &Welcome) -> Result<Infallible, ReadError> {
        Err(ReadError::Lost("this program was built without verbs".to_owned()))
    }

    pub(super) async fn choose(
        _: Incoming,
        _: &Welcome,
        prepared: Infallible,
    ) -> Result<Arc<Connection>, ReadError> {
        match prepared {}
    }
}

async fn expect(incoming: &mut Incoming, kind: Kind) -> Result<Bytes, ReadError> {
    let (header, body) = incoming.frame().await?;
    match header.kind {
        found if found == kind => Ok(body),
        Kind::Refused => match Answer::decode(header, &body)? {
            Answer::Refused(refusal) => Err(ReadError::Refused(refusal)),
            _ => Err(ProtocolError::Kind(header.kind as u8).into()),
        },
        other => Err(ProtocolError::Kind(other as u8).into()),
    }
}
