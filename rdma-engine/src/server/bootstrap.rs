//! The first exchange with a client: the client introduces itself, the engine offers transports,
//! the client chooses one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use daemon::peer;
use tokio::time::{Instant, timeout_at};

use super::EngineState;
use super::admission::{ConnectionPermit, Peer};
use super::rdma_session::RdmaHost;
use super::session::Session;
use super::stream::{self, SessionPair};
use crate::Refusal;
use crate::proof::{Channel, Exchange, Role};
use crate::protocol::{
    Capabilities, Choose, EngineMessage, EngineProof, Hello, MessageKind, Offer, ProtocolError, Transport,
    VERSION, Welcome,
};
use crate::transport::{Incoming, Socket, StreamError, Tunnel};

/// How long a client may take to introduce itself, from its first byte to its last.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection from its first byte to its end.
pub(super) async fn run(socket: Socket, of: Peer, peer: String, engine: Arc<EngineState>) {
    let deadline = Instant::now() + INTRODUCTION_TIMEOUT;
    // From the first byte on: a connection that does not introduce itself takes a permit too.
    let permit = engine.admission.admit(of);
    let is_secured = engine.tls.is_some() && matches!(socket, Socket::Tcp(_));
    let secured = match &permit {
        Ok(permit) => within(permit, deadline, secure(socket, &engine)).await,
        // A TLS handshake only to refuse would let any peer cause that work.
        Err(_) if is_secured => {
            engine.metrics.refused(Refusal::TooManySessions);
            return tracing::info!(peer, reason = %Refusal::TooManySessions, "hung up on a client");
        }
        Err(_) => Some(Ok((socket, None))),
    };
    let Some(secured) = secured else {
        return tracing::debug!(peer, "a client did not introduce itself in time");
    };
    let (socket, mismatch) = match secured {
        Ok((socket, mismatch)) => (Arc::new(socket), mismatch),
        Err(error) => {
            engine.metrics.refused(Refusal::Malformed);
            return tracing::info!(peer, %error, "refused a connection under TLS");
        }
    };
    let mut incoming = Incoming::without_files(socket.clone());
    let outcome = match &permit {
        Ok(permit) => {
            let introduced = async {
                if let Some(refusal) = mismatch {
                    // Read first: closing a connection with unread data resets it, and the reset
                    // can overtake the answer.
                    let _ = incoming.frame().await;
                    return Err(Rejected::Refused(refusal));
                }
                introduce(&mut incoming, &engine, permit).await
            };
            within(permit, deadline, introduced).await
        }
        Err(refusal) => Some(Err(Rejected::Refused(*refusal))),
    };
    let Some(outcome) = outcome else {
        return tracing::debug!(peer, "a client did not introduce itself in time");
    };
    let (name, transport, rdma) = match outcome {
        Ok(introduced) => introduced,
        Err(Rejected::Refused(refusal)) => {
            engine.metrics.refused(refusal);
            tracing::info!(peer, reason = %refusal, "refused a connection");
            let mut bytes = BytesMut::new();
            EngineMessage::Refused(refusal).encode(0, &mut bytes);
            // If the client does not receive it, the connection still ends.
            let _ = timeout_at(deadline, socket.write_all(&bytes, false)).await;
            return;
        }
        Err(Rejected::Gone(error)) => {
            if matches!(error, StreamError::Protocol(_)) {
                engine.metrics.refused(Refusal::Malformed);
            }
            return tracing::debug!(peer, %error, "a connection ended before it was a session");
        }
    };
    // Without a permit there was no introduction.
    let Ok(permit) = permit else { return };
    permit.introduced();
    let session = Arc::new(Session::new(engine, transport, permit));
    tracing::debug!(peer, name, transport = transport.name(), "a session begins");
    let end = stream::serve(incoming, session, rdma).await;
    tracing::debug!(peer, name, %end, "a session has ended");
}

/// Waits for `work`, until the deadline or until the connection is evicted.
async fn within<T>(permit: &ConnectionPermit, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = permit.evicted() => None,
        outcome = timeout_at(deadline, work) => outcome.ok(),
    }
}

