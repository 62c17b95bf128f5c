//! Requests to a daemon's status API, each on a connection of its own.

use std::borrow::Cow;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::{Args, ValueHint};
use daemon::address;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::mount_address::{ATTRIBUTE_TIMEOUT, PlaceInMount, address_in_time, answer_of, mount_at, place_of};
use crate::telemetry::access;
use crate::telemetry::report::{API_VERSION, StatusReport};
use crate::telemetry::tls::{TLS_NEEDED, certificates};

/// The daemon answers from memory, or reports within three seconds what hangs. A daemon that takes
/// longer than this is broken.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// More than any answer has.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

type Response = ureq::http::Response<ureq::Body>;

/// What begins the address of an API that is reached by TLS.
const HTTPS: &str = "https://";

/// Checks the form of `HOST:PORT` or `https://HOST:PORT`.
fn api_address(text: &str) -> Result<String, &'static str> {
    let (scheme, rest) = text.strip_prefix(HTTPS).map_or(("", text), |rest| (HTTPS, rest));
    match address::host_port(rest.trim_end_matches('/')) {
        Ok(address) => Ok(format!("{scheme}{address}")),
        Err(_) => {
            Err("expected HOST:PORT or https://HOST:PORT, such as 127.0.0.1:9650 or https://train-7:9650")
        }
    }
}

/// An answer of the status API.
pub(super) struct HttpAnswer {
    pub(super) code: u16,
    /// The `Server` header.
    server: Option<String>,
    pub(super) body: String,
}

/// A daemon's status API.
#[derive(Debug, Clone, Args)]
pub(super) struct StatusClient {
    /// The mount whose daemon is asked, in place of --status-addr
    #[arg(value_name = "MOUNTPOINT", conflicts_with = "address", value_hint = ValueHint::DirPath)]
    pub(super) mount_point: Option<PathBuf>,

    /// Where the daemon's status API listens; on another host, https://HOST:PORT if it has a
    /// certificate (--status-tls-cert)
    #[arg(long = "status-addr", value_name = "HOST:PORT", default_value = "127.0.0.1:9650", value_parser = api_address)]
    pub(super) address: String,

    /// The authorities of that certificate (PEM) [default: those that browsers trust]
    #[arg(long = "status-tls-ca", value_name = "FILE")]
    pub(super) authorities: Option<PathBuf>,

    /// The file with the token that the daemon was given with the same option
    #[arg(long = "status-token-file", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl StatusClient {
    /// A client of the API at `address`.
    pub(super) fn at(address: String) -> Self {
        Self { mount_point: None, address, authorities: None, token_file: None }
    }

    /// A client of several APIs, one after the other, which shows all of them the token in this
    /// file. It has no address yet.
    pub(super) fn with_token(token_file: Option<PathBuf>) -> Self {
        Self { token_file, ..Self::at(String::new()) }
    }

    /// The address at which the API listens: what the mount says, or what was typed.
    fn address(&self) -> anyhow::Result<Cow<'_, str>> {
        let Some(path) = &self.mount_point else { return Ok(Cow::Borrowed(&self.address)) };
        Ok(Cow::Owned(address_in_time(&mount_at(path)?)?))
    }

    /// A client of the daemon of the mount that has `path`, and where that is in the mount.
    pub(super) fn for_place(&self, path: &Path) -> anyhow::Result<(Self, PlaceInMount)> {
        let asked = path.to_owned();
        let place = answer_of(move || place_of(&asked)).recv_timeout(ATTRIBUTE_TIMEOUT);
        let place = place.map_err(|_| anyhow!("{}: the daemon does not answer", path.display()))??;
        let address = address_in_time(&place.mount)?;
        Ok((Self { mount_point: None, address, ..self.clone() }, place))
    }

    /// The URL of the daemon's dashboard.
    pub(super) fn dashboard(&self) -> anyhow::Result<String> {
        Ok(url(&self.address()?, "/"))
    }

    /// GETs `path`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<HttpAnswer> {
        HttpAnswer::read(self.ask(path, REQUEST_TIMEOUT)?, REQUEST_TIMEOUT)
    }

    /// GETs `path`, whose answer takes up to `time` to come. Returns the answer's status code, and
    /// its body to be read while it comes.
    pub(super) fn stream(&self, path: &str, time: Duration) -> anyhow::Result<(u16, impl Read + use<>)> {
        let response = self.ask(path, REQUEST_TIMEOUT + time)?;
        Ok((response.status().as_u16(), response.into_body().into_reader()))
    }

    fn ask(&self, path: &str, timeout: Duration) -> anyhow::Result<Response> {
        let token = self.token_file.as_deref().map(access::text).transpose()?;
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        let address = self.address()?;
        let is_secure = address.starts_with(HTTPS);
        // Or the token would be sent to whoever listens there.
        ensure!(
            is_secure || self.authorities.is_none(),
            "--status-tls-ca is of use only with --status-addr https://HOST:PORT"
        );
        let tls = if is_secure { Some(self.tls()?) } else { None };
        run("GET", &url(&address, path), tls, &headers, "", timeout)
    }

    /// Whose certificates are trusted.
    fn tls(&self) -> anyhow::Result<TlsConfig> {
        let roots = match &self.authorities {
            None => RootCerts::WebPki,
            Some(path) => {
                let certificates = certificates(path)
                    .map_err(|reason| anyhow!("cannot use --status-tls-ca {}: {reason}", path.display()))?;
                let owned: Vec<_> =
                    certificates.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
                RootCerts::new_with_certs(&owned)
            }
        };
        Ok(TlsConfig::builder().root_certs(roots).build())
    }

    /// The daemon's status report, as JSON.
    pub(super) fn status(&self) -> anyhow::Result<String> {
        let address = self.address()?;
        let answer = self
            .get("/api/v1/status")
            .with_context(|| format!("no status from {address} (--status-addr)"))?;
        ensure!(answer.code != 401, "{address} answers only with its token (--status-token-file)");
        ensure!(
            answer.body != TLS_NEEDED,
            "{address} is reached by TLS: write https:// before it (--status-addr)"
        );
        // Of any version: scripts are given what there is.
        let is_report = serde_json::from_str(&answer.body)
            .is_ok_and(|report: serde_json::Value| report["api_version"].is_number());
        ensure!(
            answer.code == 200 && is_report,
            "what answers at {address} is {} and not the status API of a mount (--status-addr, usually port 9650)",
            answer.sender().unwrap_or("an HTTP server")
        );
        Ok(answer.body)
    }

    /// The daemon's status report.
    pub(super) fn report(&self) -> anyhow::Result<StatusReport> {
        serde_json::from_str(&self.status()?).with_context(|| {
            let address = self.address().unwrap_or_default();
            format!("what answers at {address} is no interceptor of API version {API_VERSION}")
        })
    }
}

