//! The memory that this process may use: the host's memory, or the limit of its control groups;
//! and how much of that is left.
//!
//! Both versions of control groups apply, also side by side (hybrid hierarchies). Of nested groups
//! the smallest limit applies. In a container the outer groups may not be visible; their limits
//! are not visible either, except in version 1, which reports them (`hierarchical_memory_limit`).

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// There is memory to spare while one in so many bytes is left.
const AMPLE_DIVISOR: u64 = 5;

/// Bytes of memory; `None` if unknown.
pub fn limit() -> Option<u64> {
    Host::default().memory_limit()
}

/// How much memory is left; `None` if unknown.
pub fn headroom() -> Option<Headroom> {
    Host::default().headroom()
}

/// For how long tasks have waited for memory so far, of the innermost control group that tells, or
/// of the host; `None` if the kernel does not tell ([pressure stall information]).
///
/// [pressure stall information]: https://docs.kernel.org/accounting/psi.html
pub fn stalled() -> Option<Duration> {
    Host::default().stalled()
}

/// Memory of the host, or of the control group that has the smallest part of its own left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headroom {
    /// Bytes that there are in all.
    pub limit: u64,
    /// Bytes that can be had without swapping: free ones, and pages of files that can be dropped.
    pub available: u64,
}

impl Headroom {
    /// Bytes that are to be left when a cache takes more memory: a fifth.
    pub fn ample(self) -> u64 {
        self.limit / AMPLE_DIVISOR
    }
}

/// How many bytes of 2 MiB huge pages from the host's pool control groups allow; `None` without
/// such a limit. Beyond the limit, mapping succeeds, but the kernel kills the process when it
/// touches the pages.
pub fn huge_page_limit() -> Option<u64> {
    Host::default().huge_page_limit()
}

/// Where the kernel's files are read.
struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

/// A controller of control groups, and its files with limits, in bytes.
struct Controller {
    name: &'static str,
    /// `memory.high` is included: above it processes are not killed, but nearly stopped.
    files_v2: &'static [&'static str],
    files_v1: &'static [&'static str],
}

const MEMORY: Controller = Controller {
    name: "memory",
    files_v2: &["memory.max", "memory.high"],
    files_v1: &["memory.limit_in_bytes", "memory.stat"],
};

const HUGE_PAGES: Controller =
    Controller { name: "hugetlb", files_v2: &["hugetlb.2MB.max"], files_v1: &["hugetlb.2MB.limit_in_bytes"] };

impl Host {
    fn memory_limit(&self) -> Option<u64> {
        let total = self.memory_info("MemTotal:")?;
        Some(self.group_limit(&MEMORY).map_or(total, |limit| limit.min(total)))
    }

    /// A size in `/proc/meminfo`, in bytes.
    fn memory_info(&self, name: &str) -> Option<u64> {
        let info = self.read("proc/meminfo")?;
        let value = info.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib.saturating_mul(1024))
    }

    fn headroom(&self) -> Option<Headroom> {
        let (limit, available) = (self.memory_info("MemTotal:")?, self.memory_info("MemAvailable:")?);
        let host = Headroom { limit, available };
        let groups = self.groups(&MEMORY).into_iter();
        let groups = groups.filter_map(|group| group_headroom(&group.directory, group.version));
        let left = |headroom: &Headroom| headroom.available as f64 / headroom.limit.max(1) as f64;
        groups.chain([host]).min_by(|one, other| left(one).total_cmp(&left(other)))
    }

    fn stalled(&self) -> Option<Duration> {
        let groups = self.groups(&MEMORY).into_iter();
        let files = groups.map(|group| group.directory.join("memory.pressure"));
        let host = self.root.join("proc/pressure/memory");
        files.chain([host]).find_map(|file| stalled_in(&fs::read_to_string(file).ok()?))
    }

    fn huge_page_limit(&self) -> Option<u64> {
        self.group_limit(&HUGE_PAGES)
    }

    /// The smallest limit of all groups that this process is in.
    fn group_limit(&self, controller: &Controller) -> Option<u64> {
        let limits = self.groups(controller).into_iter().flat_map(|group| {
            let files = match group.version {
                GroupVersion::V2 => controller.files_v2,
                GroupVersion::V1 => controller.files_v1,
            };
            files.iter().filter_map(move |file| limit_in(&group.directory.join(file)))
        });
        limits.min()
    }

    /// The groups that this process is in and that are visible, the innermost first.
    fn groups(&self, controller: &Controller) -> Vec<Group> {
        let (Some(groups), Some(mounts)) = (self.read("proc/self/cgroup"), self.read("proc/self/mountinfo"))
        else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for hierarchy in mounts.lines().filter_map(Hierarchy::parse) {
            let version = match hierarchy.controllers {
                None => GroupVersion::V2,
                Some(names) if names.split(',').any(|name| name == controller.name) => GroupVersion::V1,
                Some(_) => continue,
            };
            let name = hierarchy.controllers.map(|_| controller.name);
            let Some(group) = groups.lines().find_map(|line| group_of(line, name)) else { continue };
            let mount_point = self.root.join(hierarchy.mount_point.trim_start_matches('/'));
            // Groups outside of the mounted one are not visible.
            let below = below(group, hierarchy.root).unwrap_or_default();
            let inside = below.ancestors().map(|group| mount_point.join(group));
            found.extend(inside.map(|directory| Group { directory, version }));
        }
        found
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.root.join(file)).ok()
    }
}

