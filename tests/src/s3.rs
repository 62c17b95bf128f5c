//! An S3 gateway over HTTP, without signatures.

use std::time::Duration;

use anyhow::Context;
use ureq::Agent;

/// Longest wait for one request.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one gateway. Objects are named `BUCKET/KEY`.
#[derive(Clone, Debug)]
pub struct S3 {
    address: String,
    agent: Agent,
}

impl S3 {
    /// What the gateway of a [`Cluster`](crate::Cluster) lets in, for programs that sign.
    pub const ACCESS_KEY: &str = "origin";
    /// The secret of [`ACCESS_KEY`](Self::ACCESS_KEY).
    pub const SECRET_KEY: &str = "secret-of-the-origin";

    /// Headers that have an object encrypted with a key of the client (SSE-C).
    pub const SSE_C: [(&str, &str); 3] = [
        ("X-Amz-Server-Side-Encryption-Customer-Algorithm", "AES256"),
        ("X-Amz-Server-Side-Encryption-Customer-Key", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        ("X-Amz-Server-Side-Encryption-Customer-Key-MD5", "hRasmdxgYDKV3nvbahU1MA=="),
    ];
    /// Headers that have an object encrypted with a key of the gateway (SSE-S3).
    pub const SSE_S3: [(&str, &str); 1] = [("X-Amz-Server-Side-Encryption", "AES256")];

    /// A client of the gateway at `address` (`127.0.0.1:PORT`).
    #[must_use]
    pub fn new(address: &str) -> S3 {
        let agent =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT_TIMEOUT)).build();
        S3 { address: address.to_owned(), agent: agent.into() }
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes a bucket.
    ///
    /// # Errors
    /// When the gateway cannot be reached or refuses; so everywhere below.
    pub fn make_bucket(&self, bucket: &str) -> anyhow::Result<()> {
        self.put(bucket, b"", &[])
    }

    /// Writes a whole object.
    ///
    /// # Errors
    /// See [`S3::make_bucket`].
    pub fn put(&self, object: &str, content: &[u8], headers: &[(&str, &str)]) -> anyhow::Result<()> {
        let url = format!("http://{}/{object}", self.address);
        let request =
            headers.iter().fold(self.agent.put(&url), |request, (name, value)| request.header(*name, *value));
        let mut answer = request.send(content).with_context(|| url.clone())?;
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        anyhow::ensure!(answer.status().is_success(), "PUT {url}: {} {text}", answer.status());
        Ok(())
    }
}
