//! Writing files into SeaweedFS through the filer's HTTP interface.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ureq::{Agent, SendBody};

use crate::interrupt;
use crate::pattern::Pattern;

/// Connections that write at the same time.
const WRITERS: usize = 4;

/// A filer to write to.
#[derive(Clone)]
pub(crate) struct Uploader {
    agent: Agent,
    /// `host:port`.
    filer: String,
}

impl Uploader {
    pub(crate) fn new(filer: &str) -> Self {
        let config = Agent::config_builder().timeout_global(Some(Duration::from_secs(300)));
        Self { agent: config.build().into(), filer: filer.to_owned() }
    }

    /// Creates the file at `path` (absolute) in chunks of 4 MiB, and the directories above it.
    pub(crate) fn put(&self, path: &str, size: u64, body: impl Read) -> Result<()> {
        let url = format!("http://{}{}?maxMB=4", self.filer, percent_encoded(path));
        let mut body = body;
        let request = self.agent.put(&url).header("Content-Length", size.to_string());
        let request = request.header("Content-Type", "application/octet-stream");
        request
            .send(SendBody::from_reader(&mut body))
            .map(drop)
            .with_context(|| format!("cannot write {path}"))
    }

    /// Calls `write` for each of `items` on a few threads; the first error (or an interrupt) ends it.
    pub(crate) fn each<T: Sync>(
        &self,
        items: &[T],
        write: impl Fn(&Self, &T) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = interrupt::check().and_then(|()| write(self, item)) {
                            next.store(items.len(), Ordering::Relaxed);
                            failure.lock().unwrap_or_else(|poison| poison.into_inner()).get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(|poison| poison.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// The bytes of a [`Pattern`] from its beginning, as a stream that `seen` is shown on the way. Ends early, with an error, on an interrupt.
pub(crate) struct Stream<F> {
    pattern: Pattern,
    offset: u64,
    size: u64,
    seen: F,
}

impl<F: FnMut(&[u8])> Stream<F> {
    pub(crate) fn new(pattern: Pattern, size: u64, seen: F) -> Self {
        Self { pattern, offset: 0, size, seen }
    }
}

impl<F: FnMut(&[u8])> Read for Stream<F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if interrupt::requested() {
            return Err(std::io::Error::other(interrupt::Interrupted));
        }
        let part = buffer.len().min((self.size - self.offset).try_into().unwrap_or(usize::MAX));
        self.pattern.fill(self.offset, &mut buffer[..part]);
        (self.seen)(&buffer[..part]);
        self.offset += part as u64;
        Ok(part)
    }
}

/// The path as it stands in a URL.
fn percent_encoded(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_url() {
        assert_eq!(percent_encoded("/a b/é#?%.bin"), "/a%20b/%C3%A9%23%3F%25.bin");
    }

    #[test]
    fn a_stream_gives_the_pattern_and_ends() {
        let pattern = Pattern::of("x");
        let mut seen = 0;
        let mut data = Vec::new();
        Stream::new(pattern, 100_003, |part| seen += part.len()).read_to_end(&mut data).unwrap();
        assert_eq!((data.len(), seen), (100_003, 100_003));
        assert_eq!(pattern.first_difference(0, &data), None);
    }
}
