//! Access control of the status API.
//!
//! By default the API listens on loopback, and processes of this host may read it. The
//! same-origin policy of browsers keeps the answers from web pages of other sites, unless a site
//! resolves its own name to this host (DNS rebinding); such requests are refused by their `Host`.
//! On any other address the API needs a token. Without one, every client that can reach the
//! address may read it, which the log and the dashboard report.
//!
//! With a certificate, clients of other hosts are answered by TLS alone ([`tls`](super::tls)).
//!
//! A client sends the token as `Authorization: Bearer TOKEN`, as Prometheus does, or as the
//! password of HTTP's Basic scheme, for which browsers ask their users. Routes that change
//! something require more ([`crate::warmup::api`]), because a browser attaches the password to
//! requests of other sites' pages.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use daemon::settings_file;
use parking_lot::RwLock;
use ring::digest::{SHA256, digest};

use super::peer::Peer;
use super::report::ApiAccess;
use super::tls::{StatusCertificate, TLS_NEEDED};

const MIN_TOKEN_CHARS: usize = 16;

/// The file with the token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token of the status API from {0}: {1}")]
    Read(String, io::Error),
    /// The token is too short, or has characters that HTTP cannot send.
    #[error(
        "the token of the status API in {0} must be one line of at least {MIN_TOKEN_CHARS} printable characters without blanks; \
         `openssl rand -hex 32` makes one"
    )]
    Form(String),
}

/// The SHA-256 digest of the token. The text is not kept. All copies are renewed together.
#[derive(Clone)]
pub struct Token(Arc<RwLock<[u8; 32]>>);

impl Token {
    /// Reads the token from a file.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold a valid token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        Ok(Self::of(&text(path)?))
    }

    /// From now on `newer` is valid, and the one before no more.
    pub fn renew(&self, newer: &Self) {
        let digest = *newer.0.read();
        *self.0.write() = digest;
    }

    fn of(text: &str) -> Self {
        Self(Arc::new(RwLock::new(digest_of(text))))
    }

    /// Whether `text` is the token. Comparing digests leaks nothing of the token through timing.
    fn is(&self, text: &str) -> bool {
        *self.0.read() == digest_of(text)
    }
}

fn digest_of(text: &str) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    sum
}

/// What the status API asks of its clients, and shows them.
#[derive(Clone, Default)]
pub struct ApiSecrets {
    /// With it, only requests that carry it are answered.
    pub token: Option<Token>,
    /// With it, clients of other hosts have to use TLS.
    pub certificate: Option<StatusCertificate>,
}

/// The text of the token in a file, for clients.
///
/// # Errors
/// As [`Token::read`].
pub fn text(path: &Path) -> Result<String, TokenError> {
    let name = path.display().to_string();
    let text = settings_file::read(path).map_err(|error| TokenError::Read(name.clone(), error))?;
    let text = text.trim();
    let good = text.len() >= MIN_TOKEN_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(text.to_owned()) } else { Err(TokenError::Form(name)) }
}

/// The access rules of one server.
#[derive(Clone)]
pub(super) struct AccessGuard {
    token: Option<Token>,
    loopback: bool,
    /// Whether clients of other hosts have to use TLS.
    needs_tls: bool,
}

impl AccessGuard {
    /// The rules of a server that listens on `address`.
    pub(super) fn new(address: SocketAddr, secrets: &ApiSecrets) -> Arc<Self> {
        let loopback = address.ip().to_canonical().is_loopback();
        Arc::new(Self { token: secrets.token.clone(), loopback, needs_tls: secrets.certificate.is_some() })
    }

    /// The clients that may read.
    pub(super) fn access(&self) -> ApiAccess {
        match self {
            Self { token: Some(_), .. } => ApiAccess::Token,
            Self { loopback: true, .. } => ApiAccess::Loopback,
            Self { .. } => ApiAccess::Open,
        }
    }

