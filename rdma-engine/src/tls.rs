//! TLS as a cluster's `security.toml` configures it: for clients (gRPC, engines and HTTP) and for
//! engines.
//!
//! With gRPC and engines it is mutual: both sides show a certificate of the cluster's authority. A
//! file that is named and cannot be used is an error, never a silent fall-back to plain text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::renewable::TlsClient;
use crate::settings::{SecuritySettings, SettingsError};

/// Why TLS cannot be set up as `security.toml` configures it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key has a value of the wrong type.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Only one of a certificate and its key is given.
    #[error("{origin}: `{present}` is set but `{missing}` is not; set both or neither")]
    HalfPair {
        /// The file that was read.
        origin: String,
        /// The key that is there.
        present: String,
        /// The key that is not.
        missing: String,
    },
    /// A certificate, key or list of authorities that a key names cannot be loaded.
    #[error("{origin}: `{key}` names {}, which cannot be used: {reason}", path.display())]
    Pem {
        /// The file that names it.
        origin: String,
        /// The key that names it.
        key: String,
        /// The PEM file.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// Certificate and key are readable but do not make a TLS client or server.
    #[error(
        "{origin}: `{section}` does not make TLS: {source}; check that key and certificate belong together"
    )]
    Tls {
        /// The file that was read.
        origin: String,
        /// The section, dotted.
        section: &'static str,
        /// The TLS library's error.
        source: rustls::Error,
    },
    /// A key asks for a check that engines cannot do.
    #[error(
        "{origin}: `{key}` is set, and an engine cannot check whom a certificate names; give it a file without that key (--security)"
    )]
    Names {
        /// The file that was read.
        origin: String,
        /// The key.
        key: String,
    },
}

/// The TLS client for gRPC and engines: `[grpc] ca` with `[grpc.client] cert, key`, or the newer
/// names `client_cert, client_key`. As with `weed`, all three turn mutual TLS on, and without one
/// of them gRPC is plain text. Host names are not compared.
///
/// # Errors
/// See [`TlsError`].
pub fn grpc(settings: &SecuritySettings<'_>) -> Result<Option<TlsClient>, TlsError> {
    let newer = identity_paths(settings, "grpc.client.client_cert", "grpc.client.client_key")?;
    let identity = match newer {
        Some(newer) => Some(newer),
        None => identity_paths(settings, "grpc.client.cert", "grpc.client.key")?,
    };
    let Some((identity, roots)) = mutual(settings, "grpc.client", identity)? else { return Ok(None) };
    client(settings, "grpc.client", Verifier::Chain(roots), Some(identity), b"h2").map(Some)
}

/// Keys by which `weed` restricts the names in certificates.
const NAME_RESTRICTIONS: [&str; 2] = ["grpc.allowed_wildcard_domain", "grpc.volume.allowed_commonNames"];

/// The TLS server of an engine: `[grpc] ca` with `[grpc.volume] cert, key`, the files of the
/// volume server on the same host. Clients must have a certificate of the same authority.
///
/// # Errors
/// See [`TlsError`].
pub fn engine(settings: &SecuritySettings<'_>) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let section = "grpc.volume";
    let identity = identity_paths(settings, "grpc.volume.cert", "grpc.volume.key")?;
    let Some((identity, roots)) = mutual(settings, section, identity)? else { return Ok(None) };
    let origin = settings.origin();
    for key in NAME_RESTRICTIONS {
        if settings.text(key)?.is_some() {
            return Err(TlsError::Names { origin: origin.to_owned(), key: key.to_owned() });
        }
    }
    let tls_error = |source| TlsError::Tls { origin: origin.to_owned(), section, source };
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| tls_error(rustls::Error::General(error.to_string())))?;
    let (chain, key) = identity.load(settings)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(tls_error)?;
    Ok(Some(Arc::new(config)))
}

