//! The registry of warm-up jobs: starts, reports and cancels them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::batch::FileBatch;
use super::file::WarmupFile;
use super::ticket::{InvalidTicket, NodeInstance, ReadTicket, TicketIssuer};
use super::wire::{FileProblem, JobReport, JobRequest, JobState, MAX_FILES, WarmupAction};
use crate::cache::EvictionMode;
use crate::read::Reader;

/// The time after which a job, running or done, is dropped if no request about it has come.
pub const JOB_LEASE: Duration = Duration::from_secs(30);
/// Concurrent jobs of all clients together. A client has two.
const MAX_JOBS: usize = 32;
/// Concurrent jobs of all users but operators. One person may have many user ids (`/etc/subuid`),
/// and must not keep operators from their jobs.
const MAX_JOBS_OF_ALL_USERS: usize = 24;
/// Concurrent jobs of one such user, so that none excludes the others.
const MAX_JOBS_OF_USER: usize = 8;

/// The mount whose files jobs are about.
pub struct WarmupMount {
    /// The mount's device number, `MAJOR:MINOR`.
    pub device: String,
    /// Verifies the tickets of its files.
    pub tickets: Arc<TicketIssuer>,
    /// Resolves a node to its file; `None` if the file is gone.
    pub file: Box<dyn Fn(NodeInstance) -> Option<Arc<dyn WarmupFile>> + Send + Sync>,
    /// Reads its files.
    pub reader: Arc<Reader>,
}

/// Why a job is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    /// The mount is not up yet.
    #[error("the mount does not answer yet")]
    NotMounted,
    /// The request is about another mount.
    #[error("this daemon's mount is device {ours}, not {theirs}")]
    OtherMount {
        /// The device number of this daemon's mount.
        ours: String,
        /// The device number in the request.
        theirs: String,
    },
    /// The request has more files than a job may have.
    #[error("{0} files are too many: {MAX_FILES} is the limit for one job")]
    TooManyFiles(usize),
    /// The tickets are of several users, or there is none.
    #[error("tickets of one user are expected")]
    NotOneUser,
    /// A ticket is not valid.
    #[error("{0}")]
    Ticket(#[from] InvalidTicket),
    /// The user may not evict other files.
    #[error("only root and the user of the daemon may push others out of the cache")]
    ForceNotPermitted,
    /// The limit of concurrent jobs is reached.
    #[error("{0} jobs are under way, which is the limit; try again later")]
    TooManyJobs(usize),
}

/// The jobs of this daemon.
pub struct JobRegistry {
    mount: OnceLock<WarmupMount>,
    jobs: Mutex<HashMap<String, Arc<Job>>>,
    lease: Duration,
}

struct Job {
    user: u32,
    batch: FileBatch,
    state: watch::Sender<JobState>,
    cancelled: Notify,
    /// The time of the last request about the job.
    last_request: Mutex<Instant>,
}

impl JobRegistry {
    /// A registry that refuses jobs until [`set_mount`](Self::set_mount) is called.
    pub fn new() -> Arc<Self> {
        Self::with_lease(JOB_LEASE)
    }

    pub(super) fn with_lease(lease: Duration) -> Arc<Self> {
        Arc::new(Self { mount: OnceLock::new(), jobs: Mutex::default(), lease })
    }

    /// Sets the mount, and accepts jobs from now on. Only the first call counts.
    pub fn set_mount(&self, mount: WarmupMount) {
        // A process has one mount.
        let _ = self.mount.set(mount);
    }