enum Rejected {
    /// The client is sent the reason.
    Refused(Refusal),
    /// The other side does not speak the protocol, or is gone.
    Gone(StreamError),
}

impl From<StreamError> for Rejected {
    fn from(error: StreamError) -> Self {
        Self::Gone(error)
    }
}

impl From<std::io::Error> for Rejected {
    fn from(error: std::io::Error) -> Self {
        Self::Gone(error.into())
    }
}

impl From<ProtocolError> for Rejected {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::Magic => Self::Gone(error.into()),
            _ => Self::Refused(Refusal::Malformed),
        }
    }
}

/// First byte of a client that speaks TLS: the type of its first record, a handshake.
const TLS: u8 = 0x16;

/// First byte of a client that does not: the first of its first frame's length.
const PLAIN: u8 = 0;

/// Agrees with a client over the network on TLS; a refusal is returned if only one side wants it.
async fn secure(socket: Socket, engine: &EngineState) -> io::Result<(Socket, Option<Refusal>)> {
    let Socket::Tcp(stream) = socket else { return Ok((socket, None)) };
    let mut first = [PLAIN];
    let has_begun = stream.peek(&mut first).await? > 0;
    let mismatch = match (&engine.tls, first[0]) {
        (Some(config), TLS) => return Ok((Socket::Tls(Tunnel::accept(stream, config).await?), None)),
        (Some(_), PLAIN) if has_begun => Some(Refusal::TlsNeeded),
        (Some(_), _) => return Err(io::ErrorKind::InvalidData.into()),
        (None, TLS) => Some(Refusal::NoTls),
        (None, _) => None,
    };
    Ok((Socket::Tcp(stream), mismatch))
}

/// The client's name, its transport, and the queue pair that was made for it.
type Introduced = (String, Transport, Option<SessionPair>);

async fn introduce(
    incoming: &mut Incoming,
    engine: &Arc<EngineState>,
    permit: &ConnectionPermit,
) -> Result<Introduced, Rejected> {
    let hello = Hello::decode(&expect(incoming, MessageKind::Hello).await?)?;
    if !(hello.oldest..=hello.newest).contains(&VERSION) {
        return Err(Rejected::Refused(Refusal::Version));
    }
    let socket = incoming.socket().clone();
    let channel = channel(&socket, engine);
    let challenge = match (&engine.proof, hello.nonce, &channel) {
        (Some(key), Some(client), Some(channel)) => {
            let (engine, instance) = (rand::random(), engine.instance);
            Some((key, Exchange { client, engine, instance, channel }))
        }
        _ => None,
    };
    let trust = check_process(&socket)?;
    if let (ClientTrust::Unproved(reason), None) = (&trust, &challenge) {
        return Err(turned_away(reason));
    }
    let offers = offers(&socket, engine).await;
    let mut bytes = BytesMut::new();
    let proof = challenge.as_ref().map(|(key, exchange)| EngineProof {
        nonce: exchange.engine,
        proof: key.prove(Role::Engine, exchange),
    });
    let welcome = Welcome {
        version: VERSION,
        capabilities: Capabilities::MESSAGES,
        instance: engine.instance,
        limits: engine.limits,
        offers,
        proof,
    };
    welcome.encode(&mut bytes);
    socket.write_all(&bytes, false).await?;
    let choice = Choose::decode(&expect(incoming, MessageKind::Choose).await?)?;
    let (ready, rdma) = match (socket.near(), choice) {
        (None, Choose::Local { proof }) if matches!(*socket, Socket::Unix(_)) => {
            let is_proved = proof
                .zip(challenge)
                .is_some_and(|(proof, (key, exchange))| key.is_proved(Role::Client, &exchange, &proof));
            match trust {
                ClientTrust::Unproved(reason) if !is_proved => return Err(turned_away(&reason)),
                _ => (Choose::Local { proof: None }, None),
            }
        }
        (Some(_), Choose::Tcp) => (Choose::Tcp, None),
        (Some(near), Choose::Verbs(peer)) if engine.rdma.is_some() => {
            let Some(share) = engine.rdma.as_ref().and_then(|rdma| permit.stage(rdma.staging_size())) else {
                tracing::info!("a peer has its part of staging memory");
                return Err(Rejected::Refused(Refusal::NoTransport));
            };
            let accepted = with_rdma(engine, move |rdma| rdma.accept(near, &peer, share)).await;
            match accepted {
                Some(Ok(pair)) => (Choose::Verbs(pair.end), Some((pair.session, pair.receiver))),
                Some(Err(reason)) => {
                    tracing::warn!(%reason, "cannot connect a queue pair");
                    return Err(Rejected::Refused(Refusal::NoTransport));
                }
                None => return Err(Rejected::Refused(Refusal::NoTransport)),
            }
        }
        _ => return Err(Rejected::Refused(Refusal::NoTransport)),
    };
    bytes.clear();
    ready.encode(MessageKind::Ready, &mut bytes);
    socket.write_all(&bytes, false).await?;
    Ok((hello.name, ready.transport(), rdma))
}

