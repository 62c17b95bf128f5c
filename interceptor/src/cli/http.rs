//! Requests to a daemon's status API, one over each connection. HTTP/1.0, so that the body ends where the connection does.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use daemon::address;

use crate::telemetry::access;
use crate::telemetry::report::{API_VERSION, StatusReport};

/// The daemon answers from memory, or says within three seconds what hangs: if it takes longer than this, something is
/// wrong with it.
const DEADLINE: Duration = Duration::from_secs(5);

/// More than any answer has.
const LARGEST_ANSWER: u64 = 16 << 20;

/// An answer of the status API.
pub(super) struct Answer {
    pub(super) code: u16,
    /// What the server calls itself.
    server: Option<String>,
    pub(super) body: String,
}

/// A daemon's status API.
#[derive(Debug, Clone, Args)]
pub(super) struct Daemon {
    /// Where the daemon's status API listens
    #[arg(long = "status-addr", value_name = "HOST:PORT", default_value = "127.0.0.1:9650", value_parser = address::host_port)]
    pub(super) address: String,

    /// The file with the token that the daemon was given with the same option
    #[arg(long = "status-token-file", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

impl Daemon {
    /// A request for what is at `path`.
    pub(super) fn get(&self, path: &str) -> anyhow::Result<Answer> {
        let token = self.token_file.as_deref().map(access::text).transpose()?;
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        ask(&self.address, "GET", path, &headers, "", Duration::ZERO)
    }

    /// What the daemon says of itself, as JSON.
    pub(super) fn status(&self) -> anyhow::Result<String> {
        let address = &self.address;
        let answer = self.get("/api/v1/status").with_context(|| {
            format!("no status from {address} (--status-addr); is a mount running there?")
        })?;
        ensure!(answer.code != 401, "{address} answers only with its token (--status-token-file)");
        ensure!(
            answer.code == 200,
            "what answers at {address} is {} and not the status API of a mount (--status-addr, usually port 9650)",
            answer.sender().unwrap_or("an HTTP server")
        );
        Ok(answer.body)
    }

    /// The same, understood.
    pub(super) fn report(&self) -> anyhow::Result<StatusReport> {
        serde_json::from_str(&self.status()?).with_context(|| {
            format!("what answers at {} is no interceptor of API version {API_VERSION}", self.address)
        })
    }
}

impl Answer {
    /// Who has sent it, if it is a server of SeaweedFS.
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

/// Who answers HTTP at `address`, if that can be told.
pub(super) fn who_answers(address: &str) -> Option<&'static str> {
    let answer = ask(address, "GET", "/dir/status", &[], "", Duration::ZERO).ok()?;
    Some(answer.sender().unwrap_or("an HTTP server"))
}

/// A request with these headers and this body, to be answered in five seconds and `patience`.
pub(super) fn ask(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    patience: Duration,
) -> anyhow::Result<Answer> {
    let (begun, deadline) = (Instant::now(), DEADLINE + patience);
    let socket = address.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&socket, DEADLINE)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 64 << 10];
    loop {
        let left = deadline.saturating_sub(begun.elapsed());
        ensure!(!left.is_zero(), "no complete answer within {deadline:?}");
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&part[..n]),
            // By a signal that is handled elsewhere.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(answer.len() as u64 <= LARGEST_ANSWER, "an answer of more than {LARGEST_ANSWER} bytes");
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(&answer)? else {
        bail!("the answer breaks off");
    };
    let code = response.code.context("an answer without a status code")?;
    let named = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("server"));
    let server = named.map(|header| String::from_utf8_lossy(header.value).into_owned());
    Ok(Answer { code, server, body: String::from_utf8(answer.split_off(head))? })
}
