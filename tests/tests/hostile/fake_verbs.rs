//! A forged engine over verbs.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use rdma_engine::protocol::{
    Capabilities, Choose, ClientMessage, EngineMessage, FrameHeader, Grant, MAX_REQUEST_SIZE, MessageKind,
    Offer, QueuePairEnd, ReadRequest, VerbsOffer, frame,
};
use rdma_engine::verbs::{
    Completion, DeviceContext, Endpoint, Gid, MemoryAccess, Mtu, Pages, Poller, PortSelector,
    PreparedQueuePair, ProtectionDomain, QueuePair, QueuePairOptions, RegisteredBuffer, Timeouts, WorkKind,
    devices,
};

use super::fake::{Connection, Liar, ReceivedMessages, converse};

/// Messages that such an engine has room for in either direction.
const DEPTH: u32 = 128;

const QUEUE: QueuePairOptions =
    QueuePairOptions { send_depth: DEPTH, receive_depth: DEPTH, inline: 64, serve_reads: true };

/// How long a grant is good unless a lie says otherwise.
const LEASE_MS: u32 = 60_000;

/// How long the thread that takes messages waits for one before it looks whether the client has
/// gone.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What such an engine does.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    /// Whether it takes requests as messages of the queue pair.
    pub(crate) messages: bool,
    /// What it says to the client's choice, given its own end of the queue pair.
    pub(crate) ready: fn(&mut Session, QueuePairEnd) -> Choose,
    /// What it does with a read of this number.
    pub(crate) answer: fn(&mut Session, u64, &ReadRequest),
}

/// An engine of any user that serves what it likes over verbs alone.
pub(crate) struct VerbsEngine {
    tcp: Liar,
    heard: ReceivedMessages,
}

impl VerbsEngine {
    pub(crate) fn start(uid: u32, script: Script) -> Self {
        let heard = ReceivedMessages::default();
        let log = heard.clone();
        let tcp = Liar::start(uid, 0, move |stream| {
            // Until the client goes.
            let _ = serve(stream, script, &log);
        });
        Self { tcp: tcp.unwrap(), heard }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.tcp.address()
    }

    /// What came so far.
    pub(crate) fn heard(&self) -> Vec<(Connection, MessageKind)> {
        self.heard.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, script: Script, heard: &ReceivedMessages) -> io::Result<()> {
    let (session, poller, own) = Session::open(&stream)?;
    let session = Mutex::new(session);
    let offer = VerbsOffer { port: 0, gid: own.gid, lid: own.lid, gigabits: 100 };
    let capabilities = if script.messages { Capabilities::MESSAGES } else { Capabilities::default() };
    let has_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| take_messages(poller, script, &session, heard, &has_ended));
        let ready = |choice| {
            let mut session = session.lock().unwrap();
            if let Choose::Verbs(peer) = choice {
                session.peer = Some(peer);
            }
            Ok((script.ready)(&mut session, own))
        };
        let answer = |number, read: &ReadRequest| {
            (script.answer)(&mut session.lock().unwrap(), number, read);
            Ok(())
        };
        let greeting = (capabilities, vec![Offer::Verbs(offer)]);
        let outcome = converse(&mut stream, Connection::Tcp, greeting, heard, ready, answer);
        has_ended.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Takes requests that come over the queue pair, until the session is at its end.
fn take_messages(
    mut poller: Poller<RegisteredBuffer>,
    script: Script,
    session: &Mutex<Session>,
    heard: &ReceivedMessages,
    has_ended: &AtomicBool,
) {
    let mut done = Vec::new();
    while !has_ended.load(Ordering::Relaxed) && poller.wait(&mut done, POLL_INTERVAL).is_ok() {
        for Completion { work, memory, result, .. } in done.drain(..) {
            let (WorkKind::Receive, Some(slot), Ok(length)) = (work, memory, result) else { continue };
            let Some((header, body)) = slot[..length].split_first_chunk::<{ frame::HEADER }>() else {
                continue;
            };
            let header = FrameHeader::parse(header).unwrap();
            heard.lock().unwrap().push((Connection::QueuePair, header.kind));
            let mut session = session.lock().unwrap();
            if let ClientMessage::Read(read) = ClientMessage::decode(header, body).unwrap() {
                (script.answer)(&mut session, header.request, &read);
            }
            // If the queue pair has failed, nothing comes any more.
            let _ = session.pair.as_ref().map(|pair| pair.post_receive(slot, 0));
        }
    }
}

/// One client's session.
pub(crate) struct Session {
    stream: TcpStream,
    domain: Arc<ProtectionDomain>,
    /// Until it is connected.
    prepared: Option<PreparedQueuePair<RegisteredBuffer>>,
    peer: Option<QueuePairEnd>,
    pub(crate) pair: Option<QueuePair<RegisteredBuffer>>,
    /// What the client may read.
    pub(crate) staged: Vec<RegisteredBuffer>,
}

impl Session {
    fn open(stream: &TcpStream) -> io::Result<(Self, Poller<RegisteredBuffer>, QueuePairEnd)> {
        let near = Some(stream.local_addr()?.ip());
        let found = devices().map_err(io::Error::other)?;
        let places =
            PortSelector { near, ..PortSelector::default() }.select(&found).map_err(io::Error::other)?;
        let context = DeviceContext::open(&places[0].device).map_err(io::Error::other)?;
        let domain = ProtectionDomain::new(&context).map_err(io::Error::other)?;
        let poller = Poller::new(&context, 2 * DEPTH).map_err(io::Error::other)?;
        let prepared = PreparedQueuePair::new(&domain, poller.queue(), &places[0], QUEUE);
        let prepared = prepared.map_err(io::Error::other)?;
        let own = prepared.endpoint();
        let end = QueuePairEnd {
            port: 0,
            number: own.queue_pair,
            sequence: own.first_packet,
            gid: own.gid.unwrap().0,
            lid: own.lid,
            mtu: own.mtu.bytes() as u16,
            reads: own.served_reads,
        };
        let session = Self {
            stream: stream.try_clone()?,
            domain,
            prepared: Some(prepared),
            peer: None,
            pair: None,
            staged: Vec::new(),
        };
        let room = session.memory(DEPTH as usize * MAX_REQUEST_SIZE, MemoryAccess::Local);
        for slot in room.split_every(MAX_REQUEST_SIZE) {
            session.prepared.as_ref().unwrap().post_receive(slot, 0).unwrap();
        }
        Ok((session, poller, end))
    }

