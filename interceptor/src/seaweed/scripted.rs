//! An HTTP server for tests that sends responses no real server can be made to send.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use parking_lot::Mutex;

/// What the server does after a request.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes again and again until the client closes the connection.
    Repeat(Vec<u8>),
    /// Waits for this time.
    Pause(Duration),
    /// Closes the connection in order.
    Close,
    /// Breaks the connection.
    Reset,
    /// Sends nothing more and waits until the client closes the connection.
    Hold,
}

type Script = dyn Fn(usize, &str) -> Vec<Step> + Send + Sync;

#[derive(Default)]
struct Log {
    requests: Mutex<Vec<String>>,
    connections: AtomicUsize,
    /// Connections that the client has not closed.
    open: AtomicUsize,
    stopped: AtomicBool,
}

/// A server on a loopback port. It stops when it is dropped.
pub(crate) struct ScriptedServer {
    address: String,
    log: Arc<Log>,
}

impl ScriptedServer {
    /// Starts a server. `script` returns what to do after each request, given its number, from 0,
    /// and its text.
    pub(crate) fn start(script: impl Fn(usize, &str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (log, script) = (Arc::new(Log::default()), Arc::new(script));
        let shared = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(SeqCst) {
                    return;
                }
                shared.connections.fetch_add(1, SeqCst);
                shared.open.fetch_add(1, SeqCst);
                let (log, script) = (shared.clone(), script.clone());
                std::thread::spawn(move || {
                    serve(stream.unwrap(), &log, &*script);
                    log.open.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, log }
    }

    /// Starts a server that sends the same response to each request.
    pub(crate) fn always(steps: Vec<Step>) -> Self {
        Self::start(move |_, _| steps.clone())
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.log.requests.lock().clone()
    }

    /// Waits until every client has closed its connection.
    pub(crate) fn await_clients_gone(&self) {
        while self.log.open.load(SeqCst) > 0 {
            std::thread::yield_now();
        }
    }

    /// How many connections were accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.log.connections.load(SeqCst)
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.log.stopped.store(true, SeqCst);
        // The listener checks the flag after each connection.
        let _ = TcpStream::connect(&self.address);
    }
}

fn serve(mut stream: TcpStream, log: &Log, script: &Script) {
    while let Some(request) = peek_request(&stream) {
        let steps = {
            let mut requests = log.requests.lock();
            requests.push(request.clone());
            script(requests.len() - 1, &request)
        };
        // The kernel resets a connection that is closed with unread bytes.
        if !steps.iter().any(|step| matches!(step, Step::Reset)) {
            stream.read_exact(&mut vec![0; request.len()]).unwrap();
        }
        for step in steps {
            match step {
                Step::Send(bytes) => {
                    if stream.write_all(&bytes).is_err() {
                        return;
                    }
                }
                Step::Repeat(bytes) => {
                    while stream.write_all(&bytes).is_ok() {}
                    return;
                }
                Step::Pause(time) => std::thread::sleep(time),
                Step::Close => {
                    let _ = stream.shutdown(Shutdown::Write);
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
                Step::Reset => return,
                Step::Hold => {
                    let _ = stream.read_to_end(&mut Vec::new());
                    return;
                }
            }
        }
    }
}

/// The next request, left in the socket; `None` if the client has closed the connection.
fn peek_request(stream: &TcpStream) -> Option<String> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.peek(&mut buffer).ok().filter(|&count| count > 0)?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        if let Some(end) = text.find("\r\n\r\n") {
            return Some(text[..end + 4].to_owned());
        }
    }
}

/// A response with these fields and a body of known length.
pub(crate) fn answer(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in fields {
        text.extend([name, ": ", value, "\r\n"]);
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// One step: [`answer`].
pub(crate) fn send(status: u16, fields: &[(&str, &str)], body: &[u8]) -> Vec<Step> {
    vec![Step::Send(answer(status, fields, body))]
}
