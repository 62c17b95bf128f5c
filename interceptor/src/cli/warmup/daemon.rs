//! The daemon of a mount: its address is an attribute of the mount, its status API takes the
//! requests.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use crate::cli::http::{self, HttpAnswer};
use crate::cli::mount_address::{explain, own_address, proc_name};
use crate::warmup::ticket::{READ_TICKET_XATTR, TICKET_LEN};
use crate::warmup::wire::{API_PATH, ErrorBody, JobReport, JobRequest, REQUEST_HEADER};

/// How long to try while the daemon has too many jobs of others.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long between two such tries.
const BUSY_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The daemons of the mounts met so far, by device number; an error for a device that is no such
/// mount.
#[derive(Debug)]
pub(super) struct DaemonRegistry {
    known: HashMap<u64, Result<Arc<DaemonClient>, String>>,
    /// Where they are, if that was said.
    address: Option<String>,
    /// What they ask for as `Authorization`, if that was said.
    authorization: Option<String>,
}

impl DaemonRegistry {
    /// An empty registry. With an `address`, mounts are not asked for theirs. `token` is that of
    /// their status APIs.
    pub(super) fn new(address: Option<String>, token: Option<&str>) -> Self {
        let authorization = token.map(|token| format!("Bearer {token}"));
        Self { known: HashMap::new(), address, authorization }
    }

    /// The daemon of the mount that `file` is in; the error says why there is none.
    pub(super) fn of(&mut self, file: &File) -> Result<Arc<DaemonClient>, String> {
        let device = file.metadata().map_err(|error| explain(&error))?.dev();
        let (address, authorization) = (&self.address, &self.authorization);
        let found = self.known.entry(device).or_insert_with(|| {
            let own = own_address(file)?;
            let address = match address {
                Some(given) => given.clone(),
                None => own.ok_or("this mount has no status API (--status-addr none)")?,
            };
            let (major, minor) = (libc::major(device), libc::minor(device));
            let (device, authorization) = (format!("{major}:{minor}"), authorization.clone());
            Ok(Arc::new(DaemonClient { address, authorization, device }))
        });
        found.clone()
    }
}

/// Whether `file` is in a mount of ours; the error says why not.
pub(super) fn is_served(file: &File) -> Result<(), String> {
    own_address(file).map(drop)
}

/// What the mount gives as a proof that this process may read `file`.
pub(super) fn read_ticket(file: &File) -> io::Result<String> {
    let mut value = [0; TICKET_LEN];
    let len = rustix::fs::getxattr(proc_name(file), READ_TICKET_XATTR, &mut value[..])?;
    String::from_utf8(value[..len].to_vec()).map_err(io::Error::other)
}

/// A running daemon.
#[derive(Debug)]
pub(super) struct DaemonClient {
    address: String,
    authorization: Option<String>,
    /// The device number of its mount, `MAJOR:MINOR`.
    pub(super) device: String,
}

impl DaemonClient {
    /// Begins a job.
    pub(super) fn begin(&self, request: &JobRequest) -> anyhow::Result<JobReport> {
        let body = serde_json::to_string(request)?;
        let begun = Instant::now();
        loop {
            let answer = self.ask("POST", API_PATH, &body, Duration::ZERO)?;
            if answer.code != 429 || begun.elapsed() > BUSY_TIMEOUT {
                return self.understand(&answer);
            }
            std::thread::sleep(BUSY_RETRY_INTERVAL);
        }
    }

    /// Asks about a job; the answer comes when it has ended, or after `wait`.
    pub(super) fn report(&self, id: &str, wait: Duration) -> anyhow::Result<JobReport> {
        let path = format!("{API_PATH}/{id}?wait_ms={}", wait.as_millis());
        self.understand(&self.ask("GET", &path, "", wait)?)
    }

    /// Ends a job, and has it forgotten.
    pub(super) fn cancel(&self, id: &str) -> anyhow::Result<JobReport> {
        self.understand(&self.ask("DELETE", &format!("{API_PATH}/{id}"), "", Duration::ZERO)?)
    }

    fn ask(&self, method: &str, path: &str, body: &str, patience: Duration) -> anyhow::Result<HttpAnswer> {
        let token = self.authorization.iter().map(|token| ("Authorization", token.as_str()));
        let headers: Vec<_> = token.chain([REQUEST_HEADER, ("Content-Type", "application/json")]).collect();
        http::send(&self.address, method, path, &headers, body, patience)
            .with_context(|| format!("the daemon does not answer at {}", self.address))
    }

    fn understand<T: DeserializeOwned>(&self, answer: &HttpAnswer) -> anyhow::Result<T> {
        if (200..300).contains(&answer.code) {
            return serde_json::from_str(&answer.body).with_context(|| {
                format!("what answers at {} is no interceptor of this version", self.address)
            });
        }
        if answer.code == 401 {
            bail!("the daemon at {} answers only with its token (--status-token-file)", self.address);
        }
        match serde_json::from_str::<ErrorBody>(&answer.body) {
            Ok(refused) => bail!("the daemon at {} refuses: {}", self.address, refused.error),
            Err(_) => bail!("what answers at {} says {} and no reason", self.address, answer.code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::hold;
    use super::*;

    #[test]
    fn what_is_outside_of_a_mount_is_called_that() {
        let file = hold("/proc/self/status".as_ref()).unwrap();
        for address in [None, Some("127.0.0.1:9650".to_owned())] {
            let error = DaemonRegistry::new(address, None).of(&file).unwrap_err();
            assert_eq!(error, "not in a mount of interceptor");
        }
    }
}
