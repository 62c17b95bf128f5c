//! What this host can do for a mount, found out without changing anything.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::{env, io};

use daemon::size::ByteSize;
use nix::unistd::{AccessFlags, Uid, access};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::ebpf::{self, EbpfError, ProbeStatus};
use crate::fuse::cpu_latency;
use crate::seaweed::security::Security;
use crate::telemetry::Status;
use crate::telemetry::report::LostAbility;

/// Numbers of capabilities, from `linux/capability.h`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_IPC_LOCK: u32 = 14;

/// The name of the ability to have the kernel read hot files by itself.
pub(super) const PASSTHROUGH: &str = "FUSE passthrough";

/// The name of the ability to see reads that the kernel answers by itself.
pub(super) const EBPF: &str = "eBPF programs";

/// The name of the ability to keep CPUs from sleeping.
pub(super) const AWAKE: &str = "CPUs that stay awake";

/// One ability of this host.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// Its name.
    pub(super) ability: &'static str,
    /// Whether it is there.
    pub(super) state: FindingState,
    /// What was found.
    pub(super) found: String,
    /// What a mount goes without if it is not there.
    pub(super) lost: &'static str,
    /// How to get it.
    pub(super) remedy: &'static str,
}

/// How a finding turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FindingState {
    /// It is there.
    Ok,
    /// There was nothing to test it with.
    Untested,
    /// It is not, and a mount works with less.
    Lost,
    /// It is not, and no mount is possible.
    Missing,
}

impl Finding {
    /// What the status API says of it, if a mount is worse off.
    pub(super) fn as_lost(&self) -> Option<LostAbility> {
        (self.state == FindingState::Lost).then(|| LostAbility {
            ability: self.ability.to_owned(),
            reason: format!("{}; {}", self.found, self.lost),
            remedy: self.remedy.to_owned(),
        })
    }
}

/// Says what a mount of this process does not have, if `finding` is of that kind.
pub(super) fn go_without(finding: &Finding, status: &Status) {
    let Some(lost) = finding.as_lost() else { return };
    tracing::warn!(ability = lost.ability, remedy = lost.remedy, "going without: {}", lost.reason);
    status.lost(lost);
}

/// Looks at everything.
pub(super) fn findings() -> Vec<Finding> {
    vec![
        fuse_device(),
        mount_privilege(),
        readahead(),
        request_size(),
        huge_pages(),
        waking_up(),
        passthrough(),
        requests_sent_again(),
        ebpf_programs(),
    ]
}

/// Whether the effective user is root.
pub(super) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// What engines on other hosts lack to be asked, if they lack it.
pub(super) fn engine_proofs(security: &Security) -> Option<Finding> {
    let is_there = security.grpc_tls().is_some() || security.proof_key().is_some();
    (!is_there).then(|| Finding {
        ability: "engines",
        state: FindingState::Lost,
        found: "security.toml has nothing by which engines could prove themselves".to_owned(),
        lost: "of the engines on other hosts only those that --engine names are asked, and on this host those \
               of root and of the volume server's user",
        remedy: "where an rdma-engine runs on another host, give it and this host one security.toml with \
                 jwt.signing.key or [grpc] certificates",
    })
}

/// What RDMA needs on this host. A network without RDMA is normal, so only `check` reports it.
pub(super) fn rdma() -> [Finding; 2] {
    let ports = rdma_engine::rdma_ports();
    let devices = Finding {
        ability: "RDMA",
        state: if ports.is_ok() { FindingState::Ok } else { FindingState::Lost },
        found: match ports {
            Ok(ports) => ports.join(", "),
            Err(reason) => reason,
        },
        lost: "engines are asked over TCP, those of this host for descriptors",
        remedy: "a network that does RDMA, its driver, and libibverbs (apt install libibverbs1 ibverbs-providers)",
    };
    let limit = getrlimit(Resource::Memlock).current;
    let enough = limit.is_none() || capable(CAP_IPC_LOCK);
    let locked = Finding {
        ability: "locked memory",
        state: if enough { FindingState::Ok } else { FindingState::Lost },
        found: match limit {
            Some(limit) if !enough => format!("at most {}", ByteSize(limit)),
            _ => "unlimited".into(),
        },
        lost: "RDMA writes to at most that much of the cache, what is beyond it is copied",
        remedy: "ulimit -l unlimited; LimitMEMLOCK=infinity for systemd, --ulimit memlock=-1 for containers",
    };
    [devices, locked]
}

