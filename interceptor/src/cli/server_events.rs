//! Server-sent events of the status API about a file or tree of a mount.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use form_urlencoded::Serializer;

use super::http::StatusClient;

/// The longest line of an event. The longest there is has a profile of files with long names.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Events as they come.
pub(super) struct ServerEvents<R> {
    body: BufReader<R>,
    name: String,
    line: String,
}

/// Asks `client` for the events of `route` about `path`, a path from the root of the mount on, for
/// `time`, with `more` of the query.
pub(super) fn events_of(
    client: &StatusClient,
    route: &str,
    path: &Path,
    time: Duration,
    more: &[(&str, &str)],
) -> anyhow::Result<ServerEvents<impl Read + use<>>> {
    let path = path.to_str().context("the status API takes paths in UTF-8 only")?;
    // The daemon counts whole seconds.
    let seconds = time.as_secs_f64().ceil() as u64;
    let route = format!("{route}?");
    let length = route.len();
    let mut query = Serializer::for_suffix(route, length);
    let query = query
        .append_pair("path", path)
        .append_pair("seconds", &seconds.to_string())
        .extend_pairs(more)
        .finish();
    let (code, body) = client.stream(&query, Duration::from_secs(seconds))?;
    match code {
        200 => Ok(ServerEvents::new(body)),
        401 => bail!("the daemon answers only with its token (--status-token-file)"),
        404 => bail!("the daemon is of a version without this: interceptor mount --restart"),
        other => bail!("the daemon answers with HTTP status {other}"),
    }
}

impl<R: Read> ServerEvents<R> {
    pub(super) fn new(body: R) -> Self {
        Self { body: BufReader::new(body), name: String::new(), line: String::new() }
    }

    /// The name and the data of the next event.
    ///
    /// # Errors
    /// If there is none: the caller knows which event is the last one.
    pub(super) fn next(&mut self) -> anyhow::Result<(&str, &str)> {
        loop {
            self.line.clear();
            let length = self.body.by_ref().take(MAX_LINE_BYTES).read_line(&mut self.line);
            if length
                .context("the connection broke: the mount was unmounted or restarted, or its daemon died")?
                == 0
            {
                bail!("the daemon has ended, or the mount was taken over by another process");
            }
            ensure!(self.line.ends_with('\n'), "the daemon sent a line that is too long");
            if let Some(name) = self.line.strip_prefix("event: ") {
                name.trim_end().clone_into(&mut self.name);
            } else if self.line.starts_with("data: ") {
                return Ok((&self.name, self.line["data: ".len()..].trim_end()));
            }
        }
    }
}
