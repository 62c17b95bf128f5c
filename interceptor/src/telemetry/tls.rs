//! TLS of the status API: for clients of other hosts. A client on this host may go on without, as
//! what it sends stays here; so the commands of this host need no certificate.
//!
//! The first byte of a connection tells which it is: TLS begins with a handshake record, a request
//! of HTTP with a letter. [`access`](super::access) refuses requests that come from elsewhere
//! without TLS.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::ready;

use axum::serve::Listener;
use daemon::settings_file;
use parking_lot::RwLock;
use rdma_engine::bounded_listener::{BoundedListener, BoundedStream};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::PollSemaphore;

use crate::vital::contained_task;

/// The first byte of a connection under TLS: that its first record is of the handshake
/// (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// What a client of another host is told that does not encrypt.
pub(crate) const TLS_NEEDED: &str = "from another host this API is reached by TLS: write https:// for it\n";

/// Connections that may wait for the server to take them.
const QUEUED_CONNECTIONS: usize = 16;

/// The certificate of the status API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or holds something else.
    #[error("cannot use --status-tls-{kind} {}: {reason}", path.display())]
    File {
        /// `cert` or `key`.
        kind: &'static str,
        /// What was named.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Both can be read, and do not belong together or are of a kind that is not known.
    #[error(
        "--status-tls-cert {} and --status-tls-key {} do not make TLS: {error}; they must belong together, and the key be \
         one of RSA, ECDSA (P-256, P-384) or Ed25519",
        certificate.display(), key.display()
    )]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// What the TLS library says.
        error: rustls::Error,
    },
}

/// The certificates in a PEM file, one at least.
///
/// # Errors
/// Why there are none.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = settings_file::read(path).map_err(|error| error.to_string())?;
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| error.to_string())?;
    if certificates.is_empty() { Err("there is no certificate in it".into()) } else { Ok(certificates) }
}

/// The certificate that the status API shows. All copies are renewed together.
#[derive(Clone)]
pub struct StatusCertificate(Arc<CurrentCertificate>);

struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl StatusCertificate {
    /// Reads a chain of certificates, that of the server first, and the key of the first one. Both
    /// are PEM.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, CertificateError> {
        let failed = |kind, path: &Path, reason: String| CertificateError::File {
            kind,
            path: path.to_owned(),
            reason,
        };
        let chain = certificates(certificate).map_err(|reason| failed("cert", certificate, reason))?;
        let failed = |reason| failed("key", key, reason);
        let text = settings_file::read(key).map_err(|error| failed(error.to_string()))?;
        if text.contains("ENCRYPTED") {
            return Err(failed("it is encrypted: give the key without a passphrase".into()));
        }
        let secret =
            PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let pair = CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|error| {
            CertificateError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), error }
        })?;
        Ok(Self(Arc::new(CurrentCertificate(RwLock::new(Arc::new(pair))))))
    }

    /// From the next handshake on, `newer` is shown.
    pub fn renew(&self, newer: &Self) {
        let pair = newer.0.0.read().clone();
        *self.0.0.write() = pair;
    }

    fn server(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.0.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A session that was resumed would go on with a certificate that has been taken back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl fmt::Debug for CurrentCertificate {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentCertificate")
    }
}

/// The two kinds of connections of the status API.
pub(super) type StatusStream = Either<BoundedStream, TlsStream<BoundedStream>>;

/// A connection over which requests can come, and where from.
type OpenedConnection = (StatusStream, SocketAddr);

/// The connections of the status API, bounded in number.
pub(super) struct StatusListener {
    connections: BoundedListener,
    handshakes: Option<Arc<Handshakes>>,
    /// Both ends of a queue of connections of which it is known what they are.
    opened: (mpsc::Sender<OpenedConnection>, mpsc::Receiver<OpenedConnection>),
}

/// What handshakes need.
struct Handshakes {
    config: Arc<ServerConfig>,
    /// A signature takes milliseconds of a CPU, and any client can ask for one. One is made at a
    /// time, so that reads go on.
    signing: Arc<Semaphore>,
}

impl StatusListener {
    /// Takes connections from `connections`; without a `certificate`, none is encrypted.
    ///
    /// # Errors
    /// What the TLS library says of the certificate.
    pub(super) fn new(
        connections: BoundedListener,
        certificate: Option<&StatusCertificate>,
    ) -> Result<Self, rustls::Error> {
        let config = certificate.map(StatusCertificate::server).transpose()?;
        let handshakes =
            config.map(|config| Arc::new(Handshakes { config, signing: Arc::new(Semaphore::new(1)) }));
        Ok(Self { connections, handshakes, opened: mpsc::channel(QUEUED_CONNECTIONS) })
    }
}