fn fuse_device() -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let remedy = match &opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            "chmod 666 /dev/fuse; in a container also allow the device (--device /dev/fuse)"
        }
        _ => "modprobe fuse; in a container pass the device in (--device /dev/fuse)",
    };
    Finding {
        ability: "FUSE",
        state: if opened.is_ok() { FindingState::Ok } else { FindingState::Missing },
        found: match opened {
            Ok(_) => "/dev/fuse can be opened".into(),
            Err(error) => format!("/dev/fuse: {error}"),
        },
        lost: "nothing can be mounted",
        remedy,
    }
}

fn mount_privilege() -> Finding {
    let helper = on_path("fusermount3").or_else(|| on_path("fusermount"));
    let (state, found) = match (capable(CAP_SYS_ADMIN), &helper) {
        (true, _) => (FindingState::Ok, "CAP_SYS_ADMIN".to_owned()),
        (false, Some(helper)) => (FindingState::Ok, format!("no CAP_SYS_ADMIN, but {}", helper.display())),
        (false, None) => (FindingState::Missing, "neither CAP_SYS_ADMIN nor fusermount3 on PATH".to_owned()),
    };
    Finding {
        ability: "mounting",
        state,
        found,
        lost: "nothing can be mounted",
        remedy: "run as root, or install fuse3 (apt install fuse3)",
    }
}

fn readahead() -> Finding {
    let mut knobs = fs::read_dir("/sys/class/bdi").into_iter().flatten().flatten();
    let writable = knobs.any(|bdi| access(&bdi.path().join("read_ahead_kb"), AccessFlags::W_OK).is_ok());
    Finding {
        ability: "readahead",
        state: if writable { FindingState::Ok } else { FindingState::Lost },
        found: format!("/sys/class/bdi is {}writable", if writable { "" } else { "not " }),
        lost: "the kernel reads ahead 128 KiB instead of 1 MiB, which makes a sequential reader that is not in the \
               page cache slower",
        remedy: "run as root, in a container with a writable /sys; or raise read_ahead_kb of the mount's bdi by hand",
    }
}

fn request_size() -> Finding {
    let file = "/proc/sys/fs/fuse/max_pages_limit";
    let pages = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let enough = pages.is_none_or(|pages| pages >= 256);
    Finding {
        ability: "large requests",
        state: if enough { FindingState::Ok } else { FindingState::Lost },
        found: match pages {
            Some(pages) => format!("fs.fuse.max_pages_limit is {pages} pages"),
            None => "this kernel fixes the limit at 256 pages".into(),
        },
        lost: "one request of the kernel brings less than 1 MiB, so that large reads cost more CPU",
        remedy: "sysctl fs.fuse.max_pages_limit=256",
    }
}

fn huge_pages() -> Finding {
    let enabled = chosen("/sys/kernel/mm/transparent_hugepage/enabled");
    let switched_off = nix::sys::prctl::get_thp_disable().unwrap_or(false);
    let there = matches!(enabled.as_deref(), Some("always" | "madvise")) && !switched_off;
    Finding {
        ability: "huge pages",
        state: if there { FindingState::Ok } else { FindingState::Lost },
        found: match enabled {
            Some(_) if switched_off => "switched off for this process (PR_SET_THP_DISABLE)".into(),
            Some(mode) => format!("transparent huge pages: {mode}"),
            None => "this kernel has no transparent huge pages".into(),
        },
        lost: "the cache's memory is mapped in pages of 4 KiB",
        remedy: if switched_off {
            "start it by something that has not called prctl(PR_SET_THP_DISABLE)"
        } else {
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        },
    }
}

/// Whether the CPUs can be kept from sleeping.
pub(super) fn waking_up() -> Finding {
    let can = cpu_latency::probe();
    Finding {
        ability: AWAKE,
        state: if can.is_ok() { FindingState::Ok } else { FindingState::Lost },
        found: match &can {
            Ok(()) => "CPUs can be kept awake while a program makes small requests one after another".into(),
            Err(error) => error.to_string(),
        },
        lost: "each such request waits for CPUs to wake up",
        remedy: can.err().map_or("nothing to be done", |error| error.remedy()),
    }
}

