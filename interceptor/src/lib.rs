//! `interceptor` makes reads of SeaweedFS fast without touching the applications that read.
//!
//! A byte's way, from the kernel down: [`mount`] translates requests and owns no policy; [`fuse`]
//! holds the connection to the kernel; [`namespace`] knows names, attributes and which version of
//! a file a name stands for; [`read`] turns a range of a file into blocks of chunks; [`cache`]
//! holds those blocks; [`prefetch`] says which to bring before they are asked for; [`fetch`]
//! brings them, from the best source that works; [`seaweed`] speaks with filers and volume
//! servers. [`telemetry`] watches them all. [`overlay`] stands beside [`mount`]: a file system that
//! passes everything on to a mount that was there before. [`warmup`] stands beside [`mount`]: it
//! fetches files that a user asks for ahead of a job. Each module uses only those below it.

// These panic where the stream cannot be written: `daemon::output` and `daemon::logs` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod arrival;
pub mod cache;
pub mod cli;
pub mod ebpf;
pub mod fetch;
pub mod fuse;
pub mod mount;
pub mod namespace;
pub mod overlay;
pub mod prefetch;
pub mod priority;
pub mod read;
pub mod seaweed;
pub mod telemetry;
mod vital;
pub mod warmup;
pub mod write_target;
