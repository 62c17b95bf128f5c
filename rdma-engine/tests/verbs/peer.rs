//! Two ends of a connection for the tests and the bench: one serves a region of known bytes, the
//! other reads it.
//!
//! The ends find each other over TCP: the client sends its endpoint, the server answers with its
//! own and with the memory that may be read. Then the client sends single bytes: [`CUT`]; the end
//! of the stream ends the connection.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rdma_engine::verbs::{
    DeviceContext, Endpoint, MemoryAccess, Pages, Poller, PortSelection, PortSelector, PreparedQueuePair,
    ProtectionDomain, QueuePair, QueuePairOptions, RegisteredBuffer, RemoteMemory, Timeouts, VerbsError,
    devices,
};

/// Asks the server to cut itself off.
pub(crate) const CUT: u8 = b'c';

/// Bytes that a server lets its clients read.
pub(crate) const SERVED: usize = 1 << 20;

/// How long a bootstrap may take.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// One device, opened, with a poller for its queue pairs.
pub(crate) struct Side {
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) poller: Poller<RegisteredBuffer>,
    pub(crate) place: PortSelection,
}

impl Side {
    /// The best port, or that of an address.
    pub(crate) fn open(near: Option<IpAddr>) -> Result<Self, VerbsError> {
        let place = PortSelector { near, ..PortSelector::default() }.select(&devices()?)?.remove(0);
        let context = DeviceContext::open(&place.device)?;
        Ok(Self { domain: ProtectionDomain::new(&context)?, poller: Poller::new(&context, 1024)?, place })
    }

    /// Memory that peers cannot reach, in equal slots.
    pub(crate) fn slots(&self, count: usize, length: usize) -> Result<Vec<RegisteredBuffer>> {
        let region = self.domain.register(Pages::new(count * length)?, MemoryAccess::Local)?;
        Ok(region.into_buffer().split_every(length))
    }

    /// A queue pair that is not connected yet.
    pub(crate) fn prepare(
        &self,
        options: QueuePairOptions,
    ) -> Result<PreparedQueuePair<RegisteredBuffer>, VerbsError> {
        PreparedQueuePair::new(&self.domain, self.poller.queue(), &self.place, options)
    }
}

/// Enough for the tests.
pub(crate) const OPTIONS: QueuePairOptions =
    QueuePairOptions { send_depth: 64, receive_depth: 16, inline: 64, serve_reads: true };

/// The byte that a server has at `offset`.
pub(crate) fn pattern(offset: usize) -> u8 {
    let mixed = (offset as u64 ^ 0x5eaf_00d5).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// A region full of [`pattern`].
pub(crate) fn patterned(domain: &Arc<ProtectionDomain>, length: usize) -> Result<RegisteredBuffer> {
    let mut slot = domain.register(Pages::new(length)?, MemoryAccess::RemoteRead)?.into_buffer();
    for (offset, byte) in slot.iter_mut().enumerate() {
        *byte = pattern(offset);
    }
    Ok(slot)
}

/// A client's end of a connection to a server in another process. Closing the stream ends it.
pub(crate) struct Served {
    pub(crate) pair: QueuePair<RegisteredBuffer>,
    pub(crate) memory: RemoteMemory,
    pub(crate) stream: TcpStream,
}

impl Served {
    pub(crate) fn connect(side: &Side, server: &str, timeouts: Timeouts) -> Result<Self> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let prepared = side.prepare(OPTIONS)?;
        stream.write_all(&prepared.endpoint().to_bytes())?;
        let mut endpoint = [0; Endpoint::SIZE];
        stream.read_exact(&mut endpoint)?;
        let (mut address, mut rkey, mut length) = ([0; 8], [0; 4], [0; 8]);
        stream.read_exact(&mut address)?;
        stream.read_exact(&mut rkey)?;
        stream.read_exact(&mut length)?;
        let memory = RemoteMemory {
            address: u64::from_be_bytes(address),
            rkey: u32::from_be_bytes(rkey),
            length: u64::from_be_bytes(length),
        };
        let pair = prepared.handshake(&Endpoint::from_bytes(&endpoint)?, timeouts)?;
        // The server is ready to be read once it has answered.
        stream.read_exact(&mut [0])?;
        Ok(Self { pair, memory, stream })
    }
}

/// Serves a client until it goes. Says whether it had the network cut, which is whole again then.
pub(crate) fn serve_one(mut stream: TcpStream) -> Result<bool> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut endpoint = [0; Endpoint::SIZE];
    stream.read_exact(&mut endpoint)?;
    // The network that the client came by.
    let side = Side::open(Some(stream.local_addr()?.ip()))?;
    let memory = patterned(&side.domain, SERVED)?;
    let prepared = side.prepare(OPTIONS)?;
    stream.write_all(&prepared.endpoint().to_bytes())?;
    let remote = memory.remote();
    stream.write_all(&remote.address.to_be_bytes())?;
    stream.write_all(&remote.rkey.to_be_bytes())?;
    stream.write_all(&remote.length.to_be_bytes())?;
    let _pair = prepared.handshake(&Endpoint::from_bytes(&endpoint)?, Timeouts::default())?;
    stream.write_all(&[0])?;
    stream.set_read_timeout(None)?;
    let mut command = [0];
    let mut is_cut = false;
    while stream.read(&mut command)? == 1 {
        if command[0] == CUT {
            // Nothing leaves this host any more, as if the cable were cut; what the client sends
            // still comes, and the end of its stream.
            lose_packets(&["add", "dev", "roce0", "root", "netem", "loss", "100%"])?;
            is_cut = true;
        }
    }
    if is_cut {
        lose_packets(&["del", "dev", "roce0", "root"])?;
    }
    Ok(is_cut)
}

/// Changes what becomes of packets that leave this host.
fn lose_packets(words: &[&str]) -> Result<()> {
    let done = Command::new("tc").arg("qdisc").args(words).status()?;
    if done.success() { Ok(()) } else { Err(io::Error::other("tc failed").into()) }
}