/// Whether the kernel sends the requests of a process that has died to the one that takes over. It
/// says so only to a mount, and there in no way that can be seen before it is needed.
fn requests_sent_again() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let numbers: Vec<u32> =
        release.split(['.', '-']).map_while(|number| number.parse().ok()).take(2).collect();
    Finding {
        ability: "requests sent again",
        state: if numbers.as_slice() >= &[6, 9] { FindingState::Ok } else { FindingState::Lost },
        found: format!("Linux {}", release.trim()),
        lost: "if the daemon is killed, requests that are under way fail before another process takes over",
        remedy: "Linux 6.9",
    }
}

/// Passthrough, as far as it can be known before mounting: the kernel may still refuse it then.
fn passthrough() -> Finding {
    // All users can read the names of kernel functions, only their addresses are hidden.
    let there = fs::read_to_string("/proc/kallsyms").ok().map(|text| text.contains(" fuse_backing_open"));
    match (there, capable(CAP_SYS_ADMIN)) {
        (_, false) => no_passthrough("no CAP_SYS_ADMIN".into()),
        (Some(false), true) => {
            no_passthrough("this kernel does not have it, or its fuse module is not loaded".into())
        }
        (Some(true), true) => Finding {
            state: FindingState::Ok,
            ..no_passthrough("CAP_SYS_ADMIN, and this kernel has it".into())
        },
        (None, true) => Finding {
            state: FindingState::Ok,
            ..no_passthrough("CAP_SYS_ADMIN; whether this kernel has it, a mount says when it starts".into())
        },
    }
}

/// The finding that there is no passthrough, for this reason.
pub(super) fn no_passthrough(reason: String) -> Finding {
    Finding {
        ability: PASSTHROUGH,
        state: FindingState::Lost,
        found: reason,
        lost: "hot files are served from the page cache of the mount, and by the daemon where that has been dropped, \
               at half to a tenth of the speed",
        remedy: "Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH, and CAP_SYS_ADMIN (run as root; in a container \
                 --privileged)",
    }
}

/// Whether the programs are built in. Only loading them shows which ones the kernel accepts, see
/// [`ebpf_probes`].
fn ebpf_programs() -> Finding {
    let there = ebpf::built_in();
    Finding {
        ability: EBPF,
        state: if there { FindingState::Ok } else { FindingState::Lost },
        found: format!("eBPF is {}built into this program", if there { "" } else { "not " }),
        lost: LOST_WITHOUT_EBPF,
        remedy: "build with `cargo xtask build`, which brings a compiler for BPF where it can",
    }
}

const LOST_WITHOUT_EBPF: &str = "page-cache hits and everything else that the kernel does not ask the daemon for is not seen, so what is hot only \
                      there is not kept for when the page cache lets go of it";

/// The finding that a mount is not watched, for this reason.
pub(super) fn no_ebpf(error: &EbpfError) -> Finding {
    Finding {
        ability: EBPF,
        state: FindingState::Lost,
        found: error.to_string(),
        lost: LOST_WITHOUT_EBPF,
        remedy: error.remedy(),
    }
}

/// What eBPF can observe here, by which program, and why not by a better one. Loads the programs,
/// for a moment.
pub(super) fn ebpf_probes() -> Vec<Finding> {
    ebpf::probe_host().into_iter().map(ebpf_probe).collect()
}

/// The finding about one capability.
pub(super) fn ebpf_probe(probe: ProbeStatus) -> Finding {
    let better = probe.reason.unwrap_or_default();
    Finding {
        ability: probe.capability,
        state: if probe.attached_to.is_some() { FindingState::Ok } else { FindingState::Lost },
        found: match probe.attached_to {
            Some(by) if better.is_empty() => by,
            Some(by) => format!("{by}, for want of {better}"),
            None => better,
        },
        lost: probe.lost,
        remedy: probe.remedy.unwrap_or("nothing to be done"),
    }
}

/// The word in brackets of a file such as `always [madvise] never`.
fn chosen(file: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| access(file, AccessFlags::X_OK).is_ok())
}

fn capable(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    bits & (1 << capability) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_says_what_to_do() {
        for finding in findings().into_iter().chain(ebpf_probes()).chain(rdma()) {
            for text in [&finding.found as &str, finding.lost, finding.remedy] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{finding:?}");
            }
            assert_eq!(finding.as_lost().is_some(), finding.state == FindingState::Lost);
        }
    }
}
