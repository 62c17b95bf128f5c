//! Why an engine does not serve a needle. Every reason has a number in the protocol. After each of
//! them a client takes its next source, in the end the volume server itself.

/// Defines the enumeration and both directions of its numbers from one table.
macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $label:literal, $text:literal;)+) => {
        /// Why a needle, or a connection, was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum Refusal {
            $($(#[doc = $doc])+ #[error($text)] $name,)+
            /// A reason that this program does not know, by its number.
            #[error("a reason unknown to this version, number {0}")]
            Unknown(u16),
        }

        impl Refusal {
            /// Every reason that is known.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number in the protocol.
            pub const fn code(self) -> u16 {
                match self {
                    $(Self::$name => $code,)+
                    Self::Unknown(code) => code,
                }
            }

            /// The reason of a number in the protocol.
            pub const fn from_code(code: u16) -> Self {
                match code {
                    $($code => Self::$name,)+
                    other => Self::Unknown(other),
                }
            }

            /// One word for metrics and logs.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                    Self::Unknown(_) => "unknown",
                }
            }
        }
    };
}

refusals! {
    /// No directory has the volume.
    NoVolume = 1, "no_volume", "the volume is not here";
    /// The volume's data was moved to a remote tier.
    Remote = 2, "remote", "the volume's data is on a remote tier";
    /// The volume is erasure-coded: there are only shards.
    ErasureCoded = 3, "erasure_coded", "the volume is erasure-coded";
    /// The volume is being copied here.
    Incomplete = 4, "incomplete", "the volume is being copied and not complete";
    /// The volume's files are being replaced by compacted ones.
    Compacting = 5, "compacting", "the volume's files are being replaced";
    /// The volume's index is being read.
    Loading = 6, "loading", "the volume's index is being loaded";
    /// The files are there but not understood: an unknown version, an index that does not fit its
    /// data, or two volumes of one number.
    UnknownFormat = 7, "unknown_format", "the volume's files are not understood";
    /// The index does not have the needle.
    NoNeedle = 8, "no_needle", "the volume has no such needle";
    /// The needle has another cookie.
    WrongCookie = 9, "wrong_cookie", "the needle has another cookie";
    /// The needle's time to live is over.
    Expired = 10, "expired", "the needle has expired";
    /// The needle is a list of chunks; a volume server would send their data in its place.
    Manifest = 11, "manifest", "the needle is a list of chunks";
    /// The record is not where the index says, and reading the index again did not help.
    Stale = 12, "stale", "the needle's record is not where the index says";
    /// The record contradicts itself.
    Damaged = 13, "damaged", "the needle's record is damaged";
    /// The needle ends before the range begins.
    OutOfRange = 14, "out_of_range", "the range begins behind the needle's end";
    /// The files could not be read.
    Io = 15, "io", "the volume's files cannot be read";
    /// A token is needed, and the request has none.
    TokenMissing = 32, "token_missing", "a token is needed";
    /// The token is forged, expired or for another needle.
    TokenInvalid = 33, "token_invalid", "the token does not allow reading the needle";
    /// More requests are in progress than the session may have.
    Busy = 34, "busy", "too many requests are in progress";
    /// The client cancelled the request.
    Cancelled = 35, "cancelled", "the request was cancelled";
    /// The request is for more bytes than one request may ask for.
    TooLong = 36, "too_long", "more bytes than one request may bring";
    /// The client and the engine share no version of the protocol.
    Version = 64, "version", "no version of the protocol in common";
    /// The engine has its maximum of sessions, and none can be evicted.
    TooManySessions = 65, "too_many_sessions", "too many sessions";
    /// The transport that was chosen was not offered on this connection.
    NoTransport = 66, "no_transport", "the transport is not offered here";
    /// The engine hands descriptors only to processes that could open the volumes themselves.
    NotAllowed = 67, "not_allowed", "this user may not have the volumes' descriptors";
    /// The message is none of the protocol, or is not allowed at this point.
    Malformed = 68, "malformed", "not a message that is allowed here";
    /// The engine speaks TLS over the network, and the client does not.
    TlsNeeded = 69, "tls_needed", "the engine asks for TLS";
    /// The client speaks TLS, and the engine has no certificate.
    NoTls = 70, "no_tls", "the engine does not speak TLS";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_and_labels_are_unique() {
        for &refusal in Refusal::ALL {
            assert_eq!(Refusal::from_code(refusal.code()), refusal);
        }
        let codes: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.code()).collect();
        let labels: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.label()).collect();
        assert_eq!((codes.len(), labels.len()), (Refusal::ALL.len(), Refusal::ALL.len()));
        assert_eq!(Refusal::from_code(999), Refusal::Unknown(999));
        assert_eq!(Refusal::Unknown(999).code(), 999);
    }
}
