//! A listener for small HTTP servers that every user of the host can reach: it has a bounded number
//! of connections at a time, and closes those on which nothing moves.
//!
//! Each connection takes a descriptor and some memory of a process that has better uses for both.
//! Without a bound, any user could take all descriptors of a daemon by connecting and saying
//! nothing. One connection too many takes the place of the oldest, so a user who holds connections
//! cannot keep other clients from `/healthz`. An answer takes a millisecond, and a client whose
//! connection is closed in between, like a dashboard, connects again.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

/// Connections at a time. A browser has six for each page, a collector one.
const MAX_CONNECTIONS: usize = 128;

/// How long a connection may be open with nothing read or written.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A TCP listener, bounded.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    connections: usize,
    idle: Duration,
    /// What ends each connection by being dropped, the oldest first.
    open: VecDeque<oneshot::Sender<()>>,
}

impl BoundedListener {
    /// Takes connections from `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self::with_limits(listener, MAX_CONNECTIONS, IDLE_TIMEOUT)
    }

    fn with_limits(listener: TcpListener, connections: usize, idle: Duration) -> Self {
        Self { listener, connections, idle, open: VecDeque::new() }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        // That of the TCP listener waits out what is temporary, and cannot fail.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        self.open.retain(|connection| !connection.is_closed());
        if self.open.len() >= self.connections {
            self.open.pop_front();
        }
        let (open, replaced) = oneshot::channel();
        self.open.push_back(open);
        let deadline = Box::pin(sleep(self.idle));
        (BoundedStream { stream, deadline, idle: self.idle, replaced, has_been_replaced: false }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection of a [`BoundedListener`].
#[derive(Debug)]
pub struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    idle: Duration,
    /// Ready once a newer connection has its place.
    replaced: oneshot::Receiver<()>,
    has_been_replaced: bool,
}

impl BoundedStream {
    /// The address of this host's end.
    ///
    /// # Errors
    /// When the socket does not know.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Waits for the next byte and leaves it to be read; `None` at the end of the stream.
    ///
    /// # Errors
    /// As with a read: of the socket, or when the connection was idle for too long or had to make
    /// room.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let peeked = poll_fn(|context| {
            let outcome = self.stream.poll_peek(context, &mut ReadBuf::new(&mut byte));
            self.moved(outcome, context)
        });
        Ok((peeked.await? > 0).then_some(byte[0]))
    }

    /// Resolves when the connection has to make room, for who waits for something else than it.
    pub async fn replaced(&mut self) {
        poll_fn(|context| if self.is_replaced(context) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Whether the connection has to make room; if not, the task is woken when it has to.
    fn is_replaced(&mut self, context: &mut Context<'_>) -> bool {
        // A receiver that has ended must not be asked again, as TLS does when it says goodbye.
        if !self.has_been_replaced {
            self.has_been_replaced = Pin::new(&mut self.replaced).poll(context).is_ready();
        }
        self.has_been_replaced
    }

    /// Takes note of progress, or ends the connection if there was none for too long, or if it had
    /// to make room.
    fn moved<T>(&mut self, outcome: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if self.is_replaced(context) {
            let error =
                io::Error::new(io::ErrorKind::ConnectionAborted, "it made room for a newer connection");
            return Poll::Ready(Err(error));
        }
        if outcome.is_ready() {
            self.deadline.as_mut().reset(Instant::now() + self.idle);
            return outcome;
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was read or written")))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.moved(outcome, context)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.moved(outcome, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.moved(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    async fn ask(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        // A connection that was closed may break while the request is written.
        let _ = stream.write_all(REQUEST).await;
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    async fn served(connections: usize, idle: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        let bounded = BoundedListener::with_limits(listener, connections, idle);
        tokio::spawn(async move { axum::serve(bounded, router).await });
        address
    }

    #[tokio::test]
    async fn whoever_holds_all_connections_keeps_nobody_out() {
        let address = served(2, Duration::from_secs(600)).await;
        let connect = || async { TcpStream::connect(address).await.unwrap() };
        let mut held = Vec::new();
        for _ in 0..5 {
            let mut stream = connect().await;
            stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
            held.push(stream);
            assert!(ask(connect().await).await.ends_with("here"));
        }
        // All but the latest have made room, which is what bounds them.
        for mut stream in held.drain(..4) {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty());
        }
    }

    #[tokio::test]
    async fn a_connection_that_made_room_fails_however_often_it_is_used() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut bounded = BoundedListener::with_limits(listener, 1, Duration::from_secs(600));
        let mut streams = Vec::new();
        for _ in 0..2 {
            let client = TcpStream::connect(address).await.unwrap();
            streams.push((bounded.accept().await.0, client));
        }
        let first = &mut streams[0].0;
        for _ in 0..2 {
            first.replaced().await;
            let read = first.read_u8().await.unwrap_err();
            let written = first.write_all(b"goodbye").await.unwrap_err();
            assert_eq!([read.kind(), written.kind()], [io::ErrorKind::ConnectionAborted; 2]);
        }
    }

    #[tokio::test]
    async fn a_silent_connection_is_closed_in_time_whatever_it_has_begun() {
        let address = served(2, Duration::from_millis(300)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        let mut rest = Vec::new();
        let _ = silent.read_to_end(&mut rest).await;
    }
}
