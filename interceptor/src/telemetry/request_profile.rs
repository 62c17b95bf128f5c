//! FUSE requests by operation, file and process, while a profiler is connected (`interceptor
//! profile`).
//!
//! A file system calls [`RequestProfilers::begin`] when a request arrives, and drops the
//! [`ProfiledRequest`] when it answers. Without a profiler that costs a look at a flag: paths and
//! processes are looked up only with one, which takes a microsecond or two of a request. Each
//! profiler has tables of its own, of bounded size; what a full table has no row for is counted
//! as others. The tables go with their profiler.

use std::collections::HashMap;
use std::fs;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::answered_read::thread_name;
use super::read_followers::is_in_tree;

/// How many profiles there may be at a time: each takes a part of each request's time.
const MAX_PROFILES: usize = 4;

/// Rows of each table of a profile. There are some 40 operations.
const MAX_OPERATIONS: usize = 64;
const MAX_FILES: usize = 2048;
const MAX_PROCESSES: usize = 1024;

/// Files with longer paths are counted as others, so that the rows of files take 2 MiB at most.
const MAX_PATH_BYTES: usize = 1024;

/// Threads whose process is known. If there are more, all are looked up anew.
const MAX_KNOWN_THREADS: usize = 4096;

/// How long a thread is taken to be of the same process and name. A shell opens a file and becomes
/// another program, and the kernel gives numbers of threads again.
const PROCESS_REFRESH_INTERVAL: Duration = Duration::from_millis(100);

/// What requests did, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// How many there were.
    pub count: u64,
    /// Bytes that were read, written or copied.
    pub bytes: u64,
    /// Seconds from their arrival at the daemon to the answer. Requests overlap.
    pub seconds: f64,
}

impl Usage {
    /// Adds that of other requests.
    pub fn add(&mut self, more: &Usage) {
        self.count += more.count;
        self.bytes += more.bytes;
        self.seconds += more.seconds;
    }
}

/// A row of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileRow {
    /// The operation, the path of the file, or the command; the command is empty if it had ended.
    pub name: String,
    /// The process. 0 is the kernel itself, and processes that the daemon's PID namespace lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What its requests did.
    #[serde(flatten)]
    pub usage: Usage,
}

/// The requests of a time. Those that took longest, in total, come first in each table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileReport {
    /// How long the time is, in seconds.
    pub seconds: f64,
    /// By operation, as FUSE names it. All requests.
    pub operations: Vec<ProfileRow>,
    /// By file or directory. Requests whose file has no known path are left out.
    pub files: Vec<ProfileRow>,
    /// Of the files that have no row.
    pub other_files: Usage,
    /// By process. All requests.
    pub processes: Vec<ProfileRow>,
    /// Of the processes that have no row.
    pub other_processes: Usage,
}

/// A process as it is shown: a command that becomes another one counts apart.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: u32,
    command: String,
}

