//! `interceptor` makes reads of SeaweedFS fast without touching the applications that read.
//!
//! The rooms, from the top down. [`cli`] puts the parts together. [`mount`] and [`overlay`] are the
//! two file systems: that of SeaweedFS, and a layer over a mount that was there before; they
//! translate requests and own no policy. [`fuse`] holds the connection to the kernel. [`warmup`]
//! fetches files that a user asks for ahead of a job. [`namespace`] knows names, attributes and
//! which version of a file a name stands for. [`read`] turns a range of a file into blocks of
//! chunks. [`cache`] holds those blocks in memory, [`disk`] on a local disk. [`fetch`] brings them,
//! from the best source that works. [`seaweed`] speaks with filers and volume servers. [`ebpf`]
//! observes reads that only the kernel sees. [`prefetch`] predicts which reads come next.
//! [`telemetry`] counts. Each room uses only those below it, which `cargo xtask rooms` checks.

// These panic where the stream cannot be written: `daemon::output` and `daemon::logs` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod arrival;
pub mod cache;
pub mod cli;
pub mod disk;
pub mod ebpf;
pub mod fetch;
pub mod fuse;
mod ledger;
pub mod mount;
pub mod namespace;
pub mod overlay;
pub mod prefetch;
pub mod priority;
pub mod read;
pub mod seaweed;
pub mod telemetry;
pub mod timeline;
mod vital;
pub mod warmup;
pub mod write_target;

/// Reports the running test as skipped, by a line that `cargo xtask test` counts: libtest knows no
/// test that finds at run time that it cannot run. Those that need root are ignored unless root
/// builds them (`build.rs`), and look again when they are asked for all the same.
#[cfg(test)]
fn skipped(reason: impl std::fmt::Display) {
    use std::io::Write;

    let test = std::thread::current();
    // Not by `eprintln!`, which the test harness captures.
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", test.name().unwrap_or("main"));
}
