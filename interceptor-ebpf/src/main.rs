//! The programs on the kernel's FUSE read path. Built for the BPF target only (`cargo xtask
//! build`) and embedded into `interceptor`, which loads those that the kernel accepts.
//!
//! Every program answers the same questions and returns at the first *no*: is this mount watched?
//! which file is it? which bytes? There is a file for each group of hooks:
//!
//! | file | observes | hooks |
//! |---|---|---|
//! | [`page_cache`] | cached reads, mapped files, inserts | BTF tracepoints of `filemap` |
//! | [`requests`] | requests to the daemon and its answers, direct I/O | tracepoints of `fuse` |
//! | [`passthrough`] | reads from a backing file | `fentry` |
//! | [`calls`] | read calls, for `interceptor trace` | `sys_enter`, `sys_exit`, as above |
//! | [`noop`] | nothing; the baseline of the benchmark | a BTF tracepoint of `filemap` |
//!
//! [`hotness`] turns reads into heat, streams, samples and events; [`thread_state`] and
//! [`readers`] attribute them to threads; [`maps`] has the maps, [`threads`] the numbers of
//! threads. The arithmetic is in the library of this package. [`kernel`] loads fields of kernel
//! structures at the offsets that the loader resolved ([`rodata`]). [`warnings`] logs the branches
//! that should be rare.
#![no_std]
#![no_main]

#[path = "programs/calls.rs"]
mod calls;
#[path = "programs/hotness.rs"]
mod hotness;
#[path = "programs/kernel.rs"]
mod kernel;
#[path = "programs/maps.rs"]
mod maps;
#[path = "programs/noop.rs"]
mod noop;
#[path = "programs/page_cache.rs"]
mod page_cache;
#[path = "programs/passthrough.rs"]
mod passthrough;
#[path = "programs/readers.rs"]
mod readers;
#[path = "programs/requests.rs"]
mod requests;
#[path = "programs/rodata.rs"]
mod rodata;
#[path = "programs/thread_state.rs"]
mod thread_state;
#[path = "programs/threads.rs"]
mod threads;
#[path = "programs/warnings.rs"]
mod warnings;

/// Unreachable: the verifier rejects a program that could get here.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers of the kernel are for programs under a GPL-compatible licence, as these are.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
