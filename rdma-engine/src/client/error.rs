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
    #[error("not trusted: {0}")]
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
    /// What to configure if the engine is there, and one side does not trust the other; `None`
    /// otherwise.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Unproved(_) => Some(
                "give it and its clients one security.toml with jwt.signing.key or [grpc] certificates, or name \
                 it with --engine",
            ),
            Self::Refused(Refusal::TlsNeeded) => {
                Some("give this host the certificates of [grpc] and [grpc.client] in security.toml")
            }
            Self::Refused(Refusal::NoTls) => {
                Some("give the engine the certificates of [grpc] and [grpc.volume] in security.toml")
            }
            Self::Tls(_) => Some(
                "both need certificates of the authority in grpc.ca of security.toml: this host those of \
                 [grpc.client], the engine those of [grpc.volume]",
            ),
            _ => None,
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