impl Process {
    /// The process of a thread that waits for its request. Of what /proc has, neither file takes a
    /// lock that a reader may hold, as `cmdline` does while a page fault waits.
    fn of_thread(thread: u32) -> Self {
        // The name in it may be cut within a character.
        let status = fs::read(format!("/proc/{thread}/status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
        let pid = group.unwrap_or(thread);
        Self { pid, command: thread_name(pid) }
    }
}

/// Usage by key, in a bounded number of rows.
#[derive(Debug, Clone)]
struct UsageTable<K> {
    rows: HashMap<K, Usage>,
    max_rows: usize,
    others: Usage,
}

impl<K: Hash + Eq + Clone> UsageTable<K> {
    fn new(max_rows: usize) -> Self {
        Self { rows: HashMap::new(), max_rows, others: Usage::default() }
    }

    fn add(&mut self, key: &K, usage: &Usage) {
        if let Some(row) = self.rows.get_mut(key) {
            row.add(usage);
        } else if self.rows.len() < self.max_rows {
            self.rows.insert(key.clone(), *usage);
        } else {
            self.others.add(usage);
        }
    }

    /// The rows by the time that they took, most first.
    fn sorted(self, name_and_pid: impl Fn(&K) -> (String, Option<u32>)) -> Vec<ProfileRow> {
        let row = |(key, usage)| {
            let (name, pid) = name_and_pid(&key);
            ProfileRow { name, pid, usage }
        };
        let mut rows: Vec<_> = self.rows.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.usage.seconds.total_cmp(&a.usage.seconds).then_with(|| a.name.cmp(&b.name)));
        rows
    }
}

/// What a profile counts.
#[derive(Debug, Clone)]
struct ProfileTables {
    operations: UsageTable<&'static str>,
    files: UsageTable<Arc<str>>,
    processes: UsageTable<Arc<Process>>,
}

/// The requests of a tree, from a time on.
#[derive(Debug)]
struct Profile {
    /// What paths are, or begin with; empty for all requests.
    tree: Box<str>,
    begun: Instant,
    tables: Mutex<ProfileTables>,
}

impl Profile {
    fn record(&self, request: &RequestRecord, usage: &Usage) {
        let path = request.path.as_ref();
        let is_wanted = self.tree.is_empty() || path.is_some_and(|path| is_in_tree(path, &self.tree));
        if !is_wanted || request.begun < self.begun {
            return;
        }
        let mut tables = self.tables.lock();
        tables.operations.add(&request.operation, usage);
        tables.processes.add(&request.process, usage);
        match path {
            Some(path) if path.len() <= MAX_PATH_BYTES => tables.files.add(path, usage),
            Some(_) => tables.files.others.add(usage),
            None => {}
        }
    }
}

/// The process of a thread, and when it was looked up.
#[derive(Debug)]
struct KnownThread {
    process: Arc<Process>,
    looked_up: Instant,
}

/// All profiles of a daemon.
#[derive(Debug, Default)]
pub struct RequestProfilers {
    has_any: AtomicBool,
    profiles: RwLock<Vec<Arc<Profile>>>,
    threads: Mutex<HashMap<u32, KnownThread>>,
}

/// A profile. When it is dropped, nothing is counted for it any more.
#[derive(Debug)]
pub struct RunningProfile {
    profilers: Arc<RequestProfilers>,
    profile: Arc<Profile>,
}

impl RequestProfilers {
    /// Counts the requests for `tree` from now on: a path as `trace` shows it, or all if it is
    /// empty. If there are too many profiles, the first one ends.
    pub fn start(self: &Arc<Self>, tree: &str) -> RunningProfile {
        let tables = ProfileTables {
            operations: UsageTable::new(MAX_OPERATIONS),
            files: UsageTable::new(MAX_FILES),
            processes: UsageTable::new(MAX_PROCESSES),
        };
        let tree = tree.trim_end_matches('/').into();
        let profile = Arc::new(Profile { tree, begun: Instant::now(), tables: Mutex::new(tables) });
        let mut profiles = self.profiles.write();
        if profiles.len() == MAX_PROFILES {
            profiles.remove(0);
        }
        profiles.push(profile.clone());
        self.has_any.store(true, Relaxed);
        RunningProfile { profilers: self.clone(), profile }
    }

    /// Whether requests are counted.
    pub fn has_any(&self) -> bool {
        self.has_any.load(Relaxed)
    }

    /// A request of `thread` has arrived. `operation` is its name in FUSE; `path` is called if
    /// requests are counted. Hot path.
    #[inline]
    pub fn begin(
        self: &Arc<Self>,
        operation: &'static str,
        thread: u32,
        path: impl FnOnce() -> Option<String>,
    ) -> ProfiledRequest {
        ProfiledRequest(self.has_any().then(|| self.record_of(operation, thread, path())))
    }

    #[cold]
    fn record_of(
        self: &Arc<Self>,
        operation: &'static str,
        thread: u32,
        path: Option<String>,
    ) -> Box<RequestRecord> {
        let (begun, process) = (Instant::now(), self.process_of(thread));
        let (profilers, path) = (self.clone(), path.map(Into::into));
        Box::new(RequestRecord { profilers, operation, process, path, begun, bytes: 0 })
    }

