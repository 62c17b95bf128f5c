//! Connections by server. How many requests a server is given at a time is the caller's business.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::connection::Connection;
use super::{Deadlines, Head, HttpError, Limits, Request, Where};
use crate::vital;

/// How many idle connections are kept for one server.
const MAX_IDLE: usize = 64;

/// How long an idle connection is kept. Volume servers close theirs after 30 s by default; staying below that avoids
/// requests that cross with the closing.
const IDLE_TIME: Duration = Duration::from_secs(25);

/// Sends requests to any number of servers. A clone shares the connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    tls: Option<Arc<ClientConfig>>,
    limits: Limits,
    servers: Mutex<HashMap<Box<str>, Arc<Server>>>,
}

#[derive(Default)]
struct Server {
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one used last is at the end.
    connections: Vec<(Connection, Instant)>,
    /// Whether a task closes those that are idle for too long.
    watched: bool,
}

impl Client {
    /// A client without connections. With `tls` every server is spoken to over TLS.
    pub fn new(tls: Option<Arc<ClientConfig>>, limits: Limits) -> Self {
        Self { shared: Arc::new(Shared { tls, limits, servers: Mutex::default() }) }
    }

    /// Sends a GET request and reads the head of the answer, whatever its status. All of the answer must be read by
    /// `deadlines`.
    pub async fn get(
        &self,
        request: &Request<'_>,
        deadlines: impl Into<Deadlines>,
    ) -> Result<Response, HttpError> {
        let deadlines = deadlines.into();
        let encoded = request.encode()?;
        let server = self.server(request.authority);
        if let Some(mut connection) = server.take() {
            match connection.exchange(&encoded, deadlines).await {
                Ok(head) => return Ok(Response::new(head, connection, server)),
                Err(HttpError::Io(_) | HttpError::Closed(Where::BeforeAnswer))
                    if !connection.has_answered() => {}
                Err(error) => return Err(error),
            }
        }
        let Shared { tls, limits, .. } = &*self.shared;
        let mut connection = Connection::open(request.authority, tls.as_ref(), limits, deadlines).await?;
        let head = connection.exchange(&encoded, deadlines).await?;
        Ok(Response::new(head, connection, server))
    }

    fn server(&self, authority: &str) -> Arc<Server> {
        let mut servers = self.shared.servers.lock();
        if let Some(server) = servers.get(authority) {
            return server.clone();
        }
        let server = Arc::<Server>::default();
        servers.insert(authority.into(), server.clone());
        server
    }
}

impl Server {
    /// The connection that was used last, of those that are still open.
    fn take(&self) -> Option<Connection> {
        loop {
            let (connection, since) = self.idle.lock().connections.pop()?;
            if since.elapsed() < IDLE_TIME && connection.is_usable() {
                return Some(connection);
            }
        }
    }

    fn put(self: &Arc<Self>, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.connections.len() == MAX_IDLE {
            idle.connections.remove(0);
        }
        idle.connections.push((connection, Instant::now()));
        if !idle.watched {
            idle.watched = true;
            tokio::spawn(vital::task("idle connections", close_idle(Arc::downgrade(self))));
        }
    }
}

/// Closes connections that are idle for too long, until there are none left.
async fn close_idle(server: Weak<Server>) {
    loop {
        tokio::time::sleep(IDLE_TIME).await;
        let Some(server) = server.upgrade() else { return };
        let mut idle = server.idle.lock();
        idle.connections.retain(|(_, since)| since.elapsed() < IDLE_TIME);
        if idle.connections.is_empty() {
            idle.watched = false;
            return;
        }
    }
}

/// An answer: its head, and its body to be read. Dropped before the end of the body it closes the connection.
pub struct Response {
    head: Head,
    /// Given back to the pool with the last byte.
    connection: Option<Connection>,
    server: Arc<Server>,
}

impl Response {
    fn new(head: Head, connection: Connection, server: Arc<Server>) -> Self {
        let mut response = Self { head, connection: Some(connection), server };
        response.release_if_finished();
        response
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Whether the body was read to its end. The end of a body without a length shows only when it is read.
    pub fn is_over(&self) -> bool {
        self.connection.as_ref().is_none_or(Connection::is_over)
    }

    /// Reads the next bytes of the body into `dst`: how many, 0 only at the end of the body or if `dst` is empty. After an
    /// error the answer is of no use.
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
