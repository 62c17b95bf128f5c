//! The programs that watch the kernel's FUSE read path. Built for the BPF target only (`cargo xtask build` does it) and
//! embedded into `interceptor`, which loads those of them that the kernel accepts.
//!
//! All of them answer the same questions and leave through the first that says no: *is this mount watched? which file is it?
//! which bytes?* They live in a file per place of the kernel that they watch:
//!
//! | file | sees | by |
//! |---|---|---|
//! | [`cached`] | reads through the page cache, hits included; mapped files; what enters the page cache | BTF tracepoints of `filemap` |
//! | [`requests`] | requests to the daemon and its answers, direct I/O | BTF tracepoints of `fuse`; raw ones where FUSE is a module |
//! | [`passthrough`] | reads that the kernel passes to a backing file | `fentry` |
//! | [`idle`] | nothing, to know what seeing costs | a BTF tracepoint of `filemap` |
//!
//! What they make of it is in [`told`] (heat, streams, samples, events), [`seats`] and [`readers`] (who) and [`maps`]; the arithmetic is in the library of this
//! package. [`kernel`] reads fields of
//! the kernel's structures at the offsets that the loader found ([`given`]).
#![no_std]
#![no_main]

#[path = "programs/cached.rs"]
mod cached;
#[path = "programs/given.rs"]
mod given;
#[path = "programs/idle.rs"]
mod idle;
#[path = "programs/kernel.rs"]
mod kernel;
#[path = "programs/maps.rs"]
mod maps;
#[path = "programs/passthrough.rs"]
mod passthrough;
#[path = "programs/readers.rs"]
mod readers;
#[path = "programs/requests.rs"]
mod requests;
#[path = "programs/seats.rs"]
mod seats;
#[path = "programs/told.rs"]
mod told;

/// Never reached: the verifier refuses a program that could get here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel offers some of its helpers only to programs that may be used under the GPL, as these may.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
