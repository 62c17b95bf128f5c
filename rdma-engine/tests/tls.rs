//! Engine and client of a cluster whose `security.toml` has certificates; and peers that have
//! none, or those of another authority.

#[path = "verbs/volume.rs"]
mod volume;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rdma_engine::Refusal;
use rdma_engine::client::{self, Client, ReadError, ReadTarget};
use rdma_engine::metrics::Metrics;
use rdma_engine::protocol::Transport;
use rdma_engine::server::{Engine, EngineOptions};
use rdma_engine::settings::SecuritySettings;
use rdma_engine::store::Store;
use rdma_engine::tls;
use rustls::ClientConfig;
use rustls::crypto::ring;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::volume::{content, fid, write};

/// The deadline of every wait.
const DEADLINE: Duration = Duration::from_secs(20);

/// Lengths of the needles, whose keys begin with 1: in one piece, in several, and more than
/// sockets hold.
const LENGTHS: [usize; 3] = [100, 200_000, 5 << 20];

/// A cluster's authority, with a certificate for volume servers and one for clients.
struct Authority {
    files: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(files.path().join("ca"), issuer.pem()).unwrap();
        for name in ["volume", "client"] {
            let key = KeyPair::generate().unwrap();
            let certificate =
                CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
            std::fs::write(files.path().join(format!("{name}.cert")), certificate.pem()).unwrap();
            std::fs::write(files.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { files, issuer }
    }

    /// `security.toml` of a cluster that trusts `trusted` and shows the certificates of this
    /// authority.
    fn settings(&self, trusted: &Self) -> SecuritySettings<'static> {
        let of = |authority: &Self, name: &str| authority.files.path().join(name).display().to_string();
        let file = self.files.path().join("security.toml");
        let section = |name| {
            let (cert, key) = (of(self, &format!("{name}.cert")), of(self, &format!("{name}.key")));
            format!("[grpc.{name}]\ncert = \"{cert}\"\nkey = \"{key}\"\n")
        };
        let text =
            format!("[grpc]\nca = \"{}\"\n{}{}", of(trusted, "ca"), section("volume"), section("client"));
        std::fs::write(&file, text).unwrap();
        SecuritySettings::read(Some(&file), |_| None).unwrap()
    }

    /// A client's side, if it trusts `trusted`.
    fn client(&self, trusted: &Self) -> Option<Arc<ClientConfig>> {
        tls::grpc(&self.settings(trusted)).unwrap().map(|tls| tls.config())
    }

    /// A client that trusts this authority and has no certificate.
    fn without_certificate(&self) -> Arc<ClientConfig> {
        let member = self.client(self).unwrap();
        let mut config = ClientConfig::clone(&member);
        let none = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        config.client_auth_cert_resolver =
            none.with_root_certificates(roots).with_no_client_auth().client_auth_cert_resolver;
        Arc::new(config)
    }
}

/// An engine in this process.
struct Served {
    _volumes: TempDir,
    address: SocketAddr,
    metrics: Arc<Metrics>,
    engine: AbortHandle,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.engine.abort();
    }
}

/// Serves [`LENGTHS`]; if there is an authority, only to clients with its certificates.
async fn serve(authority: Option<&Authority>) -> Served {
    serve_many(authority, EngineOptions::default().sessions).await
}

/// As [`serve`], with at most `sessions` sessions at a time.
async fn serve_many(authority: Option<&Authority>, sessions: usize) -> Served {
    let volumes = tempfile::tempdir().unwrap();
    write(volumes.path(), &LENGTHS);
    let tls = authority.map(|authority| tls::engine(&authority.settings(authority)).unwrap().unwrap());
    let store = Arc::new(Store::new(vec![volumes.path().into()], None).unwrap());
    let metrics = Arc::new(Metrics::default());
    let options = EngineOptions { tls, sessions, ..EngineOptions::default() };
    let listen = "127.0.0.1:0".parse().unwrap();
    let engine = Engine::bind(listen, store, None, metrics.clone(), &options).await.unwrap();
    let address = engine.address().unwrap();
    let engine = tokio::spawn(engine.serve()).abort_handle();
    Served { _volumes: volumes, address, metrics, engine }
}

fn client(address: SocketAddr, transport: Transport, tls: Option<Arc<ClientConfig>>) -> Client {
    // Without TLS, an engine that was named.
    let trust = client::Trust { named: tls.is_none(), ..client::Trust::default() };
    let (transports, connect) = (vec![transport], DEADLINE);
    let options =
        client::ClientOptions { transports, connect, tls, trust, ..client::ClientOptions::default() };
    Client::new(address.to_string(), options)
}

/// Reads the needle of a key whole, and compares.
async fn read(client: &Client, key: u64) -> Result<Transport, ReadError> {
    let length = LENGTHS[key as usize - 1];
    let mut bytes = vec![0xee; length];
    let target = ReadTarget { fid: fid(key), offset: 0, token: None };
    let delivered = client.read(target, &mut bytes, Instant::now() + DEADLINE).await?;
    assert!(bytes == content(key, length) && delivered.verified);
    Ok(delivered.transport)
}