/// The address at which the client has reached this engine, if that can be part of a proof. Under
/// TLS both ends have certificates instead.
fn channel(socket: &Socket, engine: &EngineState) -> Option<Channel> {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().ok().map(Channel::Tcp),
        Socket::Tls(_) => None,
        Socket::Unix(_) => engine.socket.clone().map(Channel::Unix),
    }
}

/// How far a client is trusted before it has sent anything.
enum ClientTrust {
    /// It may take any transport that is offered on its connection.
    Trusted,
    /// Its user could open the volumes' files. But for this reason it is not certain that it is a
    /// process of this host, so it has to prove that it knows the cluster's secret.
    Unproved(io::Error),
}

/// Whether a process may have the volumes' descriptors. A descriptor opens all of a volume,
/// regardless of cookies and tokens. So only a process that could open the file itself may have
/// one: a process of this host, of root or of this engine's user. Root of a container that shares
/// the host's network is not one.
fn check_process(socket: &Socket) -> Result<ClientTrust, Rejected> {
    let Socket::Unix(stream) = socket else { return Ok(ClientTrust::Trusted) };
    let user = peer::user(stream).map_err(|error| turned_away(&error))?;
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return Err(Rejected::Refused(Refusal::NotAllowed));
    }
    Ok(peer::ensure_of_this_host(stream).map_or_else(ClientTrust::Unproved, |()| ClientTrust::Trusted))
}

fn turned_away(reason: &io::Error) -> Rejected {
    tracing::info!(
        %reason,
        "a process may not have the volumes' descriptors; where clients are in containers, give \
         them and this engine one security.toml with jwt.signing.key"
    );
    Rejected::Refused(Refusal::NotAllowed)
}

/// Uses the RDMA devices on a thread that may wait for them. `None` if there are none.
async fn with_rdma<T: Send + 'static>(
    engine: &EngineState,
    work: impl FnOnce(&dyn RdmaHost) -> T + Send + 'static,
) -> Option<T> {
    let rdma = engine.rdma.clone()?;
    // A panic counts as having none.
    tokio::task::spawn_blocking(move || work(&*rdma)).await.ok()
}

async fn expect(incoming: &mut Incoming, kind: MessageKind) -> Result<bytes::Bytes, Rejected> {
    let (header, body) = incoming.frame().await?;
    if header.kind == kind { Ok(body) } else { Err(ProtocolError::Kind(header.kind as u8).into()) }
}

/// The transports that are offered on this connection.
async fn offers(socket: &Socket, engine: &Arc<EngineState>) -> Vec<Offer> {
    let Some(near) = socket.near() else { return vec![Offer::Local { socket: Vec::new() }] };
    let local = engine.socket.as_ref().map(|socket| Offer::Local { socket: socket.clone() });
    let mut offers: Vec<_> = local.into_iter().chain([Offer::Tcp]).collect();
    let verbs = with_rdma(engine, move |rdma| rdma.offers(near)).await;
    offers.extend(verbs.into_iter().flatten().map(Offer::Verbs));
    offers
}
