//! One volume over time: opened when it is first read, opened again when its files were replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::StoreError;
use super::data::ReadMode;
use super::directory::VolumeFiles;
use super::opened::Opened;
use super::record::NeedleRecord;
use crate::FileId;
use crate::refusal::Refusal;

/// How long a reader waits for another one that is reading the index; the largest take seconds.
const WAIT: Duration = Duration::from_millis(100);

/// Files that do not agree with each other are read anew, but not more often than this.
const RELOAD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Volume {
    id: u32,
    files: VolumeFiles,
    current: RwLock<Current>,
    /// Held by the one that opens the files.
    opening: Mutex<()>,
    /// Counts indexes that were read as a whole.
    index_reads: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Current {
    opened: Option<Arc<Opened>>,
    used: Instant,
    /// Why it could not be opened, so that a lasting reason is logged once.
    refused: Option<Refusal>,
}

impl Volume {
    pub(super) fn new(id: u32, files: VolumeFiles, index_reads: Arc<AtomicU64>) -> Self {
        let current = Current { opened: None, used: Instant::now(), refused: None };
        Self { id, files, current: RwLock::new(current), opening: Mutex::new(()), index_reads }
    }

    pub(super) fn files(&self) -> &VolumeFiles {
        &self.files
    }

    /// How many needles its index has in memory, if it is open.
    pub(super) fn needles(&self) -> Option<usize> {
        self.current.read().opened.as_ref().map(|opened| opened.needles())
    }

    /// Finds a needle as of now: whatever the server has finished writing before the call is seen.
    pub(super) fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let opened = self.opened(mode)?;
        match opened.locate(fid, mode) {
            // The files do not say the same, or not any more.
            Err(StoreError::Refused(Refusal::Stale)) if mode == ReadMode::CachedOnly => {
                Err(StoreError::WouldBlock)
            }
            Err(StoreError::Refused(Refusal::Stale)) if opened.since.elapsed() > RELOAD => {
                tracing::warn!(volume = self.id, %fid, "the index does not fit the data; reading it again");
                self.open(Some(&opened))?.locate(fid, mode)
            }
            outcome => outcome,
        }
    }

    /// Gives up files that were replaced or not read for `idle`, so that they do not keep disk space or memory.
    pub(super) fn tend(&self, idle: Duration) {
        let stale = {
            let current = self.current.read();
            let unused = current.used.elapsed() > idle;
            current.opened.as_ref().is_some_and(|opened| unused || !opened.is_current())
        };
        if stale {
            self.current.write().opened = None;
        }
    }

    /// The open files, with all that was written to the index so far.
    fn opened(&self, mode: ReadMode) -> Result<Arc<Opened>, StoreError> {
        let known = self.current.read().opened.clone();
        let Some(opened) = known else { return self.first(mode) };
        match opened.catch_up(mode) {
            Ok(()) => Ok(opened),
            Err(StoreError::Refused(Refusal::Stale)) => self.again(&opened, mode),
            Err(error) => Err(error),
        }
    }

    fn first(&self, mode: ReadMode) -> Result<Arc<Opened>, StoreError> {
        match mode {
            ReadMode::CachedOnly => Err(StoreError::WouldBlock),
            ReadMode::Blocking => Ok(self.open(None)?),
        }
    }

    fn again(&self, stale: &Arc<Opened>, mode: ReadMode) -> Result<Arc<Opened>, StoreError> {
        match mode {
            ReadMode::CachedOnly => Err(StoreError::WouldBlock),
            ReadMode::Blocking => Ok(self.open(Some(stale))?),
        }
    }

    /// Opens the files unless somebody else has opened others than `stale` meanwhile.
    fn open(&self, stale: Option<&Arc<Opened>>) -> Result<Arc<Opened>, Refusal> {
        let _opening = self.opening.try_lock_for(WAIT).ok_or(Refusal::Loading)?;
        if let Some(other) = self.current.read().opened.clone()
            && stale.is_none_or(|stale| !Arc::ptr_eq(stale, &other))
        {
            return Ok(other);
        }
        let began = Instant::now();
        let outcome = Opened::open(self.id, &self.files).map(Arc::new);
        let mut current = self.current.write();
        current.opened = outcome.as_ref().ok().cloned();
        let reason = outcome.as_ref().err().copied();
        match &outcome {
            Ok(opened) => {
                self.index_reads.fetch_add(1, Ordering::Relaxed);
                let (needles, took) = (opened.needles(), began.elapsed());
                tracing::debug!(volume = self.id, needles, ?took, "opened a volume");
            }
            Err(refusal) if current.refused != reason => {
                tracing::info!(volume = self.id, reason = %refusal, "a volume cannot be read from its files");
            }
            Err(_) => {}
        }
        current.refused = reason;
        outcome
    }

    /// Notes that the volume is in use.
    pub(super) fn touch(&self) {
        // Once a second is exact enough and keeps readers from writing to the same memory.
        if self.current.read().used.elapsed() > Duration::from_secs(1) {
            self.current.write().used = Instant::now();
        }
    }
}
