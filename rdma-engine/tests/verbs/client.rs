//! A client that is driven message by message, and may do what no honest client does.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use bytes::BytesMut;
use rdma_engine::Refusal;
use rdma_engine::protocol::frame::HEADER;
use rdma_engine::protocol::{
    Capabilities, Choose, ClientMessage, EngineMessage, FrameHeader, Grant, Hello, MAX_ANSWER_SIZE,
    MessageKind, NeedleInfo, Offer, QueuePairEnd, ReadRequest, SessionLimits, VERSION, Welcome,
};
use rdma_engine::verbs::{
    self, Endpoint, Gid, LocalMemory, Mtu, QueuePair, RegisteredBuffer, RemoteMemory, Timeouts, WorkError,
    WorkKind,
};

use crate::peer::{OPTIONS, Side};
use crate::volume::fid;
use crate::{DEADLINE, completions};

/// A session over verbs.
pub(crate) struct ByHand {
    stream: TcpStream,
    side: Side,
    pair: QueuePair<RegisteredBuffer>,
    pub(crate) limits: SessionLimits,
}

/// What an answer brings.
#[derive(Debug, PartialEq)]
pub(crate) enum Brought {
    Grant(NeedleInfo, Grant),
    Data(Vec<u8>),
    Refused(Refusal),
}

impl ByHand {
    pub(crate) fn connect(engine: SocketAddr) -> Self {
        Self::try_connect(engine).expect("the engine takes it over verbs")
    }

    /// Connects, unless the engine refuses it verbs.
    pub(crate) fn try_connect(engine: SocketAddr) -> Result<Self, Refusal> {
        let mut stream = TcpStream::connect(engine).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let side = Side::open(Some(stream.local_addr().unwrap().ip())).unwrap();
        let mut bytes = BytesMut::new();
        let name = "by hand".to_owned();
        Hello { oldest: VERSION, newest: VERSION, capabilities: Capabilities(0), name, nonce: None }
            .encode(&mut bytes);
        stream.write_all(&bytes).unwrap();
        let (header, body) = frame(&mut stream);
        assert_eq!(header.kind, MessageKind::Welcome);
        let welcome = Welcome::decode(&body).unwrap();
        assert!(welcome.capabilities.has(Capabilities::MESSAGES));
        let offers = welcome.offers.iter();
        let offer =
            offers.filter_map(|offer| if let Offer::Verbs(offer) = offer { Some(offer) } else { None });
        let offer = offer.into_iter().next().expect("the engine offers verbs");
        let prepared = side.prepare(OPTIONS).unwrap();
        let own = prepared.endpoint();
        let end = QueuePairEnd {
            port: offer.port,
            number: own.queue_pair,
            sequence: own.first_packet,
            gid: own.gid.unwrap().0,
            lid: own.lid,
            mtu: own.mtu.bytes() as u16,
            reads: own.served_reads,
        };
        bytes.clear();
        Choose::Verbs(end).encode(MessageKind::Choose, &mut bytes);
        stream.write_all(&bytes).unwrap();
        let (header, body) = frame(&mut stream);
        if header.kind == MessageKind::Refused {
            let EngineMessage::Refused(refusal) = EngineMessage::decode(header, &body).unwrap() else {
                panic!("{header:?}")
            };
            return Err(refusal);
        }
        assert_eq!(header.kind, MessageKind::Ready);
        let Choose::Verbs(peer) = Choose::decode(&body).unwrap() else { panic!("another transport") };
        let peer = Endpoint {
            queue_pair: peer.number,
            first_packet: peer.sequence,
            lid: peer.lid,
            gid: Some(Gid(peer.gid)),
            mtu: Mtu::from_bytes(peer.mtu.into()).unwrap(),
            served_reads: peer.reads,
        };
        let pair = prepared.handshake(&peer, Timeouts::default()).unwrap();
        Ok(Self { stream, side, pair, limits: welcome.limits })
    }

    /// Ends the session, and keeps its own end of the queue pair.
    pub(crate) fn hang_up(&self) {
        self.stream.shutdown(Shutdown::Both).unwrap();
    }

    /// Asks for the beginning of a needle.
    pub(crate) fn ask(&mut self, number: u64, key: u64, length: u32) -> Brought {
        self.ask_for(number, ReadRequest { fid: fid(key), offset: 0, length, token: Vec::new() })
    }