/// A control group.
struct Group {
    /// Where its files are.
    directory: PathBuf,
    version: GroupVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupVersion {
    V1,
    V2,
}

/// What is left in a group. `None` if it has no limit.
fn group_headroom(group: &Path, version: GroupVersion) -> Option<Headroom> {
    let (limits, used, dropped): (&[_], _, _) = match version {
        GroupVersion::V2 => {
            (&["memory.max", "memory.high"], "memory.current", ["inactive_file ", "active_file "])
        }
        GroupVersion::V1 => {
            let dropped = ["total_inactive_file ", "total_active_file "];
            (&["memory.limit_in_bytes"], "memory.usage_in_bytes", dropped)
        }
    };
    let limit = limits.iter().filter_map(|file| limit_in(&group.join(file))).min()?;
    let used = limit_in(&group.join(used))?;
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let value =
        |name: &&str| stat.lines().find_map(|line| line.strip_prefix(*name)?.trim().parse::<u64>().ok());
    let dropped: u64 = dropped.iter().filter_map(value).sum();
    Some(Headroom { limit, available: limit.saturating_sub(used.saturating_sub(dropped)) })
}

/// The time in which some task was stalled, in a file of pressure: `some avg10=0.00 avg60=0.00
/// avg300=0.00 total=6868188`, in microseconds.
fn stalled_in(pressure: &str) -> Option<Duration> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|field| field.strip_prefix("total="))?;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// A mounted hierarchy of control groups.
struct Hierarchy<'a> {
    /// The group that is mounted.
    root: &'a str,
    /// Where it is mounted.
    mount_point: &'a str,
    /// In version 1, the controllers, among other options.
    controllers: Option<&'a str>,
}

impl<'a> Hierarchy<'a> {
    /// Parses a line of `/proc/self/mountinfo`: `36 35 0:30 /root /place options [fields] - type
    /// source superoptions`.
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, mount_point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let controllers = match after.next()? {
            "cgroup2" => None,
            "cgroup" => Some(after.nth(1)?),
            _ => return None,
        };
        Some(Self { root, mount_point, controllers })
    }
}

/// The group in a line of `/proc/self/cgroup`, `NUMBER:CONTROLLERS:GROUP`, if the line is of the
/// hierarchy of `controller`, or, without one, of version 2.
fn group_of<'a>(line: &'a str, controller: Option<&str>) -> Option<&'a str> {
    let (number, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let is_it = match controller {
        Some(name) => controllers.split(',').any(|other| other == name),
        None => number == "0" && controllers.is_empty(),
    };
    is_it.then_some(group)
}

/// The path from `root` down to `group`, if there is one. Groups outside of a name space have
/// names such as `/../other`.
fn below(group: &str, root: &str) -> Option<PathBuf> {
    let below = Path::new(group).strip_prefix(root).ok()?;
    below.components().all(|part| matches!(part, Component::Normal(_))).then(|| below.to_owned())
}

