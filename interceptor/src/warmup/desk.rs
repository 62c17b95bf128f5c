//! Where jobs are taken in, asked about and cancelled.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::wire::{MOST_NODES, Problem, Report, Request, State};
use super::work::Work;
use crate::cache::Displace;
use crate::namespace::NodeId;
use crate::read::{FileVersion, Reader};

/// How long a job lives without being asked about, running or done.
pub const LEASE: Duration = Duration::from_secs(30);
/// The most jobs at the same time, of all clients together. A client has two.
const MOST_JOBS: usize = 32;

/// A file as a job knows it from its beginning on, whatever comes to its name meanwhile.
pub trait Wanted: Send + Sync {
    /// Finds out which version of the file can be read.
    fn version(&self) -> BoxFuture<'_, Result<Held, Problem>>;
}

/// A version, and what must be there for as long as it is read.
pub struct Held {
    /// The version.
    pub version: Arc<FileVersion>,
    /// Such as an open file that its bytes come from.
    pub by: Option<Arc<dyn Any + Send + Sync>>,
}

impl Wanted for Arc<FileVersion> {
    fn version(&self) -> BoxFuture<'_, Result<Held, Problem>> {
        ready(Ok(Held { version: self.clone(), by: None })).boxed()
    }
}

/// What jobs are about: the files of a mount.
pub struct Mounted {
    /// The mount's device number, `MAJOR:MINOR`.
    pub device: String,
    /// Which file a node is; `None` if there is no such node.
    pub file: Box<dyn Fn(NodeId) -> Option<Arc<dyn Wanted>> + Send + Sync>,
    /// Reads those files.
    pub reader: Arc<Reader>,
}

/// Why a job was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too early.
    #[error("the mount does not answer yet")]
    NotMounted,
    /// Not our files.
    #[error("this daemon's mount is device {ours}, not {theirs}")]
    OtherMount {
        /// What we serve.
        ours: String,
        /// What they asked for.
        theirs: String,
    },
    /// Too many files.
    #[error("{0} nodes are too many: {MOST_NODES} is the limit for one job")]
    TooManyNodes(usize),
    /// Too many jobs.
    #[error("{MOST_JOBS} jobs are under way, which is the limit; try again later")]
    TooManyJobs,
}

/// See the module's documentation.
pub struct Desk {
    mounted: OnceLock<Mounted>,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    lease: Duration,
}

struct Job {
    work: Work,
    state: watch::Sender<State>,
    cancelled: Notify,
    asked: Mutex<Instant>,
}

impl Desk {
    /// A desk that takes nothing in before there is a mount.
    pub fn new() -> Arc<Self> {
        Self::with_lease(LEASE)
    }

    pub(super) fn with_lease(lease: Duration) -> Arc<Self> {
        Arc::new(Self { mounted: OnceLock::new(), jobs: Mutex::default(), lease })
    }

    /// From now on there is a mount. Only the first call counts.
    pub fn open(&self, mounted: Mounted) {
        // A second mount in one process is not possible.
        let _ = self.mounted.set(mounted);
    }

    /// Begins a job. Must be called on a runtime.
    pub fn begin(self: &Arc<Self>, request: &Request) -> Result<Report, Refusal> {
        let mounted = self.mounted.get().ok_or(Refusal::NotMounted)?;
        if request.device != mounted.device {
            return Err(Refusal::OtherMount { ours: mounted.device.clone(), theirs: request.device.clone() });
        }
        if request.nodes.len() > MOST_NODES {
            return Err(Refusal::TooManyNodes(request.nodes.len()));
        }
        let displace = if request.force { Displace::LeastValued } else { Displace::Nothing };
        // From here on the job holds the files, and the client need not any more.
        let files = request.nodes.iter().map(|node| (mounted.file)(*node)).collect();
        let work = Work::new(request.action, mounted.reader.clone(), files, displace, request.held_bytes);
        let job = Arc::new(Job {
            work,
            state: watch::Sender::new(State::Running),
            cancelled: Notify::new(),
            asked: Mutex::new(Instant::now()),
        });
        let id = format!("{:032x}", rand::random::<u128>());
        {
            let mut jobs = self.jobs.lock();
            if jobs.len() >= MOST_JOBS {
                return Err(Refusal::TooManyJobs);
            }
            jobs.insert(id.clone(), job.clone());
        }
        let report = job.report(&id);
        let leaving = Leaving { desk: self.clone(), id };
        tokio::spawn(job.live(leaving, self.lease));
        Ok(report)
    }

    /// How a job stands: when it has ended, or after `wait`. `None` if there is no such job.
    pub async fn report(&self, id: &str, wait: Duration) -> Option<Report> {
        let job = self.jobs.lock().get(id).cloned()?;
        *job.asked.lock() = Instant::now();
        let mut state = job.state.subscribe();
        let _ = timeout(wait, state.wait_for(|state| *state != State::Running)).await;
        *job.asked.lock() = Instant::now();
        Some(job.report(id))
    }

    /// Ends a job, whatever its state, and forgets it. Fetches that are under way come to their end. `None` if there is no
    /// such job.
    pub async fn cancel(&self, id: &str) -> Option<Report> {
        let job = self.jobs.lock().remove(id)?;
        let mut state = job.state.subscribe();
        job.cancelled.notify_one();
        // It is dropped where it waits, which takes no time; should it hang, who asked need not hang with it.
        let _ = timeout(Duration::from_secs(1), state.wait_for(|state| *state != State::Running)).await;
        Some(job.report(id))
    }
}

impl Job {
    /// Works, and stays to be asked about until nobody does.
    async fn live(self: Arc<Self>, leaving: Leaving, lease: Duration) {
        let ended = tokio::select! {
            () = self.work.run() => State::Done,
            () = self.cancelled.notified() => State::Cancelled,
            () = self.forgotten(lease) => {
                tracing::info!("a warm-up that nobody asks about any more is cancelled");
                State::Cancelled
            }
        };
        self.state.send_replace(ended);
        tokio::select! {
            () = self.cancelled.notified() => {}
            () = self.forgotten(lease) => {}
        }
        drop(leaving);
    }

    /// Resolves when nobody has asked for as long as the lease.
    async fn forgotten(&self, lease: Duration) {
        loop {
            let until = *self.asked.lock() + lease;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn report(&self, id: &str) -> Report {
        let state = *self.state.borrow();
        let (files_done, bytes_done, bytes_moved) = self.work.progress();
        let results = if state == State::Done { self.work.results() } else { Vec::new() };
        Report { id: id.to_owned(), state, files_done, bytes_done, bytes_moved, results }
    }
}

/// Takes a job off the desk when its task ends, however that happens.
struct Leaving {
    desk: Arc<Desk>,
    id: String,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.desk.jobs.lock().remove(&self.id);
    }
}
