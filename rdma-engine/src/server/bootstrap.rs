//! The first exchange with a client: who is it, what is offered to it, what does it take.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::admission::{Peer, Seat};
use super::rdma::{Fabric, Inbox, Rdma};
use super::{Session, Shared, stream};
use crate::Refusal;
use crate::proof::{Channel, Exchange, Role};
use crate::protocol::{
    Capabilities, Choose, EngineMessage, EngineProof, Hello, MessageKind, Offer, ProtocolError, Transport,
    VERSION, Welcome,
};
use crate::transport::{Incoming, Socket, StreamError, Tunnel, peer};

/// How long a client may take to introduce itself, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection from its first byte to its end.
pub(super) async fn run(socket: Socket, of: Peer, peer: String, shared: Arc<Shared>) {
    let deadline = Instant::now() + PATIENCE;
    // From the first byte: whoever does not introduce itself takes a place too.
    let seat = shared.admission.admit(of);
    let is_secured = shared.tls.is_some() && matches!(socket, Socket::Tcp(_));
    let secured = match &seat {
        Ok(seat) => within(seat, deadline, secure(socket, &shared)).await,
        // A handshake only to say no would be work for everybody who asks.
        Err(_) if is_secured => {
            shared.metrics.refused(Refusal::TooManySessions);
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
            shared.metrics.refused(Refusal::Malformed);
            return tracing::info!(peer, %error, "refused a connection under TLS");
        }
    };
    let mut incoming = Incoming::without_files(socket.clone());
    let outcome = match &seat {
        Ok(seat) => {
            let introduced = async {
                if let Some(refusal) = mismatch {
                    // Taken out of the way: a connection that is closed with something unread is reset, which can overtake
                    // the answer.
                    let _ = incoming.frame().await;
                    return Err(Rejected::Refused(refusal));
                }
                introduce(&mut incoming, &shared, seat).await
            };
            within(seat, deadline, introduced).await
        }
        Err(refusal) => Some(Err(Rejected::Refused(*refusal))),
    };
    let Some(outcome) = outcome else {
        return tracing::debug!(peer, "a client did not introduce itself in time");
    };
    let (name, transport, rdma) = match outcome {
        Ok(introduced) => introduced,
        Err(Rejected::Refused(refusal)) => {
            shared.metrics.refused(refusal);
            tracing::info!(peer, reason = %refusal, "refused a connection");
            let mut bytes = BytesMut::new();
            EngineMessage::Refused(refusal).encode(0, &mut bytes);
            // Whether it hears that is its own affair.
            let _ = timeout_at(deadline, socket.write_all(&bytes, false)).await;
            return;
        }
        Err(Rejected::Gone(error)) => {
            if matches!(error, StreamError::Protocol(_)) {
                shared.metrics.refused(Refusal::Malformed);
            }
            return tracing::debug!(peer, %error, "a connection ended before it was a session");
        }
    };
    // Without one nothing is introduced.
    let Ok(seat) = seat else { return };
    seat.introduced();
    let session = Arc::new(Session::new(shared, transport, seat));
    tracing::debug!(peer, name, transport = transport.name(), "a session begins");
    let end = stream::serve(incoming, session, rdma).await;
    tracing::debug!(peer, name, %end, "a session has ended");
}

/// Waits for `work`, but not beyond the deadline, or longer than the connection may stay.
async fn within<T>(seat: &Seat, deadline: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        () = seat.evicted() => None,
        outcome = timeout_at(deadline, work) => outcome.ok(),
    }
}

