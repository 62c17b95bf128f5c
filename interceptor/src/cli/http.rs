//! Requests to a daemon's status API, one over each connection. HTTP/1.0, so that the body ends where the connection does.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// The daemon answers from memory, or says within three seconds what hangs: if it takes longer than this, something is
/// wrong with it.
const DEADLINE: Duration = Duration::from_secs(5);

/// More than any answer has.
const LARGEST_ANSWER: u64 = 16 << 20;

/// An answer of the status API.
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: String,
}

/// A request for what is at `path`.
pub(super) fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    ask(address, "GET", path, &[], "", Duration::ZERO)
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
    Ok(Answer { code, body: String::from_utf8(answer.split_off(head))? })
}
