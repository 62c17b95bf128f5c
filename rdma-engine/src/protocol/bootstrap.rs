//! How a session begins.

use bytes::{BufMut, BytesMut};

use super::frame::{self, MessageKind};
use super::verbs::{QueuePairEnd, VerbsOffer};
use super::wire::{Fields, Put};
use super::{MAX_READ, ProtocolError};
use crate::proof::{Nonce, PROOF_SIZE, Proof};

/// The first bytes of the first message. No other protocol begins with them.
const MAGIC: [u8; 8] = *b"\x89NEEDLE\n";

/// The longest name of a client, in bytes.
const MAX_NAME: usize = 64;

/// The longest name of a socket, in bytes: what fits into the kernel's address.
const MAX_SOCKET: usize = 107;

/// The most transports that an engine offers: one for each device port, and the two that need
/// none.
const MAX_OFFERS: usize = 32;

/// The longest parameters of an offer or a choice, in bytes.
const MAX_PARAMETERS: usize = 256;

/// How requests and data travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Transport {
    /// RDMA: data by RDMA READ; requests as messages or over the TCP connection.
    Verbs = 3,
    /// The same host: the client reads the volumes' files itself.
    Local = 2,
    /// In line on the TCP connection.
    Tcp = 1,
}

impl Transport {
    /// Every transport, the fastest first.
    pub const ALL: [Self; 3] = [Self::Verbs, Self::Local, Self::Tcp];

    /// The name that people and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Verbs => "verbs",
            Self::Local => "local",
            Self::Tcp => "tcp",
        }
    }
}

/// What a side supports beyond the version, one bit each. Unknown bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Of an engine: over verbs, it also takes requests as messages of the queue pair.
    pub const MESSAGES: Self = Self(1);

    /// Of a client: its nonce follows the last field of [`Hello`]. Of an engine: its nonce and its
    /// proof follow the last field of [`Welcome`].
    pub const PROOF: Self = Self(2);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, with the bits of `other` set if `on` and clear if not.
    const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { Self(self.0 & !other.0) }
    }
}

/// The client's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version that the client speaks.
    pub oldest: u16,
    /// The newest one.
    pub newest: u16,
    /// What else it supports. [`Capabilities::PROOF`] is written according to `nonce`.
    pub capabilities: Capabilities,
    /// The client's name, for the engine's log; up to 64 bytes.
    pub name: String,
    /// Asks the engine to prove that it knows the cluster's secret.
    pub nonce: Option<Nonce>,
}

impl Hello {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        frame::put(out, MessageKind::Hello, 0, |out| {
            out.put_slice(&MAGIC);
            out.put_u16(self.oldest);
            out.put_u16(self.newest);
            out.put_u64(self.capabilities.with(Capabilities::PROOF, self.nonce.is_some()).0);
            out.put_bytes16(&self.name.as_bytes()[..self.name.floor_char_boundary(MAX_NAME)]);
            out.put_slice(self.nonce.as_ref().map_or(&[], |nonce| &nonce[..]));
        });
    }

    /// Decodes the body of the message. Fields of later versions behind the known ones are
    /// ignored.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(body);
        if fields.array()? != MAGIC {
            return Err(ProtocolError::Magic);
        }
        let mut hello = Self {
            oldest: fields.u16()?,
            newest: fields.u16()?,
            capabilities: Capabilities(fields.u64()?),
            name: fields.text16(MAX_NAME)?,
            nonce: None,
        };
        if hello.capabilities.has(Capabilities::PROOF) {
            hello.nonce = Some(fields.array()?);
        }
        Ok(hello)
    }
}

/// The limits of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Requests that may be unanswered at a time, 1 or more. Further requests are refused.
    pub in_flight: u32,
    /// Bytes that one request may ask for, up to [`MAX_READ`].
    pub read: u32,
    /// A session without reads is closed after this many milliseconds.
    pub idle_ms: u32,
    /// A grant for RDMA READ stays valid for this many milliseconds.
    pub lease_ms: u32,
}

/// A transport that the engine offers on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offer {
    /// This connection.
    Tcp,
    /// A Unix socket in the abstract namespace, with a name that only this engine uses. A client
    /// that can connect to it is on the same host. On that socket itself the name is empty.
    Local {
        /// The name, without the zero byte in front.
        socket: Vec<u8>,
    },
    /// A port of an RDMA device.
    Verbs(VerbsOffer),
}

impl Offer {
    /// Which transport it is.
    pub const fn transport(&self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Local { .. } => Transport::Local,
            Self::Verbs(_) => Transport::Verbs,
        }
    }
}

/// The engine's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version of the session: the newest that both sides speak.
    pub version: u16,
    /// What else the engine supports. [`Capabilities::PROOF`] is written according to `proof`.
    pub capabilities: Capabilities,
    /// A random number that the engine drew when it started.
    pub instance: u128,
    /// The limits of the session.
    pub limits: SessionLimits,
    /// The transports that it offers.
    pub offers: Vec<Offer>,
    /// The proof that the engine knows the cluster's secret, if the client asked for it.
    pub proof: Option<EngineProof>,
}

