//! The mounts of this host that an `interceptor` serves, and what their daemons say of themselves.
//!
//! The kernel's mount table names them, so nothing has to be written down anywhere, and a daemon
//! that was killed leaves no false entry. All are asked at the same time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;

use super::http::StatusClient;
use super::mount_address::{ATTRIBUTE_TIMEOUT, address_of, answer_of, is_ours};
use crate::fuse::mountinfo::MountInfo;
use crate::telemetry::report::StatusReport;

/// How long all daemons together may take.
const REPORTS_TIMEOUT: Duration = Duration::from_secs(5);

/// A mount, and the answer of its daemon or the reason why there is none.
pub(super) struct LocalMount<T = DaemonAnswer> {
    pub(super) mount: MountInfo,
    pub(super) report: Result<T, String>,
}

/// What a daemon says of itself.
pub(super) struct DaemonAnswer {
    /// The URL of its dashboard.
    pub(super) dashboard: String,
    pub(super) report: StatusReport,
}

/// The first mounts of the mount table, `limit` of them at most, and what their daemons say to
/// `client`, whose address does not matter.
pub(super) fn find(client: &StatusClient, limit: usize) -> anyhow::Result<Vec<LocalMount>> {
    ask_all(client, limit, |client| {
        Ok(DaemonAnswer { dashboard: client.dashboard()?, report: client.report()? })
    })
}

/// The first mounts of the mount table, `limit` of them at most, and the answers of their daemons
/// to `question`, which `client` asks. Its address does not matter.
pub(super) fn ask_all<T: Send + 'static>(
    client: &StatusClient,
    limit: usize,
    question: fn(&StatusClient) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<LocalMount<T>>> {
    let table = MountInfo::all().context("cannot see what is mounted")?;
    let deadline = Instant::now() + REPORTS_TIMEOUT;
    let ask = |mount: MountInfo| {
        let (asked, mut client) = (mount.clone(), client.clone());
        // Another user's mount may name any address, to be sent the token.
        client.token_file = client.token_file.filter(|_| mount.is_of_root_or_own());
        let Some(inflight) = InflightMount::begin(mount.id) else { return (mount, None) };
        let ask = move || {
            let _inflight = inflight;
            question(&StatusClient { address: address_of(&asked)?, ..client })
        };
        (mount, Some(answer_of(ask)))
    };
    let asked: Vec<_> = table.into_iter().filter(is_ours).take(limit).map(ask).collect();
    let answered = asked.into_iter().map(|(mount, answer)| {
        let left = deadline.saturating_duration_since(Instant::now());
        let report = match answer.and_then(|answer| answer.recv_timeout(left).ok()) {
            Some(answer) => answer.map_err(|error| format!("{error:#}")),
            None => Err("the daemon does not answer".to_owned()),
        };
        LocalMount { mount, report }
    });
    Ok(answered.collect())
}

/// The mounts that are being asked, by id. One that hangs keeps a thread, and only one.
static INFLIGHT_MOUNTS: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// A mount is being asked while this lives.
struct InflightMount(u64);

impl InflightMount {
    /// `None` if it is being asked already.
    fn begin(mount: u64) -> Option<Self> {
        INFLIGHT_MOUNTS.lock().insert(mount).then_some(Self(mount))
    }
}

impl Drop for InflightMount {
    fn drop(&mut self) {
        INFLIGHT_MOUNTS.lock().remove(&self.0);
    }
}

/// The process that serves the mount, if it says so in time.
pub(super) fn daemon_of(mount: &MountInfo) -> Option<u32> {
    let asked = mount.clone();
    let report = answer_of(move || StatusClient::at(address_of(&asked).ok()?).report().ok());
    Some(report.recv_timeout(ATTRIBUTE_TIMEOUT).ok()??.pid)
}