/// The identity with the authorities of `[grpc]`, if there are both; without one of them gRPC is
/// plain text.
fn mutual(
    settings: &SecuritySettings<'_>,
    section: &str,
    identity: Option<TlsIdentity>,
) -> Result<Option<(TlsIdentity, RootCertStore)>, TlsError> {
    let Some(identity) = identity else { return Ok(None) };
    let Some(ca) = settings.text("grpc.ca")? else {
        tracing::warn!(
            "{}: `{section}` names a certificate but `grpc.ca` is not set: it is not used, as with weed",
            settings.origin()
        );
        return Ok(None);
    };
    Ok(Some((identity, roots(settings, "grpc.ca", &ca)?)))
}

/// The TLS client for HTTP: `[https.client] enabled, ca, cert, key, insecure_skip_verify`.
///
/// # Errors
/// See [`TlsError`].
pub fn https(settings: &SecuritySettings<'_>) -> Result<Option<TlsClient>, TlsError> {
    if !settings.flag("https.client.enabled")? {
        return Ok(None);
    }
    let identity = identity_paths(settings, "https.client.cert", "https.client.key")?;
    let ca = settings.text("https.client.ca")?;
    let verifier = if settings.flag("https.client.insecure_skip_verify")? {
        Verifier::Nothing
    } else {
        Verifier::Full(match ca {
            Some(ca) => roots(settings, "https.client.ca", &ca)?,
            None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        })
    };
    client(settings, "https.client", verifier, identity, b"http/1.1").map(Some)
}

/// How a server's certificate is verified.
enum Verifier {
    /// A chain to one of these authorities, and the right host name.
    Full(RootCertStore),
    /// A chain to one of these authorities.
    Chain(RootCertStore),
    /// Only that the server has the key of its certificate.
    Nothing,
}

/// A certificate and its key: for each the key in the configuration, and the file that it names.
struct TlsIdentity {
    cert: (String, String),
    key: (String, String),
}

impl TlsIdentity {
    fn load(
        &self,
        settings: &SecuritySettings<'_>,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain = certificates(settings, &self.cert.0, &self.cert.1)?;
        Ok((chain, private_key(settings, &self.key.0, &self.key.1)?))
    }
}

fn identity_paths(
    settings: &SecuritySettings<'_>,
    cert: &str,
    key: &str,
) -> Result<Option<TlsIdentity>, TlsError> {
    let half = |present: &str, missing: &str| TlsError::HalfPair {
        origin: settings.origin().to_owned(),
        present: present.to_owned(),
        missing: missing.to_owned(),
    };
    match (settings.text(cert)?, settings.text(key)?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(half(cert, key)),
        (None, Some(_)) => Err(half(key, cert)),
        (Some(cert_path), Some(key_path)) => {
            Ok(Some(TlsIdentity { cert: (cert.to_owned(), cert_path), key: (key.to_owned(), key_path) }))
        }
    }
}

fn client(
    settings: &SecuritySettings<'_>,
    section: &'static str,
    verifier: Verifier,
    identity: Option<TlsIdentity>,
    alpn: &[u8],
) -> Result<TlsClient, TlsError> {
    let tls_error = |source| TlsError::Tls { origin: settings.origin().to_owned(), section, source };
    let provider = Arc::new(ring::default_provider());
    let nameless = |roots| Arc::new(NamelessVerifier { roots, provider: provider.clone() });
    let trust: Arc<dyn ServerCertVerifier> = match verifier {
        Verifier::Full(roots) => {
            let builder = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone());
            builder.build().map_err(|error| tls_error(rustls::Error::General(error.to_string())))?
        }
        Verifier::Chain(roots) => nameless(Some(roots)),
        Verifier::Nothing => nameless(None),
    };
    let identity = match identity {
        None => None,
        Some(identity) => {
            let (chain, key) = identity.load(settings)?;
            Some(Arc::new(CertifiedKey::from_der(chain, key, &provider).map_err(tls_error)?))
        }
    };
    TlsClient::new(provider, trust, identity, alpn).map_err(tls_error)
}

