//! What can be observed of reads, and the BPF program that observes it: for each capability the
//! possible attachments, best first.
//!
//! Kernels differ in the hooks that they have and in the program types that they allow, so
//! nothing is assumed: each attachment is tried in order, and the first that the kernel accepts
//! is used. The reasons against the better ones are kept for the start-up log, the status API and
//! `interceptor check`.

use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};

use super::offsets::{self as field, Field, ResolvedOffsets};

/// A capability, and the program that provides it on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeStatus {
    /// What is observed.
    pub capability: &'static str,
    /// Where the program is attached, as `bpftool` writes it (`tp_btf/mm_filemap_fault`); `None`
    /// if no program could be attached.
    pub attached_to: Option<String>,
    /// Why no program, or no better one, is attached; `None` if the best one is.
    pub reason: Option<String>,
    /// What the mount goes without if the capability is missing.
    pub lost: &'static str,
    /// How to get the capability, if it is missing.
    pub remedy: Option<&'static str>,
}

/// Why a program is not attached.
struct Rejection {
    reason: String,
    remedy: &'static str,
}

const NEWER: &str = "a newer kernel: since Linux 6.12 there is all that the programs look for";
const NO_LOCKDOWN: &str = "a kernel that is not in lockdown (lockdown=none on its command line)";
const REPORT: &str = "RUST_LOG=interceptor::ebpf=debug shows the verifier's log, which is worth reporting";

/// Something that can be observed.
struct Capability {
    name: &'static str,
    lost: &'static str,
    /// Best first.
    attachments: &'static [Attachment],
}

/// A program, and the hook that it is attached to.
struct Attachment {
    program: &'static str,
    hook: Hook,
    needs: &'static [Field],
}

const fn attachment(program: &'static str, hook: Hook, needs: &'static [Field]) -> Attachment {
    Attachment { program, hook, needs }
}

