//! What can be seen, and by which program: for each sight the ways to it, best first.
//!
//! Kernels differ in what they have and in what they allow, so nothing is assumed: each way is tried, and the first that the kernel takes is
//! the rung that this host stands on. Why better ones were not taken is kept, for people.

use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};

use super::layout::{self as field, Field, Found};

/// Something that can be seen of reads, and whether it is seen here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// What is seen.
    pub sight: &'static str,
    /// The program that sees it, as `bpftool` would call it; `None` if none does.
    pub by: Option<String>,
    /// Why no program, or no better one, sees it; `None` if there is none better.
    pub why: Option<String>,
    /// What goes without it.
    pub lost: &'static str,
    /// What would help, if no program sees it.
    pub remedy: Option<&'static str>,
}

/// Why a program is not used.
struct Off {
    why: String,
    remedy: &'static str,
}

const NEWER: &str = "a newer kernel: since Linux 6.12 there is all that the programs look for";
const NO_LOCKDOWN: &str = "a kernel that is not in lockdown (lockdown=none on its command line)";
const REPORT: &str = "RUST_LOG=interceptor::ebpf=debug shows the verifier's log, which is worth reporting";

/// Something to be seen.
struct Sight {
    name: &'static str,
    lost: &'static str,
    ways: &'static [Way],
}

/// A program that can see it.
struct Way {
    program: &'static str,
    at: Place,
    needs: &'static [Field],
}

