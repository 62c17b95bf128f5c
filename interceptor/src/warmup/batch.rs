//! The work of a job: one action on a batch of files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::file::{PinnedVersion, WarmupFile};
use super::wire::{FileProblem, FileResult, WarmupAction};
use crate::cache::{AdmissionError, EvictionMode};
use crate::read::{FileVersion, ReadError, Reader, WarmupError, WarmupRequest};

/// Files of one job that are processed concurrently: enough to hide the round trips of small
/// files. The reader limits the bytes in flight.
const MAX_CONCURRENT_FILES: usize = 32;

/// An action on files.
pub(super) struct FileBatch {
    action: WarmupAction,
    reader: Arc<Reader>,
    files: Vec<Result<Arc<dyn WarmupFile>, FileProblem>>,
    warmup: WarmupRequest,
    evicted_bytes: AtomicU64,
    full: AtomicBool,
    results: Mutex<Vec<FileResult>>,
}

impl FileBatch {
    /// `action` on `files`, some of which may have a problem already. `held` is
    /// [`JobRequest::held_bytes`].
    ///
    /// [`JobRequest::held_bytes`]: super::wire::JobRequest::held_bytes
    pub(super) fn new(
        action: WarmupAction,
        reader: Arc<Reader>,
        files: Vec<Result<Arc<dyn WarmupFile>, FileProblem>>,
        displace: EvictionMode,
        held: u64,
    ) -> Self {
        Self {
            action,
            reader,
            files,
            warmup: WarmupRequest::new(displace, held),
            evicted_bytes: AtomicU64::new(0),
            full: AtomicBool::new(false),
            results: Mutex::default(),
        }
    }

    /// Processes all files.
    pub(super) async fn run(&self) {
        let each = |file: usize| self.process(&self.files[file]);
        let mut results = stream::iter(0..self.files.len()).map(each).buffered(MAX_CONCURRENT_FILES);
        while let Some(result) = results.next().await {
            self.results.lock().push(result);
        }
    }

    /// The results so far, in the order of the files.
    pub(super) fn results(&self) -> Vec<FileResult> {
        self.results.lock().clone()
    }

    /// The number of files processed, their bytes in the cache, and the bytes fetched or evicted.
    pub(super) fn progress(&self) -> (u64, u64, u64) {
        let files = self.results.lock().len() as u64;
        (files, self.warmup.completed(), self.warmup.fetched() + self.evicted_bytes.load(Ordering::Relaxed))
    }

    async fn process(&self, file: &Result<Arc<dyn WarmupFile>, FileProblem>) -> FileResult {
        let without = |problem| FileResult { size: 0, cached: 0, problem: Some(problem) };
        let file = match file {
            Ok(file) => file,
            Err(problem) => return without(*problem),
        };
        let PinnedVersion { version, pin: _pin } = match file.version().await {
            Ok(version) => version,
            Err(problem) => return without(problem),
        };
        let file = &version;
        let size = file.size();
        let outcome = match self.action {
            // Once a file did not fit, later ones are not tried: a smaller one would take the
            // space of files that come first.
            WarmupAction::Fetch if self.full.load(Ordering::Relaxed) => Err(FileProblem::Full),
            WarmupAction::Fetch => {
                self.reader.warm(file, &self.warmup).await.map_err(|error| problem(file, &error))
            }
            WarmupAction::FetchToDisk => {
                let kept = self.reader.warm_to_disk(file, &self.warmup).await;
                let (problem, cached) = match kept {
                    Ok(()) => (None, size),
                    Err(error) => (Some(problem(file, &error)), 0),
                };
                return FileResult { size, cached, problem };
            }
            WarmupAction::Check => Ok(()),
            WarmupAction::Evict => self.evict(file).await,
        };
        if outcome == Err(FileProblem::Full) {
            self.full.store(true, Ordering::Relaxed);
        }
        let cached = self.reader.cached_bytes(file).await;
        let problem = outcome.err().or_else(|| cached.as_ref().err().map(|error| unreadable(file, error)));
        FileResult { size, cached: cached.unwrap_or(0), problem }
    }

    async fn evict(&self, file: &FileVersion) -> Result<(), FileProblem> {
        let bytes = self.reader.evict(file).await.map_err(|error| unreadable(file, &error))?;
        self.evicted_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

fn problem(file: &FileVersion, error: &WarmupError) -> FileProblem {
    match error {
        WarmupError::NoRoom(AdmissionError::Full) => FileProblem::Full,
        WarmupError::NoRoom(AdmissionError::TooLarge) => FileProblem::TooLarge,
        WarmupError::Read(error) => unreadable(file, error),
        WarmupError::NoDisk => FileProblem::NoDisk,
        WarmupError::NotKept => FileProblem::NotKept,
    }
}

/// Path and reason go to the log, not to the client.
fn unreadable(file: &FileVersion, error: &ReadError) -> FileProblem {
    tracing::info!(path = file.path(), %error, "a file cannot be warmed");
    match error {
        ReadError::Encrypted(_) => FileProblem::Encrypted,
        _ => FileProblem::Unreadable,
    }
}