    fn memory(&self, length: usize, access: MemoryAccess) -> RegisteredBuffer {
        self.domain.register(Pages::new(length).unwrap(), access).unwrap().into_buffer()
    }

    /// Connects its end of the queue pair to the client's.
    pub(crate) fn connect(&mut self) {
        let peer = self.peer.unwrap();
        let peer = Endpoint {
            queue_pair: peer.number,
            first_packet: peer.sequence,
            lid: peer.lid,
            gid: Some(Gid(peer.gid)),
            mtu: Mtu::from_bytes(peer.mtu.into()).unwrap(),
            served_reads: peer.reads,
        };
        let prepared = self.prepared.take().unwrap();
        self.pair = Some(prepared.handshake(&peer, Timeouts::default()).unwrap());
    }

    /// Puts bytes where the client may read them.
    pub(crate) fn stage(&mut self, bytes: &[u8]) -> Grant {
        // What was registered may be longer: whole pages.
        let (mut slot, _) = self.memory(bytes.len(), MemoryAccess::RemoteRead).split_at(bytes.len());
        slot.copy_from_slice(bytes);
        let remote = slot.remote();
        self.staged.push(slot);
        Grant { address: remote.address, rkey: remote.rkey, lease_ms: LEASE_MS }
    }

    /// Says this over the stream, with data behind it.
    pub(crate) fn say(&mut self, number: u64, answer: &EngineMessage, data: &[u8]) {
        // The client may have gone.
        let _ = io::Write::write_all(&mut self.stream, &message(number, answer, data));
    }

    /// Sends bytes as a message of the queue pair. Returns whether there was room for it.
    pub(crate) fn send(&self, bytes: &[u8]) -> bool {
        let (mut slot, _) = self.memory(bytes.len(), MemoryAccess::Local).split_at(bytes.len());
        slot.copy_from_slice(bytes);
        self.pair.as_ref().is_some_and(|pair| pair.post_send(slot, bytes.len(), 0).is_ok())
    }
}

/// The bytes of an answer with data behind it.
pub(crate) fn message(number: u64, answer: &EngineMessage, data: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    answer.encode(number, &mut bytes);
    bytes.extend_from_slice(data);
    bytes.to_vec()
}
