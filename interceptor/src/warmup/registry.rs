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

use super::batch::FileBatch;
use super::ticket::{InvalidTicket, NodeInstance, ReadTicket, TicketIssuer};
use super::wire::{FileProblem, JobReport, JobRequest, JobState, MAX_FILES, WarmupAction};
use crate::cache::Displace;
use crate::read::{FileVersion, Reader};

/// How long a job lives without being asked about, running or done.
pub const JOB_LEASE: Duration = Duration::from_secs(30);
/// The most jobs at the same time, of all clients together. A client has two.
const MAX_JOBS: usize = 32;
/// Of these, the most of all users who do not operate the mount: one person may have many user ids (`/etc/subuid`), and
/// shall not keep operators from their own jobs.
const MAX_JOBS_OF_USERS: usize = 24;
/// And the most of one of them, so that none shuts out the others.
const MAX_JOBS_OF_USER: usize = 8;

/// A file as a job knows it from its beginning on, whatever comes to its name meanwhile.
pub trait WarmupFile: Send + Sync {
    /// Finds out which version of the file can be read.
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>>;
}

/// A version, and what must be there for as long as it is read.
pub struct PinnedVersion {
    /// The version.
    pub version: Arc<FileVersion>,
    /// Such as an open file that its bytes come from.
    pub pin: Option<Arc<dyn Any + Send + Sync>>,
}

impl WarmupFile for Arc<FileVersion> {
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>> {
        ready(Ok(PinnedVersion { version: self.clone(), pin: None })).boxed()
    }
}

/// What jobs are about: the files of a mount.
pub struct WarmupMount {
    /// The mount's device number, `MAJOR:MINOR`.
    pub device: String,
    /// Recognizes the tickets of those files.
    pub tickets: Arc<TicketIssuer>,
    /// Which file a node is; `None` if it is none any more.
    pub file: Box<dyn Fn(NodeInstance) -> Option<Arc<dyn WarmupFile>> + Send + Sync>,
    /// Reads those files.
    pub reader: Arc<Reader>,
}

/// Why a job was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
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
    #[error("{0} files are too many: {MAX_FILES} is the limit for one job")]
    TooManyFiles(usize),
    /// Nobody to work for.
    #[error("tickets of one user are expected")]
    NotOneUser,
    /// No proof.
    #[error("{0}")]
    Ticket(#[from] InvalidTicket),
    /// Not this user.
    #[error("only root and the user of the daemon may push others out of the cache")]
    ForceNotPermitted,
    /// Too many jobs.
    #[error("{0} jobs are under way, which is the limit; try again later")]
    TooManyJobs(usize),
}

/// See the module's documentation.
pub struct JobRegistry {
    mounted: OnceLock<WarmupMount>,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    lease: Duration,
}

struct Job {
    user: u32,
    work: FileBatch,
    state: watch::Sender<JobState>,
    cancelled: Notify,
    asked: Mutex<Instant>,
}

impl JobRegistry {
    /// A desk that takes nothing in before there is a mount.
    pub fn new() -> Arc<Self> {
        Self::with_lease(JOB_LEASE)
    }

    pub(super) fn with_lease(lease: Duration) -> Arc<Self> {
        Arc::new(Self { mounted: OnceLock::new(), jobs: Mutex::default(), lease })
    }

    /// From now on there is a mount. Only the first call counts.
    pub fn open(&self, mounted: WarmupMount) {
        // A second mount in one process is not possible.
        let _ = self.mounted.set(mounted);
    }

