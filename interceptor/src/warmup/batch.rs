//! What a job does with its files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::stream::{self, StreamExt};
use parking_lot::Mutex;

use super::registry::{PinnedVersion, WarmupFile};
use super::wire::{FileProblem, FileResult, WarmupAction};
use crate::cache::{Displace, NoRoom};
use crate::read::{FileVersion, ReadError, Reader, WarmupError, WarmupRequest};

/// How many files of one job are seen to at the same time: enough that small ones do not wait for each other's round
/// trips. How many bytes may be on their way is the reader's business.
const FILES_AT_ONCE: usize = 32;

/// Files, and what is to be done with them.
pub(super) struct FileBatch {
    action: WarmupAction,
    reader: Arc<Reader>,
    files: Vec<Result<Arc<dyn WarmupFile>, FileProblem>>,
    warmup: WarmupRequest,
    given_up: AtomicU64,
    full: AtomicBool,
    results: Mutex<Vec<FileResult>>,
}

impl FileBatch {
    /// To do `action` with `files`, of which some have a problem already.
    pub(super) fn new(
        action: WarmupAction,
        reader: Arc<Reader>,
        files: Vec<Result<Arc<dyn WarmupFile>, FileProblem>>,
        displace: Displace,
        held: u64,
    ) -> Self {
        Self {
            action,
            reader,
            files,
            warmup: WarmupRequest::new(displace, held),
            given_up: AtomicU64::new(0),
            full: AtomicBool::new(false),
            results: Mutex::default(),
        }
    }

    /// Does it.
    pub(super) async fn run(&self) {
        let each = |file: usize| self.one(&self.files[file]);
        let mut results = stream::iter(0..self.files.len()).map(each).buffered(FILES_AT_ONCE);
        while let Some(result) = results.next().await {
            self.results.lock().push(result);
        }
    }

    /// What became of the files so far, in order.
    pub(super) fn results(&self) -> Vec<FileResult> {
        self.results.lock().clone()
    }

    /// How many have been seen to, how many of their bytes are in the cache, and how many were fetched or given up.
    pub(super) fn progress(&self) -> (u64, u64, u64) {
        let files = self.results.lock().len() as u64;
        (files, self.warmup.completed(), self.warmup.fetched() + self.given_up.load(Ordering::Relaxed))
    }

    async fn one(&self, file: &Result<Arc<dyn WarmupFile>, FileProblem>) -> FileResult {
        let without = |problem| FileResult { size: 0, cached: 0, problem: Some(problem) };
        let file = match file {
            Ok(file) => file,
            Err(problem) => return without(*problem),
        };
        let PinnedVersion { version, pin: _pin } = match file.version().await {
            Ok(held) => held,
            Err(problem) => return without(problem),
        };
        let file = &version;
        let size = file.size();
        let outcome = match self.action {
            // What comes after it will not fit either, or only by taking the room of what was asked for first.
            WarmupAction::Fetch if self.full.load(Ordering::Relaxed) => Err(FileProblem::Full),
            WarmupAction::Fetch => {
                self.reader.warm(file, &self.warmup).await.map_err(|error| problem(file, &error))
            }
            WarmupAction::Check => Ok(()),
            WarmupAction::Evict => self.give_up(file).await,
        };
        if outcome == Err(FileProblem::Full) {
            self.full.store(true, Ordering::Relaxed);
        }
        let cached = self.reader.cached_bytes(file).await;
        let problem = outcome.err().or_else(|| cached.as_ref().err().map(|error| unreadable(file, error)));
        FileResult { size, cached: cached.unwrap_or(0), problem }
    }

    async fn give_up(&self, file: &FileVersion) -> Result<(), FileProblem> {
        let bytes = self.reader.evict(file).await.map_err(|error| unreadable(file, &error))?;
        self.given_up.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

fn problem(file: &FileVersion, error: &WarmupError) -> FileProblem {
    match error {
        WarmupError::NoRoom(NoRoom::Full) => FileProblem::Full,
        WarmupError::NoRoom(NoRoom::TooLarge) => FileProblem::TooLarge,
        WarmupError::Read(error) => unreadable(file, error),
    }
}

/// The path and the reason go to the log, not to whoever asked.
fn unreadable(file: &FileVersion, error: &ReadError) -> FileProblem {
    tracing::info!(path = file.path(), %error, "a file cannot be warmed");
    match error {
        ReadError::Encrypted(_) => FileProblem::Encrypted,
        _ => FileProblem::Unreadable,
    }
}
