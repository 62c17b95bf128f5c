//! `security.toml`: the keys and certificates of a cluster, as `weed` itself finds and reads them.
//!
//! [`rdma_engine::settings`] finds the file, and the environment variables that override it. From
//! these come a signer of read tokens and two TLS configurations ([`rdma_engine::tls`]): one for
//! gRPC and engines, one for HTTP.
//!
//! Without a file and variables the cluster has no security, and all connections are plaintext. A
//! file that exists and cannot be used is an error, never a silent fall-back to plaintext.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rdma_engine::FileId;
use rdma_engine::proof::ProofKey;
use rdma_engine::renewable::TlsClient;
use rdma_engine::settings::{self, SecuritySettings, SettingsError};
use rdma_engine::tls::{self, TlsError};
use rdma_engine::token::ReadSigner;
use rustls::ClientConfig;

/// Why `security.toml`, or a file that it names, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// The file cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A certificate or its key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The security settings of a cluster, for a client.
#[derive(Default)]
pub struct Security {
    signer: RwLock<Option<ReadSigner>>,
    grpc_tls: Option<TlsClient>,
    https_tls: Option<TlsClient>,
    proof_key: Option<Arc<ProofKey>>,
}

/// Why other settings cannot come in the place of those in use.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be turned on or off while the daemon runs: that takes a restart")]
pub struct RenewError(&'static str);

impl Security {
    /// Reads the first `security.toml` of the search path, and the environment. Settings of
    /// neither are off.
    pub fn load() -> Result<Self, SecurityError> {
        Self::from_settings(&SecuritySettings::load()?)
    }

    /// The first `security.toml` of the search path, if there is one.
    pub fn file() -> Option<PathBuf> {
        settings::file()
    }

    /// Like [`load`](Self::load), with this file instead of one of the search path.
    pub fn load_from(path: &Path) -> Result<Self, SecurityError> {
        Self::from_settings(&SecuritySettings::read(Some(path), |name| std::env::var(name).ok())?)
    }

    fn from_settings(settings: &SecuritySettings<'_>) -> Result<Self, SecurityError> {
        let (signer, proof_key) = (settings.read_signer()?, settings.proof_key()?);
        let signer = RwLock::new(signer);
        Ok(Self { signer, grpc_tls: tls::grpc(settings)?, https_tls: tls::https(settings)?, proof_key })
    }

    /// Uses keys and certificates of `newer` from now on, wherever these settings are in use.
    /// Connections that are open go on with what they were made with.
    ///
    /// # Errors
    /// When TLS, or the proofs of engines, were turned on or off. Nothing has changed then.
    pub fn renew(&self, newer: Self) -> Result<(), RenewError> {
        let switched = [
            (self.grpc_tls.is_some() != newer.grpc_tls.is_some(), "TLS of gRPC"),
            (self.https_tls.is_some() != newer.https_tls.is_some(), "TLS of HTTP"),
            (self.proof_key.is_some() != newer.proof_key.is_some(), "proofs of engines"),
        ];
        if let Some((_, what)) = switched.into_iter().find(|(is_switched, _)| *is_switched) {
            return Err(RenewError(what));
        }
        for (own, newer) in [(&self.grpc_tls, &newer.grpc_tls), (&self.https_tls, &newer.https_tls)] {
            if let (Some(own), Some(newer)) = (own, newer) {
                own.renew(newer);
            }
        }
        if let (Some(own), Some(newer)) = (&self.proof_key, &newer.proof_key) {
            own.renew(newer);
        }
        *self.signer.write() = newer.signer.into_inner();
        Ok(())
    }

    /// TLS for gRPC, if `[grpc]` and `[grpc.client]` ask for it: mutual, with the server's chain
    /// verified against the cluster's authority, and its host name not verified, as `weed` does.
    pub fn grpc_tls(&self) -> Option<Arc<ClientConfig>> {
        self.grpc_tls.as_ref().map(TlsClient::config)
    }

    /// TLS for HTTP, if `[https.client]` is enabled. All servers must then be reached over it.
    pub fn https_tls(&self) -> Option<Arc<ClientConfig>> {
        self.https_tls.as_ref().map(TlsClient::config)
    }

    /// The key by which engines and their clients authenticate each other, if there is one.
    pub fn proof_key(&self) -> Option<Arc<ProofKey>> {
        self.proof_key.clone()
    }

    /// A token that allows reading `fid` from a volume server, if the cluster has tokens.
    pub fn read_token(&self, fid: FileId) -> Option<String> {
        self.signer.read().as_ref().map(|signer| signer.token(fid))
    }
}

impl fmt::Debug for Security {
    /// Shows which settings are on, and never a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("read_tokens", &self.signer.read().is_some())
            .field("grpc_tls", &self.grpc_tls.is_some())
            .field("https_tls", &self.https_tls.is_some())
            .field("proof_key", &self.proof_key.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FID: FileId = FileId { volume: 3, key: 1, cookie: 0x6370_37d6 };

    fn security(text: &str, environment: &[(&str, &str)]) -> Result<Security, SecurityError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("security.toml");
        std::fs::write(&path, text).unwrap();
        let find = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        Security::from_settings(&SecuritySettings::read(Some(&path), find)?)
    }

    #[test]
    fn without_settings_all_is_plaintext() {
        let security = Security::from_settings(&SecuritySettings::read(None, |_| None).unwrap()).unwrap();
        assert!(security.read_token(FID).is_none());
        assert!(security.grpc_tls().is_none() && security.https_tls().is_none());
    }

    #[test]
    fn the_empty_values_of_weeds_own_template_count_as_unset() {
        let text = "[jwt.signing.read]\nkey = \"\"\n[grpc]\nca = \"\"\n[grpc.client]\ncert = \"\"\nkey = \"\"\n\
                    [https.client]\nenabled = false\ncert = \"\"\nkey = \"\"\nca = \"\"\n";
        let security = security(text, &[]).unwrap();
        assert!(security.read_token(FID).is_none());
        assert!(security.grpc_tls().is_none() && security.https_tls().is_none());
    }

    #[test]
    fn the_read_key_signs_tokens_and_the_environment_overrides_it() {
        assert!(security("[jwt.signing.read]\nkey = \"k\"", &[]).unwrap().read_token(FID).is_some());
        let environment = [("WEED_JWT_SIGNING_READ_KEY", "k")];
        assert!(security("", &environment).unwrap().read_token(FID).is_some());
    }

    #[test]
    fn keys_are_renewed_and_nothing_is_turned_off() {
        let key = |key: &str| security(&format!("[jwt.signing.read]\nkey = \"{key}\""), &[]).unwrap();
        let signature = |security: &Security| {
            let token = security.read_token(FID).unwrap();
            token.rsplit('.').next().unwrap().to_owned()
        };
        let (used, other) = (key("one"), key("two"));
        assert_ne!(signature(&used), signature(&other));
        used.renew(key("two")).unwrap();
        assert_eq!(signature(&used), signature(&other));
        let refused = used.renew(security("", &[]).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("proofs of engines"), "{refused}");
        assert_eq!(signature(&used), signature(&other), "nothing has changed");
        let encrypted = security("[https.client]\nenabled = true", &[]).unwrap();
        let refused = encrypted.renew(security("", &[]).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("TLS of HTTP"), "{refused}");
        assert!(encrypted.https_tls().is_some());
    }

    #[test]
    fn https_without_files_trusts_the_public_authorities() {
        assert!(security("[https.client]\nenabled = true", &[]).unwrap().https_tls().is_some());
        assert!(security("", &[("WEED_HTTPS_CLIENT_ENABLED", "true")]).unwrap().https_tls().is_some());
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let fault = |text| security(text, &[]).expect_err("an error").to_string();
        assert!(fault("[jwt").contains("security.toml is no valid TOML"));
        assert!(fault("[jwt.signing.read]\nkey = 5").contains("`jwt.signing.read.key` must be text"));
        assert!(fault("[https.client]\nenabled = \"maybe\"").contains("`https.client.enabled` must be"));
        let half = fault("[https.client]\nenabled = true\ncert = \"/x\"");
        assert!(half.contains("`https.client.cert` is set but `https.client.key` is not"), "{half}");
        let missing = fault("[https.client]\nenabled = true\nca = \"/nonexistent/ca.pem\"");
        assert!(missing.contains("`https.client.ca` names /nonexistent/ca.pem"), "{missing}");
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let error = Security::load_from(Path::new("/nonexistent/security.toml")).unwrap_err();
        assert!(matches!(error, SecurityError::Settings(SettingsError::Missing(_))), "{error}");
    }
}
