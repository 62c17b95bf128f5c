//! Connects to an engine and takes the best transport on offer.

use std::os::linux::net::SocketAddrExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::net::{TcpStream, UnixStream};

use super::connection::Connection;
use super::{Options, ReadError};
use crate::Refusal;
use crate::protocol::{
    Answer, Capabilities, Choose, Hello, Kind, Offer, ProtocolError, Transport, VERSION, Welcome,
};
use crate::transport::{Incoming, Socket, StreamError};

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

/// Connects over the first transport of `options` that works.
pub(super) async fn dial(address: &str, options: &Options) -> Result<Arc<Connection>, ReadError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (tcp, welcome) = greet(Socket::Tcp(stream), options).await?;
    let mut reason = ReadError::Refused(Refusal::NoTransport);
    for &transport in &options.transports {
        let Some(offer) = welcome.offers.iter().find(|offer| offer.transport() == transport) else {
            continue;
        };
        match offer {
            Offer::Tcp => return choose(tcp, &welcome, Choose::Tcp).await,
            Offer::Local { socket } => match local(socket, options).await {
                Ok(connection) => return Ok(connection),
                // Another host or network namespace, or another user: then the next transport.
                Err(error) => {
                    tracing::debug!(address, %error, "the engine's files cannot be read directly");
                    reason = error;
                }
            },
            // Not in the list of any client that this program makes.
            Offer::Verbs(_) => {}
        }
    }
    Err(reason)
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
    let mut bytes = BytesMut::new();
    choice.encode(Kind::Choose, &mut bytes);
    incoming.socket().write_all(&bytes, false).await?;
    if Choose::decode(&expect(&mut incoming, Kind::Ready).await?)? != choice {
        return Err(ProtocolError::Value.into());
    }
    Ok(Connection::start(incoming, choice.transport(), welcome.limits))
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
