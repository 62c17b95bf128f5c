//! Servers that are not what they say, and users that may do little.

use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rdma_engine::protocol::{
    Capabilities, Choose, ClientMessage, EngineMessage, EngineProof, FrameHeader, Hello, MAX_READ,
    MessageKind, Offer, ReadRequest, SessionLimits, VERSION, Welcome, frame,
};
pub(crate) use tests::user::NOBODY;

/// Runs `work` on a thread of the unprivileged user `uid`.
pub(crate) fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_user(uid);
            work()
        });
        thread.join().unwrap()
    })
}

/// Gives up this thread's privileges; threads that it starts have none either.
fn become_user(uid: u32) {
    let none = std::ptr::null::<libc::gid_t>();
    // SAFETY: the calls take numbers, and a list of no groups. Unlike those of the C library, they
    // concern this thread alone.
    let outcomes = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, none),
            libc::syscall(libc::SYS_setresgid, uid, uid, uid),
            libc::syscall(libc::SYS_setresuid, uid, uid, uid),
        ]
    };
    assert_eq!(outcomes, [0; 3], "{}", io::Error::last_os_error());
}

/// A TCP server that does the same to every client, until it is dropped.
pub(crate) struct Liar {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
    /// Whether it has panicked, which to a client is no more than a connection that ends.
    panicked: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Liar {
    /// Listens on a loopback port (0 for any free one) as user `uid`.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub(crate) fn start(
        uid: u32,
        port: u16,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listen = move || TcpListener::bind(("127.0.0.1", port));
        let listener = if uid == 0 { listen() } else { as_user(uid, listen) }?;
        let address = listener.local_addr()?;
        let stopped = Arc::<AtomicBool>::default();
        let open = Arc::<Mutex<Vec<TcpStream>>>::default();
        let (is_stopped, connections, serve) = (stopped.clone(), open.clone(), Arc::new(serve));
        let panicked = Arc::<AtomicBool>::default();
        let has_panicked = panicked.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if is_stopped.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                connections.lock().unwrap().extend(stream.try_clone());
                let (serve, has_panicked) = (serve.clone(), has_panicked.clone());
                thread::spawn(move || {
                    let served = panic::catch_unwind(AssertUnwindSafe(|| serve(stream)));
                    has_panicked.fetch_or(served.is_err(), Ordering::Relaxed);
                });
            }
        });
        Ok(Self { address, stopped, panicked, open })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        assert!(thread::panicking() || !self.panicked.load(Ordering::Relaxed), "a lie was not told");
    }
}

/// Writes `bytes` again and again until the client goes.
pub(crate) fn pour(stream: &mut TcpStream, bytes: &[u8]) {
    while stream.write_all(bytes).is_ok() {}
}

/// What an engine answers to a read; the answer goes to the client as it is, on TCP.
pub(crate) type Lie = fn(u64, &ReadRequest) -> Vec<u8>;

/// Makes the descriptor that an engine hands over in the place of a volume's file.
pub(crate) type DescriptorSource = Arc<dyn Fn() -> OwnedFd + Send + Sync>;

/// What came to an engine so far, and how.
pub(crate) type ReceivedMessages = Arc<Mutex<Vec<(Connection, MessageKind)>>>;

/// An engine that serves what it likes.
pub(crate) struct FakeEngine {
    tcp: Liar,
    unix: Arc<AtomicBool>,
    socket: Vec<u8>,
    heard: ReceivedMessages,
}

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    Tcp,
    Unix,
    QueuePair,
}

impl FakeEngine {
    /// Over TCP it is of the user `uid` and answers with `lie`, on its Unix socket it is of
    /// `unix_uid` and hands over what `handed` makes in the place of a volume's file.
    pub(crate) fn start(uid: u32, lie: Lie, unix_uid: u32, handed: DescriptorSource) -> Self {
        let socket = format!("rdma-engine-{:032x}", rand::random::<u128>()).into_bytes();
        let heard = ReceivedMessages::default();
        let (offer, log) = (socket.clone(), heard.clone());
        let tcp = Liar::start(uid, 0, move |mut stream| {
            let offers = vec![Offer::Tcp, Offer::Local { socket: offer.clone() }];
            let greeting = (Capabilities::default(), offers);
            let mut sink = stream.try_clone().unwrap();
            let answer = |number, read: &ReadRequest| sink.write_all(&lie(number, read));
            // Until the client goes.
            let _ = converse(&mut stream, Connection::Tcp, greeting, &log, |_| Ok(Choose::Tcp), answer);
        })
        .unwrap();
        let unix = Arc::<AtomicBool>::default();
        let (name, log, stopped) = (socket.clone(), heard.clone(), unix.clone());
        let listen = move || {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            UnixListener::bind_addr(&address).unwrap()
        };
        let listener = if unix_uid == 0 { listen() } else { as_user(unix_uid, listen) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (mut stream, log, handed) = (stream.unwrap(), log.clone(), handed.clone());
                thread::spawn(move || {
                    let greeting = (Capabilities::default(), vec![Offer::Local { socket: Vec::new() }]);
                    let mut sink = stream.try_clone().unwrap();
                    let answer =
                        |number, read: &ReadRequest| hand_over(&mut sink, &located(number, read), handed());
                    let ready = |_| Ok(Choose::Local { proof: None });
                    let _ = converse(&mut stream, Connection::Unix, greeting, &log, ready, answer);
                });
            }
        });
        Self { tcp, unix, socket, heard }
    }

    pub(crate) fn port(&self) -> u16 {
        self.tcp.address().port()
    }

    pub(crate) fn address(&self) -> String {
        self.tcp.address().to_string()
    }

    /// What came so far.
    pub(crate) fn heard(&self) -> Vec<(Connection, MessageKind)> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.unix.store(true, Ordering::Relaxed);
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&self.socket).unwrap();
        // Wakes the one that accepts.
        let _ = UnixStream::connect_addr(&address);
    }
}