    /// Starts a job. Must be called on a tokio runtime.
    pub fn begin(self: &Arc<Self>, request: &JobRequest) -> Result<JobReport, JobRefusal> {
        let mount = self.mount.get().ok_or(JobRefusal::NotMounted)?;
        if request.device != mount.device {
            return Err(JobRefusal::OtherMount {
                ours: mount.device.clone(),
                theirs: request.device.clone(),
            });
        }
        if request.tickets.len() > MAX_FILES {
            return Err(JobRefusal::TooManyFiles(request.tickets.len()));
        }
        // All tickets are verified before anything is done or revealed about any file.
        let tickets = request.tickets.iter().map(|ticket| mount.tickets.verify(ticket));
        let tickets = tickets.collect::<Result<Vec<_>, _>>()?;
        let user = one_user(&tickets).ok_or(JobRefusal::NotOneUser)?;
        let displaces = request.force || request.action == WarmupAction::FetchToDisk;
        if displaces && !is_operator(user) {
            return Err(JobRefusal::ForceNotPermitted);
        }
        let displace = if request.force { EvictionMode::Evict } else { EvictionMode::FreeOnly };
        // Resolved now, so that the job keeps these files.
        let file = |ticket: &ReadTicket| match request.action {
            WarmupAction::Evict if !ticket.is_owner && !is_operator(user) => Err(FileProblem::NotPermitted),
            _ => (mount.file)(ticket.file).ok_or(FileProblem::Gone),
        };
        let files = tickets.iter().map(file).collect();
        let batch = FileBatch::new(request.action, mount.reader.clone(), files, displace, request.held_bytes);
        let job = Arc::new(Job {
            user,
            batch,
            state: watch::Sender::new(JobState::Running),
            cancelled: Notify::new(),
            last_request: Mutex::new(Instant::now()),
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
                if of_users().count() >= MAX_JOBS_OF_ALL_USERS {
                    return Err(JobRefusal::TooManyJobs(MAX_JOBS_OF_ALL_USERS));
                }
            }
            jobs.insert(id.clone(), job.clone());
        }
        let report = job.report(&id);
        let registration = DeregisterOnDrop { registry: self.clone(), id };
        tokio::spawn(job.live(registration, self.lease));
        Ok(report)
    }

    /// The report of a job when it has ended, or after `wait`. `None` if there is no such job.
    pub async fn report(&self, id: &str, wait: Duration) -> Option<JobReport> {
        let job = self.jobs.lock().get(id).cloned()?;
        *job.last_request.lock() = Instant::now();
        let mut state = job.state.subscribe();
        let _ = timeout(wait, state.wait_for(|state| *state != JobState::Running)).await;
        *job.last_request.lock() = Instant::now();
        Some(job.report(id))
    }

    /// Cancels a job in any state, and removes it. Fetches in flight complete. `None` if there is
    /// no such job.
    pub async fn cancel(&self, id: &str) -> Option<JobReport> {
        let job = self.jobs.lock().remove(id)?;
        let mut state = job.state.subscribe();
        job.cancelled.notify_one();
        // The task ends at its next await point, which takes no time. The timeout keeps a hang
        // from the caller.
        let _ = timeout(Duration::from_secs(1), state.wait_for(|state| *state != JobState::Running)).await;
        Some(job.report(id))
    }
}

impl Job {
    /// Runs the job, and keeps its report until the lease runs out.
    async fn live(self: Arc<Self>, registration: DeregisterOnDrop, lease: Duration) {
        let ended = tokio::select! {
            () = self.batch.run() => JobState::Done,
            () = self.cancelled.notified() => JobState::Cancelled,
            () = self.lease_over(lease) => {
                tracing::info!("a warm-up that nobody asks about any more is cancelled");
                JobState::Cancelled
            }
        };
        self.state.send_replace(ended);
        tokio::select! {
            () = self.cancelled.notified() => {}
            () = self.lease_over(lease) => {}
        }
        drop(registration);
    }

    /// Resolves when no request about the job has come for as long as the lease.
    async fn lease_over(&self, lease: Duration) {
        loop {
            let until = *self.last_request.lock() + lease;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    fn report(&self, id: &str) -> JobReport {
        let state = *self.state.borrow();
        let (files_done, bytes_done, bytes_moved) = self.batch.progress();
        let results = if state == JobState::Done { self.batch.results() } else { Vec::new() };
        JobReport { id: id.to_owned(), state, files_done, bytes_done, bytes_moved, results }
    }
}

/// The user of all tickets; `None` if there are several users, or no ticket.
fn one_user(tickets: &[ReadTicket]) -> Option<u32> {
    let (first, others) = tickets.split_first()?;
    others.iter().all(|ticket| ticket.user == first.user).then_some(first.user)
}

/// Whether a user may evict the whole cache: root and the user of the daemon, which can kill the
/// daemon anyway.
fn is_operator(user: u32) -> bool {
    user == 0 || user == nix::unistd::geteuid().as_raw()
}

/// Removes a job from the registry when its task ends, however that happens.
struct DeregisterOnDrop {
    registry: Arc<JobRegistry>,
    id: String,
}

impl Drop for DeregisterOnDrop {
    fn drop(&mut self) {
        self.registry.jobs.lock().remove(&self.id);
    }
}
