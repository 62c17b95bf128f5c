//! Why an engine did not deliver.

use crate::Refusal;

/// Why a read failed. After any of these the caller takes its next source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The engine does not serve this needle. It may serve others.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The engine could not be reached, and the backoff before the next attempt is not over. With
    /// the last reason.
    #[error("the engine is left alone for a while: {0}")]
    Unavailable(String),
    /// The connection could not be made, or ended before the answer was there.
    #[error("no connection: {0}")]
    Lost(String),
    /// The engine has not proved that it is the volume server's, so it is not asked for anything.
    #[error(
        "not trusted: {0}; give it and its clients one security.toml with jwt.signing.key or [grpc] \
         certificates, or name it with --engine"
    )]
    Unproved(String),
    /// The engine and this host do not agree on TLS: one of them does not speak it, or does not
    /// accept the other's certificate.
    #[error("{0}")]
    Tls(String),
    /// The deadline has passed.
    #[error("not within the deadline")]
    Deadline,
    /// The answer does not belong to the request: another needle's header, or bytes that do not
    /// have their checksum.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

impl ReadError {
    /// Whether the engine is there, and one side does not trust the other: that ends only when a
    /// configuration changes.
    pub fn is_distrust(&self) -> bool {
        let is_about_tls = |refusal: &Refusal| matches!(refusal, Refusal::TlsNeeded | Refusal::NoTls);
        match self {
            Self::Unproved(_) | Self::Tls(_) => true,
            Self::Refused(refusal) => is_about_tls(refusal),
            _ => false,
        }
    }

    /// One word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.label(),
            Self::Unavailable(_) => "unavailable",
            Self::Lost(_) => "lost",
            Self::Unproved(_) => "unproved",
            Self::Tls(_) => "tls",
            Self::Deadline => "deadline",
            Self::Damaged(_) => "damaged",
        }
    }
}
