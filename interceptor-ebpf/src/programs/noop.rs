//! A program that does nothing, attached where cached reads are observed: what the kernel charges
//! for any program there. For the benchmark only.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

/// Does nothing.
#[btf_tracepoint(function = "mm_filemap_get_pages")]
fn noop(_: BtfTracePointContext) -> i32 {
    0
}
