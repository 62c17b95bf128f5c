//! Idle connections by server. The caller bounds how many requests a server is sent at a time.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::connection::HttpConnection;
use super::{Deadlines, GetRequest, Head, HttpError, HttpTimeouts, ResponsePhase};
use crate::timeline::{StepKind, Timeline};
use crate::vital;

/// The most idle connections that are kept for one server.
const MAX_IDLE: usize = 64;

/// How long an idle connection is kept. Volume servers close idle connections after 30 s by
/// default; a shorter time avoids requests that cross with the closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(25);

/// Sends requests to any number of servers. Clones share the connections.
#[derive(Clone)]
pub struct HttpClient {
    pool: Arc<ConnectionPool>,
}

struct ConnectionPool {
    tls: Option<Arc<ClientConfig>>,
    timeouts: HttpTimeouts,
    servers: Mutex<HashMap<Box<str>, Arc<ServerConnections>>>,
}

#[derive(Default)]
struct ServerConnections {
    idle: Mutex<IdleConnections>,
}

#[derive(Default)]
struct IdleConnections {
    /// The one that was used last is at the end, with the time of that.
    connections: Vec<(HttpConnection, Instant)>,
    /// Whether there is a task that closes connections after their idle time.
    has_closer: bool,
}

impl HttpClient {
    /// A client without connections. With `tls` all requests go over TLS.
    pub fn new(tls: Option<Arc<ClientConfig>>, timeouts: HttpTimeouts) -> Self {
        Self { pool: Arc::new(ConnectionPool { tls, timeouts, servers: Mutex::default() }) }
    }

    /// Sends a GET request and reads the head of the response, whatever its status. All of the
    /// response must be read by `deadlines`. How long it takes to
    /// open a connection goes to `timeline`.
    pub async fn get(
        &self,
        request: &GetRequest<'_>,
        deadlines: impl Into<Deadlines>,
        timeline: &Timeline,
    ) -> Result<Response, HttpError> {
        let deadlines = deadlines.into();
        let encoded = request.encode()?;
        let server = self.server(request.authority);
        if let Some(mut connection) = server.take() {
            match connection.exchange(&encoded, deadlines).await {
                Ok(head) => return Ok(Response::new(head, connection, server)),
                Err(HttpError::Io(_) | HttpError::Closed(ResponsePhase::BeforeResponse))
                    if !connection.has_answered() => {}
                Err(error) => return Err(error),
            }
        }
        let ConnectionPool { tls, timeouts, .. } = &*self.pool;
        let connecting = timeline.begin_at(StepKind::Connect, request.authority);
        let opened = HttpConnection::open(request.authority, tls.as_ref(), timeouts, deadlines).await;
        connecting.end_with(&opened);
        let mut connection = opened?;
        let head = connection.exchange(&encoded, deadlines).await?;
        Ok(Response::new(head, connection, server))
    }

    fn server(&self, authority: &str) -> Arc<ServerConnections> {
        let mut servers = self.pool.servers.lock();
        if let Some(server) = servers.get(authority) {
            return server.clone();
        }
        let server = Arc::<ServerConnections>::default();
        servers.insert(authority.into(), server.clone());
        server
    }
}

impl ServerConnections {
    /// The connection that was used last of those that are still open.
    fn take(&self) -> Option<HttpConnection> {
        loop {
            let (connection, since) = self.idle.lock().connections.pop()?;
            if since.elapsed() < IDLE_TIMEOUT && connection.is_usable() {
                return Some(connection);
            }
        }
    }

    fn put(self: &Arc<Self>, connection: HttpConnection) {
        let mut idle = self.idle.lock();
        if idle.connections.len() == MAX_IDLE {
            idle.connections.remove(0);
        }
        idle.connections.push((connection, Instant::now()));
        if !idle.has_closer {
            idle.has_closer = true;
            tokio::spawn(vital::task("idle connections", close_idle(Arc::downgrade(self))));
        }
    }
}

/// Closes connections after their idle time, until there are none left.
async fn close_idle(server: Weak<ServerConnections>) {
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        let Some(server) = server.upgrade() else { return };
        let mut idle = server.idle.lock();
        idle.connections.retain(|(_, since)| since.elapsed() < IDLE_TIMEOUT);
        if idle.connections.is_empty() {
            idle.has_closer = false;
            return;
        }
    }
}

/// A response: its head, and its body to be read. Dropping it before the end of the body closes
/// the connection.
pub struct Response {
    head: Head,
    /// Returned to the pool with the last byte of the body.
    connection: Option<HttpConnection>,
    server: Arc<ServerConnections>,
}

impl Response {
    fn new(head: Head, connection: HttpConnection, server: Arc<ServerConnections>) -> Self {
        let mut response = Self { head, connection: Some(connection), server };
        response.release_if_finished();
        response
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Whether the body was read to its end. The end of a chunked body shows only when it is read.
    pub fn is_over(&self) -> bool {
        self.connection.as_ref().is_none_or(HttpConnection::is_over)
    }

    /// Reads the next bytes of the body into `dst`. Returns how many: 0 only at the end of the
    /// body or if `dst` is empty. After an error the response cannot be read any more.
    pub async fn read(&mut self, dst: &mut [u8]) -> Result<usize, HttpError> {
        let Some(connection) = &mut self.connection else { return Ok(0) };
        let count = connection.read_body(dst).await?;
        self.release_if_finished();
        Ok(count)
    }

    fn release_if_finished(&mut self) {
        if let Some(connection) = self.connection.take_if(|connection| connection.is_finished())
            && self.head.keep_alive
        {
            self.server.put(connection);
        }
    }
}
