//! What `security.toml` says.

use std::sync::Arc;

/// Keys and certificates of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Security {}

impl Security {
    /// How to speak gRPC: with TLS, or in plain text.
    pub fn grpc_tls(&self) -> Option<Arc<rustls::ClientConfig>> {
        None
    }
}
