//! Connects to an engine, has it prove itself, and takes the best transport on offer.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use daemon::peer;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpStream, UnixStream};

use super::connection::EngineConnection;
use super::data_path::{DataPath, TcpPath};
use super::local::LocalPath;
use super::registration_cache::RegistrationCache;
use super::{ClientOptions, ReadError, demultiplexer};
use crate::Refusal;
use crate::proof::{Channel, Exchange, Nonce, Proof, Role};
use crate::protocol::{
    Capabilities, Choose, EngineMessage, EngineProof, Hello, MessageKind, Offer, ProtocolError, Ready,
    Transport, VERSION, Welcome,
};
use crate::transport::{Incoming, Socket, StreamError, Tunnel, run_blocking};

impl From<StreamError> for ReadError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Io(error) => error.into(),
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // What TLS has of the other side. No socket fails like that.
            std::io::ErrorKind::InvalidData => Self::Tls(error.to_string()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

impl From<ProtocolError> for ReadError {
    fn from(error: ProtocolError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// An engine to connect to.
pub(super) struct Dial<'a> {
    pub(super) address: &'a str,
    pub(super) options: &'a ClientOptions,
    /// The transports to try, the best first.
    pub(super) transports: Vec<Transport>,
    /// The memory that may be registered with RDMA devices.
    #[cfg_attr(not(feature = "verbs"), expect(dead_code, reason = "only verbs registers memory"))]
    pub(super) caches: Vec<Arc<RegistrationCache>>,
}

/// A connection to an engine that has introduced itself and was told nothing yet.
struct Greeted {
    incoming: Incoming,
    welcome: Welcome,
    /// Whether the engine is trusted, or why not.
    proof: Result<(), String>,
}

/// Connects over the first transport that works and whose other end has proved itself. Calls
/// `avoid` for a transport that was on offer and failed.
pub(super) async fn dial(
    dial: Dial<'_>,
    #[cfg_attr(not(feature = "verbs"), expect(unused, reason = "only verbs fails after its offer"))]
    avoid: impl Fn(Transport),
) -> Result<Arc<EngineConnection>, ReadError> {
    let Dial { address, options, .. } = dial;
    #[cfg_attr(not(feature = "verbs"), expect(unused_mut, reason = "only verbs connects again"))]
    let mut greeted = connect(address, options).await?;
    let mut reason = ReadError::Refused(Refusal::NoTransport);
    for &transport in &dial.transports {
        let mut offers = greeted.welcome.offers.iter().filter(|offer| offer.transport() == transport);
        match (offers.next(), &greeted.proof) {
            (None, _) => {}
            (Some(Offer::Local { socket }), _) => match local(socket, options).await {
                Ok(connection) => return Ok(connection),
                // Another host or network namespace, or another user: the next transport is tried.
                Err(error) => {
                    tracing::debug!(address, %error, "the engine's files cannot be read directly");
                    reason = error;
                }
            },
            // The Unix socket is proved by itself, everything over the network by this connection.
            (Some(_), Err(_)) => {}
            (Some(Offer::Tcp), Ok(())) => {
                return choose(greeted.incoming, &greeted.welcome, Choose::Tcp, Box::new(TcpPath)).await;
            }
            #[cfg(feature = "verbs")]
            (Some(Offer::Verbs(_)), Ok(())) => match verbs::prepare(&dial, &greeted).await {
                Ok(prepared) => match verbs::choose(greeted, prepared, options).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => {
                        tracing::info!(address, %error, "the engine does not connect over RDMA");
                        avoid(Transport::Verbs);
                        reason = error;
                        // That connection has ended, and another engine may be there by now.
                        greeted = connect(address, options).await?;
                    }
                },
                Err(error) => {
                    tracing::debug!(address, %error, "no RDMA to the engine");
                    reason = error;
                }
            },
            #[cfg(not(feature = "verbs"))]
            (Some(Offer::Verbs(_)), Ok(())) => {
                reason = ReadError::Lost("this program was built without verbs".to_owned());
            }
        }
    }
    Err(match (greeted.proof, reason) {
        (Ok(()), reason) => reason,
        (Err(network), ReadError::Unproved(local)) if local != network => {
            ReadError::Unproved(format!("{network}; on this host: {local}"))
        }
        (Err(network), _) => ReadError::Unproved(network),
    })
}

/// Connects over the network. A certificate of the cluster's authority is a proof, and so is the
/// cluster's secret; an engine that the user has named needs neither, unless
/// TLS is on.
async fn connect(address: &str, options: &ClientOptions) -> Result<Greeted, ReadError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let Some(config) = &options.tls else {
        let channel = Channel::Tcp(stream.peer_addr()?);
        let (incoming, welcome, handshake) = greet(Socket::Tcp(stream), options, &channel).await?;
        let proof = if options.trust.named { Ok(()) } else { handshake.map(drop) };
        return Ok(Greeted { incoming, welcome, proof });
    };
    let peer = stream.peer_addr()?;
    let socket = Socket::Tls(Tunnel::connect(stream, config).await?);
    let (incoming, welcome, _) = greet(socket, options, &Channel::Tcp(peer)).await?;
    Ok(Greeted { incoming, welcome, proof: Ok(()) })
}