enum Rejected {
    /// The client is told why.
    Refused(Refusal),
    /// There is nobody who would understand.
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

/// First byte of a client that does not: that of the length of its first frame.
const PLAIN: u8 = 0;

/// Agrees with a client over the network on TLS, and says if they want different things.
async fn secure(socket: Socket, shared: &Shared) -> io::Result<(Socket, Option<Refusal>)> {
    let Socket::Tcp(stream) = socket else { return Ok((socket, None)) };
    let mut first = [PLAIN];
    let has_begun = stream.peek(&mut first).await? > 0;
    let mismatch = match (&shared.tls, first[0]) {
        (Some(config), TLS) => return Ok((Socket::Tls(Tunnel::accept(stream, config).await?), None)),
        (Some(_), PLAIN) if has_begun => Some(Refusal::TlsNeeded),
        (Some(_), _) => return Err(io::ErrorKind::InvalidData.into()),
        (None, TLS) => Some(Refusal::NoTls),
        (None, _) => None,
    };
    Ok((Socket::Tcp(stream), mismatch))
}

/// Who the client is, what it took, and what was made for that.
type Introduced = (String, Transport, Option<(Arc<Rdma>, Inbox)>);

async fn introduce(
    incoming: &mut Incoming,
    shared: &Arc<Shared>,
    seat: &Seat,
) -> Result<Introduced, Rejected> {
    let hello = Hello::decode(&expect(incoming, MessageKind::Hello).await?)?;
    if !(hello.oldest..=hello.newest).contains(&VERSION) {
        return Err(Rejected::Refused(Refusal::Version));
    }
    let socket = incoming.socket().clone();
    let channel = channel(&socket, shared);
    let challenge = match (&shared.proof, hello.nonce, &channel) {
        (Some(key), Some(client), Some(channel)) => {
            let (engine, instance) = (rand::random(), shared.instance);
            Some((key, Exchange { client, engine, instance, channel }))
        }
        _ => None,
    };
    let guest = admit(&socket)?;
    if let (Guest::Unknown(reason), None) = (&guest, &challenge) {
        return Err(turned_away(reason));
    }
    let offers = offers(&socket, shared).await;
    let mut bytes = BytesMut::new();
    let proof = challenge.as_ref().map(|(key, exchange)| EngineProof {
        nonce: exchange.engine,
        proof: key.prove(Role::Engine, exchange),
    });
    let welcome = Welcome {
        version: VERSION,
        capabilities: Capabilities::MESSAGES,
        instance: shared.instance,
        limits: shared.limits,
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
            match guest {
                Guest::Unknown(reason) if !is_proved => return Err(turned_away(&reason)),
                _ => (Choose::Local { proof: None }, None),
            }
        }
        (Some(_), Choose::Tcp) => (Choose::Tcp, None),
        (Some(near), Choose::Verbs(peer)) if shared.fabric.is_some() => {
            let Some(share) = shared.fabric.as_ref().and_then(|fabric| seat.stage(fabric.staging())) else {
                tracing::info!("a peer has its part of staging memory");
                return Err(Rejected::Refused(Refusal::NoTransport));
            };
            let accepted = with_fabric(shared, move |fabric| fabric.accept(near, &peer, share)).await;
            match accepted {
                Some(Ok((rdma, inbox, own))) => (Choose::Verbs(own), Some((rdma, inbox))),
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

/// Where the client has reached this engine, as far as that can be part of a proof. Under TLS both
/// ends have certificates.
fn channel(socket: &Socket, shared: &Shared) -> Option<Channel> {
    match socket {
        Socket::Tcp(stream) => stream.local_addr().ok().map(Channel::Tcp),
        Socket::Tls(_) => None,
        Socket::Unix(_) => shared.socket.clone().map(Channel::Unix),
    }
}

/// What is known of a client before it has said anything.
enum Guest {
    /// It may have all that is offered on its connection.
    Welcome,
    /// Its user could open the volumes' files if it is a process of this host, which is not known
    /// for this reason. It has to prove that it knows the cluster's secret.
    Unknown(io::Error),
}

/// A descriptor opens all of a volume, whatever cookies and tokens say. So only a process that could
/// open the file itself may have one: of root, or of this engine's user, and of this host. Root of a
/// container that shares the host's network is neither.
fn admit(socket: &Socket) -> Result<Guest, Rejected> {
    let Socket::Unix(stream) = socket else { return Ok(Guest::Welcome) };
    let user = peer::user(stream).map_err(|error| turned_away(&error))?;
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        return Err(Rejected::Refused(Refusal::NotAllowed));
    }
    Ok(peer::ensure_of_this_host(stream).map_or_else(Guest::Unknown, |()| Guest::Welcome))
}

fn turned_away(reason: &io::Error) -> Rejected {
    tracing::info!(
        %reason,
        "a process may not have the volumes' descriptors; where clients are in containers, give \
         them and this engine one security.toml with jwt.signing.key"
    );
    Rejected::Refused(Refusal::NotAllowed)
}

/// Asks the devices, which may take a while. `None` if there are none.
async fn with_fabric<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Fabric) -> T + Send + 'static,
) -> Option<T> {
    let shared = shared.clone();
    // If it panicked, there is nothing to offer either.
    tokio::task::spawn_blocking(move || shared.fabric.as_ref().map(work)).await.ok().flatten()
}

async fn expect(incoming: &mut Incoming, kind: MessageKind) -> Result<bytes::Bytes, Rejected> {
    let (header, body) = incoming.frame().await?;
    if header.kind == kind { Ok(body) } else { Err(ProtocolError::Kind(header.kind as u8).into()) }
}

/// The transports that the client of this connection may take.
async fn offers(socket: &Socket, shared: &Arc<Shared>) -> Vec<Offer> {
    let Some(near) = socket.near() else { return vec![Offer::Local { socket: Vec::new() }] };
    let local = shared.socket.as_ref().map(|socket| Offer::Local { socket: socket.clone() });
    let mut offers: Vec<_> = local.into_iter().chain([Offer::Tcp]).collect();
    if shared.fabric.is_some() {
        let verbs = with_fabric(shared, move |fabric| fabric.offers(near)).await;
        offers.extend(verbs.into_iter().flatten().map(Offer::Verbs));
    }
    offers
}
