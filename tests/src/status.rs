//! The status page of an `interceptor` daemon, as a monitoring system sees it.

use std::io::Read;
use std::time::Duration;

/// Longest wait for an answer.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a daemon tells what it does.
#[derive(Clone, Debug)]
pub struct StatusPage {
    url: String,
}

impl StatusPage {
    /// The page at `http://HOST:PORT`.
    #[must_use]
    pub fn at(url: String) -> StatusPage {
        StatusPage { url }
    }

    /// GETs a path: the HTTP status and the body.
    ///
    /// # Errors
    /// When the page does not answer.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(WAIT_TIMEOUT))
            .build();
        let mut answer = ureq::Agent::new_with_config(config).get(format!("{}{path}", self.url)).call()?;
        let mut text = String::new();
        answer.body_mut().as_reader().read_to_string(&mut text)?;
        Ok((answer.status().as_u16(), text))
    }

    /// GETs a path whose answer has no end, like the events of a dashboard. Dropping it closes the
    /// connection; a read waits for the next bytes without a timeout.
    ///
    /// # Errors
    /// When the page does not answer.
    pub fn follow(&self, path: &str) -> anyhow::Result<impl Read + Send + use<>> {
        Ok(ureq::get(format!("{}{path}", self.url)).call()?.into_body().into_reader())
    }

    /// The sum of a metric's samples whose labels contain all of `labels` (each as
    /// `name="value"`).
    ///
    /// # Errors
    /// When the page does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let (status, text) = self.get("/metrics")?;
        anyhow::ensure!(status == 200, "/metrics: {status}");
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once('}')?,
                None => ("", rest.starts_with(' ').then_some(rest)?),
            };
            labels.iter().all(|label| found.contains(label)).then_some(())?;
            value.split_whitespace().next()?.parse::<f64>().ok()
        });
        Ok(samples.sum())
    }
}