/// How the names of engines' sockets begin. The name comes from an engine that has not proved
/// itself yet.
const SOCKET_PREFIX: &[u8] = b"rdma-engine-";

/// Connects to the engine's Unix socket, if it is on this host. The engine tells the socket's name
/// to every client, so any process may have taken the name: the listening process is trusted for
/// its user, or for a proof.
async fn local(socket: &[u8], options: &ClientOptions) -> Result<Arc<EngineConnection>, ReadError> {
    if !socket.starts_with(SOCKET_PREFIX) {
        return Err(ProtocolError::Value.into());
    }
    let stream = connect_unix(socket)?;
    let user = trusted_user(&stream, options).await;
    if let (Err(reason), None) = (&user, &options.trust.key) {
        return Err(ReadError::Unproved(reason.clone()));
    }
    let channel = Channel::Unix(socket.to_vec());
    let (incoming, welcome, handshake) = greet(Socket::Unix(stream), options, &channel).await?;
    let proof = match (user, handshake) {
        (_, Ok(proof)) => Some(proof),
        (Ok(()), Err(_)) => None,
        (Err(user), Err(secret)) => return Err(ReadError::Unproved(format!("{user}; {secret}"))),
    };
    if !welcome.offers.iter().any(|offer| offer.transport() == Transport::Local) {
        return Err(ReadError::Refused(Refusal::NoTransport));
    }
    choose(incoming, &welcome, Choose::Local { proof }, Box::new(LocalPath::new())).await
}

/// Connects without waiting: if the listener's backlog is full, a blocking socket would hold up
/// this thread for as long as the other side likes.
fn connect_unix(name: &[u8]) -> std::io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    UnixStream::from_std(socket.into())
}

/// Checks that the process at the other end may serve the volumes because of its user: root, the
/// user of this process, or the user of the volume server's process.
async fn trusted_user(stream: &UnixStream, options: &ClientOptions) -> Result<(), String> {
    let told = |error: std::io::Error| format!("the engine's process: {error}");
    let user = peer::user(stream).map_err(told)?;
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        let server = options.trust.volume_server.as_deref();
        let owner = match server {
            Some(server) => volume_server_user(server).await.map_err(told)?,
            None => None,
        };
        if owner != Some(user) {
            return Err(format!("its user {user} is neither root nor the volume server's"));
        }
    }
    peer::ensure_of_this_host(stream).map_err(told)
}

