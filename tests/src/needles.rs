//! Needles written and read at the volume servers themselves, over HTTP.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use ureq::Agent;

use crate::Cluster;

/// Longest wait for one request.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of a cluster's master and volume servers.
#[derive(Clone, Debug)]
pub struct Needles {
    master: String,
    agent: Agent,
}

/// Where a needle may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// `VOLUME,KEYCOOKIE`.
    pub fid: String,
    /// The volume server, `127.0.0.1:PORT`.
    pub server: String,
}

impl Needles {
    /// A client of `cluster`.
    #[must_use]
    pub fn new(cluster: &Cluster) -> Needles {
        let agent =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT_TIMEOUT)).build();
        Needles { master: cluster.master().address(), agent: agent.into() }
    }

    /// Asks the master for a new file id; `query` as in a URL (`collection=x&ttl=1m`), or empty.
    ///
    /// # Errors
    /// When there is no answer, or no volume can be written to.
    pub fn assign(&self, query: &str) -> anyhow::Result<Assigned> {
        let url = format!("http://{}/dir/assign?{query}", self.master);
        let mut answer = self.agent.get(&url).call().with_context(|| url.clone())?;
        let answer: Value = serde_json::from_str(&answer.body_mut().read_to_string()?)?;
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        let assigned = text("fid").zip(text("url")).with_context(|| format!("{url}: {answer}"))?;
        Ok(Assigned { fid: assigned.0, server: assigned.1 })
    }

    /// Writes a needle.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn put(
        &self,
        at: &Assigned,
        content: &[u8],
        query: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let url = format!("http://{}/{}?{query}", at.server, at.fid);
        let mut request = self.agent.put(&url).header("Content-Type", "application/octet-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.send(content).with_context(|| url.clone())?;
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        anyhow::ensure!(answer.status().is_success(), "PUT {url}: {} {text}", answer.status());
        Ok(())
    }

    /// Deletes a needle.
    ///
    /// # Errors
    /// When the server does not answer with success or "not there".
    pub fn delete(&self, at: &Assigned) -> anyhow::Result<()> {
        let url = format!("http://{}/{}", at.server, at.fid);
        let answer = self.agent.delete(&url).call().with_context(|| url.clone())?;
        let status = answer.status().as_u16();
        anyhow::ensure!(answer.status().is_success() || status == 404, "DELETE {url}: {status}");
        Ok(())
    }

    /// The needle as it is stored (compressed if it is), even if it was deleted; `None` if the
    /// server does not have it.
    ///
    /// # Errors
    /// When the server answers otherwise.
    pub fn get(&self, at: &Assigned) -> anyhow::Result<Option<Vec<u8>>> {
        let url = format!("http://{}/{}?readDeleted=true", at.server, at.fid);
        let mut answer =
            self.agent.get(&url).header("Accept-Encoding", "gzip").call().with_context(|| url.clone())?;
        match answer.status().as_u16() {
            200 => Ok(Some(answer.body_mut().with_config().limit(1 << 30).read_to_vec()?)),
            404 => Ok(None),
            status => anyhow::bail!("GET {url}: {status}"),
        }
    }

    /// Has the master compact every volume that has any garbage; returns when it has begun.
    ///
    /// # Errors
    /// When the master does not answer.
    pub fn vacuum(&self) -> anyhow::Result<()> {
        let url = format!("http://{}/vol/vacuum?garbageThreshold=0.0001", self.master);
        self.agent.get(&url).call().context(url)?;
        Ok(())
    }
}