/// Speaks the protocol up to the reads, whatever the client asks for.
pub(crate) fn converse<S: Read + Write>(
    stream: &mut S,
    way: Connection,
    (capabilities, offers): (Capabilities, Vec<Offer>),
    heard: &Mutex<Vec<(Connection, MessageKind)>>,
    mut ready: impl FnMut(Choose) -> io::Result<Choose>,
    mut answer: impl FnMut(u64, &ReadRequest) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut head = [0; frame::HEADER];
        stream.read_exact(&mut head)?;
        let header = FrameHeader::parse(&head).map_err(io::Error::other)?;
        let mut body = vec![0; header.length as usize];
        stream.read_exact(&mut body)?;
        heard.lock().unwrap().push((way, header.kind));
        let mut reply = bytes::BytesMut::new();
        match header.kind {
            MessageKind::Hello => {
                let hello = Hello::decode(&body).map_err(io::Error::other)?;
                // A proof made with no key.
                let proof = hello.nonce.map(|nonce| EngineProof { nonce, proof: nonce });
                let limits = SessionLimits { in_flight: 256, read: MAX_READ, idle_ms: 300_000, lease_ms: 0 };
                let (instance, offers) = (rand::random(), offers.clone());
                Welcome { version: VERSION, capabilities, instance, limits, offers, proof }
                    .encode(&mut reply);
            }
            MessageKind::Choose => {
                let choice = Choose::decode(&body).map_err(io::Error::other)?;
                ready(choice)?.encode(MessageKind::Ready, &mut reply);
            }
            MessageKind::Ping => EngineMessage::Pong.encode(header.request, &mut reply),
            MessageKind::Read => match ClientMessage::decode(header, &body).map_err(io::Error::other)? {
                ClientMessage::Read(read) => answer(header.request, &read)?,
                _ => unreachable!("a frame of this kind is a read"),
            },
            _ => {}
        }
        stream.write_all(&reply)?;
    }
}

/// That the bytes are in the descriptor that comes along.
fn located(number: u64, read: &ReadRequest) -> Vec<u8> {
    let needle = needle(read, read.length);
    let answer = EngineMessage::File { needle, file: number as u32, record: 0, position: 16, attached: true };
    let mut bytes = bytes::BytesMut::new();
    answer.encode(number, &mut bytes);
    bytes.to_vec()
}

/// What an engine says of a needle that has as many bytes as are asked for.
pub(crate) fn needle(read: &ReadRequest, length: u32) -> rdma_engine::protocol::NeedleInfo {
    let header = rdma_engine::needle::Header {
        cookie: read.fid.cookie,
        key: read.fid.key,
        size: length.min(i32::MAX as u32 - 100) as i32 + 20,
    };
    let flags = rdma_engine::needle::Flags(0);
    rdma_engine::protocol::NeedleInfo {
        header,
        data_size: read.offset + length,
        checksum: 1,
        flags,
        deleted: false,
        length,
    }
}

fn hand_over(stream: &mut UnixStream, bytes: &[u8], descriptor: OwnedFd) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [MaybeUninit::<u64>::zeroed(); 4];
    // SAFETY: all fields of a message header may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: the sizes of control messages are computed from a size; the first one lies at the
    // beginning of `control`, which is aligned and has 32 bytes, enough for one descriptor.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size_of::<i32>() as u32) as usize;
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(size_of::<i32>() as u32) as usize;
        libc::CMSG_DATA(first).cast::<i32>().write_unaligned(descriptor.as_raw_fd());
        if libc::sendmsg(stream.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Asks an engine for a session on its Unix socket, with nothing to show. Gives what came of it.
pub(crate) fn local_session(engine: &str) -> String {
    let exchange = || -> io::Result<String> {
        let mut tcp = TcpStream::connect(engine)?;
        let welcome = match greet(&mut tcp)? {
            Ok(welcome) => welcome,
            Err(refusal) => return Ok(format!("refused: {refusal:?}")),
        };
        let socket = welcome.offers.iter().find_map(|offer| match offer {
            Offer::Local { socket } => Some(socket),
            _ => None,
        });
        let Some(socket) = socket else { return Ok("not offered".to_owned()) };
        let address = std::os::unix::net::SocketAddr::from_abstract_name(socket)?;
        let mut unix = UnixStream::connect_addr(&address)?;
        Ok(match greet(&mut unix)? {
            Ok(_) => "welcome".to_owned(),
            Err(refusal) => format!("refused: {refusal:?}"),
        })
    };
    exchange().unwrap_or_else(|error| format!("failed: {error}"))
}

/// Introduces a client that has no secret.
fn greet<S: Read + Write>(stream: &mut S) -> io::Result<Result<Welcome, rdma_engine::Refusal>> {
    let (capabilities, name) = (Capabilities::default(), "hostile".to_owned());
    let mut hello = bytes::BytesMut::new();
    Hello { oldest: VERSION, newest: VERSION, capabilities, name, nonce: None }.encode(&mut hello);
    stream.write_all(&hello)?;
    let mut head = [0; frame::HEADER];
    stream.read_exact(&mut head)?;
    let header = FrameHeader::parse(&head).map_err(io::Error::other)?;
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body)?;
    match header.kind {
        MessageKind::Welcome => Ok(Ok(Welcome::decode(&body).map_err(io::Error::other)?)),
        _ => match EngineMessage::decode(header, &body).map_err(io::Error::other)? {
            EngineMessage::Refused(refusal) => Ok(Err(refusal)),
            other => Err(io::Error::other(format!("{other:?}"))),
        },
    }
}