fn pem_error(settings: &SecuritySettings<'_>, key: &str, path: &str, reason: impl ToString) -> TlsError {
    TlsError::Pem {
        origin: settings.origin().to_owned(),
        key: key.to_owned(),
        path: Path::new(path).into(),
        reason: reason.to_string(),
    }
}

fn certificates(
    settings: &SecuritySettings<'_>,
    key: &str,
    path: &str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem_error(settings, key, path, error))?;
    if chain.is_empty() {
        return Err(pem_error(settings, key, path, "there is no certificate in it"));
    }
    Ok(chain)
}

fn private_key(
    settings: &SecuritySettings<'_>,
    key: &str,
    path: &str,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(settings, key, path, error))
}

fn roots(settings: &SecuritySettings<'_>, key: &str, path: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(settings, key, path)? {
        roots.add(certificate).map_err(|error| pem_error(settings, key, path, error))?;
    }
    Ok(roots)
}

/// Verifies a server without its host name: certificates of a cluster are made per role, not per
/// host.
#[derive(Debug)]
struct NamelessVerifier {
    /// The authorities to which the chain must lead; without them any certificate is accepted.
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NamelessVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{ClientConnection, ServerConnection};
    use tempfile::TempDir;

    /// An authority, with a certificate for the host `server` and one for a client, as files.
    struct Authority {
        directory: TempDir,
        server: Arc<ServerConfig>,
    }

