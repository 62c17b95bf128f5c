//! Followers of the reads of a file or of a tree, while these last (`interceptor trace`), and of
//! the [calls](super::followed_call) of applications.
//!
//! Each follower has a queue, into which reads are put when they are answered. A follower that does
//! not keep up misses reads, which are counted. Without a follower a read costs the look at a flag,
//! with one also a comparison of paths. A read that is followed takes some microseconds more.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::answered_read::AnsweredRead;
use super::followed_call::FollowedCall;

/// How many there may be at a time: each takes a part of each read's time, and memory.
const MAX_FOLLOWERS: usize = 8;

/// Reads that wait for a follower to take them.
const QUEUED_READS: usize = 256;

/// Reads and calls that wait for a follower of calls, which come in bursts.
const QUEUED_CALLS: usize = 4096;

/// All followers of reads.
#[derive(Debug, Default)]
pub struct ReadFollowers {
    has_any: AtomicBool,
    followers: RwLock<Vec<Follower>>,
    /// The path that the root of the mount has for reads: that of a filer's directory.
    root: OnceLock<Box<str>>,
}

#[derive(Debug)]
struct Follower {
    /// What the paths of its reads are, or begin with, from the root of the mount on.
    tree: Box<str>,
    wants_calls: bool,
    queue: mpsc::Sender<FollowedEvent>,
    left_out: Arc<AtomicU64>,
}

/// What a follower gets.
#[derive(Debug, Clone)]
pub enum FollowedEvent {
    /// The daemon has answered a read.
    Read(Arc<AnsweredRead>),
    /// A call of an application has returned.
    Call(Arc<FollowedCall>),
}

/// Whether `path` is the one of `tree`, which has no slash at its end, or below it.
pub(super) fn is_in_tree(path: &str, tree: &str) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The reads of one follower. When it is dropped, it follows no more.
#[derive(Debug)]
pub struct FollowedReads {
    pub(super) queue: mpsc::Receiver<FollowedEvent>,
    left_out: Arc<AtomicU64>,
}

impl FollowedReads {
    /// How many reads were left out so far, since the queue was full.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }
}

impl ReadFollowers {
    /// The files of the mount are those below `root` of the filer.
    pub fn set_root(&self, root: &str) {
        // There is only one.
        let _ = self.root.set(root.trim_end_matches('/').into());
    }

    /// The path that what is at `path` from the root of the mount on has for reads.
    pub fn path_of(&self, path: &str) -> String {
        let root = self.root.get().map_or("", |root| root);
        format!("{root}{}", path.trim_end_matches('/'))
    }

    /// Follows the reads of `tree`, a path from the root of the mount on such as `/dir/file`, or
    /// `/` for all of them, from now on; the calls of applications, too, if it `wants_calls`. If
    /// there are too many followers, the first one makes room.
    pub fn follow(&self, tree: &str, wants_calls: bool) -> FollowedReads {
        let mut followers = self.followers.write();
        followers.retain(|follower| !follower.queue.is_closed());
        if followers.len() == MAX_FOLLOWERS {
            followers.remove(0);
        }
        let (sender, queue) = mpsc::channel(if wants_calls { QUEUED_CALLS } else { QUEUED_READS });
        let left_out = Arc::<AtomicU64>::default();
        let tree = tree.trim_end_matches('/').into();
        followers.push(Follower { tree, wants_calls, queue: sender, left_out: left_out.clone() });
        self.has_any.store(true, Relaxed);
        FollowedReads { queue, left_out }
    }

    /// Whether there are followers.
    pub fn has_any(&self) -> bool {
        self.has_any.load(Relaxed)
    }

    /// Gives a read of the file at `path` to all who follow it; `describe` is called if one of them
    /// can take it.
    pub(super) fn offer(&self, path: &str, describe: impl FnOnce() -> AnsweredRead) {
        if self.has_any() {
            self.give(path, |_| true, || FollowedEvent::Read(Arc::new(describe())));
        }
    }

    /// Gives a call to all who follow calls of its file.
    pub fn offer_call(&self, call: FollowedCall) {
        let call = Arc::new(call);
        self.give(&call.path, |follower| follower.wants_calls, || FollowedEvent::Call(call.clone()));
    }

