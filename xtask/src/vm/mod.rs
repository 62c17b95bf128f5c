//! `cargo xtask vm`: a virtual machine with soft-RoCE that runs programs of the host.
//!
//! Verbs need an RDMA device, and soft-RoCE needs a kernel that has it. The guest has a Debian
//! kernel under QEMU; both come from Debian's packages, unpacked below `target/vm` ([`archive`],
//! [`equipment`]). The guest boots from a small [`initramfs`], sees the whole root of the host
//! (read-only, under an overlay in memory) so that every program of the host runs as it is, brings
//! up a soft-RoCE device, runs one command ([`guest`]) and powers off. Nothing is installed on the
//! host, and the guest can write nothing but the share of the run.
//!
//! QEMU emulates, so no KVM is needed and the guest is slow: a boot takes four to twelve seconds.
//! A figure measured there means something only beside others of the same boot.

mod archive;
mod bench;
mod equipment;
mod guest;
mod initramfs;

use std::ffi::OsString;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::equipment::Equipment;
pub(crate) use self::equipment::Kernel;
use self::guest::{Guest, GuestSlot};
use crate::interrupt::{self, POLL_INTERVAL};
use crate::setup;
use crate::workplace::Workplace;

/// What the verb takes.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct VmOptions {
    #[command(subcommand)]
    verb: Option<VmVerb>,
    #[command(flatten)]
    run: GuestRunOptions,
}

#[derive(clap::Subcommand)]
enum VmVerb {
    /// Run the suites that need an RDMA device
    Test {
        /// Which kernel the guests boot
        #[arg(long, value_enum, default_value_t)]
        kernel: Kernel,
    },
    /// Measure our reads beside those of perftest, in one boot
    Bench {
        /// Which kernel the guest boots
        #[arg(long, value_enum, default_value_t)]
        kernel: Kernel,
        /// How often each is measured, in turn; the medians are compared
        #[arg(long, default_value_t = 5)]
        reps: usize,
    },
}

#[derive(clap::Args)]
struct GuestRunOptions {
    /// Which kernel the guest boots
    #[arg(long, value_enum, default_value_t)]
    kernel: Kernel,
    #[command(flatten)]
    setup: GuestSetup,
    /// Seconds after which the guest is ended
    #[arg(long, default_value_t = 600)]
    deadline: u64,
    /// What to run: a program of the host with its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// How many guests there are, and how their CPUs are emulated.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct GuestSetup {
    /// Run the command in two guests on one network, told apart by VM_GUEST (0, 1), VM_ADDRESS and
    /// VM_PEER; lines of the second are marked
    #[arg(long)]
    pub(crate) pair: bool,
    /// Let the CPUs of a guest run in turn. It takes twice as long; where eBPF programs or tracers
    /// are attached to functions that another CPU calls all the time, the guest's kernel would
    /// panic
    #[arg(long)]
    pub(crate) cpus_in_turn: bool,
}

/// The verb; `run_suites` runs the suites that need an RDMA device. Returns the exit status of the
/// command; of two guests, the first that is not 0.
pub(crate) fn command(options: &VmOptions, run_suites: fn(Kernel) -> Result<()>) -> Result<u8> {
    match options.verb {
        Some(VmVerb::Test { kernel }) => run_suites(kernel).map(|()| 0),
        Some(VmVerb::Bench { kernel, reps }) => bench::command(kernel, reps).map(|()| 0),
        None => run(&options.run),
    }
}

fn run(options: &GuestRunOptions) -> Result<u8> {
    setup::ensure()?;
    let run = GuestRun {
        kernel: options.kernel,
        setup: options.setup,
        deadline: Duration::from_secs(options.deadline),
    };
    run.start(&options.command, |number, stdout, stderr| {
        print_marked(&mut std::io::stdout(), number, stdout)?;
        print_marked(&mut std::io::stderr(), number, stderr)
    })
}

/// Brings what a guest with this kernel takes, unless it is there.
pub(crate) fn prepare(kernel: Kernel) -> Result<()> {
    Equipment::ensure(kernel).map(drop)
}

