//! The types that the BPF programs share with the daemon, and the arithmetic that decides in the
//! kernel which reads are worth an event.
//!
//! The programs (the binary of this package, built for the BPF target only) see every read of the
//! watched FUSE mounts. They count most of what they see; they send events rarely:
//!
//! ```text
//!  kernel: read, fault, request ─► programs ─► traffic, readers, latency   maps, read on demand
//!                                     │
//!                                     ├─ heat    ── a granule turned hot ─┐
//!                                     └─ streams ── next window is due ───┴─► events  ring buffer
//! ```
//!
//! [`heat`], [`stream`], [`run`], [`sampling`] and [`pages`] are plain functions on plain data.
//! The programs run them in the kernel, and the tests of this library run the same functions
//! against simple models. [`records`] has the keys and values of the maps, [`event`] the events
//! of the ring buffer, [`call`] the read calls of applications, [`settings`] the read-only data
//! that the loader hands to the programs.
#![no_std]

pub mod call;
pub mod event;
pub mod heat;
pub mod histogram;
pub mod pages;
pub mod records;
pub mod run;
pub mod sampling;
pub mod settings;
pub mod stream;

#[cfg(test)]
extern crate std;
