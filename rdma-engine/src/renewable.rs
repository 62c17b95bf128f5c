//! A TLS client whose certificate and trust can be renewed while it is in use.
//!
//! Connections are made with the same `ClientConfig` as before; what it asks for at each handshake
//! is looked up here. A connection that is open goes on with what it was made with. No session is
//! resumed, since a resumed one would not look anew.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

/// A TLS client, and what of it can be renewed.
#[derive(Debug, Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    trust: Arc<CurrentTrust>,
    identity: Arc<CurrentIdentity>,
}

impl TlsClient {
    /// A client that verifies servers by `trust` and shows them `identity`, with `alpn` as its
    /// protocol.
    pub(crate) fn new(
        provider: Arc<CryptoProvider>,
        trust: Arc<dyn ServerCertVerifier>,
        identity: Option<Arc<CertifiedKey>>,
        alpn: &[u8],
    ) -> Result<Self, rustls::Error> {
        let trust = Arc::new(CurrentTrust(RwLock::new(trust)));
        let identity = Arc::new(CurrentIdentity(RwLock::new(identity)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(trust.clone())
            .with_client_cert_resolver(identity.clone());
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), trust, identity })
    }

    /// What connections are made with.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.config.clone()
    }

    /// From the next handshake on, verifies servers as `newer` does and shows its certificate.
    pub fn renew(&self, newer: &Self) {
        let (trust, identity) = (newer.trust.current(), newer.identity.0.read().clone());
        *self.trust.0.write() = trust;
        *self.identity.0.write() = identity;
    }
}

/// Verifies servers by what is trusted now.
#[derive(Debug)]
struct CurrentTrust(RwLock<Arc<dyn ServerCertVerifier>>);

impl CurrentTrust {
    fn current(&self) -> Arc<dyn ServerCertVerifier> {
        self.0.read().clone()
    }
}

impl ServerCertVerifier for CurrentTrust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.current().verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current().supported_verify_schemes()
    }
}

/// Shows servers the certificate that is valid now, if there is one.
struct CurrentIdentity(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesClientCert for CurrentIdentity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.read().clone()
    }

    fn has_certs(&self) -> bool {
        self.0.read().is_some()
    }
}

impl fmt::Debug for CurrentIdentity {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CurrentIdentity").field(&self.has_certs()).finish()
    }
}