/// The beginning of an xtask command line that runs a command in one or two guests; the caller
/// appends the command, and reads the output like that of any program.
pub(crate) fn command_line(kernel: Kernel, setup: GuestSetup, deadline: Duration) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["vm", "--kernel", &kernel.to_string(), "--deadline", &deadline.as_secs().to_string()]);
    if setup.pair {
        command.arg("--pair");
    }
    if setup.cpus_in_turn {
        command.arg("--cpus-in-turn");
    }
    command.arg("--");
    Ok(command)
}

/// One command in one guest or in two.
pub(crate) struct GuestRun {
    pub(crate) kernel: Kernel,
    pub(crate) setup: GuestSetup,
    pub(crate) deadline: Duration,
}

impl GuestRun {
    /// Boots, runs, and returns the exit status. `output` is called with the number of the guest,
    /// standard output and standard error, in whole lines save at the end.
    pub(crate) fn start(
        &self,
        command: &[OsString],
        mut output: impl FnMut(usize, &[u8], &[u8]) -> Result<()>,
    ) -> Result<u8> {
        let equipment = Equipment::ensure(self.kernel)?;
        let mut workplace = Workplace::open("vm-run")?;
        let mut guests = Vec::new();
        let count = if self.setup.pair { 2 } else { 1 };
        for number in 0..count {
            let slot = GuestSlot { number, count, cpus_in_turn: self.setup.cpus_in_turn };
            let guest = Guest::start(&mut workplace, &equipment, slot, command)?;
            guests.push((guest, LineBuffer::default(), LineBuffer::default()));
        }
        let started = Instant::now();
        loop {
            let mut running = false;
            for (number, (guest, stdout, stderr)) in guests.iter_mut().enumerate() {
                // Asked before its output is read, so that nothing is written after the last look.
                let ended = guest.ended()?;
                let (out, err) = guest.output()?;
                let (out, err) = (stdout.whole(out, ended), stderr.whole(err, ended));
                if !(out.is_empty() && err.is_empty()) {
                    output(number, &out, &err)?;
                }
                running |= !ended;
            }
            if !running {
                break;
            }
            if interrupt::requested() || started.elapsed() > self.deadline {
                for (guest, _, _) in &mut guests {
                    guest.kill()?;
                }
                interrupt::check()?;
                let consoles: Vec<String> = guests.iter().map(|(guest, _, _)| guest.console()).collect();
                bail!("no end after {} s\n{}", self.deadline.as_secs(), consoles.join("\n"));
            }
            thread::sleep(POLL_INTERVAL);
        }
        let statuses = guests.iter().map(|(guest, _, _)| guest.status()).collect::<Result<Vec<u8>>>()?;
        workplace.close()?;
        Ok(statuses.into_iter().find(|&status| status != 0).unwrap_or(0))
    }
}

/// Holds back the beginning of a line until its end is there.
#[derive(Default)]
struct LineBuffer {
    held: Vec<u8>,
}

impl LineBuffer {
    fn whole(&mut self, more: Vec<u8>, last: bool) -> Vec<u8> {
        self.held.extend(more);
        let end = match self.held.iter().rposition(|&byte| byte == b'\n') {
            _ if last => self.held.len(),
            Some(newline) => newline + 1,
            None => 0,
        };
        self.held.drain(..end).collect()
    }
}

/// Passes output on; the lines of all guests but the first say whose they are.
fn print_marked(to: &mut impl Write, guest: usize, text: &[u8]) -> Result<()> {
    match guest {
        0 => to.write_all(text)?,
        _ => {
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                write!(to, "{guest}| ")?;
                to.write_all(line)?;
            }
        }
    }
    Ok(to.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passed_on_whole() {
        let mut lines = LineBuffer::default();
        assert_eq!(lines.whole(b"a\nb".to_vec(), false), b"a\n");
        assert!(lines.whole(b"c".to_vec(), false).is_empty());
        assert_eq!(lines.whole(b"\nd".to_vec(), false), b"bc\n");
        assert_eq!(lines.whole(Vec::new(), true), b"d");
    }

    #[test]
    fn two_guests_are_told_apart() {
        let mut text = Vec::new();
        print_marked(&mut text, 1, b"one\ntwo\n").unwrap();
        print_marked(&mut text, 0, b"three\n").unwrap();
        assert_eq!(text, b"1| one\n1| two\nthree\n");
    }
}
