//! The two TLS client configurations of a cluster: gRPC and HTTP.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::SecurityError;
use super::settings::Settings;

/// `[grpc] ca` with `[grpc.client] cert, key`, or the newer names `client_cert, client_key`. As `weed` does it, all three
/// turn mutual TLS on, and without one of them gRPC is plaintext.
pub(super) fn grpc(settings: &Settings<'_>) -> Result<Option<Arc<ClientConfig>>, SecurityError> {
    let newer = identity_paths(settings, "grpc.client.client_cert", "grpc.client.client_key")?;
    let identity = match newer {
        Some(newer) => Some(newer),
        None => identity_paths(settings, "grpc.client.cert", "grpc.client.key")?,
    };
    let (identity, ca) = match (identity, settings.text("grpc.ca")?) {
        (Some(identity), Some(ca)) => (identity, ca),
        (None, _) => return Ok(None),
        (Some(_), None) => {
            tracing::warn!(
                "{}: `grpc.client` names a certificate but `grpc.ca` is not set: gRPC is plaintext, as with weed",
                settings.origin()
            );
            return Ok(None);
        }
    };
    let verifier = Verifier::Chain(roots(settings, "grpc.ca", &ca)?);
    client(settings, "grpc.client", verifier, Some(identity), b"h2").map(Some)
}

/// `[https.client] enabled, ca, cert, key, insecure_skip_verify`.
pub(super) fn https(settings: &Settings<'_>) -> Result<Option<Arc<ClientConfig>>, SecurityError> {
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

/// What is asked of a server's certificate.
enum Verifier {
    /// A chain to one of these authorities, and the right host name.
    Full(RootCertStore),
    /// A chain to one of these authorities.
    Chain(RootCertStore),
    /// Only that it has the key that belongs to it.
    Nothing,
}

/// A certificate and its key: keys of the configuration, and the files they name.
struct Identity {
    cert: (String, String),
    key: (String, String),
}

fn identity_paths(settings: &Settings<'_>, cert: &str, key: &str) -> Result<Option<Identity>, SecurityError> {
    let half = |present: &str, missing: &str| SecurityError::HalfPair {
        origin: settings.origin().to_owned(),
        present: present.to_owned(),
        missing: missing.to_owned(),
    };
    match (settings.text(cert)?, settings.text(key)?) {
        (None, None) => Ok(None),
        (Some(_), None) => Err(half(cert, key)),
        (None, Some(_)) => Err(half(key, cert)),
        (Some(cert_path), Some(key_path)) => {
            Ok(Some(Identity { cert: (cert.to_owned(), cert_path), key: (key.to_owned(), key_path) }))
        }
    }
}

fn client(
    settings: &Settings<'_>,
    section: &'static str,
    verifier: Verifier,
    identity: Option<Identity>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, SecurityError> {
    let tls_error = |source| SecurityError::Tls { origin: settings.origin().to_owned(), section, source };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?;
    let custom = |roots| Arc::new(NamelessVerifier { roots, provider });
    let builder = match verifier {
        Verifier::Full(roots) => builder.with_root_certificates(roots),
        Verifier::Chain(roots) => builder.dangerous().with_custom_certificate_verifier(custom(Some(roots))),
        Verifier::Nothing => builder.dangerous().with_custom_certificate_verifier(custom(None)),
    };
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = certificates(settings, &identity.cert.0, &identity.cert.1)?;
            let key = private_key(settings, &identity.key.0, &identity.key.1)?;
            builder.with_client_auth_cert(chain, key).map_err(tls_error)?
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

fn pem_error(settings: &Settings<'_>, key: &str, path: &str, reason: impl ToString) -> SecurityError {
    SecurityError::Pem {
        origin: settings.origin().to_owned(),
        key: key.to_owned(),
        path: Path::new(path).into(),
        reason: reason.to_string(),
    }
}

fn certificates(
    settings: &Settings<'_>,
    key: &str,
    path: &str,
) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem_error(settings, key, path, error))?;
    if chain.is_empty() {
        return Err(pem_error(settings, key, path, "there is no certificate in it"));
    }
    Ok(chain)
}

fn private_key(
    settings: &Settings<'_>,
    key: &str,
    path: &str,
) -> Result<PrivateKeyDer<'static>, SecurityError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| pem_error(settings, key, path, error))
}

fn roots(settings: &Settings<'_>, key: &str, path: &str) -> Result<RootCertStore, SecurityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(settings, key, path)? {
        roots.add(certificate).map_err(|error| pem_error(settings, key, path, error))?;
    }
    Ok(roots)
}

/// Verifies a server without looking at its host name: certificates of a cluster are made per role, not per host.
#[derive(Debug)]
struct NamelessVerifier {
    /// The authorities to which the chain must lead; without them any certificate will do.
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
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ClientConnection, ServerConfig, ServerConnection};
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

        /// The client that these keys of the configuration make; `$` in a value stands for the authority's directory.
        fn client(
            &self,
            make: fn(&Settings<'_>) -> Result<Option<Arc<ClientConfig>>, SecurityError>,
            keys: &[(&str, &str)],
        ) -> Option<Arc<ClientConfig>> {
            let find = |name: &str| {
                let value = keys.iter().find(|(key, _)| *key == name)?.1;
                Some(value.replace('$', self.directory.path().to_str().unwrap()))
            };
            make(&Settings::read(None, find).unwrap()).unwrap()
        }
    }

    fn handshake(client: Arc<ClientConfig>, host: &str, server: &Authority) -> Result<(), rustls::Error> {
        let mut client = ClientConnection::new(client, host.to_owned().try_into().unwrap())?;
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
        handshake(client.clone(), "elsewhere", &own).unwrap();
        assert!(matches!(handshake(client, "server", &other), Err(rustls::Error::InvalidCertificate(_))));
    }

    #[test]
    fn grpc_takes_the_newer_names_and_needs_all_three_files() {
        let own = Authority::new();
        let newer = [
            ("WEED_GRPC_CA", "$/ca"),
            ("WEED_GRPC_CLIENT_CLIENT_CERT", "$/cert"),
            ("WEED_GRPC_CLIENT_CLIENT_KEY", "$/key"),
        ];
        handshake(own.client(grpc, &newer).unwrap(), "elsewhere", &own).unwrap();
        assert!(own.client(grpc, &GRPC[..1]).is_none());
        assert!(own.client(grpc, &GRPC[1..]).is_none());
    }

    #[test]
    fn https_trusts_the_authority_and_the_right_host() {
        let (own, other) = (Authority::new(), Authority::new());
        let client = own.client(https, &HTTPS).unwrap();
        handshake(client.clone(), "server", &own).unwrap();
        for (host, server) in [("elsewhere", &own), ("server", &other)] {
            let outcome = handshake(client.clone(), host, server);
            assert!(matches!(outcome, Err(rustls::Error::InvalidCertificate(_))), "{outcome:?}");
        }
    }

    #[test]
    fn https_trusts_anybody_if_told_so() {
        let own = Authority::new();
        let keys = [&HTTPS[..1], &HTTPS[2..], &[("WEED_HTTPS_CLIENT_INSECURE_SKIP_VERIFY", "true")]].concat();
        handshake(own.client(https, &keys).unwrap(), "elsewhere", &own).unwrap();
    }
}