/// Where a program is attached.
#[derive(Clone, Copy)]
enum Place {
    /// A tracepoint whose arguments have types.
    Typed(&'static str),
    /// A tracepoint whose arguments are numbers.
    Raw(&'static str),
    /// The entry of a function.
    Function(&'static str),
}

/// What it takes to know which mount a request is for.
const REQUEST: [Field; 3] = [field::REQUEST_MOUNT, field::CONNECTION, field::CONNECTION_DEVICE];
const MAPPING: &[Field] = &[field::HOST, field::SUPER, field::DEVICE, field::NODE, field::SIZE];
const READ: &[Field] = &[field::HOST, field::SUPER, field::DEVICE, field::NODE, field::NUMBER, field::SIZE];
const FOLIO: &[Field] = &[
    field::FOLIO_MAPPING,
    field::FOLIO_FLAGS,
    field::FOLIO_LARGE,
    field::FOLIO_ORDER,
    field::HOST,
    field::SUPER,
    field::DEVICE,
];
const SENT: &[Field] = &[
    REQUEST[0],
    REQUEST[1],
    REQUEST[2],
    field::OPCODE,
    field::UNIQUE,
    field::REQUEST_NODE,
    field::PID,
    field::ARGUMENTS,
    field::VALUE,
    field::ZEROING,
];
const ENDED: &[Field] = &[REQUEST[0], REQUEST[1], REQUEST[2], field::OPCODE, field::UNIQUE, field::ERROR];
const KIOCB: &[Field] = &[
    field::FILE,
    field::POSITION,
    field::COUNT,
    field::FILE_INODE,
    field::SUPER,
    field::DEVICE,
    field::NODE,
    field::NUMBER,
    field::SIZE,
];

/// The names of what is seen, as far as somebody needs to know whether it is.
pub mod sight {
    /// Without it, requests stand in for reads.
    pub const CACHED_READS: &str = "reads through the page cache";
    /// Mapped files, where their pages are in the page cache.
    pub const MAPPED_WINDOWS: &str = "windows of mapped files";
    /// What the page cache does not have, and direct reads.
    pub const REQUESTS: &str = "requests to the daemon";
    /// Files that the kernel reads without the daemon.
    pub const PASSTHROUGH: &str = "passthrough reads";
    /// What enters the page cache, page by page.
    pub const INSERTS: &str = "page-cache inserts";
}

const SIGHTS: [Sight; 7] = [
    Sight {
        name: sight::CACHED_READS,
        lost: "page-cache hits are not seen: heat comes from misses alone, and there is no page-cache hit rate",
        ways: &[Way { program: "cached_read", at: Place::Typed("mm_filemap_get_pages"), needs: READ }],
    },
    Sight {
        name: sight::MAPPED_WINDOWS,
        lost: "files that are read through memory mappings stay cold",
        ways: &[Way { program: "mapped_window", at: Place::Typed("mm_filemap_map_pages"), needs: MAPPING }],
    },
    Sight {
        name: "faults of mapped files",
        lost: "misses of files that are read through memory mappings are not told from other requests",
        ways: &[Way { program: "mapped_fault", at: Place::Typed("mm_filemap_fault"), needs: MAPPING }],
    },
    Sight {
        name: sight::REQUESTS,
        lost: "neither direct I/O nor what the page cache misses is seen",
        ways: &[
            Way { program: "request_sent", at: Place::Typed("fuse_request_send"), needs: SENT },
            Way { program: "request_sent_raw", at: Place::Raw("fuse_request_send"), needs: SENT },
        ],
    },
    Sight {
        name: "answers of the daemon",
        lost: "the daemon's latency is not known",
        ways: &[
            Way { program: "request_ended", at: Place::Typed("fuse_request_end"), needs: ENDED },
            Way { program: "request_ended_raw", at: Place::Raw("fuse_request_end"), needs: ENDED },
        ],
    },
    Sight {
        name: sight::PASSTHROUGH,
        lost: "reads of files that the daemon has handed to the kernel are not seen",
        ways: &[Way {
            program: "passthrough_read",
            at: Place::Function("fuse_passthrough_read_iter"),
            needs: KIOCB,
        }],
    },
    Sight {
        name: sight::INSERTS,
        lost: "what readahead brings is not told from what was asked for",
        ways: &[Way {
            program: "page_inserted",
            at: Place::Typed("mm_filemap_add_to_page_cache"),
            needs: FOLIO,
        }],
    },
];

/// All sights, none of them seen for this reason.
pub(super) fn none(why: &str, remedy: &'static str) -> Vec<Rung> {
    let rung = |sight: &Sight| Rung {
        sight: sight.name,
        by: None,
        why: Some(why.to_owned()),
        lost: sight.lost,
        remedy: Some(remedy),
    };
    SIGHTS.iter().map(rung).collect()
}

/// Loads and attaches the best program for each sight that is `wanted` by its name.
pub(super) fn climb(
    programs: &mut Ebpf,
    kernel: &Btf,
    found: &Found,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Rung> {
    let wanted = SIGHTS.iter().filter(|sight| wanted(sight.name));
    wanted.map(|sight| sight.climb(programs, kernel, found)).collect()
}

/// Loads and attaches the program that does nothing.
pub(super) fn attach_idle(programs: &mut Ebpf, kernel: &Btf) -> Result<(), ProgramError> {
    let Some(Program::BtfTracePoint(idle)) = programs.program_mut("idle") else {
        return Err(ProgramError::UnexpectedProgramType);
    };
    idle.load("mm_filemap_get_pages", kernel)?;
    idle.attach().map(drop)
}

/// Whether `sight`, one of [`sight`], is seen.
pub(super) fn sees(rungs: &[Rung], sight: &str) -> bool {
    rungs.iter().any(|rung| rung.sight == sight && rung.by.is_some())
}

impl Sight {
    fn climb(&self, programs: &mut Ebpf, kernel: &Btf, found: &Found) -> Rung {
        let mut reasons = Vec::new();
        let (mut by, mut remedy) = (None, None);
        for way in self.ways {
            match way.take(programs, kernel, found) {
                Ok(()) => {
                    (by, remedy) = (Some(way.at.to_string()), None);
                    break;
                }
                Err(off) => {
                    reasons.push(format!("{}: {}", way.at, off.why));
                    remedy = Some(off.remedy);
                }
            }
        }
        let why = (!reasons.is_empty()).then(|| reasons.join("; "));
        Rung { sight: self.name, by, why, lost: self.lost, remedy }
    }
}

impl Way {
    /// Loads and attaches the program, or says why not.
    fn take(&self, programs: &mut Ebpf, kernel: &Btf, found: &Found) -> Result<(), Off> {
        let missing = found.missing(self.needs);
        if !missing.is_empty() {
            return Err(Off { why: format!("this kernel has no {}", missing.join(", no ")), remedy: NEWER });
        }
        let lacking = || Off { why: "it was not built".into(), remedy: "build again: cargo xtask build" };
        let program = programs.program_mut(self.program).ok_or_else(lacking)?;
        let outcome = match (program, self.at) {
            (Program::BtfTracePoint(program), Place::Typed(name)) => {
                program.load(name, kernel).and_then(|()| program.attach()).map(drop)
            }
            (Program::RawTracePoint(program), Place::Raw(name)) => {
                program.load().and_then(|()| program.attach(name)).map(drop)
            }
            (Program::FEntry(program), Place::Function(name)) => {
                program.load(name, kernel).and_then(|()| program.attach()).map(drop)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        outcome.map_err(|error| self.reason(&error, found))
    }

    fn reason(&self, error: &ProgramError, found: &Found) -> Off {
        let (why, remedy) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                tracing::debug!(program = self.program, "the verifier says:\n{verifier_log}");
                match (io_error.raw_os_error(), self.at) {
                    (Some(libc::EPERM), Place::Function(_)) => (
                        format!("refused, as kernels in lockdown do with programs at functions ({io_error})"),
                        NO_LOCKDOWN,
                    ),
                    _ => (format!("refused ({io_error})"), REPORT),
                }
            }
            ProgramError::Btf(_) if found.fuse_is_module => {
                ("not in this kernel's own list; FUSE is a module here".to_owned(), NEWER)
            }
            ProgramError::Btf(_) => ("not in this kernel".to_owned(), NEWER),
            other => (other.to_string(), REPORT),
        };
        Off { why, remedy }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Typed(name) => write!(f, "tp_btf/{name}"),
            Self::Raw(name) => write!(f, "raw_tp/{name}"),
            Self::Function(name) => write!(f, "fentry/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_programs_every_sight_says_why_and_what_is_lost() {
        for rung in none("no reason", "no remedy") {
            assert_eq!((rung.by, rung.why.as_deref()), (None, Some("no reason")));
            assert_eq!(rung.remedy, Some("no remedy"));
            assert!(!rung.lost.is_empty() && !rung.lost.ends_with('.'));
        }
    }
}
