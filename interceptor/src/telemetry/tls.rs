//! TLS of the status API: for clients of other hosts. A client on this host may go on without, as
//! what it sends stays here; so the commands of this host need no certificate.
//!
//! The first byte of a connection tells which it is: TLS begins with a handshake record, a request
//! of HTTP with a letter. Who comes from elsewhere without TLS is told what to write, and gets
//! nothing else.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::serve::Listener;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::RwLock;
use rdma_engine::bounded_listener::{BoundedListener, BoundedStream};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::peer::Peer;

/// The first byte of a connection under TLS: that its first record is of the handshake
/// (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// What a client of another host is told that does not encrypt.
pub(crate) const TLS_NEEDED: &str = "from another host this API is reached by TLS: write https:// for it\n";

/// How often more of a refused request is read. Heads of requests are shorter than that.
const MAX_REFUSED_READS: usize = 64;

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
    #[error("--status-tls-cert {} and --status-tls-key {} do not make TLS: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
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
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| failed("cert", certificate, error.to_string()))?;
        if chain.is_empty() {
            return Err(failed("cert", certificate, "there is no certificate in it".into()));
        }
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| failed("key", key, error.to_string()))?;
        let pair = CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|source| {
            CertificateError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source }
        })?;
        Ok(Self(Arc::new(CurrentCertificate(RwLock::new(Arc::new(pair))))))
    }

    /// From the next handshake on, `newer` is shown.
    pub fn renew(&self, newer: &Self) {
        let pair = newer.0.0.read().clone();
        *self.0.0.write() = pair;
    }

    fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.0.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A session that was resumed would go on with a certificate that has been taken back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
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

/// A connection that requests can be read from.
type Opened = Option<(StatusStream, SocketAddr)>;

/// The two kinds of connections of the status API.
pub(super) type StatusStream = Either<BoundedStream, TlsStream<BoundedStream>>;

/// The connections of the status API: bounded in number, and encrypted where they have to be.
pub(super) struct StatusListener {
    connections: BoundedListener,
    acceptor: Option<TlsAcceptor>,
    /// Connections of which it is not known yet what they are. There are no more of them than the
    /// bounded listener lets be open.
    beginning: FuturesUnordered<BoxFuture<'static, Opened>>,
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
        let acceptor = certificate.map(StatusCertificate::acceptor).transpose()?;
        Ok(Self { connections, acceptor, beginning: FuturesUnordered::new() })
    }
}

impl Listener for StatusListener {
    type Io = StatusStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (StatusStream, SocketAddr) {
        loop {
            tokio::select! {
                (stream, address) = self.connections.accept() => match &self.acceptor {
                    None => return (Either::Left(stream), address),
                    Some(acceptor) => self.beginning.push(Box::pin(begin(acceptor.clone(), stream, address))),
                },
                Some(opened) = self.beginning.next() => {
                    if let Some(opened) = opened {
                        return opened;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.connections.local_addr()
    }
}

/// Finds out what a connection is, and shakes hands if it is under TLS. `None` if nothing can be
/// asked over it.
async fn begin(acceptor: TlsAcceptor, mut stream: BoundedStream, address: SocketAddr) -> Opened {
    let first = stream.peek().await.ok()?;
    if first == Some(HANDSHAKE_RECORD) {
        let secure = acceptor.accept(stream).await;
        return match secure {
            Ok(secure) => Some((Either::Right(secure), address)),
            Err(error) => {
                tracing::debug!(%address, %error, "no TLS with a client of the status API");
                None
            }
        };
    }
    if Peer::of(&stream, address).is_local() {
        return Some((Either::Left(stream), address));
    }
    refuse(stream).await.ok()?;
    None
}

/// Answers a client that has to use TLS.
async fn refuse(mut stream: BoundedStream) -> io::Result<()> {
    let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    let length = TLS_NEEDED.len();
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{TLS_NEEDED}").as_bytes()).await?;
    stream.shutdown().await?;
    // What was sent and not read would make the kernel reset the connection, and lose the answer.
    let mut rest = [0; 1024];
    for _ in 0..MAX_REFUSED_READS {
        if stream.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use axum::Router;
    use axum::routing::get;
    use rcgen::{CertifiedKey as Issued, generate_simple_self_signed};
    use rustls::{ClientConfig, RootCertStore};
    use tempfile::TempDir;
    use tokio::io::{AsyncRead, AsyncWrite};
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
        // Who connects and says nothing, or breaks off, is in nobody's way.
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
    async fn clients_of_other_hosts_must_encrypt() {
        let authority = Authority::new();
        let acceptor = authority.certificate().acceptor().unwrap();
        let elsewhere = "192.0.2.7:1".parse().unwrap();
        let (mut connections, address) = bounded().await;

        let client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = connections.accept().await;
        let (answer, opened) = tokio::join!(ask(client), begin(acceptor.clone(), stream, elsewhere));
        let answer = answer.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with(TLS_NEEDED), "{answer}");
        assert!(opened.is_none());

        let client = TcpStream::connect(address).await.unwrap();
        let (stream, _) = connections.accept().await;
        let shaken = authority.client.connect("localhost".try_into().unwrap(), client);
        let (client, opened) = tokio::join!(shaken, begin(acceptor, stream, elsewhere));
        assert!(client.is_ok() && matches!(opened, Some((Either::Right(_), from)) if from == elsewhere));
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