    fn give(&self, path: &str, wants: impl Fn(&Follower) -> bool, describe: impl FnOnce() -> FollowedEvent) {
        let root = self.root.get().map_or("", |root| root);
        let Some(path) = path.strip_prefix(root) else { return };
        let mut has_left = false;
        let mut places = Vec::new();
        for follower in &*self.followers.read() {
            if follower.queue.is_closed() {
                has_left = true;
            } else if wants(follower) && is_in_tree(path, &follower.tree) {
                match follower.queue.clone().try_reserve_owned() {
                    Ok(place) => places.push(place),
                    Err(_) => _ = follower.left_out.fetch_add(1, Relaxed),
                }
            }
        }
        if has_left {
            let mut followers = self.followers.write();
            followers.retain(|follower| !follower.queue.is_closed());
            self.has_any.store(!followers.is_empty(), Relaxed);
        }
        if places.is_empty() {
            return;
        }
        let event = describe();
        for place in places {
            place.send(event.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> AnsweredRead {
        AnsweredRead { path: path.into(), ..AnsweredRead::default() }
    }

    fn paths(following: &mut FollowedReads) -> Vec<String> {
        let path = |event| match event {
            FollowedEvent::Read(read) => read.path.clone(),
            FollowedEvent::Call(call) => format!("call {}", call.path),
        };
        std::iter::from_fn(|| following.queue.try_recv().ok().map(path)).collect()
    }

    #[test]
    fn each_follower_has_the_reads_of_its_tree() {
        let followers = ReadFollowers::default();
        followers.offer("/a/b", || unreachable!("there is no follower"));
        let mut all = followers.follow("/", false);
        let mut tree = followers.follow("/a/", false);
        let mut file = followers.follow("/a/b", false);
        for path in ["/a/b", "/a/bc", "/ab", "/a"] {
            followers.offer(path, || read(path));
        }
        assert_eq!(paths(&mut all), ["/a/b", "/a/bc", "/ab", "/a"]);
        assert_eq!(paths(&mut tree), ["/a/b", "/a/bc", "/a"]);
        assert_eq!(paths(&mut file), ["/a/b"]);
        drop((all, tree, file));
        followers.offer("/a/b", || unreachable!("all have gone"));
        assert!(!followers.has_any());
    }

    #[test]
    fn calls_come_to_those_who_want_them() {
        let followers = ReadFollowers::default();
        let (mut calls, mut elsewhere) = (followers.follow("/a", true), followers.follow("/b", true));
        let mut reads = followers.follow("/a", false);
        followers.offer("/a", || read("/a"));
        followers.offer_call(FollowedCall { path: "/a".into(), ..FollowedCall::default() });
        assert_eq!(paths(&mut calls), ["/a", "call /a"]);
        assert_eq!((paths(&mut reads), paths(&mut elsewhere)), (vec!["/a".to_owned()], vec![]));
    }

    #[test]
    fn paths_from_the_root_of_the_mount_are_paths_of_the_filer() {
        let followers = ReadFollowers::default();
        followers.set_root("/buckets/train/");
        let (mut all, mut tree) = (followers.follow("/", false), followers.follow("/a", false));
        for path in ["/buckets/train/a/b", "/buckets/train/b", "/a/b"] {
            followers.offer(path, || read(path));
        }
        assert_eq!(paths(&mut all), ["/buckets/train/a/b", "/buckets/train/b"]);
        assert_eq!(paths(&mut tree), ["/buckets/train/a/b"]);
    }

    #[test]
    fn a_follower_that_does_not_keep_up_misses_reads_which_are_counted() {
        let followers = ReadFollowers::default();
        let mut slow = followers.follow("/", false);
        for _ in 0..QUEUED_READS + 3 {
            followers.offer("/a", || read("/a"));
        }
        assert_eq!((slow.left_out(), paths(&mut slow).len()), (3, QUEUED_READS));
        followers.offer("/a", || read("/a"));
        assert_eq!((slow.left_out(), paths(&mut slow).len()), (3, 1));
    }

    #[test]
    fn their_number_is_bounded() {
        let followers = ReadFollowers::default();
        let mut following: Vec<_> = (0..=MAX_FOLLOWERS).map(|_| followers.follow("/", false)).collect();
        followers.offer("/a", || read("/a"));
        let taken: Vec<_> = following.iter_mut().map(|reads| paths(reads).len()).collect();
        assert_eq!(taken, [&[0][..], &[1; MAX_FOLLOWERS]].concat(), "the first one made room");
    }
}