    fn process_of(&self, thread: u32) -> Arc<Process> {
        let looked_up = Instant::now();
        let is_fresh = |known: &&KnownThread| looked_up - known.looked_up < PROCESS_REFRESH_INTERVAL;
        if let Some(known) = self.threads.lock().get(&thread).filter(is_fresh) {
            return known.process.clone();
        }
        let process = Arc::new(Process::of_thread(thread));
        let mut threads = self.threads.lock();
        if threads.len() == MAX_KNOWN_THREADS {
            threads.clear();
        }
        threads.insert(thread, KnownThread { process: process.clone(), looked_up });
        process
    }
}

impl RunningProfile {
    /// What has been counted so far.
    pub fn report(&self) -> ProfileReport {
        let seconds = self.profile.begun.elapsed().as_secs_f64();
        // Requests wait for the lock, but not for what comes after.
        let ProfileTables { operations, files, processes } = self.profile.tables.lock().clone();
        ProfileReport {
            seconds,
            operations: operations.sorted(|operation| ((*operation).to_owned(), None)),
            other_files: files.others,
            files: files.sorted(|path| (path.to_string(), None)),
            other_processes: processes.others,
            processes: processes.sorted(|process| (process.command.clone(), Some(process.pid))),
        }
    }

    /// Whether another profile has the place of this one, which counts no more.
    pub fn is_displaced(&self) -> bool {
        !self.profilers.profiles.read().iter().any(|profile| Arc::ptr_eq(profile, &self.profile))
    }
}

impl Drop for RunningProfile {
    fn drop(&mut self) {
        let mut profiles = self.profilers.profiles.write();
        profiles.retain(|profile| !Arc::ptr_eq(profile, &self.profile));
        if profiles.is_empty() {
            self.profilers.has_any.store(false, Relaxed);
            *self.profilers.threads.lock() = HashMap::new();
        }
    }
}

/// A request that is counted, if requests are, when this is dropped: that is when it is answered.
#[derive(Debug)]
pub struct ProfiledRequest(Option<Box<RequestRecord>>);

#[derive(Debug)]
struct RequestRecord {
    profilers: Arc<RequestProfilers>,
    operation: &'static str,
    process: Arc<Process>,
    path: Option<Arc<str>>,
    begun: Instant,
    bytes: u64,
}

impl ProfiledRequest {
    /// The request has read, written or copied so many bytes.
    #[inline]
    pub fn transferred(&mut self, bytes: usize) {
        if let Some(record) = &mut self.0 {
            record.bytes = bytes as u64;
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let usage = Usage { count: 1, bytes: self.bytes, seconds: self.begun.elapsed().as_secs_f64() };
        for profile in &*self.profilers.profiles.read() {
            profile.record(self, &usage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(profilers: &Arc<RequestProfilers>, operation: &'static str, path: Option<&str>, bytes: usize) {
        let path = || path.map(str::to_owned);
        profilers.begin(operation, std::process::id(), path).transferred(bytes);
    }

    fn counts(rows: &[ProfileRow]) -> Vec<(&str, u64, u64)> {
        let mut counts: Vec<_> =
            rows.iter().map(|row| (row.name.as_str(), row.usage.count, row.usage.bytes)).collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn requests_are_counted_by_operation_file_and_process() {
        let profilers = Arc::<RequestProfilers>::default();
        let profile = profilers.start("/");
        request(&profilers, "read", Some("/a"), 10);
        request(&profilers, "read", Some("/b"), 5);
        request(&profilers, "open", Some("/a"), 0);
        request(&profilers, "statfs", None, 0);
        let report = profile.report();
        assert_eq!(counts(&report.operations), [("open", 1, 0), ("read", 2, 15), ("statfs", 1, 0)]);
        assert_eq!(counts(&report.files), [("/a", 2, 10), ("/b", 1, 5)]);
        let [process] = &report.processes[..] else { panic!("{:?}", report.processes) };
        assert_eq!((process.pid, process.usage.count), (Some(std::process::id()), 4));
        let command = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(process.name, command.trim_end());
        assert!(report.operations.is_sorted_by(|a, b| a.usage.seconds >= b.usage.seconds));
    }

    #[test]
    fn another_thread_is_of_the_same_process() {
        let thread = || Process::of_thread(nix::unistd::gettid().as_raw() as u32);
        assert_eq!(std::thread::spawn(thread).join().unwrap(), Process::of_thread(std::process::id()));
        assert_eq!(Process::of_thread(0), Process { pid: 0, command: String::new() });
    }

    #[test]
    fn a_profile_of_a_tree_has_its_requests_only() {
        let profilers = Arc::<RequestProfilers>::default();
        let (tree, file) = (profilers.start("/a/"), profilers.start("/a/b"));
        for path in [Some("/a/b"), Some("/a/bc"), Some("/ab"), Some("/a"), None] {
            request(&profilers, "read", path, 1);
        }
        let tree = tree.report();
        assert_eq!(counts(&tree.files), [("/a", 1, 1), ("/a/b", 1, 1), ("/a/bc", 1, 1)]);
        assert_eq!(counts(&tree.operations), [("read", 3, 3)]);
        assert_eq!(counts(&file.report().files), [("/a/b", 1, 1)]);
    }

    #[test]
    fn without_a_profile_nothing_is_looked_up_or_kept() {
        let profilers = Arc::<RequestProfilers>::default();
        let unprofiled = || profilers.begin("read", 1, || unreachable!("there is no profile"));
        assert!(unprofiled().0.is_none());
        let profile = profilers.start("");
        let before = profilers.begin("read", std::process::id(), || None);
        drop(profile);
        assert!(!profilers.has_any() && unprofiled().0.is_none());
        assert!(profilers.profiles.read().is_empty() && profilers.threads.lock().is_empty());
        let later = profilers.start("");
        drop(before);
        assert_eq!(later.report().operations, [], "the request came before the profile");
    }

    #[test]
    fn what_has_no_row_is_counted_among_others() {
        let profilers = Arc::<RequestProfilers>::default();
        let profile = profilers.start("");
        for number in 0..MAX_FILES + 3 {
            request(&profilers, "read", Some(&format!("/{number}")), 1);
        }
        request(&profilers, "read", Some("/0"), 1);
        request(&profilers, "read", Some(&format!("/{}", "x".repeat(MAX_PATH_BYTES))), 1);
        let report = profile.report();
        assert_eq!((report.files.len(), report.other_files.count), (MAX_FILES, 4));
        assert_eq!(counts(&report.files)[0], ("/0", 2, 2));
        let all = MAX_FILES as u64 + 5;
        assert_eq!(counts(&report.operations), [("read", all, all)]);

        let mut processes = UsageTable::new(2);
        for pid in [1, 2, 3, 1] {
            let process = Process { pid, command: String::new() };
            processes.add(&Arc::new(process), &Usage { count: 1, ..Usage::default() });
        }
        assert_eq!((processes.rows.len(), processes.others.count), (2, 1));
        for thread in 0..=MAX_KNOWN_THREADS as u32 {
            // Numbers beyond those that the kernel gives.
            profilers.process_of(u32::MAX - thread);
        }
        assert!(profilers.threads.lock().len() <= MAX_KNOWN_THREADS);
    }

    #[test]
    fn the_first_of_too_many_profiles_ends() {
        let profilers = Arc::<RequestProfilers>::default();
        let profiles: Vec<_> = (0..=MAX_PROFILES).map(|_| profilers.start("")).collect();
        request(&profilers, "read", None, 1);
        let ended: Vec<_> = profiles.iter().map(RunningProfile::is_displaced).collect();
        assert_eq!(ended, [&[true][..], &[false; MAX_PROFILES]].concat());
        assert_eq!(profiles[0].report().operations, []);
        assert_eq!(counts(&profiles[1].report().operations), [("read", 1, 1)]);
        drop(profiles);
        assert!(!profilers.has_any());
    }
}
