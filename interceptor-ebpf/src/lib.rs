//! What the kernel-side programs and the daemon agree on, and the arithmetic that decides in the kernel what is worth telling.
//!
//! The programs (the binary of this package, built for the BPF target only) see every read of the FUSE mounts that are
//! watched. Most of what they see they only count; what they *tell* is rare:
//!
//! ```text
//!  kernel: a read, a fault, a request ──► programs ──► traffic, readers, latency      maps, read when somebody asks
//!                                            │
//!                                            ├─ heat    ── a granule turned hot ─┐
//!                                            └─ streams ── next window is due ───┴─► events, a ring buffer
//! ```
//!
//! [`heat`], [`stream`], [`run`], [`sample`] and [`span`] are plain functions on plain data, without a kernel in sight: the programs run them, and
//! the tests of this library run the very same ones against simple models. [`records`] has the keys and values of the maps, [`event`] what goes through
//! the ring, [`settings`] what the loader hands to the programs as read-only data.
#![no_std]

pub mod event;
pub mod heat;
pub mod histogram;
pub mod records;
pub mod run;
pub mod sample;
pub mod settings;
pub mod span;
pub mod stream;

#[cfg(test)]
extern crate std;