    /// Begins a job. Must be called on a runtime.
    pub fn begin(self: &Arc<Self>, request: &JobRequest) -> Result<JobReport, JobRefusal> {
        let mounted = self.mounted.get().ok_or(JobRefusal::NotMounted)?;
        if request.device != mounted.device {
            return Err(JobRefusal::OtherMount {
                ours: mounted.device.clone(),
                theirs: request.device.clone(),
            });
        }
        if request.tickets.len() > MAX_FILES {
            return Err(JobRefusal::TooManyFiles(request.tickets.len()));
        }
        // All of them, before anything is done or said about any file.
        let tickets = request.tickets.iter().map(|ticket| mounted.tickets.verify(ticket));
        let tickets = tickets.collect::<Result<Vec<_>, _>>()?;
        let user = one_user(&tickets).ok_or(JobRefusal::NotOneUser)?;
        if request.force && !is_operator(user) {
            return Err(JobRefusal::ForceNotPermitted);
        }
        let displace = if request.force { Displace::LeastValued } else { Displace::Nothing };
        // From here on the job holds the files.
        let file = |ticket: &ReadTicket| match request.action {
            WarmupAction::Evict if !ticket.is_owner && !is_operator(user) => Err(FileProblem::NotPermitted),
            _ => (mounted.file)(ticket.file).ok_or(FileProblem::Gone),
        };
        let files = tickets.iter().map(file).collect();
        let work =
            FileBatch::new(request.action, mounted.reader.clone(), files, displace, request.held_bytes);
        let job = Arc::new(Job {
            user,
            work,
            state: watch::Sender::new(JobState::Running),
            cancelled: Notify::new(),
            asked: Mutex::new(Instant::now()),
        });
        let id = format!("{:032x}", rand::random::<u128>());
        {
            let mut jobs = self.jobs.lock();
            if jobs.len() >= MAX_JOBS {
                return Err(JobRefusal::TooManyJobs(MAX_JOBS));
            }
            if !is_operator(user) {
                let of_users = || jobs.values().map(|job| job.user).filter(|user| !is_operator(*user));
                if of_users().filter(|other| *other == user).count() >= MAX_JOBS_OF_USER {
                    return Err(JobRefusal::TooManyJobs(MAX_JOBS_OF_USER));
                }
                if of_users().count() >= MAX_JOBS_OF_USERS {
                    return Err(JobRefusal::TooManyJobs(MAX_JOBS_OF_USERS));
                }
            }
            jobs.insert(id.clone(), job.clone());
        }
        let report = job.report(&id);
        let leaving = DeregisterOnDrop { desk: self.clone(), id };
        tokio::spawn(job.live(leaving, self.lease));
        Ok(report)
    }

    /// How a job stands: when it has ended, or after `wait`. `None` if there is no such job.
    pub async fn report(&self, id: &str, wait: Duration) -> Option<JobReport> {
        let job = self.jobs.lock().get(id).cloned()?;
        *job.asked.lock() = Instant::now();
        let mut state = job.state.subscribe();
        let _ = timeout(wait, state.wait_for(|state| *state != JobState::Running)).await;
        *job.asked.lock() = Instant::now();
        Some(job.report(id))
    }

    /// Ends a job, whatever its state, and forgets it. Fetches that are under way come to their end. `None` if there is no
    /// such job.
    pub async fn cancel(&self, id: &str) -> Option<JobReport> {
        let job = self.jobs.lock().remove(id)?;
        let mut state = job.state.subscribe();
        job.cancelled.notify_one();
        // It is dropped where it waits, which takes no time; should it hang, who asked need not hang with it.
        let _ = timeout(Duration::from_secs(1), state.wait_for(|state| *state != JobState::Running)).await;
        Some(job.report(id))
    }
}

impl Job {
    /// Works, and stays to be asked about until nobody does.
    async fn live(self: Arc<Self>, leaving: DeregisterOnDrop, lease: Duration) {
        let ended = tokio::select! {
            () = self.work.run() => JobState::Done,
            () = self.cancelled.notified() => JobState::Cancelled,
            () = self.forgotten(lease) => {
                tracing::info!("a warm-up that nobody asks about any more is cancelled");
                JobState::Cancelled
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

    fn report(&self, id: &str) -> JobReport {
        let state = *self.state.borrow();
        let (files_done, bytes_done, bytes_moved) = self.work.progress();
        let results = if state == JobState::Done { self.work.results() } else { Vec::new() };
        JobReport { id: id.to_owned(), state, files_done, bytes_done, bytes_moved, results }
    }
}

/// The user of all these tickets.
fn one_user(tickets: &[ReadTicket]) -> Option<u32> {
    let (first, others) = tickets.split_first()?;
    others.iter().all(|ticket| ticket.user == first.user).then_some(first.user)
}

/// Whether a user may dispose of the whole cache: those who could as well end the daemon.
fn is_operator(user: u32) -> bool {
    user == 0 || user == nix::unistd::geteuid().as_raw()
}

/// Takes a job off the desk when its task ends, however that happens.
struct DeregisterOnDrop {
    desk: Arc<JobRegistry>,
    id: String,
}

impl Drop for DeregisterOnDrop {
    fn drop(&mut self) {
        self.desk.jobs.lock().remove(&self.id);
    }
}