impl HttpAnswer {
    /// Reads an answer that must be complete after `timeout`.
    fn read(mut response: Response, timeout: Duration) -> anyhow::Result<Self> {
        let server = response.headers().get("Server");
        let server = server.map(|name| String::from_utf8_lossy(name.as_bytes()).into());
        let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_string();
        let body = body.map_err(|error| explained(error, timeout))?;
        Ok(Self { code: response.status().as_u16(), server, body })
    }

    /// The kind of server that sent it, if it is one of SeaweedFS.
    fn sender(&self) -> Option<&'static str> {
        match &self.server {
            Some(server) if server.starts_with("SeaweedFS Volume") => Some("a volume server of SeaweedFS"),
            Some(server) if server.starts_with("SeaweedFS") => Some("a filer of SeaweedFS"),
            // A master does not say its name.
            None if self.body.starts_with("{\"Topology\":") => Some("a master of SeaweedFS"),
            _ => None,
        }
    }
}

/// The kind of server that answers HTTP at `address`; `None` if none does.
pub(super) fn identify_server(address: &str) -> Option<&'static str> {
    let answer = send(address, "GET", "/dir/status", &[], "", Duration::ZERO).ok()?;
    Some(answer.sender().unwrap_or("an HTTP server"))
}

/// Sends a request with these headers and this body; the answer must be complete after
/// [`REQUEST_TIMEOUT`] and `extra_time`.
pub(super) fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    extra_time: Duration,
) -> anyhow::Result<HttpAnswer> {
    let timeout = REQUEST_TIMEOUT + extra_time;
    HttpAnswer::read(run(method, &url(address, path), None, headers, body, timeout)?, timeout)
}

fn url(address: &str, path: &str) -> String {
    if address.starts_with(HTTPS) {
        return format!("{address}{path}");
    }
    // A cluster names servers by addresses of IPv6 without brackets as well.
    match address.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !host.starts_with('[') => {
            format!("http://[{host}]:{port}{path}")
        }
        _ => format!("http://{address}{path}"),
    }
}

/// Sends a request, whose answer must be complete after `timeout`.
fn run(
    method: &str,
    url: &str,
    tls: Option<TlsConfig>,
    headers: &[(&str, &str)],
    body: &str,
    timeout: Duration,
) -> anyhow::Result<Response> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(REQUEST_TIMEOUT))
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .tls_config(tls.unwrap_or_default())
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    agent.run(request.body(body)?).map_err(|error| explained(error, timeout))
}

/// What went wrong with a request that had `timeout`.
fn explained(error: ureq::Error, timeout: Duration) -> anyhow::Error {
    match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
            anyhow!("cannot connect within {REQUEST_TIMEOUT:?}")
        }
        ureq::Error::Timeout(_) => anyhow!("no complete answer within {timeout:.1?}"),
        ureq::Error::Io(error) => match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::InvalidMessage(_)) => {
                anyhow!("it does not speak TLS: leave out https://, or give the daemon --status-tls-cert")
            }
            Some(rustls::Error::InvalidCertificate(reason)) => {
                anyhow!("its certificate is not accepted: {reason}; --status-tls-ca FILE names whom to trust")
            }
            Some(other) => anyhow!("no TLS with it: {other}"),
            None if error.kind() == ErrorKind::ConnectionRefused => {
                anyhow!("nothing listens there; `interceptor list` shows the mounts of this host")
            }
            None => error.into(),
        },
        other => anyhow::Error::from(other),
    }
}
