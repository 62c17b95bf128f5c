//! What the host lets a mount have, beyond what `check` looks at.

use std::fs;

use rustix::process::{Resource, getrlimit};

use crate::cache::resident::RESERVED_DESCRIPTORS;
use crate::cli::host::{self, Finding, FindingState};

/// The limit on open files below which a mount is worse off: 1 GiB of cache, the default, holds
/// about as many files of 16 KiB, and each takes a descriptor.
const MIN_DESCRIPTORS: u64 = 1 << 16;

/// Where fusermount3 looks for what other users than root may do.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// One finding for each limit.
pub(super) fn findings() -> [Finding; 2] {
    let limit = getrlimit(Resource::Nofile).maximum;
    let user_allow_other = fs::read_to_string(FUSE_CONF).is_ok_and(|text| allows_others(&text));
    [open_files(limit), other_users(host::is_root(), user_allow_other)]
}

/// The hard limit, to which daemons raise theirs by themselves.
fn open_files(limit: Option<u64>) -> Finding {
    let is_enough = limit.is_none_or(|limit| limit >= MIN_DESCRIPTORS);
    Finding {
        ability: "open files",
        state: if is_enough { FindingState::Ok } else { FindingState::Lost },
        found: match limit {
            None => "unlimited".into(),
            Some(limit) => {
                let files = limit.saturating_sub(RESERVED_DESCRIPTORS);
                format!("at most {limit}, so that the cache keeps {files} files whole at most")
            }
        },
        lost: "fewer files are kept whole for the kernel to read by itself; without CAP_SYS_RESOURCE, an attached \
               path has the kernel forget names sooner",
        remedy: "ulimit -Hn 1048576; LimitNOFILE=1048576 for systemd, --ulimit nofile=1048576 for containers",
    }
}

fn other_users(is_root: bool, user_allow_other: bool) -> Finding {
    Finding {
        ability: "other users",
        state: if is_root || user_allow_other { FindingState::Ok } else { FindingState::Lost },
        found: match (is_root, user_allow_other) {
            (true, _) => "root may let other users use a mount".into(),
            (false, true) => format!("{FUSE_CONF} has user_allow_other"),
            (false, false) => format!("{FUSE_CONF} has no user_allow_other"),
        },
        lost: "a mount is for the user who mounts alone; --allow-other is refused",
        remedy: "add the line user_allow_other to /etc/fuse.conf",
    }
}

/// Whether a line of fuse.conf, comments aside, lets all users pass `allow_other`.
fn allows_others(fuse_conf: &str) -> bool {
    let uncommented = |line: &str| line.split('#').next().unwrap_or_default().trim() == "user_allow_other";
    fuse_conf.lines().any(uncommented)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_descriptors_are_a_loss() {
        assert_eq!(open_files(None).state, FindingState::Ok);
        assert_eq!(open_files(Some(1 << 20)).state, FindingState::Ok);
        let few = open_files(Some(4096));
        assert_eq!(few.state, FindingState::Lost);
        assert!(few.found.contains("4096") && few.found.contains("3072"), "{}", few.found);
    }

    #[test]
    fn others_than_root_need_a_line_that_is_no_comment() {
        assert!(allows_others("# mount_max = 1\nuser_allow_other # all users\n"));
        assert!(!allows_others("#user_allow_other\nmount_max = 1000\n"));
        assert_eq!(other_users(true, false).state, FindingState::Ok);
        assert_eq!(other_users(false, true).state, FindingState::Ok);
        assert_eq!(other_users(false, false).state, FindingState::Lost);
    }
}