    /// Whether a request with these headers is answered; `peer` is who sends it, if that is known.
    fn admits(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<(), AccessDenied> {
        if self.needs_tls && peer.is_some_and(|peer| !peer.is_encrypted && !peer.is_local()) {
            return Err(AccessDenied::PlainText);
        }
        if let Some(token) = &self.token {
            let sent = headers.get(header::AUTHORIZATION).and_then(|value| token_in(value.to_str().ok()?));
            return if sent.is_some_and(|sent| token.is(&sent)) { Ok(()) } else { Err(AccessDenied::Token) };
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if self.loopback && host.is_some_and(|host| !is_this_host(host)) {
            return Err(AccessDenied::Name);
        }
        Ok(())
    }
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
enum AccessDenied {
    PlainText,
    Token,
    Name,
}

impl IntoResponse for AccessDenied {
    fn into_response(self) -> Response {
        match self {
            Self::PlainText => (StatusCode::BAD_REQUEST, TLS_NEEDED).into_response(),
            Self::Token => {
                let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"interceptor\", charset=\"UTF-8\"")];
                (StatusCode::UNAUTHORIZED, ask, "the token of --status-token-file is needed\n")
                    .into_response()
            }
            Self::Name => {
                (StatusCode::FORBIDDEN, "ask for this by address or as localhost\n").into_response()
            }
        }
    }
}

/// Passes a request on, or refuses it.
pub(super) async fn guard(State(guard): State<Arc<AccessGuard>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer);
    match guard.admits(request.headers(), peer) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The token in an `Authorization` header.
fn token_in(authorization: &str) -> Option<String> {
    let (scheme, rest) = authorization.split_once(' ')?;
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.trim().to_owned()),
        "basic" => {
            let decoded = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            Some(decoded.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

/// Whether `host`, with or without a port, is an IP address or `localhost`.
fn is_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn asked(guard: &AccessGuard, name: header::HeaderName, value: &str) -> Result<(), AccessDenied> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        guard.admits(&headers, None)
    }

    fn with_token() -> ApiSecrets {
        ApiSecrets { token: Some(Token::of(TOKEN)), certificate: None }
    }

    #[test]
    fn with_a_certificate_clients_of_other_hosts_must_encrypt() {
        let guard = AccessGuard { token: None, loopback: false, needs_tls: true };
        let peer = |remote: &str, is_encrypted| Peer {
            remote: remote.parse().unwrap(),
            local: Some([10, 0, 0, 5].into()),
            is_encrypted,
        };
        let admits = |peer: Peer| guard.admits(&HeaderMap::new(), Some(&peer));
        assert_eq!(admits(peer("10.0.0.6", false)), Err(AccessDenied::PlainText));
        for good in [peer("10.0.0.6", true), peer("10.0.0.5", false), peer("10.0.0.5", true)] {
            assert_eq!(admits(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn a_token_is_accepted_in_both_schemes() {
        let guard = AccessGuard::new("0.0.0.0:1".parse().unwrap(), &with_token());
        assert_eq!(guard.access(), ApiAccess::Token);
        let basic = format!("Basic {}", STANDARD.encode(format!("anybody:{TOKEN}")));
        for good in [format!("Bearer {TOKEN}").as_str(), &basic] {
            assert_eq!(asked(&guard, header::AUTHORIZATION, good), Ok(()), "{good}");
        }
        for bad in ["Bearer 0123456789abcdeg", "Bearer", TOKEN, "Basic !", "Basic YQ=="] {
            assert_eq!(asked(&guard, header::AUTHORIZATION, bad), Err(AccessDenied::Token), "{bad}");
        }
        assert_eq!(guard.admits(&HeaderMap::new(), None), Err(AccessDenied::Token));
    }

    #[test]
    fn on_loopback_only_addresses_and_localhost_are_answered() {
        let guard = AccessGuard::new("127.0.0.1:9650".parse().unwrap(), &ApiSecrets::default());
        assert_eq!(guard.access(), ApiAccess::Loopback);
        for good in ["127.0.0.1:9650", "localhost:9650", "LOCALHOST", "[::1]:9650", "[::1]"] {
            assert_eq!(asked(&guard, header::HOST, good), Ok(()), "{good}");
        }
        for bad in ["rebound.example:9650", "localhost.example", ""] {
            assert_eq!(asked(&guard, header::HOST, bad), Err(AccessDenied::Name), "{bad}");
        }
        assert_eq!(guard.admits(&HeaderMap::new(), None), Ok(()), "only browsers must send `Host`");
    }

    #[test]
    fn on_other_addresses_it_is_open_without_a_token() {
        let guard = AccessGuard::new("0.0.0.0:9650".parse().unwrap(), &ApiSecrets::default());
        assert_eq!(guard.access(), ApiAccess::Open);
        assert_eq!(asked(&guard, header::HOST, "storage-7:9650"), Ok(()));
    }

    #[test]
    fn files_without_a_valid_token_are_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{TOKEN}").unwrap();
        assert!(Token::read(file.path()).unwrap().is(TOKEN));
        for wrong in ["short", "0123456789abcdef 0123456789abcdef", "0123456789abcdef\nsecond"] {
            fs::write(file.path(), wrong).unwrap();
            assert!(matches!(Token::read(file.path()), Err(TokenError::Form(_))), "{wrong}");
        }
        assert!(matches!(Token::read(Path::new("/nowhere")), Err(TokenError::Read(..))));
    }
}