/// The user whose process is the volume server at `server`, if that is on this host.
async fn volume_server_user(server: &str) -> std::io::Result<Option<u32>> {
    for address in tokio::net::lookup_host(server).await? {
        if let Some(user) = run_blocking(|| peer::listener(address))? {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// The outcome of asking an engine to prove that it knows the cluster's secret: the client's own
/// proof in return, or why there is none.
type Handshake = Result<Proof, String>;

/// Introduces this client and asks for a proof, if there is a key to check it by.
async fn greet(
    socket: Socket,
    options: &ClientOptions,
    channel: &Channel,
) -> Result<(Incoming, Welcome, Handshake), ReadError> {
    let mut incoming = Incoming::new(Arc::new(socket));
    let mut bytes = BytesMut::new();
    let name = options.name.clone();
    let key = options.trust.key.as_deref();
    let nonce: Nonce = rand::random();
    let asked = key.map(|_| nonce);
    Hello { oldest: VERSION, newest: VERSION, capabilities: Capabilities::default(), name, nonce: asked }
        .encode(&mut bytes);
    incoming.socket().write_all(&bytes, false).await?;
    let welcome = Welcome::decode(&expect(&mut incoming, MessageKind::Welcome).await?)?;
    if welcome.version != VERSION {
        return Err(ReadError::Refused(Refusal::Version));
    }
    let handshake = match (key, &welcome.proof) {
        (None, _) => Err("security.toml has nothing by which it could prove itself".to_owned()),
        (Some(_), None) => Err("it does not prove that it knows the key of security.toml".to_owned()),
        (Some(key), Some(EngineProof { nonce: engine, proof })) => {
            let (client, engine, instance) = (nonce, *engine, welcome.instance);
            let exchange = Exchange { client, engine, instance, channel };
            if key.is_proved(Role::Engine, &exchange, proof) {
                Ok(key.prove(Role::Client, &exchange))
            } else {
                Err("it has another key, or another address than it was reached at".to_owned())
            }
        }
    };
    Ok((incoming, welcome, handshake))
}

async fn choose(
    mut incoming: Incoming,
    welcome: &Welcome,
    choice: Choose,
    path: Box<dyn DataPath>,
) -> Result<Arc<EngineConnection>, ReadError> {
    if ready(&mut incoming, &choice).await?.transport() != choice.transport() {
        return Err(ProtocolError::Value.into());
    }
    Ok(demultiplexer::start(incoming, path, welcome.limits))
}

/// Sends the choice, and waits until the engine is ready for it.
async fn ready(incoming: &mut Incoming, choice: &Choose) -> Result<Ready, ReadError> {
    let mut bytes = BytesMut::new();
    choice.encode(MessageKind::Choose, &mut bytes);
    incoming.socket().write_all(&bytes, false).await?;
    Ok(Choose::decode(&expect(incoming, MessageKind::Ready).await?)?)
}

/// Queue pairs.
#[cfg(feature = "verbs")]
mod verbs {
    use tokio::task::spawn_blocking;
    use tokio::time::timeout;

    use super::super::verbs::{self, PreparedPath};
    use super::*;

    pub(super) async fn prepare(dial: &Dial<'_>, greeted: &Greeted) -> Result<PreparedPath, ReadError> {
        let near = greeted.incoming.socket().near().ok_or(ReadError::Refused(Refusal::NoTransport))?;
        let offers: Vec<_> = greeted
            .welcome
            .offers
            .iter()
            .filter_map(|offer| if let Offer::Verbs(verbs) = offer { Some(*verbs) } else { None })
            .collect();
        let caches = dial.caches.clone();
        let messages = greeted.welcome.capabilities.has(Capabilities::MESSAGES);
        // Registering memory may take a while.
        let prepared = spawn_blocking(move || verbs::prepare(near, &offers, caches, messages)).await;
        prepared.map_err(lost)?.map_err(lost)
    }

    /// Connects within half of the time for connecting, so that another transport has the other
    /// half.
    pub(super) async fn choose(
        greeted: Greeted,
        prepared: PreparedPath,
        options: &ClientOptions,
    ) -> Result<Arc<EngineConnection>, ReadError> {
        let Greeted { mut incoming, welcome, .. } = greeted;
        let attempt = async {
            let Choose::Verbs(peer) = ready(&mut incoming, &Choose::Verbs(prepared.end())).await? else {
                return Err(ProtocolError::Value.into());
            };
            let path = spawn_blocking(move || prepared.connect(&peer)).await.map_err(lost)??;
            Ok(demultiplexer::start(incoming, Box::new(path), welcome.limits))
        };
        let late = |_| Err(lost("the engine did not get ready for RDMA"));
        timeout(options.connect / 2, attempt).await.unwrap_or_else(late)
    }

    fn lost(error: impl ToString) -> ReadError {
        ReadError::Lost(error.to_string())
    }
}

async fn expect(incoming: &mut Incoming, kind: MessageKind) -> Result<Bytes, ReadError> {
    let (header, body) = incoming.frame().await?;
    match header.kind {
        found if found == kind => Ok(body),
        MessageKind::Refused => match EngineMessage::decode(header, &body)? {
            EngineMessage::Refused(refusal) => Err(ReadError::Refused(refusal)),
            _ => Err(ProtocolError::Kind(header.kind as u8).into()),
        },
        other => Err(ProtocolError::Kind(other as u8).into()),
    }
}