/// Relays connections to `engine`, and records all bytes that pass.
async fn recording_relay(engine: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    async fn pass(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        heard: Arc<Mutex<Vec<u8>>>,
    ) {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            heard.lock().extend_from_slice(&piece[..count]);
            if to.write_all(&piece[..count]).await.is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let all = heard.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(engine).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass(near_in, far_out, all.clone()));
            tokio::spawn(pass(far_in, near_out, all.clone()));
        }
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_cluster_read_under_tls() {
    let authority = Authority::new();
    let served = serve(Some(&authority)).await;
    for transport in [Transport::Tcp, Transport::Local] {
        let client = client(served.address, transport, authority.client(&authority));
        for key in 1..=LENGTHS.len() as u64 {
            assert_eq!(read(&client, key).await.unwrap(), transport);
        }
        let mut readers = JoinSet::new();
        for reader in 0..16u64 {
            let client = client.clone();
            readers.spawn(async move { read(&client, 1 + reader % LENGTHS.len() as u64).await });
        }
        while let Some(outcome) = readers.join_next().await {
            assert_eq!(outcome.unwrap().unwrap(), transport);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn needles_are_encrypted_on_the_wire() {
    let authority = Authority::new();
    let known = content(2, LENGTHS[1]);
    let contains = |heard: &[u8]| heard.windows(64).any(|window| window == &known[..64]);
    for (engines, is_heard) in [(None, true), (Some(&authority), false)] {
        let served = serve(engines).await;
        let (address, heard) = recording_relay(served.address).await;
        let tls = engines.and_then(|authority| authority.client(authority));
        read(&client(address, Transport::Tcp, tls), 2).await.unwrap();
        let heard = heard.lock();
        assert!(heard.len() > LENGTHS[1]);
        assert_eq!(contains(&heard), is_heard);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_another_authority_and_none_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let served = serve(Some(&ours)).await;
    for (tls, reason) in [
        // The client does not trust the engine; the engine does not trust the client; there is no
        // certificate.
        (theirs.client(&theirs), "invalid peer certificate"),
        (theirs.client(&ours), "received fatal alert"),
        (Some(ours.without_certificate()), "received fatal alert"),
    ] {
        match read(&client(served.address, Transport::Tcp, tls), 1).await {
            Err(ReadError::Tls(why)) => assert!(why.contains("TLS") && why.contains(reason), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    // It goes on serving its own clients.
    read(&client(served.address, Transport::Tcp, ours.client(&ours)), 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_without_tls_learns_the_reason() {
    let authority = Authority::new();
    let under_tls = serve(Some(&authority)).await;
    let refused = read(&client(under_tls.address, Transport::Tcp, None), 1).await.unwrap_err();
    assert_eq!(refused, ReadError::Refused(Refusal::TlsNeeded));
    assert!(under_tls.metrics.exposition().finish().contains("reason=\"tls_needed\"} 1"));

    let plain = serve(None).await;
    let tls = authority.client(&authority);
    match read(&client(plain.address, Transport::Tcp, tls), 1).await {
        Err(ReadError::Tls(why)) => assert!(why.contains("the engine does not speak TLS"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(plain.metrics.exposition().finish().contains("reason=\"no_tls\"} 1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_speak_neither_protocol_are_disconnected() {
    let authority = Authority::new();
    let served = serve(Some(&authority)).await;
    // A silent peer is disconnected too, after a while.
    for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16; 600], &[0xff; 5], b""] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // The end may be a reset, because the engine has not read everything.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("it hangs up");
    }
    read(&client(served.address, Transport::Tcp, authority.client(&authority)), 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_engine_hangs_up() {
    let authority = Authority::new();
    let served = serve_many(Some(&authority), 1).await;
    let client = || client(served.address, Transport::Tcp, authority.client(&authority));
    let (first, second) = (client(), client());
    read(&first, 1).await.unwrap();
    assert!(matches!(read(&second, 1).await, Err(ReadError::Lost(_))));
    assert!(served.metrics.exposition().finish().contains("reason=\"too_many_sessions\"} 1"));
    read(&first, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_ends_ends_its_connections() {
    let authority = Authority::new();
    let served = serve(Some(&authority)).await;
    let client = client(served.address, Transport::Tcp, authority.client(&authority));
    read(&client, 3).await.unwrap();
    let reading = {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = read(&client, 3).await {
                    return error;
                }
            }
        })
    };
    drop(served);
    let error = timeout(DEADLINE, reading).await.expect("an error in time").unwrap();
    // The end of the connection may be noticed while a read ends well: then no read was lost.
    assert!(matches!(error, ReadError::Unavailable(_) | ReadError::Lost(_)), "{error:?}");
}
