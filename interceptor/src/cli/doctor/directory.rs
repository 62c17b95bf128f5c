//! The directory of the filer that is to be mounted, and files of it to read for a test.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::cli::host::{Finding, FindingState};
use crate::namespace::find_root;
use crate::read::FileVersion;
use crate::seaweed::entry::{Content, Entry, FileKind};
use crate::seaweed::filer::FilerClient;

/// How long looking for files may take, after the directory itself was listed.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the filer may take for the directory itself.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(10);

/// Entries of one directory that are looked at, at most.
const MAX_ENTRIES: usize = 1000;

/// Directories that are listed, at most.
const MAX_DIRECTORIES: usize = 32;

/// Files to try, at most: the first may be on a volume server that is down.
const MAX_FILES: usize = 4;

/// Looks at the directory `path`. Returns whether it can be mounted, and the largest files that are
/// in it, or in the first directories below it that have any, the largest first.
pub(super) async fn examine(filer: &FilerClient, path: &str) -> (Finding, Vec<Arc<FileVersion>>) {
    let deadline = Instant::now() + DIRECTORY_TIMEOUT;
    let late = || format!("{path} is not listed within {DIRECTORY_TIMEOUT:?}");
    let listed = async {
        find_root(filer, path).await.map_err(|error| error.to_string())?;
        list(filer, path).await
    };
    let entries = match timeout_at(deadline, listed).await.unwrap_or_else(|_| Err(late())) {
        Ok(entries) => entries,
        Err(reason) => return (finding(FindingState::Missing, reason), Vec::new()),
    };
    let count = match entries.len() {
        MAX_ENTRIES => format!("at least {MAX_ENTRIES}"),
        count => count.to_string(),
    };
    let is_there = finding(FindingState::Ok, format!("{path} can be listed; entries: {count}"));
    (is_there, find_files(filer, path, entries).await)
}

fn finding(state: FindingState, found: String) -> Finding {
    Finding {
        ability: "filer's directory",
        state,
        found,
        lost: "there is nothing to mount",
        remedy: "create it on the filer, or name another with --filer-path",
    }
}

/// The first entries of the directory `path`.
async fn list(filer: &FilerClient, path: &str) -> Result<Vec<Entry>, String> {
    let mut listing = filer.list(path, "", MAX_ENTRIES);
    let mut entries = Vec::new();
    while let Some(entry) = listing.next().await {
        entries.push(entry.map_err(|error| error.to_string())?);
    }
    Ok(entries)
}

/// Goes through the tree, level by level, until a directory has files whose bytes are on volume
/// servers.
async fn find_files(filer: &FilerClient, path: &str, entries: Vec<Entry>) -> Vec<Arc<FileVersion>> {
    let deadline = Instant::now() + SEARCH_TIMEOUT;
    let mut listed = Some((path.trim_end_matches('/').to_owned(), entries));
    let mut directories = VecDeque::new();
    for _ in 0..MAX_DIRECTORIES {
        if let Some((path, entries)) = listed.take() {
            let (below, mut files): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| entry.attr.kind == FileKind::Directory);
            files.retain(|file| matches!(&file.content, Content::Chunks(chunks) if !chunks.is_empty()));
            if !files.is_empty() {
                files.sort_by_key(|file| std::cmp::Reverse(file.attr.size));
                files.truncate(MAX_FILES);
                let version =
                    |file: Entry| FileVersion::new(&format!("{path}/{}", file.name), Arc::new(file));
                return files.into_iter().map(version).collect();
            }
            directories.extend(below.into_iter().map(|below| format!("{path}/{}", below.name)));
        }
        let Some(next) = directories.pop_front() else { break };
        match timeout_at(deadline, list(filer, &next)).await {
            Ok(entries) => listed = entries.ok().map(|entries| (next, entries)),
            Err(_) => break,
        }
    }
    Vec::new()
}