    /// Sends any read request.
    pub(crate) fn ask_for(&mut self, number: u64, read: ReadRequest) -> Brought {
        self.send(number, &ClientMessage::Read(read));
        let (header, body) = frame(&mut self.stream);
        assert_eq!(header.request, number);
        match EngineMessage::decode(header, &body).unwrap() {
            EngineMessage::Grant(needle, grant) => Brought::Grant(needle, grant),
            EngineMessage::Data(needle) => {
                let mut data = vec![0; needle.length as usize];
                self.stream.read_exact(&mut data).unwrap();
                Brought::Data(data)
            }
            EngineMessage::Refused(refusal) => Brought::Refused(refusal),
            other => panic!("{other:?}"),
        }
    }

    /// As [`ask`](Self::ask), where a grant must come.
    pub(crate) fn granted(&mut self, number: u64, key: u64, length: u32) -> Grant {
        match self.ask(number, key, length) {
            Brought::Grant(needle, grant) => {
                assert_eq!(needle.length, length);
                grant
            }
            other => panic!("no grant: {other:?}"),
        }
    }

    pub(crate) fn send(&mut self, number: u64, request: &ClientMessage) {
        assert!(self.try_send(number, request), "the engine has hung up");
    }

    /// Sends a request, unless the engine has hung up.
    pub(crate) fn try_send(&mut self, number: u64, request: &ClientMessage) -> bool {
        let mut bytes = BytesMut::new();
        request.encode(number, &mut bytes);
        self.stream.write_all(&bytes).is_ok()
    }

    /// Sends any bytes as a message.
    pub(crate) fn post(&mut self, message: &[u8]) {
        let mut slot = self.side.slots(1, message.len()).unwrap().remove(0);
        slot.copy_from_slice(message);
        self.pair.post_send(slot, message.len(), 0).unwrap();
    }

    /// Asks for the beginning of a needle by message. There is memory for the answer if it is
    /// `taken`.
    pub(crate) fn ask_by_message(&mut self, number: u64, key: u64, length: u32, taken: bool) {
        if taken {
            let slot = self.side.slots(1, MAX_ANSWER_SIZE).unwrap().remove(0);
            self.pair.post_receive(slot, 0).unwrap();
        }
        let mut message = BytesMut::new();
        ClientMessage::Read(ReadRequest { fid: fid(key), offset: 0, length, token: Vec::new() })
            .encode(number, &mut message);
        self.post(&message);
    }

    /// The next message of the engine.
    pub(crate) fn message(&mut self) -> Vec<u8> {
        let started = Instant::now();
        let mut done = Vec::new();
        loop {
            assert!(started.elapsed() < DEADLINE, "no message comes");
            // The completion of our own send may come first.
            self.side.poller.wait(&mut done, DEADLINE).unwrap();
            for done in done.drain(..) {
                let length = done.result.unwrap();
                if done.work == WorkKind::Receive {
                    return done.memory.unwrap()[..length].to_vec();
                }
            }
        }
    }

    /// Waits until the engine ends the session.
    pub(crate) fn hung_up(&mut self) {
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }

    /// Reads with a grant, whosever it is. The memory must not change when that fails.
    pub(crate) fn fetch(&mut self, grant: &Grant, length: usize) -> Result<Vec<u8>, WorkError> {
        let mut memory = self.side.slots(1, length).unwrap().remove(0);
        memory.fill(0xee);
        assert_eq!(memory.length(), length);
        let remote = RemoteMemory { address: grant.address, rkey: grant.rkey, length: length as u64 };
        self.pair.post_reads(&mut vec![verbs::RdmaRead { memory, remote, token: 0 }]).unwrap();
        let done = completions(&mut self.side.poller, 1).remove(0);
        let memory = done.memory.unwrap();
        assert!(done.result.is_ok() || memory.iter().all(|&byte| byte == 0xee), "something was read");
        done.result.map(|_| memory.to_vec())
    }
}

fn frame(stream: &mut TcpStream) -> (FrameHeader, Vec<u8>) {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).unwrap();
    let header = FrameHeader::parse(&header).unwrap();
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).unwrap();
    (header, body)
}
