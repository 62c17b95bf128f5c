//! A filer over HTTP: how tests write, and what they compare with.

use std::io::{self, Read};
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

/// Longest wait for one request; the largest upload of a suite is 1 GiB.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of one filer. Paths are absolute and not escaped; queries are given as in a URL
/// (`maxMB=1&op=append`), or empty.
#[derive(Clone, Debug)]
pub struct Filer {
    address: String,
    agent: Agent,
}

impl Filer {
    /// A client of the filer at `address` (`127.0.0.1:PORT`).
    #[must_use]
    pub fn new(address: &str) -> Filer {
        let agent =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT_TIMEOUT)).build();
        Filer { address: address.to_owned(), agent: agent.into() }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// When the filer cannot be reached or refuses; so everywhere below.
    pub fn put(&self, path: &str, content: &[u8], query: &str) -> anyhow::Result<()> {
        self.put_as(path, content, query, &[])
    }

    /// Writes a whole file, with request headers (`Content-Type`, …).
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn put_as(
        &self,
        path: &str,
        content: &[u8],
        query: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let url = self.url(path, query);
        let mut request = self.agent.put(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        accepted(&url, request.send(content))
    }

    /// Writes a whole file from a stream.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn put_reader(&self, path: &str, mut content: impl Read, query: &str) -> anyhow::Result<()> {
        let url = self.url(path, query);
        accepted(&url, self.agent.put(&url).send(SendBody::from_reader(&mut content)))
    }

    /// Appends to a file, as chunks of its own.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn append(&self, path: &str, content: &[u8], query: &str) -> anyhow::Result<()> {
        let query = if query.is_empty() { "op=append".to_owned() } else { format!("op=append&{query}") };
        self.put(path, content, &query)
    }

    /// The content of a file.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.get_reader(path)?.read_to_end(&mut content).with_context(|| format!("reading {path}"))?;
        Ok(content)
    }

    /// The content of a file as a stream.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn get_reader(&self, path: &str) -> anyhow::Result<impl Read + use<>> {
        let url = self.url(path, "");
        let answer = self.agent.get(&url).call().with_context(|| url.clone())?;
        anyhow::ensure!(answer.status() == 200, "GET {url}: {}", answer.status());
        Ok(answer.into_body().into_reader())
    }

    /// Makes a directory, with its parents.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn mkdir(&self, path: &str) -> anyhow::Result<()> {
        let url = self.url(&format!("{}/", path.trim_end_matches('/')), "");
        accepted(&url, self.agent.post(&url).send_empty())
    }

    /// Renames a file or directory.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn rename(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let url = self.url(to, &format!("mv.from={}", escape(from)));
        accepted(&url, self.agent.post(&url).send_empty())
    }

    /// Deletes a file, or a directory with all below it.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        let url = self.url(path, "recursive=true");
        accepted(&url, self.agent.delete(&url).call())
    }

    /// The entry of a file or directory as the filer's JSON (`FullPath`, `Mtime`, `FileSize`,
    /// `chunks`, …); `None` if there is none.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn entry(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let url = self.url(path, "metadata=true");
        let mut answer = self.agent.get(&url).call().with_context(|| url.clone())?;
        match answer.status().as_u16() {
            404 => Ok(None),
            200 => Ok(Some(serde_json::from_str(&read_text(&mut answer)?)?)),
            status => anyhow::bail!("GET {url}: {status}"),
        }
    }

    /// The chunks of a file, as in the filer's JSON (`file_id`, `offset`, `size`, …).
    ///
    /// # Errors
    /// See [`Filer::put`]; also when there is no such file.
    pub fn chunks(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let entry = self.entry(path)?.with_context(|| format!("the filer has no {path}"))?;
        Ok(entry["chunks"].as_array().cloned().unwrap_or_default())
    }

    /// The entries of a directory in name order.
    ///
    /// # Errors
    /// See [`Filer::put`].
    pub fn list(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let url = self.url(&format!("{}/", path.trim_end_matches('/')), "limit=1000000");
        let mut answer =
            self.agent.get(&url).header("Accept", "application/json").call().with_context(|| url.clone())?;
        anyhow::ensure!(answer.status() == 200, "GET {url}: {}", answer.status());
        let listing: Value = serde_json::from_str(&read_text(&mut answer)?)?;
        Ok(listing["Entries"].as_array().cloned().unwrap_or_default())
    }

    fn url(&self, path: &str, query: &str) -> String {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("http://{}{}{mark}{query}", self.address, escape(path))
    }
}

/// Percent-encodes everything but unreserved characters and `/`.
fn escape(path: &str) -> String {
    path.bytes()
        .map(|byte| match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

fn accepted(url: &str, answer: Result<Response<Body>, ureq::Error>) -> anyhow::Result<()> {
    let mut answer = answer.with_context(|| url.to_owned())?;
    let text = read_text(&mut answer).unwrap_or_default();
    anyhow::ensure!(answer.status().is_success(), "{url}: {} {text}", answer.status());
    Ok(())
}

fn read_text(answer: &mut Response<Body>) -> io::Result<String> {
    let mut text = String::new();
    answer.body_mut().as_reader().read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn paths_are_escaped_byte_by_byte() {
        assert_eq!(super::escape("/a b/ü?#%.txt"), "/a%20b/%C3%BC%3F%23%25.txt");
    }
}
