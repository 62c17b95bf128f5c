//! One volume over time: opened when it is first read, opened again when its files were replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::StoreError;
use super::data::ReadMode;
use super::directory::VolumeFiles;
use super::open_volume::OpenVolume;
use super::record::NeedleRecord;
use crate::FileId;
use crate::refusal::Refusal;

/// How long a reader waits for another one that reads the index; the largest indexes take seconds.
const OPEN_TIMEOUT: Duration = Duration::from_millis(100);

/// Files that do not fit each other are read anew, but not more often than this.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// How exactly the time of the last use is kept: readers need not write it more often.
const USE_TIME_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Volume {
    id: u32,
    files: VolumeFiles,
    current: RwLock<CurrentFiles>,
    /// Held by the reader that opens the files.
    opening: Mutex<()>,
    /// Counts indexes that were read as a whole.
    index_reads: Arc<AtomicU64>,
}

#[derive(Debug)]
struct CurrentFiles {
    opened: Option<Arc<OpenVolume>>,
    last_used: Instant,
    /// Why they could not be opened, so that a lasting reason is logged once.
    refused: Option<Refusal>,
}

impl Volume {
    pub(super) fn new(id: u32, files: VolumeFiles, index_reads: Arc<AtomicU64>) -> Self {
        let current = CurrentFiles { opened: None, last_used: Instant::now(), refused: None };
        Self { id, files, current: RwLock::new(current), opening: Mutex::new(()), index_reads }
    }

    pub(super) fn files(&self) -> &VolumeFiles {
        &self.files
    }

    /// How many needles its index has in memory, if it is open.
    pub(super) fn needles(&self) -> Option<usize> {
        self.current.read().opened.as_ref().map(|opened| opened.needles())
    }

    /// Finds a needle in the current state: every write that the server has finished before the
    /// call is seen.
    pub(super) fn locate(&self, fid: FileId, mode: ReadMode) -> Result<NeedleRecord, StoreError> {
        let opened = self.opened(mode)?;
        match opened.locate(fid, mode) {
            // The files do not fit each other, or do so no longer.
            Err(StoreError::Refused(Refusal::Stale)) if mode == ReadMode::CachedOnly => {
                Err(StoreError::WouldBlock)
            }
            Err(StoreError::Refused(Refusal::Stale)) if opened.opened_at.elapsed() > RELOAD_INTERVAL => {
                tracing::warn!(volume = self.id, %fid, "the index does not fit the data; reading it again");
                self.open(Some(&opened))?.locate(fid, mode)
            }
            outcome => outcome,
        }
    }

    /// Closes files that were replaced or not read for `idle`, so that they do not use disk space
    /// or memory.
    pub(super) fn close_unused(&self, idle: Duration) {
        let is_unused = {
            let current = self.current.read();
            let is_idle = current.last_used.elapsed() > idle;
            current.opened.as_ref().is_some_and(|opened| is_idle || !opened.is_current())
        };
        if is_unused {
            self.current.write().opened = None;
        }
    }

    /// The open files, with an up-to-date index.
    fn opened(&self, mode: ReadMode) -> Result<Arc<OpenVolume>, StoreError> {
        let known = self.current.read().opened.clone();
        let stale = match known {
            None => None,
            Some(opened) => match opened.catch_up(mode) {
                Ok(()) => return Ok(opened),
                Err(StoreError::Refused(Refusal::Stale)) => Some(opened),
                Err(error) => return Err(error),
            },
        };
        match mode {
            ReadMode::CachedOnly => Err(StoreError::WouldBlock),
            ReadMode::Blocking => Ok(self.open(stale.as_ref())?),
        }
    }

    /// Opens the files, unless another reader has opened other files than `stale` meanwhile.
    fn open(&self, stale: Option<&Arc<OpenVolume>>) -> Result<Arc<OpenVolume>, Refusal> {
        let _opening = self.opening.try_lock_for(OPEN_TIMEOUT).ok_or(Refusal::Loading)?;
        if let Some(other) = self.current.read().opened.clone()
            && stale.is_none_or(|stale| !Arc::ptr_eq(stale, &other))
        {
            return Ok(other);
        }
        let began = Instant::now();
        let outcome = OpenVolume::open(self.id, &self.files).map(Arc::new);
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
    pub(super) fn record_use(&self) {
        // At an interval, so that readers rarely write to shared memory.
        if self.current.read().last_used.elapsed() > USE_TIME_INTERVAL {
            self.current.write().last_used = Instant::now();
        }
    }
}