/// The proof that an engine knows the cluster's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineProof {
    /// The engine's nonce.
    pub nonce: Nonce,
    /// Its proof, over both nonces.
    pub proof: Proof,
}

impl Welcome {
    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        frame::put(out, MessageKind::Welcome, 0, |out| {
            out.put_u16(self.version);
            out.put_u64(self.capabilities.with(Capabilities::PROOF, self.proof.is_some()).0);
            out.put_u128(self.instance);
            out.put_u32(self.limits.in_flight);
            out.put_u32(self.limits.read);
            out.put_u32(self.limits.idle_ms);
            out.put_u32(self.limits.lease_ms);
            let offers = &self.offers[..self.offers.len().min(MAX_OFFERS)];
            out.put_u8(offers.len() as u8);
            for offer in offers {
                out.put_u8(offer.transport() as u8);
                let mut parameters = BytesMut::new();
                match offer {
                    Offer::Tcp => {}
                    Offer::Local { socket } => parameters.put_slice(socket),
                    Offer::Verbs(verbs) => verbs.encode(&mut parameters),
                }
                out.put_bytes16(&parameters);
            }
            if let Some(EngineProof { nonce, proof }) = &self.proof {
                out.put_slice(nonce);
                out.put_slice(proof);
            }
        });
    }

    /// Decodes the body of the message. Offers of unknown transports are left out.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(body);
        let mut welcome = Self {
            version: fields.u16()?,
            capabilities: Capabilities(fields.u64()?),
            instance: u128::from_be_bytes(fields.array()?),
            limits: SessionLimits {
                in_flight: fields.u32()?,
                read: fields.u32()?,
                idle_ms: fields.u32()?,
                lease_ms: fields.u32()?,
            },
            offers: Vec::new(),
            proof: None,
        };
        if welcome.limits.in_flight == 0 || !(1..=MAX_READ).contains(&welcome.limits.read) {
            return Err(ProtocolError::Value);
        }
        let offers = usize::from(fields.u8()?);
        if offers > MAX_OFFERS {
            return Err(ProtocolError::Limit);
        }
        for _ in 0..offers {
            let transport = fields.u8()?;
            let parameters = fields.bytes16(MAX_PARAMETERS)?;
            welcome.offers.push(match Transport::from_code(transport) {
                Some(Transport::Tcp) => Offer::Tcp,
                Some(Transport::Local) if parameters.len() <= MAX_SOCKET => {
                    Offer::Local { socket: parameters.to_vec() }
                }
                Some(Transport::Local) => return Err(ProtocolError::Limit),
                Some(Transport::Verbs) => Offer::Verbs(VerbsOffer::decode(parameters)?),
                None => continue,
            });
        }
        if welcome.capabilities.has(Capabilities::PROOF) {
            welcome.proof = Some(EngineProof { nonce: fields.array()?, proof: fields.array()? });
        }
        Ok(welcome)
    }
}

/// The client's choice among the offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choose {
    /// Requests follow on this TCP connection.
    Tcp,
    /// Requests follow on this Unix socket.
    Local {
        /// The client's proof that it knows the cluster's secret, if the engine showed its own.
        proof: Option<Proof>,
    },
    /// Requests follow on this TCP connection or as messages, and data is fetched over a queue
    /// pair, of which this is the client's end.
    Verbs(QueuePairEnd),
}

/// The engine's answer to [`Choose`], in the same form: it is ready for requests.
pub type Ready = Choose;

impl Choose {
    /// Which transport it is.
    pub const fn transport(&self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Local { .. } => Transport::Local,
            Self::Verbs(_) => Transport::Verbs,
        }
    }

    /// Appends the message, as the client's choice or as the engine's [`Ready`].
    ///
    /// # Panics
    /// When `kind` is neither.
    pub fn encode(&self, kind: MessageKind, out: &mut BytesMut) {
        assert!(matches!(kind, MessageKind::Choose | MessageKind::Ready), "a choice is no {kind:?}");
        frame::put(out, kind, 0, |out| {
            out.put_u8(self.transport() as u8);
            let mut parameters = BytesMut::new();
            match self {
                Self::Tcp | Self::Local { proof: None } => {}
                Self::Local { proof: Some(proof) } => parameters.put_slice(proof),
                Self::Verbs(queue_pair) => queue_pair.encode(&mut parameters),
            }
            out.put_bytes16(&parameters);
        });
    }

    /// Decodes the body of either message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(body);
        let transport = Transport::from_code(fields.u8()?).ok_or(ProtocolError::Value)?;
        let parameters = fields.bytes16(MAX_PARAMETERS)?;
        Ok(match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Local if parameters.is_empty() => Self::Local { proof: None },
            Transport::Local => {
                let proof: [u8; PROOF_SIZE] = parameters.try_into().map_err(|_| ProtocolError::Value)?;
                Self::Local { proof: Some(proof) }
            }
            Transport::Verbs => Self::Verbs(QueuePairEnd::decode(parameters)?),
        })
    }
}

impl Transport {
    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&transport| transport as u8 == code)
    }
}
