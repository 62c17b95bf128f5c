//! Reads directories of the mount below before programs look up in them what they hold.
//!
//! In a directory that nobody has read, `weed mount` asks its filer about each name that is looked up and each file that is opened or looked at. Once somebody has
//! read the beginning of the directory it has fetched all of it (weed 4.48), and answers by itself as long as it is told of changes. So a directory whose files are opened one after another is read once, which takes nothing from
//! what the mount below says of them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::listing::{OpenDirectory, Taken};
use super::nodes::Node;

/// After so long the mount below may have forgotten what it knew: `weed mount` does after 10 minutes in which nothing was asked.
const AGAIN: Duration = Duration::from_secs(300);

/// How many directories are remembered as read.
const REMEMBERED: usize = 64;

/// The directories that were read, and whoever reads one.
pub(super) struct ReaddirAhead {
    read: Mutex<Vec<(Weak<Node>, Instant)>>,
    /// Held by who reads, so that a mount below that hangs holds up one thread.
    turn: Arc<Semaphore>,
}

impl ReaddirAhead {
    pub(super) fn new() -> Self {
        Self { read: Mutex::default(), turn: Arc::new(Semaphore::new(1)) }
    }

    /// The files of `directory` are opened one after another. Has the directory read on `runtime`, unless that was done lately or another is being read.
    pub(super) fn expect(&self, directory: Arc<Node>, runtime: &Handle) {
        let Ok(turn) = self.turn.clone().try_acquire_owned() else { return };
        if !self.is_due(&directory, Instant::now()) {
            return;
        }
        runtime.spawn_blocking(move || {
            let _turn = turn;
            // Who may not read it looks up what he knows, as before.
            let read = OpenDirectory::open(directory).and_then(|open| open.read(0, |_| Ok(Taken::Full)));
            if let Err(error) = read {
                tracing::debug!(%error, "a directory below cannot be read ahead");
            }
        });
    }

    /// Whether `directory` is to be read now, which it then counts as.
    fn is_due(&self, directory: &Arc<Node>, now: Instant) -> bool {
        let mut read = self.read.lock();
        read.retain(|(node, at)| now.duration_since(*at) < AGAIN && node.strong_count() > 0);
        if read.iter().any(|(node, _)| node.as_ptr() == Arc::as_ptr(directory)) {
            return false;
        }
        if read.len() == REMEMBERED {
            // The one that was read first.
            read.remove(0);
        }
        read.push((Arc::downgrade(directory), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::super::attributes::Attributes;
    use super::super::nodes::{Nodes, ROOT};
    use super::*;

    #[test]
    fn a_directory_is_due_once_in_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let nodes = Nodes::of_one(root.try_clone().unwrap(), &Attributes::of(&root).unwrap());
        let directory = nodes.get(ROOT).unwrap();
        let (ahead, now) = (ReaddirAhead::new(), Instant::now());
        assert!(ahead.is_due(&directory, now));
        assert!(!ahead.is_due(&directory, now + AGAIN / 2));
        assert!(ahead.is_due(&directory, now + AGAIN));
    }
}