/// A hook in the kernel.
#[derive(Clone, Copy)]
enum Hook {
    /// A BTF tracepoint: the verifier knows the types of its arguments.
    TpBtf(&'static str),
    /// A raw tracepoint: its arguments are untyped numbers.
    RawTp(&'static str),
    /// The entry of a function.
    Fentry(&'static str),
}

/// The fields that lead from a request to the device number of its mount.
const REQUEST: [Field; 3] = [field::REQUEST_OWNER, field::OWNER_CONNECTION, field::CONNECTION_DEV];
const MAPPING: &[Field] =
    &[field::MAPPING_HOST, field::INODE_SB, field::SUPER_DEV, field::FUSE_NODEID, field::INODE_SIZE];
const READ: &[Field] = &[
    field::MAPPING_HOST,
    field::INODE_SB,
    field::SUPER_DEV,
    field::FUSE_NODEID,
    field::INODE_INO,
    field::INODE_SIZE,
];
const FOLIO: &[Field] = &[
    field::FOLIO_MAPPING,
    field::FOLIO_FLAGS,
    field::FOLIO_HEAD_BIT,
    field::FOLIO_ORDER,
    field::MAPPING_HOST,
    field::INODE_SB,
    field::SUPER_DEV,
];
const SENT: &[Field] = &[
    REQUEST[0],
    REQUEST[1],
    REQUEST[2],
    field::REQUEST_OPCODE,
    field::REQUEST_UNIQUE,
    field::REQUEST_NODEID,
    field::REQUEST_PID,
    field::REQUEST_ARGS,
    field::ARGS_VALUE,
    field::ARGS_PAGE_ZEROING,
];
const ENDED: &[Field] =
    &[REQUEST[0], REQUEST[1], REQUEST[2], field::REQUEST_OPCODE, field::REQUEST_UNIQUE, field::REQUEST_ERROR];
const KIOCB: &[Field] = &[
    field::KIOCB_FILE,
    field::KIOCB_POSITION,
    field::ITER_COUNT,
    field::FILE_INODE,
    field::INODE_SB,
    field::SUPER_DEV,
    field::FUSE_NODEID,
    field::INODE_INO,
    field::INODE_SIZE,
];

const FILE: &[Field] = &[field::FILE_INODE, field::INODE_SB, field::SUPER_DEV, field::FUSE_NODEID];

/// Names of the capabilities that other modules ask for.
pub mod capability {
    /// Reads through the page cache. Without it, requests to the daemon stand in for reads.
    pub const CACHED_READS: &str = "reads through the page cache";
    /// Reads of mapped files whose pages are in the page cache.
    pub const MAPPED_WINDOWS: &str = "windows of mapped files";
    /// Page-cache misses, and direct I/O.
    pub const REQUESTS: &str = "requests to the daemon";
    /// Reads of files that the kernel serves from a backing file.
    pub const PASSTHROUGH: &str = "passthrough reads";
    /// Pages that enter the page cache.
    pub const INSERTS: &str = "page-cache inserts";
    /// System calls that read.
    pub const CALL_BEGINS: &str = "begins of read calls";
    /// Their returns.
    pub const CALL_ENDS: &str = "ends of read calls";
    /// What they read through the page cache.
    pub const CALL_PAGES: &str = "pages that read calls read";
    /// What they ask the daemon.
    pub const CALL_REQUESTS: &str = "requests of read calls";
}

const CAPABILITIES: [Capability; 7] = [
    Capability {
        name: capability::CACHED_READS,
        lost: "page-cache hits are not seen: heat comes from misses alone, and there is no page-cache hit rate",
        attachments: &[attachment("cached_read", Hook::TpBtf("mm_filemap_get_pages"), READ)],
    },
    Capability {
        name: capability::MAPPED_WINDOWS,
        lost: "files that are read through memory mappings stay cold",
        attachments: &[attachment("mapped_window", Hook::TpBtf("mm_filemap_map_pages"), MAPPING)],
    },
    Capability {
        name: "faults of mapped files",
        lost: "misses of files that are read through memory mappings are not told from other requests",
        attachments: &[attachment("mapped_fault", Hook::TpBtf("mm_filemap_fault"), MAPPING)],
    },
    Capability {
        name: capability::REQUESTS,
        lost: "neither direct I/O nor what the page cache misses is seen",
        attachments: &[
            attachment("request_sent", Hook::TpBtf("fuse_request_send"), SENT),
            attachment("request_sent_raw", Hook::RawTp("fuse_request_send"), SENT),
        ],
    },
    Capability {
        name: "answers of the daemon",
        lost: "the daemon's latency is not known",
        attachments: &[
            attachment("request_ended", Hook::TpBtf("fuse_request_end"), ENDED),
            attachment("request_ended_raw", Hook::RawTp("fuse_request_end"), ENDED),
        ],
    },
    Capability {
        name: capability::PASSTHROUGH,
        lost: "reads of files that the daemon has handed to the kernel are not seen",
        attachments: &[attachment("passthrough_read", Hook::Fentry("fuse_passthrough_read_iter"), KIOCB)],
    },
    Capability {
        name: capability::INSERTS,
        lost: "what readahead brings is not told from what was asked for",
        attachments: &[attachment("page_inserted", Hook::TpBtf("mm_filemap_add_to_page_cache"), FOLIO)],
    },
];

/// The capabilities that together follow read calls. The begin of calls comes last, so that all of
/// a call is seen or nothing.
const CALL_CAPABILITIES: [Capability; 6] = [
    Capability {
        name: capability::CALL_ENDS,
        lost: "calls",
        attachments: &[attachment("call_left", Hook::TpBtf("sys_exit"), &[])],
    },
    Capability {
        name: capability::CALL_PAGES,
        lost: "calls that the page cache answers",
        attachments: &[attachment("call_read_pages", Hook::TpBtf("mm_filemap_get_pages"), READ)],
    },
    Capability {
        name: capability::CALL_REQUESTS,
        lost: "calls with direct I/O, and which calls asked the daemon",
        attachments: &[
            attachment("call_asked", Hook::TpBtf("fuse_request_send"), SENT),
            attachment("call_asked_raw", Hook::RawTp("fuse_request_send"), SENT),
        ],
    },
    Capability {
        name: "passthrough of read calls",
        lost: "calls that passthrough answers",
        attachments: &[attachment("call_passed_through", Hook::Fentry("fuse_passthrough_read_iter"), KIOCB)],
    },
    Capability {
        name: "passthrough of read calls within the kernel",
        lost: "calls that passthrough answers within the kernel (sendfile, splice)",
        attachments: &[attachment("call_spliced", Hook::Fentry("fuse_passthrough_splice_read"), FILE)],
    },
    Capability {
        name: capability::CALL_BEGINS,
        lost: "calls",
        attachments: &[attachment("call_entered", Hook::TpBtf("sys_enter"), &[])],
    },
];

/// The status of every capability when no program can be loaded at all, for `reason`.
pub(super) fn all_missing(reason: &str, remedy: &'static str) -> Vec<ProbeStatus> {
    let missing = |capability: &Capability| ProbeStatus {
        capability: capability.name,
        attached_to: None,
        reason: Some(reason.to_owned()),
        lost: capability.lost,
        remedy: Some(remedy),
    };
    CAPABILITIES.iter().map(missing).collect()
}

/// Loads and attaches the best program for each capability whose name passes `wanted`.
pub(super) fn attach_all(
    programs: &mut Ebpf,
    kernel: &Btf,
    offsets: &ResolvedOffsets,
    wanted: impl Fn(&str) -> bool,
) -> Vec<ProbeStatus> {
    let wanted = CAPABILITIES.iter().filter(|capability| wanted(capability.name));
    wanted.map(|capability| capability.attach_best(programs, kernel, offsets)).collect()
}

/// Loads and attaches the programs that follow read calls.
pub(super) fn attach_calls(programs: &mut Ebpf, kernel: &Btf, offsets: &ResolvedOffsets) -> Vec<ProbeStatus> {
    CALL_CAPABILITIES.iter().map(|capability| capability.attach_best(programs, kernel, offsets)).collect()
}

/// Loads and attaches the program that does nothing.
pub(super) fn attach_noop(programs: &mut Ebpf, kernel: &Btf) -> Result<(), ProgramError> {
    let Some(Program::BtfTracePoint(noop)) = programs.program_mut("noop") else {
        return Err(ProgramError::UnexpectedProgramType);
    };
    noop.load("mm_filemap_get_pages", kernel)?;
    noop.attach().map(drop)
}

/// Whether a program provides `name`, one of [`capability`].
pub(super) fn sees(probes: &[ProbeStatus], name: &str) -> bool {
    probes.iter().any(|probe| probe.capability == name && probe.attached_to.is_some())
}

impl Capability {
    fn attach_best(&self, programs: &mut Ebpf, kernel: &Btf, offsets: &ResolvedOffsets) -> ProbeStatus {
        let mut reasons = Vec::new();
        let (mut attached_to, mut remedy) = (None, None);
        for attachment in self.attachments {
            match attachment.attach(programs, kernel, offsets) {
                Ok(()) => {
                    (attached_to, remedy) = (Some(attachment.hook.to_string()), None);
                    break;
                }
                Err(rejection) => {
                    reasons.push(format!("{}: {}", attachment.hook, rejection.reason));
                    remedy = Some(rejection.remedy);
                }
            }
        }
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        ProbeStatus { capability: self.name, attached_to, reason, lost: self.lost, remedy }
    }
}

impl Attachment {
    fn attach(&self, programs: &mut Ebpf, kernel: &Btf, offsets: &ResolvedOffsets) -> Result<(), Rejection> {
        let missing = offsets.missing(self.needs);
        if !missing.is_empty() {
            let reason = format!("this kernel has no {}", missing.join(", no "));
            return Err(Rejection { reason, remedy: NEWER });
        }
        let not_built =
            || Rejection { reason: "it was not built".into(), remedy: "build again: cargo xtask build" };
        let program = programs.program_mut(self.program).ok_or_else(not_built)?;
        let outcome = match (program, self.hook) {
            (Program::BtfTracePoint(program), Hook::TpBtf(name)) => {
                program.load(name, kernel).and_then(|()| program.attach()).map(drop)
            }
            (Program::RawTracePoint(program), Hook::RawTp(name)) => {
                program.load().and_then(|()| program.attach(name)).map(drop)
            }
            (Program::FEntry(program), Hook::Fentry(name)) => {
                program.load(name, kernel).and_then(|()| program.attach()).map(drop)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        outcome.map_err(|error| self.rejection(&error, offsets))
    }

    fn rejection(&self, error: &ProgramError, offsets: &ResolvedOffsets) -> Rejection {
        let (reason, remedy) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                tracing::debug!(program = self.program, "the verifier says:\n{verifier_log}");
                match (io_error.raw_os_error(), self.hook) {
                    (Some(libc::EPERM), Hook::Fentry(_)) => (
                        format!("refused, as kernels in lockdown do with programs at functions ({io_error})"),
                        NO_LOCKDOWN,
                    ),
                    _ => (format!("refused ({io_error})"), REPORT),
                }
            }
            ProgramError::Btf(_) if offsets.fuse_is_module => {
                ("not in this kernel's own list; FUSE is a module here".to_owned(), NEWER)
            }
            ProgramError::Btf(_) => ("not in this kernel".to_owned(), NEWER),
            other => (other.to_string(), REPORT),
        };
        Rejection { reason, remedy }
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TpBtf(name) => write!(f, "tp_btf/{name}"),
            Self::RawTp(name) => write!(f, "raw_tp/{name}"),
            Self::Fentry(name) => write!(f, "fentry/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_has_a_reason_and_a_consequence() {
        for probe in all_missing("no reason", "no remedy") {
            assert_eq!((probe.attached_to, probe.reason.as_deref()), (None, Some("no reason")));
            assert_eq!(probe.remedy, Some("no remedy"));
            assert!(!probe.lost.is_empty() && !probe.lost.ends_with('.'));
        }
    }
}