impl Listener for StatusListener {
    type Io = StatusStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> OpenedConnection {
        loop {
            tokio::select! {
                (stream, address) = self.connections.accept() => {
                    let Some(handshakes) = &self.handshakes else { return (Either::Left(stream), address) };
                    let (handshakes, opened) = (handshakes.clone(), self.opened.0.clone());
                    tokio::spawn(contained_task(async move {
                        match handshakes.begin(stream).await {
                            // Fails if the daemon ends.
                            Ok(Some(stream)) => _ = opened.send((stream, address)).await,
                            Ok(None) => {}
                            Err(error) => {
                                tracing::debug!(%address, %error, "no TLS with a client of the status API");
                            }
                        }
                    }));
                }
                Some(opened) = self.opened.1.recv() => return opened,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.connections.local_addr()
    }
}

impl Handshakes {
    /// Finds out what a connection is, and shakes hands if it is under TLS. `None` if the
    /// connection had to make room.
    async fn begin(&self, mut stream: BoundedStream) -> io::Result<Option<StatusStream>> {
        if stream.peek().await? != Some(HANDSHAKE_RECORD) {
            return Ok(Some(Either::Left(stream)));
        }
        let mut hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let turn = tokio::select! {
            turn = self.signing.clone().acquire_owned() => turn.ok(),
            // Without this, any number of them could wait.
            () = hello.io.replaced() => return Ok(None),
        };
        let mut handshake = Box::pin(hello.into_stream(self.config.clone()));
        // Each time the handshake goes on, it may be to sign.
        let mut turns = PollSemaphore::new(self.signing.clone());
        let mut first = Some(turn);
        let secure = poll_fn(|context| {
            let turn = match first.take() {
                Some(turn) => turn,
                None => ready!(turns.poll_acquire(context)),
            };
            let polled = handshake.as_mut().poll(context);
            drop(turn);
            polled
        });
        let secure = secure.await;
        Ok(Some(Either::Right(secure?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use rcgen::{CertifiedKey as Issued, generate_simple_self_signed};
    use rustls::{ClientConfig, RootCertStore};
    use tempfile::TempDir;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsConnector;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

    /// A certificate for `localhost` in files, and a client that trusts it.
    struct Authority {
        directory: TempDir,
        client: TlsConnector,
    }

    impl Authority {
        fn new() -> Self {
            let Issued { cert, signing_key } = generate_simple_self_signed(["localhost".into()]).unwrap();
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("cert"), cert.pem()).unwrap();
            fs::write(directory.path().join("key"), signing_key.serialize_pem()).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            Self { directory, client: TlsConnector::from(Arc::new(config)) }
        }

        fn certificate(&self) -> StatusCertificate {
            let at = |name: &str| self.directory.path().join(name);
            StatusCertificate::read(&at("cert"), &at("key")).unwrap()
        }

        async fn asks(&self, server: SocketAddr) -> io::Result<String> {
            let stream = TcpStream::connect(server).await?;
            ask(self.client.connect("localhost".try_into().unwrap(), stream).await?).await
        }
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<String> {
        stream.write_all(REQUEST).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn bounded() -> (BoundedListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (BoundedListener::new(listener), address)
    }

    async fn served(certificate: &StatusCertificate) -> SocketAddr {
        let (connections, address) = bounded().await;
        let listener = StatusListener::new(connections, Some(certificate)).unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn clients_of_this_host_may_encrypt_and_need_not() {
        let authority = Authority::new();
        let server = served(&authority.certificate()).await;
        // A client that is silent or breaks off is in no other client's way.
        let silent = TcpStream::connect(server).await.unwrap();
        let mut broken = TcpStream::connect(server).await.unwrap();
        broken.write_all(&[HANDSHAKE_RECORD, 3, 1, 0, 2, b'?', b'?']).await.unwrap();
        for answer in [ask(TcpStream::connect(server).await.unwrap()).await, authority.asks(server).await] {
            let answer = answer.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        }
        assert!(Authority::new().asks(server).await.is_err(), "another certificate is none of its");
        drop(silent);
    }

    #[tokio::test]
    async fn whoever_asks_for_signatures_keeps_nobody_out() {
        let authority = Authority::new();
        let certificate = authority.certificate();
        let (mut connections, address) = bounded().await;
        let handshakes =
            Handshakes { config: certificate.server().unwrap(), signing: Arc::new(Semaphore::new(0)) };
        let client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = connections.accept().await;
        let asking = authority.client.connect("localhost".try_into().unwrap(), client);
        let begun = handshakes.begin(stream);
        tokio::pin!(asking, begun);
        // The client's turn never comes, until its connection has to make room.
        let waiting =
            tokio::time::timeout(Duration::from_millis(50), async { tokio::join!(asking, &mut begun) });
        assert!(waiting.await.is_err());
        drop(connections);
        assert!(matches!(begun.await, Ok(None)));
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_from_then_on() {
        let (before, after) = (Authority::new(), Authority::new());
        let certificate = before.certificate();
        let server = served(&certificate).await;
        before.asks(server).await.unwrap();
        certificate.renew(&after.certificate());
        after.asks(server).await.unwrap();
        assert!(before.asks(server).await.is_err());
    }

    #[test]
    fn files_that_make_no_tls_are_named_with_their_option() {
        let (one, other) = (Authority::new(), Authority::new());
        let at = |of: &Authority, name: &str| of.directory.path().join(name);
        let empty = at(&one, "empty");
        fs::write(&empty, "").unwrap();
        let (certificate, key) = (at(&one, "cert"), at(&one, "key"));
        for (certificate, key, told) in [
            (&empty, &key, "--status-tls-cert"),
            (&at(&one, "missing"), &key, "--status-tls-cert"),
            (&certificate, &empty, "--status-tls-key"),
            (&certificate, &certificate, "--status-tls-key"),
            (&certificate, &at(&other, "key"), "do not make TLS"),
        ] {
            let error = StatusCertificate::read(certificate, key).err().unwrap().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