/// The limit in a file: a number alone or, in `memory.stat`, behind its name. `None` for `max`.
fn limit_in(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "));
    number.unwrap_or(&text).trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "36 25 0:30 / /sys/fs/cgroup/memory rw shared:17 - cgroup cgroup rw,memory\n";

    /// A host with 8 GiB and these files.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            let info = "MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n";
            fake.write("proc/meminfo", info);
            fake.write("proc/self/cgroup", groups);
            fake.write("proc/self/mountinfo", mounts);
            files.iter().for_each(|(file, text)| fake.write(&format!("sys/fs/cgroup/{file}"), text));
            fake
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn host(&self) -> Host {
            Host { root: self.0.path().to_owned() }
        }
    }

    #[track_caller]
    fn limits(groups: &str, mounts: &str, files: &[(&str, &str)], mib: u64) {
        assert_eq!(Fake::new(groups, mounts, files).host().memory_limit(), Some(mib * MIB));
    }

    #[test]
    fn without_limits_it_is_the_host_s_memory() {
        limits("", "", &[], 8192);
        limits("0::/a\n", V2, &[("a/memory.max", "max\n"), ("a/memory.high", "max\n")], 8192);
        let unlimited = [("memory/a/memory.limit_in_bytes", "9223372036854771712\n")];
        limits("4:memory:/a\n", V1, &unlimited, 8192);
        let host = Host { root: "/nonexistent".into() };
        assert_eq!(host.memory_limit(), None);
    }

    #[test]
    fn the_smallest_limit_of_nested_groups_applies() {
        let files = [
            ("a/memory.max", "209715200\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/memory.max", "1073741824\n"),
            ("other/memory.max", "1048576\n"),
        ];
        limits("0::/a/b/c\n", V2, &files, 200);
        limits("0::/\n", V2, &files, 8192);
        limits("0::/a/b\n", V2, &[("a/memory.max", "max\n"), ("a/b/memory.high", "104857600\n")], 100);
        let files = [
            ("memory/a/memory.limit_in_bytes", "209715200\n"),
            ("memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        limits("9:name=systemd:/x\n4:cpu,memory:/a/b\n", V1, &files, 200);
    }

    #[test]
    fn both_versions_apply_side_by_side() {
        let both = format!(
            "{V1}37 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             38 25 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        );
        let groups = "4:memory:/a\n3:cpu:/c\n0::/u\n";
        let files = [
            ("memory/a/memory.limit_in_bytes", "524288000\n"),
            ("unified/u/cgroup.procs", "1\n"),
            ("cpu/c/memory.limit_in_bytes", "1\n"),
        ];
        limits(groups, &both, &files, 500);
        let files = [files[0], ("unified/u/memory.max", "314572800\n")];
        limits(groups, &both, &files, 300);
    }

    #[test]
    fn containers_see_their_own_group_at_the_mount_point() {
        // Without its own name space the path is the host's, and the group is mounted.
        let mounts = "36 25 0:30 /docker/id /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let files = [("memory/memory.limit_in_bytes", "209715200\n")];
        limits("4:memory:/docker/id\n", mounts, &files, 200);
        limits("4:memory:/docker/id/inner\n", mounts, &files, 200);
        // A limit of an outer group, which only the statistics report.
        let stat = ("memory/memory.stat", "cache 5\nhierarchical_memory_limit 104857600\ntotal_cache 5\n");
        limits("4:memory:/docker/id\n", mounts, &[files[0], stat], 100);
        // A group that is not below the mounted one.
        limits("4:memory:/elsewhere\n", mounts, &files, 200);
        limits("0::/../other\n", V2, &[("memory.max", "209715200\n")], 200);
    }

    #[test]
    fn huge_pages_have_a_limit_of_their_own() {
        let v2 = Fake::new("0::/a\n", V2, &[("a/hugetlb.2MB.max", "4194304\n")]);
        assert_eq!(v2.host().huge_page_limit(), Some(4 * MIB));
        let v1 = "36 25 0:30 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n";
        let v1 = Fake::new("4:hugetlb:/\n", v1, &[("hugetlb/hugetlb.2MB.limit_in_bytes", "2097152\n")]);
        assert_eq!(v1.host().huge_page_limit(), Some(2 * MIB));
        assert_eq!(Fake::new("0::/a\n", V2, &[]).host().huge_page_limit(), None);
    }

    #[test]
    fn what_is_left_is_that_of_the_fullest_group() {
        let left = |groups: &str, mounts: &str, files: &[(&str, &str)], limit: u64, available: u64| {
            let headroom = Fake::new(groups, mounts, files).host().headroom();
            assert_eq!(headroom, Some(Headroom { limit: limit * MIB, available: available * MIB }));
        };
        left("", "", &[], 8192, 4096);
        let v2 = [
            ("a/memory.max", "209715200\n"),
            ("a/memory.current", "178257920\n"),
            ("a/memory.stat", "anon 5\ninactive_file 1048576\nactive_file 2097152\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", "1\n"),
            ("a/b/memory.stat", "\n"),
        ];
        left("0::/a/b\n", V2, &v2, 200, 33);
        let v1 = [
            ("memory/a/memory.limit_in_bytes", "209715200\n"),
            ("memory/a/memory.usage_in_bytes", "209715200\n"),
            ("memory/a/memory.stat", "cache 5\ntotal_inactive_file 1048576\ntotal_active_file 0\n"),
        ];
        left("4:memory:/a\n", V1, &v1, 200, 1);
        // A group with more than half of its memory is not the fullest here.
        let v1 = [v1[0], ("memory/a/memory.usage_in_bytes", "1048576\n"), v1[2]];
        left("4:memory:/a\n", V1, &v1, 8192, 4096);
    }

    #[test]
    fn stalls_are_those_of_the_group_that_tells() {
        let pressure = |total: u64| {
            format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 total=3\n")
        };
        let fake = Fake::new("0::/a\n", V2, &[("a/memory.pressure", &pressure(7))]);
        fake.write("proc/pressure/memory", &pressure(9));
        assert_eq!(fake.host().stalled(), Some(Duration::from_micros(7)));
        let fake = Fake::new("4:memory:/a\n", V1, &[]);
        assert_eq!(fake.host().stalled(), None);
        fake.write("proc/pressure/memory", &pressure(9));
        assert_eq!(fake.host().stalled(), Some(Duration::from_micros(9)));
    }

    #[test]
    fn memory_of_this_host_is_plausible() {
        let memory = limit().expect("Linux reports it");
        assert!(memory > 16 * MIB, "{memory}");
    }
}
