//! Who may read the status API.
//!
//! By default it listens on loopback, and processes of this host read it. A web page of another site cannot: the browser keeps the answers
//! from it, unless the site has its own name resolve to this host (DNS rebinding), which shows in the `Host` of its requests. Anywhere else it
//! needs a token, or everybody who can reach it reads it, which the daemon then says in its log and on its page.
//!
//! The token is taken as `Authorization: Bearer TOKEN`, which Prometheus sends, or as the password of HTTP's Basic scheme, which
//! browsers ask their users for. The routes that change something ask for more ([`crate::warmup::api`]), so that a page that has a
//! browser send a request with the browser's password forges nothing.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::report::ApiAccess;

/// The shortest token that is accepted, characters.
const MIN_TOKEN_CHARS: usize = 16;

/// A token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its file cannot be read.
    #[error("cannot read the token of the status API from {0}: {1}")]
    Read(String, #[source] io::Error),
    /// It is too easily guessed, or cannot be sent.
    #[error(
        "the token of the status API in {0} must be one line of at least {MIN_TOKEN_CHARS} printable characters without blanks; \
         `openssl rand -hex 32` makes one"
    )]
    Form(String),
}

/// What a client must know. Its text is not kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// The token in a file.
    ///
    /// # Errors
    /// When the file cannot be read, or has anything else than a token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        Ok(Self::of(&text(path)?))
    }

    fn of(text: &str) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Self(sum)
    }

    /// Whether `text` is it. Digests are compared, so that the time it takes tells nothing of the token.
    fn is(&self, text: &str) -> bool {
        self.0 == Self::of(text).0
    }
}

/// The text of the token in a file, for clients.
///
/// # Errors
/// Like [`Token::read`].
pub fn text(path: &Path) -> Result<String, TokenError> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|error| TokenError::Read(name.clone(), error))?;
    let text = text.trim();
    let good = text.len() >= MIN_TOKEN_CHARS && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(text.to_owned()) } else { Err(TokenError::Form(name)) }
}

/// Decides about requests.
#[derive(Clone)]
pub(super) struct AccessGuard {
    token: Option<Token>,
    loopback: bool,
}

impl AccessGuard {
    /// For a server that listens on `address`.
    pub(super) fn new(address: SocketAddr, token: Option<Token>) -> Arc<Self> {
        Arc::new(Self { token, loopback: address.ip().to_canonical().is_loopback() })
    }

    /// Who is let in.
    pub(super) fn access(&self) -> ApiAccess {
        match self {
            Self { token: Some(_), .. } => ApiAccess::Token,
            Self { loopback: true, .. } => ApiAccess::Loopback,
            Self { .. } => ApiAccess::Open,
        }
    }

    fn admits(&self, headers: &HeaderMap) -> Result<(), AccessDenied> {
        if let Some(token) = &self.token {
            let given = headers.get(header::AUTHORIZATION).and_then(|value| given(value.to_str().ok()?));
            return if given.is_some_and(|given| token.is(&given)) {
                Ok(())
            } else {
                Err(AccessDenied::Token)
            };
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if self.loopback && host.is_some_and(|host| !is_of_this_host(host)) {
            return Err(AccessDenied::Name);
        }
        Ok(())
    }
}

/// Why a request is not answered.
#[derive(Debug, PartialEq, Eq)]
enum AccessDenied {
    Token,
    Name,
}

impl IntoResponse for AccessDenied {
    fn into_response(self) -> Response {
        match self {
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

/// Lets a request pass or answers it.
pub(super) async fn guard(State(guard): State<Arc<AccessGuard>>, request: Request, next: Next) -> Response {
    match guard.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The token in an `Authorization`.
fn given(authorization: &str) -> Option<String> {
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

/// Whether `host`, with or without a port, is an address or the name that stands for this host.
fn is_of_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn asked(guard: &AccessGuard, name: header::HeaderName, value: &str) -> Result<(), AccessDenied> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        guard.admits(&headers)
    }

    #[test]
    fn a_token_is_taken_in_both_schemes() {
        let guard = AccessGuard::new("0.0.0.0:1".parse().unwrap(), Some(Token::of(TOKEN)));
        assert_eq!(guard.access(), ApiAccess::Token);
        let basic = format!("Basic {}", STANDARD.encode(format!("anybody:{TOKEN}")));
        for good in [format!("Bearer {TOKEN}").as_str(), &basic] {
            assert_eq!(asked(&guard, header::AUTHORIZATION, good), Ok(()), "{good}");
        }
        for bad in ["Bearer 0123456789abcdeg", "Bearer", TOKEN, "Basic !", "Basic YQ=="] {
            assert_eq!(asked(&guard, header::AUTHORIZATION, bad), Err(AccessDenied::Token), "{bad}");
        }
        assert_eq!(guard.admits(&HeaderMap::new()), Err(AccessDenied::Token));
    }

    #[test]
    fn on_loopback_no_other_name_is_answered_to() {
        let guard = AccessGuard::new("127.0.0.1:9650".parse().unwrap(), None);
        assert_eq!(guard.access(), ApiAccess::Loopback);
        for good in ["127.0.0.1:9650", "localhost:9650", "LOCALHOST", "[::1]:9650", "[::1]"] {
            assert_eq!(asked(&guard, header::HOST, good), Ok(()), "{good}");
        }
        for bad in ["rebound.example:9650", "localhost.example", ""] {
            assert_eq!(asked(&guard, header::HOST, bad), Err(AccessDenied::Name), "{bad}");
        }
        assert_eq!(guard.admits(&HeaderMap::new()), Ok(()), "no browser leaves it out");
    }

    #[test]
    fn elsewhere_without_a_token_it_is_open() {
        let guard = AccessGuard::new("0.0.0.0:9650".parse().unwrap(), None);
        assert_eq!(guard.access(), ApiAccess::Open);
        assert_eq!(asked(&guard, header::HOST, "storage-7:9650"), Ok(()));
    }

    #[test]
    fn a_token_that_is_none_is_refused() {
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
