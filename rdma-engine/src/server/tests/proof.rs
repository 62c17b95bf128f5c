//! What engines and clients have to prove to each other before they are trusted.

use std::sync::LazyLock;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::client::Trust;
use crate::proof::ProofKey;
use crate::protocol::{EngineMessage, FrameHeader, Offer, Welcome, frame};

static KEY: LazyLock<Arc<ProofKey>> = LazyLock::new(|| Arc::new(ProofKey::new(b"the cluster's secret")));
static OTHER: LazyLock<Arc<ProofKey>> = LazyLock::new(|| Arc::new(ProofKey::new(b"a guess")));

fn with_key(key: &Arc<ProofKey>) -> Trust {
    Trust { key: Some(key.clone()), ..Trust::default() }
}

fn client(address: impl ToString, transports: &[Transport], trust: Trust) -> Client {
    let transports = transports.to_vec();
    Client::new(address.to_string(), client::ClientOptions { transports, trust, ..Default::default() })
}

/// An untrusted engine, which answers every request. Returns its address, and the kinds of the
/// messages that it has received.
async fn untrusted_engine(offers: Vec<Offer>) -> (SocketAddr, Arc<parking_lot::Mutex<Vec<MessageKind>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::<parking_lot::Mutex<Vec<MessageKind>>>::default();
    let kinds = heard.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (kinds, offers) = (kinds.clone(), offers.clone());
            tokio::spawn(async move {
                let mut head = [0; frame::HEADER];
                while stream.read_exact(&mut head).await.is_ok() {
                    let header = FrameHeader::parse(&head).unwrap();
                    let mut body = vec![0; header.length as usize];
                    stream.read_exact(&mut body).await.unwrap();
                    kinds.lock().push(header.kind);
                    let mut answer = BytesMut::new();
                    match header.kind {
                        MessageKind::Hello => Welcome {
                            version: VERSION,
                            capabilities: Capabilities::default(),
                            instance: 1,
                            limits: SessionLimits { in_flight: 9, read: 1 << 20, idle_ms: 9000, lease_ms: 0 },
                            offers: offers.clone(),
                            // Not made with a key.
                            proof: Hello::decode(&body)
                                .unwrap()
                                .nonce
                                .map(|nonce| crate::protocol::EngineProof { nonce, proof: nonce }),
                        }
                        .encode(&mut answer),
                        MessageKind::Choose => Choose::Tcp.encode(MessageKind::Ready, &mut answer),
                        _ => EngineMessage::Pong.encode(header.request, &mut answer),
                    }
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, heard)
}

/// Relays connections to `to`. Returns the address at which it accepts them.
async fn relay(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

async fn distrust(client: &Client) -> String {
    match read(client, fid(1), 0, 3).await {
        Err(ReadError::Unproved(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_has_not_proved_itself_is_sent_nothing() {
    for trust in [Trust::default(), with_key(&KEY)] {
        let (address, heard) = untrusted_engine(vec![Offer::Tcp]).await;
        let client = client(address, &Transport::ALL, trust);
        distrust(&client).await;
        assert_eq!(heard.lock()[..], [MessageKind::Hello]);
        let reason = client.distrust().expect("it says why");
        assert!(reason.contains("--engine"), "it says what to do: {reason}");
    }
    // An engine that the user has named is trusted.
    let (address, heard) = untrusted_engine(vec![Offer::Tcp]).await;
    let client = client(address, &Transport::ALL, Trust { named: true, ..Trust::default() });
    client.ping(soon()).await.unwrap();
    assert_eq!(heard.lock()[..], [MessageKind::Hello, MessageKind::Choose, MessageKind::Ping]);
    assert_eq!(client.distrust(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_connects_only_to_sockets_with_an_engine_s_name() {
    let name = format!("somebody-elses-{:032x}", rand::random::<u128>()).into_bytes();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let (address, _) = untrusted_engine(vec![Offer::Local { socket: name }]).await;
    let client = client(address, &[Transport::Local], Trust::default());
    read(&client, fid(1), 0, 3).await.unwrap_err();
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().expect_err("nobody has connected");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backlog_does_not_block_the_client() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
    let name = format!("rdma-engine-{:032x}", rand::random::<u128>()).into_bytes();
    let address = SocketAddrUnix::new_abstract_name(&name).unwrap();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut waiting = Vec::new();
    let full = loop {
        let one = socket();
        match rustix::net::connect(&one, &address) {
            Ok(()) => waiting.push(one),
            Err(error) => break error,
        }
    };
    assert_eq!(full, rustix::io::Errno::AGAIN);
    let (address, _) = untrusted_engine(vec![Offer::Local { socket: name }]).await;
    let trust = Trust { named: true, ..Trust::default() };
    let client = client(address, &[Transport::Local], trust);
    let error = tokio::task::spawn(async move { read(&client, fid(1), 0, 3).await.unwrap_err() });
    let error = tokio::time::timeout(Duration::from_secs(20), error).await.expect("it goes on");
    assert!(matches!(error.unwrap(), ReadError::Lost(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_s_secret_is_a_proof_at_the_engine_s_own_address() {
    let options = EngineOptions { proof: Some(KEY.clone()), ..EngineOptions::default() };
    let mut fixture = start(options, None).await;
    fixture.volume.put(1, COOKIE, b"one");
    let relayed = relay(fixture.address).await;
    for transport in BOTH {
        let client = client(fixture.address, &[transport], with_key(&KEY));
        let (bytes, delivered) = read(&client, fid(1), 0, 3).await.unwrap();
        assert_eq!((&bytes[..], delivered.transport), (&b"one"[..], transport));
    }
    let over_tcp = |address, trust| client(address, &[Transport::Tcp], trust);
    let other = distrust(&over_tcp(fixture.address, with_key(&OTHER))).await;
    assert!(other.contains("another key"), "{other}");
    // A relay that passes on the proof of a true engine is not that engine.
    let elsewhere = distrust(&over_tcp(relayed, with_key(&KEY))).await;
    assert!(elsewhere.contains("another address"), "{elsewhere}");
    distrust(&over_tcp(fixture.address, Trust::default())).await;
    // An engine without the secret cannot prove anything.
    let fixture = start(EngineOptions::default(), None).await;
    let without = distrust(&over_tcp(fixture.address, with_key(&KEY))).await;
    assert!(without.contains("does not prove"), "{without}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_same_host_the_user_is_a_proof_for_local_only() {
    let mut fixture = start(EngineOptions::default(), None).await;
    fixture.volume.put(1, COOKIE, b"one");
    let client = client(fixture.address, &[Transport::Tcp, Transport::Local], Trust::default());
    let (_, delivered) = read(&client, fid(1), 0, 3).await.unwrap();
    assert_eq!(delivered.transport, Transport::Local);
    assert_eq!(client.distrust(), None);
}