    impl Authority {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let ca = params.self_signed(&key).unwrap();
            let issuer = Issuer::new(params, key);
            let issue = |name: &str| {
                let key = KeyPair::generate().unwrap();
                let params = CertificateParams::new([name.to_owned()]).unwrap();
                (params.signed_by(&key, &issuer).unwrap(), key)
            };
            let (client, client_key) = issue("client");
            for (file, pem) in [("ca", ca.pem()), ("cert", client.pem()), ("key", client_key.serialize_pem())]
            {
                std::fs::write(directory.path().join(file), pem).unwrap();
            }
            let (server, server_key) = issue("server");
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).unwrap();
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            let server = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
                .with_single_cert(vec![server.der().clone()], server_key.into())
                .unwrap();
            Self { directory, server: Arc::new(server) }
        }

        /// The client of this configuration; `$` in a value stands for the authority's directory.
        fn client(
            &self,
            make: fn(&SecuritySettings<'_>) -> Result<Option<TlsClient>, TlsError>,
            keys: &[(&str, &str)],
        ) -> Option<TlsClient> {
            let find = |name: &str| {
                let value = keys.iter().find(|(key, _)| *key == name)?.1;
                Some(value.replace('$', self.directory.path().to_str().unwrap()))
            };
            make(&SecuritySettings::read(None, find).unwrap()).unwrap()
        }
    }

    fn handshake(client: &TlsClient, host: &str, server: &Authority) -> Result<(), rustls::Error> {
        let mut client = ClientConnection::new(client.config(), host.to_owned().try_into().unwrap())?;
        let mut server = ServerConnection::new(server.server.clone())?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    const GRPC: [(&str, &str); 3] =
        [("WEED_GRPC_CA", "$/ca"), ("WEED_GRPC_CLIENT_CERT", "$/cert"), ("WEED_GRPC_CLIENT_KEY", "$/key")];

    const HTTPS: [(&str, &str); 4] = [
        ("WEED_HTTPS_CLIENT_ENABLED", "true"),
        ("WEED_HTTPS_CLIENT_CA", "$/ca"),
        ("WEED_HTTPS_CLIENT_CERT", "$/cert"),
        ("WEED_HTTPS_CLIENT_KEY", "$/key"),
    ];

    #[test]
    fn grpc_trusts_the_authority_whatever_the_host_is_called() {
        let (own, other) = (Authority::new(), Authority::new());
        let client = own.client(grpc, &GRPC).unwrap();
        handshake(&client, "elsewhere", &own).unwrap();
        assert!(matches!(handshake(&client, "server", &other), Err(rustls::Error::InvalidCertificate(_))));
    }

    #[test]
    fn grpc_takes_the_newer_names_and_needs_all_three_files() {
        let own = Authority::new();
        let newer = [
            ("WEED_GRPC_CA", "$/ca"),
            ("WEED_GRPC_CLIENT_CLIENT_CERT", "$/cert"),
            ("WEED_GRPC_CLIENT_CLIENT_KEY", "$/key"),
        ];
        handshake(&own.client(grpc, &newer).unwrap(), "elsewhere", &own).unwrap();
        assert!(own.client(grpc, &GRPC[..1]).is_none());
        assert!(own.client(grpc, &GRPC[1..]).is_none());
    }

    #[test]
    fn https_trusts_the_authority_and_the_right_host() {
        let (own, other) = (Authority::new(), Authority::new());
        let client = own.client(https, &HTTPS).unwrap();
        handshake(&client, "server", &own).unwrap();
        for (host, server) in [("elsewhere", &own), ("server", &other)] {
            let outcome = handshake(&client, host, server);
            assert!(matches!(outcome, Err(rustls::Error::InvalidCertificate(_))), "{outcome:?}");
        }
    }

    #[test]
    fn a_client_that_is_renewed_has_the_trust_and_the_certificate_of_the_other() {
        let (own, other) = (Authority::new(), Authority::new());
        for [client, newer] in [
            [&own, &other].map(|of| of.client(grpc, &GRPC)),
            [&own, &other].map(|of| of.client(https, &HTTPS)),
        ] {
            let client = client.unwrap();
            let config = client.config();
            client.renew(&newer.unwrap());
            handshake(&client, "server", &other).unwrap();
            assert!(handshake(&client, "server", &own).is_err());
            assert!(Arc::ptr_eq(&config, &client.config()), "whoever has it need not hear of it");
        }
    }

    #[test]
    fn https_trusts_any_server_if_configured_so() {
        let own = Authority::new();
        let keys = [&HTTPS[..1], &HTTPS[2..], &[("WEED_HTTPS_CLIENT_INSECURE_SKIP_VERIFY", "true")]].concat();
        handshake(&own.client(https, &keys).unwrap(), "elsewhere", &own).unwrap();
    }

    #[test]
    fn an_engine_accepts_clients_of_the_same_authority() {
        let (own, other) = (Authority::new(), Authority::new());
        let keys = [
            ("WEED_GRPC_CA", "$/ca"),
            ("WEED_GRPC_VOLUME_CERT", "$/cert"),
            ("WEED_GRPC_VOLUME_KEY", "$/key"),
            ("WEED_GRPC_ALLOWED_WILDCARD_DOMAIN", ".example"),
        ];
        let make = |keys: &[(&str, &str)]| {
            let find = |name: &str| {
                let value = keys.iter().find(|(key, _)| *key == name)?.1;
                Some(value.replace('$', own.directory.path().to_str().unwrap()))
            };
            engine(&SecuritySettings::read(None, find).unwrap())
        };
        let served =
            Authority { server: make(&keys[..3]).unwrap().unwrap(), directory: tempfile::tempdir().unwrap() };
        handshake(&own.client(grpc, &GRPC).unwrap(), "elsewhere", &served).unwrap();
        assert!(handshake(&other.client(grpc, &GRPC).unwrap(), "elsewhere", &served).is_err());
        assert!(make(&keys[1..3]).unwrap().is_none() && make(&keys[..1]).unwrap().is_none());
        let error = make(&keys).unwrap_err().to_string();
        assert!(error.contains("grpc.allowed_wildcard_domain"), "{error}");
    }
}
